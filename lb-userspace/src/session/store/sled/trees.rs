//! The open database and what every thread may do with it: read sessions, claim them, and open it anew after a failure.

use super::count::{self, Counts, Tally};
use super::{CommitStats, FORMAT, FORMAT_KEY, SledOptions, StoreError, open, sessions};
use crate::panics;
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
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::{Semaphore, watch};

/// sled writes pages of at most 17 records (it splits above 16). What is larger than a quarter of a segment it puts
/// beside the log without ever making it durable, so a segment has room for four such pages.
pub(super) const SEGMENT_BYTES: usize = 8 << 20;
/// The largest record that goes into the log whatever its neighbours are.
pub(super) const MAX_RECORD_BYTES: usize = SEGMENT_BYTES / 4 / 18;
const _: () = assert!(MAX_STATE_BYTES * 3 / 2 + receipts::MAX_BYTES < MAX_RECORD_BYTES);

/// Sessions that may be handed over between two flushes: bounds what is remembered of them.
const MAX_CLAIMS: usize = 4096;

/// Threads that read at the same time.
const READERS: usize = 16;

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
    /// The log, never opened anew: what the kernel could not write is reported once to each descriptor.
    log: File,
    /// Why nothing is read or written any more in this process.
    stopped: watch::Sender<Option<String>>,
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
    /// Places for threads that read.
    readers: Arc<Semaphore>,
    /// How many sessions there are; of the committer.
    sessions: Mutex<Counts>,
    writes: AtomicU64,
    flushes: AtomicU64,
}

impl Shared {
    pub(super) fn open(path: &Path, options: SledOptions) -> Result<Self, StoreError> {
        let log = open::log(path)?;
        open::forget_cached_pages(path, &log)?;
        let (trees, sessions) = Trees::open(path, options, &log)?;
        Ok(Self {
            path: path.into(),
            options,
            log,
            stopped: watch::Sender::new(None),
            trees: RwLock::new(Some(trees)),
            pending: Mutex::default(),
            progress: watch::Sender::new(0),
            openings: AtomicU64::new(0),
            claims: Mutex::default(),
            copies: Mutex::default(),
            readers: Arc::new(Semaphore::new(READERS)),
            sessions: Mutex::new(sessions),
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
        self.running()?;
        match &*self.trees.read() {
            Some(trees) => work(trees),
            None => Err(StoreError::Failed("it could not be opened again after a failed write".into())),
        }
    }

    /// [`Shared::with`] on a thread that may wait for the disk.
    pub(super) async fn read<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, StoreError> {
        let place = self.readers.clone().acquire_owned().await.expect("the semaphore is never closed");
        let shared = self.clone();
        let reader = tokio::task::spawn_blocking(move || {
            let _place = place;
            catch_unwind(AssertUnwindSafe(|| work(&shared))).unwrap_or_else(|panic| {
                shared.stop(format!("a read panicked: {}", panics::message(&*panic)));
                shared.running().and(Err(StoreError::Closed))
            })
        });
        // Not done: the runtime ends.
        reader.await.unwrap_or(Err(StoreError::Closed))
    }

    /// Whether anything is read and written at all.
    pub(super) fn running(&self) -> Result<(), StoreError> {
        match &*self.stopped.borrow() {
            None => Ok(()),
            Some(reason) => Err(StoreError::Stopped { path: self.path.clone(), reason: reason.clone() }),
        }
    }

    /// From here on nothing is read or written in this process: what memory shows may not be on the disk.
    pub(super) fn stop(&self, reason: String) {
        let first = self.stopped.send_if_modified(|stopped| match stopped {
            Some(_) => false,
            None => {
                *stopped = Some(reason.clone());
                true
            }
        });
        if first {
            tracing::error!(
                path = %self.path.display(), reason,
                "the session store has stopped: nothing is acknowledged until it is opened by a new process"
            );
        }
    }

    /// Resolves when the store has stopped.
    pub(super) fn stops(&self) -> impl Future<Output = StoreError> + Send + 'static {
        let (mut stopped, path) = (self.stopped.subscribe(), self.path.clone());
        async move {
            match stopped.wait_for(Option::is_some).await {
                Ok(reason) => StoreError::Stopped { path, reason: reason.clone().unwrap_or_default() },
                Err(_) => StoreError::Closed,
            }
        }
    }

    /// What is wrong with the store, if anything is. Waits for nobody.
    pub(super) fn problem(&self) -> Option<StoreError> {
        if let Err(stopped) = self.running() {
            return Some(stopped);
        }
        let failed = |why: &str| Some(StoreError::Failed(why.into()));
        match self.trees.try_read().as_deref() {
            None => failed("it is being opened again after a failed write"),
            Some(None) => {
                failed("it could not be opened again after a failed write; tried with each request")
            }
            Some(Some(_)) => self.check_space().err(),
        }
    }

    /// Waits until nobody reads, and closes the database.
    pub(super) fn close(&self) {
        let Some(trees) = self.trees.write().take() else { return };
        if self.running().is_err() {
            // To close it, sled would write.
            std::mem::forget(trees);
            return;
        }
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| drop(trees))) {
            self.stop(format!("it could not be closed: {}", panics::message(&*panic)));
        }
    }

    /// How many sessions there are.
    pub(super) fn count(&self) -> Result<u64, StoreError> {
        self.running()?;
        Ok(self.sessions.lock().values().sum())
    }

    /// How many sessions a service has.
    pub(super) fn count_of(&self, service: u16) -> u64 {
        self.sessions.lock().get(&service).copied().unwrap_or(0)
    }

    /// Before a batch that may add or remove these sessions.
    pub(super) fn begin_count(&self, ids: Vec<SessionId>) -> Result<Tally, StoreError> {
        let before = self.sessions.lock().clone();
        self.with(|trees| Tally::begin(&trees.db, &trees.sessions, before, ids))
    }

    /// After that batch.
    pub(super) fn end_count(&self, tally: &Tally) -> Result<(), StoreError> {
        let total = self.with(|trees| tally.total(&trees.sessions))?;
        *self.sessions.lock() = total;
        Ok(())
    }

    /// A session as it durably is. What a batch under way has written can be seen in sled before it is durable: it is
    /// shown only once that batch is over, or looked up again if the batch failed.
    pub(super) async fn load(self: &Arc<Self>, id: SessionId) -> Result<Option<Record>, StoreError> {
        loop {
            let found = self.read(move |shared| shared.find(id)).await?;
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
        // Unless that one failed. Then, before it was over, the store stopped or the database was opened anew.
        self.running()?;
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

    /// Makes everything that was done so far durable. After an error nothing is acknowledged, and either the database
    /// was opened anew or the store has stopped.
    pub(super) fn flush(&self) -> Result<(), StoreError> {
        if armed(Fault::AckBeforeFlush) {
            return Ok(());
        }
        self.flushes.fetch_add(1, Ordering::Relaxed);
        let claims = std::mem::take(&mut *self.claims.lock());
        let flushed = self.with(|trees| Ok(trees.db.flush()))?;
        // In any case: `fdatasync` covers what was written through any descriptor of the file.
        let synced = self.log.sync_data();
        let Err(error) =
            flushed.map(drop).map_err(failed_write).and(synced.as_ref().map(drop).map_err(|error| {
                (
                    false,
                    StoreError::Failed(format!("cannot sync {}: {error}", self.path.join("db").display())),
                )
            }))
        else {
            return Ok(());
        };
        self.remember(claims);
        let (refused, error) = error;
        if refused && synced.is_ok() {
            // The kernel took nothing that it did not write, so the log on the disk is what can be read. sled goes on
            // from its end.
            self.reopen();
        } else {
            self.stop(error.to_string());
        }
        Err(error)
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
            let closed = catch_unwind(AssertUnwindSafe(|| *trees = None));
            if let Err(panic) = closed {
                return self.stop(format!("it could not be closed: {}", panics::message(&*panic)));
            }
            if let Err(error) = open::forget_cached_pages(&self.path, &self.log) {
                return self.stop(error.to_string());
            }
            match Trees::open(&self.path, self.options, &self.log) {
                Ok((opened, sessions)) => {
                    for (id, revision) in &*self.claims.lock() {
                        if let Err(error) = sessions::skip(&opened, *id, *revision) {
                            tracing::error!(session = %id, %error, "session not readable after the store was opened again");
                        }
                    }
                    tracing::info!(path = %self.path.display(), "session store opened again");
                    *self.sessions.lock() = sessions;
                    *trees = Some(opened);
                }
                Err(error) => tracing::error!(%error, "session store cannot be opened again"),
            }
        }
        for copies in self.copies.lock().iter().filter_map(Weak::upgrade) {
            copies.void_all();
        }
    }

    /// Whether it waits to be opened again. Waits for nobody itself.
    pub(super) fn is_shut(&self) -> bool {
        self.trees.try_read().is_some_and(|trees| trees.is_none())
    }

    pub(super) fn is_open(&self) -> bool {
        self.trees.read().is_some()
    }

    /// Keeps everybody from the database, as a slow disk does.
    #[cfg(test)]
    pub(super) fn hold(&self) -> impl Drop {
        self.trees.write()
    }

    /// Another file in the place of the log, such as one that cannot be synced.
    #[cfg(test)]
    pub(super) fn with_log(mut self, log: File) -> Self {
        self.log = log;
        self
    }

    pub(super) fn stats(&self) -> CommitStats {
        CommitStats {
            writes: self.writes.load(Ordering::Relaxed),
            flushes: self.flushes.load(Ordering::Relaxed),
        }
    }
}

