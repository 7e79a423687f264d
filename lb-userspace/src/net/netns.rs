//! Network namespaces with a name, as `ip netns` makes them.

use super::{NetError, Rtnl, in_host_mounts};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::statfs::{FsType, statfs};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const DIRECTORY: &str = "/run/netns";
const NSFS: FsType = FsType(libc::NSFS_MAGIC as libc::__fsword_t);

/// A network namespace.
#[derive(Debug)]
pub struct Netns {
    name: String,
    namespace: File,
    remove: bool,
}

impl Netns {
    /// Creates a namespace, its `lo` up. It is removed when the value is dropped.
    ///
    /// # Errors
    /// The name is taken or is no file name, or we are not root.
    pub fn create(name: &str) -> Result<Self, NetError> {
        let namespace =
            make(name).map_err(NetError::kernel(format!("cannot create network namespace {name}")))?;
        let made = Self { name: name.to_owned(), namespace, remove: true };
        made.run(|| {
            let mut rtnl = Rtnl::open()?;
            let lo = super::loopback(&mut rtnl)?;
            rtnl.set_up(lo)
        })??;
        Ok(made)
    }

    /// Opens a namespace that exists. It stays when the value is dropped.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn open(name: &str) -> Result<Self, NetError> {
        let open = || {
            let path = path_of(name)?;
            in_host_mounts(|| {
                if is_namespace(&path) { File::open(&path) } else { Err(io::ErrorKind::NotFound.into()) }
            })
        };
        let namespace = open().map_err(NetError::kernel(format!("cannot open network namespace {name}")))?;
        Ok(Self { name: name.to_owned(), namespace, remove: false })
    }

    /// Opens the namespace, or creates it. Either way it is removed when the value is dropped.
    ///
    /// # Errors
    /// As [`Netns::create`].
    pub fn ensure(name: &str) -> Result<Self, NetError> {
        match Self::open(name) {
            Ok(mut found) => {
                found.remove = true;
                Ok(found)
            }
            Err(_) => Self::create(name),
        }
    }

    /// Lets the namespace stay when the value is dropped.
    pub fn keep(mut self) -> Self {
        self.remove = false;
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Moves the calling thread into the namespace, for good. Sockets it opened before stay where they were.
    ///
    /// # Errors
    /// We are not root.
    pub fn enter(&self) -> Result<(), NetError> {
        setns(&self.namespace, CloneFlags::CLONE_NEWNET).map_err(|error| {
            NetError::kernel(format!("cannot enter network namespace {}", self.name))(error.into())
        })
    }

    /// Runs `work` on a thread of its own in the namespace.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, NetError> {
        std::thread::scope(|scope| {
            let worker = scope.spawn(|| self.enter().map(|()| work()));
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Removes the name of a namespace, and with the last thread and socket in it the namespace itself. Fine when there
    /// is none. Returns whether there was one.
    ///
    /// # Errors
    /// We are not root.
    pub fn remove(name: &str) -> Result<bool, NetError> {
        let remove = || {
            let path = path_of(name)?;
            in_host_mounts(|| {
                if is_namespace(&path) {
                    umount2(&path, MntFlags::MNT_DETACH)?;
                }
                match fs::remove_file(&path) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                    done => done.map(|()| true),
                }
            })
        };
        remove().map_err(NetError::kernel(format!("cannot remove network namespace {name}")))
    }

    /// Names of all namespaces that begin so.
    pub fn list(prefix: &str) -> Vec<String> {
        let mut names: Vec<_> =
            in_host_mounts(|| fs::read_dir(DIRECTORY).into_iter().flatten().flatten().collect::<Vec<_>>())
                .into_iter()
                .filter_map(|entry| entry.file_name().into_string().ok())
                .filter(|name| name.starts_with(prefix))
                .collect();
        names.sort();
        names
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        if self.remove
            && let Err(error) = Self::remove(&self.name)
        {
            tracing::warn!(namespace = self.name, error = ?error, "namespace stays");
        }
    }
}

fn path_of(name: &str) -> io::Result<PathBuf> {
    if name.is_empty() || name.len() > 255 || name.contains('/') || name == "." || name == ".." {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a file name"));
    }
    Ok(Path::new(DIRECTORY).join(name))
}

/// A mounted namespace; a plain file is what remains when the mount is gone.
fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS)
}

fn make(name: &str) -> io::Result<File> {
    let path = path_of(name)?;
    in_host_mounts(|| {
        share_directory()?;
        if is_namespace(&path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o444).open(&path)?;
        let mounted = unshare(CloneFlags::CLONE_NEWNET).and_then(|()| {
            mount(Some("/proc/thread-self/ns/net"), &path, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        });
        if let Err(error) = mounted {
            let _ = fs::remove_file(&path);
            return Err(error.into());
        }
        File::open(&path)
    })
}

/// Makes the directory of the names, and lets mounts in it spread to every mount namespace, as `ip netns add` does:
/// else a name made here is an empty file there.
fn share_directory() -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(DIRECTORY)?;
    let share =
        || mount(None::<&str>, DIRECTORY, None::<&str>, MsFlags::MS_SHARED | MsFlags::MS_REC, None::<&str>);
    match share() {
        // Not a mount point yet: it becomes one, of itself.
        Err(nix::errno::Errno::EINVAL) => {
            mount(
                Some(DIRECTORY),
                DIRECTORY,
                None::<&str>,
                MsFlags::MS_BIND | MsFlags::MS_REC,
                None::<&str>,
            )?;
            Ok(share()?)
        }
        done => Ok(done?),
    }
}
