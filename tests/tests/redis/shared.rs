//! Two processes, as far as Redis can tell, with two servers each, share some sessions while connections are cut, servers
//! freeze, restart and fail over, and processes are taken for dead. Whatever is told must be the latest state.
//!
//! Every change appends its number to the session's log, so the version of an answer says which changes must be in it.

use futures::future::join_all;
use lb_common::hash::mix64;
use lb_common::token::{SessionId, Token};
use lb_userspace::session::{
    Instance, Limits, Peers, RedisOptions, RedisStore, Seen, SessionStore, Sessions, Source, StoreError,
    unix_millis,
};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tests::redis::Redis;
use tokio::sync::watch;

const SERVICE: u16 = 1;
const SESSIONS: usize = 3;
const CLIENTS: usize = 8;
const LEASE: Duration = Duration::from_millis(500);

/// Numbers that a seed determines.
struct Dice(u64);

impl Dice {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        (mix64(self.0) % n as u64) as usize
    }
}

/// What a client was told.
#[derive(Clone, Debug)]
struct Told {
    began: Instant,
    ended: Instant,
    #[expect(dead_code, reason = "it is printed when something is wrong")]
    by: usize,
    source: Source,
    /// Its own change, if it made one.
    change: Option<u32>,
    version: u64,
    log: Vec<u32>,
}

struct World {
    servers: Vec<Arc<Sessions>>,
    _instances: Vec<watch::Sender<Instance>>,
    stores: Vec<Arc<RedisStore>>,
}

impl World {
    async fn new(redis: &Redis) -> Self {
        let mut world = Self { servers: Vec::new(), _instances: Vec::new(), stores: Vec::new() };
        for process in 0..2 {
            let options = RedisOptions {
                nodes: redis.urls(),
                lease: LEASE,
                deadline: Duration::from_millis(800),
                ..RedisOptions::default()
            };
            let store = Arc::new(RedisStore::open(options).await.unwrap());
            let peers = Arc::<Peers>::default();
            for server in 0..2 {
                let slot = process * 2 + server;
                let epoch = store.next_epoch(slot).await.unwrap();
                let instance = Instance { service: SERVICE, slot, epoch, name: format!("s{slot}") };
                let (sender, receiver) = watch::channel(instance);
                let clock: lb_userspace::session::Clock = Arc::new(unix_millis);
                let store: Arc<dyn SessionStore> = store.clone();
                world.servers.push(Sessions::new(receiver, store, Limits::default(), peers.clone(), clock));
                world._instances.push(sender);
            }
            world.stores.push(store);
        }
        world
    }

    /// A token that the server made itself, so that it may answer from memory.
    fn token(&self, server: usize, session: SessionId) -> Token {
        let Instance { slot, epoch, .. } = self.servers[server].instance();
        Token { key_id: 0, service: SERVICE, slot, epoch, session }
    }

    /// Reads and changes sessions at servers chosen at random, until told to stop.
    async fn client(
        &self,
        seed: u64,
        ids: &[SessionId],
        stop: &AtomicBool,
        next: &AtomicU32,
    ) -> Vec<(usize, Told)> {
        let (mut dice, mut told) = (Dice(seed), Vec::new());
        while !stop.load(Ordering::Relaxed) {
            let (which, by) = (dice.below(ids.len()), dice.below(self.servers.len()));
            let (token, server) = (Some(self.token(by, ids[which])), &self.servers[by]);
            let change = (dice.below(4) == 0).then(|| next.fetch_add(1, Ordering::Relaxed));
            let began = Instant::now();
            let answer = match change {
                None => server.find(token).await,
                Some(change) => {
                    let append = move |state: &mut lb_userspace::session::State| {
                        let mut log: Vec<u32> = state.get_as("log").unwrap().unwrap_or_default();
                        log.push(change);
                        state.set_as("log", &log).unwrap();
                        Ok(())
                    };
                    server.amend(token, append).await.map(|made| made.map(|(seen, ())| seen))
                }
            };
            let Ok(answer) = answer else { continue };
            let Seen { record, source, .. } = answer.expect("nobody ends a session here");
            let log: Vec<u32> = record.state.get_as("log").unwrap().unwrap_or_default();
            let version = record.version;
            told.push((which, Told { began, ended: Instant::now(), by, source, change, version, log }));
            tokio::time::sleep(Duration::from_millis(dice.below(4) as u64)).await;
        }
        told
    }
}

/// Whether there is an order in which all of this can be true.
fn check(told: &[Told]) {
    let mut logs: BTreeMap<u64, &Told> = BTreeMap::new();
    let mut made = BTreeMap::new();
    for one in told {
        assert_eq!(one.log.len() as u64 + 1, one.version, "a change was lost, or made twice: {one:?}");
        let first = logs.entry(one.version).or_insert(one);
        assert_eq!(first.log, one.log, "version {} is not the same for all: {first:?}, {one:?}", one.version);
        if let Some(change) = one.change {
            assert_eq!(one.log.last(), Some(&change), "{one:?}");
            assert!(made.insert(one.version, one).is_none(), "two changes made version {}", one.version);
        }
    }
    let mut before: &[u32] = &[];
    for one in logs.values() {
        assert!(one.log.starts_with(before), "{before:?} is not the past of {one:?}");
        before = &one.log;
    }
    let (mut by_begin, mut by_end): (Vec<&Told>, Vec<&Told>) = (told.iter().collect(), told.iter().collect());
    by_begin.sort_by_key(|one| one.began);
    by_end.sort_by_key(|one| one.ended);
    let mut ended = by_end.into_iter().peekable();
    let mut newest: Option<&Told> = None;
    for one in by_begin {
        while let Some(over) = ended.next_if(|over| over.ended < one.began) {
            if newest.is_none_or(|newest| newest.version < over.version) {
                newest = Some(over);
            }
        }
        if let Some(newest) = newest {
            let least = newest.version + u64::from(one.change.is_some());
            assert!(one.version >= least, "an old state was told: {newest:?}, then {one:?}");
        }
    }
}

