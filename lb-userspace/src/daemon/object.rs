//! Finds the object file with the packet programs.

use std::path::{Path, PathBuf};

/// Name of the object beside the executable.
const BESIDE: &str = "lb.bpf.o";
const SYSTEM: &str = "/usr/lib/lb/lb.bpf.o";

/// The object: as named on the command line, in the configuration, or in `$LB_OBJECT`; else beside the executable,
/// else where packages put it.
///
/// # Errors
/// There is none; says where it was looked for and how to build it.
pub(super) fn find(named: Option<&Path>, configured: Option<&Path>) -> anyhow::Result<PathBuf> {
    let variable = std::env::var_os("LB_OBJECT").map(PathBuf::from);
    if let Some(path) = named.or(configured).map(Path::to_owned).or(variable) {
        anyhow::ensure!(
            path.is_file(),
            "the packet programs are not at {}: build them with `cargo xtask build`",
            path.display()
        );
        return Ok(path);
    }
    let beside = std::env::current_exe().ok().and_then(|exe| Some(exe.parent()?.join(BESIDE)));
    let places: Vec<_> = beside.into_iter().chain([PathBuf::from(SYSTEM)]).collect();
    places.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let places: Vec<_> = places.iter().map(|path| path.display().to_string()).collect();
        anyhow::anyhow!(
            "the packet programs are neither at {}: build them with `cargo xtask build`, or name them with --object",
            places.join(" nor at ")
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_comes_first_and_must_be_there() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let nowhere = Path::new("/nowhere/lb.bpf.o");
        assert_eq!(find(Some(file.path()), Some(nowhere)).unwrap(), file.path());
        assert_eq!(find(None, Some(file.path())).unwrap(), file.path());
        let error = find(Some(nowhere), Some(file.path())).unwrap_err().to_string();
        assert_eq!(
            error,
            "the packet programs are not at /nowhere/lb.bpf.o: build them with `cargo xtask build`"
        );
    }
}
