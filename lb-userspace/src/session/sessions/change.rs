//! Changing and ending sessions: compare and swap, repeated on fresh state until it is made, refused or hopeless.

use super::own::Found;
use super::{MAX_TRIES, Refusal, Seen, SessionError, Sessions};
use crate::session::shelf::Work;
use crate::session::{Preconditions, Record, State, StoreError, Tag, Target};
use lb_common::token::{SessionId, Token};
use std::sync::Arc;
use std::time::Duration;

/// On what terms a change is made. The default has none.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Terms {
    /// What the preconditions are about.
    pub target: Target,
    pub preconditions: Preconditions,
}

/// A change that was made.
#[derive(Clone, Debug)]
pub struct Changed {
    pub seen: Seen,
    /// Whether the target came into being with it.
    pub created: bool,
}

/// A change that can be made to what was found.
struct Plan<T> {
    state: State,
    created: bool,
    made: T,
}

impl Sessions {
    /// Changes the session that a token names, if it lives.
    pub(super) async fn change<T, F>(
        &self,
        token: Token,
        terms: &Terms,
        change: &F,
    ) -> Result<Option<(Changed, T)>, SessionError>
    where
        F: Fn(&mut State) -> Result<T, Refusal>,
    {
        let id = token.session;
        let work = self.shelf.join(id);
        let _turn = work.turn().await;
        for tries in 0..MAX_TRIES {
            pause(tries).await;
            let Some(found) = self.fetch(&work, token).await? else { return Ok(None) };
            let conflict = match self.plan(Some((id, &found.record)), terms, change) {
                Ok(plan) => match self.save(&work, id, &found, plan.state).await {
                    Ok(record) => {
                        let seen = self.seen(id, record, found.source);
                        return Ok(Some((Changed { seen, created: plan.created }, plan.made)));
                    }
                    Err(error) => error,
                },
                // A refusal tells something of the state, as an answer does.
                Err(refused) => match self.tell(&work, id, &found).await {
                    Ok(record) => return Err(refused.with(self.seen(id, record, found.source))),
                    Err(error) => error,
                },
            };
            if conflict != StoreError::Conflict {
                return Err(conflict.into());
            }
        }
        Err(SessionError::Conflict)
    }

    /// Begins a session with a change in it.
    pub(super) async fn begin<T, F>(&self, terms: &Terms, change: &F) -> Result<(Changed, T), SessionError>
    where
        F: Fn(&mut State) -> Result<T, Refusal>,
    {
        let plan = self.plan(None, terms, change)?;
        let seen = self.create(plan.state).await?;
        Ok((Changed { seen, created: true }, plan.made))
    }

    /// Ends the session that a token names, if it lives.
    pub(super) async fn erase(
        &self,
        token: Token,
        preconditions: &Preconditions,
    ) -> Result<bool, SessionError> {
        let id = token.session;
        let work = self.shelf.join(id);
        let _turn = work.turn().await;
        for tries in 0..MAX_TRIES {
            pause(tries).await;
            let Some(found) = self.fetch(&work, token).await? else { return Ok(false) };
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
            match self.store.delete(id, record.revision).await {
                Ok(()) => return Ok(true),
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(SessionError::Conflict)
    }

    /// What a change makes of a session, or of none.
    fn plan<T, F>(
        &self,
        base: Option<(SessionId, &Record)>,
        terms: &Terms,
        change: &F,
    ) -> Result<Plan<T>, SessionError>
    where
        F: Fn(&mut State) -> Result<T, Refusal>,
    {
        let mut state = base.map(|(_, record)| record.state.clone()).unwrap_or_default();
        let current = base
            .filter(|(_, record)| match &terms.target {
                Target::Session => true,
                Target::Key(key) => record.state.get(key).is_some(),
            })
            .map(|(id, record)| Tag::new(id, record.version));
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
        Ok(Plan { state, created: current.is_none(), made })
    }

    async fn save(
        &self,
        work: &Work,
        id: SessionId,
        found: &Found,
        state: State,
    ) -> Result<Arc<Record>, StoreError> {
        let owner = self.owner();
        let base = &*found.record;
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
