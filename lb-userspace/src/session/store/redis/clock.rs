//! The time by which sessions expire here: that of the servers, so that all processes mean the same, whatever their own
//! clocks say. Between two questions it goes on with the boot clock of this machine, which never jumps.

use crate::session::clock::TimeSource;
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A host whose clock differs by more is told, in milliseconds...
const TOLD_MS: u64 = 1000;

/// ...and by more is refused.
const REFUSED_MS: u64 = 60_000;

pub(super) struct ServerClock {
    source: Arc<dyn TimeSource>,
    /// The servers' time when the boot clock was 0.
    offset: AtomicI64,
    host: Mutex<Host>,
}

#[derive(Default)]
struct Host {
    note: Option<String>,
    refused: Option<String>,
}

impl ServerClock {
    pub(super) fn new(source: Arc<dyn TimeSource>) -> Self {
        Self { source, offset: AtomicI64::new(0), host: Mutex::default() }
    }

    /// Milliseconds since 1970, as the servers have it.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.source.boot() as i64 + self.offset.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// To be asked before a question, and given to [`ServerClock::observe`].
    pub(super) fn began(&self) -> u64 {
        self.source.boot()
    }

    /// What a server answered to TIME. The first answer is believed; later ones only while they agree with the clock of this
    /// host: else one of both has jumped, and the time goes on as before.
    pub(super) fn observe(&self, began: u64, server: u64, first: bool) {
        let (boot, wall) = (self.source.boot(), self.source.wall());
        let trip = boot.saturating_sub(began);
        let there = server.saturating_add(trip / 2);
        let ahead = wall as i64 - there as i64;
        let differs = ahead.unsigned_abs();
        let text = || {
            let way = if ahead > 0 { "ahead of" } else { "behind" };
            format!(
                "the clock of this host is {:.1} s {way} that of the redis servers",
                differs as f64 / 1000.0
            )
        };
        let mut host = self.host.lock();
        host.note = (differs > TOLD_MS + trip).then(text);
        host.refused = (differs > REFUSED_MS + trip)
            .then(|| format!("{}: set it right, for more than {} s is refused", text(), REFUSED_MS / 1000));
        if first || host.refused.is_none() {
            self.offset.store(there as i64 - boot as i64, Ordering::Relaxed);
        }
    }

    /// Why this host may not use the store now.
    pub(super) fn refused(&self) -> Option<String> {
        self.host.lock().refused.clone()
    }

    pub(super) fn note(&self) -> Option<String> {
        self.host.lock().note.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::clock::tests::Clocks;

    const YEARS: u64 = 3 * 365 * 86_400_000;

    #[test]
    fn a_jump_of_the_host_moves_no_time_and_is_refused_until_it_is_over() {
        for jump in [YEARS as i64, -(YEARS as i64)] {
            let clocks = Clocks::at(YEARS * 10, 5_000);
            let time = ServerClock::new(clocks.clone());
            time.observe(time.began(), YEARS * 10 + 200, true);
            assert_eq!((time.now(), time.note(), time.refused()), (YEARS * 10 + 200, None, None));
            clocks.jump(jump);
            clocks.pass(1_000);
            assert_eq!(time.now(), YEARS * 10 + 1_200);
            time.observe(time.began(), YEARS * 10 + 1_200, false);
            assert!(time.refused().is_some_and(|why| why.contains("the clock of this host is")));
            assert_eq!(time.now(), YEARS * 10 + 1_200);
            clocks.jump(-jump);
            time.observe(time.began(), YEARS * 10 + 1_200, false);
            assert_eq!((time.now(), time.refused()), (YEARS * 10 + 1_200, None));
        }
    }

    #[test]
    fn a_second_is_told_and_a_minute_is_refused() {
        for (off, told, refused) in [(900, false, false), (1_500, true, false), (61_000, true, true)] {
            let time = ServerClock::new(Clocks::at(YEARS, 0));
            time.observe(0, YEARS + off, true);
            assert_eq!((time.note().is_some(), time.refused().is_some()), (told, refused), "{off}");
        }
    }
}
