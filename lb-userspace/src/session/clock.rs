//! Where time comes from. Sessions expire by a clock that does not jump: whatever somebody does to the wall clock while a
//! process runs, no session ends by it.

use std::sync::Arc;

/// The clocks of a machine; tests have others.
pub trait TimeSource: Send + Sync + 'static {
    /// Milliseconds since 1970, as the machine believes.
    fn wall(&self) -> u64;

    /// Milliseconds since the machine was started, time asleep included. Never jumps.
    fn boot(&self) -> u64;

    /// Names this start of the machine; `None` where that is not known.
    fn boot_id(&self) -> Option<u128>;

    /// Whether something keeps the wall clock right, NTP for example.
    fn is_synchronized(&self) -> bool;
}

/// The clocks of this machine.
#[derive(Clone, Copy, Default, Debug)]
pub struct SystemClocks;

impl SystemClocks {
    pub fn shared() -> Arc<dyn TimeSource> {
        Arc::new(Self)
    }
}

impl TimeSource for SystemClocks {
    fn wall(&self) -> u64 {
        super::unix_millis()
    }

    fn boot(&self) -> u64 {
        let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME)
            .expect("Linux has had CLOCK_BOOTTIME since 2.6.39");
        time.tv_sec() as u64 * 1000 + time.tv_nsec() as u64 / 1_000_000
    }

    fn boot_id(&self) -> Option<u128> {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
        u128::from_str_radix(&text.trim().replace('-', ""), 16).ok()
    }

    fn is_synchronized(&self) -> bool {
        // SAFETY: all zeroes are a request that changes nothing.
        let mut request: nix::libc::timex = unsafe { std::mem::zeroed() };
        // SAFETY: the pointer is to a whole `timex`, which the kernel fills in.
        let state = unsafe { nix::libc::adjtimex(&mut request) };
        state >= 0 && state != nix::libc::TIME_ERROR && request.status & nix::libc::STA_UNSYNC == 0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

    /// Clocks that a test sets.
    #[derive(Default)]
    pub(crate) struct Clocks {
        wall: AtomicU64,
        boot: AtomicU64,
        boot_id: AtomicU64,
        pub(crate) synchronized: AtomicBool,
    }

    impl Clocks {
        pub(crate) fn at(wall: u64, boot: u64) -> Arc<Self> {
            let clocks = Self { boot_id: AtomicU64::new(1), ..Self::default() };
            clocks.wall.store(wall, Ordering::SeqCst);
            clocks.boot.store(boot, Ordering::SeqCst);
            Arc::new(clocks)
        }

        pub(crate) fn pass(&self, millis: u64) {
            self.wall.fetch_add(millis, Ordering::SeqCst);
            self.boot.fetch_add(millis, Ordering::SeqCst);
        }

        pub(crate) fn jump(&self, millis: i64) {
            self.wall.fetch_add(millis as u64, Ordering::SeqCst);
        }

        pub(crate) fn reboot(&self) {
            self.boot_id.fetch_add(1, Ordering::SeqCst);
            self.boot.store(0, Ordering::SeqCst);
        }
    }

    impl TimeSource for Clocks {
        fn wall(&self) -> u64 {
            self.wall.load(Ordering::SeqCst)
        }

        fn boot(&self) -> u64 {
            self.boot.load(Ordering::SeqCst)
        }

        fn boot_id(&self) -> Option<u128> {
            Some(self.boot_id.load(Ordering::SeqCst).into())
        }

        fn is_synchronized(&self) -> bool {
            self.synchronized.load(Ordering::SeqCst)
        }
    }

    #[test]
    fn the_clocks_of_this_machine_go_on() {
        let clocks = SystemClocks;
        let before = clocks.boot();
        assert!(clocks.boot() >= before && clocks.wall() > 0 && clocks.boot_id() == clocks.boot_id());
    }
}
