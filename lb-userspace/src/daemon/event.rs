//! What can happen to lbd, and where it is heard.

use super::phase::Step;
use crate::control::server::Call;
use crate::health::HealthEvent;
use crate::net::NextHopEvent;
use crate::session::StoreError;
use crate::supervisor::ServerEvent;
use anyhow::Context;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio::time::{Instant, Interval, MissedTickBehavior};

/// What can happen to lbd. Closed: what is not here does not change it.
#[derive(Debug)]
pub enum Event {
    /// A managed server began or ended.
    Server(ServerEvent),
    /// A backend's health check has decided.
    Health(HealthEvent),
    /// The way to a backend became known, changed, or was lost.
    NextHop(NextHopEvent),
    /// The database gave a backend its next epoch.
    Epoch { slot: u16, epoch: u32 },
    /// Another process gave out an epoch.
    Announced { slot: u16, epoch: u32 },
    /// lbctl wants something.
    Call(Call),
    /// A listener to steering decisions has left.
    ListenerLeft(u64),
    /// Time to look for flows that have expired, and for askers who have waited long enough.
    Tick,
    /// Time to set the programs' clock.
    Clock,
    /// Time to look whether interfaces carry the programs, and what they lost.
    Interfaces,
    /// Devices were looked at: what is wrong with them, one sentence each.
    Devices(Vec<String>),
    /// Time for a fresh SYN cookie key.
    CookieKey,
    /// The store cannot be used by this process any more.
    StoreStopped(StoreError),
    /// The operator wants lbd to end.
    Stop(&'static str),
    /// The operator wants the key file read again.
    Reload,
}

/// How often expired flows are looked for.
pub(super) const TICK: Duration = Duration::from_millis(250);
/// How often the programs' clock is set.
const CLOCK: Duration = Duration::from_secs(60);
/// How often interfaces are looked at.
const INTERFACES: Duration = Duration::from_secs(2);
/// How long a SYN cookie key makes cookies; they are accepted for 448 s, so two keys are enough.
const COOKIE_KEY: Duration = Duration::from_secs(600);
/// Where the parts that watch the world report to.
pub(super) struct Reports {
    pub(super) servers: UnboundedSender<ServerEvent>,
    pub(super) health: UnboundedSender<HealthEvent>,
    pub(super) next_hops: UnboundedSender<NextHopEvent>,
    pub(super) calls: UnboundedSender<Call>,
    /// Answers of the database, and what else its own tasks tell lbd.
    pub(super) epochs: UnboundedSender<Event>,
}

/// Where events come from.
pub(super) struct Sources {
    servers: UnboundedReceiver<ServerEvent>,
    health: UnboundedReceiver<HealthEvent>,
    next_hops: UnboundedReceiver<NextHopEvent>,
    epochs: UnboundedReceiver<Event>,
    calls: UnboundedReceiver<Call>,
    tick: Interval,
    clock: Interval,
    interfaces: Interval,
    cookie_key: Interval,
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    /// A signal that came while lbd started.
    stop_next: Option<&'static str>,
}

impl Sources {
    /// All sources, and where to report to them. From here on signals do not end the process.
    ///
    /// # Errors
    /// Signals cannot be listened for.
    pub(super) fn new() -> anyhow::Result<(Reports, Self)> {
        let ((servers, servers_in), (health, health_in)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let ((next_hops, next_hops_in), (calls, calls_in)) =
            (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let (epochs, epochs_in) = mpsc::unbounded_channel();
        let listen = |kind| signal(kind).context("cannot listen for signals");
        let sources = Self {
            servers: servers_in,
            health: health_in,
            next_hops: next_hops_in,
            epochs: epochs_in,
            calls: calls_in,
            tick: every(TICK),
            clock: every(CLOCK),
            interfaces: every(INTERFACES),
            cookie_key: every(COOKIE_KEY),
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
            stop_next: None,
        };
        Ok((Reports { servers, health, next_hops, calls, epochs }, sources))
    }

    /// Until the operator wants lbd to end: which signal said so. lbctl is answered with the step that lbd is at.
    pub(super) async fn answer_until_signal(&mut self, step: impl Fn() -> Step) -> &'static str {
        loop {
            tokio::select! {
                biased;
                Some(()) = self.terminate.recv() => return "SIGTERM",
                Some(()) = self.interrupt.recv() => return "SIGINT",
                Some(call) = self.calls.recv() => step().answer(call),
            }
        }
    }

    /// The next event is that signal.
    pub(super) fn stop_next(&mut self, signal: &'static str) {
        self.stop_next = Some(signal);
    }

    /// The next event, whoever has one. Signals first: they must not wait behind a flood of others.
    pub(super) async fn next(&mut self) -> Event {
        if let Some(signal) = self.stop_next.take() {
            return Event::Stop(signal);
        }
        loop {
            let event = tokio::select! {
                biased;
                Some(()) = self.terminate.recv() => Some(Event::Stop("SIGTERM")),
                Some(()) = self.interrupt.recv() => Some(Event::Stop("SIGINT")),
                Some(()) = self.hangup.recv() => Some(Event::Reload),
                Some(event) = self.servers.recv() => Some(Event::Server(event)),
                Some(event) = self.next_hops.recv() => Some(Event::NextHop(event)),
                Some(event) = self.health.recv() => Some(Event::Health(event)),
                event = self.epochs.recv() => event,
                Some(call) = self.calls.recv() => Some(Event::Call(call)),
                _ = self.tick.tick() => Some(Event::Tick),
                _ = self.clock.tick() => Some(Event::Clock),
                _ = self.interfaces.tick() => Some(Event::Interfaces),
                _ = self.cookie_key.tick() => Some(Event::CookieKey),
            };
            if let Some(event) = event {
                return event;
            }
        }
    }
}

/// An interval that does not hurry after a pause, and begins one period from now.
fn every(period: Duration) -> Interval {
    let mut interval = tokio::time::interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
