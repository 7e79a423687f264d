//! Connections that carry several users' requests: what a response says of the cookie is said of its own request's session.

use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::home::Asked;
use std::collections::BTreeSet;
use tests::frame::PSH;
use tests::learned::{
    FORGOTTEN, LEARNED, NAME, PLAIN, connect, counted, head, homes, request, respond, scene, session, tag_of,
};
use tests::runner::Verdict;
use tests::scene::Scene;

/// A connection in use: where both sides are in their streams.
struct Shared {
    scene: Scene,
    slot: u16,
    asked: u32,
    said: u32,
}

impl Shared {
    /// Both sessions are known, and the connection has begun with a request, which was answered.
    fn begin(first: &[u8]) -> Result<Self> {
        let mut scene = scene(3)?;
        for value in ["one", "two"] {
            let (slot, _) = connect(&mut scene, &request(None))?;
            respond(&scene, slot, &[&head(&[&format!("Set-Cookie: {NAME}={value}")])])?;
        }
        let (slot, _) = connect(&mut scene, first)?;
        let mut shared = Self { scene, slot, asked: first.len() as u32, said: 0 };
        assert_eq!(shared.say(&head(&["Content-Length: 0"]))?, PLAIN);
        Ok(shared)
    }

    /// Sends a segment of the client, which reaches the backend as it is.
    fn send_at(&self, at: u32, payload: &[u8]) -> Result<()> {
        let outcome = self.scene.xdp(&self.scene.segment(at, PSH, payload))?;
        // Where the other session is at home is chance; `forms` tests how requests for elsewhere are counted.
        let counters = counted(&outcome).into_iter().filter(|counter| *counter != Counter::KeptElsewhere);
        let counters: Vec<_> = counters.collect();
        assert_eq!((outcome.verdict, counters), (Verdict::Redirect, vec![Counter::FromClient]));
        assert_eq!(outcome.segment().payload, payload);
        Ok(())
    }

    fn ask(&mut self, payload: &[u8]) -> Result<()> {
        self.send_at(self.asked, payload)?;
        self.asked += payload.len() as u32;
        Ok(())
    }

    fn say(&mut self, payload: &[u8]) -> Result<Vec<Counter>> {
        let outcome = self.scene.xdp(&self.scene.response(self.slot, self.said, PSH, payload))?;
        assert_eq!(outcome.segment().payload, payload);
        self.said += payload.len() as u32;
        Ok(counted(&outcome))
    }

    /// A response that deletes the cookie.
    fn delete(&mut self) -> Result<Vec<Counter>> {
        self.say(&head(&[&format!("Set-Cookie: {NAME}=; Max-Age=0")]))
    }

    /// Which of the two sessions are known.
    fn known(&self) -> Result<Vec<&'static str>> {
        let tags: BTreeSet<_> = homes(&self.scene)?.into_iter().map(|(tag, _)| tag).collect();
        Ok(["one", "two"].into_iter().filter(|value| tags.contains(&tag_of(&self.scene, value))).collect())
    }
}

#[test]
fn the_session_of_the_last_request_is_forgotten() -> Result<()> {
    // A proxy's connection.
    let mut shared = Shared::begin(&session("one"))?;
    shared.ask(&session("two"))?;
    assert_eq!(shared.delete()?, FORGOTTEN);
    assert_eq!(shared.known()?, ["one"]);
    // Again, there is nothing left to forget.
    shared.ask(&session("two"))?;
    assert_eq!(shared.delete()?, PLAIN);
    shared.ask(&session("one"))?;
    assert_eq!(shared.delete()?, FORGOTTEN);
    assert_eq!(shared.known()?, [""; 0]);
    Ok(())
}

/// A browser opens several connections before it has a session, and logs out on any of them.
#[test]
fn a_connection_that_began_without_a_session_may_end_one() -> Result<()> {
    let mut shared = Shared::begin(&request(None))?;
    shared.ask(&session("two"))?;
    assert_eq!(shared.delete()?, FORGOTTEN);
    assert_eq!(shared.known()?, ["one"]);
    Ok(())
}

#[test]
fn a_request_without_a_session_ends_none() -> Result<()> {
    let mut shared = Shared::begin(&session("one"))?;
    shared.ask(&request(None))?;
    assert_eq!(shared.delete()?, PLAIN);
    assert_eq!(shared.known()?, ["one", "two"]);
    Ok(())
}

