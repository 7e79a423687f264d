//! A backend that ends a connection before it has said anything, and the request was safe (RFC 9110 §9.2.1): another
//! backend gets the request, and the client never knows. All that it sent still stands in the stash.

use crate::flows::{Entry, Key};
use crate::handshake::next;
use crate::maps::{FLOWS, SERVICES};
use crate::offer::offer;
use crate::packet::{Packet, Segment};
use crate::stash;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::counter::Counter;
use lb_common::flow::{ACKNOWLEDGED, FIN_SEEN, FlowState, WENT_ON};

/// Not a verdict: the flow ends the ordinary way.
pub(crate) const NOT_REPLAYED: u64 = u64::MAX;

/// By how much the client's view of timestamps jumps: more than any backend can have counted up meanwhile.
const TIMESTAMP_JUMP: u32 = 1 << 24;

const GET: u32 = u32::from_ne_bytes(*b"GET ");
const HEAD: u32 = u32::from_ne_bytes(*b"HEAD");

/// Turns a FIN or RST of a backend that has not answered into a SYN to the next one. A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_replay(ctx: *mut xdp_md, service: u32, flow: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let (Some(place), Some(entry)) = (FLOWS.get_ptr_mut(flow), SERVICES.get(service)) else {
        return NOT_REPLAYED;
    };
    let Some(frame) = ctx.frame() else { return NOT_REPLAYED };
    let Some(segment) = Segment::read(frame, ctx.len()) else { return NOT_REPLAYED };
    // SAFETY: a map value stays valid; its fields are plain integers.
    let known = unsafe { &*place };
    let was = known.head;
    let finished = (known.client_flags | known.backend_flags) & FIN_SEEN != 0;
    // It has said nothing if it ends where it began; a response may be on its way behind the end.
    let silent = segment.seq.wrapping_add(known.seq_delta) == known.cookie.wrapping_add(1);
    let went_on = known.client_flags & WENT_ON != 0;
    if was.state != FlowState::Established as u8 || finished || !silent || went_on {
        return NOT_REPLAYED;
    }
    let Some(slot) = stash::lock(flow, known.stash) else { return NOT_REPLAYED };
    // SAFETY: a map value stays valid, and this processor has its lock.
    let stash = unsafe { &mut *slot.stash };
    let method = u32::from_ne_bytes([stash.bytes[0], stash.bytes[1], stash.bytes[2], stash.bytes[3]]);
    let key = Key { client: known.client, port: was.client_port, service: service as u16 };
    let moved = (method == GET || method == HEAD)
        && next(&key, Entry { flow: place, index: flow }, was, slot, stash, entry);
    if moved {
        stash.ts_base = stash.ts_base.wrapping_add(TIMESTAMP_JUMP);
        // SAFETY: a map value stays valid.
        unsafe { (*place).client_flags |= ACKNOWLEDGED };
    }
    stash::unlock(slot);
    if moved { offer(&ctx, flow, Counter::Replayed).to_bits() } else { NOT_REPLAYED }
}
