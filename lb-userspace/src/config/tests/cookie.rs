use super::{MINIMAL, faults, parse};

/// A service with a server that lbd runs and this rule.
fn managed(rule: &str) -> String {
    MINIMAL.replace("name = \"shop\"", &format!("name = \"shop\"\naffinity = {rule}"))
}

fn set(rule: &str) -> String {
    let config = parse(&managed(rule)).unwrap_or_else(|error| panic!("{error}"));
    config.services[0].cookie.set("T").unwrap().to_str().unwrap().to_owned()
}

#[test]
fn the_cookie_of_managed_servers_is_as_it_was_told() {
    let long = "x".repeat(31);
    for (rule, expected) in [
        ("{ kind = \"signed\" }", "lb=T; Path=/; HttpOnly; SameSite=Lax".to_owned()),
        ("{ kind = \"source\", secure = true }", "lb=T; Path=/; Secure; HttpOnly; SameSite=Lax".to_owned()),
        (
            "{ cookie = \"__Host-lb-session\", secure = true, same_site = \"strict\" }",
            "__Host-lb-session=T; Path=/; Secure; HttpOnly; SameSite=Strict".to_owned(),
        ),
        (
            "{ cookie = \"s\", domain = \"example.org\", path = \"/shop\", max_age = \"1h\" }",
            "s=T; Path=/shop; Domain=example.org; Max-Age=3600; HttpOnly; SameSite=Lax".to_owned(),
        ),
        (
            "{ cookie = \"s\", same_site = \"none\", secure = true }",
            "s=T; Path=/; Secure; HttpOnly; SameSite=None".to_owned(),
        ),
        (&format!("{{ cookie = \"{long}\" }}"), format!("{long}=T; Path=/; HttpOnly; SameSite=Lax")),
    ] {
        assert_eq!(set(rule), expected, "{rule}");
    }
}

#[test]
fn a_cookie_that_browsers_refuse_is_told_with_line_and_reason() {
    for (rule, column, reason) in [
        ("{ cookie = \"__Host-lb-session\" }", 23, "named __Host-lb-session that is not Secure"),
        ("{ cookie = \"__secure-lb\" }", 23, "named __secure-lb that is not Secure"),
        ("{ cookie = \"__Host-lb\", secure = true, path = \"/a\" }", 58, "with another path"),
        ("{ cookie = \"__Host-lb\", secure = true, domain = \"a.org\" }", 60, "with a domain"),
        ("{ same_site = \"none\" }", 26, "SameSite=None that is not Secure"),
        ("{ same_site = \"sometimes\" }", 26, "`sometimes` is no value of `same_site`"),
        ("{ path = \"shop\" }", 21, "cannot be the path"),
        ("{ path = \"/; Secure\" }", 21, "cannot be the path"),
        ("{ domain = \"a b\" }", 23, "cannot be the domain"),
        ("{ max_age = \"401d\" }", 24, "`max_age` is 401d"),
        ("{ max_age = \"500ms\" }", 24, "`max_age` is 500ms"),
        ("{ secure = \"yes\" }", 23, "must be true or false"),
    ] {
        let found = faults(&managed(rule));
        let [fault] = &found[..] else { panic!("{rule}: {found:?}") };
        assert!(fault.reason.contains(reason), "{rule}: {}", fault.reason);
        assert_eq!((fault.line, fault.column, fault.help.is_empty()), (6, column, false), "{rule}");
    }
}

#[test]
fn attributes_of_a_cookie_that_lbd_does_not_set_are_refused() {
    let rule = "{ cookie = \"s\", secure = true, domain = \"a.org\", path = \"/\", max_age = \"1h\", same_site = \"lax\" }";
    let remote = managed(rule).replace("managed = true", "addr = \"192.0.2.9:8080\"");
    let reasons: Vec<_> = faults(&remote).into_iter().map(|fault| fault.reason).collect();
    let expected = ["secure", "domain", "path", "max_age", "same_site"];
    assert_eq!(reasons, expected.map(|key| format!("`{key}` has no meaning here")));
    // A backend elsewhere sets its own cookie, with the attributes that such a name needs.
    let own = managed("{ cookie = \"__Host-app\" }").replace("managed = true", "addr = \"192.0.2.9:8080\"");
    assert!(parse(&own).is_ok());
}
