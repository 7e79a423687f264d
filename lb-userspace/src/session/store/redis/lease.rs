//! Whether copies in memory may be answered from at this moment.

use parking_lot::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Nanoseconds since boot, time asleep included: what others wait for goes on while this machine sleeps.
pub(super) fn now() -> u64 {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
        .expect("Linux has had CLOCK_BOOTTIME since 2.6.39");
    time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
}

/// Holds while both halves do.
pub(super) struct Lease {
    term: u64,
    /// All messages up to then minus the term were read and obeyed.
    heard: AtomicU64,
    /// Others know that this process lives, until at least then.
    known: AtomicU64,
    /// When it was last lost, for people.
    trouble: Mutex<Option<String>>,
}

impl Lease {
    pub(super) fn new(term: Duration) -> Self {
        let term = term.as_nanos() as u64;
        Self { term, heard: AtomicU64::new(0), known: AtomicU64::new(0), trouble: Mutex::new(None) }
    }

    pub(super) fn holds(&self) -> bool {
        // Each half alone may be older than the other; a reader who sees an old one only sees an earlier end.
        let until = self.heard.load(Ordering::Acquire).min(self.known.load(Ordering::Acquire));
        now() < until
    }

    /// Everything was read and obeyed that was there at `began`.
    pub(super) fn heard(&self, began: u64) {
        self.heard.store(began + self.term, Ordering::Release);
    }

    /// At `began` or later the others were told that this process lives.
    pub(super) fn known(&self, began: u64) {
        self.known.store(began + self.term, Ordering::Release);
        *self.trouble.lock() = None;
    }

    /// Nothing in memory is known to be current.
    pub(super) fn deaf(&self) {
        self.heard.store(0, Ordering::Release);
    }

    /// Others may believe that this process is dead.
    pub(super) fn unknown(&self) {
        self.known.store(0, Ordering::Release);
    }

    pub(super) fn trouble(&self, why: String) {
        *self.trouble.lock() = Some(why);
    }

    /// What is wrong with renewing it.
    pub(super) fn why(&self) -> Option<String> {
        self.trouble.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_only_while_both_halves_do() {
        let lease = Lease::new(Duration::from_secs(60));
        assert!(!lease.holds());
        lease.heard(now());
        assert!(!lease.holds());
        lease.known(now());
        assert!(lease.holds());
        lease.deaf();
        assert!(!lease.holds());
        lease.heard(now());
        lease.unknown();
        assert!(!lease.holds());
        // Renewed by an answer that took longer than the term.
        lease.known(now().saturating_sub(61_000_000_000));
        assert!(!lease.holds());
    }
}
