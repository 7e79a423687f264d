//! A scene whose service learns: from heads of responses, and what requests present.

use crate::frame::PSH;
use crate::runner::{Outcome, Verdict};
use crate::scene::{ISN, SERVICE, Scene};
use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::home::{Home, tag};
use lb_common::service::{Affinity, Service};

/// The cookie.
pub const NAME: &str = "JSESSIONID";
/// Ticks after which a session is forgotten.
pub const IDLE: u32 = 1_000;
/// What is counted for a segment that hands a key out...
pub const LEARNED: &[Counter] = &[Counter::Learned, Counter::FromBackend];
/// ...for one that says nothing of it...
pub const PLAIN: &[Counter] = &[Counter::FromBackend];
/// ...and for one that takes it back.
pub const FORGOTTEN: &[Counter] = &[Counter::Forgotten, Counter::FromBackend];

/// Makes a service learn.
pub fn learns(service: &mut Service) {
    service.affinity = Affinity::Learned as u8;
    service.learned_ticks = IDLE;
    assert!(service.set_cookie_name(NAME));
}

/// A scene with a service that learns.
pub fn scene(backends: u16) -> Result<Scene> {
    let mut scene = Scene::new(backends)?;
    scene.runner.change(|setup| learns(&mut setup.services[0]))?;
    Ok(scene)
}

/// Names of the counters that a run moved.
pub fn counted<V>(outcome: &Outcome<V>) -> Vec<Counter> {
    outcome.counted.iter().map(|(counter, _)| *counter).collect()
}

/// A request, with a cookie or without.
pub fn request(cookie: Option<&str>) -> Vec<u8> {
    let line = cookie.map_or(String::new(), |cookie| format!("Cookie: a=b; {cookie}\r\n"));
    format!("GET / HTTP/1.1\r\nHost: shop\r\n{line}\r\n").into_bytes()
}

/// A request of a session.
pub fn session(value: &str) -> Vec<u8> {
    request(Some(&format!("{NAME}={value}")))
}

/// Begins another connection, from a port that was not in use. Returns the slot and why it was chosen.
pub fn connect(scene: &mut Scene, payload: &[u8]) -> Result<(u16, Counter)> {
    scene.client.set_port(scene.client.port() + 1);
    let bound = scene.xdp(&scene.first(payload))?;
    assert!(bound.verdict == Verdict::Redirect && bound.counted(Counter::Bound), "{bound:?}");
    let slot = scene.slot_of(&bound.segment());
    scene.xdp(&scene.syn_ack(slot))?;
    let joined = scene.joint(&scene.syn_ack(slot))?;
    assert!(joined.counted(Counter::Spliced), "{joined:?}");
    Ok((slot, bound.counted[0].0))
}

/// Sees to it that a request of the client waits for its answer.
pub fn ask(scene: &Scene) -> Result<()> {
    let asked = scene.runner.maps.asked(scene.runner.maps.index_of(scene.client.port())?)?;
    if !asked.is_open() {
        let at = asked.at.wrapping_sub(ISN.wrapping_add(1)).wrapping_add(1_000);
        scene.xdp(&scene.segment(at, PSH, &request(None)))?;
    }
    Ok(())
}

/// Sends what a backend says in answer to a request, in segments; returns what was counted for each. The segments reach the client as
/// they are.
pub fn respond(scene: &Scene, slot: u16, parts: &[&[u8]]) -> Result<Vec<Vec<Counter>>> {
    ask(scene)?;
    let mut at = 0;
    let mut all = Vec::new();
    for part in parts {
        let outcome = scene.xdp(&scene.response(slot, at, PSH, part))?;
        assert_eq!(outcome.verdict, Verdict::Redirect, "{outcome:?}");
        assert_eq!(outcome.segment().payload, *part);
        all.push(counted(&outcome));
        at += part.len() as u32;
    }
    Ok(all)
}

/// The head of a response, with more fields.
pub fn head(lines: &[&str]) -> Vec<u8> {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("HTTP/1.1 200 OK\r\nServer: any\r\n{lines}\r\n").into_bytes()
}

/// Starts over: no flows, no learned sessions.
pub fn forget(scene: &mut Scene) -> Result<()> {
    scene.runner.maps.forget()?;
    for (index, _) in scene.runner.maps.homes()? {
        scene.runner.maps.set_home(index, &Home::default())?;
    }
    Ok(())
}

pub fn tag_of(scene: &Scene, value: &str) -> u64 {
    tag(&scene.runner.setup.settings.home_key, SERVICE, value.as_bytes())
}

/// Slots of the sessions that are known, by their tags.
pub fn homes(scene: &Scene) -> Result<Vec<(u64, u16)>> {
    Ok(scene.runner.maps.homes()?.iter().map(|(_, home)| (home.tag, home.slot)).collect())
}

/// The present tick.
pub fn now(scene: &Scene) -> Result<u32> {
    scene.xdp(&scene.next(0, b""))?;
    Ok(scene.runner.maps.flows()?.iter().map(|flow| flow.last_seen).max().expect("a flow is there"))
}
