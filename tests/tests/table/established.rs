//! A spliced flow: every field that must change does, every other stays, and both checksums stay right.

use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::flow::{FIN_SEEN, Flow, FlowState, NO_STASH};
use tests::balancer::dial;
use tests::frame::{ACK, FIN, Opt, PSH, RST, SYN, Segment, URG};
use tests::runner::Verdict;
use tests::scene::{BACKEND_ISN, BACKEND_TS, CLIENT_MAC, ISN, LOCAL_MAC, REQUEST, Scene, TS, backend, macs};
use tests::table::{Row, check_rows};

const LEN: u32 = REQUEST.len() as u32;

fn scenes() -> Result<[Scene; 2]> {
    Ok([Scene::new(1)?, Scene::new(1)?.without_timestamps()])
}

/// Add it to a backend's sequence number to get the client's view.
fn delta(scene: &Scene) -> u32 {
    scene.cookie().wrapping_sub(BACKEND_ISN)
}

/// What a client's segment must look like at the backend.
fn at_backend(scene: &Scene, sent: &Segment) -> Segment {
    let (local, next) = macs(0);
    let options = sent.options.iter().map(|option| match option {
        Opt::Timestamps { val, echo } => {
            Opt::Timestamps { val: *val, echo: echo.wrapping_add(BACKEND_TS).wrapping_sub(scene.echo()) }
        }
        Opt::Sack(blocks) => {
            let back = |edge: &u32| edge.wrapping_sub(delta(scene));
            Opt::Sack(blocks.iter().map(|(left, right)| (back(left), back(right))).collect())
        }
        other => other.clone(),
    });
    let ack = if sent.has(ACK) { sent.ack.wrapping_sub(delta(scene)) } else { sent.ack };
    let seen =
        Segment { dst: backend(0), ack, ttl: sent.ttl - 1, options: options.collect(), ..sent.clone() };
    on_the_wire(&seen.macs(local, next))
}

/// With the padding that its options need.
fn on_the_wire(segment: &Segment) -> Segment {
    Segment::parse(&segment.bytes()).expect("what is built is parsed")
}

/// What a backend's segment must look like at the client.
fn at_client(scene: &Scene, sent: &Segment) -> Segment {
    let options = sent.options.iter().map(|option| match option {
        Opt::Timestamps { val, echo } => {
            Opt::Timestamps { val: val.wrapping_sub(BACKEND_TS).wrapping_add(scene.echo()), echo: *echo }
        }
        other => other.clone(),
    });
    let seq = sent.seq.wrapping_add(delta(scene));
    // The backend's scale is 9, the client was promised 7.
    let window = (u32::from(sent.window) << 2).min(65_535) as u16;
    let seen =
        Segment { src: dial(), seq, window, ttl: sent.ttl - 1, options: options.collect(), ..sent.clone() };
    on_the_wire(&seen.macs(LOCAL_MAC, CLIENT_MAC))
}

#[test]
fn segments_of_the_client_reach_its_backend() -> Result<()> {
    for scene in scenes()? {
        scene.splice()?;
        let next = |flags, payload| scene.next(flags, payload);
        let sent = [
            next(0, b""),
            next(PSH, b"x"),
            next(PSH | URG, b"urgent"),
            next(0, &[7; 1448]),
            next(0, b"").ack(scene.cookie().wrapping_add(100_000)),
            Segment { tos: 0xb8, id: 0xffff, ttl: 2, urgent: 9, ..next(PSH, b"odd") },
            Segment { padding: 6, ..next(0, b"") },
            Segment { fragment: 0, ..next(0, b"") },
            next(0, b"").window(0),
            next(RST, b"").flags(RST),
        ];
        for segment in sent {
            let outcome = scene.xdp(&segment)?;
            assert_eq!(outcome.counted, [(Counter::FromClient, 1)], "{segment}: {outcome:?}");
            assert_eq!(outcome.verdict, Verdict::Redirect);
            assert_eq!(outcome.segment(), at_backend(&scene, &segment));
        }
        let counted = scene.runner.maps.backend_counts(0)?;
        assert_eq!(
            (counted.packets_from_client, counted.bytes_from_client),
            (
                1 + 10,
                // The joint has sent the request.
                tests::scene::REQUEST.len() as u64 + 1 + 6 + 1448 + 3
            )
        );
    }
    Ok(())
}

