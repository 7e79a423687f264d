//! Keeps secrets out of messages about the configuration: passwords in URLs of nodes, and keys. A message may go into a log,
//! or on a screen that others see. What is hidden is replaced character for character, so that a mark below the line stays
//! under what it marks.

use super::fault::Span;
use super::quic::without_key;
use crate::session::store::redis::url::{masked, stars};
use toml::de::DeValue;

/// Keys whose values are texts with a secret in them.
const SECRET: [&str; 2] = ["nodes", "key"];

/// Where in a configuration texts stand that may hold a secret: whatever is below `nodes` or `key`, and every text that
/// looks like a URL or has a login in front.
pub(super) fn places(key: &str, value: &DeValue<'_>, span: Span, found: &mut Vec<Span>) {
    match value {
        DeValue::String(text) if SECRET.contains(&key) || looks_secret(text) => found.push(span),
        DeValue::Array(items) => {
            items.iter().for_each(|item| places(key, item.get_ref(), item.span(), found));
        }
        DeValue::Table(entries) => {
            for (name, value) in entries {
                let name = name.get_ref().as_ref();
                // What is below a secret key stays secret.
                let key = if SECRET.contains(&key) { key } else { name };
                places(key, value.get_ref(), value.span(), found);
            }
        }
        _ => {}
    }
}

fn looks_secret(text: &str) -> bool {
    text.contains('@') || text.contains("://")
}

/// A line of the file. `start`: where it begins in the file; `hidden`: from [`places`]. `broken`: the file is not TOML, so
/// nobody knows what its values are.
pub(super) fn line(text: &str, start: usize, hidden: &[Span], broken: bool) -> String {
    let mut shown = text.to_owned();
    for span in hidden {
        let (from, to) = (span.start.max(start), span.end.min(start + text.len()));
        if from < to {
            // Whoever wrote it over several lines or with escapes does not see less of it than of one that is no URL.
            let part = &text[from - start..to - start];
            let whole = (from, to) == (span.start, span.end);
            let part = if whole && !part.contains('\\') { quoted(part) } else { stars(part) };
            shown = replace(&shown, text, from - start..to - start, &part);
        }
    }
    if broken {
        shown = of_a_broken_file(&shown);
    }
    without_key(&words(&shown))
}

/// A part of a text replaced by as many characters. `shown` has the characters of `text`, but perhaps other bytes.
fn replace(shown: &str, text: &str, part: Span, by: &str) -> String {
    let before = text[..part.start].chars().count();
    let behind = before + text[part].chars().count();
    shown.chars().take(before).chain(by.chars()).chain(shown.chars().skip(behind)).collect()
}

/// A value with its quotes.
fn quoted(value: &str) -> String {
    let quotes = value.chars().take_while(|c| "\"'".contains(*c)).count();
    match value.len().checked_sub(2 * quotes) {
        Some(_) if quotes > 0 => {
            let inner = &value[quotes..value.len() - quotes];
            format!("{}{}{}", &value[..quotes], masked(inner), &value[value.len() - quotes..])
        }
        _ => stars(value),
    }
}

/// Behind a key that may have a secret, everything is hidden; elsewhere every quoted text of a line that has no plain key
/// in front, for it may belong to such a key.
fn of_a_broken_file(text: &str) -> String {
    let Some(equals) = text.find('=') else { return hide_strings(text) };
    let key = text[..equals].trim();
    let plain = !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
    let secret = ["nodes", "key", "store", "affinity", "configs"];
    match plain && !secret.contains(&key.rsplit('.').next().unwrap_or(key)) && !text.contains("nodes") {
        true => text.to_owned(),
        false => format!("{}{}", &text[..=equals], hide_behind(&text[equals + 1..])),
    }
}

fn hide_behind(text: &str) -> String {
    let keep = |c: char| c.is_whitespace() || "{}[],=\"'".contains(c);
    text.chars().map(|c| if keep(c) { c } else { '*' }).collect()
}

fn hide_strings(text: &str) -> String {
    let mut open = None;
    let mut shown = String::new();
    for c in text.chars() {
        match open {
            Some(quote) if c == quote => open = None,
            Some(_) => {
                shown.push('*');
                continue;
            }
            None if c == '"' || c == '\'' => open = Some(c),
            None => {}
        }
        shown.push(c);
    }
    shown
}

/// Hides what stands before an `@` in each word: for text that nobody has parsed, such as a comment or a value in a reason.
pub(super) fn words(text: &str) -> String {
    let ends = |c: char| c.is_whitespace() || "\"'`".contains(c);
    text.split_inclusive(ends)
        .map(|word| match word.rfind('@') {
            Some(at) => {
                let login = word[..at].find("://").map_or(0, |at| at + 3).min(at);
                format!("{}{}{}", &word[..login], stars(&word[login..at]), &word[at..])
            }
            None => word.to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_with_a_login_are_hidden() {
        for (text, shown) in [
            ("`u:p@h` is no kind", "`***@h` is no kind"),
            ("see redis://u:pé@h/0, or nothing", "see redis://****@h/0, or nothing"),
            ("no login: http://h", "no login: http://h"),
        ] {
            assert_eq!(words(text), shown);
        }
    }

    #[test]
    fn a_broken_file_shows_only_plain_keys() {
        for (text, shown) in [
            ("name = \"shop", "name = \"shop"),
            ("nodes = [lb:secret]", "nodes = [*********]"),
            ("store = { nodes = [\"secret\" 7] }", "store = { ***** = [\"******\" *] }"),
            ("  \"secret\", 7", "  \"******\", 7"),
            ("  'not closed", "  '**********"),
        ] {
            assert_eq!(line(text, 0, &[], true), shown);
        }
    }

    #[test]
    fn hidden_places_are_hidden_wherever_the_line_is_cut() {
        let file = "a\nnodes = ['redis://u:p@h', \"\"\"\nsecret\"\"\"]";
        let first = file.find("'r").unwrap()..file.find(", ").unwrap();
        let second = file.find("\"\"\"").unwrap()..file.len() - 1;
        let hidden = [first, second.clone()];
        assert_eq!(
            line("nodes = ['redis://u:p@h', \"\"\"", 2, &hidden, false),
            "nodes = ['redis://***@h', ***"
        );
        let start = second.start + 4;
        assert_eq!(line("secret\"\"\"]", start, &hidden, false), "*********]");
    }
}
