//! Which backend gets what belongs to none, what becomes of sessions whose backend does not serve, and who is told.

use anyhow::Result;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::flow::FlowState;
use lb_common::maglev::NOBODY;
use lb_common::service::{Affinity, Balance};
use lb_common::settings::Settings;
use lb_common::trace::{Decision, Key};
use std::net::SocketAddrV4;
use tests::frame::{FIN, RST};
use tests::runner::Verdict;
use tests::scene::{REQUEST, SERVICE, Scene};
use tests::setup::addr;
use tests::table::steer;

fn client(n: u16) -> SocketAddrV4 {
    SocketAddrV4::new([10, 0, 1, 2].into(), 20_000 + n)
}

/// Begins the flow of another client; returns where it went.
fn begin(scene: &mut Scene, n: u16) -> Result<u16> {
    scene.client = client(n);
    scene.bind(REQUEST)
}

fn live(scene: &Scene) -> Result<Vec<u64>> {
    (0..scene.runner.setup.backends.len() as u16).map(|slot| scene.runner.maps.live(slot)).collect()
}

#[test]
fn live_flows_are_counted_through_their_lives() -> Result<()> {
    let mut scene = Scene::new(3)?;
    let slot = scene.bind(REQUEST)?;
    let one = |slot: u16| (0..3).map(|n| u64::from(n == slot)).collect::<Vec<_>>();
    assert_eq!(live(&scene)?, one(slot));
    // Refused: the flow moves, and so does its count.
    let outcome = scene.xdp(&scene.refusal(slot))?;
    let next = scene.slot_of(&outcome.segment());
    assert_ne!(slot, next);
    assert_eq!(live(&scene)?, one(next));
    scene.joint(&scene.syn_ack(next))?;
    assert_eq!(live(&scene)?, one(next), "established");
    let fin = scene.next(FIN, b"");
    scene.xdp(&fin)?;
    assert_eq!(live(&scene)?, one(next), "half closed");
    scene.xdp(&scene.next(RST, b""))?;
    scene.xdp(&scene.next(RST, b""))?;
    assert_eq!(live(&scene)?, [0; 3], "closing, however often it is said");
    assert_eq!(scene.runner.maps.flows()?[0].head.state, FlowState::Closing as u8);
    let slot = begin(&mut scene, 1)?;
    assert_eq!(live(&scene)?, one(slot));
    scene.xdp(&scene.segment(0, 0, b"").flags(RST))?;
    assert_eq!(live(&scene)?, [0; 3], "reset while binding");
    Ok(())
}

#[test]
fn flows_that_are_evicted_give_their_place_and_their_count() -> Result<()> {
    let mut scene = Scene::new(2)?;
    scene.runner.change(|setup| setup.services[0].affinity = Affinity::None as u8)?;
    let mut flows = 0;
    for n in 0..200 {
        scene.client = client(n);
        let outcome = scene.xdp(&scene.syn())?;
        assert!(outcome.counted(Counter::NewSession), "{outcome:?}");
        flows = scene.runner.maps.flows()?.len() as u64;
        assert_eq!(live(&scene)?.iter().sum::<u64>(), flows);
    }
    assert_eq!(flows, 64, "the table is full, and entries were taken over");
    Ok(())
}

/// How far four backends differ after 16 flows: on average by 1.8 with two choices, by 4.1 with one. The mean of 100 rounds has a standard
/// deviation of a tenth.
#[test]
fn least_evens_out_what_maglev_leaves() -> Result<()> {
    const ROUNDS: u64 = 100;
    let mut scene = Scene::new(4)?;
    scene.runner.change(|setup| setup.services[0].balance = Balance::Least as u8)?;
    let mut spread = 0;
    for _ in 0..ROUNDS {
        let mut counted = [0_u64; 4];
        for n in 0..16 {
            scene.client = client(n);
            let outcome = scene.xdp(&scene.first(REQUEST))?;
            assert!(outcome.counted(Counter::Bound), "{outcome:?}");
            counted[usize::from(scene.slot_of(&outcome.segment()))] += 1;
        }
        assert_eq!(live(&scene)?, counted);
        spread += counted.iter().max().unwrap() - counted.iter().min().unwrap();
        scene.runner.maps.forget()?;
    }
    assert!(spread < 3 * ROUNDS, "{spread} in {ROUNDS} rounds");
    // Who is reset leaves room.
    for n in 0..400 {
        scene.client = client(n);
        scene.xdp(&scene.first(REQUEST))?;
        scene.xdp(&scene.segment(0, 0, b"").flags(RST))?;
    }
    assert_eq!(live(&scene)?, [0; 4]);
    Ok(())
}

