//! A flow whose backend has not answered: what the client sends meanwhile, and every answer that a backend can give.

use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::flow::{Flow, FlowState};
use lb_common::service::Place;
use lb_common::stash::{Stash, VIEW_FIN, VIEW_USED, View};
use tests::frame::{ACK, FIN, Opt, PSH, RST, SYN, Segment};
use tests::runner::{TcVerdict, Verdict};
use tests::scene::{BACKEND_ISN, CLIENT_MAC, ISN, LOCAL_MAC, REQUEST, Scene, macs};
use tests::table::{Row, check_rows, essence};

const LEN: u32 = REQUEST.len() as u32;

fn only_flow(scene: &Scene) -> Result<Flow> {
    let flows = scene.runner.maps.flows()?;
    assert_eq!(flows.len(), 1, "{flows:?}");
    Ok(flows[0])
}

/// Views of the only stash: offset, length and whether a FIN follows.
fn views(scene: &Scene) -> Result<Vec<(u16, u16, bool)>> {
    let stashes = scene.runner.maps.stashes()?;
    assert_eq!(stashes.len(), 1);
    let views = stashes[0].views.map(View::from_bits);
    let used = views.into_iter().take_while(|view| view.flags & VIEW_USED != 0);
    Ok(used.map(|view| (view.at, view.len, view.flags & VIEW_FIN != 0)).collect())
}

#[test]
fn more_payload_is_stashed() -> Result<()> {
    for scene in [Scene::new(2)?, Scene::new(2)?.without_timestamps()] {
        scene.bind(REQUEST)?;
        let stashed = |segment: &Segment| -> Result<()> {
            check_rows(&scene, [Row::new(segment, segment.bytes(), Verdict::Drop, Counter::Stashed)])
        };
        stashed(&scene.next(PSH, b"body"))?;
        stashed(&scene.segment(LEN + 4, PSH, &[b'x'; 1400]))?;
        let bytes = scene.runner.maps.stashes()?[0].bytes;
        assert_eq!(&bytes[..LEN as usize + 5], &[REQUEST, b"bodyx"].concat()[..]);
        assert_eq!(bytes[LEN as usize + 4 + 1399], b'x');
        stashed(&scene.segment(LEN + 4 + 1400, FIN, b""))?;
        let total: u32 = views(&scene)?.iter().map(|(_, len, _)| u32::from(*len)).sum();
        assert_eq!(total, LEN + 4 + 1400, "{:?}", views(&scene)?);
        assert!(views(&scene)?.last().is_some_and(|(_, _, fin)| *fin), "{:?}", views(&scene)?);
    }
    Ok(())
}

/// Headers and body written separately, in single bytes even, end up in few segments.
#[test]
fn single_bytes_are_joined() -> Result<()> {
    let scene = Scene::new(1)?;
    scene.bind(REQUEST)?;
    for at in LEN..600 {
        let outcome = scene.xdp(&scene.segment(at, PSH, b"x"))?;
        assert_eq!(outcome.counted, [(Counter::Stashed, 1)], "byte {at}: {outcome:?}");
    }
    assert_eq!(views(&scene)?, [(0, 600, false)]);
    Ok(())
}

#[test]
fn the_same_bytes_again_change_nothing() -> Result<()> {
    let scene = Scene::new(1)?;
    scene.bind(REQUEST)?;
    let more = scene.next(PSH, b"body");
    for _ in 0..3 {
        let outcome = scene.xdp(&more)?;
        assert_eq!(outcome.verdict, Verdict::Drop, "{outcome:?}");
    }
    let total: u32 = views(&scene)?.iter().map(|(_, len, _)| u32::from(*len)).sum();
    assert_eq!(total, LEN + 4, "{:?}", views(&scene)?);
    Ok(())
}

#[test]
fn what_does_not_fit_is_left_to_the_client() -> Result<()> {
    let scene = Scene::new(1)?;
    let head = b"POST / HTTP/1.1\r\nContent-Length: 9000\r\n\r\n";
    scene.bind(&[head.as_slice(), &[b'x'; 1448]].concat()[..1448])?;
    let second = scene.segment(1448, PSH, &[b'y'; 1448]);
    assert_eq!(scene.xdp(&second)?.counted, [(Counter::Stashed, 1)]);
    let third = scene.segment(2 * 1448, PSH, &[b'z'; 1448]);
    check_rows(&scene, [Row::new("a third", third.bytes(), Verdict::Drop, Counter::DropStashFull)])?;
    let far = scene.segment(100_000, PSH, b"far");
    check_rows(&scene, [Row::new("far out", far.bytes(), Verdict::Drop, Counter::DropStashFull)])
}

