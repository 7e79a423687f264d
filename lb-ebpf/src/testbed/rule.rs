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
    /// An entry of the product's flow table that is freed, plus 1: so that the frame finds no flow. 0: none.
    pub flow: u32,
    /// An entry whose last request no response has answered, plus 1: so that the frame is looked at as its response. 0: none.
    pub open: u32,
    pub bytes: [u8; IMAGE_ROOM],
}

/// A client that takes the place of the one in an image, as it stands in a packet.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Client {
    pub addr: u32,
    pub port: u16,
    pub _pad: u16,
}

/// How `tb_undo` goes through the images.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Undo {
    /// The next run's number; each run adds one.
    pub run: u64,
    /// Images in use − 1 (their number is a power of two): run n takes image n & mask.
    pub image_mask: u32,
    /// [`WHOLE`], [`HEADERS`] or [`INNER`].
    pub what: u32,
    /// Clients in use − 1 (their number is a power of two): run n takes client n & mask...
    pub client_mask: u32,
    /// ...which becomes [`SOURCE`] or [`DESTINATION`]; 0: the image's own client stays.
    pub client_is: u32,
}

/// The whole frame is put back, whatever its length was: cut, grown and copied.
pub const WHOLE: u32 = 0;
/// The first [`HEADERS_LEN`] bytes are put back, field by field, in a frame whose length has not changed: for programs
/// that rewrite a header in place, because it costs little, and the program that follows never waits for a store that
/// is wider or narrower than its load.
pub const HEADERS: u32 = 1;
/// The same, once what stands in front of the frame is taken off: for programs that put it into a tunnel.
pub const INNER: u32 = 2;
/// Ethernet, IPv4 and TCP headers with twenty bytes of options.
pub const HEADERS_LEN: usize = 74;

/// The frame comes from the client.
pub const SOURCE: u32 = 1;
/// The frame goes to the client.
pub const DESTINATION: u32 = 2;

const _: () = assert!(
    size_of::<Rule>() == 24
        && size_of::<Image>() == IMAGE_ROOM + 12
        && size_of::<Undo>() == 24
        && size_of::<Client>() == 8
);
