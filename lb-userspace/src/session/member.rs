//! An application's place among the backends of a service: its ids, its epoch, and the task that keeps the epoch right.

use super::store::sweep_forever;
use super::{Instance, Limits, Peers, SessionStore, Sessions, StoreError, unix_millis};
use parking_lot::Mutex;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

/// A new epoch is taken no more often than this: each one costs a write, and all that is in the cache.
const PAUSE: Duration = Duration::from_secs(1);
/// So many epochs in a row, none of which lasted so long, are not lbd's doing.
const SUSPICIOUS: (u32, Duration) = (3, Duration::from_secs(5));
/// Expired sessions are removed this often, so many records at a time are looked at. A store that removes them by itself
/// has nothing to do.
const SWEEP: (Duration, usize) = (Duration::from_secs(1), 1000);

/// This process as one backend of a service.
///
/// Names are those of lbd's configuration: the service's, and the backend's (a `[[service.backend]]` with `addr`). The
/// balancer then knows this process's epochs. Start it once and keep it; when it is dropped, the epoch is looked after
/// no more.
///
/// ```
/// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
/// use lb_userspace::session::{Limits, Member, MemoryStore};
/// use std::sync::Arc;
///
/// let member = Member::join(Arc::new(MemoryStore::new()), "shop", "web1").await?;
/// let sessions = member.sessions(Limits::default());
/// assert_eq!(sessions.instance().epoch, 1);
/// # Ok::<_, lb_userspace::session::StoreError>(())
/// # }).unwrap();
/// ```
pub struct Member {
    store: Arc<dyn SessionStore>,
    instance: watch::Receiver<Instance>,
    peers: Arc<Peers>,
    tasks: [JoinHandle<()>; 2],
}

impl Member {
    /// Takes this backend's place: its ids from the store, and an epoch of its own. From then on
    ///
    /// * a newer epoch that another process gives out for this slot is answered by taking one of our own: lbd does that
    ///   when this backend comes back from `down` or `maint`, and what was cached before must not be trusted;
    /// * expired sessions are removed from the store, a slice every second.
    ///
    /// To be called inside a tokio runtime. A process can be several backends: their caches know of each other, as long as
    /// they are given the same store.
    ///
    /// # Errors
    /// [`StoreError`] of the store, [`StoreError::Name`] for names that are empty or too long.
    pub async fn join(
        store: Arc<dyn SessionStore>,
        service: &str,
        backend: &str,
    ) -> Result<Self, StoreError> {
        // Before the epoch is taken: none that comes after it may be missed.
        let epochs = store.epochs();
        let id = store.service_id(service).await?;
        let slot = store.slot(service, backend).await?;
        let epoch = store.next_epoch(slot).await?;
        tracing::info!(service, backend, slot, epoch, "joined");
        let (sender, instance) =
            watch::channel(Instance { service: id, slot, epoch, name: backend.to_owned() });
        let peers = peers_over(&store);
        let (pause, slice) = SWEEP;
        let sweep = sweep_forever(store.clone(), Arc::new(unix_millis), pause, slice);
        let follow = follow(store.clone(), sender, epochs, service.to_owned());
        Ok(Self { store, instance, peers, tasks: [tokio::spawn(sweep), tokio::spawn(follow)] })
    }

    /// Who this process is now.
    pub fn instance(&self) -> watch::Receiver<Instance> {
        self.instance.clone()
    }

