//! What a session server does with sessions: find, create, change, end. One [`Sessions`] for each server.
//!
//! # What stays true, and why
//!
//! * **Acknowledged is durable.** A change is answered only after [`SessionStore::save`] says that it is on disk; until
//!   then the cache holds the old copy. After a failure the copy is dropped, because nobody knows what the disk holds.
//! * **One owner.** The record in the database names the one instance that may answer from its cache. Whoever tells
//!   anything of a session that another one owns, be it its state, a refusal or its end, becomes its owner in one
//!   atomic step first, and then voids the copies of every other server in the process *before* anything is answered.
//!   So a copy in a cache is the latest state that anyone has heard of: a later one is told only after the copy was
//!   voided. A copy that was read before the takeover and would be cached after it carries a void mark and is not kept
//!   ([`super::shelf`]). Whether a takeover took place is not known when the database failed to answer: then it counts
//!   as one, and nothing is told.
//! * **The cache answers only for its own instance:** the token names the server's current instance and the copy was
//!   loaded by it. Everything else is read from the database.
//! * **No lost update.** A change names the revision that it is based on, and takes effect only while the database
//!   holds that one; the loser reads again and repeats its change, preconditions included. Hand-overs count as
//!   revisions, so what a former owner had under way when it lost the session comes to nothing. A change takes the
//!   session over in the same step in which it is written, so of several servers that write at once, one always gets on.
//! * **Other processes, too.** A store that several processes share makes sure, before it says that a session has
//!   changed hands, that none of the others answers from a copy of it: [`SessionStore::watch`], [`SessionStore::holds`].
//!   While it does not hold, nothing is answered from memory; what then cannot be read from the store is not answered.
//! * **Once is once.** A change that is to be made once leaves a receipt in the record that it changes, in the same
//!   write. When it is asked for again, here or elsewhere, at once or after a crash, whoever finds the receipt makes no
//!   change, and whoever does not find it loses its compare and swap to the one who wrote it.
//! * **What has ended stays ended.** Every copy is void before the session is deleted, so nobody sees it end before it
//!   has ended for all. Ids are never used twice, so no write that is late can bring it back. What has expired is
//!   deleted, too, before anybody is told so.
//! * **Nothing is stored before the first change.** A visitor without a session gets the token of an id that says of itself
//!   until when it may begin one ([`super::visit`]). Its first change writes the session under that id, at whichever server;
//!   of several at once one begins it and the others change it. Where such a session ends, a grave is left for as long
//!   as its id could begin another.
//! * **No session fixation.** Any other session id that is not in the database is never used, whoever signed it: the client
//!   gets a new one, made here.
//!
//! A server that is killed may leave a write in the store's queue. It takes effect late and unacknowledged, and nobody
//! answers from a copy that is older than what somebody has seen of it: seeing it means taking the session over.
//!
//! A read is therefore linearizable: from the cache at the moment it is looked up, from the database at the moment it is
//! read there (the store never shows what is not durable yet). Work on one session takes turns within a server, and
//! goes on to its end when the client goes away.

mod change;
mod outside;
mod own;

use super::shelf::{Shelf, Work};
use super::{
    Admission, Clock, Copies, Instance, Limits, NotAdmitted, Owner, Peers, Preconditions, Receipts, Record,
    SessionCache, SessionStore, State, StoreError, Tag, TooLarge, Unmet, visit,
};
use change::Begins;
pub use change::{Changed, Terms};
use lb_common::token::{SessionId, Token};
use own::Sight;
use std::future::Future;
use std::sync::Arc;
use tokio::sync::{OwnedMutexGuard, watch};

/// How often a change is repeated on fresh state before the client is told of the conflict.
const MAX_TRIES: usize = 64;

/// Where the state in an answer came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The session began with this request, or does not exist before its first change.
    New,
    Cache,
    Database,
}

impl Source {
    pub const fn name(self) -> &'static str {
        match self {
            Self::New => "new",
            Self::Cache => "cache",
            Self::Database => "database",
        }
    }
}

/// A session as this server saw it at one moment. Its version is 0 while nothing was written yet.
#[derive(Clone, Debug)]
pub struct Seen {
    pub id: SessionId,
    pub record: Arc<Record>,
    /// Where the state came from; for a change, the state that it is based on.
    pub source: Source,
    /// The instance that answered: the client's next token names it.
    pub owner: Owner,
}

impl Seen {
    /// Names the version of the state that was seen.
    pub fn tag(&self) -> Tag {
        Tag::new(self.id, self.record.version)
    }
}

