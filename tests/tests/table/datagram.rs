//! UDP: each datagram is steered by itself, and translated both ways.

use anyhow::Result;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::flow::{Flow, FlowState};
use lb_common::service::{Affinity, Place, Service};
use lb_common::token::{TOKEN_LEN, TOKEN_TEXT_LEN, decode};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use tests::balancer::dial;
use tests::frame::Datagram;
use tests::runner::{Outcome, Verdict};
use tests::scene::{CLIENT_MAC, LOCAL_MAC, Scene, backend, macs};

fn scene(backends: u16, set: impl FnOnce(&mut Service)) -> Result<Scene> {
    let mut scene = Scene::new(backends)?;
    scene.runner.change(|setup| {
        setup.services[0].protocol = 17;
        set(&mut setup.services[0]);
    })?;
    Ok(scene)
}

/// Tokens as text, at an offset.
fn texts_at(offset: u8) -> impl FnOnce(&mut Service) {
    move |service| {
        service.affinity = Affinity::Signed as u8;
        service.place = Place::Offset as u8;
        service.key_at = offset;
        service.key_len = TOKEN_TEXT_LEN as u8;
    }
}

fn sent(scene: &Scene, payload: &[u8]) -> Datagram {
    Datagram::new(scene.client, dial(), payload).macs(CLIENT_MAC, LOCAL_MAC)
}

fn xdp(scene: &Scene, datagram: &Datagram) -> Result<Outcome<Verdict>> {
    scene.runner.xdp(&datagram.bytes())
}

fn counted(outcome: &Outcome<Verdict>) -> Vec<Counter> {
    outcome.counted.iter().map(|(counter, _)| *counter).collect()
}

#[test]
fn a_first_datagram_of_who_cannot_be_a_host_goes_nowhere() -> Result<()> {
    let scene = scene(1, |_| {})?;
    let usual = sent(&scene, b"x");
    let mut frames = Vec::new();
    for ip in ["0.0.0.0", "127.0.0.1", "224.0.0.251", "255.255.255.255"] {
        let mut frame = usual.clone();
        frame.src.set_ip(ip.parse()?);
        frames.push(frame);
    }
    frames.push(usual.clone().macs(CLIENT_MAC, [0xff; 6]));
    frames.push(usual.clone().macs([3, 0, 0, 0, 0, 1], LOCAL_MAC));
    for frame in frames {
        let outcome = xdp(&scene, &frame)?;
        assert_eq!(
            (outcome.verdict, counted(&outcome)),
            (Verdict::Drop, vec![Counter::DropBadSource]),
            "{frame:?}"
        );
    }
    assert_eq!(scene.runner.maps.flows()?, []);
    assert_eq!(xdp(&scene, &usual)?.verdict, Verdict::Redirect);
    Ok(())
}

/// Sends a datagram, checks that it is translated and nothing else, and returns where it went and what was counted.
fn steer(scene: &Scene, payload: &[u8]) -> Result<(u16, Vec<Counter>)> {
    let sent = sent(scene, payload);
    let outcome = xdp(scene, &sent)?;
    assert_eq!(outcome.verdict, Verdict::Redirect, "{outcome:?}");
    let seen = Datagram::parse(&outcome.frame);
    let all = 0..scene.runner.setup.backends.len() as u16;
    let slot = all.into_iter().find(|slot| backend(*slot) == seen.dst).expect("addressed to a backend");
    let (local, next) = macs(slot);
    assert_eq!(seen, Datagram { dst: seen.dst, ttl: 63, ..sent.macs(local, next) });
    Ok((slot, counted(&outcome)))
}

/// A backend's datagram reaches the client as if the service had sent it.
fn answered(scene: &Scene, slot: u16, payload: &[u8]) -> Result<()> {
    let (local, next) = macs(slot);
    let sent = Datagram::new(backend(slot), scene.client, payload).macs(next, local);
    let outcome = xdp(scene, &sent)?;
    assert_eq!(counted(&outcome), [Counter::FromBackend], "{outcome:?}");
    let seen = Datagram::parse(&outcome.frame);
    assert_eq!(seen, Datagram { src: dial(), ttl: 63, ..sent.macs(LOCAL_MAC, CLIENT_MAC) });
    Ok(())
}

