//! The database behind the sessions: one small trait, so that it can be something else than the embedded one.

pub mod archive;
pub mod memory;
#[cfg(feature = "redis")]
pub mod redis;
#[cfg(feature = "sled")]
pub mod sled;

use super::record::Damage;
use super::{Clock, Owner, Record};
use futures::FutureExt;
use futures::future::BoxFuture;
use lb_common::token::SessionId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::broadcast;

/// Keys and values of a session together can never be larger than this, whatever the configuration says: sled puts
/// what is larger beside its log, where nothing makes it durable.
pub const MAX_STATE_BYTES: usize = 64 * 1024;

/// What every implementation answers with.
pub type Answer<'a, T> = BoxFuture<'a, Result<T, StoreError>>;

/// Where sessions, epochs and ids are kept.
///
/// Every method is atomic. `save`, `delete` and everything about names and epochs is durable before it is
/// acknowledged, and `load` never shows what a crash could still take back.
///
/// A store may be shared by several processes. Then it also keeps their memories apart: once `save`, `claim` or `delete`
/// has answered, no *other* process answers from a copy that it had of that session. Within a process the caller sees to
/// that ([`super::Peers`]).
pub trait SessionStore: Send + Sync + 'static {
    /// The session, expired or not; the caller decides with [`Record::is_expired`]. Its owner is
    /// [`Owner::UNSETTLED`] while another process may answer from a copy of it, whatever the database says.
    fn load(&self, id: SessionId) -> Answer<'_, Option<Record>>;

    /// Writes a session, if the database holds revision `expected` of it now (`None`: no such session). The record's own
    /// revision is the one after that, or 1. Answers with the owner that it had until then.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when it holds another revision. After [`StoreError::Failed`] and
    /// [`StoreError::Unavailable`] it is not known whether the write will be found later.
    fn save<'a>(&'a self, id: SessionId, record: &Record, expected: Option<u64>)
    -> Answer<'a, Option<Owner>>;

    /// Hands a session to `owner` and moves its expiry, if the database holds revision `expected` of it now; it then
    /// holds the one after. Answers with the owner that it had until then. The version stays, for nothing that a client
    /// can see changes; so this need not be durable where a crash ends every server with the database. But as long as
    /// one of them lives, no revision that it may remember comes again.
    fn claim(&self, id: SessionId, expected: u64, owner: Owner, expires: u64) -> Answer<'_, Owner>;

    /// Ends a session, if the database holds revision `expected` of it now. A damaged record has no revision: it is
    /// removed whatever is expected.
    fn delete(&self, id: SessionId, expected: u64) -> Answer<'_, ()>;

    /// Removes sessions that have expired by `now`, looking at no more than `slice` of them, from `after` on.
    fn sweep(&self, now: u64, after: Option<SessionId>, slice: usize) -> Answer<'_, Swept>;

    /// How many sessions there are, expired ones that no sweep has met included.
    fn count(&self) -> Answer<'_, u64>;

    /// How many sessions of a service there are, graves of ended ones and expired ones that no sweep has met included, where the
    /// store keeps that number and need not look. Sessions that are being written may or may not be among them.
    fn count_of(&self, service: u16) -> Option<u64> {
        let _ = service;
        None
    }

    /// The next epoch of a slot: larger than any it ever had, even after the slot was forgotten and given to another
    /// backend. 1 for a new one.
    fn next_epoch(&self, slot: u16) -> Answer<'_, u32>;

    /// The id of a service, 1 or more, the same one for ever; given out when first asked for.
    fn service_id(&self, service: &str) -> Answer<'_, u16>;

    /// The slot of a backend, the same one until it is forgotten; the smallest free one when first asked for. Slots
    /// are counted over all services.
    fn slot(&self, service: &str, backend: &str) -> Answer<'_, u16>;

    /// All slots given out: service, backend, slot.
    fn slots(&self) -> Answer<'_, Vec<(String, String, u16)>>;

    /// Everything that was given out so far. What was given out while this is asked may be missing.
    fn given(&self) -> Answer<'_, Given>;

    /// Gives out what another store gave out, so that tokens of its sessions fit here: ids of services, slots that are
    /// free here, and epochs no smaller than there. Can be repeated.
    ///
    /// # Errors
    /// [`StoreError::ServiceId`] when a service cannot have the id that it had there; nothing was given out then.
    fn adopt(&self, given: Given) -> Answer<'_, ()>;

    /// Frees the slot of a backend that is gone for good.
    fn forget_slot(&self, service: &str, backend: &str) -> Answer<'_, ()>;

    /// Frees the id of a service that is gone for good, and ends all its sessions: a later service may get that id.
    fn forget_service(&self, service: &str) -> Answer<'_, ()>;

    /// All sessions, expired ones included, in slices of about `slice` records; damaged ones are told, not left out. What
    /// is written meanwhile may or may not be among them; what was there all the time is, at least once.
    fn scan(&self, from: Option<Cursor>, slice: usize) -> Answer<'_, Slice>;

    /// From now on `copies` are what this process holds in memory: they are told when another process changes a
    /// session. A store that belongs to one process has nothing to tell.
    fn watch(&self, copies: Weak<dyn Copies>) {
        let _ = copies;
    }

    /// Whether copies in memory may be answered from at this moment: false while another process could change a
    /// session without this one hearing of it, and then until [`Copies::void_all`] has returned. Asked for every answer
    /// from memory, before the copy is looked up.
    fn holds(&self) -> bool {
        true
    }

    /// The time by which sessions expire, in milliseconds since 1970, where the store has one of its own: a clock that does
    /// not jump with that of the machine.
    fn now(&self) -> Option<u64> {
        None
    }

    /// How long a request waits for its turn behind others of the same session, which wait for the store.
    fn patience(&self) -> Duration {
        Duration::from_secs(5)
    }

    /// Epochs that other processes gave out for a slot, as they come, where there can be other processes.
    fn epochs(&self) -> Option<broadcast::Receiver<(u16, u32)>> {
        None
    }

    /// Resolves when the store cannot be used by this process any more, with the reason: the process ends then, and is
    /// started again. Most stores never come to that.
    fn stops(&self) -> BoxFuture<'static, StoreError> {
        futures::future::pending().boxed()
    }

    /// How it is, for people.
    fn state(&self) -> StoreState;
}

