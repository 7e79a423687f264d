mod expiry;
mod history;
mod interleavings;
mod turns;
mod visits;
mod world;

use super::*;
use crate::session::store::sled::{SledOptions, SledStore};
use crate::session::store::trial::Trial;
use futures::future::join_all;
use proptest::prelude::*;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::task::JoinHandle;

/// A store, a clock, and servers that come and go.
struct Town {
    store: Arc<Trial>,
    peers: Arc<Peers>,
    now: Arc<AtomicU64>,
    limits: Limits,
    _directory: tempfile::TempDir,
}

impl Town {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = SledOptions { cache_bytes: 16 << 20, reserve_bytes: 0 };
        let inner = SledStore::open_with(&directory.path().join("store"), options).unwrap();
        Self {
            store: Arc::new(Trial::new(Arc::new(inner))),
            peers: Arc::default(),
            now: Arc::new(AtomicU64::new(1_000_000)),
            limits: Limits::default(),
            _directory: directory,
        }
    }

    fn server(&self, slot: u16, epoch: u32) -> Arc<Sessions> {
        self.watched(slot, epoch).0
    }

    fn watched(&self, slot: u16, epoch: u32) -> (Arc<Sessions>, watch::Sender<Instance>) {
        let (sender, instance) = watch::channel(instance(slot, epoch));
        let now = self.now.clone();
        let clock: Clock = Arc::new(move || now.load(Ordering::SeqCst));
        let sessions =
            Sessions::new(instance, self.store.clone(), self.limits.clone(), self.peers.clone(), clock);
        (sessions, sender)
    }

    fn pass(&self, time: Duration) {
        self.now.fetch_add(time.as_millis() as u64, Ordering::SeqCst);
    }
}

fn instance(slot: u16, epoch: u32) -> Instance {
    Instance { service: 1, slot, epoch, name: format!("s{slot}") }
}

/// The token that the client gets with an answer.
fn token(seen: &Seen) -> Option<Token> {
    let Owner { slot, epoch } = seen.owner;
    Some(Token { key_id: 0, service: 1, slot, epoch, session: seen.id })
}

async fn put(
    server: &Arc<Sessions>,
    token: Option<Token>,
    key: &str,
    value: u64,
) -> Result<Seen, SessionError> {
    let key = key.to_owned();
    server
        .write(token, move |state| {
            state.set_as(&key, &value).unwrap();
            Ok(())
        })
        .await
        .map(|(seen, ())| seen)
}

async fn add_one(server: &Arc<Sessions>, token: Option<Token>) -> Result<(Seen, u64), SessionError> {
    server
        .write(token, |state| {
            let next = state.get_as::<u64>("n").unwrap().unwrap_or(0) + 1;
            state.set_as("n", &next).unwrap();
            Ok(next)
        })
        .await
}

/// A session that was written, with nothing in it.
async fn begun(server: &Arc<Sessions>) -> Seen {
    server.write(None, |_| Ok(())).await.unwrap().0
}

fn value(seen: &Seen, key: &str) -> Option<u64> {
    seen.record.state.get_as(key).unwrap()
}

#[tokio::test]
async fn new_then_cache_and_durable_before_it_is_answered() {
    let town = Town::new();
    let server = town.server(1, 1);
    let first = begun(&server).await;
    assert_eq!((first.source, first.record.version), (Source::New, 1));
    assert_eq!(town.store.load(first.id).await.unwrap().as_ref(), Some(&*first.record));
    for _ in 0..3 {
        let again = server.read(token(&first)).await.unwrap();
        assert_eq!((again.source, again.id), (Source::Cache, first.id));
    }
    let written = put(&server, token(&first), "a", 1).await.unwrap();
    assert_eq!((written.source, written.record.version, written.id), (Source::Cache, 2, first.id));
    assert_eq!(town.store.load(first.id).await.unwrap().as_ref(), Some(&*written.record));
}

#[tokio::test]
async fn a_restarted_server_reloads_then_caches() {
    let town = Town::new();
    let seen = put(&town.server(1, 1), None, "a", 7).await.unwrap();
    let restarted = town.server(1, 2);
    let reloaded = restarted.read(token(&seen)).await.unwrap();
    assert_eq!((reloaded.source, reloaded.id, value(&reloaded, "a")), (Source::Database, seen.id, Some(7)));
    assert_eq!(reloaded.owner.epoch, 2);
    assert_eq!(restarted.read(token(&reloaded)).await.unwrap().source, Source::Cache);
}

