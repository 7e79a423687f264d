//! TCP segments in Ethernet frames, built and taken apart byte by byte. Written without the workspace's own checksum and
//! option code, so that a mistake there cannot hide itself here.

mod build;
mod datagram;
mod options;
mod parse;

pub use datagram::Datagram;
pub use options::Opt;
pub use parse::Malformed;

use std::fmt;
use std::net::SocketAddrV4;

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;

pub type Mac = [u8; 6];

/// One TCP segment in one IPv4 datagram in one Ethernet frame. Lengths and checksums are computed when it is built and
/// checked when it is parsed.
#[derive(Clone, PartialEq, Eq)]
pub struct Segment {
    pub src_mac: Mac,
    pub dst_mac: Mac,
    /// 802.1Q tag control information.
    pub vlan: Option<u16>,
    pub src: SocketAddrV4,
    pub dst: SocketAddrV4,
    pub tos: u8,
    pub ttl: u8,
    pub id: u16,
    /// The flags (DF is 0x4000, MF 0x2000) and the offset in units of 8 bytes.
    pub fragment: u16,
    /// IPv4 options; a multiple of 4 bytes.
    pub ip_options: Vec<u8>,
    pub seq: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub options: Vec<Opt>,
    pub payload: Vec<u8>,
    /// Bytes behind the datagram, as Ethernet adds to short frames.
    pub padding: usize,
}

impl Segment {
    /// A bare ACK from `src` to `dst`; everything else is set with the methods below or directly.
    pub fn new(src: SocketAddrV4, dst: SocketAddrV4) -> Self {
        Self {
            src_mac: [2, 0, 0, 0, 0, 1],
            dst_mac: [2, 0, 0, 0, 0, 2],
            vlan: None,
            src,
            dst,
            tos: 0,
            ttl: 64,
            id: 0x1234,
            fragment: 0x4000,
            ip_options: Vec::new(),
            seq: 0,
            ack: 0,
            flags: ACK,
            window: 64_240,
            urgent: 0,
            options: Vec::new(),
            payload: Vec::new(),
            padding: 0,
        }
    }

    /// A SYN as Linux sends it: MSS, SACK, timestamps and window scale.
    pub fn syn(src: SocketAddrV4, dst: SocketAddrV4, isn: u32) -> Self {
        let options = Opt::linux_syn(1460, Some(7), true, Some((1_000, 0)));
        Self { seq: isn, flags: SYN, options, ..Self::new(src, dst) }
    }

    /// The answering direction: addresses, ports and MACs exchanged, nothing else kept.
    pub fn reply(&self) -> Self {
        Self { src_mac: self.dst_mac, dst_mac: self.src_mac, ..Self::new(self.dst, self.src) }
    }

    pub fn seq(self, seq: u32) -> Self {
        Self { seq, ..self }
    }
    pub fn ack(self, ack: u32) -> Self {
        Self { ack, flags: self.flags | ACK, ..self }
    }
    pub fn flags(self, flags: u8) -> Self {
        Self { flags, ..self }
    }
    pub fn window(self, window: u16) -> Self {
        Self { window, ..self }
    }
    pub fn options(self, options: impl Into<Vec<Opt>>) -> Self {
        Self { options: options.into(), ..self }
    }
    /// No-operation, no-operation, timestamps: as every segment of an agreed connection carries them.
    pub fn timestamps(self, val: u32, echo: u32) -> Self {
        self.options([Opt::Nop, Opt::Nop, Opt::Timestamps { val, echo }])
    }
    pub fn payload(self, payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: payload.into(), ..self }
    }
    pub fn macs(self, src_mac: Mac, dst_mac: Mac) -> Self {
        Self { src_mac, dst_mac, ..self }
    }

    /// Sequence numbers it takes: its payload, and one each for SYN and FIN (RFC 9293 §3.4).
    pub fn length(&self) -> u32 {
        self.payload.len() as u32 + u32::from(self.flags & SYN != 0) + u32::from(self.flags & FIN != 0)
    }
    /// The sequence number behind it.
    pub fn end(&self) -> u32 {
        self.seq.wrapping_add(self.length())
    }
    pub fn has(&self, flags: u8) -> bool {
        self.flags & flags == flags
    }

    pub fn mss(&self) -> Option<u16> {
        self.options.iter().find_map(|o| if let Opt::Mss(mss) = o { Some(*mss) } else { None })
    }
    pub fn window_scale(&self) -> Option<u8> {
        self.options.iter().find_map(|o| if let Opt::WindowScale(scale) = o { Some(*scale) } else { None })
    }
    pub fn sack_permitted(&self) -> bool {
        self.options.contains(&Opt::SackPermitted)
    }
    /// TSval and TSecr.
    pub fn timestamp(&self) -> Option<(u32, u32)> {
        self.options
            .iter()
            .find_map(|o| if let Opt::Timestamps { val, echo } = o { Some((*val, *echo)) } else { None })
    }
    /// Left and right edges of the SACK blocks.
    pub fn sack(&self) -> &[(u32, u32)] {
        self.options
            .iter()
            .find_map(|o| if let Opt::Sack(blocks) = o { Some(&blocks[..]) } else { None })
            .unwrap_or(&[])
    }
}

