//! What is wrong with a file is told with its place, its reason and what to do.

use super::*;

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
            &[(3, 11, "`pending` is 100000", "it must be from 1 to 32768; without it, it is 4096")],
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
            "[timeouts]\nopening = \"0s\"\nhalf_closed = \"2d\"\n[lbd]",
            &[
                (3, 11, "`opening` is 0s", "it must be from 1s to 1d; without it, it is 30s"),
                (4, 15, "`half_closed` is 2d", "it must be from 1s to 1d; without it, it is 1m"),
            ],
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
            "max_flows = 70000\nmax_pending = 0\nmax_backend_pending = 3000\nvip =",
            &[
                (6, 13, "`max_flows` is 70000", "it must be from 1 to 65536; without it, it is 65536"),
                (7, 15, "`max_pending` is 0", "it must be from 1 to 4096; without it, it is 2048"),
                (8, 23, "`max_backend_pending` is 3000", "it must be from 1 to 2048; without it, it is 1024"),
            ],
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
            "session = { max_sessions = 0, new_per_second = 0 }\nvip =",
            &[
                (
                    6,
                    28,
                    "`max_sessions` is 0",
                    "it must be from 1 to 1000000000000; without it, it is 10000000",
                ),
                (6, 48, "`new_per_second` is 0", "it must be from 1 to 1000000000; without it, it is 1000"),
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