/// Why a change was not made; the change itself says so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
    /// What was to be changed is not there.
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Invalid(String),
    /// The session's state is not what the change can be made to.
    #[error("{0}")]
    Unfit(String),
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum SessionError {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    TooLarge(#[from] TooLarge),
    /// With the session as it is, if there is one.
    #[error("the session is not in a state that the request asks for")]
    Precondition { unmet: Unmet, seen: Option<Box<Seen>> },
    #[error("the session has seen that key with another request")]
    Reused,
    #[error("others changed this session {MAX_TRIES} times while this change was being made")]
    Conflict,
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    NotAdmitted(#[from] NotAdmitted),
    /// Nothing was changed.
    #[error("requests of this session that came before still wait for the store")]
    Busy,
    #[error("no random numbers for a session id: {0}")]
    Random(String),
    #[error("the server is stopping")]
    Stopping,
}

impl From<StoreError> for SessionError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict => Self::Conflict,
            StoreError::RecordSize { bytes, limit } => Self::TooLarge(TooLarge {
                what: "the session as stored".into(),
                name: "max_session_bytes",
                found: bytes,
                limit,
                unit: "bytes",
            }),
            error => Self::Store(error),
        }
    }
}

/// The sessions of one server.
pub struct Sessions {
    /// The current instance; a new epoch makes every cached copy worthless at once.
    instance: watch::Receiver<Instance>,
    store: Arc<dyn SessionStore>,
    limits: Limits,
    peers: Arc<Peers>,
    shelf: Arc<Shelf>,
    clock: Clock,
    admission: Arc<Admission>,
}

impl Sessions {
    /// An empty cache in front of `store`. All servers of a process share `peers`.
    pub fn new(
        instance: watch::Receiver<Instance>,
        store: Arc<dyn SessionStore>,
        limits: Limits,
        peers: Arc<Peers>,
        clock: Clock,
    ) -> Arc<Self> {
        let admission = Arc::new(Admission::new(&limits));
        Self::admitted(instance, store, limits, peers, clock, admission)
    }

    /// With bounds of new sessions that are shared by several servers of the service.
    pub fn admitted(
        instance: watch::Receiver<Instance>,
        store: Arc<dyn SessionStore>,
        limits: Limits,
        peers: Arc<Peers>,
        clock: Clock,
        admission: Arc<Admission>,
    ) -> Arc<Self> {
        let shelf = Shelf::new(SessionCache::new(limits.cache_entries, limits.cache_bytes));
        peers.join(&shelf);
        let copies: Arc<dyn Copies> = peers.clone();
        store.watch(Arc::downgrade(&copies));
        Arc::new(Self { instance, store, limits, peers, shelf, clock, admission })
    }

    pub fn instance(&self) -> Instance {
        self.instance.borrow().clone()
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// The bounds of new sessions.
    pub fn admission(&self) -> &Admission {
        &self.admission
    }

    /// Sessions in the cache, and the bytes they take.
    pub fn cached(&self) -> (usize, usize) {
        self.shelf.usage()
    }

    /// The session that a verified token names, or one that begins with its first change: nothing is stored for it.
    ///
    /// # Errors
    /// [`SessionError`] of the store. Without a token it is not asked.
    pub async fn read(self: &Arc<Self>, token: Option<Token>) -> Result<Seen, SessionError> {
        let token = self.ours(token);
        if let Some(seen) = token.and_then(|token| self.cached_now(token)) {
            return Ok(seen);
        }
        let Some(token) = token else { return self.visit(None) };
        let sessions = self.clone();
        let sight = to_the_end(async move { sessions.look(token).await }).await?;
        match sight {
            Sight::Seen(seen) => Ok(seen),
            Sight::Open => self.visit(Some(token.session)),
            Sight::Gone => self.visit(None),
        }
    }

    /// Changes the session that a verified token names, or begins one with the change in it. `change` may be called
    /// several times, each time with the state it is to be made to; when it refuses, nothing happens.
    ///
    /// # Errors
    /// Those of `change`, [`SessionError::TooLarge`] when the result passes a limit, and those of the store.
    pub async fn write<T, F>(
        self: &Arc<Self>,
        token: Option<Token>,
        change: F,
    ) -> Result<(Seen, T), SessionError>
    where
        T: Send + 'static,
        F: Fn(&mut State) -> Result<T, Refusal> + Send + Sync + 'static,
    {
        let (changed, made) = self.make(token, Terms::default(), change).await?;
        Ok((changed.seen, made.expect("what is not to be made once is never found to be made")))
    }

    /// [`Sessions::write`] on terms: made only if they are met by the very state that the change is made to. A change
    /// that is to be made once and was made before is answered with what came of it then.
    ///
    /// # Errors
    /// Also [`SessionError::Precondition`] and [`SessionError::Reused`]. A change that finds nothing to be made to says
    /// so first (RFC 9110 §13.2.1).
    pub async fn write_on<F>(
        self: &Arc<Self>,
        token: Option<Token>,
        terms: Terms,
        change: F,
    ) -> Result<Changed, SessionError>
    where
        F: Fn(&mut State) -> Result<(), Refusal> + Send + Sync + 'static,
    {
        self.make(token, terms, change).await.map(|(changed, _)| changed)
    }

    /// Ends the session that a verified token names, everywhere at once. False when there was none.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn end(self: &Arc<Self>, token: Option<Token>) -> Result<bool, SessionError> {
        self.end_on(token, Preconditions::default()).await
    }

