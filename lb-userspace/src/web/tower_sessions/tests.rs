use super::*;
use crate::session::{
    Keyring, Limits, Member, MemoryStore, SessionError, SessionStore, Sessions, Token, TokenKeys,
};
use ::tower_sessions::cookie::SameSite;
use ::tower_sessions::session::{Error, Id};
use ::tower_sessions::{Expiry, Session, SessionManagerLayer};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Request, StatusCode};
use axum::routing::post;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use tokio::sync::Barrier;
use tower::ServiceExt;

struct Town {
    store: Arc<MemoryStore>,
    keys: Arc<Keyring>,
    /// Where requests to `/meet/…` wait for each other.
    meeting: Arc<Barrier>,
}

struct App {
    router: Router,
    member: Member,
    sessions: Arc<Sessions>,
    keys: Arc<Keyring>,
}

#[derive(Debug)]
struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: String,
    error: Option<SessionError>,
}

impl Town {
    fn new() -> Self {
        Self {
            store: Arc::default(),
            keys: Arc::new(TokenKeys::generate().unwrap().into()),
            meeting: Arc::new(Barrier::new(2)),
        }
    }

    async fn app(&self, backend: &str) -> App {
        self.app_with(backend, None, Conflicts::Refuse).await
    }

    async fn app_with(&self, backend: &str, expiry: Option<Expiry>, conflicts: Conflicts) -> App {
        let member = Member::join(self.store.clone(), "shop", backend).await.unwrap();
        let sessions = member.sessions(Limits { max_value_bytes: 50, ..Limits::default() });
        let store = LbStore::new(sessions.clone()).with_conflicts(conflicts);
        let mut manager = SessionManagerLayer::new(store.clone()).with_same_site(SameSite::Lax);
        if let Some(expiry) = expiry {
            manager = manager.with_expiry(expiry);
        }
        let layer = AffinityLayer::new(manager, &store, self.keys.clone());
        let router = routes(self.meeting.clone()).layer(layer);
        App { router, member, sessions, keys: self.keys.clone() }
    }
}

fn routes(meeting: Arc<Barrier>) -> Router {
    Router::new()
        .route("/plain", post(async || "no session needed"))
        .route("/get/{key}", post(read))
        .route("/set/{key}", post(write))
        .route("/meet/{key}", post(meet))
        .route("/save/{key}", post(save))
        .route("/cycle", post(cycle))
        .route("/cycle/meet", post(cycle_late))
        .route("/flush/meet/{key}", post(flush_late))
        .route("/flush", post(flush))
        .with_state(meeting)
}

struct Failure;

impl From<Error> for Failure {
    fn from(_: Error) -> Self {
        Self
    }
}

impl axum::response::IntoResponse for Failure {
    fn into_response(self) -> axum::response::Response {
        StatusCode::INTERNAL_SERVER_ERROR.into_response()
    }
}

async fn read(session: Session, Path(key): Path<String>) -> Result<String, Failure> {
    Ok(session.get::<String>(&key).await?.unwrap_or_default())
}

async fn write(session: Session, Path(key): Path<String>, body: String) -> Result<(), Failure> {
    Ok(session.insert(&key, body).await?)
}

/// Writes what it has read plus something: others meet it after the read, and again before the write.
async fn meet(
    State(meeting): State<Arc<Barrier>>,
    session: Session,
    Path(key): Path<String>,
    body: String,
) -> Result<(), Failure> {
    let old = session.get::<String>(&key).await?.unwrap_or_default();
    meeting.wait().await;
    meeting.wait().await;
    Ok(session.insert(&key, old + &body).await?)
}

async fn cycle(session: Session) -> Result<(), Failure> {
    Ok(session.cycle_id().await?)
}

/// Saves by itself, and is saved once more in the end, as all that was modified.
async fn save(
    State(meeting): State<Arc<Barrier>>,
    session: Session,
    Path(key): Path<String>,
    body: String,
) -> Result<(), Failure> {
    session.get::<String>(&key).await?;
    meeting.wait().await;
    meeting.wait().await;
    session.insert(&key, body).await?;
    Ok(session.save().await?)
}

async fn cycle_late(State(meeting): State<Arc<Barrier>>, session: Session) -> Result<(), Failure> {
    session.get::<String>("k").await?;
    meeting.wait().await;
    meeting.wait().await;
    session.insert("k", "cycled").await?;
    Ok(session.cycle_id().await?)
}

async fn flush_late(
    State(meeting): State<Arc<Barrier>>,
    session: Session,
    Path(key): Path<String>,
) -> Result<(), Failure> {
    session.get::<String>("k").await?;
    meeting.wait().await;
    meeting.wait().await;
    session.flush().await?;
    Ok(session.insert(&key, "flushed").await?)
}

