//! The joint (tc ingress): a backend's SYN-ACK becomes the ACK that carries what the client has sent so far.
//!
//! XDP cannot do this on every driver: a veth frame of 74 bytes has no room at its tail. An skb can grow, and be cloned
//! for a second segment; that costs one skb for each connection, not for each packet.

use crate::atomic::compare_exchange;
use crate::bounds::{Length, offset};
use crate::endpoints::{Direction, direction};
use crate::flows::{self, Entry, Key};
use crate::header::{self, End, Header, MAX_HEADER, timestamp_options};
use crate::keep::MAX_SEGMENT;
use crate::maps::{ABILITIES, BACKENDS, HEADER, SERVICES, count, count_backend, settings};
use crate::offer::syn_header;
use crate::options::{self, Offer, Timestamps};
use crate::packet::{BASE, Packet, Segment, at};
use crate::shares;
use crate::stash;
use crate::steer::{FRAGMENT_OFFSET, MORE_FRAGMENTS, ends};
use crate::token::http2::lb_upgrade;
use crate::unavailable::speaks_http;
use crate::verdict::Verdict;
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_SHOT};
use aya_ebpf::programs::TcContext;
use lb_common::backend::{Abilities, Backend};
use lb_common::counter::Counter;
use lb_common::flow::{ACKNOWLEDGED, Flow, FlowState, Head, RESCALE_CLIENT};
use lb_common::service::{PROMISE_SACK, PROMISE_TIMESTAMPS, PROMISE_WINDOW_SCALE, Service};
use lb_common::settings::Settings;
use lb_common::stash::{STASH_BYTES, Stash, VIEW_FIN, VIEW_PSH, VIEW_USED, VIEWS, View};
use lb_common::syn_cookie::Agreed;
use lb_common::tcp::{ACK, FIN, NO_WINDOW_SCALE, PROTOCOL, PSH, RST, SYN, rescale_window};

/// Not ours: on to the host.
pub(crate) const PASS: i32 = TC_ACT_OK;
const DROP: u32 = TC_ACT_SHOT as u32;

/// Looks for the half-bound flow that a packet answers. `None`: not ours.
#[inline(always)]
pub(crate) fn join(ctx: &TcContext) -> Option<(u16, Verdict)> {
    // A driver may leave the headers in pages.
    let frame = match ctx.frame() {
        Some(frame) => frame,
        None => {
            ctx.pull_data(BASE as u32).ok()?;
            ctx.frame()?
        }
    };
    if frame.load::<{ at::ETH_TYPE }, u16>() != 0x0800_u16.to_be()
        || frame.load::<{ at::IP }, u8>() != 0x45
        || frame.load::<{ at::IP_PROTOCOL }, u8>() != PROTOCOL
        || frame.load::<{ at::IP_FRAGMENT }, u16>() & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0
    {
        return None;
    }
    let settings = settings()?;
    let (src, dst) = ends(frame);
    let slot = match direction(settings, PROTOCOL, src, dst) {
        Direction::FromBackend(slot) => slot,
        Direction::FromClient(id) => {
            let key = Key { client: src.0, port: src.1, service: id };
            return repeat(ctx, settings, &key).map(|verdict| (id, verdict));
        }
        Direction::Other => return None,
    };
    let backend = BACKENDS.get(u32::from(slot))?;
    let id = backend.service;
    let key = Key { client: dst.0, port: dst.1, service: id };
    let entry = flows::find(settings, &key)?;
    // SAFETY: a map value stays valid; its fields are plain integers.
    let flow = unsafe { &*entry.flow };
    let binding = flow.head.state == FlowState::Binding as u8;
    let replayed = flow.head.state == FlowState::Established as u8 && flow.client_flags & ACKNOWLEDGED != 0;
    if flow.head.backend != slot || !(binding || replayed) {
        return None;
    }
    let segment = Segment::read(frame, ctx.len())?;
    let stash = stash::of(entry.index, flow.stash)?;
    // SAFETY: a map value stays valid; views are read one word at a time.
    let stash = unsafe { &*stash.stash };
    let verdict = match segment.flags & (SYN | ACK | RST) {
        // The flow may be another one by now than the one that XDP saw.
        flags if flags == SYN | ACK && segment.ack == flow.client_isn.wrapping_add(1) => {
            let service = SERVICES.get(u32::from(id))?;
            splice(ctx, settings, service, &key, entry, flow, stash, backend, slot, &segment)
        }
        flags if flags == SYN | ACK => drop(Counter::DropBadBackendAck),
        ACK if binding => challenge(ctx, &key, flow, stash, backend, &segment),
        _ => return None,
    };
    Some((id, verdict))
}

