//! Payloads that the programs read, each in a connection of its own, beside a reference that reads the same bytes. What the
//! programs find must be there; and what is there in good order they must find.

use super::conversation::{expanded, play};
use super::rig::{Done, Rig, names};
use super::sequence::{Sent, Step, text};
use super::town::{self, LEARNED, NAMED, QUIC, SIGNED, slots};
use crate::frame::Segment;
use crate::fuzz::Check;
use crate::learned;
use crate::scene::backend;
use crate::setup::{COOKIE, TOKEN_KEY};
use anyhow::{Result, ensure};
use lb_common::counter::Counter;
use lb_common::home::tag;
use lb_common::token::{Token, decode};
use std::net::SocketAddrV4;

/// Bytes of a connection that are looked at.
const LOOKED_AT: usize = 2920;
/// Sizes of the segments in which they come: the first byte of an input chooses.
const PIECES: [usize; 4] = [1448, 1448, 700, 250];

struct Payloads {
    rig: Rig,
    run: fn(&mut Rig, &[u8]) -> Result<()>,
    seen: Vec<u16>,
}

/// The same where clients of the signed service and of that which goes by names begin with a header of the PROXY protocol.
pub(super) fn behind_proxy(run: fn(&mut Rig, &[u8]) -> Result<()>) -> Result<Box<dyn Check>> {
    let mut rig = Rig::new()?;
    rig.runner.change(|setup| {
        for id in [SIGNED, NAMED] {
            setup.services[usize::from(id) - 1].accept_proxy = 1;
        }
    })?;
    Ok(Box::new(Payloads { rig, run, seen: Vec::new() }))
}

pub(super) fn target(run: fn(&mut Rig, &[u8]) -> Result<()>) -> Result<Box<dyn Check>> {
    Ok(Box::new(Payloads { rig: Rig::new()?, run, seen: Vec::new() }))
}

impl Check for Payloads {
    fn check(&mut self, input: &[u8]) -> Result<()> {
        let ran = (self.run)(&mut self.rig, input);
        self.seen = self.rig.take_seen();
        ran
    }

    fn seen(&self) -> &[u16] {
        &self.seen
    }
}

fn step(conn: u16, flags: &str, data: &[u8]) -> Sent {
    Sent { conn: conn as u8, flags: flags.to_owned(), data: text(data), ..Sent::default() }
}

/// Input without its first byte, with tokens in their places; and the size of its pieces.
fn payload(rig: &Rig, input: &[u8]) -> Result<(Vec<u8>, usize)> {
    let (first, rest) = input.split_first().unwrap_or((&0, &[]));
    let mut payload = expanded(rig.setup(), &text(rest))?;
    payload.truncate(LOOKED_AT);
    Ok((payload, PIECES[usize::from(*first) % PIECES.len()]))
}

/// A client of a service says this; what became of it.
fn said(rig: &mut Rig, service: u16, payload: &[u8], piece: usize) -> Result<Vec<Done>> {
    let conn = service - 1;
    let mut steps = vec![Step::Client(step(conn, "S", b""))];
    steps.extend(payload.chunks(piece).map(|piece| Step::Client(step(conn, "PA", piece))));
    play(rig, &steps)
}

/// Where the connection was bound to, and why.
fn bound(done: &[Done]) -> Option<(SocketAddrV4, String, &Done)> {
    let bound = done.iter().find(|done| done.counted(Counter::Bound) || done.counted(Counter::FromClient))?;
    let to = destination(bound.left.as_deref()?)?;
    Some((to, names(&bound.counted), bound))
}

fn destination(frame: &[u8]) -> Option<SocketAddrV4> {
    let word = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    match Segment::parse_lenient(frame) {
        Ok(segment) => Some(segment.dst),
        Err(_) => Some(SocketAddrV4::new([frame[30], frame[31], frame[32], frame[33]].into(), word(36)?)),
    }
}

