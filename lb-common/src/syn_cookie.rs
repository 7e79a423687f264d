//! SYN cookies of our own (idea: Bernstein 1996; RFC 4987 §3.6): keyed, rotating, the same on every node that shares
//! the keys, and carrying what was agreed with the client, so that a SYN leaves no trace in memory.
//!
//! | bits | with timestamps | bits | without |
//! |---|---|---|---|
//! | 31 | SACK agreed | 31 | two time slots, modulo 2 |
//! | 30..27 | the client's window scale, or 15: not agreed | 30..24 | six times the window scale and SACK, in 21 steps, |
//! | 26..24 | time slot (about 64 s), modulo 8 | | and the maximum segment size, in 6 steps ([`MSS_TABLE`]) |
//! | 23..16 | maximum segment size, in 256 steps | | |
//! | 15..0 | code, 16 bits | 23..0 | code, 24 bits |
//!
//! Client, service and slot have a [`Secret`]: 64 bits of SipHash-2-4, by the one of the two keys that the slot says. The code is one
//! half of it, mixed with the client's initial sequence number and the bits in front: for each of these every code is as likely as
//! any other. Without timestamps its upper six bits are bits of the other half and know nothing of the sequence number, so that a
//! segment which overtook the first one is told from what is not ours, wherever it stands.
//!
//! Timestamps need no bit: every later segment shows whether they were agreed. Our SYN-ACK's TSval is the client's own initial
//! sequence number, exclusive-or the secret's other half, its [`Secret::pad`]; each of the client's segments echoes it. So a segment from the
//! middle of the first flight is recognised, too, and who has not seen the SYN-ACK must guess the 32 bits of the echo
//! beside the 16 of the code: one chance in 2^48. Without timestamps it is one in 2^24.

use crate::addr::{Addr, Be16};
use crate::hash::siphash24;
use crate::settings::Settings;
use crate::tcp::NO_WINDOW_SCALE;

/// Maximum segment sizes that a cookie without timestamps can carry, in bytes, ascending.
pub const MSS_TABLE: [u16; SIZES as usize] = [MIN_MSS, 216, 536, 1160, 1380, 1460];
const SIZES: u8 = 6;
/// Window scales that a cookie without timestamps can carry where there is no SACK, ascending.
const SCALES: [u8; 4] = [2, 5, 7, 10];
/// The least that a backend is told, in bytes: less than this Linux never sends (`TCP_MIN_SND_MSS`).
pub const MIN_MSS: u16 = 48;
/// From here on, with timestamps, sizes are told in steps of 4 bytes; below in steps of 8.
const FINE: u16 = 1020;
/// Age in slots at which a cookie with timestamps is no longer accepted...
pub const MAX_AGE: u32 = 7;
/// ...and in pairs of slots at which one without is not.
pub const MAX_AGE_BARE: u32 = 2;
/// Seconds in a slot.
pub const SLOT_SECONDS: u32 = 64;

/// Bits of the code, with timestamps...
const CODE: u32 = 16;
/// ...and without.
const CODE_BARE: u32 = 24;

/// What was agreed with the client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Agreed {
    /// The client's maximum segment size in bytes.
    pub mss: u16,
    /// The client's window scale, or [`NO_WINDOW_SCALE`] when window scaling is off both ways.
    pub window_scale: u8,
    pub sack: bool,
    pub timestamps: bool,
}

impl Agreed {
    /// What of this a cookie can carry: sizes and window scales are rounded down, never up.
    #[inline(always)]
    pub const fn rounded(self) -> Self {
        Self::of(self.bits(), self.timestamps)
    }

    /// Reads a cookie's options without checking it.
    #[inline(always)]
    pub const fn of(cookie: u32, timestamps: bool) -> Self {
        let (mss, window_scale, sack) = if timestamps {
            let step = (cookie >> CODE & 0xff) as u16;
            let mss = if step < 128 { step * 8 } else { FINE + (step - 128) * 4 };
            (mss, (cookie >> 27 & 15) as u8, cookie >> 31 == 1)
        } else {
            let front = (cookie >> CODE_BARE & 0x7f) as u8;
            let options = front / SIZES;
            let (window_scale, sack) = match options {
                0..16 => (options, true),
                16..20 => (SCALES[(options & 3) as usize], false),
                _ => (NO_WINDOW_SCALE, false),
            };
            (MSS_TABLE[(front % SIZES) as usize], window_scale, sack)
        };
        let mss = if mss < MIN_MSS { MIN_MSS } else { mss };
        Self { mss, window_scale, sack, timestamps }
    }

