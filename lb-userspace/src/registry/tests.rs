mod explain;
mod leaving;
mod names;
mod quic;
mod rules;
mod states;

use super::*;
use crate::control::{BackendView, ExplainView};
use crate::datapath::Listed;
use lb_common::backend as map;
use lb_common::counter::Counter;
use lb_common::quic_lb;
use lb_common::service as map_service;
use lb_common::service::{PROMISE_SACK, PROMISE_TIMESTAMPS, PROMISE_WINDOW_SCALE};
use lb_common::token::{SessionId, Token, encode};
use proptest::prelude::*;
use std::collections::HashMap;
use std::path::Path;

const CONFIG: &str = r#"
[lbd]
interfaces = ["eth0"]
[limits]
maglev_size = 251
[[service]]
name = "shop"
vip = "192.0.2.1:80"
backend = [
  { name = "s1", managed = true },
  { name = "web1", addr = "192.0.2.10:80" },
  { name = "web2", addr = "192.0.2.11:80", weight = 3 },
  { name = "web3", addr = "192.0.2.12:80", weight = 0 },
]
[[service]]
name = "blog"
vip = "192.0.2.1:81"
backend = [{ name = "web1", addr = "192.0.2.10:81" }, { name = "b2", addr = "192.0.2.13:80" }]
"#;
/// Slots of `CONFIG`, and ids of its services.
const S1: u16 = 0;
const WEB1: u16 = 1;
const WEB2: u16 = 2;
const WEB3: u16 = 3;
const BLOG1: u16 = 4;
const BLOG2: u16 = 5;
const SHOP: u16 = 1;
const BLOG: u16 = 2;
const KEY: SipKey = [7, 8];
const ALL: u8 = PROMISE_SACK | PROMISE_TIMESTAMPS | PROMISE_WINDOW_SCALE;

/// What [`MapWrite::Quic`] says of a service.
type Quic = (Vec<quic_lb::Config>, Vec<(quic_lb::Server, u16)>);

/// The maps, as the writes leave them.
#[derive(Default)]
struct Maps {
    backends: HashMap<u16, map::Backend>,
    services: HashMap<u16, map_service::Service>,
    tables: HashMap<u16, Vec<u16>>,
    settings: Vec<Settings>,
    endpoints: usize,
    quic: HashMap<u16, Quic>,
    pools: HashMap<u64, Vec<u16>>,
    names: HashMap<u16, Vec<Listed>>,
}

impl Maps {
    fn perform(&mut self, writes: &[MapWrite]) {
        for write in writes.iter().cloned() {
            match write {
                MapWrite::Settings(settings) => self.settings.push(*settings),
                MapWrite::Endpoints(endpoints) => self.endpoints = endpoints.len(),
                MapWrite::Quic { id, configs, servers } => {
                    self.quic.insert(id, (configs, servers));
                }
                MapWrite::Pool { id, maglev } => {
                    self.pools.insert(id, maglev);
                }
                MapWrite::Names { service, listed } => {
                    assert!(
                        listed.iter().all(|name| self.pools.contains_key(&name.pool)),
                        "pools come first"
                    );
                    self.names.insert(service, listed);
                }
                MapWrite::Service { id, service, maglev } => {
                    self.services.insert(id, service);
                    self.tables.extend(maglev.map(|table| (id, table)));
                }
                MapWrite::Backend { slot, backend } => {
                    self.backends.insert(slot, backend);
                }
            }
        }
    }

    fn state(&self, slot: u16) -> State {
        State::from_bits(self.backends[&slot].state)
    }
}

struct Fixture {
    registry: Registry,
    maps: Maps,
    effects: Vec<Effect>,
    now: Instant,
}

fn ids() -> Ids {
    let others = BTreeMap::from([(20, "old".to_owned())]);
    Ids { services: vec![SHOP, BLOG], slots: vec![vec![S1, WEB1, WEB2, WEB3], vec![BLOG1, BLOG2]], others }
}

impl Fixture {
    fn new() -> Self {
        Self::after(&Left::default())
    }

