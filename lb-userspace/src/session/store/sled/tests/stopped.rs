//! A disk that fails, or a panic: the store acknowledges nothing more, and says so.

use super::*;
use std::time::Duration;

/// What another process finds; this one has the files for ever.
fn restarted(place: &Place) -> (Place, SledStore) {
    let copy = torn::restore(&torn::image(&place.path()));
    let store = copy.open();
    (copy, store)
}

async fn is_stopped(store: &SledStore, why: &str) {
    let reason = tokio::time::timeout(Duration::from_secs(10), store.stops()).await.unwrap();
    assert!(matches!(reason, StoreError::Stopped { .. }) && reason.to_string().contains(why), "{reason}");
    let state = store.state();
    assert!(!state.available && state.detail.unwrap().contains(why));
    for _ in 0..2 {
        assert!(store.save(id(9), &record(1, "a"), None).await.is_err(), "acknowledged after the end");
        assert!(store.load(id(1)).await.is_err());
        assert!(store.claim(id(1), 1, OTHER, 7).await.is_err());
        assert!(store.next_epoch(1).await.is_err());
        assert!(store.count().await.is_err());
    }
}

#[tokio::test]
async fn after_a_failed_sync_nothing_is_acknowledged() {
    let place = Place::new();
    let store = place.open();
    store.save(id(1), &record(1, "a"), None).await.unwrap();
    drop(store);
    // What cannot be synced: every flush fails, though sled's own writes succeed.
    let (reader, _writer) = std::io::pipe().unwrap();
    let shared = Shared::open(&place.path(), options()).unwrap();
    let shared = Arc::new(shared.with_log(File::from(std::os::fd::OwnedFd::from(reader))));
    let (queue, committer) = commit::pair(shared.clone());
    let lock = lock(&place.path()).unwrap();
    let time = shared.with(|trees| SessionTime::open(trees, SystemClocks::shared())).unwrap();
    let mut store = SledStore { shared, time, queue: Some(queue), committer: None, _lock: lock };
    store.start(committer).unwrap();
    let error = store.save(id(2), &record(1, "lost"), None).await.unwrap_err();
    assert!(error.to_string().contains("cannot sync"), "{error}");
    is_stopped(&store, "cannot sync").await;
    drop(store);
    let (_copy, store) = restarted(&place);
    assert_eq!(store.load(id(1)).await.unwrap(), Some(record(1, "a")));
    assert_eq!(store.load(id(9)).await.unwrap(), None);
    store.save(id(9), &record(1, "a"), None).await.unwrap();
}

#[tokio::test]
async fn a_panic_of_the_commit_thread_is_the_end_of_the_store() {
    let place = Place::new();
    let store = place.open();
    store.save(id(1), &record(1, "a"), None).await.unwrap();
    let panics =
        store.queue().submit(Touches::default(), |_| -> Result<(), StoreError> { panic!("a test's") });
    assert!(panics.await.is_err());
    is_stopped(&store, "a test's").await;
    drop(store);
    assert_eq!(restarted(&place).1.load(id(1)).await.unwrap(), Some(record(1, "a")));
}

#[tokio::test]
async fn a_panic_of_a_read_is_the_end_of_the_store() {
    let place = Place::new();
    let store = place.open();
    store.save(id(1), &record(1, "a"), None).await.unwrap();
    let panics = store.shared.read(|_| -> Result<(), StoreError> { panic!("a test's") });
    assert!(panics.await.is_err());
    is_stopped(&store, "a test's").await;
}

/// The runtime of a server is one thread: whoever waits for the disk must not keep it.
#[tokio::test]
async fn a_slow_disk_keeps_no_runtime_thread() {
    let place = Place::new();
    let store = place.open();
    store.save(id(1), &record(1, "a"), None).await.unwrap();
    let held = store.shared.hold();
    let requests = async {
        futures::join!(store.load(id(1)), store.claim(id(1), 1, OTHER, u64::MAX), store.scan(None, 9))
    };
    let others = async {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert_eq!(store.count().await.unwrap(), 1, "the number needs no disk");
        assert!(!store.state().available, "told without waiting");
        drop(held);
    };
    let ((loaded, claimed, scanned), ()) = futures::join!(requests, others);
    assert!(loaded.is_ok() && claimed.is_ok() && scanned.is_ok());
}
