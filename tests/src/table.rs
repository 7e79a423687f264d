//! Tables about packets: a row is what goes in and what must come of it.

use crate::frame::{FIN, Opt, PSH, Segment};
use crate::runner::Verdict;
use crate::scene::Scene;
use anyhow::Result;
use lb_common::counter::Counter;

/// One row of a table about XDP: what goes in and what must come of it.
pub struct Row {
    pub name: String,
    pub frame: Vec<u8>,
    pub verdict: Verdict,
    pub counted: Vec<(Counter, u64)>,
}

impl Row {
    pub fn new(name: impl ToString, frame: Vec<u8>, verdict: Verdict, counter: Counter) -> Self {
        Self { name: name.to_string(), frame, verdict, counted: vec![(counter, 1)] }
    }
}

/// Runs every row; says which ones failed. A frame that is dropped or passed must come out as it went in.
///
/// # Panics
/// When a row fails.
pub fn check_rows(scene: &Scene, rows: impl IntoIterator<Item = Row>) -> Result<()> {
    let mut failures = String::new();
    for row in rows {
        let outcome = scene.runner.xdp(&row.frame)?;
        let touched = matches!(row.verdict, Verdict::Pass | Verdict::Drop) && outcome.frame != row.frame;
        if outcome.verdict != row.verdict || outcome.counted != row.counted || touched {
            failures += &format!(
                "\n{}: {:?}{}; expected {:?} {:?}",
                row.name,
                outcome,
                if touched { " (frame changed)" } else { "" },
                row.verdict,
                row.counted
            );
        }
    }
    assert!(failures.is_empty(), "{failures}");
    Ok(())
}

/// What matters of a segment that the program made itself: the fields that a router may choose are evened out, and
/// options that say nothing are left out.
pub fn essence(segment: &Segment) -> Segment {
    let options = segment.options.iter().filter(|o| !matches!(o, Opt::Nop | Opt::End)).cloned().collect();
    Segment { tos: 0, ttl: 64, id: 0, fragment: 0, padding: 0, options, ..segment.clone() }
}

/// What was counted for a first payload, and where the flow went.
pub struct Steered {
    pub counted: Vec<Counter>,
    pub slot: u16,
}

/// Sends a first payload, checks the SYN that it becomes, and frees the flow again.
///
/// # Panics
/// When it does not become the right SYN.
pub fn steer(scene: &mut Scene, payload: &[u8]) -> Result<Steered> {
    let first = scene.first(payload);
    steer_by(scene, &first)
}

/// The same of a client that has nothing more to say: what is not whole is not waited for.
pub fn steer_all(scene: &mut Scene, payload: &[u8]) -> Result<Steered> {
    let first = scene.segment(0, PSH | FIN, payload);
    steer_by(scene, &first)
}

fn steer_by(scene: &mut Scene, first: &Segment) -> Result<Steered> {
    let outcome = scene.xdp(first)?;
    assert_eq!(outcome.verdict, Verdict::Redirect, "{outcome:?}");
    let syn = outcome.segment();
    let slot = scene.slot_of(&syn);
    assert_eq!(essence(&syn), essence(&scene.offered(slot)));
    scene.runner.maps.forget()?;
    Ok(Steered { counted: outcome.counted.iter().map(|(counter, _)| *counter).collect(), slot })
}

/// A request whose `Cookie` header is this line.
pub fn with_header(line: &str) -> Vec<u8> {
    format!("GET / HTTP/1.1\r\nHost: shop\r\n{line}\r\nAccept: */*\r\n\r\n").into_bytes()
}

/// A request that presents a token.
pub fn with_token(token: &str) -> Vec<u8> {
    with_header(&format!("Cookie: lb={token}"))
}
