//! Names of servers that backends are listed for, and the pools that follow from them.

use super::Backend;
use lb_common::name::{MAX_NAME, MAX_WILDCARD_LABELS, labels};
use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

/// Longest label of a name, in bytes (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;

/// A name that TLS clients ask for, in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum ServerName {
    Exact(String),
    /// All names that end in a dot and this.
    Wildcard(String),
}

impl ServerName {
    /// Reads a name as it is written in a configuration.
    ///
    /// # Errors
    /// Why no client can ask for it, or why it cannot be listed, and what to do.
    pub fn parse(text: &str) -> Result<Self, (String, &'static str)> {
        let name = text.to_ascii_lowercase();
        let (end, is_wildcard) = match name.strip_prefix("*.") {
            Some(end) => (end, true),
            None => (name.as_str(), false),
        };
        let told = |reason: &str, help| Err((format!("the server's name `{text}` {reason}"), help));
        const PLAIN: &str = "write a name alone, like shop.example.org, or *.example.org";
        if end.is_empty() {
            return told(
                "is empty",
                "leave `sni` away: a backend without it takes all that no other is listed for",
            );
        }
        if text == "*" {
            return told(
                "is every name",
                "leave `sni` away: a backend without it takes all that no other is listed for",
            );
        }
        if let Some(bad) = end.chars().find(|c| !c.is_ascii_alphanumeric() && !matches!(c, '-' | '_' | '.')) {
            let help = match bad {
                '*' => "an asterisk stands for whole labels, and at the beginning alone: *.example.org",
                bad if !bad.is_ascii() => {
                    "write it as clients send it: in its ASCII form, which begins with xn--"
                }
                _ => PLAIN,
            };
            return told(&format!("contains {bad:?}"), help);
        }
        if end.parse::<IpAddr>().is_ok() {
            return told("is an address", "clients do not name a server by its address (RFC 6066 section 3)");
        }
        if end.ends_with('.') {
            return told("ends in a dot", "leave the dot away: clients send none (RFC 6066 section 3)");
        }
        if end.split('.').any(str::is_empty) {
            return told("has an empty label", PLAIN);
        }
        if end.len() > MAX_NAME || end.split('.').any(|label| label.len() > MAX_LABEL) {
            return told(
                "is too long",
                "a name has 253 characters at most, and 63 between two dots (RFC 1035)",
            );
        }
        if is_wildcard && labels(end) > MAX_WILDCARD_LABELS {
            return told("has too many labels", "15 at most stand behind an asterisk");
        }
        Ok(if is_wildcard { Self::Wildcard(end.to_owned()) } else { Self::Exact(end.to_owned()) })
    }

    /// The name, or what stands behind the asterisk and the dot.
    pub fn text(&self) -> &str {
        match self {
            Self::Exact(text) | Self::Wildcard(text) => text,
        }
    }

    /// Labels behind the asterisk; 0 of a name without one.
    pub fn wildcard_labels(&self) -> u32 {
        match self {
            Self::Exact(_) => 0,
            Self::Wildcard(end) => labels(end),
        }
    }

    /// Whether a client that asks for `name`, in lower case, means this.
    pub fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(text) => name == text,
            Self::Wildcard(end) => {
                name.strip_suffix(end.as_str()).is_some_and(|before| before.ends_with('.'))
            }
        }
    }
}

impl fmt::Display for ServerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) => f.write_str(text),
            Self::Wildcard(end) => write!(f, "*.{end}"),
        }
    }
}

/// The names for which the same backends are listed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pool {
    pub names: Vec<ServerName>,
    /// Those backends, by their places in the service.
    pub backends: Vec<usize>,
}

/// The pools of a service's backends, ordered by these.
pub(super) fn pools(backends: &[Backend]) -> Vec<Pool> {
    let mut listed: BTreeMap<&ServerName, Vec<usize>> = BTreeMap::new();
    for (place, backend) in backends.iter().enumerate() {
        backend.sni.iter().for_each(|name| listed.entry(name).or_default().push(place));
    }
    let mut pools: BTreeMap<Vec<usize>, Vec<ServerName>> = BTreeMap::new();
    for (name, backends) in listed {
        pools.entry(backends).or_default().push(name.clone());
    }
    pools.into_iter().map(|(backends, names)| Pool { names, backends }).collect()
}
