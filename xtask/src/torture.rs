//! `cargo xtask torture`: many clients, servers that are killed in every way, and a proof that no session noticed.

use crate::build::{self, Profile};
use crate::setup::Need;
use crate::{steps, toolchain, workspace};
use anyhow::{Context, Result, bail};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How long, at least; it ends after everything was done once
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// What happens, and in which order; without it, a seed is drawn and printed
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Where the sessions are: sled or redis
    #[arg(long, value_name = "STORE", default_value = "sled")]
    store: String,
    /// A promise that lbd is to break, which must be noticed: skip-epoch, skip-cas, ack-before-flush or skip-invalidate
    #[arg(long, value_name = "NAME")]
    fault: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { seconds, seed, store, fault } = arguments;
    if !workspace::is_root() {
        bail!(
            "torture builds network namespaces and loads BPF programs, and needs root: run `sudo env \"PATH=$PATH\" cargo \
             xtask torture`"
        );
    }
    build::build(&[Need::Run, Need::Peers], Profile::Debug)?;
    if fault.is_some() {
        build::build_faulty()?;
    }
    let run = ["--package", "tests", "--bin", "torture"];
    steps::show(toolchain::host_cargo().arg("build").args(run))?;

    let mut torture = toolchain::host_cargo();
    torture.args(["run", "--quiet"]).args(run).arg("--");
    torture.arg("--seconds").arg(seconds.to_string()).arg("--store").arg(store);
    if let Some(seed) = seed {
        torture.arg("--seed").arg(seed.to_string());
    }
    if let Some(fault) = fault {
        torture.arg("--fault").arg(fault);
    }
    if !torture.status().context("cannot start cargo")?.success() {
        bail!("the torture failed");
    }
    Ok(())
}
