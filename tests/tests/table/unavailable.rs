//! HTTP clients whose request nobody takes: they are told 503, and may end in peace.

use anyhow::Result;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::flow::{Flow, FlowState};
use lb_common::maglev::NOBODY;
use lb_common::service::{Affinity, Place};
use tests::frame::{ACK, FIN, PSH, RST, Segment};
use tests::runner::{Outcome, Verdict};
use tests::scene::{CLIENT_MAC, ISN, LOCAL_MAC, REQUEST, Scene, TS};
use tests::table::{Row, check_rows, essence};

const LEN: u32 = REQUEST.len() as u32;
const TEXT: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n";
/// What was offered at first, two full segments, in the units that were agreed on.
const WINDOW: u16 = (2 * 1460) >> 7;

fn down(backends: u16) -> Result<Scene> {
    let mut scene = Scene::new(backends)?;
    scene.runner.change(|setup| setup.backends.iter_mut().for_each(|b| b.state = State::Down as u8))?;
    Ok(scene)
}

/// What a client gets that has sent this much: something at an offset behind our SYN-ACK.
fn answer(scene: &Scene, at: u32, heard: u32, flags: u8) -> Segment {
    let segment = scene
        .first(b"")
        .reply()
        .macs(LOCAL_MAC, CLIENT_MAC)
        .seq(scene.cookie().wrapping_add(1).wrapping_add(at))
        .ack(ISN.wrapping_add(1).wrapping_add(heard))
        .flags(ACK | flags)
        .window(WINDOW);
    let segment = Segment { options: Vec::new(), ..segment };
    if scene.stamps { segment.timestamps(scene.echo(), TS + 1) } else { segment }
}

fn told(scene: &Scene, heard: u32) -> Segment {
    answer(scene, 0, heard, PSH | FIN).payload(TEXT)
}

fn acknowledged(scene: &Scene, heard: u32) -> Segment {
    answer(scene, TEXT.len() as u32 + 1, heard, 0)
}

/// A client's segment at an offset, which has read the response and its end.
fn later(scene: &Scene, at: u32, flags: u8, payload: &[u8]) -> Segment {
    let end = scene.cookie().wrapping_add(2 + TEXT.len() as u32);
    scene.segment(at, flags, payload).ack(end)
}

fn assert_says(outcome: &Outcome<Verdict>, counter: Counter, expected: &Segment) {
    assert_eq!(
        (outcome.verdict, &outcome.counted[..]),
        (Verdict::Redirect, &[(counter, 1)][..]),
        "{outcome:?}"
    );
    assert_eq!(essence(&outcome.segment()), essence(expected));
}

fn only_flow(scene: &Scene) -> Result<Flow> {
    let flows = scene.runner.maps.flows()?;
    assert_eq!(flows.len(), 1, "{flows:?}");
    Ok(flows[0])
}

#[test]
fn without_a_ready_backend_the_client_is_told() -> Result<()> {
    for scene in [down(2)?, down(0)?, down(2)?.without_timestamps()] {
        assert_says(&scene.xdp(&scene.first(REQUEST))?, Counter::Unavailable, &told(&scene, LEN));
        let flow = only_flow(&scene)?;
        assert_eq!((flow.head.backend, flow.head.state), (NOBODY, FlowState::Closing as u8));
        assert_eq!(scene.runner.maps.stashes()?.len(), 0);
        scene.runner.maps.flows()?;
    }
    Ok(())
}

/// Whatever the length of the request, the frame gets the length of the response.
#[test]
fn requests_of_every_length_are_told() -> Result<()> {
    let mut scene = down(1)?;
    for len in [18, 19, 50, 98, 99, 100, 101, 111, 112, 500, 1_447] {
        let mut request = b"GET / HTTP/1.1\r\n\r\n".to_vec();
        request.resize(len as usize, b'x');
        let outcome = scene.xdp(&scene.first(&request))?;
        assert!(outcome.counted(Counter::Unavailable), "{len}: {outcome:?}");
        assert_eq!(essence(&outcome.segment()), essence(&told(&scene, len)), "{len}");
        scene.runner.maps.forget()?;
    }
    Ok(())
}

