//! A server's cache together with the work under way on it, and the list of all such caches in this process.
//!
//! A copy must not be put into the cache by someone who read it before another server took the session over. So each
//! piece of work on a session takes a mark first; taking over voids the marks, and a copy with a void mark is not kept.

use super::fault::{Fault, armed};
use super::{Copies, Owner, Record, SessionCache};
use lb_common::token::SessionId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, Weak};
use tokio::sync::OwnedMutexGuard;

/// The cache of one server instance.
pub struct Shelf(Mutex<Inner>);

struct Inner {
    cache: SessionCache,
    flights: HashMap<SessionId, Flight>,
}

/// A session that someone works on.
#[derive(Default)]
struct Flight {
    /// Those who work on it take turns.
    gate: Arc<tokio::sync::Mutex<()>>,
    users: usize,
    /// How often another server took the session over meanwhile.
    voids: u64,
}

/// State of the world before a session was read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mark(u64);

impl Shelf {
    pub fn new(cache: SessionCache) -> Arc<Self> {
        Arc::new(Self(Mutex::new(Inner { cache, flights: HashMap::new() })))
    }

    /// The copy that `instance` loaded, if there is one.
    pub fn get(&self, id: SessionId, instance: Owner) -> Option<Arc<Record>> {
        self.0.lock().cache.get(id, instance)
    }

    /// Begins work on a session.
    pub fn join(self: &Arc<Self>, id: SessionId) -> Work {
        let mut inner = self.0.lock();
        let flight = inner.flights.entry(id).or_default();
        flight.users += 1;
        Work { shelf: self.clone(), id, gate: flight.gate.clone() }
    }

    /// Removes the copy of a session that another server has taken over or ended, and whatever is about to become one.
    pub fn void(&self, id: SessionId) {
        let mut inner = self.0.lock();
        inner.cache.remove(id);
        if let Some(flight) = inner.flights.get_mut(&id) {
            flight.voids += 1;
        }
    }

    /// The same for every session.
    pub fn void_all(&self) {
        let mut inner = self.0.lock();
        inner.cache.clear();
        for flight in inner.flights.values_mut() {
            flight.voids += 1;
        }
    }

    /// Entries and bytes in the cache.
    pub fn usage(&self) -> (usize, usize) {
        let inner = self.0.lock();
        (inner.cache.len(), inner.cache.bytes())
    }
}

/// Work on one session; over when dropped.
pub struct Work {
    shelf: Arc<Shelf>,
    id: SessionId,
    gate: Arc<tokio::sync::Mutex<()>>,
}

impl Work {
    /// Waits until nobody else works on this session in this server.
    pub async fn turn(&self) -> OwnedMutexGuard<()> {
        self.gate.clone().lock_owned().await
    }

    /// To be taken before the database is read or written.
    pub fn mark(&self) -> Mark {
        Mark(self.shelf.0.lock().flights[&self.id].voids)
    }

    /// Keeps a copy, unless another server has taken the session over since the mark.
    pub fn keep(&self, mark: Mark, record: Arc<Record>) {
        let mut inner = self.shelf.0.lock();
        if inner.flights[&self.id].voids == mark.0 {
            inner.cache.put(self.id, record);
        }
    }

    /// Forgets the copy.
    pub fn forget(&self) {
        self.shelf.0.lock().cache.remove(self.id);
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut inner = self.shelf.0.lock();
        let flight = inner.flights.get_mut(&self.id).expect("a flight lives as long as its users");
        flight.users -= 1;
        if flight.users == 0 {
            inner.flights.remove(&self.id);
        }
    }
}

/// All caches of the servers in this process.
#[derive(Default)]
pub struct Peers(Mutex<Vec<Weak<Shelf>>>);

impl Peers {
    /// Adds a server's cache, which is there until the server is gone.
    pub fn join(&self, shelf: &Arc<Shelf>) {
        let mut shelves = self.0.lock();
        shelves.retain(|shelf| shelf.strong_count() > 0);
        shelves.push(Arc::downgrade(shelf));
    }

    /// Voids a session at every server but one.
    pub fn void_others(&self, id: SessionId, except: &Arc<Shelf>) {
        if armed(Fault::SkipInvalidate) {
            return;
        }
        let shelves = self.0.lock();
        for shelf in shelves.iter().filter_map(Weak::upgrade) {
            if !Arc::ptr_eq(&shelf, except) {
                shelf.void(id);
            }
        }
    }
}

impl Copies for Peers {
    fn void(&self, id: SessionId) {
        let shelves = self.0.lock();
        shelves.iter().filter_map(Weak::upgrade).for_each(|shelf| shelf.void(id));
    }

    fn void_all(&self) {
        let shelves = self.0.lock();
        shelves.iter().filter_map(Weak::upgrade).for_each(|shelf| shelf.void_all());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Receipts, State};

    const ME: Owner = Owner { slot: 1, epoch: 1 };
    const ID: SessionId = SessionId([9; 16]);

    fn shelf() -> Arc<Shelf> {
        Shelf::new(SessionCache::new(8, 1 << 20))
    }

    fn record() -> Arc<Record> {
        let state = State::default();
        Arc::new(Record {
            version: 1,
            revision: 1,
            service: 1,
            owner: ME,
            created: 0,
            expires: u64::MAX,
            receipts: Receipts::default(),
            state,
        })
    }

    #[test]
    fn what_was_read_before_a_takeover_is_not_kept() {
        let shelf = shelf();
        let work = shelf.join(ID);
        let mark = work.mark();
        shelf.void(ID);
        work.keep(mark, record());
        assert_eq!(shelf.get(ID, ME), None);
        work.keep(work.mark(), record());
        assert!(shelf.get(ID, ME).is_some());
    }

    #[test]
    fn a_takeover_voids_every_server_but_the_new_owner() {
        let peers = Peers::default();
        let shelves = [shelf(), shelf(), shelf()];
        for shelf in &shelves {
            peers.join(shelf);
            let work = shelf.join(ID);
            work.keep(work.mark(), record());
        }
        peers.void_others(ID, &shelves[1]);
        assert_eq!(shelves.each_ref().map(|shelf| shelf.get(ID, ME).is_some()), [false, true, false]);
    }

    #[test]
    fn nothing_is_left_of_finished_work_or_of_servers_that_are_gone() {
        let (peers, shelf) = (Peers::default(), shelf());
        drop((shelf.join(ID), shelf.join(ID)));
        assert!(shelf.0.lock().flights.is_empty());
        peers.join(&shelf);
        drop(shelf);
        peers.join(&self::shelf());
        assert_eq!(peers.0.lock().len(), 1);
    }
}
