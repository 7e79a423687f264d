//! The registry as lists for people.

use super::Registry;
use super::backend::{Backend, Server};
use crate::control::{BackendView, Refused, ServiceView};
use lb_common::backend::State;
use std::time::Instant;

/// Why a backend is leaving.
const NO_LONGER: &str = "no longer configured";

impl Registry {
    pub fn services(&self) -> Vec<ServiceView> {
        let view = |service: &super::Service| {
            let own = || self.backends.values().filter(|backend| backend.service == service.id);
            let count = |state| {
                let of = |backend: &&Backend| backend.state == state && !backend.leaving;
                own().filter(of).count()
            };
            let leaving = own().filter(|backend| backend.leaving).count();
            ServiceView {
                name: service.name.clone(),
                id: service.id,
                vip: service.vip.to_string(),
                protocol: service.protocol.name().to_owned(),
                affinity: service.affinity.describe(),
                backends: own().count() - leaving,
                ready: count(State::Ready),
                draining: count(State::Drain),
                leaving,
                promises: service.promise_names(),
                mss: service.mss,
                maglev_size: self.sizes.service,
            }
        };
        self.services.values().map(view).collect()
    }

    /// All backends, or those of one service, those that are leaving among them. `flows` tells how many live at a slot.
    ///
    /// # Errors
    /// No such service.
    pub fn backends(
        &self,
        service: Option<&str>,
        flows: impl Fn(u16) -> u64,
        now: Instant,
    ) -> Result<Vec<BackendView>, Refused> {
        let id = service.map(|name| self.find_service(name)).transpose()?;
        let mut backends: Vec<_> =
            self.backends.values().filter(|backend| id.is_none_or(|id| id == backend.service)).collect();
        backends.sort_by_key(|backend| (backend.service, backend.slot));
        let view = |backend: &Backend| self.backend_view(backend, flows(backend.slot), now);
        Ok(backends.into_iter().map(view).collect())
    }

    /// How many backends there are, how many of them are ready, and how many more are leaving.
    pub fn count_backends(&self) -> (usize, usize, usize) {
        let ready = self.backends.values().filter(|backend| backend.state == State::Ready).count();
        let leaving = self.leaving().count();
        (self.backends.len() - leaving, ready, leaving)
    }

    /// How many names of servers backends are listed for, and how many different sets of backends those are.
    pub fn count_names(&self) -> (usize, usize) {
        let pools = || self.services.values().flat_map(|service| &service.pools);
        (pools().map(|pool| pool.names.len()).sum(), pools().count())
    }

    fn backend_view(&self, backend: &Backend, flows: u64, now: Instant) -> BackendView {
        BackendView {
            service: self.services[&backend.service].name.clone(),
            name: backend.name.clone(),
            slot: backend.slot,
            addr: backend.addr.to_string(),
            managed: backend.server != Server::Elsewhere,
            state: backend.state_name().to_owned(),
            admin: backend.admin,
            health: backend.health.name().to_owned(),
            reason: match &backend.reason {
                reason if !backend.leaving => reason.clone(),
                None => Some(NO_LONGER.to_owned()),
                Some(reason) => Some(format!("{NO_LONGER}; down: {reason}")),
            },
            flows,
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
