//! What a session server does with sessions: find, create, change, end. One [`Sessions`] for each server.
//!
//! # What stays true, and why
//!
//! * **Acknowledged is durable.** A change is answered only after [`SessionStore::save`] says that it is on disk; until
//!   then the cache holds the old copy. After a failure the copy is dropped, because nobody knows what the disk holds.
//! * **One owner.** The record in the database names the one instance that may answer from its cache. Whoever reads or
//!   writes a session that another one owns becomes its owner in one atomic step, and then voids the copies of every
//!   other server in the process *before* anything is answered. So a copy in a cache is the latest acknowledged state:
//!   a later one is acknowledged only after the copy was voided. A copy that was read before the takeover and would be
//!   cached after it carries a void mark and is not kept ([`super::shelf`]).
//! * **The cache answers only for its own instance:** the token names the server's current instance and the copy was
//!   loaded by it. Everything else is read from the database.
//! * **No lost update.** A change names the revision that it is based on, and takes effect only while the database
//!   holds that one; the loser reads again and repeats its change. Hand-overs count as revisions, so what a former owner
//!   had under way when it lost the session comes to nothing.
//! * **Other processes, too.** A store that several processes share makes sure, before it says that a session has
//!   changed hands, that none of the others answers from a copy of it: [`SessionStore::watch`], [`SessionStore::holds`].
//! * **No session fixation.** A session id that is not in the database is never used, whoever signed it: the client gets
//!   a new one, made here, which is in the database before the client hears of it.
//!
//! A server that is killed may leave a write in the store's queue. It takes effect late and unacknowledged, and nobody
//! answers from a copy that is older than what somebody has seen of it: seeing it means taking the session over.
//!
//! A read is therefore linearizable: from the cache at the moment it is looked up, from the database at the moment it is
//! read there (the store never shows what is not durable yet). Work on one session takes turns within a server, and
//! goes on to its end when the client goes away.

mod outside;

use super::shelf::{Mark, Shelf, Work};
use super::{
    Clock, Copies, Instance, Limits, Owner, Peers, Record, SessionCache, SessionStore, State, StoreError,
    TooLarge,
};
use lb_common::token::{SessionId, Token};
use std::future::Future;
use std::sync::Arc;
use tokio::sync::watch;

/// How often a change is repeated on fresh state before the client is told of the conflict.
const MAX_TRIES: usize = 64;

/// Where the state in an answer came from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// The session began with this request.
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

/// A session as this server saw it at one moment.
#[derive(Clone, Debug)]
pub struct Seen {
    pub id: SessionId,
    pub record: Arc<Record>,
    /// Where the state came from; for a change, the state that it is based on.
    pub source: Source,
    /// The instance that answered: the client's next token names it.
    pub owner: Owner,
}

