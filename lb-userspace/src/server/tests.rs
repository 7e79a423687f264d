//! Over real TCP connections, with a client that sees every byte.

mod conditions;
mod connection;
#[cfg(feature = "daemon")]
mod cookies;
mod once;
mod origin;

use super::*;
use crate::session::store::sled::{SledOptions, SledStore};
use crate::session::{SessionStore, unix_millis};
use lb_common::token::Token;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::SocketAddr;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Shop {
    context: ServerContext,
    store: Arc<SledStore>,
    _directory: tempfile::TempDir,
}

struct Running {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

impl Shop {
    fn new() -> Self {
        Self::with(SledOptions { cache_bytes: 16 << 20, reserve_bytes: 0 }, Limits::default())
    }

    fn with(options: SledOptions, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(SledStore::open_with(&directory.path().join("store"), options).unwrap());
        let context = ServerContext {
            instance: watch::channel(instance(3, 1)).1,
            store: store.clone(),
            keys: Arc::new(ArcSwap::from_pointee(TokenKeys::generate().unwrap())),
            peers: Arc::default(),
            limits: limits.clone(),
            connections: Default::default(),
            counters: Default::default(),
            admission: Arc::new(Admission::new(&limits)),
            cookie: Cookie::default(),
            clock: Arc::new(unix_millis),
        };
        Self { context, store, _directory: directory }
    }

    fn start(&self, slot: u16, epoch: u32) -> Running {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let context =
            ServerContext { instance: watch::channel(instance(slot, epoch)).1, ..self.context.clone() };
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(serve(listener, context, async move { drop(stopped.await) }));
        Running { addr, stop, served }
    }

    fn verify(&self, cookie: &str) -> Token {
        let text = cookie.strip_prefix("lb=").unwrap();
        self.context.keys.load().verify(text.as_bytes()).unwrap()
    }
}

impl Running {
    async fn client(&self) -> Client {
        Client(BufReader::new(TcpStream::connect(self.addr).await.unwrap()))
    }

    /// One request on a connection of its own.
    async fn ask(&self, method: &str, path: &str, cookie: Option<&str>, body: Option<&str>) -> Answer {
        self.ask_on(method, path, cookie, &[], body).await
    }

    /// With more headers.
    async fn ask_on(
        &self,
        method: &str,
        path: &str,
        cookie: Option<&str>,
        more: &[(&str, &str)],
        body: Option<&str>,
    ) -> Answer {
        self.client().await.ask_on(method, path, cookie, more, body).await
    }
}

fn instance(slot: u16, epoch: u32) -> Instance {
    Instance { service: 1, slot, epoch, name: format!("s{slot}") }
}

struct Client(BufReader<TcpStream>);

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The pair to send back.
    fn cookie(&self) -> Option<String> {
        let set = self.header("set-cookie")?;
        let (pair, attributes) = set.split_once("; ").unwrap();
        assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Lax");
        Some(pair.to_owned())
    }

    fn origin(&self) -> (Option<&str>, Option<&str>, Option<&str>) {
        (self.header("lb-server"), self.header("lb-epoch"), self.header("lb-source"))
    }
}

impl Client {
    async fn ask(&mut self, method: &str, path: &str, cookie: Option<&str>, body: Option<&str>) -> Answer {
        self.ask_on(method, path, cookie, &[], body).await
    }

    /// With more headers.
    async fn ask_on(
        &mut self,
        method: &str,
        path: &str,
        cookie: Option<&str>,
        more: &[(&str, &str)],
        body: Option<&str>,
    ) -> Answer {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: shop\r\n");
        if let Some(cookie) = cookie {
            head += &format!("Cookie: {cookie}\r\n");
        }
        for (name, value) in more {
            head += &format!("{name}: {value}\r\n");
        }
        if let Some(body) = body {
            head += &format!("Content-Length: {}\r\n", body.len());
            if path.starts_with("/cart") && more.iter().all(|(name, _)| *name != "Content-Type") {
                head += "Content-Type: application/json\r\n";
            }
        }
        self.send(&format!("{head}\r\n{}", body.unwrap_or_default())).await;
        self.answer(method).await
    }

    async fn send(&mut self, text: &str) {
        self.0.get_mut().write_all(text.as_bytes()).await.unwrap();
    }

