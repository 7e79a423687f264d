//! What was seen on each kernel, as a table in Markdown: a line each kernel, a column each step.

use super::protocol::{Ended, Event, Step};
use serde::Deserialize;
use std::fmt::Write;

/// What the steps of one kernel have said so far.
pub(crate) struct Report {
    pub(crate) label: String,
    release: Option<String>,
    /// Seconds from the kernel's first to the first step.
    boot: f64,
    steps: Vec<Column>,
}

struct Column {
    name: String,
    lines: Vec<String>,
    ended: Option<(Ended, f64)>,
    /// It cannot run on this kernel, as nobody expects it to.
    left_out: bool,
}

/// What `load --json` prints.
#[derive(Deserialize)]
struct Loads {
    programs: Vec<Load>,
}

#[derive(Deserialize)]
struct Load {
    name: String,
    verified: Option<u32>,
    milliseconds: Option<f64>,
    refused: Option<String>,
}

impl Report {
    pub(crate) fn new(label: &str, steps: &[Step]) -> Self {
        let column =
            |step: &Step| Column { name: step.name.clone(), lines: Vec::new(), ended: None, left_out: false };
        Self { label: label.to_owned(), release: None, boot: 0.0, steps: steps.iter().map(column).collect() }
    }

    pub(crate) fn note(&mut self, event: &Event) {
        match event {
            Event::Up { release, seconds } => (self.release, self.boot) = (Some(release.clone()), *seconds),
            Event::Line { step, text } => {
                if let Some(column) = self.steps.get_mut(*step) {
                    column.lines.push(text.clone());
                }
            }
            Event::End { step, ended, seconds } => {
                if let Some(column) = self.steps.get_mut(*step) {
                    column.ended = Some((*ended, *seconds));
                }
            }
            Event::Begin { .. } | Event::Trouble { .. } | Event::Off => {}
        }
    }

    pub(crate) fn leave_out(&mut self, step: usize) {
        if let Some(column) = self.steps.get_mut(step) {
            column.left_out = true;
        }
    }

    /// Whether a test was run, or a step may have run some and did not come to its end.
    pub(crate) fn has_tests(&self) -> bool {
        self.steps.iter().any(|column| !column.is_good() || column.counts().0 > 0)
    }

    /// Whether every step has ended well.
    pub(crate) fn is_good(&self) -> bool {
        self.release.is_some() && self.steps.iter().all(Column::is_good)
    }

    /// What went wrong, with the end of what was printed.
    pub(crate) fn troubles(&self) -> String {
        let mut text = String::new();
        for column in self.steps.iter().filter(|column| !column.is_good()) {
            let how = match column.ended {
                None => "did not end",
                Some((Ended::Late, _)) => "took too long",
                Some(_) => "failed",
            };
            let _ = writeln!(text, "\n{} on {}: {how}", column.name, self.label);
            for line in column.telling() {
                let _ = writeln!(text, "    {line}");
            }
        }
        text
    }

    fn cells(&self) -> Vec<String> {
        let release = self.release.clone().unwrap_or_else(|| "did not start".to_owned());
        let boot = if self.boot > 0.0 { format!("{:.1} s", self.boot) } else { "–".to_owned() };
        [release, boot].into_iter().chain(self.steps.iter().flat_map(Column::cells)).collect()
    }
}

impl Column {
    fn is_good(&self) -> bool {
        self.left_out || matches!(self.ended, Some((Ended::Well, _)))
    }

    fn loads(&self) -> Option<Loads> {
        self.lines.iter().find_map(|line| serde_json::from_str(line).ok())
    }

    fn heads(&self) -> Vec<String> {
        match self.name.as_str() {
            "load" => ["lb: verified", "loads in", "lb_joint"].map(str::to_owned).into(),
            name => vec![name.to_owned()],
        }
    }

    fn cells(&self) -> Vec<String> {
        if self.name != "load" {
            return vec![self.cell()];
        }
        let loads = self.loads();
        let load = |name: &str| loads.as_ref()?.programs.iter().find(|load| load.name == name);
        let counted = |load: Option<&Load>| match load {
            Some(Load { refused: Some(_), .. }) => "refused".to_owned(),
            Some(Load { verified: Some(count), .. }) => thousands(*count),
            _ => "–".to_owned(),
        };
        let time = load("lb").and_then(|load| load.milliseconds);
        let time = time.map_or_else(|| "–".to_owned(), |time| format!("{time:.0} ms"));
        vec![counted(load("lb")), time, counted(load("lb_joint"))]
    }

    /// `12 of 12, 34 s`.
    fn cell(&self) -> String {
        let Some((ended, seconds)) = self.ended else {
            return if self.left_out { "–" } else { "did not end" }.to_owned();
        };
        let (passed, failed) = self.counts();
        let all = passed + failed;
        let text = match (all, self.name.as_str(), ended) {
            // It fails if one of its claims does not hold.
            (0, "demo", Ended::Well) => "holds, ".to_owned(),
            (0, ..) => String::new(),
            _ => format!("{passed} of {all}, "),
        };
        let mark = match ended {
            Ended::Well => "",
            Ended::Badly => "✗ ",
            Ended::Late => "too long: ",
        };
        format!("{mark}{text}{seconds:.0} s")
    }

    /// Tests that passed and that failed.
    fn counts(&self) -> (u32, u32) {
        let number = |line: &str, word: &str| -> Option<u32> {
            line.split(word).next()?.trim_end().rsplit(' ').next()?.parse().ok()
        };
        let mut counts = (0, 0);
        for line in &self.lines {
            if line.starts_with("test result:") {
                counts.0 += number(line, "passed").unwrap_or(0);
                counts.1 += number(line, "failed").unwrap_or(0);
            }
        }
        counts
    }

