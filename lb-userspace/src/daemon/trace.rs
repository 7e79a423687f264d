//! Who listens to steering decisions. The event loop keeps the filter that the programs obey; a task of its own reads the
//! decisions and hands them out, so that a flood of them keeps nobody else waiting.

use super::{Daemon, Event};
use crate::control::{DecisionView, Refused, Response, TraceView};
use crate::datapath::{DatapathError, Decisions};
use crate::registry::{Change, Registry, TraceFilter};
use futures::future::select_all;
use lb_common::addr::Addr;
use lb_common::counter::Counter;
use lb_common::maglev::NOBODY;
use lb_common::trace::{Decision, Key};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot, watch};

/// Listeners at the same time: other connections must find room on the control socket.
const MAX_LISTENERS: usize = 16;
/// Decisions in one message.
const BATCH: usize = 128;

/// What the event loop knows of the listeners.
pub(super) struct Trace {
    listeners: BTreeMap<u64, TraceFilter>,
    next_id: u64,
    joins: mpsc::UnboundedSender<Listener>,
    /// Decisions that the programs could not tell, by service id: refreshed while somebody listens.
    lost: watch::Sender<Vec<u64>>,
}

/// Names by id and slot; they never change while lbd runs.
struct Names {
    services: BTreeMap<u16, String>,
    backends: BTreeMap<u16, String>,
}

/// One listener, as the task knows it.
struct Listener {
    id: u64,
    filter: TraceFilter,
    /// Nanoseconds of the monotonic clock: what was decided before is nothing to it.
    since: u64,
    /// What the programs had lost by then.
    lost_before: u64,
    /// What it lost because it was too slow.
    missed: u64,
    /// What it was told of losses.
    told: u64,
    messages: mpsc::Sender<Response>,
}

impl Trace {
    pub(super) fn spawn(
        decisions: Decisions,
        registry: &Registry,
        left: mpsc::UnboundedSender<Event>,
    ) -> Self {
        let names = Names { services: registry.service_names(), backends: registry.backend_names() };
        let (joins, joining) = mpsc::unbounded_channel();
        let (lost, lost_now) = watch::channel(Vec::new());
        let task = Task { decisions, names, listeners: Vec::new(), lost: lost_now, left };
        tokio::spawn(task.run(joining));
        Self { listeners: BTreeMap::new(), next_id: 0, joins, lost }
    }
}

impl Daemon {
    /// Lets somebody listen from now on: everything that is decided after the answer is told.
    pub(super) fn listen(
        &mut self,
        service: Option<&str>,
        client: Option<IpAddr>,
        reply: oneshot::Sender<Response>,
        messages: Option<mpsc::Sender<Response>>,
    ) -> Result<(), DatapathError> {
        let (filter, messages) = match self.filter(service, client).and_then(|filter| {
            let messages = messages.ok_or_else(|| Refused::new("this connection cannot be followed"))?;
            Ok((filter, messages))
        }) {
            Ok(asked) => asked,
            Err(refused) => {
                let _ = reply.send(Response::Refused(refused));
                return Ok(());
            }
        };
        let lost = self.datapath.trace_lost()?;
        let lost_before = filter.lost(&lost);
        self.trace.lost.send_replace(lost);
        self.trace.next_id += 1;
        let id = self.trace.next_id;
        self.trace.listeners.insert(id, filter);
        let listener = Listener { id, filter, since: monotonic(), lost_before, missed: 0, told: 0, messages };
        self.filter_trace()?;
        let response = match self.trace.joins.send(listener) {
            Ok(()) => Response::Done { message: "listening".to_owned() },
            Err(_) => {
                self.stop_listening(id)?;
                Response::Refused(Refused::with_help(
                    "lbd cannot read decisions",
                    "restart it; its log says why",
                ))
            }
        };
        let _ = reply.send(response);
        Ok(())
    }

    pub(super) fn stop_listening(&mut self, id: u64) -> Result<(), DatapathError> {
        self.trace.listeners.remove(&id);
        self.filter_trace()
    }

    /// Whoever listens: the programs tell nothing any more.
    pub(super) fn end_trace(&mut self) -> Result<(), DatapathError> {
        self.trace.listeners.clear();
        self.filter_trace()
    }

    /// Finds out what was lost, while there is somebody who wants to know.
    pub(super) fn heed_losses(&mut self) -> Result<(), DatapathError> {
        if !self.trace.listeners.is_empty() {
            let lost = self.datapath.trace_lost()?;
            self.trace.lost.send_if_modified(|known| {
                let changed = *known != lost;
                *known = lost;
                changed
            });
        }
        Ok(())
    }

    fn filter(&self, service: Option<&str>, client: Option<IpAddr>) -> Result<TraceFilter, Refused> {
        if self.trace.listeners.len() >= MAX_LISTENERS {
            let reason = format!("{MAX_LISTENERS} listen already");
            return Err(Refused::with_help(reason, "end one of the other `lbctl trace`"));
        }
        let service = service.map(|name| self.registry.find_service(name)).transpose()?;
        Ok(TraceFilter { service: service.unwrap_or(0), client: client.map_or(Addr::default(), Addr::from) })
    }