impl fmt::Display for Segment {
    /// One line, close to tcpdump's: `10.0.1.2:4000 > 10.0.9.1:80 [S.] seq 1 ack 2 win 3 <mss 1460,ws 7> len 0`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} > {} [", self.src, self.dst)?;
        for (flag, letter) in [(SYN, 'S'), (FIN, 'F'), (RST, 'R'), (PSH, 'P'), (URG, 'U'), (ACK, '.')] {
            if self.has(flag) {
                write!(f, "{letter}")?;
            }
        }
        write!(f, "] seq {} ack {} win {} <", self.seq, self.ack, self.window)?;
        for (i, option) in self.options.iter().enumerate() {
            write!(f, "{}{option}", if i > 0 { "," } else { "" })?;
        }
        write!(f, "> len {} ttl {}", self.payload.len(), self.ttl)?;
        if let Some(vlan) = self.vlan {
            write!(f, " vlan {vlan}")?;
        }
        if self.fragment & 0x3fff != 0 {
            write!(f, " fragment {:#x}", self.fragment)?;
        }
        if self.padding > 0 {
            write!(f, " padding {}", self.padding)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One line about any frame, for messages of failing tests.
pub fn describe(frame: &[u8]) -> String {
    match Segment::parse(frame) {
        Ok(segment) => segment.to_string(),
        Err(why) => match Segment::parse_lenient(frame) {
            Ok(segment) => format!("{segment} ({why})"),
            Err(why) => format!("{} bytes, {why}: {:02x?}", frame.len(), &frame[..frame.len().min(60)]),
        },
    }
}

/// The one's complement of the one's complement sum of big-endian words (RFC 1071); 0 over data that holds its own
/// right checksum.
pub fn internet_checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Segment {
        let (a, b) = ("10.0.1.2:40000".parse().unwrap(), "10.0.9.1:80".parse().unwrap());
        Segment::new(a, b).seq(7).ack(9).timestamps(1, 2).payload(&b"hello"[..])
    }

    #[test]
    fn what_is_built_is_parsed() {
        let mut all = vec![sample(), Segment::syn(sample().src, sample().dst, 5)];
        all.push(Segment { vlan: Some(5), padding: 6, ..sample() });
        all.push(Segment { ip_options: vec![1, 1, 1, 0], tos: 4, ..sample() });
        all.push(sample().options([Opt::Sack(vec![(1, 2), (3, 4)]), Opt::Nop, Opt::Nop]));
        for segment in all {
            assert_eq!(Segment::parse(&segment.bytes()).unwrap(), segment);
        }
    }

    #[test]
    fn every_corrupted_byte_behind_the_ethernet_header_is_noticed() {
        let bytes = sample().bytes();
        for at in 14..bytes.len() {
            let mut bad = bytes.clone();
            bad[at] ^= 0x10;
            assert!(Segment::parse(&bad).is_err(), "byte {at}");
        }
    }

    #[test]
    fn a_known_header_has_its_known_checksum() {
        // The example of RFC 1071 §3.
        assert_eq!(internet_checksum(&[&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]]), !0xddf2);
    }

    #[test]
    fn a_line_says_what_matters() {
        assert_eq!(
            describe(&sample().bytes()),
            "10.0.1.2:40000 > 10.0.9.1:80 [.] seq 7 ack 9 win 64240 <nop,nop,ts 1 2> len 5 ttl 64"
        );
    }
}
