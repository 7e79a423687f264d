//! Entity tags and preconditions (RFC 9110 §8.8.3, §13).

use super::*;

impl Answer {
    fn etag(&self) -> &str {
        let etag = self.header("etag").unwrap_or_else(|| panic!("no ETag: {self:?}"));
        assert!(etag.starts_with('"') && etag.ends_with('"') && etag.len() > 2, "not strong: {etag}");
        etag
    }
}

#[tokio::test]
async fn every_answer_about_a_session_has_the_tag_of_its_state() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let mut client = server.client().await;
    let first = client.ask("PUT", "/session/a", None, Some("1")).await;
    let cookie = first.cookie().unwrap();
    let mut tags = vec![first.etag().to_owned()];
    for (method, path, body) in [
        ("PUT", "/session/a", Some("1")),
        ("PUT", "/session/b", Some("2")),
        ("DELETE", "/session/b", None),
        ("POST", "/cart/items", Some(r#"{"sku": "mug"}"#)),
        ("DELETE", "/cart/items/mug", None),
    ] {
        let written = client.ask(method, path, Some(&cookie), body).await;
        assert!(!tags.contains(&written.etag().to_owned()), "{method} {path} is a new version");
        for view in ["/session", "/session/a", "/cart"] {
            for method in ["GET", "HEAD"] {
                let seen = client.ask(method, view, Some(&cookie), None).await;
                assert_eq!((seen.status, seen.etag()), (200, written.etag()), "{method} {view}");
            }
        }
        tags.push(written.etag().to_owned());
    }
    // The same state and version, and yet another session.
    let other = client.ask("PUT", "/session/a", None, Some("1")).await;
    assert_eq!((other.json()["version"].as_u64(), other.json()["state"]["a"].as_u64()), (Some(1), Some(1)));
    assert!(!tags.contains(&other.etag().to_owned()));
    // Restarted: another instance and another token, the same state.
    let again = shop.start(3, 2).ask("GET", "/session", Some(&cookie), None).await;
    assert_eq!((again.header("lb-source"), again.etag()), (Some("database"), tags.last().unwrap().as_str()));
    for path in ["/", "/healthz", "/nowhere"] {
        assert_eq!(client.ask("GET", path, Some(&cookie), None).await.header("etag"), None, "{path}");
    }
}

#[tokio::test]
async fn a_client_that_has_it_gets_304_and_what_else_a_200_would_tell() {
    let shop = Shop::new();
    let (server, other) = (shop.start(3, 1), shop.start(4, 1));
    let mut client = server.client().await;
    let first = client.ask("PUT", "/session/a", None, Some("[1, 2]")).await;
    let (cookie, tag) = (first.cookie().unwrap(), first.etag().to_owned());
    let listed = format!("\"x\", W/{tag}");
    for view in ["/session", "/session/a", "/cart"] {
        for (method, tags) in [("GET", tag.as_str()), ("HEAD", &tag), ("GET", &listed), ("GET", "*")] {
            let same = client.ask_on(method, view, Some(&cookie), &[("If-None-Match", tags)], None).await;
            assert_eq!((same.status, same.etag(), same.cookie()), (304, tag.as_str(), None), "{view}");
            assert_eq!(same.origin(), (Some("s3"), Some("1"), Some("cache")));
            assert_eq!((same.header("cache-control"), same.header("content-type")), (Some("no-store"), None));
            assert_eq!(same.header("content-length"), None, "RFC 9110 §8.6: that of the 200 or none");
        }
    }
    // A server that takes it over says so, and gives its token.
    let moved = other.ask_on("GET", "/session", Some(&cookie), &[("If-None-Match", &tag)], None).await;
    assert_eq!(
        (moved.status, moved.header("lb-source"), moved.etag()),
        (304, Some("database"), tag.as_str())
    );
    assert_eq!(shop.verify(&moved.cookie().unwrap()).slot, 4);
    // Another version, or another session's: the whole answer.
    let changed = client.ask("PUT", "/session/a", Some(&cookie), Some("3")).await;
    let stranger = client.ask("GET", "/session", None, None).await;
    for old in [&tag, stranger.etag()] {
        let fresh = client.ask_on("GET", "/session/a", Some(&cookie), &[("If-None-Match", old)], None).await;
        assert_eq!((fresh.status, fresh.body.as_str(), fresh.etag()), (200, "3", changed.etag()));
    }
    // Nothing is there to match, whatever is asked.
    let new = client.ask_on("GET", "/session", None, &[("If-None-Match", "*")], None).await;
    assert_eq!((new.status, new.header("lb-source")), (200, Some("new")));
    let absent = client.ask_on("GET", "/session/b", Some(&cookie), &[("If-None-Match", "*")], None).await;
    assert_eq!(absent.status, 404);
}

#[tokio::test]
async fn the_value_of_a_key_is_a_resource_of_its_own() {
    let shop = Shop::new();
    let (server, other) = (shop.start(3, 1), shop.start(4, 1));
    let text = r#"{"n": 12345678901234567890.10,  "s": "ä"}"#;
    let created = server.ask("PUT", "/session/a%2Fb%20c", None, Some(text)).await;
    assert_eq!(created.status, 201);
    let cookie = created.cookie().unwrap();
    let found = server.ask("GET", "/session/a%2Fb%20c", Some(&cookie), None).await;
    assert_eq!((found.status, found.body.as_str(), found.cookie()), (200, text, None));
    assert_eq!(found.header("content-type"), Some("application/json"));
    assert_eq!(server.ask("PUT", "/session/a%2Fb%20c", Some(&cookie), Some("1")).await.status, 200);
    // A key that is not there: the session is told of all the same, and taken over.
    let absent = other.ask("GET", "/session/a", Some(&cookie), None).await;
    assert_eq!(
        (absent.status, absent.header("lb-source"), absent.header("etag")),
        (404, Some("database"), None)
    );
    assert_eq!(shop.verify(&absent.cookie().unwrap()).slot, 4);
    // White space around it is not kept, so the tag is not one of what was sent.
    let spaced = server.ask("PUT", "/session/a", Some(&cookie), Some(" 1\n")).await;
    assert_eq!((spaced.status, spaced.header("etag")), (201, None));
    assert_eq!(server.ask("GET", "/session/a", Some(&cookie), None).await.body, "1");
}

#[tokio::test]
async fn a_write_that_is_based_on_another_version_is_412_and_changes_nothing() {
    let shop = Shop::new();
    let (server, other) = (shop.start(3, 1), shop.start(4, 1));
    let mut client = server.client().await;
    let first = client.ask("PUT", "/session/a", None, Some("1")).await;
    let (cookie, old) = (first.cookie().unwrap(), first.etag().to_owned());
    let now = client.ask("PUT", "/session/a", Some(&cookie), Some("2")).await.etag().to_owned();
    let weak = format!("W/{now}");
    for tags in [old.as_str(), weak.as_str(), "\"x\"", "\"\""] {
        for (method, path, body) in [
            ("PUT", "/session/a", Some("3")),
            ("PUT", "/session/new", Some("3")),
            ("DELETE", "/session/a", None),
            ("DELETE", "/session", None),
            ("POST", "/cart/items", Some(r#"{"sku": "mug"}"#)),
            // Not a bad request: conditions come first.
            ("POST", "/cart/items", Some(r#"{"sku": "mug", "quantity": 0}"#)),
            ("GET", "/session", None),
            ("GET", "/session/a", None),
            ("GET", "/cart", None),
        ] {
            let refused = client.ask_on(method, path, Some(&cookie), &[("If-Match", tags)], body).await;
            assert_eq!((refused.status, refused.etag()), (412, now.as_str()), "{method} {path} {tags}");
            assert!(refused.json()["hint"].as_str().unwrap().contains("nothing was changed"));
            assert_eq!(refused.origin(), (Some("s3"), Some("1"), Some("cache")));
        }
    }
    let after = client.ask("GET", "/session", Some(&cookie), None).await;
    assert_eq!((&after.json()["state"], after.etag()), (&json!({"a": 2}), now.as_str()));
    // What is not there stays 404, RFC 9110 §13.2.1.
    for path in ["/session/none", "/cart/items/none"] {
        let absent = client.ask_on("DELETE", path, Some(&cookie), &[("If-Match", &old)], None).await;
        assert_eq!(absent.status, 404, "{path}");
    }
    // The other server has to ask the database; its answer brings its token.
    let put = other.ask_on("PUT", "/session/a", Some(&cookie), &[("If-Match", &old)], Some("3")).await;
    assert_eq!((put.status, put.etag(), put.header("lb-source")), (412, now.as_str(), Some("database")));
    assert_eq!(shop.verify(&put.cookie().unwrap()).slot, 4);
    // One of several is enough, and then it is another version.
    let listed = format!("{old}, {now}");
    let made = client.ask_on("PUT", "/session/a", Some(&cookie), &[("If-Match", &listed)], Some("3")).await;
    assert_eq!((made.status, &made.json()["state"]), (200, &json!({"a": 3})));
    assert_ne!(made.etag(), now);
    let ended = made.etag().to_owned();
    let end = client.ask_on("DELETE", "/session", Some(&cookie), &[("If-Match", &ended)], None).await;
    assert_eq!((end.status, end.json()), (200, json!({"ended": true})));
}

#[tokio::test]
async fn a_star_asks_whether_the_key_is_there() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let mut client = server.client().await;
    let (there, absent) = ([("If-Match", "*")], [("If-None-Match", "*")]);
    let refused = client.ask_on("PUT", "/session/a", None, &there, Some("1")).await;
    assert_eq!((refused.status, refused.cookie(), refused.header("etag")), (412, None, None));
    assert_eq!(shop.store.count().await.unwrap(), 0, "a request that is refused begins no session");
    let first = client.ask_on("PUT", "/session/a", None, &absent, Some("1")).await;
    assert_eq!(first.status, 201);
    let cookie = first.cookie().unwrap();
    for (path, more, status) in [
        ("/session/a", absent, 412),
        ("/session/a", there, 200),
        ("/session/b", there, 412),
        ("/session/b", absent, 201),
        ("/session/b", absent, 412),
    ] {
        let answer = client.ask_on("PUT", path, Some(&cookie), &more, Some("2")).await;
        assert_eq!(answer.status, status, "{path} {more:?}");
        answer.etag();
    }
    // The cart is there as long as the session is.
    let order = Some(r#"{"sku": "mug"}"#);
    assert_eq!(client.ask_on("POST", "/cart/items", Some(&cookie), &absent, order).await.status, 412);
    assert_eq!(client.ask_on("POST", "/cart/items", Some(&cookie), &there, order).await.status, 200);
    assert_eq!(client.ask_on("POST", "/cart/items", None, &there, order).await.status, 412);
    assert_eq!(client.ask_on("DELETE", "/session", None, &there, None).await.status, 412);
    assert_eq!(client.ask_on("GET", "/session", None, &there, None).await.status, 412);
    assert_eq!(shop.store.count().await.unwrap(), 1);
}

#[tokio::test]
async fn of_writers_with_the_same_tag_one_wins() {
    let shop = Shop::new();
    let servers = [shop.start(3, 1), shop.start(4, 1), shop.start(5, 1)];
    let first = servers[0].ask("PUT", "/session/n", None, Some("0")).await;
    let (cookie, mut tag) = (first.cookie().unwrap(), first.etag().to_owned());
    for round in 0..10 {
        let writes = (0..9).map(|n| {
            let (server, cookie, tag) = (&servers[n % 3], &cookie, &tag);
            async move {
                let value = (round * 10 + n).to_string();
                server.ask_on("PUT", "/session/n", Some(cookie), &[("If-Match", tag)], Some(&value)).await
            }
        });
        let answers = futures::future::join_all(writes).await;
        let won: Vec<_> = answers.iter().filter(|answer| answer.status == 200).collect();
        assert_eq!((won.len(), answers.iter().filter(|a| a.status == 412).count()), (1, 8), "{answers:?}");
        let after = servers[0].ask("GET", "/session", Some(&cookie), None).await;
        assert_eq!((&after.json()["state"], after.etag()), (&won[0].json()["state"], won[0].etag()));
        tag = after.etag().to_owned();
    }
}

#[tokio::test]
async fn what_is_no_list_of_tags_is_refused() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let mut client = server.client().await;
    let first = client.ask("PUT", "/session/a", None, Some("1")).await;
    let (cookie, tag) = (first.cookie().unwrap(), first.etag().to_owned());
    let (bare, open) = (tag.trim_matches('"').to_owned(), tag.trim_end_matches('"').to_owned());
    for header in ["If-Match", "If-None-Match"] {
        for tags in [bare.as_str(), &open, "", "*, *", &format!("{tag}{tag}"), &format!("w/{tag}")] {
            for (method, path, body) in [
                ("GET", "/session", None),
                ("GET", "/session/a", None),
                ("GET", "/cart", None),
                ("PUT", "/session/a", Some("2")),
                ("DELETE", "/session/a", None),
                ("DELETE", "/session", None),
                ("POST", "/cart/items", Some(r#"{"sku": "mug"}"#)),
                ("DELETE", "/cart/items/mug", None),
            ] {
                let bad = client.ask_on(method, path, Some(&cookie), &[(header, tags)], body).await;
                assert_eq!(bad.status, 400, "{method} {path} {header}: {tags}");
                assert!(bad.json()["hint"].as_str().unwrap().contains("quotes included"), "{}", bad.body);
            }
        }
    }
    assert_eq!(client.ask("GET", "/session", Some(&cookie), None).await.etag(), tag);
}
