//! The pools of backends that are listed for names of servers, and those names, written into the maps.
//!
//! A name leads somewhere at every moment, and never to another one's backends: what an earlier daemon has left stays
//! until all of ours is written, and a pool that is made of the same backends keeps its place.

use super::error::DatapathError;
use super::limits::Limits;
use super::maps::Maps;
use super::tables::MaglevTables;
use lb_common::hash::SipKey;
use lb_common::name::{Name, Pool, hash};
use std::collections::{BTreeMap, HashSet};

/// A name that backends are listed for.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// [`lb_common::name::EXACT`] or [`lb_common::name::WILDCARD`].
    pub kind: u16,
    /// In lower case: the name, or what stands behind the asterisk and its dot.
    pub text: String,
    /// The id of its pool.
    pub pool: u64,
}

/// What stands in the maps of pools and names.
#[derive(Debug)]
pub(super) struct Pools {
    limits: Limits,
    /// Index of each pool by its id: ours, and those that were left.
    indices: BTreeMap<u64, u32>,
    /// Of ours, by index.
    tables: BTreeMap<u32, MaglevTables>,
    /// Those that this daemon has written.
    names: HashSet<Name>,
}

impl Pools {
    /// Reads what an earlier daemon left.
    pub(super) fn left(maps: &Maps, limits: Limits) -> Result<Self, DatapathError> {
        let mut indices = BTreeMap::new();
        for index in 1..=limits.pool_entries() {
            let pool = maps.pools.get(&index, 0).map_err(DatapathError::system("cannot read map POOLS"))?;
            if pool.id != 0 {
                indices.insert(pool.id, index);
            }
        }
        Ok(Self { limits, indices, tables: BTreeMap::new(), names: HashSet::new() })
    }

    /// Makes that the table of a pool.
    pub(super) fn write(&mut self, maps: &mut Maps, id: u64, table: &[u16]) -> Result<(), DatapathError> {
        let beyond =
            |kind, index, limit, name| DatapathError::Beyond { kind, index: index as u32, limit, name };
        if table.len() > self.limits.pool_maglev_size as usize {
            return Err(beyond(
                "table of size",
                table.len(),
                self.limits.pool_maglev_size,
                "pool_maglev_size",
            ));
        }
        let index = match self.indices.get(&id) {
            Some(index) => *index,
            None if self.tables.len() >= self.limits.pools as usize => {
                return Err(beyond("pool", self.tables.len(), self.limits.pools, "pools"));
            }
            None => {
                let index = self.vacant(maps)?;
                self.indices.insert(id, index);
                index
            }
        };
        let before = maps.pools.get(&index, 0).map_err(DatapathError::system("cannot read map POOLS"))?;
        let place = (self.limits.pool_base(index), self.limits.pool_blocks());
        let tables = self.tables.entry(index).or_default();
        // The table that is live stays until there is a new one; nobody looks at it meanwhile.
        let base =
            if table.is_empty() { before.base } else { tables.write(maps, place, before.base, table)? };
        maps.pools
            .set(index, Pool { base, size: table.len() as u32, id }, 0)
            .map_err(DatapathError::system("cannot write map POOLS"))?;
        tables.flipped();
        Ok(())
    }

    /// Lets names of a service lead to pools that were written.
    pub(super) fn list(
        &mut self,
        maps: &mut Maps,
        key: &SipKey,
        service: u16,
        listed: &[Listed],
    ) -> Result<(), DatapathError> {
        for Listed { kind, text, pool } in listed {
            let index = self.indices.get(pool).expect("pools are written before their names");
            let name = Name { hash: hash(key, text.as_bytes()), service, kind: *kind, _pad: 0 };
            if !self.names.insert(name) {
                return Err(DatapathError::SameHash(text.clone()));
            }
            if maps.names.insert(name, index, 0).is_err() {
                // There is room for ours and for those of one daemon before, but that one may have ended before its own
                // take-over did.
                self.remove_names(maps, |_| true)?;
                maps.names.insert(name, index, 0).map_err(DatapathError::system("cannot write map NAMES"))?;
            }
        }
        Ok(())
    }

    /// An index that no pool has; failing that, one that was left, to which no name leads any more.
    fn vacant(&mut self, maps: &mut Maps) -> Result<u32, DatapathError> {
        let taken: HashSet<_> = self.indices.values().copied().collect();
        let all = || 1..=self.limits.pool_entries();
        if let Some(free) = all().find(|index| !taken.contains(index)) {
            return Ok(free);
        }
        let index = all().find(|index| !self.tables.contains_key(index));
        let index = index.expect("there are twice as many as a daemon writes");
        self.remove_names(maps, |pool| pool == index)?;
        self.indices.retain(|_, taken| *taken != index);
        Ok(index)
    }

    /// Removes names that were left and lead to such a pool.
    fn remove_names(&self, maps: &mut Maps, goes: impl Fn(u32) -> bool) -> Result<(), DatapathError> {
        let found: Result<Vec<(Name, u32)>, _> = maps.names.iter().collect();
        let found = found.map_err(DatapathError::system("cannot read map NAMES"))?;
        found
            .iter()
            .filter(|(name, pool)| !self.names.contains(name) && goes(*pool))
            .try_for_each(|(name, _)| maps.names.remove(name))
            .map_err(DatapathError::system("cannot write map NAMES"))
    }

    /// Removes the names, and then the pools, that were left and have not been written since.
    pub(super) fn remove_unwritten(&mut self, maps: &mut Maps) -> Result<(), DatapathError> {
        self.remove_names(maps, |_| true)?;
        let stale: Vec<u64> =
            self.indices.iter().filter(|(_, i)| !self.tables.contains_key(i)).map(|(id, _)| *id).collect();
        for id in stale {
            if let Some(index) = self.indices.remove(&id) {
                maps.pools
                    .set(index, Pool::default(), 0)
                    .map_err(DatapathError::system("cannot write map POOLS"))?;
            }
        }
        Ok(())
    }
}
