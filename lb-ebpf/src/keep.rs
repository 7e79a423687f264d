//! Keeping the segments of clients in their stashes, and what follows from what is kept.

use crate::bounds::{Length, offset};
use crate::cold::{self, Parsed};
use crate::maps::{FLOWS, SERVICES, STASHES};
use crate::options::timestamps;
use crate::packet::{Packet, Segment};
use crate::rewrite::payload_sum;
use crate::stash::{Slot, heard, is_held, lb_view_at, of, publish};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::checksum::{at_odd_offset, fold, sub};
use lb_common::flow::WENT_ON;
use lb_common::stash::{STASH_BYTES, Stash, VIEW_FIN, VIEW_PSH, VIEW_USED, VIEWS, View};
use lb_common::tcp::{FIN, PSH};

/// Longest segment that is stashed.
pub(crate) const MAX_SEGMENT: u32 = 1500;

/// Bytes that timestamps take from every segment.
pub(crate) const TIMESTAMPS: u32 = 12;

/// Keeps the payload of a client's first segment in a stash that was just claimed, and what later SYNs need of it.
/// Returns whether it fits.
#[inline(always)]
pub(crate) fn keep_first(ctx: &XdpContext, slot: Slot, segment: &Segment) -> bool {
    let stamps = timestamps(ctx, segment.header);
    // SAFETY: a map value stays valid, and the caller has its lock.
    let stash = unsafe { &mut *slot.stash };
    stash.ts_val = stamps.map_or(0, |stamps| stamps.val);
    stash.has_timestamps = u32::from(stamps.is_some());
    stash.window = u32::from(segment.window);
    stash.limit = segment.payload;
    stash.ts_base = stamps.map_or(0, |stamps| stamps.ecr);
    if segment.payload > STASH_BYTES as u32 {
        return false;
    }
    let view = view(ctx, segment, 0);
    if !copy(ctx, segment.payload_at(), slot, 0, segment.payload) {
        return false;
    }
    // Nobody looks at it before the flow's head is published, which is a barrier.
    stash.views[0] = view.to_bits();
    true
}

/// Keeps the payload of a client's segment, which begins at offset `at` of its stream, in a stash that the caller has
/// locked. Returns 0 when it does not fit.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_keep(ctx: *mut xdp_md, service: u32, stash: u32, at: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let (Some(entry), Some(place)) = (SERVICES.get(service), STASHES.get_ptr_mut(stash)) else { return 0 };
    let Some(Parsed { segment, .. }) = cold::parse(&ctx, service) else { return 0 };
    let slot = Slot { stash: place, index: stash as u16 };
    if at.wrapping_add(segment.payload) > STASH_BYTES as u32 || at > STASH_BYTES as u32 {
        return 0;
    }
    let view = view(&ctx, &segment, at);
    if is_held(slot, view) {
        // Not copied again: with other bytes than before, its checksum would not be theirs.
        return 1;
    }
    let copied = segment.payload == 0 || copy(&ctx, segment.payload_at(), slot, at, segment.payload);
    // SAFETY: a map value stays valid, and the caller has its lock.
    let options = if unsafe { (*place).has_timestamps } != 0 { TIMESTAMPS } else { 0 };
    u32::from(copied && publish(slot, view, u32::from(entry.mss).wrapping_sub(options)))
}

/// The packet's payload as a segment of the stash.
#[inline(always)]
fn view(ctx: &XdpContext, segment: &Segment, at: u32) -> View {
    let mut flags = VIEW_USED;
    if segment.flags & PSH != 0 {
        flags |= VIEW_PSH;
    }
    if segment.flags & FIN != 0 {
        flags |= VIEW_FIN;
    }
    View { at: at as u16, len: segment.payload as u16, sum: payload_sum(ctx, segment), flags }
}

/// Copies `len` bytes at `from` of the packet to offset `at` of the stream. Returns whether they fit.
#[inline(always)]
fn copy<P: Packet>(packet: &P, from: u32, slot: Slot, at: u32, len: u32) -> bool {
    let (Some(at), Some(len)) = (offset::<{ STASH_BYTES as u32 }>(at), Length::new::<MAX_SEGMENT>(len))
    else {
        return false;
    };
    // SAFETY: the stash has room for a longest segment at the last offset.
    unsafe { packet.copy(from, (&raw mut (*slot.stash).bytes).cast::<u8>().add(at), len) }
}

