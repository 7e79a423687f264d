//! The open database and what every thread may do with it: read sessions, claim them, and open it anew after a failure.

use super::sessions;
use super::{CommitStats, SledOptions, StoreError};
use crate::session::Copies;
use crate::session::fault::{Fault, armed};
use crate::session::receipts;
use crate::session::record::{Owner, Record};
use crate::session::store::MAX_STATE_BYTES;
use lb_common::token::SessionId;
use parking_lot::{Mutex, RwLock};
use sled::{Db, Tree};
use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Of everything in the directory; grows with any change that this version could not read.
const FORMAT: &str = "2";

/// sled writes pages of at most 17 records (it splits above 16). What is larger than a quarter of a segment it puts
/// beside the log without ever making it durable, so a segment has room for four such pages.
const SEGMENT_BYTES: usize = 8 << 20;
/// The largest record that goes into the log whatever its neighbours are.
pub(super) const MAX_RECORD_BYTES: usize = SEGMENT_BYTES / 4 / 18;
const _: () = assert!(MAX_STATE_BYTES * 3 / 2 + receipts::MAX_BYTES < MAX_RECORD_BYTES);

/// Sessions that may be handed over between two flushes: bounds what is remembered of them.
const MAX_CLAIMS: usize = 4096;

/// How long sled's own threads may take to let go of the files of a database that was closed.
const RELEASE: Duration = Duration::from_secs(5);

/// The collections of the database.
#[derive(Clone)]
pub(super) struct Trees {
    pub(super) db: Db,
    /// Session id → record.
    pub(super) sessions: Tree,
    /// Slot → last epoch given out, u32.
    pub(super) epochs: Tree,
    /// Service name → id, u16.
    pub(super) services: Tree,
    /// Length of the service's name, the service's name, the backend's name → slot, u16.
    pub(super) slots: Tree,
}

/// A session as it was found, durable or not.
pub(super) struct Found {
    record: Option<Record>,
    /// Which opening of the database it was found in.
    opening: u64,
}

/// What the committer and the readers share.
pub(super) struct Shared {
    path: PathBuf,
    options: SledOptions,
    /// `None` while it could not be opened again after a failure.
    trees: RwLock<Option<Trees>>,
    /// Sessions that a batch under way may have changed, with that batch.
    pending: Mutex<HashMap<SessionId, u64>>,
    /// The last batch that is over.
    progress: watch::Sender<u64>,
    /// How often the database was opened anew; changes only while nobody reads.
    openings: AtomicU64,
    /// The latest revisions of sessions that were handed over since the last flush began.
    claims: Mutex<HashMap<SessionId, u64>>,
    /// Of the servers in this process.
    copies: Mutex<Vec<Weak<dyn Copies>>>,
    writes: AtomicU64,
    flushes: AtomicU64,
}