#[test]
fn least_knows_weights_and_who_is_ready() -> Result<()> {
    let mut scene = Scene::new(3)?;
    scene.runner.change(|setup| {
        setup.services[0].affinity = Affinity::None as u8;
        setup.services[0].balance = Balance::Least as u8;
        setup.backends[0].weight = 4;
        setup.set_state(2, State::Drain);
    })?;
    for n in 0..25 {
        scene.client = client(n);
        scene.xdp(&scene.syn())?;
    }
    let live = live(&scene)?;
    assert_eq!(live[2], 0, "{live:?}");
    assert!((17..=23).contains(&live[0]), "four of five: {live:?}");
    // A valid token comes home all the same.
    scene.runner.change(|setup| setup.services[0].affinity = Affinity::Signed as u8)?;
    let token = scene.runner.setup.token(2, 5);
    scene.client = client(100);
    let outcome = scene.xdp(&scene.request(&token))?;
    assert!(outcome.counted(Counter::AffinityHit), "{outcome:?}");
    Ok(())
}

#[test]
fn a_strict_service_refuses_sessions_whose_backend_does_not_serve() -> Result<()> {
    let mut scene = Scene::new(3)?;
    scene.runner.change(|setup| setup.services[0].strict = 1)?;
    let token = scene.runner.setup.token(1, 5);
    let request = scene.request(&token);
    for state in [State::Down, State::Maint, State::Gone] {
        scene.runner.change(|setup| setup.set_state(1, state))?;
        let outcome = scene.xdp(&request)?;
        assert_eq!(outcome.counted, [(Counter::Rejected, 1), (Counter::Unavailable, 1)], "{state:?}");
        assert_eq!(outcome.verdict, Verdict::Redirect);
        let told = outcome.segment();
        assert!(told.payload.starts_with(b"HTTP/1.1 503 ") && told.dst == scene.client, "{told:?}");
        assert_eq!(scene.runner.maps.stashes()?.len(), 0);
        scene.runner.maps.forget()?;
    }
    for state in [State::Drain, State::Ready] {
        scene.runner.change(|setup| setup.set_state(1, state))?;
        assert!(scene.xdp(&request)?.counted(Counter::AffinityHit), "{state:?}");
        scene.runner.maps.forget()?;
    }
    // Without a session nothing is refused.
    scene.runner.change(|setup| setup.set_state(1, State::Down))?;
    assert_eq!(steer(&mut scene, REQUEST)?.counted, [Counter::NewSession, Counter::Bound]);
    Ok(())
}

/// A backend that counts as ready and does not answer is no reason to give its sessions away, either.
#[test]
fn a_strict_service_tries_no_other_backend() -> Result<()> {
    let mut scene = Scene::new(3)?;
    scene.runner.change(|setup| setup.services[0].strict = 1)?;
    let token = scene.runner.setup.token(1, 5);
    scene.xdp(&scene.request(&token))?;
    let refused = scene.xdp(&scene.refusal(1))?;
    assert_eq!(refused.counted, [(Counter::Rejected, 1), (Counter::Unavailable, 1)]);
    assert_eq!(refused.segment().dst, scene.client);
    assert_eq!(live(&scene)?, [0; 3]);
    scene.runner.maps.forget()?;
    for expected in [&[Counter::AffinityHit, Counter::Bound][..], &[Counter::SynRepeated]] {
        let outcome = scene.xdp(&scene.request(&token))?;
        assert_eq!(outcome.counted.iter().map(|(counter, _)| *counter).collect::<Vec<_>>(), expected);
    }
    for rejected in [true, false] {
        let again = scene.xdp(&scene.request(&token))?;
        assert_eq!(scene.slot_of(&again.segment()), 1, "the same one, as long as the client asks");
        assert_eq!(again.counted(Counter::Rejected), rejected, "told once");
    }
    // Who has no session may be served by anybody.
    scene.runner.maps.forget()?;
    let slot = scene.bind(REQUEST)?;
    assert!(scene.xdp(&scene.refusal(slot))?.counted(Counter::Retried));
    Ok(())
}

