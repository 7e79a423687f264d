mod affinity;
mod name;
mod quic;

use super::raw;
use super::*;

const MINIMAL: &str = r#"
[lbd]
interfaces = ["eth0"]
[[service]]
name = "shop"
vip = "192.0.2.1:80"
[[service.backend]]
name = "s1"
managed = true
[[service.backend]]
name = "web1"
addr = "192.0.2.10:8080"
"#;
const EXAMPLE: &str = include_str!("../../../docs/lb.example.toml");

fn parse(text: &str) -> Result<Config, ConfigError> {
    Config::parse(Path::new("lb.toml"), text)
}

fn faults(text: &str) -> Vec<Fault> {
    match parse(text) {
        Ok(_) => Vec::new(),
        Err(ConfigError::Faults(faults)) => faults,
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn defaults_are_what_was_promised() {
    let config = parse(MINIMAL).unwrap();
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.timeouts, Timeouts::default());
    assert_eq!(config.lbd.socket, Path::new("/run/lb/lbd.sock"));
    assert_eq!(config.lbd.mode, Mode::Auto);
    assert!(config.lbd.announce);
    let service = &config.services[0];
    assert_eq!(service.affinity, Affinity::Signed(Place::Cookie("lb".into())));
    assert_eq!((service.window_scale, service.max_tries), (7, 3));
    assert_eq!(service.health, Health::default());
    assert_eq!(service.session, SessionLimits::default());
    let s1 = &service.backends[0];
    assert_eq!((s1.name.as_str(), s1.managed, s1.addr, s1.weight), ("s1", true, None, 1));
    assert_eq!(config.managed.gateway(), Ipv4Addr::new(10, 254, 0, 1));
    assert_eq!(config.managed.server(254), Ipv4Addr::new(10, 254, 1, 0));
}

#[test]
fn the_example_writes_every_default() {
    assert_eq!(parse(EXAMPLE).unwrap_or_else(|error| panic!("{error}")), parse(MINIMAL).unwrap());
    let keys = [
        raw::RawLbd::KEYS,
        raw::RawLimits::KEYS,
        raw::RawTimeouts::KEYS,
        raw::RawManaged::KEYS,
        raw::RawHealth::KEYS,
        raw::RawSession::KEYS,
        raw::RawBackend::KEYS,
        raw::RawAffinity::KEYS,
        raw::StoreTable::KEYS,
    ];
    for key in keys.concat() {
        let written = format!("{key} = ");
        assert!(EXAMPLE.contains(&written), "`{key}` is not in docs/lb.example.toml");
    }
    for key in raw::RawService::KEYS {
        let written = [format!("\n{key} = "), format!("[service.{key}]"), format!("[[service.{key}]]")];
        assert!(written.iter().any(|w| EXAMPLE.contains(w)), "`{key}` of a service is not in the example");
    }
}

#[test]
fn an_error_shows_its_line_and_what_to_do() {
    let error = parse(&MINIMAL.replace("managed = true", "manged = true")).unwrap_err().to_string();
    assert_eq!(
        error,
        "lb.toml:9:1: unknown key `manged` in [[service.backend]]
   |
 9 | manged = true
   | ^^^^^^
   = did you mean `managed`?"
    );
    let several =
        MINIMAL.replace("managed = true", "managed = 1").replace("name = \"shop\"", "nme = \"shop\"");
    let error = parse(&several).unwrap_err().to_string();
    assert!(error.starts_with("lb.toml:5:1: ") && error.contains("\nlb.toml:9:11: "), "{error}");
    assert!(error.ends_with("\n2 errors in the configuration"), "{error}");
}

/// Each row changes the minimal configuration in one place: what is replaced, by what, and the faults that follow:
/// line, column, reason, help.
type Row<'a> = (&'a str, &'a str, &'a [(usize, usize, &'a str, &'a str)]);

