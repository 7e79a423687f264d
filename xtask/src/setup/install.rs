//! Performs the steps of a plan, each as one line.

use super::machine::Machine;
use super::plan::{BPF_LINKER, Step};
use crate::{steps, toolchain, workspace};
use anyhow::{Context, Result};
use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

pub(crate) fn perform(step: &Step, machine: &mut Machine) -> Result<()> {
    match step {
        Step::AptUpdate => {
            machine.apt_updated = true;
            steps::run("apt-get update", apt().arg("update"))
        }
        Step::AptInstall(packages) => {
            let installed = install(packages);
            if installed.is_err() && !machine.apt_updated {
                // Old lists name versions that the mirror no longer has.
                perform(&Step::AptUpdate, machine)?;
                return install(packages);
            }
            installed
        }
        Step::BuildLinker(llvm) => {
            machine.linkers_built.insert(*llvm);
            build_linker(*llvm)
        }
        Step::Rustup { toolchain, components } => {
            let mut rustup = Command::new("rustup");
            rustup.args(["toolchain", "install", toolchain, "--profile", "minimal", "--no-self-update"]);
            for component in *components {
                rustup.args(["--component", component]);
            }
            let name = format!("rustup: {} for {toolchain}", components.join(" and "));
            if let Err(error) = steps::run(&name, &mut rustup) {
                eprintln!("{error:#}");
                machine.rustup_failed = true;
            }
            Ok(())
        }
        Step::Library(library) => library.install(),
    }
}

fn apt() -> Command {
    let mut apt = Command::new("apt-get");
    // Wait for another apt to finish rather than fail.
    apt.env("DEBIAN_FRONTEND", "noninteractive").args(["-o", "DPkg::Lock::Timeout=300"]);
    apt
}

/// Packages that come with a service, and its name. The tests start servers of their own; Debian's would take their
/// ports at the next boot.
const SERVICES: [(&str, &str); 3] =
    [("nginx-light", "nginx"), ("redis-server", "redis-server"), ("openssh-server", "ssh")];

fn install(packages: &[&str]) -> Result<()> {
    let services: Vec<_> = SERVICES.iter().filter(|(package, _)| packages.contains(package)).collect();
    let _asleep = if services.is_empty() { None } else { NoServices::begin()? };
    let mut apt = apt();
    // Nothing of the user's is removed for us: where packages conflict, apt says so and stops.
    apt.args(["install", "--yes", "--no-install-recommends", "--no-remove"]).args(packages);
    steps::run(&format!("apt-get install {}", packages.join(" ")), &mut apt)?;
    for (_, service) in services {
        let mut disable = Command::new("update-rc.d");
        let quiet = disable.args([service, "disable"]).stdout(Stdio::null()).stderr(Stdio::null());
        quiet.status().context("cannot start update-rc.d")?;
    }
    Ok(())
}

/// While it lives, packages do not start their services: Debian's policy-rc.d says no.
struct NoServices;

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    /// Nothing where the machine has a policy already: that one stays in charge.
    fn begin() -> Result<Option<Self>> {
        if Path::new(POLICY).exists() {
            return Ok(None);
        }
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o755)
            .open(POLICY)
            .with_context(|| format!("cannot write {POLICY}"))?;
        let policy = Self;
        file.write_all(
            b"#!/bin/sh\n# Written by cargo xtask setup while it installs; safe to remove.\nexit 101\n",
        )?;
        Ok(Some(policy))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        // Nothing better can be done with an error here than to go on.
        let _ = fs::remove_file(POLICY);
    }
}

fn build_linker(llvm: u32) -> Result<()> {
    let mut cargo = toolchain::host_cargo();
    cargo
        .env("LLVM_PREFIX", format!("/usr/lib/llvm-{llvm}"))
        .args([
            "install",
            "bpf-linker",
            "--locked",
            "--force",
            "--version",
            BPF_LINKER,
            "--no-default-features",
        ])
        .arg(format!("--features=llvm-{llvm}"))
        .arg("--root")
        .arg(workspace::tools())
        .arg("--target-dir")
        .arg(workspace::tools().join("build"));
    steps::run(&format!("cargo install bpf-linker {BPF_LINKER} with LLVM {llvm}"), &mut cargo)?;
    // Hundreds of megabytes that nobody needs again.
    fs::remove_dir_all(workspace::tools().join("build")).context("cannot remove what built bpf-linker")
}
