//! The facts about this machine that setup decides on. Gathering them changes nothing and takes a moment.

use super::library::Library;
use super::plan::{self, COMMANDS};
use crate::toolchain::{self, Compiler, TARGET, Toolchain};
use crate::{steps, workspace};
use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::UNIX_EPOCH;

/// Everything setup knows. Plain data, so that plan.rs can be tested with machines that are not at hand.
#[derive(Clone, Debug, Default)]
pub(crate) struct Machine {
    pub(crate) root: bool,
    pub(crate) rustup: bool,
    /// The host's cargo has `fmt` and `clippy`.
    pub(crate) host_lints: bool,
    /// Commands of plan.rs that are not on the PATH.
    pub(crate) absent_commands: BTreeSet<&'static str>,
    /// Those of which something is missing, or is of another version.
    pub(crate) absent_libraries: BTreeSet<Library>,
    /// rustup's nightly, when it can compile for BPF at all: with rust-src.
    pub(crate) nightly: Option<Nightly>,
    pub(crate) debian: Debian,
    /// There is a bpf-linker, tried or not.
    pub(crate) linker_seen: bool,
    /// Versions of LLVM whose `llvm-config` and libraries can build bpf-linker.
    pub(crate) llvm_dev: BTreeSet<u32>,
    /// Asked only when something is missing, for it takes a while.
    pub(crate) apt: Option<Apt>,
    /// Set by install.rs: package lists are as new as they get.
    pub(crate) apt_updated: bool,
    /// Set by install.rs: the versions of LLVM that bpf-linker was built with.
    pub(crate) linkers_built: BTreeSet<u32>,
    /// Set by install.rs: rustup was asked for the nightly and could not deliver it.
    pub(crate) rustup_failed: bool,
}

/// A nightly toolchain of rustup's that has rust-src.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nightly {
    pub(crate) directory: PathBuf,
    pub(crate) clippy: bool,
    /// The LLVM that its rustc emits bitcode of.
    pub(crate) llvm: u32,
    /// One that was seen to link what this compiler makes.
    pub(crate) linker: Option<PathBuf>,
}

/// Debian's packaged compiler, as far as it is there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Debian {
    /// Of /usr/bin/rustc, when it is new enough for this workspace.
    pub(crate) rustc: bool,
    pub(crate) cargo: bool,
    /// `core` for BPF.
    pub(crate) core: bool,
    pub(crate) clippy: bool,
    /// Zero while there is no rustc.
    pub(crate) llvm: u32,
    /// One that was seen to link what this compiler makes.
    pub(crate) linker: Option<PathBuf>,
}

impl Debian {
    pub(crate) fn compiles(&self) -> bool {
        self.rustc && self.cargo && self.core
    }
}

/// What apt offers for the packages of plan.rs: those with a candidate, `(major, minor)` of rustc-web's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Apt {
    pub(crate) offered: BTreeSet<&'static str>,
    pub(crate) rustc: Option<(u32, u32)>,
}

/// The oldest Rust that builds this workspace: `rust-version` in Cargo.toml.
pub(crate) const OLDEST_RUST: (u32, u32) = (1, 88);

impl Machine {
    pub(crate) fn look() -> Result<Self> {
        let mut machine = Self::default();
        machine.look_again()?;
        Ok(machine)
    }

