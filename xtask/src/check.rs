//! `cargo xtask check`: formatting, and clippy with warnings denied on every crate, the eBPF one on its own target.

use crate::setup::{self, Need};
use crate::{steps, toolchain};
use anyhow::Result;

pub(crate) fn run() -> Result<()> {
    let bpf = setup::ensure(&[Need::Lint])?;
    steps::show(toolchain::host_cargo().args(["fmt", "--all", "--check"]))?;
    let mut clippy = toolchain::host_cargo();
    clippy.args(["clippy", "--workspace", "--exclude", "lb-ebpf", "--all-targets", "--", "-D", "warnings"]);
    steps::show(&mut clippy)?;
    steps::show(bpf.clippy().args(["--package", "lb-ebpf", "--package", "lb-common", "--", "-D", "warnings"]))
}
