//! The frame as bounds-checked views: the only place that compares against the end of the packet.

use crate::bounds::{Length, barrier_var};
use aya_ebpf::EbpfContext;
use aya_ebpf::programs::{TcContext, XdpContext};
use core::ptr;
use lb_common::addr::Mac;
use lb_common::tcp::OPTIONS_ROOM;

/// Offsets of the fields of Ethernet, IPv4 without options, TCP.
pub(crate) mod at {
    pub(crate) const ETH_DST: usize = 0;
    pub(crate) const ETH_SRC: usize = 6;
    pub(crate) const ETH_TYPE: usize = 12;
    pub(crate) const IP: usize = 14;
    pub(crate) const IP_LEN: usize = 16;
    pub(crate) const IP_FRAGMENT: usize = 20;
    pub(crate) const IP_TTL: usize = 22;
    pub(crate) const IP_PROTOCOL: usize = 23;
    pub(crate) const IP_CHECK: usize = 24;
    pub(crate) const IP_SRC: usize = 26;
    pub(crate) const IP_DST: usize = 30;
    pub(crate) const UDP_LEN: usize = 38;
    pub(crate) const UDP_CHECK: usize = 40;
    pub(crate) const TCP: usize = 34;
    pub(crate) const TCP_SRC: usize = 34;
    pub(crate) const TCP_DST: usize = 36;
    pub(crate) const TCP_SEQ: usize = 38;
    pub(crate) const TCP_ACK: usize = 42;
    pub(crate) const TCP_OFFSET: usize = 46;
    pub(crate) const TCP_FLAGS: usize = 47;
    pub(crate) const TCP_WINDOW: usize = 48;
    pub(crate) const TCP_CHECK: usize = 50;
    pub(crate) const OPTIONS: usize = 54;
}

/// Bytes of Ethernet, IPv4 and TCP headers without options.
pub(crate) const BASE: usize = 54;
/// Bytes of Ethernet, IPv4 and UDP headers.
pub(crate) const SHORT: usize = 42;

/// A program's packet: where it begins and ends.
pub(crate) trait Packet {
    fn start(&self) -> usize;
    fn end(&self) -> usize;
    /// Copies `len` bytes at `offset` of the packet to `to`. Returns whether they are there.
    ///
    /// # Safety
    /// `to` has room for `len` bytes.
    unsafe fn copy(&self, offset: u32, to: *mut u8, len: Length) -> bool;

    /// A pointer to the first `len` bytes, if the packet has them.
    #[inline(always)]
    fn window(&self, len: usize) -> Option<*mut u8> {
        let start = self.start();
        if start + len > self.end() { None } else { Some(start as *mut u8) }
    }

    /// Bytes in the frame.
    #[inline(always)]
    fn len(&self) -> u32 {
        (self.end() - self.start()) as u32
    }

    /// The frame, if it has the headers of a datagram.
    #[inline(always)]
    fn short_frame(&self) -> Option<Frame<SHORT>> {
        self.window(SHORT).map(Frame)
    }

    /// The frame, if it has the base headers.
    #[inline(always)]
    fn frame(&self) -> Option<Frame> {
        self.window(BASE).map(Frame)
    }

    /// A pointer to `len` bytes at a computed `offset` (at most 127), if the packet has them.
    #[inline(always)]
    fn field(&self, offset: u32, len: usize) -> Option<*mut u8> {
        let at = self.start() + (barrier_var(u64::from(offset)) & 127) as usize;
        if at + len > self.end() { None } else { Some(at as *mut u8) }
    }
}

impl Packet for XdpContext {
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }
    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
    #[inline(always)]
    unsafe fn copy(&self, offset: u32, to: *mut u8, len: Length) -> bool {
        // SAFETY: the caller's promise about `to`; the kernel checks the packet's side.
        unsafe { aya_ebpf::helpers::bpf_xdp_load_bytes(self.ctx, offset, to.cast(), len.get()) == 0 }
    }
}

impl Packet for TcContext {
    /// Of the whole packet: what lies in pages of its own is not between start and end.
    #[inline(always)]
    fn len(&self) -> u32 {
        TcContext::len(self)
    }
    #[inline(always)]
    fn start(&self) -> usize {
        self.data()
    }
    #[inline(always)]
    fn end(&self) -> usize {
        self.data_end()
    }
    #[inline(always)]
    unsafe fn copy(&self, offset: u32, to: *mut u8, len: Length) -> bool {
        // SAFETY: the caller's promise about `to`; the kernel checks the packet's side.
        unsafe { aya_ebpf::helpers::bpf_skb_load_bytes(self.as_ptr(), offset, to.cast(), len.get()) == 0 }
    }
}

