//! The file system of a machine: programs with the libraries that they are linked with, files, and the kernel's modules, as
//! an initramfs (Documentation/driver-api/early-userspace/buffer-format.rst). Everything stands where it stands on this
//! host, so that what was compiled in of paths holds.

use super::source::Kernel;
use crate::workspace;
use anyhow::{Context, Result, bail, ensure};
use cpio::newc::{Builder, ModeFileType, trailer};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

/// Directories of modules that machines get: networks, and what talks to the host. Paths below `kernel/`.
const MODULES: [&str; 7] = ["net", "lib", "crypto", "arch", "drivers/net", "drivers/virtio", "drivers/char"];
/// ...without these.
const NO_MODULES: [&str; 2] = ["drivers/net/wireless", "net/wireless"];

#[derive(Clone)]
enum Node {
    Directory,
    /// What is at a path of this host, links followed.
    Copy {
        from: PathBuf,
        mode: u32,
    },
    Text(Vec<u8>),
    Link(PathBuf),
    /// The console, which the kernel opens for the first process.
    Console,
}

/// What stands where.
#[derive(Clone, Default)]
pub(crate) struct Image {
    nodes: BTreeMap<PathBuf, Node>,
    /// Programs whose libraries are there already.
    linked: BTreeSet<PathBuf>,
}

impl Image {
    pub(crate) fn new() -> Result<Self> {
        let mut image = Self::default();
        for place in ["/bin", "/sbin", "/lib", "/lib64", "/usr/bin", "/usr/sbin", "/usr/lib"] {
            image.directory(Path::new(place))?;
        }
        for place in [
            "/proc",
            "/sys",
            "/dev",
            "/run",
            "/tmp",
            "/root",
            "/etc",
            "/var/tmp",
            "/var/log/nginx",
            "/var/lib/nginx",
        ] {
            image.directory(Path::new(place))?;
        }
        image.nodes.insert("/dev/console".into(), Node::Console);
        image.nodes.insert("/var/run".into(), Node::Link("/run".into()));
        Ok(image)
    }

    /// A directory and what it stands in: as links, where they are links on this host (Debian's /bin is one).
    fn directory(&mut self, path: &Path) -> Result<PathBuf> {
        let mut real = PathBuf::from("/");
        for part in path.components() {
            let Component::Normal(name) = part else { continue };
            let here = real.join(name);
            match fs::read_link(&here) {
                Ok(to) if here.is_dir() => {
                    let to = real.join(to);
                    self.nodes.insert(here.clone(), Node::Link(to.clone()));
                    // What it leads to, which may be behind a link itself.
                    real = self.directory(&to)?;
                }
                _ => {
                    self.nodes.entry(here.clone()).or_insert(Node::Directory);
                    real = here;
                }
            }
        }
        Ok(real)
    }

