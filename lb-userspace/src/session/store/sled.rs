//! The embedded store: sled, one directory, one process, owned by lbd.
//!
//! Two things sled 0.34 does not do are done here. A flush of sled writes its log with `sync_file_range`, which
//! promises nothing about a power failure: [`commit`] follows it with `fdatasync`. And sled refuses everything after one
//! failed write: writes are refused before the disk is full. A write that the kernel refuses all the same, for want of
//! room, is followed by opening the database anew. After any other failure the page cache may show what the disk does not
//! have: the store stops, until another process opens it.

mod commit;
mod count;
mod names;
mod open;
mod sessions;
#[cfg(test)]
mod tests;
mod time;
mod trees;

use super::{Answer, Copies, Cursor, Given, SessionStore, Slice, StoreError, StoreState, Swept};
use crate::lock_file::{self, LockError};
use crate::session::clock::{SystemClocks, TimeSource};
use crate::session::record::{Owner, Record};
use commit::{Committer, Queue, Touches};
use futures::FutureExt;
use futures::future::BoxFuture;
use lb_common::token::SessionId;
use nix::fcntl::Flock;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use time::SessionTime;
use trees::Shared;

/// Of everything in the directory; grows with any change that this version could not read.
const FORMAT: &str = "2";
/// Where it stands in the default tree.
const FORMAT_KEY: &str = "format";

/// Sessions of a service that end in one step when it is forgotten.
const FORGOTTEN_AT_ONCE: usize = 1000;

/// How the store uses memory and disk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SledOptions {
    /// Bytes of memory for sled's page cache.
    pub cache_bytes: u64,
    /// Writes are refused while less than this is free where the store is, in bytes: sled needs room to recover.
    pub reserve_bytes: u64,
}

impl Default for SledOptions {
    fn default() -> Self {
        Self { cache_bytes: 128 << 20, reserve_bytes: 64 << 20 }
    }
}

/// How much work group commit saved.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CommitStats {
    /// Writes acknowledged or refused.
    pub writes: u64,
    /// Times the disk was asked to make something durable.
    pub flushes: u64,
}

/// [`SessionStore`] on sled. Shared by all servers of an lbd.
pub struct SledStore {
    shared: Arc<Shared>,
    time: SessionTime,
    queue: Option<Queue>,
    committer: Option<JoinHandle<()>>,
    /// Held for as long as the store is open.
    _lock: Flock<File>,
}

impl SledStore {
    /// Opens the store in directory `path`, or creates it there (mode 0700).
    ///
    /// # Errors
    /// [`StoreError::Locked`] while another process has it open, [`StoreError::Format`] when another version wrote it,
    /// [`StoreError::Open`] for everything else.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        Self::open_with(path, SledOptions::default())
    }

    /// As [`SledStore::open`].
    ///
    /// # Errors
    /// The same.
    pub fn open_with(path: &Path, options: SledOptions) -> Result<Self, StoreError> {
        Self::open_at(path, options, SystemClocks::shared())
    }

    /// As [`SledStore::open`], with other clocks than the machine's, for tests.
    ///
    /// # Errors
    /// The same.
    pub fn open_at(
        path: &Path,
        options: SledOptions,
        clocks: Arc<dyn TimeSource>,
    ) -> Result<Self, StoreError> {
        let (mut store, committer) = Self::prepare_at(path, options, clocks)?;
        store.start(committer)?;
        Ok(store)
    }

    /// What group commit did since the store was opened.
    pub fn stats(&self) -> CommitStats {
        self.shared.stats()
    }

    /// A store that takes writes but does not do them yet.
    #[cfg(test)]
    fn prepare(path: &Path, options: SledOptions) -> Result<(Self, Committer), StoreError> {
        Self::prepare_at(path, options, SystemClocks::shared())
    }

    fn prepare_at(
        path: &Path,
        options: SledOptions,
        clocks: Arc<dyn TimeSource>,
    ) -> Result<(Self, Committer), StoreError> {
        open::directory(path)?;
        let lock = lock(path)?;
        let shared = Arc::new(Shared::open(path, options)?);
        let time = shared.with(|trees| SessionTime::open(trees, clocks))?;
        let (queue, committer) = commit::pair(shared.clone());
        Ok((Self { shared, time, queue: Some(queue), committer: None, _lock: lock }, committer))
    }

    fn start(&mut self, committer: Committer) -> Result<(), StoreError> {
        let thread = std::thread::Builder::new()
            .name("session-commit".into())
            .spawn(move || committer.run())
            .map_err(|error| StoreError::Open {
                path: self.shared.path().into(),
                reason: format!("cannot start its thread: {error}"),
            })?;
        self.committer = Some(thread);
        Ok(())
    }

    fn queue(&self) -> &Queue {
        self.queue.as_ref().expect("the queue is taken only when the store is dropped")
    }
}

