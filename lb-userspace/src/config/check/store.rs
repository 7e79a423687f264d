//! The store of sessions: which kind, and what each kind needs.

use super::Checker;
use crate::config::fault::{Span, suggest};
use crate::config::raw::{RawStore, StoreTable};
use crate::config::store::without_password;
use crate::config::{Redis, Store};
use serde_spanned::Spanned;
use std::collections::BTreeSet;
use std::time::Duration;

const SLED: &str = "write store = { kind = \"sled\", path = \"/var/lib/lb/sessions\" }";
const REDIS: &str = "write store = { kind = \"redis\", nodes = [\"redis://10.0.0.5:6379\"] }";
const MAX_REPLICAS: u32 = 5;
const NODE: &str = "write it like redis://10.0.0.5:6379 or redis://user:password@host:6379/0";

impl Checker<'_, '_> {
    pub(super) fn store(&mut self, raw: Option<Spanned<RawStore>>) -> Store {
        let Some(raw) = raw else { return Store::default() };
        let span = raw.span();
        match raw.into_inner() {
            RawStore::Path(path) => self.sled(Some(Spanned::new(span.clone(), path)), &span, false),
            RawStore::Table(table) => match &table.kind {
                Some(kind) if kind.get_ref() == "sled" => {
                    let foreign = [
                        ("nodes", span_of(&table.nodes)),
                        ("replicas", span_of(&table.replicas)),
                        ("prefix", span_of(&table.prefix)),
                        ("lease", span_of(&table.lease)),
                        ("deadline", span_of(&table.deadline)),
                        ("volatile", span_of(&table.volatile)),
                    ];
                    self.foreign("sled", foreign, "it has `path` alone");
                    self.sled(table.path, &span, table.mistyped)
                }
                Some(kind) if kind.get_ref() == "redis" => {
                    let help = "it has `nodes`, `replicas`, `prefix`, `lease`, `deadline` and `volatile`";
                    self.foreign("redis", [("path", span_of(&table.path))], help);
                    Store::Redis(self.redis(*table, &span))
                }
                Some(kind) => {
                    let help = suggest(kind.get_ref(), &["sled", "redis"]);
                    self.faults.push(kind.span(), format!("`{}` is no kind of store", kind.get_ref()), help);
                    Store::default()
                }
                None => {
                    let help = format!("{SLED}, or kind = \"redis\" with its nodes");
                    self.missing(table.mistyped, span, "the store has no `kind`", &help);
                    Store::default()
                }
            },
        }
    }

    fn sled(&mut self, path: Option<Spanned<String>>, span: &Span, mistyped: bool) -> Store {
        match path {
            Some(path) if path.get_ref().is_empty() => {
                self.faults.push(path.span(), "the path of the store is empty", SLED);
                Store::default()
            }
            Some(path) if path.get_ref().contains("://") => {
                // A short form for Redis would leave its other keys without a place.
                self.faults.push(path.span(), "the store is a URL, but must be a directory", REDIS);
                Store::default()
            }
            Some(path) => Store::Sled { path: self.base.join(path.into_inner()) },
            None => {
                self.missing(mistyped, span.clone(), "a sled store has no `path`", SLED);
                Store::default()
            }
        }
    }

    fn redis(&mut self, table: StoreTable, span: &Span) -> Redis {
        let mut nodes = Vec::new();
        let mut addresses = BTreeSet::new();
        let mut logins = BTreeSet::new();
        let raw = table.nodes.map(|nodes| (nodes.span(), nodes.into_inner()));
        if raw.as_ref().is_none_or(|(_, nodes)| nodes.is_empty()) {
            let span = raw.as_ref().map_or(span.clone(), |(span, _)| span.clone());
            self.missing(table.mistyped, span, "a redis store has no `nodes`", REDIS);
        }
        let raw = raw.map_or_else(Vec::new, |(_, nodes)| nodes);
        let several = raw.len() > 1;
        for node in raw {
            let Node { address, login, database } = match parse_node(node.get_ref()) {
                Ok(node) => node,
                Err((reason, help)) => {
                    self.faults.push(node.span(), reason, help);
                    continue;
                }
            };
            logins.insert(login.to_owned());
            let (reason, help) = if several && database > 0 {
                let reason =
                    format!("several nodes are a cluster, which has database 0 alone, not {database}");
                (reason, "leave the number at its end away")
            } else if logins.len() > 1 {
                let reason = format!("node {address} has another user or password than the first");
                (reason, "all nodes of a cluster have the same")
            } else if !addresses.insert(address.clone()) {
                (format!("node {address} is named twice"), "name each once")
            } else {
                nodes.push(node.into_inner());
                continue;
            };
            self.faults.push(node.span(), reason, help);
        }
        let default = Redis::default();
        let (shortest, longest) = (Duration::from_millis(100), Duration::from_secs(60));
        Redis {
            nodes,
            replicas: self.replicas(table.replicas),
            prefix: self.prefix(table.prefix),
            lease: self.duration(&table.lease, "lease", shortest..=longest, default.lease),
            deadline: self.duration(&table.deadline, "deadline", shortest..=longest, default.deadline),
            volatile: table.volatile.is_some_and(Spanned::into_inner),
        }
    }

