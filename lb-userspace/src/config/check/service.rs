//! Services: names, VIPs, affinity, and the bounds of their sessions.

use super::backend::{Context, Taken};
use super::cookie::Attributes;
use super::{Checker, SECOND, inner};
use crate::config::fault::{Span, suggest};
use crate::config::raw::{RawHealth, RawService, RawSession};
use crate::config::values::parse_bytes;
use crate::config::{
    Affinity, Backend, Balance, Cookie, Health, Limits, Managed, OnUnavailable, Protocol, Service,
    SessionLimits, show_duration,
};
use crate::session::store::MAX_STATE_BYTES;
use lb_common::stash::TRIED;
use serde_spanned::Spanned;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

/// Longest datagram of a health check, in bytes: it fits in any packet.
const MAX_PROBE: usize = 512;

impl Checker<'_, '_> {
    pub(super) fn services(
        &mut self,
        raw: Option<Spanned<Vec<Spanned<RawService>>>>,
        mistyped: bool,
        managed: &Managed,
        limits: &Limits,
    ) -> Vec<Service> {
        let raw = inner(raw);
        if raw.is_empty() {
            let help = "write [[service]] with name, vip and at least one [[service.backend]]";
            self.missing(mistyped, 0..0, "there is no service", help);
        }
        // Id 0 is no service.
        if raw.len() as u64 >= u64::from(limits.services) {
            let reason = format!("{} services, but `services` in [limits] is {}", raw.len(), limits.services);
            let help = format!("raise it to {} or more: id 0 is not used", raw.len() + 1);
            self.faults.push(raw[limits.services as usize - 1].span(), reason, help);
        }
        let count: usize =
            raw.iter().filter_map(|s| Some(s.get_ref().backend.as_ref()?.get_ref().len())).sum();
        if count as u64 > u64::from(limits.backends) {
            let reason = format!("{count} backends, but `backends` in [limits] is {}", limits.backends);
            self.faults.push(0..0, reason, format!("raise it to {count} or more"));
        }
        if count as u64 > managed.room() {
            let (subnet, room) = (managed.subnet, managed.room());
            let reason =
                format!("{count} backends, but the managed network {subnet} has addresses for {room}");
            self.faults.push(0..0, reason, "give [managed] subnet a shorter prefix, such as 10.254.0.0/16");
        }
        let mut names = HashMap::new();
        let mut taken = Taken::new();
        // VIPs first, so that a backend that takes one of a later service is told of, too.
        let protocols: Vec<_> =
            raw.iter().map(|raw| self.protocol(raw.get_ref().protocol.as_ref())).collect();
        let vips: Vec<_> = raw
            .iter()
            .zip(&protocols)
            .map(|(raw, protocol)| self.vip(raw, *protocol, managed, &mut taken))
            .collect();
        let addrs: Vec<IpAddr> = vips.iter().flatten().map(SocketAddr::ip).collect();
        let (mut services, mut groups) = (Vec::new(), Vec::new());
        let faults_before = self.faults.len();
        for ((raw, vip), protocol) in raw.into_iter().zip(vips).zip(protocols) {
            let span = raw.span();
            let raw = raw.into_inner();
            self.only_tcp(&raw, protocol);
            let name = self.name(&raw.name, "service", (&span, raw.mistyped), &mut names);
            let context = Context { service: &name, protocol, managed, vips: &addrs };
            let (backends, server_ids, listed) =
                self.backends(raw.backend, (&span, raw.mistyped), &context, &mut taken);
            let affinity_span = raw.affinity.as_ref().map_or(span.clone(), Spanned::span);
            let attributes = Attributes::of(raw.affinity.as_ref());
            let faults = self.faults.len();
            let affinity = self.affinity(raw.affinity, protocol, &span);
            let managed = backends.iter().any(|backend| backend.managed);
            let mut cookie = Cookie::default();
            // What stands in the place of a faulty rule is nothing to judge names by.
            if self.faults.len() == faults {
                self.names_are_read(&affinity, protocol, &affinity_span, &listed);
                cookie = match managed && protocol == Protocol::Tcp {
                    true => self.cookie(attributes, affinity.cookie()),
                    false => self.no_cookie(&attributes),
                };
            }
            self.quic_backends(&affinity, &server_ids);
            self.takers(&backends, &listed, &span);
            if managed {
                self.managed_affinity(&affinity, protocol, affinity_span);
            }
            let accept_proxy = self.accept_proxy(raw.accept_proxy, &affinity, &backends);
            let max_pending = self.number(
                raw.max_pending,
                "max_pending",
                1..=limits.pending as u16,
                limits.service_pending(),
            );
            services.push(Service {
                protocol,
                balance: self.balance(raw.balance, &affinity),
                on_unavailable: self.on_unavailable(raw.on_unavailable, &affinity),
                affinity,
                affinity_group: raw.affinity_group.as_ref().map(|group| group.get_ref().clone()),
                cookie,
                window_scale: self.number(raw.window_scale, "window_scale", 0..=14, 7),
                max_tries: self.number(raw.max_tries, "max_tries", 1..=TRIED as u8, 3),
                max_flows: self.number(raw.max_flows, "max_flows", 1..=limits.flows, limits.flows),
                max_pending,
                max_backend_pending: self.number(
                    raw.max_backend_pending,
                    "max_backend_pending",
                    1..=max_pending,
                    limits.backend_pending().min(max_pending),
                ),
                replay: raw.replay.is_none_or(Spanned::into_inner),
                accept_proxy,
                health: self.health(&inner(raw.health), protocol),
                session: self.session(inner(raw.session)),
                // Without one there is a fault already, and the service goes nowhere.
                vip: vip.unwrap_or(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0)),
                name,
                backends,
            });
            groups.push(raw.affinity_group);
        }
        // What is faulty itself is nothing to compare.
        if self.faults.len() == faults_before {
            self.groups(&services, &groups);
        }
        services
    }

    fn vip(
        &mut self,
        raw: &Spanned<RawService>,
        protocol: Protocol,
        managed: &Managed,
        taken: &mut Taken,
    ) -> Option<SocketAddr> {
        let service = raw.get_ref().name.as_ref().map_or("?", |name| name.get_ref());
        let Some(text) = &raw.get_ref().vip else {
            let reason = format!("service `{service}` has no `vip`");
            self.missing(
                raw.get_ref().mistyped,
                raw.span(),
                reason,
                "write vip = \"192.0.2.1:80\": what clients dial",
            );
            return None;
        };
        let vip = self.socket_addr(text, "vip")?;
        self.outside(managed, vip.ip(), text.span(), "vip");
        self.take(taken, (protocol, vip), format!("the vip of service `{service}`"), text.span());
        Some(vip)
    }

    fn protocol(&mut self, raw: Option<&Spanned<String>>) -> Protocol {
        if let Some(protocol) = raw {
            match protocol.get_ref().as_str() {
                "tcp" => {}
                "udp" => return Protocol::Udp,
                other => {
                    let help = suggest(other, &["tcp", "udp"]);
                    self.faults.push(protocol.span(), format!("`{other}` is no protocol known here"), help);
                }
            }
        }
        Protocol::Tcp
    }

    /// How a backend is chosen for what belongs to none.
    fn balance(&mut self, raw: Option<Spanned<String>>, affinity: &Affinity) -> Balance {
        let Some(raw) = raw else { return Balance::Maglev };
        match raw.get_ref().as_str() {
            "maglev" => return Balance::Maglev,
            "least" => match affinity {
                Affinity::Signed(_) | Affinity::Learned { .. } | Affinity::None { .. } => {
                    return Balance::Least;
                }
                Affinity::Hashed(_) | Affinity::Quic(_) | Affinity::Source { .. } => {
                    let reason = format!("affinity `{}` leaves `least` nothing to choose", affinity.kind());
                    let help = "leave `balance` away: the hash decides, so that the same comes home";
                    self.faults.push(raw.span(), reason, help);
                }
            },
            other => {
                let help = suggest(other, &["maglev", "least"]);
                self.faults.push(raw.span(), format!("`{other}` is no way to balance"), help);
            }
        }
        Balance::Maglev
    }

    /// What becomes of a session whose backend does not serve.
    fn on_unavailable(&mut self, raw: Option<Spanned<String>>, affinity: &Affinity) -> OnUnavailable {
        let Some(raw) = raw else { return OnUnavailable::Redispatch };
        match raw.get_ref().as_str() {
            "redispatch" => return OnUnavailable::Redispatch,
            "reject" => match affinity {
                Affinity::Signed(_) | Affinity::Learned { .. } | Affinity::Quic(_) => {
                    return OnUnavailable::Reject;
                }
                Affinity::Hashed(_) | Affinity::Source { .. } | Affinity::None { .. } => {
                    let reason = format!(
                        "affinity `{}` does not know whose a session is, so none is ever rejected",
                        affinity.kind()
                    );
                    let help = "leave `on_unavailable` away, or use affinity `signed` or `learned`";
                    self.faults.push(raw.span(), reason, help);
                }
            },
            other => {
                let help = suggest(other, &["redispatch", "reject"]);
                let reason = format!("`{other}` is nothing to do when a backend is unavailable");
                self.faults.push(raw.span(), reason, help);
            }
        }
        OnUnavailable::Redispatch
    }

    /// Keys of a service that speak of TCP alone.
    fn only_tcp(&mut self, raw: &RawService, protocol: Protocol) {
        if protocol == Protocol::Tcp {
            return;
        }
        let keys = [
            ("window_scale", raw.window_scale.as_ref().map(Spanned::span)),
            ("max_tries", raw.max_tries.as_ref().map(Spanned::span)),
            ("max_pending", raw.max_pending.as_ref().map(Spanned::span)),
            ("max_backend_pending", raw.max_backend_pending.as_ref().map(Spanned::span)),
            ("replay", raw.replay.as_ref().map(Spanned::span)),
            ("accept_proxy", raw.accept_proxy.as_ref().map(Spanned::span)),
        ];
        for (key, span) in keys {
            if let Some(span) = span {
                let reason = format!("a udp service has no `{key}`");
                self.faults.push(span, reason, "leave it away: every datagram is steered by itself");
            }
        }
    }

    /// Whether a header of the PROXY protocol stands in front: its backends must read it, and the rule must look behind it.
    fn accept_proxy(
        &mut self,
        raw: Option<Spanned<bool>>,
        affinity: &Affinity,
        backends: &[Backend],
    ) -> bool {
        let Some(raw) = raw.filter(|raw| *raw.get_ref()) else { return false };
        if let Some(backend) = backends.iter().find(|backend| backend.managed) {
            let reason = format!(
                "`accept_proxy`, but backend `{}` is managed: the servers of lbd do not read headers of the PROXY protocol",
                backend.name
            );
            let help =
                "leave `accept_proxy` away and tell the proxy to send no header, or use servers of your own";
            self.faults.push(raw.span(), reason, help);
        }
        if matches!(affinity, Affinity::None { sni: false }) {
            let reason = "`accept_proxy`, but affinity `none` reads nothing of what clients send";
            let help =
                "leave `accept_proxy` away: headers of the PROXY protocol go to the backends as they come";
            self.faults.push(raw.span(), reason, help);
        }
        true
    }

    fn health(&mut self, raw: &RawHealth, protocol: Protocol) -> Health {
        let default = Health::default();
        let mut bytes = |raw: &Option<Spanned<String>>, key| self.probe_bytes(raw.as_ref()?, key, protocol);
        let (send, expect) = (bytes(&raw.send, "send"), bytes(&raw.expect, "expect"));
        if let (Some(expect), None, false) = (&raw.expect, &raw.send, raw.mistyped)
            && protocol == Protocol::Udp
        {
            let help = "add send = \"...\": a backend that is asked nothing answers nothing";
            self.faults.push(expect.span(), "`expect` without `send`", help);
        }
        let (shortest, hour) = (Duration::from_millis(50), Duration::from_secs(3600));
        Health {
            interval: self.duration(&raw.interval, "interval", shortest..=hour, default.interval),
            timeout: self.duration(&raw.timeout, "timeout", shortest..=hour, default.timeout),
            rise: self.number(raw.rise.clone(), "rise", 1..=100, default.rise),
            fall: self.number(raw.fall.clone(), "fall", 1..=100, default.fall),
            send,
            expect,
        }
    }

    /// What a UDP backend is asked, or shall answer.
    fn probe_bytes(&mut self, raw: &Spanned<String>, key: &str, protocol: Protocol) -> Option<Vec<u8>> {
        let (reason, help) = match parse_bytes(raw.get_ref()) {
            _ if protocol == Protocol::Tcp => (
                format!("a tcp service has no `{key}`"),
                "leave it away: a backend is up when it takes a connection".to_owned(),
            ),
            Some(bytes) if (1..=MAX_PROBE).contains(&bytes.len()) => return Some(bytes),
            Some(bytes) => {
                (format!("`{key}` has {} bytes", bytes.len()), format!("write 1 to {MAX_PROBE} bytes"))
            }
            None => (
                format!("`{key}` \"{}\" is no hexadecimal number of whole bytes", raw.get_ref()),
                "write text, or two digits for each byte, like hex:0a0b".to_owned(),
            ),
        };
        self.faults.push(raw.span(), reason, help);
        None
    }

    fn session(&mut self, raw: RawSession) -> SessionLimits {
        let default = SessionLimits::default();
        self.max_sessions.extend(raw.max_sessions.as_ref().map(Spanned::span));
        let year = Duration::from_secs(366 * 86_400);
        let whole = MAX_STATE_BYTES as u64;
        let cache_span = raw.cache_bytes.as_ref().map(Spanned::span);
        let absolute_span = raw.absolute.as_ref().or(raw.idle.as_ref()).map(Spanned::span);
        let limits = SessionLimits {
            max_keys: self.number(raw.max_keys, "max_keys", 1..=65_536, default.max_keys),
            max_key_bytes: self.size(raw.max_key_bytes, "max_key_bytes", 1..=whole, default.max_key_bytes),
            max_value_bytes: self.size(
                raw.max_value_bytes,
                "max_value_bytes",
                1..=whole,
                default.max_value_bytes,
            ),
            max_session_bytes: self.size(
                raw.max_session_bytes,
                "max_session_bytes",
                1..=whole,
                default.max_session_bytes,
            ),
            idle: self.duration(&raw.idle, "idle", SECOND..=year, default.idle),
            absolute: self.duration(&raw.absolute, "absolute", SECOND..=year, default.absolute),
            max_sessions: self.number(
                raw.max_sessions,
                "max_sessions",
                1..=1_000_000_000_000_u64,
                default.max_sessions,
            ),
            new_per_second: self.number(
                raw.new_per_second,
                "new_per_second",
                1..=1_000_000_000_u32,
                default.new_per_second,
            ),
            cache_entries: self.number(
                raw.cache_entries,
                "cache_entries",
                1..=100_000_000,
                default.cache_entries,
            ),
            cache_bytes: self.size(raw.cache_bytes, "cache_bytes", 64 << 10..=1 << 40, default.cache_bytes),
        };
        // One session and its bookkeeping, with room to spare.
        if limits.cache_bytes < 2 * limits.max_session_bytes {
            let reason = format!(
                "`cache_bytes` is {}, but one session may take {} of them",
                limits.cache_bytes, limits.max_session_bytes
            );
            let help = "raise `cache_bytes` to twice `max_session_bytes` at least";
            self.faults.push(cache_span.unwrap_or(0..0), reason, help);
        }
        if limits.idle > limits.absolute {
            let reason = format!(
                "sessions end after {} at the latest, before `idle` of {} can end them",
                show_duration(limits.absolute),
                show_duration(limits.idle)
            );
            self.faults.push(absolute_span.unwrap_or(0..0), reason, "raise `absolute` or lower `idle`");
        }
        limits
    }

    pub(super) fn name(
        &mut self,
        raw: &Option<Spanned<String>>,
        what: &str,
        (span, mistyped): (&Span, bool),
        names: &mut HashMap<String, ()>,
    ) -> String {
        let Some(name) = raw else {
            self.missing(mistyped, span.clone(), format!("a {what} has no `name`"), "write name = \"...\"");
            return "?".to_owned();
        };
        let text = name.get_ref().clone();
        let letters = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
        if !letters || text.len() > 32 || !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            let help =
                "use 1 to 32 letters, digits, dots, dashes and underscores, beginning with a letter or digit";
            self.faults.push(name.span(), format!("`{text}` cannot name a {what}"), help);
        } else if names.insert(text.clone(), ()).is_some() {
            self.faults.push(name.span(), format!("another {what} is named `{text}`"), "names are unique");
        }
        text
    }
}
