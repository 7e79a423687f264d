//! Processes: stopping an lbd that an earlier run of xtask has started, and many lines of `ip` in one.

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// For how long it may finish what is in flight; lbd's own limit is 10 s.
const GRACE: Duration = Duration::from_secs(15);
const MOMENT: Duration = Duration::from_millis(20);

/// Ends the process if it still is an lbd with that configuration: asks, and insists when it does not go.
pub(crate) fn stop(pid: Pid, config: &Path) -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        if !is_lbd_with(pid, config) {
            return Ok(());
        }
        // It may go by itself meanwhile.
        let _ = kill(pid, signal);
        let begun = Instant::now();
        while begun.elapsed() < GRACE && is_lbd_with(pid, config) {
            std::thread::sleep(MOMENT);
        }
    }
    if is_lbd_with(pid, config) {
        bail!("lbd (process {pid}) does not end");
    }
    Ok(())
}

/// Process ids are given out again: it is ours only when its command line names that configuration. That of a zombie is
/// empty.
pub(crate) fn is_lbd_with(pid: Pid, config: &Path) -> bool {
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).any(|word| word == config.as_os_str().as_encoded_bytes())
}

/// Runs lines of `ip` in one process.
pub(crate) fn ip(lines: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("cannot start ip (Debian's package iproute2 has it)")?;
    child.stdin.take().expect("standard input is a pipe").write_all(lines.as_bytes())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "ip: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