fn raw(token: &str) -> Vec<u8> {
    decode(token.as_bytes()).expect("a token").to_vec()
}

#[test]
fn there_and_back() -> Result<()> {
    for affinity in [Affinity::None, Affinity::Source] {
        let mut scene = scene(3, |service| service.affinity = affinity as u8)?;
        let why = if affinity == Affinity::Source { Counter::Hashed } else { Counter::NewSession };
        for payload in [&b""[..], b"x", b"question", &[7; 1400]] {
            let (slot, counted) = steer(&scene, payload)?;
            assert_eq!(counted, [why, Counter::FromClient]);
            answered(&scene, slot, b"answer")?;
            answered(&scene, slot, b"")?;
            assert_eq!(steer(&scene, payload)?, (slot, vec![Counter::FromClient]));
            scene.runner.maps.forget()?;
        }
    }
    Ok(())
}

/// A flow counts as the client's own only when the client goes on after an answer: a forged address does not.
#[test]
fn a_flow_is_confirmed_by_a_client_that_goes_on() -> Result<()> {
    let scene = scene(1, |service| service.affinity = Affinity::None as u8)?;
    let state =
        || -> Result<FlowState> { Ok(FlowState::from_bits(scene.runner.maps.flows()?[0].head.state)) };
    steer(&scene, b"1")?;
    steer(&scene, b"2")?;
    assert_eq!(state()?, FlowState::Opening);
    answered(&scene, 0, b"3")?;
    assert_eq!(state()?, FlowState::Opening);
    steer(&scene, b"4")?;
    assert_eq!(state()?, FlowState::Established);
    Ok(())
}

#[test]
fn a_datagram_without_a_checksum_stays_without_one() -> Result<()> {
    let scene = scene(1, |service| service.affinity = Affinity::None as u8)?;
    let outcome = xdp(&scene, &Datagram { checked: false, ..sent(&scene, b"hello") })?;
    assert!(!Datagram::parse(&outcome.frame).checked);
    Ok(())
}

/// Every checksum there can be, the one that is written as all ones included.
#[test]
fn checksums_stay_right_whatever_they_are() -> Result<()> {
    let scene = scene(2, |service| service.affinity = Affinity::None as u8)?;
    proptest!(ProptestConfig::with_cases(300), |(payload: Vec<u8>, host: u8, port in 1u16..)| {
        let mut sent = sent(&scene, &payload);
        sent.src = SocketAddrV4::new([10, 0, 1, host].into(), port);
        let frame = xdp(&scene, &sent).unwrap().frame;
        prop_assert!(Datagram::parse(&frame).checked);
    });
    // One whose checksum at the backend comes out as zero: the payload's last word makes up for the rest.
    let sent = sent(&scene, &[0, 0]);
    let frame = xdp(&scene, &sent)?.frame;
    let check = u16::from_be_bytes([frame[40], frame[41]]);
    let made_up = Datagram { payload: check.to_be_bytes().to_vec(), ..sent };
    let frame = xdp(&scene, &made_up)?.frame;
    assert_eq!(&frame[40..42], [0xff, 0xff]);
    Datagram::parse(&frame);
    Ok(())
}