    async fn answer(&mut self, method: &str) -> Answer {
        let mut line = String::new();
        self.0.read_line(&mut line).await.unwrap();
        let status =
            line.split(' ').nth(1).unwrap_or_else(|| panic!("no status in {line:?}")).parse().unwrap();
        let mut headers = HashMap::new();
        loop {
            line.clear();
            self.0.read_line(&mut line).await.unwrap();
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            let before = headers.insert(name.to_ascii_lowercase(), value.to_owned());
            assert_eq!(before, None, "{name} twice");
        }
        let len = match (method, status) {
            ("HEAD", _) | (_, 304) => 0,
            _ => headers.get("content-length").map_or(0, |len| len.parse().unwrap()),
        };
        let mut body = vec![0; len];
        self.0.read_exact(&mut body).await.unwrap();
        Answer { status, headers, body: String::from_utf8(body).unwrap() }
    }

    async fn is_closed(&mut self) -> bool {
        self.0.read_u8().await.is_err()
    }
}

#[tokio::test]
async fn a_session_from_its_first_request_to_its_end() {
    let shop = Shop::new();
    let server = shop.start(3, 7);
    let first = server.ask("GET", "/session", None, None).await;
    assert_eq!((first.status, first.origin()), (200, (Some("s3"), Some("7"), Some("new"))));
    let cookie = first.cookie().unwrap();
    let token = shop.verify(&cookie);
    assert_eq!((token.service, token.slot, token.epoch), (1, 3, 7));
    let expected = json!({"session": token.session.to_string(), "server": "s3", "epoch": 7, "version": 0,
        "state": {}, "source": "new"});
    assert_eq!(first.json(), expected);
    assert_eq!(shop.store.count().await.unwrap(), 0, "a visit without a write leaves nothing behind");

    // A connection that is kept, and one for each request: the same session.
    let mut client = server.client().await;
    let put = client.ask("PUT", "/session/name", Some(&cookie), Some(r#"{"first": "Ada"}"#)).await;
    assert_eq!((put.status, put.json()["version"].as_u64(), put.cookie()), (201, Some(1), None));
    for _ in 0..3 {
        let again = client.ask("GET", "/session", Some(&cookie), None).await;
        assert_eq!((again.header("lb-source"), again.cookie()), (Some("cache"), None), "token unchanged");
        assert_eq!(again.json()["state"], json!({"name": {"first": "Ada"}}));
        let other = server.ask("GET", "/session", Some(&cookie), None).await;
        assert_eq!(other.json(), again.json());
    }
    let gone = client.ask("DELETE", "/session/name", Some(&cookie), None).await;
    assert_eq!((gone.status, &gone.json()["state"]), (200, &json!({})));
    assert_eq!(client.ask("DELETE", "/session/name", Some(&cookie), None).await.status, 404);

    let end = client.ask("DELETE", "/session", Some(&cookie), None).await;
    assert_eq!((end.status, end.json()), (200, json!({"ended": true})));
    assert!(end.header("set-cookie").unwrap().starts_with("lb=; Path=/; Max-Age=0"));
    let after = client.ask("GET", "/session", Some(&cookie), None).await;
    assert_eq!(after.header("lb-source"), Some("new"));
    assert_ne!(shop.verify(&after.cookie().unwrap()).session, token.session);
    assert_eq!(client.ask("DELETE", "/session", None, None).await.json(), json!({"ended": false}));
}

#[tokio::test]
async fn a_restart_keeps_the_cart_and_gives_a_new_token() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let first = server.ask("POST", "/cart/items", None, Some(r#"{"sku": "teapot"}"#)).await;
    assert_eq!((first.status, first.header("lb-source")), (200, Some("new")));
    let cookie = first.cookie().unwrap();
    let more =
        server.ask("POST", "/cart/items", Some(&cookie), Some(r#"{"sku": "teapot", "quantity": 2}"#)).await;
    assert_eq!(more.header("lb-source"), Some("cache"));
    let own = server.ask("POST", "/cart/items", Some(&cookie), Some(r#"{"sku": "my own/thing"}"#)).await;
    assert_eq!(own.json()["count"], 4);

    server.served.abort();
    let server = shop.start(3, 2);
    let reloaded = server.ask("GET", "/cart", Some(&cookie), None).await;
    assert_eq!(reloaded.origin(), (Some("s3"), Some("2"), Some("database")));
    assert_eq!(
        reloaded.json()["items"],
        json!([{"sku": "teapot", "quantity": 3, "name": "Teapot 418", "price": 4180},
            {"sku": "my own/thing", "quantity": 1}])
    );
    assert_eq!((&reloaded.json()["total"], &reloaded.json()["count"]), (&json!(12540), &json!(4)));
    let renewed = reloaded.cookie().unwrap();
    assert_ne!(renewed, cookie);
    assert_eq!(shop.verify(&renewed).session, shop.verify(&cookie).session);
    let hit = server.ask("GET", "/cart", Some(&renewed), None).await;
    assert_eq!((hit.header("lb-source"), hit.cookie()), (Some("cache"), None));
    let removed = server.ask("DELETE", "/cart/items/my%20own%2Fthing", Some(&renewed), None).await;
    assert_eq!((removed.status, &removed.json()["count"]), (200, &json!(3)));
    assert_eq!(server.ask("DELETE", "/cart/items/spoon", Some(&renewed), None).await.status, 404);
}

#[tokio::test]
async fn another_server_takes_over_and_the_first_one_notices() {
    let shop = Shop::new();
    let (a, b) = (shop.start(1, 1), shop.start(2, 1));
    let at_a = a.ask("PUT", "/session/n", None, Some("1")).await.cookie().unwrap();
    let there = b.ask("PUT", "/session/n", Some(&at_a), Some("2")).await;
    assert_eq!(there.origin(), (Some("s2"), Some("1"), Some("database")));
    let back = a.ask("GET", "/session", Some(&at_a), None).await;
    assert_eq!((back.header("lb-source"), &back.json()["state"]["n"]), (Some("database"), &json!(2)));
}

#[tokio::test]
async fn an_ended_session_is_gone_at_every_server() {
    let shop = Shop::new();
    let (a, b) = (shop.start(1, 1), shop.start(2, 1));
    let at_a = a.ask("PUT", "/session/n", None, Some("1")).await.cookie().unwrap();
    let at_b = b.ask("GET", "/session", Some(&at_a), None).await.cookie().unwrap();
    assert_eq!(b.ask("GET", "/session/n", Some(&at_b), None).await.header("lb-source"), Some("cache"));
    assert_eq!(a.ask("DELETE", "/session", Some(&at_a), None).await.json(), json!({"ended": true}));
    for server in [&a, &b] {
        for cookie in [&at_a, &at_b] {
            assert_eq!(server.ask("GET", "/session/n", Some(cookie), None).await.status, 404);
            let after = server.ask("GET", "/session", Some(cookie), None).await;
            assert_eq!((after.header("lb-source"), &after.json()["state"]), (Some("new"), &json!({})));
        }
    }
}

#[tokio::test]
async fn a_token_that_does_not_verify_is_as_good_as_absent() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let cookie = server.ask("GET", "/session", None, None).await.cookie().unwrap();
    let id = |answer: &Answer| answer.json()["session"].as_str().unwrap().to_owned();
    let session = shop.verify(&cookie).session.to_string();
    let stranger = TokenKeys::generate().unwrap();
    let forged = format!("lb={}", stranger.sign(&shop.verify(&cookie)).unwrap());
    for bad in [forged.as_str(), "lb=", "lb", "lb=short", &cookie.to_uppercase(), &format!("x{cookie}")] {
        let answer = server.ask("GET", "/session", Some(bad), None).await;
        assert_eq!((answer.status, answer.header("lb-source")), (200, Some("new")), "{bad}");
        assert_ne!(id(&answer), session);
        assert!(answer.cookie().is_some());
    }
    for good in [format!("a=b; {cookie}; c=d"), format!("{forged}; {cookie}"), format!("q=\"x\";{cookie}")] {
        assert_eq!(id(&server.ask("GET", "/session", Some(&good), None).await), session, "{good}");
    }
}

#[tokio::test]
async fn a_session_id_that_was_signed_and_never_stored_is_not_used() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let keys = shop.context.keys.load();
    let planted = keys.token(1, instance(3, 1).owner(), lb_common::token::SessionId([9; 16]));
    let cookie = format!("lb={}", keys.sign(&planted).unwrap());
    let answer = server.ask("PUT", "/session/a", Some(&cookie), Some("1")).await;
    assert_eq!((answer.status, answer.header("lb-source")), (201, Some("new")));
    assert_ne!(shop.verify(&answer.cookie().unwrap()).session, planted.session);
}

#[tokio::test]
async fn a_rotated_key_gives_a_new_token_for_the_same_session() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let cookie = server.ask("PUT", "/session/a", None, Some("1")).await.cookie().unwrap();
    let rotated = shop.context.keys.load().rotated().unwrap();
    shop.context.keys.store(Arc::new(rotated));
    let answer = server.ask("GET", "/session", Some(&cookie), None).await;
    assert_eq!(answer.header("lb-source"), Some("cache"));
    let renewed = answer.cookie().unwrap();
    let (old, new) = (shop.verify(&cookie), shop.verify(&renewed));
    assert_eq!((old.session, old.key_id, new.key_id), (new.session, 0, 1));
    assert_eq!(server.ask("GET", "/session", Some(&renewed), None).await.cookie(), None);
}

#[tokio::test]
async fn what_needs_no_session_begins_none() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    for (method, path, status) in [
        ("GET", "/healthz", 200),
        ("GET", "/nowhere", 404),
        ("GET", "/session/x", 404),
        ("POST", "/session/x", 405),
        ("POST", "/session", 405),
        ("PUT", "/cart", 405),
        ("DELETE", "/session/x", 404),
        ("DELETE", "/cart/items/x", 404),
        ("DELETE", "/session/%ff", 400),
    ] {
        let answer = server.ask(method, path, None, None).await;
        assert_eq!(
            (answer.status, answer.origin()),
            (status, (Some("s3"), Some("1"), Some("none"))),
            "{path}"
        );
        assert_eq!(answer.header("set-cookie"), None, "{path}");
        assert_eq!(answer.header("allow").is_some(), status == 405, "{path}");
        if status >= 400 {
            let error = answer.json();
            assert!(error["error"].is_string() && error["hint"].is_string(), "{error}");
        }
    }
    assert_eq!(shop.store.count().await.unwrap(), 0);
}

#[tokio::test]
async fn bad_bodies_are_refused_with_a_reason_and_the_connection_stays() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let mut client = server.client().await;
    let cookie = client.ask("GET", "/session", None, None).await.cookie().unwrap();
    let rows = [
        ("PUT", "/session/a", "{", 400, "not a JSON value"),
        ("PUT", "/session/a", "", 400, "not a JSON value"),
        ("PUT", "/session/a", "hello", 400, "not a JSON value"),
        ("POST", "/cart/items", "[]", 400, "not an order"),
        ("POST", "/cart/items", r#"{"sku": "mug", "qty": 2}"#, 400, "qty"),
        ("POST", "/cart/items", r#"{"sku": ""}"#, 400, "sku"),
        ("POST", "/cart/items", r#"{"sku": "mug", "quantity": 0}"#, 400, "1 or more"),
        ("POST", "/cart/items", r#"{"sku": "mug", "quantity": -1}"#, 400, "not an order"),
        ("POST", "/cart/items", r#"{"sku": "mug", "quantity": 4000000000}"#, 400, "999"),
    ];
    for (method, path, body, status, reason) in rows {
        let answer = client.ask(method, path, Some(&cookie), Some(body)).await;
        assert_eq!(answer.status, status, "{body}");
        assert!(answer.json()["error"].as_str().unwrap().contains(reason), "{}", answer.body);
    }
    let after = client.ask("GET", "/session", Some(&cookie), None).await;
    assert_eq!((&after.json()["state"], &after.json()["version"]), (&json!({}), &json!(0)));
    client.ask("PUT", "/session/cart", Some(&cookie), Some("7")).await;
    let answer = client.ask("GET", "/cart", Some(&cookie), None).await;
    assert_eq!(answer.status, 409, "{}", answer.body);
}

#[tokio::test]
async fn what_is_too_large_names_the_limit() {
    let limits = Limits {
        max_keys: 2,
        max_key_bytes: 8,
        max_value_bytes: 100,
        max_session_bytes: 150,
        ..Limits::default()
    };
    let shop = Shop::with(SledOptions { cache_bytes: 16 << 20, reserve_bytes: 0 }, limits);
    let server = shop.start(3, 1);
    let mut client = server.client().await;
    let string = |len: usize| format!("\"{}\"", "x".repeat(len - 2));
    let cookie = client.ask("PUT", "/session/a", None, Some(&string(100))).await.cookie().unwrap();
    let rows = [
        ("/session/b", string(101), "max_value_bytes", "100 bytes"),
        // Larger than any buffer between the two: it is read to its end, or the client would not see the answer.
        ("/session/b", string(2 << 20), "max_value_bytes", "100 bytes"),
        ("/session/b", string(60), "max_session_bytes", "150 bytes"),
        ("/session/ninechars", string(3), "max_key_bytes", "8 bytes"),
        // Counted as they are stored, not as the path has them.
        ("/session/%C3%A4%C3%A4%C3%A4%C3%A4a", string(3), "max_key_bytes", "8 bytes"),
    ];
    for (path, body, name, limit) in &rows {
        let answer = client.ask("PUT", path, Some(&cookie), Some(body)).await;
        assert_eq!(answer.status, 413, "{path}");
        let hint = answer.json()["hint"].as_str().unwrap().to_owned();
        assert!(hint.contains(name) && hint.contains(limit), "{hint}");
    }
    let fits = client.ask("PUT", "/session/%C3%A4%C3%A4%C3%A4%C3%A4", Some(&cookie), Some("1")).await;
    assert_eq!(fits.status, 201);
    let answer = client.ask("PUT", "/session/c", Some(&cookie), Some("1")).await;
    assert_eq!(answer.status, 413);
    assert!(answer.body.contains("max_keys"), "{}", answer.body);
    let after = client.ask("GET", "/session", Some(&cookie), None).await;
    assert_eq!(after.json()["version"], 2, "refused writes left no trace");
}

#[tokio::test]
async fn a_full_disk_is_507_and_the_page_is_still_there() {
    let full = SledOptions { cache_bytes: 16 << 20, reserve_bytes: u64::MAX };
    let shop = Shop::with(full, Limits::default());
    let server = shop.start(3, 1);
    for (method, path, body) in
        [("PUT", "/session/a", Some("1")), ("POST", "/cart/items", Some(r#"{"sku":"mug"}"#))]
    {
        let answer = server.ask(method, path, None, body).await;
        assert_eq!((answer.status, answer.header("retry-after")), (507, Some("1")), "{path}");
        assert!(answer.json()["hint"].as_str().unwrap().contains("free space"), "{}", answer.body);
        assert_eq!(answer.header("set-cookie"), None);
    }
    for path in ["/", "/session", "/cart"] {
        let page = server.ask("GET", path, None, None).await;
        assert_eq!(
            (page.status, page.header("lb-source"), page.cookie().is_some()),
            (200, Some("new"), true)
        );
    }
}

#[tokio::test]
async fn head_has_the_headers_and_no_body() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let mut client = server.client().await;
    let page = client.ask("HEAD", "/", None, None).await;
    assert_eq!((page.status, page.body.as_str()), (200, ""));
    assert!(page.header("content-length").unwrap().parse::<usize>().unwrap() > 1000);
    assert_eq!(client.ask("GET", "/healthz", None, None).await.body, "ok\n");
}

#[tokio::test]
async fn the_page_gives_a_token_that_its_requests_share() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let page = server.ask("GET", "/", None, None).await;
    assert!(page.header("content-type").unwrap().starts_with("text/html"));
    let cookie = page.cookie().unwrap();
    let cart = server.ask("GET", "/cart", Some(&cookie), None).await;
    assert_eq!((cart.header("lb-source"), cart.cookie()), (Some("new"), None));
    assert_eq!(cart.json()["items"], json!([]));
    assert_eq!(shop.store.count().await.unwrap(), 0);
    let session = shop.verify(&cookie).session.to_string();
    let order = Some(r#"{"sku": "mug"}"#);
    let orders = (0..4).map(|_| server.ask("POST", "/cart/items", Some(&cookie), order));
    for answer in futures::future::join_all(orders).await {
        assert_eq!((answer.status, answer.json()["session"].as_str()), (200, Some(session.as_str())));
    }
    let cart = server.ask("GET", "/cart", Some(&cookie), None).await;
    assert_eq!((cart.json()["count"].as_u64(), shop.store.count().await.unwrap()), (Some(4), 1));
}

#[tokio::test]
async fn a_killed_server_loses_nothing_that_it_acknowledged() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let mut client = server.client().await;
    let mut cookie = None;
    for n in 0..20 {
        let answer = client.ask("PUT", "/session/n", cookie.as_deref(), Some(&n.to_string())).await;
        cookie = answer.cookie().or(cookie);
    }
    server.served.abort();
    assert!(server.served.await.unwrap_err().is_cancelled());
    let answer = shop.start(4, 1).ask("GET", "/session", cookie.as_deref(), None).await;
    assert_eq!((answer.header("lb-source"), &answer.json()["state"]["n"]), (Some("database"), &json!(19)));
}

#[tokio::test]
async fn what_a_visitor_read_can_be_compared_with() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let first = server.ask("GET", "/session", None, None).await;
    let (cookie, tag) = (first.cookie().unwrap(), first.header("etag").unwrap().to_owned());
    let same = server.ask_on("GET", "/session", Some(&cookie), &[("If-None-Match", &tag)], None).await;
    assert_eq!((same.status, same.header("etag"), same.cookie()), (304, Some(tag.as_str()), None));
    let any = server.ask_on("GET", "/session", Some(&cookie), &[("If-Match", "*")], None).await;
    assert_eq!((any.status, any.header("etag")), (412, Some(tag.as_str())), "there is nothing yet");
    let order = Some(r#"{"sku": "mug"}"#);
    for (more, status) in
        [(("If-Match", "*"), 412), (("If-Match", tag.as_str()), 200), (("If-Match", &tag), 412)]
    {
        let answer = server.ask_on("POST", "/cart/items", Some(&cookie), &[more], order).await;
        assert_eq!(answer.status, status, "{more:?}");
    }
    let renewed = server.ask("GET", "/", None, None).await.cookie().unwrap();
    let answer = server.ask("POST", "/renew", Some(&renewed), None).await;
    assert_eq!((answer.status, answer.json()["version"].as_u64()), (200, Some(0)));
    assert_ne!(shop.verify(&answer.cookie().unwrap()).session, shop.verify(&renewed).session);
}

/// Neither the bound of a network nor that of the service keeps anybody from a session that is there.
#[tokio::test]
async fn new_sessions_are_bounded_and_those_that_are_there_never_suffer() {
    let options = SledOptions { cache_bytes: 16 << 20, reserve_bytes: 0 };
    let shop = Shop::with(options, Limits { max_sessions: 5, new_per_second: 2, ..Limits::default() });
    let (a, b) = (shop.start(3, 1), shop.start(4, 1));
    let first = a.ask("PUT", "/session/a", None, Some("1")).await.cookie().unwrap();
    let begin = async |server: &Running, cookie: Option<&str>| {
        server.ask("PUT", "/session/a", cookie, Some("1")).await
    };
    // As fast as it can: more than two in a second are too many, at both servers together.
    let mut refused = 0;
    while shop.store.count().await.unwrap() < 5 {
        let answer = begin([&a, &b][refused % 2], None).await;
        if answer.status == 429 {
            assert_eq!((answer.header("retry-after"), answer.header("set-cookie")), (Some("1"), None));
            assert!(answer.json()["error"].as_str().unwrap().contains("network"), "{}", answer.body);
            refused += 1;
        }
        assert_eq!(a.ask("PUT", "/session/a", Some(&first), Some("2")).await.status, 200);
    }
    assert!(refused > 0, "it took no second");
    let visitor = a.ask("GET", "/", None, None).await.cookie().unwrap();
    for cookie in [None, Some(visitor.as_str())] {
        let answer = begin(&b, cookie).await;
        assert_eq!((answer.status, answer.header("retry-after")), (503, Some("1")), "{}", answer.body);
        assert!(answer.json()["error"].as_str().unwrap().contains("as many sessions"), "{}", answer.body);
    }
    let [full, too_fast] = shop.context.admission.values().map(|(_, value)| value);
    assert_eq!((full, too_fast), (2, refused as u64));
    let renewed = b.ask("POST", "/renew", Some(&first), None).await;
    assert_eq!(renewed.status, 200, "{}", renewed.body);
    let renewed = renewed.cookie().unwrap();
    assert_eq!(a.ask("PUT", "/session/b", Some(&renewed), Some("2")).await.status, 201);
    assert_eq!(a.ask("DELETE", "/session", Some(&renewed), None).await.status, 200);
    // The next second.
    while begin(&a, Some(&visitor)).await.status == 429 {}
    assert_eq!(shop.store.count().await.unwrap(), 5);
}
