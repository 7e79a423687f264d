//! Services that bind at the SYN, between real stacks: servers that speak first, backends that come and go.

use anyhow::{Context, Result};
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::service::Affinity;
use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::TcpStream;
use tests::balancer::dial;
use tests::greeter::{Talk, greet};
use tests::is_slow;
use tests::topology::Arms;
use tests::world::World;

fn world(arms: Arms, backends: usize, affinity: Affinity) -> Result<World> {
    let mut world = World::silent(arms, backends)?;
    for (i, host) in world.town.backends.iter().enumerate() {
        greet(host, format!("b{i}"))?;
    }
    world.balancer.change(|setup| setup.services[0].affinity = affinity as u8)?;
    Ok(world)
}

#[test]
fn a_server_may_speak_first() -> Result<()> {
    for arms in [Arms::Several, Arms::One] {
        for affinity in [Affinity::None, Affinity::Source] {
            let world = world(arms, 3, affinity)?;
            let mut shares = BTreeMap::<String, u32>::new();
            for n in 0..60 {
                let mut talk = Talk::begin(&world.town.client.netns, None).with_context(|| world.counts())?;
                talk.goes_on(&format!("hello {n}"))?;
                talk.goes_on(&"long,".repeat(2_000))?;
                *shares.entry(talk.server).or_default() += 1;
            }
            let expected = if affinity == Affinity::None { 3 } else { 1 };
            assert_eq!(shares.len(), expected, "{shares:?}");
            // On a busy machine an answer may take longer than a client waits: of one connection, not of one in ten.
            let resent = world.town.client.netns.counter("TcpRetransSegs")?;
            assert!(is_slow() || resent < 6, "{resent} segments were sent again");
            let counts = world.balancer.maps.counts()?;
            assert_eq!((counts.get(Counter::SynAnswered), counts.get(Counter::Spliced)), (0, 0));
        }
    }
    Ok(())
}

#[test]
fn connections_stay_while_backends_come_and_go() -> Result<()> {
    let mut world = world(Arms::Several, 4, Affinity::None)?;
    world.balancer.change(|setup| setup.set_state(3, State::Gone))?;
    let mut talks: Vec<Talk> =
        (0..40).map(|_| Talk::begin(&world.town.client.netns, None)).collect::<Result<_>>()?;
    // One more.
    world.balancer.change(|setup| setup.set_state(3, State::Ready))?;
    let mut all_stay = |world: &World, what: &str| -> Result<()> {
        talks.iter_mut().try_for_each(|talk| talk.goes_on(what)).with_context(|| world.counts())
    };
    all_stay(&world, "after one has come")?;
    let seen: Vec<String> =
        (0..60).map(|_| Ok(Talk::begin(&world.town.client.netns, None)?.server)).collect::<Result<_>>()?;
    assert!(seen.iter().any(|server| server == "b3"), "{seen:?}");
    // One less: no new connections, and those it has go on.
    world.balancer.change(|setup| setup.set_state(0, State::Drain))?;
    all_stay(&world, "after one is on its way out")?;
    for _ in 0..40 {
        assert_ne!(Talk::begin(&world.town.client.netns, None)?.server, "b0");
    }
    Ok(())
}

#[test]
fn a_closed_port_is_refused_and_so_is_a_service_without_backends() -> Result<()> {
    let mut world = World::silent(Arms::Several, 1)?;
    world.balancer.change(|setup| setup.services[0].affinity = Affinity::None as u8)?;
    let kind = |world: &World| {
        world.town.client.netns.run(|| TcpStream::connect(dial())).expect_err("nobody listens").kind()
    };
    assert_eq!(kind(&world), ErrorKind::ConnectionRefused, "the backend's own RST");
    world.balancer.change(|setup| setup.set_state(0, State::Down))?;
    assert_eq!(kind(&world), ErrorKind::ConnectionRefused, "ours");
    assert_eq!(world.balancer.maps.counts()?.get(Counter::ResetNoBackend), 1);
    Ok(())
}
