//! The server id in a QUIC packet's destination connection id (draft-ietf-quic-load-balancers, RFC 8999).
//!
//! Works on a copy in this processor's own memory. The cipher is a function of its own, because each of the passes that
//! undo the encryption would else be verified, and stored, again.

use super::{Found, ROUTABLE, UNROUTABLE};
use crate::atomic::launder;
use crate::maps::{QUIC, QUIC_CONFIGS, QUIC_SERVERS};
use crate::packet::{Packet, SHORT};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::aes::{self, Block};
use lb_common::quic_lb::{
    self, Config, FOUR_PASSES, NONE, PLAIN, ROTATIONS, SINGLE_PASS, Server, THREE_PASSES,
};

/// A bit of what [`lb_quic`] returns: the packet has a long header, so it may be of a connection that is only beginning,
/// whose id its client chose.
pub(crate) const LONG: u64 = 1 << 24;

/// Stands in what [`lb_quic_read`] returns when a server id can be read.
const READABLE: u64 = 1 << 25;

/// What the connection id is: [`ROUTABLE`] or [`UNROUTABLE`].
#[inline(always)]
pub(crate) const fn found(id: u64) -> Found {
    (id >> 16) as u32 & 0xff
}

/// Hash of the connection id.
#[inline(always)]
pub(crate) const fn hash(id: u64) -> u32 {
    (id >> 32) as u32
}

/// Bytes that are looked at: a long header up to its longest connection id, and what is read with that.
const ROOM: usize = 40;
/// Where the connection id begins behind a short header...
const SHORT_AT: u64 = 1;
/// ...and behind the length in a long one (RFC 8999 §5.1).
const LONG_AT: u64 = 6;

/// Value of the map [`QUIC`].
#[repr(C)]
pub(crate) struct Scratch {
    /// The beginning of a datagram, zeros behind it.
    bytes: [u64; ROOM / 8],
    /// The halves of the text between the passes; of a text that is one block, the first one is all of it. All this is
    /// not on the stack, because that has room for 512 bytes with those of every caller.
    halves: [Block; 2],
    /// What is looked up.
    server: Server,
}

/// Reads the destination connection id of a datagram with a payload of `len` bytes. Returns the slot of the backend that it
/// names, in the low 16 bits, then what was [`found`], whether the header is [`LONG`], and the [`hash`] of the id.
///
/// A global function (see [`crate::cold`]) that keeps little for itself, so that the cipher has room on the stack.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_quic(ctx: *mut xdp_md, service: u32, len: u32) -> u64 {
    let id = lb_quic_read(ctx, service, len);
    if id & READABLE == 0 {
        return id;
    }
    let id = id & !READABLE;
    let index = service * ROTATIONS + (id as u32 & 7);
    let way = QUIC_CONFIGS.get(index).map_or(NONE, |config| config.way);
    if way == SINGLE_PASS {
        lb_quic_block(index);
    } else if way != PLAIN {
        lb_quic_pass(index, 4);
        lb_quic_pass(index, 3);
        lb_quic_pass(index, 2);
        if way == FOUR_PASSES {
            lb_quic_pass(index, 1);
        }
    }
    let (Some(config), Some(scratch)) = (QUIC_CONFIGS.get(index), QUIC.get_ptr_mut(0)) else { return id };
    // SAFETY: the value belongs to this processor while the program runs.
    let server = unsafe {
        let [left, right] = (*scratch).halves;
        let text = if config.way == FOUR_PASSES { join(config, left, right) } else { left };
        (*scratch).server = config.server(text, service as u16);
        &(*scratch).server
    };
    match QUIC_SERVERS.get_ptr(server) {
        // SAFETY: a map value stays valid.
        Some(slot) => id & !0xff_ffff | u64::from(ROUTABLE) << 16 | u64::from(unsafe { *slot } as u16),
        None => id,
    }
}

/// The right half goes on where the left one ends, in the middle of the first word or of the second.
#[inline(always)]
fn join(config: &Config, left: Block, right: Block) -> Block {
    let bits = u32::from(config.right_at) % 8 * 8;
    if config.right_at < 8 {
        let carried = if bits == 0 { 0 } else { right[0] >> ((64 - bits) & 63) };
        [left[0] | right[0] << bits, left[1] | right[1] << bits | carried]
    } else {
        [left[0], left[1] | right[0] << bits]
    }
}

