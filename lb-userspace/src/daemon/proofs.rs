//! Packets that prove nothing: segments without a valid SYN cookie or far from their connection, and tokens that do not verify.
//! A few are usual. Many, and for long, are somebody who guesses, or a mistake that is to be mended: the log and `lbctl status`
//! tell.

use super::{Daemon, chain};
use lb_common::counter::{COUNTERS, Counter};
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// Over what time a rate is taken.
const WINDOW: Duration = Duration::from_secs(10);

/// From how many a second on they are told.
const MANY: u64 = 100;

/// How long after the last window with many of them `lbctl status` warns, and how long the log is silent after it has told.
const RECENT: Duration = Duration::from_secs(60);

/// What fails, and whence that comes.
const KINDS: [(&str, &[Counter], &str); 2] = [
    (
        "segments of no connection, or far from theirs",
        &[
            Counter::ResetUnknownFlow,
            Counter::DropUnknownRst,
            Counter::DropBadClientAck,
            Counter::DropBadBackendAck,
            Counter::OutOfWindow,
        ],
        "somebody guesses SYN cookies or resets connections, or clients go on with connections that another balancer had",
    ),
    (
        "tokens that do not verify",
        &[Counter::InvalidToken],
        "somebody guesses tokens, or servers sign with a key that lbd does not have",
    ),
];

/// One kind at one service.
#[derive(Clone, Copy, Debug)]
struct Rate {
    /// A second, in the last window with many.
    rate: u64,
    at: Instant,
    told: Instant,
}

/// What was seen.
#[derive(Debug, Default)]
pub(super) struct Proofs {
    /// When the counters were last read, and each service's row.
    before: Option<(Instant, Vec<[u64; COUNTERS]>)>,
    /// By service id and index of the kind.
    many: BTreeMap<(u16, usize), Rate>,
}

impl Proofs {
    fn is_due(&self, now: Instant) -> bool {
        self.before.as_ref().is_none_or(|(at, _)| now.duration_since(*at) >= WINDOW)
    }

    /// Takes in what the maps count. Returns what is to be logged: service, kind, and how many a second.
    fn heed(&mut self, rows: Vec<[u64; COUNTERS]>, now: Instant) -> Vec<(u16, usize, u64)> {
        let mut news = Vec::new();
        if let Some((at, before)) = &self.before {
            let millis = (now.duration_since(*at).as_millis() as u64).max(1);
            for (id, (row, old)) in rows.iter().zip(before).enumerate() {
                for (kind, (_, counters, _)) in KINDS.iter().enumerate() {
                    let grown = |counter: &Counter| {
                        // A map that was made anew begins at 0.
                        row[*counter as usize].saturating_sub(old[*counter as usize])
                    };
                    let rate =
                        counters.iter().map(grown).fold(0, u64::saturating_add).saturating_mul(1000) / millis;
                    if rate < MANY {
                        continue;
                    }
                    let key = (id as u16, kind);
                    let told = self.many.get(&key).map(|seen| seen.told);
                    let silent = told.filter(|told| now.duration_since(*told) < RECENT);
                    if silent.is_none() {
                        news.push((key.0, kind, rate));
                    }
                    self.many.insert(key, Rate { rate, at: now, told: silent.unwrap_or(now) });
                }
            }
        }
        self.before = Some((now, rows));
        self.many.retain(|_, seen| now.duration_since(seen.at) < RECENT);
        news
    }

    fn recent(&self, now: Instant) -> impl Iterator<Item = (u16, usize, u64)> {
        let is_recent = move |seen: &Rate| now.duration_since(seen.at) < RECENT;
        self.many
            .iter()
            .filter(move |(_, seen)| is_recent(seen))
            .map(|((id, kind), seen)| (*id, *kind, seen.rate))
    }
}

impl Daemon {
    /// Looks at how many proofs failed, and logs what is new.
    pub(super) fn heed_failed_proofs(&mut self) {
        let now = Instant::now();
        if !self.proofs.is_due(now) {
            return;
        }
        let counters = match self.datapath.counters() {
            Ok(counters) => counters,
            Err(error) => return tracing::warn!(error = %chain(&error), "the counters cannot be read"),
        };
        for (id, kind, rate) in self.proofs.heed(counters.services, now) {
            tracing::warn!("{}", self.many(id, kind, rate));
        }
    }

    /// For `lbctl status`: one sentence each.
    pub(super) fn proof_warnings(&self) -> Vec<String> {
        self.proofs.recent(Instant::now()).map(|(id, kind, rate)| self.many(id, kind, rate)).collect()
    }

    fn many(&self, id: u16, kind: usize, rate: u64) -> String {
        let (what, counters, why) = KINDS[kind];
        let names: Vec<_> = counters.iter().map(|counter| counter.name()).collect();
        let of =
            self.registry.service_name(id).map_or_else(String::new, |name| format!(" at service {name}"));
        format!("{rate} {what} a second{of} ({}): {why}", names.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(unknown: u64, invalid: u64) -> Vec<[u64; COUNTERS]> {
        let mut rows = vec![[0; COUNTERS]; 3];
        rows[1][Counter::ResetUnknownFlow as usize] = unknown / 2;
        rows[1][Counter::DropBadClientAck as usize] = unknown - unknown / 2;
        rows[2][Counter::InvalidToken as usize] = invalid;
        rows
    }

    #[test]
    fn many_failed_proofs_are_told_once_a_minute_and_shown_for_a_minute() {
        let mut proofs = Proofs::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(proofs.heed(rows(1 << 40, 1 << 40), at(0)), [], "counted before lbd started");
        assert!(!proofs.is_due(at(9)) && proofs.is_due(at(10)));
        let (mut unknown, mut invalid) = (1 << 40, 1 << 40);
        (unknown, invalid) = (unknown + 999, invalid + 1000);
        assert_eq!(proofs.heed(rows(unknown, invalid), at(10)), [(2, 1, 100)], "99 a second are few");
        (unknown, invalid) = (unknown + 5000, invalid + 2000);
        assert_eq!(proofs.heed(rows(unknown, invalid), at(20)), [(1, 0, 500)], "the other is told already");
        assert_eq!(proofs.recent(at(20)).collect::<Vec<_>>(), [(1, 0, 500), (2, 1, 200)]);
        for n in 3..9 {
            invalid += 3000;
            let told = proofs.heed(rows(unknown, invalid), at(10 * n));
            assert_eq!(told, if n == 7 { vec![(2, 1, 300)] } else { vec![] }, "{n}");
        }
        assert_eq!(proofs.recent(at(80)).collect::<Vec<_>>(), [(2, 1, 300)], "the first is over");
        assert_eq!(proofs.recent(at(141)).count(), 0);
    }

    #[test]
    fn counters_that_begin_anew_are_no_flood() {
        let mut proofs = Proofs::default();
        let start = Instant::now();
        proofs.heed(rows(1 << 40, 7), start);
        assert_eq!(proofs.heed(rows(0, 0), start + WINDOW), []);
        assert_eq!(proofs.heed(rows(0, 0), start + 2 * WINDOW), []);
    }
}
