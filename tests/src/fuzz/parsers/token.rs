//! Tokens and the keys that sign them.

use super::take;
use crate::setup::TOKEN_KEY;
use anyhow::{Result, ensure};
use lb_common::token::{SessionId, TOKEN_LEN, Token, TokenError, decode, encode};
use lb_userspace::session::token::fuzzing;

pub(super) const KEY_WORDS: &[&str] = &[
    "format = 1\n",
    "newest = ",
    "next = ",
    "[[key]]\n",
    "id = ",
    "secret = \"",
    "0123456789abcdef",
    "\"",
    "\n",
    "#",
];

pub(super) fn token(input: &[u8]) -> Result<()> {
    match decode(input) {
        Ok(raw) => ensure!(encode(&raw) == input, "a text is written as another one"),
        Err(TokenError::Text) => {
            let legal = |c: &u8| c.is_ascii_alphanumeric() || *c == b'-' || *c == b'_';
            ensure!(input.len() != 44 || !input.iter().all(legal), "44 characters of base64url are refused");
        }
        Err(other) => anyhow::bail!("a text cannot fail by {other}"),
    }
    if let Some(id) = SessionId::from_hex(input) {
        ensure!(id.to_string().as_bytes() == input.to_ascii_lowercase(), "an id is written as another one");
    }
    forged(input)
}

/// Whatever is signed verifies, and with any bit changed it does not.
fn forged(mut input: &[u8]) -> Result<()> {
    let raw: [u8; TOKEN_LEN] = take(&mut input);
    ensure!(decode(&encode(&raw)) == Ok(raw), "raw bytes do not come back");
    if let Ok(token) = Token::verify(&raw, &TOKEN_KEY.1) {
        ensure!(token.sign(&TOKEN_KEY.1) == raw, "two raw tokens say the same");
    }
    let word = |at: usize| u16::from_be_bytes([raw[at], raw[at + 1]]);
    let session: [u8; 16] = raw[9..25].try_into()?;
    let token = Token {
        key_id: raw[0] & 15,
        service: word(1),
        slot: word(3),
        epoch: u32::from(word(5)) << 16 | u32::from(word(7)),
        session: SessionId(session),
    };
    let mut signed = token.sign(&TOKEN_KEY.1);
    ensure!(Token::verify(&signed, &TOKEN_KEY.1) == Ok(token), "what was signed does not verify");
    let [high, low] = take(&mut input);
    let bit = usize::from(u16::from_be_bytes([high, low])) % (8 * TOKEN_LEN);
    // The id of the key only says which key to take.
    signed[bit / 8] ^= 1 << (bit % 8);
    ensure!(Token::verify(&signed, &TOKEN_KEY.1).is_err(), "bit {bit} is not signed");
    Ok(())
}

pub(super) fn keys(input: &[u8]) -> Result<()> {
    let Ok(text) = std::str::from_utf8(input) else { return Ok(()) };
    match fuzzing::keys(text) {
        Ok(keys) => {
            let again = fuzzing::keys(&fuzzing::text(&keys)).map_err(anyhow::Error::msg)?;
            ensure!(again == keys, "keys are written as others");
            let newest = keys.ids().first().copied();
            ensure!(newest.is_some(), "there is no newest key");
        }
        Err(reason) => {
            for secret in secrets(text).filter(|secret| reason.contains(secret)) {
                // A secret may read like a message: that one says the same of any other.
                let other = text.replacen(secret, &"~".repeat(secret.len()), 1);
                let same = fuzzing::keys(&other).is_err_and(|other| other == reason);
                ensure!(same, "a message shows a secret: {reason}");
            }
        }
    }
    Ok(())
}

/// Values of `secret` that stand nowhere else in a text.
fn secrets(text: &str) -> impl Iterator<Item = &str> {
    let values = text.split("secret = \"").skip(1).filter_map(|rest| rest.split(['"', '\n']).next());
    values.filter(|value| value.len() >= 16 && text.matches(*value).count() == 1)
}
