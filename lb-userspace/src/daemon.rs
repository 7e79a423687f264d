//! lbd: one loop over one closed [`Event`]. The registry decides what follows from an event; here it is performed, on
//! the maps, the servers, the checks, and whoever asked.

mod answer;
mod descriptors;
mod detach;
mod devices;
mod epochs;
mod event;
mod keys;
mod learned;
mod leaving;
mod lost;
mod object;
mod phase;
mod proofs;
mod servers;
mod sessions;
mod shares;
mod slots;
mod start;
mod trace;
mod vips;

pub use detach::detach;
pub use event::Event;

use crate::config::{self, Config, Timeouts};
use crate::control::{Refused, Response};
use crate::datapath::{Datapath, DatapathError};
use crate::health::{Health, HealthEvent, Policy, Probe};
use crate::net::{NextHopEvent, NextHops};
use crate::registry::{Change, Effect, Outcome, Registry, Transition};
use crate::session::{Peers, SessionStore, TokenKeys};
use crate::supervisor::{Exit, ServerEvent, Supervisor};
use anyhow::Context;
use arc_swap::ArcSwap;
use event::{Sources, TICK};
use lb_common::backend::State;
use leaving::Quiet;
use lost::Losses;
use phase::Step;
use proofs::Proofs;
use servers::ServerCounters;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use trace::Trace;

/// How long managed servers may finish requests when the store has failed, under which no write succeeds.
const FAILED_DRAIN: Duration = Duration::from_secs(2);

/// In how many ticks all learned sessions are looked at: about a minute. One past its time is not found in any case.
const SLICES: usize = 240;

/// What lbd is told on its command line.
#[derive(Clone, Debug)]
pub struct Options {
    pub config: PathBuf,
    /// The packet programs, whatever the configuration says.
    pub object: Option<PathBuf>,
    /// Interfaces beside those of the configuration.
    pub interfaces: Vec<String>,
}

/// Runs lbd until it is told to end.
///
/// # Errors
/// It cannot start, or cannot go on. Packets keep flowing as they did.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let Some(mut daemon) = Daemon::start(options).await? else { return Ok(()) };
    let ended = daemon.until_stopped().await;
    daemon.stop(ended.is_err()).await;
    ended
}

/// All that lbd holds.
struct Daemon {
    config: Config,
    config_path: PathBuf,
    started: Instant,
    took_over: bool,
    registry: Registry,
    datapath: Datapath,
    supervisor: Supervisor,
    health: Health,
    next_hops: NextHops,
    store: Arc<dyn SessionStore>,
    /// What the managed servers count, by service.
    server_counters: BTreeMap<String, ServerCounters>,
    /// The caches of all servers that lbd runs.
    peers: Arc<Peers>,
    keys: Arc<ArcSwap<TokenKeys>>,
    backends: BTreeMap<u16, Known>,
    /// The balancer's ends of the managed servers' links.
    links: BTreeMap<u16, String>,
    /// What was last seen of backends that are leaving.
    quiet: BTreeMap<u16, Quiet>,
    waiting: Vec<Waiting>,
    losses: Losses,
    proofs: Proofs,
    /// Why the programs are not on all interfaces, as it was last logged.
    unattached: Option<String>,
    /// What is wrong with devices, as it was last seen.
    devices: Vec<String>,
    /// When that was last asked for.
    tended: Instant,
    /// Who listens to steering decisions.
    trace: Trace,
    sources: Sources,
    epochs: mpsc::UnboundedSender<Event>,
    /// Hears of epochs that others gave out.
    announcements: JoinHandle<()>,
    /// Serves the control socket, which goes with it.
    control: JoinHandle<()>,
    /// Removes expired sessions.
    sweeper: JoinHandle<()>,
}

/// What never changes about a backend.
#[derive(Clone)]
struct Known {
    addr: SocketAddr,
    policy: Policy,
    probe: Probe,
}

/// An asker who hears when a backend serves.
struct Waiting {
    slot: u16,
    /// Only in a later epoch than this one.
    after: Option<u32>,
    until: Instant,
    reply: oneshot::Sender<Response>,
}

impl Daemon {
    async fn until_stopped(&mut self) -> anyhow::Result<()> {
        loop {
            let event = self.sources.next().await;
            if let Event::Stop(signal) = event {
                tracing::info!(signal, "stopping; traffic to backends elsewhere keeps flowing");
                return Ok(());
            }
            if let Event::StoreStopped(error) = event {
                return Err(error).context(
                    "lbd ends, so that it is started again; traffic to backends elsewhere keeps flowing",
                );
            }
            self.handle(event).context("lbd cannot go on; packets keep flowing as they did")?;
        }
    }

