//! Who may answer from memory, and how the others learn that it may not any more.

use super::*;

/// For tests in which nobody may wait for the lease to end: a machine would have to be very busy to take as long.
const LONG: Duration = Duration::from_secs(20);

async fn open_for_long(redis: &Redis) -> RedisStore {
    RedisStore::open(RedisOptions { lease: LONG, ..options(redis) }).await.unwrap()
}

/// That nobody else has a copy is written down after the answer.
async fn settled(store: &RedisStore, n: u32) {
    let begin = Instant::now();
    while store.load(id(n)).await.unwrap().unwrap().owner == Owner::UNSETTLED {
        assert!(begin.elapsed() < Duration::from_secs(20), "still not settled");
    }
}

/// Makes a node, 8 bytes, the only holder of a session.
fn hold(redis: &Redis, n: u32, node: &str) {
    let script = "local m = redis.call('HGET', KEYS[1], 'm')
        redis.call('HSET', KEYS[1], 'm', string.sub(m, 1, 48) .. ARGV[1])";
    redis.ask(0, &["EVAL", script, "1", &format!("lb:s:{{{}}}", id(n)), node]).unwrap();
}

#[tokio::test]
async fn a_takeover_is_over_once_the_other_process_has_forgotten() {
    let redis = Redis::single().unwrap();
    let (here, there) = (open_for_long(&redis).await, open_for_long(&redis).await);
    let (told_here, told_there) = (Told::to(&here), Told::to(&there));
    holding(&here).await;
    holding(&there).await;
    here.save(id(1), &record(1, "a"), None).await.unwrap();
    assert_eq!(here.load(id(1)).await.unwrap().unwrap().owner, ME);
    // Whatever the record says: who wants to answer for it has to claim it.
    assert_eq!(there.load(id(1)).await.unwrap().unwrap().owner, Owner::UNSETTLED);
    let begin = Instant::now();
    assert_eq!(there.claim(id(1), 1, OTHER, u64::MAX).await.unwrap(), ME);
    assert!(begin.elapsed() < LONG, "it waited for the lease to end: {:?}", begin.elapsed());
    assert_eq!(told_here.sessions(), [id(1)]);
    assert_eq!(told_there.sessions(), []);
    assert_eq!(here.load(id(1)).await.unwrap().unwrap().owner, Owner::UNSETTLED);
    settled(&there, 1).await;
    // Settled: changes of the owner's concern nobody else.
    let next = Record { owner: OTHER, ..record(3, "b") };
    assert_eq!(there.save(id(1), &next, Some(2)).await.unwrap(), Some(OTHER));
    assert_eq!(there.load(id(1)).await.unwrap(), Some(next));
    assert_eq!(told_here.sessions(), [id(1)]);
    // An end is an end everywhere.
    let begin = Instant::now();
    here.delete(id(1), 3).await.unwrap();
    assert!(begin.elapsed() < LONG, "it waited for the lease to end: {:?}", begin.elapsed());
    assert_eq!(told_there.sessions(), [id(1)]);
    assert_eq!(there.load(id(1)).await.unwrap(), None);
}

