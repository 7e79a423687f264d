//! Packets that are none of ours go up to the host untouched; malformed ones for a service are dropped by name.

use anyhow::Result;
use lb_common::counter::Counter;
use std::net::SocketAddrV4;
use tests::balancer::dial;
use tests::frame::{ACK, FIN, PSH, RST, SYN, Segment, URG};
use tests::runner::Verdict;
use tests::scene::{REQUEST, Scene, backend};
use tests::table::{Row, check_rows};

fn passed(name: impl ToString, frame: Vec<u8>) -> Row {
    Row::new(name, frame, Verdict::Pass, Counter::Passed)
}

fn dropped(name: impl ToString, frame: Vec<u8>, counter: Counter) -> Row {
    Row::new(name, frame, Verdict::Drop, counter)
}

/// Changes bytes of a frame.
fn with(segment: &Segment, change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut bytes = segment.bytes();
    change(&mut bytes);
    bytes
}

#[test]
fn others_are_passed() -> Result<()> {
    let scene = Scene::new(1)?;
    let syn = scene.syn();
    let elsewhere = |dst: &str| Segment { dst: dst.parse().expect("an address"), ..syn.clone() }.bytes();
    let rows = [
        passed("another address", elsewhere("10.0.9.2:80")),
        passed("another port", elsewhere("10.0.9.1:81")),
        passed("a backend's own address", Segment { dst: backend(0), ..syn.clone() }.bytes()),
        passed("UDP", with(&syn, |b| b[23] = 17)),
        passed("ICMP", with(&syn, |b| b[23] = 1)),
        passed("ARP", with(&syn, |b| b[12..14].copy_from_slice(&[8, 6]))),
        passed("IPv6", with(&syn, |b| b[12..14].copy_from_slice(&[0x86, 0xdd]))),
        passed("a VLAN tag", Segment { vlan: Some(7), ..syn.clone() }.bytes()),
        passed("version 5", with(&syn, |b| b[14] = 0x55)),
        passed(
            "IPv4 options, not for a service",
            Segment { ip_options: vec![1, 1, 1, 0], dst: "10.0.9.2:80".parse()?, ..syn.clone() }.bytes(),
        ),
        passed("a later fragment", Segment { fragment: 185, ..syn.clone() }.bytes()),
    ];
    check_rows(&scene, rows)
}

#[test]
fn frames_of_every_short_length_are_passed_or_dropped() -> Result<()> {
    let scene = Scene::new(1)?;
    let whole = scene.first(REQUEST).bytes();
    let rows = (14..whole.len()).map(|len| {
        let cut = whole[..len].to_vec();
        // Shorter than Ethernet, IPv4 and TCP headers, nothing can be said about it.
        if len < 54 {
            passed(format!("{len} bytes"), cut)
        } else {
            dropped(format!("{len} bytes"), cut, Counter::DropTruncated)
        }
    });
    check_rows(&scene, rows)
}

#[test]
fn contradicting_lengths_are_dropped() -> Result<()> {
    let scene = Scene::new(1)?;
    let first = scene.first(REQUEST);
    let rows = [
        dropped(
            "total length 39",
            with(&first, |b| b[16..18].copy_from_slice(&[0, 39])),
            Counter::DropTruncated,
        ),
        dropped(
            "total length 0",
            with(&first, |b| b[16..18].copy_from_slice(&[0, 0])),
            Counter::DropTruncated,
        ),
        dropped(
            "total length 65535",
            with(&first, |b| b[16..18].copy_from_slice(&[255, 255])),
            Counter::DropTruncated,
        ),
        dropped("TCP header of 16 bytes", with(&first, |b| b[46] = 0x40), Counter::DropTruncated),
        dropped("no TCP header", with(&first, |b| b[46] = 0), Counter::DropTruncated),
        dropped(
            "a TCP header longer than the segment",
            with(&scene.segment(0, 0, b""), |b| b[46] = 0xf0),
            Counter::DropTruncated,
        ),
    ];
    check_rows(&scene, rows)
}

#[test]
fn fragments_and_ip_options_for_a_service_are_dropped() -> Result<()> {
    let scene = Scene::new(1)?;
    let first = scene.first(REQUEST);
    let options = |n: usize| Segment { ip_options: vec![1; n], ..first.clone() }.bytes();
    let rows = [
        dropped(
            "a first fragment",
            Segment { fragment: 0x2000, ..first.clone() }.bytes(),
            Counter::DropFragment,
        ),
        dropped("one word of IP options", options(4), Counter::DropIpOptions),
        dropped("all IP options there can be", options(40), Counter::DropIpOptions),
    ];
    check_rows(&scene, rows)
}

#[test]
fn impossible_flags_are_dropped() -> Result<()> {
    let scene = Scene::new(1)?;
    let flags = |flags: u8| scene.first(b"").flags(flags).bytes();
    let bad = [
        ("SYN and FIN", SYN | FIN),
        ("SYN and RST", SYN | RST),
        ("FIN and RST", FIN | RST | ACK),
        ("SYN, FIN and ACK", SYN | FIN | ACK),
        ("everything", SYN | FIN | RST | ACK | PSH | URG),
        ("a SYN-ACK to a service", SYN | ACK),
    ];
    let lone = [("nothing", 0), ("FIN alone", FIN), ("PSH alone", PSH), ("FIN, PSH, URG", FIN | PSH | URG)];
    let rows = bad.map(|(name, f)| dropped(name, flags(f), Counter::DropBadFlags));
    check_rows(
        &scene,
        rows.into_iter().chain(lone.map(|(name, f)| dropped(name, flags(f), Counter::DropNoAck))),
    )
}

/// Ethernet pads short frames; what is behind the datagram is not payload.
#[test]
fn padding_is_not_payload() -> Result<()> {
    let scene = Scene::new(1)?;
    let ack = Segment { padding: 20, ..scene.segment(0, 0, b"") };
    check_rows(&scene, [dropped("a padded ACK", ack.bytes(), Counter::HandshakeAck)])?;
    let answer = scene.xdp(&Segment { padding: 20, ..scene.syn() })?.segment();
    assert_eq!(answer.padding, 0);
    Ok(())
}

#[test]
fn without_a_service_everything_is_passed() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.runner.change(|setup| setup.services.clear())?;
    let far: SocketAddrV4 = dial();
    check_rows(&scene, [passed("no service", Segment::syn(scene.client, far, 1).bytes())])
}
