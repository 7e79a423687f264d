use super::{MINIMAL, faults, parse};
use crate::config::{Affinity, Limits, Place, ServerName, Service};

/// Two backends of a service with that affinity, each with further keys.
fn with(affinity: &str, keys: [&str; 2]) -> String {
    let [a, b] = keys;
    let backends = format!(
        "addr = \"192.0.2.9:443\"\n{a}\n[[service.backend]]\nname = \"b\"\naddr = \"192.0.2.10:443\"\n{b}\n"
    );
    MINIMAL
        .replace("name = \"shop\"", &format!("name = \"shop\"\naffinity = {affinity}"))
        .replace("managed = true\n", &backends)
}

fn service(affinity: &str, keys: [&str; 2]) -> Service {
    parse(&with(affinity, keys)).unwrap_or_else(|error| panic!("{error}")).services.remove(0)
}

const HASHED: &str = "{ kind = \"hashed\", sni = true }";

#[test]
fn names_are_understood() {
    for (affinity, expected) in [
        (HASHED, Affinity::Hashed(Place::Sni)),
        ("{ kind = \"source\", sni = true }", Affinity::Source { sni: true }),
        ("{ kind = \"none\", sni = true }", Affinity::None { sni: true }),
    ] {
        let named = service(affinity, ["sni = [\"Shop.example.org\", \"*.EXAMPLE.net\"]", ""]);
        assert_eq!((&named.affinity, named.affinity.place()), (&expected, Some(&Place::Sni)));
        let exact = ServerName::Exact("shop.example.org".into());
        assert_eq!(named.backends[0].sni, [exact, ServerName::Wildcard("example.net".into())]);
        assert!(named.backends[1].sni.is_empty());
        assert_eq!(named.affinity.describe(), format!("{} (sni)", named.affinity.kind()));
    }
    assert_eq!(
        service("{ kind = \"source\", sni = false }", ["", ""]).affinity,
        Affinity::Source { sni: false }
    );
    assert!(parse(&with("{ kind = \"none\", sni = true }\nbalance = \"least\"", ["", ""])).is_ok());
}

#[test]
fn backends_of_the_same_names_are_a_pool() {
    let pools = |a: &str, b: &str| {
        let pools = service(HASHED, [&format!("sni = {a}"), &format!("sni = {b}")]).pools();
        pools
            .into_iter()
            .map(|pool| {
                let names: Vec<_> = pool.names.iter().map(ToString::to_string).collect();
                (names.join(" "), pool.backends)
            })
            .collect::<Vec<_>>()
    };
    let row = |names: &str, backends: &[usize]| (names.to_owned(), backends.to_vec());
    assert_eq!(pools("[\"b.x\", \"a.x\"]", "[\"A.X\", \"b.x\"]"), [row("a.x b.x", &[0, 1])]);
    assert_eq!(
        pools("[\"a.x\", \"*.x\"]", "[\"*.x\", \"c.x\"]"),
        [row("a.x", &[0]), row("*.x", &[0, 1]), row("c.x", &[1])]
    );
    assert_eq!(pools("[\"x\"]", "[\"*.x\"]"), [row("x", &[0]), row("*.x", &[1])]);
}

#[test]
fn a_name_is_what_a_client_can_ask_for() {
    for (text, name) in [
        ("shop.example.org", "shop.example.org"),
        ("XN--Mnchen-3ya.DE", "xn--mnchen-3ya.de"),
        ("*.a.b", "*.a.b"),
        ("_dns.1.local", "_dns.1.local"),
        ("localhost", "localhost"),
    ] {
        assert_eq!(ServerName::parse(text).unwrap().to_string(), name);
    }
    let (label, long) = ("x".repeat(64), vec!["x".repeat(63); 4].join("."));
    let deep = format!("*.{}", ["x"; 16].join("."));
    for (text, reason) in [
        ("", "is empty"),
        ("*", "is every name"),
        ("*.", "is empty"),
        ("a.*.org", "contains '*'"),
        ("*a.org", "contains '*'"),
        ("münchen.de", "contains 'ü'"),
        ("https://a.org", "contains ':'"),
        ("a.org:443", "contains ':'"),
        ("a b", "contains ' '"),
        ("192.0.2.1", "is an address"),
        ("a.org.", "ends in a dot"),
        ("a..org", "has an empty label"),
        (".org", "has an empty label"),
        (&label, "is too long"),
        (&long, "is too long"),
        (&deep, "has too many labels"),
    ] {
        let (told, help) = ServerName::parse(text).unwrap_err();
        assert!(
            told == format!("the server's name `{text}` {reason}") || told.contains(reason),
            "{text}: {told}"
        );
        assert!(!help.is_empty());
    }
    let matches = |name: &str, asked: &str| ServerName::parse(name).unwrap().matches(asked);
    for (name, asked, expected) in [
        ("a.org", "a.org", true),
        ("a.org", "b.a.org", false),
        ("*.a.org", "b.a.org", true),
        ("*.a.org", "c.b.a.org", true),
        ("*.a.org", "a.org", false),
        ("*.a.org", "ba.org", false),
    ] {
        assert_eq!(matches(name, asked), expected, "{name} {asked}");
    }
}

