//! How many flows services and backends have: what one may have of the tables that all share.

use crate::atomic::{self, add};
use crate::maps::{LIVE, SERVICES, USES, WAITING};
use lb_common::flow::{HELD, Head, LIVES, PENDS, WAITS};
use lb_common::service::Service;

/// Keeps count of the flows of services and backends, when a head `was` becomes another one, `is`.
#[inline(always)]
pub(crate) fn account(was: Head, is: Head) {
    if was.changes(is) != 0 {
        lb_account(was.to_bits(), is.to_bits());
    }
}

/// See [`account`]. Returns 0. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_account(was: u64, is: u64) -> u32 {
    let (was, is) = (Head::from_bits(was), Head::from_bits(is));
    let changed = was.changes(is);
    // What is comes first: a count is never less than what there is.
    add_up(is, is.counted() & changed, 1);
    // Most heads come before or behind nothing that is counted.
    if was.counted() & changed != 0 {
        add_up(was, was.counted() & changed, u64::MAX);
    }
    0
}

/// Adds to what an entry with this head is `counted` as.
#[inline(always)]
pub(crate) fn add_up(head: Head, counted: u8, more: u64) {
    if counted & (HELD | PENDS) != 0
        && let Some(used) = USES.get_ptr_mut(u32::from(head.service))
    {
        // SAFETY: aligned words of a map value that stays valid.
        unsafe {
            if counted & HELD != 0 {
                add(&raw mut (*used).flows, more);
            }
            if counted & PENDS != 0 {
                add(&raw mut (*used).pending, more);
            }
        }
    }
    if counted & LIVES != 0 {
        add_to(LIVE.get_ptr_mut(u32::from(head.backend)), more);
    }
    if counted & WAITS != 0 {
        add_to(WAITING.get_ptr_mut(u32::from(head.backend)), more);
    }
}

/// Adds to a count, if there is one.
#[inline(always)]
pub(crate) fn add_to(count: Option<*mut u64>, more: u64) {
    if let Some(count) = count {
        // SAFETY: an aligned map value that stays valid.
        unsafe { add(count, more) };
    }
}

/// A count that several processors change: between an end and its beginning it may be less than nothing.
#[inline(always)]
fn read(count: Option<&u64>) -> u64 {
    // SAFETY: a reference to a map value is aligned and valid.
    let count = count.map_or(0, |count| unsafe { atomic::read(count) });
    if (count as i64) < 0 { 0 } else { count }
}

/// How many flows a service has.
#[inline(always)]
pub(crate) fn flows_of(service: u32) -> u64 {
    read(USES.get(service).map(|used| &used.flows))
}

/// Whether a service has as many flows as it may.
#[inline(always)]
pub(crate) fn is_full(service: &Service, id: u32) -> bool {
    service.max_flows != 0 && flows_of(id) >= u64::from(service.max_flows)
}

/// Whether as many flows of a service wait for their backends as may.
#[inline(always)]
pub(crate) fn is_pending_full(id: u32) -> bool {
    let Some(service) = SERVICES.get(id) else { return false };
    let pending = read(USES.get(id).map(|used| &used.pending));
    service.max_pending != 0 && pending >= u64::from(service.max_pending)
}

/// Whether as many flows wait for a backend's answer as may.
#[inline(always)]
pub(crate) fn is_waited_for(service: &Service, slot: u32) -> bool {
    let limit = u64::from(service.max_backend_pending);
    limit != 0 && read(WAITING.get(slot)) >= limit
}

/// How many flows live at a backend.
#[inline(always)]
pub(crate) fn live(slot: u16) -> u64 {
    read(LIVE.get(u32::from(slot)))
}
