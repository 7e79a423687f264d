use super::*;
use crate::session::{
    Keyring, Limits, Member, MemoryStore, Once, SessionError, SessionStore, Source, Terms, Token, TokenKeys,
};
use axum::Router;
use axum::body::Body;
use axum::extract::Path;
use axum::http::{HeaderMap, Request, Response, StatusCode};
use axum::routing::{get, post};
use std::sync::Arc;
use tower::ServiceExt;

/// A database and keys that several applications share.
struct Town {
    store: Arc<MemoryStore>,
    keys: TokenKeys,
}

/// A backend that runs the application.
struct App {
    router: Router,
    keys: Arc<Keyring>,
    member: Member,
}

/// An answer, read to its end.
#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
}

impl Town {
    fn new() -> Self {
        Self { store: Arc::default(), keys: TokenKeys::generate().unwrap() }
    }

    async fn app(&self, backend: &str) -> App {
        self.app_with(backend, Limits::default()).await
    }

    async fn app_with(&self, backend: &str, limits: Limits) -> App {
        let member = Member::join(self.store.clone(), "shop", backend).await.unwrap();
        let keys = Arc::new(Keyring::from(self.keys.clone()));
        let router = routes().layer(SessionLayer::new(member.sessions(limits), keys.clone()));
        App { router, keys, member }
    }
}

fn routes() -> Router {
    Router::new()
        .route("/plain", get(|| async { "no session needed" }))
        .route("/get/{key}", get(read))
        .route("/set/{key}", post(write))
        .route("/count", post(count))
        .route("/once/{key}", post(once))
        .route("/remove/{key}", post(remove))
        .route("/twice", post(twice))
        .route("/begin", post(begin))
        .route("/renew", post(async |session: Session| session.renew().await.map(|done| done.to_string())))
        .route("/end", post(async |session: Session| session.end().await.map(|done| done.to_string())))
        .route("/again", post(again))
}

async fn read(session: Session, Path(key): Path<String>) -> Result<String, SessionError> {
    assert_eq!(session.source(), None, "nothing is loaded before it is asked for");
    let value = session.get::<String>(&key).await?;
    let source = session.source().map_or("none", Source::name);
    Ok(format!("{} from {source}", value.unwrap_or_default()))
}

async fn write(session: Session, Path(key): Path<String>, body: String) -> Result<String, SessionError> {
    session.set(&key, &body).await?;
    let seen = session.seen().await?.expect("a session that was just written lives");
    Ok(format!("{} {}", seen.id, seen.record.version))
}

async fn count(session: Session) -> Result<String, SessionError> {
    let n = session
        .update(|state| {
            let n = state.get_as::<u64>("n").ok().flatten().unwrap_or(0) + 1;
            state.set_as("n", &n).expect("a number is JSON");
            Ok(n)
        })
        .await?;
    Ok(n.to_string())
}

/// Counts, and not again for the same key.
async fn once(session: Session, Path(key): Path<String>, body: String) -> Result<String, SessionError> {
    let once = Some(Once::new(key.as_bytes(), &[b"POST /once", body.as_bytes()], None));
    let changed = session
        .update_on(Terms { once, ..Terms::default() }, |state| {
            let n = state.get_as::<u64>("n").ok().flatten().unwrap_or(0) + 1;
            state.set_as("n", &n).expect("a number is JSON");
            Ok(())
        })
        .await?;
    Ok(changed.seen.record.state.get("n").map(|n| n.get().to_owned()).unwrap_or_default())
}

async fn remove(session: Session, Path(key): Path<String>) -> Result<String, SessionError> {
    Ok(session.remove(&key).await?.to_string())
}

/// Two first writes at once.
async fn twice(session: Session) -> Result<String, SessionError> {
    let (a, b) = futures::future::join(session.set("a", "1"), session.set("b", "2")).await;
    a.and(b)?;
    Ok(format!("{:?}", session.version().await?))
}

async fn begin(session: Session) -> Result<String, SessionError> {
    let seen = session.begin().await?;
    Ok(format!("{} {}", seen.id, session.id().await? == Some(seen.id)))
}

/// Ends a session and begins another in one request.
async fn again(session: Session) -> Result<String, SessionError> {
    let old = session.id().await?;
    session.end().await?;
    assert_eq!(session.id().await?, None);
    session.set("new", "yes").await?;
    Ok((session.id().await? != old).to_string())
}

impl App {
    async fn ask(&self, path: &str, cookie: Option<&str>) -> Answer {
        let method = if path.starts_with("/get") || path == "/plain" { "GET" } else { "POST" };
        self.send(method, path, cookie, "value").await
    }