#[test]
fn a_token_leads_home_wherever_it_stands() -> Result<()> {
    let text = TOKEN_TEXT_LEN as u8;
    let bytes = TOKEN_LEN as u8;
    type Build = fn(&str) -> Vec<u8>;
    let rows: [(&str, Place, u8, u8, Build); 8] = [
        ("text first", Place::Offset, 0, text, |t| t.as_bytes().to_vec()),
        ("text first, more behind", Place::Offset, 0, text, |t| format!("{t} GET x").into_bytes()),
        ("text at 12", Place::Offset, 12, text, |t| format!("twelve bytes{t}").into_bytes()),
        ("raw at 3", Place::Offset, 3, bytes, |t| [b"abc".to_vec(), raw(t)].concat()),
        ("text at the end", Place::End, 0, text, |t| format!("any length {t}").into_bytes()),
        ("raw, two bytes before the end", Place::End, 2, bytes, |t| {
            [vec![9; 700], raw(t), vec![1, 2]].concat()
        }),
        ("text behind a marker", Place::Marker, 0, text, |t| {
            format!("a sa ses sess=x ses={t};").into_bytes()
        }),
        ("raw behind a marker and a byte", Place::Marker, 1, bytes, |t| {
            [&[b's'; 20][..], b"ses=:", &raw(t)].concat()
        }),
    ];
    for (name, place, at, len, build) in rows {
        let mut scene = scene(4, |service| {
            service.affinity = Affinity::Signed as u8;
            (service.place, service.key_at, service.key_len) = (place as u8, at, len);
            assert!(service.set_marker(b"ses="));
        })?;
        for slot in 0..4 {
            let token = scene.runner.setup.token(slot, 900 + u128::from(slot));
            assert_eq!(
                steer(&scene, &build(&token))?,
                (slot, vec![Counter::AffinityHit, Counter::FromClient]),
                "{name}"
            );
            scene.runner.maps.forget()?;
            // Cut off in the middle, it is none.
            let mut cut = build(&token);
            cut.truncate(cut.len() / 2);
            let (_, counted) = steer(&scene, &cut)?;
            assert!(counted.contains(&Counter::NewSession), "{name}: {counted:?}");
            scene.runner.maps.forget()?;
        }
    }
    Ok(())
}

/// The client's address changes, its token does not.
#[test]
fn a_client_that_moves_stays_with_its_server() -> Result<()> {
    let mut scene = scene(4, texts_at(0))?;
    let token = scene.runner.setup.token(2, 5);
    for port in [1000, 2000, 3000] {
        scene.client.set_port(port);
        scene.client.set_ip([10, 0, 1, (port / 100) as u8].into());
        assert_eq!(steer(&scene, token.as_bytes())?.0, 2);
        answered(&scene, 2, b"welcome")?;
    }
    Ok(())
}

#[test]
fn a_flow_follows_the_token_and_stays_where_it_led() -> Result<()> {
    let scene = scene(4, texts_at(0))?;
    let (first, _) = steer(&scene, b"hello")?;
    let other = (first + 1) % 4;
    let token = scene.runner.setup.token(other, 5);
    let moved = [Counter::AffinityHit, Counter::FromClient, Counter::FlowMoved];
    assert_eq!(steer(&scene, token.as_bytes())?, (other, moved.to_vec()));
    assert_eq!(steer(&scene, b"no token")?, (other, vec![Counter::FromClient]));
    // What the first one still sends arrives all the same.
    answered(&scene, first, b"late")?;
    Ok(())
}

#[test]
fn a_session_whose_backend_does_not_serve_moves_to_the_same_one_from_everywhere() -> Result<()> {
    let mut scene = scene(4, texts_at(0))?;
    let token = scene.runner.setup.token(1, 77);
    scene.runner.change(|setup| setup.set_state(1, State::Down))?;
    let mut to = Vec::new();
    for port in [1, 2, 3] {
        scene.client.set_port(port);
        let (slot, counted) = steer(&scene, token.as_bytes())?;
        assert_eq!(counted, [Counter::Redispatched, Counter::FromClient]);
        to.push(slot);
    }
    to.dedup();
    assert!(to.len() == 1 && to[0] != 1, "{to:?}");
    // A flow without a token leaves a backend that does not serve any more, too.
    scene.runner.change(|setup| setup.set_state(to[0], State::Maint))?;
    let (slot, counted) = steer(&scene, b"go on")?;
    assert!(slot != 1 && slot != to[0]);
    assert_eq!(counted, [Counter::NewSession, Counter::FromClient, Counter::FlowMoved]);
    Ok(())
}

#[test]
fn a_draining_backend_keeps_its_sessions_and_flows() -> Result<()> {
    let mut scene = scene(2, texts_at(0))?;
    let token = scene.runner.setup.token(1, 5);
    scene.runner.change(|setup| setup.set_state(1, State::Drain))?;
    assert_eq!(steer(&scene, token.as_bytes())?.0, 1);
    assert_eq!(steer(&scene, b"more")?.0, 1);
    for port in 1..40 {
        scene.client.set_port(port);
        assert_eq!(steer(&scene, b"new")?.0, 0);
    }
    Ok(())
}

