//! What is known of the session of the request under way: how the store hears of the token that was verified, and the
//! layer of what became of it. tower-sessions itself carries nothing but an id from one to the other.

use super::merge::Data;
use crate::session::{Owner, Seen, SessionError, SessionId, State, Token, TokenKeys};
use parking_lot::Mutex;
use std::sync::Arc;

tokio::task_local! {
    /// Of the request that this task answers.
    pub(super) static VISIT: Arc<Visit>;
}

pub(super) struct Visit {
    /// The verified token that the client presented.
    presented: Option<Token>,
    /// It is not signed with the newest key.
    old_key: bool,
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    /// The session as it was last seen alive, and who owned it then.
    found: Option<(SessionId, Owner, Arc<Data>)>,
    /// The session that this request has ended.
    ended: Option<Ended>,
    /// The session is to be saved for the sake of its cookie alone.
    cookie_only: bool,
    error: Option<SessionError>,
}

/// A session that the request had seen and then ended.
pub(super) struct Ended {
    pub(super) id: SessionId,
    /// What the request knew of it.
    pub(super) base: Arc<Data>,
    /// What was in it in the end.
    pub(super) state: State,
}

impl Visit {
    pub(super) fn new(presented: Option<Token>, keys: &TokenKeys) -> Arc<Self> {
        let newest = keys.ids().first().copied();
        let old_key = presented.is_some_and(|token| Some(token.key_id) != newest);
        Arc::new(Self { presented, old_key, now: Mutex::default() })
    }

    /// That of this task, if there is one.
    pub(super) fn current() -> Option<Arc<Self>> {
        VISIT.try_with(Arc::clone).ok()
    }

    /// Who owned a session when this request last saw it, or when its token was made.
    pub(super) fn owner(&self, id: SessionId) -> Option<Owner> {
        let found = self.found(id).map(|(owner, _)| owner);
        let told = self.presented.filter(|token| token.session == id);
        found.or(told.map(|token| Owner { slot: token.slot, epoch: token.epoch }))
    }

    /// Owner and data of a session that this request has seen alive.
    pub(super) fn found(&self, id: SessionId) -> Option<(Owner, Arc<Data>)> {
        let now = self.now.lock();
        let (_, owner, data) = now.found.as_ref().filter(|(found, ..)| *found == id)?;
        Some((*owner, data.clone()))
    }

    pub(super) fn find(&self, seen: &Seen, data: Data) {
        self.now.lock().found = Some((seen.id, seen.owner, Arc::new(data)));
    }

    /// The session has ended, with what was in it in the end, if that is known.
    pub(super) fn lose(&self, id: SessionId, state: Option<State>) {
        let mut now = self.now.lock();
        if let Some((_, _, base)) = now.found.take_if(|(found, ..)| *found == id)
            && let Some(state) = state
        {
            now.ended = Some(Ended { id, base, state });
        }
    }

    /// The session that this request has ended; told once.
    pub(super) fn ended(&self) -> Option<Ended> {
        self.now.lock().ended.take()
    }

    /// Whether the client should have another token for the session that this request has seen.
    pub(super) fn is_outdated(&self) -> bool {
        let now = self.now.lock();
        let told = self.presented.map(|token| (token.session, token.slot, token.epoch));
        now.found
            .as_ref()
            .is_some_and(|(id, owner, _)| self.old_key || told != Some((*id, owner.slot, owner.epoch)))
    }

    pub(super) fn want_cookie_only(&self) {
        self.now.lock().cookie_only = true;
    }

    pub(super) fn wants_cookie_only(&self) -> bool {
        self.now.lock().cookie_only
    }

    pub(super) fn fail(&self, error: &SessionError) {
        self.now.lock().error = Some(error.clone());
    }

    pub(super) fn error(&self) -> Option<SessionError> {
        self.now.lock().error.clone()
    }
}
