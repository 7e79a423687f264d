//! The table of learned sessions: finding, learning, forgetting. See [`lb_common::home`] for its shape.
//!
//! An entry is two words. Who fills one in claims its tag first, then writes where the session is at home, then the new tag:
//! whoever reads finds the same tag before and after the other word, or takes nothing from it.

use crate::atomic::{compare_exchange, exchange, read, read_last, write};
use crate::clock::{now, second};
use crate::maps::{BACKENDS, FLOW_KEYS, HOMES, SERVICES, count, settings};
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::home::{Asked, CLAIMED, FREE, GROUP, Home, SHARE};
use lb_common::maglev::NOBODY;
use lb_common::settings::{Settings, is_over};

/// How often an entry is chosen anew because another processor took the one that was chosen. Each time that one has gone on, so
/// as many others as a group has entries are let pass.
const TRIES: u32 = GROUP as u32;

/// The word of an entry that is not its tag.
#[derive(Clone, Copy)]
struct Whereabouts {
    slot: u16,
    service: u16,
    last_used: u32,
}

impl Whereabouts {
    #[inline(always)]
    const fn to_bits(self) -> u64 {
        self.slot as u64 | (self.service as u64) << 16 | (self.last_used as u64) << 32
    }
    #[inline(always)]
    const fn from_bits(bits: u64) -> Self {
        Self { slot: bits as u16, service: (bits >> 16) as u16, last_used: (bits >> 32) as u32 }
    }
}

/// Entry `i` of the group of a tag.
#[inline(always)]
fn place(settings: &Settings, tag: u64, i: u32) -> Option<*mut Home> {
    let group = (tag as u32 & settings.home_group_mask).wrapping_mul(GROUP as u32);
    HOMES.get_ptr_mut(group.wrapping_add(i))
}

#[inline(always)]
fn tag_of(home: *mut Home) -> u64 {
    // SAFETY: map values stay valid; the tag is an aligned word.
    unsafe { read(&raw const (*home).tag) }
}

/// Whether what was just read of an entry was of this tag: nobody else has claimed it meanwhile.
#[inline(always)]
fn is_still(home: *mut Home, tag: u64) -> bool {
    // SAFETY: map values stay valid; the tag is an aligned word.
    unsafe { read_last(&raw mut (*home).tag) == tag }
}

#[inline(always)]
fn whereabouts(home: *mut Home) -> Whereabouts {
    // SAFETY: map values stay valid; what follows the tag is an aligned word.
    Whereabouts::from_bits(unsafe { read((&raw const (*home).slot).cast()) })
}

/// Notes that a session was asked for. Once in a tick: the word is shared by all processors.
#[inline(always)]
fn touch(home: *mut Home, last_used: u32, now: u32) {
    if last_used != now {
        // SAFETY: map values stay valid. If the entry is another session's by now, that one is of this moment, too.
        unsafe { write(&raw mut (*home).last_used, now) };
    }
}

/// Notes that a client has presented a session.
#[inline(always)]
fn see(home: *mut Home) {
    // SAFETY: map values stay valid; the word is aligned. If the entry is another session's by now, that one stays a little longer.
    unsafe {
        if read(&raw const (*home).seen) == 0 {
            write(&raw mut (*home).seen, 1);
        }
    }
}

/// Which cookie of its name a session is.
#[inline(always)]
fn scope_of(home: *mut Home) -> u32 {
    // SAFETY: map values stay valid; the word is aligned.
    unsafe { read(&raw const (*home).scope) }
}

/// Whether a backend stands behind a service.
#[inline(always)]
fn stands_behind(slot: u16, service: u16) -> bool {
    BACKENDS.get(u32::from(slot)).is_some_and(|backend| backend.service == service)
}

/// Whether what a backend hands out leads there: not any more when it is on its way out, and only ends what it has begun.
#[inline(always)]
fn takes_back(slot: u32) -> bool {
    BACKENDS
        .get(slot)
        .is_some_and(|backend| backend.leaving == 0 || State::from_bits(backend.state).serves_sessions())
}

/// Ticks after which a service's sessions are forgotten.
#[inline(always)]
fn limit(service: u16) -> u32 {
    SERVICES.get(u32::from(service)).map_or(0, |service| service.learned_ticks)
}

