//! SYN cookies of our own (idea: Bernstein 1996; RFC 4987 §3.6): keyed, rotating, the same on every node that shares
//! the keys, and carrying what was agreed with the client, so that a SYN leaves no trace in memory.
//!
//! | bits | field |
//! |---|---|
//! | 31..29 | time slot (about 64 s), modulo 8 |
//! | 28 | which of the two keys |
//! | 27..25 | index into [`MSS_TABLE`] |
//! | 24..21 | the client's window scale, or 15: not agreed |
//! | 20 | SACK agreed |
//! | 19..0 | SipHash-2-4 of client, service, the client's initial sequence number, slot and the options above |
//!
//! Timestamps need no bit: every later segment shows whether they were agreed. Our SYN-ACK's TSval is the client's own
//! initial sequence number, which each of its segments then echoes: so a segment from the middle of the first flight
//! can be recognised, too.

use crate::addr::{Addr, Be16};
use crate::hash::siphash24;
use crate::settings::Settings;
use crate::tcp::NO_WINDOW_SCALE;

/// Maximum segment sizes that a cookie can carry, in bytes, ascending.
pub const MSS_TABLE: [u16; 8] = [536, 1200, 1300, 1360, 1400, 1420, 1440, 1460];
/// Age in slots at which a cookie is no longer accepted.
pub const MAX_AGE: u32 = 7;
/// Seconds in a slot.
pub const SLOT_SECONDS: u32 = 64;

/// What was agreed with the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// Index into [`MSS_TABLE`].
    pub mss_index: u8,
    /// The client's window scale, or [`NO_WINDOW_SCALE`] when window scaling is off both ways.
    pub window_scale: u8,
    pub sack: bool,
}

impl Agreed {
    /// Reads a cookie's options without checking it.
    #[inline(always)]
    pub const fn of(cookie: u32) -> Self {
        Self {
            mss_index: (cookie >> 25) as u8 & 7,
            window_scale: (cookie >> 21) as u8 & 15,
            sack: cookie >> 20 & 1 == 1,
        }
    }
    /// The client's maximum segment size in bytes, rounded down to the table.
    #[inline(always)]
    pub const fn mss(self) -> u16 {
        MSS_TABLE[self.mss_index as usize & 7]
    }
    #[inline(always)]
    pub const fn scales_windows(self) -> bool {
        self.window_scale != NO_WINDOW_SCALE
    }
    #[inline(always)]
    const fn bits(self) -> u32 {
        (self.mss_index as u32 & 7) << 25 | (self.window_scale as u32 & 15) << 21 | (self.sack as u32) << 20
    }
}

/// The largest index into [`MSS_TABLE`] whose entry is at most `mss` bytes.
#[inline(always)]
pub const fn mss_index(mss: u16) -> u8 {
    let mut index = 0;
    let mut i = 1;
    while i < 8 {
        if mss >= MSS_TABLE[i] {
            index = i as u8;
        }
        i += 1;
    }
    index
}

/// Who connects to what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    pub client: Addr,
    pub port: Be16,
    pub service: u16,
}

#[inline(always)]
fn mac(settings: &Settings, peer: &Peer, isn: u32, slot: u32, head: u32) -> u32 {
    let key = &settings.cookie_keys[(head >> 28 & 1) as usize];
    let service = peer.port.bits() as u64 | (peer.service as u64) << 16;
    // As few words as hold it all. In the seven bytes that SipHash leaves beside the length: the sequence number, the 12 bits
    // in front, of which three are the slot's low ones, and 12 more of the slot: it is the same again after 24 days.
    let tail = isn as u64 | ((head >> 20) as u64) << 32 | ((slot >> 3 & 0xfff) as u64) << 44;
    let hash = if peer.client.is_v4() {
        siphash24(key, &[service << 32 | peer.client.v4_bits() as u64], tail | 15 << 56)
    } else {
        siphash24(key, &[peer.client.hi, peer.client.lo, service], tail | 31 << 56)
    };
    hash as u32 & 0xf_ffff
}

