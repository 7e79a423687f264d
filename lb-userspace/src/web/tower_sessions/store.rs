//! The store that tower-sessions is given: its trait over our [`Sessions`].

use super::merge::{Changes, Conflicts, Data, EXPIRES, data};
use super::visit::{Ended, Visit};
use crate::session::{
    Owner, Preconditions, Refusal, Seen, SessionError, SessionId, Sessions, State, Tags, Token, unix_millis,
};
use async_trait::async_trait;
use std::fmt;
use std::sync::Arc;
use time::OffsetDateTime;
use tower_sessions_core::SessionStore;
use tower_sessions_core::session::{Id, Record};
use tower_sessions_core::session_store::{Error, Result};

/// Keeps the sessions of tower-sessions: durable when saved, cached in this process, shared with all others of the
/// service. Clones are the same store.
///
/// It is made for use inside an [`super::AffinityLayer`]. Without one, or in a task that a handler spawned, it works as a
/// plain store: it reads from the database every time, and a save replaces the whole session.
///
/// A session expires when tower-sessions says so, and no later than the [`crate::session::Limits`] of the [`Sessions`]
/// say: give those an `idle` and an `absolute` time as long as the application wants its sessions to live.
#[derive(Clone)]
pub struct LbStore {
    sessions: Arc<Sessions>,
    conflicts: Conflicts,
}

impl LbStore {
    pub fn new(sessions: Arc<Sessions>) -> Self {
        Self { sessions, conflicts: Conflicts::default() }
    }

    /// What happens when two requests change the same key at once.
    pub fn with_conflicts(mut self, conflicts: Conflicts) -> Self {
        self.conflicts = conflicts;
        self
    }

    pub(super) fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    /// Names a session as well as this request can: only with the token that the client presented, or one that this
    /// request earned, may it come from the cache.
    fn token(&self, id: SessionId, visit: Option<&Visit>) -> Option<Token> {
        let Owner { slot, epoch } = visit.and_then(|visit| visit.owner(id)).unwrap_or(Owner::UNSETTLED);
        Some(Token { key_id: 0, service: self.sessions.instance().service, slot, epoch, session: id })
    }
}

impl fmt::Debug for LbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let instance = self.sessions.instance();
        f.debug_struct("LbStore").field("instance", &instance).field("conflicts", &self.conflicts).finish()
    }
}

#[async_trait]
impl SessionStore for LbStore {
    /// Begins a session under an id of our own; what the record says of its id is not used.
    async fn create(&self, record: &mut Record) -> Result<()> {
        let visit = Visit::current();
        let before = visit.as_deref().and_then(Visit::ended).filter(|ended| continues(ended, record));
        let changes = changes(before.as_ref().map(|ended| &*ended.base), record)?;
        let before = before.map_or_else(State::default, |ended| ended.state);
        let begin = move |state: &mut State| {
            *state = before.clone();
            // What it takes the place of has ended by now: to refuse would be to lose all of it.
            changes.apply(state, Conflicts::KeepLast)
        };
        let begun = self.sessions.write(None, begin).await;
        let (seen, ()) = begun.map_err(|error| failed(visit.as_deref(), error))?;
        record.id = id_of(seen.id);
        remember(visit.as_deref(), &seen, &record.data);
        Ok(())
    }

    async fn save(&self, record: &Record) -> Result<()> {
        let (id, visit) = (session_of(&record.id), Visit::current());
        let visit = visit.as_deref();
        let base = visit.and_then(|visit| visit.found(id)).map(|(_, base)| base);
        let changes = changes(base.as_deref(), record)?;
        if changes.is_empty() && visit.is_some_and(Visit::wants_cookie_only) {
            return Ok(());
        }
        let conflicts = self.conflicts;
        let saved = self
            .sessions
            .amend(self.token(id, visit), move |state| changes.apply(state, conflicts))
            .await
            .map_err(|error| failed(visit, error))?;
        match saved {
            Some((seen, ())) => {
                // Not what others have added: the next save would take for removed what this request does not know of.
                remember(visit, &seen, &record.data);
                Ok(())
            }
            None => {
                let ended = "the session ended while this request was under way";
                Err(failed(visit, SessionError::Refused(Refusal::Unfit(ended.into()))))
            }
        }
    }

