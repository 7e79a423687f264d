//! The affinity rule of a service: which kinds there are, where each can find its key, and what goes with what.

use super::{Checker, SECOND};
use crate::config::fault::{Span, suggest};
use crate::config::raw::RawAffinity;
use crate::config::values::parse_bytes;
use crate::config::{Affinity, Anchor, Place, Protocol};
use lb_common::service::{MAX_COOKIE_NAME, MAX_HEADER_NAME, MAX_KEY, MAX_MARKER};
use lb_common::token::{TOKEN_LEN, TOKEN_TEXT_LEN};
use serde_spanned::Spanned;
use std::time::Duration;

const KINDS: [&str; 6] = ["signed", "hashed", "learned", "quic", "source", "none"];
const IN_A_REQUEST: &str = "`cookie`, `header`, `query` or `sni`";
const IN_A_DATAGRAM: &str = "`offset`, `end` or `marker`";

/// A kind whose key stands somewhere.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keyed {
    Signed,
    Hashed,
    Learned,
}

impl Keyed {
    const fn name(self) -> &'static str {
        match self {
            Self::Signed => "signed",
            Self::Hashed => "hashed",
            Self::Learned => "learned",
        }
    }
}

impl Checker<'_, '_> {
    pub(super) fn affinity(
        &mut self,
        raw: Option<Spanned<RawAffinity>>,
        protocol: Protocol,
        service: &Span,
    ) -> Affinity {
        let span = raw.as_ref().map_or(service.clone(), Spanned::span);
        let raw = raw.map(Spanned::into_inner).unwrap_or_default();
        let keyed = match raw.kind.as_ref().map(|kind| kind.get_ref().as_str()) {
            None | Some("signed") => Keyed::Signed,
            Some("hashed") => Keyed::Hashed,
            Some("learned") => Keyed::Learned,
            Some("source") => {
                let sni = self.by_name(&raw, "source", protocol);
                return Affinity::Source { sni };
            }
            Some("none") => {
                let sni = self.by_name(&raw, "none", protocol);
                return Affinity::None { sni };
            }
            Some("quic") => {
                self.keyless(&raw, "quic", &[]);
                return self.quic(raw, protocol, &span);
            }
            Some(other) => {
                let (reason, help) = (format!("`{other}` is no affinity rule"), suggest(other, &KINDS));
                let span = raw.kind.as_ref().map_or(span, Spanned::span);
                self.faults.push(span, reason, help);
                return Affinity::Source { sni: false };
            }
        };
        let places = places(&raw);
        if let [first, second, ..] = &places[..] {
            let reason = format!("`{}` and `{}` both say where the key stands", first.0, second.0);
            self.faults.push(second.1.clone(), reason, "a key stands in one place: leave one of them away");
            return Affinity::Source { sni: false };
        }
        let Some((name, at)) = places.into_iter().next() else {
            return self.without_place(raw, keyed, protocol, span);
        };
        let in_datagram = matches!(name, "offset" | "end" | "marker");
        let problem = match (protocol, in_datagram) {
            (Protocol::Udp, false) => Some((
                format!("`{name}` stands in no datagram"),
                format!("write {IN_A_DATAGRAM}, or protocol = \"tcp\""),
            )),
            (Protocol::Tcp, true) => Some((
                format!("`{name}` is a place in a datagram, and this service speaks tcp"),
                format!("write {IN_A_REQUEST}, or protocol = \"udp\""),
            )),
            _ => match (keyed, name) {
                (Keyed::Signed | Keyed::Learned, "sni") => Some((
                    format!("a server's name is nothing that affinity `{}` could go by", keyed.name()),
                    "write kind = \"hashed\", `source` or `none`".to_owned(),
                )),
                (Keyed::Learned, "header" | "query") => Some((
                    format!("affinity `learned` looks at no `{name}`: backends hand out cookies"),
                    "write cookie = \"...\", or use `hashed`".to_owned(),
                )),
                _ => None,
            },
        };
        if let Some((reason, help)) = problem {
            self.faults.push(at, reason, help);
            return Affinity::Source { sni: false };
        }
        self.companions(&raw, keyed, in_datagram);
        let idle = self.idle(&raw);
        let place = if in_datagram { self.in_datagram(raw, keyed, &span) } else { self.in_request(raw) };
        keyed_by(keyed, place, idle)
    }

    /// A rule that looks at nothing in the payload.
    fn keyless(&mut self, raw: &RawAffinity, kind: &str, but: &[&str]) {
        let configs =
            raw.configs.as_ref().filter(|_| kind != "quic").map(|configs| ("configs", configs.span()));
        let names = places(raw).into_iter().chain(companions(raw)).chain(configs);
        for (name, span) in names.filter(|(name, _)| !but.contains(name)) {
            let reason = format!("affinity `{kind}` looks at no {name}");
            self.faults.push(span, reason, format!("leave `{name}` away, or use `signed`"));
        }
    }

