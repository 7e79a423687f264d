//! What the supervisor runs: session servers over the one database.

use crate::config::Config;
use crate::server::{self, ConnectionCounters, Connections, ServerContext};
use crate::session::{Admission, Instance, Limits, Peers, SessionStore, TokenKeys, unix_millis};
use crate::supervisor::{ManagedSpec, Server, ServerSocket};
use crate::web::Cookie;
use anyhow::Context;
use arc_swap::ArcSwap;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::runtime::Handle;
use tokio::sync::watch;

/// What all session servers share.
pub(super) struct SessionServers {
    store: Arc<dyn SessionStore>,
    keys: Arc<ArcSwap<TokenKeys>>,
    peers: Arc<Peers>,
    /// By the service's name.
    services: HashMap<String, Shared>,
    connections: Connections,
    runtime: Handle,
}

/// What the servers of a service share.
#[derive(Clone)]
struct Shared {
    limits: Limits,
    cookie: Cookie,
    connections: Arc<ConnectionCounters>,
    admission: Arc<Admission>,
}

/// What the servers of a service count.
pub(super) struct ServerCounters {
    connections: Arc<ConnectionCounters>,
    admission: Arc<Admission>,
}

impl ServerCounters {
    /// Names and values, for people.
    pub(super) fn values(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.connections.values().into_iter().chain(self.admission.values())
    }

    /// Sessions that were not begun.
    pub(super) fn refused(&self) -> u64 {
        self.admission.values().iter().map(|(_, value)| value).sum()
    }
}

impl SessionServers {
    /// To be called on the runtime that lbd itself runs on.
    pub(super) fn new(
        config: &Config,
        store: Arc<dyn SessionStore>,
        keys: Arc<ArcSwap<TokenKeys>>,
        peers: Arc<Peers>,
        connections: Connections,
    ) -> Self {
        let services = config.services.iter().map(|service| {
            let shared = Shared {
                limits: service.session.clone(),
                cookie: service.cookie.clone(),
                connections: Arc::default(),
                admission: Arc::new(Admission::new(&service.session)),
            };
            (service.name.clone(), shared)
        });
        Self { store, keys, peers, services: services.collect(), connections, runtime: Handle::current() }
    }

    /// Of the servers of each service.
    pub(super) fn counters(&self) -> BTreeMap<String, ServerCounters> {
        let counters = |shared: &Shared| ServerCounters {
            connections: shared.connections.clone(),
            admission: shared.admission.clone(),
        };
        self.services.iter().map(|(name, shared)| (name.clone(), counters(shared))).collect()
    }
}

impl Server for SessionServers {
    fn next_epoch(&self, spec: &ManagedSpec) -> anyhow::Result<u32> {
        // The server's own thread asks before it serves, so nobody else waits.
        self.runtime
            .block_on(self.store.next_epoch(spec.slot))
            .with_context(|| format!("no next epoch for {}/{}", spec.service, spec.name))
    }

    fn serve(
        &self,
        spec: &ManagedSpec,
        epoch: u32,
        socket: ServerSocket,
        mut shutdown: watch::Receiver<bool>,
    ) -> LocalBoxFuture<'static, anyhow::Result<()>> {
        let Shared { limits, cookie, connections: counters, admission } =
            self.services[&spec.service].clone();
        let instance = Instance { service: spec.service_id, slot: spec.slot, epoch, name: spec.name.clone() };
        let (held, instance) = watch::channel(instance);
        let context = ServerContext {
            instance,
            store: self.store.clone(),
            keys: self.keys.clone(),
            peers: self.peers.clone(),
            limits,
            connections: self.connections,
            counters,
            admission,
            cookie,
            clock: Arc::new(unix_millis),
        };
        async move {
            let stopped = async move {
                // Its end without a word means the same.
                let _ = shutdown.wait_for(|stop| *stop).await;
            };
            let served = match socket {
                ServerSocket::Tcp(listener) => server::serve(listener, context, stopped).await,
                ServerSocket::Udp(socket) => server::datagram::serve(socket, context, stopped).await,
            };
            drop(held);
            Ok(served?)
        }
        .boxed_local()
    }
}
