//! Asks each backend for a sign of life now and then: for a TCP connection, which tells what TCP options the backend has, or
//! for an answer to a datagram.

mod failure;
mod tcp;
mod udp;

use failure::Failure;
use lb_common::backend::Abilities;
use lb_common::hash::mix64;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::AbortHandle;
use tokio::time::Instant;

/// How a backend is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    pub interval: Duration,
    pub timeout: Duration,
    /// Successes in a row after which a backend is up.
    pub rise: u32,
    /// Failures in a row after which it is down.
    pub fall: u32,
}

/// What a backend is asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Probe {
    /// A connection.
    Tcp,
    /// An answer to this datagram that contains `expect`.
    Ask { send: Vec<u8>, expect: Vec<u8> },
    /// Nothing: an empty datagram is sent, and only an error is a failure.
    Knock,
}

/// What the checks found: sent after the first check, and whenever it changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthEvent {
    pub slot: u16,
    pub up: bool,
    /// What the last successful connection told; `seen` is 0 when there was none.
    pub abilities: Abilities,
    /// Why it is down.
    pub reason: Option<String>,
}

/// Connections that may be asked for at the same time.
const CONNECTIONS_AT_ONCE: usize = 64;
/// Datagrams that may be unanswered at the same time: most of those that ask for nothing are.
const DATAGRAMS_AT_ONCE: usize = 512;

/// Handle of the checks. Dropping it ends them.
#[derive(Debug)]
pub struct Health {
    events: mpsc::UnboundedSender<HealthEvent>,
    connections: Arc<Semaphore>,
    datagrams: Arc<Semaphore>,
    watched: BTreeMap<u16, AbortHandle>,
    local: Arc<LocalErrors>,
}

/// Probes that this host could not make.
#[derive(Debug, Default)]
struct LocalErrors {
    count: AtomicU64,
    /// It was logged since the last probe that could be made.
    told: AtomicBool,
}

impl Health {
    /// No checks yet. They run on the tokio runtime on which `watch` is called, in the network namespace of its
    /// threads.
    pub fn new(events: mpsc::UnboundedSender<HealthEvent>) -> Self {
        warn_of_options_off();
        Self {
            events,
            connections: Arc::new(Semaphore::new(CONNECTIONS_AT_ONCE)),
            datagrams: Arc::new(Semaphore::new(DATAGRAMS_AT_ONCE)),
            watched: BTreeMap::new(),
            local: Arc::default(),
        }
    }

    /// How many probes this host could not make: for want of descriptors, ports or memory. They change no opinion.
    pub fn local_errors(&self) -> u64 {
        self.local.count.load(Ordering::Relaxed)
    }

    /// Checks a backend from now on, in place of what was checked for that slot. The first check decides at once.
    pub fn watch(&mut self, slot: u16, addr: SocketAddr, policy: Policy, probe: Probe) {
        self.forget(slot);
        let at_once = if probe == Probe::Tcp { &self.connections } else { &self.datagrams };
        let prober = Prober { addr, probe, knocker: None, doubted: None };
        let check =
            check(slot, prober, policy, Arc::clone(at_once), self.events.clone(), Arc::clone(&self.local));
        self.watched.insert(slot, tokio::spawn(check).abort_handle());
    }

    /// Ends the checks of a slot.
    pub fn forget(&mut self, slot: u16) {
        if let Some(check) = self.watched.remove(&slot) {
            check.abort();
        }
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.watched.values().for_each(AbortHandle::abort);
    }
}

async fn check(
    slot: u16,
    mut prober: Prober,
    policy: Policy,
    at_once: Arc<Semaphore>,
    events: mpsc::UnboundedSender<HealthEvent>,
    local: Arc<LocalErrors>,
) {
    let mut opinion = Opinion::default();
    let mut abilities = Abilities::default();
    let mut due = Instant::now();
    for round in 0.. {
        tokio::time::sleep_until(due).await;
        let outcome = {
            let _turn = at_once.acquire().await.expect("the semaphore is never closed");
            prober.probe(policy.timeout).await
        };
        let before = abilities;
        let reason = match outcome {
            Ok(found) => {
                abilities = found;
                None
            }
            Err(Failure::Backend(reason)) => Some(reason),
            Err(Failure::Local(error)) => {
                local.count.fetch_add(1, Ordering::Relaxed);
                if !local.told.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        slot, addr = %prober.addr, %error,
                        "this host cannot ask backends how they are; they stay as they were"
                    );
                }
                due = next_check(due, Instant::now(), policy.interval, u64::from(slot) << 32 | round);
                continue;
            }
        };
        local.told.store(false, Ordering::Relaxed);
        let changed = opinion.observe(reason.is_none(), &policy);
        if let Some(up) = opinion.up
            && (changed || (up && abilities != before))
        {
            tracing::debug!(slot, addr = %prober.addr, up, reason = reason.as_deref().unwrap_or(""), "health");
            let reason = if up { None } else { reason };
            if events.send(HealthEvent { slot, up, abilities, reason }).is_err() {
                return;
            }
        }
        due = next_check(due, Instant::now(), policy.interval, u64::from(slot) << 32 | round);
    }
}

