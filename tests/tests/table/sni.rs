//! TLS connections steered by the server's name in their ClientHello.

use anyhow::Result;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::maglev::NOBODY;
use lb_common::service::{Affinity, Balance, Place};
use lb_common::trace::Key;
use std::collections::BTreeSet;
use tests::frame::{PSH, RST};
use tests::hello::{asks_for, extension, grease, hello, server_name};
use tests::runner::Verdict;
use tests::scene::{SERVICE, Scene};
use tests::setup::Setup;
use tests::table::{Row, check_rows, steer, steer_all};

fn scene() -> Result<Scene> {
    scene_with(Affinity::Hashed, |_| {})
}

/// Eight backends of a service that reads the ClientHello.
fn scene_with(affinity: Affinity, change: impl FnOnce(&mut Setup)) -> Result<Scene> {
    let mut scene = Scene::new(8)?;
    scene.runner.change(|setup| {
        setup.services[0].affinity = affinity as u8;
        setup.services[0].place = Place::Sni as u8;
        change(setup);
    })?;
    Ok(scene)
}

/// Backends 0 and 1 have the shop, 2 has what is below it, 3 and 4 have the rest of the domain, 5 has the blog and all below
/// another domain; 6 and 7 have whatever is left.
fn list(setup: &mut Setup) {
    for (name, slots) in [
        ("shop.example.org", &[0, 1][..]),
        ("*.shop.example.org", &[2]),
        ("*.example.org", &[3, 4]),
        ("blog.example.net", &[5]),
        ("*.net", &[5]),
    ] {
        setup.list(SERVICE, name, slots);
    }
}

/// All that stand behind a service that lists every one of them.
fn list_all(setup: &mut Setup) {
    list(setup);
    setup.list(SERVICE, "rest.example.com", &[6, 7]);
}

/// Where the first payloads of some clients go, and what is counted for each.
fn spread(scene: &mut Scene, payload: &[u8], clients: u16) -> Result<(BTreeSet<u16>, BTreeSet<Vec<String>>)> {
    let (mut slots, mut counted) = (BTreeSet::new(), BTreeSet::new());
    for n in 0..clients {
        scene.client = format!("10.0.1.{}:{}", 2 + n % 100, 20_000 + n).parse()?;
        let steered = steer(scene, payload)?;
        slots.insert(steered.slot);
        counted.insert(steered.counted.iter().map(|counter| counter.name().to_owned()).collect());
    }
    Ok((slots, counted))
}

#[test]
fn the_same_name_comes_to_the_same_backend() -> Result<()> {
    let mut scene = scene()?;
    let mut chosen = BTreeSet::new();
    for name in
        ["a.example.org", "b.example.org", "shop.example.org", "x", "y.z", "0123456", "01234567", "012345678"]
    {
        let forms = [
            hello(0, &[server_name(name)]),
            hello(32, &[grease(3), server_name(&name.to_uppercase()), grease(100)]),
            hello(32, &[grease(0), grease(600), server_name(name)]),
        ];
        let slots: BTreeSet<u16> = forms
            .iter()
            .map(|payload| {
                let steered = steer(&mut scene, payload)?;
                assert_eq!(steered.counted, [Counter::Hashed, Counter::Bound], "{name}");
                Ok(steered.slot)
            })
            .collect::<Result<_>>()?;
        assert_eq!(slots.len(), 1, "{name}");
        chosen.extend(slots);
    }
    assert!(chosen.len() > 3, "names spread: {chosen:?}");
    Ok(())
}