    #[inline(always)]
    pub const fn scales_windows(self) -> bool {
        self.window_scale != NO_WINDOW_SCALE
    }

    #[inline(always)]
    const fn bits(self) -> u32 {
        let scale = self.window_scale & 15;
        if self.timestamps {
            let step = if self.mss < FINE { self.mss / 8 } else { 128 + (self.mss - FINE) / 4 };
            let step = if step > 255 { 255 } else { step };
            return (self.sack as u32) << 31 | (scale as u32) << 27 | (step as u32) << CODE;
        }
        let options = match scale {
            scale if self.sack => scale,
            NO_WINDOW_SCALE | 0 | 1 => 20,
            2..=4 => 16,
            5 | 6 => 17,
            7..=9 => 18,
            _ => 19,
        };
        ((options * SIZES + mss_index(self.mss)) as u32) << CODE_BARE
    }
}

/// The largest index into [`MSS_TABLE`] whose entry is at most `mss` bytes; 0 where none is.
#[inline(always)]
const fn mss_index(mss: u16) -> u8 {
    let mut index = 0;
    let mut i = 1;
    while i < SIZES {
        if mss >= MSS_TABLE[i as usize] {
            index = i;
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

/// What is not zero of a cookie's slot, in the cookie's own place.
#[inline(always)]
const fn slot_bits(slot: u32, timestamps: bool) -> u32 {
    if timestamps { (slot & 7) << 24 } else { (slot >> 1 & 1) << 31 }
}

/// The slot in which a cookie was made, if it is young enough; of a pair of slots the first one.
#[inline(always)]
const fn slot_of(cookie: u32, timestamps: bool, now: u32) -> Option<u32> {
    if timestamps {
        let age = now.wrapping_sub(cookie >> 24) & 7;
        if age < MAX_AGE { Some(now.wrapping_sub(age)) } else { None }
    } else {
        // Of two values both are young enough.
        let age = (now >> 1).wrapping_sub(cookie >> 31) & 1;
        Some((now & !1).wrapping_sub(2 * age))
    }
}

/// Bits of the code without timestamps that depend on the sequence number.
const CODE_ISN: u32 = 18;

/// What a peer's cookies of a slot are made of, and its client learns of it no more than they show.
#[derive(Clone, Copy)]
pub struct Secret {
    bits: u64,
    slot: u32,
}

impl Secret {
    /// That of a peer in a time slot; without timestamps, in the pair of slots.
    #[inline(always)]
    pub fn of(settings: &Settings, peer: &Peer, slot: u32, timestamps: bool) -> Self {
        let slot = if timestamps { slot } else { slot & !1 };
        let key = settings.cookie_key_of(slot);
        let service = peer.port.bits() as u64 | (peer.service as u64) << 16;
        // As few words as hold it all.
        let bits = if peer.client.is_v4() {
            siphash24(&key, &[service << 32 | peer.client.v4_bits() as u64], slot as u64 | 15 << 56)
        } else {
            siphash24(&key, &[peer.client.hi, peer.client.lo, service], slot as u64 | 31 << 56)
        };
        Self { bits, slot }
    }

    /// What the TSval of our SYN-ACK differs in from the client's initial sequence number.
    #[inline(always)]
    pub const fn pad(self) -> u32 {
        (self.bits >> 32) as u32
    }

    /// The cookie for a client's SYN: our initial sequence number towards it.
    #[inline(always)]
    pub const fn cookie(self, isn: u32, agreed: Agreed) -> u32 {
        let head = agreed.bits() | slot_bits(self.slot, agreed.timestamps);
        head | self.code(isn, head, agreed.timestamps)
    }

    /// The code of a sequence number and what stands in front of it.
    #[inline(always)]
    const fn code(self, isn: u32, head: u32, timestamps: bool) -> u32 {
        let front = (head >> CODE).wrapping_mul(0x9e37_79b1);
        let mixed = mix(self.bits as u32 ^ isn ^ front);
        if timestamps { mixed & ((1 << CODE) - 1) } else { self.peer_code() | mixed & ((1 << CODE_ISN) - 1) }
    }

    /// The upper bits of a code without timestamps, in their place.
    #[inline(always)]
    const fn peer_code(self) -> u32 {
        (self.pad() & ((1 << (CODE_BARE - CODE_ISN)) - 1)) << CODE_ISN
    }
}

/// One number for each, no two alike, and each bit of it depends on all (constants: Wellons, "Prospecting for Hash Functions").
#[inline(always)]
const fn mix(mut bits: u32) -> u32 {
    bits ^= bits >> 16;
    bits = bits.wrapping_mul(0x7feb_352d);
    bits ^= bits >> 15;
    bits = bits.wrapping_mul(0x846c_a68b);
    bits ^ bits >> 16
}

/// The [`Secret::cookie`] of a SYN.
#[inline(always)]
pub fn make(settings: &Settings, peer: &Peer, isn: u32, agreed: Agreed, slot: u32) -> u32 {
    Secret::of(settings, peer, slot, agreed.timestamps).cookie(isn, agreed)
}

/// The [`Secret::pad`] of a SYN with timestamps.
#[inline(always)]
pub fn pad(settings: &Settings, peer: &Peer, slot: u32) -> u32 {
    Secret::of(settings, peer, slot, true).pad()
}

/// Whether `cookie`, of a connection without timestamps, may be ours for that client, whatever the sequence number: of what is not,
/// one in 64 passes.
#[inline(always)]
pub fn may_be(settings: &Settings, peer: &Peer, cookie: u32, now: u32) -> bool {
    let Some(slot) = slot_of(cookie, false, now) else { return false };
    let mask = ((1 << CODE_BARE) - 1) & !((1 << CODE_ISN) - 1);
    Secret::of(settings, peer, slot, false).peer_code() == cookie & mask
}

/// Whether `cookie`, of a connection without timestamps, is ours, for that client and initial sequence number, and young enough.
#[inline(always)]
pub fn check(settings: &Settings, peer: &Peer, isn: u32, cookie: u32, now: u32) -> bool {
    let Some(slot) = slot_of(cookie, false, now) else { return false };
    let mask = (1 << CODE_BARE) - 1;
    Secret::of(settings, peer, slot, false).code(isn, cookie & !mask, false) == cookie & mask
}

/// The client's initial sequence number, if `cookie` and the echo of our TSval are ours for that client and young enough.
///
/// The proof is complete only for a segment that stands where that number says: otherwise the echo may be anything.
#[inline(always)]
pub fn check_echo(settings: &Settings, peer: &Peer, echo: u32, cookie: u32, now: u32) -> Option<u32> {
    let slot = slot_of(cookie, true, now)?;
    let secret = Secret::of(settings, peer, slot, true);
    let isn = echo ^ secret.pad();
    let mask = (1 << CODE) - 1;
    let right = secret.code(isn, cookie & !mask, true) == cookie & mask;
    if right { Some(isn) } else { None }
}

/// Whether `cookie` could have been made in this time slot or the one before (without timestamps: pairs of slots): a cheap test
/// before the real one.
#[inline(always)]
pub const fn is_fresh(cookie: u32, timestamps: bool, now: u32) -> bool {
    !timestamps || now.wrapping_sub(cookie >> 24) & 7 < 2
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
        (any::<u16>(), 0u8..16, any::<bool>(), any::<bool>())
            .prop_map(|(mss, window_scale, sack, timestamps)| Agreed { mss, window_scale, sack, timestamps })
    }

    /// What a cookie proves: with timestamps by the echo of what the SYN-ACK said.
    fn proves(settings: &Settings, peer: &Peer, isn: u32, cookie: u32, made: Option<u32>, now: u32) -> bool {
        match made {
            Some(slot) => {
                check_echo(settings, peer, isn ^ pad(settings, peer, slot), cookie, now) == Some(isn)
            }
            None => check(settings, peer, isn, cookie, now),
        }
    }

    proptest! {
        #[test]
        fn a_cookie_carries_and_proves(ip: u32, port: u16, isn: u32, agreed in agreed(), slot: u32, age in 0u32..MAX_AGE) {
            let cookie = make(&settings(), &peer(ip, port), isn, agreed, slot);
            prop_assert_eq!(Agreed::of(cookie, agreed.timestamps), agreed.rounded());
            prop_assert_eq!(agreed.rounded().rounded(), agreed.rounded());
            let age = if agreed.timestamps { age } else { age & 1 };
            let made = agreed.timestamps.then_some(slot);
            prop_assert!(proves(&settings(), &peer(ip, port), isn, cookie, made, slot.wrapping_add(age)));
            if !agreed.timestamps {
                prop_assert!(may_be(&settings(), &peer(ip, port), cookie, slot.wrapping_add(age)));
            }
            prop_assert_eq!(is_fresh(cookie, agreed.timestamps, slot.wrapping_add(age)), age < 2);
        }

        #[test]
        fn nothing_is_rounded_up(agreed in agreed()) {
            let rounded = agreed.rounded();
            prop_assert!(rounded.mss <= agreed.mss.max(MIN_MSS));
            prop_assert!(rounded.sack == agreed.sack);
            if rounded.scales_windows() {
                prop_assert!(rounded.window_scale <= agreed.window_scale);
            }
        }

        #[test]
        fn an_old_one_is_refused(ip: u32, port: u16, isn: u32, agreed in agreed(), slot: u32) {
            let cookie = make(&settings(), &peer(ip, port), isn, agreed, slot);
            let (made, after) = if agreed.timestamps { (Some(slot), MAX_AGE) } else { (None, 2 * MAX_AGE_BARE) };
            prop_assert!(!proves(&settings(), &peer(ip, port), isn, cookie, made, slot.wrapping_add(after)));
        }

        #[test]
        fn the_other_key_stays_valid_after_rotation(ip: u32, isn: u32, agreed in agreed(), slot in 16u32..1 << 30) {
            let cookie = make(&settings(), &peer(ip, 1), isn, agreed, slot);
            let made = agreed.timestamps.then_some(slot);
            let rotated = settings().with_cookie_key([9, 9], slot);
            prop_assert!(proves(&rotated, &peer(ip, 1), isn, cookie, made, slot));
            prop_assert!(proves(&rotated, &peer(ip, 1), isn, cookie, made, slot + 1));
            // What is made of the new key begins in the next pair of slots.
            let later = make(&rotated, &peer(ip, 1), isn, agreed, slot + 2);
            prop_assert!(later != make(&settings(), &peer(ip, 1), isn, agreed, slot + 2) || later == cookie);
        }
    }

    /// A code of 16 or 24 bits is guessed once in 65,536; among 20,000 guesses of each kind more than a few hits are a bug.
    #[test]
    fn guesses_fail() {
        for timestamps in [false, true] {
            let agreed = Agreed { mss: 1460, window_scale: 7, sack: true, timestamps };
            let cookie = make(&settings(), &peer(1, 1), 100, agreed, 9);
            let of = |peer: &Peer, isn: u32, cookie: u32| {
                proves(&settings(), peer, isn, cookie, timestamps.then_some(9), 9)
            };
            let hits = (0..20_000u32)
                .filter(|i| {
                    of(&peer(1, 1), 101 + i, cookie)
                        || of(&peer(2 + i, 1), 100, cookie)
                        || of(&peer(1, 2 + (*i as u16)), 100, cookie)
                        || of(&peer(1, 1), 100, cookie ^ (i + 1))
                })
                .count();
            assert!(hits <= 8, "{hits} of 80,000 guesses were right");
        }
    }

    #[test]
    fn few_cookies_of_others_may_be_ours() {
        let passed = (0..64_000u32)
            .filter(|i| may_be(&settings(), &peer(1, 1), i.wrapping_mul(0x9e37_79b9), 9))
            .count();
        assert!((500..1500).contains(&passed), "{passed} of 64,000");
    }

    /// Who has not seen the SYN-ACK does not know what to echo, even with a right code.
    #[test]
    fn a_right_code_without_the_echo_stands_nowhere() {
        let agreed = Agreed { mss: 1460, window_scale: 7, sack: true, timestamps: true };
        let cookie = make(&settings(), &peer(1, 1), 100, agreed, 9);
        assert_ne!(check_echo(&settings(), &peer(1, 1), 100, cookie, 9), Some(100));
    }

    #[test]
    fn mss_is_rounded_down() {
        for (mss, with, without) in [
            (0, 48, 48),
            (48, 48, 48),
            (88, 88, 48),
            (216, 216, 216),
            (535, 528, 216),
            (536, 536, 536),
            (1023, 1020, 536),
            (1160, 1160, 1160),
            (1199, 1196, 1160),
            (1380, 1380, 1380),
            (1460, 1460, 1460),
        ] {
            let agreed = |timestamps| Agreed { mss, window_scale: 7, sack: true, timestamps }.rounded().mss;
            assert_eq!((agreed(true), agreed(false)), (with, without), "{mss}");
        }
    }
}
