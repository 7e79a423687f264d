//! Where things are: the checkout, its target directory, the BPF objects and the tools built for it.

use std::env;
use std::path::{Path, PathBuf};

/// The top of the checkout.
pub(crate) fn root() -> PathBuf {
    // cargo sets it for `cargo run`; the compiled-in one serves when the binary is started by hand.
    let manifest =
        env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    manifest.parent().expect("xtask lies in the workspace").to_owned()
}

/// The target directory of everything that runs on this host.
pub(crate) fn target() -> PathBuf {
    env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), |target| root().join(target))
}

/// The BPF objects as lbd and the tests look for them: `lb` and `testbed`.
pub(crate) fn bpf_objects() -> PathBuf {
    target().join("bpf")
}

/// Tools that setup builds for this checkout alone.
pub(crate) fn tools() -> PathBuf {
    target().join("tools")
}

/// The first file of that name on the PATH, or in the directories of system tools that a user's PATH omits.
pub(crate) fn command(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path)
        .chain(system)
        .map(|directory| directory.join(name))
        .find(|file| is_executable(file))
}

fn is_executable(file: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    file.metadata().is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}