#[test]
fn when_all_refuse_the_client_is_told() -> Result<()> {
    for scene in [Scene::new(3)?, Scene::new(3)?.without_timestamps()] {
        let mut slot = scene.bind(REQUEST)?;
        for _ in 1..3 {
            slot = scene.slot_of(&scene.xdp(&scene.refusal(slot))?.segment());
        }
        assert_says(&scene.xdp(&scene.refusal(slot))?, Counter::Unavailable, &told(&scene, LEN));
        assert_eq!(scene.runner.maps.stashes()?.len(), 0);
        // Late words of any backend reach nobody.
        for slot in 0..3 {
            let late = scene.xdp(&scene.syn_ack(slot))?;
            assert_eq!(late.counted, [(Counter::ResetLateSynAck, 1)], "{late:?}");
            let late = scene.xdp(&scene.refusal(slot))?;
            assert_eq!(late.counted, [(Counter::DropOtherBackend, 1)], "{late:?}");
        }
    }
    Ok(())
}

/// The response was lost: the same again, although a backend is ready by now.
#[test]
fn who_asks_again_is_told_again() -> Result<()> {
    let mut scene = down(2)?;
    scene.xdp(&scene.first(REQUEST))?;
    scene.runner.change(|setup| setup.set_state(0, State::Ready))?;
    for _ in 0..3 {
        assert_says(&scene.xdp(&scene.first(REQUEST))?, Counter::Unavailable, &told(&scene, LEN));
    }
    // With its end, and with more: what is there of it is acknowledged.
    assert_says(&scene.xdp(&scene.next(PSH, b"body"))?, Counter::Unavailable, &told(&scene, LEN + 4));
    let end = scene.segment(LEN + 4, FIN, b"");
    assert_says(&scene.xdp(&end)?, Counter::Unavailable, &told(&scene, LEN + 5));
    // Another connection is served.
    scene.client.set_port(scene.client.port() + 1);
    assert!(scene.xdp(&scene.first(REQUEST))?.counted(Counter::Bound));
    Ok(())
}

/// A client that has read the response: its acknowledgement and its end, each of which may come twice.
#[test]
fn a_client_ends_in_peace() -> Result<()> {
    for scene in [down(1)?, down(1)?.without_timestamps()] {
        scene.xdp(&scene.first(REQUEST))?;
        for _ in 0..2 {
            check_rows(
                &scene,
                [Row::new(
                    "ACK",
                    later(&scene, LEN, 0, b"").bytes(),
                    Verdict::Drop,
                    Counter::UnavailableHeard,
                )],
            )?;
        }
        for _ in 0..2 {
            let outcome = scene.xdp(&later(&scene, LEN, FIN, b""))?;
            assert_says(&outcome, Counter::UnavailableHeard, &acknowledged(&scene, LEN + 1));
        }
        let rst = Segment { options: Vec::new(), ..later(&scene, LEN + 1, RST, b"") };
        check_rows(&scene, [Row::new("RST", rst.bytes(), Verdict::Drop, Counter::UnavailableHeard)])?;
        assert_eq!(only_flow(&scene)?.head.state, FlowState::Closing as u8);
    }
    Ok(())
}

/// The rest of a large request is acknowledged as it comes, in order, and goes nowhere.
#[test]
fn the_rest_of_a_request_is_read() -> Result<()> {
    let scene = down(1)?;
    scene.xdp(&scene.first(REQUEST))?;
    let rows: [(u32, u32, u32); 6] = [
        (0, 1_000, 1_000),
        (1_000, 1_000, 2_000),
        // A gap, what fills it in part, what overlaps, and what is old.
        (3_000, 1_000, 2_000),
        (2_000, 500, 2_500),
        (1_500, 2_000, 3_500),
        (0, 1_000, 3_500),
    ];
    for (at, len, heard) in rows {
        let outcome = scene.xdp(&later(&scene, LEN + at, PSH, &vec![b'x'; len as usize]))?;
        assert_says(&outcome, Counter::UnavailableHeard, &acknowledged(&scene, LEN + heard));
    }
    Ok(())
}

