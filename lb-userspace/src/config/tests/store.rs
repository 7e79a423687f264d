//! Where sessions are kept.

use super::*;

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