#[test]
fn what_is_wrong_is_told_with_its_place() {
    const ADDRESS: &str = "write it like 192.0.2.1:80; names are not looked up";
    const ONE_OWNER: &str = "an address and port belong to one service or backend alone";
    let rows: &[Row<'_>] = &[
        // Syntax and types.
        (
            "[lbd]",
            "[lbd",
            &[(
                2,
                5,
                "unclosed table, expected `]`",
                "this is not TOML; see docs/lb.example.toml for how it is written",
            )],
        ),
        ("[lbd]", "[ldb]", &[(2, 2, "unknown key `ldb` in the top level", "did you mean `lbd`?")]),
        (
            "name = \"shop\"",
            "name = 7",
            &[(5, 8, "`name` is an integer, but must be text", "put it in double quotes")],
        ),
        (
            "managed = true",
            "managed = \"true\"",
            &[(9, 11, "`managed` is text, but must be true or false", "write it without quotes")],
        ),
        (
            "[[service]]",
            "[service]",
            &[(
                4,
                1,
                "`service` is a table, but must be a list",
                "write [[service]] with two brackets: there can be several",
            )],
        ),
        (
            "[lbd]",
            "lbd = 3\n[x]",
            &[
                (2, 7, "`lbd` is an integer, but must be a table", "write it as [lbd]"),
                (
                    3,
                    2,
                    "unknown key `x` in the top level",
                    "known here: lbd, limits, timeouts, managed, service",
                ),
            ],
        ),
        // [lbd]
        (
            "[\"eth0\"]",
            "[]",
            &[(
                3,
                14,
                "no interface is named",
                "write interfaces = [\"eth0\"] under [lbd], with the interface that clients come in by",
            )],
        ),
        (
            "[\"eth0\"]",
            "[\"eth0\", \"eth0\"]",
            &[(
                3,
                23,
                "bad interface `eth0`: it is named twice",
                "`ip -brief link` lists the interfaces there are",
            )],
        ),
        (
            "[\"eth0\"]",
            "[\"lo\"]",
            &[(
                3,
                15,
                "bad interface `lo`: clients do not come in by the loopback interface",
                "`ip -brief link` lists the interfaces there are",
            )],
        ),
        (
            "[\"eth0\"]",
            "[\"an-interface-too-long\"]",
            &[(
                3,
                15,
                "bad interface `an-interface-too-long`: an interface's name has 1 to 15 characters",
                "`ip -brief link` lists the interfaces there are",
            )],
        ),
        (
            "[\"eth0\"]",
            "[\"eth 0\"]",
            &[(
                3,
                15,
                "bad interface `eth 0`: an interface's name has no slash, colon or space, and does not begin with a dot",
                "`ip -brief link` lists the interfaces there are",
            )],
        ),
        ("[lbd]", "[lbd]\nmode = \"drivr\"", &[(3, 8, "`drivr` is no mode", "did you mean `driver`?")]),
        // [limits], [timeouts], [managed]
        (
            "[lbd]",
            "[limits]\nmaglev_size = 65536\n[lbd]",
            &[(3, 15, "`maglev_size` is 65536, which is not a prime", "the next prime is 65537")],
        ),
        (
            "[lbd]",
            "[limits]\nbackends = 0\n[lbd]",
            &[(3, 12, "`backends` is 0", "it must be from 1 to 2048; without it, it is 1024")],
        ),
        (
            "[lbd]",
            "[limits]\nbackends = 1\n[lbd]",
            &[(1, 1, "2 backends, but `backends` in [limits] is 1", "raise it to 2 or more")],
        ),
        (
            "[lbd]",
            "[limits]\nservices = -1\n[lbd]",
            &[(3, 12, "`services` is -1, but must be a whole number from 0", "")],
        ),
        (
            "[lbd]",
            "[limits]\npending = 100000\n[lbd]",
            &[(3, 11, "`pending` is 100000", "it must be from 1 to 32768; without it, it is 1024")],
        ),
        (
            "[lbd]",
            "[timeouts]\nidle = \"10\"\n[lbd]",
            &[(
                3,
                8,
                "`idle` \"10\" is not a duration",
                "write whole numbers with the units ms, s, m, h or d, such as 10s or 1h30m",
            )],
        ),
        (
            "[lbd]",
            "[timeouts]\nudp_idle = \"500ms\"\n[lbd]",
            &[(3, 12, "`udp_idle` is 500ms", "it must be from 1s to 30d; without it, it is 5m")],
        ),
        (
            "[lbd]",
            "[timeouts]\nclosing = \"0s\"\n[lbd]",
            &[(3, 11, "`closing` is 0s", "it must be from 1s to 1d; without it, it is 10s")],
        ),
        (
            "[lbd]",
            "[managed]\nsubnet = \"10.9.0.1/16\"\n[lbd]",
            &[(
                3,
                10,
                "`subnet` \"10.9.0.1/16\" has host bits set, the network is 10.9.0.0/16",
                "write it like 10.254.0.0/16",
            )],
        ),
        (
            "[lbd]",
            "[managed]\nsubnet = \"10.9.0.0/30\"\n[lbd]",
            &[(
                1,
                1,
                "2 backends, but the managed network 10.9.0.0/30 has addresses for 1",
                "give [managed] subnet a shorter prefix, such as 10.254.0.0/16",
            )],
        ),
        (
            "[lbd]",
            "[managed]\nsubnet = \"10.9.0.0/31\"\n[lbd]",
            &[(
                3,
                10,
                "`subnet` 10.9.0.0/31 is too small for the balancer and a server",
                "use a prefix of 30 or shorter, such as 10.254.0.0/16",
            )],
        ),
        // Services.
        (
            "vip = \"192.0.2.1:80\"\n",
            "",
            &[(4, 1, "service `shop` has no `vip`", "write vip = \"192.0.2.1:80\": what clients dial")],
        ),
        (
            "\"192.0.2.1:80\"",
            "\"192.0.2.1\"",
            &[(6, 7, "`vip` \"192.0.2.1\" has no port", "write 192.0.2.1:80")],
        ),
        (
            "\"192.0.2.1:80\"",
            "\"192.0.2.256:80\"",
            &[(6, 7, "`vip` \"192.0.2.256:80\" is not an address and port", ADDRESS)],
        ),
        (
            "\"192.0.2.1:80\"",
            "\"192.0.2.1:0\"",
            &[(
                6,
                7,
                "`vip` \"192.0.2.1:0\" has port 0, which nobody can dial",
                "use a port from 1 to 65535",
            )],
        ),
        (
            "\"192.0.2.1:80\"",
            "\"[2001:db8::1]:80\"",
            &[(
                6,
                7,
                "`vip` \"[2001:db8::1]:80\" is an IPv6 address",
                "the packet programs carry IPv4 only in this version; use an IPv4 address",
            )],
        ),
        (
            "\"192.0.2.1:80\"",
            "\"0.0.0.0:80\"",
            &[(
                6,
                7,
                "`vip` \"0.0.0.0:80\" means every address of a host, not one",
                "use the address of one host",
            )],
        ),
        (
            "\"192.0.2.1:80\"",
            "\"127.0.0.1:80\"",
            &[(6, 7, "`vip` \"127.0.0.1:80\" never leaves its host", "use the address of one host")],
        ),
        (
            "\"192.0.2.1:80\"",
            "\"10.254.3.3:80\"",
            &[(
                6,
                7,
                "`vip` 10.254.3.3 lies in the network of managed servers, 10.254.0.0/16",
                "choose another address, or another [managed] subnet",
            )],
        ),
        (
            "vip =",
            "protocol = \"tpc\"\nvip =",
            &[(6, 12, "`tpc` is no protocol known here", "did you mean `tcp`?")],
        ),
        (
            "vip =",
            "affinity = { kind = \"source\", cookie = \"lb\" }\nvip =",
            &[(6, 40, "affinity `source` looks at no cookie", "leave `cookie` away, or use `signed`")],
        ),
        (
            "vip =",
            "affinity = { kind = \"singed\" }\nvip =",
            &[(6, 21, "`singed` is no affinity rule", "did you mean `signed`?")],
        ),
        (
            "vip =",
            "affinity = { cookie = \"a-name-of-more-than-thirty-one-x\" }\nvip =",
            &[(
                6,
                23,
                "the cookie's name `a-name-of-more-than-thirty-one-x` has 32 characters",
                "use 1 to 31: the program looks for it in one step",
            )],
        ),
        (
            "vip =",
            "affinity = { cookie = \"\" }\nvip =",
            &[(
                6,
                23,
                "the cookie's name `` has 0 characters",
                "use 1 to 31: the program looks for it in one step",
            )],
        ),
        (
            "vip =",
            "affinity = { cookie = \"a;b\" }\nvip =",
            &[(
                6,
                23,
                "the cookie's name `a;b` contains ';'",
                "a cookie's name has no spaces, separators or letters outside ASCII (RFC 6265)",
            )],
        ),
        (
            "vip =",
            "window_scale = 15\nvip =",
            &[(6, 16, "`window_scale` is 15", "it must be from 0 to 14; without it, it is 7")],
        ),
        (
            "vip =",
            "max_tries = 9\nvip =",
            &[(6, 13, "`max_tries` is 9", "it must be from 1 to 8; without it, it is 3")],
        ),
        (
            "vip =",
            "health = { interval = \"1ms\", rise = 0 }\nvip =",
            &[
                (6, 23, "`interval` is 1ms", "it must be from 50ms to 1h; without it, it is 2s"),
                (6, 37, "`rise` is 0", "it must be from 1 to 100; without it, it is 2"),
            ],
        ),
        (
            "vip =",
            "session = { cache_bytes = \"64 kB\" }\nvip =",
            &[(
                6,
                27,
                "`cache_bytes` \"64 kB\" is not a size",
                "write a number of bytes, or one with KiB, MiB or GiB",
            )],
        ),
        (
            "vip =",
            "session = { cache_bytes = 100000, max_session_bytes = \"1 MiB\" }\nvip =",
            &[
                (
                    6,
                    27,
                    "`cache_bytes` is 100000, but one session may take 65536 of them",
                    "raise `cache_bytes` to twice `max_session_bytes` at least",
                ),
                (6, 55, "`max_session_bytes` is 1048576 bytes", "it must be from 1 to 65536 bytes"),
            ],
        ),
        (
            "vip =",
            "session = { idle = \"8d\" }\nvip =",
            &[(
                6,
                20,
                "sessions end after 7d at the latest, before `idle` of 8d can end them",
                "raise `absolute` or lower `idle`",
            )],
        ),
        (
            "name = \"shop\"",
            "name = \"the shop\"",
            &[(
                5,
                8,
                "`the shop` cannot name a service",
                "use 1 to 32 letters, digits, dots, dashes and underscores, beginning with a letter or digit",
            )],
        ),
        // Backends.
        (
            "name = \"web1\"",
            "name = \"s1\"",
            &[(11, 8, "another backend of service `shop` is named `s1`", "names are unique")],
        ),
        (
            "\"192.0.2.10:8080\"",
            "\"192.0.2.1:80\"",
            &[(
                12,
                8,
                "backend `shop/web1` is at 192.0.2.1:80, where the vip of service `shop` is already",
                ONE_OWNER,
            )],
        ),
        (
            "\"192.0.2.10:8080\"",
            "\"192.0.2.1:8080\"",
            &[(
                12,
                8,
                "`addr` 192.0.2.1 is a VIP: the balancer itself answers for it",
                "give the backend an address of its own",
            )],
        ),
        (
            "\"192.0.2.10:8080\"",
            "\"example.org:80\"",
            &[(12, 8, "`addr` \"example.org:80\" is not an address and port", ADDRESS)],
        ),
        (
            "\"192.0.2.10:8080\"",
            "\"192.0.2.10:8080\"\nweight = 300",
            &[(13, 10, "`weight` is 300", "it must be from 0 to 256; without it, it is 1")],
        ),
        (
            "managed = true",
            "addr = \"192.0.2.10:8080\"",
            &[(
                12,
                8,
                "backend `shop/web1` is at 192.0.2.10:8080, where backend `shop/s1` is already",
                ONE_OWNER,
            )],
        ),
    ];
    for (from, to, expected) in rows {
        assert!(MINIMAL.contains(from), "{from} is not in the minimal configuration");
        let found = faults(&MINIMAL.replacen(from, to, 1));
        let found: Vec<_> =
            found.iter().map(|f| (f.line, f.column, f.reason.as_str(), f.help.as_str())).collect();
        assert_eq!(found, *expected, "{from} → {to}");
    }
}

