//! Visitors that have changed nothing yet.

use super::*;
use crate::session::{Once, Tags, Target};

fn if_match(seen: &Seen) -> Preconditions {
    Preconditions { if_match: Some(Tags::Of(vec![seen.tag()])), if_none_match: None }
}

#[tokio::test]
async fn a_visit_without_a_write_leaves_nothing_behind_and_keeps_its_token() {
    let town = Town::new();
    let server = town.server(1, 1);
    let first = server.read(None).await.unwrap();
    assert_eq!((first.source, first.record.version, first.owner), (Source::New, 0, server.owner()));
    for _ in 0..3 {
        let again = server.read(token(&first)).await.unwrap();
        assert_eq!((again.id, again.source, again.record.version), (first.id, Source::New, 0));
        assert!(server.find(token(&first)).await.unwrap().is_none());
        assert!(server.amend(token(&first), |_| Ok(())).await.unwrap().is_none());
    }
    assert_eq!((town.store.count().await.unwrap(), server.cached()), (0, (0, 0)));
    let written = put(&server, token(&first), "n", 1).await.unwrap();
    assert_eq!((written.id, written.source, written.record.version), (first.id, Source::New, 1));
    assert_eq!(town.store.load(first.id).await.unwrap().as_ref(), Some(&*written.record));
    assert_eq!(server.read(token(&first)).await.unwrap().source, Source::Cache);
}

#[tokio::test]
async fn a_visit_goes_on_at_other_servers_and_after_a_restart() {
    let town = Town::new();
    let first = town.server(1, 1).read(None).await.unwrap();
    let (restarted, other) = (town.server(1, 2), town.server(2, 1));
    let there = other.read(token(&first)).await.unwrap();
    assert_eq!((there.id, there.owner.slot), (first.id, 2));
    let back = restarted.read(token(&there)).await.unwrap();
    assert_eq!((back.id, back.owner.epoch), (first.id, 2));
    let written = put(&other, token(&back), "n", 1).await.unwrap();
    assert_eq!((written.id, written.owner.slot), (first.id, 2));
    // Whoever has the oldest token is shown what another server has begun.
    let seen = restarted.read(token(&first)).await.unwrap();
    assert_eq!((seen.id, seen.source, value(&seen, "n")), (first.id, Source::Database, Some(1)));
}

#[tokio::test]
async fn first_changes_that_come_at_once_are_all_in_one_session() {
    let town = Town::new();
    let servers: Vec<_> = (1..4).map(|slot| town.server(slot, 1)).collect();
    let first = token(&servers[0].read(None).await.unwrap());
    let writes = (0..30).map(|n| {
        let server = servers[n % 3].clone();
        tokio::spawn(async move { add_one(&server, first).await.unwrap() })
    });
    let mut made = Vec::new();
    for done in join_all(writes).await {
        let (seen, n) = done.unwrap();
        assert_eq!(Some(seen.id), first.map(|token| token.session));
        made.push(n);
    }
    made.sort_unstable();
    assert_eq!(made, (1..=30).collect::<Vec<_>>());
    assert_eq!(town.store.count().await.unwrap(), 1);
}

#[tokio::test]
async fn what_a_visitor_was_shown_is_a_version_to_compare_with() {
    let town = Town::new();
    let server = town.server(1, 1);
    let first = server.read(None).await.unwrap();
    let change = |state: &mut State| {
        state.set_as("n", &1).unwrap();
        Ok(())
    };
    let any = |target: Target| Terms {
        target,
        preconditions: Preconditions { if_match: Some(Tags::Any), if_none_match: None },
        ..Terms::default()
    };
    // There is nothing yet.
    for target in [Target::Session, Target::Key("n".into())] {
        let refused = server.write_on(token(&first), any(target), change).await.unwrap_err();
        let SessionError::Precondition { unmet: Unmet::IfMatch, seen: Some(seen) } = refused else {
            panic!("{refused}")
        };
        assert_eq!((seen.id, seen.record.version), (first.id, 0));
    }
    let of_another = Terms { preconditions: if_match(&server.read(None).await.unwrap()), ..Terms::default() };
    assert!(server.write_on(token(&first), of_another, change).await.is_err());
    assert_eq!(town.store.count().await.unwrap(), 0);
    let once = Some(Once::new(b"k", &[b"put"], None));
    let terms = Terms { preconditions: if_match(&first), once, ..Terms::default() };
    let made = server.write_on(token(&first), terms.clone(), change).await.unwrap();
    assert!(made.created && !made.repeated && made.seen.id == first.id);
    let again = server.write_on(token(&first), terms.clone(), change).await.unwrap();
    assert!(again.created && again.repeated && again.seen.tag() == made.seen.tag());
    let late = Terms { once: None, ..terms };
    assert!(server.write_on(token(&first), late, change).await.is_err(), "version 0 is no more");
}

