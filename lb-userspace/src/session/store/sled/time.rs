//! The time by which sessions expire here: it goes on with the machine's boot clock, from where it was when the store was
//! last open. The wall clock is asked only for how long the machine was off, and believed only as far as that is safe: a
//! session may live longer by the time that the machine was off, and never shorter.

use super::StoreError;
use super::trees::{Trees, failed};
use crate::session::clock::TimeSource;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How long a machine may have been off, as a wall clock says that nobody keeps right.
const BELIEVED_MS: u64 = 10 * 60 * 1000;

/// Between two notes of the time.
const SAVE_MS: u64 = 60_000;

/// A wall clock that is off by more than this has jumped.
const JUMP_MS: u64 = 1000;

const KEY: &str = "time";

/// What the store remembers of the clocks: its high-water mark of time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    session: u64,
    wall: u64,
    boot: u64,
    boot_id: Option<u128>,
}

impl Mark {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        for word in [self.session, self.wall, self.boot] {
            bytes.extend(word.to_be_bytes());
        }
        bytes.extend(self.boot_id.unwrap_or(0).to_be_bytes());
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let bytes: &[u8; 40] = bytes.try_into().ok()?;
        let word = |at: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(word)
        };
        let boot_id = u128::from(word(24)) << 64 | u128::from(word(32));
        Some(Self {
            session: word(0),
            wall: word(8),
            boot: word(16),
            boot_id: Some(boot_id).filter(|id| *id != 0),
        })
    }

    pub(super) fn save(&self, trees: &Trees) -> Result<(), StoreError> {
        trees.db.insert(KEY, self.encode()).map(drop).map_err(failed)
    }
}

/// How far the time of sessions has come since a mark.
fn resumed(mark: &Mark, source: &dyn TimeSource) -> u64 {
    let off = source.wall().saturating_sub(mark.wall);
    let passed = match (mark.boot_id, source.boot_id()) {
        // The machine has run all the time. A clock of another namespace may be ahead, the wall clock may be: not both.
        (Some(then), Some(now)) if then == now => off.min(source.boot().saturating_sub(mark.boot)),
        _ if off <= BELIEVED_MS || source.is_synchronized() => off,
        _ => {
            tracing::warn!(
                seconds = off / 1000,
                "the wall clock is ahead of the session store's time and nobody keeps it right: sessions are as old as when \
                 the store was last open"
            );
            0
        }
    };
    if source.wall() + JUMP_MS < mark.wall {
        tracing::warn!(
            seconds = (mark.wall - source.wall()) / 1000,
            "the wall clock is behind the session store's time: sessions do not grow younger by it"
        );
    }
    mark.session.saturating_add(passed)
}

pub(super) struct SessionTime {
    source: Arc<dyn TimeSource>,
    /// The time when the boot clock was 0; may be before 1970.
    offset: i64,
    /// By the boot clock.
    saved: AtomicU64,
    /// How much the wall clock was ahead of the boot clock when last looked.
    wall: AtomicU64,
}

impl SessionTime {
    pub(super) fn open(trees: &Trees, source: Arc<dyn TimeSource>) -> Result<Self, StoreError> {
        let mark = trees.db.get(KEY).map_err(failed)?.and_then(|bytes| Mark::decode(&bytes));
        let now = mark.map_or_else(|| source.wall(), |mark| resumed(&mark, &*source));
        let boot = source.boot();
        let time = Self {
            offset: now as i64 - boot as i64,
            saved: AtomicU64::new(boot),
            wall: AtomicU64::new(source.wall().wrapping_sub(boot)),
            source,
        };
        time.mark().save(trees)?;
        Ok(time)
    }

    /// Milliseconds since 1970, as far as the store knows.
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.source.boot() as i64 + self.offset).unwrap_or(0)
    }

    fn mark(&self) -> Mark {
        Mark {
            session: self.now(),
            wall: self.source.wall(),
            boot: self.source.boot(),
            boot_id: self.source.boot_id(),
        }
    }

    /// What is to be written down now, if it is time for that. Tells when the wall clock has jumped.
    pub(super) fn due(&self) -> Option<Mark> {
        let boot = self.source.boot();
        let wall = self.source.wall().wrapping_sub(boot);
        let before = self.wall.swap(wall, Ordering::Relaxed);
        let jump = wall.wrapping_sub(before) as i64;
        if jump.unsigned_abs() > JUMP_MS {
            tracing::warn!(seconds = jump / 1000, "the wall clock jumped; no session ends by that");
        }
        let saved = self.saved.load(Ordering::Relaxed);
        if boot.saturating_sub(saved) < SAVE_MS && jump.unsigned_abs() <= JUMP_MS {
            return None;
        }
        self.saved.store(boot, Ordering::Relaxed);
        Some(self.mark())
    }
}

