//! Delayed binding: the first payload chooses a backend, which gets a SYN; more payload waits in the stash.

use crate::asked;
use crate::cold::{self, Parsed};
use crate::flows::{self, Entry, Key};
use crate::maps::{FLOWS, SERVICES, STASHES, count, count_backend, settings};
use crate::offer::{lb_refuse, offer};
use crate::packet::Segment;
use crate::select::{ANOTHER, choose, decided, lb_choose};
use crate::stash::{self, Slot, TIMESTAMPS};
use crate::token::{self, ABSENT, INVALID};
use crate::unavailable::{self, lb_unavailable};
use crate::verdict::{Verdict, consume};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::addr::Be16;
use lb_common::counter::Counter;
use lb_common::flow::{FIN_SEEN, Flow, FlowState, Head, NO_STASH, SYN_REPEATED};
use lb_common::maglev::{NOBODY, client_hash};
use lb_common::service::{Affinity, Service};
use lb_common::settings::Settings;
use lb_common::stash::{STASH_BYTES, Stash, View};
use lb_common::syn_cookie::Agreed;
use lb_common::tcp::{FIN, RST};

/// The first payload of a proven client: stash it, make a flow, choose, and turn the packet into a SYN to the backend.
#[inline(always)]
pub(crate) fn begin(ctx: &XdpContext, service: u16) -> Verdict {
    let bits = lb_bind(ctx.ctx, u32::from(service));
    if is_stashed(bits) { place(ctx, service, bits, FIRST) } else { Verdict::from_bits(bits) }
}

/// Chooses a backend for a flow whose first payload [`stashed`] says where it is, in a stash that this processor has locked,
/// and turns the packet into the SYN that it gets. `part` is [`FIRST`] or [`LAST`].
#[inline(always)]
pub(crate) fn place(ctx: &XdpContext, service: u16, stashed: u64, part: u32) -> Verdict {
    let flow = stashed as u32;
    match lb_place(u32::from(service), flow, (stashed >> 32) as u32 & 0xffff, part) {
        CHOSEN => offer(ctx, flow, Counter::Bound),
        NOBODY_READY => Verdict::from_bits(lb_refuse(ctx.ctx)),
        UNAVAILABLE => Verdict::from_bits(lb_unavailable(ctx.ctx, u32::from(service), flow)),
        bits => Verdict::from_bits(bits),
    }
}

/// Not a verdict: the flow at an index has its first payload in the stash at another one, which is left locked.
#[inline(always)]
const fn stashed(flow: u32, stash: u16) -> u64 {
    STASHED << 48 | (stash as u64) << 32 | flow as u64
}

/// In the top bits, where a verdict has zeros.
const STASHED: u64 = 0x8000;

/// Whether something is no verdict, but from [`stashed`].
#[inline(always)]
pub(crate) const fn is_stashed(bits: u64) -> bool {
    bits >> 48 == STASHED
}

/// Takes a flow and a stash for a first payload. The flow has no backend yet, and the stash is left locked. A global function
/// (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_bind(ctx: *mut xdp_md, service: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let Some(settings) = settings() else { return consume(Counter::DropNoService).to_bits() };
    let Some(Parsed { key, segment, .. }) = cold::parse(&ctx, service) else {
        return consume(Counter::DropTruncated).to_bits();
    };
    bind(&ctx, settings, &key, &segment)
}

#[inline(always)]
fn bind(ctx: &XdpContext, settings: &Settings, key: &Key, segment: &Segment) -> u64 {
    let now = flows::now(settings);
    let Some(entry) = flows::claim(settings, key, now) else {
        return consume(Counter::DropFlowTableFull).to_bits();
    };
    let hash = key.hash(settings);
    let Some(slot) = stash::claim(settings, entry.index, hash, now) else {
        free(entry);
        return consume(Counter::DropNoStash).to_bits();
    };
    if !stash::keep_first(ctx, slot, segment) {
        stash::release(slot);
        free(entry);
        return consume(Counter::DropStashFull).to_bits();
    }
    // SAFETY: a map value stays valid, and this processor has its lock.
    unsafe { (*slot.stash).hash = hash };
    fill(ctx, entry, key, segment, now, slot.index);
    if segment.flags & FIN != 0 {
        // SAFETY: a map value; the entry is nobody else's before its head is published.
        unsafe { (*entry.flow).client_flags |= FIN_SEEN };
    }
    // Whoever finds it meanwhile also finds the stash locked.
    set_head(entry, key, NOBODY, FlowState::Awaiting);
    stashed(entry.index, slot.index)
}

