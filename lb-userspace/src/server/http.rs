//! The routes of a session server and what the session ones do.

use super::once::{IDEMPOTENT_REPLAYED, once};
use super::reply::{Fault, LB_EPOCH, LB_SERVER, LB_SOURCE, about, tagged};
use super::{Client, cart, condition};
use crate::session::{
    Changed, Instance, Keyring, Once, Preconditions, Refusal, Seen, SessionError, Sessions,
    State as SessionState, Target, Terms, TokenKeys, TooLarge, Unmet,
};
use crate::web::{self, Cookie};
use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{delete, get, post};
use axum::{Extension, Json, middleware};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use lb_common::token::Token;
use serde::Serialize;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// A body that is not there by then is not waited for.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a body that is too large so much is read and thrown away: a client that still writes would not read the answer.
const MAX_DISCARDED: usize = 4 << 20;

/// What every request needs.
pub(super) struct App {
    pub(super) sessions: Arc<Sessions>,
    keys: Keyring,
    cookie: Cookie,
}

pub(super) type Shared = State<Arc<App>>;
type Reply = Result<Response, Fault>;

impl App {
    pub(super) fn new(sessions: Arc<Sessions>, keys: Arc<ArcSwap<TokenKeys>>, cookie: Cookie) -> Arc<Self> {
        Arc::new(Self { sessions, keys: keys.into(), cookie })
    }

    /// The first token among the cookies that verifies; what does not verify is as good as absent.
    pub(super) fn token(&self, headers: &HeaderMap) -> Option<Token> {
        web::token(&self.keys, self.cookie.name(), headers)
    }

    /// The session of a request that reads, where it is in a state that the client asks for.
    pub(super) async fn read(&self, headers: &HeaderMap) -> Result<Read, Fault> {
        let token = self.token(headers);
        let preconditions = condition::preconditions(headers)?;
        let seen = self.sessions.read(token).await?;
        // Who asks for a version knows a session: in its place, a new one would be no answer.
        if preconditions.if_match.is_some() && token.is_none_or(|token| token.session != seen.id) {
            return Err(Fault::precondition(Unmet::IfMatch));
        }
        self.checked(token, seen, &preconditions)
    }

    /// Compares what was read with what the client asked for.
    fn checked(
        &self,
        token: Option<Token>,
        seen: Seen,
        preconditions: &Preconditions,
    ) -> Result<Read, Fault> {
        match preconditions.check(Some(seen.tag())) {
            Ok(()) => Ok(Read { token, seen, unchanged: false }),
            Err(Unmet::IfNoneMatch) => Ok(Read { token, seen, unchanged: true }),
            Err(unmet) => {
                Err(self.fault(token, SessionError::Precondition { unmet, seen: Some(Box::new(seen)) }))
            }
        }
    }

    /// Answers about a session: headers, and the cookie if the client has no token or not the one it should have.
    pub(super) fn answer(&self, presented: Option<Token>, seen: &Seen, body: impl IntoResponse) -> Response {
        about(seen, self.cookie(presented, seen), body)
    }

    /// Answers with a session's state, or what is made from it.
    pub(super) fn state(&self, presented: Option<Token>, seen: &Seen, body: impl IntoResponse) -> Response {
        tagged(seen, self.answer(presented, seen, body))
    }

    /// Answers with what a change made of a session, or had made of it before.
    pub(super) fn changed(
        &self,
        presented: Option<Token>,
        changed: &Changed,
        body: impl IntoResponse,
    ) -> Response {
        let mut response = self.state(presented, &changed.seen, body);
        if changed.repeated {
            response.headers_mut().insert(IDEMPOTENT_REPLAYED, HeaderValue::from_static("true"));
        }
        response
    }

    /// What went wrong. If the session is known, the client is told of it as by any other answer.
    pub(super) fn fault(&self, presented: Option<Token>, error: SessionError) -> Fault {
        match error {
            SessionError::Precondition { unmet, seen: Some(seen) } => {
                let cookie = self.cookie(presented, &seen);
                Fault::precondition(unmet).about(*seen, cookie)
            }
            error => error.into(),
        }
    }

    fn cookie(&self, presented: Option<Token>, seen: &Seen) -> Option<HeaderValue> {
        let keys = self.keys.keys();
        let token = keys.token(seen.record.service, seen.owner, seen.id);
        let changed = presented != Some(token);
        let text = (changed || self.cookie.ages()).then(|| keys.sign(&token)).flatten()?;
        self.cookie.set(&text)
    }
}

/// What a request that reads has found.
pub(super) struct Read {
    token: Option<Token>,
    pub(super) seen: Seen,
    /// The client has it already.
    unchanged: bool,
}