    /// Gathers all facts anew, except what install.rs has tried.
    pub(crate) fn look_again(&mut self) -> Result<()> {
        let nightly = look_for_nightly()?;
        let commands = COMMANDS.iter().map(|(command, ..)| *command);
        let mut absent_libraries = BTreeSet::new();
        for library in Library::ALL {
            if !library.installed()? {
                absent_libraries.insert(library);
            }
        }
        *self = Self {
            root: workspace::is_root(),
            rustup: workspace::command("rustup").is_some(),
            host_lints: ["fmt", "clippy"].iter().all(|verb| {
                let mut cargo = toolchain::host_cargo();
                read(cargo.args([verb, "--version"])).is_some()
            }),
            absent_commands: commands.filter(|command| !has(command)).collect(),
            absent_libraries,
            linker_seen: !linkers().is_empty(),
            llvm_dev: (18..40).filter(|version| has_llvm_dev(*version)).collect(),
            debian: look_for_debian(nightly.as_ref().is_none_or(|nightly| nightly.linker.is_none()))?,
            nightly,
            apt: None,
            apt_updated: self.apt_updated,
            linkers_built: std::mem::take(&mut self.linkers_built),
            rustup_failed: self.rustup_failed,
        };
        Ok(())
    }

    pub(crate) fn ask_apt(&mut self) {
        self.apt = look_at_apt();
    }
}

/// Whether there is that command of plan.rs.
fn has(command: &str) -> bool {
    match command.strip_prefix("python3 -m ") {
        Some(module) => read(Command::new("python3").args(["-m", module, "--version"])).is_some(),
        None => workspace::command(command).is_some(),
    }
}

/// With `in_need` a linker is tried: trying takes seconds, and is idle when the nightly has one.
fn look_for_debian(in_need: bool) -> Result<Debian> {
    let is_file = |path: &str| Path::new(path).is_file();
    let Some(version) = Version::of(&Compiler::Debian) else { return Ok(Debian::default()) };
    let core = fs::read_dir(format!("/usr/lib/rustlib/{TARGET}/lib")).is_ok_and(|mut files| {
        files.any(|file| file.is_ok_and(|file| file.file_name().to_string_lossy().starts_with("libcore-")))
    });
    let mut debian = Debian {
        rustc: version.rust >= OLDEST_RUST,
        cargo: is_file("/usr/bin/cargo"),
        core,
        clippy: is_file("/usr/bin/cargo-clippy") && is_file("/usr/bin/clippy-driver"),
        llvm: version.llvm,
        linker: None,
    };
    if in_need && debian.compiles() {
        debian.linker = look_for_linker(&Compiler::Debian, &version)?;
    }
    Ok(debian)
}

fn look_for_nightly() -> Result<Option<Nightly>> {
    // `rustup toolchain list` never installs anything; `cargo +nightly` may.
    let Some(list) = read(Command::new("rustup").args(["toolchain", "list", "-v"])) else { return Ok(None) };
    let Some(directory) = list.lines().filter(|line| line.starts_with("nightly-")).find_map(|line| {
        let path = line.split_whitespace().last()?;
        let path = path.strip_prefix("~/").map_or_else(|| path.into(), |rest| home().join(rest));
        path.join("lib/rustlib/src/rust/library/core").is_dir().then_some(path)
    }) else {
        return Ok(None);
    };
    let compiler = Compiler::Nightly(directory.clone());
    let Some(version) = Version::of(&compiler) else { return Ok(None) };
    let linker = look_for_linker(&compiler, &version)?;
    Ok(Some(Nightly {
        clippy: directory.join("bin/cargo-clippy").is_file(),
        llvm: version.llvm,
        linker,
        directory,
    }))
}

fn home() -> PathBuf {
    std::env::var_os("HOME").map_or_else(|| "/root".into(), PathBuf::from)
}

/// What `rustc -vV` says.
struct Version {
    text: String,
    rust: (u32, u32),
    llvm: u32,
}

impl Version {
    fn of(compiler: &Compiler) -> Option<Self> {
        let text = read(compiler.rustc().arg("-vV"))?;
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name));
        let rust = two_numbers(field("release: ")?)?;
        let llvm = two_numbers(field("LLVM version: ")?)?.0;
        Some(Self { rust, llvm, text })
    }
}

/// Release of the running kernel; empty when it does not tell.
pub(crate) fn kernel() -> String {
    nix::sys::utsname::uname()
        .map_or_else(|_| String::new(), |system| system.release().to_string_lossy().into())
}

