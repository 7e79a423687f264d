//! `cargo xtask check`: formatting, and clippy with warnings denied on every crate, the eBPF one on its own target, and
//! the library with each feature alone, as applications take it.

use crate::build::HOST;
use crate::setup::{self, Need};
use crate::{steps, toolchain};
use anyhow::Result;

/// Features of lb-userspace that an application may take, alone; the first is none.
const FEATURES: [&str; 7] = ["", "sled", "redis", "web", "axum", "tower-sessions", "server"];

pub(crate) fn run() -> Result<()> {
    let bpf = setup::ensure(&[Need::Lint])?;
    steps::show(toolchain::host_cargo().args(["fmt", "--all", "--check"]))?;
    let mut clippy = toolchain::host_cargo();
    clippy.arg("clippy").args(HOST).args(["--all-targets", "--test", "machine", "--", "-D", "warnings"]);
    steps::show(&mut clippy)?;
    for feature in FEATURES {
        let mut clippy = toolchain::host_cargo();
        clippy.args(["clippy", "--quiet", "--package", "lb-userspace", "--lib", "--no-default-features"]);
        clippy.args(["--features", feature, "--", "-D", "warnings"]);
        let name = if feature.is_empty() { "no feature" } else { feature };
        steps::run(&format!("the library with {name} alone"), &mut clippy)?;
    }
    steps::show(bpf.clippy().args(["--package", "lb-ebpf", "--package", "lb-common", "--", "-D", "warnings"]))
}
