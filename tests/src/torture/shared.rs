//! What the clients of a round share: sessions, and every token of them that anyone was ever given.

use super::wire::Ticket;
use crate::history::Operation;
use lb_common::token::SessionId;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

/// Tokens of a session that are remembered; old ones are what is interesting.
const TICKETS: usize = 12;

/// A session as the clients know it.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) id: SessionId,
    /// The oldest first, one for each instance.
    pub(super) tickets: Vec<Ticket>,
    /// The latest version that anyone was told.
    pub(super) version: u64,
}

impl Known {
    fn new(ticket: Ticket, version: u64) -> Self {
        Self { id: ticket.session, tickets: vec![ticket], version }
    }

    fn learn(&mut self, ticket: Ticket) {
        self.tickets.retain(|known| known.instance != ticket.instance);
        if self.tickets.len() == TICKETS {
            self.tickets.remove(0);
        }
        self.tickets.push(ticket);
    }
}

/// Shared by the clients of one round.
pub(super) struct Shared {
    begin: Instant,
    over: AtomicBool,
    orders: AtomicU64,
    /// Sessions that are in use; one that has ended is replaced by whoever finds out.
    places: Vec<Mutex<Known>>,
    /// A token of each session that ever was.
    all: Mutex<BTreeMap<SessionId, Ticket>>,
}

impl Shared {
    /// `begin` is the beginning of the run, which all times count from.
    pub(super) fn new(begin: Instant, sessions: Vec<(Ticket, u64)>) -> Self {
        let all = sessions.iter().map(|(ticket, _)| (ticket.session, ticket.clone())).collect();
        let places = sessions.into_iter().map(|(ticket, version)| Mutex::new(Known::new(ticket, version)));
        Self {
            begin,
            over: AtomicBool::new(false),
            orders: AtomicU64::new(0),
            places: places.collect(),
            all: Mutex::new(all),
        }
    }

    /// Nanoseconds since the run began.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_nanos()).expect("a run is shorter than 584 years")
    }

    /// Tells the clients to come to an end.
    pub(super) fn finish(&self) {
        self.over.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    pub(super) fn places(&self) -> usize {
        self.places.len()
    }

    /// A number that no other order of this round has.
    pub(super) fn order(&self) -> u64 {
        self.orders.fetch_add(1, Ordering::Relaxed)
    }

    /// The session at a place, as it is known now.
    pub(super) fn at(&self, place: usize) -> Known {
        locked(&self.places[place]).clone()
    }

    /// A client was told something of a session that it took from a place.
    pub(super) fn told(
        &self,
        place: usize,
        operation: &Operation,
        ticket: Option<Ticket>,
        version: Option<u64>,
    ) {
        if let Some(ticket) = &ticket {
            locked(&self.all).insert(ticket.session, ticket.clone());
        }
        let mut known = locked(&self.places[place]);
        if known.id == operation.session {
            known.version = known.version.max(version.unwrap_or(0));
            if let Some(ticket) = ticket {
                known.learn(ticket);
            }
        }
    }

    /// A session was found to have ended, and `ticket` is of the one that began in its place, with this version.
    pub(super) fn replace(&self, place: usize, ended: SessionId, ticket: Ticket, version: u64) {
        locked(&self.all).insert(ticket.session, ticket.clone());
        let mut known = locked(&self.places[place]);
        if known.id == ended {
            *known = Known::new(ticket, version);
        }
    }

    /// A token of every session that anyone has heard of.
    pub(super) fn all(&self) -> Vec<Ticket> {
        locked(&self.all).values().cloned().collect()
    }
}

/// Nothing that is done under these locks can panic.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("nobody panics while holding it")
}
