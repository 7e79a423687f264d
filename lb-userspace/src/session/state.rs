//! What a session remembers: JSON values by key. Values are kept as the text they came in, so that numbers keep their
//! digits and sizes are exact.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// The state of one session.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct State(BTreeMap<String, Box<RawValue>>);

impl State {
    /// Reads one JSON value from what a client sent.
    ///
    /// # Errors
    /// What is wrong with the text, and where. Nesting deeper than 128 is refused: it could not be read back.
    pub fn parse_value(text: &[u8]) -> Result<Box<RawValue>, serde_json::Error> {
        serde_json::from_slice::<serde_json::Value>(text)?;
        serde_json::from_slice(text)
    }

    pub fn get(&self, key: &str) -> Option<&RawValue> {
        self.0.get(key).map(|value| &**value)
    }

    /// The value of a key as a type of the caller's.
    ///
    /// # Errors
    /// When there is a value and it is not of that type.
    pub fn get_as<T: DeserializeOwned>(&self, key: &str) -> Result<Option<T>, serde_json::Error> {
        self.get(key).map(|value| serde_json::from_str(value.get())).transpose()
    }

    pub fn set(&mut self, key: impl Into<String>, value: Box<RawValue>) {
        self.0.insert(key.into(), value);
    }

    /// Sets a key to a value of the caller's.
    ///
    /// # Errors
    /// When the value cannot be written as JSON.
    pub fn set_as<T: Serialize>(
        &mut self,
        key: impl Into<String>,
        value: &T,
    ) -> Result<(), serde_json::Error> {
        self.set(key, serde_json::value::to_raw_value(value)?);
        Ok(())
    }

    /// The part of it that is the value of one key.
    pub(super) fn only(&self, key: &str) -> Self {
        Self(self.0.get_key_value(key).map(|(key, value)| (key.clone(), value.clone())).into_iter().collect())
    }

    /// Whether there was such a key.
    pub fn remove(&mut self, key: &str) -> bool {
        self.0.remove(key).is_some()
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Keys and the text of their values, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.get()))
    }

    /// Bytes of all keys and values: what the limit on a session's size counts.
    pub fn bytes(&self) -> usize {
        self.iter().map(|(key, value)| key.len() + value.len()).sum()
    }
}

impl PartialEq for State {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for State {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_keep_their_digits() {
        let mut state = State::default();
        state.set("n", State::parse_value(b" 12345678901234567890.10 ").unwrap());
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(text, r#"{"n":12345678901234567890.10}"#);
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
    }

    #[test]
    fn what_is_not_one_value_is_refused() {
        let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
        for text in ["", "{", "1 2", "nul", "\"\u{1}\"", "'a'", deep.as_str()] {
            assert!(State::parse_value(text.as_bytes()).is_err(), "{text}");
        }
        assert!(State::parse_value(b"\"\xff\"").is_err(), "not UTF-8");
    }

    #[test]
    fn size_counts_keys_and_values() {
        let mut state = State::default();
        state.set_as("four", &"six!").unwrap();
        assert_eq!(state.bytes(), 4 + 6);
        assert!(state.remove("four") && !state.remove("four") && state.is_empty());
    }
}
