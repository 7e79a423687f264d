//! The token among the cookies of a request, and the cookie that brings it back (RFC 6265 §4).

use axum::http::header::COOKIE;
use axum::http::{HeaderMap, HeaderValue};

/// The values of every cookie of that name, in the order in which they stand.
pub(super) fn values<'a>(headers: &'a HeaderMap, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
    headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|header| header.as_bytes().split(|&c| c == b';'))
        .filter_map(|pair| {
            let pair = pair.trim_ascii();
            let at = pair.iter().position(|&c| c == b'=')?;
            Some((pair[..at].trim_ascii_end(), pair[at + 1..].trim_ascii_start()))
        })
        .filter(move |(found, _)| *found == name.as_bytes())
        .map(|(_, value)| value)
}

/// Hands a token to the client. It lives as long as the browser does; how long the session lives is not its business.
pub(super) fn set(name: &str, token: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("{name}={token}; Path=/; HttpOnly; SameSite=Lax")).ok()
}

/// Takes the token away from the client.
pub(super) fn clear(name: &str) -> Option<HeaderValue> {
    HeaderValue::try_from(format!("{name}=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax")).ok()
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
}
