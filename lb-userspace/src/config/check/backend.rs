//! Backends, and the rule that an address and port belong to one service or backend alone.

use super::name::Listed;
use super::quic::Ids;
use super::{Checker, inner};
use crate::config::fault::Span;
use crate::config::raw::RawBackend;
use crate::config::{Backend, Managed, Protocol};
use serde_spanned::Spanned;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::{IpAddr, SocketAddr};

/// Names of what takes an address and port of a protocol.
pub(super) type Taken = HashMap<(Protocol, SocketAddr), String>;

/// What a backend is checked against.
pub(super) struct Context<'a> {
    pub(super) service: &'a str,
    pub(super) protocol: Protocol,
    pub(super) managed: &'a Managed,
    pub(super) vips: &'a [IpAddr],
}

impl Checker<'_, '_> {
    pub(super) fn backends(
        &mut self,
        raw: Option<Spanned<Vec<Spanned<RawBackend>>>>,
        (service_span, mistyped): (&Span, bool),
        context: &Context<'_>,
        taken: &mut Taken,
    ) -> (Vec<Backend>, Vec<Ids>, Vec<Listed>) {
        let raw = inner(raw);
        let service = context.service;
        if raw.is_empty() {
            let help = "write [[service.backend]] with name and addr, or with managed = true";
            self.missing(mistyped, service_span.clone(), format!("service `{service}` has no backend"), help);
        }
        let mut names = HashMap::new();
        let (mut backends, mut all_ids, mut listed) = (Vec::new(), Vec::new(), Vec::new());
        for raw in raw {
            let span = raw.span();
            let raw = raw.into_inner();
            let name = self.name(
                &raw.name,
                &format!("backend of service `{service}`"),
                (&span, raw.mistyped),
                &mut names,
            );
            let managed = raw.managed.is_some_and(Spanned::into_inner);
            let addr = match &raw.addr {
                Some(text) => self.backend_addr(text, &name, context, taken),
                None => {
                    if !managed {
                        let reason = format!("backend `{name}` has no `addr`");
                        let help = "write addr = \"192.0.2.10:8080\", or managed = true for lbd to run it";
                        self.missing(raw.mistyped, span.clone(), reason, help);
                    }
                    None
                }
            };
            let weight = self.number(raw.weight, "weight", 0..=256, 1);
            let ids = self.server_ids(raw.server_id);
            let server_ids = ids.iter().map(|(id, _)| id.clone()).collect();
            all_ids.push(Ids { backend: name.clone(), managed, span, ids });
            listed.push(Listed { backend: name.clone(), managed, span: raw.sni.as_ref().map(Spanned::span) });
            let sni = self.server_names(raw.sni);
            backends.push(Backend { name, managed, addr, weight, server_ids, sni });
        }
        if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
            let reason =
                format!("every backend of service `{service}` has weight 0: none takes new sessions");
            self.faults.push(service_span.clone(), reason, "give one of them a weight from 1 to 256");
        }
        (backends, all_ids, listed)
    }

    fn backend_addr(
        &mut self,
        text: &Spanned<String>,
        name: &str,
        context: &Context<'_>,
        taken: &mut Taken,
    ) -> Option<SocketAddr> {
        let addr = self.socket_addr(text, "addr")?;
        self.outside(context.managed, addr.ip(), text.span(), "addr");
        let who = format!("backend `{}/{name}`", context.service);
        if !self.take(taken, (context.protocol, addr), who, text.span()) {
            return None;
        }
        if context.vips.contains(&addr.ip()) {
            let reason = format!("`addr` {} is a VIP: the balancer itself answers for it", addr.ip());
            self.faults.push(text.span(), reason, "give the backend an address of its own");
            return None;
        }
        Some(addr)
    }

    /// Claims an address and port of a protocol. Returns whether it was free.
    pub(super) fn take(
        &mut self,
        taken: &mut Taken,
        place: (Protocol, SocketAddr),
        who: String,
        span: Span,
    ) -> bool {
        match taken.entry(place) {
            Entry::Vacant(free) => {
                free.insert(who);
                true
            }
            Entry::Occupied(other) => {
                let reason = format!("{who} is at {}, where {} is already", place.1, other.get());
                self.faults.push(span, reason, "an address and port belong to one service or backend alone");
                false
            }
        }
    }

    /// Refuses an address that lbd may give to a managed server.
    pub(super) fn outside(&mut self, managed: &Managed, ip: IpAddr, span: Span, key: &str) {
        if let IpAddr::V4(v4) = ip
            && managed.subnet.contains(v4)
        {
            let reason = format!("`{key}` {ip} lies in the network of managed servers, {}", managed.subnet);
            self.faults.push(span, reason, "choose another address, or another [managed] subnet");
        }
    }

    pub(super) fn socket_addr(&mut self, text: &Spanned<String>, key: &str) -> Option<SocketAddr> {
        let typed = text.get_ref();
        let problem = match typed.parse::<SocketAddr>() {
            Ok(addr) => match unusable(addr) {
                None => return Some(addr),
                Some(problem) => problem,
            },
            Err(_) if typed.parse::<IpAddr>().is_ok() => ("has no port", format!("write {}", example(typed))),
            Err(_) => {
                ("is not an address and port", "write it like 192.0.2.1:80; names are not looked up".into())
            }
        };
        self.faults.push(text.span(), format!("`{key}` \"{typed}\" {}", problem.0), problem.1);
        None
    }
}

/// Why an address cannot be a VIP's or a backend's, and what to do.
fn unusable(addr: SocketAddr) -> Option<(&'static str, String)> {
    let IpAddr::V4(ip) = addr.ip() else {
        let help = "the packet programs carry IPv4 only in this version; use an IPv4 address";
        return Some(("is an IPv6 address", help.to_owned()));
    };
    let kind = if addr.port() == 0 {
        return Some(("has port 0, which nobody can dial", "use a port from 1 to 65535".to_owned()));
    } else if ip.is_unspecified() {
        "means every address of a host, not one"
    } else if ip.is_loopback() {
        "never leaves its host"
    } else if ip.is_multicast() {
        "is a multicast group"
    } else if ip.is_broadcast() {
        "is the broadcast address"
    } else {
        return None;
    };
    Some((kind, "use the address of one host".to_owned()))
}

/// The address with a port, as it should have been typed.
fn example(ip: &str) -> String {
    if ip.contains(':') { format!("[{ip}]:80") } else { format!("{ip}:80") }
}
