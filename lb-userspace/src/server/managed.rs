//! The session servers as the supervisor runs them: where an epoch comes from, and what a server of which service is.

use super::{ServerContext, serve};
use crate::session::{Clock, Instance, Limits, Peers, SessionStore, TokenKeys};
use crate::supervisor::{ManagedSpec, Server};
use anyhow::Context;
use arc_swap::ArcSwap;
use futures::FutureExt;
use futures::future::LocalBoxFuture;
use std::collections::HashMap;
use std::net::TcpListener;
use std::sync::Arc;
use tokio::sync::watch;

/// What the servers of one service have in common.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SessionService {
    /// Name of the cookie that carries the token.
    pub cookie_name: String,
    pub limits: Limits,
}

/// All session servers of a daemon: one store, one set of keys, one list of caches.
pub struct SessionServers {
    store: Arc<dyn SessionStore>,
    keys: Arc<ArcSwap<TokenKeys>>,
    peers: Arc<Peers>,
    clock: Clock,
    /// By service id.
    services: ArcSwap<HashMap<u16, SessionService>>,
}

impl SessionServers {
    pub fn new(
        store: Arc<dyn SessionStore>,
        keys: Arc<ArcSwap<TokenKeys>>,
        services: HashMap<u16, SessionService>,
        clock: Clock,
    ) -> Self {
        Self { store, keys, peers: Arc::default(), clock, services: ArcSwap::from_pointee(services) }
    }

    /// Exchanges the services' settings; a server has them from its next start on.
    pub fn set_services(&self, services: HashMap<u16, SessionService>) {
        self.services.store(Arc::new(services));
    }
}

impl Server for SessionServers {
    fn next_epoch(&self, spec: &ManagedSpec) -> anyhow::Result<u32> {
        futures::executor::block_on(self.store.next_epoch(spec.slot))
            .with_context(|| format!("no new epoch for {}/{} (slot {})", spec.service, spec.name, spec.slot))
    }

    fn serve(
        &self,
        spec: &ManagedSpec,
        epoch: u32,
        listener: TcpListener,
        mut shutdown: watch::Receiver<bool>,
    ) -> LocalBoxFuture<'static, anyhow::Result<()>> {
        let service = self.services.load().get(&spec.service_id).cloned();
        let name = format!("{}/{}", spec.service, spec.name);
        let instance = Instance { service: spec.service_id, slot: spec.slot, epoch, name: spec.name.clone() };
        let (store, keys, peers, clock) =
            (self.store.clone(), self.keys.clone(), self.peers.clone(), self.clock.clone());
        async move {
            let SessionService { cookie_name, limits } =
                service.with_context(|| format!("{name}: its service has no session servers"))?;
            let context = ServerContext {
                instance: watch::channel(instance).1,
                store,
                keys,
                peers,
                limits,
                cookie_name,
                clock,
            };
            // An error says that the supervisor is gone: as good a reason to stop.
            let stopped = async move { drop(shutdown.wait_for(|stop| *stop).await) };
            serve(listener, context, stopped).await.with_context(|| format!("{name}: cannot serve"))
        }
        .boxed_local()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::SledStore;
    use crate::session::store::sled::SledOptions;
    use crate::session::unix_millis;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    fn spec(service_id: u16) -> ManagedSpec {
        ManagedSpec {
            service: "shop".into(),
            service_id,
            name: "s1".into(),
            slot: 4,
            addr: "127.0.0.1:0".parse().unwrap(),
            gateway: "127.0.0.1".parse().unwrap(),
        }
    }

    fn servers(directory: &tempfile::TempDir) -> SessionServers {
        let options = SledOptions { cache_bytes: 16 << 20, reserve_bytes: 0 };
        let store = SledStore::open_with(&directory.path().join("store"), options).unwrap();
        let service = SessionService { cookie_name: "lb".into(), limits: Limits::default() };
        SessionServers::new(
            Arc::new(store),
            Arc::new(ArcSwap::from_pointee(TokenKeys::generate().unwrap())),
            HashMap::from([(1, service)]),
            Arc::new(unix_millis),
        )
    }

    #[tokio::test]
    async fn runs_as_the_instance_it_was_given_until_it_is_told_to_stop() {
        let directory = tempfile::tempdir().unwrap();
        let servers = servers(&directory);
        assert_eq!([servers.next_epoch(&spec(1)).unwrap(), servers.next_epoch(&spec(1)).unwrap()], [1, 2]);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = watch::channel(false);
        let served = servers.serve(&spec(1), 2, listener, stopped);
        let client = async {
            let mut stream = tokio::net::TcpStream::connect(addr).await.unwrap();
            stream.write_all(b"GET /session HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.unwrap();
            assert!(answer.contains("lb-server: s1") && answer.contains("lb-epoch: 2"), "{answer}");
            stop.send_replace(true);
        };
        let (served, ()) = futures::join!(served, client);
        served.unwrap();
    }

    #[tokio::test]
    async fn a_service_that_nobody_described_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let servers = servers(&directory);
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = servers.serve(&spec(9), 1, listener, watch::channel(false).1).await.unwrap_err();
        assert!(format!("{error:#}").contains("shop/s1"), "{error:#}");
    }
}
