//! The kernel's clock as the packet programs read it: jiffies.

use lb_common::settings::Settings;
use lb_common::syn_cookie::SLOT_SECONDS;
use std::io::{BufRead, BufReader};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Why the kernel's clock cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ClockError {
    #[error("clock {0} cannot be read")]
    Unreadable(&'static str, #[source] std::io::Error),
    #[error("the kernel's tick of {0} ns is not that of a clock between 24 Hz and 10 kHz")]
    Tick(u64),
}

/// How jiffies relate to the other clocks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// Jiffies a second.
    pub hz: u32,
    /// Jiffies when the monotonic clock stood at 0.
    offset: u64,
}

impl Clock {
    /// Finds out by how much jiffies run ahead of the monotonic clock.
    ///
    /// The tick is the resolution of the coarse clock. Jiffies themselves are printed by /proc/timer_list; where that
    /// is not readable, the kernel's own start value tells: 300 seconds before the 32-bit overflow.
    ///
    /// # Errors
    /// The coarse clock cannot be read.
    pub fn measure() -> Result<Self, ClockError> {
        let hz =
            hz_of_tick(clock("CLOCK_MONOTONIC_COARSE", libc::CLOCK_MONOTONIC_COARSE, libc::clock_getres)?)?;
        let before = monotonic()?;
        let offset = match printed_jiffies("/proc/timer_list") {
            Some(jiffies) => jiffies.wrapping_sub(to_jiffies(before, hz)),
            None => (1 << 32) - 300 * u64::from(hz),
        };
        Ok(Self { hz, offset })
    }

    /// Jiffies now.
    pub fn jiffies(&self) -> u64 {
        let now = monotonic().expect("the monotonic clock was readable when this clock was measured");
        self.offset.wrapping_add(to_jiffies(now, self.hz))
    }

    /// A tick is this power of two in jiffies, which is nearest to a quarter of a second.
    pub fn tick_shift(&self) -> u32 {
        // The power of two nearest to hz/4 on a logarithmic scale: between 2^k/sqrt(2) and 2^k*sqrt(2).
        (0..16).find(|shift| u64::from(self.hz).pow(2) <= 32 << (2 * shift)).unwrap_or(0)
    }

    /// The tick of now: what the programs write into `last_seen`.
    pub fn tick(&self) -> u32 {
        (self.jiffies() >> self.tick_shift()) as u32
    }

    /// A duration in ticks, at least one.
    pub fn ticks(&self, duration: Duration) -> u32 {
        let jiffies = to_jiffies(duration, self.hz) >> self.tick_shift();
        jiffies.clamp(1, i32::MAX as u64) as u32
    }

    /// A number of ticks as a duration.
    pub fn duration(&self, ticks: u32) -> Duration {
        let jiffies = u64::from(ticks) << self.tick_shift();
        Duration::from_nanos((u128::from(jiffies) * 1_000_000_000 / u128::from(self.hz)) as u64)
    }

    /// Fills in the fields of the settings that tell the time.
    pub fn fill(&self, settings: &mut Settings) {
        self.fill_at(settings, self.jiffies(), wall_clock());
    }

    /// By how much the time slots of the settings, as the programs compute them, differ from the wall clock.
    pub fn drift(&self, settings: &Settings) -> Duration {
        self.drift_at(settings, self.jiffies(), wall_clock())
    }

    fn drift_at(&self, settings: &Settings, jiffies: u64, wall: Duration) -> Duration {
        let mut right = *settings;
        self.fill_at(&mut right, jiffies, wall);
        // In slots, times 2^32.
        let position = |settings: &Settings| {
            let passed = jiffies.wrapping_sub(settings.slot_jiffies) as i64;
            (i128::from(settings.slot_base) << 32) + i128::from(passed) * i128::from(settings.slot_mult)
        };
        let slots = position(settings).abs_diff(position(&right));
        let nanoseconds = (slots * u128::from(SLOT_SECONDS) * 1_000_000_000) >> 32;
        Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
    }

    fn fill_at(&self, settings: &mut Settings, jiffies: u64, wall: Duration) {
        let slot = u64::from(SLOT_SECONDS);
        let into_slot = wall - Duration::from_secs(wall.as_secs() / slot * slot);
        settings.slot_base = (wall.as_secs() / slot) as u32;
        settings.slot_jiffies = jiffies.wrapping_sub(to_jiffies(into_slot, self.hz));
        settings.slot_mult = (1 << 32) / (slot * u64::from(self.hz));
        settings.tick_shift = self.tick_shift();
    }
}

