//! Desired state: what each service and backend should be, from what the operator wants and what was seen. Pure:
//! [`Registry::apply`] takes a change and the time, and returns map writes and what else is to be done. It opens, sends
//! and waits for nothing.

mod backend;
mod explain;
mod explain_key;
mod explain_name;
mod explain_quic;
mod find;
mod leaving;
mod list;
mod service;
mod table;
#[cfg(test)]
mod tests;
mod trace;

pub use trace::TraceFilter;

use crate::config::Config;
use crate::control::{Admin, Refused};
use crate::datapath::{Clock, Left, MapWrite};
use crate::net::NextHop;
use backend::{Backend, Server};
use lb_common::backend::{Abilities, State};
use lb_common::hash::SipKey;
use lb_common::settings::Settings;
use lb_common::token::MAX_KEYS;
use service::Service;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use table::Sizes;

/// All services and backends, and what every packet shares.
#[derive(Debug)]
pub struct Registry {
    /// By id.
    services: BTreeMap<u16, Service>,
    /// By slot, those that are leaving among them.
    backends: BTreeMap<u16, Backend>,
    settings: Settings,
    sizes: Sizes,
    /// Managed servers are on their way out.
    stopping: bool,
}

/// The numbers that the database has given to names.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ids {
    /// Id of each service of the configuration, in its order.
    pub services: Vec<u16>,
    /// Slot of each backend of each service.
    pub slots: Vec<Vec<u16>>,
    /// Names of backends that the configuration does not have, by their slots.
    pub others: BTreeMap<u16, String>,
}

/// One thing that has changed.
#[derive(Clone, PartialEq, Debug)]
pub enum Change {
    /// A health check has decided. `abilities.seen` is 0 when it found out nothing of the backend's TCP.
    Health { slot: u16, up: bool, abilities: Abilities, reason: Option<String> },
    /// What a backend's SYN-ACKs to clients did not take up of what they were offered.
    Lacks { slot: u16, lacks: u8 },
    /// Where frames for an address go; `None`: nobody knows any more.
    NextHop { addr: IpAddr, hop: Option<NextHop> },
    /// A managed server listens, as the instance of that epoch.
    ServerReady { slot: u16, epoch: u32 },
    /// A managed server does not serve any more.
    ServerGone { slot: u16, reason: String },
    /// The database gave the next epoch of a backend that lbd does not run.
    Epoch { slot: u16, epoch: u32 },
    /// Another process gave out an epoch of a slot: an application that has started, or another lbd.
    Announced { slot: u16, epoch: u32 },
    /// The operator wants a backend to be this.
    Admin { backend: String, admin: Admin },
    /// The operator wants a managed server to end gracefully and start anew.
    Restart { backend: String },
    /// The operator wants a managed server to crash.
    Kill { backend: String, down_for: Option<Duration> },
    /// The token keys that verify from now on.
    TokenKeys { keys: Box<[SipKey; MAX_KEYS]>, mask: u32 },
    /// A fresh key for SYN cookies, from the pair of time slots on that follows the present one; the one before stays good.
    CookieKey { key: SipKey, slot: u32 },
    /// Nothing lives any more at a backend that is leaving.
    Deserted { slot: u16 },
    /// Somebody wants to be told of these steering decisions, or nobody of any.
    Trace(Option<TraceFilter>),
    /// lbd stops: managed servers take no new flows.
    Stopping,
}

/// What follows from a change.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// To be performed in this order.
    pub writes: Vec<MapWrite>,
    pub effects: Vec<Effect>,
    /// States that changed, for the log.
    pub transitions: Vec<Transition>,
    /// Why nothing was done, when the operator asked for what cannot be.
    pub refused: Option<Refused>,
    /// The backend that the operator meant.
    pub slot: Option<u16>,
}

/// Something to do that is not a map write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Check the backend's health from now on, forgetting what was found before.
    Check { slot: u16 },
    /// Ask the database for the next epoch of a backend; answered with [`Change::Epoch`].
    NextEpoch { slot: u16 },
    /// End the managed server gracefully and start it anew.
    Restart { slot: u16 },
    /// Let the managed server crash.
    Kill { slot: u16, down_for: Option<Duration> },
}

/// A backend's state has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transition {
    pub service: String,
    pub backend: String,
    pub slot: u16,
    pub from: State,
    pub to: State,
    pub epoch: u32,
    pub reason: Option<String>,
}

