//! What an HTTP client is told when no backend takes its request: 503 (RFC 9110 §15.6.4), and the end of the connection.
//!
//! The flow stays in the table without a backend, for as long as closing ones do: its client may repeat the request, because
//! the response was lost, and may be sending the rest of it. That is acknowledged and dropped, as servers do that linger: an
//! RST could reach the client before it has read the response (RFC 9112 §9.6).

use crate::cold::{self, Parsed};
use crate::flows::{self, Entry};
use crate::header::{self, End, Header, MAX_HEADER, timestamp_options};
use crate::maps::{FLOWS, SERVICES};
use crate::options::timestamps;
use crate::packet::{BASE, Packet, write};
use crate::syn::{resize, scale_of, send};
use crate::unknown::reset;
use crate::verdict::{consume, leave};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum::{fold, sum_bytes};
use lb_common::counter::Counter;
use lb_common::flow::{FORGOTTEN, FlowState, Head, NO_STASH};
use lb_common::maglev::NOBODY;
use lb_common::service::{Place, Service};
use lb_common::stash::{HTTP2, STASH_BYTES, Stash};
use lb_common::tcp::{ACK, FIN, PSH, RST, rescale_window};

/// Without a body, so that it answers HEAD as well.
const TEXT: &[u8; LEN] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n";
const LEN: usize = 99;
const SUM: u16 = fold(sum_bytes(TEXT));

/// Option words of its segments: timestamps, or as much room.
const OPTIONS: usize = 3;
const _: () = assert!(BASE + 4 * OPTIONS <= MAX_HEADER);

/// Whether a client of a service, by what it has sent, understands it.
#[inline(always)]
pub(crate) fn speaks_http(service: &Service, stash: &Stash) -> bool {
    matches!(Place::from_bits(service.place), Place::Cookie | Place::Header | Place::Query)
        && stash.notes & HTTP2 == 0
}

/// Leaves a flow that nobody takes without a backend. `heard` is the sequence number behind what its client has sent, `stamp` a
/// timestamp that is not older than any that it was shown. Returns whether the flow is as it was seen.
#[inline(always)]
pub(crate) fn keep(entry: Entry, was: Head, heard: u32, stamp: u32) -> bool {
    // What is closing makes room for others, who would then be written to; what is claimed does not.
    let claimed = Head { backend: NOBODY, state: FlowState::Claimed as u8, window_shift: 0, ..was };
    if !flows::replace(entry, was, claimed) {
        return false;
    }
    // SAFETY: a map value stays valid; nothing is translated in a flow without a backend.
    unsafe {
        (*entry.flow).seq_delta = heard;
        (*entry.flow).ts_delta = stamp;
        (*entry.flow).stash = NO_STASH;
    }
    flows::replace(entry, claimed, Head { state: FlowState::Closing as u8, ..claimed })
}

/// Answers a client's segment in such a flow, or in one that is [`FORGOTTEN`]. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_unavailable(ctx: *mut xdp_md, service: u32, flow: u32) -> u64 {
    let context = XdpContext::new(ctx);
    let Some(Parsed { segment, .. }) = cold::parse(&context, service) else {
        return consume(Counter::DropTruncated).to_bits();
    };
    let Some(known) = FLOWS.get_ptr_mut(flow) else { return consume(Counter::DropBusy).to_bits() };
    if segment.flags & RST != 0 {
        return consume(Counter::UnavailableHeard).to_bits();
    }
    // SAFETY: a map value stays valid; its fields are plain integers.
    if unsafe { (*known).head.backend } == FORGOTTEN {
        return reset(&context, &segment).to_bits();
    }
    let echo = timestamps(&context, segment.header).map_or(0, |stamps| echo(stamps.val));
    let end = segment.seq.wrapping_add(segment.payload).wrapping_add(u32::from(segment.flags & FIN != 0));
    if end == segment.seq {
        return consume(Counter::UnavailableHeard).to_bits();
    }
    // SAFETY: a map value stays valid; the client's path alone writes this.
    let unread = unsafe {
        let heard = (*known).seq_delta;
        let follows = heard.wrapping_sub(segment.seq) as i32 >= 0;
        if follows && end.wrapping_sub(heard) as i32 > 0 {
            (*known).seq_delta = end;
        }
        segment.ack == (*known).cookie.wrapping_add(1)
    };
    lb_turn_away(ctx, service, flow, echo, u32::from(unread))
}

/// A timestamp of the client, for [`lb_turn_away`]; 0 when it sends none.
#[inline(always)]
pub(crate) const fn echo(val: u32) -> u64 {
    1 << 32 | val as u64
}

/// Makes the packet a segment to the client of a flow that nobody takes: the response if it has not read that, or an
/// acknowledgement. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_turn_away(
    ctx: *mut xdp_md,
    service: u32,
    flow: u32,
    echo: u64,
    unread: u32,
) -> u64 {
    let ctx = XdpContext::new(ctx);
    let (Some(entry), Some(flow)) = (SERVICES.get(service), FLOWS.get(flow)) else {
        return consume(Counter::DropNoService).to_bits();
    };
    let scale = scale_of(entry, flow.cookie, echo != 0);
    let mut header = Header {
        from: End { mac: flow.local_mac, addr: entry.addr, port: entry.port },
        to: End { mac: flow.client_mac, addr: flow.client, port: flow.head.client_port },
        // Behind the response and the FIN.
        seq: flow.cookie.wrapping_add(2 + LEN as u32),
        ack: flow.seq_delta,
        flags: ACK,
        window: rescale_window(STASH_BYTES as u16, -scale),
        payload: 0,
        payload_sum: 0,
    };
    let options = if echo == 0 {
        // As many no-operations.
        [0x0101_0101; OPTIONS]
    } else {
        timestamp_options(flow.ts_delta, echo as u32)
    };
    if unread == 0 {
        return send(&ctx, &header, &options, flow.client_ifindex, Counter::UnavailableHeard).to_bits();
    }
    header.seq = flow.cookie.wrapping_add(1);
    header.flags = ACK | PSH | FIN;
    header.payload = LEN as u16;
    header.payload_sum = SUM;
    const AT: usize = BASE + 4 * OPTIONS;
    if !resize(&ctx, (AT + LEN) as u32) {
        return consume(Counter::DropNoRoom).to_bits();
    }
    let Some(start) = ctx.window(AT + LEN) else { return consume(Counter::DropNoRoom).to_bits() };
    // SAFETY: the window covers the headers, the options and the text, whose last word overlaps the one before it.
    unsafe {
        header::write(start, &header, &options);
        let mut i = 0;
        while i < LEN / 8 {
            write(start.add(AT + 8 * i), word(8 * i));
            i += 1;
        }
        write(start.add(AT + LEN - 8), word(LEN - 8));
    }
    leave(flow.client_ifindex, Counter::Unavailable).to_bits()
}

/// Eight bytes of the text.
#[inline(always)]
const fn word(at: usize) -> u64 {
    let (_, rest) = TEXT.split_at(at);
    match rest.first_chunk() {
        Some(bytes) => u64::from_le_bytes(*bytes),
        None => 0,
    }
}
