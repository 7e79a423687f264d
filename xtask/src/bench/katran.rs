//! Katran's program, from the user's checkout of it: found, compiled and named. No part of it is in this project.

use crate::{steps, workspace};
use anyhow::{Context, Result, bail};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The program, within a checkout.
const PROGRAM: &str = "katran/lib/bpf/balancer.bpf.c";
const CLONE: &str = "git clone --depth 1 https://github.com/facebookincubator/katran ../katran";

/// Its limit of new connections a second and processor, beyond which it remembers none: without one, or what is measured
/// is a burst that it does not remember.
const NO_LIMIT: &str = "-DMAX_CONN_RATE=4000000000U";

/// Katran, compiled.
pub(super) struct Katran {
    pub(super) object: PathBuf,
    /// Of which commit, and compiled how.
    pub(super) origin: String,
}

/// Compiles the program of a checkout.
pub(super) fn compile(source: Option<&Path>) -> Result<Katran> {
    let source = checkout(source)?;
    let clang = compiler(workspace::command("clang"))?;
    let directory = workspace::target().join("katran");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let object = directory.join("balancer.o");
    let mut command = Command::new(&clang);
    command.args(flags(std::env::consts::ARCH)).arg("-c").arg(PROGRAM).arg("-o").arg(&object);
    // The source names its own headers from the top of the checkout.
    command.arg("-I.").current_dir(&source);
    steps::run("compile Katran's program", &mut command).context(
        "clang needs the headers of the kernel and of the C library: `apt-get install linux-libc-dev libc6-dev`",
    )?;
    let version = said(Command::new(&clang).arg("--version")).unwrap_or_else(|| "clang".to_owned());
    Ok(Katran { object, origin: format!("{}, {version}, {NO_LIMIT}", commit(&source)) })
}

/// The checkout, once it is seen to be one.
fn checkout(source: Option<&Path>) -> Result<PathBuf> {
    let Some(source) = source else {
        bail!("bench katran compiles a checkout of Katran: type `{CLONE}`, then add `--source ../katran`");
    };
    if !source.join(PROGRAM).is_file() {
        bail!("there is no {PROGRAM} in {}: `{CLONE}` makes a checkout", source.display());
    }
    source.canonicalize().with_context(|| format!("cannot read {}", source.display()))
}

fn compiler(found: Option<PathBuf>) -> Result<PathBuf> {
    found.context("bench katran compiles Katran with clang, and there is none: `apt-get install clang`")
}

/// Those of Katran's own makefile, none of whose optional features are on by default either; and what the C library's headers
/// look for, which a compiler for BPF does not say.
fn flags(architecture: &str) -> Vec<String> {
    let mut flags: Vec<String> =
        ["-target", "bpf", "-O2", "-g", "-w", "-D__KERNEL__", NO_LIMIT].map(str::to_owned).into();
    flags.push(format!("-D__{architecture}__"));
    flags.push(format!("-I/usr/include/{architecture}-linux-gnu"));
    flags
}

/// The commit of a checkout, as far as it tells.
fn commit(source: &Path) -> String {
    let mut directory = std::ffi::OsString::from("safe.directory=");
    directory.push(source);
    // Without its own .git, git would tell the commit of whatever the source lies in. The setting: root reads a user's.
    let known = source.join(".git").exists().then(|| {
        said(Command::new("git").arg("-c").arg(&directory).arg("-C").arg(source).args(["rev-parse", "HEAD"]))
    });
    known.flatten().map_or_else(|| "unknown commit".to_owned(), |commit| format!("commit {commit}"))
}

/// The first line that a command prints, if it succeeds.
fn said(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().next()?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(of: Result<PathBuf>) -> String {
        format!("{:#}", of.unwrap_err())
    }

    #[test]
    fn what_is_missing_is_said_with_what_to_type() {
        let empty = tempfile::tempdir().unwrap();
        for (told, name) in [
            (error(checkout(None)), "--source ../katran"),
            (error(checkout(Some(empty.path()))), PROGRAM),
            (error(checkout(Some(&empty.path().join("nowhere")))), "nowhere"),
        ] {
            assert!(told.contains(CLONE) && told.contains(name), "{told}");
        }
        assert!(error(compiler(None)).contains("`apt-get install clang`"));
        assert_eq!(compiler(Some("/usr/bin/clang".into())).unwrap(), Path::new("/usr/bin/clang"));
    }

    #[test]
    fn a_checkout_is_found_and_named() {
        let place = tempfile::tempdir().unwrap();
        let program = place.path().join(PROGRAM);
        fs::create_dir_all(program.parent().unwrap()).unwrap();
        fs::write(&program, "").unwrap();
        assert_eq!(checkout(Some(place.path())).unwrap(), place.path().canonicalize().unwrap());
        // An archive has no history, wherever it was unpacked.
        assert_eq!(commit(place.path()), "unknown commit");

        let git = |arguments: &[&str]| {
            let mut command = Command::new("git");
            command.arg("-C").arg(place.path()).args(["-c", "user.name=a", "-c", "user.email=a@b"]);
            assert!(command.args(arguments).output().unwrap().status.success(), "git {arguments:?}");
        };
        git(&["init", "--quiet"]);
        assert_eq!(commit(place.path()), "unknown commit");
        git(&["commit", "--quiet", "--allow-empty", "--message", "one"]);
        let named = commit(place.path());
        assert!(named.strip_prefix("commit ").is_some_and(|hash| hash.len() == 40), "{named}");
    }

    #[test]
    fn the_kernel_s_architecture_reaches_the_headers() {
        let flags = flags("aarch64");
        for flag in ["-D__aarch64__", "-I/usr/include/aarch64-linux-gnu", NO_LIMIT] {
            assert!(flags.iter().any(|given| given == flag), "{flags:?} lacks {flag}");
        }
    }
}
