//! The names of servers that backends are listed for: each by itself, and what goes with them.

use super::Checker;
use crate::config::fault::Span;
use crate::config::{Affinity, Backend, Limits, Place, Protocol, ServerName, Service};
use serde_spanned::Spanned;

/// Where a backend's names stand in the file.
pub(super) struct Listed {
    pub(super) backend: String,
    pub(super) managed: bool,
    /// All of them; none where the backend has no `sni`.
    pub(super) span: Option<Span>,
}

impl Checker<'_, '_> {
    pub(super) fn server_names(&mut self, raw: Option<Spanned<Vec<Spanned<String>>>>) -> Vec<ServerName> {
        let Some(raw) = raw else { return Vec::new() };
        if raw.get_ref().is_empty() {
            let help = "leave it away: the backend then takes what no other is listed for";
            self.faults.push(raw.span(), "`sni` names nobody", help);
        }
        let mut names = Vec::new();
        for raw in raw.into_inner() {
            match ServerName::parse(raw.get_ref()) {
                Ok(name) if names.contains(&name) => {
                    let reason = format!("the server's name `{name}` is listed twice");
                    self.faults.push(
                        raw.span(),
                        reason,
                        "leave one of them away: upper and lower case are the same",
                    );
                }
                Ok(name) => names.push(name),
                Err((reason, help)) => self.faults.push(raw.span(), reason, help),
            }
        }
        names
    }

    /// Names are for services that read them, and those for servers that speak TLS.
    pub(super) fn names_are_read(
        &mut self,
        affinity: &Affinity,
        protocol: Protocol,
        affinity_span: &Span,
        listed: &[Listed],
    ) {
        let by_name = affinity.place() == Some(&Place::Sni);
        for Listed { backend, managed, span } in listed {
            let Some(span) = span else { continue };
            let (reason, help) = match affinity {
                _ if *managed => (
                    format!("`sni` of `{backend}`, which lbd runs: those servers do not speak TLS"),
                    "leave it away, or give the backend an addr instead of managed = true".to_owned(),
                ),
                _ if by_name => continue,
                _ if protocol == Protocol::Udp => (
                    format!("`sni` of `{backend}`, in a udp service"),
                    "leave it away: names are read in TLS over tcp alone".to_owned(),
                ),
                Affinity::Source { .. } | Affinity::None { .. } => {
                    let kind = affinity.kind();
                    (
                        format!("`sni` of `{backend}`, but affinity `{kind}` binds before the client has named anybody"),
                        format!("write affinity = {{ kind = \"{kind}\", sni = true }}"),
                    )
                }
                _ => (
                    format!("`sni` of `{backend}`, but affinity `{}` reads no server's name", affinity.kind()),
                    "write affinity = { kind = \"hashed\", sni = true }, or kind `source` or `none` with sni = true".to_owned(),
                ),
            };
            self.faults.push(span.clone(), reason, help);
        }
        let managed = listed.iter().find(|listed| listed.managed && listed.span.is_none());
        if let Some(Listed { backend, .. }) = managed.filter(|_| by_name) {
            self.faults.push(
                affinity_span.clone(),
                format!(
                    "the server's name is read in TLS, and `{backend}`, which lbd runs, does not speak that"
                ),
                "choose another affinity, or give the backend an addr instead of managed = true",
            );
        }
    }

    /// Somebody must take what is listed, and what is not.
    pub(super) fn takers(&mut self, backends: &[Backend], listed: &[Listed], service: &Span) {
        for pool in crate::config::name::pools(backends) {
            if pool.backends.iter().all(|place| backends[*place].weight == 0) {
                let span = listed[pool.backends[0]].span.clone().unwrap_or(0..0);
                let reason = format!(
                    "every backend that is listed for `{}` has weight 0: none takes it",
                    pool.names[0]
                );
                self.faults.push(span, reason, "give one of them a weight from 1 to 256");
            }
        }
        let mut rest = backends.iter().filter(|backend| backend.sni.is_empty()).peekable();
        let by_names = listed.iter().any(|listed| listed.span.is_some());
        if by_names && rest.peek().is_some() && rest.all(|backend| backend.weight == 0) {
            self.faults.push(
                service.clone(),
                "every backend without `sni` has weight 0: none takes what no other is listed for",
                "give one of them a weight from 1 to 256, or take them out",
            );
        }
    }

    /// All that is listed must have room in the maps.
    pub(super) fn room_for_names(&mut self, services: &[Service], limits: &Limits) {
        let pools: Vec<_> = services.iter().flat_map(Service::pools).collect();
        let names: usize = pools.iter().map(|pool| pool.names.len()).sum();
        for (count, limit, key, what) in [
            (names, limits.names, "names", "names of servers"),
            (pools.len(), limits.pools, "pools", "different sets of backends that are listed for names"),
        ] {
            if count > limit as usize {
                let reason = format!("{count} {what}, but `{key}` in [limits] is {limit}");
                self.faults.push(0..0, reason, format!("raise it to {count} or more"));
            }
        }
    }
}
