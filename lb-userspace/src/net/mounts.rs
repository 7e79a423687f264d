//! Mounts that outlive us. `ip netns exec` gives its child a mount namespace of its own, and what is mounted there is
//! gone with the last process in it, pins and all. So mounts are made in the mount namespace of process 1.

use nix::sched::{CloneFlags, setns, unshare};
use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::sync::Once;

const OURS: &str = "/proc/thread-self/ns/mnt";
/// Whether it was said that mounts do not outlive us.
static TOLD: Once = Once::new();
const OF_INIT: &str = "/proc/1/ns/mnt";

/// Runs `work` on a thread in the mount namespace of process 1 and returns what it returns. Where that namespace may
/// not be entered, `work` runs in our own.
pub(crate) fn in_host_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            if let Err(error) = enter_host_mounts() {
                TOLD.call_once(|| {
                    tracing::warn!(
                        %error,
                        "the mount namespace of process 1 is closed to us: mounts end with this process's own"
                    );
                });
            }
            work()
        });
        worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn enter_host_mounts() -> std::io::Result<()> {
    if std::fs::metadata(OURS)?.ino() == std::fs::metadata(OF_INIT)?.ino() {
        return Ok(());
    }
    let namespace = File::open(OF_INIT)?;
    // Root and working directory are shared with the other threads until we say otherwise.
    unshare(CloneFlags::CLONE_FS)?;
    setns(namespace, CloneFlags::CLONE_NEWNS)?;
    Ok(())
}
