//! The flow table: finding, claiming, expiring. See [`lb_common::flow`] for its shape.

use crate::atomic::{add, compare_exchange, exchange};
use crate::maps::{FLOWS, LIVE, count, settings};
use lb_common::addr::{Addr, Be16};
use lb_common::counter::Counter;
use lb_common::flow::{DATAGRAMS, Flow, FlowState, GROUP, Head};
use lb_common::hash::flow_hash;
use lb_common::settings::Settings;

/// An entry of the table and where it stands.
#[derive(Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) flow: *mut Flow,
    pub(crate) index: u32,
}

/// Who a flow belongs to.
#[derive(Clone, Copy)]
pub(crate) struct Key {
    pub(crate) client: Addr,
    pub(crate) port: Be16,
    pub(crate) service: u16,
}

impl Key {
    #[inline(always)]
    pub(crate) fn tail(&self) -> u32 {
        Head::key(self.port, self.service)
    }

    #[inline(always)]
    pub(crate) fn hash(&self, settings: &Settings) -> u32 {
        flow_hash(&settings.flow_seed, self.client, self.tail())
    }
}

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

/// Place `i` of the probing order in the group of a hash. The low bits name the group, the high ones where to begin.
#[inline(always)]
fn place(settings: &Settings, hash: u32, i: u32) -> u32 {
    let group = (hash & settings.flow_group_mask).wrapping_mul(GROUP as u32);
    group + ((hash >> 29).wrapping_add(i) & (GROUP as u32 - 1))
}

/// The head of an entry as it is now, read as the one word that it is.
#[inline(always)]
fn head_of(flow: *mut Flow) -> u64 {
    // SAFETY: map values stay valid; the head is an aligned word.
    unsafe { core::ptr::read_volatile((&raw const (*flow).head).cast()) }
}

/// The head of an entry as it is now.
#[inline(always)]
pub(crate) fn head(entry: Entry) -> Head {
    Head::from_bits(head_of(entry.flow))
}

/// Finds a flow.
#[inline(always)]
pub(crate) fn find(settings: &Settings, key: &Key) -> Option<Entry> {
    let (hash, tail) = (key.hash(settings), key.tail());
    let mut i = 0;
    while i < GROUP as u32 {
        let index = place(settings, hash, i);
        let flow = FLOWS.get_ptr_mut(index)?;
        // SAFETY: map values stay valid.
        if head_of(flow) as u32 == tail && unsafe { (*flow).client } == key.client {
            return Some(Entry { flow, index });
        }
        i += 1;
    }
    None
}

/// Gives an entry another head, whatever it has.
#[inline(always)]
pub(crate) fn publish(entry: Entry, head: Head) {
    // SAFETY: the head is an aligned word of a map value.
    let was = unsafe { exchange((&raw mut (*entry.flow).head).cast(), head.to_bits()) };
    account(Head::from_bits(was), head);
}

/// Gives an entry another head, but only if it has the one that was seen: otherwise somebody else has changed the flow, or has
/// the entry for another one by now. Returns whether it did.
#[inline(always)]
pub(crate) fn replace(entry: Entry, was: Head, head: Head) -> bool {
    // SAFETY: the head is an aligned word of a map value.
    let done = unsafe {
        let word = (&raw mut (*entry.flow).head).cast();
        compare_exchange(word, was.to_bits(), head.to_bits()) == was.to_bits()
    };
    if done {
        account(was, head);
    }
    done
}

/// Keeps count of the live flows of backends.
#[inline(always)]
fn account(was: Head, is: Head) {
    let before = FlowState::from_bits(was.state).is_live();
    let after = FlowState::from_bits(is.state).is_live();
    if before && after && was.backend == is.backend {
        return;
    }
    if before {
        add_live(was.backend, u64::MAX);
    }
    if after {
        add_live(is.backend, 1);
    }
}

#[inline(always)]
fn add_live(slot: u16, more: u64) {
    if let Some(live) = LIVE.get_ptr_mut(u32::from(slot)) {
        // SAFETY: an aligned map value that stays valid.
        unsafe { add(live, more) };
    }
}

/// How many flows live at a backend.
#[inline(always)]
pub(crate) fn live(slot: u16) -> u64 {
    // SAFETY: a reference to a map value is aligned and valid.
    let live = LIVE.get(u32::from(slot)).map_or(0, |live| unsafe { core::ptr::read_volatile(live) });
    // Between an end and its beginning on two processors it may be less than nothing.
    if (live as i64) < 0 { 0 } else { live }
}

