//! `cargo xtask bench`: what a packet costs on each path, measured with `BPF_PROG_TEST_RUN`.
//!
//! A test run does not restore its packet, and most paths rewrite theirs. So `tb_undo` puts the packet back and then
//! becomes the product's program, unchanged; the same with an empty program behind it is measured as well. A row is the
//! first minus the second plus the empty program alone. The counters must show that every repeat took the path that the
//! row names. All rows are measured in each of several rounds, because the machine drifts.

mod cases;
mod flows;
pub mod katran;
mod kinds;
mod report;
mod rig;
mod wrapper;

use anyhow::{Context, Result};
use report::{Programs, Report, Row};
use rig::Rig;
use std::path::PathBuf;
use std::time::Duration;

/// How thoroughly, and where to.
pub struct Options {
    /// Fewer and shorter rounds.
    pub quick: bool,
    /// File for the rows as JSON.
    pub json: Option<PathBuf>,
    /// Only rows whose name contains this.
    pub only: Option<String>,
}

/// Flows in the table of each rig; the table is sized to them.
const FLOWS: [u32; 3] = [1, 1 << 14, 1 << 20];

/// Measures everything and prints it.
pub fn run(options: &Options) -> Result<()> {
    crate::require_root();
    undisturbed()?;
    let (rounds, time) =
        if options.quick { (3, Duration::from_millis(4)) } else { (7, Duration::from_millis(25)) };
    eprintln!("loading the programs, with flow tables for {} flows", FLOWS.map(|n| n.to_string()).join(", "));
    let mut rigs = FLOWS.into_iter().map(Rig::new).collect::<Result<Vec<_>>>()?;
    let mut cases = cases::all(&rigs)?;
    if let Some(only) = &options.only {
        cases.retain(|case| case.name.contains(only.as_str()));
    }

    let mut empty = Vec::new();
    let mut samples = vec![Vec::new(); cases.len()];
    for round in 0..rounds {
        eprintln!("round {} of {rounds}", round + 1);
        let alone = rigs[0].wrapper.empty(time)?;
        empty.push(alone);
        for (case, samples) in cases.iter_mut().zip(&mut samples) {
            let cost = rigs[case.rig].cost(case, time).with_context(|| format!("row `{}`", case.name))?;
            samples.push(cost + alone);
        }
    }

    let programs = Programs::of(&rigs[0])?;
    let mut rows = vec![Row::new("empty XDP program", &empty, programs.empty, None)];
    for (case, samples) in cases.iter().zip(&samples) {
        rows.push(Row::new(&case.name, samples, programs.lb, case.aim));
    }
    let report = Report { rows, programs };
    print!("{report}");
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    Ok(())
}

/// Stays on one processor, ahead of whatever else wants it.
fn undisturbed() -> Result<()> {
    use nix::sched::{CpuSet, sched_setaffinity};
    use nix::unistd::Pid;
    let here = nix::sched::sched_getcpu().context("asking which processor this is")?;
    let mut only = CpuSet::new();
    only.set(here)?;
    sched_setaffinity(Pid::from_raw(0), &only).context("staying on one processor")?;
    // SAFETY: takes numbers only. Where it is refused, the measurement is noisier, not wrong.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -20) };
    Ok(())
}