    /// A rule that looks at nothing but the server's name, and at that only when it is told to. Returns whether it is.
    fn by_name(&mut self, raw: &RawAffinity, kind: &str, protocol: Protocol) -> bool {
        self.keyless(raw, kind, &["sni"]);
        let Some(sni) = raw.sni.as_ref().filter(|sni| *sni.get_ref()) else { return false };
        if protocol == Protocol::Udp {
            let help = "leave `sni` away, or write protocol = \"tcp\"";
            self.faults.push(sni.span(), "`sni` stands in no datagram", help);
        }
        protocol == Protocol::Tcp
    }

    /// A token has a place of its own where none is told, other keys have not.
    fn without_place(&mut self, raw: RawAffinity, keyed: Keyed, protocol: Protocol, span: Span) -> Affinity {
        self.companions(&raw, keyed, protocol == Protocol::Udp);
        let idle = self.idle(&raw);
        let place = match (keyed, protocol) {
            (Keyed::Signed, Protocol::Tcp) => Place::Cookie(Affinity::COOKIE.to_owned()),
            (Keyed::Signed, Protocol::Udp) => {
                let bytes = self.encoding(raw.encoding.as_ref());
                Place::Datagram { from: Anchor::Offset(Affinity::TOKEN_AT), bytes }
            }
            (Keyed::Hashed | Keyed::Learned, _) => {
                let reason = format!("affinity `{}` does not say where its key stands", keyed.name());
                let help = match (keyed, protocol) {
                    (_, Protocol::Udp) => format!("add one of {IN_A_DATAGRAM}, and `bytes`"),
                    (Keyed::Learned, _) => {
                        "add cookie = \"...\": the name of the cookie that backends set".to_owned()
                    }
                    _ => format!("add one of {IN_A_REQUEST}"),
                };
                self.missing(raw.mistyped, span, reason, &help);
                return Affinity::Source { sni: false };
            }
        };
        keyed_by(keyed, place, idle)
    }

    /// What has a meaning beside some kinds and places only.
    fn companions(&mut self, raw: &RawAffinity, keyed: Keyed, in_datagram: bool) {
        if let Some(configs) = &raw.configs {
            self.faults.push(
                configs.span(),
                "`configs` has no meaning here",
                "it belongs to affinity `quic`",
            );
        }
        for (name, span) in companions(raw) {
            let (fits, help) = match name {
                "encoding" => (
                    keyed == Keyed::Signed && in_datagram,
                    "it belongs to affinity `signed` of a udp service: raw, or as text",
                ),
                "bytes" => (
                    keyed != Keyed::Signed && in_datagram,
                    "it belongs to affinity `hashed` or `learned` of a udp service: how long the key is",
                ),
                _ => (
                    keyed == Keyed::Learned,
                    "it belongs to affinity `learned`: how long a key is remembered",
                ),
            };
            if !fits {
                let reason = format!("`{name}` has no meaning here");
                self.faults.push(span, reason, help);
            }
        }
    }

    fn idle(&mut self, raw: &RawAffinity) -> Duration {
        let month = Duration::from_secs(30 * 86_400);
        self.duration(&raw.idle, "idle", SECOND..=month, Affinity::LEARNED_IDLE)
    }

    fn encoding(&mut self, raw: Option<&Spanned<String>>) -> u8 {
        match raw.map(|raw| raw.get_ref().as_str()) {
            None | Some("raw") => TOKEN_LEN as u8,
            Some("text") => TOKEN_TEXT_LEN as u8,
            Some(other) => {
                let span = raw.map_or(0..0, Spanned::span);
                let help = suggest(other, &["raw", "text"]);
                self.faults.push(span, format!("`{other}` is no encoding of a token"), help);
                TOKEN_LEN as u8
            }
        }
    }

    fn in_datagram(&mut self, raw: RawAffinity, keyed: Keyed, span: &Span) -> Place {
        let bytes = if keyed == Keyed::Signed {
            self.encoding(raw.encoding.as_ref())
        } else {
            if raw.bytes.is_none() {
                let reason = format!("affinity `{}` does not say how long the key is", keyed.name());
                self.missing(raw.mistyped, span.clone(), reason, &format!("add bytes = 1 to {MAX_KEY}"));
            }
            self.key_bytes(raw.bytes)
        };
        let from = if let Some(marker) = raw.marker {
            Anchor::Marker(self.marker(&marker))
        } else if raw.end.is_some() {
            Anchor::End(self.number(raw.end, "end", 0..=u8::MAX, 0))
        } else {
            Anchor::Offset(self.number(raw.offset, "offset", 0..=u8::MAX, 0))
        };
        Place::Datagram { from, bytes }
    }

    fn key_bytes(&mut self, raw: Option<Spanned<u64>>) -> u8 {
        let Some(raw) = raw else { return 1 };
        let bytes = u8::try_from(*raw.get_ref()).ok();
        bytes.filter(|bytes| (1..=MAX_KEY as u8).contains(bytes)).unwrap_or_else(|| {
            let reason = format!("`bytes` is {}", raw.get_ref());
            self.faults.push(raw.span(), reason, format!("it must be from 1 to {MAX_KEY}"));
            1
        })
    }

