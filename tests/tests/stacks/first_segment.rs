//! What can happen to a connection's first bytes: lost, doubled, out of order, in crumbs, or never sent.

use anyhow::{Context, Result};
use lb_common::counter::Counter;
use std::io::Read;
use std::net::Shutdown;
use std::time::{Duration, Instant};
use tests::balancer::dial;
use tests::client::{Client, eventually};
use tests::frame::{FIN, Opt, PSH, RST, SYN, Segment};
use tests::raw::{Peer, Wire};
use tests::testbed::{Filter, Rule, Side};
use tests::topology::{Arms, PORT};
use tests::world::World;

/// A rule about the client's payload.
fn payload() -> Rule {
    Rule { dst_port: PORT, ..Rule::ANY }.with_payload()
}

/// One backend, and a filter on what the client sends.
fn world() -> Result<(World, Filter)> {
    let world = World::new(Arms::Several, 1)?;
    let sent = Filter::attach(&world.town.client, Side::Egress)?;
    Ok((world, sent))
}

fn count(world: &World, counter: Counter) -> Result<u64> {
    Ok(world.balancer.maps.counts()?.get(counter))
}

#[test]
fn lost() -> Result<()> {
    let (world, mut sent) = world()?;
    sent.rules(&[payload().drop_first(1)])?;
    let mut client = Client::connect(&world.town.client.netns)?;
    assert_eq!(client.get("/", "").with_context(|| world.counts())?.body, "b0");
    assert_eq!(sent.tally(0)?.hit, 1);
    assert_eq!(count(&world, Counter::Spliced)?, 1);
    Ok(())
}

#[test]
fn doubled() -> Result<()> {
    let (world, mut sent) = world()?;
    sent.rules(&[payload().double_first(1)])?;
    let mut client = Client::connect(&world.town.client.netns)?;
    for _ in 0..3 {
        assert_eq!(client.get("/", "").with_context(|| world.counts())?.body, "b0");
    }
    assert_eq!(sent.tally(0)?.hit, 1);
    assert_eq!((count(&world, Counter::Spliced)?, world.servers[0].requests()), (1, 3));
    Ok(())
}

/// The bare ACK of the handshake carries nothing that the first payload does not.
#[test]
fn handshake_lost_or_doubled() -> Result<()> {
    let (world, mut sent) = world()?;
    let handshake = Rule { dst_port: PORT, ..Rule::ANY }.without_payload();
    for rule in [handshake.drop_first(1), handshake.double_first(3)] {
        sent.rules(&[rule])?;
        let mut client = Client::connect(&world.town.client.netns)?;
        assert_eq!(client.get("/", "").with_context(|| world.counts())?.body, "b0");
    }
    Ok(())
}

/// The SYN to the backend, its SYN-ACK, or the ACK with the request is lost behind the balancer.
#[test]
fn lost_behind_the_balancer() -> Result<()> {
    let mut world = World::new(Arms::Several, 1)?;
    let mut answers = Filter::attach(&world.town.backends[0], Side::Egress)?;
    let none: &[Rule] = &[];
    let cases = [
        ("SYN", &[Rule::ANY.flags(SYN, SYN).drop_first(1)][..], none),
        ("SYN-ACK", none, &[Rule::ANY.flags(SYN, SYN).drop_first(1)][..]),
        ("request", &[payload().drop_first(1)], none),
        ("first answer", none, &[Rule::ANY.with_payload().drop_first(1)]),
    ];
    for (name, to_backend, from_backend) in cases {
        world.at_backends[0].rules(to_backend)?;
        answers.rules(from_backend)?;
        let mut client = Client::connect(&world.town.client.netns)?;
        let body = client.get("/", "").with_context(|| format!("{name} lost: {}", world.counts()))?.body;
        assert_eq!(body, "b0", "{name}");
        let hits = world.at_backends[0].tally(0)?.hit + answers.tally(0)?.hit;
        assert_eq!(hits, 1, "{name} was not lost");
    }
    Ok(())
}

