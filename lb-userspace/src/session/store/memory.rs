//! A store in the memory of the process, for tests and for trying things out. **Nothing in it is durable and nobody
//! shares it:** all sessions end with the process, and two processes never see each other's. Behind a balancer with
//! more than one backend, and wherever state may not be lost, use another store.

use super::{Answer, Cursor, Entry, Given, SessionStore, Slice, StoreError, StoreState, Swept};
use crate::session::{Owner, Record};
use futures::FutureExt;
use lb_common::token::SessionId;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use tokio::sync::broadcast;

const MAX_NAME: usize = 255;

/// [`SessionStore`] in memory: **neither durable nor shared**, whatever the trait promises of others.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().build().unwrap().block_on(async {
/// use lb_userspace::session::{MemoryStore, SessionStore};
///
/// let store = MemoryStore::new();
/// let service = store.service_id("shop").await?;
/// let slot = store.slot("shop", "web1").await?;
/// assert_eq!((service, slot, store.next_epoch(slot).await?), (1, 0, 1));
/// # Ok::<_, lb_userspace::session::StoreError>(())
/// # }).unwrap();
/// ```
pub struct MemoryStore {
    inner: Mutex<Inner>,
    /// Heard by everyone who uses this store, who gave it out included.
    epochs: broadcast::Sender<(u16, u32)>,
}

#[derive(Default)]
struct Inner {
    sessions: BTreeMap<[u8; 16], Record>,
    epochs: BTreeMap<u16, u32>,
    services: BTreeMap<String, u16>,
    slots: BTreeMap<(String, String), u16>,
}

impl MemoryStore {
    /// An empty one.
    pub fn new() -> Self {
        Self { inner: Mutex::default(), epochs: broadcast::Sender::new(64) }
    }

    fn answer<'a, T: Send + 'a>(
        &self,
        work: impl FnOnce(&mut Inner) -> Result<T, StoreError>,
    ) -> Answer<'a, T> {
        let done = work(&mut self.inner.lock());
        async move { done }.boxed()
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl Inner {
    /// The session, if it has the expected revision.
    fn expected(&self, id: SessionId, revision: Option<u64>) -> Result<Option<&Record>, StoreError> {
        let found = self.sessions.get(&id.0);
        if found.map(|record| record.revision) == revision { Ok(found) } else { Err(StoreError::Conflict) }
    }

    fn named_slots(&self) -> Vec<(String, String, u16)> {
        self.slots
            .iter()
            .map(|((service, backend), slot)| (service.clone(), backend.clone(), *slot))
            .collect()
    }

    fn from(&self, after: Option<SessionId>) -> impl Iterator<Item = (SessionId, &Record)> {
        let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.0));
        self.sessions.range((from, Bound::Unbounded)).map(|(id, record)| (SessionId(*id), record))
    }
}

