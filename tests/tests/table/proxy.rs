//! Headers of the PROXY protocol in front of what clients send.

use anyhow::Result;
use lb_common::addr::{Addr, Be16};
use lb_common::counter::Counter::{self, *};
use lb_common::flow::FlowState;
use lb_common::maglev::client_hash;
use lb_common::service::{Affinity, Place};
use std::net::IpAddr;
use tests::frame::{FIN, PSH};
use tests::hello::{asks_for, in_records};
use tests::scene::{ISN, REQUEST, SERVICE, Scene};
use tests::table::{essence, steer, with_token};

const V2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

fn scene(backends: u16) -> Result<Scene> {
    let mut scene = Scene::new(backends)?;
    scene.runner.change(|setup| setup.services[0].accept_proxy = 1)?;
    Ok(scene)
}

/// A service that goes by the client's address.
fn by_address() -> Result<Scene> {
    let mut scene = scene(8)?;
    scene.runner.change(|setup| {
        setup.services[0].affinity = Affinity::Source as u8;
        setup.services[0].place = Place::Proxy as u8;
    })?;
    Ok(scene)
}

/// A header of version 2: command, family, what follows.
fn v2(command: u8, family: u8, rest: &[u8]) -> Vec<u8> {
    [V2, &[command, family], &(rest.len() as u16).to_be_bytes(), rest].concat()
}

/// Addresses and ports of version 2, and something of a proxy's own behind them (§2.2).
fn tcp4(tlvs: usize) -> Vec<u8> {
    let addresses = [198, 51, 100, 7, 192, 0, 2, 1, 0x9c, 0x40, 0, 80];
    v2(0x21, 0x11, &[&addresses[..], &tlv(tlvs)].concat())
}

fn tlv(len: usize) -> Vec<u8> {
    if len == 0 { Vec::new() } else { [&[0xee][..], &(len as u16).to_be_bytes(), &vec![b'\n'; len]].concat() }
}

fn tcp6(client: &str) -> Vec<u8> {
    let IpAddr::V6(client) = client.parse().expect("an address") else { panic!("{client} is none of IPv6") };
    v2(0x21, 0x21, &[&client.octets()[..], &[9; 16], &[0x9c, 0x40, 0, 80]].concat())
}

