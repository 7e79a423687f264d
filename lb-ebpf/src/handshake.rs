//! Delayed binding: the first payload chooses a backend, which gets a SYN; more payload waits in the stash.

use crate::asked;
use crate::clock;
use crate::cold::{self, Parsed};
use crate::flows::{self, Claimant, Entry, Key};
use crate::header::{Header, timestamp_options};
use crate::keep::{self, TIMESTAMPS};
use crate::maps::{FLOWS, SERVICES, STASHES, count, count_backend, settings};
use crate::offer::{lb_refuse, offer};
use crate::options::timestamps;
use crate::packet::Segment;
use crate::select::{ANOTHER, choose, decided, lb_choose};
use crate::shares;
use crate::stash::{self, Slot};
use crate::syn::{back, scale_of, send};
use crate::token::{self, ABSENT, INVALID};
use crate::unavailable::{self, lb_unavailable};
use crate::unknown::reset;
use crate::verdict::{Verdict, consume};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::addr::Be16;
use lb_common::counter::Counter;
use lb_common::flow::{ACKNOWLEDGED, FIN_SEEN, Flow, FlowState, Head, NO_STASH, SYN_REPEATED};
use lb_common::maglev::{NOBODY, client_hash};
use lb_common::service::{Affinity, Service};
use lb_common::settings::{Settings, is_over};
use lb_common::stash::{STASH_BYTES, Stash, View};
use lb_common::syn_cookie::Agreed;
use lb_common::tcp::{ACK, FIN, RST, rescale_window};

/// The first payload of a proven client: stash it, make a flow, choose, and turn the packet into a SYN to the backend.
#[inline(always)]
pub(crate) fn begin(ctx: &XdpContext, service: u16) -> Verdict {
    let entered = lb_enter(ctx.ctx, u32::from(service));
    if !is_stashed(entered) {
        return Verdict::from_bits(entered);
    }
    let bits = lb_bind(ctx.ctx, u32::from(service), entered as u32, (entered >> 32) as u32 & 0xffff);
    if is_stashed(bits) { place(ctx, service, bits, ALL) } else { Verdict::from_bits(bits) }
}

/// Chooses a backend for a flow whose first payload [`stashed`] says where it is, in a stash that this processor has locked,
/// and turns the packet into the SYN that it gets; or into an acknowledgement, when the key may stand in what is to come.
/// `size` is the payload that came last, in bytes, or [`ALL`].
#[inline(always)]
pub(crate) fn place(ctx: &XdpContext, service: u16, stashed: u64, size: u32) -> Verdict {
    let flow = stashed as u32;
    match lb_place(u32::from(service), flow, (stashed >> 32) as u32 & 0xffff, size) {
        CHOSEN => offer(ctx, flow, Counter::Bound),
        GOES_ON => Verdict::from_bits(lb_await(ctx.ctx, u32::from(service), flow, is_repeated(stashed))),
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
/// The same, of a segment that was in the stash before.
const REPEATED: u64 = STASHED + 1;

/// Whether something is no verdict, but from [`stashed`].
#[inline(always)]
pub(crate) const fn is_stashed(bits: u64) -> bool {
    bits >> 49 == STASHED >> 1
}

/// Whether what is [`stashed`] was there before: 0 is no.
#[inline(always)]
const fn is_repeated(bits: u64) -> u32 {
    (bits >> 48 & 1) as u32
}

/// Takes a flow and a stash for a first payload. The flow's entry is left claimed and the stash locked. A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_enter(ctx: *mut xdp_md, service: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let Some(settings) = settings() else { return consume(Counter::DropNoService).to_bits() };
    let Some(Parsed { key, .. }) = cold::parse(&ctx, service) else {
        return consume(Counter::DropTruncated).to_bits();
    };
    let now = clock::now(settings);
    let entry = match flows::claim(settings, &key, flows::find(settings, &key), now, Claimant::Proven) {
        Ok(entry) => entry,
        Err(counter) => return consume(counter).to_bits(),
    };
    let stash = stash::claim(entry.index, key.hash(settings), key.service, now);
    if let Err(counter) = stash::refused(stash) {
        free(entry);
        return consume(counter).to_bits();
    }
    stashed(entry.index, stash as u16)
}

/// Keeps a first payload in the stash that [`lb_enter`] has taken, and publishes its flow, which has no backend yet. The stash is
/// left locked. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_bind(ctx: *mut xdp_md, service: u32, flow: u32, stash: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let (Some(place), Some(kept), Some(settings)) =
        (FLOWS.get_ptr_mut(flow), STASHES.get_ptr_mut(stash), settings())
    else {
        return consume(Counter::DropNoService).to_bits();
    };
    let (entry, slot) = (Entry { flow: place, index: flow }, Slot { stash: kept, index: stash as u16 });
    let Some(Parsed { key, segment, .. }) = cold::parse(&ctx, service) else {
        stash::release(slot);
        free(entry);
        return consume(Counter::DropTruncated).to_bits();
    };
    bind(&ctx, settings, &key, &segment, entry, slot)
}

