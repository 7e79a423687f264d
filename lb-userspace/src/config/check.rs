//! From the configuration as typed to the one as meant. Goes on after an error, so that one run tells all of them.

use super::fault::{ConfigError, Faults, Span, suggest};
use super::raw::{
    FromToml, RawBackend, RawConfig, RawHealth, RawLbd, RawLimits, RawManaged, RawService, RawSession,
    RawTimeouts, Size,
};
use super::values::{Subnet, parse_duration, parse_size, show_duration};
use super::{
    Affinity, Backend, Config, Health, Lbd, Limits, Managed, Mode, Protocol, Service, SessionLimits, Timeouts,
};
use crate::session::store::MAX_STATE_BYTES;
use lb_common::maglev::is_prime;
use lb_common::service::MAX_COOKIE_NAME;
use lb_common::stash::TRIED;
use serde_spanned::Spanned;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Display;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

pub(super) fn config(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let file = path.display().to_string();
    let mut faults = Faults::new(&file, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let span = error.span().unwrap_or(0..0);
        faults.push(
            span,
            error.message(),
            "this is not TOML; see docs/lb.example.toml for how it is written",
        );
    }
    // What a broken text seems to say is not worth complaining about.
    if !faults.is_empty() {
        return faults.into_result(()).and(Err(ConfigError::Faults(Vec::new())));
    }
    let span = table.span();
    let value = DeValue::Table(table.into_inner());
    let raw = RawConfig::from_toml("", value, span, &mut faults).unwrap_or_default();
    let base = path.parent().unwrap_or(Path::new(""));
    let config = Checker { faults: &mut faults, base }.config(raw);
    faults.into_result(config)
}

struct Checker<'a, 'b> {
    faults: &'a mut Faults<'b>,
    /// Directory of the file.
    base: &'a Path,
}

/// Names of what takes an address and port, and where in the file it does.
type Taken = HashMap<SocketAddr, String>;

impl Checker<'_, '_> {
    fn config(&mut self, raw: RawConfig) -> Config {
        let managed = self.managed(inner(raw.managed));
        let limits = self.limits(inner(raw.limits), &managed);
        let lbd = self.lbd(raw.lbd);
        let timeouts = self.timeouts(&inner(raw.timeouts));
        let services = self.services(raw.service, &managed, &limits);
        Config { lbd, limits, timeouts, managed, services }
    }

    fn lbd(&mut self, raw: Option<Spanned<RawLbd>>) -> Lbd {
        let span = raw.as_ref().map_or(0..0, Spanned::span);
        let raw = inner(raw);
        let run_dir = self.path(raw.run_dir, "/run/lb".into());
        let socket_span = raw.socket.as_ref().map_or(span.clone(), Spanned::span);
        let socket = self.path(raw.socket, run_dir.join("lbd.sock"));
        // sun_path of sockaddr_un holds 108 bytes, the last one zero.
        if socket.as_os_str().len() > 107 {
            let reason = format!("the path of the socket, {}, is longer than 107 bytes", socket.display());
            self.faults.push(socket_span, reason, "choose a shorter `run_dir` or `socket`");
        }
        let mode = match raw.mode {
            None => Mode::Auto,
            Some(mode) => match mode.get_ref().as_str() {
                "auto" => Mode::Auto,
                "driver" => Mode::Driver,
                "generic" => Mode::Generic,
                other => {
                    let help = suggest(other, &["auto", "driver", "generic"]);
                    self.faults.push(mode.span(), format!("`{other}` is no mode"), help);
                    Mode::Auto
                }
            },
        };
        let names = raw.interfaces.map_or((span, Vec::new()), |names| (names.span(), names.into_inner()));
        Lbd {
            store: self.path(raw.store, "/var/lib/lb/sessions".into()),
            keys: self.path(raw.keys, "/var/lib/lb/keys.toml".into()),
            object: raw.object.map(|object| self.path(Some(object), PathBuf::new())),
            announce: raw.announce.is_none_or(Spanned::into_inner),
            interfaces: self.interfaces(names.0, names.1),
            run_dir,
            socket,
            mode,
        }
    }

