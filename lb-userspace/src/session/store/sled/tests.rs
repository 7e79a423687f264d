use super::*;
use crate::session::store::MAX_STATE_BYTES;
use crate::session::{Receipts, State};
use futures::future::join_all;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

mod failure;
mod start;
mod stopped;
mod torn;

const ME: Owner = Owner { slot: 1, epoch: 1 };
const OTHER: Owner = Owner { slot: 2, epoch: 5 };

fn id(n: u32) -> SessionId {
    let mut id = [0; 16];
    id[..4].copy_from_slice(&n.to_be_bytes());
    SessionId(id)
}

fn record(version: u64, value: &str) -> Record {
    let mut state = State::default();
    state.set_as("k", &value).unwrap();
    let (created, expires, receipts) = (0, u64::MAX, Receipts::default());
    Record { version, revision: version, service: 1, owner: ME, created, expires, receipts, state }
}

fn options() -> SledOptions {
    SledOptions { cache_bytes: 16 << 20, reserve_bytes: 0 }
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }
    fn path(&self) -> PathBuf {
        self.0.path().join("store")
    }
    fn open(&self) -> SledStore {
        SledStore::open_with(&self.path(), options()).unwrap()
    }
}

#[tokio::test]
async fn a_save_is_there_after_opening_again() {
    let place = Place::new();
    let store = place.open();
    store.save(id(1), &record(1, "a"), None).await.unwrap();
    store.save(id(1), &record(2, "b"), Some(1)).await.unwrap();
    drop(store);
    let store = place.open();
    assert_eq!(store.load(id(1)).await.unwrap(), Some(record(2, "b")));
    assert_eq!(store.load(id(2)).await.unwrap(), None);
    assert_eq!(store.count().await.unwrap(), 1);
}

#[tokio::test]
async fn only_one_of_many_writers_on_the_same_version_wins() {
    let place = Place::new();
    let store = place.open();
    store.save(id(1), &record(1, "begin"), None).await.unwrap();
    let base = 1;
    let writers = (0..16).map(|n| {
        let next = record(2, &n.to_string());
        let save = store.save(id(1), &next, Some(base));
        async move { save.await.map(|_| next) }
    });
    let results = join_all(writers).await;
    let mut winners = results.iter().filter_map(|r| r.as_ref().ok());
    let winner = winners.next().unwrap();
    assert!(winners.next().is_none());
    assert!(results.iter().filter_map(|r| r.as_ref().err()).all(|e| matches!(e, StoreError::Conflict)));
    assert_eq!(store.load(id(1)).await.unwrap().as_ref(), Some(winner));
}

#[tokio::test]
async fn what_is_not_as_expected_is_a_conflict() {
    let place = Place::new();
    let store = place.open();
    let first = record(1, "a");
    let absent = store.save(id(1), &record(2, "b"), Some(1)).await;
    assert!(matches!(absent, Err(StoreError::Conflict)));
    store.save(id(1), &first, None).await.unwrap();
    assert!(matches!(store.save(id(1), &first, None).await, Err(StoreError::Conflict)));
    assert!(matches!(store.save(id(1), &record(2, "b"), Some(2)).await, Err(StoreError::Conflict)));
    assert!(matches!(store.delete(id(1), 2).await, Err(StoreError::Conflict)));
    assert!(matches!(store.claim(id(1), 2, ME, 1).await, Err(StoreError::Conflict)));
    assert!(matches!(store.claim(id(2), 1, ME, 1).await, Err(StoreError::Conflict)));
    store.delete(id(1), 1).await.unwrap();
    assert!(matches!(store.delete(id(1), 1).await, Err(StoreError::Conflict)));
    assert_eq!(store.load(id(1)).await.unwrap(), None);
}

