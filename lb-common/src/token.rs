//! The token: what a client presents so that its session comes home.
//!
//! 33 bytes, written as 44 base64url characters without padding in HTTP and raw in datagrams:
//!
//! | bytes | field |
//! |---|---|
//! | 0 | version (high 4 bits, 1) and key id (low 4 bits) |
//! | 1..3 | service id, big endian |
//! | 3..5 | backend slot, big endian |
//! | 5..9 | epoch, big endian |
//! | 9..25 | session id |
//! | 25..33 | SipHash-2-4 over bytes 0..25 under the key of that id, little endian |

use crate::hash::{SipKey, siphash24};

/// Length of a raw token in bytes.
pub const TOKEN_LEN: usize = 33;
/// Length of a token in base64url characters.
pub const TOKEN_TEXT_LEN: usize = 44;
/// The only version there is.
pub const TOKEN_VERSION: u8 = 1;
/// How many signing keys can be alive at once.
pub const MAX_KEYS: usize = 16;

/// A session's id: 128 random bits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub [u8; 16]);

impl SessionId {
    /// Reads what `Display` writes: 32 hexadecimal digits.
    pub fn from_hex(text: &[u8]) -> Option<Self> {
        let text: &[u8; 32] = text.try_into().ok()?;
        let mut id = [0; 16];
        for (byte, pair) in id.iter_mut().zip(text.chunks_exact(2)) {
            let digit = |c: u8| char::from(c).to_digit(16);
            *byte = (digit(pair[0])? << 4 | digit(pair[1])?) as u8;
        }
        Some(Self(id))
    }
}

impl core::fmt::Display for SessionId {
    /// 32 lower-case hexadecimal digits.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl core::fmt::Debug for SessionId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(self, f)
    }
}

/// What a valid token says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Token {
    /// Which of the 16 keys signed it, 0 to 15.
    pub key_id: u8,
    pub service: u16,
    /// Slot of the backend that held the session when the token was made.
    pub slot: u16,
    /// Epoch of that backend then.
    pub epoch: u32,
    pub session: SessionId,
}

/// Why some bytes are not a token.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TokenError {
    /// Not 44 base64url characters.
    Text,
    /// The version is not 1.
    Version(u8),
    /// No such key is alive.
    UnknownKey(u8),
    /// The signature does not match.
    Signature,
}

impl core::fmt::Display for TokenError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Text => write!(f, "a token is {TOKEN_TEXT_LEN} base64url characters"),
            Self::Version(v) => write!(f, "token version {v} is unknown, only {TOKEN_VERSION} is"),
            Self::UnknownKey(id) => write!(f, "token was signed with key {id}, which is not alive"),
            Self::Signature => write!(f, "token signature does not match"),
        }
    }
}

impl core::error::Error for TokenError {}

/// The signature over the first 25 bytes.
#[inline(always)]
fn mac(key: &SipKey, raw: &[u8; TOKEN_LEN]) -> u64 {
    let words = [word(raw, 0), word(raw, 8), word(raw, 16)];
    siphash24(key, &words, raw[24] as u64 | 25 << 56)
}

#[inline(always)]
fn word(raw: &[u8; TOKEN_LEN], at: usize) -> u64 {
    u64::from_le_bytes([
        raw[at],
        raw[at + 1],
        raw[at + 2],
        raw[at + 3],
        raw[at + 4],
        raw[at + 5],
        raw[at + 6],
        raw[at + 7],
    ])
}

impl Token {
    /// Signs the token under `key`, whose id is `self.key_id`.
    pub fn sign(&self, key: &SipKey) -> [u8; TOKEN_LEN] {
        let mut raw = [0; TOKEN_LEN];
        raw[0] = TOKEN_VERSION << 4 | self.key_id & 0xf;
        raw[1..3].copy_from_slice(&self.service.to_be_bytes());
        raw[3..5].copy_from_slice(&self.slot.to_be_bytes());
        raw[5..9].copy_from_slice(&self.epoch.to_be_bytes());
        raw[9..25].copy_from_slice(&self.session.0);
        let tag = mac(key, &raw);
        raw[25..].copy_from_slice(&tag.to_le_bytes());
        raw
    }

    /// The key id that some raw bytes claim, or the version that is wrong.
    #[inline(always)]
    pub const fn key_id(raw: &[u8; TOKEN_LEN]) -> Result<u8, TokenError> {
        if raw[0] >> 4 == TOKEN_VERSION { Ok(raw[0] & 0xf) } else { Err(TokenError::Version(raw[0] >> 4)) }
    }

