//! Answers lbctl: what the registry knows, what the maps and the database hold, and what the operator wants done.

use super::servers::ServerCounters;
use super::{Daemon, Waiting, chain, shares};
use crate::control::server::Call;
use crate::control::{
    Admin, CounterView, FlowView, FlowsView, InterfaceView, MapView, READY_PATIENCE, RESTART_PATIENCE,
    Refused, Request, Response, ShareView, StatsView, StatusView,
};
use crate::datapath::{DatapathError, MapMemory, Mode};
use crate::registry::Change;
use crate::session::TokenKeys;
use crate::stores;
use lb_common::backend::State;
use lb_common::counter::{BackendCounters, Counter};
use lb_common::flow::{Flow, FlowState, NO_STASH};
use lb_common::maglev::NOBODY;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

impl Daemon {
    /// Answers now, or has the answer sent when it is known.
    pub(super) fn answer(&mut self, call: Call) -> anyhow::Result<()> {
        let Call { request, reply, follow } = call;
        let now = Instant::now();
        let answered = match request {
            Request::Status {} => {
                let (mut status, store) = (self.status(), self.store.clone());
                tokio::spawn(async move {
                    // A database elsewhere may not answer, and that is what the asker wants to hear.
                    status.sessions = stores::count(&*store).await;
                    status.store = store.state();
                    let _ = reply.send(Response::Status(Box::new(status)));
                });
                return Ok(());
            }
            Request::SessionShow { token, service } => match self.learned(&token, service.as_deref()) {
                Ok(None) => {
                    self.show_session(&token, reply);
                    return Ok(());
                }
                Ok(Some(home)) => Ok(Response::Learned(Box::new(self.learned_view(&home)))),
                Err(refused) => Err(refused),
            },
            Request::SessionList { service, backend, limit } => self
                .list_learned(service.as_deref(), backend.as_deref(), limit)
                .map(Response::LearnedSessions),
            Request::Trace { service, client } => {
                return Ok(self.listen(service.as_deref(), client, reply, follow)?);
            }
            Request::BackendForget { service, backend } => {
                self.forget_backend(service, backend, reply);
                return Ok(());
            }
            Request::SessionEnd { session, service } => match self.learned(&session, service.as_deref()) {
                Ok(None) => {
                    self.end_session(&session, reply);
                    return Ok(());
                }
                Ok(Some(home)) => Ok(self.forget_learned(&home)),
                Err(refused) => Err(refused),
            },
            Request::Store { step } => {
                let (store, peers) = (self.store.clone(), self.peers.clone());
                tokio::spawn(async move {
                    let _ = reply.send(stores::answer(&*store, Some(&*peers), step).await);
                });
                return Ok(());
            }
            Request::BackendRestart { backend } => {
                let outcome = self.apply(Change::Restart { backend })?;
                match (outcome.refused, outcome.slot) {
                    (None, Some(slot)) => {
                        let after = self.registry.backend(slot).map(|(_, epoch)| epoch);
                        self.waiting.push(Waiting { slot, after, until: now + RESTART_PATIENCE, reply });
                        return Ok(());
                    }
                    (refused, _) => Err(refused.unwrap_or_else(|| Refused::new("there is no such backend"))),
                }
            }
            Request::BackendSet { backend, admin } => {
                let outcome = self.apply(Change::Admin { backend, admin })?;
                match (outcome.refused, outcome.slot) {
                    (None, Some(slot)) if admin == Admin::Ready => {
                        self.waiting.push(Waiting { slot, after: None, until: now + READY_PATIENCE, reply });
                        return Ok(());
                    }
                    (None, Some(slot)) => Ok(self.admin_done(slot, admin)),
                    (refused, _) => Err(refused.unwrap_or_else(|| Refused::new("there is no such backend"))),
                }
            }
            Request::BackendKill { backend, down_for_ms } => {
                let down_for = down_for_ms.map(Duration::from_millis);
                let outcome = self.apply(Change::Kill { backend, down_for })?;
                match (outcome.refused, outcome.slot) {
                    (None, Some(slot)) => {
                        let name = self.registry.name_of(slot).unwrap_or_default();
                        let back = down_for.map_or("at once".to_owned(), |time| format!("after {time:?}"));
                        Ok(Response::Done { message: format!("{name} was killed; it starts again {back}") })
                    }
                    (refused, _) => Err(refused.unwrap_or_else(|| Refused::new("there is no such backend"))),
                }
            }
            Request::KeysRotate {} => self.renew_keys(TokenKeys::rotated)?.map(done),
            Request::KeysPrepare {} => self.renew_keys(TokenKeys::prepared)?.map(done),
            Request::KeysReload {} => self.reload_keys()?.map(done),
            Request::ServiceList {} => Ok(Response::Services { services: self.registry.services() }),
            Request::BackendList { service } => self
                .registry
                .backends(service.as_deref(), |slot| self.datapath.flows().live(slot), now)
                .map(|backends| Response::Backends { backends }),
            Request::FlowList { service, backend, limit } => {
                self.list_flows(service.as_deref(), backend.as_deref(), limit).map(Response::Flows)
            }
            Request::Stats { service } => self.stats(service.as_deref()).map(Response::Stats),
            Request::Explain { token, service } => self
                .explain_learned(&token, service.as_deref())
                .map_or_else(|| self.registry.explain(&token, service.as_deref()), Ok)
                .map(|view| Response::Explain(Box::new(view))),
            Request::ExplainName { name, service, client } => self
                .registry
                .explain_name(&name, service.as_deref(), client)
                .map(|view| Response::Explain(Box::new(view))),
        };
        // An asker who has gone does not want the answer.
        let _ = reply.send(answered.unwrap_or_else(Response::Refused));
        Ok(())
    }