async fn flush(session: Session) -> Result<(), Failure> {
    Ok(session.flush().await?)
}

impl App {
    async fn ask(&self, path: &str, cookie: Option<&str>, body: &str) -> Answer {
        let mut request = Request::post(path);
        if let Some(cookie) = cookie {
            request = request.header("cookie", cookie);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let error = response.extensions().get::<SessionError>().cloned();
        let (parts, body) = response.into_parts();
        let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        Answer { status: parts.status, headers: parts.headers, body, error }
    }

    async fn read(&self, key: &str, cookie: &str) -> String {
        self.ask(&format!("/get/{key}"), Some(cookie), "").await.body
    }

    fn token(&self, cookie: &str) -> Token {
        self.keys.verify(cookie.strip_prefix("lb=").unwrap().as_bytes()).unwrap()
    }
}

impl Answer {
    fn set_cookie(&self) -> Option<&str> {
        let mut all = self.headers.get_all("set-cookie").iter();
        let one = all.next()?.to_str().unwrap();
        assert!(all.next().is_none(), "{:?}", self.headers);
        Some(one)
    }

    /// `name=value`.
    fn cookie(&self) -> Option<String> {
        Some(self.set_cookie()?.split(';').next().unwrap().to_owned())
    }
}

#[tokio::test]
async fn the_client_has_a_token_and_the_application_its_id() {
    let town = Town::new();
    let app = town.app("a").await;
    for path in ["/plain", "/get/k"] {
        assert_eq!(app.ask(path, None, "").await.set_cookie(), None, "{path}");
    }
    assert_eq!(town.store.count().await.unwrap(), 0);

    let first = app.ask("/set/k", None, "v").await;
    let cookie = first.cookie().unwrap();
    assert!(first.set_cookie().unwrap().contains("; SameSite=Lax; Secure; Path=/"), "{first:?}");
    assert_eq!(first.headers["cache-control"], "no-store");
    assert_eq!(app.read("k", &cookie).await, "v");
    assert_eq!(app.ask("/get/k", Some(&cookie), "").await.set_cookie(), None, "the token is the right one");
    assert_eq!(town.store.count().await.unwrap(), 1);

    // Who knows an id has nothing: neither the real one nor a made up one is taken from the client.
    let id = store::id_of(app.token(&cookie).session);
    for planted in [id, Id::default()] {
        for cookie in [format!("id={planted}"), format!("lb={planted}"), format!("lb=x; id={planted}")] {
            assert_eq!(app.read("k", &cookie).await, "", "{cookie}");
        }
        let begun = app.ask("/set/k", Some(&format!("id={planted}")), "mine").await.cookie().unwrap();
        assert_ne!(store::id_of(app.token(&begun).session), planted);
    }
    assert_eq!(app.read("k", &cookie).await, "v");
    // Neither is a token of another service, though the same keys signed it.
    let token = app.token(&cookie);
    let elsewhere = Token { service: token.service + 1, ..token };
    let elsewhere = format!("lb={}", app.keys.keys().sign(&elsewhere).unwrap());
    assert_eq!(app.read("k", &elsewhere).await, "");
}

#[tokio::test]
async fn only_this_instance_answers_from_its_cache() {
    let town = Town::new();
    let app = town.app("a").await;
    let cookie = app.ask("/set/k", None, "v").await.cookie().unwrap();
    let id = app.token(&cookie).session;
    // Behind the back of the cache, which a store of several processes would tell.
    town.store.delete(id, 1).await.unwrap();
    assert_eq!(app.read("k", &cookie).await, "v", "from the cache");
    let mut instance = app.member.instance();
    town.store.next_epoch(0).await.unwrap();
    instance.wait_for(|instance| instance.epoch == 3).await.unwrap();
    assert_eq!(app.read("k", &cookie).await, "", "from the database, where it is not");
}

#[tokio::test]
async fn a_new_instance_is_told_with_all_attributes_and_without_a_write() {
    let town = Town::new();
    let expiry = Some(Expiry::OnInactivity(Duration::minutes(20)));
    let a = town.app_with("a", expiry, Conflicts::Refuse).await;
    let b = town.app_with("b", expiry, Conflicts::Refuse).await;
    let first = a.ask("/set/k", None, "v").await;
    let moved = b.ask("/get/k", first.cookie().as_deref(), "").await;
    assert_eq!(moved.body, "v");
    let attributes = |answer: &Answer| answer.set_cookie().unwrap().split_once("; ").unwrap().1.to_owned();
    assert!(attributes(&moved).contains("Max-Age=1200"), "{moved:?}");
    assert_eq!(attributes(&moved), attributes(&first));
    let (old, new) = (a.token(&first.cookie().unwrap()), a.token(&moved.cookie().unwrap()));
    assert_eq!((old.session, old.slot, new.slot), (new.session, 0, 1));
    assert_eq!(town.store.load(new.session).await.unwrap().unwrap().version, 1, "nothing was written");
    // One that does not use the session leaves it where it is.
    assert_eq!(a.ask("/plain", moved.cookie().as_deref(), "").await.set_cookie(), None);
    // A write at another instance says the same in one cookie.
    let back = a.ask("/set/k", moved.cookie().as_deref(), "w").await;
    assert_eq!(a.token(&back.cookie().unwrap()).slot, 0);
    assert_eq!(b.read("k", &back.cookie().unwrap()).await, "w");
}

#[tokio::test]
async fn a_new_key_signs_at_the_next_request() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("keys.toml");
    let town = Town { keys: Arc::new(Keyring::open_or_create(&path).unwrap()), ..Town::new() };
    let app = town.app("a").await;
    let cookie = app.ask("/set/k", None, "v").await.cookie().unwrap();
    TokenKeys::load(&path).unwrap().rotate(&path).unwrap();
    // Another process signs with it, and this one hears of the key by that.
    let theirs = Keyring::open(&path).unwrap();
    let token = app.token(&cookie);
    let newer = theirs.sign(token.service, app.sessions.instance().owner(), token.session).unwrap();
    assert_eq!(app.read("k", &format!("lb={newer}")).await, "v");
    let renewed = app.ask("/get/k", Some(&cookie), "").await.cookie().unwrap();
    assert_eq!((app.token(&renewed).key_id, app.token(&renewed).session), (1, token.session));
}