    /// Where a path is in the image, its directories made.
    fn place(&mut self, path: &Path) -> Result<PathBuf> {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            bail!("{} names no file", path.display())
        };
        Ok(self.directory(parent)?.join(name))
    }

    pub(crate) fn text(&mut self, path: &str, text: impl Into<Vec<u8>>) -> Result<()> {
        let place = self.place(Path::new(path))?;
        self.nodes.insert(place, Node::Text(text.into()));
        Ok(())
    }

    /// A file as it is on this host, at the same path.
    pub(crate) fn file(&mut self, path: &Path) -> Result<()> {
        self.copy(path, path)
    }

    /// A file of this host at another path.
    pub(crate) fn copy(&mut self, from: &Path, to: &Path) -> Result<()> {
        let found = fs::metadata(from).with_context(|| format!("cannot read {}", from.display()))?;
        ensure!(found.is_file(), "{} is no file", from.display());
        let place = self.place(to)?;
        let mode = found.permissions().mode() & 0o7777;
        self.nodes.insert(place, Node::Copy { from: from.to_owned(), mode });
        Ok(())
    }

    /// Every file below a directory of this host, at the same path.
    pub(crate) fn tree(&mut self, path: &Path) -> Result<()> {
        for entry in fs::read_dir(path).with_context(|| format!("cannot read {}", path.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                self.tree(&path)?;
            } else if path.is_file() {
                self.file(&path)?;
            }
        }
        Ok(())
    }

    /// A program that is on the PATH, with its libraries.
    pub(crate) fn command(&mut self, name: &str) -> Result<()> {
        let path = workspace::command(name)
            .with_context(|| format!("no command {name}: `cargo xtask setup` installs what is missing"))?;
        self.program(&path, &path)
    }

    /// A program of this host at some path, with its libraries where they are.
    pub(crate) fn program(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.copy(from, to)?;
        if !self.linked.insert(from.to_owned()) {
            return Ok(());
        }
        let output =
            Command::new("ldd").arg(from).output().context("cannot start ldd (Debian's package libc-bin)")?;
        let text = String::from_utf8_lossy(&output.stdout);
        for line in text.lines() {
            if line.contains("not found") {
                bail!("{}: {}", from.display(), line.trim());
            }
            // `NAME => PATH (ADDRESS)`, or `PATH (ADDRESS)` of the loader.
            let mut words = line.split_whitespace().filter(|word| word.starts_with('/'));
            if let Some(library) = words.next() {
                self.file(Path::new(library))?;
            }
        }
        Ok(())
    }

    /// The modules of a kernel that machines get, with those that they need.
    pub(crate) fn modules(&mut self, kernel: &Kernel) -> Result<()> {
        let Some(directory) = &kernel.modules else { return Ok(()) };
        index(directory, &kernel.release)?;
        let inside = Path::new("/lib/modules").join(&kernel.release);
        let needs = fs::read_to_string(directory.join("modules.dep"))
            .with_context(|| format!("{} has no modules.dep", directory.display()))?;
        for line in needs.lines() {
            let Some((module, needed)) = line.split_once(':') else { continue };
            if is_wanted(module) {
                for module in std::iter::once(module).chain(needed.split_whitespace()) {
                    self.copy(&directory.join(module), &inside.join(module))?;
                }
            }
        }
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if let Some(name) = path.file_name().filter(|_| path.is_file()) {
                self.copy(&path, &inside.join(name))?;
            }
        }
        Ok(())
    }

    /// Whether a module of that name is in it.
    pub(crate) fn has_module(&self, name: &str) -> bool {
        let is_it = |path: &PathBuf| {
            path.file_name().is_some_and(|file| file.to_string_lossy().split('.').next() == Some(name))
        };
        self.nodes.keys().any(|path| {
            path.starts_with("/usr/lib/modules") && is_it(path)
                || path.starts_with("/lib/modules") && is_it(path)
        })
    }

    /// Writes it all. Returns how many bytes.
    pub(crate) fn write(&self, to: &Path) -> Result<u64> {
        let written = || format!("cannot write {}", to.display());
        let mut out = BufWriter::with_capacity(1 << 20, File::create(to).with_context(written)?);
        for (number, (path, node)) in self.nodes.iter().enumerate() {
            let name = path.strip_prefix("/").unwrap_or(path).to_string_lossy().into_owned();
            let entry = Builder::new(&name).ino(number as u32 + 1);
            let (entry, bytes) = match node {
                Node::Directory => {
                    (entry.mode(0o755).set_mode_file_type(ModeFileType::Directory), Vec::new())
                }
                Node::Copy { from, mode } => {
                    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
                    (entry.mode(*mode).set_mode_file_type(ModeFileType::Regular), bytes)
                }
                Node::Text(text) => {
                    (entry.mode(0o644).set_mode_file_type(ModeFileType::Regular), text.clone())
                }
                Node::Link(target) => (
                    entry.mode(0o777).set_mode_file_type(ModeFileType::Symlink),
                    target.as_os_str().as_encoded_bytes().to_vec(),
                ),
                Node::Console => (
                    entry.mode(0o600).set_mode_file_type(ModeFileType::Char).rdev_major(5).rdev_minor(1),
                    Vec::new(),
                ),
            };
            let mut writer =
                entry.write(&mut out, u32::try_from(bytes.len()).context("a file of 4 GiB and more")?);
            writer.write_all(&bytes).with_context(written)?;
            writer.finish().with_context(written)?;
        }
        trailer(&mut out).with_context(written)?;
        out.flush().with_context(written)?;
        Ok(fs::metadata(to).with_context(written)?.len())
    }
}

fn is_wanted(module: &str) -> bool {
    let Some(path) = module.strip_prefix("kernel/").map(Path::new) else { return false };
    MODULES.iter().any(|place| path.starts_with(place))
        && !NO_MODULES.iter().any(|place| path.starts_with(place))
}

/// Sees to it that there is a modules.dep: Debian's packages make it when they are installed.
fn index(directory: &Path, release: &str) -> Result<()> {
    if directory.join("modules.dep").exists() {
        return Ok(());
    }
    // `lib/modules/RELEASE` in some directory.
    let base = directory.ancestors().nth(3).context("modules stand in lib/modules/RELEASE")?;
    let depmod = workspace::command("depmod")
        .context("no command depmod: `cargo xtask setup` installs what is missing")?;
    let output =
        Command::new(depmod).arg("-b").arg(base).arg(release).output().context("cannot start depmod")?;
    ensure!(output.status.success(), "depmod: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_are_wanted_and_radios_are_not() {
        for (module, wanted) in [
            ("kernel/drivers/net/veth.ko", true),
            ("kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko.xz", true),
            ("kernel/net/sched/sch_netem.ko", true),
            ("kernel/drivers/net/wireless/ath/ath.ko", false),
            ("kernel/fs/xfs/xfs.ko", false),
            ("extra/other.ko", false),
        ] {
            assert_eq!(is_wanted(module), wanted, "{module}");
        }
    }

    #[test]
    fn a_program_comes_with_its_libraries_and_the_links_to_them() {
        let mut image = Image::new().unwrap();
        image.command("sh").unwrap();
        image.text("/plan.json", "{}").unwrap();
        let libc =
            image.nodes.keys().find(|path| path.ends_with("libc.so.6")).expect("sh is linked with libc");
        assert!(matches!(image.nodes[libc], Node::Copy { .. }));
        if fs::read_link("/bin").is_ok() {
            assert!(matches!(image.nodes[Path::new("/bin")], Node::Link(_)));
        }
        let out = tempfile::NamedTempFile::new().unwrap();
        let size = image.write(out.path()).unwrap();
        let bytes = fs::read(out.path()).unwrap();
        assert_eq!(bytes.len() as u64, size);
        assert!(bytes.starts_with(b"070701"));
    }

    #[test]
    fn a_missing_file_is_named() {
        let mut image = Image::default();
        assert!(format!("{:#}", image.file(Path::new("/no/such")).unwrap_err()).contains("/no/such"));
        assert!(image.command("no-such-command").unwrap_err().to_string().contains("setup"));
    }
}
