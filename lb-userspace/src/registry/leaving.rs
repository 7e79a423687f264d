//! Backends that were taken out of the configuration while connections lived there. They get nothing new, and what they have
//! goes on to its end: only then do they leave the maps.

use super::backend::Backend;
use super::{Ids, MapWrite, Outcome, Registry};
use crate::config::{Affinity, Protocol, Subnet};
use crate::control::Refused;
use crate::datapath::Left;
use lb_common::aes;
use lb_common::backend as map;
use lb_common::endpoint::port_and_protocol;
use std::net::IpAddr;
use std::time::Instant;

impl Registry {
    /// Keeps what an earlier lbd left and the configuration does not have any more. A backend whose service is gone, whose
    /// address somebody else has by now, or that was run by lbd, cannot stay.
    pub(super) fn keep_leaving(&mut self, left: &Left, ids: &Ids, managed: Subnet, now: Instant) {
        for (slot, found) in &left.backends {
            let Some(service) = self.services.get(&found.service) else { continue };
            let same_vip = left.services.get(&found.service).is_some_and(|before| {
                (before.addr, before.port.get(), before.protocol)
                    == (service.vip.ip().into(), service.vip.port(), service.protocol.number())
            });
            let taken = self.backends.contains_key(slot)
                || self.backends.values().any(|backend| {
                    let known = backend.endpoint(&self.services[&backend.service]);
                    (known.addr, known.port)
                        == (found.addr, port_and_protocol(found.port, service.protocol.number()))
                });
            let is_vip = self.services.values().any(|service| found.addr == service.vip.ip().into());
            let was_ours = matches!(IpAddr::from(found.addr), IpAddr::V4(ip) if managed.contains(ip));
            if !same_vip || taken || is_vip || was_ours || found.has_next_hop == 0 {
                continue;
            }
            let name = ids.others.get(slot).cloned().unwrap_or_else(|| format!("slot {slot}"));
            let named = left.quic.iter().filter(|(server, of)| {
                let taken = self.backends.values().any(|backend| backend.servers().any(|own| own == *server));
                of == slot && server.service == found.service && !taken
            });
            let server_ids = named.map(|(server, _)| aes::bytes(server.id)[..server.len.into()].to_vec());
            let backend = Backend::leaving(name, *slot, found, service, server_ids.collect(), now);
            self.backends.insert(*slot, backend);
        }
    }

    /// Slots of the backends that are leaving.
    pub fn leaving(&self) -> impl Iterator<Item = u16> {
        self.backends.values().filter(|backend| backend.leaving).map(|backend| backend.slot)
    }

    /// Whether sessions at a backend may be there still when no flow is: a datagram is recognised by what stands in it, wherever
    /// it comes from.
    pub fn outlives_flows(&self, slot: u16) -> bool {
        self.backends.get(&slot).map(|backend| &self.services[&backend.service]).is_some_and(|service| {
            let by_itself = matches!(
                service.affinity,
                Affinity::Signed(_) | Affinity::Learned { .. } | Affinity::Quic(_)
            );
            service.protocol == Protocol::Udp && by_itself
        })
    }

    /// Whether a name means a backend that is leaving: a full one.
    pub fn is_leaving(&self, service: &str, backend: &str) -> bool {
        self.backends.values().any(|known| {
            known.leaving && known.name == backend && self.services[&known.service].name == service
        })
    }

    /// Takes a backend out of the maps at last.
    pub(super) fn leave(&mut self, slot: u16, outcome: &mut Outcome) {
        if self.backends.get(&slot).is_some_and(|backend| backend.leaving) {
            self.backends.remove(&slot);
            outcome.writes.push(self.endpoints_write());
            outcome.writes.push(MapWrite::Backend { slot, backend: map::Backend::default() });
        }
    }

    /// The slot of a backend that the operator wants to be something.
    ///
    /// # Errors
    /// As [`Registry::find`]; or it is leaving, and is what that makes it.
    pub(super) fn find_configured(&self, name: &str) -> Result<u16, Refused> {
        let slot = self.find(name)?;
        if self.backends[&slot].leaving {
            return Err(Refused::with_help(
                format!("`{name}` is leaving: it is no longer configured, and only ends what lives there"),
                "put it back into the configuration and restart lbd, or stop its server to end it at once",
            ));
        }
        Ok(slot)
    }
}