#[test]
fn segments_of_the_backend_reach_its_client() -> Result<()> {
    for scene in scenes()? {
        scene.splice()?;
        let next = |flags, payload| scene.response(0, 0, flags, payload);
        let sent = [
            next(0, b""),
            next(PSH, b"HTTP/1.1 200 OK\r\n\r\n"),
            next(0, &[7; 1448]),
            scene.response(0, 0x8000_0000, 0, b"far ahead"),
            Segment { tos: 2, id: 1, ttl: 255, ..next(PSH, b"odd") },
            Segment { padding: 6, ..next(0, b"") },
            next(0, b"").window(0),
            next(0, b"").window(1),
            next(0, b"").window(65_535),
            next(RST, b"").flags(RST),
        ];
        for segment in sent {
            let outcome = scene.xdp(&segment)?;
            assert_eq!(outcome.counted, [(Counter::FromBackend, 1)], "{segment}: {outcome:?}");
            assert_eq!(outcome.verdict, Verdict::Redirect);
            assert_eq!(outcome.segment(), at_client(&scene, &segment));
        }
        let counted = scene.runner.maps.backend_counts(0)?;
        assert_eq!((counted.packets_from_backend, counted.bytes_from_backend), (10, 19 + 1448 + 9 + 3));
    }
    Ok(())
}

#[test]
fn sack_blocks_are_shifted_wherever_they_stand() -> Result<()> {
    let echo = Scene::new(1)?.echo().wrapping_add(50);
    let stamps = Opt::Timestamps { val: TS + 9, echo };
    let block = |n: u32| (n * 10_000, n * 10_000 + 1_448);
    let near_wrap = (u32::MAX - 5, 5);
    let orders = [
        vec![Opt::Nop, Opt::Nop, stamps.clone(), Opt::Nop, Opt::Nop, Opt::Sack(vec![block(1)])],
        vec![Opt::Nop, Opt::Nop, stamps.clone(), Opt::Nop, Opt::Nop, Opt::Sack(vec![block(1), near_wrap])],
        vec![
            Opt::Nop,
            Opt::Nop,
            stamps.clone(),
            Opt::Nop,
            Opt::Nop,
            Opt::Sack(vec![block(3), block(1), block(2)]),
        ],
        vec![Opt::Nop, Opt::Nop, Opt::Sack(vec![block(1), block(2), block(3), block(4)])],
        vec![Opt::Sack(vec![block(1)]), stamps.clone()],
        // At odd offsets the bytes weigh the other way round in the checksum.
        vec![Opt::Nop, stamps.clone(), Opt::Sack(vec![block(1), block(2)])],
        vec![Opt::Nop, Opt::Sack(vec![block(5)]), Opt::Nop, stamps],
    ];
    let scene = Scene::new(1)?;
    scene.splice()?;
    for options in orders {
        let segment = scene.next(0, b"odd").options(options);
        let outcome = scene.xdp(&segment)?;
        assert_eq!(outcome.segment(), at_backend(&scene, &segment));
    }
    Ok(())
}

#[test]
fn timestamps_of_the_backend_are_shifted_wherever_they_stand() -> Result<()> {
    let stamps = |val| Opt::Timestamps { val, echo: TS };
    let scene = Scene::new(1)?;
    scene.splice()?;
    let orders = [
        vec![stamps(BACKEND_TS), Opt::Nop, Opt::Nop],
        vec![Opt::Nop, stamps(u32::MAX), Opt::Nop],
        vec![Opt::Nop, Opt::Nop, Opt::Nop, Opt::Nop, stamps(0)],
        vec![Opt::Nop, Opt::Nop, stamps(BACKEND_TS + 1_000_000)],
        vec![Opt::Raw(vec![99, 3, 7]), stamps(5)],
        vec![],
    ];
    for options in orders {
        let segment = scene.response(0, 77, PSH, b"xyz").options(options);
        let outcome = scene.xdp(&segment)?;
        assert_eq!(outcome.segment(), at_client(&scene, &segment));
    }
    Ok(())
}

