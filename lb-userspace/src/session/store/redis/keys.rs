//! Names of all keys, and the slot of a cluster that each belongs to.

use lb_common::token::SessionId;

/// Slots of a cluster.
pub(super) const SLOTS: u16 = 16_384;

/// What the keys of one store are called.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    prefix: String,
    /// Hash: the store's format; service ids, slots and epochs.
    pub(super) names: String,
    /// Stream of messages between processes.
    pub(super) mail: String,
    /// Number of the last message.
    pub(super) last: String,
}

impl Keys {
    pub(super) fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.into(),
            names: format!("{prefix}{{names}}"),
            mail: format!("{prefix}{{mail}}"),
            last: format!("{prefix}{{mail}}:last"),
        }
    }

    pub(super) fn session(&self, id: SessionId) -> String {
        format!("{}s:{{{id}}}", self.prefix)
    }

    /// There while a process lives; beside the messages, so that one script sees both.
    pub(super) fn node(&self, node: u64) -> String {
        format!("{}{{mail}}:n:{node:016x}", self.prefix)
    }

    /// What the keys of all sessions match, and hardly any other.
    pub(super) fn sessions(&self) -> String {
        let mut pattern = String::new();
        for c in self.prefix.chars() {
            if "*?[]\\^-".contains(c) {
                pattern.push('\\');
            }
            pattern.push(c);
        }
        pattern + "s:{*}"
    }

    /// The session that a key is of.
    pub(super) fn id(&self, key: &[u8]) -> Option<SessionId> {
        let hex = key.strip_prefix(self.prefix.as_bytes())?.strip_prefix(b"s:{")?.strip_suffix(b"}")?;
        SessionId::from_hex(hex)
    }
}

/// The slot of a key, as every node of a cluster computes it: CRC-16 (XMODEM) of what is in the first braces.
pub(super) fn slot(key: &str) -> u16 {
    let key = key.as_bytes();
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|byte| *byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        (0..8).fold(crc ^ u16::from(*byte) << 8, |crc, _| match crc & 0x8000 {
            0 => crc << 1,
            _ => crc << 1 ^ 0x1021,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        for (key, expected) in [
            ("123456789", 0x31c3),
            ("foo", 12182),
            ("{foo}:bar", 12182),
            ("a{}b", crc16(b"a{}b") % SLOTS),
            ("a{foo", crc16(b"a{foo") % SLOTS),
        ] {
            assert_eq!(slot(key), expected, "{key}");
        }
    }

    #[test]
    fn a_session_is_found_by_its_key() {
        let id = SessionId([7; 16]);
        let keys = Keys::new("x*:");
        assert_eq!(keys.id(keys.session(id).as_bytes()), Some(id));
        assert_eq!(keys.id(Keys::new("y:").session(id).as_bytes()), None);
        assert_eq!(keys.sessions(), "x\\*:s:{*}");
    }

    #[test]
    fn messages_and_nodes_are_in_one_slot() {
        let keys = Keys::new("lb:");
        let slots = [&keys.mail, &keys.last, &keys.node(5)].map(|key| slot(key));
        assert_eq!(slots, [slots[0]; 3]);
    }
}