/// SYN-ACK: both halves are known now. Publishes the splice, then sends what is stashed.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "everything about one connection comes together here")]
fn splice(
    ctx: &TcContext,
    settings: &Settings,
    service: &Service,
    key: &Key,
    entry: Entry,
    flow: &Flow,
    stash: &Stash,
    backend: &Backend,
    slot: u16,
    segment: &Segment,
) -> Verdict {
    let offer = options::offer(ctx, segment.header);
    let agreed = Agreed::of(flow.cookie, stash.has_timestamps != 0);
    learn(slot, agreed, stash, &offer);
    let (window_shift, rescale_client) = if agreed.scales_windows() {
        let scaled = offer.window_scale != NO_WINDOW_SCALE;
        let theirs = if scaled { offer.window_scale as i8 } else { 0 };
        (theirs - service.window_scale as i8, !scaled)
    } else {
        (0, false)
    };
    let was = flow.head;
    let head = Head { state: FlowState::Established as u8, window_shift, ..was };
    if was.state == FlowState::Established as u8 {
        // It asks again, so the request was lost: what is spliced stays.
        if flow.seq_delta != flow.cookie.wrapping_sub(segment.seq) {
            return drop(Counter::DropDuplicateSynAck);
        }
    } else {
        if SERVICES.get(u32::from(key.service)).is_some_and(|service| speaks_http(service, stash)) {
            // Here, and not in XDP when the request comes: nothing depends on it, and it takes a tenth of a microsecond.
            lb_upgrade(u32::from(key.service), u32::from(flow.stash));
        }
        let rescale = if rescale_client { RESCALE_CLIENT } else { 0 };
        // Claimed first: whoever has moved the flow meanwhile keeps its numbers.
        let claimed = Head { state: FlowState::Claimed as u8, ..was };
        // SAFETY: a map value stays valid, and between the two exchanges nobody else writes to it or reads these.
        let spliced = unsafe {
            let place = entry.flow;
            let word = (&raw mut (*place).head).cast::<u64>();
            let is_ours = compare_exchange(word, was.to_bits(), claimed.to_bits()) == was.to_bits();
            if is_ours {
                (&raw mut (*place).seq_delta).write(flow.cookie.wrapping_sub(segment.seq));
                (&raw mut (*place).ts_delta).write(match offer.timestamps() {
                    Some(stamps) => stash.ts_base.wrapping_sub(stamps.val),
                    None => 0,
                });
                let flags = &raw mut (*place).backend_flags;
                flags.write(flags.read() & !RESCALE_CLIENT | rescale);
            }
            is_ours && compare_exchange(word, claimed.to_bits(), head.to_bits()) == claimed.to_bits()
        };
        if !spliced {
            return drop(Counter::DropBusy);
        }
        shares::account(was, head);
        count_backend(slot, |counters| counters.spliced += 1);
    }
    let _ = settings;
    let stamps = match offer.timestamps() {
        Some(theirs) if stash.has_timestamps != 0 => Some(Timestamps { val: stash.ts_val, ecr: theirs.val }),
        _ => None,
    };
    let window = stash.window as u16;
    let window = if rescale_client { rescale_window(window, agreed.window_scale as i8) } else { window };
    let header = Header {
        from: End { mac: backend.local_mac, addr: key.client, port: key.port },
        to: End { mac: backend.next_hop_mac, addr: backend.addr, port: backend.port },
        seq: flow.client_isn.wrapping_add(1),
        ack: segment.seq.wrapping_add(1),
        flags: ACK,
        window,
        payload: 0,
        payload_sum: 0,
    };
    if !deliver(ctx, stash, entry.index, &header, stamps, backend.ifindex, slot) {
        return drop(Counter::DropJoint);
    }
    leave(backend.ifindex, Counter::Spliced)
}

