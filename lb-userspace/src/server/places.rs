//! Who may have how many connections to one server.

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Connections that one server keeps open.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Connections {
    /// In all; more wait in the listener's queue.
    pub total: usize,
    /// From one address of a client; more are answered with 429 and closed.
    pub per_client: usize,
}

impl Default for Connections {
    fn default() -> Self {
        Self { total: 8192, per_client: 512 }
    }
}

/// What became of connections, of all servers that share it.
#[derive(Debug, Default)]
pub struct ConnectionCounters {
    /// Closed, because their client had all that one may have.
    pub client_refused: AtomicU64,
    /// Times that a server had no place left and let others wait.
    pub full: AtomicU64,
    /// Closed, because they waited for a request when others needed their places.
    pub made_room: AtomicU64,
}

/// A connection that waits for its client is not closed for others before it has waited so long.
const PATIENCE: Duration = Duration::from_secs(1);
/// One part in so many of all connections is closed at once, so that a queue is soon accepted.
const PART: usize = 16;

/// The connections of one server.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    /// How many each client has.
    clients: HashMap<IpAddr, usize>,
    /// Those that wait for bytes of a request, the longest waiting first.
    waiting: BTreeMap<u64, (Instant, Arc<Request>)>,
    last: u64,
}

/// Asks a connection to close.
#[derive(Debug, Default)]
struct Request {
    open: AtomicBool,
    told: Notify,
}

/// One of them, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    client: IpAddr,
    request: Arc<Request>,
    /// Key among those that wait; 0 while it does not.
    waits: AtomicU64,
}

impl Places {
    /// `None` when the client has `most` already. The connection waits for its first request.
    pub(super) fn take(&self, client: IpAddr, most: usize) -> Option<Place> {
        let mut inner = self.0.lock();
        let taken = inner.clients.entry(client).or_default();
        if *taken >= most {
            return None;
        }
        *taken += 1;
        drop(inner);
        let place = Place { places: self.clone(), client, request: Arc::default(), waits: AtomicU64::new(0) };
        place.waits();
        Some(place)
    }

    /// Asks connections to close that have waited for bytes of their clients for the longest time, with half a request or
    /// none: all of `total` are taken, and others wait in the listener's queue. Returns how many.
    pub(super) fn make_room(&self, total: usize) -> usize {
        let mut inner = self.0.lock();
        let mut asked = 0;
        while asked < (total / PART).max(1)
            && let Some(longest) = inner.waiting.first_entry()
            && longest.get().0.elapsed() >= PATIENCE
        {
            let (_, request) = longest.remove();
            request.open.store(true, Ordering::SeqCst);
            request.told.notify_one();
            asked += 1;
        }
        asked
    }
}

impl Place {
    pub(super) fn client(&self) -> IpAddr {
        self.client
    }

    /// From now on it waits for its client.
    pub(super) fn waits(&self) {
        if self.waits.load(Ordering::SeqCst) == 0 {
            let mut inner = self.places.0.lock();
            inner.last += 1;
            let key = inner.last;
            inner.waiting.insert(key, (Instant::now(), self.request.clone()));
            self.waits.store(key, Ordering::SeqCst);
        }
    }

    /// From now on its client waits, who is answered whatever was asked before.
    pub(super) fn works(&self) {
        let key = self.waits.swap(0, Ordering::SeqCst);
        self.places.0.lock().waiting.remove(&key);
        self.request.open.store(false, Ordering::SeqCst);
    }

    /// Ready when it should close.
    pub(super) async fn asked(&self) {
        while !self.request.open.load(Ordering::SeqCst) {
            self.request.told.notified().await;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut inner = self.places.0.lock();
        inner.waiting.remove(&self.waits.load(Ordering::SeqCst));
        if let Some(taken) = inner.clients.get_mut(&self.client) {
            *taken -= 1;
            if *taken == 0 {
                inner.clients.remove(&self.client);
            }
        }
    }
}

impl ConnectionCounters {
    /// Names and values, for people.
    pub fn values(&self) -> [(&'static str, u64); 3] {
        [
            ("client_connections_refused", self.client_refused.load(Ordering::Relaxed)),
            ("server_connections_full", self.full.load(Ordering::Relaxed)),
            ("waiting_connections_closed", self.made_room.load(Ordering::Relaxed)),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_given_back_and_nobody_is_remembered_without_one() {
        let places = Places::default();
        let (a, b) = (IpAddr::from([10, 0, 0, 1]), IpAddr::from([10, 0, 0, 2]));
        let two: Vec<_> = (0..2).map(|_| places.take(a, 2).unwrap()).collect();
        assert!(places.take(a, 2).is_none());
        assert!(places.take(b, 2).is_some(), "others have theirs");
        drop(two);
        assert!(places.take(a, 2).is_some());
        let inner = places.0.lock();
        assert!(inner.clients.is_empty() && inner.waiting.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn those_make_room_that_have_waited_for_the_longest_time() {
        let places = Places::default();
        let all: Vec<_> = (0..20).map(|_| places.take(IpAddr::from([10, 0, 0, 1]), 99).unwrap()).collect();
        let asked = |place: &Place| place.request.open.load(Ordering::SeqCst);
        assert_eq!(places.make_room(32), 0, "nobody has waited long enough");
        tokio::time::advance(PATIENCE).await;
        all[0].works();
        all[1].works();
        all[1].waits();
        assert_eq!(places.make_room(32), 2);
        assert_eq!([0, 1, 2, 3, 4].map(|n| asked(&all[n])), [false, false, true, true, false]);
        all[2].asked().await;
        // A request came all the same.
        all[3].works();
        assert!(!asked(&all[3]));
        assert_eq!(places.make_room(16 * 99), 16, "one works, one has just begun to wait, two were asked");
        drop(all);
        assert!(places.0.lock().waiting.is_empty());
    }
}