    fn handle(&mut self, event: Event) -> anyhow::Result<()> {
        match event {
            Event::Server(event) => self.server(event)?,
            Event::Health(HealthEvent { slot, up, abilities, reason }) => {
                self.apply(Change::Health { slot, up, abilities, reason })?;
            }
            Event::NextHop(NextHopEvent { addr, next_hop }) => {
                if next_hop.is_none() {
                    tracing::warn!(%addr, "the way to this backend is lost; its health check decides");
                }
                self.apply(Change::NextHop { addr, hop: next_hop })?;
            }
            Event::Epoch { slot, epoch } => {
                self.apply(Change::Epoch { slot, epoch })?;
            }
            Event::Announced { slot, epoch } => {
                self.apply(Change::Announced { slot, epoch })?;
            }
            Event::Call(call) => self.answer(call)?,
            Event::ListenerLeft(id) => self.stop_listening(id)?,
            Event::Tick => {
                let expired = self.datapath.expire(self.expire_budget());
                if expired.total() > 0 {
                    let (binding, idle, closing) = (expired.binding, expired.established, expired.closing);
                    tracing::debug!(binding, idle, closing, "flows expired");
                }
                self.take_leave()?;
                let forgotten = self.datapath.forget_idle(self.datapath.homes().capacity() / SLICES + 1);
                if forgotten > 0 {
                    tracing::debug!(forgotten, "learned sessions expired");
                }
                self.heed_losses()?;
            }
            Event::Devices(wrong) => self.heed_devices(wrong),
            Event::Clock => {
                if let Err(error) = self.datapath.refresh_clock() {
                    tracing::warn!(error = %chain(&error), "the programs' clock was not set");
                }
                self.heed_syn_acks()?;
            }
            Event::Interfaces => {
                self.reattach();
                self.heed_lost_frames();
                self.heed_failed_proofs();
                self.tend_devices();
            }
            Event::CookieKey => {
                let key = start::random_key()?;
                let slot = self.datapath.cookie_slot();
                self.apply(Change::CookieKey { key, slot })?;
                tracing::info!("SYN cookies are made with a fresh key");
            }
            Event::Reload => {
                if let Err(refused) = self.reload_keys()? {
                    tracing::error!("SIGHUP: {refused}");
                }
                tracing::info!(
                    "the configuration is read at the start only; to change it, restart lbd, which keeps connections to \
                     backends elsewhere alive"
                );
            }
            Event::Stop(_) | Event::StoreStopped(_) => {}
        }
        self.tell_waiting();
        Ok(())
    }

    /// Sees to it that the programs are where they belong. What cannot be attached is logged once.
    fn reattach(&mut self) {
        let failed = self.datapath.reattach().err().map(|error| chain(&error));
        if failed != self.unattached
            && let Some(error) = &failed
        {
            tracing::error!(error, "packets pass the programs by");
        }
        self.unattached = failed;
    }

    fn server(&mut self, event: ServerEvent) -> anyhow::Result<()> {
        match event {
            ServerEvent::Ready { slot, epoch, interface } => {
                if let Err(error) = self.datapath.attach_interface(&interface) {
                    // Without the programs on its link nobody reaches it: it stays down until it is restarted.
                    let error = chain(&error);
                    tracing::error!(
                        slot,
                        interface,
                        error,
                        "the programs cannot be attached to a server's link"
                    );
                    let reason = format!("the programs are not attached to {interface}: {error}");
                    self.apply(Change::ServerGone { slot, reason })?;
                    return Ok(());
                }
                self.links.insert(slot, interface);
                self.apply(Change::ServerReady { slot, epoch })?;
            }
            ServerEvent::Exited { slot, reason, .. } => {
                let reason = match reason {
                    Exit::Stopped => "its server was stopped".to_owned(),
                    Exit::CutOff => {
                        "its server was stopped, and requests cut off that took too long".to_owned()
                    }
                    Exit::Killed => "its server was killed".to_owned(),
                    Exit::Panicked(message) => format!("its server panicked: {message}"),
                    Exit::Failed(message) => format!("its server failed: {message}"),
                };
                self.apply(Change::ServerGone { slot, reason })?;
            }
            ServerEvent::Failed { slot, reason, retry_in } => {
                let backend = self.registry.name_of(slot);
                tracing::error!(slot, backend, reason, ?retry_in, "server cannot be started");
                self.apply(Change::ServerGone {
                    slot,
                    reason: format!("its server cannot be started: {reason}"),
                })?;
            }
        }
        Ok(())
    }

    /// Takes back what clients are promised when a backend's answers to them show that it is not so.
    fn heed_syn_acks(&mut self) -> Result<(), DatapathError> {
        for (slot, known) in self.registry.lacks() {
            let lacks = self.datapath.abilities(slot)?.map_or(0, |abilities| abilities.lacks);
            if lacks != known {
                tracing::info!(slot, lacks, "a backend's SYN-ACKs to clients lack options");
                self.apply(Change::Lacks { slot, lacks })?;
            }
        }
        Ok(())
    }

    /// Lets the registry take a change in, and performs what follows, and what follows from that.
    fn apply(&mut self, change: Change) -> Result<Outcome, DatapathError> {
        let outcome = self.registry.apply(change, Instant::now());
        let mut following = self.perform(&outcome)?;
        while let Some(change) = following.pop() {
            let outcome = self.registry.apply(change, Instant::now());
            following.extend(self.perform(&outcome)?);
        }
        Ok(outcome)
    }

