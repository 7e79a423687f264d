//! `Idempotency-Key`: what is sent again is not done again.

use super::*;

const MUG: &str = r#"{"sku": "mug"}"#;

/// An answer without what tells of the server that gave it.
fn told(answer: &Answer) -> (u16, Value, Option<&str>) {
    let mut body = answer.json();
    for name in ["server", "epoch", "source"] {
        body.as_object_mut().unwrap().remove(name).unwrap();
    }
    (answer.status, body, answer.header("etag"))
}

fn replayed(answer: &Answer) -> bool {
    let header = answer.header("idempotent-replayed");
    assert!(header.is_none_or(|value| value == "true"));
    header.is_some()
}

#[tokio::test]
async fn a_client_that_asks_again_does_not_buy_twice() {
    let shop = Shop::new();
    let (server, other) = (shop.start(3, 1), shop.start(4, 1));
    let cookie = server.ask("GET", "/session", None, None).await.cookie().unwrap();
    let key = [("Idempotency-Key", "order-1")];
    let bought = server.ask_on("POST", "/cart/items", Some(&cookie), &key, Some(MUG)).await;
    assert_eq!((bought.json()["count"].as_u64(), replayed(&bought)), (Some(1), false));
    let again = server.ask_on("POST", "/cart/items", Some(&cookie), &key, Some(MUG)).await;
    assert_eq!((told(&again), replayed(&again)), (told(&bought), true));
    // The cart goes on; the answer is still what it was.
    let more = server.ask("POST", "/cart/items", Some(&cookie), Some(MUG)).await;
    assert_eq!(more.json()["count"], 2);
    let quoted = [("Idempotency-Key", "\"order-1\"")];
    let there = other.ask_on("POST", "/cart/items", Some(&cookie), &quoted, Some(MUG)).await;
    assert_eq!((told(&there), replayed(&there)), (told(&bought), true));
    assert_eq!(there.origin(), (Some("s4"), Some("1"), Some("database")));
    let there = there.cookie().expect("another server, another token");
    // After a crash, too.
    server.served.abort();
    let server = shop.start(3, 2);
    for cookie in [&cookie, &there] {
        let after = server.ask_on("POST", "/cart/items", Some(cookie), &key, Some(MUG)).await;
        assert_eq!((told(&after), replayed(&after)), (told(&bought), true));
    }
    let now = server.ask("GET", "/cart", Some(&cookie), None).await;
    assert_eq!((now.json()["count"].as_u64(), &now.json()["version"]), (Some(2), &more.json()["version"]));
    // The receipts are nobody's business.
    let state = server.ask("GET", "/session", Some(&cookie), None).await.json()["state"].clone();
    assert_eq!(state.as_object().unwrap().keys().collect::<Vec<_>>(), ["cart"]);
}

#[tokio::test]
async fn every_change_can_be_made_once() {
    let shop = Shop::new();
    let (server, other) = (shop.start(3, 1), shop.start(4, 1));
    let cookie = server.ask("GET", "/session", None, None).await.cookie().unwrap();
    let rows = [
        ("PUT", "/session/a", Some("1"), 201),
        ("PUT", "/session/a", Some("2"), 200),
        ("DELETE", "/session/a", None, 200),
        ("POST", "/cart/items", Some(MUG), 200),
        ("DELETE", "/cart/items/mug", None, 200),
    ];
    let mut first = Vec::new();
    for (n, (method, path, body, status)) in rows.iter().enumerate() {
        let key = n.to_string();
        let key = [("Idempotency-Key", key.as_str())];
        let answer = server.ask_on(method, path, Some(&cookie), &key, *body).await;
        assert_eq!((answer.status, replayed(&answer)), (*status, false), "{method} {path}");
        first.push(answer);
    }
    let version = |answer: &Answer| answer.json()["version"].as_u64();
    for (n, (method, path, body, _)) in rows.iter().enumerate() {
        let key = n.to_string();
        let key = [("Idempotency-Key", key.as_str())];
        for server in [&server, &other] {
            let again = server.ask_on(method, path, Some(&cookie), &key, *body).await;
            assert_eq!((told(&again), replayed(&again)), (told(&first[n]), true), "{method} {path}");
        }
    }
    let now = server.ask("GET", "/session", Some(&cookie), None).await;
    assert_eq!((&now.json()["state"], version(&now)), (&json!({"cart": []}), version(&first[4])));
}

