//! Where maps and links survive the daemon: a BPF file system of our own below the run directory, since /sys/fs/bpf is
//! not there in every mount namespace. A directory for each version of the map layout.

use super::error::DatapathError;
use super::sys;
use crate::lock_file::{self, LockError};
use crate::net::in_host_mounts;
use lb_common::MAP_LAYOUT_VERSION;
use nix::fcntl::Flock;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{FsType, statfs};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const BPFFS: FsType = FsType(libc::BPF_FS_MAGIC as libc::__fsword_t);

/// Which of the two programs a link attaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Hook {
    Xdp,
    Tc,
}

/// The pin directory, locked against other daemons while this lives.
#[derive(Debug)]
pub(super) struct Pins {
    /// The mount's name, for people.
    shown: PathBuf,
    /// The mount itself: it may lie in another mount namespace, where its name means nothing to us.
    mount: File,
    _lock: Flock<File>,
}

/// A pinned link.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct LinkPin {
    pub(super) interface: String,
    pub(super) hook: Hook,
    pub(super) path: PathBuf,
}

impl Pins {
    /// Locks the run directory and mounts the file system where it is not.
    pub(super) fn open(run_dir: &Path) -> Result<Self, DatapathError> {
        fs::create_dir_all(run_dir)
            .map_err(DatapathError::system(format!("cannot create {}", run_dir.display())))?;
        let lock = lock(run_dir)?;
        let shown = run_dir.join("bpf");
        let mount = in_host_mounts(|| mounted(&shown)).map_err(DatapathError::system(format!(
            "cannot mount a BPF file system at {}",
            shown.display()
        )))?;
        let pins = Self { shown, mount, _lock: lock };
        for directory in ["maps", "links"] {
            let path = pins.layout(MAP_LAYOUT_VERSION).join(directory);
            fs::create_dir_all(&path)
                .map_err(DatapathError::system(format!("cannot create {}", pins.show(&path).display())))?;
        }
        Ok(pins)
    }

    fn root(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.mount.as_raw_fd()))
    }

    fn layout(&self, version: u32) -> PathBuf {
        self.root().join(format!("v{version}"))
    }

    /// Where a map of the present layout is pinned.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.layout(MAP_LAYOUT_VERSION).join("maps").join(name)
    }

    /// All maps of the present layout: names and pins.
    pub(super) fn maps(&self) -> Vec<(String, PathBuf)> {
        let directory = self.layout(MAP_LAYOUT_VERSION).join("maps");
        let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
        entries.map(|entry| (entry.file_name().to_string_lossy().into_owned(), entry.path())).collect()
    }

    /// Where a link is pinned.
    pub(super) fn link(&self, interface: &str, hook: Hook) -> PathBuf {
        self.layout(MAP_LAYOUT_VERSION).join("links").join(link_name(interface, hook))
    }

    /// Where the link of a program on a tracepoint is pinned. No interface has a pin of such a name: its hook is none.
    pub(super) fn tracepoint(&self, name: &str) -> PathBuf {
        self.layout(MAP_LAYOUT_VERSION).join("links").join(format!("tracepoint-{name}"))
    }

    /// The pinned links of one interface and hook, in every layout that is still here; the present layout's first.
    pub(super) fn links_of(&self, interface: &str, hook: Hook) -> Vec<PathBuf> {
        let name = link_name(interface, hook);
        let older = self.older_layouts().into_iter().map(|layout| layout.join("links").join(&name));
        std::iter::once(self.link(interface, hook)).chain(older).filter(|path| path.exists()).collect()
    }

    /// All pinned links of the present layout.
    pub(super) fn links(&self) -> Vec<LinkPin> {
        let Ok(entries) = fs::read_dir(self.layout(MAP_LAYOUT_VERSION).join("links")) else {
            return Vec::new();
        };
        let parse = |entry: fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let (interface, hook) = parse_link_name(&name)?;
            Some(LinkPin { interface, hook, path: entry.path() })
        };
        entries.flatten().filter_map(parse).collect()
    }

    /// Removes a pinned link, and with it what it attaches.
    pub(super) fn remove_link(&self, pin: &Path) -> Result<(), DatapathError> {
        sys::remove_link(pin)
            .map_err(DatapathError::system(format!("cannot remove link {}", self.show(pin).display())))
    }

    fn older_layouts(&self) -> Vec<PathBuf> {
        let present = self.layout(MAP_LAYOUT_VERSION);
        layouts(&self.root()).into_iter().filter(|path| *path != present).collect()
    }

    /// Removes what versions with another layout left. Returns how many layouts there were.
    pub(super) fn remove_older_layouts(&self) -> Result<usize, DatapathError> {
        let older = self.older_layouts();
        for path in &older {
            for link in fs::read_dir(path.join("links")).into_iter().flatten().flatten() {
                self.remove_link(&link.path())?;
            }
            fs::remove_dir_all(path)
                .map_err(DatapathError::system(format!("cannot remove {}", self.show(path).display())))?;
        }
        Ok(older.len())
    }

    /// A path as people know it.
    pub(super) fn show(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.root()).map_or_else(|_| path.to_owned(), |rest| self.shown.join(rest))
    }

    /// Removes all pins, the mount and the run directory's lock. Returns what was removed.
    pub(super) fn remove(run_dir: &Path) -> Result<Vec<String>, DatapathError> {
        let mut removed = Vec::new();
        if !run_dir.exists() {
            return Ok(removed);
        }
        let _lock = lock(run_dir)?;
        let root = run_dir.join("bpf");
        type Remove = fn(&Path) -> io::Result<()>;
        let remove_file: Remove = |path| fs::remove_file(path);
        in_host_mounts(|| -> io::Result<()> {
            if !is_bpffs(&root) {
                return Ok(());
            }
            for layout in layouts(&root) {
                for (directory, remove) in [("links", sys::remove_link as Remove), ("maps", remove_file)] {
                    for entry in fs::read_dir(layout.join(directory)).into_iter().flatten().flatten() {
                        remove(&entry.path())?;
                        removed.push(entry.path().display().to_string());
                    }
                }
                fs::remove_dir_all(layout)?;
            }
            umount2(&root, MntFlags::MNT_DETACH)?;
            fs::remove_dir(&root)?;
            removed.push(format!("{} (BPF file system)", root.display()));
            Ok(())
        })
        .map_err(DatapathError::system(format!("cannot remove the pins in {}", root.display())))?;
        Ok(removed)
    }
}

