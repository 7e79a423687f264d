//! Who a packet is for: the table that tells, from address and port, a service's or a backend's packet from others.
//!
//! A hash table of our own, built whole by the daemon, so that a look-up is one array access and at most two
//! comparisons. Two halves: the daemon fills the one that is not live, then flips [`Settings::live`].
//!
//! [`Settings::live`]: crate::settings::Settings

use crate::addr::{Addr, Be16};
#[cfg(feature = "std")]
use crate::buckets::{self, Sizes, TableFull};
#[cfg(feature = "std")]
use crate::hash::mix64;
use bytemuck::{Pod, Zeroable};

/// Address and port belong to a service: the packet comes from a client.
pub const KIND_SERVICE: u16 = 1;
/// Address and port belong to a backend: the packet comes from it.
pub const KIND_BACKEND: u16 = 2;

/// One entry; all zero when free.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Endpoint {
    pub addr: Addr,
    /// Port and protocol, see [`port_and_protocol`].
    pub port: u32,
    /// [`KIND_SERVICE`], [`KIND_BACKEND`], or 0.
    pub kind: u16,
    /// Service id or backend slot.
    pub index: u16,
}

/// Entries that share a hash value.
pub const BUCKET: usize = 2;

/// One value of the table.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Bucket(pub [Endpoint; BUCKET]);

/// The port as it stands in the packet in the low half, the IP protocol number in the high half.
#[inline(always)]
pub const fn port_and_protocol(port: Be16, protocol: u8) -> u32 {
    port.bits() as u32 | (protocol as u32) << 16
}

/// The bucket of an endpoint: its hash under the seed of that half. Take its low bits.
#[inline(always)]
pub const fn bucket_of(seed: u64, addr: Addr, port: u32) -> u32 {
    let ip = addr.lo ^ addr.hi.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let ip = (ip ^ ip >> 32) & 0xffff_ffff;
    let product = seed.wrapping_add(ip).wrapping_mul(seed.rotate_left(32).wrapping_add(port as u64) | 1);
    (product >> 32) as u32
}

/// Buckets of the smallest table.
#[cfg(feature = "std")]
const FEWEST: usize = 64;

/// Places every endpoint in its bucket. The table has as few buckets as will do, because every packet of a stranger looks
/// into one of them at random: a small table stays in the caches. Returns the seed that worked and the buckets, whose
/// number is a power of two up to `most`, another one.
///
/// # Errors
/// [`TableFull`] when no seed of many works: the table is too small.
#[cfg(feature = "std")]
pub fn build(
    endpoints: &[Endpoint],
    most: usize,
    seed: u64,
) -> Result<(u64, std::vec::Vec<Bucket>), TableFull> {
    let bucket_of = |seed: &u64, endpoint: &Endpoint| bucket_of(*seed, endpoint.addr, endpoint.port);
    let sizes = Sizes { each: 8, fewest: FEWEST, most };
    let (seed, table) = buckets::build(endpoints, sizes, |n| mix64(seed.wrapping_add(n)), bucket_of)?;
    Ok((seed, table.into_iter().map(Bucket).collect()))
}

crate::map_types! { Endpoint: 24, Bucket: 48 }

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn endpoints(n: u32) -> Vec<Endpoint> {
        (0..n)
            .map(|i| Endpoint {
                addr: Addr::from_v4_bits((0x0a00_0000 + i).to_be()),
                port: port_and_protocol(Be16::new(80), 6),
                kind: KIND_BACKEND,
                index: i as u16,
            })
            .collect()
    }

    #[test]
    fn every_endpoint_is_found_where_the_program_looks() {
        for (n, buckets) in [(0, 64), (5, 64), (8, 64), (9, 128), (1000, 8192), (4000, 16_384)] {
            let all = endpoints(n);
            let (seed, table) = build(&all, 16_384, 7).unwrap();
            assert!(table.len() >= buckets && table.len() <= 16_384, "{n}: {}", table.len());
            for e in &all {
                let bucket = &table[bucket_of(seed, e.addr, e.port) as usize & (table.len() - 1)];
                assert!(bucket.0.contains(e));
            }
        }
    }

    #[test]
    fn an_overfull_table_is_an_error() {
        assert_eq!(build(&endpoints(64), 16, 7), Err(TableFull { entries: 64, buckets: 16 }));
    }
}
