//! The places for what clients send before their backends have answered: whose they are, and which segments they hold. See
//! [`lb_common::stash`] for the layout, [`crate::keep`] for how segments come there.
//!
//! Any processor may read a stash while the one that has its lock appends: bytes first, then the view that names them,
//! by an exchange that is also a barrier.

use crate::atomic::{compare_exchange, exchange, fill, read, read_last};
use crate::flows::{self, Entry};
use crate::maps::{FLOWS, STASHES, count, settings};
use crate::shares::is_pending_full;
use lb_common::counter::Counter;
use lb_common::flow::{ACKNOWLEDGED, FORGOTTEN, FlowState, Head, NO_STASH};
use lb_common::settings::{Settings, is_over};
use lb_common::stash::{Stash, TRIED, VIEW_FIN, VIEW_USED, VIEWS, View};

/// Stashes that a flow may be given.
const WAYS: u32 = 16;

/// A stash and its index.
#[derive(Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) stash: *mut Stash,
    pub(crate) index: u16,
}

/// Notes that a backend was offered the flow.
#[inline(always)]
pub(crate) fn note_tried(stash: *mut Stash, slot: u16) {
    // SAFETY: a map value stays valid; one flow's handshake runs on one processor at a time, and a lost entry only
    // means that a backend may be tried twice.
    unsafe {
        let n = (*stash).tried_len;
        (*stash).tried.note(n, slot);
        if n < TRIED as u32 {
            (*stash).tried_len = n + 1;
        }
    }
}

/// The word that says whose a stash is.
#[inline(always)]
const fn owner(flow: u32, tick: u32) -> u64 {
    (flow as u64 + 1) | (tick as u64) << 32
}

/// Who may be ended for a stash: nobody, ...
const NOBODY_ENDS: u32 = 0;
/// ...or who waits for the rest of its head; less than that is the id of a service, whose flows alone may be.
const ANYBODY: u32 = 1 << 16;

/// Takes a stash for the flow in entry `flow` of a service, whose hash is `hash`, and locks it. Returns its index, or what
/// [`refused`] knows.
#[inline(always)]
pub(crate) fn claim(flow: u32, hash: u32, service: u16, now: u32) -> u32 {
    lb_claim_stash(flow, hash, u32::from(service), now)
}

/// The counter of why [`claim`] took no stash.
#[inline(always)]
pub(crate) const fn refused(index: u32) -> Result<(), Counter> {
    match index {
        SHARE => Err(Counter::DropPendingShare),
        NONE => Err(Counter::DropNoStash),
        _ => Ok(()),
    }
}

/// No indices of stashes, but reasons why there is none: as many of the service's flows wait as may...
const SHARE: u32 = u32::MAX;
/// ...or all stashes are taken that the flow may have.
const NONE: u32 = u32::MAX - 1;

/// Takes a free stash, or one whose owner does not wait any more; failing that, one whose owner has only begun to speak, which is
/// ended. A service of which as many flows wait as may takes from those alone. Returns the index of the stash.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_claim_stash(flow: u32, hash: u32, service: u32, now: u32) -> u32 {
    let Some(settings) = settings() else { return NONE };
    let full = is_pending_full(service);
    let ends = if full { service & 0xffff } else { ANYBODY };
    let mut i = if full { WAYS } else { 0 };
    while i < 2 * WAYS {
        let ends = if i < WAYS { NOBODY_ENDS } else { ends };
        let index = hash.rotate_left(8).wrapping_add(i) & settings.stash_mask & 0xffff;
        let Some(stash) = STASHES.get_ptr_mut(index) else { break };
        let slot = Slot { stash, index: index as u16 };
        // SAFETY: a map value stays valid.
        unsafe {
            if usable(settings, slot, flow, now, ends) && compare_exchange(&raw mut (*stash).lock, 0, 1) == 0
            {
                // Only who has the lock changes the owner, and a flow that is being bound has it: what was seen without
                // it may be over, what is seen under it stays.
                if usable(settings, slot, flow, now, ends) && evict(slot) {
                    exchange(&raw mut (*stash).owner, owner(flow, now));
                    fill::<VIEWS>((&raw mut (*stash).views).cast(), 0);
                    // As `Tried::NONE`.
                    fill::<{ TRIED / 4 }>((&raw mut (*stash).tried).cast(), u64::MAX);
                    (*stash).tried_len = 0;
                    (*stash).pool = 0;
                    (*stash).hash = hash;
                    return index;
                }
                unlock(slot);
            }
        }
        i += 1;
    }
    if full { SHARE } else { NONE }
}

/// The word of a stash that says whose it is.
#[inline(always)]
fn held(slot: Slot) -> u64 {
    // SAFETY: a map value stays valid; the owner is one aligned word.
    unsafe { read(&raw const (*slot.stash).owner) }
}

