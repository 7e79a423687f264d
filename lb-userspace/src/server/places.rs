//! Who may have how many connections to one server.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

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
}

/// The connections of each client.
#[derive(Clone, Debug, Default)]
pub(super) struct Places(Arc<Mutex<HashMap<IpAddr, usize>>>);

/// One of them, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Places,
    client: IpAddr,
}

impl Places {
    /// `None` when the client has `most` already.
    pub(super) fn take(&self, client: IpAddr, most: usize) -> Option<Place> {
        let mut clients = self.0.lock();
        let taken = clients.entry(client).or_default();
        if *taken >= most {
            return None;
        }
        *taken += 1;
        Some(Place { places: self.clone(), client })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut clients = self.places.0.lock();
        if let Some(taken) = clients.get_mut(&self.client) {
            *taken -= 1;
            if *taken == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

impl ConnectionCounters {
    /// Names and values, for people.
    pub fn values(&self) -> [(&'static str, u64); 2] {
        [
            ("client_connections_refused", self.client_refused.load(Ordering::Relaxed)),
            ("server_connections_full", self.full.load(Ordering::Relaxed)),
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
        assert!(places.0.lock().is_empty());
    }
}