    /// Performs what the registry decided. Returns what changed because it could not be done.
    fn perform(&mut self, outcome: &Outcome) -> Result<Vec<Change>, DatapathError> {
        self.datapath.apply(&outcome.writes)?;
        outcome.transitions.iter().for_each(log);
        let mut following = Vec::new();
        for effect in &outcome.effects {
            match *effect {
                Effect::Check { slot } => {
                    if let Some(Known { addr, policy, probe }) = self.backends.get(&slot) {
                        self.health.watch(slot, *addr, *policy, probe.clone());
                    }
                }
                Effect::NextEpoch { slot } => {
                    tokio::spawn(epochs::ask(self.store.clone(), slot, self.epochs.clone()));
                }
                Effect::Restart { slot } => {
                    if let Err(error) = self.supervisor.restart(slot) {
                        let reason = format!("its server cannot be restarted: {}", chain(&error));
                        tracing::error!(slot, reason, "restart lbd to get it back");
                        following.push(Change::ServerGone { slot, reason });
                    }
                }
                Effect::Kill { slot, down_for } => {
                    if let Err(error) = self.supervisor.kill(slot, down_for) {
                        tracing::error!(slot, error = %chain(&error), "server cannot be killed");
                    }
                }
            }
        }
        Ok(following)
    }

    /// Answers those whose backend serves now, or has not for too long.
    fn tell_waiting(&mut self) {
        let now = Instant::now();
        for waiting in std::mem::take(&mut self.waiting) {
            let (state, epoch) = self.registry.backend(waiting.slot).unwrap_or((State::Gone, 0));
            let name = self.registry.name_of(waiting.slot).unwrap_or_default();
            let there = state.serves_sessions() || state == State::Maint;
            let response = if there && waiting.after.is_none_or(|after| epoch > after) {
                let message = match waiting.after {
                    Some(after) => {
                        format!("{name} restarted: epoch {after} is over, {epoch} is {}", state.name())
                    }
                    None => format!("{name} is {} in epoch {epoch}", state.name()),
                };
                Response::Done { message }
            } else if now >= waiting.until {
                let reason = self.registry.reason(waiting.slot).unwrap_or("no reason is known").to_owned();
                Response::Refused(Refused::with_help(
                    format!("{name} is {} still: {reason}", state.name()),
                    "lbd goes on trying; `lbctl backend list` tells when it is back",
                ))
            } else {
                self.waiting.push(waiting);
                continue;
            };
            // An asker who has gone does not want the answer.
            let _ = waiting.reply.send(response);
        }
    }

    /// How many flow entries a tick looks at: all of them within half the shortest timeout.
    fn expire_budget(&self) -> usize {
        let Timeouts { idle, udp_idle, closing, binding, opening, half_closed, .. } = self.config.timeouts;
        let shortest = idle.min(udp_idle).min(closing).min(binding).min(opening).min(half_closed);
        let ticks = shortest.as_millis() / TICK.as_millis() / 2;
        self.datapath.flows().capacity() / usize::try_from(ticks).unwrap_or(1).max(1) + 1
    }

    /// Takes managed servers out of the tables, lets them finish what is in flight, and leaves everything else as it is.
    async fn stop(mut self, failed: bool) {
        if let Err(error) = self.end_trace() {
            tracing::warn!(error = %chain(&error), "the programs go on to tell decisions");
        }
        if let Err(error) = self.apply(Change::Stopping) {
            tracing::error!(error = %chain(&error), "managed servers stay in the tables");
        }
        // What goes away now is no news.
        for (slot, backend) in &self.backends {
            self.health.forget(*slot);
            self.next_hops.forget(backend.addr.ip());
        }
        let links = std::mem::take(&mut self.links);
        let drain = if failed { FAILED_DRAIN } else { self.config.timeouts.drain };
        let limit = config::show_duration(drain);
        let step = Step::new("stopping", format!("requests in flight at managed servers, at most {limit}"));
        // Cut off by the supervisor itself after `drain`, which it was told at the start.
        let limit = if failed { FAILED_DRAIN } else { Duration::MAX };
        tokio::select! {
            done = tokio::time::timeout(limit, self.supervisor.shutdown()) => {
                if done.is_err() {
                    tracing::warn!("not waiting longer for requests in flight: the store is gone");
                }
            }
            signal = self.sources.answer_until_signal(|| step.clone()) => {
                tracing::warn!(signal, "told again to stop: not waiting for requests in flight");
            }
        }
        for interface in links.values() {
            if let Err(error) = self.datapath.detach_interface(interface) {
                tracing::warn!(interface, error = %chain(&error), "not detached");
            }
        }
        self.sweeper.abort();
        self.announcements.abort();
        // The socket goes with it.
        self.control.abort();
        let _ = self.control.await;
        tracing::info!("stopped");
    }
}

fn log(transition: &Transition) {
    let Transition { service, backend, slot, from, to, epoch, reason } = transition;
    let (from, to) = (from.name(), to.name());
    tracing::info!(service, backend, slot, epoch, from, reason, "backend is {to}");
}

/// An error with all its causes on one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source())
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join(": ")
}
