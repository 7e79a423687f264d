//! A disk that fails under the store of a running lbd: an ext4 on a loop device whose own file cannot grow. The kernel
//! tells so when it is synced.

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;
use tests::client::WATCHDOG;
use tests::daemon::{Backend, Lbd, Manner};
use tests::topology::{Arms, Topology};
use tests::visitor::{Visitor, status};

/// What the disk says it has; lbd keeps 64 MiB free.
const SAID: u64 = 512 << 20;
/// What it has.
const THERE: &str = "size=96m,mode=0700";
/// The largest value of a session.
const VALUE: usize = 16_000;

/// Goes with all that is mounted in it.
struct Disk {
    place: tempfile::TempDir,
}

impl Disk {
    fn new() -> Result<Self> {
        let disk = Self { place: tempfile::tempdir()? };
        fs::create_dir(disk.at("host"))?;
        fs::create_dir(disk.at("fs"))?;
        mount(Some("tmpfs"), &disk.at("host"), Some("tmpfs"), MsFlags::empty(), Some(THERE))
            .context("mounting a tmpfs")?;
        File::create(disk.image())?.set_len(SAID)?;
        run("mkfs.ext4", &["-q", "-F", "-E", "lazy_itable_init=1", &disk.image().display().to_string()])?;
        disk.mount()?;
        Ok(disk)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    fn image(&self) -> PathBuf {
        self.at("host/image")
    }

    /// Where the store is.
    fn store(&self) -> PathBuf {
        self.at("fs/sessions")
    }

    fn mount(&self) -> Result<()> {
        let (image, fs) = (self.image().display().to_string(), self.at("fs").display().to_string());
        run("mount", &["-o", "loop", &image, &fs])
    }

    /// Takes what room there is.
    fn exhaust(&self) -> Result<()> {
        let mut ballast = File::create(self.at("host/ballast"))?;
        let block = vec![7; 4096];
        while ballast.write_all(&block).is_ok() {}
        Ok(())
    }

    /// As after the disk was exchanged: what was written is there, the journal is replayed.
    fn repair(&self) -> Result<()> {
        fs::remove_file(self.at("host/ballast"))?;
        umount2(&self.at("fs"), MntFlags::empty()).context("unmounting the failed disk")?;
        self.mount()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        for name in ["fs", "host"] {
            // Perhaps it was never mounted.
            let _ = umount2(&self.at(name), MntFlags::MNT_DETACH);
        }
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| program.to_owned())?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {stderr}");
    Ok(())
}

fn value(n: u32) -> String {
    format!("\"{n} {}\"", "x".repeat(VALUE))
}

/// Writes until a write is not acknowledged; returns what was acknowledged last.
fn write_until_it_fails(visitor: &mut Visitor, town: &Topology, from: u32) -> Result<u32> {
    let begin = Instant::now();
    let mut last = from;
    loop {
        ensure!(begin.elapsed() < WATCHDOG, "{last} writes, and the disk has not failed");
        match visitor.request(&town.client.netns, "PUT", "/session/n", &value(last + 1)) {
            Ok(answer) if status(&answer).starts_with('2') => last += 1,
            _ => return Ok(last),
        }
    }
}

#[test]
fn a_disk_that_fails_ends_lbd_and_nothing_is_acknowledged_after_it() -> Result<()> {
    let town = Topology::new(Arms::Several, 0)?;
    let disk = Disk::new()?;
    let store = format!("\"{}\"", disk.store().display());
    let mut lbd =
        Lbd::start_in(&town, &[Backend::Managed], Manner { store: Some(store), ..Manner::default() })?;
    let mut visitor = Visitor::default();
    visitor.put(&town.client.netns, "n", &value(1))?;
    disk.exhaust()?;
    let acknowledged = write_until_it_fails(&mut visitor, &town, 1)?;
    // Until lbd is gone, and then because it is gone.
    for n in 1..=20 {
        let late = visitor.request(&town.client.netns, "PUT", "/session/n", &value(acknowledged + 1 + n));
        ensure!(
            late.as_ref().map_or(true, |answer| status(answer).starts_with('5')),
            "a write was acknowledged after the disk had failed: {late:?}"
        );
    }
    let ended = lbd.ended()?;
    ensure!(ended.code() == Some(1), "{ended}; {}", lbd.log());
    let log = lbd.log();
    ensure!(log.contains("has stopped until its process is started again"), "{log}");

    // Its supervisor starts it again.
    disk.repair()?;
    lbd.resume()?;
    let seen = visitor.session(&town.client.netns)?;
    let text = seen["state"]["n"].as_str().context("the session is there")?;
    let found: u32 = text.split(' ').next().unwrap_or_default().parse()?;
    // What was not acknowledged may have been written, or not.
    ensure!((acknowledged..=acknowledged + 21).contains(&found), "{found} after {acknowledged}");
    visitor.put(&town.client.netns, "n", &value(0))?;
    ensure!(lbd.stop()?.success(), "{}", lbd.log());
    Ok(())
}