impl Read {
    /// Answers with what was read, or that the client has it.
    pub(super) fn answer<B: IntoResponse>(&self, app: &App, body: impl FnOnce() -> B) -> Response {
        match self.unchanged {
            true => app.state(self.token, &self.seen, (StatusCode::NOT_MODIFIED, nothing())),
            false => app.state(self.token, &self.seen, body()),
        }
    }
}

/// All routes.
pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(shop))
        .route("/healthz", get(healthz))
        .route("/session", get(show).delete(end))
        .route("/renew", post(renew))
        .route("/session/{key}", get(value).put(set).delete(unset))
        .route("/cart", get(cart::show))
        .route("/cart/items", post(cart::add))
        .route("/cart/items/{sku}", delete(cart::remove))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(super::origin::own))
        .layer(middleware::map_response_with_state(app.clone(), sign))
        .with_state(app)
}

/// Who and how: in the answer of every request about a session.
#[derive(Serialize)]
pub(super) struct Origin {
    session: String,
    server: String,
    epoch: u32,
    version: u64,
    source: &'static str,
}

impl Origin {
    pub(super) fn new(app: &App, seen: &Seen) -> Self {
        Self {
            session: seen.id.to_string(),
            server: app.sessions.instance().name,
            epoch: seen.owner.epoch,
            version: seen.record.version,
            source: seen.source.name(),
        }
    }
}

#[derive(Serialize)]
struct SessionView<'a> {
    #[serde(flatten)]
    origin: Origin,
    state: &'a SessionState,
}

async fn show(State(app): Shared, headers: HeaderMap) -> Reply {
    let read = app.read(&headers).await?;
    Ok(read.answer(&app, || view(&app, &read.seen)))
}

/// The value of a key, as it was put. Whoever asks for one key begins no session.
async fn value(State(app): Shared, key: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Reply {
    let Path(key) = key.map_err(bad_path)?;
    let token = app.token(&headers);
    let preconditions = condition::preconditions(&headers)?;
    let absent = || Fault::from(no_such_key(&key));
    let seen = app.sessions.find(token).await?.ok_or_else(absent)?;
    let Some(text) = seen.record.state.get(&key).map(|value| value.get().to_owned()) else {
        let cookie = app.cookie(token, &seen);
        return Err(absent().about(seen, cookie));
    };
    let read = app.checked(token, seen, &preconditions)?;
    Ok(read.answer(&app, || ([(CONTENT_TYPE, "application/json")], text)))
}

async fn set(
    State(app): Shared,
    key: Result<Path<String>, PathRejection>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    client: Extension<Client>,
    body: Body,
) -> Reply {
    let Path(key) = key.map_err(bad_path)?;
    let token = app.token(&headers);
    let limits = app.sessions.limits();
    let text = read(body, limits.max_value_bytes, "max_value_bytes").await?;
    let value = SessionState::parse_value(&text).map_err(|error| {
        Fault::bad_request(
            format!("the body is not a JSON value: {error}"),
            "strings need quotes: \"like this\"",
        )
    })?;
    let as_sent = value.get().as_bytes() == &*text;
    let once = once(&headers, &method, &uri, &text, None)?;
    let terms = terms(&headers, Target::Key(key.clone()), once, client)?;
    let change = move |state: &mut SessionState| {
        state.set(key.clone(), value.clone());
        Ok(())
    };
    let written = app.sessions.write_on(token, terms, change).await;
    let changed = written.map_err(|error| app.fault(token, error))?;
    let status = if changed.created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = app.changed(token, &changed, (status, view(&app, &changed.seen)));
    if !as_sent {
        // White space around the value is not kept, so what is there now is not what was sent (RFC 9110 §9.3.4).
        response.headers_mut().remove(ETAG);
    }
    Ok(response)
}

async fn unset(
    State(app): Shared,
    key: Result<Path<String>, PathRejection>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    client: Extension<Client>,
) -> Reply {
    let Path(key) = key.map_err(bad_path)?;
    let token = app.token(&headers);
    let once = once(&headers, &method, &uri, b"", None)?;
    let terms = terms(&headers, Target::Key(key.clone()), once, client)?;
    let change = move |state: &mut SessionState| match state.remove(&key) {
        true => Ok(()),
        false => Err(no_such_key(&key)),
    };
    let written = app.sessions.write_on(token, terms, change).await;
    let changed = written.map_err(|error| app.fault(token, error))?;
    Ok(app.changed(token, &changed, view(&app, &changed.seen)))
}

/// The same state under a new id: whoever knew the old one gains nothing.
async fn renew(State(app): Shared, headers: HeaderMap) -> Reply {
    let token = app.token(&headers);
    let renewed = app.sessions.renew_on(token, condition::preconditions(&headers)?).await;
    let renewed = renewed.map_err(|error| app.fault(token, error))?;
    let seen = renewed.ok_or_else(|| {
        Fault::new(
            StatusCode::NOT_FOUND,
            "there is no session to renew",
            "the first write begins one, with a new id",
        )
    })?;
    Ok(app.state(token, &seen, view(&app, &seen)))
}

async fn end(State(app): Shared, headers: HeaderMap) -> Reply {
    let token = app.token(&headers);
    let ended = app.sessions.end_on(token, condition::preconditions(&headers)?).await;
    let ended = ended.map_err(|error| app.fault(token, error))?;
    let mut response = Json(serde_json::json!({ "ended": ended })).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(cookie) = app.cookie.clear() {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    Ok(response)
}

/// On what terms a request wants its change made.
pub(super) fn terms(
    headers: &HeaderMap,
    target: Target,
    once: Option<Once>,
    Extension(Client(client)): Extension<Client>,
) -> Result<Terms, Fault> {
    let preconditions = condition::preconditions(headers)?;
    Ok(Terms { target, preconditions, once, client: Some(client) })
}

fn no_such_key(key: &str) -> Refusal {
    Refusal::NotFound(format!("the session has no key {key:?}"))
}

fn view<'a>(app: &App, seen: &'a Seen) -> Json<SessionView<'a>> {
    Json(SessionView { origin: Origin::new(app, seen), state: &seen.record.state })
}

