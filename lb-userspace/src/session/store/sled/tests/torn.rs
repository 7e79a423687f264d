//! What a crash leaves on the disk: of all that was written after the last acknowledged flush any part may be there, in any
//! order, or be cut off, or be rubbish. What was acknowledged before is there whole.

use super::*;
use std::collections::BTreeMap;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The kernel writes back whole pages; a disk writes whole sectors.
const SECTOR: usize = 512;

/// The files of a store at one moment.
pub(super) type Image = BTreeMap<PathBuf, Vec<u8>>;

pub(super) fn image(path: &Path) -> Image {
    let mut files = Image::new();
    let mut dirs = vec![path.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let found = entry.unwrap().path();
            if found.is_dir() {
                dirs.push(found);
            } else if let Ok(bytes) = fs::read(&found) {
                // A snapshot may be gone again.
                files.insert(found.strip_prefix(path).unwrap().to_owned(), bytes);
            }
        }
    }
    files
}

pub(super) fn restore(image: &Image) -> Place {
    let place = Place::new();
    for (name, bytes) in image {
        let file = place.path().join(name);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, bytes).unwrap();
    }
    fs::create_dir_all(place.path().join("blobs")).unwrap();
    place
}

/// Numbers that follow from a seed.
pub(super) struct Dice(pub(super) u64);

impl Dice {
    /// One below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 ^ self.0 >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((mixed >> 32) as usize) % n.max(1)
    }
}

/// How the last writes were torn.
#[derive(Clone, Copy, Debug)]
enum Tear {
    /// Cut off somewhere.
    Cut,
    /// Some sectors are there, some are not.
    Scattered,
    /// From somewhere on there is rubbish.
    Rubbish,
}

/// One file, after some of what happened to it between two moments.
fn torn(before: &[u8], after: &[u8], tear: Tear, dice: &mut Dice) -> Vec<u8> {
    let changed: Vec<usize> = (0..after.len().div_ceil(SECTOR))
        .map(|sector| sector * SECTOR)
        .filter(|at| {
            let end = (at + SECTOR).min(after.len());
            before.get(*at..end) != Some(&after[*at..end])
        })
        .collect();
    let mut file = before.to_vec();
    let mut put = |at: usize, bytes: &[u8]| {
        file.resize(file.len().max(at + bytes.len()), 0);
        file[at..at + bytes.len()].copy_from_slice(bytes);
    };
    let sector = |at: usize| &after[at..(at + SECTOR).min(after.len())];
    let kept = dice.below(changed.len() + 1);
    match tear {
        Tear::Cut => {
            changed[..kept].iter().for_each(|at| put(*at, sector(*at)));
            if let Some(at) = changed.get(kept) {
                // In the middle of a sector, too.
                put(*at, &sector(*at)[..dice.below(sector(*at).len())]);
            }
        }
        Tear::Scattered => {
            changed.iter().filter(|_| dice.below(2) == 0).for_each(|at| put(*at, sector(*at)));
        }
        Tear::Rubbish => {
            changed[..kept].iter().for_each(|at| put(*at, sector(*at)));
            for at in &changed[kept..] {
                // A sector is written whole or not at all: what it had before is there.
                let byte = |(n, new): (usize, &u8)| match before.get(at + n) {
                    Some(old) if old == new => *old,
                    _ => dice.below(256) as u8,
                };
                let rubbish: Vec<u8> = sector(*at).iter().enumerate().map(byte).collect();
                put(*at, &rubbish);
            }
        }
    }
    file
}

fn large(version: u64, bytes: usize) -> Record {
    record(version, &"x".repeat(bytes))
}

/// Sessions before the last flush, and after it.
type Known = BTreeMap<u32, [Option<Record>; 2]>;

async fn check(image: &Image, known: &Known, epoch: u32, what: &str) {
    let place = restore(image);
    let store = SledStore::open_with(&place.path(), options())
        .unwrap_or_else(|error| panic!("{what}: it does not open: {error}"));
    for (n, [before, after]) in known {
        let found = store.load(id(*n)).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(
            found == *before || found == *after,
            "{what}: session {n} has version {:?}",
            found.map(|record| record.version)
        );
    }
    let there = store.shared.with(|trees| Ok(trees.sessions.len() as u64)).unwrap();
    assert_eq!(store.count().await.unwrap(), there, "{what}: the number of sessions");
    assert!(store.next_epoch(3).await.unwrap() > epoch, "{what}: an epoch was given out twice");
    // It goes on from there.
    store.save(id(u32::MAX), &record(1, "new"), None).await.unwrap();
    drop(store);
    assert!(place.open().load(id(u32::MAX)).await.unwrap().is_some(), "{what}");
}