/// Copies what is needed of a datagram and returns what [`lb_quic`] does of an id that names no server; or, with
/// [`READABLE`], the rotation in the low 3 bits, and leaves the text in the scratch memory: in halves, where there are.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_quic_read(ctx: *mut xdp_md, service: u32, len: u32) -> u64 {
    const NOTHING: u64 = (UNROUTABLE as u64) << 16;
    let ctx = XdpContext::new(ctx);
    let Some(scratch) = QUIC.get_ptr_mut(0) else { return NOTHING };
    let bytes = scratch.cast::<u8>();
    let room = launder(u64::from(if len < ROOM as u32 { len } else { ROOM as u32 }));
    // SAFETY: the value belongs to this processor while the program runs, and has room for as many bytes.
    unsafe {
        (*scratch).bytes = [0; ROOM / 8];
        if room == 0 || room > ROOM as u64 || !ctx.copy(SHORT as u32, bytes, room as u32) {
            return NOTHING;
        }
    }
    // SAFETY: within the value; the same below, where each offset is masked.
    let long = unsafe { *bytes } & 0x80 != 0;
    let (at, most) = if long {
        // SAFETY: as above.
        (LONG_AT, u32::from(unsafe { *bytes.add(5) }))
    } else {
        (SHORT_AT, len)
    };
    // Bytes of the connection id that are there, as far as anybody can tell.
    let there = len.saturating_sub(at as u32).min(most);
    // SAFETY: as above.
    let id = unsafe { bytes.add(at as usize) };
    let hashed = word(id, 0) & if there < 8 { !(u64::MAX << (8 * (there & 7))) } else { u64::MAX };
    let kind = NOTHING | u64::from(quic_lb::hash(hashed)) << 32 | if long { LONG } else { 0 };
    // SAFETY: as above.
    let rotation = u32::from(unsafe { *id } >> 5);
    let Some(config) = QUIC_CONFIGS.get(service * ROTATIONS + rotation) else { return kind };
    if config.way == NONE || there <= u32::from(config.len) {
        return kind;
    }
    let text = [word(id, 1), word(id, 9)];
    let halves = if config.way < THREE_PASSES {
        [text, [0; 2]]
    } else {
        // SAFETY: as above: the first byte, and half a longest text.
        let right = unsafe { id.add((launder(u64::from(config.right_at)) & 15) as usize) };
        config.split(text, [word(right, 1), word(right, 9)])
    };
    // SAFETY: the value belongs to this processor while the program runs.
    unsafe { (*scratch).halves = halves };
    kind | READABLE | u64::from(rotation)
}

/// Eight bytes of the scratch memory, the first one lowest.
#[inline(always)]
fn word(at: *const u8, behind: usize) -> u64 {
    // SAFETY: the caller's offset is one that the verifier sees to be within the value.
    u64::from_le(unsafe { at.add(behind).cast::<u64>().read_unaligned() })
}

/// Undoes a pass of the halves in the scratch memory. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_quic_pass(config: u32, number: u32) -> u32 {
    let (Some(config), Some(scratch)) = (QUIC_CONFIGS.get(config), QUIC.get_ptr_mut(0)) else { return 0 };
    // SAFETY: the value belongs to this processor while the program runs; the index is masked.
    unsafe {
        let halves = (&raw mut (*scratch).halves).cast::<Block>();
        let changed = halves.add((launder(u64::from(number)) & 1) as usize);
        let other = halves.add((launder(u64::from(number)) & 1 ^ 1) as usize);
        *changed = config.pass(number, *changed, *other);
    }
    1
}

/// Decrypts the block that stands as the first half in the scratch memory. A global function, too.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_quic_block(config: u32) -> u32 {
    let (Some(config), Some(scratch)) = (QUIC_CONFIGS.get(config), QUIC.get_ptr_mut(0)) else { return 0 };
    // SAFETY: the value belongs to this processor while the program runs.
    unsafe { (*scratch).halves[0] = aes::decrypt(&config.inverse, (*scratch).halves[0]) };
    1
}
