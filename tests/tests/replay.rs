//! A backend that takes a safe request and leaves without a word: another one answers, and the client never knows.

use anyhow::{Context, Result};
use lb_common::counter::Counter;
use lb_common::flow::FlowState;
use std::io::Read;
use std::net::TcpListener;
use tests::client::{Client, get};
use tests::frame::{ACK, FIN, Opt, PSH, RST, Segment};
use tests::runner::{TcVerdict, Verdict};
use tests::scene::{BACKEND_ISN, BACKEND_TS, ISN, REQUEST, Scene, TS, essence};
use tests::server::Server;
use tests::topology::Arms;
use tests::world::World;

fn scene(backends: u16) -> Result<Scene> {
    let mut scene = Scene::new(backends)?;
    scene.runner.change(|setup| setup.services[0].replay = 1)?;
    Ok(scene)
}

/// A connection to a backend that has the request and acknowledged it.
fn waiting(scene: &Scene, request: &[u8]) -> Result<u16> {
    let slot = scene.bind(request)?;
    assert_eq!(scene.joint(&scene.syn_ack(slot))?.verdict, TcVerdict::Redirect);
    assert!(scene.xdp(&scene.response(slot, 0, 0, b""))?.counted(Counter::FromBackend));
    Ok(slot)
}

fn ends(scene: &Scene, slot: u16) -> [Segment; 2] {
    [scene.response(slot, 0, FIN, b""), scene.response(slot, 0, RST, b"")]
}

#[test]
fn an_unanswered_request_goes_to_the_next() -> Result<()> {
    for stamps in [true, false] {
        for which in 0..2 {
            let scene = Scene { stamps, ..scene(2)? };
            let slot = waiting(&scene, REQUEST)?;
            let other = 1 - slot;
            let outcome = scene.xdp(&ends(&scene, slot)[which])?;
            assert_eq!(outcome.verdict, Verdict::Redirect, "{outcome:?}");
            assert_eq!(outcome.counted, [(Counter::Retried, 1), (Counter::Replayed, 1)], "{outcome:?}");
            assert_eq!(essence(&outcome.segment()), essence(&scene.offered(other)));
            // The other one answers: the request is there, and the client sees one unbroken stream.
            let carried = scene.joint(&scene.syn_ack(other))?.segment();
            assert_eq!((&carried.payload[..], carried.seq), (REQUEST, ISN.wrapping_add(1)));
            let answer = scene.response(other, 0, PSH, b"HTTP/1.1 200 OK\r\n\r\n");
            let seen = scene.xdp(&answer)?.segment();
            assert_eq!((seen.seq, seen.ack), (scene.cookie().wrapping_add(1), answer.ack));
            if let Some((val, _)) = seen.timestamp() {
                let before = ISN.wrapping_add(5);
                assert!(val.wrapping_sub(before).cast_signed() > 0, "the client's clock went back: {seen}");
            }
            // What the first one still says is reset.
            let late = scene.xdp(&scene.response(slot, 1, 0, b""))?;
            assert_eq!(late.counted, [(Counter::ResetLateSynAck, 1)], "{late:?}");
        }
    }
    Ok(())
}

/// Sends an end of the connection, which must reach the client as it is.
fn passed_on(name: &str, scene: &Scene, segment: &Segment) -> Result<()> {
    let outcome = scene.xdp(segment)?;
    assert_eq!(outcome.counted, [(Counter::FromBackend, 1)], "{name}: {outcome:?}");
    assert_eq!(outcome.segment().flags, segment.flags, "{name}");
    Ok(())
}

