//! Whose server id it is: the table that tells, from service and server id, a backend's slot.
//!
//! A hash table of our own, as that of [`crate::endpoint`]: the daemon builds it whole, in the half that is not live, then
//! flips [`Settings::quic_live`]. A look-up is one array access and, as a rule, one comparison.
//!
//! [`Settings::quic_live`]: crate::settings::Settings

use super::Server;
use crate::aes::Block;
#[cfg(feature = "std")]
use crate::buckets::{self, Sizes, TableFull};
#[cfg(feature = "std")]
use crate::hash::mix64;
use crate::hash::pair;
use bytemuck::{Pod, Zeroable};

/// Entries that share a hash value.
pub const BUCKET: usize = 8;
/// Buckets of each half of the map for each backend: as many as ids that it may have while they are replaced. At that load
/// one bucket in a million overflows, so a seed under which none does is soon found.
pub const BUCKETS: u32 = 2 * super::SERVER_IDS;
/// Buckets of the smallest table.
#[cfg(feature = "std")]
const FEWEST: usize = 16;

/// Secret multipliers, of each half its own.
pub type Seed = [u64; 4];

/// One entry; all zero when free.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Entry {
    /// The server id, zeros behind it.
    id: Block,
    /// Slot of the backend (low 16 bits), id of the service (16 bits), bytes of the server id (8 bits).
    whose: u64,
}

/// One value of the table.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Bucket(pub [Entry; BUCKET]);

impl Server {
    /// What tells it from others that have the same bytes.
    #[inline(always)]
    const fn kind(&self) -> u64 {
        self.service as u64 | (self.len as u64) << 16
    }
}

impl Entry {
    pub const fn new(server: &Server, slot: u16) -> Self {
        Self { id: server.id, whose: server.kind() << 16 | slot as u64 }
    }

    /// The server and the slot of its backend; `None` when the entry is free.
    pub const fn get(&self) -> Option<(Server, u16)> {
        let (service, len) = ((self.whose >> 16) as u16, (self.whose >> 32) as u8);
        if len == 0 {
            return None;
        }
        Some((Server { id: self.id, service, len, _pad: [0; 5] }, self.whose as u16))
    }

    /// The slot, if it is that server's entry.
    #[inline(always)]
    pub const fn slot_of(&self, server: &Server) -> Option<u16> {
        if self.id[0] == server.id[0] && self.id[1] == server.id[1] && self.whose >> 16 == server.kind() {
            Some(self.whose as u16)
        } else {
            None
        }
    }
}

/// The bucket of a server id: its hash under the seed of that half. Take its low bits.
#[inline(always)]
pub const fn bucket_of(seed: &Seed, server: &Server) -> u32 {
    let [low, high] = server.id;
    // The last byte, which no id reaches: ids may be equal but for zeros at their end.
    let high = high | (server.len as u64) << 56;
    let sum = pair(seed[0], low as u32, seed[1], (low >> 32) as u32).wrapping_add(pair(
        seed[2],
        high as u32,
        seed[3],
        (high >> 32) as u32,
    ));
    ((sum >> 32) as u32).wrapping_add(server.service as u32)
}

/// Places every server in its bucket, under seeds derived from `seed`. Returns the seed that worked and the buckets, whose number
/// is a power of two up to `most`, another one.
///
/// # Errors
/// [`TableFull`] when no seed of many works: the table is too small.
#[cfg(feature = "std")]
pub fn build(
    servers: impl IntoIterator<Item = (Server, u16)>,
    most: usize,
    seed: u64,
) -> Result<(Seed, std::vec::Vec<Bucket>), TableFull> {
    let entries: std::vec::Vec<_> =
        servers.into_iter().map(|(server, slot)| Entry::new(&server, slot)).collect();
    let seed_of = |n: u64| core::array::from_fn(|i| mix64(seed.wrapping_add(4 * n + i as u64)));
    let bucket_of =
        |seed: &Seed, entry: &Entry| entry.get().map_or(0, |(server, _)| bucket_of(seed, &server));
    let sizes = Sizes { each: 2, fewest: FEWEST, most };
    let (seed, table) = buckets::build(&entries, sizes, seed_of, bucket_of)?;
    Ok((seed, table.into_iter().map(Bucket).collect()))
}

