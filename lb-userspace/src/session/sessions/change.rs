//! Changing and ending sessions: compare and swap, repeated on fresh state until it is made, refused or hopeless.

use super::own::{Found, Lookup};
use super::{MAX_TRIES, Refusal, Seen, SessionError, Sessions, no_random};
use crate::session::receipts::{self, Receipt};
use crate::session::shelf::Work;
use crate::session::{Once, Preconditions, Receipts, Record, State, StoreError, Tag, Target, visit};
use lb_common::token::{SessionId, Token};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// On what terms a change is made. The default has none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Terms {
    /// What the preconditions are about.
    pub target: Target,
    pub preconditions: Preconditions,
    /// The change is not to be made again.
    pub once: Option<Once>,
    /// Where the request comes from: new sessions are bounded by it, if it is known.
    pub client: Option<IpAddr>,
}

/// A change that was made.
#[derive(Clone, Debug)]
pub struct Changed {
    /// The session with the change in it. If it was made before: the part of the state that its answer showed, as it was
    /// then, or the session as it is now if that was too large to be remembered.
    pub seen: Seen,
    /// Whether the target came into being with it.
    pub created: bool,
    /// Whether it was made before, and nothing was changed now.
    pub repeated: bool,
}

/// Whether a change may begin the session that its token names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Begins {
    Yes,
    No,
}

/// What is to be done about a change.
enum Plan<T> {
    Make {
        state: State,
        receipts: Receipts,
        created: bool,
        made: T,
    },
    /// Tell what it did when it was made.
    Repeat(Receipt),
}

impl Sessions {
    /// Changes the session that a token names, if it lives, or begins it where its first change may.
    pub(super) async fn change<T, F>(
        &self,
        token: Token,
        begins: Begins,
        terms: &Terms,
        change: &F,
    ) -> Result<Option<(Changed, Option<T>)>, SessionError>
    where
        F: Fn(&mut State) -> Result<T, Refusal>,
    {
        let id = token.session;
        let work = self.shelf.join(id);
        let _turn = self.turn(&work).await?;
        for tries in 0..MAX_TRIES {
            pause(tries).await;
            let found = match self.fetch(&work, token).await? {
                Lookup::Found(found) => found,
                Lookup::Open if begins == Begins::Yes => match self.begin_as(id, terms, change).await {
                    // Another one has begun it.
                    Err(SessionError::Store(StoreError::Conflict)) => continue,
                    begun => return begun.map(Some),
                },
                Lookup::Open | Lookup::Gone => return Ok(None),
            };
            let (told, repeat) = match self.plan(Some(id), Some(&found.record), terms, change) {
                Ok(Plan::Make { state, receipts, created, made }) => {
                    match self.save(&work, id, &found, state, receipts).await {
                        Ok(record) => {
                            let seen = self.seen(id, record, found.source);
                            return Ok(Some((Changed { seen, created, repeated: false }, Some(made))));
                        }
                        Err(StoreError::Conflict) => continue,
                        Err(error) => return Err(error.into()),
                    }
                }
                // Both tell something of the state.
                Ok(Plan::Repeat(receipt)) => (self.tell(&work, id, &found).await, Ok(receipt)),
                Err(refused) => (self.tell(&work, id, &found).await, Err(refused)),
            };
            match (told, repeat) {
                (Ok(record), Ok(receipt)) => {
                    let created = receipt.created;
                    let seen = self.seen(id, remembered(record, &receipt), found.source);
                    return Ok(Some((Changed { seen, created, repeated: true }, None)));
                }
                (Ok(record), Err(refused)) => {
                    return Err(refused.with(self.seen(id, record, found.source)));
                }
                (Err(StoreError::Conflict), _) => {}
                (Err(error), _) => return Err(error.into()),
            }
        }
        Err(SessionError::Conflict)
    }

    /// Begins a session under a new id with a change in it.
    pub(super) async fn begin<T, F>(
        &self,
        terms: &Terms,
        change: &F,
    ) -> Result<(Changed, Option<T>), SessionError>
    where
        F: Fn(&mut State) -> Result<T, Refusal>,
    {
        let plan = self.plan(None, None, terms, change)?;
        self.admit(terms)?;
        self.write_first(visit::plain().map_err(no_random)?, plan).await.map_err(SessionError::from)
    }

    /// Begins the session of a visitor.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] as it is: it is there by now.
    async fn begin_as<T, F>(
        &self,
        id: SessionId,
        terms: &Terms,
        change: &F,
    ) -> Result<(Changed, Option<T>), SessionError>
    where
        F: Fn(&mut State) -> Result<T, Refusal>,
    {
        match self.plan(Some(id), None, terms, change) {
            Ok(plan) => {
                self.admit(terms)?;
                self.write_first(id, plan).await.map_err(|error| match error {
                    StoreError::Conflict => SessionError::Store(error),
                    error => error.into(),
                })
            }
            Err(refused) => Err(refused.with(self.visit(Some(id))?)),
        }
    }

    fn admit(&self, terms: &Terms) -> Result<(), SessionError> {
        let there = self.store.count_of(self.instance.borrow().service);
        Ok(self.admission.admit(there, terms.client, self.now())?)
    }

