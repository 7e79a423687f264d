//! Where sessions are kept, as configured.

use crate::session::RedisTls;
use crate::session::store::redis::url::masked;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// The store of all sessions. Nothing else in a configuration depends on its kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Store {
    /// The embedded database in this directory.
    Sled { path: PathBuf },
    /// Redis or Valkey, on machines of its own.
    Redis(Redis),
}

impl Default for Store {
    fn default() -> Self {
        Self::Sled { path: "/var/lib/lb/sessions".into() }
    }
}

/// A Redis or Valkey server, or a cluster of them.
#[derive(Clone, PartialEq, Eq)]
pub struct Redis {
    /// URLs, passwords included. Several are nodes of one cluster.
    pub nodes: Vec<String>,
    /// Replicas that must have a write before it is acknowledged; `None`: one in a cluster, none of a single server.
    pub replicas: Option<u32>,
    /// What every key begins with.
    pub prefix: String,
    /// How long copies in memory may be answered from without news of what other processes changed.
    pub lease: Duration,
    /// How long one operation is tried again while servers fail over.
    pub deadline: Duration,
    /// Accept servers that may forget acknowledged writes.
    pub volatile: bool,
    /// Wait for the servers' disks where all have WAITAOF.
    pub waitaof: bool,
    /// How to know the servers, where the nodes are `rediss://`.
    pub tls: RedisTls,
}

impl Default for Redis {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            replicas: None,
            prefix: "lb:".into(),
            lease: Duration::from_secs(1),
            deadline: Duration::from_secs(2),
            volatile: false,
            waitaof: true,
            tls: RedisTls::default(),
        }
    }
}

impl fmt::Debug for Redis {
    /// Never shows a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<_> = self.nodes.iter().map(|node| masked(node)).collect();
        f.debug_struct("Redis")
            .field("nodes", &nodes)
            .field("replicas", &self.replicas)
            .field("prefix", &self.prefix)
            .field("lease", &self.lease)
            .field("deadline", &self.deadline)
            .field("volatile", &self.volatile)
            .field("waitaof", &self.waitaof)
            .field("tls", &self.tls)
            .finish()
    }
}

impl Store {
    /// Where it is, for people.
    pub fn place(&self) -> String {
        match self {
            Self::Sled { path } => format!("sled {}", path.display()),
            Self::Redis(redis) => format!("redis, {} nodes", redis.nodes.len()),
        }
    }

    /// Whether a password stands in the configuration.
    pub fn has_password(&self) -> bool {
        match self {
            Self::Sled { .. } => false,
            // In front of the last `@` of a URL stand user and password.
            Self::Redis(redis) => redis.nodes.iter().any(|node| {
                let rest = node.split_once("://").map_or(node.as_str(), |(_, rest)| rest);
                rest.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'))
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_password() {
        let nodes = ["redis://:secret@h", "u:secret@i", "redis://j:secret"].map(str::to_owned).to_vec();
        let text = format!("{:?}", Store::Redis(Redis { nodes, ..Redis::default() }));
        assert!(text.contains("redis://*******@h") && !text.contains("secret"), "{text}");
    }
}