/// What is stashed of a flow whose backend is to be chosen: its first segment...
pub(crate) const FIRST: u32 = 0;
/// ...or all that there will be.
pub(crate) const LAST: u32 = 1;

/// Not verdicts: a backend is chosen...
const CHOSEN: u64 = u64::MAX;
/// ...or none is ready, which the client is to be told.
const NOBODY_READY: u64 = u64::MAX - 1;
/// ...in a way that it understands.
const UNAVAILABLE: u64 = u64::MAX - 2;

/// Chooses the backend of a flow that waits for one, by what is stashed, and unlocks the stash. A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_place(service: u32, flow: u32, stash: u32, part: u32) -> u64 {
    let (Some(known), Some(entry)) = (FLOWS.get_ptr_mut(flow), SERVICES.get(service)) else {
        return consume(Counter::DropNoService).to_bits();
    };
    let place = Entry { flow: known, index: flow };
    // SAFETY: a map value stays valid; its fields are plain integers.
    let known = unsafe { &*known };
    let index = stash;
    let Some(stash) = STASHES.get_ptr_mut(index) else { return consume(Counter::DropBusy).to_bits() };
    let slot = Slot { stash, index: index as u16 };
    let was = flows::head(place);
    if was.state != FlowState::Awaiting as u8 || was.service != service as u16 || known.stash != slot.index {
        // Its client has reset it meanwhile, on another processor.
        stash::release(slot);
        return consume(Counter::DropBusy).to_bits();
    }
    let found = token::find(entry, service, index);
    if entry.affinity == Affinity::Source as u8 {
        // SAFETY: a map value stays valid, and this processor has its lock.
        unsafe { (*stash).hash = client_hash(known.client, Be16::new(0)) };
    }
    if found == ABSENT && token::lb_is_whole(service, index) == 0 {
        if part == FIRST && known.client_flags & FIN_SEEN == 0 && is_full(entry, known, stash) {
            stash::unlock(slot);
            return consume(Counter::HeadAwaited).to_bits();
        }
        count(service as u16, Counter::HeadIncomplete as u32);
    }
    if found == INVALID {
        count(service as u16, Counter::InvalidToken as u32);
    }
    // SAFETY: a map value stays valid, and this processor has its lock.
    let stash = unsafe { &mut *stash };
    let key = Key { client: known.client, port: was.client_port, service: service as u16 };
    let chosen = choose(stash, index, key.service, found);
    if chosen == u32::from(NOBODY) {
        decided(&key, NOBODY, found, stash.reason);
        let (heard, stamp) = (known.client_isn.wrapping_add(1).wrapping_add(stash.limit), stash.ts_base);
        stash::release(slot);
        if unavailable::speaks_http(entry) && unavailable::keep(place, was, heard, stamp) {
            return UNAVAILABLE;
        }
        end(place, was);
        return NOBODY_READY;
    }
    let chosen = chosen as u16;
    stash::note_tried(slot.stash, chosen);
    let head = Head { backend: chosen, state: FlowState::Binding as u8, ..was };
    let bound = flows::replace(place, was, head);
    stash::unlock(slot);
    if !bound {
        // Its client has reset it meanwhile.
        return consume(Counter::DropBusy).to_bits();
    }
    decided(&key, chosen, found, stash.reason);
    CHOSEN
}

/// Whether a first segment was as long as one may be, so that more is sure to follow without having been asked for.
#[inline(always)]
fn is_full(service: &Service, flow: &Flow, stash: *const Stash) -> bool {
    // SAFETY: a map value stays valid, and this processor has its lock.
    let stash = unsafe { &*stash };
    let agreed = u32::from(Agreed::of(flow.cookie).mss());
    let mss = if agreed < u32::from(service.mss) { agreed } else { u32::from(service.mss) };
    stash.limit >= mss.wrapping_sub(if stash.has_timestamps != 0 { TIMESTAMPS } else { 0 })
}

