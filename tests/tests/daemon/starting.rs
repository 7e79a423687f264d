//! lbd while it starts: it says what it waits for, and can be stopped.

use anyhow::{Context, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use serde_json::Value;
use std::fs::File;
use std::time::{Duration, Instant};
use tests::client::{eventually, get};
use tests::daemon::{Backend, Lbd};
use tests::topology::{Arms, Topology};

/// sled waits for its file for so long; a stop must not.
const OPENING: Duration = Duration::from_secs(4);

#[test]
fn a_start_that_takes_long_is_told_and_can_be_stopped() -> Result<()> {
    let town = Topology::new(Arms::Several, 0)?;
    let mut lbd = Lbd::start(&town, &[Backend::Managed])?;
    ensure!(lbd.stop()?.success(), "{}", lbd.log());
    let store = lbd.dir().join("sessions");
    let held = Flock::lock(File::open(store.join("db"))?, FlockArg::LockExclusive)
        .map_err(|(_, errno)| errno)
        .context("holding the store's file")?;
    lbd.launch()?;
    let begun = Instant::now();
    eventually("lbd says what it waits for", || {
        let Ok(text) = lbd.ctl(&["status", "--json"]) else { return Ok(false) };
        let told: Value = serde_json::from_str(&text)?;
        let waits_for = told["waits_for"].as_str().unwrap_or_default();
        Ok(told["answer"] == "phase"
            && told["phase"] == "starting"
            && waits_for.contains(&format!("session store sled {}", store.display())))
    })?;
    let refused = lbd.ctl(&["backend", "list"]).err().context("it does not serve yet")?.to_string();
    ensure!(refused.contains("lbd is starting: it waits for the session store"), "{refused}");
    ensure!(lbd.stop()?.success(), "{}", lbd.log());
    ensure!(begun.elapsed() < OPENING, "stopped after {:?}", begun.elapsed());
    ensure!(!lbd.dir().join("lbd.sock").exists(), "its socket stays");
    drop(held);
    lbd.resume()?;
    get(&town.client.netns, "")?;
    Ok(())
}

#[test]
fn lock_files_are_private() -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let town = Topology::new(Arms::Several, 0)?;
    let lbd = Lbd::start(&town, &[Backend::Managed])?;
    for name in ["run/lbd.lock", "lbd.sock.lock", "sessions/lock", "sessions/db"] {
        let path = lbd.dir().join(name);
        let mode = std::fs::metadata(&path).with_context(|| path.display().to_string())?.permissions().mode();
        ensure!(mode & 0o077 == 0, "{name}: {mode:o}");
    }
    Ok(())
}

/// Halted, its socket takes connections all the same.
#[test]
fn lbctl_does_not_wait_for_a_halted_lbd_without_end() -> Result<()> {
    use nix::sys::signal::Signal;
    let town = Topology::new(Arms::Several, 0)?;
    let lbd = Lbd::start(&town, &[Backend::Managed])?;
    lbd.process()?.signal(Signal::SIGSTOP)?;
    let begun = Instant::now();
    let error = lbd.ctl(&["status", "--timeout", "1s"]);
    lbd.process()?.signal(Signal::SIGCONT)?;
    let error = error.err().context("it is halted")?.to_string();
    ensure!(error.contains("lbd.sock has not answered within 1s"), "{error}");
    ensure!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    lbd.ctl(&["status"])?;
    Ok(())
}
