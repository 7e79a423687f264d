//! How large a session may grow, how long it lives, and how much of the cache a server may use.

use super::State;
use super::store::MAX_STATE_BYTES;
use std::time::Duration;

/// The limits of one service's sessions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Keys in one session.
    pub max_keys: usize,
    /// Bytes of one key.
    pub max_key_bytes: usize,
    /// Bytes of one value, as JSON text.
    pub max_value_bytes: usize,
    /// Bytes of all keys and values of a session; never more than [`MAX_STATE_BYTES`].
    pub max_session_bytes: usize,
    /// A session that nobody used for this long is gone.
    pub idle: Duration,
    /// A session older than this is gone, used or not.
    pub absolute: Duration,
    /// Sessions of the service in the store, where it counts those of each service ([`super::SessionStore::count_of`]).
    pub max_sessions: u64,
    /// Sessions that begin within a second from one network of clients: a /24 of IPv4, a /56 of IPv6.
    pub new_per_second: u32,
    /// Sessions in a server's cache.
    pub cache_entries: usize,
    /// Bytes of memory that the sessions in a server's cache may take, their bookkeeping included.
    pub cache_bytes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_keys: 128,
            max_key_bytes: 128,
            max_value_bytes: 32 * 1024,
            max_session_bytes: 64 * 1024,
            idle: Duration::from_secs(30 * 60),
            absolute: Duration::from_secs(7 * 24 * 3600),
            max_sessions: 10_000_000,
            new_per_second: 1000,
            cache_entries: 100_000,
            cache_bytes: 256 << 20,
        }
    }
}

/// Which limit a write would have passed.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} would be {found} {unit}, the limit is {limit}")]
pub struct TooLarge {
    /// What is too large, such as `the value of "cart"`.
    pub what: String,
    /// The name of the limit, as in the configuration.
    pub name: &'static str,
    pub found: usize,
    pub limit: usize,
    /// `bytes` or `keys`.
    pub unit: &'static str,
}

impl Limits {
    /// Whether a state is within the limits.
    ///
    /// # Errors
    /// The first limit that it passes.
    pub fn check(&self, state: &State) -> Result<(), TooLarge> {
        let within = |what: &dyn Fn() -> String, name, found, limit, unit| {
            if found <= limit { Ok(()) } else { Err(TooLarge { what: what(), name, found, limit, unit }) }
        };
        within(&|| "the session".into(), "max_keys", state.len(), self.max_keys, "keys")?;
        for (key, value) in state.iter() {
            within(&|| "a key".into(), "max_key_bytes", key.len(), self.max_key_bytes, "bytes")?;
            let what = || format!("the value of {key:?}");
            within(&what, "max_value_bytes", value.len(), self.max_value_bytes, "bytes")?;
        }
        let limit = self.max_session_bytes.min(MAX_STATE_BYTES);
        within(&|| "the session".into(), "max_session_bytes", state.bytes(), limit, "bytes")
    }

    /// When a session that is used now expires, if it is not used again: never before its idle time has passed. A
    /// tenth is added, so that only one use in many has to be written down.
    pub fn expires(&self, created: u64, now: u64) -> u64 {
        let idle = millis(self.idle);
        let end = created.saturating_add(millis(self.absolute));
        now.saturating_add(idle).saturating_add(idle / 10).min(end)
    }

    /// Whether a use now has to be written down, or the session could expire too early.
    pub fn must_extend(&self, created: u64, expires: u64, now: u64) -> bool {
        let end = created.saturating_add(millis(self.absolute));
        expires < now.saturating_add(millis(self.idle)).min(end)
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn small() -> Limits {
        Limits {
            max_keys: 2,
            max_key_bytes: 4,
            max_value_bytes: 8,
            max_session_bytes: 16,
            ..Limits::default()
        }
    }

    #[test]
    fn each_limit_is_named() {
        type Entries = &'static [(&'static str, &'static str)];
        let rows: [(Entries, Option<&str>); 6] = [
            (&[("a", "1"), ("b", "2")], None),
            (&[("a", "1"), ("b", "2"), ("c", "3")], Some("max_keys")),
            (&[("abcde", "1")], Some("max_key_bytes")),
            (&[("a", "123456789")], Some("max_value_bytes")),
            (&[("aaaa", "12345678"), ("b", "1234")], Some("max_session_bytes")),
            (&[("aaaa", "12345678"), ("b", "123")], None),
        ];
        for (entries, expected) in rows {
            let mut state = State::default();
            for (key, value) in entries {
                state.set(*key, State::parse_value(value.as_bytes()).unwrap());
            }
            assert_eq!(small().check(&state).err().map(|e| e.name), expected, "{entries:?}");
        }
    }

    #[test]
    fn the_message_says_what_and_how_much() {
        let mut state = State::default();
        state.set("a", State::parse_value(b"123456789").unwrap());
        let text = small().check(&state).unwrap_err().to_string();
        assert_eq!(text, r#"the value of "a" would be 9 bytes, the limit is 8"#);
    }

    proptest! {
        #[test]
        fn a_session_never_expires_before_its_idle_time(
            created in 0u64..1 << 40, age in 0u64..1 << 30, idle in 0u64..1 << 30, later in 0u64..1 << 30,
        ) {
            let limits = Limits { idle: Duration::from_millis(idle), ..Limits::default() };
            let end = created + limits.absolute.as_millis() as u64;
            let written = created + age;
            let expires = limits.expires(created, written);
            let used = written + later;
            if !limits.must_extend(created, expires, used) {
                prop_assert!(expires >= (used + idle).min(end));
            }
            prop_assert!(expires <= end);
            prop_assert!(!limits.must_extend(created, limits.expires(created, used), used));
        }
    }
}