/// Directories of map layouts. The kernel keeps files of its own beside them, which nobody can remove.
fn layouts(root: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

fn is_bpffs(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == BPFFS)
}

fn mounted(path: &Path) -> io::Result<File> {
    if !is_bpffs(path) {
        fs::create_dir_all(path)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
        mount(Some("bpf"), path, Some("bpf"), flags, Some("mode=0700"))?;
    }
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECTORY).open(path)
}

/// Locks the run directory for this process, and writes down which that is.
fn lock(run_dir: &Path) -> Result<Flock<File>, DatapathError> {
    let path = run_dir.join("lbd.lock");
    lock_file::take(&path).map_err(|error| match error {
        LockError::Held { pid } => DatapathError::Busy { run_dir: run_dir.to_owned(), pid },
        LockError::Io(error) => DatapathError::system(format!("cannot lock {}", path.display()))(error),
    })
}

/// The BPF file system reserves dots in names, and VLAN interfaces have them.
fn link_name(interface: &str, hook: Hook) -> String {
    let interface = interface.replace('%', "%25").replace('.', "%2e");
    format!("{interface}-{}", if hook == Hook::Xdp { "xdp" } else { "tc" })
}

fn parse_link_name(name: &str) -> Option<(String, Hook)> {
    let (interface, hook) = name.rsplit_once('-')?;
    let hook = match hook {
        "xdp" => Hook::Xdp,
        "tc" => Hook::Tc,
        _ => return None,
    };
    Some((interface.replace("%2e", ".").replace("%25", "%"), hook))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_names_hold_any_interface_without_dots() {
        for interface in ["eth0", "eth0.100", "a-xdp", "lb-shop-s1", "50%2e", "%"] {
            for hook in [Hook::Xdp, Hook::Tc] {
                let name = link_name(interface, hook);
                assert!(!name.contains('.'), "{name}");
                assert_eq!(parse_link_name(&name), Some((interface.to_owned(), hook)));
            }
        }
        assert_eq!(parse_link_name("eth0-other"), None);
    }
}
