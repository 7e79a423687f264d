//! The tower middleware: it gives each request its [`Session`] and each response the cookie that follows from it.

use super::handle::Context;
use super::{Cookie, CookieError, CookieOptions, Session};
use crate::session::{Keyring, Sessions};
use http::{Request, Response};
use pin_project_lite::pin_project;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{self, Poll, ready};
use tower_layer::Layer;
use tower_service::Service;

/// Puts a [`Session`] into the extensions of every request and sets the token's cookie in its response when the client
/// has no token or not the one that it should have: a new session, a new instance, a newer key. Bodies pass untouched.
#[derive(Clone)]
pub struct SessionLayer(Arc<Context>);

impl SessionLayer {
    /// With the cookie `lb`.
    pub fn new(sessions: Arc<Sessions>, keys: impl Into<Arc<Keyring>>) -> Self {
        Self(Arc::new(Context { sessions, keys: keys.into(), cookie: Cookie::default() }))
    }

    /// With another cookie.
    ///
    /// # Errors
    /// Those of [`CookieOptions::build`].
    pub fn with_cookie(
        sessions: Arc<Sessions>,
        keys: impl Into<Arc<Keyring>>,
        cookie: CookieOptions,
    ) -> Result<Self, CookieError> {
        let cookie = cookie.build()?;
        Ok(Self(Arc::new(Context { sessions, keys: keys.into(), cookie })))
    }
}

impl<S> Layer<S> for SessionLayer {
    type Service = SessionService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        SessionService { inner, context: self.0.clone() }
    }
}

/// What [`SessionLayer`] makes of a service.
#[derive(Clone)]
pub struct SessionService<S> {
    inner: S,
    context: Arc<Context>,
}

impl<S, Q, P> Service<Request<Q>> for SessionService<S>
where
    S: Service<Request<Q>, Response = Response<P>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, task: &mut task::Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, mut request: Request<Q>) -> Self::Future {
        let session = Session::of(&self.context, request.headers());
        request.extensions_mut().insert(session.clone());
        ResponseFuture { answer: self.inner.call(request), session }
    }
}

pin_project! {
    /// The answer of a [`SessionService`].
    pub struct ResponseFuture<F> {
        #[pin]
        answer: F,
        session: Session,
    }
}

impl<F, P, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<P>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, task: &mut task::Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut answer = ready!(this.answer.poll(task));
        if let Ok(response) = &mut answer {
            this.session.finish(response.headers_mut());
        }
        Poll::Ready(answer)
    }
}
