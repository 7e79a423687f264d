//! The store of sessions: which kind, and what each kind needs.

use super::Checker;
use crate::config::fault::{Span, suggest};
use crate::config::raw::{RawStore, StoreTable};
use crate::config::{Redis, Store};
use crate::session::RedisTls;
use crate::session::store::redis::url::{NodeUrl, PERCENT};
use serde_spanned::Spanned;
use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
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
                        ("waitaof", span_of(&table.waitaof)),
                        ("ca_file", span_of(&table.ca_file)),
                        ("cert_file", span_of(&table.cert_file)),
                        ("key_file", span_of(&table.key_file)),
                        ("server_name", span_of(&table.server_name)),
                    ];
                    self.foreign("sled", foreign, "it has `path` alone");
                    self.sled(table.path, &span, table.mistyped)
                }
                Some(kind) if kind.get_ref() == "redis" => {
                    let help = "it has `nodes`, `replicas`, `prefix`, `lease`, `deadline`, `volatile`, `waitaof`, `ca_file`, `cert_file`, \
                                `key_file` and `server_name`";
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
            Some(path) if is_node(path.get_ref()) => {
                // Else it would be made as a directory, with a password for a name.
                let reason = "the store is a node of Redis, but must be a directory";
                self.faults.push(path.span(), reason, REDIS);
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
        let mut tls = None;
        let raw = table.nodes.map(|nodes| (nodes.span(), nodes.into_inner()));
        if raw.as_ref().is_none_or(|(_, nodes)| nodes.is_empty()) {
            let span = raw.as_ref().map_or(span.clone(), |(span, _)| span.clone());
            self.missing(table.mistyped, span, "a redis store has no `nodes`", REDIS);
        }
        let raw = raw.map_or_else(Vec::new, |(_, nodes)| nodes);
        let several = raw.len() > 1;
        for node in raw {
            let url = match NodeUrl::parse(node.get_ref()) {
                Ok(url) => url,
                Err(reason) => {
                    // Which one it is shows the mark, and not what is in it.
                    self.faults.push(node.span(), format!("the node {reason}"), format!("{NODE}; {PERCENT}"));
                    continue;
                }
            };
            let (address, database) = (url.address(), url.database);
            logins.insert(url.login.to_owned());
            let (reason, help) = if several && database > 0 {
                let reason =
                    format!("several nodes are a cluster, which has database 0 alone, not {database}");
                (reason, "leave the number at its end away")
            } else if logins.len() > 1 {
                let reason = format!("node {address} has another user or password than the first");
                (reason, "all nodes of a cluster have the same")
            } else if *tls.get_or_insert(url.tls) != url.tls {
                (
                    format!("node {address} has another scheme than the first"),
                    "all have TLS, rediss://, or none",
                )
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
            waitaof: table.waitaof.is_none_or(Spanned::into_inner),
            tls: self.redis_tls(
                tls,
                [("ca_file", table.ca_file), ("cert_file", table.cert_file), ("key_file", table.key_file)],
                table.server_name,
            ),
        }
    }

    /// `used`: whether the nodes have TLS, if there is one.
    fn redis_tls(
        &mut self,
        used: Option<bool>,
        files: [(&str, Option<Spanned<String>>); 3],
        name: Option<Spanned<String>>,
    ) -> RedisTls {
        let before = self.faults.len();
        let given =
            files.iter().map(|(key, file)| (*key, span_of(file))).chain([("server_name", span_of(&name))]);
        let given: Vec<_> = given.filter_map(|(key, span)| Some((key, span?))).collect();
        if used == Some(false) {
            for (key, span) in &given {
                let reason = format!("`{key}` is for TLS, and the nodes have none");
                self.faults.push(
                    span.clone(),
                    reason,
                    "write the nodes as rediss://host:port, or leave it away",
                );
            }
        }
        let [ca, cert, key] = files.map(|(_, file)| file);
        match (&cert, &key) {
            (Some(cert), None) => {
                self.faults.push(
                    cert.span(),
                    "`cert_file` has no `key_file`",
                    "name the file of its key, too",
                );
            }
            (None, Some(key)) => {
                self.faults.push(
                    key.span(),
                    "`key_file` has no `cert_file`",
                    "name its certificate's file, too",
                );
            }
            _ => {}
        }
        let named = |file: Option<Spanned<String>>| file.map(|file| self.base.join(file.into_inner()));
        let key_span = key.as_ref().map(Spanned::span);
        let tls = RedisTls {
            ca_file: named(ca),
            cert_file: named(cert),
            key_file: named(key),
            server_name: name.map(Spanned::into_inner),
        };
        if let (Some(path), Some(span)) = (&tls.key_file, key_span)
            && std::fs::metadata(path).is_ok_and(|found| found.permissions().mode() & 0o077 != 0)
        {
            let reason = format!("others than its owner can read the key file {}", path.display());
            self.faults.push(span, reason, "run chmod 600 on it");
        }
        if used == Some(true)
            && self.faults.len() == before
            && let Err(reason) = tls.check(true)
        {
            // The reason begins with the option that it is about.
            let at = given.iter().find(|(key, _)| reason.starts_with(key)).map(|(_, span)| span.clone());
            self.faults.push(
                at.unwrap_or(0..0),
                reason,
                "the files are PEM; the name is a host's or an IP address",
            );
        }
        tls
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

/// Whether a path is more likely a node whose scheme was forgotten, for it begins with user and password.
fn is_node(path: &str) -> bool {
    let url = format!("redis://{path}");
    !path.contains('/') && NodeUrl::parse(&url).is_ok_and(|url| url.login.contains(':'))
}

fn span_of<T>(value: &Option<Spanned<T>>) -> Option<Span> {
    value.as_ref().map(Spanned::span)
}
