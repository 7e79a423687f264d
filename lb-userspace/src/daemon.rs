//! The event loop of lbd: everything that happens to it is one [`Event`], handled one at a time.

use lb_common::addr::Mac;
use lb_common::backend::Learned;

/// What can happen to lbd. Closed: what is not here does not change it.
#[derive(Debug)]
pub enum Event {
    /// A backend's health check changed its mind, or has its first result.
    Health { slot: u16, up: bool, learned: Learned },
    /// The way to a backend became known, or changed.
    NextHop { slot: u16, local_mac: Mac, next_hop_mac: Mac, ifindex: u32 },
    /// A managed server listens, as the instance of that epoch.
    ServerReady { slot: u16, epoch: u32 },
    /// A managed server is gone; what it cached is lost.
    ServerExited { slot: u16, reason: String },
}

/// Where the parts that watch the world report to.
pub type Events = tokio::sync::mpsc::UnboundedSender<Event>;
