//! Every rule and every kind of service that a configuration can have starts; so does every example of the documentation.

mod examples;
mod kinds;

use anyhow::{Context, Result, ensure};
use std::collections::BTreeSet;
use tests::topology::{Arms, Topology};
use tests::whole::{Whole, meaning};

/// What stands around services that say nothing of lbd itself.
const FRAME: &str = "[lbd]\ninterfaces = [\"eth0\"]\n\n[limits]\nservices = 100\nmaglev_size = 251\n";

/// A service of each kind: its name, and its table of the configuration. Each has a VIP and addresses of its own, so that all
/// may stand in one configuration, or each in one.
fn rules() -> Vec<(&'static str, String)> {
    /// Of the client-facing side, lines in TOML; and of each backend, the lines beside its name and address.
    type Rule = (&'static str, &'static str, &'static [&'static str]);
    const ELSEWHERE: &[&str] = &["", "weight = 3"];
    const MANAGED: &[&str] = &["managed = true"];
    const NAMED: &[&str] =
        &["sni = [\"shop.example.org\", \"*.example.org\"]", "sni = [\"*.blog.example.org\"]", ""];
    let tcp: &[Rule] = &[
        ("managed", "affinity = { kind = \"signed\", cookie = \"lb\" }", MANAGED),
        ("signed-cookie", "affinity = { kind = \"signed\", cookie = \"lb\" }", ELSEWHERE),
        (
            "signed-header",
            "affinity = { kind = \"signed\", header = \"X-Session\" }\nbalance = \"least\"",
            ELSEWHERE,
        ),
        (
            "signed-query",
            "affinity = { kind = \"signed\", query = \"session\" }\non_unavailable = \"reject\"",
            ELSEWHERE,
        ),
        ("hashed-cookie", "affinity = { kind = \"hashed\", cookie = \"user\" }\nreplay = false", ELSEWHERE),
        ("hashed-header", "affinity = { kind = \"hashed\", header = \"X-Tenant\" }", ELSEWHERE),
        ("hashed-query", "affinity = { kind = \"hashed\", query = \"room\" }", ELSEWHERE),
        ("hashed-sni", "affinity = { kind = \"hashed\", sni = true }", NAMED),
        ("hashed-sni-unlisted", "affinity = { kind = \"hashed\", sni = true }", ELSEWHERE),
        (
            "learned-cookie",
            "affinity = { kind = \"learned\", cookie = \"PHPSESSID\", idle = \"2h\" }",
            ELSEWHERE,
        ),
        (
            "learned-cookie-least",
            "affinity = { kind = \"learned\", cookie = \"PHPSESSID\" }\nbalance = \"least\"\non_unavailable = \"reject\"",
            ELSEWHERE,
        ),
        ("source", "affinity = { kind = \"source\" }", ELSEWHERE),
        ("source-proxy", "affinity = { kind = \"source\" }\naccept_proxy = true", ELSEWHERE),
        (
            "learned-proxy",
            "affinity = { kind = \"learned\", cookie = \"PHPSESSID\" }\naccept_proxy = true",
            ELSEWHERE,
        ),
        ("source-sni", "affinity = { kind = \"source\", sni = true }", NAMED),
        ("none", "affinity = { kind = \"none\" }", ELSEWHERE),
        ("none-least", "affinity = { kind = \"none\" }\nbalance = \"least\"", ELSEWHERE),
        ("none-sni", "affinity = { kind = \"none\", sni = true }\nbalance = \"least\"", NAMED),
    ];
    let udp: &[Rule] = &[
        ("managed-udp", "affinity = { kind = \"signed\", offset = 4, encoding = \"raw\" }", MANAGED),
        ("signed-offset-raw", "affinity = { kind = \"signed\", offset = 9, encoding = \"raw\" }", ELSEWHERE),
        (
            "signed-offset-text",
            "affinity = { kind = \"signed\", offset = 4, encoding = \"text\" }",
            ELSEWHERE,
        ),
        (
            "signed-end-raw",
            "affinity = { kind = \"signed\", end = 0, encoding = \"raw\" }\nbalance = \"least\"",
            ELSEWHERE,
        ),
        ("signed-end-text", "affinity = { kind = \"signed\", end = 2, encoding = \"text\" }", ELSEWHERE),
        (
            "signed-marker-raw",
            "affinity = { kind = \"signed\", marker = \"hex:0d0a\", encoding = \"raw\" }\non_unavailable = \"reject\"",
            ELSEWHERE,
        ),
        (
            "signed-marker-text",
            "affinity = { kind = \"signed\", marker = \"sid=\", encoding = \"text\" }",
            ELSEWHERE,
        ),
        ("hashed-offset", "affinity = { kind = \"hashed\", offset = 255, bytes = 8 }", ELSEWHERE),
        ("hashed-end", "affinity = { kind = \"hashed\", end = 0, bytes = 16 }", ELSEWHERE),
        ("hashed-marker", "affinity = { kind = \"hashed\", marker = \"Call-ID\", bytes = 64 }", ELSEWHERE),
        ("learned-offset", "affinity = { kind = \"learned\", offset = 0, bytes = 1 }", ELSEWHERE),
        (
            "learned-end",
            "affinity = { kind = \"learned\", end = 1, bytes = 8 }\nbalance = \"least\"",
            ELSEWHERE,
        ),
        (
            "learned-marker",
            "affinity = { kind = \"learned\", marker = \"sid=\", bytes = 32 }\non_unavailable = \"reject\"",
            ELSEWHERE,
        ),
        (
            "quic-clear",
            "affinity = { kind = \"quic\", configs = [{ rotation = 0, server_id_bytes = 2, nonce_bytes = 6 }] }",
            &["server_id = \"0a01\"", "server_id = \"0a02\""],
        ),
        (
            "quic-encrypted",
            "affinity = { kind = \"quic\", configs = [{ rotation = 6, server_id_bytes = 1, nonce_bytes = 15, \
             key = \"000102030405060708090a0b0c0d0e0f\" }] }\non_unavailable = \"reject\"",
            &["server_id = \"01\"", "server_id = \"02\""],
        ),
        (
            "quic-rotated",
            "affinity = { kind = \"quic\", configs = [\n\
             { rotation = 0, server_id_bytes = 1, nonce_bytes = 4 },\n\
             { rotation = 1, server_id_bytes = 2, nonce_bytes = 14, key = \"000102030405060708090a0b0c0d0e0f\" },\n\
             { rotation = 2, server_id_bytes = 15, nonce_bytes = 4, key_file = \"quic.key\" },\n] }",
            &[
                "server_id = [\"01\", \"0a01\", \"0102030405060708090a0b0c0d0e0f\"]",
                "server_id = [\"02\", \"0a02\", \"0202030405060708090a0b0c0d0e0f\"]",
            ],
        ),
        (
            "source-udp",
            "affinity = { kind = \"source\" }\nhealth = { send = \"ping\", expect = \"pong\" }",
            ELSEWHERE,
        ),
        ("none-udp", "affinity = { kind = \"none\" }\nbalance = \"least\"", ELSEWHERE),
    ];
    let all = tcp.iter().map(|rule| ("tcp", rule)).chain(udp.iter().map(|rule| ("udp", rule)));
    all.enumerate()
        .map(|(n, (protocol, (name, lines, backends)))| {
            let mut text = format!(
                "[[service]]\nname = \"{name}\"\nvip = \"192.0.2.1:{}\"\nprotocol = \"{protocol}\"\n{lines}\n",
                1000 + n
            );
            for (i, more) in backends.iter().enumerate() {
                text += &format!("[[service.backend]]\nname = \"b{i}\"\n{more}\n");
                if !more.contains("managed") {
                    text += &format!("addr = \"198.51.100.{}:{}\"\n", i + 1, 1000 + n);
                }
            }
            (*name, text)
        })
        .collect()
}

#[test]
fn there_is_a_rule_of_every_kind() -> Result<()> {
    let mut missing = kinds::all();
    let mut names = BTreeSet::new();
    for (name, text) in rules() {
        let config = meaning(&format!("{FRAME}\n{text}")).with_context(|| format!("rule {name}"))?;
        ensure!(config.services.len() == 1 && names.insert(name), "rule {name} is not one service");
        for kind in kinds::of(&config.services[0]) {
            missing.remove(kind);
        }
    }
    ensure!(missing.is_empty(), "no rule is of these kinds: {missing:?}");
    Ok(())
}

#[test]
fn every_rule_starts() -> Result<()> {
    let town = Topology::new(Arms::One, 0)?;
    let services: Vec<String> = rules().into_iter().map(|(_, text)| text).collect();
    Whole::start(&town.balancer, &format!("{FRAME}\n{}", services.join("\n")))?.stop()
}