/// A segment that was corrupted on the way stays corrupt: the update is incremental (RFC 1624).
#[test]
fn corruption_is_not_healed() -> Result<()> {
    for scene in scenes()? {
        scene.splice()?;
        for segment in [scene.next(PSH, b"hello"), scene.response(0, 0, PSH, b"hello")] {
            let mut bytes = segment.bytes();
            let last = bytes.len() - 1;
            bytes[last] ^= 1;
            let outcome = scene.runner.xdp(&bytes)?;
            assert_eq!(
                Segment::parse(&outcome.frame),
                Err(tests::frame::Malformed::TcpChecksum),
                "{outcome:?}"
            );
        }
    }
    Ok(())
}

/// The same for a request that waits in the stash: its checksum is the packet's own.
#[test]
fn a_corrupt_first_payload_stays_corrupt() -> Result<()> {
    for scene in scenes()? {
        let mut bytes = scene.first(REQUEST).bytes();
        let path = bytes.len() - REQUEST.len() + 4;
        bytes[path] ^= 1;
        scene.runner.xdp(&bytes)?;
        let outcome = scene.joint(&scene.syn_ack(0))?;
        assert_eq!(Segment::parse(&outcome.frame), Err(tests::frame::Malformed::TcpChecksum), "{outcome:?}");
    }
    Ok(())
}

#[test]
fn packets_at_the_end_of_their_life_are_dropped() -> Result<()> {
    let scene = Scene::new(1)?;
    scene.splice()?;
    for ttl in [0, 1] {
        let from_client = Segment { ttl, ..scene.next(0, b"") };
        let from_backend = Segment { ttl, ..scene.response(0, 0, 0, b"") };
        let rows = [from_client, from_backend]
            .map(|segment| Row::new(ttl, segment.bytes(), Verdict::Drop, Counter::DropTtl));
        check_rows(&scene, rows)?;
    }
    Ok(())
}

#[test]
fn lost_next_hop_is_named() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.splice()?;
    scene.runner.change(|setup| setup.backends[0].has_next_hop = 0)?;
    check_rows(
        &scene,
        [Row::new("no hop", scene.next(0, b"").bytes(), Verdict::Drop, Counter::DropNoNextHop)],
    )
}

fn state(scene: &Scene) -> Result<Option<FlowState>> {
    let flows: Vec<Flow> = scene.runner.maps.flows()?;
    Ok(flows.first().map(|flow| FlowState::from_bits(flow.head.state)))
}

#[test]
fn fins_from_both_sides_close_and_one_does_not() -> Result<()> {
    let scene = Scene::new(1)?;
    scene.splice()?;
    scene.xdp(&scene.next(FIN, b""))?;
    assert_eq!(state(&scene)?, Some(FlowState::Established));
    let half = scene.xdp(&scene.response(0, 0, PSH, b"still talking"))?;
    assert_eq!(half.counted, [(Counter::FromBackend, 1)]);
    scene.xdp(&scene.response(0, 13, FIN, b""))?;
    assert_eq!(state(&scene)?, Some(FlowState::Closing));
    // The last ACK, and retransmitted FINs, still find their way.
    assert_eq!(scene.xdp(&scene.segment(LEN + 1, 0, b""))?.counted, [(Counter::FromClient, 1)]);
    assert_eq!(scene.xdp(&scene.response(0, 13, FIN, b""))?.counted, [(Counter::FromBackend, 1)]);
    Ok(())
}

#[test]
fn one_reset_closes() -> Result<()> {
    for from_client in [true, false] {
        let scene = Scene::new(1)?;
        scene.splice()?;
        let rst = if from_client { scene.next(RST, b"") } else { scene.response(0, 0, RST, b"") };
        assert_eq!(scene.xdp(&rst)?.verdict, Verdict::Redirect);
        assert_eq!(state(&scene)?, Some(FlowState::Closing));
    }
    Ok(())
}

