//! Services that bind at the first packet: the client's own SYN reaches a backend, and nothing but addresses changes.

use anyhow::Result;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::flow::FlowState;
use lb_common::service::Affinity;
use std::collections::BTreeMap;
use tests::balancer::dial;
use tests::frame::{ACK, FIN, PSH, RST, SYN, Segment};
use tests::runner::{Outcome, Verdict};
use tests::scene::{BACKEND_ISN, CLIENT_MAC, ISN, LOCAL_MAC, Scene, backend, macs};

fn scene(backends: u16, affinity: Affinity) -> Result<Scene> {
    let mut scene = Scene::new(backends)?;
    scene.runner.change(|setup| setup.services[0].affinity = affinity as u8)?;
    Ok(scene)
}

/// What a client's segment must look like at a backend: every field but the addresses and the time to live as it was.
fn at_backend(sent: &Segment, slot: u16) -> Segment {
    let (local, next) = macs(slot);
    parsed(&Segment { dst: backend(slot), ttl: sent.ttl - 1, ..sent.clone() }.macs(local, next))
}

fn at_client(sent: &Segment) -> Segment {
    parsed(&Segment { src: dial(), ttl: sent.ttl - 1, ..sent.clone() }.macs(LOCAL_MAC, CLIENT_MAC))
}

/// With the padding that its options need.
fn parsed(segment: &Segment) -> Segment {
    Segment::parse(&segment.bytes()).expect("what is built is parsed")
}

/// A segment of the client in mid-stream.
fn segment(scene: &Scene, flags: u8, payload: &[u8]) -> Segment {
    let segment = Segment::new(scene.client, dial())
        .macs(CLIENT_MAC, LOCAL_MAC)
        .seq(ISN.wrapping_add(1))
        .ack(BACKEND_ISN.wrapping_add(1))
        .flags(ACK | flags)
        .window(501)
        .payload(payload);
    segment.timestamps(1, 2)
}

fn counted(outcome: &Outcome<Verdict>) -> Vec<Counter> {
    outcome.counted.iter().map(|(counter, _)| *counter).collect()
}

/// Sends a SYN, checks that it reaches a backend as it was, and returns which.
fn begin(scene: &Scene) -> Result<u16> {
    let syn = scene.syn();
    let outcome = scene.xdp(&syn)?;
    assert_eq!(outcome.verdict, Verdict::Redirect, "{outcome:?}");
    let slot = scene.slot_of(&outcome.segment());
    assert_eq!(outcome.segment(), at_backend(&syn, slot));
    Ok(slot)
}

fn state(scene: &Scene) -> Result<Option<FlowState>> {
    let flows = scene.runner.maps.flows()?;
    assert!(flows.len() <= 1, "{flows:?}");
    Ok(flows.first().map(|flow| FlowState::from_bits(flow.head.state)))
}

/// The backend answers the SYN, and the client has heard it.
fn answer(scene: &Scene, slot: u16) -> Result<()> {
    scene.xdp(&scene.syn_ack(slot))?;
    scene.xdp(&segment(scene, 0, b""))?;
    assert_eq!(state_of(scene)?, Some(FlowState::Established));
    Ok(())
}

/// Of the present client's flow.
fn state_of(scene: &Scene) -> Result<Option<FlowState>> {
    let port = lb_common::addr::Be16::new(scene.client.port());
    let flows = scene.runner.maps.flows()?;
    let flow = flows.iter().find(|flow| flow.head.client_port == port);
    Ok(flow.map(|flow| FlowState::from_bits(flow.head.state)))
}

#[test]
fn a_whole_connection_in_which_the_server_speaks_first() -> Result<()> {
    for affinity in [Affinity::Source, Affinity::None] {
        let scene = scene(3, affinity)?;
        let outcome = scene.xdp(&scene.syn())?;
        let why = if affinity == Affinity::Source { Counter::Hashed } else { Counter::NewSession };
        assert_eq!(counted(&outcome), [why, Counter::FromClient], "{outcome:?}");
        let slot = scene.slot_of(&outcome.segment());
        assert_eq!(state(&scene)?, Some(FlowState::Opening));

        let answers = [
            scene.syn_ack(slot),
            // And again, because the client's answer was lost.
            scene.syn_ack(slot),
        ];
        for answer in answers {
            let outcome = scene.xdp(&answer)?;
            assert_eq!(counted(&outcome), [Counter::FromBackend], "{outcome:?}");
            assert_eq!(outcome.segment(), at_client(&answer));
        }
        assert_eq!(state(&scene)?, Some(FlowState::Opening));
        let ack = segment(&scene, 0, b"");
        assert_eq!(scene.xdp(&ack)?.segment(), at_backend(&ack, slot));
        assert_eq!(state(&scene)?, Some(FlowState::Established));

        let greeting = scene.response(slot, 0, PSH, b"220 mail ESMTP\r\n");
        assert_eq!(scene.xdp(&greeting)?.segment(), at_client(&greeting));
        let request = segment(&scene, PSH, b"EHLO client\r\n");
        assert_eq!(scene.xdp(&request)?.segment(), at_backend(&request, slot));

        scene.xdp(&scene.response(slot, 16, FIN, b""))?;
        assert_eq!(state(&scene)?, Some(FlowState::Established));
        scene.xdp(&segment(&scene, FIN, b""))?;
        assert_eq!(state(&scene)?, Some(FlowState::Closing));
    }
    Ok(())
}

