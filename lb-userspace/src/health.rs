//! Asks each backend for a TCP connection now and then, and learns from it which TCP options the backend has.

use lb_common::backend::Abilities;
use lb_common::hash::mix64;
use lb_common::service::{PROMISE_SACK, PROMISE_TIMESTAMPS, PROMISE_WINDOW_SCALE};
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
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

/// Checks that may be under way at the same time.
const AT_ONCE: usize = 64;

/// Handle of the checks. Dropping it ends them.
#[derive(Debug)]
pub struct Health {
    events: mpsc::UnboundedSender<HealthEvent>,
    at_once: Arc<Semaphore>,
    watched: BTreeMap<u16, AbortHandle>,
}

impl Health {
    /// No checks yet. They run on the tokio runtime on which `watch` is called, in the network namespace of its
    /// threads.
    pub fn new(events: mpsc::UnboundedSender<HealthEvent>) -> Self {
        warn_of_options_off();
        Self { events, at_once: Arc::new(Semaphore::new(AT_ONCE)), watched: BTreeMap::new() }
    }

    /// Checks a backend from now on, in place of what was checked for that slot. The first check decides at once.
    pub fn watch(&mut self, slot: u16, addr: SocketAddr, policy: Policy) {
        self.forget(slot);
        let check = check(slot, addr, policy, Arc::clone(&self.at_once), self.events.clone());
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
    addr: SocketAddr,
    policy: Policy,
    at_once: Arc<Semaphore>,
    events: mpsc::UnboundedSender<HealthEvent>,
) {
    let mut opinion = Opinion::default();
    let mut abilities = Abilities::default();
    let mut due = Instant::now();
    for round in 0.. {
        tokio::time::sleep_until(due).await;
        let outcome = {
            let _turn = at_once.acquire().await.expect("the semaphore is never closed");
            probe(addr, policy.timeout).await
        };
        let before = abilities;
        let reason = match &outcome {
            Ok(found) => {
                abilities = *found;
                None
            }
            Err(reason) => Some(reason.clone()),
        };
        let changed = opinion.observe(outcome.is_ok(), &policy);
        if let Some(up) = opinion.up
            && (changed || (up && abilities != before))
        {
            tracing::debug!(slot, %addr, up, reason = reason.as_deref().unwrap_or(""), "health");
            let reason = if up { None } else { reason };
            if events.send(HealthEvent { slot, up, abilities, reason }).is_err() {
                return;
            }
        }
        due = next_check(due, Instant::now(), policy.interval, u64::from(slot) << 32 | round);
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

/// Connects, looks at what was agreed, and hangs up.
async fn probe(addr: SocketAddr, timeout: Duration) -> Result<Abilities, String> {
    let connected = tokio::time::timeout(timeout, TcpStream::connect(addr)).await;
    let stream = match connected {
        Err(_) => return Err(format!("no answer within {timeout:?}")),
        Ok(Err(error)) => return Err(error.to_string()),
        Ok(Ok(stream)) => stream,
    };
    let abilities = learn(&stream).map_err(|error| format!("connection without TCP_INFO: {error}"))?;
    // With RST: thousands of checks must not leave thousands of sockets in TIME_WAIT.
    if let Err(error) = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "health check closes slowly");
    }
    Ok(abilities)
}

/// Bits of `tcpi_options` (`linux/tcp.h`).
const TCPI_OPT_TIMESTAMPS: u8 = 1;
const TCPI_OPT_SACK: u8 = 2;
const TCPI_OPT_WSCALE: u8 = 4;
/// Bytes that timestamps take from each segment (RFC 7323 appendix A).
const TIMESTAMPS_LEN: u16 = 12;

/// What a connection says of the TCP at its other end.
fn learn(stream: &TcpStream) -> io::Result<Abilities> {
    // The head of `struct tcp_info`, which has grown at its end ever since; the kernel writes no more than asked for.
    let mut info = [0_u8; 8];
    option(stream, libc::TCP_INFO, &mut info)?;
    let mut mss = [0_u8; 4];
    option(stream, libc::TCP_MAXSEG, &mut mss)?;
    Ok(read_info(&info, u32::from_ne_bytes(mss)))
}

fn option<const N: usize>(stream: &TcpStream, name: libc::c_int, value: &mut [u8; N]) -> io::Result<()> {
    let mut len = N as libc::socklen_t;
    // SAFETY: the value is valid for writes of the length given, and the kernel writes no more.
    let outcome = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, name, value.as_mut_ptr().cast(), &raw mut len)
    };
    match outcome {
        0 if len as usize == N => Ok(()),
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel knows less than was asked")),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reads state, congestion state, retransmits, probes, backoff, options, window scales; `mss` is what fits in a
/// segment beside the options of every segment.
fn read_info(info: &[u8; 8], mss: u32) -> Abilities {
    let (options, scales) = (info[5], info[6]);
    let mut promises = 0;
    let mut full = u16::try_from(mss).unwrap_or(u16::MAX);
    if options & TCPI_OPT_TIMESTAMPS != 0 {
        promises |= PROMISE_TIMESTAMPS;
        full = full.saturating_add(TIMESTAMPS_LEN);
    }
    if options & TCPI_OPT_SACK != 0 {
        promises |= PROMISE_SACK;
    }
    let mut window_scale = 0;
    if options & TCPI_OPT_WSCALE != 0 {
        promises |= PROMISE_WINDOW_SCALE;
        // Two bit fields in one byte, the other end's first; first is low on little-endian machines.
        window_scale = if cfg!(target_endian = "little") { scales & 15 } else { scales >> 4 };
    }
    Abilities { seen: 1, promises, window_scale, mss: full, ..Abilities::default() }
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

    #[test]
    fn tcp_info_is_read() {
        let all = Abilities { seen: 1, promises: 7, window_scale: 10, mss: 1460, ..Abilities::default() };
        assert_eq!(read_info(&[1, 0, 0, 0, 0, 7 | 8, 0x7a, 0], 1448), all);
        let none = Abilities { seen: 1, promises: 0, window_scale: 0, mss: 1460, ..Abilities::default() };
        assert_eq!(read_info(&[1, 0, 0, 0, 0, 0, 0xff, 0], 1460), none);
        let sack =
            Abilities { seen: 1, promises: PROMISE_SACK, window_scale: 0, mss: 536, ..Abilities::default() };
        assert_eq!(read_info(&[1, 0, 0, 0, 0, 2, 0, 0], 536), sack);
    }

    #[tokio::test]
    async fn a_listener_is_up_and_a_closed_port_is_down() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (events, mut news) = mpsc::unbounded_channel();
        let mut health = Health::new(events);
        let quick = Policy { interval: Duration::from_millis(20), fall: 2, ..POLICY };
        health.watch(5, addr, quick);
        let up = news.recv().await.unwrap();
        assert_eq!((up.slot, up.up, up.reason), (5, true, None));
        assert_eq!((up.abilities.seen, up.abilities.promises & PROMISE_SACK), (1, PROMISE_SACK));
        assert!(up.abilities.mss > 1460, "{}", up.abilities.mss);
        drop(listener);
        let down = news.recv().await.unwrap();
        assert!(!down.up && down.reason.unwrap().contains("refused"));
        assert_eq!(down.abilities, up.abilities, "what it told while it was up");
    }
}