#[test]
fn a_token_that_does_not_verify_is_counted_and_ignored() -> Result<()> {
    let scene = scene(3, texts_at(0))?;
    let mut token = scene.runner.setup.token(1, 5).into_bytes();
    token[20] = if token[20] == b'B' { b'C' } else { b'B' };
    let (_, counted) = steer(&scene, &token)?;
    assert_eq!(counted, [Counter::NewSession, Counter::InvalidToken, Counter::FromClient]);
    Ok(())
}

#[test]
fn a_key_is_hashed_to_one_backend_whoever_sends_it() -> Result<()> {
    let mut scene = scene(4, |service| {
        service.affinity = Affinity::Hashed as u8;
        (service.place, service.key_at, service.key_len) = (Place::Offset as u8, 2, 6);
    })?;
    let mut shares = BTreeMap::<u16, u32>::new();
    for room in 0..200 {
        let message = |n: u32| format!("{n:02}{room:06} and more");
        let mut to = Vec::new();
        for n in 0..3 {
            scene.client.set_port(1 + n as u16 + 3 * room as u16);
            let (slot, counted) = steer(&scene, message(n).as_bytes())?;
            assert_eq!(counted[0], Counter::Hashed);
            to.push(slot);
        }
        scene.runner.maps.forget()?;
        to.dedup();
        assert_eq!(to.len(), 1, "{to:?}");
        *shares.entry(to[0]).or_default() += 1;
    }
    assert!(shares.len() == 4 && shares.values().all(|n| *n > 20), "{shares:?}");
    // Too short for a key.
    assert_eq!(steer(&scene, b"short")?.1, [Counter::NewSession, Counter::FromClient]);
    Ok(())
}

#[test]
fn what_makes_no_sense_is_named() -> Result<()> {
    let mut scene = scene(1, |service| service.affinity = Affinity::None as u8)?;
    let whole = sent(&scene, b"hello");
    let bent = |at: usize, to: [u8; 2]| {
        let mut frame = whole.bytes();
        frame[at..at + 2].copy_from_slice(&to);
        frame
    };
    let rows = [
        (
            "a fragment that is the first",
            Datagram { fragment: 0x2000, ..whole.clone() }.bytes(),
            Verdict::Drop,
            Counter::DropFragment,
        ),
        (
            "one that is not",
            Datagram { fragment: 1, ..whole.clone() }.bytes(),
            Verdict::Pass,
            Counter::Passed,
        ),
        ("the last hop", Datagram { ttl: 1, ..whole.clone() }.bytes(), Verdict::Drop, Counter::DropTtl),
        ("longer than the packet", bent(38, [0, 200]), Verdict::Drop, Counter::DropTruncated),
        ("shorter than a header", bent(38, [0, 7]), Verdict::Drop, Counter::DropTruncated),
        ("a packet longer than the frame", bent(16, [1, 0]), Verdict::Drop, Counter::DropTruncated),
        ("cut off in the header", whole.bytes()[..40].to_vec(), Verdict::Pass, Counter::Passed),
        (
            "for nobody here",
            Datagram { dst: "10.9.9.9:53".parse()?, ..whole.clone() }.bytes(),
            Verdict::Pass,
            Counter::Passed,
        ),
        ("TCP for a UDP service", scene.syn().bytes(), Verdict::Pass, Counter::Passed),
    ];
    for (name, frame, verdict, counter) in rows {
        let outcome = scene.runner.xdp(&frame)?;
        assert_eq!((outcome.verdict, counted(&outcome)), (verdict, vec![counter]), "{name}");
        assert_eq!(outcome.frame, frame, "{name}");
    }
    let mut options = whole.bytes();
    options[14] = 0x46;
    options.splice(34..34, [1, 1, 1, 1]);
    assert_eq!(counted(&scene.runner.xdp(&options)?), [Counter::DropIpOptions]);

    let (local, next) = macs(0);
    let stray = Datagram::new(backend(0), "10.0.1.77:9".parse()?, b"hi").macs(next, local);
    assert_eq!(counted(&xdp(&scene, &stray)?), [Counter::PassedFromBackend]);
    scene.runner.change(|setup| setup.set_state(0, State::Down))?;
    assert_eq!(counted(&xdp(&scene, &whole)?), [Counter::DropNoBackend]);
    scene.runner.change(|setup| setup.services[0].enabled = 0)?;
    assert_eq!(counted(&xdp(&scene, &whole)?), [Counter::DropNoService]);
    Ok(())
}