/// Whether the flow in entry `flow` may have a stash: nobody has it, its owner has no use for it, or may be ended.
#[inline(always)]
fn usable(settings: &Settings, slot: Slot, flow: u32, now: u32, ends: u32) -> bool {
    let held = held(slot);
    if ends != NOBODY_ENDS && ends != ANYBODY {
        return is_awaiting(held, slot.index, ends);
    }
    held as u32 == 0
        || held as u32 == flow + 1
        || forsaken(settings, held, slot.index, now)
        || ends == ANYBODY && is_awaiting(held, slot.index, ends)
}

/// Whether the flow that holds a stash has no use for it: it is spliced, gone, or its backend stayed silent too long.
#[inline(always)]
fn forsaken(settings: &Settings, held: u64, index: u16, now: u32) -> bool {
    if is_over(settings.binding_ticks, (held >> 32) as u32, now) {
        return true;
    }
    match FLOWS.get((held as u32).wrapping_sub(1)) {
        Some(flow) => {
            flow.stash != index
                || flow.head.state == FlowState::Established as u8 && flow.client_flags & ACKNOWLEDGED == 0
                || flow.head.state == FlowState::Closing as u8
        }
        None => true,
    }
}

/// Whether the flow that holds a stash waits for the rest of its head: a weaker claim than that of one that has sent all of it. `of`: of
/// which service, or [`ANYBODY`].
#[inline(always)]
fn is_awaiting(held: u64, index: u16, of: u32) -> bool {
    FLOWS.get((held as u32).wrapping_sub(1)).is_some_and(|flow| {
        flow.stash == index
            && flow.head.state == FlowState::Awaiting as u8
            && (of == ANYBODY || u32::from(flow.head.service) == of)
    })
}

/// Ends the flow that holds a stash, which the caller has locked, if it waits for the rest of its head. Returns whether the stash is free.
#[inline(always)]
fn evict(slot: Slot) -> bool {
    let index = (held(slot) as u32).wrapping_sub(1);
    let Some(flow) = FLOWS.get_ptr_mut(index) else { return true };
    let entry = Entry { flow, index };
    let was = flows::head(entry);
    // SAFETY: a map value stays valid; its fields are plain integers.
    let (stash, flags) = unsafe { ((*flow).stash, (*flow).client_flags) };
    if was.state != FlowState::Awaiting as u8 || stash != slot.index {
        return true;
    }
    // What its client sends next begins anew, unless it was told that some of it had arrived.
    let is = if flags & ACKNOWLEDGED != 0 {
        Head { backend: FORGOTTEN, state: FlowState::Closing as u8, ..was }
    } else {
        Head::default()
    };
    let ended = flows::replace(entry, was, is);
    if ended {
        count(was.service, Counter::StashEvicted as u32);
    }
    ended
}

/// Lets others append.
#[inline(always)]
pub(crate) fn unlock(slot: Slot) {
    // SAFETY: a map value stays valid.
    unsafe { exchange(&raw mut (*slot.stash).lock, 0) };
}

/// Gives a stash back that was locked.
#[inline(always)]
pub(crate) fn release(slot: Slot) {
    // SAFETY: a map value stays valid.
    unsafe { exchange(&raw mut (*slot.stash).owner, 0) };
    unlock(slot);
}

/// The stash of a flow, if it still is the flow's.
#[inline(always)]
pub(crate) fn of(flow: u32, index: u16) -> Option<Slot> {
    if index == NO_STASH {
        return None;
    }
    let stash = STASHES.get_ptr_mut(u32::from(index))?;
    // SAFETY: a map value stays valid.
    let held = unsafe { read(&raw const (*stash).owner) };
    if held as u32 == flow.wrapping_add(1) { Some(Slot { stash, index }) } else { None }
}

/// Whether what was just read of a flow's stash, without its lock, was the flow's: nobody else has taken it.
#[inline(always)]
pub(crate) fn is_still(stash: &Stash, flow: u32) -> bool {
    // SAFETY: a map value stays valid, and programs may write to it; the owner is one aligned word.
    let held = unsafe { read_last((&raw const stash.owner).cast_mut()) } as u32;
    // Given back, it holds what it held until somebody takes it.
    held == flow.wrapping_add(1) || held == 0
}

/// Whether a payload that begins where a stash does goes on behind its first segment.
#[inline(always)]
pub(crate) fn is_exceeded(index: u16, payload: u32) -> bool {
    let Some(stash) = STASHES.get(u32::from(index)) else { return true };
    // SAFETY: a map value stays valid; a view is one aligned word.
    let first = View::from_bits(unsafe { read(&raw const stash.views[0]) });
    payload > u32::from(first.len)
}

