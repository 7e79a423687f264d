//! Parsers of user space, and those of lb-common that the programs share with it.

mod http;
mod lbd;
mod packet;
mod state;
mod token;

use super::{Check, Shape, Target};
use anyhow::Result;

macro_rules! parser {
    ($name:literal, $run:path, $about:literal, $words:expr) => {
        Target {
            name: $name,
            about: $about,
            shape: Shape::Bytes,
            rounds: 3000,
            words: $words,
            start: || Ok(boxed($run)),
        }
    };
}

pub const TARGETS: &[Target] = &[
    parser!("token", token::token, "tokens, raw and as text; ids of sessions", &[]),
    parser!("keys", token::keys, "the file with the keys that sign tokens", token::KEY_WORDS),
    parser!(
        "cookie",
        http::cookie,
        "the token among the cookies of a request; cookies that are set",
        http::COOKIE_WORDS
    ),
    parser!("config", lbd::config, "lbd's configuration", lbd::CONFIG_WORDS),
    parser!("control", lbd::control, "requests and answers between lbctl and lbd", lbd::CONTROL_WORDS),
    parser!(
        "record",
        state::record,
        "sessions as the stores hold them, and what sled and Redis keep beside",
        &[]
    ),
    parser!(
        "archive",
        state::archive,
        "lines of `lbctl store export`, imported and exported again",
        state::ARCHIVE_WORDS
    ),
    parser!("datagram", packet::datagram, "requests and responses of the datagram protocol", &[]),
    parser!("options", packet::options, "TCP options", &[]),
    parser!("connection-id", packet::connection_id, "QUIC connection ids with a server id", &[]),
];

fn boxed(run: fn(&[u8]) -> Result<()>) -> Box<dyn Check> {
    Box::new(run)
}

/// The next bytes of an input; zeros behind its end.
pub(super) fn take<const N: usize>(input: &mut &[u8]) -> [u8; N] {
    let mut taken = [0; N];
    let len = input.len().min(N);
    taken[..len].copy_from_slice(&input[..len]);
    *input = &input[len..];
    taken
}