/// What is handed out is the session of the connection until the next request, which presents it or does not.
#[test]
fn what_a_response_hands_out_may_be_deleted_at_once() -> Result<()> {
    let mut shared = Shared::begin(&session("one"))?;
    shared.ask(&request(None))?;
    assert_eq!(shared.say(&head(&[&format!("Set-Cookie: {NAME}=three")]))?, LEARNED);
    shared.ask(&session("three"))?;
    assert_eq!(shared.delete()?, FORGOTTEN);
    assert_eq!(shared.known()?, ["one", "two"]);
    Ok(())
}

/// Requests sent ahead (RFC 9112 §9.3.2): whose the response is, is known again when only the last one waits.
#[test]
fn an_answer_to_an_earlier_request_forgets_nobody() -> Result<()> {
    for interim in [false, true] {
        let mut shared = Shared::begin(&request(None))?;
        shared.ask(&session("one"))?;
        shared.ask(&session("two"))?;
        if interim {
            // It answers nothing yet.
            shared.say(b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n")?;
        }
        assert_eq!(shared.delete()?, PLAIN, "{interim}");
        assert_eq!(shared.known()?, ["one", "two"]);
        assert_eq!(shared.delete()?, FORGOTTEN, "{interim}");
        assert_eq!(shared.known()?, ["one"]);
    }
    Ok(())
}

/// A head whose end comes in a later segment answers once, too.
#[test]
fn a_response_in_pieces_answers_once() -> Result<()> {
    let mut shared = Shared::begin(&request(None))?;
    for _ in 0..3 {
        shared.ask(&session("one"))?;
        let whole = head(&["Content-Length: 0"]);
        let (first, rest) = whole.split_at(30);
        shared.say(first)?;
        shared.say(rest)?;
    }
    shared.ask(&session("one"))?;
    shared.ask(&session("two"))?;
    assert_eq!(shared.delete()?, PLAIN, "an answer to the one before it");
    assert_eq!(shared.delete()?, FORGOTTEN);
    assert_eq!(shared.known()?, ["one"]);
    Ok(())
}

#[test]
fn a_request_sent_again_counts_once() -> Result<()> {
    let mut shared = Shared::begin(&request(None))?;
    let at = shared.asked;
    shared.ask(&session("one"))?;
    shared.send_at(at, &session("one"))?;
    assert_eq!(shared.say(&head(&["Content-Length: 0"]))?, PLAIN);
    shared.ask(&session("two"))?;
    // The first one once more: it was delayed.
    shared.send_at(at, &session("one"))?;
    assert_eq!(shared.delete()?, FORGOTTEN);
    assert_eq!(shared.known()?, ["one"]);
    Ok(())
}

/// What begins a request, and what only looks a little like it, which is nobody's.
#[test]
fn requests_are_told_from_what_they_carry() -> Result<()> {
    let rows: [(&str, bool); 19] = [
        ("GET / HTTP/1.1", true),
        ("HEAD /a?b=c HTTP/1.1", true),
        ("POST /a HTTP/1.1", true),
        ("PUT /a HTTP/1.0", true),
        ("PATCH /a HTTP/1.1", true),
        ("DELETE /a HTTP/1.1", true),
        ("OPTIONS * HTTP/1.1", true),
        ("GET http://shop/ HTTP/1.1", true),
        ("TRACE HTTP://shop/ HTTP/1.1", true),
        ("PROPFIND / HTTP/1.1", true),
        ("VERSION-CONTROL /a HTTP/1.1", false),
        ("BASELINECONTROLS OF /a", false),
        ("get / HTTP/1.1", false),
        ("GET it done by Monday", false),
        ("THE END", false),
        ("GO /to HTTP/1.1", false),
        ("GET\t/ HTTP/1.1", false),
        ("AAAAAAAAAAAAAAAA /", false),
        ("{\"GET /\": 1}", false),
    ];
    for (line, is_request) in rows {
        let mut shared = Shared::begin(&session("one"))?;
        shared.ask(format!("{line}\r\nHost: shop\r\nCookie: {NAME}=two\r\n\r\n").as_bytes())?;
        assert_eq!(shared.delete()?, if is_request { FORGOTTEN } else { PLAIN }, "{line}");
        assert_eq!(shared.known()?, if is_request { &["one"][..] } else { &["one", "two"] }, "{line}");
    }
    Ok(())
}

/// Bodies, empty segments, and segments larger than what is looked at.
#[test]
fn segments_of_every_size_pass() -> Result<()> {
    let mut shared = Shared::begin(&session("one"))?;
    for len in [0, 1, 7, 8, 17, 18, 19, 1_460, 2_920, 2_921, 3_400] {
        let mut payload = b"GET / HTTP/1.1\r\nX: ".to_vec();
        payload.resize(payload.len() + 3_400, b'x');
        payload.truncate(len);
        let outcome = shared.scene.xdp(&shared.scene.segment(shared.asked, PSH, &payload))?;
        assert_eq!(counted(&outcome), [Counter::FromClient], "{len}");
        assert_eq!(outcome.segment().payload, payload, "{len}");
        shared.asked += len as u32;
    }
    // The cookie stands behind what is looked at: the request is nobody's.
    let far = format!("GET / HTTP/1.1\r\nX: {}\r\nCookie: {NAME}=one\r\n\r\n", "x".repeat(3_000));
    shared.ask(far.as_bytes())?;
    shared.delete()?;
    assert_eq!(shared.known()?, ["one", "two"]);
    Ok(())
}

/// After 65,536 requests on one connection the counts begin anew.
#[test]
fn a_connection_may_carry_any_number_of_requests() -> Result<()> {
    let mut shared = Shared::begin(&session("one"))?;
    let maps = &mut shared.scene.runner.maps;
    let index = maps.index_of(shared.scene.client.port())?;
    let asked = maps.asked(index)?;
    assert_eq!((asked.asked, asked.answered), (1, 1));
    maps.set_asked(index, &Asked { asked: u16::MAX, answered: u16::MAX, ..asked })?;
    shared.ask(&session("one"))?;
    shared.ask(&session("two"))?;
    assert_eq!(shared.delete()?, PLAIN);
    assert_eq!(shared.delete()?, FORGOTTEN);
    assert_eq!(shared.known()?, ["one"]);
    Ok(())
}

/// What a response hands out is not the session of a request that was sent behind its own.
#[test]
fn what_an_earlier_answer_hands_out_is_not_what_the_last_one_deletes() -> Result<()> {
    let mut shared = Shared::begin(&request(None))?;
    shared.ask(&request(None))?;
    shared.ask(&session("two"))?;
    assert_eq!(shared.say(&head(&[&format!("Set-Cookie: {NAME}=three")]))?, LEARNED);
    assert_eq!(shared.delete()?, FORGOTTEN);
    assert_eq!(shared.known()?, ["one"]);
    assert!(homes(&shared.scene)?.iter().any(|(tag, _)| *tag == tag_of(&shared.scene, "three")));
    Ok(())
}

/// A request that was not seen, because it does not begin a segment, is nobody's; so is its response.
#[test]
fn an_answer_to_a_request_that_was_not_seen_forgets_nobody() -> Result<()> {
    let mut shared = Shared::begin(&session("one"))?;
    for _ in 0..3 {
        shared.ask(format!("\r\nGET / HTTP/1.1\r\nCookie: {NAME}=two\r\n\r\n").as_bytes())?;
        assert_eq!(shared.delete()?, PLAIN);
    }
    assert_eq!(shared.known()?, ["one", "two"]);
    // Later ones are told apart as before, sent ahead or not.
    shared.ask(&session("one"))?;
    shared.ask(&session("two"))?;
    assert_eq!(shared.delete()?, PLAIN);
    assert_eq!(shared.delete()?, FORGOTTEN);
    assert_eq!(shared.known()?, ["one"]);
    Ok(())
}

/// A response that was lost behind the balancer comes twice.
#[test]
fn an_answer_sent_again_answers_no_later_request() -> Result<()> {
    let mut shared = Shared::begin(&session("one"))?;
    shared.said = 0;
    assert_eq!(shared.say(&head(&["Content-Length: 0"]))?, PLAIN);
    shared.ask(&session("one"))?;
    shared.ask(&session("two"))?;
    assert_eq!(shared.delete()?, PLAIN, "an answer to the one before it");
    assert_eq!(shared.delete()?, FORGOTTEN);
    assert_eq!(shared.known()?, ["one"]);
    Ok(())
}

/// Half of all sequence numbers lie behind another one; no window is larger than a quarter of them (RFC 7323 §2.3).
#[test]
fn a_request_behind_a_long_upload_is_seen() -> Result<()> {
    for gap in [0x4000_0000, 0x9000_0000, 0xbfff_0000_u32] {
        let mut shared = Shared::begin(&session("one"))?;
        shared.asked += gap;
        shared.ask(&session("two"))?;
        assert_eq!(shared.delete()?, FORGOTTEN, "{gap:x}");
        assert_eq!(shared.known()?, ["one"], "{gap:x}");
    }
    Ok(())
}