#[test]
fn the_port_may_be_used_again() -> Result<()> {
    let mut scene = down(2)?;
    scene.xdp(&scene.first(REQUEST))?;
    scene.runner.change(|setup| setup.set_state(1, State::Ready))?;
    assert!(scene.xdp(&scene.syn().seq(1))?.counted(Counter::SynAnswered));
    let cookie = scene.runner.setup.cookie(scene.client, tests::scene::SERVICE, 1, scene.agreed);
    let again = scene.first(REQUEST).seq(2).ack(cookie.wrapping_add(1)).options([]);
    let echo = scene.runner.setup.stamp(scene.client, tests::scene::SERVICE, 1);
    let again = again.timestamps(TS + 9, echo);
    let outcome = scene.xdp(&again)?;
    assert!(outcome.counted(Counter::Bound) && scene.slot_of(&outcome.segment()) == 1, "{outcome:?}");
    assert_eq!(only_flow(&scene)?.head.backend, 1);
    Ok(())
}

/// Only who speaks HTTP is told; others are reset.
#[test]
fn each_place_of_a_key_says_who_speaks_http() -> Result<()> {
    let mut scene = down(1)?;
    let rows = [
        (Affinity::Signed, Place::Cookie, Counter::Unavailable),
        (Affinity::Hashed, Place::Cookie, Counter::Unavailable),
        (Affinity::Learned, Place::Cookie, Counter::Unavailable),
        (Affinity::Hashed, Place::Header, Counter::Unavailable),
        (Affinity::Signed, Place::Query, Counter::Unavailable),
        (Affinity::Hashed, Place::Sni, Counter::ResetNoBackend),
    ];
    for (affinity, place, expected) in rows {
        scene.runner.change(|setup| {
            setup.services[0].affinity = affinity as u8;
            setup.services[0].place = place as u8;
        })?;
        let outcome = scene.xdp(&scene.first(REQUEST))?;
        assert!(outcome.counted(expected), "{affinity:?} {place:?}: {outcome:?}");
        scene.runner.maps.forget()?;
    }
    Ok(())
}

/// A former backend has acknowledged the request, and has shown the client a later time: the response is not older than that
/// (RFC 7323 §5), for the client has nothing left to repeat, and takes back nothing that was acknowledged.
#[test]
fn a_request_that_was_moved_in_vain_is_told_so() -> Result<()> {
    const TIMESTAMP_JUMP: u32 = 1 << 24;
    let mut scene = Scene::new(2)?;
    scene.runner.change(|setup| setup.services[0].replay = 1)?;
    let slot = scene.bind(REQUEST)?;
    scene.xdp(&scene.syn_ack(slot))?;
    assert!(scene.joint(&scene.syn_ack(slot))?.counted(Counter::Spliced));
    assert!(scene.xdp(&scene.response(slot, 0, 0, b""))?.counted(Counter::FromBackend), "it acknowledges");
    assert!(scene.xdp(&scene.response(slot, 0, RST, b""))?.counted(Counter::Replayed));
    let moved = |segment: Segment, echo| {
        Segment { options: Vec::new(), ..segment }.timestamps(scene.echo().wrapping_add(TIMESTAMP_JUMP), echo)
    };
    let outcome = scene.xdp(&scene.refusal(1 - slot))?;
    assert_says(&outcome, Counter::Unavailable, &moved(told(&scene, LEN), TS + 1));
    let outcome = scene.xdp(&later(&scene, LEN, FIN, b""))?;
    assert_says(&outcome, Counter::UnavailableHeard, &moved(acknowledged(&scene, LEN + 1), TS + 1));
    Ok(())
}

/// What came behind the first segment while a backend was asked is acknowledged with it, a FIN included, up to a gap.
#[test]
fn all_that_was_stashed_is_acknowledged() -> Result<()> {
    type Meanwhile<'a> = &'a [(u32, u8, &'a [u8])];
    let rows: [(Meanwhile, u32); 5] = [
        (&[(0, PSH, b"more")], 4),
        (&[(0, PSH | FIN, b"more")], 5),
        (&[(0, FIN, b"")], 1),
        (&[(100, PSH, b"behind a gap")], 0),
        (&[(4, FIN, b""), (0, PSH, b"more")], 5),
    ];
    for (meanwhile, heard) in rows {
        let scene = Scene::new(1)?;
        let slot = scene.bind(REQUEST)?;
        for (at, flags, payload) in meanwhile {
            let kept = scene.xdp(&scene.segment(LEN + at, *flags, payload))?;
            assert!(kept.counted(Counter::Stashed), "{kept:?}");
        }
        let outcome = scene.xdp(&scene.refusal(slot))?;
        assert_says(&outcome, Counter::Unavailable, &told(&scene, LEN + heard));
    }
    Ok(())
}