#[test]
fn services_must_not_overlap() {
    let second = "[[service]]\nname = \"shop\"\nvip = \"192.0.2.1:80\"\nbackend = [{ name = \"s1\", managed = true, weight = 0 }]\n";
    let reasons: Vec<_> =
        faults(&format!("{MINIMAL}{second}")).into_iter().map(|f| (f.line, f.reason)).collect();
    assert_eq!(
        reasons,
        [
            (13, "every backend of service `shop` has weight 0: none takes new sessions".to_owned()),
            (14, "another service is named `shop`".to_owned()),
            (
                15,
                "the vip of service `shop` is at 192.0.2.1:80, where the vip of service `shop` is already"
                    .to_owned()
            ),
        ]
    );
}

#[test]
fn nothing_at_all_is_told_as_such() {
    let reasons: Vec<_> = faults("").into_iter().map(|f| f.reason).collect();
    assert_eq!(reasons, ["no interface is named", "there is no service"]);
}

#[test]
fn pending_is_rounded_up_and_paths_start_at_the_file() {
    let text = MINIMAL.replace("[lbd]", "[limits]\npending = 1000\n[lbd]\nstore = \"s\"\nkeys = \"/k\"");
    let config = Config::parse(Path::new("/etc/lb/lb.toml"), &text).unwrap();
    assert_eq!(config.limits.pending, 1024);
    assert_eq!(config.lbd.store, Store::Sled { path: "/etc/lb/s".into() });
    assert_eq!(config.lbd.keys, Path::new("/k"));
}