#[tokio::test]
async fn a_token_of_an_earlier_instance_is_never_answered_from_the_cache() {
    let town = Town::new();
    let old = begun(&town.server(1, 1)).await;
    let server = town.server(1, 2);
    let new = server.read(token(&old)).await.unwrap();
    assert_eq!(server.read(token(&new)).await.unwrap().source, Source::Cache);
    assert_eq!(server.read(token(&old)).await.unwrap().source, Source::Database);
}

#[tokio::test]
async fn a_new_epoch_makes_the_cache_worthless_at_once() {
    let town = Town::new();
    let (server, instance) = town.watched(1, 1);
    let seen = begun(&server).await;
    instance.send_replace(self::instance(1, 2));
    // Not even a token that was made for the new epoch meets the old copy.
    let forged = Token { epoch: 2, ..token(&seen).unwrap() };
    assert_eq!(server.read(Some(forged)).await.unwrap().source, Source::Database);
    assert_eq!(server.read(Some(forged)).await.unwrap().source, Source::Cache);
}

#[tokio::test]
async fn a_session_id_that_nobody_knows_is_refused() {
    let town = Town::new();
    let server = town.server(1, 1);
    let chosen = SessionId([0x66; 16]);
    let planted = Some(Token { key_id: 0, service: 1, slot: 1, epoch: 1, session: chosen });
    let seen = server.read(planted).await.unwrap();
    assert_eq!(seen.source, Source::New);
    assert_ne!(seen.id, chosen);
    let seen = put(&server, planted, "a", 1).await.unwrap();
    assert_eq!(seen.source, Source::New);
    assert_ne!(seen.id, chosen);
    assert!(!server.end(planted).await.unwrap());
    assert_eq!(town.store.load(chosen).await.unwrap(), None);
}

#[tokio::test]
async fn a_session_of_another_service_is_unknown_here() {
    let town = Town::new();
    let server = town.server(1, 1);
    let seen = put(&server, None, "a", 1).await.unwrap();
    let theirs = Token { service: 2, ..token(&seen).unwrap() };
    assert_ne!(server.read(Some(theirs)).await.unwrap().id, seen.id);
    // Even with a token for this service: the record says whose it is.
    let record = Record { service: 2, ..Record::clone(&seen.record) };
    town.store.save(SessionId([1; 16]), &record, None).await.unwrap();
    let ours = Token { session: SessionId([1; 16]), ..token(&seen).unwrap() };
    assert_eq!(server.read(Some(ours)).await.unwrap().source, Source::New);
}

#[tokio::test]
async fn a_takeover_invalidates_the_former_owner() {
    let town = Town::new();
    let (a, b) = (town.server(1, 1), town.server(2, 1));
    let at_a = put(&a, None, "n", 1).await.unwrap();
    let at_b = b.read(token(&at_a)).await.unwrap();
    assert_eq!((at_b.source, at_b.record.owner.slot), (Source::Database, 2));
    put(&b, token(&at_b), "n", 2).await.unwrap();
    // A client that still has the token of `a`.
    let back = a.read(token(&at_a)).await.unwrap();
    assert_eq!((back.source, value(&back, "n")), (Source::Database, Some(2)));
    // And the other way round.
    put(&a, token(&back), "n", 3).await.unwrap();
    assert_eq!(value(&b.read(token(&at_b)).await.unwrap(), "n"), Some(3));
}

#[tokio::test]
async fn a_stale_copy_loses_its_compare_and_swap_and_is_reloaded() {
    let town = Town::new();
    let a = town.server(1, 1);
    let at_a = put(&a, None, "a", 1).await.unwrap();
    // A server of another process, which cannot tell `a` that it took the session over.
    let stranger = Town { peers: Arc::default(), ..town };
    let b = stranger.server(2, 1);
    let at_b = put(&b, token(&at_a), "b", 2).await.unwrap();
    assert_eq!(at_b.source, Source::Database);
    let both = put(&a, token(&at_a), "c", 3).await.unwrap();
    assert_eq!(both.source, Source::Database);
    assert_eq!(["a", "b", "c"].map(|key| value(&both, key)), [Some(1), Some(2), Some(3)]);
}

#[tokio::test]
async fn a_refused_change_stores_nothing_and_begins_no_session() {
    let town = Town::new();
    let server = town.server(1, 1);
    let refuse = |_: &mut State| -> Result<(), Refusal> { Err(Refusal::NotFound("no".into())) };
    assert!(matches!(server.write(None, refuse).await, Err(SessionError::Refused(_))));
    assert_eq!(town.store.count().await.unwrap(), 0);
    let seen = begun(&server).await;
    assert!(server.write(token(&seen), refuse).await.is_err());
    assert_eq!(server.read(token(&seen)).await.unwrap().record.version, 1);
}

