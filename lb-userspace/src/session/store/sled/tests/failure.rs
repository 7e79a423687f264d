//! Writes that fail, and the store that is opened anew.

use super::*;

#[tokio::test]
async fn a_write_goes_on_when_nobody_waits_for_it() {
    let place = Place::new();
    let store = place.open();
    drop(store.save(id(1), &record(1, "a"), None));
    drop(store);
    assert_eq!(place.open().load(id(1)).await.unwrap(), Some(record(1, "a")));
}

#[tokio::test]
async fn a_reader_never_sees_what_a_failed_batch_wrote() {
    let place = Place::new();
    let (store, _committer) = SledStore::prepare(&place.path(), options()).unwrap();
    store.shared.begin(1, [id(1)].into_iter());
    let bytes = record(1, "lost").encode();
    store.shared.with(|trees| sessions::save(trees, id(1), &bytes, None)).unwrap();
    let finish = async {
        tokio::task::yield_now().await;
        store.shared.with(|trees| sessions::delete(trees, id(1), 1)).unwrap();
        store.shared.reopen();
        store.shared.finish(1, 1);
    };
    let (found, ()) = futures::join!(store.load(id(1)), finish);
    assert_eq!(found.unwrap(), None);
}

#[tokio::test]
async fn a_full_disk_refuses_writes_and_reads_go_on() {
    let place = Place::new();
    let store = place.open();
    let first = record(1, "a");
    store.save(id(1), &first, None).await.unwrap();
    drop(store);
    let full = SledOptions { reserve_bytes: u64::MAX, ..options() };
    let store = SledStore::open_with(&place.path(), full).unwrap();
    let refused = store.save(id(1), &record(2, "b"), Some(1)).await.unwrap_err();
    assert!(matches!(refused, StoreError::NoSpace { .. }), "{refused}");
    assert!(matches!(store.claim(id(1), 1, OTHER, 1).await, Err(StoreError::NoSpace { .. })));
    assert!(matches!(store.next_epoch(1).await, Err(StoreError::NoSpace { .. })));
    assert_eq!(store.load(id(1)).await.unwrap(), Some(first.clone()));
    drop(store);
    let store = place.open();
    assert_eq!(store.load(id(1)).await.unwrap(), Some(first.clone()), "nothing was half-written");
    store.save(id(1), &record(2, "b"), Some(1)).await.unwrap();
}

#[tokio::test]
async fn opened_anew_it_has_all_that_was_acknowledged() {
    let place = Place::new();
    let store = place.open();
    for n in 0..100 {
        store.save(id(n), &record(1, "a"), None).await.unwrap();
    }
    store.shared.reopen();
    for n in 0..100 {
        assert_eq!(store.load(id(n)).await.unwrap(), Some(record(1, "a")));
    }
    store.save(id(0), &record(2, "b"), Some(1)).await.unwrap();
}

/// Counts how often it is told to forget all copies.
#[derive(Default)]
struct Told(AtomicUsize);

impl Copies for Told {
    fn void(&self, _: SessionId) {}

