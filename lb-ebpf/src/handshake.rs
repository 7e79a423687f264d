//! Delayed binding: the first payload chooses a backend, which gets a SYN; more payload waits in the stash.

use crate::cold::{self, Parsed};
use crate::flows::{self, Entry, Key};
use crate::from_backend::settle;
use crate::maps::{FLOWS, SERVICES, count, count_backend, settings};
use crate::offer::{lb_refuse, offer};
use crate::packet::Segment;
use crate::select::{ANOTHER, choose, lb_choose};
use crate::stash::{self, Slot};
use crate::token::{INVALID, http};
use crate::verdict::{Verdict, consume};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::counter::Counter;
use lb_common::flow::{FIN_SEEN, Flow, FlowState, Head, NO_STASH, RESCALE_CLIENT, SYN_REPEATED};
use lb_common::maglev::NOBODY;
use lb_common::service::Service;
use lb_common::settings::Settings;
use lb_common::stash::{STASH_BYTES, Stash, View};
use lb_common::tcp::{FIN, RST};

/// The first payload of a proven client: choose, stash, make a flow, and turn the packet into a SYN to the backend.
#[inline(always)]
pub(crate) fn begin(ctx: &XdpContext, service: u16) -> Verdict {
    let bits = lb_bind(ctx.ctx, u32::from(service));
    if bits >> 32 == CHOSEN {
        return offer(ctx, bits as u32, Counter::Bound);
    }
    Verdict::from_bits(if bits == NOBODY_READY { lb_refuse(ctx.ctx) } else { bits })
}

/// Not a verdict, in the high half of one: a backend was chosen for the flow whose index is in the low half.
const CHOSEN: u64 = 0xffff_fffe;

/// All of that but the SYN. A global function (see [`crate::cold`]).
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
    let stash = unsafe { &mut *slot.stash };
    stash.hash = hash;
    let index = u32::from(slot.index);
    let found = http::find(u32::from(key.service), index);
    if found == INVALID {
        count(key.service, Counter::InvalidToken as u32);
    }
    let chosen = choose(stash, index, key.service, found);
    if chosen == u32::from(NOBODY) {
        stash::release(slot);
        free(entry);
        return NOBODY_READY;
    }
    let chosen = chosen as u16;
    stash::note_tried(slot.stash, chosen);
    fill(ctx, entry, key, segment, now, slot.index);
    // SAFETY: a map value; the entry is nobody else's before its head is published.
    let flow = unsafe { &mut *entry.flow };
    if segment.flags & FIN != 0 {
        flow.client_flags = FIN_SEEN;
    }
    set_head(entry, key, chosen, FlowState::Binding);
    stash::unlock(slot);
    count_choice(key.service, chosen, stash.reason);
    CHOSEN << 32 | u64::from(entry.index)
}

/// Not a verdict: no backend is ready, which the client is to be told.
const NOBODY_READY: u64 = u64::MAX;

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
    flow.client_flags = 0;
    flow.backend_flags = 0;
}

/// Publishes a flow under its key.
#[inline(always)]
pub(crate) fn set_head(entry: Entry, key: &Key, backend: u16, state: FlowState) {
    let head =
        Head { client_port: key.port, service: key.service, backend, state: state as u8, window_shift: 0 };
    // SAFETY: the head is an aligned word of a map value.
    unsafe { crate::atomic::exchange((&raw mut (*entry.flow).head).cast(), head.to_bits()) };
}

/// Makes a claimed entry free again.
#[inline(always)]
pub(crate) fn free(entry: Entry) {
    // SAFETY: the head is an aligned word of a map value.
    unsafe {
        (*entry.flow).stash = NO_STASH;
        crate::atomic::exchange((&raw mut (*entry.flow).head).cast(), 0);
    }
}

/// Frees the entry of a flow, but only if it is as it was seen. Returns whether it was.
#[inline(always)]
pub(crate) fn end(entry: Entry, was: Head) -> bool {
    // SAFETY: the head is an aligned word of a map value.
    unsafe {
        let word = (&raw mut (*entry.flow).head).cast();
        crate::atomic::compare_exchange(word, was.to_bits(), 0) == was.to_bits()
    }
}

