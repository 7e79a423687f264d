//! tower-sessions hands in a whole session at the end of a request. What the request changed in it is found by
//! comparison with what it was given, and that is what is written: a request undoes nothing of what others did.

use crate::session::{Refusal, State};
use serde_json::Value;
use std::collections::{BTreeSet, HashMap};

/// The session as tower-sessions has it.
pub(super) type Data = HashMap<String, Value>;

/// The key of a session's state that holds the expiry that tower-sessions wants, in milliseconds since 1970.
pub(super) const EXPIRES: &str = "tower-sessions.expires";

/// What happens when two requests change the *same key* of one session at the same time. Changes of different keys are
/// merged, and equal changes are one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Conflicts {
    /// The later request fails with 409 and nothing of it is stored, so no update is lost. Except by one that has given the
    /// session a new id meanwhile: it wins, for the old one has ended by then.
    #[default]
    Refuse,
    /// The later request wins, as with other stores of tower-sessions.
    KeepLast,
}

/// What a request changed.
#[derive(Clone, PartialEq, Debug)]
pub(super) struct Changes {
    /// All keys go first.
    clear: bool,
    /// Key, the value that the request was given, the value that it leaves.
    keys: Vec<(String, Option<Value>, Option<Value>)>,
    expires: u64,
}

impl Changes {
    /// From `base` to `data`. Without a base, or when nothing is left, everything is replaced.
    pub(super) fn between(base: Option<&Data>, data: &Data, expires: u64) -> Self {
        let empty = Data::new();
        let clear = base.is_none() || data.is_empty();
        let base = if clear { &empty } else { base.unwrap_or(&empty) };
        let names: BTreeSet<&String> = base.keys().chain(data.keys()).collect();
        let changed = names.into_iter().filter(|name| base.get(*name) != data.get(*name));
        let keys = changed.map(|name| (name.clone(), base.get(name).cloned(), data.get(name).cloned()));
        Self { clear, keys: keys.collect(), expires }
    }

    /// Whether only the expiry is new.
    pub(super) fn is_empty(&self) -> bool {
        self.keys.is_empty() && !self.clear
    }

    /// Makes them to a state that others may have changed meanwhile.
    ///
    /// # Errors
    /// [`Refusal::Unfit`] when they changed the same key to something else.
    pub(super) fn apply(&self, state: &mut State, conflicts: Conflicts) -> Result<(), Refusal> {
        if self.clear {
            *state = State::default();
        }
        for (key, before, after) in &self.keys {
            let now = if self.clear { None } else { value(state, key)? };
            if conflicts == Conflicts::Refuse && now != *before && now != *after {
                return Err(Refusal::Unfit(format!(
                    "another request changed {key:?} of this session while this one was under way"
                )));
            }
            match after {
                Some(value) => set(state, key, value)?,
                None => drop(state.remove(key)),
            }
        }
        set(state, EXPIRES, &Value::from(self.expires))
    }
}

/// A state as tower-sessions sees it, and the expiry that it wanted.
///
/// # Errors
/// When a value cannot be read, which no value of ours is.
pub(super) fn data(state: &State) -> Result<(Data, Option<u64>), serde_json::Error> {
    let mut data = Data::new();
    let mut expires = None;
    for (key, text) in state.iter() {
        match key {
            EXPIRES => expires = serde_json::from_str(text)?,
            _ => drop(data.insert(key.to_owned(), serde_json::from_str(text)?)),
        }
    }
    Ok((data, expires))
}

fn value(state: &State, key: &str) -> Result<Option<Value>, Refusal> {
    state.get_as(key).map_err(|error| Refusal::Unfit(format!("the value of {key:?} cannot be read: {error}")))
}

fn set(state: &mut State, key: &str, value: &Value) -> Result<(), Refusal> {
    state
        .set_as(key, value)
        .map_err(|error| Refusal::Invalid(format!("the value of {key:?} cannot be JSON: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    type Few = Vec<(char, u8)>;

    fn data_of(few: &Few) -> Data {
        few.iter().map(|(key, value)| (key.to_string(), Value::from(*value))).collect()
    }

    fn few() -> impl Strategy<Value = Few> {
        proptest::collection::vec((prop::char::range('a', 'e'), 0u8..3), 0..6)
    }

    fn state_of(data: &Data) -> State {
        let mut state = State::default();
        Changes::between(None, data, 7).apply(&mut state, Conflicts::Refuse).unwrap();
        state
    }

    proptest! {
        #[test]
        fn alone_a_request_gets_what_it_leaves(base in few(), left in few()) {
            let (base, left) = (data_of(&base), data_of(&left));
            let mut state = state_of(&base);
            Changes::between(Some(&base), &left, 9).apply(&mut state, Conflicts::Refuse).unwrap();
            prop_assert_eq!(data(&state).unwrap(), (left, Some(9)));
        }

        #[test]
        fn two_requests_at_once_both_take_effect_or_the_later_is_refused(
            base in few(), one in few(), other in few(),
        ) {
            let (base, one, other) = (data_of(&base), data_of(&one), data_of(&other));
            prop_assume!(!one.is_empty() && !other.is_empty());
            let mut state = state_of(&base);
            Changes::between(Some(&base), &one, 8).apply(&mut state, Conflicts::Refuse).unwrap();
            let before = state.clone();
            let keys: BTreeSet<&String> = base.keys().chain(one.keys()).chain(other.keys()).collect();
            let clash = keys.iter().any(|key| {
                let (b, o, p) = (base.get(*key), one.get(*key), other.get(*key));
                o != b && p != b && o != p
            });
            let later = Changes::between(Some(&base), &other, 9);
            prop_assert_eq!(later.apply(&mut state, Conflicts::Refuse).is_err(), clash);
            if !clash {
                let (merged, _) = data(&state).unwrap();
                for key in keys {
                    let (b, o, p) = (base.get(key), one.get(key), other.get(key));
                    prop_assert_eq!(merged.get(key), if p != b { p } else { o });
                }
            }
            let mut last = before;
            later.apply(&mut last, Conflicts::KeepLast).unwrap();
            for (key, _, after) in &later.keys {
                prop_assert_eq!(&data(&last).unwrap().0.get(key).cloned(), after);
            }
        }
    }

    #[test]
    fn a_session_that_was_cleared_is_empty_whatever_others_added() {
        let base = data_of(&vec![('a', 1)]);
        let mut state = state_of(&data_of(&vec![('a', 1), ('b', 2)]));
        let cleared = Changes::between(Some(&base), &Data::new(), 9);
        assert!(!cleared.is_empty());
        cleared.apply(&mut state, Conflicts::Refuse).unwrap();
        assert_eq!(data(&state).unwrap(), (Data::new(), Some(9)));
        assert!(Changes::between(Some(&base), &base, 9).is_empty());
    }

    #[test]
    fn numbers_that_nobody_touched_keep_their_digits() {
        let mut state = State::default();
        state.set("n", State::parse_value(b"1.10000000000000000000001").unwrap());
        let (base, _) = data(&state).unwrap();
        let mut left = base.clone();
        left.insert("k".into(), Value::from(1));
        Changes::between(Some(&base), &left, 9).apply(&mut state, Conflicts::Refuse).unwrap();
        assert_eq!(state.get("n").unwrap().get(), "1.10000000000000000000001");
    }
}
