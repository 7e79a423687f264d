//! Where sessions are kept, as configured.

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
        }
    }
}

impl fmt::Debug for Redis {
    /// Never shows a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nodes: Vec<_> = self.nodes.iter().map(|node| without_password(node)).collect();
        f.debug_struct("Redis")
            .field("nodes", &nodes)
            .field("replicas", &self.replicas)
            .field("prefix", &self.prefix)
            .field("lease", &self.lease)
            .field("deadline", &self.deadline)
            .field("volatile", &self.volatile)
            .finish()
    }
}

/// A text with the passwords of the URLs in it hidden, character for character, so that places in it stay where they
/// are.
pub(super) fn without_password(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, url) = rest.split_at(at + 3);
        shown.push_str(before);
        let end = url.find(['"', '\'']).unwrap_or(url.len());
        // The last one: a password may have one of its own.
        let login = url[..end].rfind('@').unwrap_or(0);
        let user = url[..login].find(':').map_or(login, |colon| colon + 1);
        shown.push_str(&url[..user]);
        shown.extend(url[user..login].chars().map(|_| '*'));
        shown.push_str(&url[login..end]);
        rest = &url[end..];
    }
    shown + rest
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
    fn passwords_are_hidden_and_nothing_else() {
        for (text, shown) in [
            ("redis://h:6379/0", "redis://h:6379/0"),
            ("redis://user@h", "redis://user@h"),
            ("redis://:secret@h:6379", "redis://:******@h:6379"),
            ("redis://user:p@ss:w@h", "redis://user:******@h"),
            (
                "nodes = [\"redis://:a@h\", \"redis://u:bé@i\"] # x",
                "nodes = [\"redis://:*@h\", \"redis://u:**@i\"] # x",
            ),
            ("nodes = [\"redis://:open end@h", "nodes = [\"redis://:********@h"),
            ("no url: at@all", "no url: at@all"),
        ] {
            assert_eq!(without_password(text), shown);
        }
    }

    #[test]
    fn debug_shows_no_password() {
        let nodes = vec!["redis://:secret@h".to_owned()];
        let text = format!("{:?}", Store::Redis(Redis { nodes, ..Redis::default() }));
        assert!(text.contains("redis://:******@h") && !text.contains("secret"), "{text}");
    }
}
