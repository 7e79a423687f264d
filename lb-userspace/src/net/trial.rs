//! What the kernel can make of a network, asked in a namespace that nobody sees and that ends with the asking. Modules that
//! it finds on the way stay loaded.

use super::Rtnl;
use super::rtnl::CREATE;
use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::path::Path;

/// What was seen; `None` where we may not ask.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct Trial {
    /// Network namespaces.
    pub(crate) namespaces: Option<bool>,
    /// veth pairs.
    pub(crate) veth: Option<bool>,
    /// The queueing discipline `clsact`, and filters of it that are BPF programs.
    pub(crate) filter: Option<bool>,
}

impl Trial {
    /// Asks; about filters only on request, because asking loads their modules. Takes some milliseconds, and more where a
    /// module is loaded.
    pub(crate) fn run(filters: bool) -> Self {
        let asked = std::thread::spawn(move || match unshare(CloneFlags::CLONE_NEWNET) {
            Ok(()) => {
                Self { namespaces: Some(true), veth: veth(), filter: if filters { filter() } else { None } }
            }
            Err(Errno::EINVAL) => Self { namespaces: Some(false), ..Self::default() },
            Err(_) => Self { namespaces: Path::new("/proc/self/ns/net").exists().into(), ..Self::default() },
        });
        asked.join().unwrap_or_default()
    }
}

fn veth() -> Option<bool> {
    // Both ends are in the namespace and end with it.
    Some(Rtnl::open().ok()?.add_veth("here", "there", None).is_ok())
}

fn filter() -> Option<bool> {
    const LOOPBACK: i32 = 1;
    let mut rtnl = Rtnl::open().ok()?;
    let message = |kind: &str, parent| {
        let mut message = TcMessage::default();
        message.header.family = AddressFamily::Unspec;
        message.header.index = LOOPBACK;
        message.header.parent = parent;
        message.attributes.push(TcAttribute::Kind(kind.to_owned()));
        message
    };
    let mut clsact = message("clsact", TcHandle::CLSACT);
    clsact.header.handle = TcHandle { major: TcHandle::CLSACT.major, minor: 0 };
    if rtnl.order(RouteNetlinkMessage::NewQueueDiscipline(clsact), CREATE).is_err() {
        return Some(false);
    }
    let ingress = TcHandle { minor: TcHandle::MIN_INGRESS, ..TcHandle::CLSACT };
    let mut filter = message("bpf", ingress);
    // Priority 1, for every protocol.
    filter.header.info = 1 << 16 | u32::from((libc::ETH_P_ALL as u16).to_be());
    let refused = rtnl.order(RouteNetlinkMessage::NewTrafficFilter(filter), CREATE).err()?;
    // Who knows the kind misses the program; who does not know it says so.
    Some(refused.raw_os_error() == Some(libc::EINVAL))
}
