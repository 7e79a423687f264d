//! File descriptors: as many as the system gives, and how many of them clients of managed servers may take.

use crate::config::{Config, Protocol};
use crate::server::Connections;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// For control, health checks, store, netlink, programs and maps, whatever clients do.
const RESERVE: u64 = 512;
/// Of each managed server: its namespace, its listener, its event loop.
const EACH_SERVER: u64 = 16;

/// Raises the number of descriptors to what the system allows. Returns how many there are.
pub(super) fn raise() -> u64 {
    let limits = getrlimit(Resource::RLIMIT_NOFILE);
    let (soft, hard) = match limits {
        Ok(limits) => limits,
        Err(error) => {
            tracing::warn!(%error, "it is not known how many descriptors lbd may have; 1024 are assumed");
            return 1024;
        }
    };
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "the limit of descriptors cannot be raised");
            soft
        }
    }
}

/// How many connections each managed server keeps, so that all of them together leave the reserve alone.
pub(super) fn places(config: &Config, limit: u64) -> Connections {
    let backends =
        || config.services.iter().flat_map(|service| service.backends.iter().map(move |b| (service, b)));
    let servers = backends().filter(|(_, backend)| backend.managed).count() as u64;
    let tcp = backends().filter(|(service, b)| b.managed && service.protocol == Protocol::Tcp).count() as u64;
    // A UDP backend that is asked nothing has a socket of its own.
    let probes = backends().count() as u64;
    let full = Connections::default().total;
    let share = share(limit, RESERVE + servers * EACH_SERVER + probes, tcp);
    let total = usize::try_from(share).unwrap_or(full).min(full);
    if tcp > 0 && total < full {
        tracing::warn!(
            limit,
            connections = total,
            "each managed server keeps so few connections: raise the hard limit of open files (LimitNOFILE, ulimit -Hn)"
        );
    }
    Connections { total, per_client: config.client_connections.min(total) }
}

/// What each server gets: half of all go to clients where the reserve would leave less.
fn share(limit: u64, reserve: u64, servers: u64) -> u64 {
    (limit.saturating_sub(reserve).max(limit / 2) / servers.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_together_leave_the_reserve_alone() {
        for (limit, reserve, servers, each) in [
            (1_048_576, 600, 3, 349_325),
            (1024, 560, 1, 512),
            (1024, 560, 6, 85),
            (4096, 600, 4, 874),
            (256, 600, 4, 32),
            (64, 600, 100, 1),
            (65_536, 600, 0, 64_936),
        ] {
            assert_eq!(share(limit, reserve, servers), each, "{limit} {reserve} {servers}");
        }
    }
}
