//! Which steering decisions the programs tell: those that anybody wants to hear.

use lb_common::addr::Addr;
use lb_common::trace::Decision;

/// Which steering decisions are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct TraceFilter {
    /// Those of that service, or of all (0)...
    pub service: u16,
    /// ...and of that client, or of all (zero).
    pub client: Addr,
}

impl TraceFilter {
    /// What lets through all that one of both lets through.
    pub fn union(self, other: Self) -> Self {
        Self {
            service: if self.service == other.service { self.service } else { 0 },
            client: if self.client == other.client { self.client } else { Addr::default() },
        }
    }

    pub fn wants(&self, decision: &Decision) -> bool {
        (self.service == 0 || self.service == decision.service)
            && (self.client == Addr::default() || self.client == decision.client)
    }

    /// How much of this was lost, given what was by service id.
    pub fn lost(&self, by_service: &[u64]) -> u64 {
        match self.service {
            0 => by_service.iter().sum(),
            id => by_service.get(usize::from(id)).copied().unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_anybody_wants_is_told_and_each_hears_its_own() {
        let [one, two] = [1, 2].map(|last| Addr::from_v4_bits(u32::from_ne_bytes([192, 0, 2, last])));
        let of = |service, client| TraceFilter { service, client };
        let all = TraceFilter::default();
        for (filters, union) in [
            (vec![of(1, one)], of(1, one)),
            (vec![of(1, one), of(1, two)], of(1, Addr::default())),
            (vec![of(1, one), of(2, one)], of(0, one)),
            (vec![of(1, one), of(2, two)], all),
            (vec![of(1, one), all], all),
        ] {
            assert_eq!(filters.iter().copied().reduce(TraceFilter::union), Some(union), "{filters:?}");
            for (service, client) in [(1, one), (1, two), (2, one), (3, two)] {
                let decision = Decision { service, client, ..Decision::default() };
                let wanted = filters.iter().any(|filter| filter.wants(&decision));
                assert!(!wanted || union.wants(&decision), "{filters:?}: {decision:?}");
            }
        }
        let decision = Decision { service: 1, client: one, ..Decision::default() };
        assert!(of(1, one).wants(&decision) && of(0, one).wants(&decision) && all.wants(&decision));
        assert!(!of(2, one).wants(&decision) && !of(1, two).wants(&decision));
        assert_eq!((all.lost(&[1, 2, 4]), of(2, one).lost(&[1, 2, 4]), of(9, one).lost(&[1])), (7, 4, 0));
    }
}