#[test]
fn in_single_bytes() -> Result<()> {
    let (world, _) = world()?;
    let head = b"GET / HTTP/1.1\r\nHost: shop\r\nCookie: a=b; c=d\r\n\r\n";
    for _ in 0..20 {
        let mut client = Client::connect(&world.town.client.netns)?;
        for byte in head {
            client.send(&[*byte])?;
        }
        assert_eq!(client.response().with_context(|| world.counts())?.body, "b0");
    }
    assert_eq!(count(&world, Counter::Spliced)?, 20);
    assert_eq!(world.town.client.netns.counter("TcpRetransSegs")?, 0, "nothing was left to timers");
    Ok(())
}

/// Headers and body in two writes, and a request of two full segments: both wait in the stash, nothing is dropped.
#[test]
fn in_two_segments() -> Result<()> {
    let (world, _) = world()?;
    for body in [1, 1_000, 1_448, 2_000, 2_700, 10_000] {
        let mut client = Client::connect(&world.town.client.netns)?;
        client.upload(body).with_context(|| format!("{body} bytes: {}", world.counts()))?;
    }
    let long = format!("X-Long: {}\r\n", "x".repeat(2_500));
    for _ in 0..10 {
        let mut client = Client::connect(&world.town.client.netns)?;
        assert_eq!(client.get("/", &long).with_context(|| world.counts())?.body, "b0");
    }
    assert_eq!(world.town.client.netns.counter("TcpRetransSegs")?, 0, "{}", world.counts());
    Ok(())
}

/// The client's options, with timestamps or without.
fn syn_options(stamps: bool) -> Vec<Opt> {
    Opt::linux_syn(1460, Some(7), true, stamps.then_some((1_000, 0)))
}

const PARTS: [&[u8]; 3] = [b"GET / HTTP/1.1\r\n", b"Host: shop\r\nConnection: close\r\n", b"\r\n"];

#[test]
fn out_of_order() -> Result<()> {
    let world = World::new(Arms::Several, 1)?;
    let wire = Wire::open(&world.town.client)?;
    let orders = [[1, 0, 2], [2, 1, 0], [0, 2, 1], [2, 0, 1]];
    for (i, order) in orders.into_iter().cycle().take(8).enumerate() {
        let mut peer = Peer::dial(&wire, 41_000 + i as u16, dial(), 77_000, syn_options(i < 4))?;
        peer.window = 500;
        wire.send(&peer.segment(0, b""))?;
        let starts = [0, PARTS[0].len(), PARTS[0].len() + PARTS[1].len()];
        let part = |n: usize| {
            let segment = peer.segment(PSH, PARTS[n]);
            let seq = segment.seq + starts[n] as u32;
            segment.seq(seq)
        };
        // As a kernel does: what was not acknowledged is sent again, in order.
        let mut parts = order.map(part).to_vec();
        parts.extend([0, 1, 2].map(part));
        parts.iter().try_for_each(|segment| wire.send(segment))?;
        peer.seq += starts[2] as u32 + PARTS[2].len() as u32;
        let answer = peer.read(40).with_context(|| format!("order {order:?}: {}", world.counts()))?;
        assert!(answer.starts_with(b"HTTP/1.1 200 OK"), "order {order:?}");
        wire.send(&peer.segment(RST, b""))?;
    }
    assert_eq!(count(&world, Counter::ResetUnknownFlow)?, 0, "{}", world.counts());
    Ok(())
}

/// A client that connects and leaves without a word gets its FIN answered, or it would repeat it for minutes.
#[test]
fn never_sent() -> Result<()> {
    let (world, _) = world()?;
    for stamps in [1, 0] {
        world.town.tcp(&world.town.client, "tcp_timestamps", stamps)?;
        let client = Client::connect(&world.town.client.netns)?;
        client.stream().shutdown(Shutdown::Write)?;
        let mut rest = Vec::new();
        client.stream().read_to_end(&mut rest).with_context(|| world.counts())?;
        assert_eq!(rest, b"");
    }
    assert_eq!(count(&world, Counter::FinAnswered)?, 2);
    eventually("the client's sockets are gone", || {
        Ok(!world
            .town
            .client
            .netns
            .sh("ss -Htan state fin-wait-1 state fin-wait-2 state closing")?
            .contains(":80"))
    })?;
    assert_eq!(world.balancer.maps.flows()?, []);
    Ok(())
}

