//! Whole headers of the segments that the program itself sends, checksums computed from nothing.

use crate::packet::{BASE, at};
use lb_common::addr::{Addr, Be16, Mac};
use lb_common::checksum::{fold, sum_pseudo};
use lb_common::tcp::{NOP_NOP_TIMESTAMP, PROTOCOL};

/// Longest header that is written: SYN with all options.
pub(crate) const MAX_HEADER: usize = BASE + 20;

/// One end of a segment.
#[derive(Clone, Copy)]
pub(crate) struct End {
    pub(crate) mac: Mac,
    pub(crate) addr: Addr,
    pub(crate) port: Be16,
}

/// What a segment says, in host byte order.
#[derive(Clone, Copy)]
pub(crate) struct Header {
    pub(crate) from: End,
    pub(crate) to: End,
    pub(crate) seq: u32,
    pub(crate) ack: u32,
    pub(crate) flags: u8,
    pub(crate) window: u16,
    /// Bytes of payload that follow, and their one's complement sum.
    pub(crate) payload: u16,
    pub(crate) payload_sum: u16,
}

/// Option words of a SYN or SYN-ACK: MSS, SACK permitted, timestamps, window scale; what is absent is no-operations.
#[inline(always)]
pub(crate) fn syn_options(
    mss: u16,
    sack: bool,
    timestamps: Option<(u32, u32)>,
    window_scale: Option<u8>,
) -> [u32; 5] {
    let sack = if sack { 0x0402_0000_u32 } else { 0x0101_0000 };
    let (kind, val, ecr) = match timestamps {
        Some((val, ecr)) => (0x080a, val, ecr),
        None => (0x0101, 0x0101_0101, 0x0101_0101),
    };
    let scale = match window_scale {
        Some(scale) => 0x0103_0300 | u32::from(scale),
        None => 0x0101_0101,
    };
    [(0x0204_0000 | u32::from(mss)).to_be(), (sack | kind).to_be(), val.to_be(), ecr.to_be(), scale.to_be()]
}

/// Option words of any other segment.
#[inline(always)]
pub(crate) fn timestamp_options(val: u32, ecr: u32) -> [u32; 3] {
    [NOP_NOP_TIMESTAMP, val.to_be(), ecr.to_be()]
}

/// Writes Ethernet, IPv4 and TCP headers with `N` option words.
///
/// # Safety
/// `to` has room for [`BASE`] + 4 `N` bytes.
#[inline(always)]
pub(crate) unsafe fn write<const N: usize>(to: *mut u8, header: &Header, options: &[u32; N]) {
    let tcp_len = 20 + 4 * N as u16 + header.payload;
    let (src, dst) = (header.from.addr.v4_bits(), header.to.addr.v4_bits());
    let addresses = u64::from(src) + u64::from(dst);

    // Version and header length, no differentiated services; don't fragment; time to live 64.
    let ip: [u32; 3] = [
        (0x4500_0000 | u32::from(tcp_len + 20)).to_be(),
        0x0000_4000_u32.to_be(),
        (64 << 24 | u32::from(PROTOCOL) << 16_u32).to_be(),
    ];
    let ip_check = !fold(u64::from(ip[0]) + u64::from(ip[1]) + u64::from(ip[2]) + addresses);

    let [p0, p1] = header.from.port.bits().to_ne_bytes();
    let [q0, q1] = header.to.port.bits().to_ne_bytes();
    let offset = (5 + N as u32) << 28 | u32::from(header.flags) << 16 | u32::from(header.window);
    let tcp: [u32; 4] =
        [u32::from_ne_bytes([p0, p1, q0, q1]), header.seq.to_be(), header.ack.to_be(), offset.to_be()];
    let mut sum = addresses + sum_pseudo(PROTOCOL, tcp_len) + u64::from(header.payload_sum);
    let mut i = 0;
    while i < 4 {
        sum += u64::from(tcp[i]);
        i += 1;
    }
    let mut i = 0;
    while i < N {
        sum += u64::from(options[i]);
        i += 1;
    }
    let tcp_check = !fold(sum);

    // SAFETY: all places lie below BASE + 4 N, the caller's promise.
    unsafe {
        put(to, at::ETH_DST, header.to.mac);
        put(to, at::ETH_SRC, header.from.mac);
        put(to, at::ETH_TYPE, 0x0800_u16.to_be());
        put(to, at::IP, ip[0]);
        put(to, at::IP + 4, ip[1]);
        put(to, at::IP + 8, ip[2]);
        put(to, at::IP_CHECK, ip_check);
        put(to, at::IP_SRC, src);
        put(to, at::IP_DST, dst);
        put(to, at::TCP, tcp[0]);
        put(to, at::TCP_SEQ, tcp[1]);
        put(to, at::TCP_ACK, tcp[2]);
        put(to, at::TCP_OFFSET, tcp[3]);
        put(to, at::TCP_CHECK, tcp_check);
        put(to, at::TCP_CHECK + 2, 0_u16);
        let mut i = 0;
        while i < N {
            put(to, at::OPTIONS + 4 * i, options[i]);
            i += 1;
        }
    }
}

/// # Safety
/// `to` has room for a `T` at `offset`.
#[inline(always)]
unsafe fn put<T: bytemuck::Pod>(to: *mut u8, offset: usize, value: T) {
    // SAFETY: the caller's promise.
    unsafe { crate::packet::write(to.add(offset), value) }
}
