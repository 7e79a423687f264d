//! Where the sessions are at home whose keys the backends themselves hand out: the value of the table of learned sessions.
//!
//! The table is an array of our own, in groups of [`GROUP`] entries: a session stands anywhere in the group that its tag
//! names. In a full group one that no client has presented yet makes room, the one first that was learned longest ago; where there
//! is none, the one that was not asked for longest. So whoever begins sessions in great number and presents none of them takes one
//! entry of each group. The program creates and touches entries,
//! and forgets those whose cookie is deleted; the daemon forgets those of a backend that is removed, with the same
//! compare-and-swap on [`Home::tag`] by which the program claims them.

use crate::hash::{Sip, SipKey};
use bytemuck::{Pod, Zeroable};

/// Entries in a group.
pub const GROUP: usize = 8;

/// [`Home::tag`] of an entry that is free.
pub const FREE: u64 = 0;
/// [`Home::tag`] of an entry that some processor is filling in.
pub const CLAIMED: u64 = 1;

/// One entry.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Home {
    /// Keyed hash of service and key, see [`tag`]; or [`FREE`] or [`CLAIMED`].
    pub tag: u64,
    /// Slot of the backend.
    pub slot: u16,
    /// Id of the service.
    pub service: u16,
    /// When it was asked for last, in [`crate::settings::Settings`] ticks.
    pub last_used: u32,
    /// A hash of the path and the domain of its cookie (RFC 6265 §5.3), see [`scope`]; 0: not known, or several.
    pub scope: u32,
    /// 1 once a client has presented it.
    pub seen: u32,
}

/// How many new sessions are learned of one connection, or flow of datagrams, in a second.
pub const SHARE: u16 = 64;

/// The scope of a cookie: which one of that name it is, by hashes of its path and its domain. Never 0.
#[inline(always)]
pub const fn scope(path: u32, domain: u32) -> u32 {
    let scope = path.wrapping_mul(0x9e37_79b1) ^ domain;
    if scope == 0 { 1 } else { scope }
}

/// The hash of the path that cookies have whose request's path has no other slash than its first (RFC 6265 §5.1.4), and that say
/// none. It stands for `/` wherever that is.
pub const ROOT: u32 = 1;

/// Bytes of a cut line that are kept.
pub const TAIL_ROOM: usize = 512;

/// The line in which a segment of a backend ended, for the one that goes on with it. Written and read by the program alone.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Tail {
    /// Flow index + 1 in the low half, the sequence number at which the line goes on in the high half; 0 when nobody's, all
    /// ones while somebody reads or writes it.
    pub owner: u64,
    /// Bytes that are kept.
    pub len: u64,
    pub bytes: [u64; TAIL_ROOM / 8],
}

/// The tag of a key: SipHash-2-4 under [`crate::settings::Settings::home_key`] over the service id as a word, the key's whole
/// little-endian words, what is left of it as one word with zeros behind it (not there when that is empty), and the number of
/// its bytes. Never [`FREE`] or [`CLAIMED`].
pub fn tag(key: &SipKey, service: u16, bytes: &[u8]) -> u64 {
    let mut sip = Sip::new(key);
    sip.absorb(u64::from(service));
    absorb(sip, bytes)
}

/// The hash by which the value of a cookie, a header field or a parameter finds its backend when nothing is known of it: the
/// same as a tag's, under a key of zeros and without a service, so that every node comes to the same one.
pub fn spread(bytes: &[u8]) -> u32 {
    absorb(Sip::new(&[0; 2]), bytes) as u32
}

fn absorb(mut sip: Sip, bytes: &[u8]) -> u64 {
    for chunk in bytes.chunks(8) {
        let mut word = [0; 8];
        word[..chunk.len()].copy_from_slice(chunk);
        sip.absorb(u64::from_le_bytes(word));
    }
    sip.absorb(bytes.len() as u64);
    usable(sip.finish())
}

/// A hash as a tag: those with a meaning of their own give way.
#[inline(always)]
pub const fn usable(hash: u64) -> u64 {
    if hash <= CLAIMED { hash + 2 } else { hash }
}