/// Writes all of a claimed entry but its head.
#[inline(always)]
fn fill(ctx: &XdpContext, entry: Entry, key: &Key, segment: &Segment, now: u32, stash: u16) {
    // SAFETY: the entry was claimed, nobody else reads or writes it before its head is published.
    let flow = unsafe { &mut *entry.flow };
    flow.client = key.client;
    flow.seq_delta = 0;
    flow.ts_delta = 0;
    flow.cookie = segment.ack.wrapping_sub(1);
    flow.client_isn = segment.seq.wrapping_sub(1);
    flow.client_mac = segment.src_mac;
    flow.local_mac = segment.dst_mac;
    flow.client_ifindex = ctx.ingress_ifindex() as u32;
    flow.last_seen = now;
    flow.stash = stash;
    flow.client_flags = asked::begin(key.service, entry.index, segment.seq);
    flow.backend_flags = 0;
}

/// Publishes a flow under its key.
#[inline(always)]
pub(crate) fn set_head(entry: Entry, key: &Key, backend: u16, state: FlowState) {
    flows::publish(
        entry,
        Head { client_port: key.port, service: key.service, backend, state: state as u8, window_shift: 0 },
    );
}

/// Makes a claimed entry free again.
#[inline(always)]
pub(crate) fn free(entry: Entry) {
    // SAFETY: a map value stays valid.
    unsafe { (*entry.flow).stash = NO_STASH };
    flows::publish(entry, Head::default());
}

/// Frees the entry of a flow, but only if it is as it was seen. Returns whether it was.
#[inline(always)]
pub(crate) fn end(entry: Entry, was: Head) -> bool {
    flows::replace(entry, was, Head::default())
}

/// Not a verdict: the flow has just been spliced, so the segment goes the ordinary way.
pub(crate) const ESTABLISHED: u64 = u64::MAX;

/// Something from the client while its backend has not answered: more payload is stashed; payload that is there already
/// is a retransmission, the sign that the backend is silent. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_more(ctx: *mut xdp_md, service: u32, flow: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let Some(Parsed { key, segment, .. }) = cold::parse(&ctx, service) else {
        return consume(Counter::DropTruncated).to_bits();
    };
    let Some(place) = FLOWS.get_ptr_mut(flow) else { return consume(Counter::DropBusy).to_bits() };
    more(&ctx, &key, Entry { flow: place, index: flow }, &segment)
}

#[inline(always)]
fn more(ctx: &XdpContext, key: &Key, entry: Entry, segment: &Segment) -> u64 {
    // SAFETY: a map value stays valid; its fields are plain integers.
    let flow = unsafe { &*entry.flow };
    let at = segment.seq.wrapping_sub(flow.client_isn).wrapping_sub(1);
    if segment.flags & RST != 0 {
        if at > STASH_BYTES as u32 + 1 {
            // Outside of all that the client can have sent: of a former connection, or forged (RFC 5961 §3.2).
            return consume(Counter::DropUnknownRst).to_bits();
        }
        // The client gave up: so does the flow. The backend's SYN-ACK will find nobody and be reset.
        match stash::lock(entry.index, flow.stash) {
            Some(slot) if end(entry, flows::head(entry)) => stash::release(slot),
            Some(slot) => stash::unlock(slot),
            // Another processor is at it; the client is reset soon enough.
            None if stash::of(entry.index, flow.stash).is_some() => {
                return consume(Counter::DropBusy).to_bits();
            }
            None => {
                end(entry, flows::head(entry));
            }
        }
        return consume(Counter::ClientReset).to_bits();
    }
    if segment.payload == 0 && segment.flags & FIN == 0 {
        return consume(Counter::DropBinding).to_bits();
    }
    let Some(service) = SERVICES.get(u32::from(key.service)) else {
        return consume(Counter::DropNoService).to_bits();
    };
    let Some(slot) = stash::lock(entry.index, flow.stash) else {
        let was = flows::head(entry);
        let waits = was.state == FlowState::Binding as u8 || was.state == FlowState::Awaiting as u8;
        if waits && stash::of(entry.index, flow.stash).is_none() {
            // It waited so long that another flow has its stash. What the client sends next begins anew.
            end(entry, was);
        }
        return consume(Counter::DropBusy).to_bits();
    };
    // SAFETY: a map value stays valid, and this processor has its lock.
    let stash = unsafe { &mut *slot.stash };
    let seen = View::from_bits(stash.views[0]);
    // As it is now that nobody else has the lock.
    let awaiting = flows::head(entry).state == FlowState::Awaiting as u8;
    if at == 0 && segment.payload != 0 && seen.len as u32 >= segment.payload {
        if awaiting {
            // It goes on, but not before this is acknowledged.
            return stashed(entry.index, slot.index);
        }
        let verdict = again(ctx, key, entry, flow, slot, stash, service);
        stash::unlock(slot);
        return verdict.to_bits();
    }
    let kept = stash::lb_keep(ctx.ctx, u32::from(key.service), u32::from(slot.index), at);
    if awaiting && kept != 0 && at <= stash.limit {
        if segment.flags & FIN != 0 {
            // SAFETY: a map value stays valid.
            unsafe { (*entry.flow).client_flags |= FIN_SEEN };
        }
        // Something within what is there already adds nothing to be searched.
        stash.limit = stash.limit.max(at + segment.payload);
        return stashed(entry.index, slot.index);
    }
    stash::unlock(slot);
    if kept == 0 {
        return consume(Counter::DropStashFull).to_bits();
    }
    if segment.flags & FIN != 0 {
        // The joint forwards it with the rest.
        // SAFETY: a map value stays valid.
        unsafe { (*entry.flow).client_flags |= FIN_SEEN };
    }
    // The joint may have read the stash before this was there: then the segment goes the ordinary way as well.
    // SAFETY: as above; the state is read anew after the exchange that published the segment.
    let state = unsafe { core::ptr::read_volatile(&raw const (*entry.flow).head.state) };
    if state == FlowState::Established as u8 {
        return ESTABLISHED;
    }
    consume(Counter::Stashed).to_bits()
}

