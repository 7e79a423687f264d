//! HTTP/2 without TLS, of which nothing can be read.

use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::service::Affinity;
use tests::frame::PSH;
use tests::scene::Scene;
use tests::table::{steer, with_header, with_token};

/// What a client begins with (RFC 9113 §3.4), and its settings.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";

#[test]
fn the_beginning_of_http2_is_counted_and_bound_at_once() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let counted = [Counter::NewSession, Counter::Bound, Counter::Http2];
    for len in [4, 5, 8, 9, 15, 16, 24, PREFACE.len()] {
        assert_eq!(steer(&mut scene, &PREFACE[..len])?.counted, counted, "{len}");
    }
    // Whatever stands in its frames.
    let token = scene.runner.setup.token(2, 7);
    let frames = [PREFACE, &with_token(&token)].concat();
    assert_eq!(steer(&mut scene, &frames)?.counted, counted);
    scene.runner.change(|setup| setup.services[0].affinity = Affinity::Hashed as u8)?;
    assert_eq!(steer(&mut scene, PREFACE)?.counted, counted);
    Ok(())
}

#[test]
fn what_only_looks_like_it_is_a_request() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let token = scene.runner.setup.token(2, 7);
    for line in
        ["PRI /x HTTP/1.1", "PRI * HTTP/1.1", "PROPFIND / HTTP/1.1", "PRINT / HTTP/1.1", "P / HTTP/1.1"]
    {
        let request = format!("{line}\r\nCookie: lb={token}\r\n\r\n");
        let steered = steer(&mut scene, request.as_bytes())?;
        assert_eq!(
            (steered.slot, &steered.counted[..]),
            (2, &[Counter::AffinityHit, Counter::Bound][..]),
            "{line}"
        );
    }
    for part in ["P", "PR", "PRI", "PROPF", "PRI /"] {
        let outcome = scene.xdp(&scene.segment(0, PSH, part.as_bytes()))?;
        assert!(outcome.counted(Counter::HeadAwaited), "{part}: {outcome:?}");
        scene.runner.maps.forget()?;
    }
    Ok(())
}

/// Where a request goes, and whether it is counted as one that asks for HTTP/2 when it is sent there.
fn asks(scene: &mut Scene, request: &[u8]) -> Result<(u16, bool)> {
    let slot = scene.bind(request)?;
    scene.xdp(&scene.syn_ack(slot))?;
    let outcome = scene.joint(&scene.syn_ack(slot))?;
    assert!(outcome.counted(Counter::Spliced), "{outcome:?}");
    scene.runner.maps.forget()?;
    Ok((slot, outcome.counted(Counter::Http2Upgrade)))
}

#[test]
fn a_request_that_asks_for_http2_is_counted() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let token = scene.runner.setup.token(2, 7);
    for line in [
        "Upgrade: h2c",
        "upgrade:h2c",
        "UPGRADE: H2C",
        "Upgrade: websocket, h2c",
        "Upgrade:\th2c ,websocket",
        "User-Agent: curl\r\nUpgrade: h2c",
        "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__",
    ] {
        assert!(asks(&mut scene, &with_header(line))?.1, "{line}");
        for line in [format!("Cookie: lb={token}\r\n{line}"), format!("{line}\r\nCookie: lb={token}")] {
            assert_eq!(asks(&mut scene, &with_header(&line))?, (2, true), "{line}");
        }
    }
    Ok(())
}

#[test]
fn other_requests_do_not_ask_for_it() -> Result<()> {
    let mut scene = Scene::new(4)?;
    for line in [
        "Upgrade: websocket",
        "Upgrade-Insecure-Requests: 1",
        "Upgrade: h2cx",
        "Upgrade: xh2c",
        "Upgrade:",
        "X-Upgrade: h2c",
        "Updater: h2c",
        "Upgrade: a\r\nX: h2c",
    ] {
        assert!(!asks(&mut scene, &with_header(line))?.1, "{line}");
    }
    // In a body.
    let request = b"POST / HTTP/1.1\r\nContent-Length: 20\r\n\r\nx: y\r\nUpgrade: h2c\r\n";
    assert!(!asks(&mut scene, request)?.1);
    Ok(())
}

/// Nobody serves: what answers HTTP/1 would be no answer.
#[test]
fn a_client_of_http2_that_nobody_serves_is_reset() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.runner.change(|setup| setup.set_state(0, lb_common::backend::State::Down))?;
    let outcome = scene.xdp(&scene.first(PREFACE))?;
    assert!(outcome.counted(Counter::ResetNoBackend), "{outcome:?}");
    Ok(())
}