#[tokio::test]
async fn cycled_and_flushed_sessions() {
    let town = Town::new();
    let app = town.app("a").await;
    let old = app.ask("/set/k", None, "v").await.cookie().unwrap();
    let new = app.ask("/cycle", Some(&old), "").await.cookie().unwrap();
    assert_ne!(app.token(&old).session, app.token(&new).session);
    assert_eq!((app.read("k", &new).await.as_str(), app.read("k", &old).await.as_str()), ("v", ""));
    let flushed = app.ask("/flush", Some(&new), "").await;
    assert_eq!(flushed.cookie().unwrap(), "lb=");
    assert!(flushed.set_cookie().unwrap().contains("Max-Age=0"), "{flushed:?}");
    assert_eq!(app.read("k", &new).await, "");
    assert_eq!(town.store.count().await.unwrap(), 0);
    assert_eq!(app.ask("/cycle", None, "").await.status, 200, "without a session there is nothing to cycle");
}

#[tokio::test]
async fn requests_at_the_same_time_undo_nothing() {
    let town = Town::new();
    let (a, b) = (town.app("a").await, town.app("b").await);
    let cookie = a.ask("/set/x", None, "1").await.cookie().unwrap();
    let (one, other) =
        tokio::join!(a.ask("/meet/x", Some(&cookie), "2"), b.ask("/meet/y", Some(&cookie), "3"));
    assert_eq!((one.status, other.status), (StatusCode::OK, StatusCode::OK), "different keys are merged");
    assert_eq!((b.read("x", &cookie).await, b.read("y", &cookie).await), ("12".into(), "3".into()));

    let (one, other) =
        tokio::join!(a.ask("/meet/x", Some(&cookie), "a"), b.ask("/meet/x", Some(&cookie), "b"));
    let (done, refused) = if one.status == 200 { ("a", other) } else { ("b", one) };
    assert_eq!(refused.status, StatusCode::CONFLICT, "{refused:?}");
    assert!(matches!(refused.error, Some(SessionError::Refused(_))));
    assert_eq!(a.read("x", &cookie).await, format!("12{done}"));

    let late = town.app_with("c", None, Conflicts::KeepLast).await;
    let (one, other) =
        tokio::join!(late.ask("/meet/x", Some(&cookie), "c"), late.ask("/meet/x", Some(&cookie), "d"));
    assert_eq!((one.status, other.status), (StatusCode::OK, StatusCode::OK));
}

