//! What the test programs are told and what they report: one definition, compiled into the programs and into the tests.

use bytemuck::{Pod, Zeroable};

/// Rules in the map.
pub const RULES: u32 = 8;

/// Frames that match meet the same fate: those numbered `first..first + count` of them (from 0), and each `every`-th.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Rule {
    /// [`DROP`], [`DUPLICATE`], or 0: the rule is not in use.
    pub action: u32,
    /// TCP ports in host byte order; 0 is any.
    pub src_port: u16,
    pub dst_port: u16,
    /// TCP flags that are looked at...
    pub flags_mask: u8,
    /// ...and what they must be.
    pub flags: u8,
    /// 1: with payload only; 2: without payload only; 0: either.
    pub payload: u8,
    pub _pad: u8,
    /// 0 is never.
    pub every: u32,
    pub first: u32,
    pub count: u32,
}

pub const DROP: u32 = 1;
/// Sends the frame twice; for the tc program alone.
pub const DUPLICATE: u32 = 2;

/// What became of a rule.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Tally {
    /// Frames that matched.
    pub matched: u64,
    /// Frames that were dropped or sent twice.
    pub hit: u64,
}

/// What an end point saw.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Seen {
    pub frames: u64,
    /// TCP segments whose checksum was looked at.
    pub tcp: u64,
    pub bad_ip: u64,
    pub bad_tcp: u64,
    /// TCP segments that could not be checked: IP options, fragments, lengths that contradict each other.
    pub odd: u64,
}

/// Room for the bytes of a frame.
pub const IMAGE_ROOM: usize = 2048;

/// A frame that `tb_undo` puts in place of whatever the last run left.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Image {
    /// Bytes in use.
    pub len: u32,
    pub _pad: u32,
    pub bytes: [u8; IMAGE_ROOM],
}

/// How `tb_undo` goes through the images.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Undo {
    /// The next run's number; each run adds one.
    pub run: u64,
    /// Images in use − 1 (their number is a power of two): run n takes image n & mask.
    pub image_mask: u32,
    /// Bytes from the start of the frame that each run puts back; those behind stay. 0: the whole image.
    pub head: u32,
    /// When not 0: run n comes from one of this many clients (a power of two), in scrambled order, as [`client_of`] says.
    pub clients: u32,
    /// 1: the client is the destination (a frame from a backend), 0: the source.
    pub to_client: u32,
}

/// Address (host byte order) and port of client number `n`.
#[inline(always)]
pub const fn client_of(n: u32) -> (u32, u16) {
    (0x0a80_0000 + (n >> 14), 1024 + (n & 0x3fff) as u16)
}

/// Which client run `n` takes: an order in which no cache or prefetcher can guess the next, every client once in
/// `clients` runs.
#[inline(always)]
pub const fn scramble(n: u32, clients: u32) -> u32 {
    // Odd multipliers permute the residues of a power of two; so does xor with a shifted self.
    let mask = clients - 1;
    let n = n.wrapping_mul(0x9e37_79b1) & mask;
    let n = (n ^ (n >> 9)) & mask;
    n.wrapping_mul(0x85eb_ca6b) & mask
}

const _: () =
    assert!(size_of::<Rule>() == 24 && size_of::<Image>() == IMAGE_ROOM + 8 && size_of::<Undo>() == 24);
