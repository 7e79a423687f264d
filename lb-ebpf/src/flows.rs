//! The flow table: finding, claiming, expiring. See [`lb_common::flow`] for its shape.

use crate::atomic::compare_exchange;
use crate::maps::{FLOWS, count};
use lb_common::addr::{Addr, Be16};
use lb_common::counter::Counter;
use lb_common::flow::{Flow, FlowState, GROUP, Head};
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

/// Whether an entry's flow may be forgotten.
#[inline(always)]
fn expired(settings: &Settings, head: Head, last_seen: u32, now: u32) -> bool {
    let limit = match FlowState::from_bits(head.state) {
        FlowState::Free => return true,
        // Some processor is filling it in, which takes less than a microsecond: two would share the entry.
        FlowState::Claimed => return false,
        FlowState::Binding | FlowState::Opening => settings.binding_ticks,
        FlowState::Established => settings.idle_ticks,
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
/// is closing or that its client has not confirmed. The entry is nobody's until its head is published. `None`: the group is full of live flows.
#[inline(always)]
pub(crate) fn claim(settings: &Settings, key: &Key, now: u32) -> Option<Entry> {
    const CLAIMED: u64 = Head {
        client_port: Be16::new(0),
        service: 0,
        backend: 0,
        state: FlowState::Claimed as u8,
        window_shift: 0,
    }
    .to_bits();
    let hash = key.hash(settings);
    let mut choice: Option<(Entry, u64)> = find(settings, key).map(|entry| (entry, head_of(entry.flow)));
    let mut i = 0;
    while choice.is_none() && i < GROUP as u32 {
        let index = place(settings, hash, i);
        let flow = FLOWS.get_ptr_mut(index)?;
        let head = head_of(flow);
        // SAFETY: map values stay valid.
        if expired(settings, Head::from_bits(head), unsafe { (*flow).last_seen }, now) {
            choice = Some((Entry { flow, index }, head));
        }
        i += 1;
    }
    let mut i = 0;
    while choice.is_none() && i < GROUP as u32 {
        let index = place(settings, hash, i);
        let flow = FLOWS.get_ptr_mut(index)?;
        let head = head_of(flow);
        let state = Head::from_bits(head).state;
        if state == FlowState::Closing as u8 || state == FlowState::Opening as u8 {
            if state == FlowState::Opening as u8 {
                count(key.service, Counter::FlowEvicted as u32);
            }
            choice = Some((Entry { flow, index }, head));
        }
        i += 1;
    }
    let (entry, seen) = choice?;
    // SAFETY: the head is an aligned word of a map value.
    unsafe {
        if compare_exchange((&raw mut (*entry.flow).head).cast(), seen, CLAIMED) != seen {
            return None;
        }
        (*entry.flow).last_seen = now;
    }
    Some(entry)
}