#[cfg(test)]
mod tests {
    use crate::session::clock::tests::Clocks;
    use crate::session::store::sled::{SledOptions, SledStore};
    use crate::session::{Owner, Receipts, Record, SessionStore, State};
    use lb_common::token::SessionId;
    use std::path::Path;
    use std::sync::Arc;
    use std::sync::atomic::Ordering;

    const YEARS: u64 = 3 * 365 * 86_400_000;
    const START: u64 = 10 * YEARS;
    const IDLE: u64 = 30 * 60_000;
    const ID: SessionId = SessionId([5; 16]);

    fn open(path: &Path, clocks: &Arc<Clocks>) -> SledStore {
        SledStore::open_at(path, SledOptions::default(), clocks.clone()).unwrap()
    }

    async fn begin(store: &SledStore) {
        let now = store.now().unwrap();
        let record = Record {
            version: 1,
            revision: 1,
            service: 1,
            owner: Owner::UNSETTLED,
            created: now,
            expires: now + IDLE,
            receipts: Receipts::default(),
            state: State::default(),
        };
        store.save(ID, &record, None).await.unwrap();
    }

    /// Neither a sweep by a wall clock gone wrong nor a read takes it away.
    async fn lives(store: &SledStore, clocks: &Clocks) -> bool {
        use crate::session::clock::TimeSource;
        store.sweep(clocks.wall(), None, 100).await.unwrap();
        let found = store.load(ID).await.unwrap();
        found.is_some_and(|record| !record.is_expired(store.now().unwrap()))
    }

    #[tokio::test]
    async fn a_wall_clock_that_jumps_years_while_the_store_is_open_ends_no_session() {
        for jump in [YEARS as i64, -(YEARS as i64)] {
            let dir = tempfile::tempdir().unwrap();
            let clocks = Clocks::at(START, 1_000);
            let store = open(dir.path(), &clocks);
            begin(&store).await;
            clocks.jump(jump);
            clocks.pass(IDLE - 1);
            assert!(lives(&store, &clocks).await, "{jump}");
            // And it ends when its time has come.
            clocks.pass(1);
            assert!(!lives(&store, &clocks).await, "{jump}");
        }
    }

    #[tokio::test]
    async fn a_wall_clock_that_jumped_years_while_the_store_was_closed_ends_no_session() {
        for jump in [YEARS as i64, -(YEARS as i64)] {
            for reboot in [false, true] {
                let dir = tempfile::tempdir().unwrap();
                let clocks = Clocks::at(START, 1_000);
                let store = open(dir.path(), &clocks);
                begin(&store).await;
                drop(store);
                clocks.pass(60_000);
                clocks.jump(jump);
                if reboot {
                    clocks.reboot();
                }
                let store = open(dir.path(), &clocks);
                assert!(lives(&store, &clocks).await, "{jump}, {reboot}");
                clocks.pass(IDLE);
                assert!(!lives(&store, &clocks).await, "{jump}, {reboot}: it must end some time");
            }
        }
    }

    #[tokio::test]
    async fn a_machine_that_was_off_for_long_is_believed_when_its_clock_is_kept_right() {
        for (synchronized, off, ended) in
            [(true, 86_400_000, true), (false, 86_400_000, false), (false, 5 * 60_000, false)]
        {
            let dir = tempfile::tempdir().unwrap();
            let clocks = Clocks::at(START, 1_000);
            let store = open(dir.path(), &clocks);
            begin(&store).await;
            drop(store);
            clocks.pass(off);
            clocks.reboot();
            clocks.synchronized.store(synchronized, Ordering::SeqCst);
            let store = open(dir.path(), &clocks);
            assert_eq!(!lives(&store, &clocks).await, ended, "{synchronized}, {off}");
        }
    }

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let mark = super::Mark { session: 1, wall: 2, boot: 3, boot_id: Some(u128::MAX - 5) };
        assert_eq!(super::Mark::decode(&mark.encode()), Some(mark));
        assert_eq!(super::Mark::decode(&mark.encode()[1..]), None);
    }
}