impl Registry {
    /// The state in which lbd starts, and the writes that bring the maps there from what an earlier lbd has left.
    ///
    /// A backend that lbd does not run starts in the state it was left in, so that no packet is lost while it is checked
    /// again. It goes on in a new epoch: whether it crashed and came back while no lbd watched, nobody knows. `settings`
    /// holds keys and timeouts; `clock` tells how long a tick is.
    pub fn new(
        config: &Config,
        ids: &Ids,
        left: &Left,
        settings: Settings,
        clock: &Clock,
        now: Instant,
    ) -> (Self, Outcome) {
        let mut registry = Self {
            services: BTreeMap::new(),
            backends: BTreeMap::new(),
            settings,
            sizes: Sizes { service: config.limits.maglev_size, pool: config.limits.pool_maglev_size },
            stopping: false,
        };
        for ((service, id), slots) in config.services.iter().zip(&ids.services).zip(&ids.slots) {
            for (backend, slot) in service.backends.iter().zip(slots) {
                let mut backend = Backend::new(backend, *id, *slot, config, left.backends.get(slot), now);
                backend.group = service.affinity_group.as_deref().map(backend::group);
                registry.backends.insert(*slot, backend);
            }
            registry.services.insert(*id, Service::new(service, (*id, slots), clock, left.services.get(id)));
        }
        registry.keep_leaving(left, ids, config.managed.subnet, now);
        let mut outcome = Outcome::default();
        outcome.writes.push(registry.settings_write());
        registry.settle(now, &mut outcome);
        for service in registry.services.values() {
            let backends = registry.backends.values().filter(|backend| backend.service == service.id);
            outcome.writes.push(service.quic_write(backends));
        }
        // Last: nothing finds its way into the tables before they are complete.
        outcome.writes.push(registry.endpoints_write());
        let checked = registry.backends.values().filter(|backend| backend.is_checked());
        outcome.effects.extend(checked.map(|backend| Effect::Check { slot: backend.slot }));
        let unwatched =
            registry.backends.values().filter(|b| b.server == Server::Elsewhere && b.state.serves_sessions());
        outcome.effects.extend(unwatched.map(|backend| Effect::NextEpoch { slot: backend.slot }));
        (registry, outcome)
    }

    /// Slots of all backends, and the promises that each is known to lack.
    pub fn lacks(&self) -> Vec<(u16, u8)> {
        self.backends.values().map(|backend| (backend.slot, backend.lacks)).collect()
    }

    /// Takes a change in.
    pub fn apply(&mut self, change: Change, now: Instant) -> Outcome {
        let mut outcome = Outcome::default();
        match change {
            Change::Health { slot, up, abilities, reason } => {
                if let Some(backend) = self.backends.get_mut(&slot) {
                    backend.checked(up, abilities, reason);
                }
            }
            Change::Lacks { slot, lacks } => {
                if let Some(backend) = self.backends.get_mut(&slot) {
                    backend.lacks = lacks;
                }
            }
            Change::NextHop { addr, hop } => {
                for backend in self.backends.values_mut().filter(|backend| backend.addr.ip() == addr) {
                    // A way that is lost may be found again before anybody misses it: the checks decide.
                    backend.next_hop = hop.or(backend.next_hop);
                }
            }
            Change::ServerReady { slot, epoch } => {
                if let Some(backend) = self.backends.get_mut(&slot) {
                    backend.started(epoch);
                    outcome.effects.push(Effect::Check { slot });
                }
            }
            Change::ServerGone { slot, reason } => {
                if let Some(backend) = self.backends.get_mut(&slot) {
                    backend.ended(reason);
                }
            }
            Change::Epoch { slot, epoch } => {
                if let Some(backend) = self.backends.get_mut(&slot) {
                    backend.renewed(epoch);
                }
            }
            Change::Announced { slot, epoch } => {
                if let Some(backend) = self.backends.get_mut(&slot) {
                    backend.announced(epoch);
                }
            }
            Change::Admin { backend, admin } => match self.find_configured(&backend) {
                Ok(slot) => {
                    outcome.slot = Some(slot);
                    self.backend_mut(slot).admin = admin;
                }
                Err(refused) => outcome.refused = Some(refused),
            },
            Change::Restart { backend } => match self.find_managed(&backend, "restarted") {
                Ok(slot) => {
                    outcome.slot = Some(slot);
                    self.backend_mut(slot).server = Server::Starting;
                    outcome.effects.push(Effect::Restart { slot });
                }
                Err(refused) => outcome.refused = Some(refused),
            },
            Change::Kill { backend, down_for } => match self.find_managed(&backend, "killed") {
                Ok(slot) => {
                    outcome.slot = Some(slot);
                    outcome.effects.push(Effect::Kill { slot, down_for });
                }
                Err(refused) => outcome.refused = Some(refused),
            },
            Change::TokenKeys { keys, mask } => {
                (self.settings.token_keys, self.settings.token_key_mask) = (*keys, mask);
                outcome.writes.push(self.settings_write());
            }
            Change::CookieKey { key, slot } => {
                // First the key where nobody looks, then the word that says to look there: cookies made between the
                // two writes verify all the same.
                let next = self.settings.with_cookie_key(key, slot);
                self.settings.cookie_keys = next.cookie_keys;
                outcome.writes.push(self.settings_write());
                self.settings = next;
                outcome.writes.push(self.settings_write());
            }
            Change::Deserted { slot } => self.leave(slot, &mut outcome),
            Change::Trace(filter) => {
                let TraceFilter { service, client } = filter.unwrap_or_default();
                let settings = &mut self.settings;
                (settings.trace_service, settings.trace_client) = (service.into(), client);
                settings.trace = u32::from(filter.is_some());
                outcome.writes.push(self.settings_write());
            }
            Change::Stopping => self.stopping = true,
        }
        self.settle(now, &mut outcome);
        outcome
    }

