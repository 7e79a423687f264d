//! Services: names, VIPs, affinity, and the bounds of their sessions.

use super::backend::{Context, Taken};
use super::{Checker, SECOND, inner};
use crate::config::fault::{Span, suggest};
use crate::config::raw::{RawAffinity, RawHealth, RawService, RawSession};
use crate::config::{Affinity, Health, Limits, Managed, Protocol, Service, SessionLimits, show_duration};
use crate::session::store::MAX_STATE_BYTES;
use lb_common::service::MAX_COOKIE_NAME;
use lb_common::stash::TRIED;
use serde_spanned::Spanned;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

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
        let vips: Vec<_> = raw.iter().map(|raw| self.vip(raw, managed, &mut taken)).collect();
        let addrs: Vec<IpAddr> = vips.iter().flatten().map(SocketAddr::ip).collect();
        let mut services = Vec::new();
        for (raw, vip) in raw.into_iter().zip(vips) {
            let span = raw.span();
            let raw = raw.into_inner();
            let name = self.name(&raw.name, "service", (&span, raw.mistyped), &mut names);
            let context = Context { service: &name, managed, vips: &addrs };
            let backends = self.backends(raw.backend, (&span, raw.mistyped), &context, &mut taken);
            services.push(Service {
                protocol: self.protocol(raw.protocol),
                affinity: self.affinity(raw.affinity.map(Spanned::into_inner)),
                window_scale: self.number(raw.window_scale, "window_scale", 0..=14, 7),
                max_tries: self.number(raw.max_tries, "max_tries", 1..=TRIED as u8, 3),
                replay: raw.replay.is_none_or(Spanned::into_inner),
                health: self.health(&inner(raw.health)),
                session: self.session(inner(raw.session)),
                // Without one there is a fault already, and the service goes nowhere.
                vip: vip.unwrap_or(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), 0)),
                name,
                backends,
            });
        }
        services
    }

    fn vip(&mut self, raw: &Spanned<RawService>, managed: &Managed, taken: &mut Taken) -> Option<SocketAddr> {
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
        self.take(taken, vip, format!("the vip of service `{service}`"), text.span());
        Some(vip)
    }

    fn protocol(&mut self, raw: Option<Spanned<String>>) -> Protocol {
        if let Some(protocol) = raw {
            match protocol.get_ref().as_str() {
                "tcp" => {}
                "udp" => self.faults.push(
                    protocol.span(),
                    "protocol `udp` is not there yet",
                    "this version balances `tcp` only",
                ),
                other => {
                    let help = suggest(other, &["tcp"]);
                    self.faults.push(protocol.span(), format!("`{other}` is no protocol known here"), help);
                }
            }
        }
        Protocol::Tcp
    }

    fn affinity(&mut self, raw: Option<RawAffinity>) -> Affinity {
        let raw = raw.unwrap_or_default();
        if let Some(kind) = raw.kind {
            let bound_at_once = match kind.get_ref().as_str() {
                "signed" => None,
                "source" => Some(Affinity::Source),
                "none" => Some(Affinity::None),
                later @ ("learned" | "hashed" | "quic") => {
                    self.faults.push(
                        kind.span(),
                        format!("affinity `{later}` is not there yet"),
                        "this version has `signed`, `source` and `none`",
                    );
                    None
                }
                other => {
                    let help = suggest(other, &["signed", "source", "none"]);
                    self.faults.push(kind.span(), format!("`{other}` is no affinity rule"), help);
                    None
                }
            };
            if let Some(affinity) = bound_at_once {
                if let Some(cookie) = raw.cookie {
                    let reason = format!("affinity `{}` looks at no cookie", kind.get_ref());
                    self.faults.push(cookie.span(), reason, "leave `cookie` away, or use `signed`");
                }
                return affinity;
            }
        }
        let cookie = match raw.cookie {
            None => Affinity::COOKIE.to_owned(),
            Some(cookie) => {
                let name = cookie.get_ref();
                // RFC 6265 §4.1.1: a cookie's name is a token of RFC 2616 §2.2.
                let legal = |c: char| c.is_ascii_graphic() && !"()<>@,;:\\\"/[]?={}".contains(c);
                if name.is_empty() || name.len() > MAX_COOKIE_NAME {
                    let reason =
                        format!("the cookie's name `{name}` has {} characters", name.chars().count());
                    let help = format!("use 1 to {MAX_COOKIE_NAME}: the program looks for it in one step");
                    self.faults.push(cookie.span(), reason, help);
                } else if let Some(bad) = name.chars().find(|c| !legal(*c)) {
                    let reason = format!("the cookie's name `{name}` contains {bad:?}");
                    let help =
                        "a cookie's name has no spaces, separators or letters outside ASCII (RFC 6265)";
                    self.faults.push(cookie.span(), reason, help);
                }
                cookie.into_inner()
            }
        };
        Affinity::Signed { cookie }
    }

    fn health(&mut self, raw: &RawHealth) -> Health {
        let default = Health::default();
        let (shortest, hour) = (Duration::from_millis(50), Duration::from_secs(3600));
        Health {
            interval: self.duration(&raw.interval, "interval", shortest..=hour, default.interval),
            timeout: self.duration(&raw.timeout, "timeout", shortest..=hour, default.timeout),
            rise: self.number(raw.rise.clone(), "rise", 1..=100, default.rise),
            fall: self.number(raw.fall.clone(), "fall", 1..=100, default.fall),
        }
    }

    fn session(&mut self, raw: RawSession) -> SessionLimits {
        let default = SessionLimits::default();
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
