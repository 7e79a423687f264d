//! Offering a flow to a backend: the SYN that it gets, and the RST for a client whose flow nobody takes.

use crate::header::{End, Header, syn_options};
use crate::maps::{BACKENDS, FLOWS, STASHES};
use crate::packet::{Packet, Segment};
use crate::syn::{back, send};
use crate::verdict::{Verdict, consume};
use aya_ebpf::bindings::xdp_action::XDP_REDIRECT;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::backend::Backend;
use lb_common::counter::Counter;
use lb_common::flow::Flow;
use lb_common::stash::Stash;
use lb_common::syn_cookie::Agreed;
use lb_common::tcp::{ACK, RST, SYN, rescale_window};

/// Turns the packet into a SYN to the backend of a flow.
#[inline(always)]
pub(crate) fn offer(ctx: &XdpContext, flow: u32, counter: Counter) -> Verdict {
    let bits = lb_offer(ctx.ctx, flow);
    if bits == OFFERED { Verdict::new(XDP_REDIRECT, counter) } else { Verdict::from_bits(bits) }
}

/// Makes the packet the SYN and sends it. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_offer(ctx: *mut xdp_md, flow: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let Some(flow) = FLOWS.get(flow) else { return consume(Counter::DropBusy).to_bits() };
    let Some(stash) = STASHES.get(u32::from(flow.stash)) else {
        return consume(Counter::DropNoBackendEntry).to_bits();
    };
    let verdict = offer_first(&ctx, flow, stash, Counter::Bound);
    if verdict.action() == XDP_REDIRECT { OFFERED } else { verdict.to_bits() }
}

/// Not a verdict: the SYN is on its way, under the name that the caller has for it.
const OFFERED: u64 = u64::MAX;

/// As [`offer`], for a flow that the caller has at hand.
#[inline(always)]
pub(crate) fn offer_first(ctx: &XdpContext, flow: &Flow, stash: &Stash, counter: Counter) -> Verdict {
    let Some(backend) = BACKENDS.get(u32::from(flow.head.backend)) else {
        return consume(Counter::DropNoBackendEntry);
    };
    if backend.has_next_hop == 0 {
        return consume(Counter::DropNoNextHop);
    }
    let (header, options) = syn_header(flow, stash, backend);
    send(ctx, &header, &options, backend.ifindex, counter)
}

/// The SYN for a backend: the client's own address, sequence number and timestamp, and what was agreed with it, so that
/// only the backend's half has to be translated later.
#[inline(always)]
pub(crate) fn syn_header(flow: &Flow, stash: &Stash, backend: &Backend) -> (Header, [u32; 5]) {
    let agreed = Agreed::of(flow.cookie, stash.has_timestamps != 0);
    let (scale, window) = if agreed.scales_windows() {
        (Some(agreed.window_scale), rescale_window(stash.window as u16, agreed.window_scale as i8))
    } else {
        (None, stash.window as u16)
    };
    let timestamps = if stash.has_timestamps != 0 { Some((stash.ts_val, 0)) } else { None };
    let header = Header {
        from: End { mac: backend.local_mac, addr: flow.client, port: flow.head.client_port },
        to: End { mac: backend.next_hop_mac, addr: backend.addr, port: backend.port },
        seq: flow.client_isn,
        ack: 0,
        flags: SYN,
        window,
        payload: 0,
        payload_sum: 0,
    };
    (header, syn_options(agreed.mss, agreed.sack, timestamps, scale))
}

/// Tells the client with RST that nobody serves. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_refuse(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    let truncated = consume(Counter::DropTruncated).to_bits();
    let Some(frame) = ctx.frame() else { return truncated };
    let Some(segment) = Segment::read(frame, ctx.len()) else { return truncated };
    let (from, to) = back(frame);
    let ack = segment.seq.wrapping_add(segment.payload);
    let header =
        Header { from, to, seq: segment.ack, ack, flags: RST | ACK, window: 0, payload: 0, payload_sum: 0 };
    send(&ctx, &header, &[], ctx.ingress_ifindex() as u32, Counter::ResetNoBackend).to_bits()
}