    /// The sessions of this backend: an empty cache in front of the store.
    pub fn sessions(&self, limits: Limits) -> Arc<Sessions> {
        Sessions::new(self.instance(), self.store.clone(), limits, self.peers.clone(), Arc::new(unix_millis))
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// A store is used in this process by these servers.
type Known = (Weak<dyn SessionStore>, Weak<Peers>);

/// The servers of this process that use a store: when one of them takes a session over, the copies of the others are
/// void, whoever made them.
fn peers_over(store: &Arc<dyn SessionStore>) -> Arc<Peers> {
    static KNOWN: Mutex<Vec<Known>> = Mutex::new(Vec::new());
    let mut known = KNOWN.lock();
    known.retain(|(store, peers)| store.strong_count() > 0 && peers.strong_count() > 0);
    // A pointer that is kept alive is no other store's.
    let same = |(other, _): &&Known| std::ptr::addr_eq(other.as_ptr(), Arc::as_ptr(store));
    if let Some(peers) = known.iter().find(same).and_then(|(_, peers)| peers.upgrade()) {
        return peers;
    }
    let peers = Arc::new(Peers::default());
    known.push((Arc::downgrade(store), Arc::downgrade(&peers)));
    peers
}

/// Takes a new epoch whenever somebody else took one for our slot.
async fn follow(
    store: Arc<dyn SessionStore>,
    instance: watch::Sender<Instance>,
    epochs: Option<broadcast::Receiver<(u16, u32)>>,
    service: String,
) {
    // A store of one process: nobody else is there.
    let Some(mut epochs) = epochs else { return };
    let Instance { slot, name: backend, mut epoch, .. } = instance.borrow().clone();
    let mut taken = Instant::now();
    let mut short = 0;
    loop {
        match epochs.recv().await {
            Ok((of, newer)) if of == slot && newer > epoch => {}
            Ok(_) => continue,
            // What was missed may have been ours.
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => return,
        }
        let (many, lasting) = SUSPICIOUS;
        short = if taken.elapsed() < lasting { short + 1 } else { 0 };
        if short >= many {
            tracing::warn!(
                service,
                backend,
                slot,
                epoch,
                "somebody takes one epoch after the other for this backend's slot: probably two processes run as this \
                 backend, and all their sessions are reloaded again and again. Give each its own name"
            );
        }
        tokio::time::sleep_until(taken + PAUSE).await;
        epoch = loop {
            match store.next_epoch(slot).await {
                Ok(next) => break next,
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, service, backend, slot, "no new epoch yet, next try soon");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        };
        taken = Instant::now();
        tracing::info!(service, backend, slot, epoch, "new epoch: what was cached is reloaded");
        instance.send_modify(|instance| instance.epoch = epoch);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{MemoryStore, Source, Token};

    async fn join(store: &Arc<MemoryStore>, backend: &str) -> Member {
        Member::join(store.clone(), "shop", backend).await.unwrap()
    }

    #[tokio::test]
    async fn each_process_has_an_epoch_of_its_own() {
        let store = Arc::new(MemoryStore::new());
        let first = join(&store, "a").await;
        let other = join(&store, "b").await;
        let me = first.instance().borrow().clone();
        assert_eq!(me, Instance { service: 1, slot: 0, epoch: 1, name: "a".into() });
        assert_eq!(other.instance().borrow().slot, 1);
        drop(first);
        assert_eq!(join(&store, "a").await.instance().borrow().epoch, 2);
    }

    #[tokio::test]
    async fn members_over_one_store_void_each_others_copies() {
        let stores = [Arc::new(MemoryStore::new()), Arc::new(MemoryStore::new())];
        let members = [join(&stores[0], "a").await, join(&stores[0], "b").await, join(&stores[1], "a").await];
        assert!(Arc::ptr_eq(&members[0].peers, &members[1].peers));
        assert!(!Arc::ptr_eq(&members[0].peers, &members[2].peers));
        let (a, b) = (members[0].sessions(Limits::default()), members[1].sessions(Limits::default()));
        let (seen, ()) = a.write(None, |_| Ok(())).await.unwrap();
        let token = Token { key_id: 0, service: 1, slot: 0, epoch: 1, session: seen.id };
        assert_eq!(a.find(Some(token)).await.unwrap().unwrap().source, Source::Cache);
        assert!(b.end(Some(token)).await.unwrap());
        assert!(a.find(Some(token)).await.unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_epoch_of_somebody_else_is_followed_by_one_of_our_own() {
        let store = Arc::new(MemoryStore::new());
        let member = join(&store, "a").await;
        let sessions = member.sessions(Limits::default());
        let mut instance = member.instance();
        for taken in [2, 4, 6] {
            assert_eq!(store.next_epoch(0).await.unwrap(), taken);
            store.next_epoch(9).await.unwrap();
            instance.wait_for(|instance| instance.epoch == taken + 1).await.unwrap();
            assert_eq!(sessions.instance().epoch, taken + 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_processes_of_one_name_take_epochs_at_a_bounded_rate() {
        let store = Arc::new(MemoryStore::new());
        let members = [join(&store, "a").await, join(&store, "a").await];
        tokio::time::sleep(Duration::from_secs(60)).await;
        let epoch = store.next_epoch(0).await.unwrap();
        assert!((30..=130).contains(&epoch), "{epoch} epochs in a minute");
        drop(members);
    }
}