#[tokio::test]
async fn too_large_is_refused_and_nothing_is_half_written() {
    let mut town = Town::new();
    town.limits.max_value_bytes = 3;
    let server = town.server(1, 1);
    let seen = put(&server, None, "a", 100).await.unwrap();
    let error = put(&server, token(&seen), "a", 1000).await.unwrap_err();
    assert!(matches!(&error, SessionError::TooLarge(e) if e.name == "max_value_bytes"), "{error}");
    let after = server.read(token(&seen)).await.unwrap();
    assert_eq!((after.source, value(&after, "a")), (Source::Cache, Some(100)));
    assert!(put(&server, None, "a", 1000).await.is_err());
    assert_eq!(town.store.count().await.unwrap(), 1);
}

#[tokio::test]
async fn an_ended_session_is_gone_everywhere() {
    let town = Town::new();
    let (a, b) = (town.server(1, 1), town.server(2, 1));
    let at_a = put(&a, None, "n", 1).await.unwrap();
    assert!(b.end(token(&at_a)).await.unwrap());
    assert!(!b.end(token(&at_a)).await.unwrap());
    assert!(!a.end(None).await.unwrap());
    let after = a.read(token(&at_a)).await.unwrap();
    assert_eq!(after.source, Source::New);
    assert_ne!(after.id, at_a.id);
    assert!(after.record.state.is_empty());
}

impl Town {
    /// Lets the write go that waits, and all after it.
    fn release(&self) {
        self.store.hold.store(false, Ordering::SeqCst);
        self.store.held.add_permits(1);
    }
}

#[tokio::test]
async fn a_failed_write_is_not_acknowledged_and_not_cached() {
    let town = Town::new();
    let server = town.server(1, 1);
    let seen = put(&server, None, "n", 1).await.unwrap();
    town.store.fail_saves.store(true, Ordering::SeqCst);
    assert!(matches!(put(&server, token(&seen), "n", 2).await, Err(SessionError::Store(_))));
    assert!(matches!(put(&server, None, "n", 2).await, Err(SessionError::Store(_))));
    town.store.fail_saves.store(false, Ordering::SeqCst);
    // This one did reach the store: only the store can say so.
    let after = server.read(token(&seen)).await.unwrap();
    assert_eq!((after.source, value(&after, "n")), (Source::Database, Some(2)));
}

#[tokio::test]
async fn on_a_full_disk_writes_fail_and_reads_go_on_uncached() {
    let town = Town::new();
    let (a, b) = (town.server(1, 1), town.server(2, 1));
    let at_a = put(&a, None, "n", 1).await.unwrap();
    town.store.no_space.store(true, Ordering::SeqCst);
    assert_eq!(a.read(token(&at_a)).await.unwrap().source, Source::Cache);
    for _ in 0..2 {
        let at_b = b.read(token(&at_a)).await.unwrap();
        assert_eq!((at_b.source, value(&at_b, "n")), (Source::Database, Some(1)));
        let again = b.read(token(&at_b)).await.unwrap();
        assert_eq!(again.source, Source::Database, "it does not own the session, so it must not cache it");
    }
    let full = put(&a, token(&at_a), "n", 2).await.unwrap_err();
    assert!(matches!(full, SessionError::Store(StoreError::NoSpace { .. })), "{full}");
    town.store.no_space.store(false, Ordering::SeqCst);
    assert_eq!(value(&put(&a, token(&at_a), "m", 3).await.unwrap(), "n"), Some(1));
}

#[tokio::test]
async fn a_write_goes_on_when_its_client_goes_away() {
    let town = Town::new();
    let server = town.server(1, 1);
    let seen = put(&server, None, "n", 1).await.unwrap();
    town.store.hold.store(true, Ordering::SeqCst);
    let client = {
        let (server, token) = (server.clone(), token(&seen));
        tokio::spawn(async move { put(&server, token, "n", 2).await })
    };
    town.store.arrived.acquire().await.unwrap().forget();
    client.abort();
    assert!(client.await.unwrap_err().is_cancelled());
    town.store.hold.store(false, Ordering::SeqCst);
    town.store.held.add_permits(1);
    // Takes its turn after the write, and finds it cached.
    let after = put(&server, token(&seen), "m", 1).await.unwrap();
    assert_eq!((after.source, value(&after, "n"), after.record.version), (Source::Cache, Some(2), 3));
}

