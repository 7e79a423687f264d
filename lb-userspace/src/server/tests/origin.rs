//! Who may change a session, and under which id.

use super::*;

#[tokio::test]
async fn other_sites_cannot_change_what_is_in_the_cart() {
    let shop = Shop::new();
    let server = shop.start(3, 1);
    let item = Some(r#"{"sku": "mug"}"#);
    let rows: [(&[(&str, &str)], u16); 14] = [
        (&[], 200),
        (&[("Content-Type", "Application/JSON; charset=utf-8")], 200),
        (&[("Content-Type", "text/plain")], 415),
        (&[("Content-Type", "application/jsonp")], 415),
        (&[("Content-Type", "application/json"), ("Content-Type", "text/plain")], 415),
        (&[("Origin", "http://shop")], 200),
        (&[("Origin", "https://SHOP")], 200),
        (&[("Origin", "http://shop:8080")], 403),
        (&[("Origin", "http://evil.shop")], 403),
        (&[("Origin", "null")], 403),
        (&[("Sec-Fetch-Site", "same-origin"), ("Origin", "http://before.the.proxy")], 200),
        (&[("Sec-Fetch-Site", "none")], 200),
        (&[("Sec-Fetch-Site", "same-site"), ("Origin", "http://shop")], 403),
        (&[("Sec-Fetch-Site", "cross-site")], 403),
    ];
    for (more, status) in rows {
        let answer = server.ask_on("POST", "/cart/items", None, more, item).await;
        assert_eq!(answer.status, status, "{more:?}: {}", answer.body);
        if status >= 400 {
            assert!(
                answer.json()["hint"].as_str().unwrap().contains("nothing was changed"),
                "{}",
                answer.body
            );
        }
    }
    let strange = [("Sec-Fetch-Site", "cross-site")];
    for (method, path) in [("PUT", "/session/a"), ("DELETE", "/session"), ("POST", "/renew")] {
        assert_eq!(
            server.ask_on(method, path, None, &strange, Some("1")).await.status,
            403,
            "{method} {path}"
        );
    }
    assert_eq!(server.ask_on("GET", "/cart", None, &strange, None).await.status, 200, "a link may lead here");
}

#[tokio::test]
async fn a_renewed_session_keeps_its_data_and_the_old_id_is_refused_everywhere() {
    let shop = Shop::new();
    let (a, b) = (shop.start(1, 1), shop.start(2, 1));
    assert_eq!(a.ask("POST", "/renew", None, None).await.status, 404);
    let planted = a.ask("PUT", "/session/n", None, Some("1")).await.cookie().unwrap();
    let stale = [("If-Match", "\"0000000000000000-1\"")];
    assert_eq!(b.ask_on("POST", "/renew", Some(&planted), &stale, None).await.status, 412);
    let renewed = b.ask("POST", "/renew", Some(&planted), None).await;
    assert_eq!((renewed.status, &renewed.json()["state"]), (200, &json!({"n": 1})));
    let cookie = renewed.cookie().unwrap();
    assert_ne!(shop.verify(&cookie).session, shop.verify(&planted).session);
    assert_eq!(shop.verify(&cookie).slot, 2);
    for server in [&a, &b] {
        assert_eq!(server.ask("GET", "/session/n", Some(&planted), None).await.status, 404);
        assert_eq!(server.ask("GET", "/session/n", Some(&cookie), None).await.body, "1");
    }
}
