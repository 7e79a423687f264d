//! Which VIPs lbd has added to `lo`. Only those are taken back: an address that was there before is somebody else's. Written down in
//! the run directory, for the next lbd and for `lbd detach`.

use crate::net;
use anyhow::Context;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// What stands in the file.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Added {
    /// The boot and the network namespace in which that was; in others nothing of it is there.
    boot: String,
    netns: u64,
    vips: BTreeSet<IpAddr>,
}

impl Added {
    /// What was written down here and since the machine started.
    fn read(path: &Path) -> anyhow::Result<Self> {
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id")
            .context("cannot read the id of this boot")?;
        let netns =
            fs::metadata("/proc/thread-self/ns/net").context("cannot look at the network namespace")?;
        let nothing = Self { boot: boot.trim().to_owned(), netns: netns.ino(), vips: BTreeSet::new() };
        let text = match fs::read(path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(nothing),
            text => text.with_context(|| format!("cannot read {}", path.display()))?,
        };
        match serde_json::from_slice::<Self>(&text) {
            Ok(added) if (&added.boot, added.netns) == (&nothing.boot, nothing.netns) => Ok(added),
            Ok(_) => Ok(nothing),
            Err(error) => {
                tracing::warn!(
                    file = %path.display(), %error,
                    "which VIPs were added to lo cannot be read: those that are there stay"
                );
                Ok(nothing)
            }
        }
    }

    fn write(&self, path: &Path) -> anyhow::Result<()> {
        let beside = path.with_extension("new");
        let write = || fs::write(&beside, serde_json::to_vec(self)?).and_then(|()| fs::rename(&beside, path));
        write().with_context(|| format!("cannot write {}", path.display()))
    }
}

fn file(run_dir: &Path) -> PathBuf {
    run_dir.join("vips.json")
}

/// Lets the host answer ARP for these VIPs, and not for others that an lbd has added.
///
/// # Errors
/// The kernel refuses, or it cannot be written down.
pub(super) fn announce(run_dir: &Path, vips: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
    let path = file(run_dir);
    let mut added = Added::read(&path)?;
    for vip in vips {
        if net::announce(*vip)? {
            tracing::info!(%vip, "announced: lo has this address");
            // After the deed: what is not written down stays, and does no harm.
            added.vips.insert(*vip);
            added.write(&path)?;
        }
    }
    for vip in added.vips.clone().difference(vips) {
        if net::withdraw(*vip)? {
            tracing::info!(%vip, "withdrawn: no service has this address any more");
        }
        added.vips.remove(vip);
        added.write(&path)?;
    }
    Ok(())
}

/// Takes back all VIPs that an lbd has added. Returns them.
///
/// # Errors
/// The kernel refuses, or it cannot be written down.
pub(super) fn withdraw(run_dir: &Path) -> anyhow::Result<Vec<IpAddr>> {
    let path = file(run_dir);
    let mut gone = Vec::new();
    for vip in Added::read(&path)?.vips {
        if net::withdraw(vip)? {
            gone.push(vip);
        }
    }
    match fs::remove_file(&path) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(gone),
    }
}