/// Asks one backend.
struct Prober {
    addr: SocketAddr,
    probe: Probe,
    /// Kept from one time to the next: some errors are told late.
    knocker: Option<udp::Knocker>,
    /// When it was last heard that the backend cannot be reached: for a while silence is no good sign then.
    doubted: Option<Instant>,
}

/// Resolving an address anew takes a few seconds before it fails again, and hosts that refuse say so once in a second at
/// most.
const DOUBT: Duration = Duration::from_secs(8);

impl Prober {
    async fn probe(&mut self, timeout: Duration) -> Result<Abilities, Failure> {
        match &self.probe {
            Probe::Tcp => return tcp::probe(self.addr, timeout).await,
            Probe::Ask { send, expect } => udp::ask(self.addr, send, expect, timeout).await?,
            Probe::Knock => {
                let knocker = match self.knocker.take() {
                    Some(knocker) => knocker,
                    None => udp::Knocker::new(self.addr).await?,
                };
                let heard = knocker.knock(timeout).await.inspect_err(|failure| {
                    if let Failure::Backend(_) = failure {
                        self.doubted = Some(Instant::now());
                    }
                })?;
                self.knocker = Some(knocker);
                if heard {
                    self.doubted = None;
                } else if self.doubted.is_some_and(|since| since.elapsed() < DOUBT) {
                    return Err(Failure::Backend("silent since it could not be reached".to_owned()));
                }
            }
        }
        Ok(Abilities::default())
    }
}

/// An interval after the last one, more or less a tenth, so that checks of many backends do not march in step.
fn next_check(last: Instant, now: Instant, interval: Duration, salt: u64) -> Instant {
    let share = (mix64(salt) % 2001) as f64 / 10_000.0 + 0.9;
    // Checks that took longer than the interval are not made up for.
    (last + interval.mul_f64(share)).max(now)
}

/// What is thought of a backend after some checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Opinion {
    /// Nothing before the first check.
    up: Option<bool>,
    /// Checks in a row that contradict it.
    against: u32,
}

impl Opinion {
    /// Takes the outcome of a check. Returns whether the opinion changed.
    fn observe(&mut self, success: bool, policy: &Policy) -> bool {
        if self.up == Some(success) {
            self.against = 0;
            return false;
        }
        self.against += 1;
        let needed = if success { policy.rise } else { policy.fall };
        if self.up.is_some() && self.against < needed {
            return false;
        }
        *self = Self { up: Some(success), against: 0 };
        true
    }
}

