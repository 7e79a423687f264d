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

/// A client that sends the rest only when the first segment is acknowledged sends that one again.
#[test]
fn a_client_that_waits_is_not_waited_for_twice() -> Result<()> {
    let scene = Scene::new(4)?;
    let token = scene.runner.setup.token(3, 77);
    let head = long_request(&token, 2000);
    begin(&scene, &head)?;
    let outcome = scene.xdp(&scene.first(&head[..FULL]))?;
    assert_eq!(counted(&outcome), [Counter::NewSession, Counter::Bound, Counter::HeadIncomplete]);
    assert_eq!(state(&scene)?, Some(FlowState::Binding));
    // From there on it is a flow like any other.
    let second = scene.segment(FULL as u32, PSH, &head[FULL..]);
    check_rows(&scene, [Row::new("second", second.bytes(), Verdict::Drop, Counter::Stashed)])
}

#[test]
fn whole_heads_and_short_segments_wait_for_nothing() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let mut whole = b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n".to_vec();
    whole.resize(FULL, b'b');
    let short = &long_request("x", 3000)[..FULL - 1];
    let rows: [(&[u8], &[Counter]); 2] = [
        (&whole, &[Counter::NewSession, Counter::Bound]),
        (short, &[Counter::NewSession, Counter::Bound, Counter::HeadIncomplete]),
    ];
    for (payload, expected) in rows {
        assert_eq!(counted(&scene.xdp(&scene.first(payload))?), expected);
        scene.runner.maps.forget()?;
    }
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