/// Bytes that one call of the kernel's adds up.
const PIECE: u32 = 512;

/// What [`lb_is_intact`] says of a stash: a checksum was wrong...
pub(crate) const CORRUPT: u32 = 0;
/// ...all were right...
pub(crate) const INTACT: u32 = 1;
/// ...or that cannot be told, because segments overlap.
pub(crate) const ENTANGLED: u32 = 2;

/// Whether the checksums of the segments were right that a client's stream of `len` bytes begins with.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_is_intact(index: u32, len: u32) -> u32 {
    let Some(stash) = STASHES.get(index) else { return ENTANGLED };
    let (mut end, mut told) = (0, 0_u64);
    let mut i = 0;
    while i < VIEWS {
        let view = View::from_bits(lb_view_at(index, end));
        if view.len == 0 {
            break;
        }
        told += u64::from(if end & 1 == 1 { at_odd_offset(view.sum) } else { view.sum });
        end = view.end();
        i += 1;
    }
    if end != len {
        return ENTANGLED;
    }
    let mut sum = 0;
    let mut at = 0;
    while at < STASH_BYTES as u32 {
        if at + PIECE > end {
            break;
        }
        // SAFETY: the stash has room behind its last byte.
        sum = unsafe { sum_piece(stash, at, Length::of::<PIECE>(), sum) };
        at += PIECE;
    }
    let rest = end.wrapping_sub(at);
    let whole = rest & (PIECE - 4);
    if let (Some(len), Some(from)) = (Length::new::<PIECE>(whole), offset::<{ STASH_BYTES as u32 }>(at)) {
        // SAFETY: as above.
        sum = unsafe { sum_piece(stash, from as u32, len, sum) };
    }
    let mut seen = u64::from(sum);
    if rest & 3 != 0
        && let Some(from) = offset::<{ STASH_BYTES as u32 }>(at + whole)
    {
        // SAFETY: as above.
        let word = unsafe { core::ptr::read_unaligned(stash.bytes.as_ptr().add(from).cast::<u32>()) };
        seen += u64::from(word & ((1 << (8 * (rest & 3))) - 1));
    }
    // One's complement has two zeros.
    if matches!(sub(fold(seen), fold(told)), 0 | 0xffff) { INTACT } else { CORRUPT }
}

/// Adds up a piece of a stash, its length a multiple of four.
///
/// # Safety
/// The stash has `len` bytes behind `at`.
#[inline(always)]
unsafe fn sum_piece(stash: &Stash, at: u32, len: Length, seed: u32) -> u32 {
    let Some(at) = offset::<{ STASH_BYTES as u32 }>(at) else { return 0 };
    // SAFETY: the caller's promise; the helper writes nothing.
    unsafe {
        let from = stash.bytes.as_ptr().add(at).cast_mut().cast();
        aya_ebpf::helpers::bpf_csum_diff(core::ptr::null_mut(), 0, from, len.get(), seed) as u32
    }
}

/// Whether a client's segment begins in what it was told had arrived, though its backend may not have all of it: then the stash
/// is sent again instead. Notes when the client goes on behind that. 0 is no.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_is_owed(flow: u32, seq: u32, payload: u32) -> u32 {
    let Some(known) = FLOWS.get_ptr_mut(flow) else { return 0 };
    // SAFETY: a map value stays valid; its fields are plain integers.
    let (isn, index) = unsafe { ((*known).client_isn, (*known).stash) };
    let Some(slot) = of(flow, index) else { return 0 };
    let end = heard(slot.index);
    let at = seq.wrapping_sub(isn).wrapping_sub(1);
    if at.wrapping_add(payload) > end {
        // SAFETY: a map value stays valid; the client's path alone writes this.
        unsafe { (*known).client_flags |= WENT_ON };
    }
    u32::from(at < end)
}

/// Whether a backend that has sent `payload` bytes has no more use for the stash of a flow whose client was told that it had
/// arrived: it has all of that, and answers, or the client has gone on. 0 is no.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_is_acknowledged(flow: u32, ack: u32, payload: u32) -> u32 {
    let Some(known) = FLOWS.get(flow) else { return 0 };
    let Some(slot) = of(flow, known.stash) else { return 1 };
    let end = heard(slot.index);
    let has_all = ack.wrapping_sub(known.client_isn).wrapping_sub(1) >= end;
    u32::from(has_all && (payload > 0 || known.client_flags & WENT_ON != 0))
}