    /// Checks the signature under `key` and reads the fields.
    ///
    /// # Errors
    /// [`TokenError::Version`] or [`TokenError::Signature`]; nothing of a token that fails may be trusted.
    #[inline(always)]
    pub fn verify(raw: &[u8; TOKEN_LEN], key: &SipKey) -> Result<Self, TokenError> {
        let key_id = Self::key_id(raw)?;
        let tag =
            u64::from_le_bytes([raw[25], raw[26], raw[27], raw[28], raw[29], raw[30], raw[31], raw[32]]);
        // One comparison of whole words: its time does not depend on where they differ.
        if mac(key, raw) != tag {
            return Err(TokenError::Signature);
        }
        let mut session = [0; 16];
        session.copy_from_slice(&raw[9..25]);
        Ok(Self {
            key_id,
            service: u16::from_be_bytes([raw[1], raw[2]]),
            slot: u16::from_be_bytes([raw[3], raw[4]]),
            epoch: u32::from_be_bytes([raw[5], raw[6], raw[7], raw[8]]),
            session: SessionId(session),
        })
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Value of each base64url character (RFC 4648 §5); other bytes read as 0. The packet program decodes without
/// checking: the signature covers every character.
pub const BASE64URL: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 64 {
        table[ALPHABET[i] as usize] = i as u8;
        i += 1;
    }
    table
};

/// Writes a raw token as text.
pub fn encode(raw: &[u8; TOKEN_LEN]) -> [u8; TOKEN_TEXT_LEN] {
    let mut text = [0; TOKEN_TEXT_LEN];
    for (three, four) in raw.chunks_exact(3).zip(text.chunks_exact_mut(4)) {
        let bits = u32::from_be_bytes([0, three[0], three[1], three[2]]);
        for (i, c) in four.iter_mut().enumerate() {
            *c = ALPHABET[(bits >> (18 - 6 * i)) as usize & 63];
        }
    }
    text
}

/// Reads a token's text. Stricter than the packet program, and in agreement with it on every text that is valid.
///
/// # Errors
/// [`TokenError::Text`] for a wrong length or a character outside base64url.
pub fn decode(text: &[u8]) -> Result<[u8; TOKEN_LEN], TokenError> {
    let text: &[u8; TOKEN_TEXT_LEN] = text.try_into().map_err(|_| TokenError::Text)?;
    // What is no base64url reads as the value of another character.
    if text.iter().any(|c| ALPHABET[BASE64URL[*c as usize] as usize] != *c) {
        return Err(TokenError::Text);
    }
    let mut raw = [0; TOKEN_LEN];
    for (four, three) in text.chunks_exact(4).zip(raw.chunks_exact_mut(3)) {
        let bits = four.iter().fold(0, |bits, c| bits << 6 | u32::from(BASE64URL[*c as usize]));
        three.copy_from_slice(&bits.to_be_bytes()[1..]);
    }
    Ok(raw)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const KEY: SipKey = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];

    fn token(service: u16, slot: u16, epoch: u32, session: [u8; 16]) -> Token {
        Token { key_id: 3, service, slot, epoch, session: SessionId(session) }
    }

    proptest! {
        #[test]
        fn what_was_signed_verifies(service: u16, slot: u16, epoch: u32, session: [u8; 16]) {
            let token = token(service, slot, epoch, session);
            let text = encode(&token.sign(&KEY));
            prop_assert_eq!(Token::verify(&decode(&text).unwrap(), &KEY), Ok(token));
        }

        #[test]
        fn a_session_id_is_read_as_it_is_written(id: [u8; 16]) {
            let text = std::format!("{}", SessionId(id));
            prop_assert_eq!(SessionId::from_hex(text.as_bytes()), Some(SessionId(id)));
            prop_assert_eq!(SessionId::from_hex(&text.as_bytes()[1..]), None);
            prop_assert_eq!(SessionId::from_hex(text.replacen(&text[..1], "g", 1).as_bytes()), None);
        }

        #[test]
        fn any_flipped_bit_is_refused(session: [u8; 16], bit in 0usize..TOKEN_LEN * 8) {
            let mut raw = token(1, 2, 3, session).sign(&KEY);
            raw[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(Token::verify(&raw, &KEY).is_err());
        }

        #[test]
        fn another_key_refuses(session: [u8; 16], other: [u64; 2]) {
            prop_assume!(other != KEY);
            prop_assert!(Token::verify(&token(1, 2, 3, session).sign(&KEY), &other).is_err());
        }
    }

    #[test]
    fn layout_is_the_documented_one() {
        let raw = token(0x0102, 0x0304, 0x0506_0708, *b"0123456789abcdef").sign(&KEY);
        assert_eq!(raw[..9], [0x13, 1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(&raw[9..25], b"0123456789abcdef");
    }

    #[test]
    fn every_byte_outside_base64url_is_refused() {
        for byte in 0..=u8::MAX {
            let mut text = [b'A'; TOKEN_TEXT_LEN];
            text[43] = byte;
            assert_eq!(decode(&text).is_ok(), ALPHABET.contains(&byte), "byte {byte}");
        }
    }

    #[test]
    fn malformed_texts_are_refused() {
        for text in [&b""[..], b"short", &[b'='; 44], &[b'A'; 43], &[b'A'; 45], &[b'+'; 44]] {
            assert_eq!(decode(text), Err(TokenError::Text));
        }
        assert_eq!(Token::verify(&decode(&[b'A'; 44]).unwrap(), &KEY), Err(TokenError::Version(0)));
    }
}