    /// The lines that tell what went wrong: what the verifier said, or the failures of tests, or the last ones.
    fn telling(&self) -> Vec<String> {
        const LAST: usize = 60;
        if let Some(loads) = self.loads() {
            let refused = loads.programs.into_iter().filter_map(|load| Some((load.name, load.refused?)));
            let told = refused.flat_map(|(name, why)| {
                let lines: Vec<_> = why.lines().map(str::to_owned).collect();
                std::iter::once(format!("{name} is refused:")).chain(lines)
            });
            return told.collect();
        }
        let failures = self.lines.iter().position(|line| line.trim_end() == "failures:");
        let from = failures.unwrap_or(self.lines.len().saturating_sub(LAST));
        self.lines[from..].iter().take(200).cloned().collect()
    }
}

/// 252,984.
fn thousands(count: u32) -> String {
    let digits = count.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// The table.
pub(crate) fn table(reports: &[Report]) -> String {
    let Some(first) = reports.first() else { return String::new() };
    let heads: Vec<String> = ["kernel", "starts in"]
        .map(str::to_owned)
        .into_iter()
        .chain(first.steps.iter().flat_map(Column::heads))
        .collect();
    let rows: Vec<Vec<String>> = reports.iter().map(Report::cells).collect();
    let width = |i: usize| {
        rows.iter().map(|row| row[i].chars().count()).chain([heads[i].chars().count(), 3]).max().unwrap_or(3)
    };
    let widths: Vec<usize> = (0..heads.len()).map(width).collect();
    let line = |cells: &[String]| {
        let cells = cells.iter().zip(&widths).map(|(cell, width)| format!(" {cell:width$} |"));
        format!("|{}\n", cells.collect::<String>())
    };
    let rule: String = widths.iter().map(|width| format!("{}|", "-".repeat(width + 2))).collect();
    let mut text = line(&heads) + "|" + &rule + "\n";
    rows.iter().for_each(|row| text.push_str(&line(row)));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(name: &str) -> Step {
        Step {
            name: name.to_owned(),
            program: "/bin/true".into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            directory: "/".into(),
            seconds: 1,
        }
    }

    fn report(events: &[Event]) -> Report {
        let mut report = Report::new("6.1", &["load", "table", "demo"].map(step));
        events.iter().for_each(|event| report.note(event));
        report
    }

    fn line(step: usize, text: &str) -> Event {
        Event::Line { step, text: text.to_owned() }
    }

    #[test]
    fn a_good_kernel_has_every_figure_in_its_line() {
        let loads = r#"{"kernel":"6.1.0","programs":[{"name":"lb","verified":252984,"milliseconds":3101.6,"refused":null},
            {"name":"lb_joint","verified":11236,"milliseconds":72.0,"refused":null}]}"#
            .replace('\n', "");
        let report = report(&[
            Event::Up { release: "6.1.0-57".to_owned(), seconds: 2.44 },
            line(0, &loads),
            Event::End { step: 0, ended: Ended::Well, seconds: 4.0 },
            line(
                1,
                "test result: ok. 312 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 3.2s",
            ),
            Event::End { step: 1, ended: Ended::Well, seconds: 31.4 },
            line(2, "  ✓ 44 characters"),
            line(2, "  ✓ 10 of 10"),
            Event::End { step: 2, ended: Ended::Well, seconds: 40.0 },
        ]);
        assert!(report.is_good());
        let expected =
            ["6.1.0-57", "2.4 s", "252,984", "3102 ms", "11,236", "312 of 312, 31 s", "holds, 40 s"];
        assert_eq!(report.cells(), expected);
        let table = table(&[report]);
        assert_eq!(table.lines().count(), 3);
        assert!(
            table.lines().all(|line| line.chars().count() == table.lines().next().unwrap().chars().count())
        );
    }

    #[test]
    fn what_is_refused_is_told_in_the_verifiers_words() {
        let loads =
            r#"{"programs":[{"name":"lb","verified":null,"milliseconds":null,"refused":"R3 min value"}]}"#;
        let report = report(&[
            Event::Up { release: "6.1.0-57".to_owned(), seconds: 2.0 },
            line(0, loads),
            Event::End { step: 0, ended: Ended::Badly, seconds: 4.0 },
        ]);
        assert!(!report.is_good());
        assert_eq!(report.cells()[2], "refused");
        let troubles = report.troubles();
        assert!(troubles.contains("R3 min value"), "{troubles}");
        assert!(troubles.contains("table on 6.1: did not end"), "{troubles}");
    }

    #[test]
    fn a_filter_that_finds_nothing_is_noticed() {
        let ended = |step| Event::End { step, ended: Ended::Well, seconds: 0.1 };
        let none =
            |step| line(step, "test result: ok. 0 passed; 0 failed; 0 ignored; 0 measured; 219 filtered out");
        let mut nothing = report(&[none(0), ended(0), none(1), ended(1)]);
        nothing.leave_out(2);
        assert!(!nothing.has_tests());
        assert_eq!(nothing.steps[2].cell(), "–");
        nothing.note(&line(1, "test result: ok. 1 passed; 0 failed; 0 ignored"));
        assert!(nothing.has_tests());
    }

    #[test]
    fn failures_of_tests_are_told_from_where_they_begin() {
        let report = report(&[
            line(1, "running 2 tests"),
            line(1, "failures:"),
            line(1, "---- table::x ----"),
            line(1, "test result: FAILED. 1 passed; 1 failed; 0 ignored"),
            Event::End { step: 1, ended: Ended::Badly, seconds: 3.0 },
        ]);
        assert_eq!(report.steps[1].cell(), "✗ 1 of 2, 3 s");
        assert!(!report.troubles().contains("running 2 tests"));
        assert!(report.troubles().contains("table::x"));
    }
}
