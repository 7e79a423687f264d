//! `cargo xtask bench katran`: our program and Katran's on the same packets, one after the other within each round, each behind the
//! same wrapper that puts the packet back. Both have the same services, the same clients and connection tables of the same
//! size, and both must count every repeat as the row says.
//!
//! They do not do the same. Katran puts the packet into a tunnel and lets servers answer clients themselves; ours translates addresses,
//! with checksums, and answers come back through it.

mod program;
mod report;
mod rows;

use super::rig::{self, Rig};
use super::wrapper::Measured;
use super::{FLOWS, Options, flows, undisturbed};
use anyhow::{Context, Result, ensure};
use lb_common::flow::GROUP;
use program::Katran;
use report::{Report, Row, Sides};
use rows::{Contest, KINDS, Kind};
use std::path::Path;
use std::time::Duration;

/// Where Katran sends what it has put into a tunnel.
const ROUTER: [u8; 6] = [2, 0, 0, 9, 9, 9];

/// How often, and for how long, each row is measured.
struct Pace {
    rounds: u32,
    time: Duration,
}

/// Measures everything and prints it. `object` is Katran's program, `origin` says which and how it was compiled.
pub fn run(options: &Options, object: &Path, origin: &str) -> Result<()> {
    crate::require_root();
    undisturbed()?;
    let pace = if options.quick {
        Pace { rounds: 3, time: Duration::from_millis(4) }
    } else {
        Pace { rounds: 11, time: Duration::from_millis(25) }
    };
    let vips = KINDS.map(Kind::vip);
    let servers = rows::servers();
    let mut katran = Katran::new(object, &vips, &servers, ROUTER)?;
    let mut rows = Vec::new();
    let mut verified = Sides { ours: 0, katran: katran.verified()? };
    for (count, flows) in FLOWS.into_iter().zip(["1 flow", "16k flows", "1M flows"]) {
        eprintln!("{flows}");
        let sizes = rig::sizes(count);
        let mut rig = Rig::bare(count, rows::setup(sizes))?;
        verified.ours = rig.verified()?[0];
        katran.resize(sizes.groups * GROUP as u32)?;
        let wanted = |name: &str| options.only.as_ref().is_none_or(|only| name.contains(only.as_str()));
        if count == 1 {
            katran.prove(&rows::sample(), &servers, ROUTER)?;
            for contest in rows::strangers() {
                if wanted(contest.name) {
                    let row = Row::new(contest.name, None, contest.aim);
                    rows.push(measure(row, contest, &mut rig, &mut katran, &pace)?);
                }
            }
        }
        for kind in KINDS {
            let mut contests = rows::contests(kind, count, &rig.product, &rig.setup)?;
            let known = contests[0].katran.clone();
            contests.retain(|contest| wanted(&format!("{}, {flows}", contest.name)));
            if contests.is_empty() {
                continue;
            }
            let (product, setup) = (&mut rig.product, &rig.setup);
            product.forget()?;
            let flow = |client, n| kind.flow(setup, client, n);
            rig.clients = flows::fill(&mut product.maps, setup, count, kind.service(), flow)?;
            // Katran fills its own table. Its entries lie in the order in which their flows began, ours where a hash says: were
            // that the order of the packets, its next entry would always be there already.
            katran.forget()?;
            let known = known.context("the first row of a kind is of both")?;
            rig.wrapper.set_clients(&rows::shuffled(&rig.clients))?;
            rig.wrapper.send_each(&known, &katran)?;
            rig.wrapper.set_clients(&rig.clients)?;
            for contest in contests {
                let row = Row::new(contest.name, Some(flows), contest.aim);
                rows.push(measure(row, contest, &mut rig, &mut katran, &pace)?);
                let lacks = rig.clients.iter().step_by(97).find(|client| !katran.knows(**client, kind.vip()));
                ensure!(lacks.is_none(), "Katran does not know the flow of {lacks:?}");
            }
        }
    }
    report::sort(&mut rows);
    let report = Report { rows, verified, origin: origin.to_owned() };
    print!("{report}");
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    Ok(())
}

/// Both sides of a row, in turn.
fn measure(
    mut row: Row,
    mut contest: Contest,
    rig: &mut Rig,
    katran: &mut Katran,
    pace: &Pace,
) -> Result<Row> {
    for _ in 0..pace.rounds {
        let alone = rig.wrapper.empty(pace.time)?;
        let ours = rig.cost(&mut contest.ours, pace.time).with_context(|| format!("row `{}`", row.name()))?;
        let theirs = match &mut contest.katran {
            Some(case) => Some(
                rig.wrapper
                    .cost(case, katran, pace.time)
                    .with_context(|| format!("row `{}`, Katran", row.name()))?,
            ),
            None => None,
        };
        row.add(alone, ours, theirs);
    }
    Ok(row)
}
