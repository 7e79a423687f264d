//! The server's name in a TLS ClientHello (RFC 8446 §4.1.2, RFC 6066 §3): sent in the clear, so a connection can be steered by it
//! without being decrypted.

use super::http::{At, Bytes, CASE, be16};
use super::{ABSENT, Found, HASHED};
use crate::maps::STASHES;
use lb_common::hash::Sip;
use lb_common::stash::Stash;

/// Content type of a record, and type of its message.
const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
/// Header of a record, header of a message, version and random: what stands before the session id.
const SESSION_ID: u64 = 5 + 4 + 2 + 32;
/// Extensions that are looked at.
const EXTENSIONS: u32 = 32;
/// Words of a longest name (RFC 1035 §2.3.4).
const NAME_WORDS: u32 = 32;

/// Hashes the server's name in lower case: the same on every node. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn lb_server_name(stash: u32) -> Found {
    let Some(place) = STASHES.get_ptr_mut(stash) else { return ABSENT };
    // SAFETY: a map value stays valid, and the caller has its lock.
    let stash = unsafe { &mut *place };
    let bytes = Bytes::of(stash);
    if bytes.byte(At::new(0)) != HANDSHAKE || bytes.byte(At::new(5)) != CLIENT_HELLO {
        return ABSENT;
    }
    let len = bytes.len();
    let session = u64::from(bytes.byte(At::new(SESSION_ID)));
    let ciphers = SESSION_ID + 1 + session;
    let compression = ciphers + 2 + be16(bytes, At::new(ciphers));
    if compression + 4 > len {
        return ABSENT;
    }
    let extensions = compression + 1 + u64::from(bytes.byte(At::new(compression)));
    let mut at = extensions + 2;
    let mut turn = 0;
    while turn < EXTENSIONS {
        if at + 9 > len {
            return ABSENT;
        }
        let here = At::new(at);
        let size = be16(bytes, here.plus(2));
        if be16(bytes, here) == 0 {
            // A list's length, then the type of its first name, which is 0 for a host's, and that one's length.
            let name = be16(bytes, here.plus(7));
            if bytes.byte(here.plus(6)) != 0 || name == 0 || at + 9 + name > len {
                return ABSENT;
            }
            stash.hash = hash(bytes, here.plus(9), name);
            return HASHED;
        }
        at += 4 + size;
        turn += 1;
    }
    ABSENT
}

#[inline(always)]
fn hash(bytes: Bytes, from: At, len: u64) -> u32 {
    let mut sip = Sip::new(&[0, 0]);
    let mut at = from;
    let mut left = len;
    let mut turn = 0;
    while turn < NAME_WORDS && left != 0 {
        let word = bytes.word(at, 0) | CASE;
        if left < 8 {
            sip.absorb(word & !(u64::MAX << (8 * (left & 7))));
            break;
        }
        sip.absorb(word);
        left -= 8;
        at = at.plus(8);
        turn += 1;
    }
    sip.absorb(len);
    sip.finish() as u32
}

/// Whether the first record is there as a whole, if it is a handshake's.
#[inline(always)]
pub(super) fn is_whole(stash: &Stash) -> bool {
    let bytes = Bytes::of(stash);
    bytes.byte(At::new(0)) != HANDSHAKE || 5 + be16(bytes, At::new(3)) <= bytes.len()
}
