//! The URL of a node, read by hand, so that no message about it can hold what is secret in it: a reason names no part of the
//! URL, and what is shown is either known to be no secret or hidden.

/// What a node's URL says.
#[derive(Clone, Copy)]
pub(crate) struct NodeUrl<'a> {
    /// `rediss` or `valkeys`.
    pub(crate) tls: bool,
    /// Without the brackets of an IPv6 address.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    pub(crate) database: u32,
    /// User and password, in percent form. Never shown.
    pub(crate) login: &'a str,
}

/// What to do about signs that have a meaning in a URL.
pub(crate) const PERCENT: &str =
    "in a user or password write the signs / ? # and \\ in percent form, such as %2F for /";

impl<'a> NodeUrl<'a> {
    const PORT: u16 = 6379;

    /// # Errors
    /// What is wrong with it, to follow the word `node`. Names no part of the URL.
    pub(crate) fn parse(url: &'a str) -> Result<Self, &'static str> {
        let (scheme, rest) = url.split_once("://").ok_or("is no URL")?;
        let tls = match scheme {
            "redis" | "valkey" => false,
            "rediss" | "valkeys" => true,
            _ => return Err("is no URL of Redis"),
        };
        // The last one: a password may have one of its own.
        let (login, place) = rest.rsplit_once('@').unwrap_or(("", rest));
        if login.contains(|c: char| "/?#\\".contains(c) || c.is_whitespace() || c.is_control()) {
            return Err("has a sign in its user or password that has a meaning in a URL");
        }
        let (address, database) = place.split_once('/').unwrap_or((place, ""));
        let database = match database {
            "" => 0,
            number => number.parse().map_err(|_| "has no number of a database at its end")?,
        };
        // The colons of an IPv6 address stand in brackets.
        let port_at = address.rfind(']').unwrap_or(0);
        let (host, port) = match address[port_at..].rfind(':') {
            Some(colon) => (&address[..port_at + colon], &address[port_at + colon + 1..]),
            None => (address, ""),
        };
        let host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(host) => host.parse::<std::net::Ipv6Addr>().map(|_| host).map_err(|_| "names no host")?,
            None if is_name(host) => host,
            None => return Err("names no host"),
        };
        let port = match port {
            "" if address.ends_with(':') => None,
            "" => Some(Self::PORT),
            port => port.parse().ok().filter(|port| *port > 0),
        };
        let port = port.ok_or("has no port from 1 to 65535")?;
        Ok(Self { tls, host, port, database, login })
    }

    /// Host and port.
    pub(crate) fn address(&self) -> String {
        match self.host.contains(':') {
            true => format!("[{}]:{}", self.host, self.port),
            false => format!("{}:{}", self.host, self.port),
        }
    }
}

/// Letters, digits, dots, hyphens and underscores: a name, or an IPv4 address.
fn is_name(host: &str) -> bool {
    !host.is_empty() && host.chars().all(|c| c.is_ascii_alphanumeric() || ".-_".contains(c))
}

/// A node's URL for messages: without user and password. `None` for what is no such URL, of which nothing can be shown, for
/// nobody knows which part of it is the password.
pub(crate) fn public(url: &str) -> Option<String> {
    let node = NodeUrl::parse(url).ok()?;
    let scheme = if node.tls { "rediss" } else { "redis" };
    let database = if node.database == 0 { String::new() } else { format!("/{}", node.database) };
    Some(format!("{scheme}://{}{database}", node.address()))
}

/// The same text with user and password hidden, character for character, so that places in it stay where they are; and
/// with everything hidden where it is no URL of a node.
pub(crate) fn masked(url: &str) -> String {
    let Ok(node) = NodeUrl::parse(url) else { return stars(url) };
    let login = url.find("://").map_or(0, |at| at + 3);
    let place = login + node.login.len();
    format!("{}{}{}", &url[..login], stars(node.login), &url[place..])
}

pub(crate) fn stars(text: &str) -> String {
    text.chars().map(|_| '*').collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_read_as_meant() {
        let read = |url| {
            let node = NodeUrl::parse(url)?;
            Ok((node.tls, node.address(), node.database, node.login))
        };
        for (url, expected) in [
            ("redis://one", Ok((false, "one:6379".to_owned(), 0, ""))),
            ("rediss://u:p@one:7000/3", Ok((true, "one:7000".into(), 3, "u:p"))),
            ("valkeys://:p@ss@[::1]", Ok((true, "[::1]:6379".into(), 0, ":p@ss"))),
            ("one:6379", Err("is no URL")),
            ("http://one", Err("is no URL of Redis")),
            ("redis://u:p/w@one", Err("has a sign in its user or password that has a meaning in a URL")),
            ("redis://", Err("names no host")),
            ("redis://[one]", Err("names no host")),
            ("redis://one?password=secret", Err("names no host")),
            ("redis://one:", Err("has no port from 1 to 65535")),
            ("redis://one:0", Err("has no port from 1 to 65535")),
            ("redis://one:secret", Err("has no port from 1 to 65535")),
            ("redis://one/secret", Err("has no number of a database at its end")),
        ] {
            assert_eq!(read(url), expected, "{url}");
        }
    }

    #[test]
    fn what_may_be_secret_is_hidden_character_for_character() {
        for (url, shown, message) in [
            ("redis://u:é@one/0", "redis://***@one/0", Some("redis://one:6379")),
            ("rediss://secret@one", "rediss://******@one", Some("rediss://one:6379")),
            ("redis://one:7000/2", "redis://one:7000/2", Some("redis://one:7000/2")),
            ("u:p@one", "*******", None),
            ("redis://one:p", "*************", None),
        ] {
            assert_eq!((masked(url).as_str(), public(url).as_deref()), (shown, message), "{url}");
        }
    }
}
