use super::{EXAMPLE, MINIMAL, faults, parse};
use crate::config::{Affinity, Balance, OnUnavailable, QuicConfig};
use std::os::unix::fs::PermissionsExt;

const KEY: &str = "000102030405060708090a0b0c0d0e0f";

/// A QUIC service of two backends with these server ids.
fn with(affinity: &str, ids: [&str; 2]) -> String {
    MINIMAL
        .replace(
            "name = \"s1\"\nmanaged = true",
            &format!("name = \"q1\"\naddr = \"192.0.2.9:443\"\n{}", ids[0]),
        )
        .replace("addr = \"192.0.2.10:8080\"", &format!("addr = \"192.0.2.10:443\"\n{}", ids[1]))
        .replace("vip =", &format!("protocol = \"udp\"\naffinity = {affinity}\nvip ="))
}

fn configs(text: &str) -> Vec<QuicConfig> {
    match parse(text).unwrap_or_else(|error| panic!("{error}")).services.remove(0).affinity {
        Affinity::Quic(configs) => configs,
        other => panic!("{other:?}"),
    }
}

const TWO: [&str; 2] = ["server_id = \"0a0b\"", "server_id = \"0a0c\""];

#[test]
fn configurations_are_understood() {
    let text = with(
        &format!(
            "{{ kind = \"quic\", configs = [{{ rotation = 0, server_id_bytes = 2, nonce_bytes = 6, key = \"{KEY}\" }}, \
             {{ rotation = 6, server_id_bytes = 3, nonce_bytes = 4 }}] }}"
        ),
        ["server_id = [\"0a0b\", \"010203\"]", "server_id = [\"010204\", \"0A0C\"]"],
    );
    let found = configs(&text);
    assert_eq!((found[0].rotation, found[0].server_id_bytes, found[0].nonce_bytes), (0, 2, 6));
    assert_eq!(found[0].key.as_ref().map(|key| key.0), Some(std::array::from_fn(|i| i as u8)));
    assert_eq!((found[1].rotation, found[1].server_id_bytes, found[1].key.is_none()), (6, 3, true));
    let service =
        parse(&text.replace("vip =", "on_unavailable = \"reject\"\nvip =")).unwrap().services.remove(0);
    assert_eq!((service.balance, service.on_unavailable), (Balance::Maglev, OnUnavailable::Reject));
    assert_eq!(service.backends[1].server_ids, [vec![1, 2, 4], vec![10, 12]]);
    assert_eq!(service.affinity.describe(), "quic");
}

#[test]
fn the_rule_of_the_example_is_right() {
    let mut examples = EXAMPLE.lines().filter_map(|line| line.strip_prefix("# affinity = "));
    let rule = examples.find(|rule| rule.contains("quic")).expect("the example has such a rule");
    let id = EXAMPLE.lines().find_map(|line| line.strip_prefix("# server_id = ")).expect("and a server id");
    assert_eq!(configs(&with(rule, [&format!("server_id = {id}"), TWO[1]])).len(), 1);
}

#[test]
fn a_key_may_stand_in_a_file_that_nobody_else_can_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("key");
    let text = with(
        &format!(
            "{{ kind = \"quic\", configs = [{{ rotation = 1, server_id_bytes = 2, nonce_bytes = 6, key_file = \"{}\" }}] }}",
            path.display()
        ),
        TWO,
    );
    let told =
        |text: &str| faults(text).iter().map(|fault| fault.reason.clone()).collect::<Vec<_>>().concat();
    assert!(told(&text).starts_with("cannot read the key file"));
    let write = |content: &str, mode: u32| {
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    for mode in [0o644, 0o640, 0o604] {
        write(KEY, mode);
        assert!(told(&text).starts_with("others than its owner can read the key file"), "{mode:o}");
    }
    write("no key", 0o600);
    assert!(told(&text).ends_with("holds no key"));
    write(&format!("{KEY}\n"), 0o600);
    assert!(configs(&text)[0].key.is_some());
}