#[test]
fn a_store_is_written_in_one_of_three_ways() {
    let with = |store: &str| {
        let text = MINIMAL.replace("[lbd]", &format!("[lbd]\n{store}"));
        Config::parse(Path::new("/etc/lb/lb.toml"), &text).unwrap_or_else(|error| panic!("{error}"))
    };
    let sled = Store::Sled { path: "/etc/lb/s".into() };
    assert_eq!(with("store = \"s\"").lbd.store, sled);
    assert_eq!(with("store = { kind = \"sled\", path = \"s\" }").lbd.store, sled);
    assert_eq!(with("store.kind = \"sled\"\nstore.path = \"s\"").lbd.store, sled);
    let redis = |nodes: &[&str]| Redis {
        nodes: nodes.iter().map(|node| (*node).to_owned()).collect(),
        ..Redis::default()
    };
    let one = with("store = { kind = \"redis\", nodes = [\"redis://10.0.0.5\"] }");
    assert_eq!(one.lbd.store, Store::Redis(redis(&["redis://10.0.0.5"])));
    let nodes = ["redis://u:p@a:7000/0", "valkey://u:p@b:7000", "redis://u:p@[2001:db8::1]:7000"];
    let several = with(&format!(
        "store = {{ kind = \"redis\", nodes = {nodes:?}, replicas = 1, prefix = \"x.\", lease = \"500ms\", deadline = \"5s\", volatile = true }}"
    ));
    assert_eq!(
        several.lbd.store,
        Store::Redis(Redis {
            replicas: Some(1),
            prefix: "x.".into(),
            lease: Duration::from_millis(500),
            deadline: Duration::from_secs(5),
            volatile: true,
            ..redis(&nodes)
        })
    );
    // Nothing else changes with it.
    assert_eq!(Lbd { store: sled.clone(), ..several.lbd }, with("store = \"s\"").lbd);
    let example = EXAMPLE.lines().filter(|line| !line.starts_with("store = "));
    let example: Vec<_> = example
        .map(|line| line.strip_prefix("# store = ").map_or(line.to_owned(), |rest| format!("store = {rest}")))
        .collect();
    let example = parse(&example.join("\n")).unwrap_or_else(|error| panic!("{error}"));
    assert!(matches!(example.lbd.store, Store::Redis(_)), "{:?}", example.lbd.store);
}

