//! Mounts that outlive us. `ip netns exec` gives its child a mount namespace of its own, and what is mounted there is
//! gone with the last process in it, pins and all. So mounts are made in the mount namespace from which we were started:
//! that of process 1, or where we may not enter that one, of the eldest of our ancestors that lets us.

use nix::sched::{CloneFlags, setns, unshare};
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::sync::Once;

/// Runs `work` on a thread in the mount namespace from which we were started, and returns what it returns.
pub(crate) fn in_host_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            if let Err(error) = enter_host_mounts() {
                static WARNED: Once = Once::new();
                WARNED.call_once(|| {
                    tracing::warn!(
                        %error,
                        "cannot leave this mount namespace: pins and names of namespaces end with its last process"
                    );
                });
            }
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn enter_host_mounts() -> io::Result<()> {
    let ours = fs::metadata("/proc/thread-self/ns/mnt")?.ino();
    // None may let us look: then nothing says that we are not where we should be.
    let Some(namespace) = eldest_namespace() else { return Ok(()) };
    if namespace.metadata()?.ino() == ours {
        return Ok(());
    }
    // Root and working directory are shared with the other threads until we say otherwise.
    unshare(CloneFlags::CLONE_FS)?;
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    Ok(())
}

/// The mount namespace of the eldest ancestor that shows it to us.
fn eldest_namespace() -> Option<File> {
    let mut process = std::os::unix::process::parent_id();
    let mut eldest = None;
    while process != 0 {
        eldest = File::open(format!("/proc/{process}/ns/mnt")).ok().or(eldest);
        process = parent_of(process).unwrap_or(0);
    }
    eldest
}

fn parent_of(process: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ancestors_are_found() {
        let parent = parent_of(std::process::id()).unwrap();
        assert_eq!(parent, std::os::unix::process::parent_id());
        assert_eq!(parent_of(1), Some(0));
    }
}