/// An option that we do not offer ourselves cannot be learned, and so is never promised to clients.
fn warn_of_options_off() {
    for key in ["net/ipv4/tcp_sack", "net/ipv4/tcp_timestamps", "net/ipv4/tcp_window_scaling"] {
        if crate::net::sysctl(key).as_deref() == Some("0") {
            tracing::warn!(
                key,
                "off in this namespace: no client will be offered it, whatever the backends have"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::service::PROMISE_SACK;
    use tokio::net::UdpSocket;

    const POLICY: Policy =
        Policy { interval: Duration::from_secs(2), timeout: Duration::from_secs(1), rise: 2, fall: 3 };

    #[test]
    fn opinions_change_after_rise_and_fall() {
        // Outcomes of checks, and the opinion after each where it changes.
        for (name, outcomes, changes) in [
            ("the first check decides", "+", vec![(0, true)]),
            ("down at first", "-", vec![(0, false)]),
            ("three failures", "+---", vec![(0, true), (3, false)]),
            ("failures with a success between", "+--+--", vec![(0, true)]),
            ("two successes", "-++", vec![(0, false), (2, true)]),
            ("flapping", "-+-+-+", vec![(0, false)]),
            ("down and up again", "+---++", vec![(0, true), (3, false), (5, true)]),
        ] {
            let mut opinion = Opinion::default();
            let seen: Vec<_> = outcomes
                .chars()
                .enumerate()
                .filter_map(
                    |(i, c)| if opinion.observe(c == '+', &POLICY) { Some((i, opinion.up?)) } else { None },
                )
                .collect();
            assert_eq!(seen, changes, "{name}");
        }
    }

    #[test]
    fn checks_spread_around_the_interval() {
        let start = Instant::now();
        let waits: Vec<_> =
            (0..100).map(|salt| next_check(start, start, POLICY.interval, salt) - start).collect();
        assert!(waits.iter().all(|wait| (1.8..=2.2).contains(&wait.as_secs_f64())), "{waits:?}");
        assert!(waits.iter().max() > waits.iter().min());
        let late = start + Duration::from_secs(60);
        assert_eq!(next_check(start, late, POLICY.interval, 1), late, "no burst after a stall");
    }

    #[tokio::test]
    async fn a_listener_is_up_and_a_closed_port_is_down() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (events, mut news) = mpsc::unbounded_channel();
        let mut health = Health::new(events);
        let quick = Policy { interval: Duration::from_millis(20), fall: 2, ..POLICY };
        health.watch(5, addr, quick, Probe::Tcp);
        let up = news.recv().await.unwrap();
        assert_eq!((up.slot, up.up, up.reason), (5, true, None));
        assert_eq!((up.abilities.seen, up.abilities.promises & PROMISE_SACK), (1, PROMISE_SACK));
        assert!(up.abilities.mss > 1460, "{}", up.abilities.mss);
        drop(listener);
        let down = news.recv().await.unwrap();
        assert!(!down.up && down.reason.unwrap().contains("refused"));
        assert_eq!(down.abilities, up.abilities, "what it told while it was up");
    }

    /// Twenty checks a second, each with as long for its answer.
    fn quick(fall: u32) -> Policy {
        let moment = Duration::from_millis(50);
        Policy { interval: moment, timeout: moment, rise: 1, fall }
    }

    #[tokio::test]
    async fn a_udp_server_is_up_when_it_answers_as_it_should() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = server.local_addr().unwrap();
        let (events, mut news) = mpsc::unbounded_channel();
        let mut health = Health::new(events);
        let probe = Probe::Ask { send: b"ping".to_vec(), expect: b"good".to_vec() };
        health.watch(6, addr, quick(1), probe.clone());
        let down = news.recv().await.unwrap();
        assert_eq!((down.up, down.reason.unwrap().as_str()), (false, "no answer within 50ms"));
        let serve = |answer: &'static [u8]| {
            let server = &server;
            async move {
                let mut buffer = [0; 64];
                loop {
                    let (length, peer) = server.recv_from(&mut buffer).await.unwrap();
                    assert_eq!(&buffer[..length], b"ping");
                    server.send_to(answer, peer).await.unwrap();
                }
            }
        };
        let up = tokio::select! { event = news.recv() => event.unwrap(), () = serve(b"all good") => unreachable!() };
        assert_eq!((up.slot, up.up, up.reason, up.abilities.seen), (6, true, None, 0));
        let down =
            tokio::select! { event = news.recv() => event.unwrap(), () = serve(b"bad") => unreachable!() };
        let reason = down.reason.unwrap();
        assert!(!down.up && reason == "its answer does not contain what is expected: bad", "{reason}");
        drop(server);
        health.watch(6, addr, quick(1), probe);
        let closed = news.recv().await.unwrap();
        assert!(closed.reason.unwrap().contains("refused"));
    }

    #[tokio::test]
    async fn a_udp_server_that_is_asked_nothing_is_down_when_nobody_listens() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let addr = server.local_addr().unwrap();
        let (events, mut news) = mpsc::unbounded_channel();
        let mut health = Health::new(events);
        health.watch(7, addr, quick(2), Probe::Knock);
        let up = news.recv().await.unwrap();
        assert!(up.up, "{up:?}");
        drop(server);
        let down = news.recv().await.unwrap();
        assert!(!down.up && down.reason.as_ref().unwrap().contains("refused"), "{down:?}");
        let _server = UdpSocket::bind(addr).await.unwrap();
        assert!(news.recv().await.unwrap().up);
    }
}
