//! Bytes become a segment, and whatever is wrong with them is said.

use super::{Opt, Segment, internet_checksum};
use std::fmt;
use std::net::{Ipv4Addr, SocketAddrV4};

/// What is wrong with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malformed {
    /// Shorter than its headers.
    Short,
    /// Another ethertype.
    NotIpv4(u16),
    /// Another IP protocol.
    NotTcp(u8),
    /// A length field contradicts another or the frame.
    Length,
    IpChecksum,
    TcpChecksum,
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Short => write!(f, "shorter than its headers"),
            Self::NotIpv4(ethertype) => write!(f, "ethertype {ethertype:#06x} is not IPv4"),
            Self::NotTcp(protocol) => write!(f, "IP protocol {protocol} is not TCP"),
            Self::Length => write!(f, "length fields contradict the frame"),
            Self::IpChecksum => write!(f, "bad IPv4 checksum"),
            Self::TcpChecksum => write!(f, "bad TCP checksum"),
        }
    }
}

impl std::error::Error for Malformed {}

impl Segment {
    /// # Errors
    /// [`Malformed`] for anything but a whole TCP segment over IPv4 with right lengths and checksums.
    pub fn parse(frame: &[u8]) -> Result<Self, Malformed> {
        let (segment, ip, tcp) = Self::split(frame)?;
        if internet_checksum(&[ip]) != 0 {
            return Err(Malformed::IpChecksum);
        }
        if segment.tcp_checksum(tcp) != 0 {
            return Err(Malformed::TcpChecksum);
        }
        Ok(segment)
    }

    /// As [`Segment::parse`] without looking at the checksums.
    ///
    /// # Errors
    /// [`Malformed`] as there.
    pub fn parse_lenient(frame: &[u8]) -> Result<Self, Malformed> {
        Self::split(frame).map(|(segment, ..)| segment)
    }

    /// The segment, the IP header and the TCP segment's bytes.
    fn split(frame: &[u8]) -> Result<(Self, &[u8], &[u8]), Malformed> {
        let (macs, mut rest) = frame.split_at_checked(12).ok_or(Malformed::Short)?;
        let mut ethertype = half(rest, 0)?;
        let mut vlan = None;
        if ethertype == 0x8100 {
            vlan = Some(half(rest, 2)?);
            rest = &rest[4..];
            ethertype = half(rest, 0)?;
        }
        if ethertype != 0x0800 {
            return Err(Malformed::NotIpv4(ethertype));
        }
        let datagram = &rest[2..];
        let header_len = usize::from(*datagram.first().ok_or(Malformed::Short)? & 15) * 4;
        let ip = datagram.get(..header_len).filter(|ip| ip.len() >= 20).ok_or(Malformed::Length)?;
        if ip[9] != 6 {
            return Err(Malformed::NotTcp(ip[9]));
        }
        let total = usize::from(half(ip, 2)?);
        let tcp = datagram.get(header_len..total).ok_or(Malformed::Length)?;
        let offset = usize::from(*tcp.get(12).ok_or(Malformed::Short)? >> 4) * 4;
        let options = tcp.get(20..offset).ok_or(Malformed::Length)?;
        let address = |at: usize| Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
        let segment = Self {
            dst_mac: macs[..6].try_into().expect("six of twelve bytes"),
            src_mac: macs[6..].try_into().expect("six of twelve bytes"),
            vlan,
            src: SocketAddrV4::new(address(12), half(tcp, 0)?),
            dst: SocketAddrV4::new(address(16), half(tcp, 2)?),
            tos: ip[1],
            ttl: ip[8],
            id: half(ip, 4)?,
            fragment: half(ip, 6)?,
            ip_options: ip[20..].to_vec(),
            seq: full(tcp, 4)?,
            ack: full(tcp, 8)?,
            flags: tcp[13],
            window: half(tcp, 14)?,
            urgent: half(tcp, 18)?,
            options: Opt::read_all(options),
            payload: tcp[offset..].to_vec(),
            padding: datagram.len() - total,
        };
        Ok((segment, ip, tcp))
    }
}

fn half(bytes: &[u8], at: usize) -> Result<u16, Malformed> {
    let two = bytes.get(at..at + 2).ok_or(Malformed::Short)?;
    Ok(u16::from_be_bytes([two[0], two[1]]))
}

fn full(bytes: &[u8], at: usize) -> Result<u32, Malformed> {
    Ok(u32::from(half(bytes, at)?) << 16 | u32::from(half(bytes, at + 2)?))
}
