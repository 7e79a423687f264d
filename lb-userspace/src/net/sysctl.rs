//! Network settings under /proc/sys/net, which shows the network namespace of the thread that looks.
//!
//! Few are needed. What belongs to a flow never reaches the stack's routing, so neither forwarding nor reverse path
//! filtering (`rp_filter`) nor local source addresses (`accept_local`) matter to it; health checks and ARP are ordinary
//! traffic of this host. `forwarding` is switched on for the veths of managed servers alone, for what those send to
//! others than clients; a balancer that shall route for remote backends, too, is configured so by its operator.

use super::NetError;
use std::fs;
use std::path::PathBuf;

/// The value of a setting such as `net/ipv4/ip_forward`; `None` when there is no such setting.
pub fn get(key: &str) -> Option<String> {
    Some(fs::read_to_string(path(key)).ok()?.trim().to_owned())
}

/// Changes a setting. Returns the value it had, or `None` when it had this value already.
///
/// # Errors
/// No such setting, or we are not root.
pub fn set(key: &str, value: &str) -> Result<Option<String>, NetError> {
    let before = get(key);
    if before.as_deref() == Some(value) {
        return Ok(None);
    }
    fs::write(path(key), value).map_err(NetError::kernel(format!("cannot set {key} to {value}")))?;
    Ok(Some(before.unwrap_or_default()))
}

fn path(key: &str) -> PathBuf {
    PathBuf::from("/proc/sys").join(key)
}