    fn after(left: &Left) -> Self {
        let config = Config::parse(Path::new("lb.toml"), CONFIG).unwrap_or_else(|error| panic!("{error}"));
        let mut settings = Settings { token_key_mask: 1 << 3, ..Settings::default() };
        settings.token_keys[3] = KEY;
        let now = Instant::now();
        let (registry, outcome) =
            Registry::new(&config, &ids(), left, settings, &Clock::measure().unwrap(), now);
        let mut fixture = Self { registry, maps: Maps::default(), effects: Vec::new(), now };
        fixture.maps.perform(&outcome.writes);
        fixture.effects = outcome.effects;
        fixture
    }

    /// Applies a change. The effects of this one alone are kept.
    fn apply(&mut self, change: Change) -> Outcome {
        let outcome = self.registry.apply(change, self.now);
        self.maps.perform(&outcome.writes);
        self.effects = outcome.effects.clone();
        outcome
    }

    fn up(&mut self, slot: u16) {
        let abilities = Abilities { seen: 1, promises: ALL, mss: 1448, ..Abilities::default() };
        self.apply(Change::Health { slot, up: true, abilities, reason: None });
    }

    fn down(&mut self, slot: u16) {
        let reason = Some("connection refused".to_owned());
        self.apply(Change::Health { slot, up: false, abilities: Abilities::default(), reason });
    }

    fn hop(&mut self, slot: u16) {
        let addr = self.registry.backends[&slot].addr.ip();
        let hop = NextHop { ifindex: 3, local_mac: [2; 6], next_hop_mac: [4; 6] };
        self.apply(Change::NextHop { addr, hop: Some(hop) });
    }

    /// Brings everything up, as it happens when lbd starts.
    fn all_ready() -> Self {
        let mut fixture = Self::new();
        fixture.apply(Change::ServerReady { slot: S1, epoch: 5 });
        for slot in [S1, WEB1, WEB2, WEB3, BLOG1, BLOG2] {
            fixture.hop(slot);
            fixture.up(slot);
            if slot != S1 {
                assert_eq!(fixture.effects, [Effect::NextEpoch { slot }]);
                fixture.apply(Change::Epoch { slot, epoch: 1 });
            }
            assert_eq!(fixture.maps.state(slot), State::Ready, "slot {slot}");
        }
        fixture
    }

    fn admin(&mut self, backend: &str, admin: Admin) -> Outcome {
        self.apply(Change::Admin { backend: backend.to_owned(), admin })
    }

    fn view(&self, slot: u16) -> BackendView {
        let all = self.registry.backends(None, |_| 7, self.now).unwrap();
        all.into_iter().find(|backend| backend.slot == slot).unwrap()
    }

    fn explain(&self, token: &Token) -> ExplainView {
        let text = encode(&token.sign(&KEY));
        self.registry.explain(std::str::from_utf8(&text).unwrap(), None).unwrap()
    }
}

fn token(slot: u16, epoch: u32) -> Token {
    Token { key_id: 3, service: SHOP, slot, epoch, session: SessionId([9; 16]) }
}

#[test]
fn ready_backends_share_the_table_by_weight() {
    let fixture = Fixture::all_ready();
    let table = &fixture.maps.tables[&SHOP];
    let share = |slot| table.iter().filter(|entry| **entry == slot).count();
    assert_eq!(table.len(), 251);
    assert_eq!(share(S1) + share(WEB1) + share(WEB2), 251);
    assert_eq!(share(WEB3), 0, "weight 0");
    assert!((145..157).contains(&share(WEB2)), "3 of 5: {}", share(WEB2));
    assert!(fixture.maps.tables[&BLOG].iter().all(|slot| [BLOG1, BLOG2].contains(slot)));
}

