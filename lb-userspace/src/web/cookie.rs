//! The token among the cookies of a request, and the cookie that brings it back (RFC 6265 §4).

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use std::fmt::Write;
use std::time::Duration;

/// Names longer than this are not found by the packet program.
const MAX_NAME: usize = 15;

/// When a browser sends a cookie with requests that come from other sites.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SameSite {
    Strict,
    Lax,
    /// Browsers take this from cookies that are `Secure` alone.
    None,
}

/// Name and attributes of the cookie that carries the token.
///
/// ```
/// use lb_userspace::web::{CookieOptions, SameSite};
///
/// let cookie = CookieOptions::named("lb").with_secure(true).with_same_site(SameSite::Strict);
/// let header = cookie.set("TOKEN").unwrap();
/// assert_eq!(header, "lb=TOKEN; Path=/; Secure; HttpOnly; SameSite=Strict");
/// ```
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CookieOptions {
    name: String,
    path: String,
    domain: Option<String>,
    secure: bool,
    http_only: bool,
    same_site: SameSite,
    max_age: Option<Duration>,
}

impl Default for CookieOptions {
    /// `lb`, as in lbd's configuration.
    fn default() -> Self {
        Self::named("lb")
    }
}

impl CookieOptions {
    /// A cookie of the name that lbd's configuration has for the service: `affinity = { kind = "signed", cookie = NAME }`.
    /// It is for all paths, hidden from scripts, `SameSite=Lax`, and lives as long as the browser does: how long the
    /// session lives is not its business.
    ///
    /// # Panics
    /// When the name is not 1 to 15 of the characters that cookie names consist of.
    pub fn named(name: &str) -> Self {
        assert!(
            (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(is_token),
            "cookie name {name:?}: 1 to {MAX_NAME} letters, digits, `-` or `_`"
        );
        Self {
            name: name.to_owned(),
            path: "/".to_owned(),
            domain: None,
            secure: false,
            http_only: true,
            same_site: SameSite::Lax,
            max_age: None,
        }
    }

    /// For requests below this path only.
    ///
    /// # Panics
    /// When it holds a semicolon or a character that no header may hold.
    pub fn with_path(mut self, path: &str) -> Self {
        self.path = attribute(path);
        self
    }

    /// For this domain and those below it; without one, for the host that was asked alone.
    ///
    /// # Panics
    /// As [`CookieOptions::with_path`].
    pub fn with_domain(mut self, domain: &str) -> Self {
        self.domain = Some(attribute(domain));
        self
    }

    /// Never to be sent without TLS. Off unless asked for: the balancer reads the token, so TLS ends before it. Ask for it
    /// where a proxy in front of the balancer speaks TLS with the browsers.
    pub fn with_secure(mut self, secure: bool) -> Self {
        self.secure = secure;
        self
    }

    /// Hidden from scripts; on unless asked otherwise.
    pub fn with_http_only(mut self, http_only: bool) -> Self {
        self.http_only = http_only;
        self
    }

    pub fn with_same_site(mut self, same_site: SameSite) -> Self {
        self.same_site = same_site;
        self
    }

    /// Lets the cookie outlive the browser, by whole seconds.
    pub fn with_max_age(mut self, max_age: Option<Duration>) -> Self {
        self.max_age = max_age;
        self
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The header that hands a token to the client. `None` for text that no header may hold.
    pub fn set(&self, token: &str) -> Option<HeaderValue> {
        self.header(token, self.max_age)
    }

    /// The header that takes the token away from the client.
    pub fn clear(&self) -> Option<HeaderValue> {
        self.header("", Some(Duration::ZERO))
    }

    fn header(&self, value: &str, max_age: Option<Duration>) -> Option<HeaderValue> {
        let mut text = format!("{}={value}; Path={}", self.name, self.path);
        if let Some(domain) = &self.domain {
            text += "; Domain=";
            text += domain;
        }
        if let Some(age) = max_age {
            write!(text, "; Max-Age={}", age.as_secs()).expect("writing to a string does not fail");
        }
        if self.secure {
            text += "; Secure";
        }
        if self.http_only {
            text += "; HttpOnly";
        }
        text += match self.same_site {
            SameSite::Strict => "; SameSite=Strict",
            SameSite::Lax => "; SameSite=Lax",
            SameSite::None => "; SameSite=None",
        };
        HeaderValue::try_from(text).ok()
    }
}

/// The values of every cookie of that name, in the order in which they stand.
pub fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    let lines = headers.get_all(COOKIE).iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|&c| c == b';')).filter_map(pair);
    pairs.filter(move |(found, _)| *found == name.as_bytes()).map(|(_, value)| value)
}