#[tokio::test]
async fn a_process_that_said_goodbye_is_not_waited_for() {
    let redis = Redis::single().unwrap();
    let (here, there) = (open_for_long(&redis).await, open_for_long(&redis).await);
    holding(&there).await;
    for n in 0..100 {
        here.save(id(n), &record(1, "a"), None).await.unwrap();
    }
    drop(here);
    let begin = Instant::now();
    for result in join_all((0..100).map(|n| there.claim(id(n), 1, OTHER, u64::MAX))).await {
        assert_eq!(result.unwrap(), ME);
    }
    assert!(begin.elapsed() < LONG, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_process_that_was_killed_is_waited_for_once() {
    let redis = Redis::single().unwrap();
    let there = open(&redis).await;
    holding(&there).await;
    // As a kill -9 leaves it: a holder that says nothing any more, and whose name is gone.
    let dead = "\x01\x02\x03\x04\x05\x06\x07\x08";
    for n in 0..100 {
        there.save(id(n), &record(1, "a"), None).await.unwrap();
        hold(&redis, n, dead);
    }
    let begin = Instant::now();
    for result in join_all((0..100).map(|n| there.claim(id(n), 1, OTHER, u64::MAX))).await {
        assert_eq!(result.unwrap(), ME);
    }
    let first = begin.elapsed();
    assert!(first >= LEASE && first < LEASE * 3, "{first:?}");
    // Its name is known to be of the dead now.
    there.save(id(100), &record(1, "a"), None).await.unwrap();
    hold(&redis, 100, dead);
    let begin = Instant::now();
    there.claim(id(100), 1, OTHER, u64::MAX).await.unwrap();
    assert!(begin.elapsed() < LEASE, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn a_process_that_hangs_is_waited_for_until_its_lease_is_over() {
    let redis = Redis::single().unwrap();
    let there = open(&redis).await;
    holding(&there).await;
    there.save(id(1), &record(1, "a"), None).await.unwrap();
    hold(&redis, 1, "\x01\x02\x03\x04\x05\x06\x07\x08");
    redis.ask(0, &["SET", "lb:{mail}:n:0102030405060708", "1"]).unwrap();
    let begin = Instant::now();
    assert_eq!(there.claim(id(1), 1, OTHER, u64::MAX).await.unwrap(), ME);
    assert!(begin.elapsed() >= LEASE && begin.elapsed() < LEASE * 3, "{:?}", begin.elapsed());
}

#[tokio::test]
async fn an_end_that_was_not_told_is_told_by_whoever_finds_it() {
    let redis = Redis::single().unwrap();
    let (here, there) = (open(&redis).await, open(&redis).await);
    let told = Told::to(&here);
    holding(&here).await;
    holding(&there).await;
    here.save(id(1), &record(1, "a"), None).await.unwrap();
    // Somebody ended it and died before telling anybody.
    redis.ask(0, &["HDEL", &format!("lb:s:{{{}}}", id(1)), "r"]).unwrap();
    assert_eq!(there.load(id(1)).await.unwrap(), None);
    assert_eq!(told.sessions(), [id(1)]);
}

#[tokio::test]
async fn memory_is_not_trusted_without_news_from_the_server() {
    let redis = Redis::single().unwrap();
    let store = open(&redis).await;
    holding(&store).await;
    let stopped = Instant::now();
    redis.stop(0).unwrap();
    until("the lease is over", || !store.holds()).await;
    assert!(stopped.elapsed() < LEASE * 3, "{:?}", stopped.elapsed());
    redis.resume(0).unwrap();
    holding(&store).await;
}

#[tokio::test]
async fn whoever_was_believed_dead_forgets_everything() {
    let redis = Redis::single().unwrap();
    let store = open(&redis).await;
    let told = Told::to(&store);
    holding(&store).await;
    store.save(id(1), &record(1, "a"), None).await.unwrap();
    let before = told.all();
    for key in redis.ask(0, &["KEYS", "lb:{mail}:n:*"]).unwrap().lines() {
        redis.ask(0, &["DEL", key]).unwrap();
    }
    until("it was noticed", || told.all() > before).await;
    holding(&store).await;
    // What it held under its former name, it no longer holds.
    assert_eq!(store.load(id(1)).await.unwrap().unwrap().owner, Owner::UNSETTLED);
    let begin = Instant::now();
    store.claim(id(1), 1, ME, u64::MAX).await.unwrap();
    assert!(begin.elapsed() < LEASE, "it waited for itself");
    settled(&store, 1).await;
    assert_eq!(store.load(id(1)).await.unwrap().unwrap().owner, ME);
}

#[tokio::test]
async fn whoever_missed_a_message_forgets_everything() {
    let redis = Redis::single().unwrap();
    let store = open(&redis).await;
    let told = Told::to(&store);
    holding(&store).await;
    let before = told.all();
    redis.ask(0, &["INCRBY", "lb:{mail}:last", "7"]).unwrap();
    assert_eq!(told.all(), before);
    let other = open(&redis).await;
    other.next_epoch(3).await.unwrap();
    until("the gap was noticed", || told.all() > before).await;
}

/// Somebody who takes long to forget one session.
struct Slow {
    session: SessionId,
    free: Mutex<mpsc::Receiver<()>>,
    told: Told,
}

impl Copies for Slow {
    fn void(&self, id: SessionId) {
        if id == self.session {
            self.free.lock().unwrap().recv().unwrap();
        }
        self.told.void(id);
    }
    fn void_all(&self) {
        self.told.void_all();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_behind_has_no_lease_before_it_has_read_everything() {
    let redis = Redis::single().unwrap();
    let (here, there) = (Arc::new(open(&redis).await), open(&redis).await);
    let (free, waits) = mpsc::channel();
    let slow = Arc::new(Slow { session: id(0), free: Mutex::new(waits), told: Told::default() });
    let copies: Arc<dyn Copies> = slow.clone();
    here.watch(Arc::downgrade(&copies));
    holding(&here).await;
    holding(&there).await;
    for n in 0..2 {
        here.save(id(n), &record(1, "a"), None).await.unwrap();
    }
    let before = slow.told.all();
    // It hears nothing while it is busy with this, and much is said meanwhile.
    let busy = there.claim(id(0), 1, OTHER, u64::MAX);
    let chatter = "for _ = 1, ARGV[1] do
        local n = redis.call('INCR', KEYS[2])
        redis.call('XADD', KEYS[1], string.format('%.0f-0', n), 'm', '?')
    end";
    let behind = async {
        until("it is busy", || slow.free.try_lock().is_err()).await;
        redis.ask(0, &["EVAL", chatter, "2", "lb:{mail}", "lb:{mail}:last", "20000"]).unwrap();
        there.claim(id(1), 1, OTHER, u64::MAX).await
    };
    let (first, second) = futures::join!(busy, behind);
    assert_eq!((first.unwrap(), second.unwrap()), (ME, ME));
    assert!(!here.holds() && slow.told.sessions().is_empty());
    let holds = tokio::task::spawn_blocking(move || {
        let begin = Instant::now();
        while !here.holds() {
            assert!(begin.elapsed() < Duration::from_secs(20), "it has no lease any more");
        }
        let told = &slow.told;
        // Should it have been believed dead meanwhile, it has forgotten everything.
        assert!(told.sessions().contains(&id(1)) || told.all() > before, "{:?}", told.sessions());
    });
    free.send(()).unwrap();
    holds.await.unwrap();
}

#[tokio::test]
async fn whoever_waits_for_messages_that_were_deleted_begins_anew() {
    let redis = Redis::single().unwrap();
    let (here, there) = (open(&redis).await, open(&redis).await);
    let told = [Told::to(&here), Told::to(&there)];
    holding(&here).await;
    holding(&there).await;
    for _ in 0..5 {
        there.next_epoch(3).await.unwrap();
    }
    let heard = || redis.ask(0, &["GET", "lb:{mail}:last"]).unwrap().trim().parse() == Ok(5);
    until("all were told", heard).await;
    let before = [told[0].all(), told[1].all()];
    redis.ask(0, &["DEL", "lb:{mail}", "lb:{mail}:last"]).unwrap();
    until("it was noticed", || told[0].all() > before[0] && told[1].all() > before[1]).await;
    holding(&here).await;
    holding(&there).await;
    here.save(id(1), &record(1, "a"), None).await.unwrap();
    let begin = Instant::now();
    assert_eq!(there.claim(id(1), 1, OTHER, u64::MAX).await.unwrap(), ME);
    assert!(begin.elapsed() < LEASE, "it was not heard: {:?}", begin.elapsed());
    assert_eq!(told[0].sessions(), [id(1)]);
}
