use super::*;
use lb_common::service::{Affinity, Balance, Place};

/// A registry with one service of these lines, all backends ready.
fn with(lines: &str) -> (Registry, Maps) {
    let text = format!(
        "[lbd]\ninterfaces = [\"eth0\"]\n[limits]\nmaglev_size = 251\n[[service]]\nname = \"shop\"\n\
         vip = \"192.0.2.1:80\"\n{lines}\n\
         backend = [{{ name = \"a\", addr = \"192.0.2.10:80\" }}, {{ name = \"b\", addr = \"192.0.2.11:80\" }}]"
    );
    bring_up(&text, 2)
}

/// A registry with one service whose backends have so many slots, and addresses from 192.0.2.10 on: all of them ready.
pub(super) fn bring_up(text: &str, backends: u16) -> (Registry, Maps) {
    bring_up_in(text, &(0..backends).collect::<Vec<_>>())
}

/// The same with slots in the order of the backends: that of slot n has the address 192.0.2.(10 + n).
pub(super) fn bring_up_in(text: &str, slots: &[u16]) -> (Registry, Maps) {
    let config = Config::parse(Path::new("lb.toml"), text).unwrap_or_else(|error| panic!("{error}"));
    let ids = Ids { services: vec![SHOP], slots: vec![slots.to_vec()], ..Ids::default() };
    let mut settings = Settings { token_key_mask: 1 << 3, ..Settings::default() };
    settings.token_keys[3] = KEY;
    let clock = Clock::measure().unwrap();
    let (mut registry, outcome) =
        Registry::new(&config, &ids, &Left::default(), settings, &clock, Instant::now());
    let mut maps = Maps::default();
    maps.perform(&outcome.writes);
    for slot in slots.iter().copied() {
        let addr = IpAddr::from([192, 0, 2, 10 + slot as u8]);
        let hop = Some(NextHop { ifindex: 3, local_mac: [2; 6], next_hop_mac: [4; 6] });
        let abilities = Abilities::default();
        for change in [
            Change::NextHop { addr, hop },
            Change::Health { slot, up: true, abilities, reason: None },
            Change::Epoch { slot, epoch: 1 },
        ] {
            maps.perform(&registry.apply(change, Instant::now()).writes);
        }
    }
    (registry, maps)
}

#[test]
fn services_of_a_group_send_a_client_to_the_same_host() {
    let table = |group: &str, port: u16, slots: [u16; 3]| {
        let backends: String = slots
            .iter()
            .map(|slot| {
                let weight = slot + 1;
                format!(
                    "{{ name = \"b{slot}\", addr = \"192.0.2.{}:{port}\", weight = {weight} }},",
                    10 + slot
                )
            })
            .collect();
        let text = format!(
            "[lbd]\ninterfaces = [\"eth0\"]\n[limits]\nmaglev_size = 251\n[[service]]\nname = \"shop\"\n\
             vip = \"192.0.2.1:{port}\"\naffinity = {{ kind = \"source\" }}\n{group}\nbackend = [{backends}]"
        );
        bring_up_in(&text, &slots).1.tables[&SHOP].clone()
    };
    let (group, other) = ("affinity_group = \"web\"", "affinity_group = \"mail\"");
    let web = table(group, 80, [0, 1, 2]);
    assert_eq!(web, table(group, 443, [2, 0, 1]));
    assert_eq!(web, table(group, 8443, [1, 2, 0]));
    // Groups are spread each in its own way, and so are services without one.
    assert_ne!(web, table(other, 80, [0, 1, 2]));
    assert_ne!(table("", 80, [0, 1, 2]), table("", 443, [2, 0, 1]));
}

