//! The sessions that one server holds in memory: least recently used go first, bounded by entries and by bytes.
//!
//! It knows nothing of time or of other servers; whether a copy may be used is decided in [`super::sessions`].

use super::{Owner, Record};
use lb_common::token::SessionId;
use lru::LruCache;
use std::sync::Arc;

/// A cache of whole records, each with the instance that loaded it.
pub struct SessionCache {
    entries: LruCache<SessionId, Arc<Record>>,
    bytes: usize,
    max_entries: usize,
    max_bytes: usize,
}

impl SessionCache {
    /// A cache that never holds more than `max_entries` records of `max_bytes` bytes together.
    pub fn new(max_entries: usize, max_bytes: usize) -> Self {
        Self { entries: LruCache::unbounded(), bytes: 0, max_entries, max_bytes }
    }

    /// The copy of a session, if this very instance loaded it. A copy of an earlier incarnation is dropped: the
    /// database may have moved on while that one could not hear of it.
    pub fn get(&mut self, id: SessionId, instance: Owner) -> Option<Arc<Record>> {
        let record = self.entries.get(&id)?;
        if record.owner == instance {
            return Some(record.clone());
        }
        self.remove(id);
        None
    }

    /// Puts a copy in place of the one before, if there was one. A record larger than the whole cache is not kept,
    /// and neither is what it replaces.
    pub fn put(&mut self, id: SessionId, record: Arc<Record>) {
        self.remove(id);
        let weight = record.weight();
        if weight > self.max_bytes || self.max_entries == 0 {
            return;
        }
        while self.entries.len() >= self.max_entries || self.bytes + weight > self.max_bytes {
            let (_, oldest) = self.entries.pop_lru().expect("a cache that is too full is not empty");
            self.bytes -= oldest.weight();
        }
        self.bytes += weight;
        self.entries.put(id, record);
    }

    pub fn remove(&mut self, id: SessionId) {
        if let Some(record) = self.entries.pop(&id) {
            self.bytes -= record.weight();
        }
    }

    pub fn clear(&mut self) {
        self.entries.clear();
        self.bytes = 0;
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Bytes of memory that the copies take.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Receipts, State};
    use proptest::prelude::*;

    const ME: Owner = Owner { slot: 1, epoch: 7 };

    fn record(len: usize) -> Arc<Record> {
        let mut state = State::default();
        state.set_as("k", &"x".repeat(len)).unwrap();
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

    fn id(n: u8) -> SessionId {
        SessionId([n; 16])
    }

    #[test]
    fn least_recently_used_goes_first() {
        let mut cache = SessionCache::new(2, usize::MAX);
        cache.put(id(1), record(1));
        cache.put(id(2), record(1));
        assert!(cache.get(id(1), ME).is_some());
        cache.put(id(3), record(1));
        assert!(cache.get(id(2), ME).is_none() && cache.get(id(1), ME).is_some());
    }

    #[test]
    fn a_copy_of_an_earlier_incarnation_is_dropped() {
        let mut cache = SessionCache::new(2, usize::MAX);
        cache.put(id(1), record(1));
        assert!(cache.get(id(1), Owner { epoch: 8, ..ME }).is_none());
        assert!(cache.is_empty() && cache.bytes() == 0);
    }

    #[test]
    fn what_is_larger_than_the_cache_also_removes_what_it_replaces() {
        let mut cache = SessionCache::new(8, 1000);
        cache.put(id(1), record(1));
        cache.put(id(1), record(2000));
        assert!(cache.get(id(1), ME).is_none() && cache.bytes() == 0);
    }

    proptest! {
        #[test]
        fn both_bounds_hold_and_the_last_put_is_there(
            puts in proptest::collection::vec((0u8..20, 0usize..600), 1..80),
        ) {
            let mut cache = SessionCache::new(6, 3000);
            for (n, len) in puts {
                cache.put(id(n), record(len));
                prop_assert!(cache.get(id(n), ME).is_some());
                prop_assert!(cache.len() <= 6 && cache.bytes() <= 3000);
                let sum: usize = cache.entries.iter().map(|(_, record)| record.weight()).sum();
                prop_assert_eq!(cache.bytes(), sum);
            }
        }
    }
}
