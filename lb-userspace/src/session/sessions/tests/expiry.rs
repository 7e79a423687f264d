//! Sessions that nobody asks for.

use super::*;

#[tokio::test]
async fn idle_sessions_expire_and_used_ones_do_not() {
    let mut town = Town::new();
    town.limits.idle = Duration::from_secs(100);
    town.limits.absolute = Duration::from_secs(1000);
    let server = town.server(1, 1);
    let seen = begun(&server).await;
    for _ in 0..9 {
        town.pass(Duration::from_secs(99));
        assert_eq!(server.read(token(&seen)).await.unwrap().id, seen.id, "used less than 100 s ago");
    }
    // Also when another server reads it from the database: uses were written down.
    town.pass(Duration::from_secs(99));
    let other = town.server(2, 1);
    let there = other.read(token(&seen)).await.unwrap();
    assert_eq!((there.id, there.source), (seen.id, Source::Database));
    town.pass(Duration::from_secs(20));
    assert_eq!(other.read(token(&there)).await.unwrap().source, Source::New, "1000 s are the end");
    let idle = begun(&server).await;
    town.pass(Duration::from_secs(111));
    let after = server.read(token(&idle)).await.unwrap();
    assert_eq!(after.source, Source::New, "the cached copy has expired as well");
    assert_ne!(after.id, idle.id);
}

/// A session, and a write to it that found it alive and reaches the store only when it has expired.
async fn a_late_write(town: &Town, by: &Arc<Sessions>) -> (Seen, JoinHandle<Result<Seen, SessionError>>) {
    let seen = put(by, None, "n", 1).await.unwrap();
    town.pass(Duration::from_secs(1));
    town.store.hold.store(true, Ordering::SeqCst);
    let late = tokio::spawn({
        let (by, token) = (by.clone(), token(&seen));
        async move { put(&by, token, "n", 2).await }
    });
    town.store.arrived.acquire().await.unwrap().forget();
    town.now.store(seen.record.expires, Ordering::SeqCst);
    assert!(seen.record.is_expired(town.now.load(Ordering::SeqCst)));
    (seen, late)
}

#[tokio::test]
async fn a_session_that_was_seen_to_have_expired_is_not_brought_back_by_a_late_write() {
    let town = Town::new();
    let (a, b) = (town.server(1, 1), town.server(2, 1));
    let (seen, late) = a_late_write(&town, &a).await;
    assert!(b.find(token(&seen)).await.unwrap().is_none());
    town.release();
    let written = late.await.unwrap().unwrap();
    assert_ne!(written.id, seen.id);
    assert_eq!((written.source, value(&written, "n")), (Source::New, Some(2)));
    for server in [&a, &b] {
        assert!(server.find(token(&seen)).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_session_that_nobody_saw_expire_lives_on_by_a_late_write() {
    let town = Town::new();
    let (a, b) = (town.server(1, 1), town.server(2, 1));
    let (seen, late) = a_late_write(&town, &a).await;
    town.release();
    assert_eq!(late.await.unwrap().unwrap().id, seen.id);
    assert_eq!(value(&b.find(token(&seen)).await.unwrap().unwrap(), "n"), Some(2));
}
