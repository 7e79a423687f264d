//! What a handler holds: the session of its request, loaded when it is first asked for.

use super::Cookie;
use super::cookie;
use crate::session::{
    Changed, Keyring, Refusal, Seen, SessionError, SessionId, Sessions, Source, State, Terms, Token,
};
use http::HeaderMap;
use http::header::{CACHE_CONTROL, HeaderValue, SET_COOKIE};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::sync::Arc;

/// The session of one request, put into its extensions by [`super::SessionLayer`].
///
/// Nothing is loaded before it is asked for, and no session begins before something is written ([`Session::begin`] gives
/// a client its token before), so requests that need no session cost nothing. Every method that changes something returns when the
/// change is durable, and each read answers with the latest acknowledged state of that moment: from the cache of this
/// process where that is certain, else from the database.
///
/// A session can begin, end or get another id only while the response's head has not been sent; what is left to do is
/// said in a cookie. Clones are the same session.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

/// What all requests share.
pub(super) struct Context {
    pub(super) sessions: Arc<Sessions>,
    pub(super) keys: Arc<Keyring>,
    pub(super) cookie: Cookie,
}

struct Inner {
    context: Arc<Context>,
    presented: Option<Token>,
    now: Mutex<Now>,
    /// Changes within a request take turns, so that it begins one session and not two.
    turn: tokio::sync::Mutex<()>,
}

/// What is known of the session.
struct Now {
    /// Names it, as far as is known.
    token: Option<Token>,
    /// Where its state came from when it was first loaded in this request.
    source: Option<Source>,
    /// It was seen alive in this request.
    seen: bool,
    /// The client gets its token, written or not.
    begun: bool,
    ended: bool,
}

impl Session {
    pub(super) fn of(context: &Arc<Context>, headers: &HeaderMap) -> Self {
        let presented = token(&context.keys, context.cookie.name(), headers);
        Self(Arc::new(Inner {
            context: context.clone(),
            presented,
            now: Mutex::new(Now { token: presented, source: None, seen: false, begun: false, ended: false }),
            turn: tokio::sync::Mutex::default(),
        }))
    }

    /// The value of a key; `None` when there is no session or no such key.
    ///
    /// # Errors
    /// [`Refusal::Unfit`] when the value is not of that type; those of the store.
    pub async fn get<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, SessionError> {
        let Some(seen) = self.seen().await? else { return Ok(None) };
        Ok(seen.record.state.get_as(key).map_err(|error| {
            Refusal::Unfit(format!("the value of {key:?} in the session is of another type: {error}"))
        })?)
    }

    /// Sets a key, whatever it was before. For a value that depends on the one before, use [`Session::update`].
    ///
    /// # Errors
    /// [`SessionError::TooLarge`]: nothing was stored then. [`Refusal::Invalid`] when the value cannot be written as JSON.
    /// Those of the store.
    pub async fn set<T: Serialize + ?Sized>(&self, key: &str, value: &T) -> Result<(), SessionError> {
        let value = serde_json::value::to_raw_value(value)
            .map_err(|error| Refusal::Invalid(format!("the value of {key:?} cannot be JSON: {error}")))?;
        let key = key.to_owned();
        self.update(move |state| {
            state.set(key.clone(), value.clone());
            Ok(())
        })
        .await
    }

    /// Changes the session; begins one with the change in it if there is none. When others change it at the same time,
    /// `change` is called again with the state that they left, so no update is lost. When it refuses, nothing happens.
    ///
    /// ```
    /// # use lb_userspace::session::SessionError;
    /// # use lb_userspace::web::Session;
    /// async fn visit(session: Session) -> Result<String, SessionError> {
    ///     let visits = session
    ///         .update(|state| {
    ///             let visits = state.get_as::<u64>("visits").ok().flatten().unwrap_or(0) + 1;
    ///             state.set_as("visits", &visits).expect("a number is JSON");
    ///             Ok(visits)
    ///         })
    ///         .await?;
    ///     Ok(format!("visit {visits}"))
    /// }
    /// ```
    ///
    /// # Errors
    /// What `change` refuses, [`SessionError::TooLarge`], [`SessionError::Conflict`] after very many repetitions, and those
    /// of the store.
    pub async fn update<T, F>(&self, change: F) -> Result<T, SessionError>
    where
        T: Send + 'static,
        F: Fn(&mut State) -> Result<T, Refusal> + Send + Sync + 'static,
    {
        let _turn = self.0.turn.lock().await;
        let (seen, made) = self.sessions().write(self.token(), change).await?;
        self.know(&seen);
        Ok(made)
    }

    /// [`Session::update`] on terms: only if the session is in a state that the request asks for (`If-Match`), and not again
    /// if this very request was answered before (`Idempotency-Key`). A repetition tells what came of it then.
    ///
    /// ```
    /// # use lb_userspace::session::{Once, SessionError, Terms};
    /// # use lb_userspace::web::Session;
    /// /// However often the client repeats this, it buys one.
    /// async fn buy(session: Session, key: &[u8], body: &[u8]) -> Result<u64, SessionError> {
    ///     let once = Some(Once::new(key, &[b"POST /mugs", body], None));
    ///     let changed = session
    ///         .update_on(Terms { once, ..Terms::default() }, |state| {
    ///             let mugs = state.get_as::<u64>("mugs").ok().flatten().unwrap_or(0) + 1;
    ///             state.set_as("mugs", &mugs).expect("a number is JSON");
    ///             Ok(())
    ///         })
    ///         .await?;
    ///     Ok(changed.seen.record.state.get_as("mugs").ok().flatten().unwrap_or(0))
    /// }
    /// ```
    ///
    /// # Errors
    /// Also [`SessionError::Precondition`], and [`SessionError::Reused`] when the key came with another request.
    pub async fn update_on<F>(&self, terms: Terms, change: F) -> Result<Changed, SessionError>
    where
        F: Fn(&mut State) -> Result<(), Refusal> + Send + Sync + 'static,
    {
        let _turn = self.0.turn.lock().await;
        let changed = self.sessions().write_on(self.token(), terms, change).await?;
        self.know(&changed.seen);
        Ok(changed)
    }

