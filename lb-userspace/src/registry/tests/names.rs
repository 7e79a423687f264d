use super::rules::{bring_up, bring_up_in};
use super::*;
use lb_common::name::{EXACT, WILDCARD};
use lb_common::service::{NAMES_LISTED, NAMES_ONLY};

const NAMES: [&str; 5] = [
    "sni = [\"shop.example.org\"]",
    "sni = [\"shop.example.org\", \"*.example.org\"]",
    "sni = [\"*.example.org\", \"*.shop.example.org\"]",
    "",
    "",
];

/// Backends `a` to `e` in slots 0 to 4 behind a service with that affinity; the last two take what is listed for none, if
/// there are so many.
fn text(affinity: &str, count: usize) -> String {
    let backend = |(i, names): (usize, &&str)| {
        let name = char::from(b'a' + i as u8);
        let comma = if names.is_empty() { "" } else { ", " };
        format!("{{ name = \"{name}\", addr = \"192.0.2.{}:443\"{comma}{names} }}", 10 + i)
    };
    let backends: Vec<_> = NAMES[..count].iter().enumerate().map(backend).collect();
    format!(
        "[lbd]\ninterfaces = [\"eth0\"]\n[limits]\nmaglev_size = 251\npool_maglev_size = 257\n[[service]]\nname = \"tls\"\n\
         vip = \"192.0.2.1:443\"\naffinity = {affinity}\nbackend = [{}]",
        backends.join(", ")
    )
}

fn with(kind: &str, count: usize) -> (Registry, Maps) {
    bring_up(&text(&format!("{{ kind = \"{kind}\", sni = true }}"), count), count as u16)
}

fn slots(table: &[u16]) -> Vec<u16> {
    let all: std::collections::BTreeSet<_> = table.iter().copied().collect();
    all.into_iter().collect()
}

/// What a name leads to, as the maps say it.
fn pool_of(maps: &Maps, kind: u16, text: &str) -> Vec<u16> {
    let listed = maps.names[&SHOP].iter().find(|listed| listed.kind == kind && listed.text == text);
    slots(&maps.pools[&listed.unwrap_or_else(|| panic!("{text} is not listed")).pool])
}

#[test]
fn each_name_has_a_table_of_the_backends_that_are_listed_for_it() {
    let (mut registry, mut maps) = with("none", 5);
    let entry = maps.services[&SHOP];
    assert_eq!((entry.names, entry.wildcards), (NAMES_LISTED, 1 << 2 | 1 << 3));
    assert_eq!(slots(&maps.tables[&SHOP]), [3, 4], "the rest");
    let shop = |maps: &Maps| pool_of(maps, EXACT, "shop.example.org");
    assert_eq!(shop(&maps), [0, 1]);
    assert_eq!(pool_of(&maps, WILDCARD, "example.org"), [1, 2]);
    assert_eq!(pool_of(&maps, WILDCARD, "shop.example.org"), [2]);
    assert!(maps.pools.values().all(|table| table.len() == 257));
    assert_eq!(registry.count_names(), (3, 3));
    let mut set = |maps: &mut Maps, admin| {
        let change = Change::Admin { backend: "b".into(), admin };
        let writes = registry.apply(change, Instant::now()).writes;
        maps.perform(&writes);
        writes
    };
    let before = maps.pools.clone();
    let writes = set(&mut maps, Admin::Drain);
    assert_eq!((shop(&maps), pool_of(&maps, WILDCARD, "example.org")), (vec![0], vec![2]));
    assert_eq!(slots(&maps.tables[&SHOP]), [3, 4]);
    let pools = writes.iter().filter(|write| matches!(write, MapWrite::Pool { .. })).count();
    let services = writes.iter().filter(|write| matches!(write, MapWrite::Service { .. })).count();
    assert_eq!((pools, services), (2, 0), "only those that it is listed for: {writes:?}");
    set(&mut maps, Admin::Ready);
    assert_eq!(maps.pools, before);
}

