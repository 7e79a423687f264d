//! How server ids stand in QUIC connection ids (draft-ietf-quic-load-balancers), and the keys that hide them.

use lb_common::quic_lb;
use std::fmt;

/// One configuration of a service; several are good at once, told apart by their rotation, so that keys can be changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct QuicConfig {
    /// 0 to 6.
    pub rotation: u8,
    /// 1 to 15.
    pub server_id_bytes: usize,
    /// 4 to 18.
    pub nonce_bytes: usize,
    /// Without it, server ids stand in the clear.
    pub key: Option<QuicKey>,
}

/// A key of AES-128. Never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct QuicKey(pub [u8; 16]);

impl fmt::Debug for QuicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("QuicKey(…)")
    }
}

impl QuicKey {
    /// Reads 32 hexadecimal digits.
    pub(super) fn from_hex(text: &str) -> Option<Self> {
        hex(text)?.try_into().ok().map(Self)
    }
}

impl QuicConfig {
    /// As the packet program reads it.
    ///
    /// # Errors
    /// A number is beyond its limits.
    pub fn to_map(&self) -> Result<quic_lb::Config, quic_lb::ConfigError> {
        let key = self.key.as_ref().map(|key| &key.0);
        quic_lb::Config::new(self.rotation, self.server_id_bytes, self.nonce_bytes, key)
    }
}

/// Reads two hexadecimal digits for each byte.
pub(crate) fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    text.as_bytes().chunks(2).map(|pair| Some(digit(pair[0])? << 4 | digit(*pair.get(1)?)?)).collect()
}

/// A line of the configuration with the keys in it hidden, character for character, so that places in it stay where they
/// are.
pub(super) fn without_key(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find("key") {
        let (before, behind) = rest.split_at(at + 3);
        shown.push_str(before);
        rest = behind;
        // Neither `key_file` nor a word that ends like this.
        let whole = !before[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == '-');
        let value = behind.trim_start().strip_prefix('=').map(str::trim_start);
        if let Some(value) = value.filter(|value| whole && value.starts_with(['"', '\''])) {
            let quote = &value[..1];
            let inside = &value[1..];
            let end = inside.find(quote).unwrap_or(inside.len());
            shown.push_str(&behind[..behind.len() - inside.len()]);
            shown.extend(inside[..end].chars().map(|_| '*'));
            rest = &inside[end..];
        }
    }
    shown + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_hidden_and_nothing_else() {
        for (text, shown) in [
            ("key = \"00ff\"", "key = \"****\""),
            (
                "[{ rotation = 1, key='abc' , x = 1 }, { key =\"é\" }]",
                "[{ rotation = 1, key='***' , x = 1 }, { key =\"*\" }]",
            ),
            ("key_file = \"/etc/key\"", "key_file = \"/etc/key\""),
            ("monkey = \"x\" # key = 3", "monkey = \"x\" # key = 3"),
            ("key = \"not closed", "key = \"**********"),
            ("keys = \"/etc/keys\"", "keys = \"/etc/keys\""),
            ("key", "key"),
        ] {
            assert_eq!(without_key(text), shown);
        }
    }

    #[test]
    fn debug_shows_no_key() {
        let config = QuicConfig {
            rotation: 1,
            server_id_bytes: 2,
            nonce_bytes: 6,
            key: QuicKey::from_hex("000102030405060708090a0b0c0d0e0f"),
        };
        assert!(config.key.is_some() && !format!("{config:?}").contains("0a0b"), "{config:?}");
        assert_eq!(format!("{:?}", QuicKey([200; 16])), "QuicKey(…)");
    }

    #[test]
    fn a_key_has_32_digits() {
        for text in [
            "",
            "00",
            "000102030405060708090a0b0c0d0e0",
            "000102030405060708090a0b0c0d0e0f00",
            "zz0102030405060708090a0b0c0d0e0f",
        ] {
            assert_eq!(QuicKey::from_hex(text), None, "{text}");
        }
    }
}
