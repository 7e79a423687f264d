//! Whose request it is, on a connection that carries several: a proxy's, or a browser's whose session began elsewhere. What a
//! response says of the service's cookie is said of the session that its own request came with.
//!
//! Only a segment that begins as a request does is looked at, in a stash of this processor's own.

use crate::bounds::Length;
use crate::flows::Entry;
use crate::homes::set_key;
use crate::maps::{BACKENDS, FLOW_KEYS, FLOWS, SERVICES, STASHES, count, settings};
use crate::packet::{Packet, Segment, read};
use crate::token::LEARNED;
use crate::token::http::find;
use crate::token::text::{At, Bytes, SPACES, lowest, zeros};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use bytemuck::Zeroable;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::flow::{Flow, LEARNS};
use lb_common::service::{Affinity, Service};
use lb_common::stash::STASH_BYTES;

/// Shortest request that is looked at, in bytes: `GET / HTTP/1.1` and the empty line.
const SHORTEST: u32 = 18;

/// No window is larger (RFC 7323 §2.3), so what is sent again does not begin further back, in bytes.
const MAX_WINDOW: u32 = 1 << 30;

/// What tells capital letters, in every byte: 0x40 to 0x5f, of which few others are ever sent.
const CAPITALS: u64 = 0x4040_4040_4040_4040;
const CAPITALS_MASK: u64 = 0xe0e0_e0e0_e0e0_e0e0;

/// Notes that a flow begins with a request at a sequence number, if its service learns. Returns the flow's flag for that.
#[inline(always)]
pub(crate) fn begin(service: u16, flow: u32, seq: u32) -> u8 {
    let learns = |service: &Service| service.affinity == Affinity::Learned as u8;
    if !SERVICES.get(u32::from(service)).is_some_and(learns) {
        return 0;
    }
    if let Some(known) = FLOW_KEYS.get_ptr_mut(flow) {
        // SAFETY: a map value stays valid; the entry is nobody else's before the flow is published.
        unsafe { (*known) = lb_common::home::Asked { at: seq, asked: 1, ..Zeroable::zeroed() } };
    }
    LEARNS
}

/// Looks at a segment of a client before it is changed.
#[inline(always)]
pub(crate) fn from_request(ctx: &XdpContext, service: u16, entry: Entry, flow: &Flow, segment: &Segment) {
    if flow.client_flags & LEARNS != 0 && segment.payload >= SHORTEST && begins_a_request(ctx, segment) {
        lb_asked(ctx.ctx, u32::from(service), entry.index);
    }
}

/// Whether a segment begins with a method (RFC 9110 §9), of three to seven letters and a space, or of more letters.
#[inline(always)]
fn begins_a_request(ctx: &XdpContext, segment: &Segment) -> bool {
    let Some(at) = ctx.field(segment.payload_at(), 8) else { return false };
    // SAFETY: `field` proved eight bytes.
    let word = unsafe { read::<u64>(at) };
    let spaces = zeros(word ^ SPACES);
    // All bytes below the first space.
    let method = (spaces & spaces.wrapping_neg()).wrapping_sub(1) >> 7;
    let method = if spaces == 0 { u64::MAX } else { method };
    method >= 0x00ff_ffff && (word ^ CAPITALS) & CAPITALS_MASK & method == 0
}

/// Notes whose a request is. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_asked(ctx: *mut xdp_md, service: u32, flow: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let (Some(settings), Some(known), Some(frame)) = (settings(), FLOW_KEYS.get_ptr_mut(flow), ctx.frame())
    else {
        return 0;
    };
    let Some(segment) = Segment::read(frame, ctx.len()) else { return 0 };
    // SAFETY: a map value stays valid; the client's path alone writes this.
    let behind = unsafe { (*known).at }.wrapping_sub(segment.seq);
    // SAFETY: the helper takes nothing and returns a number.
    let processor = unsafe { aya_ebpf::helpers::bpf_get_smp_processor_id() };
    let index = settings.stash_mask.wrapping_add(1).wrapping_add(processor);
    let Some(stash) = STASHES.get_ptr_mut(index) else { return 0 };
    let Some(len) = Length::at_most::<{ STASH_BYTES as u32 }>(segment.payload) else { return 0 };
    if behind < MAX_WINDOW || len.get() < SHORTEST {
        // Sent again.
        return 0;
    }
    // SAFETY: a map value stays valid, and this one is this processor's while the program runs; it has room for as much.
    unsafe {
        if !ctx.copy(segment.payload_at(), (&raw mut (*stash).bytes).cast(), len) {
            return 0;
        }
        (*stash).limit = len.get();
    }
    // SAFETY: as above.
    let bytes = Bytes::of(unsafe { &*stash });
    if !asks(bytes) {
        return 0;
    }
    // SAFETY: a map value stays valid; the client's path alone writes these.
    unsafe {
        (*known).at = segment.seq;
        (*known).asked = (*known).one_more();
        (*known).heads <<= 1;
    }
    // The flow's for as long as its key is looked for.
    // SAFETY: as above.
    unsafe { (*stash).owner = u64::from(flow) + 1 };
    let found = find(service, index, 0);
    // SAFETY: as above.
    if found == LEARNED && is_elsewhere(flow, service, u32::from(unsafe { (*stash).claim.slot })) {
        count(service as u16, Counter::KeptElsewhere as u32);
    }
    // SAFETY: as above.
    unsafe {
        if (*stash).whole == 0 {
            // More cookies may follow in another segment, which is not looked at: whose it is, is not known.
            set_key(flow, 0);
        }
        (*stash).owner = 0;
    }
    found
}

/// Whether the backend in a slot would have got the request, had it begun a connection, and is not the flow's.
#[inline(always)]
fn is_elsewhere(flow: u32, service: u32, slot: u32) -> bool {
    let serves = |backend: &lb_common::backend::Backend| {
        u32::from(backend.service) == service && State::from_bits(backend.state).serves_sessions()
    };
    FLOWS.get(flow).is_some_and(|flow| u32::from(flow.head.backend) != slot)
        && BACKENDS.get(slot).is_some_and(serves)
}

/// Whether a target stands behind the method (RFC 9112 §3.2): a path, a whole URL, or an asterisk. Text seldom goes on like
/// that.
#[inline(always)]
fn asks(bytes: Bytes) -> bool {
    let (near, far) = (zeros(bytes.word(At::new(0), 0) ^ SPACES), zeros(bytes.word(At::new(8), 0) ^ SPACES));
    let space = if near != 0 {
        lowest(near)
    } else if far != 0 {
        8 + lowest(far)
    } else {
        return false;
    };
    let behind = bytes.byte(At::new(space).plus(1));
    matches!(behind, b'/' | b'h' | b'H' | b'*')
}
