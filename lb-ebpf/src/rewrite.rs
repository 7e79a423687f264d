//! The established path: addresses, ports, sequence numbers, timestamps, SACK blocks, windows, and the checksums that
//! follow from them, all incremental (RFC 1624), so a segment that was corrupt stays corrupt.

use crate::atomic::fill;
use crate::bounds::Length;
use crate::maps::AREA;
use crate::options;
use crate::packet::{Frame, Packet, Segment, at, read, write};
use aya_ebpf::programs::XdpContext;
use lb_common::addr::{Addr, Be16, Mac};
use lb_common::backend::Backend;
use lb_common::checksum::{change16, change32, fold, sub, sum_addr, update};
use lb_common::flow::Flow;
use lb_common::syn_cookie::Agreed;
use lb_common::tcp::{ACK, MAX_OPTIONS, NOP_NOP_TIMESTAMP, rescale_window};

/// A segment of a client, for its backend. Sequence numbers and TSval are the same on both halves; acknowledgement,
/// SACK blocks and TSecr speak of the backend's numbers and are shifted back.
#[inline(always)]
pub(crate) fn to_backend(ctx: &XdpContext, frame: Frame, segment: &Segment, flow: &Flow, backend: &Backend) {
    let mut change = u64::from(backend.tcp_delta);
    if segment.has(ACK) {
        change += shift_word::<{ at::TCP_ACK }>(frame, segment.ack.wrapping_sub(flow.seq_delta));
    }
    if segment.header > 20 {
        change += options_to_backend(ctx, segment.header, flow.seq_delta, flow.ts_delta);
    }
    if flow.backend_flags & lb_common::flow::RESCALE_CLIENT != 0 {
        let timestamps = options::timestamps(ctx, segment.header).is_some();
        change += rescale(frame, segment, Agreed::of(flow.cookie, timestamps).window_scale as i8);
    }
    frame.store::<{ at::TCP_DST }, Be16>(backend.port);
    frame.store::<{ at::IP_DST }, u32>(backend.addr.v4_bits());
    frame.store::<{ at::TCP_CHECK }, u16>(update(frame.load::<{ at::TCP_CHECK }, u16>(), change));
    forward(frame, u64::from(backend.ip_delta), backend.local_mac, backend.next_hop_mac);
}

/// A segment of a backend, for its client: sequence number and TSval are shifted to what the client knows.
#[inline(always)]
pub(crate) fn to_client(
    ctx: &XdpContext,
    frame: Frame,
    segment: &Segment,
    flow: &Flow,
    backend: &Backend,
    service: (Addr, Be16),
) {
    // What the backend's address and port add on the way there is taken away on the way back.
    let mut change = u64::from(!backend.tcp_delta);
    change += shift_word::<{ at::TCP_SEQ }>(frame, segment.seq.wrapping_add(flow.seq_delta));
    if segment.header > 20 {
        change += options_to_client(ctx, segment.header, flow.ts_delta);
    }
    if flow.head.window_shift != 0 {
        change += rescale(frame, segment, flow.head.window_shift);
    }
    frame.store::<{ at::TCP_SRC }, Be16>(service.1);
    frame.store::<{ at::IP_SRC }, u32>(service.0.v4_bits());
    frame.store::<{ at::TCP_CHECK }, u16>(update(frame.load::<{ at::TCP_CHECK }, u16>(), change));
    forward(frame, u64::from(!backend.ip_delta), flow.local_mac, flow.client_mac);
}

/// What every router does: one hop less to live, new link addresses.
#[inline(always)]
pub(crate) fn forward<const ROOM: usize>(frame: Frame<ROOM>, ip_change: u64, from: Mac, to: Mac) {
    let ttl = frame.load::<{ at::IP_TTL }, u16>();
    let lower = ttl.wrapping_sub(0x0100_u16.to_be());
    frame.store::<{ at::IP_TTL }, u16>(lower);
    let check = frame.load::<{ at::IP_CHECK }, u16>();
    frame.store::<{ at::IP_CHECK }, u16>(update(check, ip_change + change16(ttl, lower)));
    frame.store::<{ at::ETH_SRC }, Mac>(from);
    frame.store::<{ at::ETH_DST }, Mac>(to);
}

