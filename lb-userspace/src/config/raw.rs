//! The configuration as typed: the keys that exist, the types they have, and where in the file each value stands.
//!
//! Each table is declared once; its reader and the list of its keys follow from the declaration.

use super::fault::{Faults, Span, suggest};
use serde_spanned::Spanned;
use toml::de::DeValue;

/// A value that can be read from TOML. What is wrong goes to `faults`.
pub(super) trait FromToml: Sized {
    fn from_toml(key: &str, value: DeValue<'_>, span: Span, faults: &mut Faults<'_>) -> Option<Self>;
}

macro_rules! table {
    ($(#[$doc:meta])* $name:ident $title:literal { $($key:ident: $type:ty),* $(,)? }) => {
        $(#[$doc])*
        // No Debug: some of the values are secret.
        #[derive(Default)]
        pub(super) struct $name {
            /// A key of it, or its value, was not understood: whatever is missing may have been meant by it.
            pub(super) mistyped: bool,
            $(pub(super) $key: Option<Spanned<$type>>,)*
        }

        impl $name {
            pub(super) const KEYS: &[&str] = &[$(stringify!($key)),*];
        }

        impl FromToml for $name {
            fn from_toml(key: &str, value: DeValue<'_>, span: Span, faults: &mut Faults<'_>) -> Option<Self> {
                let DeValue::Table(entries) = value else {
                    wrong_type(key, "a table", concat!("write it as ", $title), &value, span, faults);
                    return None;
                };
                let mut table = Self::default();
                for (key, value) in entries {
                    match key.get_ref().as_ref() {
                        $(name @ stringify!($key) => {
                            table.$key = read(name, value, faults);
                            table.mistyped |= table.$key.is_none();
                        })*
                        unknown => {
                            table.mistyped = true;
                            let reason = format!("unknown key `{unknown}` in {}", $title);
                            faults.push(key.span(), reason, suggest(unknown, Self::KEYS));
                        }
                    }
                }
                Some(table)
            }
        }
    };
}

table!(
    /// The whole file.
    RawConfig "the top level" {
        lbd: RawLbd, limits: RawLimits, timeouts: RawTimeouts, managed: RawManaged, service: Vec<Spanned<RawService>>,
    }
);
table!(RawLbd "[lbd]" {
    run_dir: String, socket: String, store: RawStore, keys: String, object: String, announce: bool,
    set_offloads: bool, check_interfaces: bool, interfaces: Vec<Spanned<String>>, mode: String,
});
table!(StoreTable "store = { kind = \"sled\", path = \"...\" }" {
    kind: String, path: String, nodes: Vec<Spanned<String>>, replicas: u64, prefix: String,
    lease: String, deadline: String, volatile: bool, waitaof: bool,
    ca_file: String, cert_file: String, key_file: String, server_name: String,
});
table!(RawLimits "[limits]" {
    services: u64, backends: u64, flows: u64, pending: u64, maglev_size: u64, names: u64, pools: u64, pool_maglev_size: u64,
    learned: u64, trace_bytes: Size, client_connections: u64,
});
table!(RawTimeouts "[timeouts]" {
    idle: String, udp_idle: String, closing: String, binding: String, head: String, opening: String,
    half_closed: String, drain: String,
});
table!(RawManaged "[managed]" { subnet: String });
table!(RawService "[[service]]" {
    name: String, vip: String, protocol: String, affinity: RawAffinity, affinity_group: String, balance: String, on_unavailable: String,
    window_scale: u64, max_tries: u64, max_flows: u64, max_pending: u64, max_backend_pending: u64, replay: bool, accept_proxy: bool,
    health: RawHealth, session: RawSession, backend: Vec<Spanned<RawBackend>>,
});
table!(RawAffinity "affinity = { kind = \"signed\", cookie = \"lb\" }" {
    kind: String, cookie: String, header: String, query: String, sni: bool, offset: u64, end: u64, marker: String,
    encoding: String, bytes: u64, idle: String, configs: Vec<Spanned<RawQuic>>,
    secure: bool, domain: String, path: String, max_age: String, same_site: String,
});
table!(RawQuic "configs = [{ rotation = 0, server_id_bytes = 2, nonce_bytes = 6 }]" {
    rotation: u64, server_id_bytes: u64, nonce_bytes: u64, key: String, key_file: String,
});
table!(RawHealth "[service.health]" {
    interval: String, timeout: String, rise: u64, fall: u64, send: String, expect: String,
});
table!(RawSession "[service.session]" {
    max_keys: u64, max_key_bytes: Size, max_value_bytes: Size, max_session_bytes: Size, idle: String, absolute: String,
    max_sessions: u64, new_per_second: u64, cache_entries: u64, cache_bytes: Size,
});
table!(RawBackend "[[service.backend]]" {
    name: String, managed: bool, addr: String, weight: u64, server_id: ServerIds, sni: Vec<Spanned<String>>,
});

/// A number of bytes: plain, or as text with a unit.
#[derive(Debug)]
pub(super) enum Size {
    Bytes(u64),
    Text(String),
}

/// One server id, or several of different lengths.
#[derive(Debug)]
pub(super) struct ServerIds(pub(super) Vec<Spanned<String>>);

/// Where sessions are: a directory, or a table that says what kind of store.
pub(super) enum RawStore {
    Path(String),
    Table(Box<StoreTable>),
}

fn read<T: FromToml>(key: &str, value: Spanned<DeValue<'_>>, faults: &mut Faults<'_>) -> Option<Spanned<T>> {
    let span = value.span();
    T::from_toml(key, value.into_inner(), span.clone(), faults).map(|value| Spanned::new(span, value))
}

fn wrong_type(key: &str, wanted: &str, help: &str, value: &DeValue<'_>, span: Span, faults: &mut Faults<'_>) {
    let is = match value {
        DeValue::String(_) => "text",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number with a fraction",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "a list",
        DeValue::Table(_) => "a table",
    };
    faults.push(span, format!("`{key}` is {is}, but must be {wanted}"), help);
}

impl FromToml for String {
    fn from_toml(key: &str, value: DeValue<'_>, span: Span, faults: &mut Faults<'_>) -> Option<Self> {
        match value {
            DeValue::String(text) => Some(text.into_owned()),
            other => {
                wrong_type(key, "text", "put it in double quotes", &other, span, faults);
                None
            }
        }
    }
}

impl FromToml for bool {
    fn from_toml(key: &str, value: DeValue<'_>, span: Span, faults: &mut Faults<'_>) -> Option<Self> {
        match value {
            DeValue::Boolean(is) => Some(is),
            other => {
                wrong_type(key, "true or false", "write it without quotes", &other, span, faults);
                None
            }
        }
    }
}

impl FromToml for u64 {
    fn from_toml(key: &str, value: DeValue<'_>, span: Span, faults: &mut Faults<'_>) -> Option<Self> {
        match value {
            DeValue::Integer(integer) => {
                let parsed = u64::from_str_radix(integer.as_str(), integer.radix());
                if parsed.is_err() {
                    let reason =
                        format!("`{key}` is {}, but must be a whole number from 0", integer.as_str());
                    faults.push(span, reason, "");
                }
                parsed.ok()
            }
            other => {
                wrong_type(key, "a whole number", "write it without quotes", &other, span, faults);
                None
            }
        }
    }
}

impl FromToml for RawStore {
    fn from_toml(key: &str, value: DeValue<'_>, span: Span, faults: &mut Faults<'_>) -> Option<Self> {
        match value {
            DeValue::String(text) => Some(Self::Path(text.into_owned())),
            table @ DeValue::Table(_) => {
                StoreTable::from_toml(key, table, span, faults).map(|table| Self::Table(Box::new(table)))
            }
            other => {
                let help = "write it like \"/var/lib/lb/sessions\" or { kind = \"redis\", nodes = [...] }";
                wrong_type(key, "a directory or a table", help, &other, span, faults);
                None
            }
        }
    }
}

impl FromToml for ServerIds {
    fn from_toml(key: &str, value: DeValue<'_>, span: Span, faults: &mut Faults<'_>) -> Option<Self> {
        match value {
            DeValue::String(text) => Some(Self(vec![Spanned::new(span, text.into_owned())])),
            list @ DeValue::Array(_) => Vec::from_toml(key, list, span, faults).map(Self),
            other => {
                wrong_type(key, "text or a list", "write it like \"0a0b\"", &other, span, faults);
                None
            }
        }
    }
}

impl FromToml for Size {
    fn from_toml(key: &str, value: DeValue<'_>, span: Span, faults: &mut Faults<'_>) -> Option<Self> {
        match value {
            DeValue::String(text) => Some(Self::Text(text.into_owned())),
            integer @ DeValue::Integer(_) => u64::from_toml(key, integer, span, faults).map(Self::Bytes),
            other => {
                let help = "write it like \"64 MiB\", or as a number of bytes";
                wrong_type(key, "a size", help, &other, span, faults);
                None
            }
        }
    }
}

impl<T: FromToml> FromToml for Vec<Spanned<T>> {
    fn from_toml(key: &str, value: DeValue<'_>, span: Span, faults: &mut Faults<'_>) -> Option<Self> {
        match value {
            DeValue::Array(values) => {
                Some(values.into_iter().filter_map(|value| read(key, value, faults)).collect())
            }
            other => {
                let help = match other {
                    DeValue::Table(_) => format!("write [[{key}]] with two brackets: there can be several"),
                    _ => format!("write {key} = [...]"),
                };
                wrong_type(key, "a list", &help, &other, span, faults);
                None
            }
        }
    }
}
