use super::{EXAMPLE, MINIMAL, faults, parse};
use crate::config::{Affinity, Anchor, Balance, OnUnavailable, Place, Protocol};
use std::time::Duration;

/// The minimal configuration, of remote backends alone, with more lines in its service.
fn with(lines: &str) -> String {
    MINIMAL
        .replace("managed = true", "addr = \"192.0.2.9:8080\"")
        .replace("name = \"shop\"", &format!("name = \"shop\"\n{lines}"))
}

fn datagram(from: Anchor, bytes: u8) -> Place {
    Place::Datagram { from, bytes }
}

#[test]
fn every_rule_is_understood() {
    let idle = Duration::from_secs(30 * 60);
    let name = |name: &str| name.to_owned();
    let long = "x".repeat(31);
    let tcp = [
        ("{ kind = \"signed\", header = \"X-Session\" }", Affinity::Signed(Place::Header(name("X-Session")))),
        ("{ query = \"sid\" }", Affinity::Signed(Place::Query(name("sid")))),
        (
            "{ kind = \"hashed\", cookie = \"user\", sni = false }",
            Affinity::Hashed(Place::Cookie(name("user"))),
        ),
        ("{ kind = \"hashed\", sni = true }", Affinity::Hashed(Place::Sni)),
        (
            "{ kind = \"learned\", cookie = \"JSESSIONID\" }",
            Affinity::Learned { place: Place::Cookie(name("JSESSIONID")), idle },
        ),
        (
            "{ kind = \"learned\", cookie = \"PHPSESSID\", idle = \"5m\" }",
            Affinity::Learned { place: Place::Cookie(name("PHPSESSID")), idle: idle / 6 },
        ),
        (&format!("{{ cookie = \"{long}\" }}"), Affinity::Signed(Place::Cookie(long.clone()))),
        ("{ kind = \"source\" }", Affinity::Source { sni: false }),
        ("{ kind = \"none\" }", Affinity::None { sni: false }),
    ];
    let udp = [
        ("{ kind = \"signed\" }", Affinity::Signed(datagram(Anchor::Offset(4), 33))),
        ("{ encoding = \"text\", end = 0 }", Affinity::Signed(datagram(Anchor::End(0), 44))),
        (
            "{ kind = \"hashed\", marker = \"sid=\", bytes = 64 }",
            Affinity::Hashed(datagram(Anchor::Marker(b"sid=".to_vec()), 64)),
        ),
        (
            "{ kind = \"learned\", marker = \"hex:00 ff\", bytes = 1, idle = \"30m\" }",
            Affinity::Learned { place: datagram(Anchor::Marker(vec![0, 255]), 1), idle },
        ),
        (
            "{ kind = \"hashed\", offset = 255, bytes = 8 }",
            Affinity::Hashed(datagram(Anchor::Offset(255), 8)),
        ),
        ("{ kind = \"source\" }", Affinity::Source { sni: false }),
    ];
    let tcp = tcp.into_iter().map(|row| ("tcp", row));
    for (protocol, (text, expected)) in tcp.chain(udp.into_iter().map(|row| ("udp", row))) {
        let config = parse(&with(&format!("protocol = \"{protocol}\"\naffinity = {text}")));
        let service = config.unwrap_or_else(|error| panic!("{error}")).services.remove(0);
        assert_eq!((service.protocol.name(), service.affinity), (protocol, expected), "{text}");
    }
}

#[test]
fn the_rest_of_a_service_is_understood() {
    let service =
        |lines: &str| parse(&with(lines)).unwrap_or_else(|error| panic!("{error}")).services.remove(0);
    let plain = service("");
    assert_eq!((plain.balance, plain.on_unavailable), (Balance::Maglev, OnUnavailable::Redispatch));
    let strict = service("balance = \"least\"\non_unavailable = \"reject\"");
    assert_eq!((strict.balance, strict.on_unavailable), (Balance::Least, OnUnavailable::Reject));
    let probed = service("protocol = \"udp\"\nhealth = { send = \"hex:01\", expect = \"ok\" }");
    assert_eq!(probed.health.send.as_deref(), Some(&[1][..]));
    assert_eq!(probed.health.expect.as_deref(), Some(&b"ok"[..]));
    // A UDP service of managed servers needs no rule: it is the one that they have.
    let managed = MINIMAL.replace("vip =", "protocol = \"udp\"\nvip =");
    let managed = parse(&managed).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(managed.services[0].affinity, Affinity::Signed(datagram(Anchor::Offset(4), 33)));
    assert_eq!(usize::from(Affinity::TOKEN_AT), crate::server::datagram::TOKEN_AT);
}