/// Whether an entry's flow may be forgotten.
#[inline(always)]
fn expired(settings: &Settings, head: Head, client_flags: u8, last_seen: u32, now: u32) -> bool {
    let limit = match FlowState::from_bits(head.state) {
        FlowState::Free => return true,
        // Some processor is filling it in, which takes less than a microsecond: two would share the entry.
        FlowState::Claimed => return false,
        FlowState::Binding | FlowState::Opening | FlowState::Awaiting => settings.binding_ticks,
        FlowState::Established => settings.idle_ticks_of(client_flags),
        FlowState::Closing => settings.closing_ticks,
    };
    is_over(limit, last_seen, now)
}

/// Whether more than `limit` ticks lie between `then` and `now`. Signed: another processor may have written a tick that
/// began after this one has read the clock, and that is no age at all.
#[inline(always)]
pub(crate) const fn is_over(limit: u32, then: u32, now: u32) -> bool {
    now.wrapping_sub(then) as i32 > limit as i32
}

/// Takes an entry for a new flow: the flow's own former one, a free one, or one that has expired; failing that, one that
/// is closing or that its client has not confirmed; failing that, one of datagrams, which their client's next one makes again.
/// The entry is nobody's until its head is published. `None`: the group is full of live connections.
#[inline(always)]
pub(crate) fn claim(settings: &Settings, key: &Key, now: u32) -> Option<Entry> {
    const CLAIMED: Head = Head {
        client_port: Be16::new(0),
        service: 0,
        backend: 0,
        state: FlowState::Claimed as u8,
        window_shift: 0,
    };
    let hash = key.hash(settings);
    let mut choice: Option<(Entry, u64)> = find(settings, key).map(|entry| (entry, head_of(entry.flow)));
    let mut i = 0;
    while choice.is_none() && i < GROUP as u32 {
        let index = place(settings, hash, i);
        let flow = FLOWS.get_ptr_mut(index)?;
        let head = head_of(flow);
        // SAFETY: map values stay valid; the fields are plain integers.
        let (flags, last_seen) = unsafe { ((*flow).client_flags, (*flow).last_seen) };
        if expired(settings, Head::from_bits(head), flags, last_seen, now) {
            choice = Some((Entry { flow, index }, head));
        }
        i += 1;
    }
    let mut evicts = false;
    if choice.is_none() {
        let index = lb_victim(hash, now);
        let flow = FLOWS.get_ptr_mut(index)?;
        let head = head_of(flow);
        let state = Head::from_bits(head).state;
        evicts = state != FlowState::Closing as u8;
        // SAFETY: map values stay valid; the flags are a plain integer.
        if rank(state, unsafe { (*flow).client_flags }) != 0 {
            choice = Some((Entry { flow, index }, head));
        }
    }
    let (entry, seen) = choice?;
    let was = Head::from_bits(seen);
    if !replace(entry, was, CLAIMED) {
        return None;
    }
    if evicts {
        count(was.service, Counter::FlowEvicted as u32);
    }
    // SAFETY: a map value stays valid, and the entry is ours.
    unsafe { (*entry.flow).last_seen = now };
    Some(entry)
}

/// Of the flows of a full group the one that loses least: one that is closing, else one that only begins, else the one of datagrams
/// that was not heard of longest. Its index; beyond all of them when nobody can go.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_victim(hash: u32, now: u32) -> u32 {
    let Some(settings) = settings() else { return u32::MAX };
    let (mut best, mut victim) = (0, u32::MAX);
    let mut i = 0;
    while i < GROUP as u32 {
        let index = place(settings, hash, i);
        let Some(flow) = FLOWS.get_ptr_mut(index) else { break };
        let state = Head::from_bits(head_of(flow)).state;
        // SAFETY: map values stay valid; the fields are plain integers.
        let (flags, last_seen) = unsafe { ((*flow).client_flags, (*flow).last_seen) };
        let age = now.wrapping_sub(last_seen);
        let age = if (age as i32) < 0 { 0 } else { u64::from(age) };
        let rank = u64::from(rank(state, flags)) << 32;
        if rank != 0 && rank + age >= best {
            best = rank + age;
            victim = index;
        }
        i += 1;
    }
    victim
}

/// How readily a flow that has not expired makes room: 0 is not at all.
#[inline(always)]
fn rank(state: u8, flags: u8) -> u32 {
    match FlowState::from_bits(state) {
        FlowState::Closing => 3,
        FlowState::Opening | FlowState::Awaiting => 2,
        FlowState::Established if flags & DATAGRAMS != 0 => 1,
        _ => 0,
    }
}
