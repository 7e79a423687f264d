//! Finding a session and becoming its owner: the part that decides what may be told from where.

use super::change::pause;
use super::{MAX_TRIES, Seen, SessionError, Sessions, Source};
use crate::session::shelf::{Mark, Work};
use crate::session::{Owner, Record, StoreError, visit};
use lb_common::token::{SessionId, Token};
use std::sync::Arc;

/// A session that was found, before anybody is told of it.
pub(super) struct Found {
    pub(super) record: Arc<Record>,
    pub(super) source: Source,
    /// Taken before it was looked up.
    pub(super) mark: Mark,
}

/// What came of looking a session up.
pub(super) enum Lookup {
    Found(Found),
    /// It is not there, and its first change may begin it.
    Open,
    /// It has ended, or never was.
    Gone,
}

/// [`Lookup`], once it may be told.
pub(super) enum Sight {
    Seen(Seen),
    Open,
    Gone,
}

impl Sessions {
    /// What can be told from memory at once, with nothing to be written down.
    pub(super) fn cached_now(&self, token: Token) -> Option<Seen> {
        let record = self.copy(token).filter(|record| !self.must_extend(record))?;
        Some(Seen { id: token.session, source: Source::Cache, owner: record.owner, record })
    }

    /// The session that a token names.
    pub(super) async fn look(&self, token: Token) -> Result<Sight, SessionError> {
        let work = self.shelf.join(token.session);
        let _turn = self.turn(&work).await?;
        for tries in 0..MAX_TRIES {
            pause(tries).await;
            let found = match self.fetch(&work, token).await? {
                Lookup::Found(found) => found,
                Lookup::Open => return Ok(Sight::Open),
                Lookup::Gone => return Ok(Sight::Gone),
            };
            match self.tell(&work, token.session, &found).await {
                Ok(record) => return Ok(Sight::Seen(self.seen(token.session, record, found.source))),
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(SessionError::Conflict)
    }

    /// The session's state, from where it may be taken from. Nothing of it may be told before it is owned. One that has
    /// expired is gone from the database before anybody is told so: a change that found it alive, and is written only
    /// now, would bring it back.
    pub(super) async fn fetch(&self, work: &Work, token: Token) -> Result<Lookup, SessionError> {
        let id = token.session;
        for tries in 0..MAX_TRIES {
            pause(tries).await;
            let mark = work.mark();
            if let Some(record) = self.copy(token) {
                return Ok(Lookup::Found(Found { record, source: Source::Cache, mark }));
            }
            let Some(record) = self.store.load(id).await? else {
                work.forget();
                let open = visit::is_open(id, self.now(), &self.limits);
                return Ok(if open { Lookup::Open } else { Lookup::Gone });
            };
            if self.lives(&record) {
                return Ok(Lookup::Found(Found { record: Arc::new(record), source: Source::Database, mark }));
            }
            work.forget();
            if record.is_grave() || !self.is_of_ours(&record) {
                return Ok(Lookup::Gone);
            }
            match visit::bury(&*self.store, id, &record, self.now()).await {
                Ok(()) => {
                    self.peers.void_others(id, &self.shelf);
                    return Ok(Lookup::Gone);
                }
                // Swept, ended, or kept alive by a change that was faster.
                Err(StoreError::Conflict) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(SessionError::Conflict)
    }

    /// Makes this instance the owner of what was found, or does what comes to the same where the disk is full. After
    /// this, and only then, it may be told.
    ///
    /// # Errors
    /// [`StoreError::Conflict`]: it has changed since it was found.
    pub(super) async fn tell(
        &self,
        work: &Work,
        id: SessionId,
        found: &Found,
    ) -> Result<Arc<Record>, StoreError> {
        let owned = self.own(work, id, found).await;
        let Err(error) = owned else { return owned };
        let mine = found.record.owner == self.owner();
        match error {
            StoreError::Conflict => Err(error),
            // Nobody else has a copy; only its expiry was not moved.
            _ if mine => {
                tracing::warn!(session = %id, %error, "session read without moving its expiry");
                Ok(found.record.clone())
            }
            // Nothing was written, and no other process has a copy. The copies in this process are void, and none is
            // kept here: everyone reads from the database until there is space.
            StoreError::NoSpace { .. } if found.record.owner != Owner::UNSETTLED => {
                tracing::warn!(session = %id, %error, "session read without taking it over");
                Ok(found.record.clone())
            }
            error => Err(error),
        }
    }

    /// Makes this instance the owner, moves the expiry if that is due, and keeps a copy.
    pub(super) async fn own(
        &self,
        work: &Work,
        id: SessionId,
        found: &Found,
    ) -> Result<Arc<Record>, StoreError> {
        let me = self.owner();
        let record = &found.record;
        if record.owner == me && !self.must_extend(record) {
            work.keep(found.mark, record.clone());
            return Ok(record.clone());
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
                    ..Record::clone(record)
                });
                work.keep(found.mark, record.clone());
                Ok(record)
            }
            Err(error) => {
                // What is in the database is something else, or perhaps was taken over all the same: then no former
                // owner would be asked any more.
                if error == StoreError::Conflict || record.owner != me {
                    work.forget();
                }
                if error != StoreError::Conflict {
                    self.peers.void_others(id, &self.shelf);
                }
                Err(error)
            }
        }
    }

    /// The cached copy, where it may be used.
    fn copy(&self, token: Token) -> Option<Arc<Record>> {
        // Asked before the copy is looked up: whatever is in the cache at this moment or comes into it later is the
        // latest state at this moment. Asked afterwards, the answer could be about a cache that was emptied and filled
        // again meanwhile.
        if !self.store.holds() {
            return None;
        }
        let me = self.owner();
        if (Owner { slot: token.slot, epoch: token.epoch }) != me {
            return None;
        }
        self.shelf.get(token.session, me).filter(|record| self.lives(record))
    }
}