/// Headers that are right.
fn headers() -> Vec<Vec<u8>> {
    let mut headers: Vec<Vec<u8>> = [
        "PROXY TCP4 198.51.100.7 192.0.2.1 40000 80\r\n",
        "PROXY TCP6 2001:db8::7 2001:db8::1 40000 80\r\n",
        "PROXY UNKNOWN\r\n",
        "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    headers.extend([tcp4(0), tcp4(200), tcp6("2001:db8::7"), v2(0x20, 0, &[]), v2(0x20, 0x11, &[1; 3])]);
    headers.extend([v2(0x21, 0x31, &[7; 216]), v2(0x21, 0, &tlv(9))]);
    headers
}

#[test]
fn a_key_behind_a_header_is_found() -> Result<()> {
    let mut scene = scene(4)?;
    let token = scene.runner.setup.token(3, 77);
    for (i, header) in headers().into_iter().enumerate() {
        for lines in ["", "\r\n", "\n"] {
            let payload = [&header[..], lines.as_bytes(), &with_token(&token)].concat();
            let steered = steer(&mut scene, &payload)?;
            assert_eq!((steered.slot, &steered.counted[..]), (3, &[AffinityHit, Bound][..]), "{i}");
        }
    }
    scene.runner.change(|setup| {
        setup.services[0].affinity = Affinity::Hashed as u8;
        assert!(setup.services[0].set_query_name("k"));
    })?;
    for (i, header) in headers().into_iter().enumerate() {
        let steered = steer(&mut scene, &[&header[..], b"GET /?k=v HTTP/1.1\r\n\r\n"].concat())?;
        assert_eq!(steered.counted, [Hashed, Bound], "{i}");
    }
    Ok(())
}

/// The header goes to the backend as it came.
#[test]
fn a_header_is_awaited_byte_by_byte_and_forwarded() -> Result<()> {
    let mut scene = scene(4)?;
    let token = scene.runner.setup.token(3, 77);
    for header in headers() {
        for size in [1, 5, header.len()] {
            let payload = [&header[..], &with_token(&token)].concat();
            let mut at = 0;
            let bound = loop {
                let end = payload.len().min(at + size);
                let outcome = scene.xdp(&scene.segment(at as u32, PSH, &payload[at..end]))?;
                at = end;
                if !outcome.counted(HeadAwaited) {
                    break outcome;
                }
            };
            assert!(bound.counted(AffinityHit) && bound.counted(Bound), "{size}: {bound:?}");
            assert_eq!(essence(&bound.segment()), essence(&scene.offered(3)), "{size}");
            let outcome = scene.joint(&scene.syn_ack(3))?;
            let sent = outcome.segment().end().wrapping_sub(ISN).wrapping_sub(1);
            assert_eq!(sent as usize, at, "{size}");
            scene.runner.maps.forget()?;
        }
    }
    Ok(())
}

#[test]
fn a_name_in_tls_behind_a_header_is_found() -> Result<()> {
    let mut scene = scene(4)?;
    scene.runner.change(|setup| {
        setup.services[0].place = Place::Sni as u8;
        setup.services[0].affinity = Affinity::Source as u8;
        setup.list(SERVICE, "shop.example.org", &[2]);
    })?;
    let hello = asks_for("shop.example.org");
    for header in headers() {
        for hello in [hello.clone(), in_records(&hello, &[40]), in_records(&hello, &[1; 100])] {
            let payload = [&header[..], &hello].concat();
            let steered = steer(&mut scene, &payload)?;
            assert_eq!((steered.slot, &steered.counted[..]), (2, &[Hashed, Bound][..]));
        }
        // Its beginning alone is awaited.
        for len in [header.len(), header.len() + 3, header.len() + 20] {
            let outcome = scene.xdp(&scene.first(&[&header[..], &hello].concat()[..len]))?;
            assert!(outcome.counted(HeadAwaited), "{len}: {outcome:?}");
            scene.runner.maps.forget()?;
        }
    }
    Ok(())
}

/// Where `source` sends an address.
fn home(scene: &Scene, address: &str) -> u16 {
    let address: IpAddr = address.parse().expect("an address");
    let table = scene.runner.setup.maglev(SERVICE);
    let hash = client_hash(Addr::from(address), Be16::new(0));
    table[lb_common::hash::scale(hash, table.len() as u32) as usize]
}

#[test]
fn source_goes_by_the_address_in_the_header() -> Result<()> {
    let mut scene = by_address()?;
    let own = scene.client.ip().to_string();
    let text = |line: &str| line.as_bytes().to_vec();
    for n in 0..40 {
        for (header, address) in [
            (text(&format!("PROXY TCP4 198.51.100.{n} 192.0.2.1 1 80\r\n")), format!("198.51.100.{n}")),
            (text(&format!("PROXY TCP6 2001:db8::{n:x} ::1 1 80\r\n")), format!("2001:db8::{n:x}")),
            (text(&format!("PROXY TCP6 2001:DB8:0:0:0:0:0:{n:x} ::1 1 80\r\n")), format!("2001:db8::{n:x}")),
            (text(&format!("PROXY TCP6 ::ffff:198.51.100.{n} ::1 1 80\r\n")), format!("198.51.100.{n}")),
            (v2(0x21, 0x11, &[198, 51, 100, n, 192, 0, 2, 1, 0, 1, 0, 80]), format!("198.51.100.{n}")),
            (tcp6(&format!("2001:db8::{n:x}")), format!("2001:db8::{n:x}")),
            (tcp6(&format!("::ffff:198.51.100.{n}")), format!("198.51.100.{n}")),
            (
                v2(0x21, 0x11, &[&[198, 51, 100, n, 192, 0, 2, 1, 0, 1, 0, 80][..], &tlv(300)].concat()),
                format!("198.51.100.{n}"),
            ),
            // It says nothing of whose connection it is.
            (text("PROXY UNKNOWN\r\n"), own.clone()),
            (v2(0x20, 0x11, &[198, 51, 100, n, 192, 0, 2, 1, 0, 1, 0, 80]), own.clone()),
            (v2(0x21, 0x31, &[n; 216]), own.clone()),
            (v2(0x21, 0x00, &[]), own.clone()),
        ] {
            let steered = steer(&mut scene, &header)?;
            assert_eq!(steered.counted, [Hashed, Bound], "{address}");
            assert_eq!(steered.slot, home(&scene, &address), "{address} in {}", header.escape_ascii());
        }
    }
    Ok(())
}

#[test]
fn source_waits_for_the_header_alone() -> Result<()> {
    let scene = by_address()?;
    // Its client's SYN is answered, for the backend depends on what follows.
    assert!(scene.xdp(&scene.syn())?.counted(SynAnswered));
    let header = b"PROXY TCP4 198.51.100.7 192.0.2.1 40000 80\r\n";
    for at in 0..header.len() - 1 {
        let outcome = scene.xdp(&scene.segment(at as u32, PSH, &header[at..=at]))?;
        assert!(outcome.counted(HeadAwaited), "{at}: {outcome:?}");
    }
    let last = header.len() - 1;
    let outcome = scene.xdp(&scene.segment(last as u32, PSH, &header[last..]))?;
    assert!(outcome.counted(Hashed) && outcome.counted(Bound), "{outcome:?}");
    Ok(())
}

#[test]
fn a_missing_header_is_named_and_the_client_served_by_what_it_said() -> Result<()> {
    let mut scene = scene(4)?;
    let token = scene.runner.setup.token(3, 77);
    let steered = steer(&mut scene, &with_token(&token))?;
    assert_eq!((steered.slot, &steered.counted[..]), (3, &[AffinityHit, Bound, ProxyMissing][..]));
    assert_eq!(steer(&mut scene, b"\x80 binary")?.counted, [NewSession, Bound, ProxyMissing]);
    let mut scene = by_address()?;
    let own = scene.client.ip().to_string();
    let steered = steer(&mut scene, REQUEST)?;
    assert_eq!(
        (steered.slot, &steered.counted[..]),
        (home(&scene, &own), &[Hashed, Bound, ProxyMissing][..])
    );
    Ok(())
}

#[test]
fn a_header_that_makes_no_sense_is_named() -> Result<()> {
    let long = [&b"PROXY UNKNOWN "[..], &[b'x'; 92], b"\r\n"].concat();
    let endless = [&b"PROXY UNKNOWN "[..], &[b'x'; 93]].concat();
    let all: [&[u8]; 9] = [
        b"PROXY \r\n",
        b"PROXY UDP4 198.51.100.7 192.0.2.1 40000 80\r\n",
        b"PROXY TCP4 198.51.100.7 192.0.2.1 40000 80\n",
        b"PROXY tcp4 198.51.100.7 192.0.2.1 40000 80\r\n",
        &long,
        &endless,
        &v2(0x11, 0x11, &[0; 12]),
        &v2(0x22, 0x11, &[0; 12]),
        &v2(0x21, 0x11, &[0; 11]),
    ];
    for header in all {
        let mut scene = scene(4)?;
        let counted = steer(&mut scene, header)?.counted;
        assert_eq!(counted, [NewSession, Bound, ProxyInvalid], "{}", header.escape_ascii());
        let mut scene = by_address()?;
        let counted = steer(&mut scene, header)?.counted;
        assert_eq!(counted, [Hashed, Bound, ProxyInvalid], "{}", header.escape_ascii());
    }
    let mut scene = by_address()?;
    for address in ["1.2.3", "256.1.1.1", "a", "", "::1::", "1.2.3.4:5", "1.2.3.4\r\n"] {
        let header = format!("PROXY TCP4 {address} 192.0.2.1 40000 80\r\n");
        assert_eq!(steer(&mut scene, header.as_bytes())?.counted, [Hashed, Bound, ProxyInvalid], "{address}");
    }
    Ok(())
}

#[test]
fn a_header_longer_than_a_stash_is_not_waited_for() -> Result<()> {
    let mut scene = scene(4)?;
    let header = v2(0x21, 0x11, &[0; 4000]);
    let counted = steer(&mut scene, &header[..100])?.counted;
    assert_eq!(counted, [NewSession, Bound, HeadIncomplete]);
    // All that there is room for is awaited.
    let header = v2(0x21, 0x11, &[0; 2900]);
    let outcome = scene.xdp(&scene.first(&header[..100]))?;
    assert!(outcome.counted(HeadAwaited), "{outcome:?}");
    Ok(())
}

#[test]
fn a_header_that_is_cut_for_good_is_counted() -> Result<()> {
    let mut scene = scene(4)?;
    for part in [&V2[..5], V2, b"PROX", b"PROXY TCP4 1.2.3"] {
        let outcome = scene.xdp(&scene.segment(0, PSH | FIN, part))?;
        let counted: Vec<Counter> = outcome.counted.iter().map(|(counter, _)| *counter).collect();
        assert_eq!(counted, [NewSession, Bound, HeadIncomplete], "{}", part.escape_ascii());
        scene.runner.maps.forget()?;
    }
    Ok(())
}

/// The service knows of no proxy: what stands there is named, and does not hide what follows it.
#[test]
fn a_header_that_nobody_expects_is_named() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let token = scene.runner.setup.token(3, 77);
    for header in headers() {
        let steered = steer(&mut scene, &[&header[..], &with_token(&token)].concat())?;
        let counted = &steered.counted[..];
        assert!(
            counted.contains(&ProxyUnexpected) && counted.contains(&Bound),
            "{}: {counted:?}",
            header.escape_ascii()
        );
    }
    scene.runner.change(|setup| setup.services[0].place = Place::Sni as u8)?;
    for header in headers() {
        let counted = steer(&mut scene, &[&header[..], &asks_for("a")].concat())?.counted;
        assert_eq!(counted, [NewSession, Bound, ProxyUnexpected], "{}", header.escape_ascii());
    }
    Ok(())
}

