//! The short form of the fuzzer: kept inputs, and mutations of them. `cargo xtask fuzz` is the long one.

use anyhow::{Context, Result};
use std::time::{SystemTime, UNIX_EPOCH};
use tests::fuzz::{corpus, target, targets};

/// A seed that is drawn; LB_FUZZ_SEED repeats one. LB_FUZZ_ROUNDS says how many mutations are fed.
fn run(name: &str) -> Result<()> {
    let target = target(name).with_context(|| format!("there is no target {name}"))?;
    let number = |name: &str| {
        std::env::var(name).ok().map(|text| text.parse::<u64>().context(format!("{name}={text}"))).transpose()
    };
    let drawn = SystemTime::now().duration_since(UNIX_EPOCH)?.as_nanos() as u64;
    let seed = number("LB_FUZZ_SEED")?.unwrap_or(drawn % 1_000_000_007);
    let rounds = number("LB_FUZZ_ROUNDS")?.map(|rounds| rounds as u32);
    // Where instructions are translated, that they are all right is no question of many.
    let rounds = rounds.or_else(|| tests::is_slow().then_some(50));
    corpus::run(&target, seed, rounds)
}

macro_rules! tests {
    ($($test:ident = $name:literal,)+) => {
        $(
            #[test]
            fn $test() -> Result<()> {
                run($name)
            }
        )+

        #[test]
        fn every_target_has_a_test_and_inputs() -> Result<()> {
            let names: Vec<_> = targets().iter().map(|target| target.name).collect();
            assert_eq!(names, [$($name),+]);
            targets().iter().try_for_each(|target| corpus::kept(target).map(drop))
        }
    };
}

tests! {
    tokens = "token",
    keys = "keys",
    cookies = "cookie",
    configurations = "config",
    control_messages = "control",
    records = "record",
    archives = "archive",
    datagrams = "datagram",
    tcp_options = "options",
    connection_ids = "connection-id",
    programs = "program",
    heads_of_requests = "head",
    heads_of_responses = "set-cookie",
    client_hellos = "tls",
    proxy_headers = "proxy",
    quic_packets = "quic",
}