#[test]
fn a_client_stays_by_its_address_or_is_spread_by_its_ports() -> Result<()> {
    for (affinity, spread) in [(Affinity::Source, false), (Affinity::None, true)] {
        let mut scene = scene(4, affinity)?;
        let mut shares = BTreeMap::<u16, u32>::new();
        for port in 1..=200 {
            scene.client.set_port(port);
            *shares.entry(begin(&scene)?).or_default() += 1;
        }
        assert_eq!(shares.len(), if spread { 4 } else { 1 }, "{shares:?}");
    }
    let mut scene = scene(4, Affinity::Source)?;
    let mut shares = BTreeMap::<u16, u32>::new();
    for host in 1..=200 {
        scene.client.set_ip([10, 0, 1, host].into());
        *shares.entry(begin(&scene)?).or_default() += 1;
    }
    assert!(shares.len() == 4 && shares.values().all(|n| *n > 20), "{shares:?}");
    Ok(())
}

#[test]
fn a_syn_again_goes_to_the_same_backend_whatever_the_table_says_now() -> Result<()> {
    let mut scene = scene(2, Affinity::None)?;
    let slot = begin(&scene)?;
    scene.runner.change(|setup| setup.set_state(slot, State::Drain))?;
    let outcome = scene.xdp(&scene.syn())?;
    assert_eq!(counted(&outcome), [Counter::SynRepeated]);
    assert_eq!(outcome.segment(), at_backend(&scene.syn(), slot));
    // A stranger's SYN on a live flow is the backend's to judge, and changes nothing here.
    answer(&scene, slot)?;
    let forged = scene.syn().seq(77);
    assert_eq!(scene.xdp(&forged)?.segment(), at_backend(&forged, slot));
    assert_eq!(state(&scene)?, Some(FlowState::Established));
    Ok(())
}

#[test]
fn a_syn_whose_backend_does_not_serve_any_more_begins_anew() -> Result<()> {
    for gone in [State::Down, State::Maint, State::Gone] {
        let mut scene = scene(2, Affinity::Source)?;
        let slot = begin(&scene)?;
        scene.runner.change(|setup| setup.set_state(slot, gone))?;
        assert_eq!(begin(&scene)?, 1 - slot);
        assert_eq!(scene.runner.maps.flows()?.len(), 1, "in the same entry");
    }
    Ok(())
}

#[test]
fn a_port_that_is_used_again_begins_anew() -> Result<()> {
    let scene = scene(1, Affinity::None)?;
    begin(&scene)?;
    scene.xdp(&segment(&scene, FIN, b""))?;
    scene.xdp(&scene.response(0, 0, FIN, b""))?;
    assert_eq!(state(&scene)?, Some(FlowState::Closing));
    begin(&scene)?;
    assert_eq!(state(&scene)?, Some(FlowState::Opening));
    Ok(())
}

/// The connection began at another node, or before the flows were lost.
#[test]
fn an_unknown_segment_in_mid_stream_goes_where_its_syn_would() -> Result<()> {
    for affinity in [Affinity::Source, Affinity::None] {
        let mut scene = scene(4, affinity)?;
        for port in 1..=20 {
            scene.client.set_port(port);
            let slot = begin(&scene)?;
            scene.runner.maps.forget()?;
            let late = segment(&scene, PSH, b"go on");
            let outcome = scene.xdp(&late)?;
            assert_eq!(outcome.segment(), at_backend(&late, slot));
            assert_eq!(state(&scene)?, Some(FlowState::Opening), "who has sent it?");
            // The backend goes on, and the client has heard it.
            scene.xdp(&scene.response(slot, 0, PSH, b"well"))?;
            scene.xdp(&segment(&scene, PSH, b"go on"))?;
            assert_eq!(state(&scene)?, Some(FlowState::Established));
            scene.runner.maps.forget()?;
        }
    }
    Ok(())
}