    async fn load(&self, id: &Id) -> Result<Option<Record>> {
        let (session, visit) = (session_of(id), Visit::current());
        let visit = visit.as_deref();
        let token = self.token(session, visit);
        loop {
            let found = self.sessions.find(token).await.map_err(|error| failed(visit, error))?;
            let Some(seen) = found else { return Ok(None) };
            let (data, expires) = data(&seen.record.state).map_err(unreadable)?;
            let expires = expires.unwrap_or(seen.record.expires).min(seen.record.expires);
            if expires > unix_millis() {
                remember(visit, &seen, &data);
                return Ok(Some(Record { id: *id, data, expiry_date: date(expires) }));
            }
            // If that is how it still is: a request that began in time may have moved its expiry.
            let this = Preconditions { if_match: Some(Tags::Of(vec![seen.tag()])), if_none_match: None };
            match self.sessions.end_on(token, this).await {
                Ok(_) => return Ok(None),
                Err(SessionError::Precondition { .. }) => {}
                Err(error) => return Err(failed(visit, error)),
            }
        }
    }

    async fn delete(&self, id: &Id) -> Result<()> {
        let (session, visit) = (session_of(id), Visit::current());
        let visit = visit.as_deref();
        let taken = self.sessions.take(self.token(session, visit)).await;
        if let Some(visit) = visit {
            let state = taken.as_ref().ok().and_then(Option::as_ref).map(|seen| seen.record.state.clone());
            visit.lose(session, state);
        }
        taken.map(drop).map_err(|error| failed(visit, error))
    }
}

/// Whether a session that begins is one that has ended under a new id (`cycle_id`), so that what others did to it until its
/// end is to be in it. tower-sessions gives that one a new id of its own at once; after a `flush` the record keeps the old
/// one. And where nothing is left of what there was, none of it is to go on.
fn continues(ended: &Ended, record: &Record) -> bool {
    let left = |key| record.data.contains_key(key);
    session_of(&record.id) != ended.id && (ended.base.is_empty() || ended.base.keys().any(left))
}

/// The same 128 bits, in the order in which tower-sessions writes them.
pub(super) fn session_of(id: &Id) -> SessionId {
    SessionId(id.0.to_le_bytes())
}

pub(super) fn id_of(session: SessionId) -> Id {
    Id(i128::from_le_bytes(session.0))
}

fn changes(base: Option<&Data>, record: &Record) -> Result<Changes> {
    if record.data.contains_key(EXPIRES) {
        return Err(Error::Encode(format!("the key {EXPIRES:?} is the store's own: choose another")));
    }
    Ok(Changes::between(base, &record.data, millis(record.expiry_date)))
}

fn remember(visit: Option<&Visit>, seen: &Seen, data: &Data) {
    if let Some(visit) = visit {
        visit.find(seen, data.clone());
    }
}

fn failed(visit: Option<&Visit>, error: SessionError) -> Error {
    if let Some(visit) = visit {
        visit.fail(&error);
    }
    Error::Backend(error.to_string())
}

fn unreadable(error: serde_json::Error) -> Error {
    Error::Decode(error.to_string())
}

/// Milliseconds since 1970; what is before that has expired anyway.
fn millis(date: OffsetDateTime) -> u64 {
    u64::try_from(date.unix_timestamp_nanos() / 1_000_000).unwrap_or(0)
}

/// The last moment that can be written if it is later than that.
fn date(millis: u64) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)
        .unwrap_or(time::UtcDateTime::MAX.into())
}
