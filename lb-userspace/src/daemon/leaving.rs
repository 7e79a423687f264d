//! Backends that were taken out of the configuration: watched while something lives there, and let go when nothing does.

use super::{Daemon, Known};
use crate::registry::Change;
use std::time::Instant;

/// Since when a backend that is leaving has had no live flow and no packet.
pub(super) struct Quiet {
    since: Instant,
    packets: u64,
}

impl Daemon {
    /// Says which backends are leaving. What was learned from them leads nowhere from now on, unless they still serve it.
    pub(super) fn see_off(&self) {
        for slot in self.registry.leaving() {
            if !self.registry.backend(slot).is_some_and(|(state, _)| state.serves_sessions()) {
                self.datapath.forget_homes_of(slot);
            }
            let flows = self.datapath.flows().live(slot);
            let backend = self.registry.name_of(slot);
            tracing::info!(
                slot,
                backend,
                flows,
                "a backend is no longer configured: its connections go on to their end"
            );
        }
    }

    /// Lets go of backends that were taken out of the configuration, once their last connection was closed and its last
    /// segments had time to pass. Where a session outlives its flow, as one of datagrams does whose client has moved, it is not
    /// over before nothing was heard of it in the time after which a flow is idle.
    pub(super) fn take_leave(&mut self) -> anyhow::Result<()> {
        let now = Instant::now();
        for slot in self.registry.leaving().collect::<Vec<_>>() {
            let packets = self.datapath.packets(slot)?;
            let quiet = self.quiet.entry(slot).or_insert(Quiet { since: now, packets });
            if quiet.packets != packets || self.datapath.flows().live(slot) > 0 {
                *quiet = Quiet { since: now, packets };
                continue;
            }
            let timeouts = &self.config.timeouts;
            let patience =
                if self.registry.outlives_flows(slot) { timeouts.udp_idle } else { timeouts.closing };
            if now.duration_since(quiet.since) >= patience {
                self.let_go(slot)?;
            }
        }
        Ok(())
    }

    fn let_go(&mut self, slot: u16) -> anyhow::Result<()> {
        let backend = self.registry.name_of(slot);
        self.quiet.remove(&slot);
        self.health.forget(slot);
        self.apply(Change::Deserted { slot })?;
        if let Some(Known { addr, .. }) = self.backends.remove(&slot)
            && self.backends.values().all(|known| known.addr.ip() != addr.ip())
        {
            self.next_hops.forget(addr.ip());
        }
        tracing::info!(slot, backend, "removed a backend that is no longer configured");
        Ok(())
    }
}
