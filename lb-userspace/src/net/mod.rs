//! The network around the programs: namespaces, interfaces, addresses, routes, and where frames for a backend go.
//! Synchronous netlink calls that take microseconds, but for [`NextHops`], which is a task of its own.

mod next_hop;

pub use next_hop::{NextHop, NextHopEvent, NextHops};

use std::net::IpAddr;

/// Why the network cannot be arranged.
#[derive(Debug, thiserror::Error)]
pub enum NetError {}

/// Adds `address`/32 (or /128) to the loopback interface, so that ARP and ping for a virtual address are answered.
/// Fine when it is there already. Returns whether it was added.
///
/// # Errors
/// The kernel refuses.
pub fn announce(_address: IpAddr) -> Result<bool, NetError> {
    unimplemented!()
}

/// Takes back what [`announce`] added; fine when it is gone.
///
/// # Errors
/// The kernel refuses.
pub fn withdraw(_address: IpAddr) -> Result<(), NetError> {
    unimplemented!()
}