#[test]
fn nobody_is_listed_for_the_rest_when_all_have_names() {
    let (_, maps) = with("source", 3);
    let entry = maps.services[&SHOP];
    assert_eq!(entry.names, NAMES_LISTED | NAMES_ONLY);
    assert!(!entry.binds_at_once() && maps.tables[&SHOP].is_empty());
    let (_, maps) = bring_up(
        &text("{ kind = \"source\" }", 0).replace("[]", "[{ name = \"a\", addr = \"192.0.2.10:443\" }]"),
        1,
    );
    assert!(maps.services[&SHOP].binds_at_once() && maps.services[&SHOP].names == 0);
    assert!(maps.names.is_empty() && maps.pools.is_empty());
}

#[test]
fn names_are_written_behind_their_pools_and_before_their_service() {
    let text = text("{ kind = \"none\", sni = true }", 5);
    let config = Config::parse(Path::new("lb.toml"), &text).unwrap_or_else(|error| panic!("{error}"));
    let ids = Ids { services: vec![SHOP], slots: vec![(0..5).collect()], ..Ids::default() };
    let clock = Clock::measure().unwrap();
    let new =
        || Registry::new(&config, &ids, &Left::default(), Settings::default(), &clock, Instant::now()).1;
    let order: Vec<_> = new()
        .writes
        .iter()
        .filter_map(|write| match write {
            MapWrite::Pool { .. } => Some("pool"),
            MapWrite::Names { .. } => Some("names"),
            MapWrite::Service { .. } => Some("service"),
            MapWrite::Endpoints(_) => Some("endpoints"),
            _ => None,
        })
        .collect();
    assert_eq!(order, ["pool", "pool", "pool", "names", "service", "endpoints"]);
    let ids_of = |outcome: Outcome| {
        let id = |write| if let MapWrite::Pool { id, .. } = write { Some(id) } else { None };
        outcome.writes.into_iter().filter_map(id).collect::<Vec<_>>()
    };
    let ids = ids_of(new());
    assert_eq!(ids, ids_of(new()), "a successor knows them by the same ids");
    assert!(ids.iter().all(|id| *id != 0) && ids.iter().collect::<std::collections::HashSet<_>>().len() == 3);
}

#[test]
fn a_backend_that_is_added_takes_its_share_of_its_names_alone() {
    let (_, before) = with("none", 5);
    let more = text("{ kind = \"none\", sni = true }", 5).replace(
        "backend = [",
        "backend = [{ name = \"f\", addr = \"192.0.2.15:443\", sni = [\"shop.example.org\"] }, ",
    );
    let config = Config::parse(Path::new("lb.toml"), &more).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(config.services[0].pools().len(), 3);
    let (_, after) = bring_up_in(&more, &[5, 0, 1, 2, 3, 4]);
    let table = |maps: &Maps, text: &str, kind| {
        let listed: &Listed = maps.names[&SHOP].iter().find(|l| l.text == text && l.kind == kind).unwrap();
        maps.pools[&listed.pool].clone()
    };
    let (old, new) = (table(&before, "shop.example.org", EXACT), table(&after, "shop.example.org", EXACT));
    let moved = old.iter().zip(&new).filter(|(old, new)| old != new).count();
    let taken = new.iter().filter(|slot| **slot == 5).count();
    assert!((80..92).contains(&taken), "a third of 257: {taken}");
    assert!(moved < taken + 257 / 10, "{moved} moved for {taken}");
    assert_eq!(table(&before, "example.org", WILDCARD), table(&after, "example.org", WILDCARD));
    assert_eq!(before.tables[&SHOP], after.tables[&SHOP]);
}

