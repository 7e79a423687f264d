//! What aya does not tell: where a pinned link is attached, and what the kernel says of a descriptor.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_DETACH: libc::c_long = 34;

/// What the kernel says of a link (`struct bpf_link_info`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct LinkInfo {
    pub(super) program_id: u32,
    /// 0 when the interface is gone.
    pub(super) ifindex: u32,
}

/// Asks about a pinned XDP or TCX link.
pub(super) fn link_info(pin: &Path) -> io::Result<LinkInfo> {
    let link = open(pin)?;
    // Type, id, program id, padding, then a union that begins with the interface for both kinds of link. The kernel
    // writes no more than the length given.
    let mut info = [0_u32; 32];
    let length = size_of_val(&info) as u64;
    let attributes: [u64; 2] = [u64::from(link.as_raw_fd() as u32) | length << 32, info.as_mut_ptr() as u64];
    bpf(BPF_OBJ_GET_INFO_BY_FD, &attributes)?;
    Ok(LinkInfo { program_id: info[2], ifindex: info[4] })
}

/// Detaches a pinned link and removes its pin. Removing the pin alone would detach it too, but some time later.
pub(super) fn remove_link(pin: &Path) -> io::Result<()> {
    let link = open(pin)?;
    let attributes: [u64; 2] = [link.as_raw_fd() as u64, 0];
    if let Err(error) = bpf(BPF_LINK_DETACH, &attributes) {
        // Its interface is gone, and with it what there was to detach.
        tracing::debug!(pin = %pin.display(), %error, "link was detached already");
    }
    std::fs::remove_file(pin)
}

/// Opens a pinned link or map.
pub(super) fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let object = bpf(BPF_OBJ_GET, &[path.as_ptr() as u64, 0])?;
    // SAFETY: the descriptor was just returned to us and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(object) })
}

fn bpf(command: libc::c_long, attributes: &[u64; 2]) -> io::Result<i32> {
    // SAFETY: the attributes are valid for reads of the length given, and the pointers in them for what the
    // commands above do with them: read a C string, and write at most the length beside it.
    let outcome =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome as i32) }
}