#[test]
fn what_is_wrong_with_names_is_told() {
    let reading =
        "write affinity = { kind = \"hashed\", sni = true }, or kind `source` or `none` with sni = true";
    // Column, reason, help.
    type Told<'a> = &'a [(usize, &'a str, &'a str)];
    let rows: &[(&str, [&str; 2], Told<'_>)] = &[
        (
            HASHED,
            ["sni = [\"a.org\", \"A.org\"]", "sni = []"],
            &[
                (
                    17,
                    "the server's name `a.org` is listed twice",
                    "leave one of them away: upper and lower case are the same",
                ),
                (
                    7,
                    "`sni` names nobody",
                    "leave it away: the backend then takes what no other is listed for",
                ),
            ],
        ),
        (
            HASHED,
            ["sni = [\"*\"]", "sni = \"a.org\""],
            &[
                (
                    8,
                    "the server's name `*` is every name",
                    "leave `sni` away: a backend without it takes all that no other is listed for",
                ),
                (7, "`sni` is text, but must be a list", "write sni = [...]"),
            ],
        ),
        (
            "{ kind = \"source\" }",
            ["sni = [\"a.org\"]", ""],
            &[(
                7,
                "`sni` of `s1`, but affinity `source` binds before the client has named anybody",
                "write affinity = { kind = \"source\", sni = true }",
            )],
        ),
        (
            "{ kind = \"none\" }",
            ["", "sni = [\"a.org\"]"],
            &[(
                7,
                "`sni` of `b`, but affinity `none` binds before the client has named anybody",
                "write affinity = { kind = \"none\", sni = true }",
            )],
        ),
        (
            "{ kind = \"hashed\", cookie = \"s\" }",
            ["sni = [\"a.org\"]", ""],
            &[(7, "`sni` of `s1`, but affinity `hashed` reads no server's name", reading)],
        ),
        (
            HASHED,
            ["sni = [\"a.org\"]\nweight = 0", "sni = [\"b.org\"]"],
            &[(
                7,
                "every backend that is listed for `a.org` has weight 0: none takes it",
                "give one of them a weight from 1 to 256",
            )],
        ),
        (
            "{ kind = \"source\", sni = true }\nprotocol = \"udp\"",
            ["sni = [\"a.org\"]", ""],
            &[(37, "`sni` stands in no datagram", "leave `sni` away, or write protocol = \"tcp\"")],
        ),
        (
            "{ kind = \"source\" }\nprotocol = \"udp\"",
            ["sni = [\"a.org\"]", ""],
            &[(7, "`sni` of `s1`, in a udp service", "leave it away: names are read in TLS over tcp alone")],
        ),
        (
            // What the rule was meant to be is not known: nothing is said of what goes with it.
            "{ kind = \"signed\", sni = true }",
            ["sni = [\"a.org\"]", "sni = [\"b.org\"]"],
            &[(
                37,
                "a server's name is nothing that affinity `signed` could go by",
                "write kind = \"hashed\", `source` or `none`",
            )],
        ),
        (
            "{ kind = \"sourec\", sni = true }",
            ["sni = [\"a.org\"]", ""],
            &[(21, "`sourec` is no affinity rule", "did you mean `source`?")],
        ),
        (
            "{ kind = \"source\", sni = true }\nbalance = \"least\"",
            ["", ""],
            &[(
                11,
                "affinity `source` leaves `least` nothing to choose",
                "leave `balance` away: the hash decides, so that the same comes home",
            )],
        ),
    ];
    for (affinity, keys, expected) in rows {
        let found = faults(&with(affinity, *keys));
        let told: Vec<_> = found.iter().map(|f| (f.column, f.reason.as_str(), f.help.as_str())).collect();
        assert_eq!(told, *expected, "{affinity} {keys:?}");
    }
    let idle = with(HASHED, ["sni = [\"a.org\"]", "weight = 0"]).replace(":8080\"", ":8080\"\nweight = 0");
    let told: Vec<_> = faults(&idle).into_iter().map(|fault| (fault.reason, fault.help)).collect();
    let reason = "every backend without `sni` has weight 0: none takes what no other is listed for";
    let help = "give one of them a weight from 1 to 256, or take them out";
    assert_eq!(told, [(reason.to_owned(), help.to_owned())]);
    let managed = MINIMAL
        .replace("name = \"shop\"", &format!("name = \"shop\"\naffinity = {HASHED}"))
        .replace("managed = true", "managed = true\nsni = [\"a.org\"]");
    let reasons: Vec<_> = faults(&managed).into_iter().map(|fault| fault.reason).collect();
    assert_eq!(reasons, ["`sni` of `s1`, which lbd runs: those servers do not speak TLS"]);
    let managed = managed.replace("sni = [\"a.org\"]", "");
    let reasons: Vec<_> = faults(&managed).into_iter().map(|fault| fault.reason).collect();
    assert_eq!(reasons, ["the server's name is read in TLS, and `s1`, which lbd runs, does not speak that"]);
}

#[test]
fn what_is_listed_must_have_room() {
    let limited = |names: u32, pools: u32| {
        with(HASHED, ["sni = [\"a.org\", \"b.org\"]", "sni = [\"b.org\", \"*.b.org\"]"])
            .replace("[lbd]", &format!("[limits]\nnames = {names}\npools = {pools}\n[lbd]"))
    };
    let limits = parse(&limited(3, 3)).unwrap_or_else(|error| panic!("{error}")).limits;
    assert_eq!((limits.names, limits.pools), (3, 3));
    let told: Vec<_> = faults(&limited(2, 2)).into_iter().map(|fault| (fault.reason, fault.help)).collect();
    let row = |reason: &str| (reason.to_owned(), "raise it to 3 or more".to_owned());
    assert_eq!(
        told,
        [
            row("3 names of servers, but `names` in [limits] is 2"),
            row("3 different sets of backends that are listed for names, but `pools` in [limits] is 2"),
        ]
    );
    let size = MINIMAL.replace("[lbd]", "[limits]\npool_maglev_size = 4096\n[lbd]");
    assert_eq!(faults(&size)[0].reason, "`pool_maglev_size` is 4096, which is not a prime");
    assert_eq!(Limits::default().pool_maglev_size, 4093);
}