    fn marker(&mut self, raw: &Spanned<String>) -> Vec<u8> {
        let problem = match parse_bytes(raw.get_ref()) {
            Some(marker) if (1..=MAX_MARKER).contains(&marker.len()) => return marker,
            Some(marker) => format!("the marker has {} bytes", marker.len()),
            None => format!("the marker `{}` is no hexadecimal number of whole bytes", raw.get_ref()),
        };
        let help = format!("write 1 to {MAX_MARKER} bytes, as text or like hex:0a0b");
        self.faults.push(raw.span(), problem, help);
        vec![0]
    }

    fn in_request(&mut self, raw: RawAffinity) -> Place {
        if let Some(name) = raw.cookie {
            // RFC 6265 §4.1.1: a cookie's name is a token of RFC 2616 §2.2.
            let legal = |c: char| c.is_ascii_graphic() && !"()<>@,;:\\\"/[]?={}".contains(c);
            let help = "a cookie's name has no spaces, separators or letters outside ASCII (RFC 6265)";
            return Place::Cookie(self.key_name(name, "cookie", MAX_COOKIE_NAME, legal, help));
        }
        if let Some(name) = raw.header {
            let legal = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
            let help =
                "a field's name has no spaces, separators or letters outside ASCII (RFC 9110 section 5.6.2)";
            return Place::Header(self.key_name(name, "header", MAX_HEADER_NAME, legal, help));
        }
        if let Some(name) = raw.query {
            let legal = |c: char| c.is_ascii_graphic() && !"&=#?+\"<>".contains(c);
            let help = "write the parameter's name as it stands in the URL, percent-encoded where that is";
            return Place::Query(self.key_name(name, "query", MAX_COOKIE_NAME, legal, help));
        }
        Place::Sni
    }

    fn key_name(
        &mut self,
        raw: Spanned<String>,
        what: &str,
        longest: usize,
        legal: impl Fn(char) -> bool,
        help: &str,
    ) -> String {
        let name = raw.get_ref();
        if name.is_empty() || name.len() > longest {
            let reason = format!("the {what}'s name `{name}` has {} characters", name.chars().count());
            let help = format!("use 1 to {longest}: the program looks for it in one step");
            self.faults.push(raw.span(), reason, help);
        } else if let Some(bad) = name.chars().find(|c| !legal(*c)) {
            self.faults.push(raw.span(), format!("the {what}'s name `{name}` contains {bad:?}"), help);
        }
        raw.into_inner()
    }

    /// Managed servers look for their token in one place.
    pub(super) fn managed_affinity(&mut self, affinity: &Affinity, protocol: Protocol, span: Span) {
        let (fits, help) = match (affinity, protocol) {
            (Affinity::Signed(place), Protocol::Tcp) => (
                matches!(place, Place::Cookie(_)),
                "managed servers have it in a cookie: write cookie = \"lb\"".to_owned(),
            ),
            (Affinity::Signed(place), Protocol::Udp) => {
                let own =
                    Place::Datagram { from: Anchor::Offset(Affinity::TOKEN_AT), bytes: TOKEN_LEN as u8 };
                let at = Affinity::TOKEN_AT;
                (
                    *place == own,
                    format!(
                        "managed servers have it raw at offset {at} (docs/datagram.md): write offset = {at}"
                    ),
                )
            }
            _ => return,
        };
        if !fits {
            let place = affinity.place().map_or(String::new(), ToString::to_string);
            let reason = format!("managed servers do not look for their token in {place}");
            self.faults.push(span, reason, help);
        }
    }
}

fn keyed_by(keyed: Keyed, place: Place, idle: Duration) -> Affinity {
    match keyed {
        Keyed::Signed => Affinity::Signed(place),
        Keyed::Hashed => Affinity::Hashed(place),
        Keyed::Learned => Affinity::Learned { place, idle },
    }
}

/// The keys that say where something stands, as they are written, in a fixed order.
fn places(raw: &RawAffinity) -> Vec<(&'static str, Span)> {
    let sni = raw.sni.as_ref().filter(|sni| *sni.get_ref());
    [
        ("cookie", raw.cookie.as_ref().map(Spanned::span)),
        ("header", raw.header.as_ref().map(Spanned::span)),
        ("query", raw.query.as_ref().map(Spanned::span)),
        ("sni", sni.map(Spanned::span)),
        ("offset", raw.offset.as_ref().map(Spanned::span)),
        ("end", raw.end.as_ref().map(Spanned::span)),
        ("marker", raw.marker.as_ref().map(Spanned::span)),
    ]
    .into_iter()
    .filter_map(|(name, span)| Some((name, span?)))
    .collect()
}

/// The keys that say more about it.
fn companions(raw: &RawAffinity) -> Vec<(&'static str, Span)> {
    [
        ("encoding", raw.encoding.as_ref().map(Spanned::span)),
        ("bytes", raw.bytes.as_ref().map(Spanned::span)),
        ("idle", raw.idle.as_ref().map(Spanned::span)),
    ]
    .into_iter()
    .filter_map(|(name, span)| Some((name, span?)))
    .collect()
}