impl SessionStore for MemoryStore {
    fn load(&self, id: SessionId) -> Answer<'_, Option<Record>> {
        self.answer(|inner| Ok(inner.sessions.get(&id.0).cloned()))
    }

    fn save<'a>(
        &'a self,
        id: SessionId,
        record: &Record,
        expected: Option<u64>,
    ) -> Answer<'a, Option<Owner>> {
        self.answer(|inner| {
            let before = inner.expected(id, expected)?.map(|record| record.owner);
            inner.sessions.insert(id.0, record.clone());
            Ok(before)
        })
    }

    fn claim(&self, id: SessionId, expected: u64, owner: Owner, expires: u64) -> Answer<'_, Owner> {
        self.answer(|inner| {
            inner.expected(id, Some(expected))?;
            let record = inner.sessions.get_mut(&id.0).expect("it was found just now");
            let before = std::mem::replace(&mut record.owner, owner);
            record.expires = expires;
            record.revision += 1;
            Ok(before)
        })
    }

    fn delete(&self, id: SessionId, expected: u64) -> Answer<'_, ()> {
        self.answer(|inner| {
            inner.expected(id, Some(expected))?;
            inner.sessions.remove(&id.0);
            Ok(())
        })
    }

    fn sweep(&self, now: u64, after: Option<SessionId>, slice: usize) -> Answer<'_, Swept> {
        self.answer(|inner| {
            let mut swept = Swept::default();
            let mut expired = Vec::new();
            for (id, record) in inner.from(after).take(slice) {
                swept.examined += 1;
                swept.after = Some(id);
                if record.is_expired(now) {
                    expired.push(id);
                }
            }
            swept.removed = expired.len();
            expired.iter().for_each(|id| drop(inner.sessions.remove(&id.0)));
            if swept.examined < slice {
                swept.after = None;
            }
            Ok(swept)
        })
    }

    fn count(&self) -> Answer<'_, u64> {
        self.answer(|inner| Ok(inner.sessions.len() as u64))
    }

    fn next_epoch(&self, slot: u16) -> Answer<'_, u32> {
        self.answer(|inner| {
            let epoch = inner.epochs.entry(slot).or_default();
            *epoch = epoch.checked_add(1).ok_or(StoreError::Exhausted("epoch of that slot"))?;
            // An error says that nobody listens.
            let _ = self.epochs.send((slot, *epoch));
            Ok(*epoch)
        })
    }

    fn service_id(&self, service: &str) -> Answer<'_, u16> {
        self.answer(|inner| {
            check(service)?;
            assign(&mut inner.services, service.to_owned(), 1, "service id")
        })
    }

    fn slot(&self, service: &str, backend: &str) -> Answer<'_, u16> {
        self.answer(|inner| {
            check(service)?;
            check(backend)?;
            assign(&mut inner.slots, (service.to_owned(), backend.to_owned()), 0, "slot")
        })
    }

    fn slots(&self) -> Answer<'_, Vec<(String, String, u16)>> {
        self.answer(|inner| Ok(inner.named_slots()))
    }

    fn given(&self) -> Answer<'_, Given> {
        self.answer(|inner| {
            Ok(Given {
                services: inner.services.clone(),
                slots: inner.named_slots(),
                epochs: inner.epochs.iter().map(|(slot, epoch)| (*slot, *epoch)).collect(),
            })
        })
    }

    fn adopt(&self, given: Given) -> Answer<'_, ()> {
        self.answer(|inner| {
            let new = given.new_services(&inner.services)?;
            for (service, _) in &new {
                check(service)?;
            }
            for (service, id) in new {
                inner.services.insert(service.to_owned(), id);
            }
            for (service, backend, slot) in &given.slots {
                if !inner.slots.values().any(|taken| taken == slot) {
                    inner.slots.entry((service.clone(), backend.clone())).or_insert(*slot);
                }
            }
            for (slot, epoch) in given.epochs {
                let last = inner.epochs.entry(slot).or_default();
                *last = epoch.max(*last);
            }
            Ok(())
        })
    }

    fn forget_slot(&self, service: &str, backend: &str) -> Answer<'_, ()> {
        self.answer(|inner| {
            // Its epoch stays: a token of the forgotten backend must not fit the next one there.
            inner.slots.remove(&(service.to_owned(), backend.to_owned()));
            Ok(())
        })
    }

    fn forget_service(&self, service: &str) -> Answer<'_, ()> {
        self.answer(|inner| {
            if let Some(id) = inner.services.remove(service) {
                inner.sessions.retain(|_, record| record.service != id);
            }
            Ok(())
        })
    }

    fn scan(&self, from: Option<Cursor>, slice: usize) -> Answer<'_, Slice> {
        self.answer(|inner| {
            let after = from.map(|Cursor(at)| {
                SessionId::from_hex(at.as_bytes()).ok_or_else(|| {
                    StoreError::Failed(format!("{at:?} is no place where a scan of this store could go on"))
                })
            });
            let entries: Vec<_> = inner
                .from(after.transpose()?)
                .take(slice)
                .map(|(id, record)| Entry { id: Some(id), key: id.to_string(), record: Ok(record.clone()) })
                .collect();
            let more = entries.len() == slice;
            let next = entries.last().filter(|_| more).map(|entry| Cursor(entry.key.clone()));
            Ok(Slice { entries, next })
        })
    }

    fn epochs(&self) -> Option<broadcast::Receiver<(u16, u32)>> {
        Some(self.epochs.subscribe())
    }

    fn state(&self) -> StoreState {
        StoreState {
            place: "memory".into(),
            available: true,
            detail: Some("neither durable nor shared: all sessions end with this process".into()),
        }
    }
}

/// What `key` was given, or the smallest number from `first` on that nothing has.
fn assign<K: Ord>(
    given: &mut BTreeMap<K, u16>,
    key: K,
    first: u16,
    what: &'static str,
) -> Result<u16, StoreError> {
    if let Some(number) = given.get(&key) {
        return Ok(*number);
    }
    let taken: BTreeSet<u16> = given.values().copied().collect();
    let free = (first..=u16::MAX).find(|n| !taken.contains(n)).ok_or(StoreError::Exhausted(what))?;
    given.insert(key, free);
    Ok(free)
}

