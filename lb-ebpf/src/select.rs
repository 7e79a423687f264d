//! Which backend a new flow goes to: DESIGN of the steering order in `README.md`, "How a backend is chosen".

use crate::flows::Key;
use crate::maps::{BACKENDS, MAGLEV, POOLS, SERVICES, STASHES, count, count_backend};
use crate::shares::live;
use crate::token::{Found, HASHED, UNKNOWN, is_claim};
use crate::trace;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::hash::scale;
use lb_common::maglev::{BLOCK, NOBODY, WALK, next_hash};
use lb_common::service::{Affinity, Balance, NAMES_ONLY, Service};
use lb_common::stash::Stash;

/// The backend for a new flow; [`lb_choose`] is asked only when its token does not say.
#[inline(always)]
pub(crate) fn choose(stash: &mut Stash, index: u32, service: u16, found: Found) -> u32 {
    if is_claim(found) && stash.claim.service == service && is_at_home(stash, service) {
        return u32::from(stash.claim.slot);
    }
    lb_choose(index, u32::from(service), found)
}

/// Whether the backend that a valid token names serves. Leaves in the stash why, and where a walk for another begins.
#[inline(always)]
fn is_at_home(stash: &mut Stash, service: u16) -> bool {
    let claim = stash.claim;
    stash.hash = claim.hash;
    let Some(backend) = BACKENDS.get(u32::from(claim.slot)) else { return false };
    let serves = backend.service == service && State::from_bits(backend.state).serves_sessions();
    let stale = backend.epoch != claim.epoch;
    stash.reason = if stale { Counter::StaleInstance } else { Counter::AffinityHit } as u32;
    serves
}

/// How [`lb_choose`] is asked, beside what was found where a token may stand: for a backend that was not tried yet.
pub(crate) const ANOTHER: Found = 3;

/// Chooses the backend for the flow of a stash whose token, if there is one, does not name one that serves: by the
/// session's hash, or else the one that stands in the stash.
/// Returns the slot, or [`NOBODY`]; leaves in the stash why, and where a walk for the next one goes on.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_choose(index: u32, service: u32, found: u32) -> u32 {
    let (Some(entry), Some(stash)) = (SERVICES.get(service), STASHES.get_ptr_mut(index)) else {
        return u32::from(NOBODY);
    };
    // SAFETY: a map value stays valid, and the caller has its lock.
    let stash = unsafe { &mut *stash };
    let id = service as u16;
    let reason = if found == ANOTHER {
        // From where the last one was found: as every node walks that knows it does not serve.
        Counter::Retried
    } else if entry.names & NAMES_ONLY != 0 && stash.pool == 0 {
        stash.reason = Counter::UnknownName as u32;
        return u32::from(NOBODY);
    } else if found == HASHED || entry.affinity == Affinity::Source as u8 {
        Counter::Hashed
    } else if found == UNKNOWN {
        Counter::UnknownKey
    } else if !is_claim(found) {
        Counter::NewSession
    } else if stash.claim.service != id {
        Counter::InvalidToken
    } else if entry.strict != 0 {
        stash.reason = Counter::Rejected as u32;
        return u32::from(NOBODY);
    } else {
        stash.hash = stash.claim.hash;
        Counter::Redispatched
    };
    stash.reason = reason as u32;
    let chosen = match reason {
        Counter::NewSession => fresh(entry, service, stash.hash, index),
        _ => by_hash(service, stash.hash, index),
    };
    stash.hash = chosen.hash;
    chosen.slot
}

/// A backend's slot, or [`NOBODY`], and the hash that led there.
#[derive(Clone, Copy)]
pub(crate) struct Chosen {
    pub(crate) slot: u32,
    pub(crate) hash: u32,
}

impl Chosen {
    #[inline(always)]
    const fn to_bits(self) -> u64 {
        self.slot as u64 | (self.hash as u64) << 32
    }
    #[inline(always)]
    const fn from_bits(bits: u64) -> Self {
        Self { slot: bits as u32, hash: (bits >> 32) as u32 }
    }
}

/// Not the index of a stash: no backend was tried before.
pub(crate) const NONE_TRIED: u32 = u32::MAX;