#[test]
fn what_is_wrong_with_a_store_is_told() {
    /// Column, reason, help.
    type Told<'a> = &'a [(usize, &'a str, &'a str)];
    const NODE: &str = "write it like redis://10.0.0.5:6379 or redis://user:password@host:6379/0";
    let rows: &[(&str, Told<'_>)] = &[
        (
            "\"\"",
            &[(
                9,
                "the path of the store is empty",
                "write store = { kind = \"sled\", path = \"/var/lib/lb/sessions\" }",
            )],
        ),
        (
            "\"redis://h\"",
            &[(
                9,
                "the store is a URL, but must be a directory",
                "write store = { kind = \"redis\", nodes = [\"redis://10.0.0.5:6379\"] }",
            )],
        ),
        (
            "7",
            &[(
                9,
                "`store` is an integer, but must be a directory or a table",
                "write it like \"/var/lib/lb/sessions\" or { kind = \"redis\", nodes = [...] }",
            )],
        ),
        (
            "{ path = \"s\" }",
            &[(
                9,
                "the store has no `kind`",
                "write store = { kind = \"sled\", path = \"/var/lib/lb/sessions\" }, or kind = \"redis\" with its nodes",
            )],
        ),
        ("{ kind = \"radis\" }", &[(18, "`radis` is no kind of store", "did you mean `redis`?")]),
        (
            "{ kind = \"sled\" }",
            &[(
                9,
                "a sled store has no `path`",
                "write store = { kind = \"sled\", path = \"/var/lib/lb/sessions\" }",
            )],
        ),
        (
            "{ kind = \"sled\", pth = \"s\" }",
            &[(
                26,
                "unknown key `pth` in store = { kind = \"sled\", path = \"...\" }",
                "did you mean `path`?",
            )],
        ),
        (
            "{ kind = \"sled\", path = \"s\", replicas = 1 }",
            &[(49, "a sled store has no `replicas`", "it has `path` alone")],
        ),
        (
            "{ kind = \"redis\", nodes = [\"redis://h\"], path = \"s\" }",
            &[(
                57,
                "a redis store has no `path`",
                "it has `nodes`, `replicas`, `prefix`, `lease`, `deadline` and `volatile`",
            )],
        ),
        (
            "{ kind = \"redis\" }",
            &[(
                9,
                "a redis store has no `nodes`",
                "write store = { kind = \"redis\", nodes = [\"redis://10.0.0.5:6379\"] }",
            )],
        ),
        (
            "{ kind = \"redis\", nodes = [] }",
            &[(
                35,
                "a redis store has no `nodes`",
                "write store = { kind = \"redis\", nodes = [\"redis://10.0.0.5:6379\"] }",
            )],
        ),
        (
            "{ kind = \"redis\", nodes = [\"h:6379\"] }",
            &[(36, "node `h:6379` is no URL", "write redis://h:6379")],
        ),
        (
            "{ kind = \"redis\", nodes = [\"rediss://:geheim@h\"] }",
            &[(
                36,
                "node `rediss://:******@h` wants TLS",
                "TLS is not there yet: put a tunnel such as stunnel before it, and name the tunnel's end here",
            )],
        ),
        ("{ kind = \"redis\", nodes = [\"http://h\"] }", &[(36, "node `http://h` is no URL of Redis", NODE)]),
        (
            "{ kind = \"redis\", nodes = [\"redis://:geheim@\"] }",
            &[(36, "node `redis://:******@` names no host", NODE)],
        ),
        (
            "{ kind = \"redis\", nodes = [\"redis://h:0\"] }",
            &[(36, "node `redis://h:0` has no port from 1 to 65535", NODE)],
        ),
        (
            "{ kind = \"redis\", nodes = [\"redis://h/x\"] }",
            &[(36, "node `redis://h/x` has no number of a database at its end", NODE)],
        ),
        (
            "{ kind = \"redis\", nodes = [\"redis://h\", \"redis://h:6379\"] }",
            &[(49, "node h:6379 is named twice", "name each once")],
        ),
        (
            "{ kind = \"redis\", nodes = [\"redis://:geheim@h\", \"redis://i\"] }",
            &[(
                57,
                "node i:6379 has another user or password than the first",
                "all nodes of a cluster have the same",
            )],
        ),
        (
            "{ kind = \"redis\", nodes = [\"redis://h\"], lease = \"1ms\" }",
            &[(58, "`lease` is 1ms", "it must be from 100ms to 1m; without it, it is 1s")],
        ),
        (
            "{ kind = \"redis\", nodes = [\"redis://h/1\", \"redis://i\"] }",
            &[(
                36,
                "several nodes are a cluster, which has database 0 alone, not 1",
                "leave the number at its end away",
            )],
        ),
        (
            "{ kind = \"redis\", nodes = [\"redis://h\"], replicas = 6 }",
            &[(61, "`replicas` is 6", "it must be from 0 to 5; without it, it is 1 in a cluster, else 0")],
        ),
        (
            "{ kind = \"redis\", nodes = [\"redis://h\"], prefix = \"{lb}\" }",
            &[(
                59,
                "the prefix \"{lb}\" cannot begin keys",
                "use 1 to 64 letters, digits and signs without braces, brackets, stars, question marks, such as lb:",
            )],
        ),
    ];
    for (store, expected) in rows {
        let text = MINIMAL.replace("[lbd]", &format!("[lbd]\nstore = {store}"));
        let found = faults(&text);
        let told: Vec<_> = found.iter().map(|f| (f.column, f.reason.as_str(), f.help.as_str())).collect();
        assert_eq!(told, *expected, "{store}");
        assert!(found.iter().all(|f| f.line == 3 && !f.to_string().contains("geheim")), "{store}");
    }
    // Nor when the file cannot be read at all.
    let broken = MINIMAL.replace("[lbd]", "[lbd]\nstore = { nodes = [\"redis://:geheim@h\" 7] }");
    let error = parse(&broken).unwrap_err().to_string();
    assert!(error.contains("redis://:******@h") && !error.contains("geheim"), "{error}");
}

#[test]
fn a_missing_file_says_what_to_do() {
    let error = Config::load(Path::new("/nowhere/lb.toml")).unwrap_err().to_string();
    assert!(error.starts_with("cannot read the configuration /nowhere/lb.toml: No such file"), "{error}");
    assert!(error.contains("--config"), "{error}");
}

proptest::proptest! {
    /// Whatever is in the file: an answer, not a panic.
    #[test]
    fn no_text_makes_it_panic(cut in 0..EXAMPLE.len(), insert in ".{0,12}") {
        let at = (0..=cut).rev().find(|at| EXAMPLE.is_char_boundary(*at)).unwrap();
        let text = format!("{}{insert}{}", &EXAMPLE[..at], &EXAMPLE[at..]);
        let _ = parse(&text).map_err(|error| error.to_string());
    }
}
