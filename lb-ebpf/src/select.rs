//! Which backend a new flow goes to: DESIGN of the steering order in `README.md`, "How a backend is chosen".

use crate::maps::{BACKENDS, MAGLEV, SERVICES, STASHES};
use crate::token::{Found, HASHED, VALID};
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::hash::scale;
use lb_common::maglev::{BLOCK, NOBODY, WALK, next_hash};
use lb_common::service::Service;
use lb_common::stash::Stash;

/// The backend for a new flow; [`lb_choose`] is asked only when its token does not say.
#[inline(always)]
pub(crate) fn choose(stash: &mut Stash, index: u32, service: u16, found: Found) -> u32 {
    if found == VALID && stash.claim.service == service && is_at_home(stash, service) {
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
pub(crate) extern "C" fn lb_choose(stash: u32, service: u32, found: u32) -> u32 {
    let (Some(entry), Some(stash)) = (SERVICES.get(service), STASHES.get_ptr_mut(stash)) else {
        return u32::from(NOBODY);
    };
    // SAFETY: a map value stays valid, and the caller has its lock.
    let stash = unsafe { &mut *stash };
    let id = service as u16;
    let reason = if found == ANOTHER {
        stash.hash = next_hash(stash.hash);
        Counter::Retried
    } else if found == HASHED {
        Counter::Hashed
    } else if found != VALID {
        Counter::NewSession
    } else if stash.claim.service != id {
        Counter::InvalidToken
    } else {
        stash.hash = stash.claim.hash;
        Counter::Redispatched
    };
    stash.reason = reason as u32;
    let chosen = by_hash(entry, id, stash.hash, |slot| stash.tried.contains(slot));
    stash.hash = chosen.hash;
    chosen.slot
}

/// A backend's slot, or [`NOBODY`], and the hash that led there.
pub(crate) struct Chosen {
    pub(crate) slot: u32,
    pub(crate) hash: u32,
}

/// The ready backend that the Maglev table has at a hash, or a next one that is not ruled out.
#[inline(always)]
pub(crate) fn by_hash(service: &Service, id: u16, hash: u32, ruled_out: impl Fn(u16) -> bool) -> Chosen {
    let start = hash;
    let mut hash = hash;
    let mut turn = 0;
    while turn < WALK && service.maglev_size != 0 {
        let entry = scale(hash, service.maglev_size);
        let Some(block) = MAGLEV.get(service.maglev_base + entry / BLOCK as u32) else { break };
        let slot = block.0[entry as usize % BLOCK];
        if let Some(backend) = BACKENDS.get(u32::from(slot))
            && backend.service == id
            && backend.state == State::Ready as u8
            && !ruled_out(slot)
        {
            return Chosen { slot: u32::from(slot), hash };
        }
        hash = next_hash(hash);
        turn += 1;
    }
    Chosen { slot: u32::from(NOBODY), hash: start }
}