    fn interfaces(&mut self, span: Span, raw: Vec<Spanned<String>>) -> Vec<String> {
        if raw.is_empty() {
            let help =
                "write interfaces = [\"eth0\"] under [lbd], with the interface that clients come in by";
            self.faults.push(span, "no interface is named", help);
        }
        let mut names = Vec::new();
        for name in raw {
            let (span, name) = (name.span(), name.into_inner());
            let reason = if name.is_empty() || name.len() > 15 {
                Some("an interface's name has 1 to 15 characters")
            } else if name.contains(|c: char| c == '/' || c == ':' || c.is_whitespace())
                || name.starts_with('.')
            {
                Some("an interface's name has no slash, colon or space, and does not begin with a dot")
            } else if name == "lo" {
                Some("clients do not come in by the loopback interface")
            } else if names.contains(&name) {
                Some("it is named twice")
            } else {
                None
            };
            match reason {
                Some(reason) => {
                    let reason = format!("bad interface `{name}`: {reason}");
                    self.faults.push(span, reason, "`ip -brief link` lists the interfaces there are");
                }
                None => names.push(name),
            }
        }
        names
    }

    fn limits(&mut self, raw: RawLimits, managed: &Managed) -> Limits {
        let default = Limits::default();
        let backends_span = raw.backends.as_ref().map(Spanned::span);
        let limits = Limits {
            services: self.number(raw.services, "services", 2..=256, default.services),
            // More endpoints than this would not find room in the endpoint table with any seed.
            backends: self.number(raw.backends, "backends", 1..=2048, default.backends),
            flows: self.number(raw.flows, "flows", 8..=1 << 26, default.flows),
            pending: self.number(raw.pending, "pending", 1..=32_768, default.pending).next_power_of_two(),
            maglev_size: self.maglev_size(raw.maglev_size, default.maglev_size),
        };
        if managed.room() < u64::from(limits.backends) {
            let reason = format!(
                "the managed network {} has room for {} servers, but `backends` is {}",
                managed.subnet,
                managed.room(),
                limits.backends
            );
            let help = "give [managed] subnet a shorter prefix, or lower `backends`";
            self.faults.push(backends_span.unwrap_or(0..0), reason, help);
        }
        limits
    }

    fn maglev_size(&mut self, raw: Option<Spanned<u64>>, default: u32) -> u32 {
        let span = raw.as_ref().map_or(0..0, Spanned::span);
        let size: u32 = self.number(raw, "maglev_size", 251..=5_000_011, default);
        if is_prime(size) {
            return size;
        }
        let next = (size..).find(|n| is_prime(*n)).unwrap_or(default);
        let reason = format!("`maglev_size` is {size}, which is not a prime");
        self.faults.push(span, reason, format!("the next prime is {next}"));
        next
    }

    fn timeouts(&mut self, raw: &RawTimeouts) -> Timeouts {
        let default = Timeouts::default();
        let day = Duration::from_secs(86_400);
        Timeouts {
            idle: self.duration(&raw.idle, "idle", SECOND..=30 * day, default.idle),
            closing: self.duration(&raw.closing, "closing", SECOND..=day, default.closing),
            binding: self.duration(&raw.binding, "binding", SECOND..=day, default.binding),
            drain: self.duration(&raw.drain, "drain", Duration::ZERO..=day, default.drain),
        }
    }

    fn managed(&mut self, raw: RawManaged) -> Managed {
        let default = Managed::default();
        let Some(text) = raw.subnet else { return default };
        match Subnet::parse(text.get_ref()) {
            Ok(subnet) if subnet.prefix > 30 => {
                let reason = format!("`subnet` {subnet} is too small for the balancer and a server");
                self.faults.push(text.span(), reason, "use a prefix of 30 or shorter, such as 10.254.0.0/16");
                default
            }
            Ok(subnet) => Managed { subnet },
            Err(error) => {
                let reason = format!("`subnet` \"{}\" {error}", text.get_ref());
                self.faults.push(text.span(), reason, "write it like 10.254.0.0/16");
                default
            }
        }
    }