#[test]
fn what_says_nothing_new_is_dropped() -> Result<()> {
    let scene = Scene::new(1)?;
    scene.bind(REQUEST)?;
    check_rows(
        &scene,
        [Row::new("a bare ACK", scene.next(0, b"").bytes(), Verdict::Drop, Counter::DropBinding)],
    )
}

#[test]
fn a_client_that_resets_is_forgotten() -> Result<()> {
    let scene = Scene::new(1)?;
    let slot = scene.bind(REQUEST)?;
    let rst = scene.next(RST, b"").flags(RST);
    check_rows(&scene, [Row::new("RST", rst.bytes(), Verdict::Drop, Counter::ClientReset)])?;
    assert_eq!(scene.runner.maps.flows()?, []);
    assert_eq!(scene.runner.maps.stashes()?.len(), 0);
    // The backend's SYN-ACK now belongs to nobody: the host resets it.
    check_rows(
        &scene,
        [Row::new("SYN-ACK", scene.syn_ack(slot).bytes(), Verdict::Pass, Counter::PassedFromBackend)],
    )
}

/// DESIGN §6 step 6: the first retransmission repeats the SYN, the second asks somebody else.
#[test]
fn a_silent_backend_is_asked_twice_then_another_one() -> Result<()> {
    let scene = Scene::new(3)?;
    let first = scene.bind(REQUEST)?;
    let again = scene.xdp(&scene.first(REQUEST))?;
    assert_eq!(again.counted, [(Counter::SynRepeated, 1)], "{again:?}");
    assert_eq!(essence(&again.segment()), essence(&scene.offered(first)));
    let other = scene.xdp(&scene.first(REQUEST))?;
    assert!(other.counted(Counter::Retried), "{other:?}");
    let second = scene.slot_of(&other.segment());
    assert_ne!(first, second);
    assert_eq!(essence(&other.segment()), essence(&scene.offered(second)));
    assert_eq!(only_flow(&scene)?.head.backend, second);
    assert_eq!(scene.runner.maps.backend_counts(first)?.failed, 1);
    // What the first one says now is no longer wanted.
    let late = scene.syn_ack(first);
    let outcome = scene.xdp(&late)?;
    assert_eq!(
        (outcome.verdict, &outcome.counted[..]),
        (Verdict::Redirect, &[(Counter::ResetLateSynAck, 1)][..])
    );
    let expected = late.reply().seq(late.ack).flags(RST).window(0);
    assert_eq!(essence(&outcome.segment()), essence(&expected));
    // And the second one's answer completes the splice.
    assert_eq!(scene.joint(&scene.syn_ack(second))?.verdict, TcVerdict::Redirect);
    Ok(())
}

#[test]
fn a_lone_silent_backend_is_asked_for_as_long_as_the_client_waits() -> Result<()> {
    let scene = Scene::new(1)?;
    scene.bind(REQUEST)?;
    for _ in 0..5 {
        let again = scene.xdp(&scene.first(REQUEST))?;
        assert!(again.counted(Counter::SynRepeated), "{again:?}");
        assert_eq!(essence(&again.segment()), essence(&scene.offered(0)));
    }
    Ok(())
}

#[test]
fn a_refusing_backend_is_replaced_at_once() -> Result<()> {
    for scene in [Scene::new(3)?, Scene::new(3)?.without_timestamps()] {
        let first = scene.bind(REQUEST)?;
        let outcome = scene.xdp(&scene.refusal(first))?;
        assert_eq!(outcome.verdict, Verdict::Redirect);
        assert_eq!(outcome.counted, [(Counter::Retried, 1), (Counter::SynRetried, 1)], "{outcome:?}");
        let second = scene.slot_of(&outcome.segment());
        assert_ne!(second, first);
        assert_eq!(essence(&outcome.segment()), essence(&scene.offered(second)));
    }
    Ok(())
}