#[test]
fn explain_knows_where_a_name_leads() {
    let client = Some(IpAddr::from([198, 51, 100, 7]));
    let row = |registry: &Registry, name: &str, client| {
        let view = registry.explain_name(name, None, client).unwrap();
        (view.verdict, view.backend, view.why, view.counters.join(" "))
    };
    let (registry, maps) = with("hashed", 5);
    let (verdict, backend, why, counters) = row(&registry, "X.Shop.example.org", None);
    assert_eq!(
        (verdict.as_str(), backend.as_deref(), counters.as_str()),
        ("hashed", Some("tls/c"), "hashed")
    );
    assert_eq!(why, "c is listed for *.shop.example.org; the name is hashed among them");
    let (_, backend, why, _) = row(&registry, "shop.example.org", None);
    assert_eq!(why, "a, b are listed for shop.example.org; the name is hashed among them");
    // As the program finds it.
    let table = &maps.pools[&maps.names[&SHOP].iter().find(|l| l.kind == EXACT).unwrap().pool];
    let hash = lb_common::name::hash(&lb_common::name::UNKEYED, b"shop.example.org") as u32;
    let slot = table[lb_common::hash::scale(hash, 257) as usize];
    assert_eq!(backend, registry.name_of(slot));
    let (verdict, _, why, counters) = row(&registry, "", None);
    assert_eq!((verdict.as_str(), counters.as_str()), ("new", "new_session"));
    assert_eq!(
        why,
        "no backend is listed for a client that asks for no name: those that are listed for none take it; connections are \
         spread over them by weight"
    );
    let (registry, _) = with("source", 5);
    let (verdict, backend, why, _) = row(&registry, "shop.example.org", client);
    assert_eq!(verdict, "hashed");
    assert!(["tls/a", "tls/b"].contains(&backend.unwrap().as_str()));
    assert!(why.ends_with("the client's address is hashed among them"), "{why}");
    let (_, backend, why, _) = row(&registry, "elsewhere.example.com", None);
    assert!(backend.is_none() && why.ends_with("say which it is with --client"), "{why}");
    let (mut registry, _) = with("none", 3);
    let (verdict, backend, why, counters) = row(&registry, "elsewhere.example.com", client);
    assert_eq!((verdict.as_str(), backend), ("reset", None));
    assert_eq!(why, "no backend is listed for that name, and every backend is listed for others");
    assert_eq!(counters, "unknown_name reset_no_backend");
    registry.apply(Change::Admin { backend: "c".into(), admin: Admin::Maint }, Instant::now());
    let (verdict, _, why, _) = row(&registry, "a.shop.example.org", None);
    assert_eq!(
        (verdict.as_str(), why.as_str()),
        ("reset", "c is listed for *.shop.example.org; no backend is ready")
    );
    assert_eq!(
        registry.explain("x", None).unwrap().verdict,
        "new",
        "and of a token it says that none is looked at"
    );
    let (registry, _) = bring_up(
        &text("{ kind = \"source\" }", 0).replace("[]", "[{ name = \"a\", addr = \"192.0.2.10:443\" }]"),
        1,
    );
    let refused = |service| registry.explain_name("x", service, None).unwrap_err().to_string();
    assert!(refused(None).starts_with("no service reads a server's name"), "{}", refused(None));
    assert!(
        refused(Some("tls")).starts_with("service `tls` reads no server's name"),
        "{}",
        refused(Some("tls"))
    );
}

#[test]
fn a_name_that_no_client_sends_is_not_explained() {
    let (registry, _) = with("source", 5);
    for (name, reason, help) in [
        ("https://shop.example.org/", "contains ':'", "like shop.example.org"),
        ("shop.example.org:443", "contains ':'", "like shop.example.org"),
        ("shop.example.org.", "ends in a dot", "leave the dot away"),
        ("192.0.2.1", "is an address", "name a server by its address"),
        ("*.example.org", "stands for many", "like shop.example.org"),
        ("*", "stands for many", "like shop.example.org"),
    ] {
        let refused = registry.explain_name(name, None, None).unwrap_err();
        assert_eq!(refused.reason, format!("the server's name `{name}` {reason}"));
        assert!(refused.help.as_deref().is_some_and(|told| told.contains(help)), "{name}: {refused:?}");
    }
}