/// The fields of the head of a response, and of interim ones before it (RFC 9110 §15.2).
fn response_fields(payload: &[u8]) -> Vec<(Vec<u8>, &[u8])> {
    let mut all = fields(payload);
    let mut rest = payload;
    while rest.starts_with(b"HTTP/1.") && rest.get(9) == Some(&b'1') {
        let ends = |at: &usize| matches!(rest[*at..], [b'\n', b'\n', ..] | [b'\n', b'\r', b'\n', ..]);
        let Some(end) = (0..rest.len()).find(ends) else { break };
        rest = &rest[end + if rest[end + 1] == b'\n' { 2 } else { 3 }..];
        all.extend(fields(rest));
    }
    all
}

/// The case of a letter does not count, and the programs fold every byte: a name with a control character is no other's name in any
/// message that makes sense.
const CASE: u8 = 0x20;

/// The fields of a head, names in lower case (RFC 9112 §5); a line end may be a bare LF (§2.2).
fn fields(payload: &[u8]) -> Vec<(Vec<u8>, &[u8])> {
    let mut fields = Vec::new();
    for line in payload.split(|byte| *byte == b'\n').skip(1) {
        let line = line.strip_suffix(b"\r").unwrap_or(line);
        if line.is_empty() {
            break;
        }
        if let Some(at) = line.iter().position(|byte| byte | CASE == b':') {
            let name = line[..at].iter().map(|byte| byte | CASE).collect();
            fields.push((name, trimmed(&line[at + 1..])));
        }
    }
    fields
}

/// The ways to read a head in which lines begin with white space: such a line goes on with the one before it (RFC 9112 §5.2), or is
/// none of this field. The first `n` go on, for each `n`.
fn unfolded(head: &[u8]) -> Vec<Vec<u8>> {
    let mut ways = vec![head.to_vec()];
    let mut unfolded = head.to_vec();
    for at in 1..head.len() {
        if matches!(head[at..], [b'\n', b' ' | b'\t', ..]) {
            unfolded[at] = b' ';
            if head[at - 1] == b'\r' {
                unfolded[at - 1] = b' ';
            }
            ways.push(unfolded.clone());
        }
    }
    ways
}

/// Without the white space of a line around it (RFC 9110 §5.6.3), and the carriage returns before its end.
fn trimmed(mut text: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = text {
        text = rest;
    }
    while let [rest @ .., b' ' | b'\t' | b'\r'] = text {
        text = rest;
    }
    text
}

/// Values of a cookie in pairs between semicolons.
fn cookie<'a>(line: &'a [u8], name: &str) -> impl Iterator<Item = &'a [u8]> {
    let pairs = line.split(|byte| *byte == b';').filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        Some((pair[..at].trim_ascii(), trimmed(&pair[at + 1..])))
    });
    pairs.filter(move |(found, _)| *found == name.as_bytes()).map(|(_, value)| value)
}

/// Whether it is a whole head of printable lines, so that nobody can read it in another way.
fn is_plain(payload: &[u8], begins: &[u8]) -> bool {
    let Some(head) = payload.strip_suffix(b"\r\n\r\n") else { return false };
    let text = String::from_utf8_lossy(head);
    let printable = |line: &str| !line.is_empty() && line.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    let field = |line: &str| {
        line.split_once(": ").is_some_and(|(name, value)| {
            !name.is_empty()
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
                && value.trim() == value
                && !value.is_empty()
        })
    };
    let mut lines = text.split("\r\n");
    payload.starts_with(begins)
        && lines.next().is_some_and(|first| {
            printable(first) && first.split(' ').count() == 3 && first.contains("HTTP/1.1")
        })
        && lines.clone().count() <= 16
        && lines.all(|line| printable(line) && field(line))
}

pub(super) fn head(rig: &mut Rig, input: &[u8]) -> Result<()> {
    let (payload, piece) = payload(rig, input)?;
    let done = said(rig, SIGNED, &payload, piece)?;
    check_head(&payload, &done)
}

/// What a header of the PROXY protocol is.
enum Front {
    /// All of it is not there.
    Cut,
    Missing,
    Invalid,
    /// So many bytes.
    Whole(usize),
}