/// "1.96.0+dfsg1" → (1, 96).
pub(super) fn two_numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

/// The checkout's own bpf-linker, then the one on the PATH.
fn linkers() -> Vec<PathBuf> {
    let own = workspace::tools().join("bin/bpf-linker");
    own.is_file().then_some(own).into_iter().chain(workspace::command("bpf-linker")).collect()
}

/// The first bpf-linker that links what this compiler makes.
fn look_for_linker(compiler: &Compiler, version: &Version) -> Result<Option<PathBuf>> {
    for linker in linkers() {
        let toolchain = Toolchain { compiler: compiler.clone(), linker };
        if links(&toolchain, version)? {
            return Ok(Some(toolchain.linker));
        }
    }
    Ok(None)
}

/// Whether compiler and linker get along: a linker whose LLVM is older than the compiler's cannot read its bitcode, and
/// none says so beforehand. Trying takes seconds, so the outcome is remembered for this very pair.
fn links(toolchain: &Toolchain, version: &Version) -> Result<bool> {
    let linker = &toolchain.linker;
    let file = linker.metadata().with_context(|| format!("cannot read {}", linker.display()))?;
    let changed = file.modified()?.duration_since(UNIX_EPOCH).map_or(0, |age| age.as_nanos());
    let pair = format!("{}\n{} {} {changed}\n", version.text, linker.display(), file.len());
    let directory = workspace::tools().join("trial");
    let remembered = directory.join("linked");
    let known = fs::read_to_string(&remembered).unwrap_or_default();
    if known.contains(&pair) {
        return Ok(true);
    }

    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    fs::write(directory.join("Cargo.toml"), TRIAL_MANIFEST)?;
    fs::write(directory.join("trial.rs"), TRIAL_PROGRAM)?;
    let mut cargo = toolchain.build(std::env::consts::ARCH);
    cargo.current_dir(&directory).env("CARGO_TARGET_DIR", directory.join("target"));
    let linked = steps::run(&format!("trying {}", linker.display()), &mut cargo).is_ok();
    if linked {
        fs::write(remembered, known + &pair)?;
    }
    Ok(linked)
}

const TRIAL_MANIFEST: &str = r#"[package]
name = "trial"
edition = "2024"

[[bin]]
name = "trial"
path = "trial.rs"

[workspace]
"#;

/// The smallest XDP program there is.
const TRIAL_PROGRAM: &str = r#"#![no_std]
#![no_main]

#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
pub extern "C" fn trial() -> u32 {
    2
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}
"#;

/// bpf-linker's build asks `llvm-config` for all components, and Polly's library is one that has its own package.
fn has_llvm_dev(version: u32) -> bool {
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{version}"));
    prefix.join("bin/llvm-config").is_file()
        && prefix.join("include/llvm-c").is_dir()
        && prefix.join("lib/libPolly.a").is_file()
}

/// What apt could install. Nothing where there is no apt.
fn look_at_apt() -> Option<Apt> {
    workspace::command("apt-get")?;
    let packages = plan::packages();
    let policy = read(Command::new("apt-cache").arg("policy").args(&packages)).unwrap_or_default();
    let mut apt = Apt::default();
    let mut package = "";
    for line in policy.lines() {
        if let Some(candidate) = line.trim_start().strip_prefix("Candidate: ") {
            if let Some(known) =
                packages.iter().find(|known| **known == package).filter(|_| candidate != "(none)")
            {
                apt.offered.insert(known);
                if *known == "rustc-web" {
                    apt.rustc = two_numbers(candidate);
                }
            }
        } else if let Some(name) = line.strip_suffix(':').filter(|name| !name.starts_with(' ')) {
            package = name;
        }
    }
    Some(apt)
}

/// A command's output, if it succeeds.
fn read(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    String::from_utf8(output.stdout).ok()
}
