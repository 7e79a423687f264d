//! Nonces that never come twice and that nobody can guess: a counter, permuted under a secret of its own. Random nonces
//! would repeat after some 2¹⁶ ids when they have four bytes, and a bare counter links one connection to the next.

use super::QuicLbError;
use lb_common::quic_lb::{MAX_NONCE, Permutation};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// Nonces that are written down as used in advance.
const AHEAD: u128 = 4096;

pub(super) struct Nonces {
    permutation: Permutation,
    /// The next one.
    next: u128,
    /// Those before it may be used.
    granted: u128,
    /// How many there are.
    all: u128,
    kept: Option<Kept>,
}

/// Why there is no nonce.
#[derive(Debug, thiserror::Error)]
pub(super) enum Spent {
    #[error("every nonce of the configuration has been used: give the servers and lbd a new key")]
    All,
    #[error("cannot write down in {0} which nonces are used: {1}")]
    Store(PathBuf, io::Error),
}

/// A file with the secret and how many nonces are used.
struct Kept {
    path: PathBuf,
    secret: [u8; 16],
    /// Held as long as this process uses them.
    _lock: Flock<File>,
}

impl Nonces {
    /// Under a secret that ends with the process.
    pub(super) fn fresh(len: usize) -> Result<Self, QuicLbError> {
        let permutation = Permutation::new(len, &secret()?);
        let all = count(len);
        Ok(Self { permutation, next: 0, granted: all, all, kept: None })
    }

    /// Under the secret in a file, from where it was left.
    pub(super) fn kept(len: usize, path: &Path) -> Result<Self, QuicLbError> {
        let failed = |source| QuicLbError::Store { path: path.to_owned(), source };
        if let Some(dir) = path.parent() {
            fs::create_dir_all(dir).map_err(failed)?;
        }
        let lock = private(&path.with_extension("lock")).map_err(failed)?;
        let lock = Flock::lock(lock, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            Errno::EWOULDBLOCK => QuicLbError::Taken(path.to_owned()),
            other => failed(other.into()),
        })?;
        let (secret, used) = match fs::read_to_string(path) {
            Ok(text) => parse(&text).ok_or_else(|| QuicLbError::Unreadable(path.to_owned()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => (secret()?, 0),
            Err(error) => return Err(failed(error)),
        };
        let kept = Kept { path: path.to_owned(), secret, _lock: lock };
        let permutation = Permutation::new(len, &secret);
        let mut nonces = Self { permutation, next: used, granted: used, all: count(len), kept: Some(kept) };
        nonces.grant().map_err(failed)?;
        Ok(nonces)
    }

    pub(super) fn next(&mut self) -> Result<Vec<u8>, Spent> {
        if self.next == self.all {
            return Err(Spent::All);
        }
        if self.next == self.granted
            && let Err(error) = self.grant()
        {
            let path = self.kept.as_ref().map_or_else(PathBuf::new, |kept| kept.path.clone());
            return Err(Spent::Store(path, error));
        }
        let (bytes, len): ([u8; MAX_NONCE], usize) = self.permutation.apply(self.next);
        self.next += 1;
        Ok(bytes[..len].to_vec())
    }

    pub(super) fn left(&self) -> u128 {
        self.all - self.next
    }

    /// Writes down that some more are used, and then allows them.
    fn grant(&mut self) -> io::Result<()> {
        let granted = self.granted.saturating_add(AHEAD).min(self.all);
        if let Some(kept) = &self.kept {
            kept.write(granted)?;
        }
        self.granted = granted;
        Ok(())
    }
}

impl Kept {
    /// Durable when this returns: a file of its own that takes the place of the one before.
    fn write(&self, used: u128) -> io::Result<()> {
        let new = self.path.with_extension("new");
        let mut file = private(&new)?;
        file.set_len(0)?;
        let secret: String = self.secret.iter().map(|byte| format!("{byte:02x}")).collect();
        writeln!(file, "{secret} {used}")?;
        file.sync_all()?;
        fs::rename(&new, &self.path)?;
        match self.path.parent() {
            Some(dir) => File::open(dir)?.sync_all(),
            None => Ok(()),
        }
    }
}

/// A file that its owner alone can read.
fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).write(true).truncate(false).mode(0o600).open(path)
}

fn parse(text: &str) -> Option<([u8; 16], u128)> {
    let (secret, used) = text.trim().split_once(' ')?;
    let secret = (secret.len() == 32).then(|| u128::from_str_radix(secret, 16).ok())??;
    Some((secret.to_be_bytes(), used.parse().ok()?))
}

/// How many nonces of that length there are; of the longest, as many as are counted.
fn count(len: usize) -> u128 {
    1_u128.checked_shl(8 * len as u32).unwrap_or(u128::MAX)
}

fn secret() -> Result<[u8; 16], QuicLbError> {
    let mut secret = [0; 16];
    getrandom::fill(&mut secret).map_err(QuicLbError::Random)?;
    Ok(secret)
}