/// The header at the beginning of a payload (HAProxy's `proxy-protocol.txt`, §2.1 and §2.2).
fn front(payload: &[u8]) -> Front {
    let (text, binary) = (&b"PROXY "[..], &b"\r\n\r\n\0\r\nQUIT\n"[..]);
    if payload.starts_with(text) {
        return match payload.iter().take(107).position(|byte| *byte == b'\n') {
            None if payload.len() < 107 => Front::Cut,
            Some(end)
                if payload[..end].ends_with(b"\r")
                    && [&b"TCP4 "[..], b"TCP6 ", b"UNKNOWN"]
                        .iter()
                        .any(|family| payload[6..].starts_with(family)) =>
            {
                Front::Whole(end + 1)
            }
            _ => Front::Invalid,
        };
    }
    if payload.starts_with(binary) {
        let Some((&[command, family, high, low], rest)) = payload[12..].split_first_chunk() else {
            return Front::Cut;
        };
        let len = usize::from(u16::from_be_bytes([high, low]));
        let least = match (command, family) {
            (0x21, 0x11) => 12,
            (0x21, 0x21) => 36,
            (0x20 | 0x21, _) => 0,
            _ => return Front::Invalid,
        };
        return match len {
            len if len < least => Front::Invalid,
            len if len <= rest.len() => Front::Whole(16 + len),
            _ => Front::Cut,
        };
    }
    if text.starts_with(payload) || binary.starts_with(payload) { Front::Cut } else { Front::Missing }
}

pub(super) fn proxy(rig: &mut Rig, input: &[u8]) -> Result<()> {
    let (payload, piece) = payload(rig, input)?;
    let done = said(rig, SIGNED, &payload, piece)?;
    let (missing, invalid, begin) = match front(&payload) {
        Front::Cut => (false, false, payload.len()),
        Front::Missing => (true, false, 0),
        Front::Invalid => (false, true, 0),
        Front::Whole(len) => (false, false, len),
    };
    if let Some((.., bound)) = bound(&done) {
        let counted = (bound.counted(Counter::ProxyMissing), bound.counted(Counter::ProxyInvalid));
        ensure!(counted == (missing, invalid), "missing {missing}, invalid {invalid}: {}", all(&done));
    }
    check_head(&payload[begin..], &done)?;
    named_hello(rig, &payload, begin, piece)
}

/// What became of a request that stands at the beginning of a payload.
fn check_head(payload: &[u8], done: &[Done]) -> Result<()> {
    let slot_of = |value: &[u8]| {
        let quoted = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\""));
        let raw = decode(quoted.unwrap_or(value)).ok()?;
        let token = Token::verify(&raw, &TOKEN_KEY.1).ok()?;
        (token.key_id == TOKEN_KEY.0 && token.service == SIGNED).then_some(token.slot)
    };
    // Servers pass over a few empty lines before a request (RFC 9112 §2.2).
    let empty = payload.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let payload = &payload[if empty < 8 { empty } else { 0 }..];
    let ways = unfolded(payload);
    let lines = |way| fields(way).into_iter().filter(|(name, _)| name == b"cookie").map(|(_, line)| line);
    let values = ways.iter().flat_map(|way| lines(way)).flat_map(|line| cookie(line, COOKIE));
    let presented: Vec<u16> = values.filter_map(slot_of).collect();
    let found = bound(done);
    if let Some((to, counted, bound)) = &found
        && (bound.counted(Counter::AffinityHit) || bound.counted(Counter::StaleInstance))
    {
        ensure!(
            presented.iter().any(|slot| backend(*slot) == *to),
            "{counted}to {to}, but presented are {presented:?}"
        );
    }
    // One cookie of that name, and nothing that looks like another.
    let once = lines(payload).count() == 1
        && payload.windows(3).filter(|word| word.eq_ignore_ascii_case(b"lb=")).count() == 1;
    let quoted = payload.contains(&b'"');
    if let ([slot, ..], true, false) = (&presented[..], once && is_plain(payload, b"GET /"), quoted) {
        let hit = found
            .as_ref()
            .is_some_and(|(to, _, bound)| bound.counted(Counter::AffinityHit) && *to == backend(*slot));
        ensure!(hit, "a token of slot {slot} is not found: {}", all(done));
    }
    Ok(())
}

