//! `cargo xtask bench`: what a packet costs on each path, and what the verifier has to do. `cargo xtask bench session`:
//! what sessions cost, beside an application that keeps them in Redis the usual way. `cargo xtask bench katran`: our program
//! and Katran's on the same packets.

mod katran;

use crate::{build, steps, toolchain, workspace};
use anyhow::{Context, Result, bail};
use clap::Subcommand;
use std::path::PathBuf;
use std::process::Command;

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    packets: Extent,
}

#[derive(Subcommand)]
enum What {
    /// What a packet costs on each path (without a word it is this); needs root
    Packets(Extent),
    /// What a packet costs beside Katran's program, compiled from a checkout of it; needs root and clang
    Katran(Peer),
    /// What sessions cost, beside an application that keeps them in Redis through tower-sessions; starts a redis-server
    Session(Extent),
}

#[derive(clap::Args)]
struct Extent {
    /// Write the rows to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Measure only rows whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

#[derive(clap::Args)]
struct Peer {
    #[command(flatten)]
    extent: Extent,
    /// A checkout of https://github.com/facebookincubator/katran
    #[arg(long, value_name = "DIRECTORY")]
    source: Option<PathBuf>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.what {
        None => packets(&arguments.packets),
        Some(What::Packets(arguments)) => packets(arguments),
        Some(What::Katran(peer)) => beside_katran(peer),
        Some(What::Session(extent)) => session(extent),
    }
}

fn packets(extent: &Extent) -> Result<()> {
    needs_root("cargo xtask bench")?;
    build::build_objects(&[])?;
    measure(extent, |bench| {
        bench.arg("packets");
    })
}

fn beside_katran(peer: &Peer) -> Result<()> {
    needs_root("cargo xtask bench katran --source DIRECTORY")?;
    let katran = katran::compile(peer.source.as_deref())?;
    build::build_objects(&[])?;
    measure(&peer.extent, |bench| {
        bench.arg("katran").arg("--object").arg(&katran.object).arg("--origin").arg(&katran.origin);
    })
}

fn needs_root(command: &str) -> Result<()> {
    if !workspace::is_root() {
        bail!("bench loads BPF programs and needs root: run `sudo env \"PATH=$PATH\" {command}`");
    }
    Ok(())
}

fn session(extent: &Extent) -> Result<()> {
    let Some(_) = workspace::command("redis-server") else {
        bail!("bench session starts a redis-server and there is none: `cargo xtask setup` installs it");
    };
    // Where the build is, there is a real disk; the system's directory for temporary files is often in memory.
    let directory = workspace::target().join("tmp");
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    measure(extent, |bench| {
        bench.arg("session").arg("--directory").arg(&directory);
    })
}

/// Builds the release and runs the measurement that `choose` asks for.
fn measure(extent: &Extent, choose: impl FnOnce(&mut Command)) -> Result<()> {
    let run = ["--release", "--package", "tests", "--bin", "bench"];
    steps::show(toolchain::host_cargo().arg("build").args(run))?;
    let mut bench = toolchain::host_cargo();
    bench.args(["run", "--quiet"]).args(run).arg("--");
    choose(&mut bench);
    if let Some(file) = &extent.json {
        // The bench starts in the checkout's top, this may have started elsewhere.
        bench.arg("--json").arg(std::path::absolute(file).context("naming the file for the rows")?);
    }
    if extent.quick {
        bench.arg("--quick");
    }
    if let Some(text) = &extent.only {
        bench.arg("--only").arg(text);
    }
    if !bench.status().context("cannot start cargo")?.success() {
        bail!("the measurement failed");
    }
    Ok(())
}