impl Shared {
    pub(super) fn open(path: &Path, options: SledOptions) -> Result<Self, StoreError> {
        Ok(Self {
            path: path.into(),
            options,
            trees: RwLock::new(Some(Trees::open(path, options)?)),
            pending: Mutex::default(),
            progress: watch::Sender::new(0),
            openings: AtomicU64::new(0),
            claims: Mutex::default(),
            copies: Mutex::default(),
            writes: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Does something with the open database.
    pub(super) fn with<T>(
        &self,
        work: impl FnOnce(&Trees) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        match &*self.trees.read() {
            Some(trees) => work(trees),
            None => Err(StoreError::Failed("it could not be opened again after a failed write".into())),
        }
    }

    /// A session as it durably is. What a batch under way has written can be seen in sled before it is durable: it is
    /// shown only once that batch is over, or looked up again if the batch failed.
    pub(super) async fn load(&self, id: SessionId) -> Result<Option<Record>, StoreError> {
        loop {
            let found = self.find(id)?;
            if self.is_durable(id, &found).await? {
                return Ok(found.record);
            }
        }
    }

    pub(super) fn find(&self, id: SessionId) -> Result<Found, StoreError> {
        self.with(|trees| {
            let opening = self.openings.load(Ordering::SeqCst);
            Ok(Found { record: sessions::load(trees, id)?, opening })
        })
    }

    /// Waits until it is known whether what was found is on the disk, and tells.
    pub(super) async fn is_durable(&self, id: SessionId, found: &Found) -> Result<bool, StoreError> {
        // Looked up after the record was read: a batch that is over by now was over for the record, too.
        let batch = self.pending.lock().get(&id).copied();
        if let Some(batch) = batch {
            let mut progress = self.progress.subscribe();
            progress.wait_for(|done| *done >= batch).await.map_err(|_| StoreError::Closed)?;
        }
        // Unless that one failed. Then the database was opened anew before it was over.
        Ok(self.openings.load(Ordering::SeqCst) == found.opening)
    }

    pub(super) fn claim(
        &self,
        id: SessionId,
        expected: u64,
        owner: Owner,
        expires: u64,
    ) -> Result<Owner, StoreError> {
        self.check_space()?;
        self.with(|trees| {
            let before = sessions::claim(trees, id, expected, owner, expires)?;
            self.remember([(id, expected + 1)]);
            Ok(before)
        })
    }

    /// Remembers revisions that are not durable.
    fn remember(&self, claims: impl IntoIterator<Item = (SessionId, u64)>) {
        let mut all = self.claims.lock();
        for (id, revision) in claims {
            let latest = all.entry(id).or_insert(revision);
            *latest = revision.max(*latest);
        }
    }

    /// Whether so many sessions were handed over since the last flush that it is time for another.
    pub(super) fn has_many_claims(&self) -> bool {
        self.claims.lock().len() >= MAX_CLAIMS
    }

    /// Refuses a write that could find the disk full.
    pub(super) fn check_space(&self) -> Result<(), StoreError> {
        let stat = nix::sys::statvfs::statvfs(&self.path)
            .map_err(|errno| StoreError::Failed(format!("cannot see how much space is free: {errno}")))?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        let reserve = self.options.reserve_bytes;
        if free >= reserve {
            return Ok(());
        }
        Err(StoreError::NoSpace { path: self.path.clone(), free, reserve })
    }

    pub(super) fn begin(&self, batch: u64, sessions: impl Iterator<Item = SessionId>) {
        self.pending.lock().extend(sessions.map(|id| (id, batch)));
    }

    /// A batch is over. It is no longer pending before anyone can learn that it is over.
    pub(super) fn finish(&self, batch: u64, writes: usize) {
        self.pending.lock().clear();
        self.writes.fetch_add(writes as u64, Ordering::Relaxed);
        self.progress.send_replace(batch);
    }

    /// Makes everything that was done so far durable.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        if armed(Fault::AckBeforeFlush) {
            return Ok(());
        }
        self.flushes.fetch_add(1, Ordering::Relaxed);
        let claims = std::mem::take(&mut *self.claims.lock());
        let flushed = self.with(|trees| {
            trees.db.flush().map_err(failed)?;
            let log = self.path.join("db");
            // `fdatasync` covers what was written through any descriptor of the file.
            File::open(&log)
                .and_then(|log| log.sync_data())
                .map_err(|error| StoreError::Failed(format!("cannot sync {}: {error}", log.display())))
        });
        if flushed.is_err() {
            self.remember(claims);
        }
        flushed
    }

    pub(super) fn watch(&self, copies: Weak<dyn Copies>) {
        let mut all = self.copies.lock();
        all.retain(|known| known.strong_count() > 0 && !known.ptr_eq(&copies));
        all.push(copies);
    }

    /// Opens the database anew: after a failed write sled refuses everything, and in memory it holds what never reached
    /// the disk. Claims are lost with that: the database again names owners that have been told to forget their copies,
    /// beside others that have just made one. So all forget theirs, before the next write. And the revisions of those
    /// claims must not come again with other state: somebody may still have a change under way that is based on one.
    pub(super) fn reopen(&self) {
        {
            let mut trees = self.trees.write();
            self.openings.fetch_add(1, Ordering::SeqCst);
            *trees = None;
            match Trees::open(&self.path, self.options) {
                Ok(opened) => {
                    for (id, revision) in &*self.claims.lock() {
                        if let Err(error) = sessions::skip(&opened, *id, *revision) {
                            tracing::error!(session = %id, %error, "session not readable after the store was opened again");
                        }
                    }
                    tracing::info!(path = %self.path.display(), "session store opened again");
                    *trees = Some(opened);
                }
                Err(error) => tracing::error!(%error, "session store cannot be opened again"),
            }
        }
        for copies in self.copies.lock().iter().filter_map(Weak::upgrade) {
            copies.void_all();
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.trees.read().is_some()
    }

    pub(super) fn stats(&self) -> CommitStats {
        CommitStats {
            writes: self.writes.load(Ordering::Relaxed),
            flushes: self.flushes.load(Ordering::Relaxed),
        }
    }
}

impl Trees {
    fn open(path: &Path, options: SledOptions) -> Result<Self, StoreError> {
        let db = open_sled(path, options)?;
        let open = |error: sled::Error| StoreError::Open { path: path.into(), reason: error.to_string() };
        match db.get("format").map_err(open)? {
            None if db.is_empty() && db.tree_names().len() <= 1 => {
                db.insert("format", FORMAT).map_err(open)?;
                db.flush().map_err(open)?;
            }
            Some(found) if &*found == FORMAT.as_bytes() => {}
            other => {
                let found = other.map_or("none".into(), |f| String::from_utf8_lossy(&f).into_owned());
                return Err(StoreError::Format { path: path.into(), found, expected: FORMAT.into() });
            }
        }
        let tree = |name: &str| db.open_tree(name).map_err(open);
        Ok(Self {
            sessions: tree("sessions")?,
            epochs: tree("epochs")?,
            services: tree("services")?,
            slots: tree("slots")?,
            db,
        })
    }
}

/// Opens sled. The directory is ours alone by now, so a lock that is still held is held by threads of a database that
/// this process has just closed; they tell nobody when they are done.
fn open_sled(path: &Path, options: SledOptions) -> Result<Db, StoreError> {
    let config = sled::Config::new()
        .path(path)
        .segment_size(SEGMENT_BYTES)
        .cache_capacity(options.cache_bytes)
        .flush_every_ms(None);
    let give_up = Instant::now() + RELEASE;
    loop {
        match config.open() {
            Ok(db) => return Ok(db),
            Err(sled::Error::Io(error))
                if error.to_string().contains("could not acquire lock") && Instant::now() < give_up =>
            {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(sled::Error::Unsupported(reason)) => {
                return Err(StoreError::Format {
                    path: path.into(),
                    found: reason,
                    expected: format!("sled 0.34, format {FORMAT}"),
                });
            }
            Err(error) => return Err(StoreError::Open { path: path.into(), reason: error.to_string() }),
        }
    }
}

pub(super) fn failed(error: sled::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}