impl Trees {
    /// With the numbers of sessions.
    fn open(path: &Path, options: SledOptions, log: &File) -> Result<(Self, Counts), StoreError> {
        let db = open::database(path, options, log)?;
        let open = |error: sled::Error| StoreError::Open { path: path.into(), reason: error.to_string() };
        match db.get(FORMAT_KEY).map_err(open)? {
            None if db.is_empty() && db.tree_names().len() <= 1 => {
                db.insert(FORMAT_KEY, FORMAT).map_err(open)?;
                db.flush().map_err(open)?;
            }
            Some(found) if &*found == FORMAT.as_bytes() => {}
            other => {
                let found = other.map_or("none".into(), |f| String::from_utf8_lossy(&f).into_owned());
                return Err(StoreError::Format { path: path.into(), found, expected: FORMAT.into() });
            }
        }
        let tree = |name: &str| db.open_tree(name).map_err(open);
        let sessions = tree("sessions")?;
        let count = count::recover(&db, &sessions)?;
        let trees = Self {
            sessions,
            epochs: tree("epochs")?,
            services: tree("services")?,
            slots: tree("slots")?,
            db,
        };
        Ok((trees, count))
    }
}

pub(super) fn failed(error: sled::Error) -> StoreError {
    StoreError::Failed(error.to_string())
}

/// A write of sled failed: whether the kernel refused it for want of room, and what to say.
fn failed_write(error: sled::Error) -> (bool, StoreError) {
    let refused = match &error {
        sled::Error::Io(error) => matches!(
            error.kind(),
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
        ),
        _ => false,
    };
    (refused, failed(error))
}
