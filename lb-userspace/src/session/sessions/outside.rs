//! What applications do with sessions that the session servers do not: look without beginning one, change only what
//! lives, and move a session to a new id.

use super::change::{Begins, Terms, pause};
use super::own::{Lookup, Sight};
use super::{MAX_TRIES, Refusal, Seen, SessionError, Sessions, no_random, to_the_end};
use crate::session::{Preconditions, State, StoreError, Tag, visit};
use lb_common::token::Token;
use std::sync::Arc;

impl Sessions {
    /// The session that a verified token names, if it lives. Unlike [`Sessions::read`], this begins none.
    ///
    /// # Errors
    /// [`SessionError`] of the store.
    pub async fn find(self: &Arc<Self>, token: Option<Token>) -> Result<Option<Seen>, SessionError> {
        let Some(token) = self.ours(token) else { return Ok(None) };
        if let Some(seen) = self.cached_now(token) {
            return Ok(Some(seen));
        }
        let sessions = self.clone();
        match to_the_end(async move { sessions.look(token).await }).await? {
            Sight::Seen(seen) => Ok(Some(seen)),
            Sight::Open | Sight::Gone => Ok(None),
        }
    }

    /// Changes the session that a verified token names, if it lives. Unlike [`Sessions::write`], this begins none: a
    /// session that has ended elsewhere stays ended.
    ///
    /// # Errors
    /// Those of [`Sessions::write`].
    pub async fn amend<T, F>(
        self: &Arc<Self>,
        token: Option<Token>,
        change: F,
    ) -> Result<Option<(Seen, T)>, SessionError>
    where
        T: Send + 'static,
        F: Fn(&mut State) -> Result<T, Refusal> + Send + Sync + 'static,
    {
        let Some(token) = self.ours(token) else { return Ok(None) };
        let sessions = self.clone();
        to_the_end(async move {
            let changed = sessions.change(token, Begins::No, &Terms::default(), &change).await?;
            let once = "what is not to be made once is never found to be made";
            Ok(changed.map(|(changed, made)| (changed.seen, made.expect(once))))
        })
        .await
    }

