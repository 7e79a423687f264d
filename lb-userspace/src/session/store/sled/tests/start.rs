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
    let counted = store.shared.with(|trees| Ok(trees.db.remove("counts").unwrap())).unwrap();
    assert!(counted.is_some());
    drop(store);
    let store = place.open();
    assert_eq!((store.count().await.unwrap(), store.count_of(1), store.count_of(7)), (20, Some(20), Some(0)));
}

/// How often a start is interrupted; more with `LB_STORE_STARTS`.
fn starts() -> u64 {
    std::env::var("LB_STORE_STARTS").map_or(8, |text| text.parse().expect("LB_STORE_STARTS is a number"))
}

const DIRECTORY: &str = "LB_TEST_STORE";

/// Opens the store that its environment names, and writes to it until it is killed. Tells what was acknowledged.
#[tokio::test]
#[ignore = "is killed; a_kill_at_any_moment_of_a_start_loses_nothing runs it in a process of its own"]
async fn opens_and_writes_until_it_is_killed() {
    use std::io::Write;
    let store = SledStore::open_with(Path::new(&std::env::var(DIRECTORY).unwrap()), options()).unwrap();
    let text = "x".repeat(20_000);
    loop {
        for n in 1..SESSIONS {
            let found = store.load(id(n)).await.unwrap().map_or(0, |record| record.version);
            let next = Record { version: found + 1, revision: found + 1, ..record(1, &text) };
            store.save(id(n), &next, Some(found).filter(|version| *version > 0)).await.unwrap();
            // Whole lines only, and nothing in between.
            let _ = std::io::stderr().write_all(format!("acknowledged {n} {}\n", found + 1).as_bytes());
        }
    }
}

/// A start reads the log, writes a snapshot and zeroes what is behind the end; each moment may be the last.
#[tokio::test]
async fn a_kill_at_any_moment_of_a_start_loses_nothing() {
    use std::io::Read;
    use std::process::{Command, Stdio};
    let place = Place::new();
    filled(&place).await;
    let mut acknowledged = vec![8; SESSIONS as usize];
    let name = "session::store::sled::tests::start::opens_and_writes_until_it_is_killed";
    let mut dice = torn::Dice(1);
    for start in 0..starts() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", name])
            .env(DIRECTORY, place.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // Up to the end of the open, and somewhat beyond it.
        std::thread::sleep(std::time::Duration::from_micros(dice.below(120_000) as u64));
        child.kill().unwrap();
        child.wait().unwrap();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert!(!said.contains("panicked"), "start {start}: {said}");
        for line in said.lines().filter_map(|line| line.strip_prefix("acknowledged ")) {
            let (n, version) = line.split_once(' ').unwrap();
            acknowledged[n.parse::<usize>().unwrap()] = version.parse().unwrap();
        }
        // Not opened here each time, so that what one left is found by the next.
        if start % 4 == 3 {
            let store = place.open();
            for (n, version) in acknowledged.iter().enumerate().skip(1) {
                let found = store.load(id(n as u32)).await.unwrap().unwrap().version;
                assert!(
                    found >= *version,
                    "start {start}: session {n} has {found}, {version} was acknowledged"
                );
            }
            assert_eq!(store.count().await.unwrap(), u64::from(SESSIONS) - 1);
        }
    }
}

/// As a full disk does: of each file so many bytes can be written. Runs in a process of its own.
#[tokio::test]
#[ignore = "limits its whole process; no_room_at_any_moment_of_a_start_loses_nothing runs it in one of its own"]
async fn starts_without_room_in_a_process_of_its_own() {
    let place = Place::new();
    filled(&place).await;
    let image = torn::image(&place.path());
    let mut dice = torn::Dice(2);
    let mut refused = 0;
    for start in 0..starts() {
        let place = torn::restore(&image);
        // Nothing at all, some of a snapshot, some of the log.
        let room = dice.below([1, 600, 9 << 20][start as usize % 3]) as u64;
        failure::limit_file_size(room);
        let opened = SledStore::open_with(&place.path(), options());
        let refusal = opened.as_ref().err().map(ToString::to_string);
        drop(opened);
        failure::limit_file_size(libc::RLIM_INFINITY);
        refused += u32::from(refusal.is_some());
        whole(&place, &format!("start {start} with {room} bytes: {refusal:?}")).await;
    }
    assert!(refused > 0, "no start was short of room");
}

#[test]
fn no_room_at_any_moment_of_a_start_loses_nothing() {
    failure::in_its_own_process("start::starts_without_room_in_a_process_of_its_own");
}
