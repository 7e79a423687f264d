//! The server id in a QUIC packet's destination connection id (draft-ietf-quic-load-balancers, RFC 8999).
//!
//! Read from the packet where that has enough bytes. The cipher works in this processor's own memory and is a function of its
//! own, because each of the passes that undo the encryption would else be verified, and stored, again.

use super::{Found, ROUTABLE, UNROUTABLE};
use crate::bounds::{Length, barrier_var};
use crate::maps::{QUIC, QUIC_CONFIGS, QUIC_SERVERS, settings};
use crate::packet::{Packet, SHORT};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::aes::{self, Block};
use lb_common::quic_lb::{
    self, Config, FOUR_PASSES, NONE, PLAIN, ROTATIONS, SINGLE_PASS, Server, THREE_PASSES, servers,
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
    let [left, right] = unsafe { (*scratch).halves };
    let text = if config.way == FOUR_PASSES { join(config, left, right) } else { left };
    match slot_of(&config.server(text, service as u16)) {
        Some(slot) => id & !0xff_ffff | u64::from(ROUTABLE) << 16 | u64::from(slot),
        None => id,
    }
}

/// The slot of the backend that has a server id.
#[inline(always)]
fn slot_of(server: &Server) -> Option<u16> {
    let settings = settings()?;
    // One word: base and mask of the live half belong together.
    // SAFETY: a reference to a map value is aligned and valid.
    let live = unsafe { core::ptr::read_volatile(&raw const settings.quic_live) };
    let (base, mask) = (live as u32, (live >> 32) as u32);
    let seed = &settings.quic_seed[usize::from(base != 0)];
    let bucket = QUIC_SERVERS.get(base.wrapping_add(servers::bucket_of(seed, server) & mask))?;
    bucket.0.iter().find_map(|entry| entry.slot_of(server))
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
    let Some(beginning) = fetch(&ctx, scratch, len) else { return NOTHING };
    let (at, most) = if beginning.long { (LONG_AT, u32::from(beginning.id_len)) } else { (SHORT_AT, len) };
    // Bytes of the connection id that are there, as far as anybody can tell.
    let there = len.saturating_sub(at as u32).min(most);
    let counted = if there < 8 { !(u64::MAX << (8 * (there & 7))) } else { u64::MAX };
    let hash = quic_lb::hash(beginning.id & counted);
    let kind = NOTHING | u64::from(hash) << 32 | if beginning.long { LONG } else { 0 };
    let rotation = beginning.id as u32 >> 5 & 7;
    let Some(config) = QUIC_CONFIGS.get(service * ROTATIONS + rotation) else { return kind };
    if config.way == NONE || there <= u32::from(config.len) {
        return kind;
    }
    let halves = if config.way < THREE_PASSES {
        [beginning.text, [0; 2]]
    } else {
        // SAFETY: within the value, because the offset is masked: the first byte, and half a longest text.
        let right = unsafe {
            let id = scratch.cast::<u8>().add(at as usize);
            id.add((barrier_var(u64::from(config.right_at)) & 15) as usize)
        };
        // SAFETY: as above.
        config.split(beginning.text, unsafe { [word(right, 1), word(right, 9)] })
    };
    // SAFETY: the value belongs to this processor while the program runs.
    unsafe { (*scratch).halves = halves };
    kind | READABLE | u64::from(rotation)
}

/// What stands at places that are known when this is compiled.
struct Beginning {
    long: bool,
    /// Bytes of the connection id, if the header is long.
    id_len: u8,
    /// Its first eight bytes...
    id: u64,
    /// ...and the sixteen behind its first one.
    text: Block,
}

impl Beginning {
    /// # Safety
    /// There are [`ROOM`] bytes to be read.
    #[inline(always)]
    unsafe fn read(bytes: *const u8) -> Self {
        // SAFETY: the caller's promise; the last byte that is read is the 23rd.
        unsafe {
            let long = *bytes & 0x80 != 0;
            let id = bytes.add(if long { LONG_AT } else { SHORT_AT } as usize);
            Self { long, id_len: *bytes.add(5), id: word(id, 0), text: [word(id, 1), word(id, 9)] }
        }
    }
}

/// Copies the beginning of a datagram with a payload of `len` bytes; `None` when there is none.
#[inline(always)]
fn fetch(ctx: &XdpContext, scratch: *mut Scratch, len: u32) -> Option<Beginning> {
    // SAFETY: the scratch memory belongs to this processor while the program runs, and has room for as many bytes; those of
    // the packet are proved to be there.
    unsafe {
        if len >= ROOM as u32
            && let Some(frame) = ctx.window(SHORT + ROOM)
        {
            let bytes = frame.add(SHORT);
            (*scratch).bytes = bytes.cast::<[u64; ROOM / 8]>().read_unaligned();
            // Not from the copy: what was only just written takes longer to read at another alignment.
            return Some(Beginning::read(bytes));
        }
        (*scratch).bytes = [0; ROOM / 8];
        let room = Length::at_most::<{ ROOM as u32 }>(len)?;
        if !ctx.copy(SHORT as u32, scratch.cast(), room) {
            return None;
        }
        Some(Beginning::read(scratch.cast()))
    }
}

/// Eight bytes, the first one lowest.
///
/// # Safety
/// They are there to be read.
#[inline(always)]
unsafe fn word(at: *const u8, behind: usize) -> u64 {
    // SAFETY: the caller's promise.
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
        let changed = halves.add((barrier_var(u64::from(number)) & 1) as usize);
        let other = halves.add((barrier_var(u64::from(number)) & 1 ^ 1) as usize);
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
