//! The distributed store: Redis or Valkey, one server or a cluster, shared by any number of processes.

mod alive;
mod core;
mod keys;
mod lease;
mod link;
mod mail;
mod message;
mod meta;
mod names;
mod open;
mod options;
mod router;
mod scan;
mod scripts;
mod sessions;
mod status;
mod takeover;
mod topology;

use self::core::Core;
use super::{Answer, Copies, Cursor, Given, SessionStore, Slice, StoreError, StoreState, Swept};
use crate::session::record::{Owner, Record};
use futures::FutureExt;
use lb_common::token::SessionId;
use meta::Stamp;
pub use options::RedisOptions;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use tokio::runtime::Handle;
use tokio::sync::{broadcast, mpsc, oneshot};

/// [`SessionStore`] on Redis. Shared by all servers of a process; other processes open their own.
pub struct RedisStore {
    core: Arc<Core>,
    runtime: Handle,
    /// Held by everything under way.
    busy: Option<mpsc::Sender<Infallible>>,
    thread: Option<JoinHandle<()>>,
}

/// What the store's thread hands out once it works.
struct Opened {
    core: Arc<Core>,
    runtime: Handle,
    busy: mpsc::Sender<Infallible>,
}

impl RedisStore {
    /// Connects to the servers and makes sure that they will do. Connections are made by a thread of the store, in the
    /// network namespace of the caller's.
    ///
    /// # Errors
    /// [`StoreError::Open`] for options and servers that will not do, [`StoreError::Format`] when another version wrote
    /// what is there, [`StoreError::Unavailable`] when the servers cannot be used now.
    pub async fn open(options: RedisOptions) -> Result<Self, StoreError> {
        let seeds = options.seeds()?;
        let place = options.place();
        let failed = |reason: String| StoreError::Open { path: place.clone(), reason };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed(format!("cannot make its runtime: {error}")))?;
        let (opened, told) = oneshot::channel();
        let handle = runtime.handle().clone();
        let work = async move {
            let core = match open::open(options, seeds).await {
                Ok(core) => core,
                Err(error) => return drop(opened.send(Err(error))),
            };
            let (busy, idle) = mpsc::channel(1);
            if opened.send(Ok(Opened { core: core.clone(), runtime: handle, busy })).is_ok() {
                serve(&core, idle).await;
            }
            alive::goodbye(&core).await;
        };
        let thread = std::thread::Builder::new()
            .name("session-redis".into())
            .spawn(move || runtime.block_on(work))
            .map_err(|error| failed(format!("cannot start its thread: {error}")))?;
        let Opened { core, runtime, busy } = told.await.unwrap_or(Err(StoreError::Closed))?;
        Ok(Self { core, runtime, busy: Some(busy), thread: Some(thread) })
    }

    /// Runs work in the store's thread, to its end, whoever waits for it: a server's own runtime may vanish any time.
    fn run<T: Send + 'static, W>(&self, work: impl FnOnce(Arc<Core>) -> W) -> Answer<'static, T>
    where
        W: Future<Output = Result<T, StoreError>> + Send + 'static,
    {
        let (work, busy) = (work(self.core.clone()), self.busy.clone());
        let task = self.runtime.spawn(async move {
            let _busy = busy;
            work.await
        });
        let answer = async move {
            match task.await {
                Ok(answer) => answer,
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => Err(StoreError::Closed),
                },
            }
        };
        answer.boxed()
    }
}

/// Does everything that goes on beside the requests, until nobody can make any and all are done.
async fn serve(core: &Arc<Core>, mut idle: mpsc::Receiver<Infallible>) {
    let listening = tokio::spawn(mail::listen(core.clone()));
    tokio::select! {
        _ = idle.recv() => {}
        () = alive::live(core.clone()) => {}
        () = core.router.keep_up() => {}
        () = status::watch(core.clone()) => {}
    }
    // Whatever it would still read does not matter once the lease is given up.
    listening.abort();
}

impl Drop for RedisStore {
    /// Finishes what is under way, and tells the others that this process has no copies any more.
    fn drop(&mut self) {
        self.busy = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of the session store panicked");
        }
    }
}

impl SessionStore for RedisStore {
    fn load(&self, id: SessionId) -> Answer<'_, Option<Record>> {
        self.run(|core| async move { core.load(id).await })
    }

    fn save<'a>(
        &'a self,
        id: SessionId,
        record: &Record,
        expected: Option<u64>,
    ) -> Answer<'a, Option<Owner>> {
        let (stamp, bytes) = (Stamp::of(record), record.encode());
        self.run(move |core| async move { core.save(id, stamp, bytes, expected).await })
    }

    fn claim(&self, id: SessionId, expected: u64, owner: Owner, expires: u64) -> Answer<'_, Owner> {
        let stamp = Stamp { revision: expected + 1, owner, expires };
        self.run(move |core| async move { core.claim(id, stamp, expected).await })
    }

    fn delete(&self, id: SessionId, expected: u64) -> Answer<'_, ()> {
        self.run(move |core| async move { core.delete(id, expected).await })
    }

    /// There is nothing to sweep: keys expire by themselves.
    fn sweep(&self, _now: u64, _after: Option<SessionId>, _slice: usize) -> Answer<'_, Swept> {
        async { Ok(Swept::default()) }.boxed()
    }

    fn count(&self) -> Answer<'_, u64> {
        self.run(|core| async move { core.count().await })
    }

    fn next_epoch(&self, slot: u16) -> Answer<'_, u32> {
        self.run(move |core| async move { core.next_epoch(slot).await })
    }

    fn service_id(&self, service: &str) -> Answer<'_, u16> {
        let service = service.to_owned();
        self.run(move |core| async move { core.service_id(&service).await })
    }

    fn slot(&self, service: &str, backend: &str) -> Answer<'_, u16> {
        let (service, backend) = (service.to_owned(), backend.to_owned());
        self.run(move |core| async move { core.slot(&service, &backend).await })
    }

    fn slots(&self) -> Answer<'_, Vec<(String, String, u16)>> {
        self.run(|core| async move { Ok(core.given().await?.slots) })
    }

    fn given(&self) -> Answer<'_, Given> {
        self.run(|core| async move { core.given().await })
    }

    fn adopt(&self, given: Given) -> Answer<'_, ()> {
        self.run(move |core| async move { core.adopt(&given).await })
    }

    fn forget_slot(&self, service: &str, backend: &str) -> Answer<'_, ()> {
        let (service, backend) = (service.to_owned(), backend.to_owned());
        self.run(move |core| async move { core.forget_slot(&service, &backend).await })
    }

    fn forget_service(&self, service: &str) -> Answer<'_, ()> {
        let service = service.to_owned();
        self.run(move |core| async move { core.forget_service(&service).await })
    }

    fn scan(&self, from: Option<Cursor>, slice: usize) -> Answer<'_, Slice> {
        self.run(move |core| async move { core.scan(from, slice).await })
    }

    fn watch(&self, copies: Weak<dyn Copies>) {
        self.core.watch(copies);
    }

    fn holds(&self) -> bool {
        self.core.lease.holds()
    }

    fn epochs(&self) -> Option<broadcast::Receiver<(u16, u32)>> {
        Some(self.core.announced.subscribe())
    }

    fn state(&self) -> StoreState {
        status::state(&self.core)
    }
}
