//! What aya does not tell: where a pinned link is attached, what the kernel says of a descriptor, and what it can.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_PROG_QUERY: libc::c_long = 16;
const BPF_RAW_TRACEPOINT_OPEN: libc::c_long = 17;
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
    // Type, id, program id, padding, then a union that begins with the interface for both kinds of link.
    let info = info(&link)?;
    Ok(LinkInfo { program_id: info[2], ifindex: info[4] })
}

/// Detaches a pinned link and removes its pin. Removing the pin alone would detach it too, but some time later.
pub(super) fn remove_link(pin: &Path) -> io::Result<()> {
    let link = open(pin)?;
    if let Err(error) = bpf(BPF_LINK_DETACH, &mut [link.as_raw_fd() as u64, 0]) {
        // Its interface is gone, and with it what there was to detach.
        tracing::debug!(pin = %pin.display(), %error, "link was detached already");
    }
    std::fs::remove_file(pin)
}

/// Opens a pinned link or map.
pub(super) fn open(pin: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let object = bpf(BPF_OBJ_GET, &mut [path.as_ptr() as u64, 0])?;
    // SAFETY: the descriptor was just returned to us and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(object) })
}

/// Puts a loaded program on a tracepoint, and pins the link that holds it there.
pub(super) fn attach_tracepoint(name: &str, program: BorrowedFd<'_>, pin: &Path) -> io::Result<()> {
    let name = CString::new(name)?;
    let mut attributes = [name.as_ptr() as u64, program.as_raw_fd() as u64];
    let link = bpf(BPF_RAW_TRACEPOINT_OPEN, &mut attributes)?;
    // SAFETY: the descriptor was just returned to us and nobody else has it.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let path = CString::new(pin.as_os_str().as_bytes())?;
    bpf(BPF_OBJ_PIN, &mut [path.as_ptr() as u64, link.as_raw_fd() as u64]).map(drop)
}

/// Loads the smallest XDP program there is, and lets it go. Returns whether the kernel compiled it for the processor.
pub(super) fn try_program() -> io::Result<bool> {
    const BPF_PROG_TYPE_XDP: u64 = 6;
    // `r0 = 0; exit`: `struct bpf_insn` begins with the code.
    const PROGRAM: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let length = PROGRAM.len() as u64;
    let mut attributes =
        [BPF_PROG_TYPE_XDP | length << 32, PROGRAM.as_ptr() as u64, c"GPL".as_ptr() as u64, 0, 0, 0];
    let program = bpf(BPF_PROG_LOAD, &mut attributes)?;
    // SAFETY: the descriptor was just returned to us and nobody else has it.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    // Type, id, tag, then the length of the machine code (`struct bpf_prog_info`).
    Ok(info(&program)?[4] != 0)
}

/// Asks which TCX programs `lo` has. An error where the kernel does not know of such programs.
pub(super) fn query_tcx() -> io::Result<()> {
    const LOOPBACK: u64 = 1;
    const BPF_TCX_INGRESS: u64 = 46;
    // The kernel writes its answer into what it takes for a whole `union bpf_attr`, however long we say that it is.
    let mut attributes = [0; 32];
    attributes[0] = LOOPBACK | BPF_TCX_INGRESS << 32;
    bpf(BPF_PROG_QUERY, &mut attributes).map(drop)
}

/// Whether `membarrier` waits for all processors at once.
pub(super) fn has_membarrier() -> bool {
    const MEMBARRIER_CMD_QUERY: libc::c_int = 0;
    // SAFETY: the call takes no pointers, and this command only asks.
    let commands = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0) };
    commands > 0 && commands & libc::c_long::from(MEMBARRIER_CMD_GLOBAL) != 0
}

/// Returns when every program that was running has ended: the kernel implements this command as `synchronize_rcu`.
/// Returns whether the kernel can.
pub(super) fn membarrier() -> bool {
    // SAFETY: the call takes no pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) == 0 }
}

const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;

/// What the kernel says of a descriptor; it writes no more than the length given.
fn info(object: &OwnedFd) -> io::Result<[u32; 32]> {
    let mut info = [0_u32; 32];
    let length = size_of_val(&info) as u64;
    let mut attributes = [u64::from(object.as_raw_fd() as u32) | length << 32, info.as_mut_ptr() as u64];
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info)
}

fn bpf(command: libc::c_long, attributes: &mut [u64]) -> io::Result<i32> {
    // SAFETY: the attributes are valid for reads and writes of the length given, and, for the command that writes beyond
    // it, of a whole `union bpf_attr`. The pointers in them are valid for what the commands above do with them: read a C
    // string or a program, and write at most the length beside it.
    let outcome =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(attributes)) };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(outcome as i32) }
}
