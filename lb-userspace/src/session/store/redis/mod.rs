//! The distributed store: Redis or Valkey, one server or a cluster, shared by any number of processes.
//!
//! # What is where
//!
//! | key | type | what |
//! |---|---|---|
//! | `lb:s:{<id>}` | hash | a session: `r` its record as last saved, `m` revision, owner, expiry and holders ([`meta`]) |
//! | `lb:{names}` | hash | format, service ids, slots, epochs ([`names`]) |
//! | `lb:{mail}` | stream | messages to all processes ([`message`]), numbered without gaps |
//! | `lb:{mail}:last` | string | number of the last message |
//! | `lb:{mail}:n:<node>` | string | there while a process is believed to live |
//!
//! A *node* is a process from one registration to the next, named by 64 random bits; a name that was missing once is
//! never used again. The *holders* of a session are the nodes that may have a copy of it in memory.
//!
//! # What stays true, and why
//!
//! **No lost update.** A change is one script: it compares the revision, writes, and makes the node a holder. Whatever
//! arrives late finds another revision. Each change has a nonce: tried again after its answer was lost, it finds its own
//! nonce and answers as it did the first time. If it finds another one's, nobody can tell any more whether it took effect,
//! and the caller is told that, not that there was a conflict: a caller who repeats a change after a conflict would make it
//! twice. A claim may be told a conflict, for repeating it does nothing that anyone could see.
//!
//! **Acknowledged is durable.** Behind each batch of changes goes a WAIT on the same connection. Without so many replicas
//! nothing is acknowledged. Reads go the same way, with a write that changes nothing in front of the WAIT: so nobody is
//! shown what a failover could take back, and a deposed primary that has not heard of it answers nobody, for its replicas
//! have left it. A failover takes nothing back as long as it elects a replica that had to have it, and that holds for
//! certain when `replicas` is the number that each primary has. Servers that forget by themselves are refused ([`open`]).
//!
//! **Nobody answers from an old copy.** Whoever keeps a copy is a holder since before the copy was read. `save`, `claim`
//! and `delete` tell all other holders to void the session, and answer only when each has said that it did, or cannot
//! answer from memory any more:
//!
//! * A node answers from memory only while its lease holds, which is one `lease` from the beginning (a) of the last read of
//!   messages after which all were obeyed that there were, and (b) of the last renewal of its name that is on the
//!   replicas. Both are reckoned from before the request went out, on a clock that runs while the machine sleeps.
//! * It was told at the time t, when SEND was answered, durably. A read of messages that begins after t finds the message,
//!   and obeying it voids the copy. One that began before t is good until t + `lease` at most. The taker waits that long
//!   and a little more, for clocks differ in speed.
//! * If its name is missing, it has stopped renewing it for two leases, or the server's clock has jumped, or somebody
//!   removed it. Its next renewal finds the name missing, so a lease after the taker looked it is over in each case. That
//!   is waited for once; from then on all know the name to be a dead one's. One that finds its name missing takes a new
//!   one and forgets everything, in this order, so that what it reads meanwhile under the old one is forgotten, too.
//! * It may read from another server than the one that was told: one that was elected since, or was deposed. A deposed one
//!   does not confirm (b). An elected one has the message, for SEND waited for the replicas; still its history is another
//!   one (`master_replid`), and whoever sees another history than that of the messages read so far forgets everything and
//!   begins at the end. So does whoever finds a gap in the numbers, for messages are kept for a while only, or that fewer
//!   were sent than it has read, for somebody has deleted them.
//! * A holder's own change that is still under way when the void arrives is answered later; what it would keep carries
//!   a void mark ([`crate::session::shelf`]).
//!
//! That the others have forgotten is written down afterwards, if the nonce is still that of the change, so no holder
//! that came later is left out. Should that get lost, they are told again in vain. A process that dies in the middle
//! leaves holders behind: whoever reads the session then is told that it is unsettled and has to claim it, and with that
//! comes the voiding. For an ended session the same is kept, without the record, until it is settled or would have expired
//! anyway, and then for another minute, so that late requests find it ended.
//!
//! **What is given out is given out once.** Epochs by one script; everything else about names is decided on what was read
//! and written only if nothing was written since.
//!
//! # What it costs
//!
//! One trip to the server and one to its replicas for a change or a read; a takeover between two live processes about two
//! more. A process that was killed keeps others from each of its sessions for a lease after they ask, and two leases after
//! its death from none. One that ends in order says so and costs nothing. While a primary has too few replicas, its
//! sessions are neither read nor written, and if it is the one with the messages, nothing is answered from memory, only
//! from the servers.