#[tokio::test]
async fn who_takes_a_session_over_learns_whose_it_was() {
    let place = Place::new();
    let store = place.open();
    let first = record(1, "a");
    assert_eq!(store.save(id(1), &first, None).await.unwrap(), None);
    assert_eq!(store.claim(id(1), 1, OTHER, 77).await.unwrap(), ME);
    let claimed = store.load(id(1)).await.unwrap().unwrap();
    let expected = Record { revision: 2, owner: OTHER, expires: 77, ..first.clone() };
    assert_eq!(claimed, expected, "nothing else changed");
    assert_eq!(store.claim(id(1), 2, OTHER, 88).await.unwrap(), OTHER);
    // Whatever was based on what the former owner saw comes too late.
    assert!(matches!(store.claim(id(1), 1, ME, 99).await, Err(StoreError::Conflict)));
    assert!(matches!(store.save(id(1), &record(2, "b"), Some(1)).await, Err(StoreError::Conflict)));
    let written = Record { revision: 4, ..record(2, "b") };
    assert_eq!(store.save(id(1), &written, Some(3)).await.unwrap(), Some(OTHER));
    assert_eq!(store.load(id(1)).await.unwrap(), Some(written));
}

#[tokio::test]
async fn many_writers_share_a_flush() {
    const WRITERS: u32 = 500;
    let place = Place::new();
    let (store, committer) = SledStore::prepare(&place.path(), options()).unwrap();
    // Nothing is done before all have handed in their writes, so it does not depend on who is faster.
    let writes: Vec<_> = (0..WRITERS).map(|n| store.save(id(n), &record(1, "a"), None)).collect();
    assert_eq!(store.stats(), CommitStats::default());
    std::thread::spawn(move || committer.run());
    for result in join_all(writes).await {
        result.unwrap();
    }
    assert_eq!(store.stats(), CommitStats { writes: u64::from(WRITERS), flushes: 1 });
    assert_eq!(store.count().await.unwrap(), u64::from(WRITERS));
}

#[tokio::test]
async fn a_reader_waits_until_what_it_saw_is_durable() {
    let place = Place::new();
    let (store, _committer) = SledStore::prepare(&place.path(), options()).unwrap();
    // A batch that has written and not flushed, held still.
    store.shared.begin(1, [id(1)].into_iter());
    let bytes = record(1, "a").encode();
    store.shared.with(|trees| sessions::save(trees, id(1), &bytes, None)).unwrap();
    let over = AtomicBool::new(false);
    let read = async {
        let found = store.load(id(1)).await.unwrap();
        assert!(over.load(Ordering::SeqCst), "read before it was durable");
        found
    };
    let finish = async {
        tokio::task::yield_now().await;
        store.shared.flush().unwrap();
        over.store(true, Ordering::SeqCst);
        store.shared.finish(1, 1);
    };
    // Polled in this order: the reader is there first.
    let (found, ()) = futures::join!(read, finish);
    assert_eq!(found, Some(record(1, "a")));
    // Others are not kept waiting by it.
    store.shared.begin(2, [id(1)].into_iter());
    assert_eq!(store.load(id(2)).await.unwrap(), None);
}

#[tokio::test]
async fn a_second_process_is_told_who_has_the_store() {
    let place = Place::new();
    let _store = place.open();
    // A second open file is to the lock what a second process is.
    let error = SledStore::open(&place.path()).err().unwrap();
    let text = error.to_string();
    assert!(matches!(error, StoreError::Locked { .. }), "{text}");
    assert!(text.contains(&place.path().display().to_string()), "{text}");
    assert!(
        text.contains(&format!("process {}", std::process::id())) && text.contains("stop that lbd"),
        "{text}"
    );
}

