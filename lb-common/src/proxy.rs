//! The PROXY protocol, in which a proxy tells whose connection it forwards (HAProxy's `proxy-protocol.txt`, versions 1 and 2): what is
//! fixed of its headers, and addresses as version 1 writes them.

use crate::addr::Addr;

/// What a header of version 1 begins with.
pub const V1: [u8; 6] = *b"PROXY ";
/// Longest header of version 1, with its line end, in bytes.
pub const MAX_V1: u32 = 107;
/// What a header of version 2 begins with.
pub const V2: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Bytes of a header of version 2 that stand before its addresses: what it begins with, version and command, family, and the length
/// of what follows.
pub const V2_LEN: u32 = 16;

/// The text of an address while it is read, byte after byte (RFC 4291 §2.2; IPv4 as four decimal numbers).
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct AddrText {
    /// What was read, or what stands behind a `::`, as a number of 128 bits...
    hi: u64,
    lo: u64,
    /// ...and what stands before that.
    left_hi: u64,
    left_lo: u64,
    /// Groups of 16 bits in each.
    groups: u64,
    left_groups: u64,
    /// The group that is being read, as hexadecimal and as decimal digits, and how many there are.
    hex: u64,
    dec: u64,
    digits: u64,
    /// Decimal numbers before it, and how many.
    v4: u64,
    dots: u64,
    /// Colons right before it, up to two.
    colons: u64,
    /// 1 when there was a `::`.
    gap: u64,
    /// 1 when the group that is being read is no decimal number: it has letters, or begins with a zero that is not all of it.
    not_decimal: u64,
    /// 1 when it is no address.
    wrong: u64,
}

impl AddrText {
    /// Reads one more byte of it.
    #[inline(always)]
    pub const fn push(&mut self, byte: u8) {
        let (decimal, letter) = (byte.wrapping_sub(b'0'), (byte | 0x20).wrapping_sub(b'a'));
        if decimal < 10 || letter < 6 {
            if decimal >= 10 || self.digits != 0 && self.dec == 0 {
                self.not_decimal = 1;
            }
            let digit = if decimal < 10 { decimal } else { letter + 10 };
            if self.colons == 1 && self.groups == 0 && self.gap == 0 || self.digits == 4 {
                self.wrong = 1;
            }
            self.hex = self.hex << 4 | digit as u64;
            self.dec = self.dec.wrapping_mul(10).wrapping_add(digit as u64);
            self.digits += 1;
            self.colons = 0;
        } else if byte == b':' {
            self.colon();
        } else if byte == b'.' {
            self.number();
            self.dots += 1;
        } else {
            self.wrong = 1;
        }
    }

    #[inline(always)]
    const fn colon(&mut self) {
        if self.dots != 0 || self.colons == 2 || self.digits == 0 && self.colons == 0 && self.groups != 0 {
            self.wrong = 1;
        }
        if self.digits != 0 {
            self.group(self.hex);
            self.next();
            self.colons = 1;
        } else if self.colons == 0 {
            self.colons = 1;
        } else {
            self.wrong |= self.gap;
            self.gap = 1;
            self.colons = 2;
            (self.left_hi, self.left_lo, self.left_groups) = (self.hi, self.lo, self.groups);
            (self.hi, self.lo, self.groups) = (0, 0, 0);
        }
    }

    /// Takes the digits as a decimal number of an IPv4 address.
    #[inline(always)]
    const fn number(&mut self) {
        if self.digits == 0 || self.not_decimal != 0 || self.dec > 255 {
            self.wrong = 1;
        }
        self.v4 = self.v4 << 8 | self.dec & 0xff;
        self.next();
    }

    #[inline(always)]
    const fn next(&mut self) {
        (self.hex, self.dec, self.digits, self.not_decimal) = (0, 0, 0, 0);
    }

    /// Takes 16 bits.
    #[inline(always)]
    const fn group(&mut self, bits: u64) {
        self.hi = self.hi << 16 | self.lo >> 48;
        self.lo = self.lo << 16 | bits & 0xffff;
        self.groups += 1;
    }

