//! Preconditions as headers write them (RFC 9110 §8.8.3, §13.1), and entity tags.

use super::reply::Fault;
use crate::session::{Preconditions, Tag, Tags};
use axum::http::header::{IF_MATCH, IF_NONE_MATCH};
use axum::http::{HeaderMap, HeaderName, HeaderValue};

/// What a request asks to be true. Dates say nothing here: no answer has a Last-Modified (§13.1.3, §13.1.4).
pub(super) fn preconditions(headers: &HeaderMap) -> Result<Preconditions, Fault> {
    Ok(Preconditions {
        if_match: tags(headers, &IF_MATCH, false)?,
        if_none_match: tags(headers, &IF_NONE_MATCH, true)?,
    })
}

/// The tag as `ETag` has it.
pub(super) fn etag(tag: Tag) -> HeaderValue {
    HeaderValue::try_from(format!("\"{tag}\"")).expect("digits, letters and quotes are visible")
}

/// The tags that a header lists. Weak ones can only match where `weak` comparison is asked for (§8.8.3.2).
fn tags(headers: &HeaderMap, name: &HeaderName, weak: bool) -> Result<Option<Tags>, Fault> {
    let mut lines = headers.get_all(name).iter().map(HeaderValue::as_bytes).peekable();
    if lines.peek().is_none() {
        return Ok(None);
    }
    // Several lines are one list (§5.3).
    let lines: Vec<_> = lines.collect();
    let list = lines.join(&b","[..]);
    if list.trim_ascii() == b"*" {
        return Ok(Some(Tags::Any));
    }
    let malformed = || {
        Fault::bad_request(
            format!("{name} is neither * nor a list of entity tags: {:?}", String::from_utf8_lossy(&list)),
            format!("take the tag from an answer's ETag, quotes included: {name}: \"0123456789abcdef-7\""),
        )
    };
    let parsed = parse(&list).filter(|found| !found.is_empty()).ok_or_else(malformed)?;
    let ours = parsed.into_iter().filter(|found| weak || !found.weak);
    Ok(Some(Tags::Of(ours.filter_map(|found| Tag::parse(found.opaque)).collect())))
}

/// An entity tag of whatever origin.
#[derive(PartialEq, Debug)]
struct Parsed<'a> {
    weak: bool,
    opaque: &'a [u8],
}

/// Reads a list of entity tags; empty elements do not count (§5.6.1.2).
fn parse(list: &[u8]) -> Option<Vec<Parsed<'_>>> {
    let mut found = Vec::new();
    let mut rest = list.trim_ascii_start();
    while let Some(&first) = rest.first() {
        if first == b',' {
            rest = rest[1..].trim_ascii_start();
            continue;
        }
        let (weak, quoted) = match rest.strip_prefix(b"W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        let opaque = quoted.strip_prefix(b"\"")?;
        let end = opaque.iter().position(|&c| c == b'"')?;
        let opaque_tag = &opaque[..end];
        // §8.8.3: etagc has neither spaces nor controls.
        if opaque_tag.iter().any(|&c| c <= b' ' || c == 0x7f) {
            return None;
        }
        found.push(Parsed { weak, opaque: opaque_tag });
        rest = opaque[end + 1..].trim_ascii_start();
        if !matches!(rest.first(), None | Some(b',')) {
            return None;
        }
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::token::SessionId;

    fn headers(name: HeaderName, lines: &[&str]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(&name, HeaderValue::from_bytes(line.as_bytes()).unwrap());
        }
        headers
    }

    #[test]
    fn lists_are_read_as_rfc_9110_writes_them() {
        let strong = |opaque: &'static str| Parsed { weak: false, opaque: opaque.as_bytes() };
        let weak = |opaque: &'static str| Parsed { weak: true, opaque: opaque.as_bytes() };
        let rows: [(&str, Option<Vec<Parsed<'_>>>); 16] = [
            ("\"a\"", Some(vec![strong("a")])),
            ("W/\"a\"", Some(vec![weak("a")])),
            ("\"a\", \"b\"", Some(vec![strong("a"), strong("b")])),
            ("\"a\",W/\"b\",\"\"", Some(vec![strong("a"), weak("b"), strong("")])),
            (" , \"a\" ,, \"b\",", Some(vec![strong("a"), strong("b")])),
            ("\"a,b\"", Some(vec![strong("a,b")])),
            ("\"a\\\"", Some(vec![strong("a\\")])),
            ("", Some(vec![])),
            ("a", None),
            ("\"a", None),
            ("\"a\" \"b\"", None),
            ("\"a\"b", None),
            ("w/\"a\"", None),
            ("W/ \"a\"", None),
            ("\"a b\"", None),
            ("\"a\", *", None),
        ];
        for (text, expected) in rows {
            assert_eq!(parse(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn weak_tags_match_only_where_weak_comparison_is_asked_for() {
        let tag = Tag::new(SessionId([3; 16]), 9);
        let text = format!("\"other\", W/\"{tag}\"");
        let read = |name: HeaderName| preconditions(&headers(name, &[&text])).unwrap();
        assert_eq!(read(IF_MATCH).if_match, Some(Tags::Of(vec![])));
        assert_eq!(read(IF_NONE_MATCH).if_none_match, Some(Tags::Of(vec![tag])));
        assert_eq!(etag(tag).as_bytes(), format!("\"{tag}\"").as_bytes());
    }

    #[test]
    fn several_lines_are_one_list_and_a_star_stands_alone() {
        let tag = |version| Tag::new(SessionId([3; 16]), version);
        let lines = [format!("\"{}\"", tag(1)), format!("\"{}\", \"x\"", tag(2))];
        let lines = lines.each_ref().map(String::as_str);
        let read = |lines: &[&str]| preconditions(&headers(IF_MATCH, lines));
        assert_eq!(read(&lines).unwrap().if_match, Some(Tags::Of(vec![tag(1), tag(2)])));
        assert_eq!(read(&[" * "]).unwrap().if_match, Some(Tags::Any));
        assert_eq!(read(&[]).unwrap(), Preconditions::default());
        for bad in [&["*", "*"][..], &["*, \"a\""], &[""], &[" , "], &["5"], &["\"\u{1f}\""]] {
            let lines: Vec<_> = bad.iter().map(|line| line.replace('\u{1f}', "\t")).collect();
            let lines: Vec<_> = lines.iter().map(String::as_str).collect();
            assert!(read(&lines).is_err(), "{bad:?}");
        }
    }
}