#[inline(always)]
fn bind(
    ctx: &XdpContext,
    settings: &Settings,
    key: &Key,
    segment: &Segment,
    entry: Entry,
    slot: Slot,
) -> u64 {
    if !keep::keep_first(ctx, slot, segment) {
        stash::release(slot);
        free(entry);
        return consume(Counter::DropStashFull).to_bits();
    }
    let now = clock::now(settings);
    fill(ctx, entry, key, segment, now, slot.index);
    if segment.flags & FIN != 0 {
        // SAFETY: a map value; the entry is nobody else's before its head is published.
        unsafe { (*entry.flow).client_flags |= FIN_SEEN };
    }
    // Whoever finds it meanwhile also finds the stash locked.
    set_head(entry, key, NOBODY, FlowState::Awaiting);
    stashed(entry.index, slot.index)
}

/// What came last is all that there is.
const ALL: u32 = u32::MAX;

/// Not verdicts: a backend is chosen...
const CHOSEN: u64 = u64::MAX;
/// ...or none is ready, which the client is to be told.
const NOBODY_READY: u64 = u64::MAX - 1;
/// ...in a way that it understands.
const UNAVAILABLE: u64 = u64::MAX - 2;
/// Not a verdict: what is steered by may stand in what the client sends next.
const GOES_ON: u64 = u64::MAX - 3;

/// Chooses the backend of a flow that waits for one, by what is stashed, and unlocks the stash. A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_place(service: u32, flow: u32, stash: u32, size: u32) -> u64 {
    let (Some(known), Some(entry), Some(settings)) =
        (FLOWS.get_ptr_mut(flow), SERVICES.get(service), settings())
    else {
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
    if entry.affinity == Affinity::Source as u8 {
        // SAFETY: a map value stays valid, and this processor has its lock.
        unsafe { (*stash).hash = client_hash(known.client, Be16::new(0)) };
    }
    let found = token::find(entry, service, index);
    if found == ABSENT && token::lb_is_whole(index) == 0 {
        if goes_on(settings, entry, known, stash, size) {
            stash::unlock(slot);
            return GOES_ON;
        }
        count(service as u16, Counter::HeadIncomplete as u32);
    }
    if found == INVALID {
        count(service as u16, Counter::InvalidToken as u32);
    }
    // SAFETY: a map value stays valid, and this processor has its lock.
    let stash = unsafe { &mut *stash };
    if stash.notes != 0 {
        token::lb_notes(service, index);
    }
    let key = Key { client: known.client, port: was.client_port, service: service as u16 };
    let mut chosen = choose(stash, index, key.service, found);
    if shares::is_waited_for(entry, chosen) {
        let reason = stash.reason;
        // What belongs nowhere need not wait for a backend that may be silent.
        if reason == Counter::NewSession as u32 || reason == Counter::InvalidToken as u32 {
            stash::note_tried(slot.stash, chosen as u16);
            chosen = lb_choose(index, service, ANOTHER);
            stash.reason = reason;
        }
        if chosen == u32::from(NOBODY) || shares::is_waited_for(entry, chosen) {
            if known.client_flags & ACKNOWLEDGED == 0 {
                // Its client sends it again.
                stash::release(slot);
                end(place, was);
                return consume(Counter::DropBackendPending).to_bits();
            }
            chosen = u32::from(NOBODY);
        }
    }
    if chosen == u32::from(NOBODY) {
        decided(&key, NOBODY, found, stash.reason);
        let (heard, stamp) = (known.client_isn.wrapping_add(1).wrapping_add(stash.limit), stash.ts_base);
        let speaks_http = unavailable::speaks_http(entry, stash);
        stash::release(slot);
        if speaks_http && unavailable::keep(place, was, heard, stamp) {
            return UNAVAILABLE;
        }
        end(place, was);
        return NOBODY_READY;
    }
    let chosen = chosen as u16;
    stash::note_tried(slot.stash, chosen);
    let bound = flows::bind(place, was, chosen);
    stash::unlock(slot);
    if !bound {
        // Its client has reset it meanwhile.
        return consume(Counter::DropBusy).to_bits();
    }
    decided(&key, chosen, found, stash.reason);
    CHOSEN
}

