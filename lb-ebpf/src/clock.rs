//! Time: the kernel's ticks, and the coarser ones that tables note.

use lb_common::settings::Settings;

/// The present time in ticks.
#[inline(always)]
pub(crate) fn now(settings: &Settings) -> u32 {
    (jiffies() >> (settings.tick_shift & 31)) as u32
}

/// The kernel's clock.
#[inline(always)]
pub(crate) fn jiffies() -> u64 {
    // SAFETY: the helper takes nothing and reads a variable.
    unsafe { aya_ebpf::helpers::bpf_jiffies64() }
}

/// Seconds of the monotonic clock.
#[inline(always)]
pub(crate) fn second() -> u64 {
    // SAFETY: the helper takes nothing and returns a number.
    (unsafe { aya_ebpf::helpers::bpf_ktime_get_ns() }) / 1_000_000_000
}
