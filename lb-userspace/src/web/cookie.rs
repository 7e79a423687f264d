//! The token among the cookies of a request, and the cookie that brings it back (RFC 6265 §4).

use http::header::COOKIE;
use http::{HeaderMap, HeaderValue};
use lb_common::service::MAX_COOKIE_NAME;
use std::fmt::Write;
use std::time::Duration;

/// Longest lifetime of a cookie: browsers cut what is longer (RFC 6265bis §5.6.2).
pub const MAX_AGE: Duration = Duration::from_secs(400 * 86_400);
/// Longest value of an attribute, in bytes: browsers ignore what is longer (RFC 6265bis §5.6).
const MAX_ATTRIBUTE: usize = 1024;

/// When a browser sends a cookie with requests that come from other sites.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SameSite {
    Strict,
    Lax,
    /// Browsers take this from cookies that are `Secure` alone.
    None,
}

/// Name and attributes of the cookie that shall carry the token. Nothing is checked before [`CookieOptions::build`].
///
/// ```
/// use lb_userspace::web::{CookieOptions, SameSite};
///
/// let options = CookieOptions::named("__Host-lb").with_secure(true).with_same_site(SameSite::Strict);
/// let header = options.build()?.set("TOKEN").unwrap();
/// assert_eq!(header, "__Host-lb=TOKEN; Path=/; Secure; HttpOnly; SameSite=Strict");
/// # Ok::<_, lb_userspace::web::CookieError>(())
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

/// What makes a cookie one that browsers would not take, or the balancer would not find.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{reason}: {help}")]
pub struct CookieError {
    pub attribute: Attribute,
    pub reason: String,
    /// What to do.
    pub help: String,
}

/// The part of a cookie that an error is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Attribute {
    Name,
    Path,
    Domain,
    MaxAge,
    SameSite,
}

