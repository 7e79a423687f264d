//! Many requests of one session while the store does not answer.

use super::*;
use tokio::time::Instant;

#[tokio::test(start_paused = true)]
async fn requests_of_one_session_do_not_wait_for_a_store_one_after_the_other() {
    const REQUESTS: usize = 20;
    let store = Arc::new(Trial::new(Arc::new(crate::session::MemoryStore::new())));
    let instance = watch::channel(instance(1, 1)).1;
    let server =
        Sessions::new(instance, store.clone(), Limits::default(), Arc::default(), Arc::new(|| 1_000_000));
    let seen = begun(&server).await;
    store.hold.store(true, Ordering::SeqCst);
    let begin = Instant::now();
    let requests = (0..REQUESTS).map(|n| {
        let (server, token) = (server.clone(), token(&seen));
        tokio::spawn(async move { put(&server, token, "n", n as u64).await })
    });
    let requests: Vec<_> = requests.collect();
    store.arrived.acquire().await.unwrap().forget();
    // The first one waits for the store, which has a deadline of its own; here it is asked for ever.
    let mut requests = requests.into_iter();
    let first = requests.next().unwrap();
    for other in requests {
        let error = other.await.unwrap().unwrap_err();
        assert!(matches!(error, SessionError::Busy), "{error}");
    }
    assert_eq!(begin.elapsed().as_secs(), store.patience().as_secs());
    store.hold.store(false, Ordering::SeqCst);
    store.held.add_permits(1);
    first.await.unwrap().unwrap();
    assert_eq!(
        put(&server, token(&seen), "n", 7).await.unwrap().record.version,
        3,
        "none of the others was made"
    );
}