#[tokio::test]
async fn what_is_sent_at_once_is_done_once() {
    let shop = Shop::new();
    let servers = [shop.start(3, 1), shop.start(4, 1), shop.start(5, 1)];
    let cookie = servers[0].ask("GET", "/session", None, None).await.cookie().unwrap();
    for round in 1..=8u64 {
        let key = format!("round-{round}");
        let more = [("Idempotency-Key", key.as_str())];
        let orders =
            (0..9).map(|n| servers[n % 3].ask_on("POST", "/cart/items", Some(&cookie), &more, Some(MUG)));
        let answers = futures::future::join_all(orders).await;
        assert_eq!(answers.iter().filter(|answer| !replayed(answer)).count(), 1, "{answers:?}");
        assert!(answers.iter().all(|answer| told(answer) == told(&answers[0])), "{answers:?}");
        assert_eq!(answers[0].json()["count"], round);
    }
}

#[tokio::test]
async fn a_key_of_another_request_is_422() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let cookie = server.ask("GET", "/session", None, None).await.cookie().unwrap();
    let key = [("Idempotency-Key", "k")];
    let first = server.ask_on("PUT", "/session/a", Some(&cookie), &key, Some("1")).await;
    for (method, path, body) in [
        ("PUT", "/session/a", Some("2")),
        ("PUT", "/session/b", Some("1")),
        ("DELETE", "/session/a", None),
        ("POST", "/cart/items", Some(MUG)),
        ("DELETE", "/cart/items/mug", None),
    ] {
        let refused = server.ask_on(method, path, Some(&cookie), &key, body).await;
        assert_eq!(refused.status, 422, "{method} {path}");
        assert!(refused.json()["hint"].as_str().unwrap().contains("nothing was changed"), "{}", refused.body);
    }
    let after = server.ask("GET", "/session", Some(&cookie), None).await;
    assert_eq!((&after.json()["state"], after.header("etag")), (&json!({"a": 1}), first.header("etag")));
    // Another session has its own keys.
    assert_eq!(server.ask_on("PUT", "/session/a", None, &key, Some("2")).await.status, 201);
}

#[tokio::test]
async fn what_changed_nothing_leaves_no_receipt() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let cookie = server.ask("GET", "/session", None, None).await.cookie().unwrap();
    let key = [("Idempotency-Key", "k")];
    assert_eq!(server.ask_on("DELETE", "/session/a", Some(&cookie), &key, None).await.status, 404);
    let order = Some(r#"{"sku": "mug", "quantity": 0}"#);
    assert_eq!(server.ask_on("POST", "/cart/items", Some(&cookie), &key, order).await.status, 400);
    let unmet = [("Idempotency-Key", "k"), ("If-Match", "\"x\"")];
    assert_eq!(server.ask_on("PUT", "/session/a", Some(&cookie), &unmet, Some("1")).await.status, 412);
    let made = server.ask_on("PUT", "/session/a", Some(&cookie), &key, Some("1")).await;
    assert_eq!((made.status, replayed(&made)), (201, false));
}

#[tokio::test]
async fn a_change_that_was_made_has_met_its_preconditions() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let first = server.ask("PUT", "/session/a", None, Some("1")).await;
    let (cookie, tag) = (first.cookie().unwrap(), first.header("etag").unwrap().to_owned());
    let more = [("Idempotency-Key", "k"), ("If-Match", tag.as_str())];
    let made = server.ask_on("PUT", "/session/a", Some(&cookie), &more, Some("2")).await;
    assert_eq!(made.status, 200);
    let again = server.ask_on("PUT", "/session/a", Some(&cookie), &more, Some("2")).await;
    assert_eq!((told(&again), replayed(&again)), (told(&made), true), "not 412: it was this very request");
    let absent = [("Idempotency-Key", "new"), ("If-None-Match", "*")];
    for replay in [false, true] {
        let put = server.ask_on("PUT", "/session/b", Some(&cookie), &absent, Some("1")).await;
        assert_eq!((put.status, replayed(&put)), (201, replay));
    }
}

