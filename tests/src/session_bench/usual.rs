//! The application that this is compared with: axum with `tower-sessions` and its sessions in Redis, put together as the
//! documentation of those crates does.

use super::content::{CART, Content, Item, SECRET, VISITOR, Visitor};
use super::http::{Load, get};
use super::stint::{Sample, closed_loop};
use anyhow::{Context, Result, anyhow, ensure};
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get as on_get;
use axum::{Json, Router};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tower_sessions_before::cookie::time::Duration as Span;
use tower_sessions_before::session::Id;
use tower_sessions_before::{Expiry, Session, SessionManagerLayer};
use tower_sessions_redis_store::RedisStore;
use tower_sessions_redis_store::fred::prelude::{ClientLike, Config, Pool};

/// As in the example of `tower-sessions-redis-store`.
const CONNECTIONS: usize = 6;
/// The name that `tower-sessions` gives its cookie.
const COOKIE: &str = "id";
const EXPIRY: Expiry = Expiry::OnInactivity(Span::minutes(30));

pub(super) struct Usual {
    store: Arc<RedisStore<Pool>>,
    /// As they stand in cookies.
    ids: Arc<[String]>,
    addr: SocketAddr,
}

impl Usual {
    /// Connects to Redis, begins so many sessions and serves them, on the runtime that this is called on.
    pub(super) async fn start(redis: &str, sessions: usize) -> Result<Self> {
        let pool = Pool::new(Config::from_url(redis)?, None, None, None, CONNECTIONS)?;
        pool.connect();
        pool.wait_for_connect().await.with_context(|| format!("connecting to {redis}"))?;
        let store = RedisStore::new(pool);
        let mut ids = Vec::new();
        for number in 0..sessions {
            let session = Session::new(None, Arc::new(store.clone()), Some(EXPIRY));
            let content = Content::new(number as u64);
            session.insert(VISITOR, content.visitor).await?;
            session.insert(CART, content.cart).await?;
            session.insert(SECRET, content.csrf).await?;
            session.save().await?;
            ids.push(session.id().context("a saved session without an id")?.to_string());
        }
        let layer = SessionManagerLayer::new(store.clone()).with_secure(false).with_expiry(EXPIRY);
        let server = Arc::<str>::from("web");
        let app = Router::new().route("/session", on_get(show)).layer(layer).with_state(server);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let addr = listener.local_addr()?;
        tokio::spawn(async move { axum::serve(listener, app).await });
        Ok(Self { store: Arc::new(store), ids: ids.into(), addr })
    }

    /// Reads in process, each as a request would make it: from the text of the cookie to a value of the session.
    pub(super) async fn read(&self, workers: usize, time: Duration) -> Result<Sample> {
        closed_loop(workers, time, |worker, mut stint| {
            let (store, ids) = (self.store.clone(), self.ids.clone());
            async move {
                let mut turns = (worker..).step_by(workers);
                while stint.goes_on().await {
                    let turn = turns.next().expect("numbers do not end");
                    let id: Id = ids[turn % ids.len()].parse().map_err(|error| anyhow!("{error}"))?;
                    let session = Session::new(Some(id), store.clone(), Some(EXPIRY));
                    let cart: Vec<Item> = session.get(CART).await?.context("a session without a cart")?;
                    ensure!(cart.len() == 5, "a cart of {} things", cart.len());
                    stint.done();
                }
                Ok(stint)
            }
        })
        .await
    }

    /// `GET /session` for each session.
    pub(super) fn load(&self) -> Load {
        let requests = self.ids.iter().map(|id| get("/session", &format!("{COOKIE}={id}"))).collect();
        // Only in the answer to a session that was found.
        Load { addr: self.addr, requests, marked: "session-found: yes" }
    }
}

/// The session, as our own servers show it.
async fn show(State(server): State<Arc<str>>, session: Session) -> Response {
    match view(&server, &session).await {
        Ok(Some(view)) => {
            ([("session-found", "yes"), ("cache-control", "no-store")], Json(view)).into_response()
        }
        Ok(None) => ([("session-found", "no")], Json(serde_json::json!({}))).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error:#}")).into_response(),
    }
}

async fn view(server: &str, session: &Session) -> Result<Option<serde_json::Value>> {
    let Some(visitor) = session.get::<Visitor>(VISITOR).await? else { return Ok(None) };
    let cart: Vec<Item> = session.get(CART).await?.context("a session without a cart")?;
    let csrf: String = session.get(SECRET).await?.context("a session without a secret")?;
    Ok(Some(serde_json::json!({
        "session": session.id().map(|id| id.to_string()),
        "server": server,
        "state": Content { visitor, cart, csrf },
    })))
}
