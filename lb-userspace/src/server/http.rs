//! The routes of a session server and what the session ones do.

use super::reply::{Fault, LB_EPOCH, LB_SERVER, LB_SOURCE, about};
use super::{cart, cookie};
use crate::session::{Instance, Refusal, Seen, Sessions, State as SessionState, TokenKeys, TooLarge};
use arc_swap::ArcSwap;
use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, SET_COOKIE};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use axum::{Json, middleware};
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use lb_common::token::Token;
use serde::Serialize;
use std::sync::Arc;
use std::time::Duration;

/// A body that is not there by then is not waited for.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);
/// Of a body that is too large so much is read and thrown away: a client that still writes would not read the answer.
const MAX_DISCARDED: usize = 4 << 20;

/// What every request needs.
pub(super) struct App {
    pub(super) sessions: Arc<Sessions>,
    keys: Arc<ArcSwap<TokenKeys>>,
    cookie_name: String,
}

pub(super) type Shared = State<Arc<App>>;
type Reply = Result<Response, Fault>;

impl App {
    pub(super) fn new(
        sessions: Arc<Sessions>,
        keys: Arc<ArcSwap<TokenKeys>>,
        cookie_name: String,
    ) -> Arc<Self> {
        Arc::new(Self { sessions, keys, cookie_name })
    }

    /// The first token among the cookies that verifies; what does not verify is as good as absent.
    pub(super) fn token(&self, headers: &HeaderMap) -> Option<Token> {
        let keys = self.keys.load();
        cookie::values(headers, &self.cookie_name).find_map(|text| match keys.verify(text) {
            Ok(token) => Some(token),
            Err(error) => {
                tracing::debug!(%error, "token refused");
                None
            }
        })
    }

    /// Answers with a session: headers, and the cookie if the client has no token or not the one it should have.
    pub(super) fn answer(&self, presented: Option<Token>, seen: &Seen, body: impl IntoResponse) -> Response {
        let keys = self.keys.load();
        let token = keys.token(seen.record.service, seen.owner, seen.id);
        let changed = presented != Some(token);
        let text = changed.then(|| keys.sign(&token)).flatten();
        about(seen, text.and_then(|text| cookie::set(&self.cookie_name, &text)), body)
    }
}

/// All routes.
pub(super) fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(shop))
        .route("/healthz", get(healthz))
        .route("/session", get(show).delete(end))
        .route("/session/{key}", put(set).delete(unset))
        .route("/cart", get(cart::show))
        .route("/cart/items", post(cart::add))
        .route("/cart/items/{sku}", delete(cart::remove))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
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
    let token = app.token(&headers);
    let seen = app.sessions.read(token).await?;
    Ok(session(&app, token, &seen))
}

async fn set(
    State(app): Shared,
    key: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    body: Body,
) -> Reply {
    let Path(key) = key.map_err(bad_path)?;
    let limits = app.sessions.limits();
    let text = read(body, limits.max_value_bytes, "max_value_bytes").await?;
    let value = SessionState::parse_value(&text).map_err(|error| {
        Fault::bad_request(
            format!("the body is not a JSON value: {error}"),
            "strings need quotes: \"like this\"",
        )
    })?;
    let token = app.token(&headers);
    let (seen, ()) = app
        .sessions
        .write(token, move |state| {
            state.set(key.clone(), value.clone());
            Ok(())
        })
        .await?;
    Ok(session(&app, token, &seen))
}

async fn unset(State(app): Shared, key: Result<Path<String>, PathRejection>, headers: HeaderMap) -> Reply {
    let Path(key) = key.map_err(bad_path)?;
    let token = app.token(&headers);
    let (seen, ()) = app
        .sessions
        .write(token, move |state| match state.remove(&key) {
            true => Ok(()),
            false => Err(Refusal::NotFound(format!("the session has no key {key:?}"))),
        })
        .await?;
    Ok(session(&app, token, &seen))
}

async fn end(State(app): Shared, headers: HeaderMap) -> Reply {
    let ended = app.sessions.end(app.token(&headers)).await?;
    let mut response = Json(serde_json::json!({ "ended": ended })).into_response();
    response.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(cookie) = cookie::clear(&app.cookie_name) {
        response.headers_mut().insert(SET_COOKIE, cookie);
    }
    Ok(response)
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
        "there is /, /session, /session/{key}, /cart, /cart/items, /cart/items/{sku} and /healthz",
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

fn session(app: &App, token: Option<Token>, seen: &Seen) -> Response {
    let view = SessionView { origin: Origin::new(app, seen), state: &seen.record.state };
    app.answer(token, seen, Json(view))
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