#[test]
fn every_rule_has_its_map_entry() {
    let learned = Clock::measure().unwrap().ticks(Duration::from_secs(60));
    // Affinity, place, bytes before the key, bytes of the key, ticks.
    for (lines, affinity, place, key_at, key_len, ticks) in [
        ("", Affinity::Signed, Place::Cookie, 0, 0, 0),
        ("affinity = { header = \"X-S\" }", Affinity::Signed, Place::Header, 0, 0, 0),
        ("affinity = { kind = \"hashed\", query = \"s\" }", Affinity::Hashed, Place::Query, 0, 0, 0),
        ("affinity = { kind = \"hashed\", sni = true }", Affinity::Hashed, Place::Sni, 0, 0, 0),
        (
            "affinity = { kind = \"learned\", cookie = \"s\", idle = \"1m\" }",
            Affinity::Learned,
            Place::Cookie,
            0,
            0,
            learned,
        ),
        ("affinity = { kind = \"none\" }", Affinity::None, Place::Cookie, 0, 0, 0),
        ("protocol = \"udp\"", Affinity::Signed, Place::Offset, 4, 33, 0),
        (
            "protocol = \"udp\"\naffinity = { end = 2, encoding = \"text\" }",
            Affinity::Signed,
            Place::End,
            2,
            44,
            0,
        ),
        (
            "protocol = \"udp\"\naffinity = { kind = \"learned\", marker = \"sid=\", bytes = 16, idle = \"1m\" }",
            Affinity::Learned,
            Place::Marker,
            0,
            16,
            learned,
        ),
    ] {
        let (_, maps) = with(lines);
        let entry = maps.services[&SHOP];
        assert_eq!(
            (entry.affinity, entry.place, entry.key_at, entry.key_len, entry.learned_ticks),
            (affinity as u8, place as u8, key_at, key_len, ticks),
            "{lines}"
        );
        let marker = if place == Place::Marker { 4 } else { 0 };
        assert_eq!(entry.marker_len(), marker, "{lines}");
        let named = matches!(place, Place::Cookie | Place::Header | Place::Query);
        assert_eq!(entry.key_name_len > 0, named && affinity != Affinity::None, "{lines}");
        let protocol = if lines.contains("udp") { 17 } else { 6 };
        assert_eq!((entry.protocol, entry.strict, entry.balance), (protocol, 0, Balance::Maglev as u8));
        assert_eq!(maps.state(0), State::Ready);
    }
    let (_, maps) = with("balance = \"least\"\non_unavailable = \"reject\"");
    let entry = maps.services[&SHOP];
    assert_eq!((entry.strict, entry.balance), (1, Balance::Least as u8));
}

#[test]
fn endpoints_are_those_of_the_protocol() {
    let (registry, _) = with("protocol = \"udp\"");
    let MapWrite::Endpoints(endpoints) = registry.endpoints_write() else { panic!("endpoints") };
    assert_eq!(endpoints.len(), 3);
    assert!(endpoints.iter().all(|endpoint| endpoint.port >> 16 == 17), "{endpoints:?}");
}

