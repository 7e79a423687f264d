//! Names of servers that lead to chosen backends: keys and values of the maps that hold them, and how a name is hashed.
//!
//! A name is known by its hash alone. Under a secret key, a name that nobody has listed is taken for one of n listed ones with
//! a probability of n / 2^64, and nobody can look for such a name. Whoever found one would only get where the listed name
//! leads, which is open to all that know it.

use crate::hash::{Sip, SipKey};
use bytemuck::{Pod, Zeroable};

/// Longest name, in bytes (RFC 1035 §2.3.4, without the length bytes at both ends).
pub const MAX_NAME: usize = 253;
/// Most labels behind the asterisk of a wildcard: one bit of [`crate::service::Service::wildcards`] each.
pub const MAX_WILDCARD_LABELS: u32 = 15;
/// Bit that tells the case of a letter, in every byte. Digits, dots and hyphens have it set.
pub const CASE: u64 = 0x2020_2020_2020_2020;
/// The key for a name's place in a Maglev table: the same on every node.
pub const UNKEYED: SipKey = [0, 0];

/// Key of the map of names.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Name {
    /// [`hash`] of the name under the secret of the settings; of a wildcard, of what stands behind its first dot.
    pub hash: u64,
    /// Id of the service.
    pub service: u16,
    /// [`EXACT`] or [`WILDCARD`].
    pub kind: u16,
    pub _pad: u32,
}

/// The name itself...
pub const EXACT: u16 = 0;
/// ...or every name that ends in a dot and this.
pub const WILDCARD: u16 = 1;

/// Value of the map of pools: the Maglev table of the backends that are listed for a name. Index 0 is none.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Pool {
    /// First block of the live table.
    pub base: u32,
    /// Its entries; 0 when no backend is ready.
    pub size: u32,
    /// Which backends it is made of, whatever their states: a daemon recognises its predecessor's pools by that.
    pub id: u64,
}

/// SipHash-2-4 of a name in lower case: eight bytes at a time, the last ones filled up with zeros, then the length.
pub fn hash(key: &SipKey, name: &[u8]) -> u64 {
    let mut sip = Sip::new(key);
    for chunk in name.chunks(8) {
        let word = chunk.iter().rev().fold(0, |word, &byte| word << 8 | u64::from(byte | CASE as u8));
        sip.absorb(word);
    }
    sip.absorb(name.len() as u64);
    sip.finish()
}

/// The labels of a name.
pub fn labels(name: &str) -> u32 {
    name.split('.').count() as u32
}

crate::map_types! { Name: 16, Pool: 16 }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_case_of_a_name_does_not_count() {
        let key = [1, 2];
        for (a, b, same) in [
            ("shop.example.org", "SHOP.Example.ORG", true),
            ("shop-1.example.org", "shop-2.example.org", false),
            ("example", "example.", false),
            ("12345678", "1234567", false),
            ("12345678", "123456780", false),
        ] {
            assert_eq!(hash(&key, a.as_bytes()) == hash(&key, b.as_bytes()), same, "{a} {b}");
        }
        assert_ne!(hash(&key, b"shop"), hash(&[2, 1], b"shop"));
        assert_eq!((labels("example.org"), labels("org")), (2, 1));
    }
}