#[test]
fn a_map_entry_holds_all_that_a_packet_needs() {
    let fixture = Fixture::all_ready();
    let entry = fixture.maps.backends[&WEB2];
    assert_eq!(IpAddr::from(entry.addr), IpAddr::from([192, 0, 2, 11]));
    assert_eq!((entry.port.get(), entry.service, entry.weight, entry.epoch), (80, SHOP, 3, 1));
    assert_eq!((entry.has_next_hop, entry.ifindex), (1, 3));
    assert_eq!((entry.local_mac, entry.next_hop_mac, entry.service_port.get()), ([2; 6], [4; 6], 80));
    assert_ne!(entry.ip_delta, 0);
    let service = fixture.maps.services[&SHOP];
    assert_eq!((service.enabled, service.protocol, service.port.get()), (1, 6, 80));
    assert_eq!((service.promises, service.mss, service.key_name_len), (ALL, 1448, 3));
}

#[test]
fn promises_are_what_every_backend_keeps() {
    let mut fixture = Fixture::all_ready();
    let abilities = Abilities { seen: 1, promises: PROMISE_SACK, mss: 1200, ..Abilities::default() };
    fixture.apply(Change::Health { slot: WEB1, up: true, abilities, reason: None });
    let service = fixture.maps.services[&SHOP];
    assert_eq!((service.promises, service.mss), (PROMISE_SACK, 1200));
    fixture.down(WEB1);
    let service = fixture.maps.services[&SHOP];
    assert_eq!((service.promises, service.mss), (ALL, 1448), "a backend that gets nobody binds nobody");
    fixture.apply(Change::Lacks { slot: S1, lacks: PROMISE_SACK });
    assert_eq!(
        fixture.maps.services[&SHOP].promises,
        ALL & !PROMISE_SACK,
        "what clients' own SYN-ACKs lacked"
    );
    fixture.apply(Change::Lacks { slot: S1, lacks: 0 });
    assert_eq!(fixture.maps.services[&SHOP].promises, ALL);
}

#[test]
fn names_are_found_or_suggested() {
    let mut fixture = Fixture::all_ready();
    for (name, expected) in [
        ("web1", "`web1` names several backends\nsay which: shop/web1, blog/web1"),
        ("wbe2", "there is no backend `wbe2`\ndid you mean `shop/web2`?"),
        (
            "x",
            "there is no backend `x`\nthere are: shop/s1, shop/web1, shop/web2, shop/web3, blog/web1, blog/b2",
        ),
    ] {
        assert_eq!(fixture.admin(name, Admin::Drain).refused.unwrap().to_string(), expected);
    }
    assert_eq!(fixture.admin("blog/web1", Admin::Drain).slot, Some(BLOG1));
    let refused = fixture.apply(Change::Restart { backend: "b2".into() }).refused.unwrap().to_string();
    assert_eq!(
        refused,
        "lbd does not run `b2`, so it cannot be restarted from here\n\
         `lbctl backend maint b2` takes it out before you do that where it runs"
    );
    assert_eq!(fixture.registry.find_service("sho").unwrap_err().help.unwrap(), "did you mean `shop`?");
}

/// A restarted lbd finds its remote backends serving: not one packet may be lost while they are checked again.
#[test]
fn an_earlier_daemons_states_go_on() {
    let mut before = Fixture::all_ready();
    before.admin("web2", Admin::Drain);
    before.admin("b2", Admin::Maint);
    before.admin("s1", Admin::Drain);
    before.down(WEB3);
    let left = Left {
        services: before.maps.services.clone().into_iter().collect(),
        backends: before.maps.backends.clone().into_iter().collect(),
        ..Left::default()
    };
    let mut fixture = Fixture::after(&left);
    assert_eq!(fixture.registry.backend(WEB1), Some((State::Ready, 1)));
    assert_eq!(fixture.maps.backends[&WEB1], before.maps.backends[&WEB1]);
    assert_eq!(fixture.maps.state(WEB2), State::Drain);
    assert_eq!(fixture.maps.state(BLOG2), State::Maint);
    assert_eq!(fixture.maps.state(WEB3), State::Down);
    assert_eq!(fixture.maps.state(S1), State::Down, "a managed server ended with its daemon");
    assert_eq!(fixture.maps.services[&SHOP].promises, ALL);
    assert!(fixture.maps.tables[&SHOP].iter().all(|slot| *slot == WEB1));
    // Whether they came back from a crash meanwhile, nobody knows; they serve on, and their next epoch is on its way.
    let asked: Vec<_> = fixture.effects.iter().filter(|e| matches!(e, Effect::NextEpoch { .. })).collect();
    assert_eq!(
        asked,
        [
            &Effect::NextEpoch { slot: WEB1 },
            &Effect::NextEpoch { slot: WEB2 },
            &Effect::NextEpoch { slot: BLOG1 }
        ]
    );
    fixture.up(WEB1);
    assert_eq!((fixture.registry.backend(WEB1), &fixture.effects[..]), (Some((State::Ready, 1)), &[][..]));
    fixture.apply(Change::Epoch { slot: WEB1, epoch: 2 });
    assert_eq!(fixture.registry.backend(WEB1), Some((State::Ready, 2)));
    assert_eq!(fixture.maps.backends[&WEB1].epoch, 2);
    // The managed server is drained still.
    fixture.apply(Change::ServerReady { slot: S1, epoch: 6 });
    fixture.hop(S1);
    fixture.up(S1);
    assert_eq!(fixture.maps.state(S1), State::Drain);
}