/// The ready backend that a service's Maglev table has at a hash, or that of the stash's pool: or a next one that was not tried
/// for that stash.
#[inline(always)]
pub(crate) fn by_hash(service: u32, hash: u32, stash: u32) -> Chosen {
    Chosen::from_bits(lb_walk(service, hash, stash))
}

/// A global function (see [`crate::cold`]), because it is a loop.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_walk(service: u32, start: u32, stash: u32) -> u64 {
    let nobody = Chosen { slot: u32::from(NOBODY), hash: start };
    let Some(entry) = SERVICES.get(service) else { return nobody.to_bits() };
    let tried = STASHES.get(stash);
    let pool = tried.map_or(0, |stash| stash.pool);
    let (base, size) = if pool == 0 {
        (entry.maglev_base, entry.maglev_size)
    } else {
        POOLS.get(pool).map_or((0, 0), |pool| (pool.base, pool.size))
    };
    let mut hash = start;
    let mut turn = 0;
    while turn < WALK && size != 0 {
        let place = scale(hash, size);
        let Some(block) = MAGLEV.get(base + place / BLOCK as u32) else { break };
        let slot = block.0[place as usize % BLOCK];
        if let Some(backend) = BACKENDS.get(u32::from(slot))
            && u32::from(backend.service) == service
            && backend.state == State::Ready as u8
            && !tried.is_some_and(|stash| stash.tried.contains(slot))
        {
            return Chosen { slot: u32::from(slot), hash }.to_bits();
        }
        hash = next_hash(hash);
        turn += 1;
    }
    nobody.to_bits()
}

/// The backend for what belongs to none, in the way that the service balances.
#[inline(always)]
pub(crate) fn fresh(entry: &Service, service: u32, hash: u32, stash: u32) -> Chosen {
    if entry.balance == Balance::Least as u8 {
        return Chosen::from_bits(lb_least(service, hash, stash));
    }
    by_hash(service, hash, stash)
}

/// Backends that are drawn.
const DRAWS: u32 = 2;

/// Of two backends that the Maglev table has at random places, the one with fewer live flows for its weight. A global function
/// (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_least(service: u32, hash: u32, stash: u32) -> u64 {
    let mut best = Chosen { slot: u32::from(NOBODY), hash };
    let mut least = u64::MAX;
    let mut draw = 0;
    while draw < DRAWS {
        // SAFETY: the helper takes nothing and returns a number.
        let chosen = by_hash(service, unsafe { aya_ebpf::helpers::bpf_get_prandom_u32() }, stash);
        if chosen.slot != u32::from(NOBODY) {
            let share = share(chosen.slot);
            if share < least {
                least = share;
                best = chosen;
            }
        }
        draw += 1;
    }
    best.to_bits()
}

/// Live flows of a backend for its weight, the one to come included, in 256ths.
#[inline(always)]
fn share(slot: u32) -> u64 {
    let weight = BACKENDS.get(slot).map_or(0, |backend| u64::from(backend.weight));
    let flows = (live(slot as u16) + 1) << 8;
    flows.checked_div(weight).unwrap_or(flows)
}

/// Counts why a backend was chosen, per service and per backend, and tells who listens. `slot` is [`NOBODY`] when none was.
#[inline(always)]
pub(crate) fn decided(key: &Key, slot: u16, found: Found, reason: u32) {
    const HIT: u32 = Counter::AffinityHit as u32;
    const STALE: u32 = Counter::StaleInstance as u32;
    const REDISPATCHED: u32 = Counter::Redispatched as u32;
    const RETRIED: u32 = Counter::Retried as u32;
    const REJECTED: u32 = Counter::Rejected as u32;
    const UNKNOWN_NAME: u32 = Counter::UnknownName as u32;
    const INVALID_TOKEN: u32 = Counter::InvalidToken as u32;
    trace::tell(key, slot, found, reason);
    if slot == NOBODY && reason != REJECTED && reason != UNKNOWN_NAME {
        return;
    }
    count(key.service, reason);
    match reason {
        STALE => count(key.service, HIT),
        INVALID_TOKEN => count(key.service, Counter::NewSession as u32),
        _ => {}
    }
    count_backend(slot, |counters| match reason {
        HIT => counters.affinity_hit += 1,
        STALE => {
            counters.affinity_hit += 1;
            counters.stale_instance += 1;
        }
        REDISPATCHED | RETRIED => counters.redispatched += 1,
        _ => counters.new_session += 1,
    });
}