#[test]
fn what_has_no_name_is_balanced() -> Result<()> {
    let mut scene = scene()?;
    let no_host = extension(0, &[0, 4, 1, 0, 1, b'x']);
    let lies = extension(0, &[0, 200, 0, 0, 198, b'x']);
    let whole: [Vec<u8>; 6] = [
        hello(0, &[]),
        hello(0, &[grease(50)]),
        hello(0, &[no_host]),
        hello(0, &[lies]),
        hello(0, &vec![grease(0); 33].into_iter().chain([server_name("late")]).collect::<Vec<_>>()),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    for payload in whole {
        assert_eq!(
            steer(&mut scene, &payload)?.counted,
            [Counter::NewSession, Counter::Bound],
            "{payload:?}"
        );
    }
    let mut cut = hello(32, &[grease(50), server_name("shop.example.org")]);
    for len in [1, 5, 6, 43, 44, 80, cut.len() - 1] {
        cut.truncate(len);
        let counted = steer_all(&mut scene, &cut)?.counted;
        let expected = [Counter::NewSession, Counter::Bound, Counter::HeadIncomplete];
        assert_eq!(counted, expected, "cut after {len}");
        cut = hello(32, &[grease(50), server_name("shop.example.org")]);
    }
    Ok(())
}

/// As browsers send it since key shares have more than a thousand bytes.
#[test]
fn a_name_in_the_second_segment_is_found() -> Result<()> {
    let mut scene = scene()?;
    let name = "shop.example.org";
    let expected = steer(&mut scene, &hello(0, &[server_name(name)]))?.slot;
    for before in [1340, 1355, 1370, 1600] {
        let payload = hello(32, &[grease(before), server_name(name), grease(100)]);
        let first = scene.first(&payload[..1448]);
        check_rows(&scene, [Row::new("first", first.bytes(), Verdict::Drop, Counter::HeadAwaited)])?;
        let outcome = scene.xdp(&scene.segment(1448, PSH, &payload[1448..]))?;
        assert!(outcome.counted(Counter::Hashed) && outcome.counted(Counter::Bound), "{before}: {outcome:?}");
        assert_eq!(scene.slot_of(&outcome.segment()), expected, "{before}");
        scene.runner.maps.forget()?;
    }
    Ok(())
}

#[test]
fn names_lead_to_the_backends_that_are_listed_for_them() -> Result<()> {
    let long = format!("{}.example.org", ["a"; 100].join("."));
    let longest =
        format!("{}.{}.org", "x".repeat(63), ["y".repeat(60), "z".repeat(60), "w".repeat(60)].join("."));
    let rows: &[(&str, &[u16])] = &[
        ("shop.example.org", &[0, 1]),
        ("SHOP.Example.ORG", &[0, 1]),
        ("a.shop.example.org", &[2]),
        ("a.b.shop.example.org", &[2]),
        ("blog.example.org", &[3, 4]),
        ("a.b.c.d.EXAMPLE.org", &[3, 4]),
        ("xshop.example.org", &[3, 4]),
        (&long, &[3, 4]),
        ("blog.example.net", &[5]),
        ("other.net", &[5]),
        // A wildcard says nothing of the name behind its dot, nor of one that merely ends in it.
        ("example.org", &[6, 7]),
        ("anexample.org", &[6, 7]),
        ("net", &[6, 7]),
        ("localhost", &[6, 7]),
        ("shop.example.org.", &[6, 7]),
        ("shop.example.or", &[6, 7]),
        (&longest, &[6, 7]),
    ];
    for (affinity, clients) in [(Affinity::Source, 30), (Affinity::None, 30)] {
        let mut scene = scene_with(affinity, list)?;
        let why = if affinity == Affinity::Source { "hashed" } else { "new_session" };
        for (name, slots) in rows {
            let (went, counted) = spread(&mut scene, &asks_for(name), clients)?;
            assert_eq!(went, slots.iter().copied().collect(), "{name}: {affinity:?}");
            assert_eq!(counted, [vec![why.to_owned(), "bound".to_owned()]].into(), "{name}");
        }
    }
    // The hash of a name puts all of its clients to one of its backends.
    let mut scene = scene_with(Affinity::Hashed, list)?;
    for (name, slots) in rows {
        let (went, counted) = spread(&mut scene, &asks_for(name), 8)?;
        assert!(went.len() == 1 && slots.contains(went.first().unwrap()), "{name}: {went:?}");
        assert_eq!(counted, [vec!["hashed".to_owned(), "bound".to_owned()]].into(), "{name}");
    }
    let below: BTreeSet<_> = (0..20)
        .map(|n| Ok(steer(&mut scene, &asks_for(&format!("{n}.example.org")))?.slot))
        .collect::<Result<_>>()?;
    assert_eq!(below, [3, 4].into(), "names of one wildcard spread over its pool");
    Ok(())
}

#[test]
fn a_client_stays_with_one_backend_of_each_name_by_its_address() -> Result<()> {
    let mut scene = scene_with(Affinity::Source, list)?;
    for name in ["shop.example.org", "blog.example.org", "nobody.example.com"] {
        for host in 2..12 {
            let mut slots = BTreeSet::new();
            for port in [1024, 40_000, 40_001, 65_535] {
                scene.client = format!("10.0.1.{host}:{port}").parse()?;
                slots.insert(steer(&mut scene, &asks_for(name))?.slot);
            }
            assert_eq!(slots.len(), 1, "{name}: {slots:?}");
        }
    }
    Ok(())
}

#[test]
fn least_evens_out_the_clients_of_a_name() -> Result<()> {
    let mut scene = scene_with(Affinity::None, |setup| {
        list(setup);
        setup.services[0].balance = Balance::Least as u8;
    })?;
    for n in 0..12 {
        scene.client = format!("10.0.1.2:{}", 20_000 + n).parse()?;
        assert!(scene.xdp(&scene.first(&asks_for("shop.example.org")))?.counted(Counter::Bound));
    }
    let live: Vec<u64> = (0..8).map(|slot| scene.runner.maps.live(slot)).collect::<Result<_>>()?;
    assert_eq!(live[2..], [0; 6], "{live:?}");
    assert!(live[0].abs_diff(live[1]) <= 4 && live[0] + live[1] == 12, "{live:?}");
    Ok(())
}

#[test]
fn what_names_nobody_goes_to_the_rest_or_is_refused() -> Result<()> {
    let nobody: [&[u8]; 4] = [
        &asks_for("nobody.example.com"),
        &hello(0, &[]),
        &hello(0, &[grease(50)]),
        b"GET / HTTP/1.1\r\n\r\n",
    ];
    for affinity in [Affinity::Hashed, Affinity::Source, Affinity::None] {
        let mut scene = scene_with(affinity, list)?;
        for payload in nobody {
            let (went, _) = spread(&mut scene, payload, 20)?;
            assert!(went.is_subset(&[6, 7].into()), "{affinity:?}: {went:?} for {payload:?}");
        }
        let mut scene = scene_with(affinity, |setup| {
            list_all(setup);
            setup.settings.trace = 1;
        })?;
        for payload in nobody {
            let outcome = scene.xdp(&scene.first(payload))?;
            let expected = [(Counter::UnknownName, 1), (Counter::ResetNoBackend, 1)];
            assert_eq!(outcome.counted, expected, "{affinity:?}: {payload:?}");
            let reset = outcome.segment();
            assert!(reset.has(RST) && reset.dst == scene.client, "{reset:?}");
            let told: Vec<_> = scene.runner.maps.told().iter().map(|d| (d.backend, d.reason)).collect();
            assert_eq!(told, [(NOBODY, Counter::UnknownName as u32)]);
            assert_eq!((scene.runner.maps.flows()?, scene.runner.maps.stashes()?.len()), (vec![], 0));
        }
        let mut go = |name: &str| Ok::<_, anyhow::Error>(steer(&mut scene, &asks_for(name))?.slot);
        assert!([6, 7].contains(&go("rest.example.com")?) && go("other.net")? == 5);
        let key = if affinity == Affinity::Hashed { Key::Hashed } else { Key::Named };
        assert!(scene.runner.maps.told().iter().all(|d| d.key == key as u16), "what was found is told");
    }
    Ok(())
}

#[test]
fn a_refused_flow_stays_within_its_pool() -> Result<()> {
    for affinity in [Affinity::Hashed, Affinity::Source, Affinity::None] {
        let mut scene = scene_with(affinity, list)?;
        for n in 0..10 {
            scene.client = format!("10.0.1.{}:40000", 2 + n).parse()?;
            let first = scene.bind(&asks_for("shop.example.org"))?;
            let outcome = scene.xdp(&scene.refusal(first))?;
            assert!(outcome.counted(Counter::Retried), "{outcome:?}");
            assert_eq!(scene.slot_of(&outcome.segment()), 1 - first, "the other one of two");
            let outcome = scene.xdp(&scene.refusal(1 - first))?;
            assert!(outcome.counted(Counter::ResetRefused), "nobody else is asked: {outcome:?}");
            scene.runner.maps.forget()?;
        }
        // Silent: the client's second repetition goes to the other one.
        let payload = asks_for("shop.example.org");
        let first = scene.bind(&payload)?;
        scene.xdp(&scene.first(&payload))?;
        let again = scene.xdp(&scene.first(&payload))?;
        assert_eq!(scene.slot_of(&again.segment()), 1 - first, "{again:?}");
        // The stash that it had says nothing about the next flow that has it.
        scene.runner.maps.forget()?;
        let (went, _) = spread(&mut scene, &hello(0, &[]), 20)?;
        assert!(went.is_subset(&[6, 7].into()), "{went:?}");
    }
    Ok(())
}

#[test]
fn a_pool_follows_the_states_and_weights_of_its_backends() -> Result<()> {
    let mut scene = scene_with(Affinity::None, |setup| {
        list(setup);
        setup.set_state(0, State::Drain);
    })?;
    let went = |scene: &mut Scene, name: &str| Ok::<_, anyhow::Error>(spread(scene, &asks_for(name), 30)?.0);
    assert_eq!(went(&mut scene, "shop.example.org")?, [1].into());
    scene.runner.change(|setup| {
        setup.set_state(0, State::Ready);
        setup.backends[1].weight = 0;
    })?;
    assert_eq!(went(&mut scene, "shop.example.org")?, [0].into());
    // Nobody else has the name, whoever is ready.
    scene.runner.change(|setup| {
        setup.set_state(0, State::Down);
        setup.set_state(1, State::Maint);
    })?;
    let outcome = scene.xdp(&scene.first(&asks_for("shop.example.org")))?;
    assert_eq!(outcome.counted, [(Counter::ResetNoBackend, 1)]);
    assert_eq!(went(&mut scene, "blog.example.org")?, [3, 4].into());
    // A table that still has a backend which serves another service by now leads nowhere.
    scene.runner.change(|setup| setup.backends[5].service = 2)?;
    let outcome = scene.xdp(&scene.first(&asks_for("blog.example.net")))?;
    assert_eq!(outcome.counted, [(Counter::ResetNoBackend, 1)]);
    Ok(())
}

#[test]
fn names_of_one_service_say_nothing_to_another() -> Result<()> {
    let mut scene = scene_with(Affinity::None, |setup| {
        setup.services.push(setup.services[0]);
        setup.services[1].port = lb_common::addr::Be16::new(9);
        setup.list(2, "shop.example.org", &[7]);
        setup.list(SERVICE, "blog.example.org", &[0]);
        setup.backends[7].service = 2;
    })?;
    let (went, _) = spread(&mut scene, &asks_for("shop.example.org"), 40)?;
    assert_eq!(went, (1..7).collect());
    Ok(())
}

#[test]
fn a_listed_name_in_the_second_segment_is_found() -> Result<()> {
    for affinity in [Affinity::Hashed, Affinity::Source, Affinity::None] {
        let mut scene = scene_with(affinity, list_all)?;
        for (before, name) in
            [(1340, "a.shop.example.org"), (1370, "shop.example.org"), (1600, "b.example.org")]
        {
            let payload = hello(32, &[grease(before), server_name(name), grease(100)]);
            let first = scene.first(&payload[..1448]);
            check_rows(&scene, [Row::new("first", first.bytes(), Verdict::Drop, Counter::HeadAwaited)])?;
            let outcome = scene.xdp(&scene.segment(1448, PSH, &payload[1448..]))?;
            assert!(outcome.counted(Counter::Bound), "{affinity:?}, {before}: {outcome:?}");
            let expected = match name {
                "shop.example.org" => 0..=1,
                "a.shop.example.org" => 2..=2,
                _ => 3..=4,
            };
            assert!(expected.contains(&scene.slot_of(&outcome.segment())), "{affinity:?}, {before}");
            scene.runner.maps.forget()?;
        }
    }
    Ok(())
}

/// The server speaks first only where nothing has to be read before.
#[test]
fn a_rule_that_reads_the_name_waits_for_it() -> Result<()> {
    for affinity in [Affinity::Source, Affinity::None] {
        let scene = scene_with(affinity, list)?;
        let outcome = scene.xdp(&scene.syn())?;
        assert_eq!(outcome.counted, [(Counter::SynAnswered, 1)], "{affinity:?}");
        assert_eq!(outcome.segment().dst, scene.client);
    }
    Ok(())
}
