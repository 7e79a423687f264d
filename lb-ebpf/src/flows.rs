//! The flow table: finding, claiming, expiring. See [`lb_common::flow`] for its shape.

use crate::atomic::{compare_exchange, exchange, read};
use crate::bounds::barrier_var;
use crate::maps::{FLOWS, OVERFLOWS, SERVICES, count, settings};
use crate::shares::{account, add_to, add_up, flows_of, is_full};
use lb_common::addr::{Addr, Be16};
use lb_common::counter::Counter;
use lb_common::flow::{DATAGRAMS, Flow, FlowState, GROUP, Head, RESERVE, first_group, other_group};
use lb_common::hash::flow_hash;
use lb_common::settings::{Settings, is_over};

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

/// Place `i` of the probing order in a group. The high bits of the hash say where to begin.
#[inline(always)]
fn place(group: u32, hash: u32, i: u32) -> u32 {
    group.wrapping_mul(GROUP as u32) + ((hash >> 29).wrapping_add(i) & (GROUP as u32 - 1))
}

/// The head of an entry as it is now, read as the one word that it is.
#[inline(always)]
fn head_of(flow: *mut Flow) -> u64 {
    // SAFETY: map values stay valid; the head is an aligned word.
    unsafe { read((&raw const (*flow).head).cast()) }
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
    let group = first_group(hash, settings.flow_group_mask);
    let mut i = 0;
    while i < GROUP as u32 {
        let index = place(group, hash, i);
        let flow = FLOWS.get_ptr_mut(index)?;
        // SAFETY: map values stay valid.
        if head_of(flow) as u32 == tail && unsafe { (*flow).client } == key.client {
            return Some(Entry { flow, index });
        }
        i += 1;
    }
    let index = lb_find_other(hash, tail, key.client.hi, key.client.lo);
    FLOWS.get_ptr_mut(index).map(|flow| Entry { flow, index })
}

/// Looks for a flow in its other group, if its first one has overflowed. Its index; beyond all of them when it is not there. The
/// client's address is `hi` and `lo`.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_find_other(hash: u32, tail: u32, hi: u64, lo: u64) -> u32 {
    let Some(settings) = settings() else { return u32::MAX };
    let mask = settings.flow_group_mask;
    let Some(overflows) = OVERFLOWS.get(first_group(hash, mask)) else { return u32::MAX };
    // SAFETY: a reference to a map value is aligned and valid.
    if unsafe { read(overflows) } == 0 {
        return u32::MAX;
    }
    let group = other_group(hash, mask);
    let mut i = 0;
    while i < GROUP as u32 {
        let index = place(group, hash, i);
        let Some(flow) = FLOWS.get_ptr_mut(index) else { break };
        // SAFETY: map values stay valid.
        let client = unsafe { (*flow).client };
        if head_of(flow) as u32 == tail && client.lo == lo && client.hi == hi {
            return index;
        }
        i += 1;
    }
    u32::MAX
}

/// Gives an entry its head that this processor has claimed: nobody else changes it, and it was not counted.
#[inline(always)]
pub(crate) fn publish(entry: Entry, head: Head) {
    // SAFETY: the head is an aligned word of a map value.
    unsafe { exchange((&raw mut (*entry.flow).head).cast(), head.to_bits()) };
    add_up(head, head.counted(), 1);
}

/// Gives an entry another head, but only if it has the one that was seen: otherwise somebody else has changed the flow, or has
/// the entry for another one by now. Returns whether it did.
#[inline(always)]
pub(crate) fn replace(entry: Entry, was: Head, head: Head) -> bool {
    let done = exchanged(entry, was, head);
    if done {
        account(was, head);
    }
    done
}

#[inline(always)]
fn exchanged(entry: Entry, was: Head, head: Head) -> bool {
    // SAFETY: the head is an aligned word of a map value.
    unsafe {
        let word = (&raw mut (*entry.flow).head).cast();
        compare_exchange(word, was.to_bits(), head.to_bits()) == was.to_bits()
    }
}

