//! How much of the tables that all services share each of them has.

use super::{Daemon, chain};
use crate::config;
use crate::control::{ServiceView, ShareView};
use crate::datapath::Counters;
use lb_common::counter::Counter;

impl Daemon {
    /// How much of the tables each service uses.
    pub(super) fn shares(&self) -> Vec<ShareView> {
        const REFUSALS: [Counter; 3] =
            [Counter::DropFlowShare, Counter::DropPendingShare, Counter::DropBackendPending];
        let counters = self.datapath.counters().unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "what services were refused is not known");
            Counters::default()
        });
        let share = |(service, ServiceView { id, name, .. }): (&config::Service, ServiceView)| {
            let used = self.datapath.flows().used(id);
            let counted = counters.services.get(usize::from(id));
            ShareView {
                service: name,
                flows: used.flows,
                max_flows: service.max_flows,
                pending: used.pending,
                max_pending: service.max_pending.into(),
                refused: counted.map_or(0, |row| REFUSALS.iter().map(|counter| row[*counter as usize]).sum()),
            }
        };
        let views = self.registry.services().into_iter();
        let known = views.filter_map(|view| {
            let config = self.config.services.iter().find(|service| service.name == view.name)?;
            Some((config, view))
        });
        known.map(share).collect()
    }
}

/// One sentence for each share that is used up.
pub(super) fn warnings(shares: &[ShareView]) -> impl Iterator<Item = String> {
    let full = |service: &str, key: &str, has: u64, may: u32, what: &str| {
        (has >= u64::from(may)).then(|| {
            format!(
                "service {service} has as many {what} as it may ({has} of `{key}` {may}): further ones are refused, \
                 unless one of its own can make room"
            )
        })
    };
    shares.iter().flat_map(move |share| {
        let ShareView { service, flows, max_flows, pending, max_pending, .. } = share;
        let flows = full(service, "max_flows", *flows, *max_flows, "connections");
        let waits = "connections that wait for a backend";
        flows.into_iter().chain(full(service, "max_pending", *pending, *max_pending, waits))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_that_is_used_up_is_told() {
        let share = |flows, pending| ShareView {
            service: "shop".into(),
            flows,
            max_flows: 100,
            pending,
            max_pending: 10,
            refused: 0,
        };
        let told = |flows, pending| warnings(&[share(flows, pending)]).collect::<Vec<_>>();
        assert_eq!(told(99, 9), <[String; 0]>::default());
        assert_eq!(
            told(100, 11),
            [
                "service shop has as many connections as it may (100 of `max_flows` 100): further ones are refused, unless one of its \
                 own can make room",
                "service shop has as many connections that wait for a backend as it may (11 of `max_pending` 10): further ones are \
                 refused, unless one of its own can make room",
            ]
        );
    }
}
