//! Values that have a syntax of their own inside TOML's text: durations, sizes, networks.

use std::net::Ipv4Addr;
use std::time::Duration;

/// An IPv4 network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Subnet {
    /// Its first address: all host bits are zero.
    pub base: Ipv4Addr,
    /// Length of the prefix in bits, 0 to 32.
    pub prefix: u8,
}

impl Subnet {
    /// Reads `10.254.0.0/16`. The error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let (base, prefix) = text.split_once('/').ok_or("has no prefix length")?;
        let base: Ipv4Addr = base.parse().map_err(|_| format!("`{base}` is not an IPv4 address"))?;
        let prefix: u8 = prefix
            .parse()
            .ok()
            .filter(|n| *n <= 32)
            .ok_or_else(|| format!("`{prefix}` is not a prefix length from 0 to 32"))?;
        let subnet = Self { base, prefix };
        let first = Ipv4Addr::from_bits(base.to_bits() & subnet.mask());
        if first != base {
            return Err(format!("has host bits set, the network is {first}/{prefix}"));
        }
        Ok(subnet)
    }

    const fn mask(self) -> u32 {
        // A shift by 32 is no shift at all.
        if self.prefix == 0 { 0 } else { u32::MAX << (32 - self.prefix) }
    }

    /// Number of addresses.
    pub const fn size(self) -> u64 {
        1 << (32 - self.prefix)
    }

    pub const fn contains(self, addr: Ipv4Addr) -> bool {
        addr.to_bits() & self.mask() == self.base.to_bits()
    }

    /// The address that stands `n` behind the first.
    pub const fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.base.to_bits().wrapping_add(n))
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.base, self.prefix)
    }
}

/// Reads `250ms`, `10s`, `15m`, `1h30m`, `7d`: whole numbers with units, added up.
pub fn parse_duration(text: &str) -> Option<Duration> {
    let mut rest = text.trim();
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        let unit_and_rest = rest[digits..].trim_start();
        let end = unit_and_rest.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(unit_and_rest.len());
        let millis = match &unit_and_rest[..end] {
            "ms" => 1,
            "s" => 1_000,
            "m" | "min" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return None,
        };
        total = total.checked_add(Duration::from_millis(number.checked_mul(millis)?))?;
        rest = unit_and_rest[end..].trim_start();
    }
    Some(total)
}

/// Writes a duration as [`parse_duration`] reads it.
pub fn show_duration(duration: Duration) -> String {
    let millis = duration.as_millis();
    if millis == 0 {
        return "0s".to_owned();
    }
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)]
        .iter()
        .scan(millis, |left, (unit, size)| {
            let count = *left / size;
            *left %= size;
            Some((count, unit))
        })
        .filter(|(count, _)| *count > 0)
        .map(|(count, unit)| format!("{count}{unit}"))
        .collect()
}

/// Reads `4096`, `64 KiB`, `64MiB`, `1 GiB`: bytes.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit: u64 = match text[digits..].trim_start() {
        "" | "B" => 1,
        "KiB" => 1 << 10,
        "MiB" => 1 << 20,
        "GiB" => 1 << 30,
        _ => return None,
    };
    number.checked_mul(unit)
}

/// Reads bytes: text as it stands, or `hex:` with two digits for each byte, spaces between them allowed.
pub(super) fn parse_bytes(text: &str) -> Option<Vec<u8>> {
    let Some(hex) = text.strip_prefix("hex:") else { return Some(text.as_bytes().to_vec()) };
    let digits: Vec<u8> = hex.bytes().filter(|byte| !byte.is_ascii_whitespace()).collect();
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    digits.chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations() {
        for (text, millis) in [
            ("250ms", Some(250)),
            ("10s", Some(10_000)),
            ("15m", Some(900_000)),
            ("1h30m", Some(5_400_000)),
            ("1h 30 m", Some(5_400_000)),
            ("7d", Some(604_800_000)),
            ("0s", Some(0)),
            ("", None),
            ("10", None),
            ("s", None),
            ("1.5s", None),
            ("-1s", None),
            ("10 parsecs", None),
            ("99999999999999999999s", None),
            ("18446744073709551615d", None),
        ] {
            assert_eq!(parse_duration(text), millis.map(Duration::from_millis), "{text}");
        }
    }

    #[test]
    fn sizes() {
        for (text, bytes) in [
            ("4096", Some(4096)),
            ("64 KiB", Some(65_536)),
            ("2MiB", Some(2 << 20)),
            ("1 GiB", Some(1 << 30)),
            ("64kb", None),
            ("", None),
            ("MiB", None),
            ("99999999999 GiB", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn bytes() {
        for (text, bytes) in [
            ("ping\n", Some(&b"ping\n"[..])),
            ("", Some(b"")),
            ("hex:", Some(b"")),
            ("hex:00ff 7F", Some(b"\x00\xff\x7f")),
            ("hex:0", None),
            ("hex:0g", None),
            ("hex:é0", None),
        ] {
            assert_eq!(parse_bytes(text).as_deref(), bytes, "{text}");
        }
    }

    #[test]
    fn subnets() {
        let subnet = Subnet::parse("10.254.0.0/16").unwrap();
        assert_eq!((subnet.size(), subnet.nth(258)), (65_536, Ipv4Addr::new(10, 254, 1, 2)));
        assert!(subnet.contains(Ipv4Addr::new(10, 254, 255, 255)));
        assert!(!subnet.contains(Ipv4Addr::new(10, 255, 0, 0)));
        assert!(Subnet::parse("0.0.0.0/0").unwrap().contains(Ipv4Addr::BROADCAST));
        for (text, reason) in [
            ("10.0.0.0", "has no prefix length"),
            ("10.0.0/8", "`10.0.0` is not an IPv4 address"),
            ("10.0.0.0/33", "`33` is not a prefix length from 0 to 32"),
            ("10.0.0.1/24", "has host bits set, the network is 10.0.0.0/24"),
        ] {
            assert_eq!(Subnet::parse(text).unwrap_err(), reason);
        }
    }

    proptest! {
        #[test]
        fn a_duration_survives_being_written(millis in 0u64..u64::from(u32::MAX) * 1000) {
            let duration = Duration::from_millis(millis);
            prop_assert_eq!(parse_duration(&show_duration(duration)), Some(duration));
        }
    }
}