    async fn write_first<T>(&self, id: SessionId, plan: Plan<T>) -> Result<(Changed, Option<T>), StoreError> {
        let Plan::Make { state, receipts, created, made } = plan else {
            unreachable!("a session that is not there has seen nothing");
        };
        let seen = self.create(id, 1, state, receipts).await?;
        Ok((Changed { seen, created, repeated: false }, Some(made)))
    }

    /// Ends the session that a token names, if it lives: as it was in the end.
    pub(super) async fn erase(
        &self,
        token: Token,
        preconditions: &Preconditions,
    ) -> Result<Option<Seen>, SessionError> {
        let id = token.session;
        let work = self.shelf.join(id);
        let _turn = self.turn(&work).await?;
        for tries in 0..MAX_TRIES {
            pause(tries).await;
            let Lookup::Found(found) = self.fetch(&work, token).await? else { return Ok(None) };
            // Who sees that it is gone must be the last to see it, so all copies are void before it goes.
            let record = match self.own(&work, id, &found).await {
                Ok(record) => record,
                Err(StoreError::Conflict) => continue,
                Err(error) => return Err(error.into()),
            };
            preconditions.check(Some(Tag::new(id, record.version))).map_err(|unmet| {
                let seen = self.seen(id, record.clone(), found.source);
                SessionError::Precondition { unmet, seen: Some(Box::new(seen)) }
            })?;
            work.forget();
            match visit::bury(&*self.store, id, &record, self.now()).await {
                Ok(()) => return Ok(Some(self.seen(id, record, found.source))),
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(SessionError::Conflict)
    }

    /// What a change makes of a session, or of none: then the id is that of a visitor that has one.
    fn plan<T, F>(
        &self,
        id: Option<SessionId>,
        base: Option<&Record>,
        terms: &Terms,
        change: &F,
    ) -> Result<Plan<T>, SessionError>
    where
        F: Fn(&mut State) -> Result<T, Refusal>,
    {
        let now = self.now();
        let receipts = base.map(|record| record.receipts.clone()).unwrap_or_default();
        // First of all: the change itself may be why the preconditions are no longer met (RFC 9110 §13.1.1).
        match terms.once.and_then(|once| receipts.seen(&once, now)) {
            Some(receipts::Seen::Made(receipt)) => return Ok(Plan::Repeat(receipt.clone())),
            Some(receipts::Seen::Other) => return Err(SessionError::Reused),
            None => {}
        }
        let mut state = base.map(|record| record.state.clone()).unwrap_or_default();
        let version = base.map_or(0, |record| record.version);
        let is_there = match &terms.target {
            Target::Session => base.is_some(),
            Target::Key(key) => base.is_some_and(|record| record.state.get(key).is_some()),
        };
        // What a visitor was shown is a version, too, though there is nothing yet.
        let current = id.filter(|_| is_there || terms.target == Target::Session);
        let current = current.map(|id| Tag::new(id, version));
        let made = match change(&mut state) {
            Err(absent @ Refusal::NotFound(_)) => return Err(absent.into()),
            made => made,
        };
        terms
            .preconditions
            .check(current)
            .map_err(|unmet| SessionError::Precondition { unmet, seen: None })?;
        let made = made?;
        self.limits.check(&state)?;
        let (created, version) = (!is_there, version + 1);
        let receipts = match &terms.once {
            Some(once) => receipts.with(once, now, version, created, &state),
            None => receipts,
        };
        Ok(Plan::Make { state, receipts, created, made })
    }

    async fn save(
        &self,
        work: &Work,
        id: SessionId,
        found: &Found,
        state: State,
        receipts: Receipts,
    ) -> Result<Arc<Record>, StoreError> {
        let owner = self.owner();
        let base = &*found.record;
        let record = Record {
            version: base.version + 1,
            revision: base.revision + 1,
            owner,
            expires: self.limits.expires(base.created, self.now()),
            receipts,
            state,
            ..*base
        };
        match self.store.save(id, &record, Some(base.revision)).await {
            Ok(before) => {
                if before != Some(owner) {
                    self.peers.void_others(id, &self.shelf);
                }
                let record = Arc::new(record);
                work.keep(found.mark, record.clone());
                Ok(record)
            }
            Err(error) => {
                work.forget();
                if error != StoreError::Conflict {
                    // Perhaps it was written, and an owner that was not asked would not know of it.
                    self.peers.void_others(id, &self.shelf);
                }
                Err(error)
            }
        }
    }
}

/// The session as the answer showed it when the change was made, as far as that is known.
fn remembered(record: Arc<Record>, receipt: &Receipt) -> Arc<Record> {
    match receipt.state() {
        Some(state) => {
            Arc::new(Record { version: receipt.version, state, receipts: record.receipts.clone(), ..*record })
        }
        None => record,
    }
}

impl SessionError {
    /// Says what the session is like that did not meet the preconditions.
    fn with(self, seen: Seen) -> Self {
        match self {
            Self::Precondition { unmet, .. } => Self::Precondition { unmet, seen: Some(Box::new(seen)) },
            other => other,
        }
    }
}

/// Waits before another try, each time longer and by chance, so that servers that keep getting in each other's way get
/// out of it. Nobody can tell when the others are done.
pub(super) async fn pause(tries: usize) {
    const FIRST: u64 = 100;
    const LONGEST: u64 = 25_600;
    if tries > 0 {
        let most = (FIRST << tries.min(16)).min(LONGEST);
        let random = getrandom::u64().unwrap_or_default();
        tokio::time::sleep(Duration::from_micros(random % most)).await;
    }
}
