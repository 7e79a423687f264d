//! Runs the managed servers: each in a thread and a network namespace of its own, restarted when it panics.

use futures::future::LocalBoxFuture;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// A server to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManagedSpec {
    pub service: String,
    pub service_id: u16,
    pub name: String,
    pub slot: u16,
    /// Where it listens, inside its namespace.
    pub addr: SocketAddr,
    /// The balancer's address on the inner network: every server's router. The same for all of them.
    pub gateway: IpAddr,
}

/// What the supervisor runs. Implemented over the session servers; the tests have simpler ones.
pub trait Server: Send + Sync + 'static {
    /// The epoch of the next instance of this backend: durable, and larger than every one before.
    ///
    /// # Errors
    /// It cannot be had; the server is not started then, but tried again.
    fn next_epoch(&self, spec: &ManagedSpec) -> anyhow::Result<u32>;

    /// Serves until `shutdown` becomes true, then finishes what is in flight and returns. Runs on a current-thread
    /// runtime in the server's namespace; the listener is non-blocking.
    fn serve(
        &self,
        spec: &ManagedSpec,
        epoch: u32,
        listener: std::net::TcpListener,
        shutdown: watch::Receiver<bool>,
    ) -> LocalBoxFuture<'static, anyhow::Result<()>>;
}

/// What happened to a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ServerEvent {
    /// It listens. `interface` is the balancer's end of its veth pair: attach the programs to it.
    Ready { slot: u16, epoch: u32, interface: String },
    /// It serves no more. With `restart_in` it comes back by itself after that time.
    Exited { slot: u16, epoch: u32, reason: Exit, restart_in: Option<Duration> },
    /// It could not be started; tried again after that time.
    Failed { slot: u16, reason: String, retry_in: Duration },
}

/// Why a server serves no more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exit {
    /// [`Supervisor::stop`] or [`Supervisor::restart`], everything in flight finished.
    Stopped,
    /// As `Stopped`, but what was in flight took too long and was cut off.
    CutOff,
    /// [`Supervisor::kill`].
    Killed,
    Panicked(String),
    Failed(String),
}

/// All managed servers.
#[derive(Debug)]
pub struct Supervisor {}

/// Why a server cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {}

impl Supervisor {
    /// A supervisor without servers. Events arrive in the order in which they happen, for each slot.
    pub fn new(_server: Arc<dyn Server>, _events: mpsc::UnboundedSender<ServerEvent>) -> Self {
        unimplemented!()
    }

    /// Creates namespace and veth pair (or takes over what an earlier daemon left) and starts the server.
    /// Returns the name of the balancer's end of the veth pair, which exists and is up at once.
    ///
    /// # Errors
    /// The network cannot be arranged.
    pub fn spawn(&mut self, _spec: ManagedSpec) -> Result<String, SupervisorError> {
        unimplemented!()
    }

    /// Stops a server gracefully and starts it anew with a new epoch.
    ///
    /// # Errors
    /// No such server.
    pub fn restart(&mut self, _slot: u16) -> Result<(), SupervisorError> {
        unimplemented!()
    }

    /// Ends a server as a crash would: its memory is lost and the kernel closes its sockets, whatever is in flight.
    /// It is restarted after `down_for`, or at once.
    ///
    /// # Errors
    /// No such server.
    pub fn kill(&mut self, _slot: u16, _down_for: Option<Duration>) -> Result<(), SupervisorError> {
        unimplemented!()
    }

    /// Stops a server gracefully; it stays stopped until [`Supervisor::restart`]. Its namespace stays.
    ///
    /// # Errors
    /// No such server.
    pub fn stop(&mut self, _slot: u16) -> Result<(), SupervisorError> {
        unimplemented!()
    }

    /// Stops a server gracefully and removes its namespace.
    ///
    /// # Errors
    /// No such server, or its network cannot be removed.
    pub async fn remove(&mut self, _slot: u16) -> Result<(), SupervisorError> {
        unimplemented!()
    }

    /// Stops all servers gracefully, waits for them, and removes their namespaces.
    pub async fn shutdown(self) {
        unimplemented!()
    }
}
