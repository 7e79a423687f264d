//! HTTP/2 without TLS: nothing is read of it, for its fields are compressed (RFC 7541) and its requests share a connection. It is
//! recognised, and counted: where a client begins with it, and where a request asks to go on with it.

use super::proxy::{first_of, lb_proxy_unexpected};
use super::text::{
    At, Bytes, CASE, COLONS, NEWLINES, NOWHERE, TURNS, ends_head, every, first, search, within, zeros,
};
use crate::maps::{STASHES, count};
use lb_common::counter::Counter;
use lb_common::stash::HTTP2;

/// What HTTP/2 begins with (RFC 9113 §3.4): the first 16 bytes, in which no request of HTTP/1 is like it, and the first four, by which
/// it is told while the rest is to come: no other request has this method (RFC 9113 §11.6).
const PRI: (u64, u64) = (u64::from_le_bytes(*b"PRI * HT"), u64::from_le_bytes(*b"TP/2.0\r\n"));
const PRI_TOLD: u64 = 4;

/// What is to be noted of a stash in which PR stands at an offset. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn lb_preface(stash: u32, at: u32, noted: u32) -> u32 {
    let Some(place) = STASHES.get(stash) else { return 0 };
    let (bytes, from) = (Bytes::of(place), At::new(u64::from(at)));
    let have = bytes.len().saturating_sub(from.0);
    let (low, high) = if have < 8 { (first(have), 0) } else { (u64::MAX, first_of(have - 8)) };
    let wrong = (bytes.word(from, 0) ^ PRI.0) & low | (bytes.word(from, 8) ^ PRI.1) & high;
    if wrong == 0 && have >= PRI_TOLD { u32::from(HTTP2) } else { lb_proxy_unexpected(stash, at, noted) }
}

const UPGRADE: u64 = u64::from_le_bytes(*b"\nupgrade") | CASE;
const U: u64 = every(b'u');
const H: u64 = every(b'h');
const TWO: u64 = every(b'2');
const C: u64 = every(b'c');

/// How many fields are looked at that could be `Upgrade`.
const UPGRADES: u32 = 8;

/// Counts a request that asks to go on with HTTP/2 (RFC 7540 §3.2), by what is stashed of its head. A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_upgrade(service: u32, stash: u32) -> u32 {
    let Some(place) = STASHES.get(stash) else { return 0 };
    let mut from = u32::from(place.begin);
    let mut turn = 0;
    while turn < UPGRADES {
        let hit = lb_next_upgrade(stash, from);
        if hit == NOWHERE {
            return 0;
        }
        if lb_asks_for_h2c(stash, hit) != 0 {
            count(service as u16, Counter::Http2Upgrade as u32);
            return 1;
        }
        from = hit + 1;
        turn += 1;
    }
    0
}

/// Finds the next newline behind which a field begins with U and has a name of seven letters; none behind the end of the head. A global
/// function, as [`lb_next_newline`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_upgrade(stash: u32, from: u32) -> u32 {
    let Some(stash) = STASHES.get(stash) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    let hit = search::<TURNS>(bytes, from, |at, n| {
        let newline = bytes.word(at, n) ^ NEWLINES;
        if zeros(newline) == 0 {
            return 0;
        }
        let next = bytes.word(at, n + 1);
        // Behind the last newline of a head stands a carriage return or another: or a tab, which is no harm.
        zeros(newline | ((next & every(0xf8)) ^ every(8)))
            | zeros(newline | ((next | CASE) ^ U) | (bytes.word(at, n + 8) ^ COLONS))
    });
    let line = At::new(u64::from(hit));
    if hit == NOWHERE || ends_head(bytes, line) { NOWHERE } else { within(bytes, hit) }
}

/// Whether the line behind the newline at an offset is a field that names `h2c`. A global function (see [`crate::cold`]): in the loop of
/// its caller it would be verified again in each turn.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_asks_for_h2c(index: u32, newline: u32) -> u32 {
    let Some(stash) = STASHES.get(index) else { return 0 };
    let bytes = Bytes::of(stash);
    let line = At::new(u64::from(newline));
    if bytes.word(line, 0) | CASE != UPGRADE {
        return 0;
    }
    let hit = lb_next_h2c(index, line.plus(9).0 as u32);
    let at = At::new(u64::from(hit));
    let before = bytes.byte(At::new(at.0.wrapping_sub(1)));
    let alone = (before == b':' || separates(before)) && separates(bytes.byte(at.plus(3)));
    u32::from(hit != NOWHERE && bytes.byte(at) != b'\n' && alone && at.0 + 3 < bytes.len())
}

/// Finds the next `h2c` or newline, protocols in any case (RFC 9110 §7.8). A global function, as [`lb_next_newline`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_next_h2c(stash: u32, from: u32) -> u32 {
    let Some(stash) = STASHES.get(stash) else { return NOWHERE };
    let bytes = Bytes::of(stash);
    let hit = search::<TURNS>(bytes, from, |at, n| {
        let word = bytes.word(at, n);
        zeros(((word | CASE) ^ H) | (bytes.word(at, n + 1) ^ TWO) | ((bytes.word(at, n + 2) | CASE) ^ C))
            | zeros(word ^ NEWLINES)
    });
    within(bytes, hit)
}

/// Whether a byte stands between members of a list (RFC 9110 §5.6.1), or ends it.
#[inline(always)]
const fn separates(byte: u8) -> bool {
    matches!(byte, b',' | b' ' | b'\t' | b'\r' | b'\n')
}
