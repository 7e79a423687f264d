//! The registry as lists for people.

use super::Registry;
use super::backend::{Backend, Server};
use crate::control::{BackendView, Refused, ServiceView};
use lb_common::backend::State;
use std::time::Instant;

impl Registry {
    pub fn services(&self) -> Vec<ServiceView> {
        let view = |service: &super::Service| {
            let count = |state| {
                let of = |backend: &&Backend| backend.service == service.id && backend.state == state;
                self.backends.values().filter(of).count()
            };
            ServiceView {
                name: service.name.clone(),
                id: service.id,
                vip: service.vip.to_string(),
                protocol: service.protocol.name().to_owned(),
                affinity: service.affinity.describe(),
                backends: self.backends.values().filter(|backend| backend.service == service.id).count(),
                ready: count(State::Ready),
                draining: count(State::Drain),
                promises: service.promise_names(),
                mss: service.mss,
                maglev_size: self.sizes.service,
            }
        };
        self.services.values().map(view).collect()
    }

    /// All backends, or those of one service.
    ///
    /// # Errors
    /// No such service.
    pub fn backends(&self, service: Option<&str>, now: Instant) -> Result<Vec<BackendView>, Refused> {
        let id = service.map(|name| self.find_service(name)).transpose()?;
        let mut backends: Vec<_> =
            self.backends.values().filter(|backend| id.is_none_or(|id| id == backend.service)).collect();
        backends.sort_by_key(|backend| (backend.service, backend.slot));
        Ok(backends.into_iter().map(|backend| self.backend_view(backend, now)).collect())
    }

    /// How many backends there are, and how many are ready.
    pub fn count_backends(&self) -> (usize, usize) {
        let ready = self.backends.values().filter(|backend| backend.state == State::Ready).count();
        (self.backends.len(), ready)
    }

    /// How many names of servers backends are listed for, and how many different sets of backends those are.
    pub fn count_names(&self) -> (usize, usize) {
        let pools = || self.services.values().flat_map(|service| &service.pools);
        (pools().map(|pool| pool.names.len()).sum(), pools().count())
    }

    fn backend_view(&self, backend: &Backend, now: Instant) -> BackendView {
        BackendView {
            service: self.services[&backend.service].name.clone(),
            name: backend.name.clone(),
            slot: backend.slot,
            addr: backend.addr.to_string(),
            managed: backend.server != Server::Elsewhere,
            state: backend.state.name().to_owned(),
            admin: backend.admin,
            health: backend.health.name().to_owned(),
            reason: backend.reason.clone(),
            weight: backend.weight,
            sni: backend.sni.iter().map(ToString::to_string).collect(),
            epoch: backend.epoch,
            since_seconds: now.saturating_duration_since(backend.since).as_secs(),
            next_hop: backend.next_hop.map(|hop| {
                let mac: Vec<_> = hop.next_hop_mac.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("{} on interface {}", mac.join(":"), hop.ifindex)
            }),
        }
    }
}