fn check(name: &str) -> Result<(), StoreError> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(StoreError::Name(name.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Receipts, State};
    use futures::executor::block_on;

    const ME: Owner = Owner { slot: 1, epoch: 1 };
    const OTHER: Owner = Owner { slot: 2, epoch: 5 };

    fn id(n: u8) -> SessionId {
        SessionId([n; 16])
    }

    fn record(revision: u64, expires: u64) -> Record {
        let state = State::default();
        let receipts = Receipts::default();
        Record { version: revision, revision, service: 1, owner: ME, created: 0, expires, receipts, state }
    }

    #[test]
    fn a_change_takes_effect_on_the_revision_that_it_is_based_on_alone() {
        let store = MemoryStore::new();
        let conflict = |result: Result<Option<Owner>, StoreError>| {
            assert!(matches!(result, Err(StoreError::Conflict)), "{result:?}");
        };
        conflict(block_on(store.save(id(1), &record(2, 9), Some(1))));
        assert_eq!(block_on(store.save(id(1), &record(1, 9), None)).unwrap(), None);
        conflict(block_on(store.save(id(1), &record(1, 9), None)));
        assert_eq!(block_on(store.claim(id(1), 1, OTHER, 77)).unwrap(), ME);
        let claimed = Record { revision: 2, owner: OTHER, ..record(1, 77) };
        assert_eq!(block_on(store.load(id(1))).unwrap(), Some(claimed));
        conflict(block_on(store.save(id(1), &record(2, 9), Some(1))));
        conflict(block_on(store.claim(id(1), 1, ME, 9)).map(Some));
        assert_eq!(block_on(store.save(id(1), &record(3, 9), Some(2))).unwrap(), Some(OTHER));
        conflict(block_on(store.delete(id(1), 2)).map(|()| None));
        block_on(store.delete(id(1), 3)).unwrap();
        assert_eq!(block_on(store.load(id(1))).unwrap(), None);
    }

    #[test]
    fn sweeps_and_scans_go_through_everything_in_slices() {
        let store = MemoryStore::new();
        for n in 0..10 {
            block_on(store.save(id(n), &record(1, u64::from(n)), None)).unwrap();
        }
        let (mut after, mut removed) = (None, 0);
        loop {
            let swept = block_on(store.sweep(5, after, 3)).unwrap();
            removed += swept.removed;
            match swept.after {
                Some(next) => after = Some(next),
                None => break,
            }
        }
        assert_eq!((removed, block_on(store.count()).unwrap()), (6, 4));
        let (mut from, mut found) = (None, Vec::new());
        loop {
            let slice = block_on(store.scan(from, 3)).unwrap();
            found.extend(slice.entries.into_iter().filter_map(|entry| entry.id));
            match slice.next {
                Some(next) => from = Some(next),
                None => break,
            }
        }
        assert_eq!(found, (6..10).map(id).collect::<Vec<_>>());
        assert!(block_on(store.scan(Some(Cursor("x".into())), 3)).is_err());
    }

    #[test]
    fn names_keep_their_numbers_and_epochs_outlive_slots() {
        let store = MemoryStore::new();
        assert_eq!(block_on(store.slot("shop", "a")).unwrap(), 0);
        assert_eq!(block_on(store.slot("shop", "b")).unwrap(), 1);
        assert_eq!(block_on(store.slot("shop", "a")).unwrap(), 0);
        assert_eq!(block_on(store.next_epoch(0)).unwrap(), 1);
        block_on(store.forget_slot("shop", "a")).unwrap();
        assert_eq!(block_on(store.slots()).unwrap(), [("shop".into(), "b".into(), 1)]);
        assert_eq!(block_on(store.slot("shop", "c")).unwrap(), 0);
        assert_eq!(block_on(store.next_epoch(0)).unwrap(), 2);
        assert!(matches!(block_on(store.service_id("")), Err(StoreError::Name(_))));
        assert_eq!(block_on(store.service_id("shop")).unwrap(), 1);
        block_on(store.save(id(1), &record(1, 9), None)).unwrap();

        let other = MemoryStore::new();
        block_on(other.adopt(block_on(store.given()).unwrap())).unwrap();
        assert_eq!(block_on(other.given()).unwrap(), block_on(store.given()).unwrap());
        let third = MemoryStore::new();
        block_on(third.service_id("other")).unwrap();
        let refused = block_on(third.adopt(block_on(store.given()).unwrap()));
        assert!(matches!(refused, Err(StoreError::ServiceId { .. })), "{refused:?}");

        block_on(store.forget_service("shop")).unwrap();
        assert_eq!(block_on(store.count()).unwrap(), 0, "its sessions went with it");
    }
}