    fn void_all(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A claim may be lost with what was not flushed. Whoever remembers its revision must not take another state for it.
#[tokio::test]
async fn opened_anew_it_has_no_owners_and_no_revision_twice() {
    let place = Place::new();
    let store = place.open();
    let told = Arc::new(Told::default());
    let copies: Arc<dyn Copies> = told.clone();
    for _ in 0..2 {
        store.watch(Arc::downgrade(&copies));
    }
    for n in 1..3 {
        store.save(id(n), &record(1, "a"), None).await.unwrap();
    }
    assert_eq!(store.claim(id(1), 1, OTHER, 77).await.unwrap(), ME);
    store.shared.reopen();
    assert_eq!(told.0.load(Ordering::SeqCst), 1);
    let found = store.load(id(1)).await.unwrap().unwrap();
    assert_eq!((found.revision, found.owner, found.version), (3, Owner::UNSETTLED, 1));
    for late in [1, 2] {
        let lost = store.save(id(1), &Record { revision: late + 1, ..record(2, "late") }, Some(late)).await;
        assert!(matches!(lost, Err(StoreError::Conflict)), "{lost:?}");
    }
    assert_eq!(store.load(id(2)).await.unwrap(), Some(record(1, "a")), "nobody had taken it over");
    // What was flushed is not forgotten, so nothing has to be made up for it.
    assert_eq!(store.claim(id(2), 1, OTHER, 77).await.unwrap(), ME);
    store.save(id(3), &record(1, "a"), None).await.unwrap();
    store.shared.reopen();
    let found = store.load(id(2)).await.unwrap().unwrap();
    assert_eq!((found.revision, found.owner), (2, OTHER));
}

/// Whatever is read just before a write fails for good may be what the failure takes back.
#[tokio::test]
async fn what_was_read_before_a_failure_is_read_again() {
    let place = Place::new();
    let (store, committer) = SledStore::prepare(&place.path(), options()).unwrap();
    let shared = &store.shared;
    let save = |revision| {
        let expected = Some(revision - 1).filter(|revision| *revision > 0);
        let bytes = record(revision, "a").encode();
        shared.with(|trees| sessions::save(trees, id(1), &bytes, expected)).unwrap();
    };
    shared.begin(1, [id(1)].into_iter());
    save(1);
    let found = shared.find(id(1)).unwrap();
    shared.flush().unwrap();
    shared.finish(1, 1);
    assert!(shared.is_durable(id(1), &found).await.unwrap());

    shared.begin(2, [id(1)].into_iter());
    save(2);
    let found = shared.find(id(1)).unwrap();
    shared.reopen();
    shared.finish(2, 1);
    assert!(!shared.is_durable(id(1), &found).await.unwrap(), "nothing is pending any more");
    // Not even when the next batch has come to its end, or is about to.
    shared.begin(3, [id(1)].into_iter());
    let mut later = std::pin::pin!(shared.is_durable(id(1), &found));
    assert!((&mut later).now_or_never().is_none());
    shared.finish(3, 0);
    assert!(!later.await.unwrap());
    drop(committer);
}

#[tokio::test]
async fn the_largest_sessions_stay_inside_the_log() {
    let place = Place::new();
    let store = place.open();
    let mut large = record(1, "");
    large.state.set_as("k", &"x".repeat(MAX_STATE_BYTES - 3)).unwrap();
    assert_eq!(large.state.bytes(), MAX_STATE_BYTES);
    for round in 1..=12 {
        for n in 0..40 {
            let expected = (round > 1).then(|| round - 1);
            store
                .save(id(n), &Record { version: round, revision: round, ..large.clone() }, expected)
                .await
                .unwrap();
        }
    }
    let blobs = std::fs::read_dir(place.path().join("blobs")).unwrap().count();
    assert_eq!(blobs, 0, "what is beside the log is not made durable by a flush");
    let mut huge = record(1, "");
    huge.state.set_as("k", &"x".repeat(2 * MAX_STATE_BYTES)).unwrap();
    assert!(matches!(store.save(id(99), &huge, None).await, Err(StoreError::RecordSize { .. })));
    drop(store);
    assert_eq!(place.open().load(id(39)).await.unwrap().unwrap().version, 12);
}

/// Bounds the size of files that this process writes, in bytes; the kernel refuses what goes beyond, as a full disk
/// does.
pub(super) fn limit_file_size(bytes: libc::rlim_t) {
    let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: `limit` is a valid rlimit, and ignoring a signal installs no handler.
    let result = unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        libc::setrlimit(libc::RLIMIT_FSIZE, &limit)
    };
    assert_eq!(result, 0);
}

#[tokio::test]
#[ignore = "limits its whole process; a_failed_write_is_recovered_from runs it in one of its own"]
async fn failed_write_in_a_process_of_its_own() {
    let place = Place::new();
    let store = place.open();
    let mut large = record(1, "");
    large.state.set_as("k", &"x".repeat(MAX_STATE_BYTES - 3)).unwrap();
    limit_file_size(20 << 20);
    let mut acknowledged = 0;
    let error = loop {
        match store.save(id(acknowledged), &large, None).await {
            Ok(_) => acknowledged += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, StoreError::Failed(_)), "{error}");
    assert!(acknowledged > 50, "{acknowledged}");
    limit_file_size(libc::RLIM_INFINITY);
    store.save(id(1_000_000), &large, None).await.unwrap();
    for n in 0..acknowledged {
        assert_eq!(store.load(id(n)).await.unwrap().as_ref(), Some(&large), "{n}");
    }
}

/// Runs an ignored test of the sled store in a process of its own.
pub(super) fn in_its_own_process(test: &str) {
    let name = format!("session::store::sled::tests::{test}");
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", &name])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
}

#[test]
fn a_failed_write_is_recovered_from() {
    in_its_own_process("failure::failed_write_in_a_process_of_its_own");
}
