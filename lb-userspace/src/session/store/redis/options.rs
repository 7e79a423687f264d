//! What an operator can choose about the store, and what of it makes no sense.

use super::StoreError;
use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo, RedisConnectionInfo};
use std::path::PathBuf;
use std::time::Duration;

/// Where the store is and how it is used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedisOptions {
    /// `redis://[user:password@]host[:port][/database]`. One server, or some nodes of a cluster: the others are found.
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
        for node in &self.nodes {
            let (addr, login) = parse(node).map_err(refuse)?;
            match &mut seeds {
                None => seeds = Some(Seeds { addrs: vec![addr], login }),
                Some(seeds) if seeds.login.same(&login) => seeds.addrs.push(addr),
                Some(_) => {
                    return Err(refuse(format!(
                        "node {addr} has another user, password or database than the first: all nodes of a cluster have \
                         the same"
                    )));
                }
            }
        }
        seeds.ok_or_else(|| refuse("no node: name at least one as redis://host:port".into()))
    }

    /// For messages: the nodes without their passwords.
    pub(super) fn place(&self) -> PathBuf {
        let nodes: Vec<String> = self.nodes.iter().map(|node| public(node)).collect();
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
}

fn parse(node: &str) -> Result<(Addr, Login), String> {
    if node.starts_with("rediss://") {
        return Err(format!(
            "node {}: this version has no TLS; use redis:// over a network that only the balancers and the store can \
             reach, or a tunnel",
            public(node)
        ));
    }
    let info: ConnectionInfo =
        node.into_connection_info().map_err(|error| format!("node {:?}: {error}", public(node)))?;
    let ConnectionAddr::Tcp(host, port) = info.addr() else {
        return Err(format!("node {:?} is not redis://host:port", public(node)));
    };
    let addr = Addr { host: host.clone(), port: *port };
    Ok((addr, Login(info.redis_settings().clone().set_skip_set_lib_name())))
}

/// A node's URL without what may be secret in it: user, password, and whatever is asked for after the place. Also of what is
/// no URL, perhaps because only its beginning was forgotten.
fn public(node: &str) -> String {
    let (scheme, rest) = node.split_once("://").unwrap_or_default();
    let (separator, rest) = if scheme.is_empty() { ("", node) } else { ("://", rest) };
    let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
    let place = place.split_once('?').map_or(place, |(place, _)| place);
    format!("{scheme}{separator}{place}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(nodes: &[&str]) -> RedisOptions {
        RedisOptions {
            nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
            ..RedisOptions::default()
        }
    }

    #[test]
    fn nodes_are_read_as_meant() {
        let seeds = options(&["redis://u:p@one:7000", "redis://u:p@[::1]"]).seeds().unwrap();
        let text: Vec<String> = seeds.addrs.iter().map(Addr::to_string).collect();
        assert_eq!(text, ["one:7000", "[::1]:6379"]);
        assert_eq!(seeds.login.info().username(), Some("u"));
        assert_eq!(seeds.login.info().password(), Some("p"));
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_passwords_are_not_told() {
        let short = Duration::from_millis(1);
        let one = || options(&["redis://one"]);
        for (options, why) in [
            (options(&[]), "no node"),
            (options(&["rediss://u:secret@one"]), "rediss://one: this version has no TLS"),
            (options(&["http://u:secret@one"]), "http://one"),
            (options(&["unix:///run/redis"]), "is not redis://host:port"),
            (options(&["redis+unix:///run/redis?pass=secret"]), "redis+unix:///run/redis"),
            (options(&["u:secret@one:7000"]), "one:7000"),
            (options(&["//u:secret@one"]), "one"),
            (options(&["redis://u:secret@one", "redis://two"]), "node two:6379 has another user"),
            (RedisOptions { prefix: "a{b".into(), ..one() }, "has a brace"),
            (RedisOptions { lease: short, ..one() }, "lease is 1ms"),
            (RedisOptions { deadline: short, ..one() }, "deadline is 1ms"),
        ] {
            let message = options.check().unwrap_err().to_string();
            assert!(message.contains(why) && !message.contains("secret"), "{message}");
        }
    }
}
