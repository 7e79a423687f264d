//! Connection ids for QUIC servers behind the balancer (draft-ietf-quic-load-balancers-21): each names its server, so that a
//! connection stays there when its client's address changes. For [quinn](https://docs.rs/quinn), with the feature `quinn`.
//!
//! ```
//! use lb_userspace::quic::{QuicLbConfig, QuicLbIds};
//! use quinn_proto::ConnectionIdGenerator;
//!
//! // As in lbd's configuration: rotation 0, server ids of 2 bytes, nonces of 6, encrypted.
//! let key = [7; 16]; // in earnest: 16 random bytes, the same at all servers and at lbd
//! let config = QuicLbConfig::new(0, 2, 6, Some(&key))?;
//! // In earnest `durable`, so that no nonce comes twice when the server starts anew.
//! let ids = QuicLbIds::new(config, &[0x0a, 0x0b])?;
//! let mut generator = ids.clone();
//! assert_eq!(generator.generate_cid().len(), 9);
//! // With quinn: endpoint_config.cid_generator(move || Box::new(ids.clone()));
//! # Ok::<_, Box<dyn std::error::Error>>(())
//! ```

mod nonces;

use lb_common::quic_lb::{self, MAX_ID, Server, UNROUTABLE};
use nonces::Nonces;
use parking_lot::Mutex;
use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use lb_common::quic_lb::{Config as QuicLbConfig, ConfigError};

/// Makes connection ids, and knows its own again. Clones are the same: together they use no nonce twice.
#[derive(Clone)]
pub struct QuicLbIds {
    shared: Arc<Mutex<Shared>>,
    id_len: usize,
    lifetime: Option<Duration>,
}

/// Why no connection ids can be made.
#[derive(Debug, thiserror::Error)]
pub enum QuicLbError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("the server id has {found} bytes, but the configuration says {expected}")]
    ServerId { expected: usize, found: usize },
    /// An endpoint of quinn makes ids of one length all its life.
    #[error(
        "the new configuration makes connection ids of {new} bytes, but those in use have {present}: choose `nonce_bytes` so \
         that they are as long"
    )]
    Length { present: usize, new: usize },
    #[error(
        "the nonces in {0} are in use, by another process or by ids that this one made before: clone those; every other \
         server needs a server id and a directory of its own"
    )]
    Taken(PathBuf),
    #[error(
        "{0} does not hold nonces: remove it if the configuration's key has never been used with this server id"
    )]
    Unreadable(PathBuf),
    #[error("cannot keep nonces in {path}: {source}")]
    Store { path: PathBuf, source: std::io::Error },
    #[error("the system gives no random numbers: {0}")]
    Random(getrandom::Error),
}

/// A configuration with this server's id in it.
struct Minter {
    config: QuicLbConfig,
    server: Vec<u8>,
    nonces: Nonces,
}

struct Shared {
    present: Minter,
    /// Configurations whose ids may still be in use.
    before: Vec<(QuicLbConfig, Vec<u8>)>,
    dir: Option<PathBuf>,
    /// Whether it was told that there is no nonce left.
    told: bool,
}

impl QuicLbIds {
    /// Ids with nonces that are as good as random from one start of the process to the next. With nonces of at least 8 bytes
    /// that is safe for any number of starts; with shorter ones use [`QuicLbIds::durable`].
    ///
    /// # Errors
    /// The server id's length is not the configured one, or the system gives no random numbers.
    pub fn new(config: QuicLbConfig, server_id: &[u8]) -> Result<Self, QuicLbError> {
        Self::with(config, server_id, None)
    }

    /// Ids with nonces that never come twice, whatever happens to the process: how far they are used is written down in a file of
    /// this directory, in advance, a few thousand at a time. Never restore an older copy of it.
    ///
    /// # Errors
    /// As [`QuicLbIds::new`]; or the directory cannot be used, or another process uses it for the same server id.
    pub fn durable(config: QuicLbConfig, server_id: &[u8], dir: &Path) -> Result<Self, QuicLbError> {
        Self::with(config, server_id, Some(dir.to_owned()))
    }

    fn with(config: QuicLbConfig, server: &[u8], dir: Option<PathBuf>) -> Result<Self, QuicLbError> {
        let present = Minter::new(config, server, dir.as_deref())?;
        let shared = Shared { present, before: Vec::new(), dir, told: false };
        Ok(Self { shared: Arc::new(Mutex::new(shared)), id_len: config.id_len(), lifetime: None })
    }