#[tokio::test]
async fn a_copy_read_before_a_takeover_is_not_cached_after_it() {
    let town = Town::new();
    let (a, b) = (town.server(1, 1), town.server(2, 1));
    let at_a = put(&a, None, "n", 1).await.unwrap();
    // `a` writes and is held just before the store; `b` takes the session over meanwhile.
    town.store.hold.store(true, Ordering::SeqCst);
    let write = {
        let (a, token) = (a.clone(), token(&at_a));
        tokio::spawn(async move { put(&a, token, "n", 2).await })
    };
    town.store.arrived.acquire().await.unwrap().forget();
    town.store.hold.store(false, Ordering::SeqCst);
    let at_b = put(&b, token(&at_a), "m", 9).await.unwrap();
    town.store.held.add_permits(1);
    let written = write.await.unwrap().unwrap();
    assert_eq!(written.source, Source::Database, "the first try lost");
    assert_eq!((value(&written, "n"), value(&written, "m")), (Some(2), Some(9)));
    assert_eq!(value(&b.read(token(&at_b)).await.unwrap(), "n"), Some(2));
}

#[tokio::test]
async fn a_session_ends_for_all_and_no_writer_brings_it_back() {
    let town = Town::new();
    let (a, b) = (town.server(1, 1), town.server(2, 1));
    let at_a = put(&a, None, "n", 1).await.unwrap();
    let at_b = b.read(token(&at_a)).await.unwrap();
    // `a` writes with its own token and is held just before the store; `b` ends the session meanwhile.
    town.store.hold.store(true, Ordering::SeqCst);
    let write = {
        let (a, token) = (a.clone(), token(&at_a));
        tokio::spawn(async move { put(&a, token, "n", 2).await })
    };
    town.store.arrived.acquire().await.unwrap().forget();
    town.store.hold.store(false, Ordering::SeqCst);
    assert!(b.end(token(&at_b)).await.unwrap());
    town.store.held.add_permits(1);
    let written = write.await.unwrap().unwrap();
    assert_eq!((written.source, written.record.version, value(&written, "n")), (Source::New, 1, Some(2)));
    assert_ne!(written.id, at_a.id);
    assert_eq!(town.store.load(at_a.id).await.unwrap(), None);
    for server in [&a, &b, &town.server(3, 1)] {
        for token in [token(&at_a), token(&at_b)] {
            assert!(server.find(token).await.unwrap().is_none());
            assert!(!server.end(token).await.unwrap());
        }
    }
}

/// While a store of several processes cannot say what the others do, nothing is told from memory.
#[tokio::test]
async fn without_a_store_that_holds_nothing_is_told_from_memory() {
    let town = Town::new();
    let server = town.server(1, 1);
    let seen = put(&server, None, "n", 1).await.unwrap();
    assert_eq!(server.read(token(&seen)).await.unwrap().source, Source::Cache);
    town.store.holds.store(false, Ordering::SeqCst);
    assert_eq!(server.read(token(&seen)).await.unwrap().source, Source::Database);
    town.store.unavailable.store(true, Ordering::SeqCst);
    let read = server.read(token(&seen)).await.unwrap_err();
    assert!(matches!(read, SessionError::Store(StoreError::Unavailable { .. })), "{read}");
    let write = put(&server, token(&seen), "n", 2).await.unwrap_err();
    assert!(matches!(write, SessionError::Store(StoreError::Unavailable { .. })), "{write}");
    assert!(server.end(token(&seen)).await.is_err() && put(&server, None, "n", 1).await.is_err());
    // What it may tell from memory, it tells without the store.
    town.store.holds.store(true, Ordering::SeqCst);
    let after = server.read(token(&seen)).await.unwrap();
    assert_eq!((after.source, value(&after, "n")), (Source::Cache, Some(1)));
}

#[tokio::test]
async fn preconditions_and_receipts_are_looked_up_on_fresh_state() {
    let town = Town::new();
    let (a, b) = (town.server(1, 1), town.server(2, 1));
    let at_a = put(&a, None, "n", 1).await.unwrap();
    let condition = |seen: &Seen| Preconditions {
        if_match: Some(crate::session::Tags::Of(vec![seen.tag()])),
        ..Preconditions::default()
    };
    let terms = Terms { preconditions: condition(&at_a), ..Terms::default() };
    let add = |state: &mut State| {
        let next = state.get_as::<u64>("n").unwrap().unwrap_or(0) + 1;
        state.set_as("n", &next).unwrap();
        Ok(())
    };
    // Held before the store with a version that was right, until another server has made a new one.
    town.store.hold.store(true, Ordering::SeqCst);
    let write = {
        let (a, token) = (a.clone(), token(&at_a));
        tokio::spawn(async move { a.write_on(token, terms, add).await })
    };
    town.store.arrived.acquire().await.unwrap().forget();
    town.store.hold.store(false, Ordering::SeqCst);
    let once = Some(crate::session::Once::new(b"k", &[], None));
    let terms = Terms { once, ..Terms::default() };
    let made = b.write_on(token(&at_a), terms.clone(), add).await.unwrap();
    town.store.held.add_permits(1);
    let refused = write.await.unwrap().unwrap_err();
    let SessionError::Precondition { seen: Some(seen), .. } = &refused else { panic!("{refused}") };
    assert_eq!((seen.tag(), seen.source), (made.seen.tag(), Source::Database));
    // The receipt is found by the server that does not have the session in its memory, too.
    let again = a.write_on(token(&at_a), terms, add).await.unwrap();
    assert!(again.repeated && !made.repeated);
    assert_eq!((again.seen.tag(), value(&again.seen, "n")), (made.seen.tag(), Some(2)));
    assert!(a.end_on(token(&at_a), condition(&at_a)).await.is_err());
    assert!(a.end_on(token(&at_a), condition(&again.seen)).await.unwrap());
    assert!(a.end_on(token(&at_a), condition(&again.seen)).await.is_err(), "there is none that could match");
}

