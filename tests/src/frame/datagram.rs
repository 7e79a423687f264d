//! UDP datagrams in Ethernet frames.

use super::{Mac, internet_checksum};
use std::net::{Ipv4Addr, SocketAddrV4};

/// One UDP datagram in one IPv4 packet without options. Lengths and checksums are computed when it is built and checked
/// when it is parsed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Datagram {
    pub src_mac: Mac,
    pub dst_mac: Mac,
    pub src: SocketAddrV4,
    pub dst: SocketAddrV4,
    pub ttl: u8,
    pub fragment: u16,
    /// Whether it has a checksum at all.
    pub checked: bool,
    pub payload: Vec<u8>,
}

impl Datagram {
    pub fn new(src: SocketAddrV4, dst: SocketAddrV4, payload: impl Into<Vec<u8>>) -> Self {
        Self {
            src_mac: [2, 0, 0, 0, 0, 1],
            dst_mac: [2, 0, 0, 0, 0, 2],
            src,
            dst,
            ttl: 64,
            fragment: 0x4000,
            checked: true,
            payload: payload.into(),
        }
    }

    #[must_use]
    pub fn macs(self, src_mac: Mac, dst_mac: Mac) -> Self {
        Self { src_mac, dst_mac, ..self }
    }

    /// The whole frame.
    pub fn bytes(&self) -> Vec<u8> {
        let length = 8 + self.payload.len() as u16;
        let mut ip = vec![0x45, 0];
        ip.extend((20 + length).to_be_bytes());
        ip.extend([0x12, 0x34]);
        ip.extend(self.fragment.to_be_bytes());
        ip.extend([self.ttl, 17, 0, 0]);
        ip.extend(self.src.ip().octets());
        ip.extend(self.dst.ip().octets());
        let check = internet_checksum(&[&ip]);
        ip[10..12].copy_from_slice(&check.to_be_bytes());

        let mut udp = Vec::new();
        udp.extend(self.src.port().to_be_bytes());
        udp.extend(self.dst.port().to_be_bytes());
        udp.extend(length.to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(&self.payload);
        if self.checked {
            let check = match self.checksum(&udp) {
                0 => 0xffff,
                check => check,
            };
            udp[6..8].copy_from_slice(&check.to_be_bytes());
        }
        let mut frame = Vec::new();
        frame.extend(self.dst_mac);
        frame.extend(self.src_mac);
        frame.extend([0x08, 0]);
        frame.extend(ip);
        frame.extend(udp);
        frame
    }

    fn checksum(&self, udp: &[u8]) -> u16 {
        let len = (udp.len() as u16).to_be_bytes();
        internet_checksum(&[&self.src.ip().octets(), &self.dst.ip().octets(), &[0, 17], &len, udp])
    }

    /// Takes a frame apart.
    ///
    /// # Panics
    /// When it is no such datagram, or a length or checksum is wrong.
    pub fn parse(frame: &[u8]) -> Self {
        let mac = |at: usize| -> Mac { frame[at..at + 6].try_into().expect("six bytes") };
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let ip = |at: usize| Ipv4Addr::new(frame[at], frame[at + 1], frame[at + 2], frame[at + 3]);
        assert_eq!((word(12), frame[14], frame[23]), (0x0800, 0x45, 17), "an IPv4 datagram");
        assert_eq!(internet_checksum(&[&frame[14..34]]), 0, "the header's checksum");
        let length = usize::from(word(38));
        assert_eq!(usize::from(word(16)), 20 + length);
        let parsed = Self {
            src_mac: mac(6),
            dst_mac: mac(0),
            src: SocketAddrV4::new(ip(26), word(34)),
            dst: SocketAddrV4::new(ip(30), word(36)),
            ttl: frame[22],
            fragment: word(20),
            checked: word(40) != 0,
            payload: frame[42..34 + length].to_vec(),
        };
        if parsed.checked {
            assert_eq!(parsed.checksum(&frame[34..34 + length]), 0, "the datagram's checksum");
        }
        parsed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_undoes_bytes() {
        let (a, b) = ("10.0.1.2:40000".parse().unwrap(), "10.0.9.1:53".parse().unwrap());
        for payload in [&b""[..], b"x", b"hello"] {
            for checked in [true, false] {
                let datagram = Datagram { checked, ..Datagram::new(a, b, payload) };
                assert_eq!(Datagram::parse(&datagram.bytes()), datagram);
            }
        }
    }
}