/// Datagrams with forged addresses fill the table; clients that have gone on after an answer keep their flows.
#[test]
fn a_flood_harms_no_confirmed_flow() -> Result<()> {
    let mut scene = scene(2, |service| service.affinity = Affinity::None as u8)?;
    let groups = scene.runner.setup.sizes.groups;
    let mut living = Vec::new();
    let home = scene.client;
    for port in 1..=groups as u16 {
        scene.client.set_port(port);
        let (slot, _) = steer(&scene, b"hello")?;
        answered(&scene, slot, b"welcome")?;
        steer(&scene, b"go on")?;
        living.push((port, slot));
    }
    for n in 0..groups * 32 {
        scene.client = SocketAddrV4::new((0x0a63_0000 + n).into(), 5);
        let outcome = xdp(&scene, &sent(&scene, b"forged"))?;
        assert!(
            outcome.verdict == Verdict::Redirect || outcome.counted(Counter::DropFlowTableFull),
            "{outcome:?}"
        );
    }
    scene.client = home;
    for (port, slot) in living {
        scene.client.set_port(port);
        answered(&scene, slot, b"still here")?;
        assert_eq!(steer(&scene, b"and here")?, (slot, vec![Counter::FromClient]));
    }
    Ok(())
}

/// Two datagrams of a forged client and one answer confirm a flow; so flows of datagrams make room, the one first that was not
/// heard of longest, and connections do not.
#[test]
fn flows_of_datagrams_make_room() -> Result<()> {
    let mut scene = scene(1, |service| service.affinity = Affinity::None as u8)?;
    let places = scene.runner.setup.sizes.groups * 8;
    for n in 0..places * 4 {
        scene.client = SocketAddrV4::new((0x0a63_0000 + n).into(), 5);
        steer(&scene, b"one")?;
        answered(&scene, 0, b"to whom?")?;
        steer(&scene, b"two")?;
    }
    assert_eq!(scene.runner.maps.flows()?.len() as u32, places);
    assert_eq!(scene.runner.maps.live(0)?, u64::from(places));
    let (_, counted) = steer(
        &{
            scene.client.set_port(6);
            scene
        },
        b"a new one",
    )?;
    assert_eq!(counted, [Counter::NewSession, Counter::FlowEvicted, Counter::FromClient]);
    Ok(())
}

/// A full group: the one that is taken has either been idle for too long, or is given up before its time.
#[test]
fn flows_of_datagrams_have_an_idle_time_of_their_own() -> Result<()> {
    let mut scene = scene(1, |service| service.affinity = Affinity::None as u8)?;
    scene.runner.change(|setup| setup.settings.flow_group_mask = 0)?;
    let limit = scene.runner.setup.settings.datagram_idle_ticks;
    assert!(limit < scene.runner.setup.settings.idle_ticks);
    let evicted = [Counter::NewSession, Counter::FlowEvicted, Counter::FromClient];
    for (age, expected) in
        [(limit - 100, &evicted[..]), (limit + 1, &[Counter::NewSession, Counter::FromClient])]
    {
        scene.runner.maps.forget()?;
        for port in 1..=8 {
            scene.client.set_port(port);
            steer(&scene, b"one")?;
            answered(&scene, 0, b"to whom?")?;
            steer(&scene, b"two")?;
        }
        let index = scene.runner.maps.index_of(3)?;
        let flow = scene.runner.maps.flow(index)?;
        let flow = Flow { last_seen: flow.last_seen.wrapping_sub(age), ..flow };
        scene.runner.maps.set_flow(index, &flow)?;
        scene.client.set_port(9);
        assert_eq!(steer(&scene, b"a new one")?.1, expected, "{age} ticks");
        assert!(scene.runner.maps.index_of(3).is_err(), "the idle one is gone");
    }
    Ok(())
}

