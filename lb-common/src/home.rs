//! Where the sessions are at home whose keys the backends themselves hand out: the value of the table of learned sessions.
//!
//! The table is an array of our own, in groups of [`GROUP`] entries: a session stands anywhere in the group that its tag
//! names. In a full group the entry that was not asked for longest makes room. The program creates and touches entries,
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
}

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

/// Whose request a flow's client sent last, by the cookie that it came with: a connection may carry the requests of several.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Asked {
    /// Tag of the session that the request asked for, or that the response handed out; 0: none.
    pub tag: u64,
    /// Sequence number with which the last request began.
    pub at: u32,
    /// Requests that have begun, modulo 2^16. Written on the client's path alone.
    pub asked: u16,
    /// Heads of final responses that have ended, modulo 2^16. Written on the backend's path alone.
    pub answered: u16,
}

impl Asked {
    /// Whether a response whose head has not ended yet answers the last request, and neither one before it nor one that was
    /// not seen.
    #[inline(always)]
    pub const fn answers_last(&self) -> bool {
        self.asked.wrapping_sub(self.answered) == 1
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

crate::map_types! { Home: 16, Tail: 528, Asked: 16 }

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