/// The first `ROOM` bytes of a frame. Invalid after the packet was resized.
#[derive(Clone, Copy)]
pub(crate) struct Frame<const ROOM: usize = BASE>(*mut u8);

impl<const ROOM: usize> Frame<ROOM> {
    /// Reads a field in the base headers; its place is checked when this is compiled.
    #[inline(always)]
    pub(crate) fn load<const AT: usize, T: bytemuck::Pod>(self) -> T {
        const { assert!(AT + size_of::<T>() <= ROOM) };
        // SAFETY: within the bytes that `Packet::frame` proved.
        unsafe { ptr::read_unaligned(self.0.add(AT).cast()) }
    }

    /// Writes a field in the base headers.
    #[inline(always)]
    pub(crate) fn store<const AT: usize, T: bytemuck::Pod>(self, value: T) {
        const { assert!(AT + size_of::<T>() <= ROOM) };
        // SAFETY: within the bytes that `Packet::frame` proved.
        unsafe { ptr::write_unaligned(self.0.add(AT).cast(), value) }
    }
}

impl<const ROOM: usize> Frame<ROOM> {
    /// Whether nothing may be sent back: an Ethernet group address at either end, since answers would come from it or go to it,
    /// or an IPv4 source that is no host's own, 0/8, 127/8, multicast, broadcast (RFC 1122 §3.2.1.3, RFC 1812 §5.3.7).
    #[inline(always)]
    pub(crate) fn is_unanswerable(self) -> bool {
        let groups = self.load::<{ at::ETH_DST }, u8>() | self.load::<{ at::ETH_SRC }, u8>();
        let net = self.load::<{ at::IP_SRC }, u8>();
        groups & 1 != 0 || net == 0 || net == 127 || net >= 224
    }
}

/// Reads from a place that [`Packet::field`] or [`Packet::window`] proved.
///
/// # Safety
/// `from` was proved for as many bytes as `T` has, and the packet was not resized since.
#[inline(always)]
pub(crate) unsafe fn read<T: bytemuck::Pod>(from: *const u8) -> T {
    // SAFETY: the caller's promise.
    unsafe { ptr::read_unaligned(from.cast()) }
}

/// Writes to a place that [`Packet::field`] or [`Packet::window`] proved.
///
/// # Safety
/// As [`read`].
#[inline(always)]
pub(crate) unsafe fn write<T: bytemuck::Pod>(to: *mut u8, value: T) {
    // SAFETY: the caller's promise.
    unsafe { ptr::write_unaligned(to.cast(), value) }
}

/// What the base headers of a TCP segment say, in host byte order, lengths checked against the frame.
#[derive(Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    /// Bytes of TCP header, 20 to 60.
    pub(crate) header: u32,
    /// Bytes of payload.
    pub(crate) payload: u32,
    pub(crate) src_mac: Mac,
    pub(crate) dst_mac: Mac,
    pub(crate) window: u16,
}

impl Segment {
    /// Reads the headers; `None` when lengths contradict each other.
    #[inline(always)]
    pub(crate) fn read(frame: Frame, frame_len: u32) -> Option<Self> {
        let total = u32::from(u16::from_be(frame.load::<{ at::IP_LEN }, u16>()));
        let header = u32::from(frame.load::<{ at::TCP_OFFSET }, u8>() >> 4) * 4;
        if total + 14 > frame_len || header < 20 || total < 20 + header {
            return None;
        }
        Some(Self {
            seq: u32::from_be(frame.load::<{ at::TCP_SEQ }, u32>()),
            ack: u32::from_be(frame.load::<{ at::TCP_ACK }, u32>()),
            flags: frame.load::<{ at::TCP_FLAGS }, u8>(),
            header,
            payload: total - 20 - header,
            src_mac: frame.load::<{ at::ETH_SRC }, Mac>(),
            dst_mac: frame.load::<{ at::ETH_DST }, Mac>(),
            window: u16::from_be(frame.load::<{ at::TCP_WINDOW }, u16>()),
        })
    }

    /// Whether all of `flags` are set.
    #[inline(always)]
    pub(crate) const fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    /// Where the payload begins in the frame.
    #[inline(always)]
    pub(crate) const fn payload_at(&self) -> u32 {
        at::TCP as u32 + self.header
    }
}

/// The options of a header, copied where a masked index can read them. Aligned, so that it is cleared word by word.
#[repr(C, align(8))]
pub(crate) struct OptionArea {
    pub(crate) bytes: [u8; OPTIONS_ROOM],
    pub(crate) options: lb_common::tcp::Options,
    pub(crate) len: u32,
}