#[test]
fn a_second_header_is_named() -> Result<()> {
    let mut scene = scene(4)?;
    let payload = [&tcp4(0)[..], b"PROXY UNKNOWN\r\n", REQUEST].concat();
    assert_eq!(steer(&mut scene, &payload)?.counted, [NewSession, Bound, ProxyUnexpected]);
    Ok(())
}

/// What is repeated is the header and the one request behind it.
#[test]
fn a_request_behind_a_header_is_replayed() -> Result<()> {
    let mut scene = scene(2)?;
    scene.runner.change(|setup| setup.services[0].replay = 1)?;
    for (behind, replayed) in [
        (REQUEST.to_vec(), true),
        (b"POST / HTTP/1.1\r\n\r\n".to_vec(), false),
        ([REQUEST, REQUEST].concat(), false),
    ] {
        for header in [tcp4(20), b"PROXY TCP4 198.51.100.7 192.0.2.1 40000 80\r\n".to_vec()] {
            let payload = [&header[..], &behind].concat();
            let slot = scene.bind(&payload)?;
            scene.xdp(&scene.syn_ack(slot))?;
            scene.joint(&scene.syn_ack(slot))?;
            let end = scene.response(slot, 0, FIN, b"").ack(ISN.wrapping_add(1 + payload.len() as u32));
            let outcome = scene.xdp(&end)?;
            assert_eq!(outcome.counted(Replayed), replayed, "{outcome:?}");
            if replayed {
                let sent = scene.joint(&scene.syn_ack(1 - slot))?.segment();
                assert_eq!(sent.payload, payload);
            }
            scene.runner.maps.forget()?;
        }
    }
    Ok(())
}

/// Later requests of the connection have no header of their own.
#[test]
fn a_later_request_is_looked_at_without_a_header() -> Result<()> {
    let mut scene = scene(4)?;
    scene.runner.change(|setup| tests::learned::learns(&mut setup.services[0]))?;
    let name = tests::learned::NAME;
    let first = [&tcp4(0)[..], REQUEST].concat();
    let slot = scene.bind(&first)?;
    scene.xdp(&scene.syn_ack(slot))?;
    scene.joint(&scene.syn_ack(slot))?;
    let flow = scene.runner.maps.flows()?[0];
    assert_eq!(FlowState::from_bits(flow.head.state), FlowState::Established);
    let asked = format!("GET / HTTP/1.1\r\nCookie: {name}=abc\r\n\r\n");
    let outcome = scene.xdp(&scene.segment(first.len() as u32, PSH, asked.as_bytes()))?;
    assert!(outcome.counted(FromClient) && !outcome.counted(ProxyMissing), "{outcome:?}");
    Ok(())
}