/// Whether the packet has a hop left to live.
#[inline(always)]
pub(crate) fn has_hop_left<const ROOM: usize>(frame: Frame<ROOM>) -> bool {
    frame.load::<{ at::IP_TTL }, u8>() > 1
}

/// Writes a number in network order over another; returns the change of the sum.
#[inline(always)]
fn shift_word<const AT: usize>(frame: Frame, to: u32) -> u64 {
    let (old, new) = (frame.load::<AT, u32>(), to.to_be());
    frame.store::<AT, u32>(new);
    change32(old, new)
}

#[inline(always)]
fn rescale(frame: Frame, segment: &Segment, shift: i8) -> u64 {
    let (old, new) = (segment.window.to_be(), rescale_window(segment.window, shift).to_be());
    frame.store::<{ at::TCP_WINDOW }, u16>(new);
    change16(old, new)
}

/// The second option word of a segment with timestamps and SACK blocks: two no-operations, kind 5; the length is in
/// the last byte.
const NOP_NOP_SACK: u32 = 0x0101_0500_u32.to_be();
const BUT_LENGTH: u32 = 0xffff_ff00_u32.to_be();

#[inline(always)]
fn options_to_backend(ctx: &XdpContext, header: u32, seq_delta: u32, ts_delta: u32) -> u64 {
    if let Some(start) = timestamps_first(ctx, header) {
        // SAFETY: `timestamps_first` proved twelve bytes of options.
        let change = unsafe { shift_at(start.wrapping_add(at::OPTIONS + 8), ts_delta.wrapping_neg()) };
        if header == 32 {
            return change;
        }
        if let Some(start) = ctx.window(at::OPTIONS + 16) {
            // SAFETY: sixteen bytes of options proved.
            let word: u32 = unsafe { read(start.add(at::OPTIONS + 12)) };
            if word & BUT_LENGTH == NOP_NOP_SACK {
                return change + sack_blocks(ctx, header, seq_delta);
            }
        }
        return change + uncommon(ctx, header, seq_delta, 0, TO_BACKEND);
    }
    uncommon(ctx, header, seq_delta, ts_delta, TO_BACKEND)
}

#[inline(always)]
fn options_to_client(ctx: &XdpContext, header: u32, ts_delta: u32) -> u64 {
    match timestamps_first(ctx, header) {
        // SAFETY: `timestamps_first` proved twelve bytes of options.
        Some(start) => unsafe { shift_at(start.wrapping_add(at::OPTIONS + 4), ts_delta) },
        None => uncommon(ctx, header, 0, ts_delta, TO_CLIENT),
    }
}

/// The packet, if its options begin with timestamps the way every common stack sends them.
#[inline(always)]
fn timestamps_first(ctx: &XdpContext, header: u32) -> Option<*mut u8> {
    if header < 32 {
        return None;
    }
    let start = ctx.window(at::OPTIONS + 12)?;
    // SAFETY: twelve bytes of options proved.
    if unsafe { read::<u32>(start.add(at::OPTIONS)) } == NOP_NOP_TIMESTAMP { Some(start) } else { None }
}

/// Up to three SACK blocks behind timestamps (RFC 2018 §3): shifts both edges of each back.
#[inline(always)]
fn sack_blocks(ctx: &XdpContext, header: u32, seq_delta: u32) -> u64 {
    let mut change = 0;
    let mut i = 0;
    while i < 3 {
        let from = at::OPTIONS + 16 + 8 * i;
        if header as usize + at::TCP < from + 8 {
            break;
        }
        let Some(start) = ctx.window(from + 8) else { break };
        // SAFETY: the window covers both words of this block.
        unsafe {
            change += shift_at(start.wrapping_add(from), seq_delta.wrapping_neg());
            change += shift_at(start.wrapping_add(from + 4), seq_delta.wrapping_neg());
        }
        i += 1;
    }
    change
}

/// Adds to a number in network order; returns the change of the sum, as at an even offset.
///
/// # Safety
/// Four bytes at `place` are proved.
#[inline(always)]
unsafe fn shift_at(place: *mut u8, add: u32) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        let old: u32 = read(place);
        let new = u32::from_be(old).wrapping_add(add).to_be();
        write(place, new);
        change32(old, new)
    }
}

