//! A segment becomes bytes.

use super::{Segment, internet_checksum};

impl Segment {
    /// The whole frame, lengths and checksums filled in.
    pub fn bytes(&self) -> Vec<u8> {
        let tcp = self.tcp_bytes();
        let mut frame = Vec::with_capacity(tcp.len() + 60);
        frame.extend(self.dst_mac);
        frame.extend(self.src_mac);
        if let Some(tag) = self.vlan {
            frame.extend(0x8100u16.to_be_bytes());
            frame.extend(tag.to_be_bytes());
        }
        frame.extend(0x0800u16.to_be_bytes());
        frame.extend(self.ip_header(tcp.len()));
        frame.extend(tcp);
        frame.resize(frame.len() + self.padding, 0);
        frame
    }

    fn ip_header(&self, tcp_len: usize) -> Vec<u8> {
        assert!(self.ip_options.len().is_multiple_of(4), "IPv4 options come in words");
        let len = 20 + self.ip_options.len();
        let mut header = vec![0x40 | (len / 4) as u8, self.tos];
        header.extend(((len + tcp_len) as u16).to_be_bytes());
        header.extend(self.id.to_be_bytes());
        header.extend(self.fragment.to_be_bytes());
        header.extend([self.ttl, 6, 0, 0]);
        header.extend(self.src.ip().octets());
        header.extend(self.dst.ip().octets());
        header.extend(&self.ip_options);
        let check = internet_checksum(&[&header]);
        header[10..12].copy_from_slice(&check.to_be_bytes());
        header
    }

    fn tcp_bytes(&self) -> Vec<u8> {
        let mut options = Vec::new();
        self.options.iter().for_each(|option| option.write(&mut options));
        options.resize(options.len().next_multiple_of(4), 0);
        assert!(options.len() <= 40, "TCP options take at most 40 bytes");
        let mut tcp = Vec::with_capacity(20 + options.len() + self.payload.len());
        tcp.extend(self.src.port().to_be_bytes());
        tcp.extend(self.dst.port().to_be_bytes());
        tcp.extend(self.seq.to_be_bytes());
        tcp.extend(self.ack.to_be_bytes());
        tcp.extend([((20 + options.len()) / 4) as u8 * 16, self.flags]);
        tcp.extend(self.window.to_be_bytes());
        tcp.extend([0, 0]);
        tcp.extend(self.urgent.to_be_bytes());
        tcp.extend(options);
        tcp.extend(&self.payload);
        let check = self.tcp_checksum(&tcp);
        tcp[16..18].copy_from_slice(&check.to_be_bytes());
        tcp
    }

    /// Over the pseudo header and a segment; 0 when the segment holds its right checksum.
    pub(super) fn tcp_checksum(&self, tcp: &[u8]) -> u16 {
        let len = (tcp.len() as u16).to_be_bytes();
        internet_checksum(&[&self.src.ip().octets(), &self.dst.ip().octets(), &[0, 6], &len, tcp])
    }
}