    /// [`Sessions::end`], if the session is as the preconditions ask for.
    ///
    /// # Errors
    /// Also [`SessionError::Precondition`].
    pub async fn end_on(
        self: &Arc<Self>,
        token: Option<Token>,
        preconditions: Preconditions,
    ) -> Result<bool, SessionError> {
        let token = self.ours(token);
        let sessions = self.clone();
        to_the_end(async move {
            if let Some(token) = token
                && sessions.erase(token, &preconditions).await?.is_some()
            {
                return Ok(true);
            }
            let absent = |unmet| SessionError::Precondition { unmet, seen: None };
            preconditions.check(None).map_err(absent).map(|()| false)
        })
        .await
    }

    /// Changes a session or begins one.
    async fn make<T, F>(
        self: &Arc<Self>,
        token: Option<Token>,
        terms: Terms,
        change: F,
    ) -> Result<(Changed, Option<T>), SessionError>
    where
        T: Send + 'static,
        F: Fn(&mut State) -> Result<T, Refusal> + Send + Sync + 'static,
    {
        let token = self.ours(token);
        let sessions = self.clone();
        to_the_end(async move {
            if let Some(token) = token
                && let Some(changed) = sessions.change(token, Begins::Yes, &terms, &change).await?
            {
                return Ok(changed);
            }
            sessions.begin(&terms, &change).await
        })
        .await
    }

    /// A token of another service is no token here.
    fn ours(&self, token: Option<Token>) -> Option<Token> {
        token.filter(|token| token.service == self.instance.borrow().service)
    }

    fn owner(&self) -> Owner {
        self.instance.borrow().owner()
    }

    fn now(&self) -> u64 {
        self.store.now().unwrap_or_else(|| (self.clock)())
    }

    fn lives(&self, record: &Record) -> bool {
        self.is_of_ours(record) && !record.is_grave() && !record.is_expired(self.now())
    }

    fn is_of_ours(&self, record: &Record) -> bool {
        record.service == self.instance.borrow().service
    }

    fn must_extend(&self, record: &Record) -> bool {
        self.limits.must_extend(record.created, record.expires, self.now())
    }

    fn seen(&self, id: SessionId, record: Arc<Record>, source: Source) -> Seen {
        Seen { id, record, source, owner: self.owner() }
    }

    /// What a visitor sees that has changed nothing yet, under the id that it has or a new one.
    fn visit(&self, id: Option<SessionId>) -> Result<Seen, SessionError> {
        let now = self.now();
        let until = now.saturating_add(visit::window(&self.limits));
        let id = id.map_or_else(|| visit::mint(until), Ok).map_err(no_random)?;
        let instance = self.instance();
        let record = Arc::new(Record {
            version: 0,
            revision: 0,
            service: instance.service,
            owner: instance.owner(),
            created: now,
            expires: until,
            receipts: Receipts::default(),
            state: State::default(),
        });
        Ok(Seen { id, record, source: Source::New, owner: instance.owner() })
    }

    /// Begins a session. It is durable before the client hears of it.
    async fn create(
        &self,
        id: SessionId,
        version: u64,
        state: State,
        receipts: Receipts,
    ) -> Result<Seen, StoreError> {
        let instance = self.instance();
        let created = self.now();
        let record = Arc::new(Record {
            version,
            revision: 1,
            service: instance.service,
            owner: instance.owner(),
            created,
            expires: self.limits.expires(created, created),
            receipts,
            state,
        });
        let work = self.shelf.join(id);
        let mark = work.mark();
        self.store.save(id, &record, None).await?;
        work.keep(mark, record.clone());
        Ok(Seen { id, record, source: Source::New, owner: instance.owner() })
    }

    /// Waits until nobody else works on this session in this server. While the store does not answer, those who wait do not
    /// wait for it one after the other.
    async fn turn(&self, work: &Work) -> Result<OwnedMutexGuard<()>, SessionError> {
        tokio::time::timeout(self.store.patience(), work.turn()).await.map_err(|_| SessionError::Busy)
    }
}

fn no_random(error: getrandom::Error) -> SessionError {
    SessionError::Random(error.to_string())
}

/// Runs work that must not stop half-way when the client goes away.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, SessionError>> + Send + 'static,
) -> Result<T, SessionError> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(SessionError::Stopping),
        },
    }
}

#[cfg(test)]
mod tests;
