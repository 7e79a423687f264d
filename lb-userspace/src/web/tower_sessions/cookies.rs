//! From our cookie to that of tower-sessions and back. Text in, text out.

use crate::web::cookie::pair;
use http::header::{COOKIE, HeaderMap, HeaderValue, SET_COOKIE};

/// What the client's cookies look like to the application: the one named `name` holds `id` or is not there, whatever the
/// client sent under that name; all others are as they were.
pub(super) fn present(headers: &mut HeaderMap, name: &str, id: Option<&str>) {
    let others = headers
        .get_all(COOKIE)
        .iter()
        .flat_map(|line| line.as_bytes().split(|&c| c == b';'))
        .map(<[u8]>::trim_ascii)
        .filter(|text| !text.is_empty() && pair(text).is_none_or(|(found, _)| found != name.as_bytes()));
    let own = id.map(|id| format!("{name}={id}").into_bytes());
    let all: Vec<_> = own.into_iter().chain(others.map(<[u8]>::to_vec)).collect();
    headers.remove(COOKIE);
    if !all.is_empty()
        && let Ok(line) = HeaderValue::from_bytes(&all.join(&b"; "[..]))
    {
        headers.insert(COOKIE, line);
    }
}

/// Gives each `Set-Cookie` of the name `from` the name `to` and the value that `value` makes of its own, with the same
/// attributes; an empty value takes a cookie away and stays empty. What `value` can make nothing of stays as it is.
pub(super) fn translate(
    headers: &mut HeaderMap,
    from: &str,
    to: &str,
    value: impl Fn(&str) -> Option<String>,
) {
    let translated = |line: &HeaderValue| -> Option<HeaderValue> {
        let text = line.to_str().ok()?;
        let (first, attributes) = text.split_at(text.find(';').unwrap_or(text.len()));
        let (name, old) = pair(first.as_bytes())?;
        if name != from.as_bytes() {
            return None;
        }
        let old = std::str::from_utf8(old).ok()?;
        let new = if old.is_empty() { String::new() } else { value(old)? };
        HeaderValue::try_from(format!("{to}={new}{attributes}")).ok()
    };
    let lines: Vec<_> = headers
        .get_all(SET_COOKIE)
        .iter()
        .map(|line| translated(line).unwrap_or_else(|| line.clone()))
        .collect();
    headers.remove(SET_COOKIE);
    for line in lines {
        headers.append(SET_COOKIE, line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(name: http::HeaderName, lines: &[&str]) -> HeaderMap {
        lines.iter().map(|line| (name.clone(), HeaderValue::from_str(line).unwrap())).collect()
    }

    #[test]
    fn the_application_sees_the_verified_id_alone() {
        let rows: [(&[&str], Option<&str>, &str); 8] = [
            (&[], None, ""),
            (&["id=planted"], None, ""),
            (&["lb=T"], Some("I"), "id=I; lb=T"),
            (&["a=b; id=planted; lb=T"], Some("I"), "id=I; a=b; lb=T"),
            (&["a=b", "id = x", "idx=y; xid=z"], None, "a=b; idx=y; xid=z"),
            (&["id=one;id=two; ; lb=T"], Some("I"), "id=I; lb=T"),
            (&["flag; id=x"], None, "flag"),
            (&["a=\"q=1\""], Some("I"), "id=I; a=\"q=1\""),
        ];
        for (lines, id, expected) in rows {
            let mut headers = of(COOKIE, lines);
            present(&mut headers, "id", id);
            let found = headers.get(COOKIE).map_or("", |line| line.to_str().unwrap());
            assert_eq!(found, expected, "{lines:?}");
        }
    }

    #[test]
    fn attributes_stay_and_so_do_cookies_of_others() {
        let rows = [
            ("id=I; HttpOnly; Path=/; Max-Age=9", "lb=<I>; HttpOnly; Path=/; Max-Age=9"),
            ("id=I", "lb=<I>"),
            ("id=; Path=/; Max-Age=0", "lb=; Path=/; Max-Age=0"),
            ("idx=I; Path=/", "idx=I; Path=/"),
            ("theme=dark; id=I", "theme=dark; id=I"),
            ("id=strange; Path=/", "id=strange; Path=/"),
        ];
        let mut headers = of(SET_COOKIE, &rows.map(|(before, _)| before));
        translate(&mut headers, "id", "lb", |id| (id == "I").then(|| format!("<{id}>")));
        let found: Vec<_> = headers.get_all(SET_COOKIE).iter().map(|line| line.to_str().unwrap()).collect();
        assert_eq!(found, rows.map(|(_, after)| after));
    }
}
