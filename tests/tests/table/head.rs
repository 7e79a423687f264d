//! Heads that go on in the second segment: what is steered by may stand there.

use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::flow::FlowState;
use tests::frame::{ACK, FIN, PSH, RST, Segment};
use tests::runner::{Outcome, Verdict};
use tests::scene::{BACKEND_ISN, Scene};
use tests::table::{Row, check_rows, essence};

/// Payload of a full segment with timestamps.
const FULL: usize = 1448;

/// A request whose head is long, with the token at its end.
fn long_request(token: &str, len: usize) -> Vec<u8> {
    let end = format!("\r\nCookie: lb={token}\r\n\r\n");
    let mut head = b"GET / HTTP/1.1\r\nHost: shop\r\nX-Long: ".to_vec();
    head.resize(len - end.len(), b'l');
    head.extend(end.bytes());
    head
}

fn state(scene: &Scene) -> Result<Option<FlowState>> {
    Ok(scene.runner.maps.flows()?.first().map(|flow| FlowState::from_bits(flow.head.state)))
}

fn counted(outcome: &Outcome<Verdict>) -> Vec<Counter> {
    outcome.counted.iter().map(|(counter, _)| *counter).collect()
}

/// Sends a full first segment, of which nothing is to be seen but that it is waited for.
fn begin(scene: &Scene, head: &[u8]) -> Result<()> {
    let first = scene.first(&head[..FULL]);
    check_rows(scene, [Row::new("first", first.bytes(), Verdict::Drop, Counter::HeadAwaited)])?;
    assert_eq!(state(scene)?, Some(FlowState::Awaiting));
    Ok(())
}

#[test]
fn a_token_in_the_second_segment_is_found() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let token = scene.runner.setup.token(3, 77);
    // The token in the second segment, cut by the end of the first at any place, and its line cut as well.
    for len in [FULL + 10, FULL + 20, FULL + 47, FULL + 50, FULL + 60, FULL + 900, 2 * FULL] {
        let head = long_request(&token, len);
        begin(&scene, &head)?;
        let outcome = scene.xdp(&scene.segment(FULL as u32, PSH, &head[FULL..]))?;
        assert_eq!(counted(&outcome), [Counter::AffinityHit, Counter::Bound], "{len}");
        assert_eq!(essence(&outcome.segment()), essence(&scene.offered(3)), "{len}");
        assert_eq!(state(&scene)?, Some(FlowState::Binding));
        assert_eq!(scene.runner.maps.live(3)?, 1);
        // The backend gets every byte.
        let sent = deliver(&scene, 3)?;
        assert_eq!(sent, len as u32);
        scene.runner.maps.forget()?;
    }
    Ok(())
}

/// The backend answers; returns how many bytes of the request it is sent by the last segment's end.
fn deliver(scene: &Scene, slot: u16) -> Result<u32> {
    let outcome = scene.joint(&scene.syn_ack(slot))?;
    let last = outcome.segment();
    assert!(last.has(ACK) && last.ack == BACKEND_ISN.wrapping_add(1), "{last:?}");
    Ok(last.end().wrapping_sub(tests::scene::ISN).wrapping_sub(1))
}

/// Two full segments fill a stash: what stands behind them is not waited for.
#[test]
fn a_head_that_goes_on_behind_both_is_a_new_session() -> Result<()> {
    let scene = Scene::new(4)?;
    let token = scene.runner.setup.token(3, 77);
    let head = long_request(&token, 8000);
    begin(&scene, &head)?;
    let outcome = scene.xdp(&scene.segment(FULL as u32, PSH, &head[FULL..2 * FULL]))?;
    assert_eq!(counted(&outcome), [Counter::NewSession, Counter::Bound, Counter::HeadIncomplete]);
    Ok(())
}

/// What acknowledges a head up to an offset.
fn acknowledged(scene: &Scene, segment: &Segment, end: usize) -> Segment {
    let window = ((2920 - end) >> 7) as u16;
    let reply =
        segment.reply().seq(segment.ack).ack(tests::scene::ISN.wrapping_add(1 + end as u32)).flags(ACK);
    let reply = reply.window(window.max(1));
    if scene.stamps { reply.timestamps(scene.echo(), tests::scene::TS + 1) } else { reply }
}

