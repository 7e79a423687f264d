//! Takes back everything that an lbd has left in the kernel, once it does not run any more.

use super::vips;
use crate::config::Config;
use crate::{datapath, supervisor};
use std::os::unix::net::UnixStream;

/// Removes links, pins, the mount, the namespaces and links of managed servers, and the VIPs that lbd added to `lo`. Sessions and
/// keys stay. Returns what was removed, one line each.
///
/// # Errors
/// That lbd is still running, or something cannot be removed.
pub fn detach(config: &Config) -> anyhow::Result<Vec<String>> {
    anyhow::ensure!(
        UnixStream::connect(&config.lbd.socket).is_err(),
        "an lbd answers at {}: stop it first",
        config.lbd.socket.display()
    );
    let mut removed = datapath::detach(&config.lbd.run_dir)?;
    let servers = config.services.iter().flat_map(|service| {
        let managed = service.backends.iter().filter(|backend| backend.managed);
        managed.map(|backend| (service.name.as_str(), backend.name.as_str()))
    });
    removed.extend(supervisor::remove_all(servers)?);
    removed.extend(vips::withdraw(&config.lbd.run_dir)?.iter().map(|vip| format!("address {vip} of lo")));
    Ok(removed)
}
