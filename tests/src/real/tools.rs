//! Where the programs, packages and sources are that real servers and clients are made of.

use anyhow::{Result, ensure};
use std::path::{Path, PathBuf};

/// A file or directory below tests/fixtures.
pub fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures").join(path)
}

/// A file or directory that setup puts below target/tools.
fn tool(path: &str) -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    // Tests run from target/PROFILE/deps.
    let target = test.ancestors().nth(3).unwrap_or(Path::new("target"));
    let tool = target.join("tools").join(path);
    ensure!(tool.exists(), "no {}: `cargo xtask setup` installs it", tool.display());
    Ok(tool)
}

/// A Python that has Django and the others.
pub fn python() -> Result<PathBuf> {
    tool("python/bin/python")
}

/// Where Node finds Express and the others: its `NODE_PATH`.
pub fn node_path() -> Result<PathBuf> {
    tool("node/node_modules")
}

/// A program of Debian's.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain([PathBuf::from("/usr/sbin")])
        .map(|directory| directory.join(name))
        .find(|file| file.is_file());
    found.ok_or_else(|| anyhow::anyhow!("no {name} on the PATH: `cargo xtask setup` installs it"))
}
