//! The store on a real cluster: three primaries with a replica each, some of which die.

use crate::{ME, id};
use futures::future::join_all;
use lb_userspace::session::{Owner, Record, RedisOptions, RedisStore, SessionStore, StoreError};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tests::redis::Redis;

const LEASE: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(40);

fn record(revision: u64) -> Record {
    super::record(revision, &revision.to_string())
}

/// Only one node is named: the others are found.
async fn open(redis: &Redis) -> RedisStore {
    let nodes = redis.urls()[..1].to_vec();
    let options = RedisOptions { nodes, lease: LEASE, ..RedisOptions::default() };
    RedisStore::open(options).await.unwrap()
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < PATIENCE, "still not: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// The slot of the messages: CRC-16 of "mail", as every node computes it.
fn primary_of_mail(redis: &Redis) -> usize {
    let slot: u16 = redis.ask(0, &["CLUSTER", "KEYSLOT", "lb:{mail}"]).unwrap().parse().unwrap();
    let shard = usize::from(slot) / 5461;
    shard.min(2)
}

#[tokio::test]
async fn sessions_are_spread_over_the_cluster_and_found() {
    let redis = Redis::cluster().unwrap();
    let (here, there) = (open(&redis).await, open(&redis).await);
    until("both leases hold", || here.holds() && there.holds()).await;
    let many = (0..300).map(|n| here.save(id(n), &record(1), None));
    assert!(join_all(many).await.into_iter().all(|saved| saved.unwrap().is_none()));
    for node in 0..3 {
        let keys: u32 = redis.ask(node, &["DBSIZE"]).unwrap().parse().unwrap();
        assert!(keys > 50, "node {node} has {keys} keys");
    }
    assert_eq!(there.count().await.unwrap(), 300);
    let begin = Instant::now();
    for claimed in join_all((0..300).map(|n| there.claim(id(n), 1, ME, u64::MAX))).await {
        assert_eq!(claimed.unwrap(), ME);
    }
    assert!(begin.elapsed() < Duration::from_secs(10), "{:?}", begin.elapsed());
    let (mut found, mut from) = (0, None);
    loop {
        let slice = here.scan(from, 20).await.unwrap();
        found +=
            slice.entries.iter().filter(|entry| entry.record.as_ref().is_ok_and(|r| r.revision == 2)).count();
        match slice.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    assert_eq!(found, 300);
    assert_eq!(here.next_epoch(3).await.unwrap(), 1);
    assert_eq!(there.next_epoch(3).await.unwrap(), 2);
    let state = here.state();
    assert!(state.available && state.detail.unwrap().contains("3 primaries"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_acknowledged_write_is_lost_when_a_primary_dies() {
    const SESSIONS: u32 = 60;
    let mut redis = Redis::cluster().unwrap();
    let store = Arc::new(open(&redis).await);
    until("the lease holds", || store.holds()).await;
    let (stop, failed) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let writers: Vec<_> = (0..SESSIONS)
        .map(|n| {
            let (store, stop, failed) = (store.clone(), stop.clone(), failed.clone());
            tokio::spawn(async move {
                while store.save(id(n), &record(1), None).await.is_err() {}
                let mut revision = 1;
                while !stop.load(Ordering::Relaxed) {
                    match store.save(id(n), &record(revision + 1), Some(revision)).await {
                        Ok(_) => revision += 1,
                        // It may have been written: what there is now is what counts.
                        Err(StoreError::Unavailable { .. } | StoreError::Conflict) => {
                            failed.fetch_add(1, Ordering::Relaxed);
                            if let Ok(found) = store.load(id(n)).await {
                                let found = found.expect("an acknowledged session is there").revision;
                                assert!(
                                    found >= revision,
                                    "session {n}: {found} after {revision} was acknowledged"
                                );
                                revision = found;
                            }
                        }
                        Err(error) => panic!("session {n}: {error}"),
                    }
                }
                revision
            })
        })
        .collect();
    // The one with the messages is the hardest to lose.
    let doomed = primary_of_mail(&redis);
    let replaced = redis.addr(doomed);
    tokio::time::sleep(Duration::from_millis(300)).await;
    redis.kill(doomed).unwrap();
    let begin = Instant::now();
    let elected = || redis.primaries().contains(&(doomed + 3));
    while !elected() {
        assert!(begin.elapsed() < PATIENCE, "no replica took over");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // Its replica has none of its own now, so the writes of that shard wait for the dead one to come back as one.
    redis.restart(doomed).unwrap();
    redis.await_cluster().unwrap();
    until("it is available", || store.state().available).await;
    until("the lease holds again", || store.holds()).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.store(true, Ordering::Relaxed);
    let mut total = 0;
    for (n, writer) in (0..).zip(writers) {
        let acknowledged = writer.await.unwrap();
        let found = store.load(id(n)).await.unwrap().unwrap();
        // The last try may have been written without an answer.
        assert!(found.revision >= acknowledged, "session {n}: {} after {acknowledged}", found.revision);
        assert_eq!(found.state, record(found.revision).state);
        total += acknowledged;
    }
    assert!(failed.load(Ordering::Relaxed) > 0, "{replaced} was not missed");
    assert!(total > u64::from(SESSIONS) * 10, "{total}");
}

#[tokio::test]
async fn without_its_replica_a_primary_acknowledges_nothing() {
    let redis = Redis::cluster().unwrap();
    let deadline = Duration::from_millis(800);
    let options = RedisOptions { nodes: redis.urls(), lease: LEASE, deadline, ..RedisOptions::default() };
    let store = RedisStore::open(options).await.unwrap();
    until("the lease holds", || store.holds()).await;
    let mail = primary_of_mail(&redis);
    // One session of each shard.
    let shard = |n: u32| {
        let slot: usize =
            redis.ask(0, &["CLUSTER", "KEYSLOT", &format!("lb:s:{{{}}}", id(n))]).unwrap().parse().unwrap();
        (slot / 5461).min(2)
    };
    let of: Vec<u32> = (0..3).map(|s| (0..).find(|n| shard(*n) == s).unwrap()).collect();
    for n in &of {
        store.save(id(*n), &record(1), None).await.unwrap();
    }
    redis.stop(mail + 3).unwrap();
    let refused = |result: Result<(), StoreError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
        assert!(error.to_string().contains("only 0 of 1 replicas"), "{error}");
    };
    refused(store.save(id(of[mail]), &record(2), Some(1)).await.map(drop));
    // What it holds now may be gone after a failover, so it is not shown either.
    refused(store.load(id(of[mail])).await.map(drop));
    until("memory is not trusted any more", || !store.holds()).await;
    // The others go on.
    let other = of[(mail + 1) % 3];
    store.save(id(other), &record(2), Some(1)).await.unwrap();
    assert_eq!(store.load(id(other)).await.unwrap(), Some(record(2)));
    redis.resume(mail + 3).unwrap();
    until("memory is trusted again", || store.holds()).await;
    // It was written, though never acknowledged: whoever reads sees it from now on.
    assert_eq!(store.load(id(of[mail])).await.unwrap(), Some(record(2)));
}

#[tokio::test]
async fn a_store_that_opens_while_a_primary_is_elected_waits_for_it() {
    let mut redis = Redis::cluster().unwrap();
    redis.kill(0).unwrap();
    // Nobody has noticed yet: an election takes longer than the nodes' time-out, and so does the opening.
    let (nodes, deadline) = (redis.urls(), PATIENCE);
    let options = RedisOptions { nodes, deadline, lease: LEASE, ..RedisOptions::default() };
    let down = redis.ask(1, &["CLUSTER", "NODES"]).unwrap();
    assert!(!down.contains("fail"), "{down}");
    let back = tokio::task::spawn_blocking(move || {
        let begin = Instant::now();
        while !redis.ask(3, &["INFO", "replication"]).unwrap().contains("role:master") {
            assert!(begin.elapsed() < PATIENCE, "no replica took over");
        }
        // The new primary needs a replica, too.
        redis.restart(0).unwrap();
        redis
    });
    let store = RedisStore::open(options).await.unwrap();
    let _redis = back.await.unwrap();
    for n in 0..30 {
        store.save(id(n), &record(1), None).await.unwrap();
    }
}

#[tokio::test]
async fn a_deposed_primary_is_not_believed() {
    let redis = Redis::cluster().unwrap();
    let store = open(&redis).await;
    let n = (0..).find(|n| {
        let key = format!("lb:s:{{{}}}", id(*n));
        redis.ask(0, &["CLUSTER", "KEYSLOT", &key]).unwrap().parse::<u16>().unwrap() < 5461
    });
    let n = n.unwrap();
    store.save(id(n), &record(1), None).await.unwrap();
    // Frozen, replaced, and awake again: for a moment it still takes itself for the primary.
    redis.stop(0).unwrap();
    let begin = Instant::now();
    while !redis.ask(3, &["INFO", "replication"]).unwrap().contains("role:master") {
        assert!(begin.elapsed() < PATIENCE, "no replica took over");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    redis.resume(0).unwrap();
    let begin = Instant::now();
    let saved = loop {
        assert!(begin.elapsed() < PATIENCE, "never available again");
        match store.save(id(n), &record(2), Some(1)).await {
            Ok(before) => break before,
            Err(StoreError::Unavailable { .. }) => {}
            // An earlier try was written.
            Err(StoreError::Conflict) => break Some(ME),
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(saved, Some(ME));
    redis.await_cluster().unwrap();
    let mut found = store.load(id(n)).await.unwrap().unwrap();
    if found.owner == Owner::UNSETTLED {
        // The store took another name meanwhile, and does not know that the earlier one was its own.
        found.owner = ME;
    }
    assert_eq!(found, record(2));
    let other = open(&redis).await;
    assert_eq!(other.load(id(n)).await.unwrap().unwrap().revision, 2);
}

#[tokio::test]
async fn sessions_stay_reachable_while_their_slots_move() {
    let redis = Redis::cluster().unwrap();
    let store = Arc::new(open(&redis).await);
    let slot_of = |n: u32| redis.ask(0, &["CLUSTER", "KEYSLOT", &format!("lb:s:{{{}}}", id(n))]).unwrap();
    let n = (0..).find(|n| slot_of(*n).parse::<u16>().unwrap() < 5461).unwrap();
    let (slot, key) = (slot_of(n), format!("lb:s:{{{}}}", id(n)));
    store.save(id(n), &record(1), None).await.unwrap();
    let (from, to) =
        (redis.ask(0, &["CLUSTER", "MYID"]).unwrap(), redis.ask(1, &["CLUSTER", "MYID"]).unwrap());
    redis.ask(1, &["CLUSTER", "SETSLOT", &slot, "IMPORTING", &from]).unwrap();
    redis.ask(0, &["CLUSTER", "SETSLOT", &slot, "MIGRATING", &to]).unwrap();
    assert_eq!(store.save(id(n), &record(2), Some(1)).await.unwrap(), Some(ME), "still at its old place");
    let (ip, port) = (redis.addr(1).ip().to_string(), redis.addr(1).port().to_string());
    redis.ask(0, &["MIGRATE", &ip, &port, &key, "0", "5000"]).unwrap();
    assert_eq!(store.save(id(n), &record(3), Some(2)).await.unwrap(), Some(ME), "asked for at its new place");
    assert_eq!(store.load(id(n)).await.unwrap(), Some(record(3)));
    for node in [1, 0, 2] {
        redis.ask(node, &["CLUSTER", "SETSLOT", &slot, "NODE", &to]).unwrap();
    }
    assert_eq!(store.save(id(n), &record(4), Some(3)).await.unwrap(), Some(ME), "moved");
    assert_eq!(store.load(id(n)).await.unwrap(), Some(record(4)));
}
