use super::*;
use crate::config::hex;
use lb_common::quic_lb::Server;

const QUIC: &str = r#"
[lbd]
interfaces = ["eth0"]
[limits]
maglev_size = 251
[[service]]
name = "edge"
vip = "192.0.2.1:443"
protocol = "udp"
affinity = { kind = "quic", configs = [
  { rotation = 0, server_id_bytes = 3, nonce_bytes = 4, key = "8f95f09245765f80256934e50c66207f" },
  { rotation = 1, server_id_bytes = 1, nonce_bytes = 6 },
] }
backend = [
  { name = "q1", addr = "192.0.2.10:443", server_id = ["ed793a", "01"] },
  { name = "q2", addr = "192.0.2.11:443", server_id = ["ed793b", "02"] },
]
"#;

fn registry(text: &str) -> (Registry, Maps) {
    let config = Config::parse(Path::new("lb.toml"), text).unwrap_or_else(|error| panic!("{error}"));
    let ids = Ids { services: vec![1], slots: vec![vec![4, 5]], ..Ids::default() };
    let mut maps = Maps::default();
    let clock = Clock::measure().unwrap();
    let (registry, outcome) =
        Registry::new(&config, &ids, &Left::default(), Settings::default(), &clock, Instant::now());
    maps.perform(&outcome.writes);
    (registry, maps)
}

fn up(registry: &mut Registry, slot: u16, up: bool) {
    let hop = NextHop { ifindex: 1, local_mac: [2; 6], next_hop_mac: [3; 6] };
    for host in [10, 11] {
        let addr = [192, 0, 2, host].into();
        registry.apply(Change::NextHop { addr, hop: Some(hop) }, Instant::now());
    }
    let abilities = Abilities::default();
    registry.apply(Change::Health { slot, up, abilities, reason: None }, Instant::now());
    if let Some((_, epoch)) = registry.backend(slot) {
        registry.apply(Change::Epoch { slot, epoch: epoch + 1 }, Instant::now());
    }
}

#[test]
fn configurations_and_server_ids_reach_the_maps() {
    let (_, maps) = registry(QUIC);
    let (configs, servers) = &maps.quic[&1];
    assert_eq!(configs.iter().map(|c| (c.rotation, c.id_len())).collect::<Vec<_>>(), [(0, 8), (1, 8)]);
    let server = |text| Server::new(1, &hex(text).unwrap()).unwrap();
    let expected = [("ed793a", 4), ("01", 4), ("ed793b", 5), ("02", 5)];
    assert_eq!(*servers, expected.map(|(id, slot)| (server(id), slot)));
    assert_eq!(maps.services[&1].affinity, map_service::Affinity::Quic as u8);
    // Any other service has none, and says so.
    let source = QUIC.split("affinity").next().unwrap().to_owned()
        + "affinity = { kind = \"source\" }\nbackend = [{ name = \"a\", addr = \"192.0.2.10:1\" }]";
    assert_eq!(registry(&source).1.quic[&1], (vec![], vec![]));
}

#[test]
fn a_connection_id_is_explained() {
    let (mut registry, _) = registry(QUIC);
    up(&mut registry, 4, true);
    up(&mut registry, 5, true);
    let says = |registry: &Registry, id: &str| {
        let view = registry.explain(id, None).unwrap();
        (view.verdict, view.backend, view.why, view.counters.join(" "))
    };
    // The draft's own vector (appendix B.2).
    let (verdict, backend, why, counters) = says(&registry, "0720b1d07b359d3c");
    assert_eq!((verdict.as_str(), backend.as_deref()), ("hit", Some("edge/q1")));
    assert_eq!(
        (why.as_str(), counters.as_str()),
        ("its server id ed793a is that of q1, which is ready", "affinity_hit")
    );
    assert_eq!(says(&registry, "2702aabbccddeeff").1.as_deref(), Some("edge/q2"), "in the clear");
    for (id, why) in [
        ("e7010203", "its rotation, 7, says that it names no server: "),
        ("47010203", "the service has no configuration with rotation 2: "),
        ("0720b1", "it has 3 bytes, but the configuration with rotation 0 makes ids of 8: "),
        ("2703aabbccddeeff", "no backend has the server id 03: "),
    ] {
        let (verdict, backend, told, counters) = says(&registry, id);
        assert!(told.starts_with(why), "{told}");
        assert_eq!((verdict.as_str(), counters.as_str(), backend.is_some()), ("new", "new_session", true));
    }
    for id in ["", "0g", "012", &"00".repeat(21)] {
        assert!(
            registry.explain(id, Some("edge")).unwrap_err().to_string().contains("is no connection id"),
            "{id}"
        );
    }
    up(&mut registry, 4, false);
    let (verdict, backend, ..) = says(&registry, "0720b1d07b359d3c");
    assert_eq!((verdict.as_str(), backend.as_deref()), ("redispatched", Some("edge/q2")));
}