    fn replicas(&mut self, raw: Option<Spanned<u64>>) -> Option<u32> {
        let raw = raw?;
        let wanted = u32::try_from(*raw.get_ref()).ok().filter(|wanted| *wanted <= MAX_REPLICAS);
        if wanted.is_none() {
            let help =
                format!("it must be from 0 to {MAX_REPLICAS}; without it, it is 1 in a cluster, else 0");
            self.faults.push(raw.span(), format!("`replicas` is {}", raw.get_ref()), help);
        }
        wanted
    }

    fn prefix(&mut self, raw: Option<Spanned<String>>) -> String {
        let Some(prefix) = raw else { return Redis::default().prefix };
        let text = prefix.get_ref();
        // Braces say which part of a key decides its place in a cluster; the store uses that itself.
        let legal = |c: char| c.is_ascii_graphic() && !"{}*?[]\\^".contains(c);
        if text.is_empty() || text.len() > 64 || !text.chars().all(legal) {
            let reason = format!("the prefix \"{text}\" cannot begin keys");
            let help = "use 1 to 64 letters, digits and signs without braces, brackets, stars, question marks, such as lb:";
            self.faults.push(prefix.span(), reason, help);
        }
        prefix.into_inner()
    }

    /// Keys that belong to another kind of store.
    fn foreign<const N: usize>(&mut self, kind: &str, keys: [(&str, Option<Span>); N], help: &str) {
        for (key, span) in keys {
            if let Some(span) = span {
                self.faults.push(span, format!("a {kind} store has no `{key}`"), help);
            }
        }
    }
}

fn span_of<T>(value: &Option<Spanned<T>>) -> Option<Span> {
    value.as_ref().map(Spanned::span)
}

/// A node, as its URL names it.
struct Node<'a> {
    /// Host and port.
    address: String,
    /// User and password.
    login: &'a str,
    database: u32,
}

/// The node, or what is wrong with its URL, and what to do.
fn parse_node(url: &str) -> Result<Node<'_>, (String, String)> {
    let wrong = |what: &str| (format!("node `{}` {what}", without_password(url)), NODE.to_owned());
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err((format!("node `{url}` is no URL"), format!("write redis://{url}")));
    };
    match scheme {
        "redis" | "valkey" => {}
        "rediss" | "valkeys" => {
            let help = "TLS is not there yet: put a tunnel such as stunnel before it, and name the tunnel's end here";
            return Err((wrong("wants TLS").0, help.to_owned()));
        }
        _ => return Err(wrong("is no URL of Redis")),
    }
    let (login, place) = rest.rsplit_once('@').unwrap_or(("", rest));
    let (address, database) = place.split_once('/').unwrap_or((place, ""));
    let database = match database {
        "" => 0,
        number => number.parse().map_err(|_| wrong("has no number of a database at its end"))?,
    };
    // The colons of an IPv6 address stand in brackets.
    let port_at = address.rfind(']').unwrap_or(0);
    let (host, port) = match address[port_at..].rfind(':') {
        Some(colon) => (&address[..port_at + colon], &address[port_at + colon + 1..]),
        None => (address, "6379"),
    };
    if host.is_empty() || host.contains(char::is_whitespace) {
        return Err(wrong("names no host"));
    }
    match port.parse::<u16>() {
        Ok(port) if port > 0 => Ok(Node { address: format!("{host}:{port}"), login, database }),
        _ => Err(wrong("has no port from 1 to 65535")),
    }
}