/// One that would not understand a response.
#[test]
fn when_all_refuse_the_client_is_reset() -> Result<()> {
    let mut scene = Scene::new(3)?;
    scene.runner.change(|setup| setup.services[0].place = Place::Sni as u8)?;
    let mut slot = scene.bind(REQUEST)?;
    let mut asked = vec![slot];
    for _ in 1..3 {
        slot = scene.slot_of(&scene.xdp(&scene.refusal(slot))?.segment());
        asked.push(slot);
    }
    let outcome = scene.xdp(&scene.refusal(slot))?;
    assert_eq!(
        (outcome.verdict, &outcome.counted[..]),
        (Verdict::Redirect, &[(Counter::ResetRefused, 1)][..])
    );
    let expected = scene
        .first(b"")
        .reply()
        .macs(LOCAL_MAC, CLIENT_MAC)
        .seq(scene.cookie().wrapping_add(1))
        .ack(ISN.wrapping_add(1))
        .flags(RST | ACK)
        .window(0);
    let mut got = outcome.segment();
    // How much of the request the RST acknowledges makes no difference to its receiver.
    got.ack = expected.ack;
    assert_eq!(essence(&got), essence(&expected));
    asked.sort_unstable();
    assert_eq!(asked, [0, 1, 2]);
    assert_eq!(scene.runner.maps.flows()?, []);
    assert_eq!(scene.runner.maps.stashes()?.len(), 0);
    Ok(())
}

#[test]
fn tries_are_bounded() -> Result<()> {
    let mut scene = Scene::new(4)?;
    scene.runner.change(|setup| setup.services[0].max_tries = 2)?;
    let first = scene.bind(REQUEST)?;
    let second = scene.slot_of(&scene.xdp(&scene.refusal(first))?.segment());
    assert!(scene.xdp(&scene.refusal(second))?.counted(Counter::Unavailable));
    Ok(())
}

#[test]
fn forged_or_stray_answers_of_backends_are_dropped() -> Result<()> {
    let scene = Scene::new(2)?;
    let slot = scene.bind(REQUEST)?;
    let other = 1 - slot;
    let good = scene.syn_ack(slot);
    let drop =
        |name: &str, segment: Segment, counter| Row::new(name, segment.bytes(), Verdict::Drop, counter);
    let rows = [
        drop(
            "RST with a wrong ACK",
            scene.refusal(slot).ack(ISN).flags(RST | ACK),
            Counter::DropBadBackendAck,
        ),
        drop("RST without ACK", scene.refusal(slot).flags(RST), Counter::DropBadBackendAck),
        drop("SYN-ACK of another SYN", good.clone().ack(ISN.wrapping_add(2)), Counter::DropBadBackendAck),
        drop("a SYN", good.clone().flags(SYN), Counter::DropBackendSyn),
        drop("an RST of another backend", scene.refusal(other), Counter::DropOtherBackend),
    ];
    check_rows(&scene, rows)?;
    assert_eq!(only_flow(&scene)?.head.state, FlowState::Binding as u8);
    // Of another client's connection nothing is known.
    let stray = Segment { dst: "10.0.1.2:40001".parse()?, ..good };
    check_rows(&scene, [Row::new("stray", stray.bytes(), Verdict::Pass, Counter::PassedFromBackend)])
}

/// The joint turns the SYN-ACK into the ACK that carries the request.
#[test]
fn a_syn_ack_becomes_the_request() -> Result<()> {
    for scene in [Scene::new(2)?, Scene::new(2)?.without_timestamps()] {
        let slot = scene.bind(REQUEST)?;
        let syn_ack = scene.syn_ack(slot);
        check_rows(&scene, [Row::new("XDP", syn_ack.bytes(), Verdict::Pass, Counter::PassedToJoint)])?;
        let outcome = scene.joint(&syn_ack)?;
        assert_eq!(
            (outcome.verdict, &outcome.counted[..]),
            (TcVerdict::Redirect, &[(Counter::Spliced, 1)][..])
        );
        let (local, next) = macs(slot);
        let mut expected = syn_ack
            .reply()
            .macs(local, next)
            .seq(ISN.wrapping_add(1))
            .ack(BACKEND_ISN + 1)
            .flags(ACK | PSH)
            .window(501)
            .payload(REQUEST);
        if scene.stamps {
            expected = expected.timestamps(tests::scene::TS + 1, tests::scene::BACKEND_TS);
        }
        assert_eq!(essence(&outcome.segment()), essence(&expected));
        let flow = only_flow(&scene)?;
        assert_eq!(flow.head.state, FlowState::Established as u8);
        assert_eq!(flow.seq_delta, scene.cookie().wrapping_sub(BACKEND_ISN));
        // The client was promised scale 7, the backend has 9.
        assert_eq!(flow.head.window_shift, 2);
        assert_eq!(scene.runner.maps.backend_counts(slot)?.spliced, 1);
        let abilities = scene.runner.maps.abilities(slot)?;
        assert_eq!((abilities.seen, abilities.mss, abilities.window_scale), (1, 1460, 9));
        assert_eq!(abilities.lacks, 0);
    }
    Ok(())
}