crate::map_types! { Entry: 24, Bucket: 192 }

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn look_up(seed: &Seed, table: &[Bucket], server: &Server) -> Option<u16> {
        let bucket = &table[bucket_of(seed, server) as usize & (table.len() - 1)];
        bucket.0.iter().find_map(|entry| entry.slot_of(server))
    }

    fn servers(n: u32, service: u16, bytes: usize) -> Vec<(Server, u16)> {
        // They differ in the last bytes alone, as numbered ones do.
        let id = |i: u32| [&[0x5e; 11], &i.to_be_bytes()[..]].concat();
        (0..n).map(|i| (Server::new(service, &id(i)[15 - bytes..]).unwrap(), i as u16)).collect()
    }

    #[test]
    fn every_server_is_found_where_the_program_looks() {
        for (n, buckets) in [(0, 16), (1, 16), (9, 32), (1000, 2048), (4096, 8192), (8192, 8192)] {
            for bytes in [4, 7, 8, 9, 12, 15] {
                let all = servers(n, 3, bytes);
                let (seed, table) = build(all.iter().copied(), 8192, 7).unwrap();
                assert_eq!(table.len(), buckets, "{n} of {bytes} bytes");
                for (server, slot) in &all {
                    assert_eq!(look_up(&seed, &table, server), Some(*slot));
                    assert_eq!(look_up(&seed, &table, &Server { service: 4, ..*server }), None);
                    assert_eq!(look_up(&seed, &table, &Server { len: server.len - 1, ..*server }), None);
                }
            }
        }
    }

    #[test]
    fn what_was_placed_can_be_read_again() {
        let all = servers(300, 9, 2);
        let (_, table) = build(all.iter().copied(), 4096, 1).unwrap();
        let mut found: Vec<_> = table.iter().flat_map(|bucket| bucket.0).filter_map(|e| e.get()).collect();
        found.sort_by_key(|(_, slot)| *slot);
        assert_eq!(found, all);
        assert_eq!(Entry::default().get(), None);
    }

    /// Of a whole range of backends, all with as many ids as there can be, and all replaced.
    #[test]
    fn the_largest_tables_are_built() {
        for backends in [4096, 65_536] {
            let all = servers(8 * backends, 3, 15);
            let (_, table) = build(all, (backends * BUCKETS) as usize, 7).unwrap();
            assert_eq!(table.len(), 8 * backends as usize);
        }
    }

    /// Padded to several lengths, as ids are when lengths change.
    #[test]
    fn ids_that_are_equal_but_for_their_length_fit() {
        let zeros = (1..=15).map(|len| (Server::new(1, &[0; 15][..len]).unwrap(), len as u16));
        let (seed, table) = build(zeros.clone(), 16, 7).unwrap();
        for (server, slot) in zeros {
            assert_eq!(look_up(&seed, &table, &server), Some(slot));
        }
        let padded = (0..1000_u32).flat_map(|i| {
            [2, 5, 9, 15].map(|len| {
                let mut id = [0; 15];
                id[..2].copy_from_slice(&(i as u16).to_be_bytes());
                (Server::new(1, &id[..len]).unwrap(), i as u16)
            })
        });
        build(padded, 8192, 7).unwrap();
    }

    #[test]
    fn the_same_ids_behind_many_services_fit() {
        let all = (1..=200).flat_map(|service| servers(3, service, 1));
        build(all, 1 << 13, 7).unwrap();
    }

    #[test]
    fn an_overfull_table_is_an_error() {
        let full = build(servers(129, 1, 4), 16, 7);
        assert_eq!(full, Err(TableFull { entries: 129, buckets: 16 }));
    }
}
