//! Which backend a new flow goes to: DESIGN of the steering order in `README.md`, "How a backend is chosen".

use crate::maps::{BACKENDS, MAGLEV};
use crate::stash::Tried;
use crate::token::Found;
use lb_common::backend::{Backend, State};
use lb_common::counter::Counter;
use lb_common::hash::scale;
use lb_common::maglev::{BLOCK, next_hash, session_hash};
use lb_common::service::Service;

/// Entries of a Maglev table that are looked at before giving up.
const WALK: u32 = 32;

/// A backend and why it.
#[derive(Clone, Copy)]
pub(crate) struct Choice {
    pub(crate) slot: u16,
    pub(crate) backend: &'static Backend,
    pub(crate) counter: Counter,
    /// Where a walk for the next backend continues.
    pub(crate) hash: u32,
}

/// The backend for the first payload of a flow whose own hash is `flow_hash`.
#[inline(always)]
pub(crate) fn for_payload(id: u16, service: &Service, found: &Found, flow_hash: u32) -> Option<Choice> {
    let Found::Valid(token) = found else {
        return by_hash(service, id, flow_hash, Counter::NewSession, &Tried::NONE);
    };
    if token.service != id {
        return by_hash(service, id, flow_hash, Counter::InvalidToken, &Tried::NONE);
    }
    let hash = session_hash(&token.session);
    if let Some(backend) = BACKENDS.get(u32::from(token.slot))
        && backend.service == id
        && State::from_bits(backend.state).serves_sessions()
    {
        let stale = backend.epoch != token.epoch;
        let counter = if stale { Counter::StaleInstance } else { Counter::AffinityHit };
        return Some(Choice { slot: token.slot, backend, counter, hash });
    }
    by_hash(service, id, hash, Counter::Redispatched, &Tried::NONE)
}

/// The ready backend that the Maglev table has at a hash, or a next one that was not tried.
#[inline(always)]
pub(crate) fn by_hash(
    service: &Service,
    id: u16,
    hash: u32,
    counter: Counter,
    tried: &Tried,
) -> Option<Choice> {
    if service.maglev_size == 0 {
        return None;
    }
    let mut hash = hash;
    let mut turn = 0;
    while turn < WALK {
        let entry = scale(hash, service.maglev_size);
        let block = MAGLEV.get(service.maglev_base + entry / BLOCK as u32)?;
        let slot = block.0[entry as usize % BLOCK];
        if let Some(backend) = BACKENDS.get(u32::from(slot))
            && backend.service == id
            && backend.state == State::Ready as u8
            && !tried.contains(slot)
        {
            return Some(Choice { slot, backend, counter, hash });
        }
        hash = next_hash(hash);
        turn += 1;
    }
    None
}
