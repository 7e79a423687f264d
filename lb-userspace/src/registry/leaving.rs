//! Backends that were taken out of the configuration while connections lived there. They get nothing new, and what they have
//! goes on to its end: only then do they leave the maps.

use super::{MapWrite, Outcome, Registry};
use crate::config::{Protocol, Subnet};
use crate::datapath::Left;
use lb_common::backend::{self as map, State};
use lb_common::endpoint::{Endpoint, KIND_BACKEND, port_and_protocol};
use std::net::IpAddr;

impl Registry {
    /// Keeps what an earlier lbd left and the configuration does not have any more. A backend whose service is gone, whose
    /// address somebody else has by now, or that was run by lbd, cannot stay.
    pub(super) fn keep_leaving(&mut self, left: &Left, managed: Subnet, outcome: &mut Outcome) {
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
            // A datagram's flow is chosen anew with each, so its backend must serve what lives there, if it did.
            let served = State::from_bits(found.state).serves_sessions();
            let state = if service.protocol == Protocol::Udp && served { State::Drain } else { State::Maint };
            let leaving = map::Backend { state: state as u8, ..*found };
            self.leaving.insert(*slot, leaving);
            outcome.writes.push(MapWrite::Backend { slot: *slot, backend: leaving });
        }
    }

    /// Slots of the backends that are leaving.
    pub fn leaving(&self) -> impl Iterator<Item = u16> {
        self.leaving.keys().copied()
    }

    /// Takes a backend out of the maps at last.
    pub(super) fn leave(&mut self, slot: u16, outcome: &mut Outcome) {
        if self.leaving.remove(&slot).is_some() {
            outcome.writes.push(self.endpoints_write());
            outcome.writes.push(MapWrite::Backend { slot, backend: map::Backend::default() });
        }
    }

    /// Where packets of theirs come from.
    pub(super) fn leaving_endpoints(&self) -> impl Iterator<Item = Endpoint> {
        self.leaving.iter().map(|(slot, backend)| Endpoint {
            addr: backend.addr,
            port: port_and_protocol(backend.port, self.services[&backend.service].protocol.number()),
            kind: KIND_BACKEND,
            index: *slot,
        })
    }
}