    /// State and epoch of a backend.
    pub fn backend(&self, slot: u16) -> Option<(State, u32)> {
        self.backends.get(&slot).map(|backend| (backend.state, backend.epoch))
    }

    /// Why a backend is down.
    pub fn reason(&self, slot: u16) -> Option<&str> {
        self.backends.get(&slot)?.reason.as_deref()
    }

    /// Id of the service that a backend stands behind.
    pub fn service_of(&self, slot: u16) -> Option<u16> {
        self.backends.get(&slot).map(|backend| backend.service)
    }

    /// Where a backend serves.
    pub fn addr_of(&self, slot: u16) -> Option<SocketAddr> {
        self.backends.get(&slot).map(|backend| backend.addr)
    }

    /// `service/backend`, for a slot.
    pub fn name_of(&self, slot: u16) -> Option<String> {
        self.backends.get(&slot).map(|backend| self.full_name(backend))
    }

    /// Ids of all services.
    pub fn service_ids(&self) -> impl Iterator<Item = u16> + '_ {
        self.services.keys().copied()
    }

    /// Names of all services, by id.
    pub fn service_names(&self) -> BTreeMap<u16, String> {
        self.services.iter().map(|(id, service)| (*id, service.name.clone())).collect()
    }

    /// `service/backend` of all backends, by slot.
    pub fn backend_names(&self) -> BTreeMap<u16, String> {
        self.backends.iter().map(|(slot, backend)| (*slot, self.full_name(backend))).collect()
    }

    /// Name of a service.
    pub fn service_name(&self, id: u16) -> Option<&str> {
        self.services.get(&id).map(|service| service.name.as_str())
    }

    fn full_name(&self, backend: &Backend) -> String {
        format!("{}/{}", self.services[&backend.service].name, backend.name)
    }

    fn backend_mut(&mut self, slot: u16) -> &mut Backend {
        self.backends.get_mut(&slot).expect("the slot was just found")
    }

    /// Brings states, tables and promises in line with what is known, and writes down what changed: backends first,
    /// so that no table names a backend that is not there yet, and none that left is chosen from an old table.
    fn settle(&mut self, now: Instant, outcome: &mut Outcome) {
        for backend in self.backends.values_mut() {
            let service = &self.services[&backend.service];
            if let Some((from, reason)) = backend.settle(self.stopping, now, &mut outcome.effects) {
                outcome.transitions.push(Transition {
                    service: service.name.clone(),
                    backend: backend.name.clone(),
                    slot: backend.slot,
                    from,
                    to: backend.state,
                    epoch: backend.epoch,
                    reason,
                });
            }
            if let Some(entry) = backend.unwritten(service) {
                outcome.writes.push(MapWrite::Backend { slot: backend.slot, backend: entry });
            }
        }
        for service in self.services.values_mut() {
            let id = service.id;
            let backends = self.backends.values().filter(|backend| backend.service == id);
            outcome.writes.extend(service.settle(backends, self.sizes));
        }
    }

    fn settings_write(&self) -> MapWrite {
        MapWrite::Settings(Box::new(self.settings))
    }

    fn endpoints_write(&self) -> MapWrite {
        let services = self.services.values().map(Service::endpoint);
        let backends = self.backends.values().map(|b| b.endpoint(&self.services[&b.service]));
        MapWrite::Endpoints(services.chain(backends).collect())
    }
}