/// Why a change was not made; the change itself says so.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refusal {
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
    #[error("others changed this session {MAX_TRIES} times while this change was being made")]
    Conflict,
    #[error(transparent)]
    Store(StoreError),
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
        let shelf = Shelf::new(SessionCache::new(limits.cache_entries, limits.cache_bytes));
        peers.join(&shelf);
        let copies: Arc<dyn Copies> = peers.clone();
        store.watch(Arc::downgrade(&copies));
        Arc::new(Self { instance, store, limits, peers, shelf, clock })
    }

    pub fn instance(&self) -> Instance {
        self.instance.borrow().clone()
    }

    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Sessions in the cache, and the bytes they take.
    pub fn cached(&self) -> (usize, usize) {
        self.shelf.usage()
    }

    /// The session that a verified token names, or a new one.
    ///
    /// # Errors
    /// [`SessionError`] of the store; of a new session also that it could not be written.
    pub async fn read(self: &Arc<Self>, token: Option<Token>) -> Result<Seen, SessionError> {
        let token = self.ours(token);
        if let Some(token) = token
            && let Some(record) = self.copy(token)
            && !self.must_extend(&record)
        {
            return Ok(Seen { id: token.session, source: Source::Cache, owner: record.owner, record });
        }
        let sessions = self.clone();
        to_the_end(async move {
            if let Some(token) = token {
                let work = sessions.shelf.join(token.session);
                let _turn = work.turn().await;
                if let Some((record, source, _)) = sessions.current(&work, token).await? {
                    return Ok(sessions.seen(token.session, record, source));
                }
            }
            sessions.create(State::default()).await
        })
        .await
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
        let token = self.ours(token);
        let sessions = self.clone();
        to_the_end(async move {
            if let Some(token) = token
                && let Some(changed) = sessions.change(token, &change).await?
            {
                return Ok(changed);
            }
            let mut state = State::default();
            let made = change(&mut state)?;
            sessions.limits.check(&state)?;
            Ok((sessions.create(state).await?, made))
        })
        .await
    }

    /// Ends the session that a verified token names, everywhere at once. False when there was none.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn end(self: &Arc<Self>, token: Option<Token>) -> Result<bool, SessionError> {
        let Some(token) = self.ours(token) else { return Ok(false) };
        let sessions = self.clone();
        to_the_end(async move {
            let work = sessions.shelf.join(token.session);
            let _turn = work.turn().await;
            for _ in 0..MAX_TRIES {
                let record = sessions.store.load(token.session).await?;
                let Some(record) = record.filter(|record| sessions.lives(record)) else {
                    work.forget();
                    return Ok(false);
                };
                let deleted = sessions.store.delete(token.session, record.revision).await;
                // Whether it worked or failed half-way: nobody may answer from a copy of it.
                work.forget();
                sessions.peers.void_others(token.session, &sessions.shelf);
                match deleted {
                    Ok(()) => return Ok(true),
                    Err(StoreError::Conflict) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(SessionError::Conflict)
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
        (self.clock)()
    }

    fn lives(&self, record: &Record) -> bool {
        record.service == self.instance.borrow().service && !record.is_expired(self.now())
    }

    fn must_extend(&self, record: &Record) -> bool {
        self.limits.must_extend(record.created, record.expires, self.now())
    }

    /// The cached copy, where it may be used.
    fn copy(&self, token: Token) -> Option<Arc<Record>> {
        let me = self.owner();
        if (Owner { slot: token.slot, epoch: token.epoch }) != me {
            return None;
        }
        let copy = self.shelf.get(token.session, me).filter(|record| self.lives(record))?;
        // Asked after the copy was looked up, so it was true when the copy was.
        self.store.holds().then_some(copy)
    }

    /// The session's state, from where it may be taken from, owned by this instance if the store lets it.
    async fn current(
        &self,
        work: &Work,
        token: Token,
    ) -> Result<Option<(Arc<Record>, Source, Mark)>, SessionError> {
        for _ in 0..MAX_TRIES {
            let mark = work.mark();
            let (record, source) = match self.copy(token) {
                Some(record) => (record, Source::Cache),
                None => match self.store.load(token.session).await? {
                    Some(record) if self.lives(&record) => (Arc::new(record), Source::Database),
                    _ => {
                        work.forget();
                        return Ok(None);
                    }
                },
            };
            match self.own(work, mark, token.session, record).await {
                Ok(record) => return Ok(Some((record, source, mark))),
                Err(StoreError::Conflict) => work.forget(),
                Err(error) => return Err(error.into()),
            }
        }
        Err(SessionError::Conflict)
    }

    /// Makes this instance the owner, moves the expiry if that is due, and keeps a copy.
    async fn own(
        &self,
        work: &Work,
        mark: Mark,
        id: SessionId,
        record: Arc<Record>,
    ) -> Result<Arc<Record>, StoreError> {
        let me = self.owner();
        if record.owner == me && !self.must_extend(&record) {
            work.keep(mark, record.clone());
            return Ok(record);
        }
        let expires = self.limits.expires(record.created, self.now());
        match self.store.claim(id, record.revision, me, expires).await {
            Ok(before) => {
                if before != me {
                    self.peers.void_others(id, &self.shelf);
                }
                let record = Arc::new(Record {
                    revision: record.revision + 1,
                    owner: me,
                    expires,
                    ..Record::clone(&record)
                });
                work.keep(mark, record.clone());
                Ok(record)
            }
            Err(StoreError::Conflict) => Err(StoreError::Conflict),
            Err(error) => {
                // A store that takes no writes can still be read, only nothing is cached that is not owned.
                tracing::warn!(session = %id, %error, "session read without taking it over");
                if record.owner != me {
                    work.forget();
                }
                Ok(record)
            }
        }
    }

    /// Changes the session that a token names, if it lives.
    async fn change<T, F>(&self, token: Token, change: F) -> Result<Option<(Seen, T)>, SessionError>
    where
        F: Fn(&mut State) -> Result<T, Refusal>,
    {
        let work = self.shelf.join(token.session);
        let _turn = work.turn().await;
        for _ in 0..MAX_TRIES {
            let Some((base, source, mark)) = self.current(&work, token).await? else { return Ok(None) };
            let mut state = base.state.clone();
            let made = change(&mut state)?;
            self.limits.check(&state)?;
            match self.save(&work, mark, token.session, &base, state).await {
                Ok(record) => return Ok(Some((self.seen(token.session, record, source), made))),
                Err(SessionError::Conflict) => {}
                Err(error) => return Err(error),
            }
        }
        match self.store.load(token.session).await?.is_some_and(|record| self.lives(&record)) {
            true => Err(SessionError::Conflict),
            false => Ok(None),
        }
    }

    async fn save(
        &self,
        work: &Work,
        mark: Mark,
        id: SessionId,
        base: &Record,
        state: State,
    ) -> Result<Arc<Record>, SessionError> {
        let owner = self.owner();
        let record = Record {
            version: base.version + 1,
            revision: base.revision + 1,
            owner,
            expires: self.limits.expires(base.created, self.now()),
            state,
            ..base.clone()
        };
        match self.store.save(id, &record, Some(base.revision)).await {
            Ok(before) => {
                if before != Some(owner) {
                    self.peers.void_others(id, &self.shelf);
                }
                let record = Arc::new(record);
                work.keep(mark, record.clone());
                Ok(record)
            }
            Err(error) => {
                work.forget();
                if !matches!(error, StoreError::Conflict) {
                    // Perhaps it was written, and an owner that was not asked would not know of it.
                    self.peers.void_others(id, &self.shelf);
                }
                Err(error.into())
            }
        }
    }

    /// Begins a session. It is durable before the client hears of it, so no server will take it for made up.
    async fn create(&self, state: State) -> Result<Seen, SessionError> {
        let mut bytes = [0; 16];
        getrandom::fill(&mut bytes).map_err(|error| SessionError::Random(error.to_string()))?;
        let id = SessionId(bytes);
        let instance = self.instance();
        let created = self.now();
        let record = Arc::new(Record {
            version: 1,
            revision: 1,
            service: instance.service,
            owner: instance.owner(),
            created,
            expires: self.limits.expires(created, created),
            state,
        });
        let work = self.shelf.join(id);
        let mark = work.mark();
        self.store.save(id, &record, None).await?;
        work.keep(mark, record.clone());
        Ok(Seen { id, record, source: Source::New, owner: instance.owner() })
    }

    fn seen(&self, id: SessionId, record: Arc<Record>, source: Source) -> Seen {
        Seen { id, record, source, owner: self.owner() }
    }
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