/// The client repeats itself because the backend is silent. The first time the same backend gets its SYN again, which
/// may have been lost; after that another one is chosen.
#[inline(always)]
fn again(
    ctx: &XdpContext,
    key: &Key,
    entry: Entry,
    flow: &Flow,
    slot: Slot,
    stash: &Stash,
    service: &Service,
) -> Verdict {
    if flow.client_flags & SYN_REPEATED == 0 {
        // SAFETY: a map value stays valid.
        unsafe { (*entry.flow).client_flags |= SYN_REPEATED };
    } else {
        // Where nobody else is left, the one there is is asked again.
        next(key, entry, flow.head, slot, stash, service);
    }
    offer(ctx, entry.index, Counter::SynRepeated)
}

/// Whether a backend was chosen because a session lives there; or was, and refused.
#[inline(always)]
const fn is_claimed(reason: u32) -> bool {
    reason == Counter::AffinityHit as u32
        || reason == Counter::StaleInstance as u32
        || reason == Counter::Rejected as u32
}

/// Gives the flow to the next backend that was not tried, within the service's bound. Returns whether there is one.
#[inline(always)]
pub(crate) fn next(key: &Key, entry: Entry, was: Head, slot: Slot, stash: &Stash, service: &Service) -> bool {
    count_backend(was.backend, |counters| counters.failed += 1);
    if service.strict != 0 && is_claimed(stash.reason) {
        // Its session lives there, and nowhere else.
        if stash.reason != Counter::Rejected as u32 {
            decided(key, NOBODY, ABSENT, Counter::Rejected as u32);
        }
        // SAFETY: a map value stays valid, and the caller has its lock.
        unsafe { (&raw mut (*slot.stash).reason).write_volatile(Counter::Rejected as u32) };
        return false;
    }
    if stash.tried_len >= u32::from(service.max_tries) {
        return false;
    }
    let chosen = lb_choose(u32::from(slot.index), u32::from(key.service), ANOTHER);
    if chosen == u32::from(NOBODY) {
        return false;
    }
    let chosen = chosen as u16;
    // Only a flow that is as it was seen may be given to another: the backend's answer may just have been spliced.
    let head = Head { backend: chosen, state: FlowState::Binding as u8, window_shift: 0, ..was };
    if !flows::replace(entry, was, head) {
        return false;
    }
    // SAFETY: a map value stays valid.
    unsafe { (*entry.flow).client_flags &= !SYN_REPEATED };
    stash::note_tried(slot.stash, chosen);
    decided(key, chosen, ABSENT, Counter::Retried as u32);
    true
}
