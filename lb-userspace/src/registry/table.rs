//! Maglev tables of the ready backends: of a service, and of the pools that are listed for names of servers.

use super::backend::Backend;
use crate::config::{self, ServerName};
use lb_common::hash::mix64;
use lb_common::maglev::{self, Candidate};

/// Entries of the tables.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) service: u32,
    pub(super) pool: u32,
}

/// One table, and what it was made of.
#[derive(Debug, Default)]
pub(super) struct Table {
    /// `None`: it was never made.
    candidates: Option<Vec<Candidate>>,
    /// Empty when nobody is ready.
    pub(super) slots: Vec<u16>,
}

impl Table {
    /// Brings it in line with the backends that may stand in it; returns it when it is another one now.
    pub(super) fn rebuilt<'a>(
        &mut self,
        ready: impl Iterator<Item = &'a &'a Backend>,
        size: u32,
    ) -> Option<Vec<u16>> {
        let candidates: Vec<_> = ready.map(|backend| backend.candidate()).collect();
        if self.candidates.as_ref() == Some(&candidates) {
            return None;
        }
        self.slots = maglev::build(&candidates, size);
        self.candidates = Some(candidates);
        Some(self.slots.clone())
    }
}

/// The backends that are listed for the same names.
#[derive(Debug)]
pub(super) struct Pool {
    /// The same after a restart, as long as it is made of the same backends.
    pub(super) id: u64,
    pub(super) names: Vec<ServerName>,
    pub(super) slots: Vec<u16>,
    pub(super) table: Table,
}

/// The pools of a service whose backends have these slots.
pub(super) fn pools(config: &config::Service, id: u16, slots: &[u16]) -> Vec<Pool> {
    let pool = |pool: config::Pool| {
        let slots: Vec<_> = pool.backends.iter().map(|place| slots[*place]).collect();
        Pool { id: pool_id(id, &slots), names: pool.names, slots, table: Table::default() }
    };
    config.pools().into_iter().map(pool).collect()
}

/// A number for a set of backends, which is never 0.
fn pool_id(service: u16, slots: &[u16]) -> u64 {
    let mut slots = slots.to_vec();
    slots.sort_unstable();
    let id =
        slots.iter().fold(mix64(u64::from(service)), |id, slot| mix64(id.rotate_left(17) ^ u64::from(*slot)));
    id.max(1)
}
