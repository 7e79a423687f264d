//! Frames that the kernel dropped after a verdict, as its tracepoints tell: where they were to go, and why they did not.

use bytemuck::{Pod, Zeroable};

/// Key of the counts of such frames.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Lost {
    /// Index of the interface that they should have left through; with [`EXCEPTION`], of the one that the program ran for.
    /// 0, with cause 0: the table had no room for their own key.
    pub ifindex: u32,
    /// An `errno`, [`RING_FULL`], or [`EXCEPTION`] and the program's action.
    pub cause: u32,
}

/// The driver took fewer frames than it was given, without an error.
pub const RING_FULL: u32 = 1 << 16;
/// The tracepoint `xdp_exception`: an action (`enum xdp_action`, in the low bits) that failed.
pub const EXCEPTION: u32 = 1 << 17;

/// Where the tracepoints' programs find what they look at, and whose frames they count. Written by the daemon; all zero:
/// nobody's. Offsets are in bytes, as the running kernel's BTF has them.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Watch {
    /// Ids of the XDP program and of the one that it took over from.
    pub programs: [u32; 2],
    /// Inode number of the network namespace whose interfaces are meant.
    pub netns: u32,
    /// `bpf_prog.aux`
    pub prog_aux: u32,
    /// `bpf_prog_aux.id`
    pub aux_id: u32,
    /// `net_device.ifindex`
    pub dev_ifindex: u32,
    /// `net_device.nd_net.net`
    pub dev_net: u32,
    /// `net.ns.inum`
    pub net_inum: u32,
}

/// A cause with a name of its own.
struct Named {
    cause: u32,
    name: &'static str,
    describe: &'static str,
}

const fn named(cause: u32, name: &'static str, describe: &'static str) -> Named {
    Named { cause, name, describe }
}

const NAMED: [Named; 10] = [
    named(0, "drop_after_verdict_other", "Dropped by the kernel; the table of causes was full."),
    // ENXIO
    named(
        6,
        "drop_redirect_not_received",
        "The device has no ring for it: the other end of a veth is down, or has GRO off.",
    ),
    // EINVAL
    named(22, "drop_redirect_no_device", "There is no such interface any more."),
    // ENOSPC
    named(28, "drop_redirect_no_space", "The device had no room for it."),
    // EMSGSIZE
    named(
        90,
        "drop_redirect_too_large",
        "Longer than the MTU of the interface: merged by GRO, or the MTU is smaller there.",
    ),
    // EOPNOTSUPP
    named(95, "drop_redirect_unsupported", "The device takes no frames from XDP programs (no ndo_xdp_xmit)."),
    // ENETDOWN
    named(100, "drop_redirect_down", "The interface is down."),
    named(RING_FULL, "drop_redirect_ring_full", "The ring of the device was full."),
    named(EXCEPTION, "drop_xdp_aborted", "The program was aborted."),
    named(
        EXCEPTION | 3,
        "drop_xdp_transmit",
        "The device could not send what the program let go in generic mode.",
    ),
];

impl Lost {
    /// The name of its counter; `None` for a cause that has none: an error of the kernel that was not foreseen, or an action.
    pub fn name(&self) -> Option<&'static str> {
        NAMED.iter().find(|named| named.cause == self.cause).map(|named| named.name)
    }

    /// One sentence about the counter of that name.
    pub fn describe(name: &str) -> Option<&'static str> {
        NAMED.iter().find(|named| named.name == name).map(|named| named.describe)
    }
}

crate::map_types! { Lost: 8, Watch: 32 }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_have_names_of_their_own() {
        for (i, named) in NAMED.iter().enumerate() {
            assert!(named.name.starts_with("drop_"), "{}", named.name);
            assert!(NAMED[..i].iter().all(|other| other.cause != named.cause && other.name != named.name));
            let lost = Lost { ifindex: 1, cause: named.cause };
            assert_eq!((lost.name(), Lost::describe(named.name)), (Some(named.name), Some(named.describe)));
            assert!(crate::counter::Counter::ALL.iter().all(|counter| counter.name() != named.name));
        }
        assert_eq!(Lost { ifindex: 1, cause: 5 }.name(), None);
    }
}
