//! A segment of a client whose flow is not in the table: the second half of the cookie handshake, a keep-alive, a FIN,
//! or a connection that nobody knows.

use crate::cold::{self, Parsed};
use crate::flows::{Key, jiffies};
use crate::handshake;
use crate::header::{Header, timestamp_options};
use crate::maps::{FLOWS, SERVICES, settings};
use crate::options::timestamps;
use crate::packet::{Packet, Segment};
use crate::plain;
use crate::syn::{back, peer, send};
use crate::verdict::{Verdict, consume};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::counter::Counter;
use lb_common::flow::{Flow, FlowState, MAYBE_REBORN, PLAIN};
use lb_common::settings::Settings;
use lb_common::stash::STASH_BYTES;
use lb_common::syn_cookie::{self, Agreed, is_fresh};
use lb_common::tcp::{ACK, FIN, RST, rescale_window};

/// What a segment proves about the handshake it belongs to. A number: it is returned by a function that is not inlined.
type Proof = u32;
/// Nothing.
const NOTHING: Proof = 0;
/// It is the first in sequence after the handshake.
const FIRST: Proof = 1;
/// It begins one byte before that: a keep-alive probe (RFC 9293 §3.8.4).
const KEEP_ALIVE: Proof = 2;
/// It stands behind that: something before it is missing.
const LATER: Proof = 3;
/// It acknowledges a FIN of ours.
const LAST: Proof = 4;

/// Not a verdict: the segment is a first payload, to be given to [`handshake::begin`]. The caller does that,
/// not this function, because a chain of calls shares 512 bytes of stack.
const BIND: u64 = u64::MAX;

/// Client → service, no flow.
#[inline(always)]
pub(crate) fn handle(ctx: &XdpContext, service: u16) -> Verdict {
    let bits = lb_unknown(ctx.ctx, u32::from(service));
    match bits {
        BIND => handshake::begin(ctx, service),
        plain::BEGIN => Verdict::from_bits(plain::lb_begin(ctx.ctx, u32::from(service))),
        bits => Verdict::from_bits(bits),
    }
}

/// What a segment without a flow gets. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_unknown(ctx: *mut xdp_md, service: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let Some(Parsed { key, segment, .. }) = cold::parse(&ctx, service) else {
        return consume(Counter::DropTruncated).to_bits();
    };
    let Some(settings) = settings() else { return consume(Counter::DropNoService).to_bits() };
    if segment.flags & RST != 0 {
        return consume(Counter::DropUnknownRst).to_bits();
    }
    let Some(entry) = SERVICES.get(service) else { return consume(Counter::DropNoService).to_bits() };
    if entry.binds_at_once() {
        return plain::BEGIN;
    }
    let proof = prove(&ctx, settings, &key, &segment);
    match proof {
        FIRST if segment.payload > 0 => return BIND,
        FIRST if segment.flags & FIN != 0 => answer(&ctx, &segment, service, Counter::FinAnswered),
        FIRST | LAST => consume(Counter::HandshakeAck),
        KEEP_ALIVE => answer(&ctx, &segment, service, Counter::KeepAliveAnswered),
        LATER => consume(Counter::DropFirstSegmentMissing),
        _ => reset(&ctx, &segment),
    }
    .to_bits()
}

/// A client that uses timestamps echoes its initial sequence number, so where a segment stands in its stream is known
/// before the cookie is checked. Without them, the places that matter are tried one by one.
#[inline(always)]
fn prove(ctx: &XdpContext, settings: &Settings, key: &Key, segment: &Segment) -> Proof {
    let stamps = timestamps(ctx, segment.header);
    let now = settings.slot(jiffies());
    let (cookie, after_fin) = (segment.ack.wrapping_sub(1), segment.ack.wrapping_sub(2));
    let bare = segment.payload == 0 && segment.flags & FIN == 0;
    if let Some(stamps) = stamps {
        let isn = stamps.ecr;
        if check(settings, key, isn, cookie, now) {
            return match segment.seq.wrapping_sub(isn) {
                1 => FIRST,
                0 if segment.payload <= 1 => KEEP_ALIVE,
                _ => LATER,
            };
        }
        let last = bare && segment.seq.wrapping_sub(isn) == 2 && check(settings, key, isn, after_fin, now);
        return if last { LAST } else { NOTHING };
    }
    if check(settings, key, segment.seq.wrapping_sub(1), cookie, now) {
        return FIRST;
    }
    if segment.payload <= 1 && check(settings, key, segment.seq, cookie, now) {
        return KEEP_ALIVE;
    }
    if bare {
        let last = check(settings, key, segment.seq.wrapping_sub(2), after_fin, now);
        return if last { LAST } else { NOTHING };
    }
    // The second of two full segments; and, where the first was not full, the benefit of the doubt: the client sends
    // both again, and an RST would kill a healthy connection.
    let behind_full = segment.seq.wrapping_sub(1 + u32::from(Agreed::of(cookie).mss()));
    if check(settings, key, behind_full, cookie, now) || is_fresh(cookie, now) {
        return LATER;
    }
    NOTHING
}

