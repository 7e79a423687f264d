//! `cargo xtask bench`: what a packet costs on each path, and what the verifier has to do.

use crate::{build, steps, toolchain, workspace};
use anyhow::{Context, Result, bail};
use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
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

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !workspace::is_root() {
        bail!("bench loads BPF programs and needs root: run `sudo env \"PATH=$PATH\" cargo xtask bench`");
    }
    build::build_objects(&[])?;
    let run = ["--release", "--package", "tests", "--bin", "bench"];
    steps::show(toolchain::host_cargo().arg("build").args(run))?;

    let mut bench = toolchain::host_cargo();
    bench.args(["run", "--quiet"]).args(run).arg("--");
    if let Some(file) = &arguments.json {
        // The bench starts in the checkout's top, this may have started elsewhere.
        bench.arg("--json").arg(std::path::absolute(file).context("naming the file for the rows")?);
    }
    if arguments.quick {
        bench.arg("--quick");
    }
    if let Some(text) = &arguments.only {
        bench.arg("--only").arg(text);
    }
    if !bench.status().context("cannot start cargo")?.success() {
        bail!("the measurement failed");
    }
    Ok(())
}