/// DESIGN §6 step 1: a spoofed SYN must not kill a live flow.
#[test]
fn a_syn_does_not_disturb_a_live_flow() -> Result<()> {
    let scene = Scene::new(1)?;
    scene.splice()?;
    let before = scene.runner.maps.flows()?;
    let spoofed = scene.syn().seq(42);
    assert_eq!(scene.xdp(&spoofed)?.counted, [(Counter::SynAnswered, 1)]);
    assert_eq!(scene.runner.maps.flows()?, before);
    assert_eq!(scene.xdp(&scene.next(PSH, b"x"))?.segment(), at_backend(&scene, &scene.next(PSH, b"x")));
    Ok(())
}

/// The client comes back from the same port: its new cookie proves itself, and the former flow ends.
#[test]
fn a_new_handshake_replaces_a_closing_flow() -> Result<()> {
    for scene in scenes()? {
        scene.splice()?;
        scene.close(0)?;
        let isn = 0x7777_0000;
        let cookie = scene.runner.setup.cookie(scene.client, tests::scene::SERVICE, isn, scene.agreed);
        assert_eq!(scene.xdp(&scene.syn().seq(isn))?.segment().seq, cookie);
        let mut ack = scene.segment(0, 0, b"").seq(isn + 1).ack(cookie.wrapping_add(1));
        if scene.stamps {
            ack =
                ack.timestamps(TS + 500, scene.runner.setup.stamp(scene.client, tests::scene::SERVICE, isn));
        }
        assert_eq!(scene.xdp(&ack)?.counted, [(Counter::HandshakeAck, 1)]);
        let first = Segment { payload: REQUEST.to_vec(), flags: ACK | PSH, ..ack };
        let outcome = scene.xdp(&first)?;
        assert!(outcome.counted(Counter::Bound), "{outcome:?}");
        let syn = outcome.segment();
        assert_eq!((syn.seq, syn.flags), (isn, SYN));
        assert_eq!(state(&scene)?, Some(FlowState::Binding));
        assert_eq!(scene.runner.maps.flows()?.len(), 1);
    }
    Ok(())
}

/// A backend without window scaling counts in bytes: windows are made coarser towards the client and finer towards it.
#[test]
fn windows_are_made_true() -> Result<()> {
    let scene = Scene::new(1)?;
    scene.bind(REQUEST)?;
    let bare = scene.syn_ack(0).options(Opt::linux_syn(1460, None, true, Some((BACKEND_TS, TS + 1))));
    scene.xdp(&bare)?;
    let ack = scene.joint(&bare)?.segment();
    assert_eq!(ack.window, 65_535, "501 << 10 does not fit");
    for (sent, seen) in [(0, 0), (1, 1), (127, 1), (128, 1), (65_535, 511)] {
        let segment = scene.response(0, 0, 0, b"").window(sent);
        assert_eq!(scene.xdp(&segment)?.segment().window, seen, "{sent} bytes in units of 128");
    }
    for (sent, seen) in [(0, 0), (1, 1 << 10), (63, 63 << 10), (64, 65_535)] {
        let segment = scene.next(0, b"").window(sent);
        assert_eq!(scene.xdp(&segment)?.segment().window, seen, "{sent} in units of 1024");
    }
    Ok(())
}

/// The client's packets come from another router, at another of our addresses: so answers go there, from there.
#[test]
fn answers_go_where_the_client_was_last_seen() -> Result<()> {
    let scene = Scene::new(1)?;
    scene.splice()?;
    let (router, ours) = ([2, 0, 0, 0, 7, 7], [2, 0, 0, 0, 7, 8]);
    scene.xdp(&scene.next(0, b"").macs(router, ours))?;
    let answer = scene.xdp(&scene.response(0, 0, PSH, b"x"))?.segment();
    assert_eq!((answer.src_mac, answer.dst_mac), (ours, router));
    Ok(())
}

