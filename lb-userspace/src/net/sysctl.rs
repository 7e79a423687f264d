//! Network settings under /proc/sys/net, which shows the network namespace of the thread that looks.

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
