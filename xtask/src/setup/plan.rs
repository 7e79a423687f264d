//! What to do about a machine: facts in, plan out. Pure; the table in plan/tests.rs shows what it decides for whom.

use super::Need;
use super::library::Library;
use super::machine::{Apt, Debian, Machine, Nightly, OLDEST_RUST, two_numbers};
use crate::toolchain::{Compiler, Toolchain};

/// Commands that verbs run, the Debian package of each, and who needs it. `python3 -m X` asks whether Python has that
/// module.
pub(crate) const COMMANDS: [(&str, &str, Need); 22] = [
    ("ip", "iproute2", Need::Run),
    ("ethtool", "ethtool", Need::Run),
    ("curl", "curl", Need::Run),
    ("nginx", "nginx-light", Need::Peers),
    ("redis-server", "redis-server", Need::Peers),
    ("openssl", "openssl", Need::Peers),
    ("mkfs.ext4", "e2fsprogs", Need::Peers),
    ("php-cgi", "php-cgi", Need::Guests),
    ("node", "nodejs", Need::Guests),
    ("npm", "npm", Need::Guests),
    ("python3", "python3", Need::Guests),
    ("python3 -m ensurepip", "python3-venv", Need::Guests),
    ("sshd", "openssh-server", Need::Guests),
    ("ssh", "openssh-client", Need::Guests),
    ("wget", "wget", Need::Guests),
    ("chromium", "chromium", Need::Guests),
    ("qemu-system-x86_64", "qemu-system-x86", Need::Kernels),
    ("depmod", "kmod", Need::Kernels),
    ("strip", "binutils", Need::Kernels),
    ("ping", "iputils-ping", Need::Kernels),
    ("ipvsadm", "ipvsadm", Need::Kernels),
    ("c++", "g++", Need::Fuzzer),
];

/// The linker's version, and the versions of LLVM that it can be built with, with Debian's packages of each. The LLVM has
/// to be at least the compiler's.
pub(crate) const BPF_LINKER: &str = "0.13.0";
const LLVMS: [(u32, [&str; 2]); 3] = [
    (21, ["llvm-21-dev", "libpolly-21-dev"]),
    (22, ["llvm-22-dev", "libpolly-22-dev"]),
    (23, ["llvm-23-dev", "libpolly-23-dev"]),
];
/// The LLVM of Debian's rustc-web, for the time before it is installed.
const DEBIAN_LLVM: u32 = 22;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Plan {
    Ready(Toolchain),
    /// What is missing, with what will be installed for it; and the steps that do so.
    Do {
        missing: Vec<String>,
        steps: Vec<Step>,
    },
    /// Setup cannot help: what the user can do.
    Stuck(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    AptUpdate,
    AptInstall(Vec<&'static str>),
    /// Build bpf-linker with this LLVM.
    BuildLinker(u32),
    /// Bring a rustup toolchain to have these components.
    Rustup {
        toolchain: &'static str,
        components: &'static [&'static str],
    },
    /// Bring a library to what its lock file says.
    Library(Library),
}

/// Every package that a plan may name.
pub(crate) fn packages() -> Vec<&'static str> {
    let compiler = ["rustc-web", "cargo-web", "libstd-rust-web-dev-bpf", "rust-web-clippy"];
    let llvm = LLVMS.iter().flat_map(|(_, packages)| *packages);
    compiler.into_iter().chain(llvm).chain(COMMANDS.map(|(_, package, _)| package)).collect()
}

pub(crate) fn decide(machine: &Machine, needs: &[Need]) -> Plan {
    let mut shopping = Shopping::default();
    let toolchain = match route(machine) {
        Ok(Route::Nightly(nightly)) => shopping.for_nightly(machine, nightly, needs),
        Ok(Route::Debian(debian)) => shopping.for_debian(machine, debian, needs),
        Err(plan) => return plan,
    };
    for (command, package, need) in COMMANDS {
        if needs.contains(&need) && machine.absent_commands.contains(command) {
            shopping.packages(command, &[package]);
        }
    }
    if needs.contains(&Need::Guests) {
        machine.absent_libraries.iter().for_each(|library| shopping.library(*library));
    }
    if needs.contains(&Need::Lint) && !machine.host_lints {
        shopping.components("rustfmt and clippy", "stable", &["rustfmt", "clippy"]);
    }
    match toolchain {
        Some(toolchain) if shopping.missing.is_empty() => Plan::Ready(toolchain),
        _ => shopping.plan(machine),
    }
}

