//! Where sessions are kept.

use super::*;
use proptest::prelude::*;

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
    const NODE: &str = "write it like redis://10.0.0.5:6379 or redis://user:password@host:6379/0; in a user or password write the \
                        signs / ? # and \\ in percent form, such as %2F for /";
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
                "it has `nodes`, `replicas`, `prefix`, `lease`, `deadline`, `volatile`, `waitaof`, `ca_file`, `cert_file`, `key_file` \
                 and `server_name`",
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
        ("{ kind = \"redis\", nodes = [\"h:6379\"] }", &[(36, "the node is no URL", NODE)]),
        ("{ kind = \"redis\", nodes = [\"lb:geheim@h:6379\"] }", &[(36, "the node is no URL", NODE)]),
        ("{ kind = \"redis\", nodes = [\"http://geheim@h\"] }", &[(36, "the node is no URL of Redis", NODE)]),
        ("{ kind = \"redis\", nodes = [\"redis://:geheim@\"] }", &[(36, "the node names no host", NODE)]),
        (
            "{ kind = \"redis\", nodes = [\"redis://lb:geheim\"] }",
            &[(36, "the node has no port from 1 to 65535", NODE)],
        ),
        (
            "{ kind = \"redis\", nodes = [\"redis://h/geheim\"] }",
            &[(36, "the node has no number of a database at its end", NODE)],
        ),
        (
            "{ kind = \"redis\", nodes = [\"redis://geheim/7@h\"] }",
            &[(36, "the node has a sign in its user or password that has a meaning in a URL", NODE)],
        ),
        (
            "\"lb:geheim@10.0.0.5:6379\"",
            &[(
                9,
                "the store is a node of Redis, but must be a directory",
                "write store = { kind = \"redis\", nodes = [\"redis://10.0.0.5:6379\"] }",
            )],
        ),
        (
            "{ kind = \"redis://:geheim@h\", path = \"s\" }",
            &[(18, "`redis://*******@h` is no kind of store", "known here: sled, redis")],
        ),
        (
            "{ kind = \"redis\", nodes = [\"redis://h\", \"rediss://i\"] }",
            &[(49, "node i:6379 has another scheme than the first", "all have TLS, rediss://, or none")],
        ),
        (
            "{ kind = \"redis\", nodes = [\"redis://h\"], server_name = \"h\" }",
            &[(
                64,
                "`server_name` is for TLS, and the nodes have none",
                "write the nodes as rediss://host:port, or leave it away",
            )],
        ),
        (
            "{ kind = \"redis\", nodes = [\"rediss://h\"], cert_file = \"c\" }",
            &[(63, "`cert_file` has no `key_file`", "name the file of its key, too")],
        ),
        (
            "{ kind = \"redis\", nodes = [\"rediss://h\"], key_file = \"k\" }",
            &[(62, "`key_file` has no `cert_file`", "name its certificate's file, too")],
        ),
        (
            "{ kind = \"redis\", nodes = [\"rediss://h\"], ca_file = \"/nowhere/ca.pem\" }",
            &[(
                61,
                "ca_file /nowhere/ca.pem: No such file or directory (os error 2)",
                "the files are PEM; the name is a host's or an IP address",
            )],
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
    assert!(error.contains("lb.toml:3:") && !error.contains("geheim"), "{error}");
}

proptest! {
    /// Whatever is wrong with a file: the password of a node is in no message.
    #[test]
    fn a_password_in_any_place_is_in_no_message(
        before in "(redis|rediss|http|)(://|:/|:|//|)(lb|)(:|)",
        after in "(@|\\\\u0040|:|/|\\?|#|)(host|)(:6379|:x|)(/0|/x|)",
        form in 0usize..8, quote in "(\"|')", noise in "[a-z@:/?#%\\[\\]=,{} ]{0,6}",
    ) {
        const PASSWORD: &str = "7Geh3im";
        let node = format!("{before}{PASSWORD}{noise}{after}");
        let store = match form {
            0 => format!("store = {quote}{node}{quote}"),
            1 => format!("store = {{ kind = \"redis\", nodes = [{quote}{node}{quote}], relicas = 1 }}"),
            2 => format!("store = {{ kind = \"redis\", nodes = [\"redis://one\", {quote}{node}{quote}] }}"),
            3 => format!("store.kind = \"redis\"\nstore.nodes = [\n  \"redis://one\",\n  {quote}{node}{quote},\n]\nstore.replicas = 9"),
            4 => format!("store = {{ kind = \"redis\", nodes = {quote}{node}{quote} }}"),
            5 => format!("store = {{ kind = \"redis\", nodes = [{quote}{node}] }}"),
            6 => format!("store = {{ kind = \"redis\", nodes = [{node}] }}"),
            _ => format!("store = {{ kind = \"redis\", nodes = [\n{quote}{node}{quote}\n7] }}"),
        };
        // `redis://7Geh3im` names a host, and a directory is no password either.
        let plain = node.replace("\\u0040", "@");
        let host = crate::session::store::redis::url::NodeUrl::parse(&plain);
        prop_assume!(form != 0 || plain.contains("://") || plain.contains('@'));
        prop_assume!(host.is_ok_and(|url| !url.host.contains(PASSWORD)) || host.is_err());
        match parse(&MINIMAL.replace("[lbd]", &format!("[lbd]\n{store}"))) {
            Ok(config) => prop_assert!(form == 0 || !format!("{config:?}").contains(PASSWORD), "{config:?}"),
            Err(error) => {
                let text = format!("{error}\n{error:?}");
                prop_assert!(!text.contains(PASSWORD), "{}\n{}", store, text);
            }
        }
    }
}

#[test]
fn sessions_are_bounded_where_they_are_counted() {
    let bound = MINIMAL.replace("vip =", "session = { max_sessions = 5 }\nvip =");
    assert_eq!(parse(&bound).unwrap().services[0].session.max_sessions, 5);
    let redis = "[lbd]\nstore = { kind = \"redis\", nodes = [\"redis://10.0.0.5\"] }";
    let found = faults(&bound.replace("[lbd]", redis));
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].line, 7);
    assert!(
        found[0].reason.contains("max_sessions") && found[0].help.contains("maxmemory"),
        "{:?}",
        found[0]
    );
}