/// Name and value of a cookie as it stands between two semicolons.
pub(crate) fn pair(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let text = text.trim_ascii();
    let at = text.iter().position(|&c| c == b'=')?;
    Some((text[..at].trim_ascii_end(), text[at + 1..].trim_ascii_start()))
}

/// The characters of a token, RFC 9110 §5.6.2.
fn is_token(c: u8) -> bool {
    c.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&c)
}

fn attribute(text: &str) -> String {
    assert!(
        !text.contains(';') && HeaderValue::from_str(text).is_ok(),
        "{text:?} cannot stand in a Set-Cookie header"
    );
    text.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn found_wherever_it_stands() {
        let rows: [(&[&str], &[&str]); 11] = [
            (&[], &[]),
            (&["lb=1"], &["1"]),
            (&["a=b; lb=1"], &["1"]),
            (&["lb=1; a=b"], &["1"]),
            (&["a=b;lb=1;c=d"], &["1"]),
            (&["a=b;   lb = 1 ;"], &["1"]),
            (&["alb=2; lb2=3; LB=4"], &[]),
            (&["a=lb=1; lb"], &[]),
            (&["lb=x; lb=1"], &["x", "1"]),
            (&["a=b", "lb=1"], &["1"]),
            (&["lb=a=b"], &["a=b"]),
        ];
        for (lines, expected) in rows {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(COOKIE, HeaderValue::from_str(line).unwrap());
            }
            let found: Vec<_> =
                values(&headers, "lb").map(|v| String::from_utf8_lossy(v).into_owned()).collect();
            assert_eq!(found, expected, "{lines:?}");
        }
    }

    #[test]
    fn every_attribute_is_written() {
        let plain = CookieOptions::default();
        let full = CookieOptions::named("s-1")
            .with_path("/shop")
            .with_domain("example.org")
            .with_secure(true)
            .with_http_only(false)
            .with_same_site(SameSite::None)
            .with_max_age(Some(Duration::from_millis(90_500)));
        let rows = [
            (plain.set("T"), "lb=T; Path=/; HttpOnly; SameSite=Lax"),
            (plain.clear(), "lb=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax"),
            (full.set("T"), "s-1=T; Path=/shop; Domain=example.org; Max-Age=90; Secure; SameSite=None"),
            (full.clear(), "s-1=; Path=/shop; Domain=example.org; Max-Age=0; Secure; SameSite=None"),
        ];
        for (found, expected) in rows {
            assert_eq!(found.unwrap(), expected);
        }
        assert_eq!(plain.set("\n"), None);
    }

    #[test]
    fn names_and_attributes_that_would_break_the_header_are_refused() {
        let refused = |make: fn() -> CookieOptions| std::panic::catch_unwind(make).is_err();
        assert!(refused(|| CookieOptions::named("")));
        assert!(refused(|| CookieOptions::named("a=b")));
        assert!(refused(|| CookieOptions::named("sixteen-letters-")));
        assert!(refused(|| CookieOptions::default().with_path("/; Secure")));
        assert!(refused(|| CookieOptions::default().with_domain("a\r\nb")));
    }
}