/// Lets clients work while `trouble` makes some, and checks all that they were told.
async fn live_through(redis: Redis, seed: u64, trouble: impl FnOnce(Redis, Dice) -> Redis + Send + 'static) {
    println!("seed {seed}");
    let world = World::new(&redis).await;
    let first = &world.servers[0];
    let mut ids = Vec::new();
    while ids.len() < SESSIONS {
        ids.push(first.write(None, |_| Ok(())).await.unwrap().0.id);
    }
    let (stop, next) = (AtomicBool::new(false), AtomicU32::new(0));
    let troubling = tokio::task::spawn_blocking(move || trouble(redis, Dice(seed)));
    let clients = (0..CLIENTS as u64).map(|n| world.client(mix64(seed ^ n), &ids, &stop, &next));
    let (told, _redis) = tokio::join!(join_all(clients), async {
        let redis = troubling.await.unwrap();
        // All is well again: so must be the store.
        let begin = Instant::now();
        while !world.stores.iter().all(|store| store.holds() && store.state().available) {
            assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", world.stores[0].state());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        stop.store(true, Ordering::Relaxed);
        redis
    });
    let mut of: Vec<Vec<Told>> = vec![Vec::new(); SESSIONS];
    told.into_iter().flatten().for_each(|(which, told)| of[which].push(told));
    for (which, told) in of.iter().enumerate() {
        let last = loop {
            match world.servers[0].find(Some(world.token(0, ids[which]))).await {
                Ok(seen) => break seen.unwrap(),
                Err(lb_userspace::session::SessionError::Store(StoreError::Unavailable { .. })) => {}
                Err(error) => panic!("{error}"),
            }
        };
        let log: Vec<u32> = last.record.state.get_as("log").unwrap().unwrap_or_default();
        let lost = told.iter().filter_map(|one| one.change).find(|change| !log.contains(change));
        assert_eq!(lost, None, "an acknowledged change is lost");
        check(told);
    }
    let cached = of.iter().flatten().filter(|one| one.source == Source::Cache).count();
    let changes = of.iter().flatten().filter(|one| one.change.is_some()).count();
    let total: usize = of.iter().map(Vec::len).sum();
    println!("{total} answers, {cached} of them from memory, {changes} changes");
    // On a busy machine all this takes its time.
    assert!(cached > 10 && changes > 10, "too little happened to tell anything");
}

fn seed() -> u64 {
    match std::env::var("SEED") {
        Ok(seed) => seed.parse().unwrap(),
        Err(_) => unix_millis(),
    }
}

fn pause(dice: &mut Dice, least: u64, range: usize) {
    std::thread::sleep(Duration::from_millis(least + dice.below(range) as u64));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_old_is_told_whatever_becomes_of_one_server() {
    live_through(Redis::single().unwrap(), seed(), |mut redis, mut dice| {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(6) {
            pause(&mut dice, 50, 250);
            match dice.below(6) {
                0 | 1 => drop(redis.ask(0, &["CLIENT", "KILL", "TYPE", "normal"]).unwrap()),
                2 => {
                    redis.stop(0).unwrap();
                    pause(&mut dice, 100, 1200);
                    redis.resume(0).unwrap();
                }
                3 => {
                    for node in redis.ask(0, &["KEYS", "lb:{mail}:n:*"]).unwrap().lines() {
                        redis.ask(0, &["DEL", node]).unwrap();
                    }
                }
                4 => drop(redis.ask(0, &["INCRBY", "lb:{mail}:last", "3"]).unwrap()),
                _ => {
                    redis.kill(0).unwrap();
                    redis.restart(0).unwrap();
                }
            }
        }
        redis
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_old_is_told_whatever_becomes_of_a_cluster() {
    live_through(Redis::cluster().unwrap(), seed(), |redis, mut dice| {
        let begin = Instant::now();
        while begin.elapsed() < Duration::from_secs(8) {
            pause(&mut dice, 200, 400);
            let shard = dice.below(3);
            let primary = if redis.primaries().contains(&shard) { shard } else { shard + 3 };
            let replica = (primary + 3) % 6;
            match dice.below(5) {
                0 => drop(redis.ask(primary, &["CLIENT", "KILL", "TYPE", "normal"]).unwrap()),
                1 => {
                    redis.stop(replica).unwrap();
                    pause(&mut dice, 100, 900);
                    redis.resume(replica).unwrap();
                }
                // A frozen one is replaced, if it takes long enough, and wakes up believing that nothing happened.
                2 => {
                    redis.stop(primary).unwrap();
                    pause(&mut dice, 500, 4000);
                    redis.resume(primary).unwrap();
                }
                // May be refused while the last one is not over.
                3 => drop(redis.ask(replica, &["CLUSTER", "FAILOVER", "FORCE"])),
                _ => drop(redis.ask(replica, &["CLUSTER", "FAILOVER"])),
            }
        }
        redis.await_cluster().unwrap();
        redis
    })
    .await;
}
