//! The table for people and for programs, and what was reached of our aims.

use super::rows::{AIMS, Aim, Bound, Row};
use super::stint::Sample;
use anyhow::{Context, Result};
use serde_json::json;
use std::fmt;
use std::path::Path;

/// What lies under the stores.
pub(super) struct Disk {
    pub(super) file_system: String,
    /// Median and 99th percentile of an append made durable, in nanoseconds, for each round.
    pub(super) syncs: Vec<(u64, u64)>,
}

/// A row with a sample for each round.
pub(super) struct Measured {
    pub(super) row: Row,
    pub(super) samples: Vec<Sample>,
}

/// See the module.
pub(super) struct Report {
    pub(super) rows: Vec<Measured>,
    pub(super) disk: Disk,
}

/// The one in the middle.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.into_iter().collect();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

fn least(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().fold(f64::INFINITY, f64::min)
}

/// A row over all rounds; times in microseconds.
struct Summary {
    rate: f64,
    slowest: f64,
    p50: f64,
    p99: f64,
    processor: f64,
}

impl Summary {
    fn of(samples: &[Sample]) -> Self {
        let micros = |value: fn(&Sample) -> u64| median(samples.iter().map(|s| value(s) as f64 / 1e3));
        Self {
            rate: median(samples.iter().map(|s| s.rate)),
            slowest: least(samples.iter().map(|s| s.rate)),
            p50: micros(|s| s.p50),
            p99: micros(|s| s.p99),
            processor: micros(|s| s.processor),
        }
    }
}

impl Report {
    fn samples_of(&self, row: Row) -> Option<&[Sample]> {
        self.rows.iter().find(|measured| measured.row == row).map(|measured| &*measured.samples)
    }

    /// The median of the rounds' ratios, and whether it is what it should be; of aims whose rows were both measured.
    fn judged(&self) -> Vec<(&'static Aim, f64, bool)> {
        let judge = |aim: &'static Aim| {
            let pairs = self.samples_of(aim.row)?.iter().zip(self.samples_of(aim.to)?);
            let ratio = median(pairs.map(|(one, other)| match aim.bound {
                Bound::Rate(_) => one.rate / other.rate,
                Bound::P99(_) => one.p99 as f64 / other.p99 as f64,
            }));
            let reached = match aim.bound {
                Bound::Rate(least) => ratio >= least,
                Bound::P99(most) => ratio <= most,
            };
            Some((aim, ratio, reached))
        };
        AIMS.iter().filter_map(judge).collect()
    }

    /// Microseconds: median and 99th percentile.
    fn sync(&self) -> (f64, f64) {
        let micros = |value: fn(&(u64, u64)) -> u64| {
            median(self.disk.syncs.iter().map(|sync| value(sync) as f64 / 1e3))
        };
        (micros(|sync| sync.0), micros(|sync| sync.1))
    }

    /// One object with the rows, the aims and the disk.
    pub(super) fn write_json(&self, path: &Path) -> Result<()> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|Measured { row, samples }| {
                let Summary { rate, slowest, p50, p99, processor } = Summary::of(samples);
                json!({
                    "layer": row.layer(),
                    "name": row.name(),
                    "per_second": rate.round(),
                    "slowest_round_per_second": slowest.round(),
                    "p50_us": hundredths(p50),
                    "p99_us": hundredths(p99),
                    "processor_us": hundredths(processor),
                })
            })
            .collect();
        let aims: Vec<_> = self
            .judged()
            .into_iter()
            .map(|(aim, ratio, reached)| {
                let (kind, bound) = match aim.bound {
                    Bound::Rate(least) => ("at_least", least),
                    Bound::P99(most) => ("at_most", most),
                };
                json!({ "name": aim.text, "ratio": hundredths(ratio), kind: bound, "reached": reached })
            })
            .collect();
        let (p50, p99) = self.sync();
        let disk = json!({
            "file_system": self.disk.file_system,
            "fdatasync_p50_us": hundredths(p50),
            "fdatasync_p99_us": hundredths(p99),
        });
        let text = serde_json::to_string_pretty(&json!({ "rows": rows, "aims": aims, "disk": disk }))?;
        std::fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rounds = self.disk.syncs.len();
        writeln!(
            f,
            "medians of {rounds} rounds; times in microseconds, `processor` is this process's time for each, the load's included"
        )?;
        let mut layer = String::new();
        for Measured { row, samples } in &self.rows {
            if row.layer() != layer {
                layer = row.layer();
                writeln!(
                    f,
                    "\n{layer:36} {:>10} {:>10} {:>9} {:>9} {:>9}",
                    "a second", "slowest", "p50", "p99", "processor"
                )?;
            }
            let Summary { rate, slowest, p50, p99, processor } = Summary::of(samples);
            writeln!(f, "{:36} {rate:10.0} {slowest:10.0} {p50:9.1} {p99:9.1} {processor:9.1}", row.name())?;
        }
        let (p50, p99) = self.sync();
        writeln!(
            f,
            "\n{:36} {:10.0} {:10} {p50:9.1} {p99:9.1}",
            format!("{}: append, fdatasync", self.disk.file_system),
            1e6 / p50,
            ""
        )?;
        let judged = self.judged();
        if !judged.is_empty() {
            writeln!(f, "\n{:62} {:>8} {:>14} reached", "", "ratio", "aim")?;
        }
        for (aim, ratio, reached) in judged {
            let bound = match aim.bound {
                Bound::Rate(least) => format!("at least {least:.0}x"),
                Bound::P99(most) => format!("at most {most:.2}x"),
            };
            let reached = if reached { "yes" } else { "NO" };
            writeln!(f, "{:62} {ratio:7.2}x {bound:>14} {reached}", aim.text)?;
        }
        Ok(())
    }
}
