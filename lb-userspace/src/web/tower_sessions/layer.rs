//! The layer around tower-sessions' own: it shows the application the id that a verified token names, and the client the
//! token that names the session and its instance.

use super::cookies;
use super::store::{LbStore, id_of, session_of};
use super::visit::{VISIT, Visit};
use crate::session::{Keyring, SessionId};
use crate::web::{CookieError, CookieOptions, Problem, handle};
use http::header::{CACHE_CONTROL, HeaderMap, HeaderValue, SET_COOKIE};
use http::{Request, Response, StatusCode};
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use tokio::task::futures::TaskLocalFuture;
use tower_layer::Layer;
use tower_service::Service;
use tower_sessions_core::Session;
use tower_sessions_core::session::Id;

/// Goes around a `SessionManagerLayer` over an [`LbStore`], and in its place into the application.
///
/// * Of the client's cookies, the token `lb` is verified and shown to tower-sessions as its cookie `id`. What a client sends
///   as `id` itself is not: nobody gets a session by knowing its id.
/// * What tower-sessions sets as `id`, the client gets as `lb`, with the same attributes; also when only the instance is
///   new, as after a restart.
/// * A 500 that comes of a [`crate::session::SessionError`] gets its own status: 409 for a conflict, 413, 503 with
///   `Retry-After`, 507. The error is in the response's extensions.
///
/// `with_signed` and `with_private` of tower-sessions cannot be used with it, and need not: the token is signed.
#[derive(Clone)]
pub struct AffinityLayer<L> {
    manager: L,
    context: Arc<Context>,
}

struct Context {
    store: LbStore,
    keys: Arc<Keyring>,
    /// Our cookie's name and that of tower-sessions.
    token: String,
    id: String,
}

impl<L> AffinityLayer<L> {
    /// Around `manager`, a `SessionManagerLayer` made with (a clone of) `store`.
    pub fn new(manager: L, store: &LbStore, keys: impl Into<Arc<Keyring>>) -> Self {
        Self::named(manager, store, keys.into(), "lb", "id")
    }

    /// With other names than `lb` for the token, as in lbd's configuration, and `id` for tower-sessions' cookie.
    ///
    /// tower-sessions says which attributes the cookie has: one whose name begins with `__Host-` or `__Secure-` must be
    /// `Secure` there, or browsers refuse it.
    ///
    /// # Errors
    /// `token` cannot name a cookie.
    pub fn with_names(
        manager: L,
        store: &LbStore,
        keys: impl Into<Arc<Keyring>>,
        token: &str,
        id: &str,
    ) -> Result<Self, CookieError> {
        let token = CookieOptions::named(token).with_secure(true).build()?;
        Ok(Self::named(manager, store, keys.into(), token.name(), id))
    }

    fn named(manager: L, store: &LbStore, keys: Arc<Keyring>, token: &str, id: &str) -> Self {
        let context = Context { store: store.clone(), keys, token: token.to_owned(), id: id.to_owned() };
        Self { manager, context: Arc::new(context) }
    }
}

impl<S, L: Layer<Inner<S>>> Layer<S> for AffinityLayer<L> {
    type Service = Affinity<L::Service>;

    fn layer(&self, inner: S) -> Self::Service {
        Affinity { managed: self.manager.layer(Inner(inner)), context: self.context.clone() }
    }
}

/// What [`AffinityLayer`] makes of a service.
#[derive(Clone)]
pub struct Affinity<S> {
    managed: S,
    context: Arc<Context>,
}