#[test]
fn tcp_and_udp_may_share_an_address_and_port() {
    let second = "[[service]]\nname = \"dns\"\nprotocol = \"udp\"\nvip = \"192.0.2.1:80\"\n\
                  backend = [{ name = \"a\", addr = \"192.0.2.10:8080\" }]\n";
    let config = parse(&format!("{MINIMAL}{second}")).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.services[1].protocol, Protocol::Udp);
    let third = second.replace("dns", "dns2");
    let reasons: Vec<_> =
        faults(&format!("{MINIMAL}{second}{third}")).into_iter().map(|fault| fault.reason).collect();
    assert_eq!(
        reasons,
        [
            "the vip of service `dns2` is at 192.0.2.1:80, where the vip of service `dns` is already",
            "backend `dns2/a` is at 192.0.2.10:8080, where backend `dns/a` is already"
        ]
    );
}

#[test]
fn the_rules_of_the_example_are_right() {
    let examples = EXAMPLE.lines().filter_map(|line| line.strip_prefix("# affinity = "));
    // That of QUIC has a test of its own: its backends need more.
    let examples: Vec<_> = examples.filter(|rule| !rule.contains("quic")).collect();
    assert_eq!(examples.len(), 9);
    for rule in examples {
        let udp = ["offset", "end", "marker"].iter().any(|place| rule.contains(place));
        let protocol = if udp { "udp" } else { "tcp" };
        let lines = format!("protocol = \"{protocol}\"\naffinity = {rule}");
        // Attributes belong to the cookie of servers that lbd runs.
        let text = match rule.contains("secure") {
            true => MINIMAL.replace("name = \"shop\"", &format!("name = \"shop\"\n{lines}")),
            false => with(&lines),
        };
        if let Err(error) = parse(&text) {
            panic!("{error}");
        }
    }
}

