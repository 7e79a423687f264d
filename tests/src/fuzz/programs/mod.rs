//! The loaded programs, fed through `BPF_PROG_TEST_RUN`: sequences of frames over live maps, and payloads whose parsers exist in
//! the programs alone, beside a reference in user space.

mod conversation;
mod generate;
mod laws;
mod payload;
mod rig;
pub mod sequence;
mod town;

use super::{Check, Shape, Target};
use crate::dice::Dice;
use anyhow::Result;
use rig::Rig;

/// What payloads of HTTP are made of.
const HTTP_WORDS: &[&str] = &[
    "GET / HTTP/1.1\r\n",
    "Host: a\r\n",
    "Cookie: ",
    "cookie:",
    "lb=",
    "{T0}",
    "{T1}",
    "; ",
    "\r\n",
    "\r\n\r\n",
    "\n",
    " ",
    "\t",
    "?",
    "&",
    "k=",
    "\"",
    "%3D",
    "HTTP/1.1 200 OK\r\n",
    "Set-Cookie: ",
    "set-cookie:",
    "JSESSIONID=",
    "a1b2c3",
    "; Max-Age=0",
    "; Expires=Thu, 01 Jan 1970",
    "; Path=/",
    "Content-Length: 5\r\n",
    "Transfer-Encoding: chunked\r\n",
    "X-Key: ",
    "\u{0}",
    "PROXY TCP4 198.51.100.7 192.0.2.1 40000 80\r\n",
    "PROXY UNKNOWN\r\n",
    "\r\n\r\n\0\r\nQUIT\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "Upgrade: h2c\r\n",
];

const TLS_WORDS: &[&str] = &[
    "\u{16}\u{3}\u{1}",
    "\u{16}\u{3}\u{1}\0\u{1}",
    "\u{1}\0",
    "\0\0",
    "\0\u{0}\0\u{10}",
    "shop.example.org",
    "a.example.org",
    ".",
    "\u{3}\u{3}",
    "\0\u{1}",
];

pub const TARGETS: &[Target] = &[
    Target {
        name: "program",
        about: "the loaded programs: sequences of frames over live maps",
        shape: Shape::Steps,
        rounds: 1500,
        words: &[],
        start: || Ok(Box::new(Sequences { rig: Rig::new()?, seen: Vec::new() })),
    },
    Target {
        name: "head",
        about: "the loaded programs: a token in the head of a request",
        shape: Shape::Bytes,
        rounds: 1500,
        words: HTTP_WORDS,
        start: || payload::target(payload::head),
    },
    Target {
        name: "set-cookie",
        about: "the loaded programs: a key that is learned from the head of a response",
        shape: Shape::Bytes,
        rounds: 1500,
        words: HTTP_WORDS,
        start: || payload::target(payload::set_cookie),
    },
    Target {
        name: "tls",
        about: "the loaded programs: the server's name in a TLS ClientHello",
        shape: Shape::Bytes,
        rounds: 1500,
        words: TLS_WORDS,
        start: || payload::target(payload::client_hello),
    },
    Target {
        name: "proxy",
        about: "the loaded programs: what stands behind a header of the PROXY protocol",
        shape: Shape::Bytes,
        rounds: 1500,
        words: HTTP_WORDS,
        start: || payload::behind_proxy(payload::proxy),
    },
    Target {
        name: "quic",
        about: "the loaded programs: the server id in a QUIC connection id",
        shape: Shape::Bytes,
        rounds: 1500,
        words: &[],
        start: || payload::target(payload::quic),
    },
];

struct Sequences {
    rig: Rig,
    seen: Vec<u16>,
}

impl Check for Sequences {
    fn check(&mut self, input: &[u8]) -> Result<()> {
        let Ok(steps) = sequence::read(input) else { return Ok(()) };
        let played = conversation::play(&mut self.rig, &steps);
        self.seen = self.rig.take_seen();
        played.map(drop)
    }

    fn seen(&self) -> &[u16] {
        &self.seen
    }
}

/// A sequence of one or two others.
pub(super) fn mutate(dice: &mut Dice, input: &[u8], other: &[u8]) -> Vec<u8> {
    let read = |text| sequence::read(text).unwrap_or_default();
    sequence::write(&generate::mutate(dice, read(input), &read(other)))
}
