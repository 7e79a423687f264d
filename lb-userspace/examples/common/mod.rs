//! What both shops share: their command line, their place behind the balancer, what they sell and how it looks. Nothing
//! here knows how sessions get to the handlers.

pub(crate) mod page;

use anyhow::{Context, bail};
use axum::Router;
use lb_userspace::session::{
    Keyring, Member, MemoryStore, RedisOptions, RedisStore, SessionStore, SledStore,
};
use std::io::IsTerminal;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

#[derive(clap::Parser)]
pub(crate) struct Options {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: SocketAddr,
    /// Where sessions are kept: `memory` (for a try), `sled:DIRECTORY` (one process), `redis://HOST[:PORT]` (several; of a
    /// cluster some nodes, separated by commas)
    #[arg(long, default_value = "memory")]
    store: String,
    /// Name of the service in lbd's configuration
    #[arg(long, default_value = "shop")]
    service: String,
    /// Name of this backend in lbd's configuration; every process needs its own
    #[arg(long, default_value = "web1")]
    backend: String,
    /// lbd's key file, or a copy of it; made if there is none
    #[arg(long, default_value = "keys.toml")]
    keys: PathBuf,
}

/// One process of the shop.
pub(crate) struct Place {
    pub(crate) member: Member,
    pub(crate) keys: Keyring,
    listen: SocketAddr,
}

impl Options {
    /// Opens the store, takes this backend's place, and reads the keys.
    pub(crate) async fn open(self) -> anyhow::Result<Place> {
        let colours = std::io::stderr().is_terminal();
        tracing_subscriber::fmt()
            .with_env_filter("info")
            .with_ansi(colours)
            .with_writer(std::io::stderr)
            .init();
        let store = open(&self.store).await.with_context(|| format!("store {}", self.store))?;
        let keys = Keyring::open_or_create(&self.keys)?;
        let member = Member::join(store, &self.service, &self.backend).await?;
        Ok(Place { member, keys, listen: self.listen })
    }
}

async fn open(store: &str) -> anyhow::Result<Arc<dyn SessionStore>> {
    match store.split_once(':') {
        None if store == "memory" => Ok(Arc::new(MemoryStore::new())),
        Some(("sled", path)) => Ok(Arc::new(SledStore::open(Path::new(path))?)),
        Some(("redis", _)) => {
            let nodes = store.split(',').map(str::to_owned).collect();
            Ok(Arc::new(RedisStore::open(RedisOptions { nodes, ..RedisOptions::default() }).await?))
        }
        _ => bail!("there is `memory`, `sled:DIRECTORY` and `redis://HOST`"),
    }
}

/// Serves until SIGTERM or Ctrl-C, and finishes the requests under way.
pub(crate) async fn serve(listen: SocketAddr, app: Router) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await.with_context(|| format!("listening at {listen}"))?;
    eprintln!("the shop is open at http://{}", listener.local_addr()?);
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    Ok(axum::serve(listener, app).with_graceful_shutdown(stop).await?)
}

impl Place {
    pub(crate) fn listen(&self) -> SocketAddr {
        self.listen
    }
}