#[test]
fn what_belongs_nowhere_is_named() -> Result<()> {
    let mut scene = scene(1, Affinity::None)?;
    let rst = segment(&scene, 0, b"").flags(RST);
    let syn = scene.syn();
    let rows = [
        (rst, Counter::DropUnknownRst),
        (Segment { ttl: 1, ..syn.clone() }, Counter::DropTtl),
        (syn.clone().flags(SYN | ACK), Counter::DropBadFlags),
        (syn.clone().flags(SYN | FIN), Counter::DropBadFlags),
    ];
    for (sent, counter) in rows {
        let outcome = scene.xdp(&sent)?;
        assert_eq!((outcome.verdict, counted(&outcome)), (Verdict::Drop, vec![counter]), "{sent}");
        assert_eq!(state(&scene)?, None, "{sent}");
    }
    scene.runner.change(|setup| setup.backends[0].has_next_hop = 0)?;
    assert!(scene.xdp(&syn)?.counted(Counter::DropNoNextHop));
    scene.runner.change(|setup| setup.services[0].enabled = 0)?;
    scene.runner.maps.forget()?;
    assert_eq!(counted(&scene.xdp(&syn)?), [Counter::DropNoService]);
    Ok(())
}

#[test]
fn where_nobody_serves_a_client_is_refused_as_by_a_closed_port() -> Result<()> {
    let mut scene = scene(1, Affinity::None)?;
    scene.runner.change(|setup| setup.set_state(0, State::Down))?;
    let outcome = scene.xdp(&scene.syn())?;
    assert_eq!((outcome.verdict, counted(&outcome)), (Verdict::Redirect, vec![Counter::ResetNoBackend]));
    let refusal = outcome.segment();
    assert_eq!((refusal.src, refusal.dst), (dial(), scene.client));
    assert_eq!((refusal.flags, refusal.seq, refusal.ack), (RST | ACK, 0, ISN.wrapping_add(1)));
    let outcome = scene.xdp(&segment(&scene, PSH, b"late"))?;
    let refusal = outcome.segment();
    assert_eq!((refusal.flags, refusal.seq), (RST, BACKEND_ISN.wrapping_add(1)));
    assert_eq!(state(&scene)?, None);
    Ok(())
}

#[test]
fn a_backend_that_refuses_is_heard() -> Result<()> {
    let scene = scene(2, Affinity::None)?;
    let slot = begin(&scene)?;
    let refusal = scene.refusal(slot);
    assert_eq!(scene.xdp(&refusal)?.segment(), at_client(&refusal));
    assert_eq!(state(&scene)?, Some(FlowState::Closing));
    Ok(())
}

/// Forged SYNs fill the table; what clients have confirmed stays, and new clients get in.
#[test]
fn a_flood_of_syns_harms_no_connection() -> Result<()> {
    let mut scene = scene(2, Affinity::None)?;
    let groups = scene.runner.setup.sizes.groups;
    let mut living = Vec::new();
    for port in 1..=groups as u16 {
        scene.client.set_port(port);
        let slot = begin(&scene)?;
        answer(&scene, slot)?;
        living.push((port, slot));
    }
    let mut evicted = 0;
    for n in 0..groups * 32 {
        scene.client = std::net::SocketAddrV4::new((0x0a63_0000 + n).into(), 5);
        let outcome = scene.xdp(&scene.syn())?;
        let in_vain = outcome.counted(Counter::DropFlowTableFull);
        assert!(in_vain || outcome.verdict == Verdict::Redirect, "{outcome:?}");
        evicted += u32::from(outcome.counted(Counter::FlowEvicted));
    }
    assert!(evicted > groups * 16, "{evicted}");
    scene.client = Scene::new(1)?.client;
    for (port, slot) in living {
        scene.client.set_port(port);
        let more = segment(&scene, PSH, b"still here");
        let outcome = scene.xdp(&more)?;
        assert_eq!(counted(&outcome), [Counter::FromClient]);
        assert_eq!(outcome.segment(), at_backend(&more, slot));
    }
    Ok(())
}

/// With one backend more, no more clients move than the newcomer's share; with one less, only those that it had.
#[test]
fn few_clients_move_when_a_backend_comes_or_goes() -> Result<()> {
    const CLIENTS: u32 = 600;
    let mut scene = scene(5, Affinity::Source)?;
    let homes = |scene: &mut Scene| -> Result<Vec<u16>> {
        let mut homes = Vec::new();
        for n in 0..CLIENTS {
            scene.client = std::net::SocketAddrV4::new((0x0a63_0000 + n).into(), 5);
            homes.push(begin(scene)?);
        }
        scene.runner.maps.forget()?;
        Ok(homes)
    };
    scene.runner.change(|setup| setup.set_state(4, State::Gone))?;
    let four = homes(&mut scene)?;
    scene.runner.change(|setup| setup.set_state(4, State::Ready))?;
    let five = homes(&mut scene)?;
    let moved = four.iter().zip(&five).filter(|(before, after)| before != after).count();
    let share = five.iter().filter(|slot| **slot == 4).count();
    assert!(share > CLIENTS as usize / 7 && share < CLIENTS as usize / 4, "{share}");
    // The newcomer's, and the few that the others' turns shift (Maglev, §5.3).
    assert!(
        moved >= share && moved <= share + CLIENTS as usize / 20,
        "{moved} moved, {share} to the newcomer"
    );
    Ok(())
}