    /// The address, when that was all of it; an IPv4 address of either form in its IPv4-mapped form.
    #[inline(always)]
    pub const fn finish(mut self) -> Option<Addr> {
        let has_colons = self.groups != 0 || self.gap != 0;
        if self.dots != 0 {
            self.number();
            if self.dots != 3 || self.colons == 1 && !has_colons {
                return None;
            }
            if !has_colons {
                self.group(0xffff);
                self.groups = 6;
            }
            self.group(self.v4 >> 16);
            self.group(self.v4);
        } else if self.digits != 0 {
            self.group(self.hex);
        } else if self.colons != 2 {
            return None;
        }
        let groups = self.groups + self.left_groups;
        if self.wrong != 0 || self.gap == 0 && groups != 8 || groups > 8 || self.gap != 0 && groups > 7 {
            return None;
        }
        let mut shift = self.left_groups;
        while shift < 8 {
            self.left_hi = self.left_hi << 16 | self.left_lo >> 48;
            self.left_lo <<= 16;
            shift += 1;
        }
        let (hi, lo) = (self.hi | self.left_hi, self.lo | self.left_lo);
        Some(Addr { hi: hi.to_be(), lo: lo.to_be() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::{IpAddr, Ipv6Addr};
    use proptest::prelude::*;
    use std::string::ToString;

    fn read(text: &str) -> Option<Addr> {
        let mut address = AddrText::default();
        text.bytes().for_each(|byte| address.push(byte));
        address.finish()
    }

    /// As the standard library reads it.
    fn expected(text: &str) -> Option<Addr> {
        text.parse::<IpAddr>().ok().map(Addr::from)
    }

    #[test]
    fn addresses_are_read_as_everywhere() {
        for text in [
            "192.0.2.1",
            "0.0.0.0",
            "255.255.255.255",
            "256.0.0.1",
            "1.2.3",
            "1.2.3.4.5",
            "01.2.3.4",
            "1.2.3.04",
            "1..2.3",
            ".1.2.3",
            "1.2.3.",
            "",
            "1",
            "::",
            "::1",
            "1::",
            "2001:db8::1",
            "2001:DB8:0:0:0:0:0:1",
            "1:2:3:4:5:6:7:8",
            "1:2:3:4:5:6:7",
            "1:2:3:4:5:6:7:8:9",
            "1:2:3:4:5:6:7::",
            "::2:3:4:5:6:7:8",
            "1::2::3",
            ":::",
            ":1",
            ":1::",
            "1:",
            "1:2:3:4:5:6:7:",
            "::ffff:192.0.2.1",
            "::1.2.3.4",
            "1:2:3:4:5:6:1.2.3.4",
            "1:2:3:4:5:6:7:1.2.3.4",
            "1:2:3:4:5:1.2.3.4",
            "1.2.3.4::",
            "1.2.3.4:5",
            "::12345",
            "::g",
            "fe80::1%eth0",
            "1:2:3::4:5:6:7:8",
            "a.b.c.d",
            "::1.2.3",
            ":1.2.3.4",
            "::0001",
            "0:0:0:0:0:ffff:1.2.3.4",
            "1:2::3:1.2.3.4",
            "1.2.3.4 ",
            "1.2.3.4:",
            "::1.2.3.4:",
            "1:.2.3.4",
            "1:::",
            "1: :2",
            "0000.0.0.0",
            "1.2.3.1000",
        ] {
            assert_eq!(read(text), expected(text), "{text}");
        }
    }

    proptest! {
        #[test]
        fn every_address_is_read(bytes: [u8; 16], v4: [u8; 4]) {
            for text in [Ipv6Addr::from(bytes).to_string(), IpAddr::from(v4).to_string()] {
                prop_assert_eq!(read(&text), expected(&text), "{}", text);
            }
        }

        #[test]
        fn whatever_is_no_address_is_none(text in "[0-9a-f:.]{0,24}", sparse in "([0-9a-f]{0,2}[:.]{1,2}){0,9}[0-9a-f]{0,3}") {
            for text in [text, sparse] {
                prop_assert_eq!(read(&text), expected(&text), "{}", text);
            }
        }
    }
}
