//! From the configuration as typed to the one as meant. Goes on after an error, so that one run tells all of them.

mod affinity;
mod backend;
mod cookie;
mod group;
mod name;
mod quic;
mod scalar;
mod service;
mod store;

use super::fault::{ConfigError, Faults, Span, suggest};
use super::raw::{FromToml, RawConfig, RawLbd, RawLimits, RawManaged, RawTimeouts, Size};
use super::secret;
use super::values::Subnet;
use super::{Config, Lbd, Limits, Managed, Mode, Store, Timeouts};
use lb_common::maglev::is_prime;
use serde_spanned::Spanned;
use std::path::{Path, PathBuf};
use std::time::Duration;
use toml::de::{DeTable, DeValue};

pub(super) fn config(path: &Path, text: &str) -> Result<Config, ConfigError> {
    let file = path.display().to_string();
    let mut faults = Faults::new(&file, text);
    let (table, errors) = DeTable::parse_recoverable(text);
    let mut hidden = Vec::new();
    for (key, value) in table.get_ref() {
        secret::places(key.get_ref(), value.get_ref(), value.span(), &mut hidden);
    }
    faults.hide(hidden);
    if !errors.is_empty() {
        faults.is_broken();
    }
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
    let config = Checker { faults: &mut faults, base, max_sessions: Vec::new() }.config(raw);
    faults.into_result(config)
}

/// Of one client's address, to one managed server.
const CLIENT_CONNECTIONS: u32 = 512;

struct Checker<'a, 'b> {
    faults: &'a mut Faults<'b>,
    /// Directory of the file.
    base: &'a Path,
    /// Where sessions of a service are bounded.
    max_sessions: Vec<Span>,
}

impl Checker<'_, '_> {
    fn config(&mut self, raw: RawConfig) -> Config {
        let managed = self.managed(inner(raw.managed));
        let mut raw_limits = inner(raw.limits);
        let client_connections = self.number(
            raw_limits.client_connections.take(),
            "client_connections",
            1..=65_536_u32,
            CLIENT_CONNECTIONS,
        ) as usize;
        let limits = self.limits(raw_limits);
        let lbd = self.lbd(raw.lbd, raw.mistyped);
        let timeouts = self.timeouts(&inner(raw.timeouts));
        let services = self.services(raw.service, raw.mistyped, &managed, &limits);
        self.room_for_names(&services, &limits);
        self.counted(&lbd.store);
        Config { lbd, limits, client_connections, timeouts, managed, services }
    }

    /// Sessions are bounded where they are counted.
    fn counted(&mut self, store: &Store) {
        let Store::Redis(_) = store else { return };
        for span in std::mem::take(&mut self.max_sessions) {
            let help = "leave it away, and bound their memory with `maxmemory` of the Redis servers";
            self.faults.push(
                span,
                "`max_sessions` with a Redis store, which does not count the sessions of a service",
                help,
            );
        }
    }