pub(super) fn set_cookie(rig: &mut Rig, input: &[u8]) -> Result<()> {
    let (payload, piece) = payload(rig, input)?;
    let conn = LEARNED - 1;
    let mut steps = vec![
        Step::Client(step(conn, "S", b"")),
        Step::Client(step(conn, "PA", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")),
        Step::Backend(step(conn, "SA", b"")),
    ];
    steps.extend(payload.chunks(piece).map(|piece| Step::Backend(step(conn, "PA", piece))));
    let done = play(rig, &steps)?;
    let fields = response_fields(&payload);
    let lines: Vec<&[u8]> =
        fields.iter().filter(|(name, _)| name == b"set-cookie").map(|(_, line)| *line).collect();
    let key = rig.setup().settings.home_key;
    // The pair before the first semicolon alone; the attributes behind it are no cookies (RFC 6265 §5.2).
    let pair = |line: &&[u8]| line.split(|byte| *byte == b';').next().unwrap_or_default().to_vec();
    let pairs: Vec<Vec<u8>> = lines.iter().map(pair).collect();
    let values: Vec<&[u8]> = pairs.iter().flat_map(|pair| cookie(pair, learned::NAME)).collect();
    let tags: Vec<u64> = values.iter().map(|value| tag(&key, LEARNED, value)).collect();
    let homes = rig.runner.maps.homes()?;
    for (_, home) in &homes {
        let told = format!("learned what nobody handed out ({values:?}): {}", all(&done));
        ensure!(home.service == LEARNED && tags.contains(&home.tag), told);
    }
    let plain = is_plain(&payload, b"HTTP/1.1 200") && payload.len() <= piece && !payload.contains(&b'"');
    if let ([value], [line], true) = (&values[..], &lines[..], plain) {
        let deletes = line.to_ascii_lowercase().windows(2).any(|word| word == b"ma" || word == b"ex");
        if !value.is_empty() && value.len() <= 100 && !deletes {
            ensure!(!homes.is_empty(), "{} is not learned: {}", text(value), all(&done));
        }
    }
    Ok(())
}

pub(super) fn client_hello(rig: &mut Rig, input: &[u8]) -> Result<()> {
    let (payload, piece) = payload(rig, input)?;
    named_hello(rig, &payload, 0, piece)
}

/// Where a payload leads whose ClientHello begins at an offset.
fn named_hello(rig: &mut Rig, payload: &[u8], begin: usize, piece: usize) -> Result<()> {
    let done = said(rig, NAMED, payload, piece)?;
    let first = slots(NAMED).start;
    let lower = |name: &[u8]| name.iter().map(|byte| byte | 0x20).collect::<Vec<u8>>();
    let wildcard = &town::WILDCARD.as_bytes()[1..];
    let listed = |name: &[u8]| {
        let name = lower(name);
        if name == town::NAME.as_bytes() {
            Some(first)
        } else if name.len() > wildcard.len() && name.len() <= 253 && name.ends_with(wildcard) {
            Some(first + 1)
        } else {
            None
        }
    };
    let found = bound(&done).map(|(to, ..)| to);
    // Where no further segment has room, none is waited for.
    match server_name(&payload[begin..]) {
        Some(name) if payload.len() + piece <= LOOKED_AT => {
            let name = &name[..];
            let expected = listed(name).map(backend);
            let told = format!("{} leads to {found:?}, not {expected:?}: {}", text(name), all(&done));
            ensure!(found == expected, told);
        }
        // No hello in good order: only what stands in it can have been found.
        _ => {
            if let Some(to) = found {
                // As it was sent, or in the records of a handshake put together.
                let (mut rest, mut inside) = (&payload[begin..], lower(payload));
                inside.push(0);
                while let Some(behind) = rest.strip_prefix(&[22]).and_then(|rest| rest.get(2..)) {
                    let Some((len, behind)) = behind.split_first_chunk() else { break };
                    let len = usize::from(u16::from_be_bytes(*len)).min(behind.len());
                    inside.extend(lower(&behind[..len]));
                    rest = &behind[len..];
                }
                let end = wildcard.len();
                ensure!(
                    inside.windows(end).any(|word| word == wildcard),
                    "to {to} without its name: {}",
                    all(&done)
                );
            }
        }
    }
    Ok(())
}

/// The first host name of a ClientHello whose lengths agree, in records of which none is empty (RFC 8446 §4.1.2 and §5.1, RFC 6066 §3).
fn server_name(mut payload: &[u8]) -> Option<Vec<u8>> {
    let mut together = Vec::new();
    while !payload.is_empty() {
        payload = payload.strip_prefix(&[22, 3])?.get(1..)?;
        together.extend(part(&mut payload, 2).filter(|record| !record.is_empty())?);
    }
    let mut message = &together[..];
    let kind;
    (kind, message) = message.split_first()?;
    let mut hello = part(&mut message, 3)?;
    if *kind != 1 || !message.is_empty() {
        return None;
    }
    hello = hello.get(34..)?;
    part(&mut hello, 1)?;
    part(&mut hello, 2)?;
    part(&mut hello, 1)?;
    let mut extensions = part(&mut hello, 2)?;
    if !hello.is_empty() {
        return None;
    }
    let mut found = None;
    let mut number = 0;
    while !extensions.is_empty() {
        let kind;
        (kind, extensions) = extensions.split_first_chunk::<2>()?;
        let mut body = part(&mut extensions, 2)?;
        if *kind == [0, 0] && found.is_none() && number < 32 {
            let mut list = part(&mut body, 2)?;
            let (kind, rest) = list.split_first()?;
            list = rest;
            let name = part(&mut list, 2)?;
            if *kind != 0 || !list.is_empty() || !body.is_empty() || name.is_empty() {
                return None;
            }
            found = Some(name.to_vec());
        }
        number += 1;
    }
    found
}

/// What follows a length of so many bytes.
fn part<'a>(bytes: &mut &'a [u8], of: usize) -> Option<&'a [u8]> {
    let (len, rest) = bytes.split_at_checked(of)?;
    let len = len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte));
    let (part, rest) = rest.split_at_checked(len)?;
    *bytes = rest;
    Some(part)
}