/// The page is the same for all, but whoever opens it gets a session: what the page asks for next comes with its
/// token, and not as several clients without one. A store that takes no writes is no reason to show no page.
async fn shop(State(app): Shared, headers: HeaderMap) -> Response {
    let token = app.token(&headers);
    let mut page = match app.sessions.read(token).await {
        Ok(seen) => app.answer(token, &seen, Html(cart::page())),
        Err(error) => {
            tracing::warn!(%error, "shop page served without a session");
            Html(cart::page()).into_response()
        }
    };
    page.headers_mut().insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src data:"),
    );
    page
}

async fn healthz() -> &'static str {
    "ok\n"
}

async fn no_such_path(uri: Uri) -> Fault {
    Fault::new(
        StatusCode::NOT_FOUND,
        format!("there is no {}", uri.path()),
        "there is /, /session, /session/{key}, /renew, /cart, /cart/items, /cart/items/{sku} and /healthz",
    )
}

async fn no_such_method(method: Method, uri: Uri) -> Fault {
    Fault::new(
        StatusCode::METHOD_NOT_ALLOWED,
        format!("{} does not answer {method}", uri.path()),
        "the Allow header says what it does answer",
    )
}

/// Signs every response with who gave it.
async fn sign(State(app): Shared, mut response: Response) -> Response {
    let Instance { name, epoch, .. } = app.sessions.instance();
    let headers = response.headers_mut();
    if let Ok(name) = HeaderValue::try_from(name) {
        headers.insert(LB_SERVER, name);
    }
    headers.entry(LB_EPOCH).or_insert(HeaderValue::from(epoch));
    headers.entry(LB_SOURCE).or_insert(HeaderValue::from_static("none"));
    response
}

/// No body, and no Content-Length either: here it would have to be that of the 200 (RFC 9110 §8.6), and axum adds one to
/// whatever knows its length.
fn nothing() -> Body {
    Body::from_stream(futures::stream::empty::<Result<Bytes, Infallible>>())
}

/// Reads a body of at most `limit` bytes.
pub(super) async fn read(body: Body, limit: usize, name: &'static str) -> Result<Bytes, Fault> {
    let whole = async {
        let mut body = body;
        let mut bytes = BytesMut::new();
        let mut found = 0;
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                Fault::bad_request(format!("the body cannot be read: {error}"), "send it again, whole")
            })?;
            let Ok(data) = frame.into_data() else { continue };
            found += data.len();
            if found <= limit {
                bytes.extend_from_slice(&data);
            } else if found > MAX_DISCARDED {
                break;
            }
        }
        if found > limit {
            return Err(TooLarge { what: "the body".into(), name, found, limit, unit: "bytes" }.into());
        }
        Ok(bytes.freeze())
    };
    tokio::time::timeout(BODY_TIMEOUT, whole).await.unwrap_or_else(|_| {
        Err(Fault::new(StatusCode::REQUEST_TIMEOUT, "the body did not come in time", "send it again, faster"))
    })
}

pub(super) fn bad_path(rejection: PathRejection) -> Fault {
    Fault::bad_request(rejection.body_text(), "percent-encode the name as UTF-8")
}
