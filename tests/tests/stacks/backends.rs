//! Backends that refuse, stay silent, or answer when nobody asks any more.

use anyhow::{Context, Result};
use lb_common::backend::State;
use lb_common::counter::Counter;
use std::net::SocketAddrV4;
use tests::balancer::dial;
use tests::client::{Client, get};
use tests::frame::{ACK, Opt, RST, SYN};
use tests::raw::{Peer, Wire};
use tests::server::Server;
use tests::testbed::Rule;
use tests::topology::{Arms, PORT};
use tests::world::World;

fn count(world: &World, counter: Counter) -> Result<u64> {
    Ok(world.balancer.maps.counts()?.get(counter))
}

/// A header that names a backend.
fn cookie(world: &World, slot: u16) -> String {
    format!("Cookie: lb={}\r\n", world.balancer.setup.token(slot, 1))
}

#[test]
fn a_refused_request_goes_to_the_next() -> Result<()> {
    for arms in [Arms::Several, Arms::One] {
        let mut world = World::silent(arms, 3)?;
        world.servers.push(Server::start(&world.town.backends[2], "b2")?);
        for slot in [0, 1, 2, 0, 1, 2] {
            let body =
                get(&world.town.client.netns, &cookie(&world, slot)).with_context(|| world.counts())?;
            assert_eq!(body, "b2");
        }
        assert_eq!(count(&world, Counter::Spliced)?, 6);
        assert!(count(&world, Counter::SynRetried)? >= 4);
        assert_eq!(world.town.client.netns.counter("TcpRetransSegs")?, 0, "at once, without a timer");
    }
    Ok(())
}

#[test]
fn when_all_refuse_the_client_is_told() -> Result<()> {
    let world = World::silent(Arms::Several, 3)?;
    for _ in 0..5 {
        let error = get(&world.town.client.netns, "").expect_err("nobody listens");
        assert!(format!("{error:#}").contains("HTTP/1.1 503 Service Unavailable"), "{error:#}");
    }
    assert_eq!(count(&world, Counter::Unavailable)?, 5, "{}", world.counts());
    assert_eq!(world.balancer.maps.stashes()?.len(), 0);
    Ok(())
}

/// Clients as they are, with requests of every kind: each reads the response, none is reset, none waits for a timer.
#[test]
fn clients_read_that_nobody_serves() -> Result<()> {
    let mut world = World::new(Arms::Several, 2)?;
    world.balancer.change(|setup| setup.backends.iter_mut().for_each(|b| b.state = State::Down as u8))?;
    let (url, netns) = (format!("http://{}/", dial()), &world.town.client.netns);
    let big = tempfile::NamedTempFile::new()?;
    big.as_file().set_len(3 << 20)?;
    let upload = format!("@{}", big.path().display());
    let rows: [(&str, &[&str]); 6] = [
        ("GET", &[]),
        ("an older version", &["--http1.0"]),
        ("HEAD", &["--head"]),
        ("a form", &["--data", "a=b"]),
        ("3 MB at once", &["--header", "Expect:", "--data-binary", &upload]),
        ("3 MB that ask first", &["--header", "Expect: 100-continue", "--data-binary", &upload]),
    ];
    for (name, args) in rows {
        let output = netns
            .command("curl")
            .args(["--silent", "--show-error", "--max-time", "30", "--output", "/dev/null"])
            .args(["--write-out", "%{http_code} %{num_connects}", &url])
            .args(args)
            .output()?;
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said == "503 1", "{name}: {output:?}\n{}", world.counts());
    }
    assert!(count(&world, Counter::Unavailable)? >= 6, "{}", world.counts());
    assert_eq!(count(&world, Counter::ResetUnknownFlow)?, 0, "{}", world.counts());
    assert_eq!(netns.counter("TcpRetransSegs")?, 0, "{}", world.counts());
    // They are served as soon as somebody is there.
    world.balancer.change(|setup| setup.set_state(1, State::Ready))?;
    assert_eq!(get(netns, "")?, "b1");
    Ok(())
}

