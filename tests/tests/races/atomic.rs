//! [`lb-ebpf/src/atomic.rs`] for tests: before each step a scheduler chooses which thread goes on. The steps are those by which
//! processors see each other's work: atomic instructions, and reads and writes of one word.

use shuttle::sync::atomic::{AtomicBool, Ordering};

/// A place where any thread may go on.
pub(crate) fn step() {
    // What a thread does to it lets the scheduler choose.
    AtomicBool::new(false).load(Ordering::SeqCst);
}

pub(crate) unsafe fn read<T: Copy>(place: *const T) -> T {
    step();
    // SAFETY: the caller's promise.
    unsafe { place.read_volatile() }
}

pub(crate) unsafe fn write<T: Copy>(place: *mut T, value: T) {
    step();
    // SAFETY: the caller's promise.
    unsafe { place.write_volatile(value) };
}

pub(crate) unsafe fn read_last(word: *mut u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe { read(word) }
}

pub(crate) unsafe fn compare_exchange(word: *mut u64, old: u64, new: u64) -> u64 {
    step();
    // SAFETY: the caller's promise.
    unsafe {
        let was = word.read();
        if was == old {
            word.write(new);
        }
        was
    }
}

pub(crate) unsafe fn exchange(word: *mut u64, new: u64) -> u64 {
    step();
    // SAFETY: the caller's promise.
    unsafe { word.replace(new) }
}

pub(crate) unsafe fn add(word: *mut u64, more: u64) {
    step();
    // SAFETY: the caller's promise.
    unsafe { word.write(word.read().wrapping_add(more)) };
}

pub(crate) unsafe fn fill<const N: usize>(words: *mut u64, value: u64) {
    for i in 0..N {
        // SAFETY: the caller's promise.
        unsafe { write(words.add(i), value) };
    }
}
