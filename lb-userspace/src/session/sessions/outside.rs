//! What applications do with sessions that the session servers do not: look without beginning one, change only what
//! lives, and move a session to a new id.

use super::{MAX_TRIES, Refusal, Seen, SessionError, Sessions, Source, to_the_end};
use crate::session::{State, StoreError};
use lb_common::token::Token;
use std::sync::Arc;

impl Sessions {
    /// The session that a verified token names, if it lives. Unlike [`Sessions::read`], this begins none.
    ///
    /// # Errors
    /// [`SessionError`] of the store.
    pub async fn find(self: &Arc<Self>, token: Option<Token>) -> Result<Option<Seen>, SessionError> {
        let Some(token) = self.ours(token) else { return Ok(None) };
        if let Some(record) = self.copy(token)
            && !self.must_extend(&record)
        {
            return Ok(Some(Seen { id: token.session, source: Source::Cache, owner: record.owner, record }));
        }
        let sessions = self.clone();
        to_the_end(async move {
            let work = sessions.shelf.join(token.session);
            let _turn = work.turn().await;
            let found = sessions.current(&work, token).await?;
            Ok(found.map(|(record, source, _)| sessions.seen(token.session, record, source)))
        })
        .await
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
        to_the_end(async move { sessions.change(token, change).await }).await
    }

    /// Gives the session that a verified token names a new id, and ends the old one: for the moment when a session
    /// gains rights, so that who planted the old id gains none. Its age counts anew. `None` when there is no such session.
    ///
    /// # Errors
    /// [`SessionError`] of the store. It is not certain then whether the old id still lives; the new one is not used.
    pub async fn renew(self: &Arc<Self>, token: Option<Token>) -> Result<Option<Seen>, SessionError> {
        let Some(token) = self.ours(token) else { return Ok(None) };
        let sessions = self.clone();
        to_the_end(async move {
            let work = sessions.shelf.join(token.session);
            let _turn = work.turn().await;
            for _ in 0..MAX_TRIES {
                let Some((base, _, _)) = sessions.current(&work, token).await? else { return Ok(None) };
                // The new one first: a crash in between leaves a session that nobody has heard of, which expires.
                let seen = sessions.create(base.state.clone()).await?;
                let deleted = sessions.store.delete(token.session, base.revision).await;
                work.forget();
                sessions.peers.void_others(token.session, &sessions.shelf);
                match deleted {
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
