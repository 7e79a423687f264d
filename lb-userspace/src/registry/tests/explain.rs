//! Where a token would lead, and why.

use super::*;

#[test]
fn explain_names_backend_reason_and_counters() {
    let mut fixture = Fixture::all_ready();
    fixture.apply(Change::ServerReady { slot: S1, epoch: 6 });
    fixture.up(S1);
    fixture.admin("web1", Admin::Ready);
    fixture.admin("web2", Admin::Maint);
    let taken_over = fixture.explain(&token(WEB2, 1));
    assert_eq!(taken_over.verdict, "redispatched");
    let substitute = taken_over.backend.clone().unwrap();
    assert!(["shop/s1", "shop/web1"].contains(&substitute.as_str()), "{substitute}");
    assert_eq!(
        taken_over.why,
        format!(
            "web2 holds the session, but is maint; {substitute} takes its place and reloads the session from the database"
        )
    );
    assert_eq!(taken_over.counters, ["redispatched"]);
    let hit = fixture.explain(&token(S1, 6));
    assert_eq!((hit.verdict.as_str(), hit.backend.unwrap().as_str()), ("hit", "shop/s1"));
    assert_eq!(hit.counters, ["affinity_hit"]);
    let stale = fixture.explain(&token(S1, 5));
    assert_eq!(
        (stale.verdict.as_str(), stale.counters.join(" ")),
        ("stale", "affinity_hit stale_instance".into())
    );
    assert!(stale.why.contains("in epoch 6, the token is from epoch 5"), "{}", stale.why);
    assert!(
        fixture.explain(&token(99, 1)).why.starts_with("no backend of this service has slot 99 any more; ")
    );
    assert!(
        fixture.explain(&token(BLOG1, 1)).why.starts_with("no backend of this service has slot 4"),
        "not of the service"
    );
}

#[test]
fn explain_tells_what_is_wrong_with_a_token() {
    let mut fixture = Fixture::all_ready();
    let text = |token: &Token, key: &SipKey| String::from_utf8(encode(&token.sign(key)).to_vec()).unwrap();
    let forged = text(&token(S1, 5), &[1, 1]);
    let told = fixture.registry.explain(&forged, Some("shop")).unwrap();
    assert_eq!((told.verdict.as_str(), told.token), ("new", None));
    assert_eq!(
        told.why,
        "token signature does not match: a new session begins, at a ready backend chosen by weight"
    );
    assert_eq!(told.counters, ["invalid_token", "new_session"]);
    let refused = fixture.registry.explain(&forged, None).unwrap_err();
    assert_eq!(refused.reason, "token signature does not match, so it names no service");
    let elsewhere = fixture.registry.explain(&text(&token(S1, 5), &KEY), Some("blog")).unwrap();
    assert_eq!(
        elsewhere.why,
        "the token is good for service shop alone: a new session begins, at a ready backend chosen by weight"
    );
    let old_key = text(&Token { key_id: 2, ..token(S1, 5) }, &KEY);
    assert!(
        fixture
            .registry
            .explain(&old_key, Some("shop"))
            .unwrap()
            .why
            .starts_with("token was signed with key 2")
    );
    for name in ["blog/web1", "b2"] {
        fixture.admin(name, Admin::Drain);
    }
    let nobody = fixture.registry.explain("x", Some("blog")).unwrap();
    assert_eq!(
        (nobody.verdict.as_str(), nobody.counters.join(" ")),
        ("unavailable", "invalid_token unavailable".into())
    );
}