/// What a backend does not take up of what its client was promised is told to the daemon.
#[test]
fn missing_options_of_a_backend_are_noticed() -> Result<()> {
    use lb_common::service::{PROMISE_SACK, PROMISE_TIMESTAMPS, PROMISE_WINDOW_SCALE};
    let rows = [
        (vec![], PROMISE_SACK | PROMISE_TIMESTAMPS | PROMISE_WINDOW_SCALE),
        (vec![Opt::Mss(1460), Opt::SackPermitted], PROMISE_TIMESTAMPS | PROMISE_WINDOW_SCALE),
        (vec![Opt::WindowScale(3), Opt::Nop], PROMISE_SACK | PROMISE_TIMESTAMPS),
    ];
    for (options, lacks) in rows {
        let scene = Scene::new(1)?;
        let slot = scene.bind(REQUEST)?;
        let answer = scene.syn_ack(slot).options(options);
        scene.xdp(&answer)?;
        scene.joint(&answer)?;
        assert_eq!(scene.runner.maps.abilities(slot)?.lacks, lacks, "{answer}");
    }
    Ok(())
}

/// The SYN-ACK comes again when our ACK was lost, or the SYN was doubled.
#[test]
fn a_second_syn_ack_is_dropped() -> Result<()> {
    let scene = Scene::new(1)?;
    let slot = scene.splice()?;
    let rows = [
        Row::new("SYN-ACK", scene.syn_ack(slot).bytes(), Verdict::Drop, Counter::DropDuplicateSynAck),
        Row::new("SYN", scene.syn_ack(slot).flags(SYN).bytes(), Verdict::Drop, Counter::DropBackendSyn),
    ];
    check_rows(&scene, rows)
}

/// RFC 5961 §4.2: who still knows the 4-tuple answers a SYN with a bare ACK.
#[test]
fn a_challenge_is_answered_with_a_reset_and_the_syn_again() -> Result<()> {
    let scene = Scene::new(1)?;
    let slot = scene.bind(REQUEST)?;
    let challenge = scene.from_backend(slot).seq(0x4444).ack(0x5555);
    check_rows(&scene, [Row::new("XDP", challenge.bytes(), Verdict::Pass, Counter::PassedToJoint)])?;
    let outcome = scene.joint(&challenge)?;
    assert_eq!(outcome.verdict, TcVerdict::Redirect, "{outcome:?}");
    assert!(outcome.counted(Counter::ChallengeReset), "{outcome:?}");
    assert_eq!(essence(&outcome.segment()), essence(&scene.offered(slot)));
    assert_eq!(only_flow(&scene)?.head.state, FlowState::Binding as u8);
    Ok(())
}

#[test]
fn the_joint_leaves_other_packets_alone() -> Result<()> {
    let scene = Scene::new(2)?;
    let slot = scene.bind(REQUEST)?;
    let others = [
        ("of another backend", scene.syn_ack(1 - slot)),
        ("for another client", Segment { dst: "10.0.1.2:40001".parse()?, ..scene.syn_ack(slot) }),
        ("not from a backend", Segment { src: "10.0.10.2:81".parse()?, ..scene.syn_ack(slot) }),
        ("from the client", scene.first(REQUEST)),
    ];
    for (name, segment) in others {
        let outcome = scene.joint(&segment)?;
        assert_eq!((outcome.verdict, &outcome.counted[..]), (TcVerdict::Ok, &[][..]), "{name}");
        assert_eq!(outcome.frame, segment.bytes(), "{name}");
    }
    Ok(())
}

/// Headers and body written separately fit in one frame only if the timestamps do as well.
#[test]
fn joined_segments_leave_room_for_timestamps() -> Result<()> {
    for (mut scene, room) in [(Scene::new(1)?, 1448), (Scene::new(1)?.without_timestamps(), 1460)] {
        for second in [room - 1000, room - 999] {
            let mut first = REQUEST.to_vec();
            first.resize(1000, b'b');
            scene.bind(&first)?;
            scene.xdp(&scene.segment(1000, PSH, &vec![b'b'; second]))?;
            let outcome = scene.joint(&scene.syn_ack(0))?;
            assert_eq!(outcome.counted, [(Counter::Spliced, 1)], "{second}: {outcome:?}");
            let sent = outcome.segment();
            assert!(outcome.frame.len() <= 14 + 1500, "{sent}");
            assert_eq!(sent.end(), ISN.wrapping_add(1001 + second as u32), "the last byte is sent");
            scene.runner.maps.forget()?;
        }
    }
    Ok(())
}