/// A client's segment in a spliced flow whose stash its backend may not have: that goes out in the place of it.
#[inline(always)]
fn repeat(ctx: &TcContext, settings: &Settings, key: &Key) -> Option<Verdict> {
    let segment = Segment::read(ctx.frame()?, ctx.len())?;
    let entry = flows::find(settings, key)?;
    // SAFETY: a map value stays valid; its fields are plain integers.
    let flow = unsafe { &*entry.flow };
    if flow.head.state != FlowState::Established as u8 || flow.client_flags & ACKNOWLEDGED == 0 {
        return None;
    }
    let backend = BACKENDS.get(u32::from(flow.head.backend))?;
    let stash = stash::of(entry.index, flow.stash)?;
    // SAFETY: a map value stays valid; views are read one word at a time.
    let stash = unsafe { &*stash.stash };
    let stamps = match options::timestamps(ctx, segment.header) {
        Some(stamps) if stash.has_timestamps != 0 => {
            Some(Timestamps { val: stamps.val, ecr: stamps.ecr.wrapping_sub(flow.ts_delta) })
        }
        _ => None,
    };
    let window = if flow.client_flags & RESCALE_CLIENT != 0 {
        rescale_window(segment.window, Agreed::of(flow.cookie, stash.has_timestamps != 0).window_scale as i8)
    } else {
        segment.window
    };
    let header = Header {
        from: End { mac: backend.local_mac, addr: key.client, port: key.port },
        to: End { mac: backend.next_hop_mac, addr: backend.addr, port: backend.port },
        seq: flow.client_isn.wrapping_add(1),
        ack: segment.ack.wrapping_sub(flow.seq_delta),
        flags: ACK,
        window,
        payload: 0,
        payload_sum: 0,
    };
    let slot = flow.head.backend;
    if !deliver(ctx, stash, entry.index, &header, stamps, backend.ifindex, slot) {
        return Some(drop(Counter::DropJoint));
    }
    Some(leave(backend.ifindex, Counter::StashRepeated))
}

/// Tells the daemon which options the backend has, and which of those it was offered it has not.
#[inline(always)]
fn learn(slot: u16, agreed: Agreed, stash: &Stash, offer: &Offer) {
    let bit = |is: bool, option: u8| if is { option } else { 0 };
    let promises = bit(offer.sack, PROMISE_SACK)
        | bit(offer.timestamps().is_some(), PROMISE_TIMESTAMPS)
        | bit(offer.window_scale != NO_WINDOW_SCALE, PROMISE_WINDOW_SCALE);
    let offered = bit(agreed.sack, PROMISE_SACK)
        | bit(stash.has_timestamps != 0, PROMISE_TIMESTAMPS)
        | bit(agreed.scales_windows(), PROMISE_WINDOW_SCALE);
    if let Some(place) = ABILITIES.get_ptr_mut(u32::from(slot)) {
        // SAFETY: a map value stays valid; the daemon reads it as one word.
        unsafe {
            let lacks = (*place).lacks & !offered | offered & !promises;
            let window_scale = offer.window_scale;
            *place = Abilities { seen: 1, promises, window_scale, lacks, mss: offer.mss, _pad2: 0 };
        }
    }
}

/// Makes the packet the last segment of the stash, which its caller sends; those before it go out as clones. Returns whether
/// that was possible.
#[inline(always)]
fn deliver(
    ctx: &TcContext,
    stash: &Stash,
    flow: u32,
    first: &Header,
    stamps: Option<Timestamps>,
    ifindex: u32,
    slot: u16,
) -> bool {
    let mut bytes = 0;
    let mut i = 0;
    while i < VIEWS {
        // SAFETY: a map value stays valid; a view is one aligned word.
        let view = View::from_bits(unsafe { core::ptr::read_volatile(&raw const stash.views[i]) });
        if view.flags & VIEW_USED == 0 {
            break;
        }
        if i > 0 && ctx.clone_redirect(ifindex, 0).is_err() {
            return false;
        }
        if !segment(ctx, stash, first, stamps, view) || !stash::is_still(stash, flow) {
            return false;
        }
        bytes += u64::from(view.len);
        i += 1;
    }
    count_backend(slot, |counters| {
        counters.packets_from_client += i as u64;
        counters.bytes_from_client += bytes;
    });
    i > 0
}