/// A client that sends the rest only when the first segment is acknowledged sends that one again.
#[test]
fn a_client_that_waits_is_told_to_go_on() -> Result<()> {
    let scene = Scene::new(4)?;
    let token = scene.runner.setup.token(3, 77);
    let head = long_request(&token, 2000);
    begin(&scene, &head)?;
    let again = scene.first(&head[..FULL]);
    for _ in 0..2 {
        let outcome = scene.xdp(&again)?;
        assert_eq!((outcome.verdict, counted(&outcome)), (Verdict::Redirect, vec![Counter::HeadAwaited]));
        assert_eq!(essence(&outcome.segment()), essence(&acknowledged(&scene, &again, FULL)));
    }
    let outcome = scene.xdp(&scene.segment(FULL as u32, PSH, &head[FULL..]))?;
    assert_eq!(counted(&outcome), [Counter::AffinityHit, Counter::Bound]);
    Ok(())
}

/// RFC 9293 §3.4: a byte stream is one however it is cut. A client with Nagle's algorithm (RFC 896) sends the next piece when the
/// one before is acknowledged.
#[test]
fn a_head_is_awaited_however_it_is_cut() -> Result<()> {
    for mut scene in [Scene::new(4)?, Scene::new(4)?.without_timestamps()] {
        let token = scene.runner.setup.token(3, 77);
        for (size, len) in [(1, 120), (4, 120), (16, 300), (88, 700), (216, 1400), (536, 2600), (1012, 2000)]
        {
            let head = long_request(&token, len);
            let mut at = 0;
            // The token is whole before the head is.
            while at + size < len - 4 {
                let piece = scene.segment(at as u32, PSH, &head[at..at + size]);
                let outcome = scene.xdp(&piece)?;
                assert_eq!(counted(&outcome), [Counter::HeadAwaited], "{size} bytes at {at}: {outcome:?}");
                at += size;
                assert_eq!(
                    essence(&outcome.segment()),
                    essence(&acknowledged(&scene, &piece, at)),
                    "{size} {at}"
                );
            }
            let last = scene.segment(at as u32, PSH, &head[at..]);
            let outcome = scene.xdp(&last)?;
            assert_eq!(counted(&outcome), [Counter::AffinityHit, Counter::Bound], "{size}: {outcome:?}");
            assert_eq!(essence(&outcome.segment()), essence(&scene.offered(3)), "{size}");
            // It comes again: its backend may have missed its SYN.
            assert!(scene.xdp(&last)?.counted(Counter::SynRepeated));
            assert_eq!(deliver(&scene, 3)?, len as u32);
            scene.runner.maps.forget()?;
        }
    }
    Ok(())
}

/// What a client was told had arrived it will not send again, so what its backend may not have is sent from the stash.
#[test]
fn what_was_acknowledged_is_sent_until_the_backend_has_it() -> Result<()> {
    let scene = Scene::new(4)?;
    let token = scene.runner.setup.token(3, 77);
    let head = long_request(&token, 200);
    scene.xdp(&scene.first(&head[..100]))?;
    let rest = scene.segment(100, PSH, &head[100..]);
    assert!(scene.xdp(&rest)?.counted(Counter::Bound));
    assert_eq!(deliver(&scene, 3)?, 200);
    // That was lost: the client repeats the rest alone.
    let up = scene.xdp(&rest)?;
    assert_eq!((up.verdict, counted(&up)), (Verdict::Pass, vec![Counter::PassedToJoint]));
    let outcome = scene.joint(&rest)?;
    assert!(outcome.counted(Counter::StashRepeated), "{outcome:?}");
    let sent = outcome.segment();
    assert_eq!((sent.payload.len(), sent.ack), (200, BACKEND_ISN.wrapping_add(1)), "{sent}");
    assert_eq!(sent.timestamp(), Some((tests::scene::TS + 1, tests::scene::BACKEND_TS)));
    // More of the client goes its own way, and takes nothing away before the backend has it all.
    let body = scene.segment(200, PSH, b"body");
    assert_eq!(counted(&scene.xdp(&body)?), [Counter::FromClient]);
    assert_eq!(scene.runner.maps.stashes()?.len(), 1);
    assert_eq!(counted(&scene.xdp(&rest)?), [Counter::PassedToJoint]);
    let ack = |end: u32| scene.response(3, 0, 0, b"").ack(tests::scene::ISN.wrapping_add(1 + end));
    scene.xdp(&ack(0))?;
    assert_eq!(scene.runner.maps.stashes()?.len(), 1);
    scene.xdp(&ack(204))?;
    assert_eq!(scene.runner.maps.stashes()?.len(), 0);
    assert_eq!(counted(&scene.xdp(&rest)?), [Counter::FromClient]);
    Ok(())
}

