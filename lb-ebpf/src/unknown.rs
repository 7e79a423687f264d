//! A segment of a client whose flow is not in the table: the second half of the cookie handshake, a keep-alive, a FIN,
//! or a connection that nobody knows.

use crate::flows::{Key, jiffies};
use crate::handshake;
use crate::header::{Header, timestamp_options};
use crate::options::{Timestamps, timestamps};
use crate::packet::{Frame, Segment};
use crate::syn::{back, peer, send};
use crate::verdict::{Verdict, consume};
use aya_ebpf::programs::XdpContext;
use lb_common::counter::Counter;
use lb_common::flow::Flow;
use lb_common::settings::Settings;
use lb_common::syn_cookie::{self, Agreed, is_fresh};
use lb_common::tcp::{ACK, FIN, RST};

/// What a segment proves about the handshake it belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Proof {
    /// The first in sequence after the handshake.
    First,
    /// One byte before that: a keep-alive probe (RFC 9293 §3.8.4).
    KeepAlive,
    /// Behind that: something before it is missing.
    Later,
    /// The acknowledgement of a FIN of ours.
    Last,
    /// Nothing.
    None,
}

/// Client → service, no flow.
#[inline(never)]
pub(crate) fn handle(
    ctx: &XdpContext,
    frame: Frame,
    settings: &'static Settings,
    key: &Key,
    segment: &Segment,
) -> Verdict {
    if segment.flags & RST != 0 {
        return consume(Counter::DropUnknownRst);
    }
    let stamps = timestamps(ctx, segment.header);
    match prove(settings, key, segment, stamps) {
        Proof::First if segment.payload > 0 => handshake::bind(ctx, frame, settings, key, segment, stamps),
        Proof::First if segment.flags & FIN != 0 => answer(ctx, frame, segment, stamps, Counter::FinAnswered),
        Proof::First | Proof::Last => consume(Counter::HandshakeAck),
        Proof::KeepAlive => answer(ctx, frame, segment, stamps, Counter::KeepAliveAnswered),
        Proof::Later => consume(Counter::DropFirstSegmentMissing),
        Proof::None => reset(ctx, frame, segment),
    }
}

/// A client that uses timestamps echoes its initial sequence number, so where a segment stands in its stream is known
/// before the cookie is checked. Without them, the places that matter are tried one by one.
#[inline(always)]
fn prove(settings: &Settings, key: &Key, segment: &Segment, stamps: Option<Timestamps>) -> Proof {
    let now = settings.slot(jiffies());
    let (cookie, after_fin) = (segment.ack.wrapping_sub(1), segment.ack.wrapping_sub(2));
    let bare = segment.payload == 0 && segment.flags & FIN == 0;
    if let Some(stamps) = stamps {
        let isn = stamps.ecr;
        if check(settings, key, isn, cookie, now) {
            return match segment.seq.wrapping_sub(isn) {
                1 => Proof::First,
                0 if segment.payload <= 1 => Proof::KeepAlive,
                2 if bare => Proof::Last,
                _ => Proof::Later,
            };
        }
        let last = bare && check(settings, key, isn, after_fin, now);
        return if last { Proof::Last } else { Proof::None };
    }
    if check(settings, key, segment.seq.wrapping_sub(1), cookie, now) {
        return Proof::First;
    }
    if segment.payload <= 1 && check(settings, key, segment.seq, cookie, now) {
        return Proof::KeepAlive;
    }
    if bare {
        let last = check(settings, key, segment.seq.wrapping_sub(2), after_fin, now);
        return if last { Proof::Last } else { Proof::None };
    }
    // The second of two full segments; and, where the first was not full, the benefit of the doubt: the client sends
    // both again, and an RST would kill a healthy connection.
    let behind_full = segment.seq.wrapping_sub(1 + u32::from(Agreed::of(cookie).mss()));
    if check(settings, key, behind_full, cookie, now) || is_fresh(cookie, now) {
        return Proof::Later;
    }
    Proof::None
}

#[inline(never)]
fn check(settings: &Settings, key: &Key, isn: u32, cookie: u32, now: u32) -> bool {
    syn_cookie::check(settings, &peer(key), isn, cookie, now)
}

/// Whether a segment on a known flow proves a handshake other than the flow's: the client has begun anew on the same
/// port. Its SYN alone proves nothing, anybody could have sent it.
#[inline(always)]
pub(crate) fn is_reborn(
    ctx: &XdpContext,
    settings: &Settings,
    key: &Key,
    flow: &Flow,
    segment: &Segment,
) -> bool {
    let now = settings.slot(jiffies());
    let cookie = segment.ack.wrapping_sub(1);
    if !is_fresh(cookie, now) || segment.flags & ACK == 0 {
        return false;
    }
    let isn = match timestamps(ctx, segment.header) {
        Some(stamps) => stamps.ecr,
        None => segment.seq.wrapping_sub(1),
    };
    (isn != flow.client_isn || cookie != flow.cookie) && check(settings, key, isn, cookie, now)
}

/// Answers a keep-alive probe, or a FIN, of a connection that has sent no data: as the backend would.
#[inline(always)]
fn answer(
    ctx: &XdpContext,
    frame: Frame,
    segment: &Segment,
    stamps: Option<Timestamps>,
    counter: Counter,
) -> Verdict {
    let (from, to) = back(frame);
    let fin = counter as u32 == Counter::FinAnswered as u32;
    let first = if fin { segment.seq } else { segment.seq.wrapping_add(1) };
    let header = Header {
        from,
        to,
        seq: segment.ack,
        ack: first.wrapping_add(u32::from(fin)),
        flags: if fin { ACK | FIN } else { ACK },
        window: 2 * Agreed::of(segment.ack.wrapping_sub(1)).mss(),
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
#[inline(always)]
fn reset(ctx: &XdpContext, frame: Frame, segment: &Segment) -> Verdict {
    let (from, to) = back(frame);
    let header =
        Header { from, to, seq: segment.ack, ack: 0, flags: RST, window: 0, payload: 0, payload_sum: 0 };
    send(ctx, &header, &[], ctx.ingress_ifindex() as u32, Counter::ResetUnknownFlow)
}