/// How much of a client's stream is there without a gap, its FIN included, in whatever order it came.
#[inline(always)]
pub(crate) fn heard(index: u16) -> u32 {
    lb_heard(u32::from(index), 1)
}

/// The same, each FIN counted as `fin`. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_heard(index: u32, fin: u32) -> u32 {
    let Some(stash) = STASHES.get(index) else { return 0 };
    let mut end = 0;
    let mut i = 0;
    while i < VIEWS * VIEWS {
        let view = view_of(stash, i);
        let after = view.end() + if view.flags & VIEW_FIN != 0 { fin & 1 } else { 0 };
        if view.flags & VIEW_USED != 0 && u32::from(view.at) <= end && after > end {
            end = after;
        }
        i += 1;
    }
    end
}

/// View `i` of a stash, modulo their number.
#[inline(always)]
fn view_of(stash: &Stash, i: usize) -> View {
    // SAFETY: a map value stays valid; a view is one aligned word.
    View::from_bits(unsafe { read(&raw const stash.views[i & (VIEWS - 1)]) })
}

/// The segment that begins at an offset of the stream, as [`View::to_bits`]; without bytes where there is none. A global function
/// (see [`crate::cold`]): in the loop of its caller it would be verified again in each turn.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_view_at(index: u32, at: u32) -> u64 {
    let Some(stash) = STASHES.get(index) else { return 0 };
    let mut i = 0;
    while i < VIEWS {
        let view = view_of(stash, i);
        if view.flags & VIEW_USED != 0 && view.len != 0 && u32::from(view.at) == at {
            return view.to_bits();
        }
        i += 1;
    }
    0
}

/// How far what is there goes, gaps and FIN included.
#[inline(always)]
pub(crate) fn last(stash: &Stash) -> u32 {
    let mut last = 0;
    let mut i = 0;
    while i < VIEWS {
        // SAFETY: a map value stays valid; a view is one aligned word.
        let view = View::from_bits(unsafe { read(&raw const stash.views[i]) });
        let after = view.end() + u32::from(view.flags & VIEW_FIN != 0);
        if view.flags & VIEW_USED != 0 && after > last {
            last = after;
        }
        i += 1;
    }
    last
}

/// The stash of a flow, locked.
#[inline(always)]
pub(crate) fn lock(flow: u32, index: u16) -> Option<Slot> {
    let slot = of(flow, index)?;
    // SAFETY: a map value stays valid.
    unsafe {
        if compare_exchange(&raw mut (*slot.stash).lock, 0, 1) != 0 {
            return None;
        }
    }
    // Under the lock nobody can take it away.
    let still = of(flow, index);
    if still.is_none() {
        unlock(slot);
    }
    still
}

/// Whether a segment is part of one that a stash holds.
#[inline(always)]
pub(crate) fn is_held(slot: Slot, view: View) -> bool {
    // SAFETY: a map value stays valid; its views are read one word at a time.
    let stash = unsafe { &*slot.stash };
    let mut i = 0;
    while i < VIEWS {
        let held = view_of(stash, i);
        let ends_it = view.flags & !held.flags & VIEW_FIN == 0;
        if held.flags & VIEW_USED != 0 && held.at <= view.at && view.end() <= held.end() && ends_it {
            return true;
        }
        i += 1;
    }
    false
}

/// Publishes a segment that is not held: joined to the last view, in the place of one that begins at the same offset, or as a new
/// one. Returns whether there was room.
#[inline(always)]
pub(crate) fn publish(slot: Slot, view: View, mss: u32) -> bool {
    let mut last = 0_u64;
    let mut i = 0;
    while i < VIEWS {
        // SAFETY: a map value stays valid; a view is one aligned word.
        let word = unsafe { &raw mut (*slot.stash).views[i] };
        // SAFETY: as above.
        let held = unsafe { read(word) };
        let present = View::from_bits(held);
        if present.flags & VIEW_USED == 0 {
            let joined = if i > 0 { View::from_bits(last).join(view, mss) } else { None };
            match joined {
                Some(joined) => {
                    // SAFETY: i is at least 1 here; masked for the verifier.
                    let before = unsafe { &raw mut (*slot.stash).views[(i - 1) & (VIEWS - 1)] };
                    // SAFETY: as above.
                    unsafe { exchange(before, joined.to_bits()) };
                }
                // SAFETY: as above.
                None => unsafe {
                    exchange(word, view.to_bits());
                },
            }
            return true;
        }
        if present.at == view.at && present.len <= view.len {
            // SAFETY: as above.
            unsafe { exchange(word, view.to_bits()) };
            return true;
        }
        last = held;
        i += 1;
    }
    false
}