fn wall_clock() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

fn to_jiffies(time: Duration, hz: u32) -> u64 {
    (time.as_nanos() * u128::from(hz) / 1_000_000_000) as u64
}

fn monotonic() -> Result<Duration, ClockError> {
    Ok(Duration::from_nanos(clock("CLOCK_MONOTONIC", libc::CLOCK_MONOTONIC, libc::clock_gettime)?))
}

/// Asks a clock for nanoseconds.
fn clock(
    name: &'static str,
    id: libc::clockid_t,
    ask: unsafe extern "C" fn(libc::clockid_t, *mut libc::timespec) -> libc::c_int,
) -> Result<u64, ClockError> {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: both functions write one timespec through the pointer, which is valid for that.
    if unsafe { ask(id, &raw mut time) } != 0 {
        return Err(ClockError::Unreadable(name, std::io::Error::last_os_error()));
    }
    Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
}

fn hz_of_tick(nanoseconds: u64) -> Result<u32, ClockError> {
    match 1_000_000_000_u64.checked_div(nanoseconds) {
        // Rounded: the tick of 300 Hz is 3,333,333 ns.
        Some(24..=10_000) => Ok(((1_000_000_000 + nanoseconds / 2) / nanoseconds) as u32),
        _ => Err(ClockError::Tick(nanoseconds)),
    }
}

/// The first line `jiffies: N` of a file.
fn printed_jiffies(path: &str) -> Option<u64> {
    let file = BufReader::new(std::fs::File::open(path).ok()?);
    file.lines().map_while(Result::ok).find_map(|line| line.strip_prefix("jiffies: ")?.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_about_a_quarter_of_a_second() {
        for (hz, shift) in [(100, 5), (250, 6), (300, 6), (1000, 8)] {
            let clock = Clock { hz, offset: 0 };
            assert_eq!(clock.tick_shift(), shift, "{hz} Hz");
            let tick = clock.duration(1).as_secs_f64();
            assert!((0.177..=0.354).contains(&tick), "{tick} s at {hz} Hz");
        }
    }

    #[test]
    fn the_kernels_tick_gives_its_frequency() {
        for (tick, hz) in [(1_000_000, 1000), (3_333_333, 300), (4_000_000, 250), (10_000_000, 100)] {
            assert_eq!(hz_of_tick(tick).unwrap(), hz);
        }
        assert!(hz_of_tick(0).is_err());
        assert!(hz_of_tick(1).is_err());
    }

    #[test]
    fn slots_follow_the_wall_clock() {
        let clock = Clock { hz: 250, offset: 0 };
        let mut settings = Settings::default();
        let start = 1_000_000_000;
        clock.fill_at(&mut settings, start, Duration::from_secs(64 * 1000 + 10));
        for (seconds, slot) in
            [(0, 1000), (53, 1000), (55, 1001), (64 * 5, 1005), (86_400 - 5, 1000 + 86_400 / 64)]
        {
            assert_eq!(settings.slot(start + seconds * 250), slot, "after {seconds} s");
        }
    }

    #[test]
    fn drift_is_the_distance_from_the_wall_clock() {
        let clock = Clock { hz: 250, offset: 0 };
        let mut settings = Settings::default();
        let (jiffies, wall) = (1_000_000_000, Duration::from_secs(64 * 20_000_000 + 10));
        clock.fill_at(&mut settings, jiffies, wall);
        let day = Duration::from_secs(86_400);
        let day_later = jiffies + 86_400 * 250;
        for (name, jiffies, wall, least, most) in [
            ("at once", jiffies, wall, 0, 5),
            ("a day later, by rounding alone", day_later, wall + day, 10, 300),
            ("the wall clock stepped forward", jiffies, wall + Duration::from_secs(3), 2990, 3010),
            ("the wall clock stepped back", jiffies, wall - Duration::from_secs(30), 29_990, 30_010),
        ] {
            let drift = clock.drift_at(&settings, jiffies, wall).as_millis();
            assert!((least..=most).contains(&drift), "{name}: {drift} ms");
        }
    }

    #[test]
    fn jiffies_advance_with_time() {
        let clock = Clock::measure().unwrap();
        let before = clock.jiffies();
        let measured_again = Clock::measure().unwrap();
        assert!(
            measured_again.jiffies().abs_diff(before) <= u64::from(clock.hz),
            "{clock:?} {measured_again:?}"
        );
    }
}