    /// Removes a key; false when there was none. Begins no session.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn remove(&self, key: &str) -> Result<bool, SessionError> {
        let _turn = self.0.turn.lock().await;
        match self.seen().await? {
            Some(seen) if seen.record.state.get(key).is_some() => {}
            _ => return Ok(false),
        }
        let key = key.to_owned();
        match self.sessions().amend(self.token(), move |state| Ok(state.remove(&key))).await? {
            Some((seen, removed)) => {
                self.know(&seen);
                Ok(removed)
            }
            None => {
                self.lose();
                Ok(false)
            }
        }
    }

    /// Ends the session, everywhere at once, and takes the cookie away from the client. False when there was none.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn end(&self) -> Result<bool, SessionError> {
        let _turn = self.0.turn.lock().await;
        let ended = self.sessions().end(self.token()).await?;
        self.lose();
        self.0.now.lock().ended = true;
        Ok(ended)
    }

    /// The session. If there is none, the client gets the token of one that its first change begins: nothing is stored before,
    /// and the version is 0 until then.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn begin(&self) -> Result<Seen, SessionError> {
        let _turn = self.0.turn.lock().await;
        let seen = self.sessions().read(self.token()).await?;
        self.know(&seen);
        self.0.now.lock().begun = true;
        Ok(seen)
    }

    /// Gives the session a new id and ends the old one. To be called when somebody logs in: whoever knows the old id then
    /// gains nothing. False when there is no session.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn renew(&self) -> Result<bool, SessionError> {
        let _turn = self.0.turn.lock().await;
        let renewed = self.sessions().renew(self.token()).await?;
        match &renewed {
            Some(seen) => self.know(seen),
            None => self.lose(),
        }
        Ok(renewed.is_some())
    }

    /// The whole session as it is now, with its version and where its state came from; `None` when there is none, and in requests
    /// that did not [`Session::begin`] it also before its first change.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn seen(&self) -> Result<Option<Seen>, SessionError> {
        let token = self.token();
        if token.is_none() {
            return Ok(None);
        }
        let begun = self.0.now.lock().begun;
        let found = match begun {
            true => Some(self.sessions().read(token).await?),
            false => self.sessions().find(token).await?,
        };
        match &found {
            Some(seen) => self.know(seen),
            // The token stays: where nothing was written yet, the first change begins the session that it names.
            None => self.0.now.lock().seen = false,
        }
        Ok(found)
    }

    /// Its id.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn id(&self) -> Result<Option<SessionId>, SessionError> {
        Ok(self.seen().await?.map(|seen| seen.id))
    }

    /// The version of its state: 1 when it begins, one more with each change.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn version(&self) -> Result<Option<u64>, SessionError> {
        Ok(self.seen().await?.map(|seen| seen.record.version))
    }

    /// Where its state came from when this request first needed it; `None` while it needed none.
    pub fn source(&self) -> Option<Source> {
        self.0.now.lock().source
    }

    fn sessions(&self) -> &Arc<Sessions> {
        &self.0.context.sessions
    }

    fn token(&self) -> Option<Token> {
        self.0.now.lock().token
    }

    fn know(&self, seen: &Seen) {
        let token = self.0.context.keys.token(seen.record.service, seen.owner, seen.id);
        let mut now = self.0.now.lock();
        now.token = Some(token);
        now.source.get_or_insert(seen.source);
        (now.seen, now.ended) = (true, false);
    }

    fn lose(&self) {
        let mut now = self.0.now.lock();
        (now.token, now.seen, now.begun) = (None, false, false);
    }

    /// Writes into the response what the client must know. A token whose session is gone stays: another request of the same
    /// client may have begun a new one meanwhile, and its cookie must not be taken away.
    pub(super) fn finish(&self, headers: &mut HeaderMap) {
        let Inner { context, presented, now, .. } = &*self.0;
        let now = now.lock();
        let cookie = match now.token {
            Some(token) if now.seen && (*presented != Some(token) || context.cookie.ages()) => {
                context.keys.keys().sign(&token).and_then(|text| context.cookie.set(&text))
            }
            None if now.ended => context.cookie.clear(),
            _ => None,
        };
        if let Some(cookie) = cookie {
            headers.append(SET_COOKIE, cookie);
            // Whoever keeps this response would hand the session to others.
            headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        }
    }
}

/// The first token among the cookies that verifies; what does not verify is as good as absent.
pub(crate) fn token(keys: &Keyring, name: &str, headers: &HeaderMap) -> Option<Token> {
    cookie::values(headers, name).find_map(|text| match keys.verify(text) {
        Ok(token) => Some(token),
        Err(error) => {
            tracing::debug!(%error, "token refused");
            None
        }
    })
}
