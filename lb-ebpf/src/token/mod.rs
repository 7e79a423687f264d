//! Tokens in payloads: one file per place where one can stand.

pub(crate) mod datagram;
pub(crate) mod http;
pub(crate) mod http2;
pub(crate) mod locate;
pub(crate) mod proxy;
pub(crate) mod quic;
pub(crate) mod text;
pub(crate) mod tls;
pub(crate) mod value;

use crate::maps::{STASHES, count};
use lb_common::counter::Counter;
use lb_common::maglev::session_hash;
use lb_common::service::{Place, Service};
use lb_common::settings::Settings;
use lb_common::stash::{
    Claim, HELLO_BROKEN, HTTP2, OPEN, PROXY_INVALID, PROXY_MISSING, PROXY_TOO_LONG, PROXY_UNEXPECTED, Stash,
    WHOLE,
};
use lb_common::token::{BASE64URL, TOKEN_LEN, TOKEN_TEXT_LEN, Token};
use text::NOWHERE;

/// What was found where a token may stand. A number: it is returned by a function that is not inlined.
pub(crate) type Found = u32;
/// Nothing.
pub(crate) const ABSENT: Found = 0;
/// Something that does not verify.
pub(crate) const INVALID: Found = 1;
/// A token; what it says is in the stash.
pub(crate) const VALID: Found = 2;
/// A key; its hash is in the stash.
pub(crate) const HASHED: Found = 4;
/// A key that a backend has handed out: where its session is at home is in the stash, as what a token says would be.
pub(crate) const LEARNED: Found = 5;
/// A key of that kind that is not known; its hash is in the stash.
pub(crate) const UNKNOWN: Found = 6;
/// A connection id that names a server.
pub(crate) const ROUTABLE: Found = 7;
/// One that names none.
pub(crate) const UNROUTABLE: Found = 8;
/// A server's name, which is not hashed: its pool is in the stash, if it has one.
pub(crate) const NAMED: Found = 9;

/// Whether what was found names a backend: the claim in the stash says which.
#[inline(always)]
pub(crate) const fn is_claim(found: Found) -> bool {
    found == VALID || found == LEARNED
}

/// Looks for the service's key in a stash, up to its limit; what it says is left there.
#[inline(always)]
pub(crate) fn find(entry: &Service, service: u32, stash: u32) -> Found {
    let begin = if entry.accept_proxy != 0 { proxy::lb_proxy(service, stash) } else { 0 };
    if begin == NOWHERE {
        return ABSENT;
    }
    match Place::from_bits(entry.place) {
        Place::Sni => tls::find(entry, service, stash, begin),
        Place::Proxy => proxy::lb_proxied(stash, begin),
        _ => http::find(service, stash, begin),
    }
}

/// Whether all that a key can stand in is there: 0 when it goes on behind what is stashed. A global function (see
/// [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_is_whole(index: u32) -> u32 {
    let Some(stash) = STASHES.get(index) else { return 1 };
    u32::from(stash.whole == WHOLE || stash.whole == OPEN && http::lb_may_be_request(index) == 0)
}

/// What was noted of a stash, and how it is counted.
const NOTES: [(u8, Counter); 6] = [
    (PROXY_MISSING, Counter::ProxyMissing),
    (PROXY_INVALID, Counter::ProxyInvalid),
    (PROXY_UNEXPECTED, Counter::ProxyUnexpected),
    (PROXY_TOO_LONG, Counter::HeadIncomplete),
    (HTTP2, Counter::Http2),
    (HELLO_BROKEN, Counter::HelloBroken),
];

/// Counts what was noted of a stash. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_notes(service: u32, index: u32) -> u32 {
    let Some(stash) = STASHES.get(index) else { return 0 };
    let mut i = 0;
    while i < NOTES.len() {
        if stash.notes & NOTES[i].0 != 0 {
            count(service as u16, NOTES[i].1 as u32);
        }
        i += 1;
    }
    0
}

static DECODE: [u8; 256] = BASE64URL;

/// Decodes the text at `text` and verifies it.
///
/// # Safety
/// [`TOKEN_TEXT_LEN`] bytes at `text` are readable.
#[inline(always)]
pub(crate) unsafe fn verify(settings: &Settings, text: *const u8, stash: &mut Stash) -> Found {
    let (raw, _) = stash.token.split_first_chunk_mut::<TOKEN_LEN>().expect("40 bytes begin with 33");
    let mut i = 0;
    while i < TOKEN_TEXT_LEN / 4 {
        let mut bits = 0_u32;
        let mut j = 0;
        while j < 4 {
            // SAFETY: 4 i + j is below TOKEN_TEXT_LEN; a table of 256 has an entry for every byte.
            bits = bits << 6 | u32::from(unsafe { DECODE[*text.add(4 * i + j) as usize] });
            j += 1;
        }
        raw[3 * i] = (bits >> 16) as u8;
        raw[3 * i + 1] = (bits >> 8) as u8;
        raw[3 * i + 2] = bits as u8;
        i += 1;
    }
    verify_raw(settings, stash)
}

/// Verifies the token that stands in the stash.
#[inline(always)]
pub(crate) fn verify_raw(settings: &Settings, stash: &mut Stash) -> Found {
    let (raw, _) = stash.token.split_first_chunk::<TOKEN_LEN>().expect("40 bytes begin with 33");
    if raw[0] == 0 {
        // As protocols of fixed places say that there is none.
        return ABSENT;
    }
    let Ok(key_id) = Token::key_id(raw) else { return INVALID };
    let key_id = key_id & 15;
    if settings.token_key_mask >> key_id & 1 == 0 {
        return INVALID;
    }
    match Token::verify(raw, &settings.token_keys[key_id as usize]) {
        Ok(Token { service, slot, epoch, session, .. }) => {
            stash.claim = Claim { service, slot, epoch, hash: session_hash(&session), _pad: 0 };
            VALID
        }
        Err(_) => INVALID,
    }
}