#[test]
fn another_server_in_a_slot_inherits_nothing() {
    let before = Fixture::all_ready();
    let mut left = Left { backends: before.maps.backends.into_iter().collect(), ..Left::default() };
    left.backends.get_mut(&WEB1).unwrap().addr = IpAddr::from([192, 0, 2, 99]).into();
    assert_eq!(Fixture::after(&left).maps.state(WEB1), State::Down);
}

#[test]
fn a_backend_that_is_no_longer_configured_leaves_when_nothing_lives_there() {
    const GONE: [u16; 4] = [20, 21, 22, 23];
    let before = Fixture::all_ready();
    let endpoints = before.maps.endpoints;
    let mut left = Left {
        services: before.maps.services.clone().into_iter().collect(),
        backends: before.maps.backends.clone().into_iter().collect(),
        ..Left::default()
    };
    let mut leave = |slot: u16, addr: [u8; 4], service: u16| {
        let found = before.maps.backends[&WEB1];
        let backend = map::Backend { addr: IpAddr::from(addr).into(), service, ..found };
        left.backends.insert(slot, backend);
    };
    leave(GONE[0], [192, 0, 2, 77], SHOP);
    leave(GONE[1], [192, 0, 2, 10], SHOP);
    leave(GONE[2], [192, 0, 2, 78], 9);
    leave(GONE[3], [192, 0, 2, 79], SHOP);
    left.backends.get_mut(&GONE[3]).unwrap().has_next_hop = 0;
    let mut fixture = Fixture::after(&left);
    assert_eq!(fixture.registry.leaving().collect::<Vec<_>>(), [GONE[0]], "its address and service are free");
    let kept = map::Backend { state: State::Maint as u8, leaving: 1, ..left.backends[&GONE[0]] };
    let kept = kept.behind(IpAddr::from([192, 0, 2, 1]).into(), kept.service_port);
    assert_eq!(fixture.maps.backends[&GONE[0]], kept);
    assert_eq!(fixture.maps.endpoints, endpoints + 1);
    assert!(fixture.maps.tables[&SHOP].iter().all(|slot| *slot != GONE[0]), "it gets nothing new");
    fixture.apply(Change::Deserted { slot: GONE[0] });
    assert_eq!(fixture.maps.backends[&GONE[0]], map::Backend::default());
    assert_eq!((fixture.maps.endpoints, fixture.registry.leaving().count()), (endpoints, 0));
}

#[test]
fn cookie_keys_take_turns_and_the_last_one_stays() {
    let mut fixture = Fixture::new();
    for (key, slot) in [([1, 1], 10), ([2, 2], 20), ([3, 3], 31)] {
        let before = *fixture.maps.settings.last().unwrap();
        fixture.apply(Change::CookieKey { key, slot });
        let [.., written, flipped] = fixture.maps.settings[..] else { panic!("two writes") };
        assert_eq!(written.cookie_key, before.cookie_key, "first the key, in the place not in use");
        assert_eq!(
            (written.cookie_key_of(slot), flipped.cookie_key_of(slot)),
            (before.cookie_key_of(slot), before.cookie_key_of(slot))
        );
        assert_eq!(
            (flipped.cookie_key_of(slot | 1), flipped.cookie_key_of(slot + 2)),
            (before.cookie_key_of(slot), key)
        );
    }
}