    /// Asks the programs for what any listener wants.
    fn filter_trace(&mut self) -> Result<(), DatapathError> {
        let filter = self.trace.listeners.values().copied().reduce(TraceFilter::union);
        self.apply(Change::Trace(filter)).map(|_| ())
    }
}

/// Reads decisions while there are listeners.
struct Task {
    decisions: Decisions,
    names: Names,
    listeners: Vec<Listener>,
    lost: watch::Receiver<Vec<u64>>,
    left: mpsc::UnboundedSender<Event>,
}

/// What happens to the task.
enum News {
    Joined(Listener),
    Left(u64),
    /// The programs have lost more than before.
    Lost,
    Decided(Vec<Decision>),
    Failed(std::io::Error),
    /// lbd stops.
    Ended,
}

impl Task {
    async fn run(mut self, mut joins: mpsc::UnboundedReceiver<Listener>) {
        loop {
            if self.listeners.is_empty() {
                match joins.recv().await {
                    Some(listener) => self.listeners.push(listener),
                    None => return,
                }
                continue;
            }
            match self.news(&mut joins).await {
                News::Joined(listener) => self.listeners.push(listener),
                News::Left(id) => {
                    self.listeners.retain(|listener| listener.id != id);
                    if self.left.send(Event::ListenerLeft(id)).is_err() {
                        return;
                    }
                }
                News::Lost => self.tell(&[]),
                News::Decided(decisions) => self.tell(&decisions),
                News::Failed(error) => {
                    tracing::warn!(%error, "decisions cannot be read");
                    return;
                }
                News::Ended => return,
            }
        }
    }

    /// Waits for what happens next, while there are listeners.
    async fn news(&mut self, joins: &mut mpsc::UnboundedReceiver<Listener>) -> News {
        let Self { decisions, listeners, lost, .. } = self;
        let gone = listeners.iter().map(|listener| {
            Box::pin(async {
                listener.messages.closed().await;
                listener.id
            })
        });
        tokio::select! {
            // Who has left is told nothing more, and who has come is told everything.
            biased;
            (id, ..) = select_all(gone) => News::Left(id),
            joined = joins.recv() => joined.map_or(News::Ended, News::Joined),
            Ok(()) = lost.changed() => News::Lost,
            decisions = decisions.next(BATCH) => decisions.map_or_else(News::Failed, News::Decided),
        }
    }

    /// Tells each listener what it wants to hear, and what it lost.
    fn tell(&mut self, decisions: &[Decision]) {
        let Self { names, listeners, lost, .. } = self;
        let lost = lost.borrow();
        let now = wall_clock().saturating_sub(Duration::from_nanos(monotonic()));
        for listener in listeners {
            let wanted =
                |decision: &&Decision| decision.at >= listener.since && listener.filter.wants(decision);
            let decisions: Vec<_> = decisions.iter().filter(wanted).map(|d| names.view(d, now)).collect();
            let total = listener.filter.lost(&lost).saturating_sub(listener.lost_before) + listener.missed;
            if decisions.is_empty() && total == listener.told {
                continue;
            }
            let count = decisions.len() as u64;
            match listener.messages.try_send(Response::Traced(TraceView { decisions, lost: total })) {
                Ok(()) => listener.told = total,
                Err(TrySendError::Full(_)) => listener.missed += count,
                // It is about to be noticed that it has left.
                Err(TrySendError::Closed(_)) => {}
            }
        }
    }
}

impl Names {
    /// A decision in the names that people know; `zero` is when the monotonic clock stood at 0.
    fn view(&self, decision: &Decision, zero: Duration) -> DecisionView {
        let at = zero + Duration::from_nanos(decision.at);
        let name = |names: &BTreeMap<u16, String>, number, what| {
            names.get(&number).cloned().unwrap_or_else(|| format!("{what} {number}"))
        };
        let slot = decision.backend;
        DecisionView {
            at_unix_us: u64::try_from(at.as_micros()).unwrap_or(u64::MAX),
            service: name(&self.services, decision.service, "service"),
            client: SocketAddr::new(decision.client.into(), decision.client_port.get()).to_string(),
            key: Key::from_bits(decision.key).name().to_owned(),
            backend: (slot != NOBODY).then(|| name(&self.backends, slot, "slot")),
            reason: Counter::ALL
                .get(decision.reason as usize)
                .map_or_else(|| format!("reason {}", decision.reason), |counter| counter.name().to_owned()),
        }
    }
}

fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Nanoseconds of the clock that decisions are stamped with.
fn monotonic() -> u64 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC);
    now.map_or(0, |now| now.tv_sec() as u64 * 1_000_000_000 + now.tv_nsec() as u64)
}