impl<S, Q, P> Service<Request<Q>> for Affinity<S>
where
    S: Service<Request<Q>, Response = Response<P>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = Answer<S::Future>;

    fn poll_ready(&mut self, task: &mut task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.managed.poll_ready(task)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let Context { keys, token, id, .. } = &*self.context;
        let service = self.context.store.sessions().instance().service;
        // A token of another service is no token here.
        let presented = handle::token(keys, token, request.headers()).filter(|t| t.service == service);
        let own = presented.map(|token| id_of(token.session).to_string());
        cookies::present(request.headers_mut(), id, own.as_deref());
        let visit = Visit::new(presented, &keys.keys());
        let answer = VISIT.sync_scope(visit.clone(), || self.managed.call(request));
        Answer { answer: VISIT.scope(visit.clone(), answer), visit, context: self.context.clone() }
    }
}

pin_project! {
    /// The answer of an [`Affinity`].
    pub struct Answer<F> {
        #[pin]
        answer: TaskLocalFuture<Arc<Visit>, F>,
        visit: Arc<Visit>,
        context: Arc<Context>,
    }
}

impl<F, P, E> Future for Answer<F>
where
    F: Future<Output = Result<Response<P>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, task: &mut task::Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut answer = ready!(this.answer.poll(task));
        if let Ok(response) = &mut answer {
            this.context.finish(this.visit, response.headers_mut());
            tell(this.visit, response);
        }
        Poll::Ready(answer)
    }
}

impl Context {
    /// Puts tokens in place of ids.
    fn finish(&self, visit: &Visit, headers: &mut HeaderMap) {
        cookies::translate(headers, &self.id, &self.token, |id| match id.parse::<Id>() {
            Ok(id) => self.sign(visit, session_of(&id)),
            Err(_) => {
                tracing::error!(
                    cookie = self.id,
                    "tower-sessions' cookie holds no plain id: leave out `with_signed` and `with_private`"
                );
                None
            }
        });
        let ours = |line: &HeaderValue| line.as_bytes().starts_with(format!("{}=", self.token).as_bytes());
        if headers.get_all(SET_COOKIE).iter().any(ours) {
            // Whoever keeps this response would hand the session to others.
            headers.entry(CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
        }
    }

    fn sign(&self, visit: &Visit, session: SessionId) -> Option<String> {
        let instance = self.store.sessions().instance();
        let owner = visit.found(session).map_or(instance.owner(), |(owner, _)| owner);
        self.keys.sign(instance.service, owner, session)
    }
}

/// Gives a failure the status of its cause.
fn tell<P>(visit: &Visit, response: &mut Response<P>) {
    if response.status() == StatusCode::INTERNAL_SERVER_ERROR
        && let Some(error) = visit.error()
    {
        let problem = Problem::from(&error);
        *response.status_mut() = problem.status;
        problem.sign(response.headers_mut());
        response.extensions_mut().insert(error);
    }
}

/// The application inside of tower-sessions' layer: it asks for a cookie where only the instance is new.
#[derive(Clone)]
pub struct Inner<S>(S);

impl<S, Q, P> Service<Request<Q>> for Inner<S>
where
    S: Service<Request<Q>, Response = Response<P>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = InnerAnswer<S::Future>;

    fn poll_ready(&mut self, task: &mut task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(task)
    }

    fn call(&mut self, request: Request<Q>) -> Self::Future {
        let session = request.extensions().get::<Session>().cloned();
        InnerAnswer { answer: self.0.call(request), session }
    }
}

pin_project! {
    /// The answer of an [`Inner`].
    pub struct InnerAnswer<F> {
        #[pin]
        answer: F,
        session: Option<Session>,
    }
}

impl<F, P, E> Future for InnerAnswer<F>
where
    F: Future<Output = Result<Response<P>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, task: &mut task::Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let answer = ready!(this.answer.poll(task));
        if let Some(session) = this.session
            && let Some(visit) = Visit::current()
            && visit.is_outdated()
            && !session.is_modified()
        {
            // tower-sessions sets its cookie, with all its attributes, for sessions that were modified; setting the expiry
            // to what it is counts as that, and the store knows that there is nothing to be written.
            visit.want_cookie_only();
            session.set_expiry(session.expiry());
        }
        Poll::Ready(answer)
    }
}