/// The oldest Linux that tests run: lbd says the same at start.
const OLDEST_KERNEL: (u32, u32) = (6, 1);

/// What there is to say about the running kernel. It is not in the way of building.
pub(crate) fn warning(kernel: &str) -> Option<String> {
    (two_numbers(kernel)? < OLDEST_KERNEL).then(|| {
        format!(
            "this machine's kernel {kernel} is older than Linux 6.1, the oldest that is tested: it may refuse the programs"
        )
    })
}

enum Route<'a> {
    Nightly(&'a Nightly),
    Debian(&'a Debian),
}

/// The compiler for BPF that this machine has, else the one that it can get.
fn route(machine: &Machine) -> Result<Route<'_>, Plan> {
    // A nightly that not even a linker of its own LLVM goes with is broken: then Debian's compiler may do.
    let works =
        |nightly: &&Nightly| nightly.linker.is_some() || !machine.linkers_built.contains(&nightly.llvm);
    if let Some(nightly) = machine.nightly.as_ref().filter(works) {
        return Ok(Route::Nightly(nightly));
    }
    if machine.debian.compiles() {
        return Ok(Route::Debian(&machine.debian));
    }
    let can_rustup = machine.rustup && !machine.rustup_failed && machine.nightly.is_none();
    if let Some(apt) = &machine.apt {
        let offered = apt.rustc.is_some_and(|version| version >= OLDEST_RUST)
            && apt.offered.contains("libstd-rust-web-dev-bpf");
        // Who is not root had better take the way that needs no root.
        if offered && (machine.root || !can_rustup) {
            return Ok(Route::Debian(&machine.debian));
        }
        if !offered && !machine.apt_updated && machine.root {
            return Err(update());
        }
    }
    if can_rustup {
        return Err(Plan::Do {
            missing: vec!["a compiler for BPF → rustup's nightly with rust-src and clippy".to_owned()],
            steps: vec![Step::Rustup { toolchain: "nightly", components: &["rust-src", "clippy"] }],
        });
    }
    Err(Plan::Stuck(
        "this machine has no Rust compiler for BPF, and neither way to one is open here. Install either\n  \
         - rustup (https://rustup.rs) with `rustup toolchain install nightly --component rust-src`, and bpf-linker \
         (https://github.com/aya-rs/bpf-linker#installation), or\n  \
         - on Debian 12 with its security updates: the packages rustc-web, cargo-web, libstd-rust-web-dev-bpf, \
         llvm-22-dev and libpolly-22-dev\nand run this again"
            .to_owned(),
    ))
}

fn update() -> Plan {
    Plan::Do {
        missing: vec!["a current list of packages → apt-get update".to_owned()],
        steps: vec![Step::AptUpdate],
    }
}

/// What is missing, and what will be done for it.
#[derive(Default)]
struct Shopping {
    missing: Vec<String>,
    packages: Vec<&'static str>,
    steps: Vec<Step>,
    /// What only the user can install.
    advice: Option<String>,
}

impl Shopping {
    fn for_nightly(&mut self, machine: &Machine, nightly: &Nightly, needs: &[Need]) -> Option<Toolchain> {
        if needs.contains(&Need::Lint) && !nightly.clippy {
            self.components("clippy for BPF", "nightly", &["clippy"]);
        }
        let Some(linker) = &nightly.linker else {
            self.linker(machine, nightly.llvm);
            return None;
        };
        Some(Toolchain { compiler: Compiler::Nightly(nightly.directory.clone()), linker: linker.clone() })
    }

    fn for_debian(&mut self, machine: &Machine, debian: &Debian, needs: &[Need]) -> Option<Toolchain> {
        let parts = [
            (debian.rustc, "rustc-web"),
            (debian.cargo, "cargo-web"),
            (debian.core, "libstd-rust-web-dev-bpf"),
        ];
        let absent: Vec<_> =
            parts.into_iter().filter(|(there, _)| !there).map(|(_, package)| package).collect();
        if !absent.is_empty() {
            self.packages("a compiler for BPF", &absent);
        }
        if needs.contains(&Need::Lint) && !debian.clippy {
            self.packages("clippy for BPF", &["rust-web-clippy"]);
        }
        match &debian.linker {
            Some(linker) => Some(Toolchain { compiler: Compiler::Debian, linker: linker.clone() }),
            // A linker that is there can be tried only after its compiler has come.
            None if machine.linker_seen && !debian.compiles() => None,
            None => {
                self.linker(machine, if debian.rustc { debian.llvm } else { DEBIAN_LLVM });
                None
            }
        }
    }