    fn services(
        &mut self,
        raw: Option<Spanned<Vec<Spanned<RawService>>>>,
        managed: &Managed,
        limits: &Limits,
    ) -> Vec<Service> {
        let raw = inner(raw);
        if raw.is_empty() {
            let help = "write [[service]] with name, vip and at least one [[service.backend]]";
            self.faults.push(0..0, "there is no service", help);
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
        let mut names = HashMap::new();
        let mut taken = Taken::new();
        // VIPs first, so that a backend that takes one of a later service is told of, too.
        let vips: Vec<_> = raw.iter().map(|raw| self.vip(raw, managed, &mut taken)).collect();
        let addrs: Vec<IpAddr> = vips.iter().flatten().map(SocketAddr::ip).collect();
        let mut services = Vec::new();
        for (raw, vip) in raw.into_iter().zip(vips) {
            let span = raw.span();
            let raw = raw.into_inner();
            let name = self.name(&raw.name, "service", &span, &mut names);
            let context = Context { service: &name, managed, vips: &addrs };
            let backends = self.backends(raw.backend, &span, &context, &mut taken);
            services.push(Service {
                protocol: self.protocol(raw.protocol),
                affinity: self.affinity(raw.affinity.map(Spanned::into_inner)),
                window_scale: self.number(raw.window_scale, "window_scale", 0..=14, 7),
                max_tries: self.number(raw.max_tries, "max_tries", 1..=TRIED as u8, 3),
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
            self.faults.push(raw.span(), reason, "write vip = \"192.0.2.1:80\": what clients dial");
            return None;
        };
        let vip = self.socket_addr(text, "vip")?;
        self.outside(managed, vip.ip(), text.span(), "vip");
        self.take(taken, vip, format!("the vip of service `{service}`"), text.span());
        Some(vip)
    }

    fn backends(
        &mut self,
        raw: Option<Spanned<Vec<Spanned<RawBackend>>>>,
        service_span: &Span,
        context: &Context<'_>,
        taken: &mut Taken,
    ) -> Vec<Backend> {
        let raw = inner(raw);
        let service = context.service;
        if raw.is_empty() {
            let help = "write [[service.backend]] with name and addr, or with managed = true";
            self.faults.push(service_span.clone(), format!("service `{service}` has no backend"), help);
        }
        let mut names = HashMap::new();
        let mut backends = Vec::new();
        for raw in raw {
            let span = raw.span();
            let raw = raw.into_inner();
            let name = self.name(&raw.name, &format!("backend of service `{service}`"), &span, &mut names);
            let managed = raw.managed.is_some_and(Spanned::into_inner);
            let addr = match &raw.addr {
                Some(text) => self.backend_addr(text, &name, context, taken),
                None => {
                    if !managed {
                        let reason = format!("backend `{name}` has no `addr`");
                        let help = "write addr = \"192.0.2.10:8080\", or managed = true for lbd to run it";
                        self.faults.push(span, reason, help);
                    }
                    None
                }
            };
            let weight = self.number(raw.weight, "weight", 0..=256, 1);
            backends.push(Backend { name, managed, addr, weight });
        }
        if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
            let reason =
                format!("every backend of service `{service}` has weight 0: none takes new sessions");
            self.faults.push(service_span.clone(), reason, "give one of them a weight from 1 to 256");
        }
        backends
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
        if !self.take(taken, addr, who, text.span()) {
            return None;
        }
        if context.vips.contains(&addr.ip()) {
            let reason = format!("`addr` {} is a VIP: the balancer itself answers for it", addr.ip());
            self.faults.push(text.span(), reason, "give the backend an address of its own");
            return None;
        }
        Some(addr)
    }

    /// Claims an address and port. Returns whether it was free.
    fn take(&mut self, taken: &mut Taken, addr: SocketAddr, who: String, span: Span) -> bool {
        match taken.entry(addr) {
            Entry::Vacant(free) => {
                free.insert(who);
                true
            }
            Entry::Occupied(other) => {
                let reason = format!("{who} is at {addr}, where {} is already", other.get());
                self.faults.push(span, reason, "an address and port belong to one service or backend alone");
                false
            }
        }
    }

    /// Refuses an address that lbd may give to a managed server.
    fn outside(&mut self, managed: &Managed, ip: IpAddr, span: Span, key: &str) {
        if let IpAddr::V4(v4) = ip
            && managed.subnet.contains(v4)
        {
            let reason = format!("`{key}` {ip} lies in the network of managed servers, {}", managed.subnet);
            self.faults.push(span, reason, "choose another address, or another [managed] subnet");
        }
    }

    fn socket_addr(&mut self, text: &Spanned<String>, key: &str) -> Option<SocketAddr> {
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

    fn name(
        &mut self,
        raw: &Option<Spanned<String>>,
        what: &str,
        span: &Span,
        names: &mut HashMap<String, ()>,
    ) -> String {
        let Some(name) = raw else {
            self.faults.push(span.clone(), format!("a {what} has no `name`"), "write name = \"...\"");
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

    fn affinity(&mut self, raw: Option<super::raw::RawAffinity>) -> Affinity {
        let raw = raw.unwrap_or_default();
        if let Some(kind) = raw.kind {
            match kind.get_ref().as_str() {
                "signed" => {}
                later @ ("learned" | "hashed" | "quic" | "source" | "none") => self.faults.push(
                    kind.span(),
                    format!("affinity `{later}` is not there yet"),
                    "this version has `signed` only: the token in a cookie that the managed servers set",
                ),
                other => {
                    let help = suggest(other, &["signed"]);
                    self.faults.push(kind.span(), format!("`{other}` is no affinity rule"), help);
                }
            }
        }
        let cookie = match raw.cookie {
            None => "lb".to_owned(),
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

    fn path(&self, raw: Option<Spanned<String>>, default: PathBuf) -> PathBuf {
        raw.map_or(default, |path| self.base.join(path.into_inner()))
    }

    fn number<T>(&mut self, raw: Option<Spanned<u64>>, key: &str, range: RangeInclusive<T>, default: T) -> T
    where
        T: TryFrom<u64> + PartialOrd + Display,
    {
        let Some(raw) = raw else { return default };
        match T::try_from(*raw.get_ref()) {
            Ok(number) if range.contains(&number) => number,
            _ => {
                let reason = format!("`{key}` is {}", raw.get_ref());
                let help = format!(
                    "it must be from {} to {}; without it, it is {default}",
                    range.start(),
                    range.end()
                );
                self.faults.push(raw.span(), reason, help);
                default
            }
        }
    }

    fn duration(
        &mut self,
        raw: &Option<Spanned<String>>,
        key: &str,
        range: RangeInclusive<Duration>,
        default: Duration,
    ) -> Duration {
        let Some(raw) = raw else { return default };
        let (reason, help) = match parse_duration(raw.get_ref()) {
            Some(duration) if range.contains(&duration) => return duration,
            Some(duration) => {
                let (start, end) = (show_duration(*range.start()), show_duration(*range.end()));
                let help =
                    format!("it must be from {start} to {end}; without it, it is {}", show_duration(default));
                (format!("`{key}` is {}", show_duration(duration)), help)
            }
            None => (
                format!("`{key}` \"{}\" is not a duration", raw.get_ref()),
                "write whole numbers with the units ms, s, m, h or d, such as 10s or 1h30m".to_owned(),
            ),
        };
        self.faults.push(raw.span(), reason, help);
        default
    }

    fn size(
        &mut self,
        raw: Option<Spanned<Size>>,
        key: &str,
        range: RangeInclusive<u64>,
        default: usize,
    ) -> usize {
        let Some(raw) = raw else { return default };
        let bytes = match raw.get_ref() {
            Size::Bytes(bytes) => Some(*bytes),
            Size::Text(text) => parse_size(text),
        };
        let (reason, help) = match (bytes, raw.get_ref()) {
            (Some(bytes), _) if range.contains(&bytes) => {
                return usize::try_from(bytes).unwrap_or(usize::MAX);
            }
            (Some(bytes), _) => (
                format!("`{key}` is {bytes} bytes"),
                format!("it must be from {} to {} bytes", range.start(), range.end()),
            ),
            (None, Size::Text(text)) => (
                format!("`{key}` \"{text}\" is not a size"),
                "write a number of bytes, or one with KiB, MiB or GiB".to_owned(),
            ),
            (None, Size::Bytes(_)) => return default,
        };
        self.faults.push(raw.span(), reason, help);
        default
    }
}

const SECOND: Duration = Duration::from_secs(1);

/// What a backend is checked against.
struct Context<'a> {
    service: &'a str,
    managed: &'a Managed,
    vips: &'a [IpAddr],
}

fn inner<T: Default>(raw: Option<Spanned<T>>) -> T {
    raw.map(Spanned::into_inner).unwrap_or_default()
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