/// Whose request a flow's client sent last, by the cookie that it came with: a connection may carry the requests of several. And
/// what was seen of the head of the response.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Asked {
    /// Tag of the session that the request asked for, or that the response handed out; 0: none. Of a flow of datagrams: hash of the
    /// key that its backend handed out last.
    pub tag: u64,
    /// Sequence number with which the last request began.
    pub at: u32,
    /// Requests that have begun, modulo 2^16. Written on the client's path alone.
    pub asked: u16,
    /// Heads of final responses that have ended, modulo 2^16. Written on the backend's path alone.
    pub answered: u16,
    /// Hash of the path that cookies get which say none (RFC 6265 §5.1.4): that of the last request. Written on the client's path
    /// alone.
    pub path: u32,
    /// A bit for each of the last requests, the lowest one for the last: it is a HEAD, whose response has no body. Written on the client's
    /// path alone.
    pub heads: u16,
    /// Some of [`COOKIE_SET`], [`COOKIE_DELETED`], [`INTERIM`], [`SWITCHED`], [`LENGTH_KNOWN`]. Written on the backend's path alone.
    pub head: u16,
    /// Sequence number of the backend at which the next head begins at the earliest. While a head goes on that has told it: the length
    /// of its body in bytes.
    pub next: u32,
    /// Sessions that were learned of the flow...
    pub learned: u16,
    /// ...in this second, modulo 2^16.
    pub second: u16,
}

/// The head of the response has set the cookie.
pub const COOKIE_SET: u16 = 1;
/// It has deleted the cookie of its request.
pub const COOKIE_DELETED: u16 = 2;
/// It is that of an interim response (RFC 9110 §15.2).
pub const INTERIM: u16 = 4;
/// The connection speaks another protocol (RFC 9110 §15.2.2): nothing on it is a head.
pub const SWITCHED: u16 = 8;
/// It has told the length of its body.
pub const LENGTH_KNOWN: u16 = 16;
/// Its response has no body whatever its fields say (RFC 9112 §6.3).
pub const NO_BODY: u16 = 32;

impl Asked {
    /// Whether a response whose head has not ended yet answers the last request, and neither one before it nor one that was
    /// not seen.
    #[inline(always)]
    pub const fn answers_last(&self) -> bool {
        self.asked.wrapping_sub(self.answered) == 1
    }

    /// Whether a request was seen of which no final response was. A head that answers none is none: it stands in a body.
    #[inline(always)]
    pub const fn is_open(&self) -> bool {
        self.asked.wrapping_sub(self.answered) as i16 > 0
    }

    /// Whether the response whose head has not ended yet answers a HEAD (RFC 9110 §9.3.2).
    #[inline(always)]
    pub const fn answers_head(&self) -> bool {
        let open = self.asked.wrapping_sub(self.answered);
        open != 0 && open <= 16 && self.heads >> (open - 1) & 1 != 0
    }

    /// What `asked` becomes with one more request. More answers than requests are of requests that were not seen, or came
    /// twice: nothing can be open then.
    #[inline(always)]
    pub const fn one_more(&self) -> u16 {
        let seen =
            if (self.asked.wrapping_sub(self.answered) as i16) < 0 { self.answered } else { self.asked };
        seen.wrapping_add(1)
    }
}

crate::map_types! { Home: 24, Tail: 528, Asked: 32 }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_tell_services_and_keys_apart() {
        let key = [1, 2];
        let tags = [
            tag(&key, 1, b"a"),
            tag(&key, 2, b"a"),
            tag(&key, 1, b"a\0"),
            tag(&key, 1, b""),
            tag(&[2, 1], 1, b"a"),
        ];
        for (i, tag) in tags.iter().enumerate() {
            assert!(!tags[..i].contains(tag), "{i}");
        }
        let long = [b'x'; 1000];
        assert_ne!(tag(&key, 1, &long), tag(&key, 1, &long[1..]), "every byte counts");
        assert!(usable(FREE) > CLAIMED && usable(CLAIMED) > CLAIMED);
    }
}
