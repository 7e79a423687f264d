//! `cargo xtask demo`: builds a town of namespaces, drives it with the real curl, tells what happens and what XDP counted,
//! and fails if a claim does not hold. Cleans up after itself, after Ctrl-C and after a panic.

mod claims;
mod counters;
mod curl;
mod story;
mod town;

use crate::build::{self, Profile};
use crate::setup::Need;
use crate::workspace;
use anyhow::{Result, bail, ensure};
use claims::Claims;
use nix::sys::signal::{SigSet, Signal};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use town::Town;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Write what was claimed and measured to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Use what was built before
    #[arg(long)]
    built: bool,
    /// Leave the town up, and say how to look around
    #[arg(long)]
    keep: bool,
    /// Take down a town that was left up
    #[arg(long, conflicts_with_all = ["json", "keep", "built"])]
    down: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    ensure!(
        workspace::is_root(),
        "the demonstration makes network namespaces and loads BPF programs: run `sudo env \"PATH=$PATH\" cargo xtask demo`"
    );
    if arguments.down {
        town::down()?;
        println!("the town is down");
        return Ok(());
    }
    if !arguments.built {
        build::build(&[Need::Run], Profile::Debug)?;
    }

    interrupt_politely()?;
    let mut claims = Claims::default();
    let town = Town::up(arguments.keep)?;
    let told = story::tell(&town, &mut claims);
    claims.print();
    if let Some(file) = &arguments.json {
        claims.write(file)?;
    }
    told?;
    if !claims.all_hold() {
        bail!("not everything that was claimed happened; lbd's log is {}", town::log().display());
    }
    if arguments.keep {
        println!("\n{}", town::tour());
    }
    Ok(())
}

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// From now on Ctrl-C makes [`go_on`] fail instead of ending the process, so that the town is taken down.
fn interrupt_politely() -> Result<()> {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    // Threads inherit the mask. Children do not: the standard library clears theirs.
    signals.thread_block()?;
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            INTERRUPTED.store(true, Ordering::Relaxed);
        }
    });
    Ok(())
}

/// Fails after Ctrl-C.
fn go_on() -> Result<()> {
    ensure!(!INTERRUPTED.load(Ordering::Relaxed), "interrupted");
    Ok(())
}
