//! The tables of which there are two halves: one is live, the other is filled, then they change places. What each half
//! holds is remembered, so that only what changes is written.

use super::error::DatapathError;
use super::maps::Maps;
use super::sys;
use lb_common::endpoint::{self, Endpoint};
use lb_common::maglev::{BLOCK, Block, NOBODY};
use lb_common::quic_lb::{Server, servers};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// A table of two halves.
#[derive(Debug)]
struct Halves<V> {
    /// What each half holds, once we wrote it.
    held: [Option<Vec<V>>; 2],
    flip: Flip,
}

impl<V> Default for Halves<V> {
    fn default() -> Self {
        Self { held: [None, None], flip: Flip::default() }
    }
}

impl<V: Copy + PartialEq> Halves<V> {
    /// Fills the half that is not live. The caller then makes it live, and says so.
    fn fill<E>(
        &mut self,
        half: usize,
        table: Vec<V>,
        write: impl FnMut(u32, V) -> Result<(), E>,
    ) -> Result<(), E> {
        self.flip.wait();
        write_changes(self.held[half].take().as_deref(), &table, write)?;
        self.held[half] = Some(table);
        Ok(())
    }
}

/// What the settings must say for a half of a hash table to be live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LiveHalf<S> {
    pub(super) half: usize,
    /// First bucket (low 32 bits) and bucket mask (high 32 bits).
    pub(super) live: u64,
    pub(super) seed: S,
}

/// The half of a hash table that is not live.
const fn other_half(live: u64) -> usize {
    if live as u32 == 0 && live != 0 { 1 } else { 0 }
}

/// Halves of the endpoint table.
#[derive(Debug)]
pub(super) struct Endpoints {
    /// In each half.
    buckets: u32,
    halves: Halves<endpoint::Bucket>,
    /// Where the search for a hash seed begins.
    seed: u64,
}

impl Endpoints {
    pub(super) fn new(buckets: u32, seed: u64) -> Self {
        Self { buckets, halves: Halves::default(), seed }
    }

    /// Fills the half that is not live.
    pub(super) fn write(
        &mut self,
        maps: &mut Maps,
        live: u64,
        endpoints: &[Endpoint],
    ) -> Result<LiveHalf<u64>, DatapathError> {
        let (seed, table) = endpoint::build(endpoints, self.buckets as usize, self.seed)
            .map_err(DatapathError::system("the endpoint table is too small"))?;
        let half = other_half(live);
        let base = half as u32 * self.buckets;
        let mask = table.len() as u64 - 1;
        self.halves
            .fill(half, table, |i, bucket| maps.endpoints.set(base + i, bucket, 0))
            .map_err(DatapathError::system("cannot write map ENDPOINTS"))?;
        Ok(LiveHalf { half, live: u64::from(base) | mask << 32, seed })
    }

    /// The half that was filled is live now.
    pub(super) fn flipped(&mut self) {
        self.halves.flip.done();
    }
}

/// Halves of the table of QUIC server ids.
#[derive(Debug)]
pub(super) struct Servers {
    /// In each half.
    buckets: u32,
    halves: Halves<servers::Bucket>,
    /// Where the search for a hash seed begins.
    seed: u64,
}

impl Servers {
    pub(super) fn new(buckets: u32, seed: u64) -> Self {
        Self { buckets, halves: Halves::default(), seed }
    }

    /// What the half that is live holds.
    pub(super) fn read(maps: &Maps, live: u64) -> Result<BTreeMap<Server, u16>, DatapathError> {
        let mut found = BTreeMap::new();
        if live == 0 {
            return Ok(found);
        }
        for index in 0..=(live >> 32) as u32 {
            let bucket = maps.quic_servers.get(&(live as u32 + index), 0);
            let bucket = bucket.map_err(DatapathError::system("cannot read map QUIC_SERVERS"))?;
            found.extend(bucket.0.iter().filter_map(servers::Entry::get));
        }
        Ok(found)
    }

