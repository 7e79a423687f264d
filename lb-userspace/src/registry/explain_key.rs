//! Where a request with a key that a backend handed out would go, and why.

use super::Registry;
use super::explain::condition;
use crate::config::{Affinity, Protocol};
use crate::control::ExplainView;
use lb_common::counter::Counter;
use lb_common::home;

impl Registry {
    /// Explains what would become of a first payload with this key, sent to a service that learns its sessions. `home` is
    /// the slot of the backend that handed the key out, if one is known to have.
    pub fn explain_key(&self, id: u16, key: &[u8], home: Option<u16>) -> ExplainView {
        let service = &self.services[&id];
        let hash = home::spread(key);
        let Some(backend) = home.and_then(|slot| self.backends.get(&slot)) else {
            // Where the key of a datagram goes depends on its flow as well.
            let substitute = match service.protocol {
                Protocol::Tcp => self.walk(id, hash),
                Protocol::Udp => None,
            };
            let why = "no backend is known to have handed that key out, or it is forgotten";
            if service.table.slots.is_empty() {
                return self.explain_nobody(id, None, why, &[]);
            }
            let why = format!("{why}: it is hashed, so that every balancer sends it to the same backend");
            return self.explained(id, None, "unknown", substitute, why, &[Counter::UnknownKey]);
        };
        let name = &backend.name;
        let why = format!("{name} handed that key out, and is {}", condition(backend));
        if !backend.state.serves_sessions() {
            return self.explain_redispatch(id, hash, None, &why, " until it is back");
        }
        self.explained(id, None, "hit", Some(self.full_name(backend)), why, &[Counter::AffinityHit])
    }

    /// The id of the service that is meant, if it learns its sessions: the one of that name, or the only one.
    pub fn learning(&self, service: Option<&str>) -> Option<u16> {
        let id = match service {
            Some(name) => self.find_service(name).ok()?,
            None if self.services.len() == 1 => *self.services.keys().next()?,
            None => return None,
        };
        matches!(self.services[&id].affinity, Affinity::Learned { .. }).then_some(id)
    }
}