#[test]
fn explain_knows_every_rule() {
    let token = Token { key_id: 3, service: SHOP, slot: 1, epoch: 1, session: SessionId([7; 16]) };
    let text = String::from_utf8(encode(&token.sign(&KEY)).to_vec()).unwrap();
    for (lines, start, counter) in [
        (
            "affinity = { kind = \"hashed\", query = \"s\" }",
            "this service looks at no token: what stands at its place (query s) is hashed",
            "hashed",
        ),
        (
            "affinity = { kind = \"learned\", cookie = \"sid\" }",
            "this service looks at no token: a key that a backend handed out (cookie sid) leads to that backend",
            "new_session",
        ),
        (
            "protocol = \"udp\"\naffinity = { kind = \"source\" }",
            "this service looks at no token: a flow is bound by its first datagram, by the client's address",
            "hashed",
        ),
        ("protocol = \"udp\"", "b is ready and in the token's epoch 1", "affinity_hit"),
    ] {
        let told = with(lines).0.explain(&text, None).unwrap();
        assert!(told.why.starts_with(start), "{}", told.why);
        assert_eq!(told.counters, [counter], "{lines}");
    }
    // Nobody else gets a session where the service does not want it.
    for (protocol, verdict, counters) in
        [("tcp", "unavailable", "rejected unavailable"), ("udp", "dropped", "rejected drop_no_backend")]
    {
        let (mut registry, _) = with(&format!("protocol = \"{protocol}\"\non_unavailable = \"reject\""));
        registry.apply(Change::Admin { backend: "b".into(), admin: Admin::Maint }, Instant::now());
        let told = registry.explain(&text, None).unwrap();
        assert_eq!((told.verdict.as_str(), told.counters.join(" ")), (verdict, counters.to_owned()));
        assert_eq!(
            told.why,
            "b holds the session, but is maint, and this service gives its sessions to no other backend"
        );
    }
    let (mut registry, _) = with("protocol = \"udp\"");
    for backend in ["a", "b"] {
        registry.apply(Change::Admin { backend: backend.into(), admin: Admin::Maint }, Instant::now());
    }
    let told = registry.explain(&text, None).unwrap();
    assert_eq!((told.verdict.as_str(), told.counters.join(" ")), ("dropped", "drop_no_backend".to_owned()));
}

#[test]
fn explain_tells_where_a_key_leads() {
    let learned = "affinity = { kind = \"learned\", cookie = \"sid\" }";
    let told = |registry: &Registry, home| {
        let told = registry.explain_key(SHOP, b"value", home);
        (told.verdict, told.backend, told.why, told.counters.join(" "))
    };
    let row = |verdict: &str, backend: Option<&str>, why: &str, counters: &str| {
        (verdict.to_owned(), backend.map(str::to_owned), why.to_owned(), counters.to_owned())
    };
    let maint = |registry: &mut Registry, backend: &str| {
        registry.apply(Change::Admin { backend: backend.into(), admin: Admin::Maint }, Instant::now());
    };
    let unknown = "no backend is known to have handed that key out, or it is forgotten";
    let hashed = format!("{unknown}: it is hashed, so that every balancer sends it to the same backend");

    let (mut registry, _) = with(learned);
    let hit = row("hit", Some("shop/b"), "b handed that key out, and is ready", "affinity_hit");
    assert_eq!(told(&registry, Some(1)), hit);
    let (verdict, backend, why, counters) = told(&registry, None);
    assert_eq!((verdict.as_str(), &why, counters.as_str()), ("unknown", &hashed, "unknown_key"));
    assert!(backend.is_some());
    assert_eq!(told(&registry, Some(77)).0, "unknown", "nobody is there");
    maint(&mut registry, "b");
    let why = "b handed that key out, and is maint; shop/a takes its place until it is back";
    assert_eq!(told(&registry, Some(1)), row("redispatched", Some("shop/a"), why, "redispatched"));
    maint(&mut registry, "a");
    let nobody = format!("{unknown}; no backend is ready");
    assert_eq!(told(&registry, None), row("unavailable", None, &nobody, "unavailable"));

    let (mut registry, _) = with(&format!("{learned}\non_unavailable = \"reject\""));
    maint(&mut registry, "b");
    let why = "b handed that key out, and is maint, and this service gives its sessions to no other backend";
    assert_eq!(told(&registry, Some(1)), row("unavailable", None, why, "rejected unavailable"));

    let learned = "protocol = \"udp\"\naffinity = { kind = \"learned\", offset = 0, bytes = 5 }";
    assert_eq!(told(&with(learned).0, None), row("unknown", None, &hashed, "unknown_key"));
    for (name, is) in [(Some("shop"), true), (None, true), (Some("other"), false)] {
        assert_eq!(with(learned).0.learning(name), is.then_some(SHOP), "{name:?}");
    }
    assert_eq!(with("protocol = \"udp\"").0.learning(None), None);
}