#[test]
fn a_silent_backend_is_left_for_another() -> Result<()> {
    let mut world = World::new(Arms::Several, 2)?;
    world.at_backends[0].rules(&[Rule::ANY.flags(SYN, SYN).drop_every(1)])?;
    let body = get(&world.town.client.netns, &cookie(&world, 0)).with_context(|| world.counts())?;
    assert_eq!(body, "b1");
    assert_eq!(world.at_backends[0].tally(0)?.hit, 2, "asked twice");
    assert_eq!(world.balancer.maps.backend_counts(0)?.failed, 1);
    Ok(())
}

#[test]
fn a_backend_that_wakes_up_serves() -> Result<()> {
    let mut world = World::new(Arms::Several, 1)?;
    world.at_backends[0].rules(&[Rule::ANY.flags(SYN, SYN).drop_first(4)])?;
    assert_eq!(get(&world.town.client.netns, "").with_context(|| world.counts())?, "b0");
    Ok(())
}

/// Passed on, its SYN-ACK would reach the client in the middle of another backend's stream.
#[test]
fn a_late_syn_ack_of_an_abandoned_backend_is_reset() -> Result<()> {
    let mut world = World::silent(Arms::Several, 2)?;
    world.servers.push(Server::start(&world.town.backends[1], "b1")?);
    let wire = Wire::open(&world.town.backends[0])?;
    let by_hand = SocketAddrV4::new(wire.ip, PORT);
    world.balancer.change(|setup| setup.set_addr(0, by_hand))?;
    let mut client = Client::connect(&world.town.client.netns)?;
    let answer = client.get("/", &cookie(&world, 0)).with_context(|| world.counts())?;
    assert_eq!(answer.body, "b1");
    let options = Opt::linux_syn(1460, Some(7), true, Some((5, 0)));
    let late = Peer::accept(&wire, by_hand, 4_000_000_000, options)?;
    let reset = wire.expect_where("a reset", |s| s.has(RST))?;
    assert_eq!((reset.src, reset.dst, reset.seq), (late.remote, by_hand, late.ack), "{reset}");
    assert_eq!(count(&world, Counter::ResetLateSynAck)?, 1);
    assert_eq!(client.get("/", "")?.body, "b1", "the client noticed nothing");
    client.download(100_000)
}

/// The backend's half is hand-made, so every field that reaches it is looked at.
#[test]
fn a_hand_made_backend_sees_what_the_client_said() -> Result<()> {
    let mut world = World::silent(Arms::Several, 1)?;
    let wire = Wire::open(&world.town.backends[0])?;
    let by_hand = SocketAddrV4::new(wire.ip, PORT);
    world.balancer.change(|setup| setup.set_addr(0, by_hand))?;
    let client = Client::connect(&world.town.client.netns)?;
    let from = client.stream().local_addr()?;
    let (mut stream, local) = (client.stream(), by_hand);
    std::io::Write::write_all(&mut stream, b"hello backend")?;
    let mut peer =
        Peer::accept(&wire, local, 0xffff_fff0, Opt::linux_syn(1460, Some(3), true, Some((900, 0))))?;
    assert_eq!(std::net::SocketAddr::V4(peer.remote), from, "the client's own address");
    assert!(peer.theirs.sack_permitted() && peer.theirs.window_scale().is_some());
    let hello = peer.expect("the stashed payload").with_context(|| world.counts())?;
    assert_eq!(hello.payload, b"hello backend");
    assert_eq!((hello.ack, hello.flags & ACK), (0xffff_fff1, ACK));
    assert_eq!(hello.timestamp().map(|(_, echo)| echo), Some(900));
    let mut got = [0; 12];
    peer.push(b"hello ")?;
    peer.push(b"client")?;
    std::io::Read::read_exact(&mut stream, &mut got)?;
    assert_eq!(&got, b"hello client");
    let ack = wire.expect_where("an ACK of all", |s| s.ack == peer.seq)?;
    assert_eq!(ack.timestamp().map(|(_, echo)| echo), Some(901), "the backend's own clock comes back");
    Ok(())
}