#[test]
fn what_is_not_safe_or_no_longer_whole_is_not_sent_again() -> Result<()> {
    let post = scene(2)?;
    let slot = waiting(&post, b"POST / HTTP/1.1\r\n\r\n")?;
    passed_on("a POST", &post, &post.response(slot, 0, FIN, b""))?;

    let off = Scene::new(2)?;
    let slot = waiting(&off, REQUEST)?;
    passed_on("switched off", &off, &off.response(slot, 0, FIN, b""))?;

    let answered = scene(2)?;
    let slot = waiting(&answered, REQUEST)?;
    answered.xdp(&answered.response(slot, 0, PSH, b"H"))?;
    passed_on("after a first byte", &answered, &answered.response(slot, 1, FIN, b""))?;

    let with_data = scene(2)?;
    let slot = waiting(&with_data, REQUEST)?;
    passed_on("with the whole answer", &with_data, &with_data.response(slot, 0, FIN | PSH, b"answer"))?;

    let longer = scene(2)?;
    let slot = waiting(&longer, REQUEST)?;
    longer.xdp(&longer.next(PSH, b"more than was stashed"))?;
    passed_on("a longer request", &longer, &longer.response(slot, 0, FIN, b""))?;

    let left = scene(2)?;
    let slot = waiting(&left, REQUEST)?;
    left.xdp(&left.next(FIN, b""))?;
    passed_on("after the client's FIN", &left, &left.response(slot, 0, FIN, b""))?;

    let alone = scene(1)?;
    let slot = waiting(&alone, REQUEST)?;
    passed_on("nobody else", &alone, &alone.response(slot, 0, RST, b""))
}

#[test]
fn replays_are_bounded_like_other_tries() -> Result<()> {
    let mut scene = scene(4)?;
    scene.runner.change(|setup| setup.services[0].max_tries = 2)?;
    let slot = waiting(&scene, REQUEST)?;
    let other = scene.slot_of(&scene.xdp(&ends(&scene, slot)[0])?.segment());
    scene.joint(&scene.syn_ack(other))?;
    passed_on("the third", &scene, &ends(&scene, other)[0])?;
    let flow = scene.runner.maps.flows()?[0];
    assert_ne!(flow.head.state, FlowState::Binding as u8);
    Ok(())
}

/// A second backend that lacks what the first had, or has what it lacked.
#[test]
fn the_second_backends_options_are_its_own() -> Result<()> {
    let scene = scene(2)?;
    let slot = waiting(&scene, REQUEST)?;
    scene.xdp(&ends(&scene, slot)[0])?;
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

/// A server that takes the request and hangs up: with a FIN when it has read it, with an RST when it has not.
fn rude(listener: &TcpListener, read: bool) {
    while let Ok((mut stream, _)) = listener.accept() {
        if read {
            let _ = stream.read(&mut [0; 4096]);
        } else {
            // Closed with unread data: the kernel resets.
            let _ = stream.peek(&mut [0]);
        }
    }
}

#[test]
fn real_clients_do_not_notice() -> Result<()> {
    for read in [true, false] {
        let mut world = World::silent(Arms::Several, 2)?;
        world.balancer.change(|setup| setup.services[0].replay = 1)?;
        world.servers.push(Server::start(&world.town.backends[1], "b1")?);
        let address = world.town.backends[0].serves();
        let listener = world.town.backends[0].netns.run(|| TcpListener::bind(address))?;
        let shutdown = listener.try_clone()?;
        let host = std::thread::spawn(move || rude(&listener, read));
        let cookie = format!("Cookie: lb={}\r\n", world.balancer.setup.token(0, 7));
        for _ in 0..50 {
            assert_eq!(get(&world.town.client.netns, &cookie).with_context(|| world.counts())?, "b1");
        }
        let mut client = Client::connect(&world.town.client.netns)?;
        assert_eq!(client.get("/", &cookie)?.body, "b1");
        client.download(300_000)?;
        client.upload(300_000)?;
        let counts = world.balancer.maps.counts()?;
        assert_eq!(counts.get(Counter::Replayed), 51, "{counts:?}");
        assert_eq!(world.town.client.netns.counter("TcpExtPAWSEstab")?, 0);
        assert_eq!(world.balancer.maps.stashes()?.len(), 0, "every stash was given back");
        socket2::SockRef::from(&shutdown).shutdown(std::net::Shutdown::Both)?;
        host.join().expect("the rude server does not panic");
    }
    Ok(())
}