async fn tear_last_batch(sessions: u32, bytes: usize, rounds: u64, images: u64) {
    let place = Place::new();
    let store = place.open();
    let mut known = Known::new();
    let mut dice = Dice(bytes as u64);
    for n in 0..sessions {
        let new = large(1, bytes);
        store.save(id(n), &new, None).await.unwrap();
        known.insert(n, [Some(new.clone()), Some(new)]);
    }
    for round in 0..rounds {
        let epoch = store.next_epoch(3).await.unwrap();
        let before = image(&place.path());
        known.values_mut().for_each(|[before, after]| *before = after.clone());
        // A batch as the committer does it: some change, some end, some are new.
        let fresh = sessions + round as u32 * 10;
        let tally = store.shared.begin_count((0..fresh + 10).map(id).collect()).unwrap();
        store
            .shared
            .with(|trees| {
                for n in 0..fresh {
                    if dice.below(3) > 0 {
                        continue;
                    }
                    let [before, after] = known.get_mut(&n).unwrap();
                    let Some(old) = before else { continue };
                    *after = (dice.below(5) > 0).then(|| large(old.version + 1, bytes));
                    match after {
                        Some(new) => {
                            sessions::save(trees, id(n), &new.encode(), Some(old.revision)).map(drop)?
                        }
                        None => sessions::delete(trees, id(n), old.revision)?,
                    }
                }
                for n in fresh..fresh + 10 {
                    let new = large(1, bytes);
                    sessions::save(trees, id(n), &new.encode(), None)?;
                    known.insert(n, [None, Some(new)]);
                }
                Ok(())
            })
            .unwrap();
        store.shared.end_count(&tally).unwrap();
        store.shared.flush().unwrap();
        let after = image(&place.path());
        check(&before, &known, epoch, "the copy of an open store").await;
        for n in 0..images {
            let seed = round << 32 | n << 8 | 5;
            let tear = [Tear::Cut, Tear::Scattered, Tear::Rubbish][n as usize % 3];
            let mut dice = Dice(seed);
            let mut crashed = before.clone();
            for (name, bytes) in &after {
                let old = before.get(name).map_or(&[][..], Vec::as_slice);
                crashed.insert(name.clone(), torn(old, bytes, tear, &mut dice));
            }
            check(&crashed, &known, epoch, &format!("{tear:?}, seed {seed}")).await;
        }
    }
}

#[tokio::test]
async fn a_torn_last_batch_takes_nothing_else_with_it() {
    tear_last_batch(60, 100, 3, 15).await;
}

/// The log wraps around: what is written takes the place of what was there before.
#[tokio::test]
async fn a_torn_last_batch_of_large_sessions_takes_nothing_else_with_it() {
    tear_last_batch(100, 30_000, 3, 6).await;
}

/// A backup that was taken while others wrote has all that was acknowledged before it began.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_taken_at_any_moment_opens() {
    const SESSIONS: u32 = 50;
    let place = Place::new();
    let store = Arc::new(place.open());
    let acknowledged: Arc<Vec<AtomicU64>> = Arc::new((0..SESSIONS).map(|_| AtomicU64::new(1)).collect());
    for n in 0..SESSIONS {
        store.save(id(n), &large(1, 2_000), None).await.unwrap();
    }
    let stop = Arc::new(AtomicBool::new(false));
    let writers: Vec<_> = (0..4)
        .map(|writer| {
            let (store, acknowledged, stop) = (store.clone(), acknowledged.clone(), stop.clone());
            tokio::spawn(async move {
                let mut dice = Dice(u64::from(writer));
                while !stop.load(Ordering::SeqCst) {
                    // Each has sessions of its own.
                    let n = writer + 4 * dice.below(SESSIONS as usize / 4) as u32;
                    let version = acknowledged[n as usize].load(Ordering::SeqCst);
                    store.save(id(n), &large(version + 1, 2_000), Some(version)).await.unwrap();
                    acknowledged[n as usize].store(version + 1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let mut writes = 0;
    for copy in 0..20 {
        // At another distance from the copy before.
        while store.stats().writes < writes + 37 * (1 + copy % 5) {
            tokio::task::yield_now().await;
        }
        writes = store.stats().writes;
        let before: Vec<u64> = acknowledged.iter().map(|version| version.load(Ordering::SeqCst)).collect();
        let copied = restore(&image(&place.path()));
        let copied = copied.open();
        for (n, before) in before.into_iter().enumerate() {
            let found = copied.load(id(n as u32)).await.unwrap().unwrap();
            assert!(found.version >= before, "copy {copy}: session {n} has {}, not {before}", found.version);
            assert_eq!(found, large(found.version, 2_000));
        }
    }
    stop.store(true, Ordering::SeqCst);
    for writer in writers {
        writer.await.unwrap();
    }
}