/// A cookie whose name and attributes go together (RFC 6265bis), made by [`CookieOptions::build`].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cookie(CookieOptions);

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
    pub fn named(name: &str) -> Self {
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
    pub fn with_path(mut self, path: &str) -> Self {
        self.path = path.to_owned();
        self
    }

    /// For this domain and those below it; without one, for the host that was asked alone.
    pub fn with_domain(mut self, domain: &str) -> Self {
        self.domain = Some(domain.to_owned());
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

    /// Lets the cookie outlive the browser, by whole seconds from each answer about the session, which then all set it.
    pub fn with_max_age(mut self, max_age: Option<Duration>) -> Self {
        self.max_age = max_age;
        self
    }

    /// The cookie.
    ///
    /// # Errors
    /// The first of [`CookieOptions::errors`].
    pub fn build(self) -> Result<Cookie, CookieError> {
        match self.errors().into_iter().next() {
            Some(error) => Err(error),
            None => Ok(Cookie(self)),
        }
    }

    /// All that is wrong with it: a name that is not 1 to [`MAX_COOKIE_NAME`] of the characters that cookie names consist
    /// of, attributes that break the header or that browsers ignore, and combinations that they refuse.
    pub fn errors(&self) -> Vec<CookieError> {
        let mut errors = Vec::new();
        let mut tell = |attribute, reason: String, help: &str| {
            errors.push(CookieError { attribute, reason, help: help.to_owned() });
        };
        let name = &self.name;
        if !(1..=MAX_COOKIE_NAME).contains(&name.len()) || !name.bytes().all(is_token) {
            let help = format!("use 1 to {MAX_COOKIE_NAME} letters, digits, `-` or `_`");
            tell(Attribute::Name, format!("{name:?} cannot name a cookie"), &help);
        }
        let path = &self.path;
        let legal = |c: u8| (b' '..=b'~').contains(&c) && c != b';';
        if !path.starts_with('/') || path.len() > MAX_ATTRIBUTE || !path.bytes().all(legal) {
            let help = "write a path like \"/shop\", without semicolons or letters outside ASCII";
            tell(Attribute::Path, format!("{path:?} cannot be the path of a cookie"), help);
        }
        if let Some(domain) = self.domain.as_deref().filter(|domain| !is_domain(domain)) {
            let help = "write a host's name like \"example.org\", without a dot before it or behind it";
            tell(Attribute::Domain, format!("{domain:?} cannot be the domain of a cookie"), help);
        }
        if self.max_age.is_some_and(|age| age < Duration::from_secs(1) || age > MAX_AGE) {
            let help = "browsers keep a cookie for 1s to 400d; without it, as long as they run";
            tell(Attribute::MaxAge, "the maximum age of the cookie is out of range".to_owned(), help);
        }
        if self.same_site == SameSite::None && !self.secure {
            let reason = "browsers refuse a cookie with SameSite=None that is not Secure".to_owned();
            tell(Attribute::SameSite, reason, "add secure = true, or use \"lax\"");
        }
        // RFC 6265bis §4.1.3, compared as browsers do.
        let begins =
            |prefix: &str| name.get(..prefix.len()).is_some_and(|it| it.eq_ignore_ascii_case(prefix));
        if (begins("__Secure-") || begins("__Host-")) && !self.secure {
            let reason = format!("browsers refuse a cookie named {name} that is not Secure");
            tell(Attribute::Name, reason, "add secure = true, or choose another name");
        }
        if begins("__Host-") && self.path != "/" {
            let reason = format!("browsers refuse a cookie named {name} with another path than \"/\"");
            tell(Attribute::Path, reason, "leave the path away, or use the prefix __Secure-");
        }
        if begins("__Host-") && self.domain.is_some() {
            let reason = format!("browsers refuse a cookie named {name} with a domain");
            tell(Attribute::Domain, reason, "leave the domain away, or use the prefix __Secure-");
        }
        errors
    }
}

impl Default for Cookie {
    /// `lb`, with the attributes of [`CookieOptions::named`].
    fn default() -> Self {
        Self(CookieOptions::default())
    }
}

impl Cookie {
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Whether browsers forget it by themselves, so that each answer about its session has to set it again.
    pub(crate) fn ages(&self) -> bool {
        self.0.max_age.is_some()
    }

    /// The header that hands a token to the client. `None` for text that no header may hold.
    pub fn set(&self, token: &str) -> Option<HeaderValue> {
        self.header(token, self.0.max_age)
    }

    /// The header that takes the token away from the client.
    pub fn clear(&self) -> Option<HeaderValue> {
        self.header("", Some(Duration::ZERO))
    }

    fn header(&self, value: &str, max_age: Option<Duration>) -> Option<HeaderValue> {
        let CookieOptions { name, path, domain, secure, http_only, same_site, max_age: _ } = &self.0;
        let mut text = format!("{name}={value}; Path={path}");
        if let Some(domain) = domain {
            text += "; Domain=";
            text += domain;
        }
        if let Some(age) = max_age {
            write!(text, "; Max-Age={}", age.as_secs()).expect("writing to a string does not fail");
        }
        if *secure {
            text += "; Secure";
        }
        if *http_only {
            text += "; HttpOnly";
        }
        text += match same_site {
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

/// The name of a host, RFC 952 and RFC 1123 §2.1, as a cookie's domain has it.
fn is_domain(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
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
        let plain = Cookie::default();
        let full = CookieOptions::named("s-1")
            .with_path("/shop")
            .with_domain("example.org")
            .with_secure(true)
            .with_http_only(false)
            .with_same_site(SameSite::None)
            .with_max_age(Some(Duration::from_millis(90_500)))
            .build()
            .unwrap();
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
    fn what_browsers_would_refuse_is_an_error_and_no_panic() {
        use Attribute::{Domain, MaxAge, Name, Path, SameSite as Site};
        let named = CookieOptions::named;
        let secure = |name: &str| named(name).with_secure(true);
        let aged = |millis| named("lb").with_max_age(Some(Duration::from_millis(millis)));
        let long = "x".repeat(31);
        let rows: [(CookieOptions, &[Attribute]); 34] = [
            (named(""), &[Name]),
            (named("a=b"), &[Name]),
            (named("ä"), &[Name]),
            (named("sixteen-letters-"), &[]),
            (named(&long), &[]),
            (named(&(long + "x")), &[Name]),
            (named("lb").with_path("/; Secure"), &[Path]),
            (named("lb").with_path("shop"), &[Path]),
            (named("lb").with_path(""), &[Path]),
            (named("lb").with_path(&"/".repeat(1025)), &[Path]),
            (named("lb").with_path("/a b"), &[]),
            (named("lb").with_domain("a\r\nb"), &[Domain]),
            (named("lb").with_domain(""), &[Domain]),
            (named("lb").with_domain(".example.org"), &[Domain]),
            (named("lb").with_domain("example.org."), &[Domain]),
            (named("lb").with_domain("-a.org"), &[Domain]),
            (named("lb").with_domain("example.org"), &[]),
            (aged(999), &[MaxAge]),
            (aged(1000), &[]),
            (aged(400 * 86_400_000), &[]),
            (aged(400 * 86_400_000 + 1), &[MaxAge]),
            (named("lb").with_same_site(SameSite::None), &[Site]),
            (secure("lb").with_same_site(SameSite::None), &[]),
            (named("__Secure-lb"), &[Name]),
            (named("__secure-lb"), &[Name]),
            (secure("__Secure-lb").with_domain("example.org").with_path("/a"), &[]),
            (named("__Host-lb"), &[Name]),
            (named("__hOST-lb"), &[Name]),
            (secure("__Host-lb"), &[]),
            (secure("__Host-lb").with_path("/a"), &[Path]),
            (secure("__Host-lb").with_domain("example.org"), &[Domain]),
            (named("__Host-lb").with_domain("example.org").with_path("/a"), &[Name, Path, Domain]),
            (named("__Hostlb"), &[]),
            (named("__Host"), &[]),
        ];
        for (options, expected) in rows {
            let found: Vec<_> = options.errors().iter().map(|error| error.attribute).collect();
            assert_eq!(found, expected, "{options:?}");
            assert_eq!(options.clone().build().is_ok(), expected.is_empty(), "{options:?}");
        }
    }
}