/// As HTTP/1.0 clients do it: the FIN comes with the request or right behind it.
#[test]
fn a_stashed_fin_counts_when_the_flow_closes() -> Result<()> {
    for behind in [false, true] {
        let scene = Scene::new(1)?;
        if behind {
            scene.bind(REQUEST)?;
            scene.xdp(&scene.next(FIN, b""))?;
        } else {
            scene.xdp(&scene.segment(0, PSH | FIN, REQUEST))?;
        }
        assert!(scene.joint(&scene.syn_ack(0))?.segment().has(FIN));
        scene.xdp(&scene.response(0, 0, PSH, b"bye"))?;
        assert_eq!(only_flow(&scene)?.head.state, FlowState::Established as u8);
        scene.xdp(&scene.response(0, 3, FIN, b""))?;
        assert_eq!(only_flow(&scene)?.head.state, FlowState::Closing as u8, "behind: {behind}");
    }
    Ok(())
}

/// Its new cookie proves itself at once, not only when the clock has ticked.
#[test]
fn a_client_begins_anew_while_its_backend_is_asked() -> Result<()> {
    for scene in [Scene::new(1)?, Scene::new(1)?.without_timestamps()] {
        scene.bind(REQUEST)?;
        let isn = 0x7777_0000;
        let cookie = scene.runner.setup.cookie(scene.client, tests::scene::SERVICE, isn, scene.agreed);
        let mut first = scene.first(REQUEST).seq(isn + 1).ack(cookie.wrapping_add(1));
        if scene.stamps {
            let echo = scene.runner.setup.stamp(scene.client, tests::scene::SERVICE, isn);
            first = first.timestamps(tests::scene::TS + 500, echo);
        }
        let outcome = scene.xdp(&first)?;
        assert!(outcome.counted(Counter::Bound), "{outcome:?}");
        assert_eq!(outcome.segment().seq, isn);
        assert_eq!(only_flow(&scene)?.client_isn, isn);
        // An answer to the former SYN must not complete the new one.
        let late = scene.joint(&scene.syn_ack(0))?;
        assert_eq!(
            (late.verdict, &late.counted[..]),
            (TcVerdict::Shot, &[(Counter::DropBadBackendAck, 1)][..])
        );
        assert_eq!(only_flow(&scene)?.head.state, FlowState::Binding as u8);
    }
    Ok(())
}

#[test]
fn a_reset_that_the_client_cannot_have_sent_ends_nothing() -> Result<()> {
    let scene = Scene::new(1)?;
    scene.bind(REQUEST)?;
    let rst = |at| scene.segment(at, 0, b"").flags(RST).bytes();
    let rows =
        [u32::MAX, 2922, 1 << 31].map(|at| Row::new(at, rst(at), Verdict::Drop, Counter::DropUnknownRst));
    check_rows(&scene, rows)?;
    check_rows(&scene, [Row::new("at its end", rst(2920), Verdict::Drop, Counter::ClientReset)])
}

/// While another processor fills in a flow, its stash is locked and its entry does not name it yet.
#[test]
fn a_stash_is_not_taken_from_a_flow_that_is_being_bound() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.bind(REQUEST)?;
    let index = only_flow(&scene)?.stash;
    let stash = scene.runner.maps.stashes()?[0];
    scene.runner.maps.forget()?;
    let owner = 77 | stash.owner >> 32 << 32;
    let busy = Stash { owner, lock: 1, ..stash };
    scene.runner.maps.set_stash(u32::from(index), &busy)?;
    scene.bind(REQUEST)?;
    assert_ne!(only_flow(&scene)?.stash, index);
    let owners: Vec<u64> = scene.runner.maps.stashes()?.iter().map(|stash| stash.owner).collect();
    assert!(owners.contains(&owner), "{owners:x?}");
    Ok(())
}

/// A flow that waited so long that its stash went to another one begins anew, instead of waiting for ever.
#[test]
fn a_flow_that_lost_its_stash_begins_anew() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.bind(REQUEST)?;
    let index = only_flow(&scene)?.stash;
    let stash = scene.runner.maps.stashes()?[0];
    scene.runner.maps.set_stash(u32::from(index), &Stash { owner: stash.owner + 1, ..stash })?;
    check_rows(&scene, [Row::new("again", scene.first(REQUEST).bytes(), Verdict::Drop, Counter::DropBusy)])?;
    assert!(scene.xdp(&scene.first(REQUEST))?.counted(Counter::Bound));
    Ok(())
}
