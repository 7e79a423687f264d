//! `lb-ebpf/src/maps.rs` for tests: maps in ordinary memory.

use crate::atomic::step;
use bytemuck::Zeroable;
use lb_common::backend::Backend;
use lb_common::flow::{Flow, Use};
use lb_common::home::{Asked, Home};
use lb_common::service::Service;
use lb_common::settings::Settings;
use lb_common::stash::Stash;
use std::cell::UnsafeCell;

/// An array of the kernel's, shared by all threads of a test. Only one test at a time uses it.
pub(crate) struct Array<T>(UnsafeCell<Vec<T>>);

// SAFETY: the threads of a test take turns on one thread of the system; tests follow each other (`crate::explore`).
unsafe impl<T> Sync for Array<T> {}

impl<T: Copy + Zeroable> Array<T> {
    const fn new() -> Self {
        Self(UnsafeCell::new(Vec::new()))
    }

    /// Makes it `len` entries of zeros.
    pub(crate) fn reset(&self, len: usize) {
        // SAFETY: nobody has a part of it at the beginning of a round.
        unsafe {
            let entries = &mut *self.0.get();
            entries.clear();
            entries.resize(len, T::zeroed());
        }
    }

    pub(crate) fn get(&self, index: u32) -> Option<&T> {
        step();
        // SAFETY: entries stay where they are until the next round.
        let entries = unsafe { &*self.0.get() };
        entries.get(index as usize)
    }

    pub(crate) fn get_ptr_mut(&self, index: u32) -> Option<*mut T> {
        step();
        // SAFETY: as above.
        let entries = unsafe { &mut *self.0.get() };
        entries.get_mut(index as usize).map(std::ptr::from_mut)
    }
}

pub(crate) static SETTINGS: Array<Settings> = Array::new();
pub(crate) static SERVICES: Array<Service> = Array::new();
pub(crate) static BACKENDS: Array<Backend> = Array::new();
pub(crate) static FLOWS: Array<Flow> = Array::new();
pub(crate) static FLOW_KEYS: Array<Asked> = Array::new();
pub(crate) static OVERFLOWS: Array<u64> = Array::new();
pub(crate) static HOMES: Array<Home> = Array::new();
pub(crate) static STASHES: Array<Stash> = Array::new();
pub(crate) static LIVE: Array<u64> = Array::new();
pub(crate) static WAITING: Array<u64> = Array::new();
pub(crate) static USES: Array<Use> = Array::new();

pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Nobody reads the counters here.
pub(crate) fn count(_: u16, _: u32) {}

/// Empties everything: tables of `flows` flows, `stashes` stashes and one group of learned sessions.
pub(crate) fn reset(flows: usize, stashes: usize) {
    SETTINGS.reset(1);
    SERVICES.reset(4);
    BACKENDS.reset(16);
    FLOWS.reset(flows);
    FLOW_KEYS.reset(flows);
    OVERFLOWS.reset(flows / lb_common::flow::GROUP);
    HOMES.reset(lb_common::home::GROUP);
    STASHES.reset(stashes);
    LIVE.reset(16);
    WAITING.reset(16);
    USES.reset(4);
}
