//! The `Idempotency-Key` header (draft-ietf-httpapi-idempotency-key-header): a change that is made once, however often
//! the client sends it.

use super::reply::Fault;
use crate::session::Once;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// In the answer to a change that had been made before.
pub(super) const IDEMPOTENT_REPLAYED: HeaderName = HeaderName::from_static("idempotent-replayed");

/// Longest key, in bytes.
const MAX_KEY: usize = 255;

/// What makes a request this one and no other, for clients that want it done once. Its answer shows the value of one
/// key of the state, or all of it.
pub(super) fn once(
    headers: &HeaderMap,
    method: &Method,
    uri: &Uri,
    body: &[u8],
    shows: Option<&'static str>,
) -> Result<Option<Once>, Fault> {
    let mut lines = headers.get_all(&IDEMPOTENCY_KEY).iter().map(HeaderValue::as_bytes);
    let Some(line) = lines.next() else { return Ok(None) };
    let only = if lines.next().is_none() { key(line) } else { None };
    let key = only.ok_or_else(|| {
        Fault::bad_request(
            format!("{IDEMPOTENCY_KEY} is not one key: {:?}", String::from_utf8_lossy(line)),
            format!(
                "1 to {MAX_KEY} visible ASCII characters, in quotes or without, such as a new random UUID"
            ),
        )
    })?;
    let target = uri.path_and_query().map_or("", |target| target.as_str());
    Ok(Some(Once::new(&key, &[method.as_str().as_bytes(), target.as_bytes(), body], shows)))
}

/// The key: a string of RFC 9651 §3.3.3, or bare, as most clients send it. With and without quotes it is the same.
fn key(line: &[u8]) -> Option<Vec<u8>> {
    let line = line.trim_ascii();
    let key = match line.strip_prefix(b"\"") {
        Some(rest) => unquoted(rest)?,
        None => line.to_vec(),
    };
    let visible = key.iter().all(u8::is_ascii_graphic);
    (visible && (1..=MAX_KEY).contains(&key.len())).then_some(key)
}

/// What stands between quotes, of which the first is gone.
fn unquoted(rest: &[u8]) -> Option<Vec<u8>> {
    let inner = rest.strip_suffix(b"\"")?;
    let mut key = Vec::with_capacity(inner.len());
    let mut bytes = inner.iter();
    while let Some(&byte) = bytes.next() {
        key.push(match byte {
            b'\\' => *bytes.next().filter(|next| matches!(next, b'"' | b'\\'))?,
            b'"' => return None,
            byte => byte,
        });
    }
    Some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_with_and_without_quotes() {
        let long = "x".repeat(MAX_KEY);
        let (quoted, too_long) = (format!("\"{long}\""), format!("{long}x"));
        let rows = [
            ("8e03978e-40d5-43e8-bc93-6894a57f9324", Some("8e03978e-40d5-43e8-bc93-6894a57f9324")),
            ("\"8e03978e-40d5-43e8-bc93-6894a57f9324\"", Some("8e03978e-40d5-43e8-bc93-6894a57f9324")),
            (" a ", Some("a")),
            (r#""a\"b\\c""#, Some(r#"a"b\c"#)),
            (r"a\b", Some(r"a\b")),
            (&long, Some(long.as_str())),
            (&quoted, Some(&long)),
            (&too_long, None),
            ("", None),
            ("\"\"", None),
            ("\"", None),
            ("\"a", None),
            (r#""a\""#, None),
            (r#""a\x""#, None),
            (r#""a"b""#, None),
            ("\"a\";p=1", None),
            ("a b", None),
            ("ä", None),
        ];
        for (line, expected) in rows {
            assert_eq!(key(line.as_bytes()).as_deref(), expected.map(str::as_bytes), "{line}");
        }
    }

    #[test]
    fn a_request_is_its_method_target_and_body() {
        let mut headers = HeaderMap::new();
        headers.insert(&IDEMPOTENCY_KEY, HeaderValue::from_static("k"));
        let read = |method: Method, uri: &'static str, body: &[u8]| {
            once(&headers, &method, &Uri::from_static(uri), body, None).unwrap().unwrap()
        };
        let first = read(Method::PUT, "/session/a", b"1");
        assert_eq!(read(Method::PUT, "/session/a", b"1"), first);
        for other in [
            read(Method::DELETE, "/session/a", b"1"),
            read(Method::PUT, "/session/b", b"1"),
            read(Method::PUT, "/session/a?b", b"1"),
            read(Method::PUT, "/session/a", b"2"),
            read(Method::PUT, "/session/", b"a1"),
        ] {
            assert_ne!(other, first);
        }
        let none = once(&HeaderMap::new(), &Method::PUT, &Uri::from_static("/"), b"", None);
        assert_eq!(none.unwrap(), None);
        headers.append(&IDEMPOTENCY_KEY, HeaderValue::from_static("k"));
        assert!(once(&headers, &Method::PUT, &Uri::from_static("/"), b"", None).is_err(), "two of them");
    }
}
