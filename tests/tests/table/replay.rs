//! A backend that ends a connection before it has said anything: what moves to another one, and what does not.

use anyhow::Result;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::flow::FlowState;
use tests::frame::{ACK, FIN, Opt, PSH, RST, Segment};
use tests::runner::{TcVerdict, Verdict};
use tests::scene::{BACKEND_ISN, BACKEND_TS, ISN, REQUEST, Scene, TS};
use tests::table::essence;

/// A scene whose service replays, with a flow spliced to the slot that comes with it.
fn spliced(backends: u16, request: &[u8]) -> Result<(Scene, u16)> {
    let mut scene = Scene::new(backends)?;
    scene.runner.change(|setup| setup.services[0].replay = 1)?;
    let slot = scene.bind(request)?;
    scene.xdp(&scene.syn_ack(slot))?;
    scene.joint(&scene.syn_ack(slot))?;
    Ok((scene, slot))
}

fn ends(scene: &Scene, slot: u16) -> [(&'static str, Segment); 2] {
    [("RST", scene.response(slot, 0, RST, b"")), ("FIN", scene.response(slot, 0, FIN, b""))]
}

#[test]
fn an_unanswered_request_goes_to_the_next_backend() -> Result<()> {
    let plain: [&[u8]; 4] = [
        REQUEST,
        b"HEAD / HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.0\nHost: s\n\n",
        b"GET / HTTP/1.1\r\nContent-Length: 0\r\nContent-Type: a/b\r\n\r\n",
    ];
    for (i, request) in plain.into_iter().enumerate() {
        for end in 0..2 {
            let (scene, slot) = spliced(2, request)?;
            let (name, segment) = ends(&scene, slot)[end].clone();
            let outcome = scene.xdp(&segment)?;
            assert_eq!(outcome.verdict, Verdict::Redirect, "{name}");
            assert!(outcome.counted(Counter::Replayed), "{name}: {outcome:?}");
            let other = 1 - slot;
            assert_eq!(essence(&outcome.segment()), essence(&scene.offered(other)), "{i} {name}");

            let outcome = scene.joint(&scene.syn_ack(other))?;
            assert_eq!(outcome.verdict, TcVerdict::Redirect, "{name}: {outcome:?}");
            let sent = outcome.segment();
            assert_eq!((sent.seq, &sent.payload[..]), (ISN.wrapping_add(1), request), "{name}");
        }
    }
    Ok(())
}

#[test]
fn the_client_sees_no_seam() -> Result<()> {
    let (scene, slot) = spliced(2, REQUEST)?;
    let other = 1 - slot;
    scene.xdp(&ends(&scene, slot)[0].1)?;
    scene.joint(&scene.syn_ack(other))?;
    let segment = scene.xdp(&scene.response(other, 0, PSH, b"hello"))?.segment();
    assert_eq!(segment.seq, scene.cookie().wrapping_add(1), "the first byte that the client waits for");
    let stamp = segment.options.iter().find_map(|option| match option {
        Opt::Timestamps { val, .. } => Some(*val),
        _ => None,
    });
    // The former backend may have told it anything up to its own time since; never may the clock go back.
    let ahead = stamp.expect("timestamps were agreed").wrapping_sub(scene.echo());
    assert!((1 << 24..1 << 25).contains(&ahead), "{ahead}: {BACKEND_TS} would be the old splice");
    Ok(())
}

#[test]
fn the_former_backend_is_reset_when_it_speaks_again() -> Result<()> {
    let (scene, slot) = spliced(2, REQUEST)?;
    scene.xdp(&ends(&scene, slot)[1].1)?;
    let outcome = scene.xdp(&ends(&scene, slot)[1].1)?;
    assert_eq!(outcome.counted, [(Counter::ResetLateSynAck, 1)], "{outcome:?}");
    Ok(())
}

#[test]
fn what_is_not_safe_or_not_whole_ends_as_it_ends() -> Result<()> {
    let post: &[u8] = b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n";
    type Meanwhile = fn(&Scene, u16) -> Result<()>;
    let nothing: Meanwhile = |_, _| Ok(());
    let pipelined = [&b"GET /slow HTTP/1.1\r\nHost: s\r\n\r\n"[..], post].concat();
    let rows: [(&str, u16, &[u8], Meanwhile); 13] = [
        ("a POST", 2, post, nothing),
        ("a POST behind a GET in one segment", 2, &pipelined, nothing),
        ("a GET behind a GET", 2, b"GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\n\r\n", nothing),
        ("a byte behind a GET", 2, b"GET / HTTP/1.1\r\nHost: s\r\n\r\nx", nothing),
        ("a GET with a body", 2, b"GET / HTTP/1.1\r\nContent-Length: 4\r\n\r\n", nothing),
        ("a GET with a body in chunks", 2, b"GET / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n", nothing),
        ("a GET whose length is not plain", 2, b"GET / HTTP/1.1\nCONTENT-LENGTH:00004\n\n", nothing),
        ("another method that begins so", 2, b"HEADS / HTTP/1.1\r\n\r\n", nothing),
        ("nobody else", 1, REQUEST, nothing),
        ("a response has begun", 2, REQUEST, |scene, slot| {
            scene.xdp(&scene.response(slot, 0, PSH, b"HTTP")).map(|_| ())
        }),
        ("the request went on", 2, REQUEST, |scene, _| scene.xdp(&scene.next(PSH, b"more")).map(|_| ())),
        ("more came with the request when it was sent again", 2, REQUEST, |scene, _| {
            scene.xdp(&scene.first(&[REQUEST, b"more"].concat())).map(|_| ())
        }),
        ("the client has finished", 2, REQUEST, |scene, _| scene.xdp(&scene.next(FIN, b"")).map(|_| ())),
    ];
    for (name, backends, request, meanwhile) in rows {
        for end in 0..2 {
            let (scene, slot) = spliced(backends, request)?;
            meanwhile(&scene, slot)?;
            let outcome = scene.xdp(&ends(&scene, slot)[end].1)?;
            assert_eq!(outcome.counted, [(Counter::FromBackend, 1)], "{name}: {outcome:?}");
        }
    }
    Ok(())
}

#[test]
fn a_service_may_do_without() -> Result<()> {
    let (mut scene, slot) = spliced(2, REQUEST)?;
    scene.runner.change(|setup| setup.services[0].replay = 0)?;
    let outcome = scene.xdp(&ends(&scene, slot)[0].1)?;
    assert_eq!(outcome.counted, [(Counter::FromBackend, 1)], "{outcome:?}");
    Ok(())
}

#[test]
fn replays_are_bounded_like_other_tries() -> Result<()> {
    let (mut scene, slot) = spliced(4, REQUEST)?;
    scene.runner.change(|setup| setup.services[0].max_tries = 2)?;
    let other = scene.slot_of(&scene.xdp(&ends(&scene, slot)[0].1)?.segment());
    scene.joint(&scene.syn_ack(other))?;
    let outcome = scene.xdp(&ends(&scene, other)[0].1)?;
    assert_eq!(outcome.counted, [(Counter::FromBackend, 1)], "{outcome:?}");
    let flow = scene.runner.maps.flows()?[0];
    assert_ne!(flow.head.state, FlowState::Binding as u8);
    Ok(())
}

/// A second backend that lacks what the first had, or has what it lacked.
#[test]
fn the_second_backends_options_are_its_own() -> Result<()> {
    let (scene, slot) = spliced(2, REQUEST)?;
    scene.xdp(&ends(&scene, slot)[0].1)?;
    let other = 1 - slot;
    let bare = scene.syn_ack(other).options(Opt::linux_syn(1460, None, true, Some((BACKEND_TS, TS))));
    scene.xdp(&bare)?;
    scene.joint(&bare)?;
    let seen = scene.xdp(&scene.response(other, 0, PSH, b"x").window(1280))?.segment();
    assert_eq!(seen.window, 10, "1280 bytes in units of 128");
    assert_eq!(seen.seq, scene.cookie().wrapping_add(1));
    let sent = scene.next(0, b"").ack(seen.end()).window(2);
    let at_backend = scene.xdp(&sent)?.segment();
    assert_eq!((at_backend.ack, at_backend.window), (BACKEND_ISN + 2, 2 << 10));
    assert_eq!(at_backend.flags, ACK);
    Ok(())
}

/// Its end overtook what it said, or what it said was lost; and an end that the client has seen stays one.
#[test]
fn an_end_behind_a_response_is_none_of_a_silent_backend() -> Result<()> {
    for flag in [FIN, RST] {
        let (scene, slot) = spliced(2, REQUEST)?;
        let outcome = scene.xdp(&scene.response(slot, 100, flag, b""))?;
        assert_eq!(outcome.counted, [(Counter::FromBackend, 1)], "{outcome:?}");
    }
    let (mut scene, slot) = spliced(2, REQUEST)?;
    scene.runner.change(|setup| setup.set_state(1 - slot, State::Down))?;
    assert_eq!(scene.xdp(&scene.response(slot, 0, FIN, b""))?.counted, [(Counter::FromBackend, 1)]);
    scene.runner.change(|setup| setup.set_state(1 - slot, State::Ready))?;
    let again = scene.xdp(&scene.response(slot, 0, FIN, b""))?;
    assert_eq!(again.counted, [(Counter::FromBackend, 1)], "{again:?}");
    Ok(())
}

/// The former backend may have acknowledged the request, so its client does not repeat it: when it is lost on the way to
/// the next one, that one's SYN-ACK comes again, and fetches it.
#[test]
fn a_replayed_request_that_is_lost_is_sent_again() -> Result<()> {
    let (scene, slot) = spliced(2, REQUEST)?;
    let duplicate = scene.xdp(&scene.syn_ack(slot))?;
    assert_eq!(duplicate.counted, [(Counter::DropDuplicateSynAck, 1)], "its client repeats it");
    scene.xdp(&ends(&scene, slot)[1].1)?;
    let other = 1 - slot;
    let lost = scene.joint(&scene.syn_ack(other))?.segment();
    let flow = scene.runner.maps.flows()?[0];

    let later =
        scene.syn_ack(other).options(Opt::linux_syn(1460, Some(9), true, Some((BACKEND_TS + 1000, TS + 1))));
    let up = scene.xdp(&later)?;
    assert_eq!((up.verdict, &up.counted[..]), (Verdict::Pass, &[(Counter::PassedToJoint, 1)][..]));
    let sent = scene.joint(&later)?.segment();
    assert_eq!((sent.seq, sent.ack, &sent.payload), (lost.seq, lost.ack, &lost.payload));
    assert_eq!(scene.runner.maps.flows()?, [flow], "the client's view of time stays");
    assert_eq!(scene.runner.maps.backend_counts(other)?.spliced, 1);
    let stranger = later.clone().seq(BACKEND_ISN + 9);
    assert_eq!(scene.joint(&stranger)?.counted, [(Counter::DropDuplicateSynAck, 1)]);

    scene.xdp(&scene.response(other, 0, PSH, b"HTTP"))?;
    assert_eq!(scene.xdp(&later)?.counted, [(Counter::DropDuplicateSynAck, 1)], "it has begun to answer");
    Ok(())
}
