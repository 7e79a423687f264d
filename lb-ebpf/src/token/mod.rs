//! Tokens in payloads: one file per place where one can stand.

pub(crate) mod http;

use lb_common::settings::Settings;
use lb_common::token::{BASE64URL, TOKEN_LEN, TOKEN_TEXT_LEN, Token};

/// What was found where a token may stand.
#[derive(Clone, Copy)]
pub(crate) enum Found {
    /// Nothing.
    Absent,
    /// Something that does not verify.
    Invalid,
    Valid(Token),
}

static DECODE: [u8; 256] = BASE64URL;

/// Decodes and verifies the text at `text`.
///
/// # Safety
/// [`TOKEN_TEXT_LEN`] bytes at `text` are readable.
#[inline(always)]
pub(crate) unsafe fn verify(settings: &Settings, text: *const u8) -> Found {
    let mut raw = [0_u8; TOKEN_LEN];
    let mut i = 0;
    while i < TOKEN_TEXT_LEN / 4 {
        let mut bits = 0_u32;
        let mut j = 0;
        while j < 4 {
            // SAFETY: 4 i + j is below TOKEN_TEXT_LEN; a table of 256 has an entry for every byte.
            bits = bits << 6 | u32::from(unsafe { DECODE[*text.add(4 * i + j) as usize] });
            j += 1;
        }
        raw[3 * i] = (bits >> 16) as u8;
        raw[3 * i + 1] = (bits >> 8) as u8;
        raw[3 * i + 2] = bits as u8;
        i += 1;
    }
    let Ok(key_id) = Token::key_id(&raw) else { return Found::Invalid };
    let key_id = key_id & 15;
    if settings.token_key_mask >> key_id & 1 == 0 {
        return Found::Invalid;
    }
    match Token::verify(&raw, &settings.token_keys[key_id as usize]) {
        Ok(token) => Found::Valid(token),
        Err(_) => Found::Invalid,
    }
}
