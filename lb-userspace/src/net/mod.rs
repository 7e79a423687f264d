//! The network around the programs: namespaces, interfaces, addresses, routes, and where frames for a backend go.
//! Synchronous netlink calls that take microseconds, but for [`NextHops`], which is a task of its own.

mod addresses;
pub mod devices;
pub mod ethtool;
mod filters;
mod links;
mod mounts;
mod netdev;
mod netns;
mod next_hop;
mod peer;
mod rtnl;
mod sysctl;
mod trial;

pub use addresses::{Neighbour, Route};
pub use links::{AttachedXdp, Link, MAX_NAME};
pub(crate) use mounts::in_host_mounts;
pub use netns::Netns;
pub use next_hop::{NextHop, NextHopEvent, NextHops};
pub use peer::{FarEnd, Peer, Search, check_peer, far_end};
pub use rtnl::Rtnl;
pub use sysctl::{get as sysctl, set as set_sysctl};
pub(crate) use trial::Trial;

use std::io;
use std::net::IpAddr;

/// Why the network cannot be arranged.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    #[error("{what}")]
    Kernel {
        what: String,
        #[source]
        source: io::Error,
    },
    #[error("there is no interface {0}")]
    NoInterface(String),
    #[error("interface name {0:?} has not 1 to 15 characters without spaces and slashes")]
    BadName(String),
}

impl NetError {
    /// Turns a system error into one that says what could not be done.
    pub(crate) fn kernel(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Kernel { what: what.into(), source }
    }
}

/// Adds `address`/32 (or /128) to the loopback interface, so that ARP and ping for a virtual address are answered.
/// Fine when it is there already. Returns whether it was added.
///
/// # Errors
/// The kernel refuses.
pub fn announce(address: IpAddr) -> Result<bool, NetError> {
    let mut rtnl = Rtnl::open()?;
    let lo = loopback(&mut rtnl)?;
    rtnl.set_up(lo)?;
    rtnl.add_address(lo, address, addresses::host_prefix(address))
}

/// Takes back what [`announce`] added; fine when it is gone. Returns whether it was there.
///
/// # Errors
/// The kernel refuses.
pub fn withdraw(address: IpAddr) -> Result<bool, NetError> {
    let mut rtnl = Rtnl::open()?;
    let lo = loopback(&mut rtnl)?;
    rtnl.delete_address(lo, address, addresses::host_prefix(address))
}

fn loopback(rtnl: &mut Rtnl) -> Result<u32, NetError> {
    Ok(rtnl.link("lo")?.ok_or_else(|| NetError::NoInterface("lo".to_owned()))?.index)
}