/// Servers that take one session from each other all the time: every one of them gets on.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn writers_of_many_servers_all_get_on() {
    const SERVERS: u16 = 8;
    const EACH: u64 = 25;
    let store: Arc<dyn SessionStore> = Arc::new(crate::session::MemoryStore::new());
    let peers: Arc<Peers> = Arc::default();
    let servers: Vec<_> = (0..SERVERS)
        .map(|slot| {
            let instance = watch::channel(instance(slot, 1)).1;
            let clock: Clock = Arc::new(|| 1_000_000);
            Sessions::new(instance, store.clone(), Limits::default(), peers.clone(), clock)
        })
        .collect();
    let first = token(&begun(&servers[0]).await);
    let work = servers.iter().cloned().flat_map(|server| {
        let reader = server.clone();
        let write = tokio::spawn(async move {
            for _ in 0..EACH {
                add_one(&server, first).await.unwrap();
            }
        });
        let read = tokio::spawn(async move {
            for _ in 0..EACH * 4 {
                reader.read(first).await.unwrap();
            }
        });
        [write, read]
    });
    for done in join_all(work).await {
        done.unwrap();
    }
    let after = servers[0].read(first).await.unwrap();
    assert_eq!(value(&after, "n"), Some(u64::from(SERVERS) * EACH));
}

/// Clients with tokens of different servers for one session, all at once: no increment is lost, and no read is older
/// than what was acknowledged before it began.
async fn counter_is_linearizable(seed: u64) {
    const SERVERS: u16 = 3;
    const CLIENTS: u64 = 6;
    const STEPS: u64 = 15;
    let town = Town::new();
    let servers: Vec<_> = (0..SERVERS).map(|slot| town.server(slot, 1)).collect();
    let begin = begun(&servers[0]).await;
    let acknowledged = Arc::new(AtomicU64::new(0));
    let clients = (0..CLIENTS).map(|client| {
        let servers = servers.clone();
        let acknowledged = acknowledged.clone();
        let mut token = token(&begin);
        let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(client) | 1;
        tokio::spawn(async move {
            let mut made = Vec::new();
            for _ in 0..STEPS {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let server = &servers[(random >> 8) as usize % servers.len()];
                let before = acknowledged.load(Ordering::SeqCst);
                if random & 1 == 0 {
                    let (seen, n) = add_one(server, token).await.unwrap();
                    assert!(n > before, "an increment was built on old state: {n} after {before}");
                    acknowledged.fetch_max(n, Ordering::SeqCst);
                    made.push(n);
                    token = self::token(&seen);
                } else {
                    let seen = server.read(token).await.unwrap();
                    let n = value(&seen, "n").unwrap_or(0);
                    assert!(n >= before, "read {n} after {before} was acknowledged ({:?})", seen.source);
                    // Some clients keep an old token.
                    if random & 2 == 0 {
                        token = self::token(&seen);
                    }
                }
            }
            made
        })
    });
    let mut made: Vec<u64> = join_all(clients).await.into_iter().flat_map(Result::unwrap).collect();
    made.sort_unstable();
    assert_eq!(made, (1..=made.len() as u64).collect::<Vec<_>>(), "every increment exactly once");
    let end = town.server(9, 1).read(token(&begin)).await.unwrap();
    assert_eq!(value(&end, "n").unwrap_or(0), made.len() as u64);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn counters_are_linearizable_on_one_thread_and_on_several(seed: u64) {
        let one = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        one.block_on(counter_is_linearizable(seed));
        let several = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build().unwrap();
        several.block_on(counter_is_linearizable(seed));
    }
}
