//! `cargo xtask setup`: looks at the machine, names what is missing, installs just that, and looks again.
//! machine.rs gathers facts, plan.rs decides on them, install.rs and library.rs act.

mod install;
mod library;
mod machine;
mod plan;

use crate::toolchain::{Compiler, Toolchain};
use anyhow::{Result, bail};
use machine::Machine;
use plan::Plan;

/// What a verb needs beside the means to build.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Need {
    /// Namespaces, network cards and an HTTP client: what runs lbd and the demonstration.
    Run,
    /// Servers that tests and torture put beside the balancer, and simple ones behind it.
    Peers,
    /// Applications that tests put behind the balancer, and browsers and other clients in front of it.
    Guests,
    /// Virtual machines with other kernels.
    Kernels,
    /// A C++ compiler, for libFuzzer.
    Fuzzer,
    /// Clippy and rustfmt, for the host and for BPF.
    Lint,
}

/// Looking, acting and looking again ends: after this many turns something does not do what it says.
const TURNS: usize = 5;

pub(crate) fn run() -> Result<()> {
    let toolchain = ensure(&[Need::Run, Need::Peers, Need::Guests, Need::Kernels, Need::Fuzzer, Need::Lint])?;
    let compiler = match &toolchain.compiler {
        Compiler::Nightly(directory) => format!("rustup's nightly in {}", directory.display()),
        Compiler::Debian => "Debian's rustc".to_owned(),
    };
    println!("nothing is missing: BPF is built by {compiler} and linked by {}", toolchain.linker.display());
    if let Some(warning) = plan::warning(&machine::kernel()) {
        eprintln!("warning: {warning}");
    }
    Ok(())
}

/// Sees to it that this machine can build, and do what is in `needs`. Silent when nothing is missing.
pub(crate) fn ensure(needs: &[Need]) -> Result<Toolchain> {
    let mut machine = Machine::look()?;
    for _ in 0..TURNS {
        if let Plan::Ready(toolchain) = plan::decide(&machine, needs) {
            return Ok(toolchain);
        }
        machine.ask_apt();
        match plan::decide(&machine, needs) {
            Plan::Ready(toolchain) => return Ok(toolchain),
            Plan::Stuck(advice) => bail!("{advice}"),
            Plan::Do { missing, steps } => {
                for line in missing {
                    eprintln!("missing: {line}");
                }
                for step in &steps {
                    install::perform(step, &mut machine)?;
                }
                machine.look_again()?;
            }
        }
    }
    bail!("what was installed is still not found; please look into the logs under target/xtask")
}
