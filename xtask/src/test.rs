//! `cargo xtask test`: sets up, builds, and runs every test: those of the host, and, as root, those that load the BPF
//! programs and build network namespaces. It adds nothing to cargo's own result lines but the sum.

use crate::build::{self, HOST, Profile};
use crate::kernel::{self, Extent};
use crate::setup::Need;
use crate::{toolchain, workspace};
use anyhow::{Context, Result, bail};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Run on other kernels, each in a virtual machine: Debian's newest of a series (6.1, 6.12; 6.1-generic is the one with every
    /// driver), a vmlinuz with its modules, or `here` for the kernel that runs here; several with commas
    #[arg(long, value_name = "KERNEL", value_delimiter = ',', conflicts_with = "host_only")]
    kernel: Vec<String>,
    /// On those kernels, only load every program and start lbd with every rule
    #[arg(long, requires = "kernel", conflicts_with = "filter")]
    quick: bool,
    /// Leave out the tests that need root: packets and namespaces
    #[arg(long)]
    host_only: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if !arguments.host_only && !workspace::is_root() {
        bail!(
            "the packet and namespace tests load BPF programs and need root: run `sudo env \"PATH=$PATH\" cargo xtask \
             test`, or `cargo xtask test --host-only` for the rest"
        );
    }
    if !arguments.kernel.is_empty() {
        let extent = match &arguments.filter {
            _ if arguments.quick => Extent::Load,
            Some(filter) => Extent::Tests(filter.clone()),
            None => Extent::All,
        };
        return kernel::run(&arguments.kernel, &extent);
    }
    let mut cargo = toolchain::host_cargo();
    // All test programs run even when one fails, to show every failure at once.
    cargo.args(["test", "--no-fail-fast"]).args(HOST);
    if arguments.host_only {
        build::build(&[], Profile::Debug)?;
        cargo.args(["--exclude", "tests"]);
    } else {
        build::build(&[Need::Run, Need::Peers, Need::Guests], Profile::Debug)?;
        build::build_faulty()?;
        build::build_for(build::Arch::other())?;
    }
    cargo.arg("--").args(arguments.filter.iter());
    if !cargo.status().context("cannot start cargo")?.success() {
        bail!("the tests failed");
    }
    println!("\nevery test passed{}", if arguments.host_only { " (host tests alone)" } else { "" });
    Ok(())
}
