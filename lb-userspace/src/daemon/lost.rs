//! Frames that the kernel drops after a verdict: told to the log when they begin, to `lbctl status` while they go on, and to
//! `lbctl stats` for good.

use super::{Daemon, chain};
use crate::control::CounterView;
use crate::net::Rtnl;
use lb_common::lost::Lost;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How long after the last one `lbctl status` warns, and how long the log is silent after it has told.
const RECENT: Duration = Duration::from_secs(60);

/// What was seen of one interface and cause.
#[derive(Clone, Copy, Debug)]
struct Seen {
    frames: u64,
    /// When they last grew, while lbd looked.
    grew: Option<Instant>,
    /// When that was last logged, and how many there were then.
    told: Option<(Instant, u64)>,
}

/// What was seen of all of them.
#[derive(Debug, Default)]
pub(super) struct Losses {
    seen: BTreeMap<Lost, Seen>,
    /// What was there when lbd started is no news.
    begun: bool,
}

impl Losses {
    /// Takes in what the maps count. Returns what is to be logged: which, and how many more since it was last.
    fn heed(&mut self, counts: &[(Lost, u64)], now: Instant) -> Vec<(Lost, u64)> {
        let mut news = Vec::new();
        for &(lost, frames) in counts {
            let first = Seen { frames: if self.begun { 0 } else { frames }, grew: None, told: None };
            let seen = self.seen.entry(lost).or_insert(first);
            if frames == seen.frames {
                continue;
            }
            let before = seen.told.map_or(seen.frames, |(_, frames)| frames);
            (seen.frames, seen.grew) = (frames, Some(now));
            if seen.told.is_none_or(|(at, _)| now.duration_since(at) >= RECENT) {
                seen.told = Some((now, frames));
                news.push((lost, frames.wrapping_sub(before)));
            }
        }
        self.begun = true;
        news
    }

    /// What grew lately, with all that was counted of it.
    fn recent(&self, now: Instant) -> impl Iterator<Item = (Lost, u64)> {
        let is_recent = move |seen: &Seen| seen.grew.is_some_and(|grew| now.duration_since(grew) < RECENT);
        self.seen.iter().filter(move |(_, seen)| is_recent(seen)).map(|(lost, seen)| (*lost, seen.frames))
    }
}

/// The counter's name.
fn name(lost: Lost) -> String {
    lost.name().map_or_else(|| format!("drop_after_verdict_{}", lost.cause), str::to_owned)
}

/// `interface eth0`, or its index when there is none any more.
fn of(lost: Lost, names: &BTreeMap<u32, String>) -> String {
    match names.get(&lost.ifindex) {
        Some(name) => format!("interface {name}"),
        None => format!("interface {}", lost.ifindex),
    }
}

impl Daemon {
    /// Looks at what was lost, and logs what is new.
    pub(super) fn heed_lost_frames(&mut self) {
        let counts = match self.datapath.lost() {
            Ok(counts) => counts,
            Err(error) => return tracing::warn!(error = %chain(&error), "lost frames are not known"),
        };
        let news = self.losses.heed(&counts, Instant::now());
        if news.is_empty() {
            return;
        }
        let names = interfaces();
        for (lost, frames) in news {
            let (of, counter) = (of(lost, &names), name(lost));
            let why = Lost::describe(&counter).unwrap_or_default();
            tracing::warn!(counter, frames, "the kernel drops frames towards {of} after the verdict. {why}");
        }
    }

    /// For `lbctl stats`.
    pub(super) fn lost_counters(&self) -> Vec<CounterView> {
        // What cannot be read now is in the log each few seconds.
        let counts = self.datapath.lost().unwrap_or_default();
        let names = if counts.is_empty() { BTreeMap::new() } else { interfaces() };
        let view =
            |(lost, value): (Lost, u64)| CounterView { of: of(lost, &names), counter: name(lost), value };
        counts.into_iter().map(view).collect()
    }

    /// For `lbctl status`: one sentence each.
    pub(super) fn lost_warnings(&self) -> Vec<String> {
        let mut warnings: Vec<String> = self
            .datapath
            .uncounted()
            .map(|reason| format!("frames that the kernel drops after a verdict are not counted: {reason}"))
            .into_iter()
            .collect();
        let recent: Vec<_> = self.losses.recent(Instant::now()).collect();
        let names = if recent.is_empty() { BTreeMap::new() } else { interfaces() };
        warnings.extend(recent.into_iter().map(|(lost, frames)| {
            let (of, counter) = (of(lost, &names), name(lost));
            let why = Lost::describe(&counter).unwrap_or_default();
            format!("the kernel drops frames towards {of} after the verdict: {counter} {frames}. {why}")
        }));
        warnings
    }
}

/// Names by index, as far as they can be had.
fn interfaces() -> BTreeMap<u32, String> {
    let links = Rtnl::open().and_then(|mut rtnl| rtnl.links()).unwrap_or_default();
    links.into_iter().map(|link| (link.index, link.name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Lost = Lost { ifindex: 2, cause: 90 };
    const B: Lost = Lost { ifindex: 3, cause: 5 };

    #[test]
    fn what_is_lost_is_logged_when_it_begins_and_once_a_minute() {
        let mut losses = Losses::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(losses.heed(&[(A, 7)], at(0)), [], "lost before lbd started");
        assert_eq!(losses.recent(at(1)).count(), 0);
        assert_eq!(losses.heed(&[(A, 9), (B, 1)], at(5)), [(A, 2), (B, 1)]);
        assert_eq!(losses.heed(&[(A, 12), (B, 1)], at(10)), []);
        assert_eq!(losses.recent(at(64)).collect::<Vec<_>>(), [(A, 12), (B, 1)]);
        assert_eq!(losses.recent(at(66)).collect::<Vec<_>>(), [(A, 12)]);
        assert_eq!(losses.heed(&[(A, 13), (B, 1)], at(66)), [(A, 4)], "those not told before included");
    }

    #[test]
    fn a_cause_without_a_name_is_told_by_its_number() {
        let names = [(2, "eth0".to_owned())].into();
        assert_eq!((of(A, &names), name(A)), ("interface eth0".into(), "drop_redirect_too_large".into()));
        assert_eq!((of(B, &names), name(B)), ("interface 3".into(), "drop_after_verdict_5".into()));
    }
}