    /// Ends the session that a verified token names, as [`Sessions::end`] does, and answers with all that was in it. `None`
    /// when there was none.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn take(self: &Arc<Self>, token: Option<Token>) -> Result<Option<Seen>, SessionError> {
        let Some(token) = self.ours(token) else { return Ok(None) };
        let sessions = self.clone();
        to_the_end(async move { sessions.erase(token, &Preconditions::default()).await }).await
    }

    /// Gives the session that a verified token names a new id, and ends the old one: for the moment when a session
    /// gains rights, so that who planted the old id gains none. Its age counts anew, its versions go on. A visitor that has
    /// changed nothing yet gets another id, too. `None` when there is no such session.
    ///
    /// # Errors
    /// [`SessionError`] of the store. It is not certain then whether the old id still lives; the new one is not used.
    pub async fn renew(self: &Arc<Self>, token: Option<Token>) -> Result<Option<Seen>, SessionError> {
        self.renew_on(token, Preconditions::default()).await
    }

    /// [`Sessions::renew`], if the session is as the preconditions ask for.
    ///
    /// # Errors
    /// Also [`SessionError::Precondition`].
    pub async fn renew_on(
        self: &Arc<Self>,
        token: Option<Token>,
        preconditions: Preconditions,
    ) -> Result<Option<Seen>, SessionError> {
        let Some(token) = self.ours(token) else { return Ok(None) };
        let sessions = self.clone();
        to_the_end(async move {
            let work = sessions.shelf.join(token.session);
            let _turn = sessions.turn(&work).await?;
            for tries in 0..MAX_TRIES {
                pause(tries).await;
                let found = match sessions.fetch(&work, token).await? {
                    Lookup::Found(found) => found,
                    Lookup::Open => {
                        let tag = Tag::new(token.session, 0);
                        let unmet = preconditions.check(Some(tag)).err();
                        let seen = sessions.visit(unmet.map(|_| token.session))?;
                        return match unmet {
                            None => Ok(Some(seen)),
                            Some(unmet) => {
                                Err(SessionError::Precondition { unmet, seen: Some(Box::new(seen)) })
                            }
                        };
                    }
                    Lookup::Gone => return Ok(None),
                };
                // As when a session ends: who sees that the old one is gone must be the last to see it.
                let base = match sessions.own(&work, token.session, &found).await {
                    Ok(base) => base,
                    Err(StoreError::Conflict) => continue,
                    Err(error) => return Err(error.into()),
                };
                preconditions.check(Some(Tag::new(token.session, base.version))).map_err(|unmet| {
                    let seen = sessions.seen(token.session, base.clone(), found.source);
                    SessionError::Precondition { unmet, seen: Some(Box::new(seen)) }
                })?;
                // The new one first: a crash in between leaves a session that nobody has heard of, which expires.
                // Its versions go on: receipts tell of some, and none of those may come again with another state.
                let (state, receipts) = (base.state.clone(), base.receipts.clone());
                let id = visit::plain().map_err(no_random)?;
                let seen = sessions.create(id, base.version, state, receipts).await?;
                work.forget();
                match visit::bury(&*sessions.store, token.session, &base, sessions.now()).await {
                    Ok(()) => return Ok(Some(seen)),
                    // The state that was copied is not the latest any more.
                    Err(StoreError::Conflict) => {
                        let fresh = sessions.shelf.join(seen.id);
                        let dropped = sessions.store.delete(seen.id, seen.record.revision).await;
                        fresh.forget();
                        dropped?;
                    }
                    Err(error) => return Err(error.into()),
                }
            }
            Err(SessionError::Conflict)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::{Instance, Limits, MemoryStore, Once, Peers, SessionStore, Source, unix_millis};
    use tokio::sync::watch;

    fn server(store: &Arc<MemoryStore>, peers: &Arc<Peers>, slot: u16) -> Arc<Sessions> {
        let instance = Instance { service: 1, slot, epoch: 1, name: format!("s{slot}") };
        let instance = watch::channel(instance).1;
        Sessions::new(instance, store.clone(), Limits::default(), peers.clone(), Arc::new(unix_millis))
    }

    fn put(n: u32) -> impl Fn(&mut State) -> Result<(), Refusal> {
        move |state| {
            state.set_as("n", &n).unwrap();
            Ok(())
        }
    }

    fn token(seen: &Seen) -> Option<Token> {
        let (slot, epoch) = (seen.owner.slot, seen.owner.epoch);
        Some(Token { key_id: 0, service: 1, slot, epoch, session: seen.id })
    }

    #[tokio::test]
    async fn looking_begins_no_session_and_late_changes_bring_none_back() {
        let store = Arc::new(MemoryStore::new());
        let peers = Arc::default();
        let (a, b) = (server(&store, &peers, 1), server(&store, &peers, 2));
        assert!(a.find(None).await.unwrap().is_none());
        assert_eq!(store.count().await.unwrap(), 0);

        let (seen, ()) = a.write(None, put(1)).await.unwrap();
        let found = a.find(token(&seen)).await.unwrap().unwrap();
        assert_eq!((found.source, found.record.version), (Source::Cache, 1));
        let found = b.find(token(&seen)).await.unwrap().unwrap();
        assert_eq!((found.source, found.owner.slot), (Source::Database, 2));

        let (seen, old) = a
            .amend(token(&found), |state| {
                let old = state.get_as::<u32>("n").unwrap();
                state.set_as("n", &2).unwrap();
                Ok(old)
            })
            .await
            .unwrap()
            .unwrap();
        assert_eq!((old, seen.record.version), (Some(1), 2));

        let taken = b.take(token(&seen)).await.unwrap().unwrap();
        assert_eq!(taken.record.state.get_as("n").unwrap(), Some(2), "as it was in the end");
        assert!(b.take(token(&seen)).await.unwrap().is_none());
        let late = a.amend(token(&seen), put(3)).await.unwrap();
        assert!(late.is_none() && a.find(token(&seen)).await.unwrap().is_none());
        assert_eq!(store.count().await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_renewed_session_has_its_state_and_no_trace_of_the_old_id() {
        let store = Arc::new(MemoryStore::new());
        let peers = Arc::default();
        let (a, b) = (server(&store, &peers, 1), server(&store, &peers, 2));
        assert!(a.renew(None).await.unwrap().is_none());
        let (old, ()) = a.write(None, put(0)).await.unwrap();
        let once = || Terms { once: Some(Once::new(b"k", &[b"put"], None)), ..Terms::default() };
        let old = a.write_on(token(&old), once(), put(1)).await.unwrap().seen;
        let new = b.renew(token(&old)).await.unwrap().unwrap();
        assert!(new.id != old.id && new.owner.slot == 2);
        // What a repetition is told has the tag of that state alone.
        let (later, ()) = a.write(token(&new), put(1)).await.unwrap();
        let repeated = a.write_on(token(&new), once(), put(1)).await.unwrap();
        assert!(repeated.repeated && repeated.seen.tag() != later.tag());
        assert_eq!(new.record.state.get_as("n").unwrap(), Some(1));
        for server in [&a, &b] {
            assert!(server.find(token(&old)).await.unwrap().is_none());
        }
        assert_eq!(store.count().await.unwrap(), 1);
    }
}
