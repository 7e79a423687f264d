//! Backends that the configuration does not have any more.

use super::*;
use crate::config::hex;

const UDP: &str = r#"
[lbd]
interfaces = ["eth0"]
[limits]
maglev_size = 251
[[service]]
name = "edge"
vip = "192.0.2.1:443"
protocol = "udp"
affinity = { kind = "quic", configs = [{ rotation = 1, server_id_bytes = 1, nonce_bytes = 6 }] }
backend = [
  { name = "q1", addr = "192.0.2.10:443", server_id = "01" },
  { name = "q2", addr = "192.0.2.11:443", server_id = "02" },
]
"#;
/// The one without its second backend.
fn without() -> String {
    UDP.replace(r#"{ name = "q2", addr = "192.0.2.11:443", server_id = "02" },"#, "")
}
const Q1: u16 = 4;
const Q2: u16 = 5;

/// An lbd that finds what another one left.
fn begin(text: &str, left: &Left) -> Fixture {
    let config = Config::parse(Path::new("lb.toml"), text).unwrap_or_else(|error| panic!("{error}"));
    let slots = [Q1, Q2][..config.services[0].backends.len()].to_vec();
    let others = BTreeMap::from([(Q2, "q2".to_owned())]);
    let ids = Ids { services: vec![1], slots: vec![slots], others };
    let now = Instant::now();
    let (registry, outcome) =
        Registry::new(&config, &ids, left, Settings::default(), &Clock::measure().unwrap(), now);
    let mut fixture = Fixture { registry, maps: Maps::default(), effects: outcome.effects, now };
    fixture.maps.perform(&outcome.writes);
    fixture
}

/// What this one leaves.
fn leave(fixture: &Fixture) -> Left {
    Left {
        services: fixture.maps.services.clone().into_iter().collect(),
        backends: fixture.maps.backends.clone().into_iter().collect(),
        quic: fixture.maps.quic.values().flat_map(|(_, servers)| servers.clone()).collect(),
    }
}

fn both_ready() -> Fixture {
    let mut fixture = begin(UDP, &Left::default());
    for slot in [Q1, Q2] {
        fixture.hop(slot);
        fixture.up(slot);
        fixture.apply(Change::Epoch { slot, epoch: 1 });
        assert_eq!(fixture.maps.state(slot), State::Ready);
    }
    fixture
}

#[test]
fn over_udp_it_serves_what_lives_there_as_long_as_it_is_up() {
    let mut fixture = begin(&without(), &leave(&both_ready()));
    assert_eq!((fixture.maps.state(Q2), fixture.maps.backends[&Q2].leaving), (State::Drain, 1));
    assert!(fixture.maps.tables[&1].iter().all(|slot| *slot == Q1), "nothing new comes to it");
    assert!(fixture.effects.contains(&Effect::Check { slot: Q2 }), "{:?}", fixture.effects);
    let id = hex("02").unwrap();
    let server = (quic_lb::Server::new(1, &id).unwrap(), Q2);
    assert!(fixture.maps.quic[&1].1.contains(&server), "its connection ids lead there still");
    let view = fixture.view(Q2);
    assert_eq!((view.name.as_str(), view.state.as_str(), view.flows), ("q2", "leaving", 7));
    assert_eq!(view.reason.as_deref(), Some("no longer configured"));
    assert_eq!(fixture.registry.count_backends(), (1, 1, 1));
    assert_eq!(fixture.registry.backend_names()[&Q2], "edge/q2", "as the trace calls it");
    let service = &fixture.registry.services()[0];
    assert_eq!((service.backends, service.ready, service.draining, service.leaving), (1, 1, 0, 1));
    let told = fixture.registry.explain("3102000000000000", None).unwrap();
    assert_eq!((told.verdict.as_str(), told.backend.as_deref()), ("hit", Some("edge/q2")));
    assert!(told.why.contains("q2, which is leaving"), "{}", told.why);

    fixture.apply(Change::Epoch { slot: Q2, epoch: 2 });
    fixture.down(Q2);
    assert_eq!(fixture.maps.state(Q2), State::Down, "its flows go elsewhere");
    assert_eq!(fixture.view(Q2).reason.as_deref(), Some("no longer configured; down: connection refused"));
    let told = fixture.registry.explain("3102000000000000", None).unwrap();
    assert_eq!((told.verdict.as_str(), told.backend.as_deref()), ("redispatched", Some("edge/q1")));
    // Others serve its sessions by now, so it comes back in a new epoch; the next lbd knows as much.
    let mut fixture = begin(&without(), &leave(&fixture));
    fixture.up(Q2);
    assert_eq!(fixture.effects, [Effect::NextEpoch { slot: Q2 }]);
    fixture.apply(Change::Epoch { slot: Q2, epoch: 3 });
    assert_eq!(fixture.maps.state(Q2), State::Drain);
    fixture.apply(Change::Deserted { slot: Q2 });
    assert_eq!((fixture.maps.backends[&Q2], fixture.registry.backend(Q2)), (map::Backend::default(), None));
}

#[test]
fn one_that_did_not_serve_does_not_serve_because_it_leaves() {
    let mut before = both_ready();
    before.admin("q2", Admin::Maint);
    let fixture = begin(&without(), &leave(&before));
    assert_eq!(fixture.maps.state(Q2), State::Maint);
    assert!(!fixture.effects.contains(&Effect::Check { slot: Q2 }), "{:?}", fixture.effects);
}

#[test]
fn one_that_comes_back_is_ready_at_once() {
    let left = leave(&begin(&without(), &leave(&both_ready())));
    let fixture = begin(UDP, &left);
    assert_eq!((fixture.maps.state(Q2), fixture.maps.backends[&Q2].leaving), (State::Ready, 0));
    // Connections need it in no state at all; it is as good as any that was in maintenance.
    let tcp = |text: &str| {
        text.replace("udp", "tcp").replace(", server_id = \"01\"", "").replace(", server_id = \"02\"", "")
    };
    let tcp = |text: &str| {
        let text = tcp(text);
        let (from, to) = (text.find("affinity").unwrap(), text.find("backend").unwrap());
        text[..from].to_owned() + &text[to..]
    };
    let mut before = begin(&tcp(UDP), &Left::default());
    for slot in [Q1, Q2] {
        before.hop(slot);
        before.up(slot);
        before.apply(Change::Epoch { slot, epoch: 1 });
    }
    let gone = begin(&tcp(&without()), &leave(&before));
    assert_eq!((gone.maps.state(Q2), gone.view(Q2).state.as_str()), (State::Maint, "leaving"));
    let mut back = begin(&tcp(UDP), &leave(&gone));
    assert_eq!(back.maps.state(Q2), State::Down, "it is checked first");
    back.up(Q2);
    assert_eq!(back.effects, [Effect::NextEpoch { slot: Q2 }]);
    back.apply(Change::Epoch { slot: Q2, epoch: 2 });
    assert_eq!(back.maps.state(Q2), State::Ready);
}

#[test]
fn the_operator_is_told_that_it_is_leaving() {
    let mut fixture = begin(&without(), &leave(&both_ready()));
    for admin in [Admin::Ready, Admin::Drain, Admin::Maint] {
        let refused = fixture.admin("q2", admin).refused.unwrap();
        assert!(refused.reason.contains("`q2` is leaving"), "{refused:?}");
    }
    for change in [
        Change::Restart { backend: "edge/q2".to_owned() },
        Change::Kill { backend: "q2".to_owned(), down_for: None },
    ] {
        let refused = fixture.apply(change).refused.unwrap();
        assert!(refused.reason.contains("is leaving"), "{refused:?}");
    }
    assert_eq!(fixture.registry.find("q2").unwrap(), Q2, "its flows can be listed");
    assert!(fixture.registry.is_leaving("edge", "q2") && !fixture.registry.is_leaving("edge", "q1"));
}