/// What is not HTTP has no head to wait for: its client may have said all that it says before it hears something.
#[test]
fn what_begins_as_no_request_is_not_waited_for() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let others: [&[u8]; 8] = [
        b"hello backend",
        b"PING\r\n",
        b"EHLO shop.example\n",
        b"GET /\r\n",
        b"\x16\x03\x01\x02\x00",
        b"G\r\n",
        b"\0",
        b"GET / HTTP/2.0\r\nx",
    ];
    for other in others {
        let outcome = scene.xdp(&scene.first(other))?;
        assert_eq!(counted(&outcome), [Counter::NewSession, Counter::Bound], "{outcome:?}");
        scene.runner.maps.forget()?;
    }
    for begun in
        ["G", "GET", "GET /", "OPTIONS * HTTP/1.1\r", "GET / HTTP/1.1\r\n", "GET / HTTP/1.0\nHost: x\r\n"]
    {
        let outcome = scene.xdp(&scene.first(begun.as_bytes()))?;
        assert_eq!(counted(&outcome), [Counter::HeadAwaited], "{begun}: {outcome:?}");
        scene.runner.maps.forget()?;
    }
    Ok(())
}

/// What has been acknowledged never comes again, so nothing corrupt is.
#[test]
fn a_corrupt_piece_is_not_acknowledged() -> Result<()> {
    let scene = Scene::new(4)?;
    let head = long_request("x", 1400);
    for len in [1, 2, 3, 4, 5, 511, 512, 513, 1025, 1300] {
        let mut bytes = scene.first(&head[..len]).bytes();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        let outcome = scene.runner.xdp(&bytes)?;
        assert_eq!(
            (outcome.verdict, counted(&outcome)),
            (Verdict::Drop, vec![Counter::DropChecksum]),
            "{len}"
        );
        assert_eq!((scene.runner.maps.flows()?.len(), scene.runner.maps.stashes()?.len()), (0, 0));
        let outcome = scene.xdp(&scene.first(&head[..len]))?;
        assert_eq!(
            (outcome.verdict, counted(&outcome)),
            (Verdict::Redirect, vec![Counter::HeadAwaited]),
            "{len}"
        );
        // Behind what was acknowledged: the client cannot be asked for that again.
        let mut bytes = scene.segment(len as u32, PSH, &head[len..len + 7]).bytes();
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
        assert_eq!(counted(&scene.runner.xdp(&bytes)?), [Counter::ResetUnknownFlow], "{len}");
        assert_eq!((scene.runner.maps.flows()?.len(), scene.runner.maps.stashes()?.len()), (0, 0));
    }
    Ok(())
}

/// RFC 5961 §5: whoever has not seen our SYN-ACK adds nothing to a request.
#[test]
fn a_stranger_adds_nothing_to_a_head() -> Result<()> {
    let scene = Scene::new(4)?;
    let head = long_request("x", 200);
    scene.xdp(&scene.first(&head[..100]))?;
    let strange = scene.segment(100, PSH, b"\r\n\r\n");
    let ack = strange.ack.wrapping_add(1);
    check_rows(&scene, [Row::new("ack", strange.ack(ack).bytes(), Verdict::Drop, Counter::DropBadClientAck)])
}

/// The time for a head is bounded: then it is steered by what there is.
#[test]
fn a_head_that_takes_too_long_is_not_awaited() -> Result<()> {
    for what in ["more", "the same again", "a bare ACK"] {
        let mut scene = Scene::new(4)?;
        let head = long_request("x", 200);
        scene.xdp(&scene.first(&head[..100]))?;
        scene.runner.change(|setup| setup.settings.head_ticks = u32::MAX)?;
        let next = match what {
            "more" => scene.segment(100, PSH, &head[100..150]),
            "the same again" => scene.first(&head[..100]),
            _ => scene.segment(100, 0, b""),
        };
        let outcome = scene.xdp(&next)?;
        assert_eq!(
            counted(&outcome),
            [Counter::NewSession, Counter::Bound, Counter::HeadIncomplete],
            "{what}: {outcome:?}"
        );
    }
    Ok(())
}

