//! What stands in packets and is read by code that the host has, too.

use super::take;
use anyhow::{Result, ensure};
use lb_common::quic_lb::{self, MAX_ID, Server};
use lb_common::tcp::{MAX_OPTIONS, NO_WINDOW_SCALE, OPTIONS_ROOM, Options};
use lb_userspace::server::datagram::{Request, Response};

pub(super) fn datagram(input: &[u8]) -> Result<()> {
    if let Ok(request) = Request::parse(input) {
        ensure!(request.to_bytes() == input, "{request:?} is written in two ways");
    }
    if let Ok(response) = Response::parse(input) {
        ensure!(response.to_bytes() == input, "{response:?} is written in two ways");
    }
    Ok(())
}

pub(super) fn options(input: &[u8]) -> Result<()> {
    let input = &input[..input.len().min(MAX_OPTIONS)];
    let mut area = [0xee; OPTIONS_ROOM];
    area[..input.len()].copy_from_slice(input);
    let found = Options::parse(&area, input.len() as u32);
    let expected = reference(input);
    ensure!(Options { cursor: 0, ..found } == expected, "{found:?}, expected {expected:?}");
    Ok(())
}

/// RFC 9293 §3.1 and RFC 7323: kinds, lengths, the last of each kind counts; what is malformed ends it.
fn reference(input: &[u8]) -> Options {
    let mut found = Options::NONE;
    let mut at = 0;
    while let Some(kind) = input.get(at).filter(|kind| **kind != 0) {
        if *kind == 1 {
            at += 1;
            continue;
        }
        let Some(option) = input.get(at + 1).and_then(|len| input.get(at..at + usize::from(*len))) else {
            break;
        };
        match option {
            [] | [_] => break,
            [2, 4, high, low] => found.mss = u16::from_be_bytes([*high, *low]),
            [3, 3, scale] => found.window_scale = (*scale).min(NO_WINDOW_SCALE - 1),
            [4, 2] => found.sack_permitted = 1,
            [5, len, ..] if matches!(len, 10 | 18 | 26 | 34) => {
                (found.sack_at, found.sack_blocks) = (at as u8 + 3, (len - 2) / 8);
            }
            [8, 10, ..] => found.timestamps_at = at as u8 + 3,
            _ => {}
        }
        at += option.len();
    }
    found
}

pub(super) fn connection_id(mut input: &[u8]) -> Result<()> {
    let [rotation, server, nonce, low, secret, key @ ..]: [u8; 21] = take(&mut input);
    let key: [u8; 16] = key;
    let key = (secret & 1 == 1).then_some(&key);
    let Ok(config) = quic_lb::Config::new(rotation, server.into(), nonce.into(), key) else {
        let (server, nonce) = (usize::from(server), usize::from(nonce));
        let legal = rotation < 7 && (1..=15).contains(&server) && (4..=18).contains(&nonce);
        ensure!(!legal || server + nonce >= MAX_ID, "{rotation}, {server} and {nonce} bytes are refused");
        return Ok(());
    };
    let text: [u8; MAX_ID] = take(&mut input);
    let (server, rest) = text.split_at(server.into());
    let id = config.encode(server, &rest[..nonce.into()], low);
    ensure!(id.len() == config.id_len() && id[0] >> 5 == rotation, "{id:?} is no id of {config:?}");
    ensure!(
        config.decode(&id, 7) == Server::new(7, server),
        "{config:?}: server {server:?} does not come back"
    );
    ensure!(config.decode(&id[..id.len() - 1], 7).is_none(), "an id that is too short names a server");
    // Whatever comes, it names some server, or is too short.
    ensure!(config.decode(input, 7).is_some() == (input.len() >= config.id_len()), "{input:?}");
    Ok(())
}