mod alive;
mod audit;
mod clock;
mod core;
mod dialer;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod judge;
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
mod tls;
mod topology;
pub(crate) mod url;

use self::core::Core;
use super::{Answer, Copies, Cursor, Given, SessionStore, Slice, StoreError, StoreState, Swept};
use crate::session::clock::{SystemClocks, TimeSource};
use crate::session::record::{Owner, Record};
use futures::FutureExt;
use lb_common::token::SessionId;
use meta::Stamp;
pub use options::RedisOptions;
use std::convert::Infallible;
use std::future::Future;
use std::sync::{Arc, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
pub use tls::RedisTls;
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
        Self::open_at(options, SystemClocks::shared()).await
    }

    /// As [`RedisStore::open`], with other clocks than the machine's, for tests.
    ///
    /// # Errors
    /// The same.
    pub async fn open_at(options: RedisOptions, clocks: Arc<dyn TimeSource>) -> Result<Self, StoreError> {
        let seeds = options.seeds()?;
        let place = options.place();
        let failed = move |reason: String| StoreError::Open { path: place.clone(), reason };
        let (opened, told) = oneshot::channel();
        let unmade = failed.clone();
        let work = move || {
            let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime,
                Err(error) => {
                    return drop(opened.send(Err(unmade(format!("cannot make its runtime: {error}")))));
                }
            };
            let handle = runtime.handle().clone();
            runtime.block_on(live(options, seeds, clocks, handle, opened));
        };
        let thread = std::thread::Builder::new()
            .name("session-redis".into())
            .spawn(work)
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

/// The life of the store's thread.
async fn live(
    options: RedisOptions,
    seeds: options::Seeds,
    clocks: Arc<dyn TimeSource>,
    runtime: Handle,
    opened: oneshot::Sender<Result<Opened, StoreError>>,
) {
    let core = match open::open(options, seeds, clocks).await {
        Ok(core) => core,
        // Whoever asked may have gone away.
        Err(error) => return drop(opened.send(Err(error))),
    };
    let (busy, idle) = mpsc::channel(1);
    if opened.send(Ok(Opened { core: core.clone(), runtime, busy })).is_ok() {
        serve(&core, idle).await;
    }
    alive::goodbye(&core).await;
}

/// Does everything that goes on beside the requests, until nobody can make any and all are done.
async fn serve(core: &Arc<Core>, mut idle: mpsc::Receiver<Infallible>) {
    let listening = tokio::spawn(mail::listen(core.clone()));
    tokio::select! {
        _ = idle.recv() => {}
        () = alive::live(core.clone()) => {}
        () = core.router.keep_up() => {}
        () = status::watch(core.clone()) => {}
        () = audit::watch(core.clone()) => {}
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

    fn now(&self) -> Option<u64> {
        Some(self.core.clock.now())
    }

    fn holds(&self) -> bool {
        self.core.lease.holds()
    }

    fn patience(&self) -> Duration {
        self.core.options.deadline
    }

    fn epochs(&self) -> Option<broadcast::Receiver<(u16, u32)>> {
        Some(self.core.announced.subscribe())
    }

    fn state(&self) -> StoreState {
        status::state(&self.core)
    }
}