pub(super) fn quic(rig: &mut Rig, input: &[u8]) -> Result<()> {
    let input = &input[..input.len().min(1400)];
    let done = play(rig, &[Step::Client(step(QUIC - 1, "", input))])?;
    let payload = expanded(rig.setup(), &text(input))?;
    let named = named(&payload)?;
    let hit = done.iter().any(|done| done.counted(Counter::AffinityHit));
    let found = bound(&done).map(|(to, ..)| to);
    ensure!(hit == named.is_some(), "the id names {named:?}: {}", all(&done));
    if let Some(slot) = named {
        ensure!(found == Some(backend(slot)), "the id names slot {slot}, sent to {found:?}");
    }
    Ok(())
}

/// The slot that the destination connection id of a QUIC packet names (RFC 8999 §5).
fn named(payload: &[u8]) -> Result<Option<u16>> {
    let id = match payload.first() {
        Some(first) if first & 0x80 != 0 => {
            // What its length has no room for is not looked at.
            let end = |len: &u8| payload.len().min(6 + usize::from(*len));
            payload.get(5).and_then(|len| payload.get(6..end(len)))
        }
        Some(_) => payload.get(1..),
        None => None,
    };
    let Some(id) = id.filter(|id| !id.is_empty()) else { return Ok(None) };
    let configs = town::quic_configs()?;
    let Some(config) = configs.iter().find(|config| config.rotation == id[0] >> 5) else { return Ok(None) };
    let server = config.decode(id, QUIC);
    let of = |slot: &u16| lb_common::quic_lb::Server::new(QUIC, &town::server_id(config, *slot));
    Ok(slots(QUIC).find(|slot| server.is_some() && of(slot) == server))
}

/// Everything that was counted.
fn all(done: &[Done]) -> String {
    done.iter().map(|done| format!("[{}]", names(&done.counted).trim_end())).collect()
}