    fn lbd(&mut self, raw: Option<Spanned<RawLbd>>, mistyped: bool) -> Lbd {
        let span = raw.as_ref().map_or(0..0, Spanned::span);
        let raw = inner(raw);
        let mistyped = mistyped || raw.mistyped;
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
            store: self.store(raw.store),
            keys: self.path(raw.keys, "/var/lib/lb/keys.toml".into()),
            object: raw.object.map(|object| self.path(Some(object), PathBuf::new())),
            announce: raw.announce.is_none_or(Spanned::into_inner),
            set_offloads: raw.set_offloads.is_none_or(Spanned::into_inner),
            check_interfaces: raw.check_interfaces.is_some_and(Spanned::into_inner),
            interfaces: self.interfaces(names.0, names.1, mistyped),
            run_dir,
            socket,
            mode,
        }
    }

    /// Tells that something is not there, unless it may be what a mistyped key was meant to be.
    fn missing(&mut self, mistyped: bool, span: Span, reason: impl Into<String>, help: &str) {
        if !mistyped {
            self.faults.push(span, reason, help);
        }
    }

    fn interfaces(&mut self, span: Span, raw: Vec<Spanned<String>>, mistyped: bool) -> Vec<String> {
        if raw.is_empty() {
            let help =
                "write interfaces = [\"eth0\"] under [lbd], with the interface that clients come in by";
            self.missing(mistyped, span, "no interface is named", help);
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

    fn limits(&mut self, raw: RawLimits) -> Limits {
        let default = Limits::default();
        Limits {
            services: self.number(raw.services, "services", 2..=256, default.services),
            // More endpoints than this would not find room in the endpoint table with any seed.
            backends: self.number(raw.backends, "backends", 1..=2048, default.backends),
            flows: self.number(raw.flows, "flows", 8..=1 << 26, default.flows),
            pending: self.number(raw.pending, "pending", 1..=32_768, default.pending).next_power_of_two(),
            maglev_size: self.maglev_size(raw.maglev_size, "maglev_size", default.maglev_size),
            names: self.number(raw.names, "names", 1..=1 << 20, default.names),
            pools: self.number(raw.pools, "pools", 1..=4096, default.pools),
            pool_maglev_size: self.maglev_size(
                raw.pool_maglev_size,
                "pool_maglev_size",
                default.pool_maglev_size,
            ),
            learned: self.number(raw.learned, "learned", 8..=1 << 26, default.learned),
            trace_bytes: self.trace_bytes(raw.trace_bytes, default.trace_bytes),
        }
    }

    fn trace_bytes(&mut self, raw: Option<Spanned<Size>>, default: u32) -> u32 {
        let span = raw.as_ref().map_or(0..0, Spanned::span);
        let bytes = self.size(raw, "trace_bytes", 4096..=1 << 30, default as usize);
        if !bytes.is_power_of_two() {
            let reason = format!("`trace_bytes` is {bytes} bytes, which is not a power of two");
            let help = format!("the next one is {} KiB", bytes.next_power_of_two() >> 10);
            self.faults.push(span, reason, help);
        }
        u32::try_from(bytes).unwrap_or(default)
    }

    fn maglev_size(&mut self, raw: Option<Spanned<u64>>, key: &str, default: u32) -> u32 {
        let span = raw.as_ref().map_or(0..0, Spanned::span);
        let size: u32 = self.number(raw, key, 251..=5_000_011, default);
        if is_prime(size) {
            return size;
        }
        let next = (size..).find(|n| is_prime(*n)).unwrap_or(default);
        let reason = format!("`{key}` is {size}, which is not a prime");
        self.faults.push(span, reason, format!("the next prime is {next}"));
        next
    }

    fn timeouts(&mut self, raw: &RawTimeouts) -> Timeouts {
        let default = Timeouts::default();
        let day = Duration::from_secs(86_400);
        let binding = self.duration(&raw.binding, "binding", SECOND..=day, default.binding);
        let head = self.duration(&raw.head, "head", SECOND..=day, default.head.min(binding));
        if let Some(raw) = &raw.head
            && head > binding
        {
            let reason = "`head` is longer than `binding`";
            let help = format!(
                "what waits for {} is forgotten: make `binding` longer too",
                crate::config::show_duration(binding)
            );
            self.faults.push(raw.span(), reason, help);
        }
        Timeouts {
            idle: self.duration(&raw.idle, "idle", SECOND..=30 * day, default.idle),
            udp_idle: self.duration(&raw.udp_idle, "udp_idle", SECOND..=30 * day, default.udp_idle),
            closing: self.duration(&raw.closing, "closing", SECOND..=day, default.closing),
            binding,
            head,
            opening: self.duration(&raw.opening, "opening", SECOND..=day, default.opening),
            half_closed: self.duration(&raw.half_closed, "half_closed", SECOND..=day, default.half_closed),
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
}

const SECOND: Duration = Duration::from_secs(1);

fn inner<T: Default>(raw: Option<Spanned<T>>) -> T {
    raw.map(Spanned::into_inner).unwrap_or_default()
}