#[tokio::test]
async fn a_refused_first_change_begins_nothing() {
    let mut town = Town::new();
    town.limits.max_value_bytes = 3;
    let server = town.server(1, 1);
    let first = server.read(None).await.unwrap();
    assert!(matches!(put(&server, token(&first), "a", 1000).await, Err(SessionError::TooLarge(_))));
    let refuse = |_: &mut State| -> Result<(), Refusal> { Err(Refusal::NotFound("no".into())) };
    assert!(server.write(token(&first), refuse).await.is_err());
    assert_eq!(town.store.count().await.unwrap(), 0);
}

#[tokio::test]
async fn a_session_that_ended_is_not_begun_again_with_its_old_token() {
    let mut town = Town::new();
    town.limits.idle = Duration::from_secs(100);
    let (a, b) = (town.server(1, 1), town.server(2, 1));
    let visit = a.read(None).await.unwrap();
    assert!(!a.end(token(&visit)).await.unwrap(), "there was nothing");
    let first = put(&a, token(&visit), "n", 1).await.unwrap();
    assert!(b.end(token(&first)).await.unwrap());
    let renewed = a.read(None).await.unwrap();
    let renewed_first = put(&a, token(&renewed), "n", 1).await.unwrap();
    let other = b.renew(token(&renewed_first)).await.unwrap().unwrap();
    assert_eq!(value(&other, "n"), Some(1));
    for _ in 0..2 {
        for old in [token(&visit), token(&first), token(&renewed)] {
            for server in [&a, &b, &town.server(3, 1)] {
                assert!(server.find(old).await.unwrap().is_none());
                assert!(!server.end(old).await.unwrap());
                assert!(server.renew(old).await.unwrap().is_none());
                let anew = put(server, old, "n", 2).await.unwrap();
                assert_ne!(Some(anew.id), old.map(|old| old.session));
                let read = server.read(old).await.unwrap();
                assert_ne!(Some(read.id), old.map(|old| old.session));
            }
        }
        // Nor when nothing is left of it.
        town.pass(Duration::from_secs(100 + 61));
        town.store.sweep(u64::MAX, None, 1000).await.unwrap();
    }
}

#[tokio::test]
async fn a_visitor_that_stays_away_gets_another_id() {
    let mut town = Town::new();
    town.limits.idle = Duration::from_secs(100);
    let server = town.server(1, 1);
    let first = server.read(None).await.unwrap();
    town.pass(Duration::from_secs(99));
    assert_eq!(server.read(token(&first)).await.unwrap().id, first.id);
    town.pass(Duration::from_secs(1));
    assert_ne!(server.read(token(&first)).await.unwrap().id, first.id);
    let written = put(&server, token(&first), "n", 1).await.unwrap();
    assert_ne!(written.id, first.id);
}

#[tokio::test]
async fn a_renewed_visit_is_another_one_and_stores_nothing() {
    let town = Town::new();
    let server = town.server(1, 1);
    let planted = server.read(None).await.unwrap();
    let renewed = server.renew(token(&planted)).await.unwrap().unwrap();
    assert_ne!(renewed.id, planted.id);
    assert_eq!((renewed.record.version, town.store.count().await.unwrap()), (0, 0));
    let refused = server.renew_on(token(&renewed), if_match(&planted)).await.unwrap_err();
    let SessionError::Precondition { seen: Some(seen), .. } = refused else { panic!("{refused}") };
    assert_eq!(seen.id, renewed.id);
    assert!(server.renew_on(token(&renewed), if_match(&renewed)).await.unwrap().is_some());
}

/// Whether it was written is not known; then the same token finds it, or begins it.
#[tokio::test]
async fn a_first_change_of_unknown_outcome_is_found_by_its_token() {
    let town = Town::new();
    let server = town.server(1, 1);
    let first = server.read(None).await.unwrap();
    town.store.fail_saves.store(true, Ordering::SeqCst);
    assert!(put(&server, token(&first), "n", 1).await.is_err());
    town.store.fail_saves.store(false, Ordering::SeqCst);
    let after = put(&server, token(&first), "m", 2).await.unwrap();
    assert_eq!((after.id, value(&after, "n"), after.source), (first.id, Some(1), Source::Database));
}

/// A token alone needs no store.
#[tokio::test]
async fn a_new_visitor_is_answered_while_the_store_is_away() {
    let town = Town::new();
    let server = town.server(1, 1);
    town.store.unavailable.store(true, Ordering::SeqCst);
    let first = server.read(None).await.unwrap();
    assert!(server.read(token(&first)).await.is_err(), "whether it was written cannot be seen");
    assert!(put(&server, token(&first), "n", 1).await.is_err());
    town.store.unavailable.store(false, Ordering::SeqCst);
    assert_eq!(put(&server, token(&first), "n", 1).await.unwrap().id, first.id);
}