#[test]
fn decisions_are_told_to_those_who_listen() -> Result<()> {
    let mut scene = Scene::new(3)?;
    let token = scene.runner.setup.token(1, 5);
    steer(&mut scene, REQUEST)?;
    assert_eq!(scene.runner.maps.told(), [], "nobody listens");
    let listen = |scene: &mut Scene, settings: fn(&mut Settings)| {
        scene.runner.change(|setup| {
            setup.settings.trace = 1;
            setup.settings.trace_service = 0;
            settings(&mut setup.settings);
        })
    };
    listen(&mut scene, |_| {})?;
    scene.bind(REQUEST)?;
    let told = scene.runner.maps.told();
    let [new] = told[..] else { panic!("{told:?}") };
    let flow = scene.runner.maps.flows()?[0];
    let expected = Decision {
        at: new.at,
        client: addr(*scene.client.ip()),
        client_port: lb_common::addr::Be16::new(scene.client.port()),
        service: SERVICE,
        backend: flow.head.backend,
        key: Key::Absent as u16,
        reason: Counter::NewSession as u32,
        _pad: 0,
    };
    assert_eq!(new, expected);
    scene.runner.maps.forget()?;
    scene.xdp(&scene.request(&token))?;
    let retried = scene.xdp(&scene.refusal(1))?;
    let next = scene.slot_of(&retried.segment());
    let told: Vec<_> = scene.runner.maps.told().iter().map(|d| (d.backend, d.key, d.reason)).collect();
    let hit = (1, Key::Valid as u16, Counter::AffinityHit as u32);
    assert_eq!(told, [hit, (next, Key::Absent as u16, Counter::Retried as u32)]);
    // Who asks for another service or client hears nothing.
    for settings in [
        |s: &mut Settings| s.trace_service = 2,
        |s: &mut Settings| s.trace_client = addr([10, 0, 1, 3].into()),
    ] {
        listen(&mut scene, settings)?;
        steer(&mut scene, REQUEST)?;
        assert_eq!(scene.runner.maps.told(), []);
    }
    listen(&mut scene, |s| s.trace_client = addr([10, 0, 1, 2].into()))?;
    steer(&mut scene, REQUEST)?;
    assert_eq!(scene.runner.maps.told().len(), 1);
    // A session that is refused, and a flow that nobody takes.
    scene.runner.change(|setup| {
        setup.services[0].strict = 1;
        setup.set_state(1, State::Down);
    })?;
    scene.xdp(&scene.request(&token))?;
    scene.runner.maps.forget()?;
    scene.runner.change(|setup| setup.backends.iter_mut().for_each(|b| b.state = State::Down as u8))?;
    scene.xdp(&scene.first(REQUEST))?;
    let told: Vec<_> = scene.runner.maps.told().iter().map(|d| (d.backend, d.reason)).collect();
    assert_eq!(told, [(NOBODY, Counter::Rejected as u32), (NOBODY, Counter::NewSession as u32)]);
    Ok(())
}

#[test]
fn a_full_trace_loses_records_and_nothing_else() -> Result<()> {
    let mut scene = Scene::new(3)?;
    scene.runner.change(|setup| setup.settings.trace = 1)?;
    // A record takes 48 bytes of 256 KiB.
    let room = 262_144 / 48;
    let before = scene.runner.counts()?;
    for _ in 0..room + 10 {
        let outcome = scene.xdp(&scene.first(REQUEST))?;
        assert!(outcome.counted(Counter::Bound), "{outcome:?}");
        scene.runner.maps.forget()?;
    }
    let lost = scene.runner.counts()?.get(Counter::TraceLost) - before.get(Counter::TraceLost);
    assert!((10..=11).contains(&lost), "{lost} lost");
    assert_eq!(scene.runner.maps.told().len() as u64, room + 10 - lost);
    Ok(())
}

#[test]
fn plain_services_balance_and_tell_as_well() -> Result<()> {
    let mut scene = Scene::new(4)?;
    scene.runner.change(|setup| {
        setup.services[0].affinity = Affinity::None as u8;
        setup.services[0].balance = Balance::Least as u8;
        setup.settings.trace = 1;
    })?;
    for n in 0..16 {
        scene.client = client(n);
        let outcome = scene.xdp(&scene.syn())?;
        assert!(outcome.counted(Counter::NewSession), "{outcome:?}");
    }
    let live = live(&scene)?;
    assert_eq!(live.iter().sum::<u64>(), 16);
    assert!(live.iter().max().unwrap() - live.iter().min().unwrap() <= 3, "{live:?}");
    assert_eq!(scene.runner.maps.told().len(), 16);
    Ok(())
}