#[tokio::test]
async fn another_format_is_refused_and_left_alone() {
    let place = Place::new();
    drop(place.open());
    let db = trees_open(&place);
    db.insert("format", "1").unwrap();
    db.flush().unwrap();
    drop(db);
    for _ in 0..2 {
        let error = SledStore::open(&place.path()).err().unwrap();
        assert!(matches!(&error, StoreError::Format { found, .. } if found == "1"), "{error}");
    }
    // And a database that is no session store at all.
    let place = Place::new();
    std::fs::create_dir(place.path()).unwrap();
    let db = trees_open(&place);
    db.insert("something", "else").unwrap();
    drop(db);
    let error = SledStore::open(&place.path()).err().unwrap();
    assert!(matches!(&error, StoreError::Format { found, .. } if found == "none"), "{error}");
}

fn trees_open(place: &Place) -> sled::Db {
    loop {
        match sled::Config::new().path(place.path()).segment_size(8 << 20).flush_every_ms(None).open() {
            Ok(db) => return db,
            Err(error) => assert!(error.to_string().contains("could not acquire lock"), "{error}"),
        }
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn the_directory_is_private() {
    use std::os::unix::fs::MetadataExt;
    let place = Place::new();
    let _store = place.open();
    assert_eq!(std::fs::metadata(place.path()).unwrap().mode() & 0o777, 0o700);
}

#[tokio::test]
async fn a_damaged_record_is_an_error_not_a_session() {
    let place = Place::new();
    let store = place.open();
    store.save(id(1), &record(1, "a"), None).await.unwrap();
    let mut bytes = record(1, "a").encode();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    store.shared.with(|trees| Ok(trees.sessions.insert(id(1).0, bytes.clone()).unwrap())).unwrap();
    let error = store.load(id(1)).await.unwrap_err();
    assert!(error.to_string().contains(&id(1).to_string()), "{error}");
    assert!(matches!(store.save(id(1), &record(2, "b"), None).await, Err(StoreError::Damaged { .. })));
}

#[tokio::test]
async fn epochs_grow_across_opening_and_forgetting() {
    let place = Place::new();
    let mut last = 0;
    for _ in 0..3 {
        let store = place.open();
        let slot = store.slot("shop", "s1").await.unwrap();
        assert_eq!(slot, 0);
        for _ in 0..3 {
            let epoch = store.next_epoch(slot).await.unwrap();
            assert!(epoch > last);
            last = epoch;
        }
        store.forget_slot("shop", "s1").await.unwrap();
        assert_eq!(store.slot("shop", "s2").await.unwrap(), slot, "the slot is given to another");
        assert!(store.next_epoch(slot).await.unwrap() > last, "tokens of s1 must not fit s2");
        store.forget_slot("shop", "s2").await.unwrap();
    }
    assert_eq!(place.open().next_epoch(1).await.unwrap(), 1);
}

#[tokio::test]
async fn the_last_epoch_is_never_given_twice() {
    let place = Place::new();
    let store = place.open();
    store
        .shared
        .with(|trees| Ok(trees.epochs.insert(7u16.to_be_bytes(), &(u32::MAX - 1).to_be_bytes()).unwrap()))
        .unwrap();
    assert_eq!(store.next_epoch(7).await.unwrap(), u32::MAX);
    assert!(matches!(store.next_epoch(7).await, Err(StoreError::Exhausted(_))));
}

#[tokio::test]
async fn ids_and_slots_are_stable_and_the_smallest_free() {
    let place = Place::new();
    let store = place.open();
    assert_eq!(store.service_id("shop").await.unwrap(), 1);
    assert_eq!(store.service_id("api").await.unwrap(), 2);
    let names = [("shop", "a"), ("shop", "b"), ("api", "a"), ("apia", "b")];
    for (n, (service, backend)) in names.iter().enumerate() {
        assert_eq!(store.slot(service, backend).await.unwrap(), n as u16);
    }
    store.forget_slot("shop", "b").await.unwrap();
    store.forget_slot("shop", "never there").await.unwrap();
    drop(store);
    let store = place.open();
    assert_eq!(store.slot("api", "a").await.unwrap(), 2);
    assert_eq!(store.slot("api", "new").await.unwrap(), 1);
    assert_eq!(store.service_id("shop").await.unwrap(), 1);
    let mut slots = store.slots().await.unwrap();
    slots.sort_by_key(|slot| slot.2);
    let expected = [("shop", "a", 0), ("api", "new", 1), ("api", "a", 2), ("apia", "b", 3)];
    assert_eq!(slots, expected.map(|(s, b, n)| (s.to_owned(), b.to_owned(), n)));
    for name in ["", &"x".repeat(256)] {
        assert!(matches!(store.service_id(name).await, Err(StoreError::Name(_))));
        assert!(matches!(store.slot("shop", name).await, Err(StoreError::Name(_))));
    }
}

#[tokio::test]
async fn a_forgotten_service_takes_its_sessions_with_it() {
    let place = Place::new();
    let store = place.open();
    assert_eq!(store.service_id("shop").await.unwrap(), 1);
    assert_eq!(store.service_id("api").await.unwrap(), 2);
    store.save(id(1), &record(1, "a"), None).await.unwrap();
    store.save(id(2), &Record { service: 2, ..record(1, "b") }, None).await.unwrap();
    store.forget_service("shop").await.unwrap();
    store.forget_service("never there").await.unwrap();
    assert_eq!(store.load(id(1)).await.unwrap(), None);
    assert!(store.load(id(2)).await.unwrap().is_some());
    assert_eq!(store.service_id("new").await.unwrap(), 1);
}

#[tokio::test]
async fn a_sweep_removes_the_expired_in_slices() {
    let place = Place::new();
    let store = place.open();
    for n in 0..10 {
        let expires = if n % 2 == 0 { 100 } else { 200 };
        store.save(id(n), &Record { expires, ..record(1, "a") }, None).await.unwrap();
    }
    let mut after = None;
    let mut removed = 0;
    let mut slices = 0;
    loop {
        let swept = store.sweep(150, after, 4).await.unwrap();
        assert!(swept.examined <= 4);
        removed += swept.removed;
        slices += 1;
        after = swept.after;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((removed, slices), (5, 3));
    assert_eq!(store.count().await.unwrap(), 5);
    assert!(store.load(id(1)).await.unwrap().is_some());
}

#[tokio::test]
async fn what_one_store_gave_out_another_adopts() {
    let (from, to) = (Place::new(), Place::new());
    let store = from.open();
    for service in ["shop", "api"] {
        store.service_id(service).await.unwrap();
        store.slot(service, "s1").await.unwrap();
    }
    for _ in 0..7 {
        store.next_epoch(1).await.unwrap();
    }
    // Of a backend that is no more: its tokens are still about.
    store.slot("shop", "old").await.unwrap();
    store.next_epoch(2).await.unwrap();
    store.forget_slot("shop", "old").await.unwrap();
    let given = store.given().await.unwrap();
    assert_eq!(given.services, [("api".to_owned(), 2), ("shop".to_owned(), 1)].into());
    assert_eq!(given.epochs, [(1, 7), (2, 1)]);

    let store = to.open();
    for _ in 0..2 {
        store.adopt(given.clone()).await.unwrap();
        assert_eq!(store.given().await.unwrap(), given);
    }
    drop(store);
    let store = to.open();
    assert_eq!(store.given().await.unwrap(), given);
    assert_eq!((store.next_epoch(1).await.unwrap(), store.next_epoch(2).await.unwrap()), (8, 2));
    assert_eq!(store.service_id("api").await.unwrap(), 2);
    assert_eq!(store.slot("api", "s1").await.unwrap(), 1);
}

#[tokio::test]
async fn what_is_taken_is_not_adopted() {
    let place = Place::new();
    let store = place.open();
    store.service_id("shop").await.unwrap();
    store.slot("shop", "s1").await.unwrap();
    for _ in 0..9 {
        store.next_epoch(0).await.unwrap();
    }
    let given = |services: &[(&str, u16)]| Given {
        services: services.iter().map(|(name, id)| ((*name).to_owned(), *id)).collect(),
        slots: vec![("shop".into(), "s1".into(), 4), ("shop".into(), "s2".into(), 0)],
        epochs: vec![(0, 3), (4, 3)],
    };
    let here = store.given().await.unwrap();
    for (services, why) in [
        ([("api", 2), ("shop", 3)], "service shop cannot have id 3, which its tokens name: it has id 1 here"),
        (
            [("api", 1), ("zoo", 9)],
            "service api cannot have id 1, which its tokens name: service shop has that id here",
        ),
    ] {
        let error = store.adopt(given(&services)).await.unwrap_err();
        assert_eq!(error.to_string(), why);
        assert_eq!(store.given().await.unwrap(), here, "nothing was adopted");
    }
    store.adopt(given(&[("api", 2)])).await.unwrap();
    let now = store.given().await.unwrap();
    assert_eq!(now.slots, here.slots, "one has a slot, the other's is taken");
    assert_eq!(now.epochs, [(0, 9), (4, 3)], "epochs never shrink");
}

#[tokio::test]
async fn damaged_records_are_named_and_can_be_removed() {
    use crate::session::store::archive::{self, Damaged};
    let place = Place::new();
    let store = place.open();
    store.service_id("shop").await.unwrap();
    for n in 0..300 {
        store.save(id(n), &record(1, "a"), None).await.unwrap();
    }
    store.save(id(300), &Record { service: 7, ..record(1, "a") }, None).await.unwrap();
    let spoil = |key: Vec<u8>, change: fn(&mut Vec<u8>)| {
        let mut bytes = record(1, "a").encode();
        change(&mut bytes);
        store.shared.with(|trees| Ok(trees.sessions.insert(key, bytes).unwrap())).unwrap();
    };
    spoil(id(7).0.to_vec(), |bytes| bytes[20] ^= 1);
    spoil(id(200).0.to_vec(), |bytes| bytes.truncate(30));
    spoil(id(201).0.to_vec(), |bytes| bytes[0] = 1);
    // Where a slice ends, and the next one begins.
    spoil(id(127).0[..5].to_vec(), |_| {});
    let damaged = |n: u32, reason: &str| Damaged { key: id(n).to_string(), reason: reason.into() };
    let expected = [
        damaged(7, "its checksum does not match"),
        Damaged {
            key: format!("{:?}", sled::IVec::from(&id(127).0[..5])),
            reason: "it is no session id".into(),
        },
        damaged(200, "only 30 bytes long"),
        damaged(201, "format 1, and this version reads format 2"),
        damaged(300, "no service has its id, 7"),
    ];
    let (mut found, mut records, mut exported, mut lines) = (Vec::new(), 0, Vec::new(), 0);
    let mut from = None;
    loop {
        let checked = archive::check(&store, from.clone()).await.unwrap();
        found.extend(checked.damaged);
        records += checked.records;
        let slice = archive::export(&store, from, 1).await.unwrap();
        exported.extend(slice.damaged);
        lines += slice.lines.len();
        assert_eq!(slice.next, checked.next);
        from = checked.next;
        if from.is_none() {
            break;
        }
    }
    assert_eq!((found, records), (expected.to_vec(), 302));
    assert_eq!((exported, lines), (expected.to_vec(), 297), "an export tells them, too, and goes on");
    // Nobody knows its revision.
    assert!(matches!(store.load(id(7)).await, Err(StoreError::Damaged { .. })));
    store.delete(id(7), 0).await.unwrap();
    assert_eq!(store.load(id(7)).await.unwrap(), None);
    // Names.
    store.shared.with(|trees| Ok(trees.services.insert("shop", b"x").unwrap())).unwrap();
    let checked = archive::check(&store, None).await.unwrap();
    assert_eq!(checked.damaged[0].key, "ids, slots and epochs");
    assert_eq!(checked.damaged[0].reason, "the entry for shop cannot be read");
}