/// As [`replace`], of a flow that waits for a backend and is bound to one.
#[inline(always)]
pub(crate) fn bind(entry: Entry, was: Head, backend: u16) -> bool {
    const ADDED: u8 = FlowState::Awaiting.counted() ^ FlowState::Binding.counted();
    const _: () = assert!(FlowState::Awaiting.counted() & ADDED == 0);
    let head = Head { backend, state: FlowState::Binding as u8, ..was };
    let done = exchanged(entry, was, head);
    if done {
        add_up(head, ADDED, 1);
    }
    done
}

/// Who wants an entry.
#[derive(Clone, Copy)]
pub(crate) enum Claimant {
    /// A packet that anybody can have forged.
    Unproven = 0,
    /// A client whose address is its own.
    Proven = 1,
}

/// What an entry has while a processor fills it in.
const CLAIMED: Head = Head {
    client_port: Be16::new(0),
    service: 0,
    backend: 0,
    state: FlowState::Claimed as u8,
    window_shift: 0,
};

/// Takes an entry for a new flow: its `own` former one, if it was found, or what [`lb_claim`] finds. The entry is nobody's until its head is
/// published. Otherwise the counter of why there is none.
#[inline(always)]
pub(crate) fn claim(
    settings: &Settings,
    key: &Key,
    own: Option<Entry>,
    now: u32,
    claimant: Claimant,
) -> Result<Entry, Counter> {
    let index = match own {
        Some(entry) => {
            let was = head(entry);
            // What is claimed may become anything yet.
            let is_own = Head::key(was.client_port, was.service) == key.tail();
            let can_go = is_own && was.state != FlowState::Claimed as u8;
            if !can_go || !replace(entry, was, CLAIMED) {
                return Err(Counter::DropBusy);
            }
            entry.index
        }
        None => lb_claim(key.hash(settings), u32::from(key.service), claimant as u32, now),
    };
    if index >= REFUSED {
        return Err(match index {
            SHARE => Counter::DropFlowShare,
            BUSY => Counter::DropBusy,
            _ => Counter::DropFlowTableFull,
        });
    }
    let flow = FLOWS.get_ptr_mut(index).ok_or(Counter::DropFlowTableFull)?;
    // SAFETY: a map value stays valid, and the entry is ours.
    unsafe { (*flow).last_seen = now };
    Ok(Entry { flow, index })
}

/// No indices of the flow table, but reasons why there is none: the service has as many flows as it may...
const SHARE: u32 = u32::MAX;
/// ...both groups are full...
const FULL: u32 = u32::MAX - 1;
/// ...or another processor was faster.
const BUSY: u32 = u32::MAX - 2;
const REFUSED: u32 = BUSY;

/// Takes an entry for a flow that has none: a free or expired one in its first group, or in its other one where the first is nearly
/// full; failing that, of both groups, the one whose flow loses least (see [`lb_loss`]). A service that has as many flows as it may takes
/// from its own ones alone. Returns the index.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_claim(hash: u32, id: u32, proven: u32, now: u32) -> u32 {
    let (Some(settings), Some(service)) = (settings(), SERVICES.get(id)) else { return FULL };
    let mask = settings.flow_group_mask;
    let (first, other) = (first_group(hash, mask), other_group(hash, mask));
    let who = (id & 0xffff) | (proven & 1) << 16 | u32::from(is_full(service, id)) << 17;
    let mut group = first;
    let mut best = lb_survey(first, hash, who, now);
    if room(best) <= RESERVE {
        let there = lb_survey(other, hash, who, now);
        // More room, or, where neither has any, who loses less.
        if there & !PLACE > best & !PLACE {
            (group, best) = (other, there);
        }
    }
    if best >> RANK == 0 {
        return if who >> 17 != 0 { SHARE } else { FULL };
    }
    if group != first {
        // Before anybody can look for it there.
        add_to(OVERFLOWS.get_ptr_mut(first), 1);
    }
    let index = group.wrapping_mul(GROUP as u32) + (best as u32 & PLACE as u32);
    let Some(flow) = FLOWS.get_ptr_mut(index) else { return FULL };
    let entry = Entry { flow, index };
    let was = head(entry);
    // What was seen may be over; what is seen behind the head holds for as long as the head stays.
    let is_free = was.state == FlowState::Free as u8 && who >> 17 == 0;
    let rank = if is_free { FREE } else { (lb_loss(index, who, now) >> RANK) as u32 };
    if rank == 0 || !replace(entry, was, CLAIMED) {
        return BUSY;
    }
    if rank < CLOSING {
        count(was.service, Counter::FlowEvicted as u32);
    }
    index
}

