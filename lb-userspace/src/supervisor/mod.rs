//! Runs the managed servers: each in a thread and a network namespace of its own, restarted when it panics.

mod network;
mod worker;

pub use network::{interface_name, namespace_name, remove_all};

use crate::config::Protocol;
use crate::net::NetError;
use futures::future::LocalBoxFuture;
use network::ServerNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use worker::{Order, Worker};

/// A server to run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ManagedSpec {
    pub service: String,
    pub service_id: u16,
    pub name: String,
    pub slot: u16,
    /// Where it listens, inside its namespace...
    pub addr: SocketAddr,
    /// ...and for what.
    pub protocol: Protocol,
    /// The balancer's address on the inner network: every server's router. The same for all of them.
    pub gateway: IpAddr,
}

/// Where a server hears its clients.
#[derive(Debug)]
pub enum ServerSocket {
    Tcp(TcpListener),
    Udp(UdpSocket),
}

/// What the supervisor runs. Implemented over the session servers; the tests have simpler ones.
pub trait Server: Send + Sync + 'static {
    /// The epoch of the next instance of this backend: durable, and larger than every one before.
    ///
    /// # Errors
    /// It cannot be had; the server is not started then, but tried again.
    fn next_epoch(&self, spec: &ManagedSpec) -> anyhow::Result<u32>;

    /// Serves until `shutdown` becomes true, then finishes what is in flight and returns. Runs on a current-thread
    /// runtime in the server's namespace; the socket is non-blocking.
    fn serve(
        &self,
        spec: &ManagedSpec,
        epoch: u32,
        socket: ServerSocket,
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

/// Why a server cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("no managed server has slot {0}")]
    Unknown(u16),
    #[error("slot {0} has a managed server already")]
    Taken(u16),
    #[error("server {name} cannot listen on {addr} with the router {gateway}: one is IPv4 and one IPv6")]
    Families { name: String, addr: SocketAddr, gateway: IpAddr },
    #[error("cannot arrange the network of server {name}")]
    Net {
        name: String,
        #[source]
        source: NetError,
    },
    #[error("cannot start a thread for server {name}")]
    Thread {
        name: String,
        #[source]
        source: std::io::Error,
    },
}

/// All managed servers. Dropping it ends them as a crash would, and removes their namespaces.
pub struct Supervisor {
    server: Arc<dyn Server>,
    events: mpsc::UnboundedSender<ServerEvent>,
    running: BTreeMap<u16, Running>,
    grace: Duration,
}

/// How long an instance may take to finish what is in flight, unless [`Supervisor::with_grace`] says otherwise.
const GRACE: Duration = Duration::from_secs(10);

struct Running {
    orders: mpsc::UnboundedSender<Order>,
    /// Fires, by being dropped, when the thread has ended.
    ended: oneshot::Receiver<()>,
    /// Removes namespace and veth pair when it goes.
    net: Arc<ServerNet>,
}

impl Supervisor {
    /// A supervisor without servers. Events arrive in the order in which they happen, for each slot.
    pub fn new(server: Arc<dyn Server>, events: mpsc::UnboundedSender<ServerEvent>) -> Self {
        Self { server, events, running: BTreeMap::new(), grace: GRACE }
    }

    /// Servers spawned from now on may take this long to finish what is in flight when they are stopped.
    #[must_use]
    pub fn with_grace(self, grace: Duration) -> Self {
        Self { grace, ..self }
    }

    /// Creates namespace and veth pair (or takes over what an earlier daemon left) and starts the server.
    /// Returns the name of the balancer's end of the veth pair, which exists and is up at once.
    ///
    /// # Errors
    /// The slot is taken, or the network cannot be arranged.
    pub fn spawn(&mut self, spec: ManagedSpec) -> Result<String, SupervisorError> {
        if self.running.contains_key(&spec.slot) {
            return Err(SupervisorError::Taken(spec.slot));
        }
        if spec.addr.is_ipv4() != spec.gateway.is_ipv4() {
            let ManagedSpec { name, addr, gateway, .. } = spec;
            return Err(SupervisorError::Families { name, addr, gateway });
        }
        let net = ServerNet::arrange(&spec)
            .map_err(|source| SupervisorError::Net { name: spec.name.clone(), source })?;
        let net = Arc::new(net);
        let interface = net.interface.clone();
        let (orders, received) = mpsc::unbounded_channel();
        let (ending, ended) = oneshot::channel::<()>();
        let (slot, name) = (spec.slot, spec.name.clone());
        let worker = Worker {
            spec,
            interface: interface.clone(),
            grace: self.grace,
            server: Arc::clone(&self.server),
            events: self.events.clone(),
            orders: received,
        };
        let inside = Arc::clone(&net);
        std::thread::Builder::new()
            // The kernel shows 15 characters of it.
            .name(interface.clone())
            .spawn(move || {
                worker.run(&inside.netns);
                drop((inside, ending));
            })
            .map_err(|source| SupervisorError::Thread { name, source })?;
        self.running.insert(slot, Running { orders, ended, net });
        Ok(interface)
    }

    /// The balancer's end of a server's veth pair.
    pub fn interface(&self, slot: u16) -> Option<&str> {
        self.running.get(&slot).map(|running| running.net.interface.as_str())
    }

    /// Stops a server gracefully and starts it anew with a new epoch.
    ///
    /// # Errors
    /// No such server.
    pub fn restart(&mut self, slot: u16) -> Result<(), SupervisorError> {
        self.order(slot, Order::Restart)
    }

    /// Ends a server as a crash would: its memory is lost and the kernel closes its sockets, whatever is in flight: a
    /// peer whose data was not read sees RST, another one an early FIN. It is started again after `down_for`, or at
    /// once, with a new epoch.
    ///
    /// # Errors
    /// No such server.
    pub fn kill(&mut self, slot: u16, down_for: Option<Duration>) -> Result<(), SupervisorError> {
        self.order(slot, Order::Kill { down_for: down_for.unwrap_or_default() })
    }

    /// Stops a server gracefully; it stays stopped until [`Supervisor::restart`]. Its namespace stays.
    ///
    /// # Errors
    /// No such server.
    pub fn stop(&mut self, slot: u16) -> Result<(), SupervisorError> {
        self.order(slot, Order::Stop)
    }

    fn order(&self, slot: u16, order: Order) -> Result<(), SupervisorError> {
        let running = self.running.get(&slot).ok_or(SupervisorError::Unknown(slot))?;
        // A thread that could not enter its namespace has ended and said why.
        running.orders.send(order).map_err(|_| SupervisorError::Unknown(slot))
    }

    /// Stops a server gracefully and removes its namespace.
    ///
    /// # Errors
    /// No such server.
    pub async fn remove(&mut self, slot: u16) -> Result<(), SupervisorError> {
        let running = self.running.remove(&slot).ok_or(SupervisorError::Unknown(slot))?;
        running.leave().await;
        Ok(())
    }

    /// Stops all servers gracefully, waits for them, and removes their namespaces.
    pub async fn shutdown(mut self) {
        let all = std::mem::take(&mut self.running);
        futures::future::join_all(all.into_values().map(Running::leave)).await;
    }
}

impl Running {
    async fn leave(self) {
        // It may have left by itself.
        let _ = self.orders.send(Order::Leave);
        // An error is the sender's end: what we wait for.
        let _ = self.ended.await;
        drop(self.net);
    }
}