/// The request and its FIN in one go: the backend sees both.
#[test]
fn with_its_fin() -> Result<()> {
    let (world, _) = world()?;
    for _ in 0..10 {
        let mut client = Client::connect(&world.town.client.netns)?;
        client.send(b"GET / HTTP/1.1\r\n\r\n")?;
        client.stream().shutdown(Shutdown::Write)?;
        assert_eq!(client.response().with_context(|| world.counts())?.body, "b0");
        assert_eq!(client.stream().read(&mut [0])?, 0);
    }
    Ok(())
}

#[test]
fn long_after_the_handshake_with_keep_alives() -> Result<()> {
    let (world, _) = world()?;
    let mut client = Client::connect(&world.town.client.netns)?;
    let second = Duration::from_secs(1);
    let probes = socket2::TcpKeepalive::new().with_time(second).with_interval(second);
    socket2::SockRef::from(client.stream()).set_tcp_keepalive(&probes)?;
    eventually("three probes were answered", || Ok(count(&world, Counter::KeepAliveAnswered)? >= 3))?;
    assert_eq!(client.get("/", "").with_context(|| world.counts())?.body, "b0");
    Ok(())
}

/// The backend closed last time, so it still knows the 4-tuple; the client comes back with a sequence number below.
#[test]
fn from_a_port_that_the_backend_remembers() -> Result<()> {
    let world = World::new(Arms::Several, 1)?;
    let wire = Wire::open(&world.town.client)?;
    for (i, stamps) in [false, true].into_iter().enumerate() {
        for isn in [2_000_000_000, 1_000_000_000] {
            let mut peer = Peer::dial(&wire, 42_000 + i as u16, dial(), isn, syn_options(stamps))?;
            wire.send(&peer.segment(0, b""))?;
            peer.push(&PARTS.concat())?;
            while !peer.expect("the answer and its FIN").with_context(|| world.counts())?.has(FIN) {}
            peer.send(FIN, b"")?;
            peer.expect("the last ACK").with_context(|| world.counts())?;
            let waiting = || world.town.backends[0].netns.sh("ss -Htan state time-wait");
            eventually("TIME_WAIT at the backend", || Ok(waiting()?.contains(&format!(":{}", 42_000 + i))))?;
        }
        assert_eq!(count(&world, Counter::ChallengeReset)?, 1 + i as u64, "{}", world.counts());
    }
    assert_eq!(world.servers[0].requests(), 4);
    Ok(())
}

/// The client vanished without a word, came back and happened to take the same port: its SYN alone must not end the
/// former connection, its proven handshake must.
#[test]
fn from_the_port_of_a_connection_that_was_never_closed() -> Result<()> {
    let world = World::new(Arms::Several, 1)?;
    let wire = Wire::open(&world.town.client)?;
    for stamps in [true, false] {
        for isn in [500, 3_000_000_000, 1_000] {
            let mut peer = Peer::dial(&wire, 43_000 + u16::from(stamps), dial(), isn, syn_options(stamps))?;
            wire.send(&peer.segment(0, b""))?;
            let request = peer.push(b"GET / HTTP/1.1\r\n\r\n")?;
            let answer = answer_to(&wire, &request).with_context(|| world.counts())?;
            assert_eq!(answer.seq, peer.ack, "{answer}");
        }
    }
    Ok(())
}

/// The first answer with payload; the request is repeated as a kernel does, again and again. What the former connection's
/// backend still repeats acknowledges something else.
fn answer_to(wire: &Wire<'_>, request: &Segment) -> Result<Segment> {
    for _ in 0..20 {
        let until = Instant::now() + Duration::from_millis(250);
        while let Some(segment) = wire.next(until.saturating_duration_since(Instant::now()))? {
            let ours = segment.dst == request.src && segment.ack == request.end();
            if ours && !segment.payload.is_empty() {
                return Ok(segment);
            }
        }
        wire.send(request)?;
    }
    anyhow::bail!("no answer to {request}")
}
