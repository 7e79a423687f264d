//! What an operator can choose about the store, and what of it makes no sense.

use super::StoreError;
use super::tls::RedisTls;
use super::url::{self, NodeUrl, PERCENT};
use redis::{IntoConnectionInfo, RedisConnectionInfo};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

/// Where the store is and how it is used.
#[derive(Clone, PartialEq, Eq)]
pub struct RedisOptions {
    /// `redis://[user:password@]host[:port][/database]`, or `rediss://` for TLS. One server, or some nodes of a cluster: the
    /// others are found.
    pub nodes: Vec<String>,
    /// What all keys begin with. Stores with different prefixes can share a server.
    pub prefix: String,
    /// How many replicas must have a change before it is acknowledged. `None`: one in a cluster, none of a single server. A
    /// failover takes nothing back as long as it elects one that had to have it; so the strict choice is the number of
    /// replicas that each primary has.
    pub replicas: Option<u32>,
    /// How long copies in memory may be answered from without news of what other processes changed. A process that dies
    /// or hangs keeps the others from its sessions for about twice as long.
    pub lease: Duration,
    /// How long one operation is tried again while servers fail over, before it is given up.
    pub deadline: Duration,
    /// Accept servers that forget acknowledged writes: without an append-only file, or with replicas that may take over
    /// without having them. For trials only.
    pub volatile: bool,
    /// Wait until a change is on the disks, of the primary and of its replicas, where all servers have WAITAOF (Redis 7.2,
    /// Valkey 7.2) and an append-only file. Else only WAIT is used: a change is in the memory of the replicas then.
    pub waitaof: bool,
    /// How to know the servers, and how to be known to them, where the nodes are `rediss://`.
    pub tls: RedisTls,
}

impl fmt::Debug for RedisOptions {
    /// Never shows a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RedisOptions")
            .field("nodes", &self.nodes.iter().map(|node| url::masked(node)).collect::<Vec<_>>())
            .field("prefix", &self.prefix)
            .field("replicas", &self.replicas)
            .field("lease", &self.lease)
            .field("deadline", &self.deadline)
            .field("volatile", &self.volatile)
            .field("waitaof", &self.waitaof)
            .field("tls", &self.tls)
            .finish()
    }
}

impl Default for RedisOptions {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            prefix: "lb:".into(),
            replicas: None,
            lease: Duration::from_secs(1),
            deadline: Duration::from_secs(2),
            volatile: false,
            waitaof: true,
            tls: RedisTls::default(),
        }
    }
}

impl RedisOptions {
    /// Shortest and longest lease: below, a busy machine loses it; above, a crash keeps sessions away for long.
    pub const LEASE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(60)];
    /// Shortest and longest deadline.
    pub const DEADLINE: [Duration; 2] = [Duration::from_millis(100), Duration::from_secs(60)];

    /// Finds out whether these make sense, without connecting anywhere.
    ///
    /// # Errors
    /// [`StoreError::Open`], naming the option.
    pub fn check(&self) -> Result<(), StoreError> {
        self.seeds().map(drop)
    }

    /// The nodes' addresses, and how to log in to all of them.
    pub(super) fn seeds(&self) -> Result<Seeds, StoreError> {
        let refuse = |reason: String| StoreError::Open { path: self.place(), reason };
        let within = |name: &str, value: Duration, [least, most]: [Duration; 2]| {
            if value < least || value > most {
                return Err(refuse(format!(
                    "{name} is {value:?}: it must be between {least:?} and {most:?}"
                )));
            }
            Ok(())
        };
        within("lease", self.lease, Self::LEASE)?;
        within("deadline", self.deadline, Self::DEADLINE)?;
        if self.prefix.contains(['{', '}']) {
            return Err(refuse(format!(
                "prefix {:?} has a brace, which would put all sessions on one node of a cluster",
                self.prefix
            )));
        }
        let mut seeds: Option<Seeds> = None;
        for (at, node) in self.nodes.iter().enumerate() {
            let at = at + 1;
            let (addr, login, tls) =
                parse(node).map_err(|reason| refuse(format!("node {at} {reason}; {PERCENT}")))?;
            match &mut seeds {
                None => seeds = Some(Seeds { addrs: vec![addr], login, tls }),
                Some(seeds) if seeds.tls != tls => {
                    return Err(refuse(format!(
                        "node {addr} {} TLS, unlike the first: all nodes have the same scheme",
                        if tls { "has" } else { "has no" }
                    )));
                }
                Some(seeds) if seeds.login.same(&login) => seeds.addrs.push(addr),
                Some(_) => {
                    return Err(refuse(format!(
                        "node {addr} has another user, password or database than the first: all nodes of a cluster have \
                         the same"
                    )));
                }
            }
        }
        let seeds = seeds.ok_or_else(|| refuse("no node: name at least one as redis://host:port".into()))?;
        self.tls.check(seeds.tls).map_err(refuse)?;
        Ok(seeds)
    }

    /// For messages: the nodes without their passwords.
    pub(super) fn place(&self) -> PathBuf {
        let shown = |(at, node): (usize, &String)| {
            url::public(node).unwrap_or_else(|| format!("node {}, whose URL is not understood", at + 1))
        };
        let nodes: Vec<String> = self.nodes.iter().enumerate().map(shown).collect();
        nodes.join(",").into()
    }
}