#[test]
fn what_cannot_be_is_told_and_no_key_with_it() {
    let one = "{ rotation = 0, server_id_bytes = 2, nonce_bytes = 6 }";
    let of = |configs: &str| format!("{{ kind = \"quic\", configs = [{configs}] }}");
    let rows: Vec<(String, [&str; 2], &str)> = vec![
        ("{ kind = \"quic\" }".into(), TWO, "affinity `quic` has no `configs`"),
        (of(""), TWO, "affinity `quic` has no `configs`"),
        (of("{ rotation = 0, server_id_bytes = 2 }"), TWO, "a configuration has no `nonce_bytes`"),
        (of("{ rotation = 7, server_id_bytes = 2, nonce_bytes = 6 }"), TWO, "`rotation` is 7"),
        (of("{ rotation = 0, server_id_bytes = 0, nonce_bytes = 6 }"), TWO, "`server_id_bytes` is 0"),
        (of("{ rotation = 0, server_id_bytes = 2, nonce_bytes = 3 }"), TWO, "`nonce_bytes` is 3"),
        (
            of("{ rotation = 0, server_id_bytes = 2, nonce_bytes = 18 }"),
            TWO,
            "server id and nonce have 20 bytes together",
        ),
        (of(&format!("{one}, {one}")), TWO, "two configurations have rotation 0"),
        (
            of(&format!("{one}, {{ rotation = 1, server_id_bytes = 2, nonce_bytes = 6, key = \"{KEY}\" }}")),
            TWO,
            "the same server ids would stand in the clear and encrypted",
        ),
        (
            of("{ rotation = 0, server_id_bytes = 2, nonce_bytes = 6, key = \"secret\" }"),
            TWO,
            "`key` is no key",
        ),
        (
            of(&format!(
                "{{ rotation = 0, server_id_bytes = 2, nonce_bytes = 6, key = \"{KEY}\", key_file = \"k\" }}"
            )),
            TWO,
            "`key` and `key_file` both give the key",
        ),
        (of(one), ["server_id = \"0a0b\"", "server_id = \"0A0B\""], "backend `q1` has this server id, too"),
        (of(one), ["server_id = \"0a0b\"", ""], "backend `web1` has 0 server ids of 2 bytes"),
        (of(one), ["server_id = [\"0a0b\", \"0a0d\"]", TWO[1]], "backend `q1` has 2 server ids of 2 bytes"),
        (of(one), ["server_id = [\"0a0b\", \"01\"]", TWO[1]], "no configuration has server ids of 1 bytes"),
        (of(one), ["server_id = \"0a0\"", TWO[1]], "`server_id` \"0a0\" is no server id"),
        (of(one), ["server_id = 10", TWO[1]], "`server_id` is an integer, but must be text or a list"),
        (of(one).replace("kind", "offset = 4, kind"), TWO, "affinity `quic` looks at no offset"),
        ("{ kind = \"source\" }".into(), [TWO[0], ""], "`server_id` has no meaning here"),
        (of(one).replace("quic", "none"), ["", ""], "affinity `none` looks at no configs"),
    ];
    for (affinity, ids, expected) in rows {
        let found = faults(&with(&affinity, ids));
        assert!(found.iter().any(|fault| fault.reason.starts_with(expected)), "{affinity}: {found:?}");
        let shown: String = found.iter().map(ToString::to_string).collect();
        assert!(!shown.contains(KEY) && !shown.contains("\"secret\""), "{shown}");
    }
    let tcp = with(&of(one), TWO).replace("\"udp\"", "\"tcp\"");
    assert_eq!(faults(&tcp)[0].reason, "affinity `quic` in a tcp service");
    let least = with(&of(one), TWO).replace("vip =", "balance = \"least\"\nvip =");
    assert_eq!(faults(&least)[0].reason, "affinity `quic` leaves `least` nothing to choose");
    let managed = with(&of(one), TWO).replace("addr = \"192.0.2.9:443\"", "managed = true");
    assert!(faults(&managed)[0].reason.starts_with("backend `q1` is managed"));
}