/// Whether a head that is not whole is waited for: its client has not finished, another segment has room, and the time for heads is
/// not over.
#[inline(always)]
fn goes_on(settings: &Settings, service: &Service, flow: &Flow, stash: *const Stash, size: u32) -> bool {
    // SAFETY: a map value stays valid, and this processor has its lock.
    let stash = unsafe { &*stash };
    let begun = (stash.owner >> 32) as u32;
    // A client that has a segment as long as the last one to send sends no shorter one to fill the window.
    let last = if size < stash.limit { size } else { stash.limit };
    let full = full(service, flow, stash);
    let next = if last < full { last } else { full };
    flow.client_flags & FIN_SEEN == 0
        && stash.limit + next <= STASH_BYTES as u32
        && !is_over(settings.head_ticks, begun, clock::now(settings))
}

/// Bytes of payload in the longest segments of a client.
#[inline(always)]
fn full(service: &Service, flow: &Flow, stash: &Stash) -> u32 {
    let timestamps = stash.has_timestamps != 0;
    let agreed = Agreed::of(flow.cookie, timestamps).mss;
    let mss = u32::from(if agreed < service.mss { agreed } else { service.mss });
    mss.wrapping_sub(if timestamps { TIMESTAMPS } else { 0 })
}

/// Makes the packet the acknowledgement of a head that goes on, where its client may wait for that: after a segment that is not
/// full (RFC 896), or one that comes again. What is acknowledged does not come again, so its checksums are looked at first. A
/// global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_await(ctx: *mut xdp_md, service: u32, flow: u32, repeated: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let truncated = consume(Counter::DropTruncated).to_bits();
    let (Some(place), Some(entry)) = (FLOWS.get_ptr_mut(flow), SERVICES.get(service)) else {
        return truncated;
    };
    let Some(Parsed { frame, segment, .. }) = cold::parse(&ctx, service) else { return truncated };
    // SAFETY: a map value stays valid; its fields are plain integers.
    let known = unsafe { &*place };
    let Some(slot) = stash::of(flow, known.stash) else { return consume(Counter::DropBusy).to_bits() };
    // SAFETY: a map value stays valid.
    let stash = unsafe { &*slot.stash };
    let end = known.client_isn.wrapping_add(1).wrapping_add(stash.limit);
    if repeated == 0 && segment.payload >= full(entry, known, stash) {
        return consume(Counter::HeadAwaited).to_bits();
    }
    let intact = keep::lb_is_intact(u32::from(slot.index), stash.limit);
    if intact == keep::ENTANGLED {
        return consume(Counter::HeadAwaited).to_bits();
    }
    if intact == keep::CORRUPT {
        // Its client sends it again, unless it was told that a part had arrived.
        let was_told = known.client_flags & ACKNOWLEDGED != 0;
        if let Some(slot) = stash::lock(flow, slot.index) {
            end_of(Entry { flow: place, index: flow });
            stash::release(slot);
        }
        return if was_told { reset(&ctx, &segment) } else { consume(Counter::DropChecksum) }.to_bits();
    }
    // SAFETY: a map value stays valid; the client's path alone writes this while no backend is chosen.
    unsafe { (*place).client_flags |= ACKNOWLEDGED };
    let (from, to) = back(frame);
    let room = (STASH_BYTES as u32).wrapping_sub(stash.limit);
    let header = Header {
        from,
        to,
        seq: known.cookie.wrapping_add(1),
        ack: end,
        flags: ACK,
        window: rescale_window(room as u16, -scale_of(entry, known.cookie, stash.has_timestamps != 0)),
        payload: 0,
        payload_sum: 0,
    };
    let ifindex = ctx.ingress_ifindex() as u32;
    match timestamps(&ctx, segment.header) {
        Some(stamps) => {
            send(&ctx, &header, &timestamp_options(stash.ts_base, stamps.val), ifindex, Counter::HeadAwaited)
        }
        None => send(&ctx, &header, &[], ifindex, Counter::HeadAwaited),
    }
    .to_bits()
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

