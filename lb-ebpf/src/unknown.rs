//! A segment of a client whose flow is not in the table: the second half of the cookie handshake, a keep-alive, a FIN,
//! or a connection that nobody knows.

use crate::clock::jiffies;
use crate::cold::{self, Parsed};
use crate::flows::Key;
use crate::handshake;
use crate::header::{Header, timestamp_options};
use crate::maps::{FLOWS, SERVICES, settings};
use crate::options::timestamps;
use crate::packet::{Packet, Segment};
use crate::plain;
use crate::syn::{back, peer, scale_of, send};
use crate::verdict::{Verdict, consume};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::counter::Counter;
use lb_common::flow::{Flow, FlowState, PLAIN};
use lb_common::settings::Settings;
use lb_common::stash::STASH_BYTES;
use lb_common::syn_cookie::{self, is_fresh};
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

/// A client that uses timestamps echoes what tells its initial sequence number, so where a segment stands in its stream is
/// known. Without them, the places that matter are tried one by one.
#[inline(always)]
fn prove(ctx: &XdpContext, settings: &Settings, key: &Key, segment: &Segment) -> Proof {
    let stamps = timestamps(ctx, segment.header);
    let now = settings.slot(jiffies());
    let (cookie, after_fin) = (segment.ack.wrapping_sub(1), segment.ack.wrapping_sub(2));
    let bare = segment.payload == 0 && segment.flags & FIN == 0;
    if let Some(stamps) = stamps {
        if let Some(isn) = check_echo(settings, key, stamps.ecr, cookie, now) {
            return match segment.seq.wrapping_sub(isn) {
                1 => FIRST,
                0 if segment.payload <= 1 => KEEP_ALIVE,
                // What waits so long for the segment before it waits in vain.
                _ if is_fresh(cookie, true, now) => LATER,
                _ => NOTHING,
            };
        }
        let isn = if bare { check_echo(settings, key, stamps.ecr, after_fin, now) } else { None };
        return if isn == Some(segment.seq.wrapping_sub(2)) { LAST } else { NOTHING };
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
    // What has overtaken the first segment: the client sends both again, and an RST would kill a healthy connection.
    if may_be(settings, key, cookie, now) { LATER } else { NOTHING }
}

#[inline(never)]
fn may_be(settings: &Settings, key: &Key, cookie: u32, now: u32) -> bool {
    syn_cookie::may_be(settings, &peer(key), cookie, now)
}

#[inline(never)]
fn check(settings: &Settings, key: &Key, isn: u32, cookie: u32, now: u32) -> bool {
    syn_cookie::check(settings, &peer(key), isn, cookie, now)
}

/// The client's initial sequence number that an echoed timestamp proves.
#[inline(always)]
fn check_echo(settings: &Settings, key: &Key, echo: u32, cookie: u32, now: u32) -> Option<u32> {
    let proved = proved(settings, key, echo, cookie, now);
    if proved >> 32 != 0 { Some(proved as u32) } else { None }
}

/// The number with a bit above it; 0 for none.
#[inline(never)]
fn proved(settings: &Settings, key: &Key, echo: u32, cookie: u32, now: u32) -> u64 {
    match syn_cookie::check_echo(settings, &peer(key), echo, cookie, now) {
        Some(isn) => 1 << 32 | u64::from(isn),
        None => 0,
    }
}

/// Whether [`lb_is_reborn`] need be asked about a segment: one in the window of its flow is the flow's.
#[inline(always)]
pub(crate) fn may_be_reborn(flow: &Flow, segment: &Segment) -> bool {
    segment.flags & ACK != 0
        && (flow.head.state != FlowState::Established as u8 || !flow.is_near(segment.seq))
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
    u32::from(flow.client_flags & PLAIN == 0 && is_reborn(&ctx, settings, &key, flow, &segment))
}

#[inline(always)]
fn is_reborn(ctx: &XdpContext, settings: &Settings, key: &Key, flow: &Flow, segment: &Segment) -> bool {
    let now = settings.slot(jiffies());
    let cookie = segment.ack.wrapping_sub(1);
    if cookie == flow.cookie {
        return false;
    }
    match timestamps(ctx, segment.header) {
        Some(stamps) => {
            is_fresh(cookie, true, now)
                && check_echo(settings, key, stamps.ecr, cookie, now)
                    // The window that was offered leaves room for what a stash holds behind the SYN.
                    .is_some_and(|isn| segment.seq.wrapping_sub(isn) <= 1 + STASH_BYTES as u32)
        }
        None => check(settings, key, segment.seq.wrapping_sub(1), cookie, now),
    }
}

/// Answers a keep-alive probe, or a FIN, of a connection that has sent no data: as the backend would.
#[inline(never)]
fn answer(ctx: &XdpContext, segment: &Segment, service: u32, counter: Counter) -> Verdict {
    let stamps = timestamps(ctx, segment.header);
    let Some(service) = SERVICES.get(service) else { return consume(Counter::DropNoService) };
    // As much as the SYN-ACK offered, whose window is the only one that is not scaled (RFC 7323 §2.2).
    let scale = scale_of(service, segment.ack.wrapping_sub(1), stamps.is_some());
    let Some(frame) = ctx.frame() else { return consume(Counter::DropTruncated) };
    let (from, to) = back(frame);
    let fin = counter as u32 == Counter::FinAnswered as u32;
    let header = Header {
        from,
        to,
        seq: segment.ack,
        ack: segment.seq.wrapping_add(1),
        flags: if fin { ACK | FIN } else { ACK },
        window: rescale_window(STASH_BYTES as u16, -scale),
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
pub(crate) fn reset(ctx: &XdpContext, segment: &Segment) -> Verdict {
    let Some(frame) = ctx.frame() else { return consume(Counter::DropTruncated) };
    let (from, to) = back(frame);
    let header =
        Header { from, to, seq: segment.ack, ack: 0, flags: RST, window: 0, payload: 0, payload_sum: 0 };
    send(ctx, &header, &[], ctx.ingress_ifindex() as u32, Counter::ResetUnknownFlow)
}