/// Where the rank stands in what [`lb_survey`] and [`lb_loss`] say; below it, how many entries are free, ticks since the flow
/// was heard of, and the place in the group.
const RANK: u32 = 56;
const ROOM: u32 = 48;
const AGE: u32 = 8;
const PLACE: u64 = GROUP as u64 - 1;

#[inline(always)]
const fn room(group: u64) -> u32 {
    (group >> ROOM) as u32 & 0xff
}

/// Of a group, how many entries are free for a new flow, counted until they are more than [`RESERVE`], and the first of these, or else the one whose flow loses least. `who`: the flow's
/// service, bit 16 where its client is proven, bit 17 where its service may take from its own flows alone.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_survey(group: u32, hash: u32, who: u32, now: u32) -> u64 {
    let (mut best, mut room) = (0, 0);
    let mut i = 0;
    while i < GROUP as u32 {
        // Unrolled, the loop would take more stack than there is.
        i = barrier_var(u64::from(i)) as u32;
        let index = place(group, hash, i);
        let Some(flow) = FLOWS.get_ptr_mut(index) else { break };
        // The common case, without a call.
        let is_free = Head::from_bits(head_of(flow)).state == FlowState::Free as u8 && who >> 17 == 0;
        let loss = if is_free { u64::from(FREE) << RANK } else { lb_loss(index, who, now) };
        room += loss >> (RANK + FREE.trailing_zeros()) & 1;
        // The first of equals.
        if loss > best & !PLACE {
            best = loss | u64::from(index) & PLACE;
        }
        // As many as are asked for.
        if room > u64::from(RESERVE) {
            break;
        }
        i += 1;
    }
    best | room << ROOM
}

/// Ranks of what makes room at once: what is free or has expired...
const FREE: u32 = 8;
/// ...and what is closing.
const CLOSING: u32 = 7;

/// How readily an entry is given to a new flow, and for how many ticks its present one was not heard of: of equals the one goes that
/// was not heard of longest. 0: not at all. `who` is that of [`lb_survey`].
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_loss(index: u32, who: u32, now: u32) -> u64 {
    let (Some(settings), Some(flow)) = (settings(), FLOWS.get_ptr_mut(index)) else { return 0 };
    let head = Head::from_bits(head_of(flow));
    let (own, proven, full) =
        (u32::from(head.service) == who & 0xffff, who & 1 << 16 != 0, who & 1 << 17 != 0);
    if full && !own {
        return 0;
    }
    if head.state == FlowState::Free as u8 {
        return u64::from(FREE) << RANK;
    }
    // SAFETY: map values stay valid; the fields are plain integers.
    let (flags, backend_flags, last_seen) =
        unsafe { ((*flow).client_flags, (*flow).backend_flags, (*flow).last_seen) };
    let Some(lifetime) = settings.lifetime(head.state, flags, backend_flags) else { return 0 };
    if is_over(lifetime, last_seen, now) {
        return u64::from(FREE) << RANK;
    }
    let age = now.wrapping_sub(last_seen);
    let age = if (age as i32) < 0 { 0 } else { age };
    let idle = age > settings.evictable_ticks;
    let rank = match FlowState::from_bits(head.state) {
        FlowState::Closing => CLOSING,
        // Of two services the one that has more gives way, so that a flood takes its own places.
        FlowState::Opening if own => 5,
        FlowState::Opening if flows_of(head.service.into()) > flows_of(who & 0xffff) => 6,
        FlowState::Opening => 4,
        // Its client's address is its own, so no packet of which that is not known takes its place.
        FlowState::Awaiting if own || proven => 3,
        _ if idle => 2,
        // Its client's next datagram makes it again.
        FlowState::Established if own && flags & DATAGRAMS != 0 => 1,
        _ => 0,
    };
    if rank == 0 { 0 } else { u64::from(rank) << RANK | u64::from(age) << AGE }
}