/// Whoever has not heard the backend does not know what to acknowledge, and holds no place against those who have.
#[test]
fn forged_segments_confirm_nothing() -> Result<()> {
    let scene = scene(2, Affinity::None)?;
    let slot = begin(&scene)?;
    let guess = |ack: u32| segment(&scene, PSH, b"guess").ack(BACKEND_ISN.wrapping_add(ack));
    scene.xdp(&guess(1))?;
    assert_eq!(state(&scene)?, Some(FlowState::Opening), "the backend has not answered yet");
    scene.xdp(&scene.syn_ack(slot))?;
    for ack in [1 << 17, 1 << 30, 1 << 31, u32::MAX - (1 << 17)] {
        scene.xdp(&guess(ack))?;
        assert_eq!(state(&scene)?, Some(FlowState::Opening), "{ack}");
    }
    scene.xdp(&guess(1))?;
    assert_eq!(state(&scene)?, Some(FlowState::Established));
    Ok(())
}

#[test]
fn a_flood_of_segments_holds_no_place() -> Result<()> {
    let mut scene = scene(2, Affinity::None)?;
    for n in 0..scene.runner.setup.sizes.groups * 32 {
        scene.client = std::net::SocketAddrV4::new((0x0a63_0000 + n).into(), 5);
        scene.xdp(&segment(&scene, PSH, b"from nowhere"))?;
    }
    scene.client = Scene::new(1)?.client;
    scene.runner.change(|setup| setup.services[0].affinity = Affinity::Signed as u8)?;
    scene.bind(b"GET / HTTP/1.1\r\n\r\n")?;
    Ok(())
}

/// A stranger who knows addresses and ports, but no sequence number, can neither end a connection nor move it.
#[test]
fn a_strangers_reset_and_syn_change_nothing_that_lasts() -> Result<()> {
    let mut scene = scene(4, Affinity::None)?;
    scene.runner.change(|setup| setup.services[0].balance = 1)?;
    for _ in 0..10 {
        let slot = begin(&scene)?;
        answer(&scene, slot)?;
        scene.xdp(&segment(&scene, 0, b"").flags(RST).seq(7))?;
        assert_eq!(scene.runner.maps.live(slot)?, 0, "it may be over");
        scene.xdp(&scene.syn().seq(77))?;
        // The backend, who has heard neither, goes on; and so does the client.
        scene.xdp(&scene.response(slot, 0, PSH, b"more"))?;
        let more = segment(&scene, PSH, b"more");
        assert_eq!(scene.xdp(&more)?.segment(), at_backend(&more, slot));
        assert_eq!(state(&scene)?, Some(FlowState::Established));
        assert_eq!(scene.runner.maps.live(slot)?, 1);
        scene.runner.maps.forget()?;
    }
    // A backend on its way out keeps what it has.
    let slot = begin(&scene)?;
    answer(&scene, slot)?;
    scene.runner.change(|setup| setup.set_state(slot, State::Maint))?;
    let forged = scene.syn().seq(77);
    assert_eq!(scene.xdp(&forged)?.segment(), at_backend(&forged, slot));
    // One that cannot be reached keeps nobody from beginning anew.
    scene.runner.change(|setup| setup.set_state(slot, State::Down))?;
    assert_ne!(begin(&scene)?, slot);
    Ok(())
}

#[test]
fn what_its_backend_has_ended_is_over() -> Result<()> {
    let mut scene = scene(1, Affinity::None)?;
    begin(&scene)?;
    answer(&scene, 0)?;
    scene.xdp(&scene.response(0, 0, 0, b"").flags(RST))?;
    scene.xdp(&scene.response(0, 0, PSH, b"late"))?;
    assert_eq!(state(&scene)?, Some(FlowState::Closing));
    scene.runner.maps.forget()?;
    begin(&scene)?;
    answer(&scene, 0)?;
    scene.xdp(&segment(&scene, FIN, b""))?;
    scene.xdp(&scene.response(0, 0, FIN, b""))?;
    scene.xdp(&scene.response(0, 0, FIN, b""))?;
    assert_eq!(state(&scene)?, Some(FlowState::Closing), "a FIN that comes again");
    Ok(())
}
