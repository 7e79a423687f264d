//! The store on one real redis-server. Two stores opened here are to each other what two hosts are.

mod lease;

use crate::{ME, id, record};
use futures::future::join_all;
use lb_common::token::SessionId;
use lb_userspace::session::clock::TimeSource;
use lb_userspace::session::{Copies, Owner, Record, RedisOptions, RedisStore, SessionStore, StoreError};
use std::collections::HashSet;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};
use tests::redis::Redis;

const OTHER: Owner = Owner { slot: 2, epoch: 5 };
/// Long enough that a busy machine does not lose it.
const LEASE: Duration = Duration::from_secs(1);
fn options(redis: &Redis) -> RedisOptions {
    RedisOptions { nodes: redis.urls(), lease: LEASE, ..RedisOptions::default() }
}

async fn open(redis: &Redis) -> RedisStore {
    RedisStore::open(options(redis)).await.unwrap()
}

/// Waits until a store may answer from memory.
async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is() {
        assert!(begin.elapsed() < Duration::from_secs(20), "still not: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn holding(store: &RedisStore) {
    until("the lease holds", || store.holds()).await;
}

/// What a process was told to forget.
#[derive(Default)]
struct Told {
    sessions: Mutex<Vec<SessionId>>,
    all: Mutex<usize>,
}

impl Copies for Told {
    fn void(&self, id: SessionId) {
        self.sessions.lock().unwrap().push(id);
    }
    fn void_all(&self) {
        *self.all.lock().unwrap() += 1;
    }
}

impl Told {
    fn to(store: &RedisStore) -> Arc<Self> {
        let told = Arc::new(Self::default());
        let copies: Arc<dyn Copies> = told.clone();
        store.watch(Arc::downgrade(&copies));
        told
    }
    fn sessions(&self) -> Vec<SessionId> {
        self.sessions.lock().unwrap().clone()
    }
    fn all(&self) -> usize {
        *self.all.lock().unwrap()
    }
}

#[tokio::test]
async fn a_session_is_what_was_saved_last() {
    let redis = Redis::single().unwrap();
    let store = open(&redis).await;
    assert_eq!(store.load(id(1)).await.unwrap(), None);
    let first = record(1, "a");
    assert_eq!(store.save(id(1), &first, None).await.unwrap(), None);
    assert_eq!(store.load(id(1)).await.unwrap(), Some(first.clone()));
    assert_eq!(store.claim(id(1), 1, OTHER, 77 << 40).await.unwrap(), ME);
    let claimed = Record { revision: 2, owner: OTHER, expires: 77 << 40, ..first.clone() };
    assert_eq!(store.load(id(1)).await.unwrap(), Some(claimed), "nothing else changed");
    let written = Record { revision: 3, ..record(2, "b") };
    assert_eq!(store.save(id(1), &written, Some(2)).await.unwrap(), Some(OTHER));
    assert_eq!(store.load(id(1)).await.unwrap(), Some(written));
    assert_eq!(store.count().await.unwrap(), 1);
    store.delete(id(1), 3).await.unwrap();
    assert_eq!(store.load(id(1)).await.unwrap(), None);
    assert_eq!(store.count().await.unwrap(), 0);
}

#[tokio::test]
async fn what_is_not_as_expected_is_a_conflict() {
    let redis = Redis::single().unwrap();
    let store = open(&redis).await;
    let conflicts =
        |result: Result<(), StoreError>| assert!(matches!(result, Err(StoreError::Conflict)), "{result:?}");
    conflicts(store.save(id(1), &record(2, "b"), Some(1)).await.map(drop));
    conflicts(store.claim(id(1), 1, ME, 1).await.map(drop));
    conflicts(store.delete(id(1), 1).await);
    store.save(id(1), &record(1, "a"), None).await.unwrap();
    conflicts(store.save(id(1), &record(1, "a"), None).await.map(drop));
    conflicts(store.save(id(1), &record(3, "b"), Some(2)).await.map(drop));
    conflicts(store.claim(id(1), 2, ME, 1).await.map(drop));
    conflicts(store.delete(id(1), 2).await);
    store.delete(id(1), 1).await.unwrap();
    conflicts(store.delete(id(1), 1).await);
    conflicts(store.save(id(1), &record(2, "b"), Some(1)).await.map(drop));
    conflicts(store.save(id(1), &record(1, "again"), None).await.map(drop));
}

#[tokio::test]
async fn only_one_of_many_writers_on_the_same_revision_wins() {
    let redis = Redis::single().unwrap();
    let stores = [open(&redis).await, open(&redis).await];
    stores[0].save(id(1), &record(1, "begin"), None).await.unwrap();
    let writers = (0..32usize).map(|n| {
        let next = record(2, &n.to_string());
        let save = stores[n % 2].save(id(1), &next, Some(1));
        async move { save.await.map(|_| next.state) }
    });
    let results = join_all(writers).await;
    let winners: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    assert_eq!(winners.len(), 1, "{results:?}");
    assert!(results.iter().filter_map(|r| r.as_ref().err()).all(|e| matches!(e, StoreError::Conflict)));
    assert_eq!(&stores[0].load(id(1)).await.unwrap().unwrap().state, winners[0]);
}

#[tokio::test]
async fn a_restarted_server_has_everything_and_memory_is_forgotten() {
    let mut redis = Redis::single().unwrap();
    let store = open(&redis).await;
    let told = Told::to(&store);
    holding(&store).await;
    store.save(id(1), &record(1, "a"), None).await.unwrap();
    let before = told.all();
    redis.kill(0).unwrap();
    redis.restart(0).unwrap();
    // A store that was not told of the restart.
    assert_eq!(store.load(id(1)).await.unwrap().unwrap().state, record(1, "a").state);
    until("memory is forgotten", || told.all() > before).await;
    holding(&store).await;
}

#[tokio::test]
async fn a_change_whose_answer_was_lost_is_made_once() {
    let redis = Redis::single().unwrap();
    let store = Arc::new(open(&redis).await);
    for n in 0..20 {
        store.save(id(n), &record(1, "0"), None).await.unwrap();
    }
    // Connections are cut all the time while counters count; each change names the revision it is based on.
    let (stop, stopped) = std::sync::mpsc::channel::<()>();
    let cutting = std::thread::spawn(move || {
        let mut cuts = 0;
        while stopped.recv_timeout(Duration::from_millis(3)).is_err() {
            redis.ask(0, &["CLIENT", "KILL", "TYPE", "normal"]).unwrap();
            cuts += 1;
        }
        (redis, cuts)
    });
    let counters = (0..20).map(|n| {
        let store = store.clone();
        async move {
            for revision in 1..=50u64 {
                let next = record(revision + 1, &revision.to_string());
                let before = store.save(id(n), &next, Some(revision)).await;
                assert_eq!(before.expect("nobody else writes"), Some(ME), "session {n}, revision {revision}");
            }
        }
    });
    join_all(counters).await;
    stop.send(()).unwrap();
    let (_redis, cuts) = cutting.join().unwrap();
    assert!(cuts > 3, "too fast to be disturbed: {cuts}");
    for n in 0..20 {
        assert_eq!(store.load(id(n)).await.unwrap(), Some(record(51, "50")));
    }
}

#[tokio::test]
async fn work_goes_on_when_nobody_waits_for_it() {
    let redis = Redis::single().unwrap();
    let store = open(&redis).await;
    drop(store.save(id(1), &record(1, "a"), None));
    drop(store);
    assert_eq!(open(&redis).await.load(id(1)).await.unwrap().unwrap().state, record(1, "a").state);
}

#[test]
fn it_outlives_the_runtime_that_it_was_opened_in() {
    let redis = Redis::single().unwrap();
    let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let first = runtime();
    let store = first.block_on(open(&redis));
    drop(first);
    runtime().block_on(async {
        store.save(id(1), &record(1, "a"), None).await.unwrap();
        holding(&store).await;
    });
}

#[tokio::test]
async fn sessions_expire_by_themselves() {
    let redis = Redis::single().unwrap();
    let store = open(&redis).await;
    let now = store.now().unwrap();
    // A minute longer than the session, and from now on at least that long, whatever clock its writer went by.
    for (n, expires) in [(1, now - (365 << 32)), (2, now + 1000)] {
        store.save(id(n), &Record { expires, ..record(1, "a") }, None).await.unwrap();
        assert!(store.load(id(n)).await.unwrap().unwrap().is_expired(now + 1000));
    }
    let late: u64 = redis.ask(0, &["PTTL", &format!("lb:s:{{{}}}", id(1))]).unwrap().parse().unwrap();
    assert!((50_000..=60_000).contains(&late), "an acknowledged write is there for a while: {late}");
    let ttl: u64 = redis.ask(0, &["PTTL", &format!("lb:s:{{{}}}", id(2))]).unwrap().parse().unwrap();
    assert!((50_000..=61_000).contains(&ttl), "{ttl}");
}

#[tokio::test]
async fn epochs_are_given_out_once_and_announced() {
    let redis = Redis::single().unwrap();
    let stores = [open(&redis).await, open(&redis).await];
    holding(&stores[0]).await;
    holding(&stores[1]).await;
    let mut heard = stores[0].epochs().unwrap();
    let given = join_all((0..200usize).map(|n| stores[n % 2].next_epoch(7))).await;
    let given: Vec<u32> = given.into_iter().map(|epoch| epoch.unwrap()).collect();
    assert_eq!(given.iter().collect::<HashSet<_>>().len(), 200);
    assert_eq!(given.iter().max(), Some(&200));
    let last = stores[1].next_epoch(7).await.unwrap();
    assert_eq!(last, 201);
    let mut latest = 0;
    while latest < last {
        let (slot, epoch) =
            tokio::time::timeout(Duration::from_secs(20), heard.recv()).await.unwrap().unwrap();
        assert!(slot == 7 && epoch > latest, "{epoch} after {latest}");
        latest = epoch;
    }
    redis.ask(0, &["HSET", "lb:{names}", "e:8", &(u32::MAX - 1).to_string()]).unwrap();
    assert_eq!(stores[0].next_epoch(8).await.unwrap(), u32::MAX);
    assert!(matches!(stores[0].next_epoch(8).await, Err(StoreError::Exhausted(_))));
}

#[tokio::test]
async fn names_are_given_out_once() {
    let redis = Redis::single().unwrap();
    let stores = [open(&redis).await, open(&redis).await];
    let slots = join_all((0..20usize).map(|n| {
        let store = &stores[n % 2];
        async move { store.slot("shop", &format!("b{}", n / 2)).await.unwrap() }
    }))
    .await;
    assert!(slots.chunks(2).all(|pair| pair[0] == pair[1]), "{slots:?}");
    assert_eq!(slots.iter().copied().collect::<HashSet<_>>(), (0..10).collect());
    assert_eq!(stores[0].service_id("shop").await.unwrap(), 1);
    assert_eq!(stores[1].service_id("api").await.unwrap(), 2);
    assert_eq!(stores[1].next_epoch(0).await.unwrap(), 1);
    let first = stores[0].slots().await.unwrap().into_iter().find(|(.., slot)| *slot == 0).unwrap();
    stores[0].forget_slot("shop", &first.1).await.unwrap();
    assert_eq!(stores[1].slots().await.unwrap().len(), 9);
    assert_eq!(stores[1].slot("api", "b0").await.unwrap(), 0);
    assert_eq!(stores[1].next_epoch(0).await.unwrap(), 2, "the epoch of a forgotten slot stays");
    assert!(matches!(stores[0].slot("shop", "").await, Err(StoreError::Name(_))));

    let given = stores[0].given().await.unwrap();
    let other = RedisStore::open(RedisOptions { prefix: "other:".into(), ..options(&redis) }).await.unwrap();
    for _ in 0..2 {
        other.adopt(given.clone()).await.unwrap();
        assert_eq!(other.given().await.unwrap(), given);
    }
    assert_eq!(other.next_epoch(0).await.unwrap(), 3);
    let taken = RedisStore::open(RedisOptions { prefix: "taken:".into(), ..options(&redis) }).await.unwrap();
    taken.service_id("zoo").await.unwrap();
    assert!(matches!(taken.adopt(given).await, Err(StoreError::ServiceId { .. })));
    assert_eq!(taken.slots().await.unwrap(), []);
}

#[tokio::test]
async fn a_forgotten_service_has_no_sessions() {
    let redis = Redis::single().unwrap();
    let (here, there) = (open(&redis).await, open(&redis).await);
    let told = Told::to(&there);
    holding(&there).await;
    let shop = here.service_id("shop").await.unwrap();
    let api = here.service_id("api").await.unwrap();
    let many = (0..500u32).map(|n| {
        let service = if n % 5 == 0 { api } else { shop };
        there.save(id(n), &Record { service, ..record(1, "a") }, None)
    });
    assert!(join_all(many).await.into_iter().all(|saved| saved.unwrap().is_none()));
    assert_eq!(here.count().await.unwrap(), 500);
    here.forget_service("shop").await.unwrap();
    assert_eq!(here.count().await.unwrap(), 100);
    assert_eq!(told.sessions().into_iter().collect::<HashSet<_>>().len(), 400);
    assert_eq!(here.service_id("next").await.unwrap(), shop);
    assert_eq!(here.service_id("api").await.unwrap(), api);
}

#[tokio::test]
async fn a_scan_finds_every_session_and_damage() {
    let redis = Redis::single().unwrap();
    let store = open(&redis).await;
    let many = (0..300u32).map(|n| store.save(id(n), &record(1, "a"), None));
    assert!(join_all(many).await.into_iter().all(|saved| saved.unwrap().is_none()));
    redis.ask(0, &["HSET", &format!("lb:s:{{{}}}", id(5)), "r", "rubbish"]).unwrap();
    redis.ask(0, &["HSET", "lb:s:{nobody}", "r", "rubbish"]).unwrap();
    store.delete(id(6), 1).await.unwrap();
    let (mut ids, mut damaged, mut from) = (HashSet::new(), 0, None);
    loop {
        let slice = store.scan(from, 50).await.unwrap();
        for entry in slice.entries {
            match (entry.id, entry.record) {
                (Some(found), Ok(record)) => {
                    assert_eq!((record.revision, found == id(5)), (1, false));
                    ids.insert(found);
                }
                (found, Err(_)) => {
                    assert!(found == Some(id(5)) || entry.key == "lb:s:{nobody}", "{}", entry.key);
                    damaged += 1;
                }
                (None, Ok(_)) => panic!("{}", entry.key),
            }
        }
        match slice.next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    assert_eq!((ids.len(), damaged), (298, 2));
    assert!(matches!(store.load(id(5)).await, Err(StoreError::Damaged { .. })));
}

#[tokio::test]
async fn what_will_not_do_is_refused_with_a_reason() {
    let redis = Redis::single().unwrap();
    drop(open(&redis).await);
    let refused = async |options: RedisOptions| match RedisStore::open(options).await {
        Ok(_) => panic!("not refused"),
        Err(error) => (error.clone(), error.to_string()),
    };
    redis.ask(0, &["HSET", "lb:{names}", "format", "9"]).unwrap();
    let (error, text) = refused(options(&redis)).await;
    assert!(matches!(error, StoreError::Format { .. }) && text.contains("has format 9"), "{text}");
    redis.ask(0, &["CONFIG", "SET", "maxmemory", "1gb", "maxmemory-policy", "allkeys-lru"]).unwrap();
    let (_, text) = refused(options(&redis)).await;
    assert!(text.contains("set it to noeviction"), "{text}");
    redis.ask(0, &["CONFIG", "SET", "maxmemory", "0", "appendonly", "no"]).unwrap();
    let (_, text) = refused(options(&redis)).await;
    assert!(text.contains("set appendonly to yes"), "{text}");
    let nobody = RedisOptions { nodes: vec!["redis://127.0.0.1:1".into()], ..options(&redis) };
    let (error, text) = refused(nobody).await;
    assert!(matches!(error, StoreError::Unavailable { .. }) && text.contains("127.0.0.1:1"), "{text}");
}

#[tokio::test]
async fn users_log_in_with_what_the_url_says() {
    let redis = Redis::single().unwrap();
    redis.ask(0, &["ACL", "SETUSER", "lbd", "on", ">secret", "~lb:*", "+@all"]).unwrap();
    let login = redis.urls()[0].replace("redis://", "redis://lbd:secret@");
    let store = RedisStore::open(RedisOptions { nodes: vec![login], ..options(&redis) }).await.unwrap();
    store.save(id(1), &record(1, "a"), None).await.unwrap();
    assert!(!store.state().place.contains("secret"));
    let wrong = redis.urls()[0].replace("redis://", "redis://lbd:guess@");
    let refused = RedisStore::open(RedisOptions { nodes: vec![wrong], ..options(&redis) }).await;
    let text = refused.err().unwrap().to_string();
    assert!(!text.contains("guess") && text.contains("authentication failed"), "{text}");
}

#[tokio::test]
async fn without_a_server_there_is_a_reason_and_no_end_of_waiting() {
    let mut redis = Redis::single().unwrap();
    let deadline = Duration::from_millis(600);
    let store = RedisStore::open(RedisOptions { deadline, ..options(&redis) }).await.unwrap();
    store.save(id(1), &record(1, "a"), None).await.unwrap();
    assert!(store.state().available, "{:?}", store.state());
    redis.kill(0).unwrap();
    let begin = Instant::now();
    let error = store.save(id(1), &record(2, "b"), Some(1)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(error.to_string().contains(&redis.addr(0).to_string()), "{error}");
    assert!(begin.elapsed() < deadline * 4, "{:?}", begin.elapsed());
    let state = store.state();
    assert!(!state.available && state.detail.unwrap().contains(&redis.addr(0).to_string()));
    redis.restart(0).unwrap();
    assert_eq!(store.load(id(1)).await.unwrap().unwrap().state, record(1, "a").state);
    store.save(id(1), &record(2, "b"), Some(1)).await.unwrap();
    until("it is available", || store.state().available).await;
}

#[tokio::test]
async fn replicas_are_judged_as_primaries_are() {
    let redis = Redis::start(Default::default(), 1, &[]).unwrap();
    let none = || RedisOptions { nodes: vec![redis.urls()[0].clone()], ..options(&redis) };
    let one = || RedisOptions { replicas: Some(1), ..none() };
    let store = RedisStore::open(one()).await.unwrap();
    let detail = store.state().detail.unwrap();
    assert!(detail.contains("acknowledged is what is on the disk of the primary and"), "{detail}");
    redis.ask(1, &["CONFIG", "SET", "appendonly", "no"]).unwrap();
    let error = RedisStore::open(one()).await.err().unwrap().to_string();
    assert!(error.contains(&redis.addr(1).to_string()) && error.contains("set appendonly to yes"), "{error}");
    redis.ask(1, &["CONFIG", "SET", "appendonly", "yes"]).unwrap();
    // With none awaited the replica may be promoted without the last changes.
    let told = RedisStore::open(none()).await.unwrap().state().detail.unwrap();
    assert!(told.contains("may elect one without the last acknowledged changes"), "{told}");
}

/// Clocks of a host that somebody has set wrong.
struct Wrong {
    by: AtomicI64,
}

impl TimeSource for Wrong {
    fn wall(&self) -> u64 {
        lb_userspace::session::unix_millis().saturating_add_signed(self.by.load(Ordering::SeqCst))
    }

    fn boot(&self) -> u64 {
        lb_userspace::session::clock::SystemClocks.boot()
    }

    fn boot_id(&self) -> Option<u128> {
        None
    }

    fn is_synchronized(&self) -> bool {
        false
    }
}

#[tokio::test]
async fn a_host_whose_clock_is_years_wrong_is_refused_and_one_that_jumps_ends_no_session() {
    const YEARS: i64 = 3 * 365 * 86_400_000;
    let redis = Redis::single().unwrap();
    let clocks = Arc::new(Wrong { by: 0.into() });
    let store = RedisStore::open_at(options(&redis), clocks.clone()).await.unwrap();
    let here = open(&redis).await;
    for (n, by) in [(1, YEARS), (2, -YEARS)] {
        clocks.by.store(by, Ordering::SeqCst);
        let error = RedisStore::open_at(options(&redis), clocks.clone()).await.err().unwrap().to_string();
        assert!(error.contains("the clock of this host is") && error.contains("set it right"), "{error}");
        // What was open already goes by the time of the servers.
        let now = store.now().unwrap();
        assert!(now.abs_diff(here.now().unwrap()) < 1000);
        store.save(id(n), &Record { expires: now + 60_000, ..record(1, "a") }, None).await.unwrap();
        let there = here.load(id(n)).await.unwrap().unwrap();
        assert!(!there.is_expired(here.now().unwrap()) && !there.is_expired(store.now().unwrap()));
    }
    clocks.by.store(5_000, Ordering::SeqCst);
    let told = RedisStore::open_at(options(&redis), clocks).await.unwrap().state();
    assert!(told.available && told.detail.unwrap().contains("s ahead of that of the redis servers"));
}