#[test]
fn whole_heads_and_finished_clients_are_not_waited_for() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let mut whole = b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n".to_vec();
    whole.resize(FULL, b'b');
    assert_eq!(counted(&scene.xdp(&scene.first(&whole))?), [Counter::NewSession, Counter::Bound]);
    scene.runner.maps.forget()?;
    // A FIN says that nothing follows.
    let last = scene.segment(0, PSH | FIN, &long_request("x", 3000)[..FULL]);
    let expected = [Counter::NewSession, Counter::Bound, Counter::HeadIncomplete];
    assert_eq!(counted(&scene.xdp(&last)?), expected);
    Ok(())
}

#[test]
fn while_it_waits_nothing_else_ends_or_moves_it() -> Result<()> {
    let scene = Scene::new(4)?;
    let token = scene.runner.setup.token(3, 77);
    let head = long_request(&token, 2 * FULL);
    begin(&scene, &head)?;
    let gap = scene.segment(FULL as u32 + 100, PSH, &head[FULL + 100..]);
    check_rows(
        &scene,
        [
            Row::new("bare ACK", scene.segment(0, 0, b"").bytes(), Verdict::Drop, Counter::DropBinding),
            Row::new(
                "keep-alive",
                scene.segment(u32::MAX, 0, b"").bytes(),
                Verdict::Drop,
                Counter::DropBinding,
            ),
            Row::new("behind a gap", gap.bytes(), Verdict::Drop, Counter::Stashed),
        ],
    )?;
    assert_eq!(state(&scene)?, Some(FlowState::Awaiting));
    let outcome = scene.xdp(&scene.segment(FULL as u32, PSH, &head[FULL..]))?;
    assert_eq!(counted(&outcome), [Counter::AffinityHit, Counter::Bound]);
    Ok(())
}

#[test]
fn a_client_that_resets_or_finishes_while_it_waits() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let head = long_request("x", 2 * FULL);
    begin(&scene, &head)?;
    let rst = Segment { options: Vec::new(), ..scene.segment(FULL as u32, 0, b"") }.flags(RST);
    check_rows(&scene, [Row::new("RST", rst.bytes(), Verdict::Drop, Counter::ClientReset)])?;
    assert_eq!((state(&scene)?, scene.runner.maps.stashes()?.len()), (None, 0));
    begin(&scene, &head)?;
    let fin = scene.xdp(&scene.segment(FULL as u32, FIN, b""))?;
    assert_eq!(counted(&fin), [Counter::NewSession, Counter::Bound, Counter::HeadIncomplete]);
    scene.runner.maps.forget()?;
    // Nobody is ready by the time it is whole: the client is told.
    begin(&scene, &head)?;
    scene.runner.change(|setup| setup.backends.clear())?;
    let outcome = scene.xdp(&scene.segment(FULL as u32, PSH, &head[FULL..]))?;
    let told = outcome.segment();
    assert!(outcome.counted(Counter::Unavailable) && told.has(FIN), "{outcome:?}");
    assert_eq!(told.ack, scene.segment(head.len() as u32, 0, b"").seq, "both segments");
    assert_eq!((state(&scene)?, scene.runner.maps.stashes()?.len()), (Some(FlowState::Closing), 0));
    Ok(())
}

/// Clients who send a full segment and then nothing hold no stash that somebody else needs.
#[test]
fn who_is_awaited_makes_room_for_who_is_here() -> Result<()> {
    let mut scene = Scene::new(2)?;
    let head = long_request("x", 2 * FULL);
    let stashes = scene.runner.setup.sizes.stashes as usize;
    for port in 1..=4 * stashes as u16 {
        scene.client.set_port(port);
        scene.xdp(&scene.first(&head[..FULL]))?;
    }
    assert_eq!(scene.runner.maps.stashes()?.len(), stashes, "every stash is taken");
    for port in 101..=100 + stashes as u16 / 2 {
        scene.client.set_port(port);
        scene.bind(b"GET / HTTP/1.1\r\n\r\n")?;
    }
    // One that was awaited and lost its stash begins anew.
    scene.client.set_port(1);
    assert!(scene.xdp(&scene.segment(FULL as u32, PSH, &head[FULL..]))?.verdict == Verdict::Drop);
    Ok(())
}