#[test]
fn what_cannot_be_is_told_with_what_to_do() {
    // Column, reason, help.
    type Told<'a> = &'a [(usize, &'a str, &'a str)];
    const TCP: &str = "affinity = ";
    const UDP: &str = "protocol = \"udp\"; affinity = ";
    let rows: &[(&str, &str, Told<'_>)] = &[
        (
            TCP,
            "{ cookie = \"a\", header = \"b\" }",
            &[(
                37,
                "`cookie` and `header` both say where the key stands",
                "a key stands in one place: leave one of them away",
            )],
        ),
        (
            TCP,
            "{ kind = \"hashed\" }",
            &[(
                12,
                "affinity `hashed` does not say where its key stands",
                "add one of `cookie`, `header`, `query` or `sni`",
            )],
        ),
        (
            TCP,
            "{ kind = \"learned\" }",
            &[(
                12,
                "affinity `learned` does not say where its key stands",
                "add cookie = \"...\": the name of the cookie that backends set",
            )],
        ),
        (
            TCP,
            "{ kind = \"learned\", header = \"X\" }",
            &[(
                41,
                "affinity `learned` looks at no `header`: backends hand out cookies",
                "write cookie = \"...\", or use `hashed`",
            )],
        ),
        (
            TCP,
            "{ sni = true }",
            &[(
                20,
                "a server's name is nothing that affinity `signed` could go by",
                "write kind = \"hashed\", `source` or `none`",
            )],
        ),
        (
            TCP,
            "{ offset = 4 }",
            &[(
                23,
                "`offset` is a place in a datagram, and this service speaks tcp",
                "write `cookie`, `header`, `query` or `sni`, or protocol = \"udp\"",
            )],
        ),
        (
            TCP,
            "{ kind = \"source\", idle = \"1m\", end = 1 }",
            &[
                (38, "affinity `source` looks at no idle", "leave `idle` away, or use `signed`"),
                (50, "affinity `source` looks at no end", "leave `end` away, or use `signed`"),
            ],
        ),
        (
            TCP,
            "{ cookie = \"a\", encoding = \"raw\", bytes = 4, idle = \"1m\" }",
            &[
                (
                    39,
                    "`encoding` has no meaning here",
                    "it belongs to affinity `signed` of a udp service: raw, or as text",
                ),
                (
                    54,
                    "`bytes` has no meaning here",
                    "it belongs to affinity `hashed` or `learned` of a udp service: how long the key is",
                ),
                (
                    64,
                    "`idle` has no meaning here",
                    "it belongs to affinity `learned`: how long a key is remembered",
                ),
            ],
        ),
        (
            TCP,
            "{ header = \"a-header-field-of-31-characters\" }",
            &[(
                23,
                "the header's name `a-header-field-of-31-characters` has 31 characters",
                "use 1 to 30: the program looks for it in one step",
            )],
        ),
        (
            TCP,
            "{ header = \"X:\" }",
            &[(
                23,
                "the header's name `X:` contains ':'",
                "a field's name has no spaces, separators or letters outside ASCII (RFC 9110 section 5.6.2)",
            )],
        ),
        (
            TCP,
            "{ query = \"a&b\" }",
            &[(
                22,
                "the query's name `a&b` contains '&'",
                "write the parameter's name as it stands in the URL, percent-encoded where that is",
            )],
        ),
        (
            UDP,
            "{ cookie = \"lb\" }",
            &[(
                23,
                "`cookie` stands in no datagram",
                "write `offset`, `end` or `marker`, or protocol = \"tcp\"",
            )],
        ),
        (
            UDP,
            "{ kind = \"learned\", offset = 1 }",
            &[(12, "affinity `learned` does not say how long the key is", "add bytes = 1 to 64")],
        ),
        (
            UDP,
            "{ kind = \"hashed\", bytes = 4 }",
            &[(
                12,
                "affinity `hashed` does not say where its key stands",
                "add one of `offset`, `end` or `marker`, and `bytes`",
            )],
        ),
        (
            UDP,
            "{ kind = \"hashed\", end = 256, bytes = 65 }",
            &[
                (37, "`end` is 256", "it must be from 0 to 255; without it, it is 0"),
                (50, "`bytes` is 65", "it must be from 1 to 64"),
            ],
        ),
        (
            UDP,
            "{ marker = \"too long!\", encoding = \"base64\" }",
            &[
                (23, "the marker has 9 bytes", "write 1 to 8 bytes, as text or like hex:0a0b"),
                (47, "`base64` is no encoding of a token", "known here: raw, text"),
            ],
        ),
        (
            UDP,
            "{ marker = \"hex:0\" }",
            &[(
                23,
                "the marker `hex:0` is no hexadecimal number of whole bytes",
                "write 1 to 8 bytes, as text or like hex:0a0b",
            )],
        ),
    ];
    for (before, rule, expected) in rows {
        // The rule is on a line of its own.
        let found = faults(&with(&format!("{}{rule}", before.replace("; ", "\n"))));
        let told: Vec<_> = found.iter().map(|f| (f.column, f.reason.as_str(), f.help.as_str())).collect();
        assert_eq!(told, *expected, "{before}{rule}");
        assert!(found.iter().all(|fault| fault.text.ends_with(rule)), "{rule}");
    }
}

#[test]
fn what_does_not_go_together_is_told() {
    let rows: &[(&str, &[(&str, &str)])] = &[
        (
            "protocol = \"udp\"\nwindow_scale = 7\nmax_tries = 3\nmax_pending = 9\nreplay = true",
            &[
                ("a udp service has no `window_scale`", "leave it away: every datagram is steered by itself"),
                ("a udp service has no `max_tries`", "leave it away: every datagram is steered by itself"),
                ("a udp service has no `max_pending`", "leave it away: every datagram is steered by itself"),
                ("a udp service has no `replay`", "leave it away: every datagram is steered by itself"),
            ],
        ),
        ("balance = \"lest\"", &[("`lest` is no way to balance", "did you mean `least`?")]),
        (
            "balance = \"least\"\naffinity = { kind = \"source\" }",
            &[(
                "affinity `source` leaves `least` nothing to choose",
                "leave `balance` away: the hash decides, so that the same comes home",
            )],
        ),
        (
            "on_unavailable = \"reject\"\naffinity = { kind = \"none\" }",
            &[(
                "affinity `none` does not know whose a session is, so none is ever rejected",
                "leave `on_unavailable` away, or use affinity `signed` or `learned`",
            )],
        ),
        (
            "on_unavailable = \"refuse\"",
            &[("`refuse` is nothing to do when a backend is unavailable", "known here: redispatch, reject")],
        ),
        (
            "health = { send = \"ping\" }",
            &[("a tcp service has no `send`", "leave it away: a backend is up when it takes a connection")],
        ),
        (
            "protocol = \"udp\"\nhealth = { expect = \"pong\" }",
            &[(
                "`expect` without `send`",
                "add send = \"...\": a backend that is asked nothing answers nothing",
            )],
        ),
        (
            "protocol = \"udp\"\nhealth = { send = \"hex:x\" }",
            &[(
                "`send` \"hex:x\" is no hexadecimal number of whole bytes",
                "write text, or two digits for each byte, like hex:0a0b",
            )],
        ),
        ("protocol = \"udp\"\nhealth = { send = \"\" }", &[("`send` has 0 bytes", "write 1 to 512 bytes")]),
    ];
    for (lines, expected) in rows {
        let found = faults(&with(lines));
        let told: Vec<_> = found.iter().map(|f| (f.reason.as_str(), f.help.as_str())).collect();
        assert_eq!(told, *expected, "{lines}");
    }
    let managed = |lines: &str| {
        let found = faults(&MINIMAL.replace("vip =", &format!("{lines}\nvip =")));
        found.into_iter().map(|f| (f.line, f.reason, f.help)).collect::<Vec<_>>()
    };
    assert_eq!(
        managed("affinity = { header = \"X-S\" }"),
        [(
            6,
            "managed servers do not look for their token in header X-S".to_owned(),
            "managed servers have it in a cookie: write cookie = \"lb\"".to_owned()
        )]
    );
    let at = "managed servers have it raw at offset 4 (docs/datagram.md): write offset = 4";
    assert_eq!(
        managed("protocol = \"udp\"\naffinity = { offset = 5 }"),
        [(7, "managed servers do not look for their token in offset 5".to_owned(), at.to_owned())]
    );
    assert_eq!(
        managed("protocol = \"udp\"\naffinity = { encoding = \"text\" }"),
        [(7, "managed servers do not look for their token in offset 4".to_owned(), at.to_owned())]
    );
}

#[test]
fn a_trace_buffer_is_a_power_of_two() {
    let with = |bytes: &str| MINIMAL.replace("[lbd]", &format!("[limits]\ntrace_bytes = {bytes}\n[lbd]"));
    assert_eq!(parse(&with("\"1 MiB\"")).unwrap().limits.trace_bytes, 1 << 20);
    let told = |bytes: &str| {
        let found = faults(&with(bytes));
        found.into_iter().map(|f| (f.line, f.reason, f.help)).collect::<Vec<_>>()
    };
    assert_eq!(
        told("5000"),
        [(
            3,
            "`trace_bytes` is 5000 bytes, which is not a power of two".to_owned(),
            "the next one is 8 KiB".to_owned()
        )]
    );
    let range = "it must be from 4096 to 1073741824 bytes".to_owned();
    assert_eq!(told("2048"), [(3, "`trace_bytes` is 2048 bytes".to_owned(), range)]);
}
