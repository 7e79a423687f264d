//! Asks each backend for a TCP connection now and then, and learns from it which TCP options the backend has.

use lb_common::backend::Learned;
use std::net::SocketAddr;
use std::time::Duration;
use tokio::sync::mpsc;

/// How a backend is checked.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    pub interval: Duration,
    pub timeout: Duration,
    /// Successes in a row after which a backend is up.
    pub rise: u32,
    /// Failures in a row after which it is down.
    pub fall: u32,
}

/// What the checks found: sent when it changes, and once after the first decision.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct HealthEvent {
    pub slot: u16,
    pub up: bool,
    /// What the last successful connection told; `seen` is 0 when there was none.
    pub learned: Learned,
    /// Why it is down.
    pub reason: Option<String>,
}

/// Handle of the checks. Dropping it ends them.
#[derive(Debug)]
pub struct Health {}

impl Health {
    /// No checks yet. They run on the present tokio runtime, in the network namespace of the thread that calls `watch`.
    pub fn new(_events: mpsc::UnboundedSender<HealthEvent>) -> Self {
        unimplemented!()
    }

    /// Checks a backend from now on, in place of what was checked for that slot. The first check decides at once.
    pub fn watch(&mut self, _slot: u16, _addr: SocketAddr, _policy: Policy) {
        unimplemented!()
    }

    /// Ends the checks of a slot.
    pub fn forget(&mut self, _slot: u16) {
        unimplemented!()
    }
}