#[inline(never)]
fn check(settings: &Settings, key: &Key, isn: u32, cookie: u32, now: u32) -> bool {
    syn_cookie::check(settings, &peer(key), isn, cookie, now)
}

/// Whether [`lb_is_reborn`] need be asked: three quarters of all segments cannot prove a handshake of these minutes.
#[inline(always)]
pub(crate) fn may_be_reborn(settings: &Settings, segment: &Segment) -> bool {
    segment.flags & ACK != 0 && is_fresh(segment.ack.wrapping_sub(1), settings.slot(jiffies()))
}

/// Whether a segment on a known flow proves a handshake other than the flow's: the client has begun anew on the same
/// port. Its SYN alone proves nothing, anybody could have sent it.
///
/// A global function (see [`crate::cold`]); 0 is no.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_is_reborn(ctx: *mut xdp_md, service: u32, flow: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let (Some(settings), Some(place)) = (settings(), FLOWS.get_ptr_mut(flow)) else { return 0 };
    let Some(Parsed { key, segment, .. }) = cold::parse(&ctx, service) else { return 0 };
    // SAFETY: a map value stays valid; its fields are plain integers.
    let flow = unsafe { &*place };
    if flow.client_flags & PLAIN != 0 {
        return 0;
    }
    if !is_reborn(&ctx, settings, &key, flow, &segment) {
        return 0;
    }
    if flow.head.state != FlowState::Established as u8
        || segment.payload == 0
        || timestamps(&ctx, segment.header).is_some()
    {
        note_reborn(place);
        return 1;
    }
    // Of a flow that lives, any segment in a million does that. A client that begins anew does it with two: its bare ACK
    // comes first, and a payload comes again when it gets no answer.
    let again = flow.client_flags & MAYBE_REBORN != 0;
    note_reborn(place);
    u32::from(again)
}

#[inline(always)]
fn note_reborn(flow: *mut Flow) {
    // SAFETY: a map value stays valid; the client's path alone writes this.
    unsafe { (*flow).client_flags |= MAYBE_REBORN };
}

#[inline(always)]
fn is_reborn(ctx: &XdpContext, settings: &Settings, key: &Key, flow: &Flow, segment: &Segment) -> bool {
    let now = settings.slot(jiffies());
    let cookie = segment.ack.wrapping_sub(1);
    if !may_be_reborn(settings, segment) {
        return false;
    }
    let isn = match timestamps(ctx, segment.header) {
        // The window that was offered leaves room for two segments behind the SYN.
        Some(stamps) if segment.seq.wrapping_sub(stamps.ecr) > 1 + STASH_BYTES as u32 => return false,
        Some(stamps) => stamps.ecr,
        None => segment.seq.wrapping_sub(1),
    };
    (isn != flow.client_isn || cookie != flow.cookie) && check(settings, key, isn, cookie, now)
}

/// Answers a keep-alive probe, or a FIN, of a connection that has sent no data: as the backend would.
#[inline(never)]
fn answer(ctx: &XdpContext, segment: &Segment, service: u32, counter: Counter) -> Verdict {
    let stamps = timestamps(ctx, segment.header);
    let Some(service) = SERVICES.get(service) else { return consume(Counter::DropNoService) };
    let agreed = Agreed::of(segment.ack.wrapping_sub(1));
    // As much as the SYN-ACK offered, whose window is the only one that is not scaled (RFC 7323 §2.2).
    let scale = if agreed.scales_windows() { service.window_scale as i8 } else { 0 };
    let Some(frame) = ctx.frame() else { return consume(Counter::DropTruncated) };
    let (from, to) = back(frame);
    let fin = counter as u32 == Counter::FinAnswered as u32;
    let header = Header {
        from,
        to,
        seq: segment.ack,
        ack: segment.seq.wrapping_add(1),
        flags: if fin { ACK | FIN } else { ACK },
        window: rescale_window(2 * agreed.mss(), -scale),
        payload: 0,
        payload_sum: 0,
    };
    let ifindex = ctx.ingress_ifindex() as u32;
    match stamps {
        Some(stamps) => send(ctx, &header, &timestamp_options(stamps.ecr, stamps.val), ifindex, counter),
        None => send(ctx, &header, &[], ifindex, counter),
    }
}

/// RST for a segment of a connection that does not exist (RFC 9293 §3.10.7.1).
#[inline(never)]
fn reset(ctx: &XdpContext, segment: &Segment) -> Verdict {
    let Some(frame) = ctx.frame() else { return consume(Counter::DropTruncated) };
    let (from, to) = back(frame);
    let header =
        Header { from, to, seq: segment.ack, ack: 0, flags: RST, window: 0, payload: 0, payload_sum: 0 };
    send(ctx, &header, &[], ctx.ingress_ifindex() as u32, Counter::ResetUnknownFlow)
}
