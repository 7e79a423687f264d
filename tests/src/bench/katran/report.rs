//! The table, for people and for programs.

use anyhow::{Context, Result};
use serde_json::json;
use std::fmt;
use std::fs;
use std::path::Path;

/// Something of both programs.
pub(super) struct Sides<T> {
    pub(super) ours: T,
    pub(super) katran: T,
}

/// One line: nanoseconds of each round, the empty program's included.
pub(super) struct Row {
    packet: &'static str,
    /// How many flows there are, if that matters.
    flows: Option<&'static str>,
    aim: f64,
    empty: Vec<f64>,
    samples: Sides<Vec<f64>>,
}

/// See the module.
pub(super) struct Report {
    pub(super) rows: Vec<Row>,
    /// Instructions that the verifier followed.
    pub(super) verified: Sides<u32>,
    /// Which Katran.
    pub(super) origin: String,
}

impl Row {
    pub(super) fn new(packet: &'static str, flows: Option<&'static str>, aim: f64) -> Self {
        let samples = Sides { ours: Vec::new(), katran: Vec::new() };
        Self { packet, flows, aim, empty: Vec::new(), samples }
    }

    pub(super) fn name(&self) -> String {
        self.flows.map_or_else(|| self.packet.to_owned(), |flows| format!("{}, {flows}", self.packet))
    }

    /// Another round: the empty program, and what each took beyond it.
    pub(super) fn add(&mut self, empty: f64, ours: f64, katran: Option<f64>) {
        self.empty.push(empty);
        self.samples.ours.push(ours + empty);
        self.samples.katran.extend(katran.map(|cost| cost + empty));
    }

    fn ours(&self) -> Summary {
        Summary::of(&self.samples.ours).expect("every row is of ours")
    }

    fn katran(&self) -> Option<Summary> {
        Summary::of(&self.samples.katran)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Summary {
    median: f64,
    min: f64,
}

impl Summary {
    fn of(samples: &[f64]) -> Option<Self> {
        let mut sorted = samples.to_vec();
        sorted.sort_by(f64::total_cmp);
        Some(Self { median: *sorted.get(sorted.len() / 2)?, min: sorted[0] })
    }

    /// How many times as much as the other.
    fn times(self, other: Self) -> Self {
        Self { median: self.median / other.median, min: self.min / other.min }
    }

    fn json(self) -> serde_json::Value {
        json!({ "median": hundredths(self.median), "min": hundredths(self.min) })
    }
}

fn hundredths(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}

impl Report {
    /// One object: the rows and what they were measured with.
    pub(super) fn write_json(&self, path: &Path) -> Result<()> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let (ours, katran) = (row.ours(), row.katran());
                json!({
                    "name": row.name(),
                    "lb_ns": ours.json(),
                    "katran_ns": katran.map(Summary::json),
                    "lb_by_katran": katran.map(|katran| ours.times(katran).json()),
                    "aim": katran.map(|_| row.aim),
                })
            })
            .collect();
        let verified = json!({ "lb": self.verified.ours, "katran": self.verified.katran });
        let all = json!({ "katran": self.origin, "rows": rows, "verified_instructions": verified });
        let text = serde_json::to_string_pretty(&all)?;
        fs::write(path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let empty: Vec<f64> = self.rows.iter().flat_map(|row| row.empty.iter().copied()).collect();
        let empty = Summary::of(&empty).map_or(0.0, |empty| empty.median);
        writeln!(f, "Katran: {}", self.origin)?;
        writeln!(
            f,
            "nanoseconds a packet, the empty program's {empty:.0} included; lb / Katran below 1: ours is faster"
        )?;
        writeln!(f, "{:38} {:^15} {:^15} {:^15}", "", "lb", "Katran", "lb / Katran")?;
        let [median, min] = ["median", "min"];
        let columns = format!("{median:>7} {min:>7}");
        writeln!(f, "{:38} {columns} {columns} {columns} {:>5} reached", "", "aim")?;
        for row in &self.rows {
            let ours = row.ours();
            write!(f, "{:38} {:7.0} {:7.0}", row.name(), ours.median, ours.min)?;
            match row.katran() {
                Some(katran) => {
                    let times = ours.times(katran);
                    write!(f, " {:7.0} {:7.0}", katran.median, katran.min)?;
                    let reached = if times.median <= row.aim { "yes" } else { "NO" };
                    writeln!(f, " {:7.2} {:7.2} {:5.2} {reached}", times.median, times.min, row.aim)?;
                }
                None => writeln!(f, " {:>15}", "not through it")?,
            }
        }
        let Sides { ours, katran } = self.verified;
        writeln!(f, "{:38} {ours:7} {:7} {katran:7}", "verified instructions", "")
    }
}

/// Brings rows of the same packet next to each other, in the order in which the last number of flows has them: it has all.
pub(super) fn sort(rows: &mut [Row]) {
    let last = rows.last().and_then(|row| row.flows);
    let packets: Vec<&str> = rows.iter().filter(|row| row.flows == last).map(|row| row.packet).collect();
    rows.sort_by_key(|row| packets.iter().position(|packet| *packet == row.packet));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(packet: &'static str, flows: Option<&'static str>) -> Row {
        Row::new(packet, flows, 0.5)
    }

    #[test]
    fn rows_of_a_packet_stand_together() {
        let mut rows = vec![
            row("stranger", None),
            row("a", Some("few")),
            row("c", Some("few")),
            row("a", Some("many")),
            row("b", Some("many")),
            row("c", Some("many")),
        ];
        sort(&mut rows);
        let names: Vec<String> = rows.iter().map(Row::name).collect();
        assert_eq!(names, ["stranger", "a, few", "a, many", "b, many", "c, few", "c, many"]);
    }

    #[test]
    fn a_row_is_judged_by_the_medians_of_its_rounds() {
        let mut fast = row("fast", None);
        let mut slow = row("slow", None);
        let mut answer = row("answer", None);
        for (ours, katran) in [(90.0, 95.0), (15.0, 45.0), (19.0, 35.0)] {
            fast.add(5.0, ours, Some(katran));
            slow.add(5.0, katran, Some(ours));
            answer.add(5.0, ours, None);
        }
        assert_eq!(fast.ours(), Summary { median: 24.0, min: 20.0 });
        assert_eq!(fast.katran(), Some(Summary { median: 50.0, min: 40.0 }));
        let verified = Sides { ours: 1, katran: 2 };
        let shown = Report { rows: vec![fast, slow, answer], verified, origin: "x".into() }.to_string();
        let line = |name| shown.lines().find(|line| line.starts_with(name)).unwrap();
        assert!(line("fast").ends_with("0.48    0.50  0.50 yes"), "{shown}");
        assert!(line("slow").ends_with("2.08    2.00  0.50 NO"), "{shown}");
        assert!(line("answer").ends_with("not through it"), "{shown}");
    }
}