    /// Has quinn replace each id after this time.
    #[must_use]
    pub fn lifetime(self, lifetime: Duration) -> Self {
        Self { lifetime: Some(lifetime), ..self }
    }

    /// Makes ids with another configuration from now on, with another rotation; those made before stay good. Give lbd the new
    /// configuration first, beside the old one.
    ///
    /// # Errors
    /// As [`QuicLbIds::new`], and the ids must be as long as before. The present configuration stays.
    pub fn rotate(&self, config: QuicLbConfig, server_id: &[u8]) -> Result<(), QuicLbError> {
        if config.id_len() != self.id_len {
            return Err(QuicLbError::Length { present: self.id_len, new: config.id_len() });
        }
        let mut shared = self.shared.lock();
        let next = Minter::new(config, server_id, shared.dir.as_deref())?;
        let last = std::mem::replace(&mut shared.present, next);
        shared
            .before
            .retain(|(before, _)| ![config.rotation, last.config.rotation].contains(&before.rotation));
        if last.config.rotation != config.rotation {
            shared.before.push((last.config, last.server));
        }
        shared.told = false;
        Ok(())
    }

    /// How many ids can still be made with the present configuration. When they have run out, ids name no server, and the
    /// balancer sends their packets where the client's went last: change the key before.
    pub fn left(&self) -> u128 {
        self.shared.lock().present.nonces.left()
    }

    /// A new connection id.
    fn mint(&self) -> ConnectionId {
        let mut shared = self.shared.lock();
        let Shared { present, told, .. } = &mut *shared;
        let nonce = match present.nonces.next() {
            Ok(nonce) => nonce,
            Err(reason) => {
                if !std::mem::replace(told, true) {
                    tracing::error!(%reason, "connection ids name no server from now on");
                }
                return unroutable(self.id_len);
            }
        };
        let config = &present.config;
        ConnectionId::new(&config.encode(&present.server, &nonce, config.own_length()))
    }

    /// Whether it is one of this server's.
    fn knows(&self, id: &[u8]) -> bool {
        let Some(rotation) = id.first().map(|first| first >> 5) else { return false };
        if rotation == UNROUTABLE {
            return id.len() == self.id_len;
        }
        let shared = self.shared.lock();
        let present = (&shared.present.config, &shared.present.server);
        let before = shared.before.iter().map(|(config, server)| (config, server));
        let mut same =
            std::iter::once(present).chain(before).filter(|(config, _)| config.rotation == rotation);
        same.any(|(config, server)| {
            id.len() == config.id_len() && config.decode(id, 0) == Server::new(0, server)
        })
    }
}

impl ConnectionIdGenerator for QuicLbIds {
    fn generate_cid(&mut self) -> ConnectionId {
        self.mint()
    }

    fn validate(&self, id: &ConnectionId) -> Result<(), InvalidCid> {
        if self.knows(id) { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        self.id_len
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        self.lifetime
    }
}

impl Minter {
    fn new(config: QuicLbConfig, server: &[u8], dir: Option<&Path>) -> Result<Self, QuicLbError> {
        let expected = usize::from(config.server_len);
        if server.len() != expected {
            return Err(QuicLbError::ServerId { expected, found: server.len() });
        }
        let nonces = match dir {
            None => Nonces::fresh(config.nonce_len())?,
            Some(dir) => Nonces::kept(config.nonce_len(), &dir.join(fingerprint(&config, server)))?,
        };
        Ok(Self { config, server: server.to_owned(), nonces })
    }
}

/// A name for the nonces of one key, server and lengths: no other one's nonces can clash with them.
fn fingerprint(config: &QuicLbConfig, server: &[u8]) -> String {
    let key = config.keys[..4].iter().flat_map(|word| word.to_le_bytes());
    let lengths = [config.server_len, config.len];
    let bytes: Vec<u8> = key.chain(lengths).chain(server.iter().copied()).collect();
    let rotation = if config.way == quic_lb::PLAIN { config.rotation } else { UNROUTABLE };
    format!("nonces-{:016x}", lb_common::hash::siphash24_bytes(&[1, u64::from(rotation)], &bytes))
}

/// An id that names no server, and says how long it is (§3.2 of the draft).
fn unroutable(len: usize) -> ConnectionId {
    let mut bytes = [0; MAX_ID];
    // Without random numbers ids would collide, and no TLS works either.
    getrandom::fill(&mut bytes[1..len]).expect("the system gave random numbers when this began");
    bytes[0] = UNROUTABLE << 5 | (len - 1) as u8;
    ConnectionId::new(&bytes[..len])
}

#[cfg(test)]
mod tests;
