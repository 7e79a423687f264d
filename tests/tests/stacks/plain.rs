//! Services that bind at the SYN, between real stacks: servers that speak first, backends that come and go.

use anyhow::{Context, Result, ensure};
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::service::Affinity;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use tests::balancer::dial;
use tests::topology::{Arms, Host};
use tests::world::World;

/// Greets as a mail server does, then repeats every line.
fn greet(host: &Host, name: &str) -> Result<()> {
    let listener = host.netns.run(|| TcpListener::bind(host.serves()))?;
    let name = name.to_owned();
    // Ends with the test's process: nobody else has its namespace by then.
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), name) = (stream, name.clone()) else { return };
            thread::spawn(move || converse(&stream, &name));
        }
    });
    Ok(())
}

fn converse(mut stream: &TcpStream, name: &str) -> Result<()> {
    writeln!(stream, "220 {name} ESMTP")?;
    for line in BufReader::new(stream).lines() {
        writeln!(stream, "250 {}", line?)?;
    }
    Ok(())
}

/// A client that has been greeted.
struct Talk {
    stream: BufReader<TcpStream>,
    server: String,
}

impl Talk {
    fn begin(world: &World) -> Result<Self> {
        let stream = world.town.client.netns.run(|| TcpStream::connect(dial()))?;
        stream.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
        let mut talk = Self { stream: BufReader::new(stream), server: String::new() };
        let greeting = talk.line().context("waiting for the greeting")?;
        let name = greeting.strip_prefix("220 ").and_then(|rest| rest.strip_suffix(" ESMTP"));
        talk.server = name.with_context(|| format!("no greeting: {greeting:?}"))?.to_owned();
        Ok(talk)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the server has closed");
        Ok(line.trim_end().to_owned())
    }

    fn say(&mut self, what: &str) -> Result<()> {
        writeln!(self.stream.get_mut(), "{what}")?;
        let answer = self.line()?;
        ensure!(answer == format!("250 {what}"), "{answer:?}");
        Ok(())
    }
}

fn world(arms: Arms, backends: usize, affinity: Affinity) -> Result<World> {
    let mut world = World::silent(arms, backends)?;
    for (i, host) in world.town.backends.iter().enumerate() {
        greet(host, &format!("b{i}"))?;
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
                let mut talk = Talk::begin(&world).with_context(|| world.counts())?;
                talk.say(&format!("hello {n}"))?;
                talk.say(&"long,".repeat(2_000))?;
                *shares.entry(talk.server).or_default() += 1;
            }
            let expected = if affinity == Affinity::None { 3 } else { 1 };
            assert_eq!(shares.len(), expected, "{shares:?}");
            assert_eq!(world.town.client.netns.counter("TcpRetransSegs")?, 0);
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
    let mut talks: Vec<Talk> = (0..40).map(|_| Talk::begin(&world)).collect::<Result<_>>()?;
    // One more.
    world.balancer.change(|setup| setup.set_state(3, State::Ready))?;
    let mut all_stay = |world: &World, what: &str| -> Result<()> {
        talks.iter_mut().try_for_each(|talk| talk.say(what)).with_context(|| world.counts())
    };
    all_stay(&world, "after one has come")?;
    let seen: Vec<String> = (0..60).map(|_| Ok(Talk::begin(&world)?.server)).collect::<Result<_>>()?;
    assert!(seen.iter().any(|server| server == "b3"), "{seen:?}");
    // One less: no new connections, and those it has go on.
    world.balancer.change(|setup| setup.set_state(0, State::Drain))?;
    all_stay(&world, "after one is on its way out")?;
    for _ in 0..40 {
        assert_ne!(Talk::begin(&world)?.server, "b0");
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
