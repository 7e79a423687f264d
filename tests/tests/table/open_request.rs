//! Heads are learned from in answer to a request alone, and never from a body, whatever that looks like.

use anyhow::Result;
use lb_common::counter::Counter;
use tests::frame::PSH;
use tests::learned::{LEARNED, NAME, PLAIN, connect, counted, head, homes, request, scene, tag_of};
use tests::scene::Scene;

/// A connection: where both sides are in their streams.
struct Talk {
    scene: Scene,
    slot: u16,
    asked: u32,
    said: u32,
}

impl Talk {
    fn begin(first: &[u8]) -> Result<Self> {
        let mut scene = scene(2)?;
        let (slot, _) = connect(&mut scene, first)?;
        Ok(Self { scene, slot, asked: first.len() as u32, said: 0 })
    }

    fn ask(&mut self, payload: &[u8]) -> Result<()> {
        self.scene.xdp(&self.scene.segment(self.asked, PSH, payload))?;
        self.asked += payload.len() as u32;
        Ok(())
    }

    fn say(&mut self, payload: &[u8]) -> Result<Vec<Counter>> {
        let outcome = self.scene.xdp(&self.scene.response(self.slot, self.said, PSH, payload))?;
        assert_eq!(outcome.segment().payload, payload);
        self.said += payload.len() as u32;
        Ok(counted(&outcome))
    }

    fn knows(&self, value: &str) -> Result<bool> {
        Ok(homes(&self.scene)?.contains(&(tag_of(&self.scene, value), self.slot)))
    }
}

fn sets(value: &str) -> Vec<u8> {
    head(&[&format!("Set-Cookie: {NAME}={value}")])
}

fn with_length(length: usize) -> Vec<u8> {
    head(&["Content-Type: text/plain", &format!("content-length:\t{length}")])
}

/// An upload that its owner fetches again: segments of it begin as responses do.
#[test]
fn a_body_that_looks_like_a_response_teaches_nothing() -> Result<()> {
    let mut talk = Talk::begin(&request(None))?;
    talk.say(&head(&["Transfer-Encoding: chunked"]))?;
    for n in 0..10 {
        assert_eq!(talk.say(&sets(&format!("body-{n}")))?, PLAIN);
        assert_eq!(talk.say(b"Set-Cookie: JSESSIONID=line\r\n\r\n")?, PLAIN);
    }
    assert_eq!(homes(&talk.scene)?, []);
    // The next request is answered as ever.
    talk.ask(&request(None))?;
    assert_eq!(talk.say(&sets("next"))?, LEARNED);
    Ok(())
}

/// The owner asks for something else while the body is on its way.
#[test]
fn a_request_that_was_sent_ahead_opens_no_body() -> Result<()> {
    let mut talk = Talk::begin(&request(None))?;
    let body: Vec<Vec<u8>> = (0..10).map(|n| sets(&format!("body-{n}"))).collect();
    talk.say(&with_length(body.concat().len()))?;
    for part in &body {
        talk.ask(&request(None))?;
        assert_eq!(talk.say(part)?, PLAIN);
    }
    assert_eq!(homes(&talk.scene)?, []);
    assert_eq!(talk.say(&sets("next"))?, LEARNED, "behind the body");
    assert!(talk.knows("next")?);
    Ok(())
}

/// The line of the length, or its field's name, is cut.
#[test]
fn the_length_of_a_body_is_known_wherever_its_line_is_cut() -> Result<()> {
    let body = sets("body");
    let whole = with_length(body.len());
    for cut in 8..whole.len() {
        let mut talk = Talk::begin(&request(None))?;
        talk.say(&whole[..cut])?;
        talk.say(&whole[cut..])?;
        talk.ask(&request(None))?;
        assert_eq!(talk.say(&body)?, PLAIN, "cut at {cut}");
        assert_eq!(talk.say(&sets("next"))?, LEARNED, "cut at {cut}");
    }
    Ok(())
}

/// What has no body may have a length all the same: what follows is a head.
#[test]
fn a_response_without_a_body_hides_no_response() -> Result<()> {
    let length = "Content-Length: 100000";
    let bare = |status: &str| format!("HTTP/1.1 {status}\r\n{length}\r\n\r\n").into_bytes();
    let head_request = b"HEAD / HTTP/1.1\r\nHost: shop\r\n\r\n".to_vec();
    for (first, answer) in [
        (head_request, head(&[length])),
        (request(None), bare("304 Not Modified")),
        (request(None), bare("204 No Content")),
        (request(None), with_length(0)),
    ] {
        let mut talk = Talk::begin(&first)?;
        talk.say(&answer)?;
        talk.ask(&request(None))?;
        assert_eq!(talk.say(&sets("next"))?, LEARNED, "{}", String::from_utf8_lossy(&answer));
    }
    Ok(())
}

/// Interim responses answer nothing, wherever they are cut (RFC 9110 §15.2).
#[test]
fn a_response_behind_an_interim_one_is_learned_wherever_they_are_cut() -> Result<()> {
    let interim = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n";
    let whole = [&interim[..], interim, &sets("v")].concat();
    for cut in 8..whole.len() {
        let mut talk = Talk::begin(&request(None))?;
        talk.say(&whole[..cut])?;
        talk.say(&whole[cut..])?;
        assert!(talk.knows("v")?, "cut at {cut}");
        // It was the answer: nothing is open.
        assert_eq!(talk.say(&sets("w"))?, PLAIN, "cut at {cut}");
    }
    Ok(())
}

/// A connection that speaks another protocol (RFC 9110 §15.2.2).
#[test]
fn a_connection_that_was_upgraded_teaches_nothing() -> Result<()> {
    let mut talk = Talk::begin(&request(None))?;
    talk.say(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n")?;
    for _ in 0..3 {
        talk.ask(&request(None))?;
        assert_eq!(talk.say(&sets("echo"))?, PLAIN);
    }
    assert_eq!(homes(&talk.scene)?, []);
    Ok(())
}

/// Two responses to requests that were sent ahead, in one segment: the body of the first stands between them.
#[test]
fn a_response_behind_a_body_in_the_same_segment_is_learned() -> Result<()> {
    let mut talk = Talk::begin(&request(None))?;
    talk.ask(&request(None))?;
    let both = [&with_length(4)[..], b"body", &sets("v")].concat();
    assert_eq!(talk.say(&both)?, LEARNED);
    assert!(talk.knows("v")?);
    Ok(())
}