    /// Fills the half that is not live.
    pub(super) fn write(
        &mut self,
        maps: &mut Maps,
        live: u64,
        present: &BTreeMap<Server, u16>,
    ) -> Result<LiveHalf<servers::Seed>, DatapathError> {
        let all = present.iter().map(|(server, slot)| (*server, *slot));
        let (seed, table) = servers::build(all, self.buckets as usize, self.seed)
            .map_err(DatapathError::system("the table of QUIC server ids is too small"))?;
        let half = other_half(live);
        let base = half as u32 * self.buckets;
        let mask = table.len() as u64 - 1;
        self.halves
            .fill(half, table, |i, bucket| maps.quic_servers.set(base + i, bucket, 0))
            .map_err(DatapathError::system("cannot write map QUIC_SERVERS"))?;
        Ok(LiveHalf { half, live: u64::from(base) | mask << 32, seed })
    }

    /// The half that was filled is live now.
    pub(super) fn flipped(&mut self) {
        self.halves.flip.done();
    }
}

/// Halves of one service's Maglev table.
#[derive(Debug, Default)]
pub(super) struct MaglevTables {
    halves: Halves<Block>,
}

impl MaglevTables {
    /// Fills the half at which the service does not look. `first` is the first block of its first half, `blocks` the
    /// length of a half, `live` the block at which it looks now. Returns the block at which it shall look.
    pub(super) fn write(
        &mut self,
        maps: &mut Maps,
        (first, blocks): (u32, u32),
        live: u32,
        table: &[u16],
    ) -> Result<u32, DatapathError> {
        let half = usize::from(live == first);
        let base = first + half as u32 * blocks;
        let table: Vec<Block> = table
            .chunks(BLOCK)
            .map(|chunk| {
                let mut block = Block([NOBODY; BLOCK]);
                block.0[..chunk.len()].copy_from_slice(chunk);
                block
            })
            .collect();
        self.halves
            .fill(half, table, |i, block| maps.maglev.set(base + i, block, 0))
            .map_err(DatapathError::system("cannot write map MAGLEV"))?;
        Ok(base)
    }

    /// The half that was filled is live now.
    pub(super) fn flipped(&mut self) {
        self.halves.flip.done();
    }
}

fn write_changes<V: Copy + PartialEq, E>(
    before: Option<&[V]>,
    after: &[V],
    mut write: impl FnMut(u32, V) -> Result<(), E>,
) -> Result<(), E> {
    for (i, value) in after.iter().enumerate() {
        if before.and_then(|before| before.get(i)) != Some(value) {
            write(i as u32, *value)?;
        }
    }
    Ok(())
}

/// Keeps the half that just ceased to be live untouched while a program that began before may still read it.
#[derive(Debug, Default)]
struct Flip(Option<Instant>);

impl Flip {
    /// No program runs that long. Beyond it, waiting would be waste.
    const LONGEST_RUN: Duration = Duration::from_millis(100);

    fn done(&mut self) {
        self.0 = Some(Instant::now());
    }

    fn wait(&self) {
        // Not built into this kernel? Wait the time instead, which is as good.
        if self.0.is_some_and(|flipped| flipped.elapsed() < Self::LONGEST_RUN) && !sys::membarrier() {
            std::thread::sleep(Self::LONGEST_RUN);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_changes_are_written() {
        let writes = |before: Option<&[u8]>, after: &[u8]| {
            let mut written = Vec::new();
            write_changes(before, after, |i, value| {
                written.push((i, value));
                Ok::<_, ()>(())
            })
            .unwrap();
            written
        };
        assert_eq!(writes(None, &[7, 8]), [(0, 7), (1, 8)]);
        assert_eq!(writes(Some(&[7, 8]), &[7, 9]), [(1, 9)]);
        assert_eq!(writes(Some(&[7]), &[7, 9]), [(1, 9)]);
        assert_eq!(writes(Some(&[7, 8, 9]), &[7, 8]), []);
    }
}
