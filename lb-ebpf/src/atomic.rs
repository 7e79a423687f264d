//! Memory as the compiler would not write or read it by itself. Atomic instructions: `core::sync::atomic` has no
//! compare-exchange for this target, the instruction set has.

/// Stores `new` if the word still is `old`; returns what it was. A full barrier.
///
/// # Safety
/// `word` points at an aligned map value that stays valid.
#[inline(always)]
pub(crate) unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut was = old;
        // SAFETY: the caller's promise; r0 holds the expected value and receives the former one.
        unsafe {
            core::arch::asm!(
                "r0 = cmpxchg_64({word} + 0, r0, {new})",
                word = in(reg) word,
                new = in(reg) new,
                inout("r0") was,
            );
        }
        was
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller's promise.
        let word = unsafe { AtomicU64::from_ptr(word) };
        word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst).unwrap_or_else(|was| was)
    }
}

/// Stores `new` and returns what was there. A full barrier: what was written before is seen before.
///
/// # Safety
/// `word` points at an aligned map value that stays valid.
#[inline(always)]
pub(crate) unsafe fn exchange(word: *mut u64, new: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = new;
        // SAFETY: the caller's promise.
        unsafe {
            core::arch::asm!(
                "{value} = xchg_64({word} + 0, {value})",
                word = in(reg) word,
                value = inout(reg) value,
            );
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller's promise.
        unsafe { AtomicU64::from_ptr(word) }.swap(new, Ordering::SeqCst)
    }
}

/// Adds to a word, at once.
///
/// # Safety
/// `word` points at an aligned map value that stays valid.
#[inline(always)]
pub(crate) unsafe fn add(word: *mut u64, more: u64) {
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise.
    unsafe {
        core::arch::asm!("lock *(u64 *)({word} + 0) += {more}", word = in(reg) word, more = in(reg) more);
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller's promise.
        unsafe { AtomicU64::from_ptr(word) }.fetch_add(more, Ordering::Relaxed);
    }
}

/// Reads what other processors may write at any moment, in one piece.
///
/// # Safety
/// `place` points at an aligned integer of a map value that stays valid.
#[inline(always)]
pub(crate) unsafe fn read<T: Copy>(place: *const T) -> T {
    // SAFETY: the caller's promise.
    unsafe { place.read_volatile() }
}

/// Writes what other processors may read at any moment, in one piece.
///
/// # Safety
/// As [`read`].
#[inline(always)]
pub(crate) unsafe fn write<T: Copy>(place: *mut T, value: T) {
    // SAFETY: the caller's promise.
    unsafe { place.write_volatile(value) };
}

/// Writes `N` words, all of them `value`. An assignment becomes a call that writes byte by byte.
///
/// # Safety
/// `words` points at `N` aligned words of a map value that stays valid.
#[inline(always)]
pub(crate) unsafe fn fill<const N: usize>(words: *mut u64, value: u64) {
    let mut i = 0;
    while i < N {
        // SAFETY: the caller's promise. Volatile, or the loop would be recognised as that call.
        unsafe { words.add(i).write_volatile(value) };
        i += 1;
    }
}

/// Reads a word after everything that was read before it. Where loads are not reordered (x86) a plain load does; elsewhere an atomic
/// instruction that changes nothing, since the instruction set has no barrier: arm64 compiles it with acquire and release.
///
/// # Safety
/// `word` points at an aligned map value that stays valid, and that this program may write to.
#[inline(always)]
pub(crate) unsafe fn read_last(word: *mut u64) -> u64 {
    #[cfg(all(target_arch = "bpf", not(bpf_target_arch = "x86_64")))]
    {
        let mut value = 0_u64;
        // SAFETY: the caller's promise.
        unsafe {
            core::arch::asm!(
                "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
                word = in(reg) word,
                value = inout(reg) value,
            );
        }
        value
    }
    #[cfg(all(target_arch = "bpf", bpf_target_arch = "x86_64"))]
    // SAFETY: the caller's promise.
    unsafe {
        word.read_volatile()
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        use core::sync::atomic::{AtomicU64, Ordering};
        // SAFETY: the caller's promise.
        unsafe { AtomicU64::from_ptr(word) }.fetch_add(0, Ordering::SeqCst)
    }
}
