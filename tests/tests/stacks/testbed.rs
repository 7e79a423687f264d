//! The test programs themselves: a filter that loses nothing would make every test of losses pass.

use anyhow::{Context, Result, ensure};
use std::net::UdpSocket;
use std::time::Duration;
use tests::client::WATCHDOG;
use tests::frame::{ACK, SYN};
use tests::netns::Netns;
use tests::server::{Server, matches_pattern};
use tests::testbed::{Filter, Rule, Side};
use tests::topology::{Arms, Topology};

use std::io::Write;
use std::net::TcpStream;

fn connect(netns: &Netns, to: std::net::SocketAddrV4) -> Result<TcpStream> {
    Ok(netns.run(|| TcpStream::connect_timeout(&to.into(), WATCHDOG))?)
}

#[test]
fn a_watch_sees_every_segment_and_finds_nothing_wrong_with_the_kernels_own() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let watch = Filter::attach(&town.client, Side::Ingress)?;
    let _server = Server::start(&town.backends[0], "b0")?;
    let mut stream = connect(&town.client.netns, town.backends[0].serves())?;
    stream.write_all(b"GET /bytes/300001 HTTP/1.1\r\n\r\n")?;
    let mut head = [0; "HTTP/1.1 200 OK\r\nContent-Length: 300001\r\n\r\n".len()];
    std::io::Read::read_exact(&mut stream, &mut head)?;
    assert!(matches_pattern(&mut stream, 300_001)?);
    let seen = watch.seen()?;
    assert_eq!((seen.bad_ip, seen.bad_tcp, seen.odd), (0, 0, 0), "{seen:?}");
    assert!(seen.tcp >= 300_001 / 1448, "{seen:?}");
    Ok(())
}

/// With checksums left to a network card that does not exist, every segment on the wire is wrong.
#[test]
fn a_watch_notices_wrong_checksums() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let backend = &town.backends[0];
    let watch = Filter::attach(backend, Side::Ingress)?;
    for (at, name) in [(&town.client.netns, "eth0"), (&town.balancer, &backend.via.name[..])] {
        at.sh(&format!("ethtool -K {name} tx on"))?;
    }
    let gone = town
        .client
        .netns
        .run(|| TcpStream::connect_timeout(&backend.serves().into(), Duration::from_millis(300)));
    drop(gone);
    let seen = watch.seen()?;
    assert_eq!((seen.bad_ip, seen.bad_tcp > 0), (0, true), "{seen:?}");
    Ok(())
}

#[test]
fn the_first_segment_with_payload_is_lost_and_comes_again() -> Result<()> {
    for side in [Side::Ingress, Side::Egress] {
        let town = Topology::new(Arms::Several, 1)?;
        let server = Server::start(&town.backends[0], "b0")?;
        let host = if side == Side::Egress { &town.client } else { &town.backends[0] };
        let mut filter = Filter::attach(host, side)?;
        filter.rules(&[Rule { dst_port: 80, ..Rule::ANY }.with_payload().drop_first(1)])?;
        let mut stream = connect(&town.client.netns, town.backends[0].serves())?;
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n")?;
        std::io::Read::read_exact(&mut stream, &mut [0; 10])?;
        assert_eq!(server.requests(), 1);
        let tally = filter.tally(0)?;
        assert_eq!((tally.hit, tally.matched >= 2), (1, true), "{tally:?}");
        assert!(town.client.netns.counter("TcpRetransSegs")? >= 1);
    }
    Ok(())
}

#[test]
fn each_fifth_frame_is_lost() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let backend = &town.backends[0];
    let mut filter = Filter::attach(backend, Side::Ingress)?;
    filter.rules(&[Rule::ANY.drop_every(5)])?;
    let receiver = backend.netns.run(|| UdpSocket::bind((backend.ip, 9)))?;
    receiver.set_read_timeout(Some(Duration::from_secs(2)))?;
    let sender = town.client.netns.run(|| UdpSocket::bind((town.client.ip, 0)))?;
    // In small rounds: a frame that passed XDP may count as a whole page in the receive buffer (Linux 6.1).
    for round in 0..5 {
        for _ in 0..20 {
            sender.send_to(b"x", (backend.ip, 9))?;
        }
        for _ in 0..16 {
            receiver.recv(&mut [0; 4]).with_context(|| format!("round {round}: {:?}", filter.tally(0)))?;
        }
    }
    receiver.set_nonblocking(true)?;
    ensure!(receiver.recv(&mut [0; 4]).is_err(), "{:?}", filter.tally(0)?);
    let tally = filter.tally(0)?;
    assert_eq!((tally.matched, tally.hit), (100, 20));
    Ok(())
}

#[test]
fn a_syn_is_doubled_at_egress() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let backend = &town.backends[0];
    let mut out = Filter::attach(&town.client, Side::Egress)?;
    let mut at_backend = Filter::attach(backend, Side::Ingress)?;
    out.rules(&[Rule::ANY.flags(SYN | ACK, SYN).double_first(1)])?;
    at_backend.rules(&[Rule { action: 3, ..Rule::ANY.flags(SYN | ACK, SYN) }])?;
    let _server = Server::start(backend, "b0")?;
    connect(&town.client.netns, backend.serves())?;
    assert_eq!(out.tally(0)?.hit, 1);
    assert_eq!(at_backend.tally(0)?.matched, 2);
    Ok(())
}
