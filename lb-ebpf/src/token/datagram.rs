//! The token, or the key that is hashed or was learned, at its place in a datagram: at an offset, at the end, or behind a marker.
//!
//! Works on a copy in this processor's scratch memory, which is a stash that no flow has.

use super::{ABSENT, Found, HASHED, verify, verify_raw};
use crate::atomic::fill;
use crate::bounds::Length;
use crate::maps::{SCRATCH, SERVICES, settings};
use crate::packet::{Packet, SHORT};
use crate::token::http::recognise;
use crate::token::text::{At, Bytes, NOWHERE, TURNS, search, zeros};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::hash::{Sip, mix64};
use lb_common::home::usable;
use lb_common::service::{Affinity, MARKER_ROOM, MAX_KEY, Place, Service};
use lb_common::settings::Settings;
use lb_common::stash::Stash;
use lb_common::token::{TOKEN_LEN, TOKEN_TEXT_LEN};

/// How many places are looked at that could be the marker.
const HITS: u32 = 32;

/// Looks for the service's key in a datagram with a payload of `len` bytes; what it says is in the scratch stash.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_datagram_key(ctx: *mut xdp_md, service: u32, len: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let (Some(settings), Some(entry), Some(scratch)) =
        (settings(), SERVICES.get(service), SCRATCH.get_ptr_mut(0))
    else {
        return ABSENT;
    };
    // SAFETY: the value belongs to this processor while the program runs.
    let scratch = unsafe { &mut *scratch };
    let key = u32::from(entry.key_len);
    let at = u32::from(entry.key_at);
    let from = match Place::from_bits(entry.place) {
        Place::End => len.wrapping_sub(key + at),
        Place::Marker => match behind_marker(&ctx, entry, service, scratch, len) {
            NOWHERE => return ABSENT,
            behind => behind + at,
        },
        _ => at,
    };
    if from > len || key > len - from {
        return ABSENT;
    }
    read(&ctx, settings, entry, scratch, SHORT as u32 + from)
}

/// Leaves in the scratch stash where the session is at home whose key stands there. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_known_key(service: u32) -> u32 {
    let tag = lb_tag_key(service);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return ABSENT };
    // SAFETY: the value belongs to this processor while the program runs.
    recognise(unsafe { &mut *scratch }, service, tag)
}

/// The tag of the key that stands in the scratch stash. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_tag_key(service: u32) -> u64 {
    let (Some(scratch), Some(entry)) = (SCRATCH.get(0), SERVICES.get(service)) else { return 0 };
    tag_of_key(scratch, service, entry)
}

/// Reads the key at an offset of the frame.
#[inline(always)]
fn read(ctx: &XdpContext, settings: &Settings, entry: &Service, scratch: &mut Stash, from: u32) -> Found {
    let bytes = (&raw mut scratch.bytes).cast::<u8>();
    if entry.affinity != Affinity::Signed as u8 {
        let Some(len) = Length::new::<{ MAX_KEY as u32 }>(u32::from(entry.key_len)) else { return ABSENT };
        // SAFETY: a map value has room for a longest key and more.
        unsafe {
            fill::<{ MAX_KEY / 8 }>(bytes.cast(), 0);
            if !ctx.copy(from, bytes, len) {
                return ABSENT;
            }
        }
        scratch.hash = hash(scratch);
        return HASHED;
    }
    // SAFETY: a map value has room for a token, as text and raw.
    unsafe {
        if entry.key_len as usize == TOKEN_LEN {
            if !ctx.copy(from, (&raw mut scratch.token).cast(), Length::of::<{ TOKEN_LEN as u32 }>()) {
                return ABSENT;
            }
            return verify_raw(settings, scratch);
        }
        if !ctx.copy(from, bytes, Length::of::<{ TOKEN_TEXT_LEN as u32 }>()) {
            return ABSENT;
        }
        verify(settings, bytes, scratch)
    }
}

/// Of the key that stands in the scratch stash, zeros behind it: the same on every node.
#[inline(always)]
fn hash(scratch: &Stash) -> u32 {
    let mut hash = 0;
    let mut i = 0;
    while i < MAX_KEY / 8 {
        // SAFETY: within the bytes of a map value, which are aligned.
        hash = mix64(hash ^ unsafe { scratch.bytes.as_ptr().cast::<u64>().add(i).read() });
        i += 1;
    }
    hash as u32
}

/// The tag of the key that stands in the scratch stash: see [`lb_common::home::tag`].
#[inline(always)]
fn tag_of_key(scratch: &Stash, service: u32, entry: &Service) -> u64 {
    let Some(settings) = settings() else { return 0 };
    let mut sip = Sip::new(&settings.home_key);
    sip.absorb(u64::from(service as u16));
    let len = usize::from(entry.key_len);
    let mut i = 0;
    while i < MAX_KEY / 8 && 8 * i < len {
        // SAFETY: within the bytes of a map value, which are aligned.
        sip.absorb(unsafe { scratch.bytes.as_ptr().cast::<u64>().add(i).read() });
        i += 1;
    }
    sip.absorb(len as u64);
    usable(sip.finish())
}

/// Offset in the payload behind the marker, or [`NOWHERE`].
#[inline(always)]
fn behind_marker(ctx: &XdpContext, entry: &Service, service: u32, scratch: &mut Stash, len: u32) -> u32 {
    let Some(room) = Length::at_most::<{ MARKER_ROOM as u32 }>(len) else { return NOWHERE };
    scratch.limit = room.get();
    // SAFETY: a map value has room for a longest segment.
    if !unsafe { ctx.copy(SHORT as u32, (&raw mut scratch.bytes).cast(), room) } {
        return NOWHERE;
    }
    let bytes = Bytes::of(scratch);
    let [marker, mask] = entry.marker;
    let mut from = 0;
    let mut turn = 0;
    while turn < HITS {
        let hit = lb_next_marker(service, from);
        if hit == NOWHERE {
            return NOWHERE;
        }
        if (bytes.word(At::new(u64::from(hit)), 0) ^ marker) & mask == 0 {
            return hit + entry.marker_len();
        }
        from = hit + 1;
        turn += 1;
    }
    NOWHERE
}

/// Finds the next place in the scratch stash where the marker's first byte stands.
///
/// A global function, because it is a loop (see [`crate::token::http`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_marker(service: u32, from: u32) -> u32 {
    let (Some(scratch), Some(entry)) = (SCRATCH.get(0), SERVICES.get(service)) else { return NOWHERE };
    let first = (entry.marker[0] & 0xff).wrapping_mul(0x0101_0101_0101_0101);
    let bytes = Bytes::of(scratch);
    search::<TURNS>(bytes, from, |at, n| zeros(bytes.word(at, n) ^ first))
}