fn change() -> impl Strategy<Value = Change> {
    let slot = || 0u16..7;
    let name =
        || proptest::sample::select(vec!["s1", "shop/web1", "web2", "web3", "blog/web1", "b2", "nobody"]);
    let admin = proptest::sample::select(vec![Admin::Ready, Admin::Drain, Admin::Maint]);
    prop_oneof![
        4 => (slot(), any::<bool>(), 0u8..8, 0u16..1500).prop_map(|(slot, up, promises, mss)| Change::Health {
            slot, up, abilities: Abilities { seen: u8::from(up), promises, mss, ..Abilities::default() }, reason: None,
        }),
        2 => (10u8..14, any::<bool>()).prop_map(|(host, known)| Change::NextHop {
            addr: IpAddr::from([192, 0, 2, host]),
            hop: known.then_some(NextHop { ifindex: 1, local_mac: [1; 6], next_hop_mac: [2; 6] }),
        }),
        1 => Just(Change::NextHop {
            addr: IpAddr::from([10, 254, 0, 2]),
            hop: Some(NextHop { ifindex: 2, local_mac: [1; 6], next_hop_mac: [2; 6] }),
        }),
        2 => (0u32..9).prop_map(|epoch| Change::ServerReady { slot: S1, epoch }),
        1 => Just(Change::ServerGone { slot: S1, reason: "gone".into() }),
        4 => (slot(), 0u32..9).prop_map(|(slot, epoch)| Change::Epoch { slot, epoch }),
        2 => (name(), admin).prop_map(|(name, admin)| Change::Admin { backend: name.into(), admin }),
        1 => name().prop_map(|name| Change::Restart { backend: name.into() }),
        1 => any::<SipKey>().prop_map(|key| Change::CookieKey { key, slot: 77 }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_happens_the_maps_stay_right(changes in proptest::collection::vec(change(), 0..60), session: [u8; 16]) {
        let mut fixture = Fixture::new();
        let mut served: HashMap<u16, (bool, u32)> = HashMap::new();
        let mut epochs: HashMap<u16, u32> = HashMap::new();
        for change in changes {
            fixture.apply(change);
            for (slot, backend) in &fixture.registry.backends {
                let entry = fixture.maps.backends[slot];
                prop_assert_eq!(entry, backend.entry(&fixture.registry.services[&backend.service]), "all is written");
                let state = fixture.maps.state(*slot);
                let (serving, epoch) = served.entry(*slot).or_default();
                let before = epochs.insert(*slot, entry.epoch).unwrap_or(0);
                prop_assert!(entry.epoch >= before, "epochs never go back");
                if state.serves_sessions() && !*serving {
                    prop_assert!(entry.epoch > *epoch, "whoever returns has a new epoch");
                    prop_assert!(entry.has_next_hop == 1);
                }
                if state.serves_sessions() {
                    *epoch = entry.epoch;
                }
                *serving = state.serves_sessions();
            }
            for (id, table) in &fixture.maps.tables {
                let takes = |slot: &u16| {
                    let entry = &fixture.maps.backends[slot];
                    entry.service == *id && entry.state == State::Ready as u8 && entry.weight > 0
                };
                prop_assert!(table.iter().all(takes), "the table names ready backends only");
                let someone = fixture.maps.backends.keys().any(|slot| fixture.maps.backends[slot].service == *id && takes(slot));
                prop_assert_eq!(table.len(), if someone { 251 } else { 0 });
            }
        }
        for slot in 0..7 {
            let token = Token { session: SessionId(session), ..token(slot, 1) };
            let told = fixture.explain(&token);
            prop_assert_eq!(told.backend.is_none(), told.verdict == "unavailable");
            prop_assert!(told.counters.iter().all(|name| Counter::ALL.iter().any(|counter| counter.name() == name)));
        }
    }
}