#[tokio::test]
async fn what_others_did_in_the_meantime_is_in_the_session_whatever_becomes_of_it() {
    let town = Town::new();
    let (a, b) = (town.app("a").await, town.app("b").await);
    let cookie = a.ask("/set/k", None, "v").await.cookie().unwrap();
    // Between the moments when the other request reads and when it writes.
    let meanwhile = async |key: &str, cookie: &str| {
        town.meeting.wait().await;
        assert_eq!(b.ask(&format!("/set/{key}"), Some(cookie), "mine").await.status, 200);
        town.meeting.wait().await;
    };
    let (saved, ()) = tokio::join!(a.ask("/save/k", Some(&cookie), "w"), meanwhile("x", &cookie));
    let cookie = saved.cookie().unwrap();
    assert_eq!((a.read("k", &cookie).await, a.read("x", &cookie).await), ("w".into(), "mine".into()));

    let (cycled, ()) = tokio::join!(a.ask("/cycle/meet", Some(&cookie), ""), meanwhile("y", &cookie));
    let new = cycled.cookie().unwrap();
    for (key, value) in [("k", "cycled"), ("x", "mine"), ("y", "mine")] {
        assert_eq!(
            (a.read(key, &new).await.as_str(), a.read(key, &cookie).await.as_str()),
            (value, ""),
            "{key}"
        );
    }

    for key in ["k", "n"] {
        let cookie = a.ask("/set/k", None, "v").await.cookie().unwrap();
        let path = format!("/flush/meet/{key}");
        let (flushed, ()) = tokio::join!(a.ask(&path, Some(&cookie), ""), meanwhile("z", &cookie));
        let new = flushed.cookie().unwrap();
        assert_eq!(a.read(key, &new).await, "flushed");
        assert_eq!(a.read("z", &new).await, "", "who has logged out leaves nothing behind");
    }
}

#[tokio::test]
async fn a_session_that_ended_meanwhile_stays_ended() {
    let town = Town::new();
    let app = town.app("a").await;
    let cookie = app.ask("/set/k", None, "v").await.cookie().unwrap();
    let slow = app.ask("/meet/k", Some(&cookie), "late");
    let end = async {
        town.meeting.wait().await;
        // The other side of the meeting has read the session and will write it after this.
        assert!(app.sessions.end(Some(app.token(&cookie))).await.unwrap());
        town.meeting.wait().await;
    };
    let (late, ()) = tokio::join!(slow, end);
    assert_eq!(late.status, StatusCode::CONFLICT, "{late:?}");
    assert_eq!(town.store.count().await.unwrap(), 0);
}

#[tokio::test]
async fn failures_have_their_own_status() {
    let town = Town::new();
    let app = town.app("a").await;
    let large = app.ask("/set/k", None, &"x".repeat(60)).await;
    assert_eq!(large.status, StatusCode::PAYLOAD_TOO_LARGE, "{large:?}");
    assert!(matches!(large.error, Some(SessionError::TooLarge(_))) && large.set_cookie().is_none());
    let reserved = app.ask("/set/tower-sessions.expires", None, "1").await;
    assert_eq!((reserved.status, reserved.error.is_none()), (StatusCode::INTERNAL_SERVER_ERROR, true));
    assert_eq!(town.store.count().await.unwrap(), 0);
}

#[tokio::test]
async fn the_expiry_of_tower_sessions_is_honoured() {
    let town = Town::new();
    let past = Expiry::AtDateTime(OffsetDateTime::now_utc() - Duration::seconds(1));
    let app = town.app_with("a", Some(past), Conflicts::Refuse).await;
    let cookie = app.ask("/set/k", None, "v").await.cookie().unwrap();
    assert_eq!(town.store.count().await.unwrap(), 1);
    assert_eq!(app.read("k", &cookie).await, "");
    assert_eq!(town.store.count().await.unwrap(), 0, "it ended when it was met");
    let far = Expiry::AtDateTime(time::UtcDateTime::MAX.into());
    let app = town.app_with("b", Some(far), Conflicts::Refuse).await;
    let cookie = app.ask("/set/k", None, "v").await.cookie().unwrap();
    assert_eq!(app.read("k", &cookie).await, "v");
}

/// As any other store, without our layer.
#[tokio::test]
async fn a_plain_store_without_the_layer() {
    use tower_sessions_core::SessionStore as _;
    let town = Town::new();
    let app = town.app("a").await;
    let store = Arc::new(LbStore::new(app.sessions.clone()));
    let session = Session::new(None, store.clone(), None);
    session.insert("k", 1).await.unwrap();
    session.save().await.unwrap();
    let id = session.id().unwrap();
    let again = Session::new(Some(id), store.clone(), None);
    assert_eq!(again.get("k").await.unwrap(), Some(1));
    again.insert("k", 2).await.unwrap();
    again.save().await.unwrap();
    assert_eq!(store.load(&id).await.unwrap().unwrap().data["k"], 2);
    assert_eq!(store.load(&Id::default()).await.unwrap(), None);
    again.flush().await.unwrap();
    assert_eq!(store.load(&id).await.unwrap(), None);
}