/// The cookie for a client's SYN: our initial sequence number towards it.
#[inline(always)]
pub fn make(settings: &Settings, peer: &Peer, isn: u32, agreed: Agreed, slot: u32) -> u32 {
    let head = (slot & 7) << 29 | (settings.cookie_key & 1) << 28 | agreed.bits();
    head | mac(settings, peer, isn, slot, head)
}

/// Whether `cookie` is ours, for that client, initial sequence number and no older than [`MAX_AGE`].
#[inline(always)]
pub fn check(settings: &Settings, peer: &Peer, isn: u32, cookie: u32, now: u32) -> bool {
    let age = now.wrapping_sub(cookie >> 29) & 7;
    age < MAX_AGE && mac(settings, peer, isn, now.wrapping_sub(age), cookie & !0xf_ffff) == cookie & 0xf_ffff
}

/// Whether `cookie` could have been made in this time slot or the one before: a cheap test before [`check`].
#[inline(always)]
pub const fn is_fresh(cookie: u32, now: u32) -> bool {
    now.wrapping_sub(cookie >> 29) & 7 < 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn settings() -> Settings {
        Settings { cookie_keys: [[1, 2], [3, 4]], cookie_key: 1, ..Settings::default() }
    }

    fn peer(ip: u32, port: u16) -> Peer {
        Peer { client: Addr::from_v4_bits(ip), port: Be16::new(port), service: 5 }
    }

    fn agreed() -> impl Strategy<Value = Agreed> {
        (0u8..8, 0u8..16, any::<bool>()).prop_map(|(mss_index, window_scale, sack)| Agreed {
            mss_index,
            window_scale,
            sack,
        })
    }

    proptest! {
        #[test]
        fn a_cookie_carries_and_proves(ip: u32, port: u16, isn: u32, agreed in agreed(), slot: u32, age in 0u32..MAX_AGE) {
            let cookie = make(&settings(), &peer(ip, port), isn, agreed, slot);
            prop_assert_eq!(Agreed::of(cookie), agreed);
            prop_assert!(check(&settings(), &peer(ip, port), isn, cookie, slot.wrapping_add(age)));
            prop_assert_eq!(is_fresh(cookie, slot.wrapping_add(age)), age < 2);
        }

        #[test]
        fn an_old_one_is_refused(ip: u32, port: u16, isn: u32, agreed in agreed(), slot: u32) {
            let cookie = make(&settings(), &peer(ip, port), isn, agreed, slot);
            prop_assert!(!check(&settings(), &peer(ip, port), isn, cookie, slot.wrapping_add(MAX_AGE)));
        }

        #[test]
        fn the_other_key_stays_valid_after_rotation(ip: u32, isn: u32, agreed in agreed(), slot: u32) {
            let cookie = make(&settings(), &peer(ip, 1), isn, agreed, slot);
            let rotated = Settings { cookie_key: 0, cookie_keys: [[9, 9], [3, 4]], ..settings() };
            prop_assert!(check(&rotated, &peer(ip, 1), isn, cookie, slot));
        }
    }

    /// A 20-bit code is guessed once in a million; among 20,000 guesses of each kind more than a few hits are a bug.
    #[test]
    fn guesses_fail() {
        let agreed = Agreed { mss_index: 7, window_scale: 7, sack: true };
        let cookie = make(&settings(), &peer(1, 1), 100, agreed, 9);
        let hits = (0..20_000u32)
            .filter(|i| {
                check(&settings(), &peer(1, 1), 101 + i, cookie, 9)
                    || check(&settings(), &peer(2 + i, 1), 100, cookie, 9)
                    || check(&settings(), &peer(1, 2 + (*i as u16)), 100, cookie, 9)
                    || check(&settings(), &peer(1, 1), 100, cookie ^ (i + 1), 9)
            })
            .count();
        assert!(hits <= 3, "{hits} of 80,000 guesses were right");
    }

    #[test]
    fn mss_is_rounded_down() {
        for (mss, expected) in [(0, 536), (536, 536), (1199, 536), (1380, 1360), (1460, 1460), (8960, 1460)] {
            assert_eq!(MSS_TABLE[mss_index(mss) as usize], expected, "{mss}");
        }
    }
}
