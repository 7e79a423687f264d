//! How large the maps are. Fixed when they are created: another size needs new maps.

use lb_common::flow::GROUP;
use lb_common::home;
use lb_common::maglev::{blocks, is_prime};
use lb_common::quic_lb::servers;
use serde::{Deserialize, Serialize};

/// Sizes of the maps.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Service ids, id 0 (no service) included.
    pub services: u32,
    /// Backend slots.
    pub backends: u32,
    /// Connections at the same time.
    pub flows: u32,
    /// Connections waiting for their backend to answer, at the same time; a power of two.
    pub pending: u32,
    /// Entries of a Maglev table; a prime.
    pub maglev_size: u32,
    /// Names of servers that backends are listed for.
    pub names: u32,
    /// Different sets of backends that are listed for them.
    pub pools: u32,
    /// Entries of the Maglev table of such a set; a prime.
    pub pool_maglev_size: u32,
    /// Learned sessions that are remembered.
    pub learned: u32,
    /// Bytes of the trace's ring buffer; a power of two, in whole pages.
    pub trace_bytes: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            services: 16,
            backends: 1024,
            flows: 65_536,
            pending: 4096,
            maglev_size: 65_537,
            names: 1024,
            pools: 64,
            pool_maglev_size: 4093,
            learned: 65_536,
            trace_bytes: 256 << 10,
        }
    }
}

/// A limit that cannot be.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("limit `{name}` is {value}, but must be {rule}")]
pub struct LimitError {
    pub name: &'static str,
    pub value: u32,
    pub rule: &'static str,
}

impl Limits {
    /// Checks every limit.
    ///
    /// # Errors
    /// The first that cannot be.
    pub fn check(&self) -> Result<(), LimitError> {
        let rules = [
            ("services", self.services, (2..=65_535).contains(&self.services), "2 to 65535"),
            ("backends", self.backends, (1..=65_534).contains(&self.backends), "1 to 65534"),
            ("flows", self.flows, (8..=1 << 26).contains(&self.flows), "8 to 67108864"),
            (
                "pending",
                self.pending,
                self.pending.is_power_of_two() && self.pending <= 32_768,
                "a power of two up to 32768",
            ),
            (
                "maglev_size",
                self.maglev_size,
                is_prime(self.maglev_size) && self.maglev_size <= 5_000_011,
                "a prime up to 5000011",
            ),
            ("names", self.names, (1..=1 << 20).contains(&self.names), "1 to 1048576"),
            ("pools", self.pools, (1..=4096).contains(&self.pools), "1 to 4096"),
            (
                "pool_maglev_size",
                self.pool_maglev_size,
                is_prime(self.pool_maglev_size) && self.pool_maglev_size <= 5_000_011,
                "a prime up to 5000011",
            ),
            ("learned", self.learned, (8..=1 << 26).contains(&self.learned), "8 to 67108864"),
            (
                "trace_bytes",
                self.trace_bytes,
                self.trace_bytes.is_power_of_two() && (4096..=1 << 30).contains(&self.trace_bytes),
                "a power of two from 4096 to 1073741824",
            ),
        ];
        match rules.into_iter().find(|(_, _, holds, _)| !holds) {
            Some((name, value, _, rule)) => Err(LimitError { name, value, rule }),
            None => Ok(()),
        }
    }

    /// Entries of the flow table: twice as many as flows at least, in whole groups, their number a power of two.
    pub fn flow_entries(&self) -> u32 {
        (self.flows * 2).next_power_of_two().max(GROUP as u32)
    }

    /// Flows of one service that may wait for a backend, where its configuration does not say: half, so that others have the rest.
    pub fn service_pending(&self) -> u16 {
        share(self.pending, 2)
    }

    /// Flows that may wait for the same backend, where its service's configuration does not say.
    pub fn backend_pending(&self) -> u16 {
        share(self.pending, 4)
    }

    /// Groups of the flow table.
    pub fn flow_groups(&self) -> u32 {
        self.flow_entries() / GROUP as u32
    }

    /// Buckets in each half of the endpoint table: so many that a hash seed without a collision too many is found at once.
    pub(crate) fn endpoint_buckets(&self) -> u32 {
        (8 * (self.services + self.backends)).next_power_of_two()
    }

    /// Buckets in each half of the table of QUIC server ids.
    pub(crate) fn server_buckets(&self) -> u32 {
        (self.backends * servers::BUCKETS).next_power_of_two()
    }

    /// Entries of the table of learned sessions: room for half as many again at least, because groups do not fill evenly.
    pub fn home_entries(&self) -> u32 {
        (self.learned + self.learned / 2).next_power_of_two().max(home::GROUP as u32)
    }

    /// Blocks of one half of one service's Maglev table.
    pub(crate) fn maglev_blocks(&self) -> u32 {
        blocks(self.maglev_size)
    }

    /// Blocks of one half of one pool's Maglev table.
    pub(crate) fn pool_blocks(&self) -> u32 {
        blocks(self.pool_maglev_size)
    }

    /// First block of a pool's Maglev table, which stands behind all services'. Indices begin at 1.
    pub(crate) fn pool_base(&self, index: u32) -> u32 {
        2 * (self.services * self.maglev_blocks() + (index - 1) * self.pool_blocks())
    }

    /// Pools that the maps have room for: while a daemon takes over, its predecessor's pools stay as well.
    pub(crate) fn pool_entries(&self) -> u32 {
        2 * self.pools
    }

    /// Names that the maps have room for, for the same reason.
    pub(crate) fn name_entries(&self) -> u32 {
        2 * self.names
    }
}

/// One of `parts` of a number, at least 1.
fn share(all: u32, parts: u32) -> u16 {
    u16::try_from((all / parts).max(1)).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_allowed() {
        assert_eq!(Limits::default().check(), Ok(()));
        assert_eq!(Limits::default().flow_entries(), 131_072);
    }

    #[test]
    fn impossible_limits_are_named() {
        let d = Limits::default();
        for (name, limits) in [
            ("services", Limits { services: 1, ..d }),
            ("backends", Limits { backends: 0, ..d }),
            ("flows", Limits { flows: 0, ..d }),
            ("pending", Limits { pending: 1000, ..d }),
            ("maglev_size", Limits { maglev_size: 65_536, ..d }),
            ("names", Limits { names: 0, ..d }),
            ("pools", Limits { pools: 5000, ..d }),
            ("pool_maglev_size", Limits { pool_maglev_size: 4096, ..d }),
            ("learned", Limits { learned: 7, ..d }),
            ("trace_bytes", Limits { trace_bytes: 5000, ..d }),
        ] {
            assert_eq!(limits.check().unwrap_err().name, name);
        }
    }
}