/// `host:port`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(super) struct Addr {
    pub(super) host: String,
    pub(super) port: u16,
}

impl std::fmt::Display for Addr {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// How to log in to every node.
#[derive(Clone)]
pub(super) struct Login(RedisConnectionInfo);

impl Login {
    fn same(&self, other: &Self) -> bool {
        let key = |login: &Self| {
            let RedisLogin { user, password, db } = RedisLogin::of(&login.0);
            (user, password, db)
        };
        key(self) == key(other)
    }

    pub(super) fn db(&self) -> i64 {
        self.0.db()
    }

    pub(super) fn info(&self) -> RedisConnectionInfo {
        self.0.clone()
    }
}

struct RedisLogin {
    user: Option<String>,
    password: Option<String>,
    db: i64,
}

impl RedisLogin {
    fn of(info: &RedisConnectionInfo) -> Self {
        Self {
            user: info.username().map(str::to_owned),
            password: info.password().map(str::to_owned),
            db: info.db(),
        }
    }
}

/// Nodes to begin with.
pub(super) struct Seeds {
    pub(super) addrs: Vec<Addr>,
    pub(super) login: Login,
    pub(super) tls: bool,
}

/// # Errors
/// What is wrong with it; no part of it.
fn parse(node: &str) -> Result<(Addr, Login, bool), &'static str> {
    let url = NodeUrl::parse(node)?;
    // The crate knows the percent forms, and how to log in. Of its errors nothing is told: they may quote the URL.
    let at = if url.login.is_empty() { "" } else { "@" };
    let plain = format!("redis://{}{at}{}/{}", url.login, url.address(), url.database);
    let info = plain.into_connection_info().map_err(|_| "has a user or password in no valid percent form")?;
    let addr = Addr { host: url.host.to_owned(), port: url.port };
    Ok((addr, Login(info.redis_settings().clone().set_skip_set_lib_name()), url.tls))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn options(nodes: &[&str]) -> RedisOptions {
        RedisOptions {
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            ..RedisOptions::default()
        }
    }

    #[test]
    fn nodes_are_read_as_meant() {
        let seeds = options(&["redis://u:p%2F@one:7000", "redis://u:p%2F@[::1]"]).seeds().unwrap();
        let text: Vec<String> = seeds.addrs.iter().map(Addr::to_string).collect();
        assert_eq!(
            (text.as_slice(), seeds.tls),
            (["one:7000".to_owned(), "[::1]:6379".into()].as_slice(), false)
        );
        assert_eq!(seeds.login.info().username(), Some("u"));
        assert_eq!(seeds.login.info().password(), Some("p/"));
        assert!(options(&["rediss://one"]).seeds().unwrap().tls);
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_passwords_are_not_told() {
        let short = Duration::from_millis(1);
        let one = || options(&["redis://one"]);
        for (options, why) in [
            (options(&[]), "no node"),
            (options(&["redis://u:secret@one", "rediss://u:secret@two"]), "node two:6379 has TLS"),
            (options(&["http://u:secret@one"]), "node 1 is no URL of Redis"),
            (options(&["unix:///run/redis"]), "node 1 is no URL of Redis"),
            (options(&["redis://one", "redis+unix:///run/redis?pass=secret"]), "node 2 is no URL of Redis"),
            (options(&["u:secret@one:7000"]), "node 1 is no URL"),
            (options(&["//u:secret@one"]), "node 1 is no URL"),
            (options(&["redis://u:%ffsecret@one"]), "node 1 has a user or password in no valid percent form"),
            (options(&["redis://u:secret@one", "redis://two"]), "node two:6379 has another user"),
            (RedisOptions { prefix: "a{b".into(), ..one() }, "has a brace"),
            (RedisOptions { lease: short, ..one() }, "lease is 1ms"),
            (RedisOptions { deadline: short, ..one() }, "deadline is 1ms"),
        ] {
            let message = options.check().unwrap_err().to_string();
            assert!(message.contains(why) && !message.contains("secret"), "{message}");
        }
    }

    proptest! {
        /// Wherever somebody puts it: whatever is wrong with the node, the password is in no message.
        #[test]
        fn a_password_is_in_no_message_and_no_debug(
            before in "(redis|rediss|valkey|http|unix|)(://|:/|:|//|)(lb|)(:|)", after in "(@|:|/|\\?|#|)(host|)(:6379|:x|)(/0|/x|)",
            noise in "[a-z@:/?#%\\[\\]\"' ]{0,6}", first in "(redis://one|)",
        ) {
            // No part of any host, and long enough to be no accident.
            const PASSWORD: &str = "7Geh3im";
            let node = format!("{before}{PASSWORD}{noise}{after}");
            // A host is no password: `redis://7Geh3im` names one.
            let host = NodeUrl::parse(&node).is_ok_and(|url| url.host.contains(PASSWORD));
            prop_assume!(!host);
            let nodes: Vec<&str> = [first.as_str(), &node].into_iter().filter(|node| !node.is_empty()).collect();
            let options = options(&nodes);
            let error = options.check().err().map(|error| format!("{error} {error:?}"));
            for text in [format!("{options:?}"), error.unwrap_or_default(), options.place().display().to_string()] {
                prop_assert!(!text.contains(PASSWORD), "{} tells of {}", text, node);
            }
        }
    }
}
