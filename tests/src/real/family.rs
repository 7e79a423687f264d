//! Servers and browsers that fork: each family has a process namespace of its own, and ends as a whole.

use crate::netns::Netns;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs;
use std::process::{Child, Command};

/// A family, as the `unshare` that [`command`] has started. When this is dropped nobody of it is left, and nothing of what
/// it had open.
pub(super) struct Family(pub(super) Child);

/// A command whose family ends with it; however this process ends, theirs does, too.
pub(super) fn command(netns: &Netns, program: impl AsRef<OsStr>) -> Command {
    let mut command = netns.command("unshare");
    command.args(["--pid", "--fork", "--kill-child", "--mount-proc", "--"]).arg(program);
    command
}

impl Drop for Family {
    fn drop(&mut self) {
        if !matches!(self.0.try_wait(), Ok(None)) {
            // Ended by itself; its number may be somebody else's by now.
            return;
        }
        let id = self.0.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        // The first of a process namespace takes all others with it, and is gone only after them. `unshare` waits for it.
        let first = children.split_whitespace().next().and_then(|child| child.parse().ok());
        let first = first.unwrap_or(id as i32);
        // Either fails only when there is nobody any more.
        let _ = kill(Pid::from_raw(first), Signal::SIGKILL);
        let _ = self.0.wait();
    }
}
