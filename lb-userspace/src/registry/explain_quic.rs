//! Where a QUIC packet with a connection id would go, and why: the packet program's rules, told instead of done.

use super::Registry;
use crate::config::{Affinity, OnUnavailable, QuicConfig, hex};
use crate::control::{ExplainView, Refused};
use lb_common::counter::Counter;
use lb_common::quic_lb::{self, Config, MAX_ID};

impl Registry {
    /// Explains a packet for a service with affinity `quic`; `None` when the service has another one.
    ///
    /// # Errors
    /// The text is no connection id.
    pub(super) fn explain_quic(&self, id: u16, text: &str) -> Result<Option<ExplainView>, Refused> {
        let Affinity::Quic(configs) = &self.services[&id].affinity else { return Ok(None) };
        let bytes =
            hex(text.trim()).filter(|bytes| (1..=MAX_ID).contains(&bytes.len())).ok_or_else(|| {
                let reason = format!("`{text}` is no connection id");
                Refused::with_help(
                    reason,
                    format!("write 1 to {MAX_ID} bytes, each as two hexadecimal digits"),
                )
            })?;
        let rotation = bytes[0] >> 5;
        let configs: Vec<Config> =
            configs.iter().filter_map(|config| QuicConfig::to_map(config).ok()).collect();
        let unroutable = |why: &str| self.explain_unroutable(id, &bytes, why);
        if rotation == quic_lb::UNROUTABLE {
            return Ok(Some(unroutable("its rotation, 7, says that it names no server")));
        }
        let Some(config) = configs.iter().find(|config| config.rotation == rotation) else {
            return Ok(Some(unroutable(&format!(
                "the service has no configuration with rotation {rotation}"
            ))));
        };
        let Some(server) = config.decode(&bytes, id) else {
            let why = format!(
                "it has {} bytes, but the configuration with rotation {rotation} makes ids of {}",
                bytes.len(),
                config.id_len()
            );
            return Ok(Some(unroutable(&why)));
        };
        let named = self.backends.values().find(|backend| backend.servers().any(|own| own == server));
        let shown: String = lb_common::aes::bytes(server.id)[..server.len.into()]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        let Some(backend) = named else {
            return Ok(Some(unroutable(&format!("no backend has the server id {shown}"))));
        };
        let (name, state) = (self.full_name(backend), backend.state_name());
        let why = format!("its server id {shown} is that of {}, which is {state}", backend.name);
        if backend.state.serves_sessions() {
            return Ok(Some(self.explained(id, None, "hit", Some(name), why, &[Counter::AffinityHit])));
        }
        if self.services[&id].on_unavailable == OnUnavailable::Reject {
            let why = format!("{why}, and this service gives its sessions to no other backend");
            return Ok(Some(self.explained(id, None, "dropped", None, why, &[Counter::Rejected])));
        }
        Ok(Some(match self.walk(id, hash(&bytes)) {
            Some(other) => {
                let why = format!("{why}; {other} takes its place, and does not know the connection");
                self.explained(id, None, "redispatched", Some(other), why, &[Counter::Redispatched])
            }
            None => self.explain_nobody(id, None, &why, &[]),
        }))
    }

    fn explain_unroutable(&self, id: u16, bytes: &[u8], why: &str) -> ExplainView {
        let Some(backend) = self.walk(id, hash(bytes)) else {
            return self.explain_nobody(id, None, why, &[]);
        };
        let why = format!(
            "{why}: with a long header it is a new connection's, and goes there by its hash; with a short one it goes where its \
             client's packets went last"
        );
        self.explained(id, None, "new", Some(backend), why, &[Counter::NewSession])
    }
}

/// Of the first bytes of a connection id, zeros behind them.
fn hash(bytes: &[u8]) -> u32 {
    let mut word = [0; 8];
    let n = bytes.len().min(8);
    word[..n].copy_from_slice(&bytes[..n]);
    quic_lb::hash(u64::from_le_bytes(word))
}