    async fn send(&self, method: &str, path: &str, cookie: Option<&str>, body: &str) -> Answer {
        let mut request = Request::builder().method(method).uri(path);
        if let Some(cookie) = cookie {
            request = request.header("cookie", cookie);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    fn token(&self, cookie: &str) -> Token {
        self.keys.verify(cookie.strip_prefix("lb=").unwrap().as_bytes()).unwrap()
    }
}

impl Answer {
    /// `name=value` of the only cookie that it sets.
    fn cookie(&self) -> Option<String> {
        let mut all = self.headers.get_all("set-cookie").iter();
        let one = all.next()?.to_str().unwrap().split(';').next().unwrap().to_owned();
        assert!(all.next().is_none(), "{:?}", self.headers);
        Some(one)
    }
}

#[tokio::test]
async fn a_session_begins_with_its_first_write_alone() {
    let town = Town::new();
    let app = town.app("a").await;
    for path in ["/plain", "/get/k", "/remove/k", "/end", "/renew"] {
        let answer = app.ask(path, None).await;
        assert_eq!(answer.status, 200);
        assert!(path == "/end" || answer.cookie().is_none(), "{path}: {answer:?}");
    }
    assert_eq!(town.store.count().await.unwrap(), 0);

    let first = app.ask("/set/k", None).await;
    let cookie = first.cookie().unwrap();
    assert_eq!(first.headers["cache-control"], "no-store");
    assert_eq!(first.body, format!("{} 1", app.token(&cookie).session));
    let hit = app.ask("/get/k", Some(&cookie)).await;
    assert_eq!((hit.body.as_str(), hit.cookie()), ("value from cache", None));
    assert!(!hit.headers.contains_key("cache-control"), "what is cached is the application's business");
    assert_eq!(app.ask("/remove/k", Some(&cookie)).await.body, "true");
    assert_eq!(app.ask("/remove/k", Some(&cookie)).await.body, "false");
    assert_eq!(app.ask("/get/k", Some(&cookie)).await.body, " from cache");

    let begun = app.ask("/begin", None).await;
    assert_eq!(begun.body, format!("{} true", app.token(&begun.cookie().unwrap()).session));
    let twice = app.ask("/twice", None).await;
    assert_eq!(twice.body, "Some(2)", "one session, two versions");
    assert_eq!(town.store.count().await.unwrap(), 2, "one that began is written with its first change");
    let cookie = begun.cookie().unwrap();
    assert_eq!(app.ask("/get/k", Some(&cookie)).await.body, " from none");
    assert_eq!(app.ask("/begin", Some(&cookie)).await.cookie(), None, "it keeps its token");
    let renewed = app.ask("/renew", Some(&cookie)).await.cookie().unwrap();
    assert_ne!(app.token(&renewed).session, app.token(&cookie).session);
    let written = app.ask("/set/k", Some(&cookie)).await;
    assert_eq!((written.body.clone(), written.cookie()), (format!("{} 1", app.token(&cookie).session), None));
    assert_eq!(app.ask("/get/k", Some(&cookie)).await.body, "value from cache");
    assert_eq!(town.store.count().await.unwrap(), 3);
}

#[tokio::test]
async fn a_new_instance_reloads_and_hands_out_a_new_token() {
    let town = Town::new();
    let (a, b) = (town.app("a").await, town.app("b").await);
    let at_a = a.ask("/set/k", None).await.cookie().unwrap();
    let moved = b.ask("/get/k", Some(&at_a)).await;
    let at_b = moved.cookie().unwrap();
    assert_eq!(moved.body, "value from database");
    let (old, new) = (a.token(&at_a), a.token(&at_b));
    assert_eq!((old.session, old.slot, new.slot, new.epoch), (new.session, 0, 1, 1));
    assert_eq!(b.ask("/get/k", Some(&at_b)).await.body, "value from cache");

    // A request that does not need the session does not take it over, and so changes no token.
    assert_eq!(a.ask("/plain", Some(&at_b)).await.cookie(), None);

    // The balancer saw this backend come back, and took an epoch for it.
    let mut instance = b.member.instance();
    town.store.next_epoch(1).await.unwrap();
    instance.wait_for(|instance| instance.epoch == 3).await.unwrap();
    let back = b.ask("/get/k", Some(&at_b)).await;
    assert_eq!(back.body, "value from database");
    assert_eq!(a.token(&back.cookie().unwrap()).epoch, 3);
}

#[tokio::test]
async fn what_was_not_minted_here_is_no_session() {
    let town = Town::new();
    let app = town.app("a").await;
    let cookie = app.ask("/set/k", None).await.cookie().unwrap();
    let forger = Town::new().app("a").await;
    let forged = forger.ask("/set/k", None).await.cookie().unwrap();
    for bad in [forged.as_str(), "lb=", "lb=short", &cookie.to_uppercase(), &format!("x{cookie}")] {
        assert_eq!(app.ask("/get/k", Some(bad)).await.body, " from none", "{bad}");
    }
    for good in [format!("a=b; {cookie}; c=d"), format!("{forged}; {cookie}")] {
        assert_eq!(app.ask("/get/k", Some(&good)).await.body, "value from cache", "{good}");
    }
    // Signed by us, and of no session: its id is not adopted.
    let planted = Token { session: crate::session::SessionId([7; 16]), ..app.token(&cookie) };
    let planted = format!("lb={}", app.keys.keys().sign(&planted).unwrap());
    let looked = app.ask("/get/k", Some(&planted)).await;
    assert_eq!((looked.body.as_str(), looked.cookie()), (" from none", None));
    let begun = app.ask("/set/k", Some(&planted)).await.cookie().unwrap();
    assert_ne!(app.token(&begun).session, app.token(&planted).session);
}

#[tokio::test]
async fn ended_and_renewed_sessions_are_told_to_the_client() {
    let town = Town::new();
    let (a, b) = (town.app("a").await, town.app("b").await);
    let old = a.ask("/set/k", None).await.cookie().unwrap();
    let renewed = b.ask("/renew", Some(&old)).await;
    let new = renewed.cookie().unwrap();
    assert_ne!(a.token(&old).session, a.token(&new).session);
    assert_eq!(a.ask("/get/k", Some(&old)).await.body, " from none");
    assert_eq!(a.ask("/get/k", Some(&new)).await.body, "value from database");

    let ended = b.ask("/end", Some(&new)).await;
    assert_eq!((ended.body.as_str(), ended.cookie().unwrap().as_str()), ("true", "lb="));
    assert!(ended.headers["set-cookie"].to_str().unwrap().contains("Max-Age=0"));
    assert_eq!(a.ask("/get/k", Some(&new)).await.body, " from none");

    let cookie = a.ask("/set/k", None).await.cookie().unwrap();
    let again = a.ask("/again", Some(&cookie)).await;
    assert_eq!(again.body, "true");
    assert_eq!(a.ask("/get/new", Some(&again.cookie().unwrap())).await.body, "yes from cache");
    assert_eq!(town.store.count().await.unwrap(), 1);
}

#[tokio::test]
async fn no_update_is_lost_between_two_processes() {
    let town = Town::new();
    let apps = [town.app("a").await, town.app("b").await];
    let cookie = apps[0].ask("/count", None).await.cookie().unwrap();
    let visits = (0..60).map(|n| {
        let (app, cookie) = (&apps[n % 2], &cookie);
        async move { assert_eq!(app.ask("/count", Some(cookie)).await.status, 200) }
    });
    futures::future::join_all(visits).await;
    assert_eq!(apps[0].ask("/count", Some(&cookie)).await.body, "62");
}

#[tokio::test]
async fn a_repeated_request_changes_nothing_and_hears_the_same() {
    let town = Town::new();
    let (a, b) = (town.app("a").await, town.app("b").await);
    let cookie = a.ask("/count", None).await.cookie().unwrap();
    for (app, key, n) in [(&a, "x", "2"), (&b, "y", "3"), (&a, "x", "2"), (&b, "x", "2"), (&a, "y", "3")] {
        assert_eq!(app.ask(&format!("/once/{key}"), Some(&cookie)).await.body, n, "{key}");
    }
    assert_eq!(a.ask("/count", Some(&cookie)).await.body, "4");
    let other = a.send("POST", "/once/x", Some(&cookie), "another body").await;
    assert_eq!(other.status, 422, "{other:?}");
}

#[tokio::test]
async fn errors_are_responses_that_can_be_looked_into() {
    let town = Town::new();
    let app = town.app_with("a", Limits { max_value_bytes: 10, ..Limits::default() }).await;
    let cookie = app.ask("/count", None).await.cookie().unwrap();
    let large = app.send("POST", "/set/k", Some(&cookie), &"x".repeat(9)).await;
    assert_eq!(large.status, 413, "{large:?}");
    assert!(large.body.contains("max_value_bytes") && large.headers["content-type"] == "application/json");
    let unfit = app.ask("/get/n", Some(&cookie)).await;
    assert_eq!(unfit.status, 409, "{unfit:?}");

    let request = Request::post("/set/k").body(Body::from("x".repeat(9))).unwrap();
    let response = app.router.clone().oneshot(request).await.unwrap();
    assert!(matches!(response.extensions().get(), Some(SessionError::TooLarge(_))));
    assert!(!response.headers().contains_key("set-cookie"), "no session has begun");

    let bare = routes().oneshot(Request::get("/get/k").body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(bare.status(), 500, "a route without the layer says so");
}

/// A service that knows nothing of axum, with bodies of its own.
#[tokio::test]
async fn any_tower_service_will_do() {
    let town = Town::new();
    let member = Member::join(town.store.clone(), "shop", "a").await.unwrap();
    let layer = SessionLayer::with_cookie(
        member.sessions(Limits::default()),
        Keyring::from(town.keys.clone()),
        CookieOptions::named("t").with_secure(true),
    )
    .unwrap();
    let service = tower::service_fn(async |request: Request<u8>| {
        let session = request.extensions().get::<Session>().unwrap();
        session.set("body", request.body()).await?;
        Ok::<_, SessionError>(Response::new("a body that is not read by anyone"))
    });
    let response = tower_layer::Layer::layer(&layer, service).oneshot(Request::new(42)).await.unwrap();
    assert!(response.headers()["set-cookie"].to_str().unwrap().starts_with("t=E"));
    assert_eq!(*response.body(), "a body that is not read by anyone");
}
