//! `cargo xtask bench session`: what sessions cost, beside an application that keeps them in Redis the usual way.
//!
//! Everything that is compared is measured in turn in each of several rounds of one run, because the machine drifts; a
//! ratio is the median of the rounds' ratios. Every answer is checked to have come from where its row says.

mod content;
mod disk;
mod http;
mod ours;
mod report;
mod rows;
mod stint;
mod usual;

use crate::redis::{Place, Redis};
use anyhow::{Context, Result};
use disk::Probe;
use lb_userspace::session::{RedisOptions, RedisStore, SessionStore, SledStore};
use ours::Site;
use report::{Disk, Measured, Report};
use rows::Row;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use usual::Usual;

/// How thoroughly, and where.
pub struct Options {
    /// Fewer and shorter rounds.
    pub quick: bool,
    /// File for the rows as JSON.
    pub json: Option<PathBuf>,
    /// Only rows whose heading and name contain this.
    pub only: Option<String>,
    /// Where the stores' directories are made, for as long as this runs: on a real disk.
    pub directory: PathBuf,
}

/// How much is done.
#[derive(Clone, Copy)]
struct Extent {
    rounds: usize,
    /// Of one row in one round.
    time: Duration,
    /// Sessions of each kind.
    sessions: usize,
}

/// Everything that is measured.
struct Bench {
    sled: Site,
    redis: Site,
    usual: Usual,
}

/// Measures everything and prints it.
pub fn run(options: &Options) -> Result<()> {
    let extent = match options.quick {
        true => Extent { rounds: 2, time: Duration::from_millis(100), sessions: 256 },
        false => Extent { rounds: 7, time: Duration::from_millis(1000), sessions: 4096 },
    };
    // SAFETY: takes numbers only. Where it is refused, the measurement is noisier, not wrong.
    unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, -15) };
    let place = tempfile::Builder::new()
        .prefix("session-bench-")
        .tempdir_in(&options.directory)
        .with_context(|| format!("making a directory in {}", options.directory.display()))?;
    let only = options.only.as_deref().unwrap_or_default();
    let rows: Vec<Row> = Row::ALL.into_iter().filter(|row| row.is_called(only)).collect();
    let report = measure(place.path(), extent, &rows)?;
    print!("{report}");
    if let Some(path) = &options.json {
        report.write_json(path)?;
    }
    Ok(())
}

fn measure(directory: &Path, extent: Extent, rows: &[Row]) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut probe = Probe::new(directory)?;
    let files = directory.join("redis");
    std::fs::create_dir(&files)?;
    let files = files.to_str().context("a directory whose name is not UTF-8")?;
    // What it acknowledges is on its disk, as what sled acknowledges is.
    let server = Redis::start(Place::default(), 0, &[("appendfsync", "always"), ("dir", files)])?;
    eprintln!("beginning {} sessions of each kind", extent.sessions);
    let bench = runtime.block_on(Bench::new(directory, &server, extent.sessions))?;

    let mut measured: Vec<_> = rows.iter().map(|row| Measured { row: *row, samples: Vec::new() }).collect();
    let mut syncs = Vec::new();
    for round in 0..extent.rounds {
        eprintln!("round {} of {}", round + 1, extent.rounds);
        syncs.push(probe.run(extent.time / 4)?);
        for Measured { row, samples } in &mut measured {
            let sample = row.run(&bench, &runtime, extent.time);
            samples.push(sample.with_context(|| format!("row `{}`", row.name()))?);
        }
    }
    // The site behind HTTP goes before the runtime that its store lives on.
    drop(bench);
    Ok(Report { rows: measured, disk: Disk { file_system: disk::file_system(directory)?, syncs } })
}

impl Bench {
    async fn new(directory: &Path, redis: &Redis, sessions: usize) -> Result<Self> {
        let sled: Arc<dyn SessionStore> = Arc::new(SledStore::open(&directory.join("sled"))?);
        let nodes = redis.urls();
        let store =
            RedisStore::open(RedisOptions { nodes: nodes.clone(), ..RedisOptions::default() }).await?;
        Ok(Self {
            sled: Site::new(sled, sessions, rows::WRITERS).await.context("on sled")?,
            redis: Site::new(Arc::new(store), sessions, rows::WRITERS).await.context("on Redis")?,
            usual: Usual::start(&nodes[0], sessions).await?,
        })
    }
}

#[cfg(test)]
mod tests;
