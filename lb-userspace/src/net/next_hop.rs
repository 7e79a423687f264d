//! Where frames for a backend go: the route decides interface and router, the neighbour table gives the address.

use lb_common::addr::Mac;
use std::net::IpAddr;
use tokio::sync::mpsc;

/// Where frames for an address go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// Outgoing interface.
    pub ifindex: u32,
    /// The outgoing interface's own address.
    pub local_mac: Mac,
    /// Address of the host itself, or of its router.
    pub next_hop_mac: Mac,
}

/// A next hop became known, changed, or was lost (`None`).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHopEvent {
    pub addr: IpAddr,
    pub next_hop: Option<NextHop>,
}

/// Handle of the task that keeps next hops fresh. Dropping it ends the task.
#[derive(Clone, Debug)]
pub struct NextHops {
    commands: mpsc::UnboundedSender<Command>,
}

#[derive(Debug)]
enum Command {
    Watch(IpAddr),
    Forget(IpAddr),
}

impl NextHops {
    /// Starts the task on the present tokio runtime, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// No netlink socket can be had.
    pub fn spawn(_events: mpsc::UnboundedSender<NextHopEvent>) -> Result<Self, super::NetError> {
        unimplemented!()
    }

    /// Resolves the next hop of an address now and whenever it changes. Watching twice is watching once.
    pub fn watch(&self, addr: IpAddr) {
        // The task ends only with this handle.
        let _ = self.commands.send(Command::Watch(addr));
    }

    /// Ends watching an address.
    pub fn forget(&self, addr: IpAddr) {
        let _ = self.commands.send(Command::Forget(addr));
    }
}