impl Drop for SledStore {
    /// Finishes what was queued, so that the directory is free for the next one when this returns.
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.committer.take()
            && thread.join().is_err()
        {
            tracing::error!("the commit thread of the session store panicked");
        }
        self.shared.close();
    }
}

impl SessionStore for SledStore {
    fn load(&self, id: SessionId) -> Answer<'_, Option<Record>> {
        if self.shared.is_shut() {
            // Opened again by the committer, whoever asks.
            drop(self.queue().submit(Touches::default(), |_| Ok(())));
        }
        self.shared.load(id).boxed()
    }

    fn save<'a>(
        &'a self,
        id: SessionId,
        record: &Record,
        expected: Option<u64>,
    ) -> Answer<'a, Option<Owner>> {
        let bytes = record.encode();
        let touches = Touches { ids: vec![id], counted: expected.is_none(), frees: false };
        self.queue().submit(touches, move |trees| sessions::save(trees, id, &bytes, expected))
    }

    fn claim(&self, id: SessionId, expected: u64, owner: Owner, expires: u64) -> Answer<'_, Owner> {
        let claim = move |shared: &Shared| shared.claim(id, expected, owner, expires);
        async move {
            let claimed = self.shared.read(claim).await;
            if self.shared.has_many_claims() {
                // Nobody waits for it; it only has to happen.
                drop(self.queue().submit(Touches::default(), |_| Ok(())));
            }
            claimed
        }
        .boxed()
    }

    fn delete(&self, id: SessionId, expected: u64) -> Answer<'_, ()> {
        let touches = Touches { ids: vec![id], counted: true, frees: false };
        self.queue().submit(touches, move |trees| sessions::delete(trees, id, expected))
    }

    fn sweep(&self, now: u64, after: Option<SessionId>, slice: usize) -> Answer<'_, Swept> {
        if let Some(mark) = self.time.due() {
            // Nobody waits for it; it only has to happen.
            drop(self.queue().submit(Touches::default(), move |trees| mark.save(trees)));
        }
        // Whatever the caller's clock says: nothing goes that lives by the store's.
        let now = now.min(self.time.now());
        let find = move |shared: &Shared| shared.with(|trees| sessions::expired(trees, now, after, slice));
        async move {
            let (mut swept, expired) = self.shared.read(find).await?;
            if !expired.is_empty() {
                let ids = expired.iter().map(|(id, _)| *id).collect();
                let touches = Touches { ids, counted: true, frees: true };
                swept.removed =
                    self.queue().submit(touches, |trees| sessions::remove(trees, expired)).await?;
            }
            Ok(swept)
        }
        .boxed()
    }

    fn count(&self) -> Answer<'_, u64> {
        let count = self.shared.count();
        async move { count }.boxed()
    }

    fn count_of(&self, service: u16) -> Option<u64> {
        Some(self.shared.count_of(service))
    }

    fn next_epoch(&self, slot: u16) -> Answer<'_, u32> {
        self.queue().submit(Touches::default(), move |trees| names::next_epoch(trees, slot))
    }

    fn service_id(&self, service: &str) -> Answer<'_, u16> {
        let service = service.to_owned();
        self.queue().submit(Touches::default(), move |trees| names::service_id(trees, &service))
    }

    fn slot(&self, service: &str, backend: &str) -> Answer<'_, u16> {
        let (service, backend) = (service.to_owned(), backend.to_owned());
        self.queue().submit(Touches::default(), move |trees| names::slot(trees, &service, &backend))
    }

    fn slots(&self) -> Answer<'_, Vec<(String, String, u16)>> {
        // Through the queue, so that what it shows is durable.
        self.queue().submit(Touches::default(), names::slots)
    }

    fn given(&self) -> Answer<'_, Given> {
        // Not through the queue: it must be told when nothing can be written, too.
        self.shared.read(|shared| shared.with(names::given)).boxed()
    }

    fn adopt(&self, given: Given) -> Answer<'_, ()> {
        self.queue().submit(Touches::default(), move |trees| names::adopt(trees, &given))
    }

    fn forget_slot(&self, service: &str, backend: &str) -> Answer<'_, ()> {
        let (service, backend) = (service.to_owned(), backend.to_owned());
        self.queue().submit(Touches::default(), move |trees| names::forget_slot(trees, &service, &backend))
    }

    fn forget_service(&self, service: &str) -> Answer<'_, ()> {
        let service = service.to_owned();
        async move {
            loop {
                let name = service.clone();
                let forgotten =
                    self.queue().submit(Touches::default(), move |trees| names::forget_service(trees, &name));
                if forgotten.await? {
                    return Ok(());
                }
                let name = service.clone();
                let (id, ids) = self
                    .shared
                    .read(move |shared| {
                        shared.with(|trees| {
                            let id = names::known_service(trees, &name)?.unwrap_or(0);
                            Ok((id, sessions::of_service(trees, id, FORGOTTEN_AT_ONCE)?))
                        })
                    })
                    .await?;
                let touches = Touches { ids: ids.clone(), counted: true, frees: false };
                self.queue().submit(touches, move |trees| sessions::remove_of(trees, id, &ids)).await?;
            }
        }
        .boxed()
    }

    fn scan(&self, from: Option<Cursor>, slice: usize) -> Answer<'_, Slice> {
        let scan = move |shared: &Shared| shared.with(|trees| sessions::scan(trees, from.as_ref(), slice));
        self.shared.read(scan).boxed()
    }

    fn stops(&self) -> BoxFuture<'static, StoreError> {
        self.shared.stops().boxed()
    }

    fn now(&self) -> Option<u64> {
        Some(self.time.now())
    }

    fn watch(&self, copies: Weak<dyn Copies>) {
        self.shared.watch(copies);
    }

    fn state(&self) -> StoreState {
        let problem = self.shared.problem();
        StoreState {
            place: format!("sled {}", self.shared.path().display()),
            available: problem.is_none(),
            detail: problem.map(|error| error.to_string()),
        }
    }
}

/// Takes the directory for this process. sled has a lock as well, but cannot say who holds it.
fn lock(path: &Path) -> Result<Flock<File>, StoreError> {
    let file = path.join(open::LOCK);
    lock_file::take(&file).map_err(|error| match error {
        LockError::Held { pid } => {
            let pid = if pid.is_empty() { "unknown".into() } else { pid };
            StoreError::Locked { path: PathBuf::from(path), pid }
        }
        LockError::Io(error) => {
            StoreError::Open { path: path.into(), reason: format!("cannot lock {}: {error}", file.display()) }
        }
    })
}

/// What is read of bytes in the database, for the fuzzer: each written again.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// The number of sessions.
    pub fn tally(bytes: &[u8]) -> Option<Vec<u8>> {
        super::count::Tally::decode(bytes).map(|tally| tally.encode())
    }

    /// The high-water mark of time.
    pub fn mark(bytes: &[u8]) -> Option<Vec<u8>> {
        super::time::Mark::decode(bytes).map(|mark| mark.encode())
    }
}