/// What a store has given out to names. Tokens are made of it.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Given {
    /// Services and their ids.
    pub services: BTreeMap<String, u16>,
    /// Service, backend, slot.
    pub slots: Vec<(String, String, u16)>,
    /// Slots and the last epoch of each, those that nobody has now included.
    pub epochs: Vec<(u16, u32)>,
}

impl Given {
    /// What `adopt` has to add to the services that are `here`.
    ///
    /// # Errors
    /// [`StoreError::ServiceId`] for the first that cannot have its id.
    pub fn new_services(&self, here: &BTreeMap<String, u16>) -> Result<Vec<(&str, u16)>, StoreError> {
        let mut new = Vec::new();
        for (service, id) in &self.services {
            let refused = |why: String| StoreError::ServiceId { service: service.clone(), id: *id, why };
            match here.get(service) {
                Some(found) if found == id => {}
                Some(found) => return Err(refused(format!("it has id {found} here"))),
                None => match here.iter().find(|(_, taken)| *taken == id) {
                    Some((other, _)) => return Err(refused(format!("service {other} has that id here"))),
                    None => new.push((service.as_str(), *id)),
                },
            }
        }
        Ok(new)
    }
}

/// What a process holds in memory of the sessions in a store.
pub trait Copies: Send + Sync + 'static {
    /// Another process has changed or ended this session: no answer is given from a copy of it once this returns.
    fn void(&self, id: SessionId);

    /// It is not known what other processes have changed: the same for all sessions.
    fn void_all(&self);
}