/// Makes the packet one segment of the stash.
#[inline(always)]
fn segment(ctx: &TcContext, stash: &Stash, first: &Header, stamps: Option<Timestamps>, view: View) -> bool {
    let mut header = *first;
    header.seq = first.seq.wrapping_add(u32::from(view.at));
    header.payload = view.len;
    header.payload_sum = view.sum;
    if view.flags & VIEW_PSH != 0 {
        header.flags |= PSH;
    }
    if view.flags & VIEW_FIN != 0 {
        header.flags |= FIN;
    }
    let size = if stamps.is_some() { BASE + 12 } else { BASE };
    if !write_header(ctx, &header, stamps, size as u32 + u32::from(view.len)) {
        return false;
    }
    if view.len == 0 {
        return true;
    }
    let (Some(at), Some(len)) = (
        offset::<{ STASH_BYTES as u32 }>(u32::from(view.at)),
        Length::new::<MAX_SEGMENT>(u32::from(view.len)),
    ) else {
        return false;
    };
    // SAFETY: the stash has room for a longest segment at the last offset.
    unsafe {
        let bytes = stash.bytes.as_ptr().add(at);
        aya_ebpf::helpers::bpf_skb_store_bytes(ctx.as_ptr().cast(), size as u32, bytes.cast(), len.get(), 0)
            == 0
    }
}

/// Gives the packet a length and a header.
#[inline(always)]
fn write_header(ctx: &TcContext, header: &Header, stamps: Option<Timestamps>, len: u32) -> bool {
    let Some(to) = HEADER.get_ptr_mut(0) else { return false };
    let to = to.cast::<u8>();
    // SAFETY: the value has room for the longest header; the helpers check the packet's side.
    unsafe {
        let size = match stamps {
            Some(stamps) => {
                header::write(to, header, &timestamp_options(stamps.val, stamps.ecr));
                BASE + 12
            }
            None => {
                header::write(to, header, &[]);
                BASE
            }
        };
        store(ctx, to, size, len)
    }
}

/// # Safety
/// `from` has `size` readable bytes.
#[inline(always)]
unsafe fn store(ctx: &TcContext, from: *const u8, size: usize, len: u32) -> bool {
    // SAFETY: the caller's promise.
    unsafe {
        let skb = ctx.as_ptr();
        aya_ebpf::helpers::bpf_skb_change_tail(skb.cast(), len, 0) == 0
            && aya_ebpf::helpers::bpf_skb_store_bytes(skb.cast(), 0, from.cast(), size as u32, 0) == 0
    }
}

/// A bare ACK in answer to a SYN (RFC 5961 §4): the backend still knows the 4-tuple. An RST with the sequence number it
/// expects makes it forget, then it gets the SYN again.
#[inline(always)]
fn challenge(
    ctx: &TcContext,
    key: &Key,
    flow: &Flow,
    stash: &Stash,
    backend: &Backend,
    segment: &Segment,
) -> Verdict {
    if segment.ack == flow.client_isn.wrapping_add(1) {
        return drop(Counter::DropBadBackendAck);
    }
    let (syn, options) = syn_header(flow, stash, backend);
    let reset = Header { seq: segment.ack, flags: RST, window: 0, ..syn };
    let Some(to) = HEADER.get_ptr_mut(0) else { return drop(Counter::DropJoint) };
    let to = to.cast::<u8>();
    // SAFETY: the value has room for the longest header.
    unsafe {
        header::write(to, &reset, &[]);
        if !store(ctx, to, BASE, BASE as u32) || ctx.clone_redirect(backend.ifindex, 0).is_err() {
            return drop(Counter::DropJoint);
        }
        header::write(to, &syn, &options);
        if !store(ctx, to, MAX_HEADER, MAX_HEADER as u32) {
            return drop(Counter::DropJoint);
        }
    }
    count(key.service, Counter::SynRepeated as u32);
    leave(backend.ifindex, Counter::ChallengeReset)
}

#[inline(always)]
fn drop(counter: Counter) -> Verdict {
    Verdict::new(DROP, counter)
}

#[inline(always)]
fn leave(ifindex: u32, counter: Counter) -> Verdict {
    // SAFETY: the helper only records where the packet goes.
    Verdict::new(unsafe { aya_ebpf::helpers::bpf_redirect(ifindex, 0) } as u32, counter)
}
