//! Rows for people and for programs, and what was reached of our aims.

use super::rig::Rig;
use anyhow::{Context, Result};
use serde_json::json;
use std::fmt;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// What a row should cost at most.
#[derive(Clone, Copy)]
pub(super) enum Aim {
    TimesEmpty(f64),
    Nanoseconds(f64),
}

/// One line of the report, in nanoseconds.
pub(super) struct Row {
    name: String,
    median: f64,
    min: f64,
    max: f64,
    verified: u32,
    aim: Option<Aim>,
}

impl Row {
    /// # Panics
    /// When there is no sample.
    pub(super) fn new(name: &str, samples: &[f64], verified: u32, aim: Option<Aim>) -> Self {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (min, max) = (sorted[0], sorted[sorted.len() - 1]);
        Self { name: name.to_owned(), median: sorted[sorted.len() / 2], min, max, verified, aim }
    }
}

/// What the verifier had to do.
pub(super) struct Programs {
    pub(super) lb: u32,
    pub(super) joint: u32,
    pub(super) empty: u32,
    load_time: [Duration; 2],
}

impl Programs {
    pub(super) fn of(rig: &Rig) -> Result<Self> {
        let [lb, joint, empty] = rig.verified()?;
        Ok(Self { lb, joint, empty, load_time: rig.product.load_time })
    }
}

/// See the module. The first row is the empty program's.
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
    pub(super) programs: Programs,
}

impl Report {
    fn times_empty(&self, row: &Row) -> f64 {
        row.median / self.rows[0].median
    }

    /// Nanoseconds that are the product's own.
    fn own(&self, row: &Row) -> f64 {
        row.median - self.rows[0].median
    }

    /// The aim in words and whether the row reaches it; then the same of the nanoseconds that are the product's own.
    fn judged(&self, row: &Row) -> Option<(String, String)> {
        let (aim, reached, own) = match row.aim? {
            Aim::TimesEmpty(most) => {
                (format!("{most:.1}x"), self.times_empty(row) <= most, (most - 1.0) * EMPTY_THEN)
            }
            Aim::Nanoseconds(most) => (format!("{most:.0} ns"), row.median <= most, most - EMPTY_THEN),
        };
        let within = self.own(row) <= own;
        Some((format!("{aim:>8} {:8}", yes(reached)), format!("{own:8.0} {}", yes(within))))
    }

    /// One object with the rows.
    pub(super) fn write_json(&self, path: &Path) -> Result<()> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "name": row.name,
                    "median_ns": tenths(row.median),
                    "min_ns": tenths(row.min),
                    "max_ns": tenths(row.max),
                    "times_empty": (self.times_empty(row) * 100.0).round() / 100.0,
                    "verified_instructions": row.verified,
                })
            })
            .collect();
        let text = serde_json::to_string_pretty(&json!({ "rows": rows }))?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

const MOST_VERIFIED: u32 = 60_000;
const LONGEST_LOAD: Duration = Duration::from_millis(150);

/// Nanoseconds of the empty program where the aims were set.
const EMPTY_THEN: f64 = 25.0;

const fn yes(reached: bool) -> &'static str {
    if reached { "yes" } else { "NO" }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "nanoseconds a packet, the empty program's included; `own` without it, whose aim is what the aim"
        )?;
        writeln!(f, "leaves where it was set and the empty program took {EMPTY_THEN:.0} ns")?;
        let [name, median, min, max] = ["", "median", "min", "max"];
        write!(f, "{name:38} {median:>6} {min:>6} {max:>6} {:>8} {:>8} {:8}", "x empty", "aim", "reached")?;
        writeln!(f, " {:>7} {:>8} reached", "own", "aim")?;
        for row in &self.rows {
            let Row { name, median, min, max, .. } = row;
            let (times, own) = (self.times_empty(row), self.own(row));
            write!(f, "{name:38} {median:6.0} {min:6.0} {max:6.0} {times:7.2}x ")?;
            match self.judged(row) {
                Some((aim, own_aim)) => writeln!(f, "{aim:17} {own:7.0} {own_aim}")?,
                None => writeln!(f, "{:17} {own:7.0}", "")?,
            }
        }
        writeln!(
            f,
            "\nverified instructions (aim: {MOST_VERIFIED}) and time to load (aim: {LONGEST_LOAD:?})"
        )?;
        let Programs { lb, joint, load_time, .. } = self.programs;
        for (name, verified, time) in [("lb", lb, load_time[0]), ("lb_joint", joint, load_time[1])] {
            let reached = yes(verified < MOST_VERIFIED && time < LONGEST_LOAD);
            writeln!(f, "{name:38} {verified:6} {:6.0} ms {:13} {reached}", time.as_secs_f64() * 1e3, "")?;
        }
        Ok(())
    }
}