/// How a store is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreState {
    /// `sled`, `redis` and so on, and where it is.
    pub place: String,
    /// Whether it can be read and written now.
    pub available: bool,
    /// What is wrong, if it is not, or what to know about it: nodes, replicas.
    pub detail: Option<String>,
}

/// Where a scan goes on; only the store that gave it out knows what is in it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cursor(pub String);

/// A slice of a scan.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Slice {
    pub entries: Vec<Entry>,
    /// Where the next slice begins; `None` when this one reached the end.
    pub next: Option<Cursor>,
}

/// A session found by a scan.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// `None` for a key that is no session id.
    pub id: Option<SessionId>,
    /// As stored, for people.
    pub key: String,
    pub record: Result<Record, Damage>,
}

/// What a slice of a sweep did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    pub examined: usize,
    pub removed: usize,
    /// Where the next slice begins; `None` when this one reached the end.
    pub after: Option<SessionId>,
}

/// Why the database did not do what it was asked to.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the session was changed or ended by another writer")]
    Conflict,
    /// Nothing was written.
    #[error("no space left for {path}: {free} bytes free, {reserve} must stay free")]
    NoSpace { path: PathBuf, free: u64, reserve: u64 },
    #[error("store {path} is in use by process {pid}: stop that lbd first, or choose another path")]
    Locked { path: PathBuf, pid: String },
    #[error(
        "store {path} has format {found}, this version reads format {expected}: use the lbd that wrote it, or \
         move it away to begin an empty one"
    )]
    Format { path: PathBuf, found: String, expected: String },
    #[error("cannot open store {path}: {reason}")]
    Open { path: PathBuf, reason: String },
    #[error("the record of session {id} is damaged: {damage}")]
    Damaged { id: SessionId, damage: Damage },
    #[error("the entry for {name} in the store is damaged")]
    DamagedName { name: String },
    #[error("no free {0} is left: forget one that is no longer used")]
    Exhausted(&'static str),
    #[error("service {service} cannot have id {id}, which its tokens name: {why}")]
    ServiceId { service: String, id: u16, why: String },
    #[error("name {0:?} is empty or longer than 255 bytes")]
    Name(String),
    #[error("a record of {bytes} bytes is more than the {limit} that the store takes")]
    RecordSize { bytes: usize, limit: usize },
    #[error("store failed: {0}")]
    Failed(String),
    /// A store on other machines does not answer, or not with the replicas that it must have.
    #[error("store {store} cannot be used now: {reason}")]
    Unavailable { store: String, reason: String },
    /// Nothing is read or written any more by this process: what can be read may not be on the disk.
    #[error("store {path} has stopped until its process is started again: {reason}")]
    Stopped { path: PathBuf, reason: String },
    #[error("the store is closed")]
    Closed,
}

/// Removes expired sessions for as long as it is polled: every `pause` one slice of at most `slice` records, so that
/// nobody waits for a sweep. Where a quarter of a slice had expired, the next one follows at once, so that no rate of new
/// sessions is too high to keep up with.
pub async fn sweep_forever(store: Arc<dyn SessionStore>, clock: Clock, pause: Duration, slice: usize) {
    let mut after = None;
    let mut failing = false;
    let mut ticks = tokio::time::interval(pause);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut at_once = false;
    loop {
        if at_once {
            tokio::task::yield_now().await;
        } else {
            ticks.tick().await;
        }
        at_once = false;
        match store.sweep(clock(), after, slice).await {
            Ok(swept) => {
                after = swept.after;
                at_once = swept.removed > 0 && swept.removed * 4 >= swept.examined;
                failing = false;
                if swept.removed > 0 {
                    tracing::debug!(removed = swept.removed, "expired sessions removed");
                }
            }
            Err(StoreError::Closed) => return,
            // Told once: it is tried again with every tick.
            Err(error) if !failing => {
                failing = true;
                tracing::warn!(%error, "expired sessions cannot be removed now; nobody is shown one all the same");
            }
            Err(_) => {}
        }
    }
}