/// The slot of the backend at which a session of a service is at home, or [`NOBODY`]. Whoever asks keeps it alive.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_home(service: u32, tag: u64) -> u32 {
    let Some(settings) = settings() else { return u32::from(NOBODY) };
    let now = now(settings);
    let limit = limit(service as u16);
    let mut i = 0;
    while i < GROUP as u32 {
        let Some(home) = place(settings, tag, i) else { break };
        if tag_of(home) == tag {
            let at = whereabouts(home);
            if is_still(home, tag)
                && at.service == service as u16
                && !is_over(limit, at.last_used, now)
                && stands_behind(at.slot, at.service)
            {
                touch(home, at.last_used, now);
                see(home);
                return u32::from(at.slot);
            }
        }
        i += 1;
    }
    u32::from(NOBODY)
}

/// Notes that a session of a service is at home at the backend in `slot`, and which cookie of its name it is: in its own former
/// entry, a free one, one whose time has come, that of a session which no client has presented, or that of the one which was not
/// asked for longest. A flow has its share of new ones in a second.
///
/// A global function, as [`lb_home`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_learn(service: u32, tag: u64, slot: u32, flow: u32, scope: u32) -> u32 {
    let Some(settings) = settings() else { return 0 };
    if !takes_back(slot) {
        return 0;
    }
    let here = Whereabouts { slot: slot as u16, service: service as u16, last_used: now(settings) };
    let mut turn = 0;
    while turn < TRIES {
        let choice = lb_place_for(tag, here.last_used);
        let (index, suits) = (choice & (GROUP as u32 - 1), choice >> 8);
        let Some(home) = place(settings, tag, index) else { return 0 };
        let seen = tag_of(home);
        if suits == OWN && seen == tag {
            let at = whereabouts(home);
            if at.slot == here.slot && at.service == here.service {
                touch(home, at.last_used, here.last_used);
                if scope_of(home) != scope {
                    // Several cookies have this value: the end of one is not the session's.
                    // SAFETY: an aligned word of a map value.
                    unsafe { write(&raw mut (*home).scope, 0) };
                }
                return 0;
            }
        } else if turn == 0 && lb_has_share(flow) == 0 {
            count(here.service, Counter::LearnedRefused as u32);
            return 0;
        }
        let as_chosen = match suits {
            OWN => seen == tag,
            UNUSED => seen == FREE,
            _ => seen != CLAIMED,
        };
        // SAFETY: an aligned word of a map value.
        if as_chosen && unsafe { compare_exchange(&raw mut (*home).tag, seen, CLAIMED) } == seen {
            // SAFETY: aligned words of a map value; between the claim and the new tag nobody else writes to it. Each of
            // the two is a barrier.
            unsafe {
                exchange((&raw mut (*home).slot).cast(), here.to_bits());
                // Who is learned anew stays one that was presented.
                let seen = if suits == OWN { u64::from((*home).seen) } else { 0 };
                exchange((&raw mut (*home).scope).cast(), u64::from(scope) | seen << 32);
                exchange(&raw mut (*home).tag, tag);
            }
            only_first(settings, tag);
            count(here.service, Counter::Learned as u32);
            if suits <= UNSEEN {
                count(here.service, Counter::LearnedEvicted as u32);
            }
            return 1;
        }
        turn += 1;
    }
    0
}

/// Whether a flow may begin one more session: 1, and it is counted, or 0. A global function, as [`lb_home`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_has_share(flow: u32) -> u32 {
    let Some(known) = FLOW_KEYS.get_ptr_mut(flow) else { return 1 };
    let second = second() as u16;
    // SAFETY: a map value stays valid; of two processors that count at once, one may count for both.
    unsafe {
        let learned = if (*known).second == second { (*known).learned } else { 0 };
        if learned >= SHARE {
            return 0;
        }
        ((*known).second, (*known).learned) = (second, learned + 1);
    }
    1
}

/// How well an entry suits a session: another one has it that clients have presented, and whose time has not come...
const IN_USE: u32 = 0;
/// ...or one that none has...
const UNSEEN: u32 = 1;
/// ...or one whose time is over...
const OVERDUE: u32 = 2;
/// ...or none...
const UNUSED: u32 = 3;
/// ...or the session itself.
const OWN: u32 = 4;

/// The entry of its group that a session shall have: its index, and how well it suits in the second byte. Of those that suit
/// alike the one that was not asked for longest.
///
/// A global function, as [`lb_home`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_place_for(tag: u64, now: u32) -> u32 {
    let (mut best, mut rank) = (0, 0);
    let mut i = 0;
    while i < GROUP as u32 {
        let this = lb_rank(tag, i, now);
        if this > rank {
            rank = this;
            best = i;
        }
        i += 1;
    }
    if rank == 0 {
        return 0;
    }
    (((rank - 1) >> 32) as u32) << 8 | best
}