/// Frees the entry of a flow whose stash the caller has locked, if it still waits for the rest of its head.
#[inline(always)]
fn end_of(entry: Entry) {
    let was = flows::head(entry);
    if was.state == FlowState::Awaiting as u8 {
        end(entry, was);
    }
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
    if segment.ack != flow.cookie.wrapping_add(1) {
        // Its client has heard our SYN-ACK and nothing else: a stranger does not know that number.
        return consume(Counter::DropBadClientAck).to_bits();
    }
    let late = is_late(flow, entry);
    if segment.payload == 0 && segment.flags & FIN == 0 && !late {
        return consume(Counter::DropBinding).to_bits();
    }
    let Some(service) = SERVICES.get(u32::from(key.service)) else {
        return consume(Counter::DropNoService).to_bits();
    };
    let Some(slot) = stash::lock(entry.index, flow.stash) else {
        let was = flows::head(entry);
        let waits = was.state == FlowState::Binding as u8 || was.state == FlowState::Awaiting as u8;
        if waits && stash::of(entry.index, flow.stash).is_none() {
            // It waited so long that another flow has its stash. What the client sends next begins anew, unless it was told
            // that some of it had arrived.
            end(entry, was);
            if flow.client_flags & ACKNOWLEDGED != 0 {
                return reset(ctx, segment).to_bits();
            }
        }
        return consume(Counter::DropBusy).to_bits();
    };
    // SAFETY: a map value stays valid, and this processor has its lock.
    let stash = unsafe { &mut *slot.stash };
    let seen = View::from_bits(stash.views[0]);
    // As it is now that nobody else has the lock.
    let awaiting = flows::head(entry).state == FlowState::Awaiting as u8;
    if awaiting && (late || at.wrapping_add(segment.payload) <= stash.limit) && segment.flags & FIN == 0 {
        // It has come before, and its client waits for an acknowledgement; or it is time to choose.
        return stashed(entry.index, slot.index) | (STASHED ^ REPEATED) << 48;
    }
    // What its client was told had arrived does not come again, only what stands behind that.
    let repeats = if flow.client_flags & ACKNOWLEDGED != 0 {
        at.wrapping_add(segment.payload) <= stash::heard(slot.index)
    } else {
        at == 0 && seen.len as u32 >= segment.payload
    };
    if !awaiting && segment.payload != 0 && repeats {
        let verdict = again(ctx, key, entry, flow, slot, stash, service);
        stash::unlock(slot);
        return verdict.to_bits();
    }
    let kept = keep::lb_keep(ctx.ctx, u32::from(key.service), u32::from(slot.index), at);
    if awaiting && kept != 0 && at <= stash.limit {
        if segment.flags & FIN != 0 {
            // SAFETY: a map value stays valid.
            unsafe { (*entry.flow).client_flags |= FIN_SEEN };
        }
        // All that is there without a gap: what came before its turn, too.
        stash.limit = stash::lb_heard(u32::from(slot.index), 0);
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

/// Whether a flow still waits for the rest of its head though the time for that is over.
#[inline(always)]
fn is_late(flow: &Flow, entry: Entry) -> bool {
    if flow.head.state != FlowState::Awaiting as u8 {
        return false;
    }
    let (Some(settings), Some(slot)) = (settings(), stash::of(entry.index, flow.stash)) else { return false };
    // SAFETY: a map value stays valid; the owner is one aligned word.
    let owner = unsafe { core::ptr::read_volatile(&raw const (*slot.stash).owner) };
    is_over(settings.head_ticks, (owner >> 32) as u32, clock::now(settings))
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