    fn linker(&mut self, machine: &Machine, llvm: u32) {
        let what = "a bpf-linker that goes with the compiler";
        let how =
            format!("bpf-linker {BPF_LINKER} from crates.io, built with LLVM {llvm}, into target/tools");
        if machine.linkers_built.contains(&llvm) {
            self.missing.push(what.to_owned());
            self.advice = Some(format!(
                "bpf-linker was built with LLVM {llvm} and still does not link what the compiler makes; why is in \
                 target/xtask/trying-*.log"
            ));
            return;
        }
        let packages = LLVMS.iter().find(|(version, _)| *version == llvm).map(|(_, packages)| packages);
        match packages {
            Some(_) if machine.llvm_dev.contains(&llvm) => self.missing.push(format!("{what} → {how}")),
            Some(packages) if machine.apt.is_some() => {
                self.packages.extend(packages);
                self.missing.push(format!("{what} → Debian packages {}, then {how}", packages.join(" ")));
            }
            _ => {
                self.missing.push(what.to_owned());
                self.advice = Some(format!(
                    "please install bpf-linker with LLVM {llvm} or newer and see that it is on the PATH: \
                     https://github.com/aya-rs/bpf-linker#installation"
                ));
            }
        }
        self.steps.push(Step::BuildLinker(llvm));
    }

    fn packages(&mut self, what: &str, packages: &[&'static str]) {
        let plural = if packages.len() == 1 { "" } else { "s" };
        self.missing.push(format!("{what} → Debian package{plural} {}", packages.join(" ")));
        self.packages.extend(packages);
    }

    fn library(&mut self, library: Library) {
        let (contents, lock, name) = (library.contents(), library.lock(), library.name());
        self.missing.push(format!("{contents} → as {lock} says, into target/tools/{name}"));
        self.steps.push(Step::Library(library));
    }

    fn components(&mut self, what: &str, toolchain: &'static str, components: &'static [&'static str]) {
        self.missing
            .push(format!("{what} → rustup component add --toolchain {toolchain} {}", components.join(" ")));
        self.steps.push(Step::Rustup { toolchain, components });
    }

    fn plan(self, machine: &Machine) -> Plan {
        if let Some(advice) = self.advice {
            return Plan::Stuck(format!("{} is missing: {advice}", self.missing.join("; ")));
        }
        let rustup = self.steps.iter().any(|step| matches!(step, Step::Rustup { .. }));
        if rustup && (!machine.rustup || machine.rustup_failed) {
            return Plan::Stuck(format!(
                "missing: {}\nbut rustup cannot be used here",
                self.missing.join("\nmissing: ")
            ));
        }
        let mut steps = self.steps;
        if !self.packages.is_empty() {
            let Some(apt) = &machine.apt else {
                return Plan::Stuck(format!(
                    "missing: {}\nThis is not a Debian system: please install these in its own way (the names are \
                     Debian's) and run this again",
                    self.missing.join("\nmissing: ")
                ));
            };
            if !machine.root {
                return Plan::Stuck(format!(
                    "missing: {}\nInstalling packages takes root. Run `sudo apt-get install --no-install-recommends \
                     {}`, then this again",
                    self.missing.join("\nmissing: "),
                    self.packages.join(" ")
                ));
            }
            if let Some(stuck) = not_offered(&self.packages, apt) {
                return if machine.apt_updated { stuck } else { update() };
            }
            steps.insert(0, Step::AptInstall(self.packages));
        }
        Plan::Do { missing: self.missing, steps }
    }
}

fn not_offered(packages: &[&'static str], apt: &Apt) -> Option<Plan> {
    let unknown: Vec<_> = packages.iter().copied().filter(|package| !apt.offered.contains(package)).collect();
    let stuck = || {
        Plan::Stuck(format!(
            "apt does not know {}, even after `apt-get update`. On Debian 12 they come from bookworm and \
             bookworm-security: see that both are in /etc/apt/sources.list",
            unknown.join(", ")
        ))
    };
    (!unknown.is_empty()).then(stuck)
}

#[cfg(test)]
mod tests;