/// A segment in the window of a flow that lives is the flow's, whatever it proves by chance; so one that proves another handshake
/// is far from it.
#[test]
fn one_lucky_segment_does_not_end_a_flow() -> Result<()> {
    for isn in [ISN.wrapping_add(LEN), ISN.wrapping_add(200_000), 0x7777_0000] {
        let mut scene = Scene::new(1)?.without_timestamps();
        scene.runner.change(|setup| setup.settings.flow_group_mask = 0)?;
        scene.splice()?;
        // Seen last in another tick, and its stash is no more.
        let flow = Flow { last_seen: 0, stash: NO_STASH, ..scene.runner.maps.flows()?[0] };
        (0..8).try_for_each(|index| scene.runner.maps.set_flow(index, &flow))?;
        let cookie = scene.runner.setup.cookie(scene.client, tests::scene::SERVICE, isn, scene.agreed);
        let lucky = scene.segment(0, PSH, REQUEST).seq(isn.wrapping_add(1)).ack(cookie.wrapping_add(1));
        let outcome = scene.xdp(&lucky)?;
        let begins_anew = isn == 0x7777_0000;
        assert_eq!(outcome.counted(Counter::Bound), begins_anew, "{isn}: {outcome:?}");
        assert_eq!(outcome.counted(Counter::FromClient), !begins_anew, "{isn}: {outcome:?}");
    }
    Ok(())
}

/// RFC 5961 §3: a stranger does not know the numbers of a connection. What he sends reaches the backend, which does, and changes
/// nothing here: neither the flow's life nor where its answers go.
#[test]
fn what_a_stranger_makes_up_shortens_no_life_and_moves_no_way_back() -> Result<()> {
    for settled in [false, true] {
        let scene = Scene::new(1)?;
        scene.splice()?;
        if settled {
            scene.xdp(&scene.response(0, 0, PSH, b"response"))?;
        }
        for far in [1 << 19, 1 << 24, 1 << 31, (1_u32 << 20).wrapping_neg()] {
            for flags in [RST, FIN, 0] {
                let segment = scene.next(flags, b"");
                let seq = segment.seq.wrapping_add(far);
                let strange = segment.seq(seq).macs([2, 0, 0, 0, 7, 7], [2, 0, 0, 0, 7, 8]);
                let outcome = scene.xdp(&strange)?;
                assert_eq!(
                    outcome.counted,
                    [(Counter::OutOfWindow, 1), (Counter::FromClient, 1)],
                    "{outcome:?}"
                );
                let flow = scene.runner.maps.flows()?[0];
                assert_eq!(flow.head.state, FlowState::Established as u8, "{far} {flags}");
                assert_eq!((flow.client_mac, flow.client_flags & FIN_SEEN), (CLIENT_MAC, 0), "{far} {flags}");
            }
        }
        scene.xdp(&scene.next(RST, b""))?;
        assert_eq!(state(&scene)?, Some(FlowState::Closing), "its client knows them");
    }
    Ok(())
}

/// What its backend acknowledges says where a client is, however much it has sent.
#[test]
fn a_client_is_known_after_a_long_upload() -> Result<()> {
    let scene = Scene::new(1)?;
    scene.splice()?;
    scene.xdp(&scene.response(0, 0, PSH, b"100"))?;
    for upload in (0_u32..3 << 20).step_by(100_000) {
        let acknowledges = scene.response(0, 3, 0, b"");
        let ack = acknowledges.ack.wrapping_add(upload);
        scene.xdp(&acknowledges.ack(ack))?;
        let flow = scene.runner.maps.flows()?[0];
        let here = ISN.wrapping_add(1 + LEN + upload);
        assert!(flow.is_near(here) && flow.is_near(here.wrapping_add(150_000)), "{upload}");
    }
    let far = scene.next(RST, b"");
    assert!(scene.xdp(&far)?.counted(Counter::OutOfWindow), "where it was at first");
    Ok(())
}

/// A frame in the name of a backend, from where no backend is: with `check_interfaces` it is nobody's.
#[test]
fn a_backend_is_heard_from_its_interface_alone() -> Result<()> {
    // Frames of the tests arrive here.
    const HERE: u32 = 1;
    for mut scene in scenes()? {
        let slot = scene.splice()?;
        let response = scene.response(slot, 0, PSH, b"HTTP/1.1 200 OK\r\n\r\n");
        scene.runner.change(|setup| setup.settings.check_interfaces = 1)?;
        let outcome = scene.xdp(&response)?;
        assert_eq!(
            (outcome.verdict, outcome.counted),
            (Verdict::Drop, vec![(Counter::DropOtherInterface, 1)])
        );
        scene.runner.change(|setup| setup.backends[usize::from(slot)].ifindex = HERE)?;
        assert!(scene.xdp(&response)?.counted(Counter::FromBackend));
    }
    Ok(())
}
