//! Cookies, as servers read and set them.

use anyhow::{Result, ensure};
use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};
use lb_userspace::web::{CookieOptions, SameSite, cookie::values};
use std::time::Duration;

pub(super) const COOKIE_WORDS: &[&str] =
    &["lb=", "; ", ";", "=", "\n", "\"", " ", "\t", "lb", "__Host-", "__Secure-", "/", "example.org", "%"];

pub(super) fn cookie(input: &[u8]) -> Result<()> {
    let mut headers = HeaderMap::new();
    let mut expected = Vec::new();
    for line in input.split(|byte| *byte == b'\n') {
        let Ok(value) = HeaderValue::from_bytes(line) else { continue };
        headers.append(COOKIE, value);
        expected.extend(reference(line, b"lb"));
    }
    let found: Vec<&[u8]> = values(&headers, "lb").collect();
    ensure!(found == expected, "found {found:?}, expected {expected:?}");
    set(input)
}

/// The values of a cookie in a line, byte by byte (RFC 6265 §5.4: pairs between semicolons; blanks around do not count).
fn reference<'a>(line: &'a [u8], name: &[u8]) -> Vec<&'a [u8]> {
    let blank = |c: u8| matches!(c, b' ' | b'\t' | b'\r' | b'\n' | 0x0c);
    let trim = |mut part: &'a [u8]| {
        while let [first, rest @ ..] = part
            && blank(*first)
        {
            part = rest;
        }
        while let [rest @ .., last] = part
            && blank(*last)
        {
            part = rest;
        }
        part
    };
    let mut found = Vec::new();
    let mut begin = 0;
    for end in 0..=line.len() {
        if end == line.len() || line[end] == b';' {
            let part = &line[begin..end];
            if let Some(at) = part.iter().position(|c| *c == b'=')
                && trim(&part[..at]) == name
            {
                found.push(trim(&part[at + 1..]));
            }
            begin = end + 1;
        }
    }
    found
}

/// A cookie with parts of the input as name, path and domain: refused, or one header that sets just that.
fn set(input: &[u8]) -> Result<()> {
    let text = String::from_utf8_lossy(input);
    let mut parts = text.split('\n');
    let mut next = || parts.next().unwrap_or_default();
    let (name, path, domain, flags) = (next(), next(), next(), next().len());
    let mut options = CookieOptions::named(name)
        .with_secure(flags & 1 != 0)
        .with_http_only(flags & 2 != 0)
        .with_same_site([SameSite::Lax, SameSite::Strict, SameSite::None][flags % 3])
        .with_max_age((flags & 4 != 0).then(|| Duration::from_secs(flags as u64)));
    if !path.is_empty() {
        options = options.with_path(path);
    }
    if !domain.is_empty() {
        options = options.with_domain(domain);
    }
    let Ok(cookie) = options.build() else { return Ok(()) };
    let header = cookie.set("TOKEN").ok_or_else(|| anyhow::anyhow!("{cookie:?} cannot be set"))?;
    let mut attributes = header.as_bytes().split(|byte| *byte == b';');
    let pair = attributes.next().unwrap_or_default();
    ensure!(pair == format!("{name}=TOKEN").as_bytes(), "{header:?} sets another cookie than {name}");
    let expected = 2
        + usize::from(!domain.is_empty())
        + usize::from(flags & 4 != 0)
        + usize::from(flags & 1 != 0)
        + usize::from(flags & 2 != 0);
    ensure!(attributes.count() == expected, "{header:?} has not {expected} attributes");
    let mut headers = HeaderMap::new();
    headers.append(COOKIE, HeaderValue::from_bytes(pair)?);
    ensure!(values(&headers, cookie.name()).eq([b"TOKEN".as_slice()]), "{header:?} is not read back");
    Ok(())
}