const TO_BACKEND: u32 = 4;
const TO_CLIENT: u32 = 0;

/// Options in any other order. `which` is the offset of the timestamp to shift within its option: TSecr towards the
/// backend, TSval towards the client. A delta of 0 changes nothing.
#[inline(never)]
fn uncommon(ctx: &XdpContext, header: u32, seq_delta: u32, ts_delta: u32, which: u32) -> u64 {
    let Some(area) = options::walk(ctx, header) else { return 0 };
    let found = area.options;
    let mut change = 0;
    if found.timestamps_at != 0 {
        let delta = if which == TO_BACKEND { ts_delta.wrapping_neg() } else { ts_delta };
        change += shift_option(ctx, u32::from(found.timestamps_at) - 1 + which, delta);
    }
    if which == TO_BACKEND && found.sack_at != 0 {
        let at = u32::from(found.sack_at) - 1;
        let mut i = 0;
        while i < 8 {
            if i < 2 * u32::from(found.sack_blocks) {
                change += shift_option(ctx, at + 4 * i, seq_delta.wrapping_neg());
            }
            i += 1;
        }
    }
    change
}

/// Adds to the number at an offset of the options. At an odd offset its bytes weigh the other way round.
#[inline(always)]
fn shift_option(ctx: &XdpContext, offset: u32, add: u32) -> u64 {
    let Some(place) = ctx.field(at::OPTIONS as u32 + offset, 4) else { return 0 };
    // SAFETY: `field` proved four bytes.
    let change = fold(unsafe { shift_at(place, add) });
    u64::from(if offset & 1 == 1 { lb_common::checksum::at_odd_offset(change) } else { change })
}

/// Sum of a segment's payload, derived from the segment's own checksum: what was corrupt on the wire stays detectable
/// where the payload is sent on under another header.
#[inline(always)]
pub(crate) fn payload_sum(ctx: &XdpContext, segment: &Segment) -> u16 {
    let Some(frame) = ctx.frame() else { return 0 };
    let (src, dst) = (frame.load::<{ at::IP_SRC }, u32>(), frame.load::<{ at::IP_DST }, u32>());
    let mut sum = sum_addr(Addr::from_v4_bits(src)) + sum_addr(Addr::from_v4_bits(dst));
    sum +=
        lb_common::checksum::sum_pseudo(lb_common::tcp::PROTOCOL, (segment.header + segment.payload) as u16);
    sum += u64::from(frame.load::<{ at::TCP }, u32>());
    sum += u64::from(frame.load::<{ at::TCP_SEQ }, u32>());
    sum += u64::from(frame.load::<{ at::TCP_ACK }, u32>());
    sum += u64::from(frame.load::<{ at::TCP_OFFSET }, u32>());
    sum += u64::from(frame.load::<{ at::TCP_CHECK + 2 }, u16>());
    sum += options_sum(ctx, segment.header);
    sub(!frame.load::<{ at::TCP_CHECK }, u16>(), fold(sum))
}

#[inline(always)]
fn options_sum(ctx: &XdpContext, header: u32) -> u64 {
    if header == 20 {
        return 0;
    }
    if header == 32 {
        return match ctx.window(at::OPTIONS + 12) {
            // SAFETY: twelve bytes of options proved.
            Some(start) => sum_words(&unsafe { read::<[u32; 3]>(start.add(at::OPTIONS)) }),
            None => 0,
        };
    }
    // Not on the stack, of which a chain of calls has little.
    let Some(area) = AREA.get_ptr_mut(0) else { return 0 };
    let words = area.cast::<[u32; MAX_OPTIONS / 4]>();
    let Some(len) = Length::new::<{ MAX_OPTIONS as u32 }>(header.wrapping_sub(20)) else { return 0 };
    // SAFETY: the area begins with room for the longest options and belongs to this processor while the program runs.
    unsafe {
        fill::<{ MAX_OPTIONS / 8 }>(words.cast(), 0);
        ctx.copy(at::OPTIONS as u32, words.cast(), len);
        sum_words(&*words)
    }
}

#[inline(always)]
fn sum_words<const N: usize>(words: &[u32; N]) -> u64 {
    let mut sum = 0;
    let mut i = 0;
    while i < N {
        sum += u64::from(words[i]);
        i += 1;
    }
    sum
}