/// Counts why a backend was chosen, per service and per backend.
#[inline(always)]
pub(crate) fn count_choice(service: u16, slot: u16, reason: u32) {
    const HIT: u32 = Counter::AffinityHit as u32;
    const STALE: u32 = Counter::StaleInstance as u32;
    const REDISPATCHED: u32 = Counter::Redispatched as u32;
    const RETRIED: u32 = Counter::Retried as u32;
    const INVALID_TOKEN: u32 = Counter::InvalidToken as u32;
    count(service, reason);
    match reason {
        STALE => count(service, HIT),
        INVALID_TOKEN => count(service, Counter::NewSession as u32),
        _ => {}
    }
    count_backend(slot, |counters| match reason {
        HIT => counters.affinity_hit += 1,
        STALE => {
            counters.affinity_hit += 1;
            counters.stale_instance += 1;
        }
        REDISPATCHED | RETRIED => counters.redispatched += 1,
        _ => counters.new_session += 1,
    });
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
    more(&ctx, &key, Entry { flow: place, index: flow }, &segment).to_bits()
}

#[inline(always)]
fn more(ctx: &XdpContext, key: &Key, entry: Entry, segment: &Segment) -> Verdict {
    // SAFETY: a map value stays valid; its fields are plain integers.
    let flow = unsafe { &*entry.flow };
    let at = segment.seq.wrapping_sub(flow.client_isn).wrapping_sub(1);
    if segment.flags & RST != 0 {
        if at > STASH_BYTES as u32 + 1 {
            // Outside of all that the client can have sent: of a former connection, or forged (RFC 5961 §3.2).
            return consume(Counter::DropUnknownRst);
        }
        // The client gave up: so does the flow. The backend's SYN-ACK will find nobody and be reset.
        settle(entry, flow);
        free(entry);
        return consume(Counter::ClientReset);
    }
    if segment.payload == 0 && segment.flags & FIN == 0 {
        return consume(Counter::DropBinding);
    }
    let Some(service) = SERVICES.get(u32::from(key.service)) else { return consume(Counter::DropNoService) };
    let was = flow.head;
    let Some(slot) = stash::lock(entry.index, flow.stash) else {
        if was.state == FlowState::Binding as u8 && stash::of(entry.index, flow.stash).is_none() {
            // It waited so long that another flow has its stash. What the client sends next begins anew.
            end(entry, was);
        }
        return consume(Counter::DropBusy);
    };
    // SAFETY: a map value stays valid, and this processor has its lock.
    let stash = unsafe { &mut *slot.stash };
    let seen = View::from_bits(stash.views[0]);
    if at == 0 && segment.payload != 0 && seen.len as u32 >= segment.payload {
        let verdict = again(ctx, key, entry, flow, slot, stash, service);
        stash::unlock(slot);
        return verdict;
    }
    let kept = stash::lb_keep(ctx.ctx, u32::from(key.service), u32::from(slot.index), at);
    stash::unlock(slot);
    if kept == 0 {
        return consume(Counter::DropStashFull);
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
        return Verdict::from_bits(ESTABLISHED);
    }
    consume(Counter::Stashed)
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

/// Gives the flow to the next backend that was not tried, within the service's bound. Returns whether there is one.
#[inline(always)]
pub(crate) fn next(key: &Key, entry: Entry, was: Head, slot: Slot, stash: &Stash, service: &Service) -> bool {
    count_backend(was.backend, |counters| counters.failed += 1);
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
    // SAFETY: a map value stays valid; the head is an aligned word.
    unsafe {
        let word = (&raw mut (*entry.flow).head).cast();
        if crate::atomic::compare_exchange(word, was.to_bits(), head.to_bits()) != was.to_bits() {
            return false;
        }
        (*entry.flow).client_flags &= !(SYN_REPEATED | RESCALE_CLIENT);
    }
    stash::note_tried(slot.stash, chosen);
    count_choice(key.service, chosen, Counter::Retried as u32);
    true
}