#[tokio::test]
async fn without_a_token_each_request_begins_a_session() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let key = [("Idempotency-Key", "k")];
    let first = server.ask_on("POST", "/cart/items", None, &key, Some(MUG)).await;
    let again = server.ask_on("POST", "/cart/items", None, &key, Some(MUG)).await;
    assert!(!replayed(&first) && !replayed(&again));
    assert_eq!((&again.json()["count"], &again.json()["version"]), (&json!(1), &json!(1)));
    assert_ne!(first.json()["session"], again.json()["session"]);
    // With the token of either, it is that one's request.
    for answer in [&first, &again] {
        let cookie = answer.cookie();
        let third = server.ask_on("POST", "/cart/items", cookie.as_deref(), &key, Some(MUG)).await;
        assert_eq!((told(&third), replayed(&third)), (told(answer), true));
    }
}

#[tokio::test]
async fn an_answer_that_is_too_large_to_keep_shows_the_session_as_it_is() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let large = format!("\"{}\"", "x".repeat(20_000));
    let cookie = server.ask("PUT", "/session/large", None, Some(&large)).await.cookie().unwrap();
    let key = [("Idempotency-Key", "k")];
    server.ask_on("PUT", "/session/a", Some(&cookie), &key, Some("1")).await;
    let now = server.ask("PUT", "/session/b", Some(&cookie), Some("2")).await;
    let again = server.ask_on("PUT", "/session/a", Some(&cookie), &key, Some("1")).await;
    assert_eq!((again.status, replayed(&again)), (201, true), "created it was");
    assert_eq!((&again.json(), again.header("etag")), (&now.json(), now.header("etag")));
    // A cart is remembered all the same: only it is shown.
    let key = [("Idempotency-Key", "cart")];
    let bought = server.ask_on("POST", "/cart/items", Some(&cookie), &key, Some(MUG)).await;
    server.ask("POST", "/cart/items", Some(&cookie), Some(MUG)).await;
    let again = server.ask_on("POST", "/cart/items", Some(&cookie), &key, Some(MUG)).await;
    assert_eq!((told(&again), replayed(&again)), (told(&bought), true));
}

#[tokio::test]
async fn receipts_are_bounded_and_take_nothing_from_the_session() {
    let limits = Limits { max_keys: 1, max_session_bytes: 40, ..Limits::default() };
    let shop = Shop::with(SledOptions { cache_bytes: 16 << 20, reserve_bytes: 0 }, limits);
    let server = shop.start(3, 1);
    let mut client = server.client().await;
    let cookie = client.ask("GET", "/session", None, None).await.cookie().unwrap();
    let put = async |client: &mut Client, n: u64| {
        let (key, value) = (format!("key-{n}"), n.to_string());
        let more = [("Idempotency-Key", key.as_str())];
        client.ask_on("PUT", "/session/n", Some(&cookie), &more, Some(&value)).await
    };
    for n in 0..100 {
        let answer = put(&mut client, n).await;
        assert!(answer.status < 300 && !replayed(&answer), "{answer:?}");
    }
    let session = shop.verify(&cookie).session;
    let stored = shop.store.load(session).await.unwrap().unwrap();
    assert_eq!(stored.receipts.len(), crate::session::receipts::MAX_RECEIPTS);
    let last = put(&mut client, 99).await;
    assert_eq!((replayed(&last), &last.json()["state"]["n"]), (true, &json!(99)));
    let oldest = put(&mut client, 100 - crate::session::receipts::MAX_RECEIPTS as u64).await;
    assert_eq!((replayed(&oldest), &oldest.json()["state"]["n"]), (true, &json!(68)));
    let forgotten = put(&mut client, 0).await;
    assert!(!replayed(&forgotten), "it is older than the receipts that are kept");
}

#[tokio::test]
async fn what_is_no_key_is_refused() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let cookie = server.ask("GET", "/session", None, None).await.cookie().unwrap();
    let long = "x".repeat(256);
    for key in ["", "\"\"", "a b", "\"a", &long] {
        let more = [("Idempotency-Key", key)];
        for (method, path, body) in [
            ("PUT", "/session/a", Some("1")),
            ("DELETE", "/session/a", None),
            ("POST", "/cart/items", Some(MUG)),
            ("DELETE", "/cart/items/mug", None),
        ] {
            let bad = server.ask_on(method, path, Some(&cookie), &more, body).await;
            assert_eq!(bad.status, 400, "{method} {path} {key}");
            assert!(bad.json()["hint"].as_str().unwrap().contains("255"), "{}", bad.body);
        }
    }
    assert_eq!(server.ask("GET", "/session", Some(&cookie), None).await.json()["version"], 0);
}