    fn admin_done(&self, slot: u16, admin: Admin) -> Response {
        let name = self.registry.name_of(slot).unwrap_or_default();
        let message = match self.registry.backend(slot) {
            Some((State::Down, _)) => format!("{name} will be {admin} when it is up"),
            _ if admin == Admin::Drain => {
                format!("{name} is in drain: only sessions that live there still go there")
            }
            _ => format!("{name} is in {admin}: nothing goes there any more"),
        };
        Response::Done { message }
    }

    fn status(&self) -> StatusView {
        let maps = self.maps().unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "the memory of the maps is not known");
            Vec::new()
        });
        let (backends, backends_ready, backends_leaving) = self.registry.count_backends();
        let keys = self.keys.load();
        let shares = self.shares();
        StatusView {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs(),
            config: self.config_path.display().to_string(),
            took_over: self.took_over,
            interfaces: self
                .datapath
                .interfaces()
                .map(|(name, attached)| InterfaceView {
                    name: name.to_owned(),
                    mode: mode_name(attached.mode).to_owned(),
                    joint: attached.joint.name().to_owned(),
                })
                .collect(),
            services: self.config.services.len(),
            backends,
            backends_ready,
            backends_leaving,
            flows: self.datapath.flows().iter().count(),
            flows_limit: self.config.limits.flows,
            sessions: None,
            sessions_refused: self.server_counters.values().map(ServerCounters::refused).sum(),
            token_key: keys.ids().first().copied().unwrap_or(0),
            token_keys: keys.ids().len() as u32,
            store: self.store.state(),
            warnings: self.warnings(&shares),
            map_bytes: maps.iter().map(|map| map.bytes).sum(),
            shares,
            maps,
        }
    }

    /// What is wrong and can be mended by whoever runs this: one sentence each.
    fn warnings(&self, shares: &[ShareView]) -> Vec<String> {
        let unattached = self.unattached.iter().map(|error| format!("packets pass the programs by: {error}"));
        unattached
            .chain(self.devices.iter().cloned())
            .chain(self.lost_warnings())
            .chain(self.proof_warnings())
            .chain(shares::warnings(shares))
            .collect()
    }

    /// The maps, and how full they are, where looking costs little.
    fn maps(&self) -> Result<Vec<MapView>, DatapathError> {
        let mut stashes = 0;
        let mut flows = 0;
        for (_, flow) in self.datapath.flows().iter() {
            flows += 1;
            stashes += u64::from(flow.stash != NO_STASH);
        }
        let services = self.config.services.len() as u64;
        let (backends, _, leaving) = self.registry.count_backends();
        let (names, pools) = self.registry.count_names();
        let used = |name: &str| {
            Some(match name {
                "FLOWS" => flows,
                "STASHES" => stashes,
                "HOMES" => self.datapath.homes().iter().count() as u64,
                "SERVICES" => services,
                "BACKENDS" => (backends + leaving) as u64,
                "SETTINGS" => 1,
                "NAMES" => names as u64,
                "POOLS" => pools as u64,
                _ => return None,
            })
        };
        let memory = self.datapath.memory()?.into_iter();
        let view = |map: MapMemory| MapView {
            used: used(&map.name),
            name: map.name,
            entries: map.entries,
            bytes: map.bytes,
        };
        Ok(memory.map(view).collect())
    }

    fn list_flows(
        &self,
        service: Option<&str>,
        backend: Option<&str>,
        limit: usize,
    ) -> Result<FlowsView, Refused> {
        let service = service.map(|name| self.registry.find_service(name)).transpose()?;
        let backend = backend.map(|name| self.registry.find(name)).transpose()?;
        let clock = self.datapath.clock();
        let now = clock.tick();
        let mut view = FlowsView::default();
        let wanted = self.datapath.flows().iter().filter(|(_, flow)| {
            service.is_none_or(|id| flow.head.service == id)
                && backend.is_none_or(|slot| flow.head.backend == slot)
        });
        for (_, flow) in wanted {
            view.total += 1;
            if view.flows.len() < limit {
                let idle = clock.duration(now.wrapping_sub(flow.last_seen).min(i32::MAX as u32));
                view.flows.push(self.flow_view(&flow, idle));
            }
        }
        Ok(view)
    }

    fn flow_view(&self, flow: &Flow, idle: Duration) -> FlowView {
        let head = flow.head;
        let client: IpAddr = flow.client.into();
        FlowView {
            service: self.registry.service_name(head.service).unwrap_or("?").to_owned(),
            backend: match head.backend {
                // None is chosen yet, or none takes it.
                NOBODY => "-".to_owned(),
                slot => self.registry.name_of(slot).unwrap_or_else(|| format!("slot {slot}")),
            },
            client: SocketAddr::new(client, head.client_port.get()).to_string(),
            state: FlowState::from_bits(head.state).name().to_owned(),
            idle_ms: idle.as_millis() as u64,
        }
    }

    fn stats(&self, service: Option<&str>) -> Result<StatsView, Refused> {
        let only = service.map(|name| self.registry.find_service(name)).transpose()?;
        let counters = self.datapath.counters().map_err(|error| Refused::new(chain(&error)))?;
        let mut view = StatsView::default();
        if only.is_none() {
            view.counters.push(CounterView {
                of: "-".to_owned(),
                counter: "health_local_errors".to_owned(),
                value: self.health.local_errors(),
            });
        }
        for (id, row) in counters.services.iter().enumerate() {
            let id = id as u16;
            let of = match self.registry.service_name(id) {
                _ if only.is_some_and(|only| only != id) => continue,
                Some(name) => name.to_owned(),
                None if id == 0 => "-".to_owned(),
                None => continue,
            };
            let of_servers = self.server_counters.get(&of).map(|counters| counters.values());
            view.counters.extend(of_servers.into_iter().flatten().map(|(name, value)| CounterView {
                of: of.clone(),
                counter: name.to_owned(),
                value,
            }));
            let named = Counter::ALL.iter().zip(row);
            view.counters.extend(named.map(|(counter, value)| CounterView {
                of: of.clone(),
                counter: counter.name().to_owned(),
                value: *value,
            }));
        }
        if only.is_none() {
            view.counters.extend(self.lost_counters());
        }
        for slot in self.backends.keys() {
            let Some((of, row)) = self.registry.name_of(*slot).zip(counters.backends.get(usize::from(*slot)))
            else {
                continue;
            };
            if only.is_some_and(|only| self.registry.service_of(*slot) != Some(only)) {
                continue;
            }
            view.counters.extend(backend_counters(row).map(|(name, value)| CounterView {
                of: of.clone(),
                counter: name.to_owned(),
                value,
            }));
        }
        Ok(view)
    }
}

const fn done(message: String) -> Response {
    Response::Done { message }
}

fn backend_counters(row: &BackendCounters) -> impl Iterator<Item = (&'static str, u64)> {
    [
        ("affinity_hit", row.affinity_hit),
        ("stale_instance", row.stale_instance),
        ("redispatched", row.redispatched),
        ("new_session", row.new_session),
        ("spliced", row.spliced),
        ("failed", row.failed),
        ("packets_from_client", row.packets_from_client),
        ("bytes_from_client", row.bytes_from_client),
        ("packets_from_backend", row.packets_from_backend),
        ("bytes_from_backend", row.bytes_from_backend),
    ]
    .into_iter()
}

const fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Auto => "auto",
        Mode::Driver => "driver",
        Mode::Generic => "generic",
    }
}
