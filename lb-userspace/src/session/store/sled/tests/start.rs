//! What an interrupted start, a full disk or a stranger left, and the store that opens all the same.

use super::*;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

const SESSIONS: u32 = 40;

/// A store with sessions in it, and more than one segment of log. Closed.
async fn filled(place: &Place) {
    let store = place.open();
    for round in 1..=8 {
        for n in 0..SESSIONS {
            let text = "x".repeat(40_000);
            let expected = (round > 1).then(|| round - 1);
            store.save(id(n), &record(round, &text), expected).await.unwrap();
        }
    }
    store.delete(id(0), 8).await.unwrap();
}

async fn whole(place: &Place, what: &str) {
    let store = SledStore::open_with(&place.path(), options())
        .unwrap_or_else(|error| panic!("{what}: it does not open: {error}"));
    assert_eq!(store.load(id(0)).await.unwrap(), None, "{what}");
    for n in 1..SESSIONS {
        assert_eq!(store.load(id(n)).await.unwrap().unwrap().version, 8, "{what}: session {n}");
    }
    assert_eq!(store.count().await.unwrap(), u64::from(SESSIONS) - 1, "{what}");
}

/// Names in the store's directory that begin so.
fn named(place: &Place, prefix: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(place.path()).unwrap().map(|entry| entry.unwrap().path());
    let begins = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().starts_with(prefix);
    entries.filter(begins).collect()
}

#[tokio::test]
async fn a_snapshot_that_was_never_finished_does_not_stop_a_start() {
    let place = Place::new();
    filled(&place).await;
    let left = place.path().join("snap.7FFFFFFFFFFFFFFF.generating");
    for bytes in [&b""[..], b"short", &[7; 5000]] {
        fs::write(&left, bytes).unwrap();
        whole(&place, &format!("{} bytes of a snapshot", bytes.len())).await;
        assert!(!left.exists());
    }
}

#[tokio::test]
async fn a_damaged_snapshot_is_set_aside_and_the_log_is_read() {
    let place = Place::new();
    for damage in 0..4 {
        filled_or_kept(&place, damage).await;
        let snapshots = named(&place, "snap.");
        assert_eq!(snapshots.len(), 1, "{snapshots:?}");
        let mut bytes = fs::read(&snapshots[0]).unwrap();
        match damage {
            0 => bytes.clear(),
            1 => bytes.truncate(bytes.len() / 2),
            2 => bytes[20] ^= 1,
            _ => bytes.fill(0xff),
        }
        fs::write(&snapshots[0], &bytes).unwrap();
        whole(&place, &format!("damage {damage}")).await;
        assert!(!named(&place, "damaged-snap.").is_empty(), "kept for whoever wants to know");
        whole(&place, "once more").await;
    }
}

/// Fills it the first time.
async fn filled_or_kept(place: &Place, round: u32) {
    if round == 0 {
        filled(place).await;
        whole(place, "as it was left").await;
    }
}

/// A log that is damaged itself is told as such, and nothing is moved.
#[tokio::test]
async fn a_damaged_log_is_refused_and_left_alone() {
    let place = Place::new();
    filled(&place).await;
    whole(&place, "as it was left").await;
    let snapshots = named(&place, "snap.");
    let log = place.path().join("db");
    fs::write(&log, vec![0x5a; fs::metadata(&log).unwrap().len() as usize]).unwrap();
    if let Err(error) = SledStore::open_with(&place.path(), options()) {
        let text = error.to_string();
        assert!(text.contains("damaged") && text.contains(&place.path().display().to_string()), "{text}");
        assert_eq!(named(&place, "snap."), snapshots);
        assert!(named(&place, "damaged-").is_empty());
    } else {
        panic!("a log of rubbish was taken");
    }
}

#[tokio::test]
async fn a_store_that_others_can_read_is_made_private() {
    let place = Place::new();
    filled(&place).await;
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
    for path in named(&place, "") {
        let mode = if path.is_dir() { 0o755 } else { 0o644 };
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }
    let _store = place.open();
    for path in named(&place, "").into_iter().chain([place.path()]) {
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{}: {mode:o}", path.display());
    }
}

#[tokio::test]
async fn a_directory_of_other_things_is_not_taken_for_a_store() {
    let place = Place::new();
    fs::create_dir(place.path()).unwrap();
    fs::set_permissions(place.path(), Permissions::from_mode(0o755)).unwrap();
    fs::write(place.path().join("notes.txt"), "mine").unwrap();
    let error = SledStore::open(&place.path()).err().unwrap().to_string();
    assert!(error.contains(&format!("chmod 700 {}", place.path().display())), "{error}");
    assert_eq!(fs::metadata(place.path()).unwrap().permissions().mode() & 0o777, 0o755, "left alone");
}

#[tokio::test]
async fn the_number_of_sessions_is_right_after_a_crash_at_any_batch() {
    let place = Place::new();
    let store = place.open();
    for n in 0..30u32 {
        store.save(id(n), &record(1, "a"), None).await.unwrap();
        if n % 3 == 0 {
            store.delete(id(n), 1).await.unwrap();
        }
        assert!(store.save(id(n + 1000), &record(2, "a"), Some(1)).await.is_err());
        // A copy of the files is what a crash leaves.
        let crashed = torn::restore(&torn::image(&place.path())).open();
        let there = crashed.shared.with(|trees| Ok(trees.sessions.len() as u64)).unwrap();
        assert_eq!((crashed.count().await.unwrap(), store.count().await.unwrap()), (there, there), "{n}");
    }
    // A store of a version that did not count.
    store.shared.with(|trees| Ok(drop(trees.db.remove("sessions").unwrap()))).unwrap();
    drop(store);
    assert_eq!(place.open().count().await.unwrap(), 20);
}