#[cfg(test)]
pub(crate) mod trial;

#[cfg(test)]
mod tests {
    use super::memory::MemoryStore;
    use super::*;
    use crate::session::{Receipts, State};
    use lb_common::hash::mix64;
    use std::sync::atomic::{AtomicU64, Ordering};

    #[tokio::test(start_paused = true)]
    async fn a_flood_of_expired_sessions_is_removed_without_pauses() {
        let store = Arc::new(MemoryStore::new());
        for n in 0..10_000_u32 {
            let mut id = [0; 16];
            id[..4].copy_from_slice(&n.to_be_bytes());
            let (owner, receipts, state) = (Owner::UNSETTLED, Receipts::default(), State::default());
            let expires = if n % 2 == 0 { 1_000 } else { 2_000 };
            let record =
                Record { version: 1, revision: 1, service: 1, owner, created: 0, expires, receipts, state };
            store.save(SessionId(id), &record, None).await.unwrap();
        }
        let sweeper = sweep_forever(store.clone(), Arc::new(|| 1_500), Duration::from_secs(1), 10);
        let sweeper = tokio::spawn(sweeper);
        // A thousand slices, one a second otherwise.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(store.count().await.unwrap(), 5_000);
        sweeper.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn sessions_that_begin_faster_than_slices_are_swept_do_not_pile_up() {
        const RATE: u64 = 2_000;
        const LIFE: u64 = 10;
        let store = Arc::new(MemoryStore::new());
        let time = Arc::new(AtomicU64::new(0));
        let told = time.clone();
        let clock: Clock = Arc::new(move || told.load(Ordering::SeqCst));
        // A tenth of what begins.
        let sweeper = tokio::spawn(sweep_forever(store.clone(), clock, Duration::from_secs(1), 200));
        let mut most = 0;
        for second in 1..=60 {
            time.store(second * 1000, Ordering::SeqCst);
            for n in 0..RATE {
                let id = SessionId(
                    [mix64(second * RATE + n), mix64(n)].map(u64::to_be_bytes).concat().try_into().unwrap(),
                );
                let (owner, receipts, state) = (Owner::UNSETTLED, Receipts::default(), State::default());
                let expires = (second + LIFE) * 1000;
                let record = Record {
                    version: 1,
                    revision: 1,
                    service: 1,
                    owner,
                    created: 0,
                    expires,
                    receipts,
                    state,
                };
                store.save(id, &record, None).await.unwrap();
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
            most = most.max(store.count().await.unwrap());
        }
        // Those that live, and of what has expired about a third of that.
        assert!(most < RATE * LIFE * 3 / 2, "{most} sessions");
        sweeper.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_expired_is_removed_slice_by_slice() {
        let store = Arc::new(MemoryStore::new());
        for n in 0..50u8 {
            let expires = if n % 5 == 0 { 1_000 } else { 2_000 };
            let (owner, receipts, state) = (Owner::UNSETTLED, Receipts::default(), State::default());
            let record =
                Record { version: 1, revision: 1, service: 1, owner, created: 0, expires, receipts, state };
            store.save(SessionId([n; 16]), &record, None).await.unwrap();
        }
        let sweeper = sweep_forever(store.clone(), Arc::new(|| 1_500), Duration::from_secs(1), 10);
        let sweeper = tokio::spawn(sweeper);
        for left in [50, 48, 46, 44, 42, 40, 40] {
            assert_eq!(store.count().await.unwrap(), left);
            // The clock stands still but for this: the sweeper's first tick is at once.
            tokio::time::sleep(Duration::from_millis(if left == 50 { 500 } else { 1_000 })).await;
        }
        sweeper.abort();
    }
}