#[test]
fn answers_follow_the_client_to_another_router() -> Result<()> {
    let scene = scene(1, |service| service.affinity = Affinity::None as u8)?;
    steer(&scene, b"one")?;
    let (router, ours) = ([2, 0, 0, 0, 7, 7], [2, 0, 0, 0, 7, 1]);
    xdp(&scene, &sent(&scene, b"two").macs(router, ours))?;
    let (local, next) = macs(0);
    let answer = Datagram::new(backend(0), scene.client, b"three").macs(next, local);
    let seen = Datagram::parse(&xdp(&scene, &answer)?.frame);
    assert_eq!((seen.src_mac, seen.dst_mac), (ours, router));
    Ok(())
}

/// A neighbour sends a datagram in the name of a client that is heard: answers go where they went. When nothing comes that way any
/// more, its router has changed.
#[test]
fn a_neighbour_moves_no_way_back_of_a_client_that_is_heard() -> Result<()> {
    let mut scene = scene(1, |service| service.affinity = Affinity::None as u8)?;
    steer(&scene, b"one")?;
    answered(&scene, 0, b"two")?;
    steer(&scene, b"three")?;
    let (router, ours) = ([2, 0, 0, 0, 7, 7], [2, 0, 0, 0, 7, 1]);
    let forged = sent(&scene, b"four").macs(router, ours);
    let outcome = xdp(&scene, &forged)?;
    assert_eq!(counted(&outcome), [Counter::OutOfWindow, Counter::FromClient]);
    answered(&scene, 0, b"five")?;
    let index = scene.runner.maps.index_of(scene.client.port())?;
    let flow = scene.runner.maps.flow(index)?;
    scene.runner.maps.set_flow(index, &Flow { last_seen: flow.last_seen.wrapping_sub(20), ..flow })?;
    assert_eq!(counted(&xdp(&scene, &forged)?), [Counter::FromClient]);
    let (local, next) = macs(0);
    let answer = Datagram::new(backend(0), scene.client, b"six").macs(next, local);
    let seen = Datagram::parse(&xdp(&scene, &answer)?.frame);
    assert_eq!((seen.src_mac, seen.dst_mac), (ours, router));
    Ok(())
}

/// A datagram in the name of a backend, from where no backend is.
#[test]
fn a_backend_s_datagram_counts_from_its_interface_alone() -> Result<()> {
    let mut scene = scene(1, |service| service.affinity = Affinity::None as u8)?;
    steer(&scene, b"one")?;
    scene.runner.change(|setup| setup.settings.check_interfaces = 1)?;
    let (local, next) = macs(0);
    let answer = Datagram::new(backend(0), scene.client, b"two").macs(next, local);
    assert_eq!(counted(&xdp(&scene, &answer)?), [Counter::DropOtherInterface]);
    // Frames of the tests arrive at the loopback interface.
    scene.runner.change(|setup| setup.backends[0].ifindex = 1)?;
    answered(&scene, 0, b"three")
}

/// A stranger's token in the name of a client whose flow is confirmed; and one before that.
#[test]
fn a_token_of_somebody_else_moves_no_confirmed_flow() -> Result<()> {
    let scene = scene(4, texts_at(0))?;
    let (slot, _) = steer(&scene, b"hello")?;
    answered(&scene, slot, b"welcome")?;
    steer(&scene, b"I go on")?;
    let other = (slot + 1) % 4;
    let token = scene.runner.setup.token(other, 5);
    assert_eq!(steer(&scene, token.as_bytes())?, (other, vec![Counter::FromClient, Counter::FlowKept]));
    assert_eq!(steer(&scene, b"no token")?, (slot, vec![Counter::FromClient]));
    Ok(())
}

#[test]
fn a_strict_service_gives_no_session_away() -> Result<()> {
    let mut scene = scene(4, texts_at(0))?;
    let token = scene.runner.setup.token(1, 77);
    scene.runner.change(|setup| {
        setup.services[0].strict = 1;
        setup.set_state(1, State::Down);
    })?;
    let outcome = xdp(&scene, &sent(&scene, token.as_bytes()))?;
    assert_eq!(
        (outcome.verdict, counted(&outcome)),
        (Verdict::Drop, vec![Counter::Rejected, Counter::DropNoBackend])
    );
    assert_eq!(steer(&scene, b"no token, and so no session")?.1, [Counter::NewSession, Counter::FromClient]);
    Ok(())
}