/// How well entry `i` of its group suits a session, in the upper half, and the ticks since it was asked for, plus one, in the lower; 0
/// for one that is being filled in.
///
/// A global function, as [`lb_home`]: in the loop of its caller it would be verified again in each turn.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_rank(tag: u64, i: u32, now: u32) -> u64 {
    let Some(settings) = settings() else { return 0 };
    let Some(home) = place(settings, tag, i) else { return 0 };
    let seen = tag_of(home);
    let at = whereabouts(home);
    let age = now.wrapping_sub(at.last_used);
    // Another processor's tick may have begun after this one's.
    let age = if (age as i32) < 0 { 0 } else { u64::from(age) };
    let suits = if seen == tag {
        OWN
    } else if seen == CLAIMED {
        return 0;
    } else if seen == FREE {
        UNUSED
    } else if is_over(limit(at.service), at.last_used, now) {
        OVERDUE
    // SAFETY: map values stay valid; the word is aligned.
    } else if unsafe { read(&raw const (*home).seen) } == 0 {
        UNSEEN
    } else {
        IN_USE
    };
    (u64::from(suits) << 32) + age + 1
}

/// Two processors may learn the same session at the same moment, in an entry each: the first one stays, and both see to it.
#[inline(always)]
fn only_first(settings: &Settings, tag: u64) {
    let mut met = false;
    let mut i = 0;
    while i < GROUP as u32 {
        let Some(home) = place(settings, tag, i) else { break };
        if tag_of(home) == tag {
            if met {
                // SAFETY: an aligned word of a map value.
                unsafe { compare_exchange(&raw mut (*home).tag, tag, FREE) };
            }
            met = true;
        }
        i += 1;
    }
}

/// Whether a session is known as a cookie of this scope: 1 if so. A global function, as [`lb_home`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_has_scope(tag: u64, scope: u32) -> u32 {
    let Some(settings) = settings() else { return 0 };
    let mut i = 0;
    while i < GROUP as u32 {
        let Some(home) = place(settings, tag, i) else { break };
        if tag_of(home) == tag {
            return u32::from(scope_of(home) == scope);
        }
        i += 1;
    }
    0
}

/// Forgets a session. Returns 1 if it was known.
///
/// A global function, as [`lb_home`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_forget(tag: u64) -> u32 {
    let Some(settings) = settings() else { return 0 };
    let mut known = 0;
    let mut i = 0;
    while i < GROUP as u32 {
        let Some(home) = place(settings, tag, i) else { break };
        // SAFETY: an aligned word of a map value.
        if tag_of(home) == tag && unsafe { compare_exchange(&raw mut (*home).tag, tag, FREE) } == tag {
            known = 1;
        }
        i += 1;
    }
    known
}

/// Tag of the session that the client of a flow asked for last, or was given; 0: none.
#[inline(always)]
pub(crate) fn key_of(flow: u32) -> u64 {
    // SAFETY: a reference to a map value is aligned and valid.
    FLOW_KEYS.get(flow).map_or(0, |key| unsafe { read(&raw const key.tag) })
}

/// Notes that tag.
#[inline(always)]
pub(crate) fn set_key(flow: u32, tag: u64) {
    if let Some(key) = FLOW_KEYS.get_ptr_mut(flow) {
        // SAFETY: map values stay valid; the tag is an aligned word.
        unsafe { write(&raw mut (*key).tag, tag) };
    }
}

/// What is known of the requests and responses of a flow.
#[inline(always)]
pub(crate) fn asked(flow: u32) -> Option<*mut Asked> {
    FLOW_KEYS.get_ptr_mut(flow)
}

/// Notes that the head of a final response has ended.
#[inline(always)]
pub(crate) fn note_answered(flow: u32) {
    if let Some(key) = asked(flow) {
        // SAFETY: map values stay valid; the backend's path alone writes this.
        unsafe { (*key).answered = (*key).answered.wrapping_add(1) };
    }
}

/// Whether the response that a flow's backend sends answers the last request ([`lb_common::home::Asked::answers_last`]).
#[inline(always)]
pub(crate) fn answers_last(flow: u32) -> bool {
    FLOW_KEYS.get(flow).is_some_and(Asked::answers_last)
}
