//! `cargo xtask build`: the BPF objects into target/bpf, then lbd and lbctl, with the object beside them.

use crate::setup::{self, Need};
use crate::toolchain::{self, TARGET};
use crate::{steps, workspace};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};

/// The packages of all debug builds, as cargo's arguments: whatever runs on this host. Always all of them, because with
/// another choice cargo takes other features of what they share, and compiles most of it again.
pub(crate) const HOST: [&str; 3] = ["--workspace", "--exclude", "lb-ebpf"];

/// The programs of lb-ebpf.
const OBJECTS: [&str; 2] = ["lb", "testbed"];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Build lbd and lbctl with optimisations (the BPF objects always are)
    #[arg(long)]
    release: bool,
    /// Build the BPF objects alone, for kernels of this architecture, into target/bpf/ARCH
    #[arg(long, conflicts_with = "release")]
    arch: Option<Arch>,
}

/// An architecture whose kernels the objects can be built for.
#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arch {
    #[value(name = "x86_64")]
    X86,
    #[value(name = "aarch64")]
    Arm,
}

impl Arch {
    fn name(self) -> &'static str {
        match self {
            Self::X86 => "x86_64",
            Self::Arm => "aarch64",
        }
    }

    /// The one that this host has not.
    pub(crate) fn other() -> Self {
        if std::env::consts::ARCH == Self::Arm.name() { Self::X86 } else { Self::Arm }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    Debug,
    Release,
}

impl Profile {
    /// Where cargo puts what it built with this profile.
    pub(crate) fn directory(self) -> PathBuf {
        workspace::target().join(if self == Self::Release { "release" } else { "debug" })
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    if let Some(arch) = arguments.arch {
        println!("built {}", shown(&build_for(arch)?));
        return Ok(());
    }
    let profile = if arguments.release { Profile::Release } else { Profile::Debug };
    build(&[], profile)?;
    println!(
        "built {}",
        ["lbd", "lbctl", "lb.bpf.o"].map(|name| shown(&profile.directory().join(name))).join(", ")
    );
    Ok(())
}

/// Sets up what building takes, and what else is in `needs`, and builds.
pub(crate) fn build(needs: &[Need], profile: Profile) -> Result<()> {
    build_objects(needs)?;
    place(&workspace::bpf_objects().join("lb"), &profile.directory().join("lb.bpf.o"))?;

    let mut cargo = toolchain::host_cargo();
    cargo.arg("build");
    match profile {
        Profile::Release => cargo.args(["--release", "--package", "lb-userspace"]),
        // Whole-system tests run the example applications, too.
        Profile::Debug => {
            let (bins, examples) = (["lbd", "lbctl"], ["shop", "tower_shop"]);
            cargo.args(HOST);
            cargo.args(bins.into_iter().flat_map(|name| ["--bin", name]));
            cargo.args(examples.into_iter().flat_map(|name| ["--example", name]))
        }
    };
    steps::show(&mut cargo)
}

/// Builds, beside what [`build`] has built for debugging, the lbd in which promises can be broken.
pub(crate) fn build_faulty() -> Result<()> {
    let faulty = ["--features", "lb-userspace/faults", "--bin", "lbd-faulty"];
    steps::show(toolchain::host_cargo().arg("build").args(HOST).args(faulty))
}

/// Sets up what building takes, and what else is in `needs`, and builds the BPF objects alone.
pub(crate) fn build_objects(needs: &[Need]) -> Result<()> {
    objects(needs, std::env::consts::ARCH, &workspace::bpf_objects())
}

/// The same for kernels of an architecture. Returns the directory of the objects.
pub(crate) fn build_for(arch: Arch) -> Result<PathBuf> {
    let directory = workspace::bpf_objects().join(arch.name());
    objects(&[], arch.name(), &directory)?;
    Ok(directory)
}

fn objects(needs: &[Need], arch: &str, to: &Path) -> Result<()> {
    let toolchain = setup::ensure(needs)?;
    let mut cargo = toolchain.build(arch);
    steps::show(cargo.args(["--package", "lb-ebpf"]))?;

    let built = toolchain::directory(arch).join(TARGET).join("release");
    for object in OBJECTS {
        place(&built.join(object), &to.join(object))?;
    }
    Ok(())
}

/// Copies a file unless it is there already, so that what depends on it stays fresh.
fn place(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let directory = to.parent().expect("a file in the target directory has a parent");
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    // Renamed into place: a daemon that starts meanwhile reads the old object or the new one, never half of it.
    let beside = to.with_extension("new");
    fs::write(&beside, new).with_context(|| format!("cannot write {}", beside.display()))?;
    fs::rename(&beside, to).with_context(|| format!("cannot write {}", to.display()))
}

/// A path as seen from the checkout.
fn shown(path: &Path) -> String {
    path.strip_prefix(workspace::root()).unwrap_or(path).display().to_string()
}
