//! Opens the store that a configuration names, and answers what lbctl asks of a whole store: for lbd, and for lbctl
//! itself where no lbd runs.

mod answer;

pub use answer::answer;
pub(crate) use answer::count;

use crate::config::{Redis, Store};
use crate::session::store::redis::{RedisOptions, RedisStore};
use crate::session::{SessionStore, SledStore, StoreError};
use std::sync::Arc;

/// The store, ready to be used.
///
/// # Errors
/// [`StoreError`]: names the directory or the node, and what is wrong with it.
pub async fn open(store: &Store) -> Result<Arc<dyn SessionStore>, StoreError> {
    match store {
        Store::Sled { path } => {
            // sled reads what may be gigabytes.
            let directory = path.clone();
            let opened = tokio::task::spawn_blocking(move || SledStore::open(&directory)).await;
            let failed = |error: tokio::task::JoinError| StoreError::Open {
                path: path.clone(),
                reason: error.to_string(),
            };
            Ok(Arc::new(opened.map_err(failed)??))
        }
        Store::Redis(Redis { nodes, replicas, prefix, lease, deadline, volatile, waitaof, tls }) => {
            let options = RedisOptions {
                nodes: nodes.clone(),
                prefix: prefix.clone(),
                replicas: *replicas,
                lease: *lease,
                deadline: *deadline,
                volatile: *volatile,
                waitaof: *waitaof,
                tls: tls.clone(),
            };
            Ok(Arc::new(RedisStore::open(options).await?))
        }
    }
}
