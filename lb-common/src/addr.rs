//! Addresses and byte order as types.

use bytemuck::{Pod, Zeroable};

/// A 16-bit integer in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Pod, Zeroable)]
#[repr(transparent)]
pub struct Be16(u16);

impl Be16 {
    /// From a number in the host's byte order.
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Self(host.to_be())
    }
    /// From bits that already stand in network order, as loaded from a packet.
    #[inline(always)]
    pub const fn from_bits(bits: u16) -> Self {
        Self(bits)
    }
    /// The number, in the host's byte order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
    /// The bits as they stand in a packet.
    #[inline(always)]
    pub const fn bits(self) -> u16 {
        self.0
    }
}

impl core::fmt::Debug for Be16 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.get().fmt(f)
    }
}

/// An IPv6 address, or an IPv4 address in its IPv4-mapped form (`::ffff:a.b.c.d`, RFC 4291 §2.5.5.2): 16 bytes in
/// network order, held as two words so that a comparison is two instructions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Pod, Zeroable)]
#[repr(C)]
pub struct Addr {
    /// Bytes 0 to 8, as loaded from memory.
    pub hi: u64,
    /// Bytes 8 to 16, as loaded from memory.
    pub lo: u64,
}

/// The low 4 bytes of the second word of an IPv4-mapped address are `00 00 ff ff`.
const MAPPED_PREFIX: u64 = u64::from_ne_bytes([0, 0, 0xff, 0xff, 0, 0, 0, 0]);

impl Addr {
    /// From the four bytes of an IPv4 address as loaded from a packet (network order bits).
    #[inline(always)]
    pub const fn from_v4_bits(bits: u32) -> Self {
        if cfg!(target_endian = "little") {
            Self { hi: 0, lo: MAPPED_PREFIX | (bits as u64) << 32 }
        } else {
            Self { hi: 0, lo: MAPPED_PREFIX | bits as u64 }
        }
    }
    /// The four bytes of an IPv4-mapped address, as they stand in a packet.
    #[inline(always)]
    pub const fn v4_bits(self) -> u32 {
        if cfg!(target_endian = "little") { (self.lo >> 32) as u32 } else { self.lo as u32 }
    }
    /// Whether this is an IPv4 address.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        let mask = u64::from_ne_bytes([0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0]);
        self.hi == 0 && self.lo & mask == MAPPED_PREFIX
    }
    /// The sixteen bytes in network order.
    pub const fn octets(self) -> [u8; 16] {
        let (hi, lo) = (self.hi.to_ne_bytes(), self.lo.to_ne_bytes());
        [
            hi[0], hi[1], hi[2], hi[3], hi[4], hi[5], hi[6], hi[7], lo[0], lo[1], lo[2], lo[3], lo[4], lo[5],
            lo[6], lo[7],
        ]
    }
}

impl From<core::net::IpAddr> for Addr {
    fn from(ip: core::net::IpAddr) -> Self {
        let o = match ip {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(v6) => v6.octets(),
        };
        Self {
            hi: u64::from_ne_bytes([o[0], o[1], o[2], o[3], o[4], o[5], o[6], o[7]]),
            lo: u64::from_ne_bytes([o[8], o[9], o[10], o[11], o[12], o[13], o[14], o[15]]),
        }
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(addr: Addr) -> Self {
        core::net::Ipv6Addr::from(addr.octets()).to_canonical()
    }
}

impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::net::IpAddr::from(*self).fmt(f)
    }
}

/// An Ethernet address.
pub type Mac = [u8; 6];

crate::map_types! { Addr: 16, Be16: 2 }

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{IpAddr, Ipv4Addr};

    #[test]
    fn ipv4_is_mapped_both_ways() {
        let ip = Ipv4Addr::new(10, 1, 2, 3);
        let addr = Addr::from(IpAddr::V4(ip));
        assert_eq!(addr, Addr::from_v4_bits(u32::from_ne_bytes(ip.octets())));
        assert_eq!(addr.v4_bits().to_ne_bytes(), ip.octets());
        assert!(addr.is_v4());
        assert_eq!(IpAddr::from(addr), IpAddr::V4(ip));
    }

    #[test]
    fn ipv6_survives() {
        let ip: IpAddr = "2001:db8::1:2:3".parse().unwrap();
        let addr = Addr::from(ip);
        assert!(!addr.is_v4());
        assert_eq!(IpAddr::from(addr), ip);
    }
}
