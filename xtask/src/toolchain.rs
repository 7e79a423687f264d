//! The compiler that builds for BPF: either rustup's nightly, which builds `core` from its source, or Debian's packaged
//! compiler, which brings `core` ready built for BPF. Both link with bpf-linker.

use crate::workspace;
use std::env;
use std::path::PathBuf;
use std::process::Command;

pub(crate) const TARGET: &str = "bpfel-unknown-none";

/// A compiler for BPF together with a linker that was seen to work with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Toolchain {
    pub(crate) compiler: Compiler,
    pub(crate) linker: PathBuf,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Compiler {
    /// The toolchain's directory under `~/.rustup/toolchains`.
    Nightly(PathBuf),
    Debian,
}

impl Compiler {
    fn program(&self, name: &str) -> PathBuf {
        match self {
            Self::Nightly(directory) => directory.join("bin").join(name),
            Self::Debian => PathBuf::from("/usr/bin").join(name),
        }
    }

    pub(crate) fn rustc(&self) -> Command {
        self.command("rustc")
    }

    /// One of this compiler's programs, in an environment that does not lead it to another compiler.
    fn command(&self, name: &str) -> Command {
        let mut command = Command::new(self.program(name));
        detached(&mut command);
        command.env("CARGO", self.program("cargo")).env("RUSTC", self.program("rustc"));
        if *self == Self::Debian {
            // Debian's compiler is a stable one; the BPF target needs what only nightly allows.
            command.env("RUSTC_BOOTSTRAP", "1");
        }
        command
    }
}

impl Toolchain {
    /// `cargo build` for the BPF target, without packages, for kernels of an architecture.
    pub(crate) fn build(&self, arch: &str) -> Command {
        let mut command = self.compiler.command("cargo");
        command.arg("build").arg("--release");
        self.aim(&mut command, arch, &format!("{} {CODE}", kernel(arch)));
        command
    }

    /// `cargo clippy` for the BPF target, without packages.
    pub(crate) fn clippy(&self) -> Command {
        // Called by its path: `cargo clippy` would find rustup's first.
        let mut command = self.compiler.command("cargo-clippy");
        command.arg("clippy").arg("--release");
        self.aim(&mut command, env::consts::ARCH, &kernel(env::consts::ARCH));
        command
    }

    fn aim(&self, command: &mut Command, arch: &str, rust_flags: &str) {
        if matches!(self.compiler, Compiler::Nightly(_)) {
            command.arg("-Zbuild-std=core");
        }
        // Its own target directory: the host's cargo is another version, and each would wait for the other's lock.
        command
            .args(["--target", TARGET])
            .current_dir(workspace::root())
            .env("CARGO_TARGET_DIR", directory(arch))
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", &self.linker)
            .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_RUSTFLAGS", rust_flags);
    }
}

/// Where cargo puts what it builds for kernels of an architecture: this host's has the usual place, and of another one the flags
/// differ, by which cargo would compile all of it again each time.
pub(crate) fn directory(arch: &str) -> PathBuf {
    let name = if arch == env::consts::ARCH { "ebpf".to_owned() } else { format!("ebpf-{arch}") };
    workspace::target().join(name)
}

/// aya-ebpf picks its bindings by this, and `lb-ebpf` its barriers: the architecture of the kernel.
fn kernel(arch: &str) -> String {
    format!("--cfg bpf_target_arch=\"{arch}\"")
}

/// Debug information and BTF are what `bpf_loop`'s callbacks need. Version 3 of the instruction set (Linux 5.1) has 32-bit
/// arithmetic and more comparisons: without it every `u32` is extended by two shifts, again and again. Without
/// `allows-misaligned-mem-access` every unaligned read becomes byte loads; rustc warns about it in every crate, at every
/// build, and cannot be told to warn of everything else: `cargo xtask check` does.
const CODE: &str = "-C debuginfo=2 -C link-arg=--btf -C target-cpu=v3 \
                    -C target-feature=+allows-misaligned-mem-access -A warnings";

/// Takes away what the `cargo run` that started us told its child about its own compiler.
fn detached(command: &mut Command) {
    for name in [
        "CARGO",
        "LD_LIBRARY_PATH",
        "RUSTUP_TOOLCHAIN",
        "RUSTFLAGS",
        "CARGO_ENCODED_RUSTFLAGS",
        "CARGO_BUILD_TARGET",
    ] {
        command.env_remove(name);
    }
    for (name, _) in env::vars_os() {
        if name
            .to_str()
            .is_some_and(|name| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_"))
        {
            command.env_remove(name);
        }
    }
    for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC"] {
        command.env_remove(name);
    }
}

/// The host's cargo: the one that runs us.
pub(crate) fn host_cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace::root());
    command
}
