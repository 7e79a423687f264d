//! What a session is when one thing happens after the other: the specification.

use super::{Call, Cart, Operation, Outcome, Shown, Values};
use std::collections::BTreeSet;

/// A session.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Model {
    /// It has not begun yet.
    Unborn,
    Alive(Alive),
    Ended,
}

/// A session that is there.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct Alive {
    /// 1 when it begins; each change makes it one more.
    pub version: u64,
    pub values: Values,
    pub cart: Cart,
    /// Order numbers that have taken effect.
    pub orders: BTreeSet<u64>,
}

impl Model {
    pub fn version(&self) -> u64 {
        match self {
            Self::Alive(alive) => alive.version,
            Self::Unborn | Self::Ended => 0,
        }
    }

    /// The session after an operation took effect on it with the outcome that the client was told. `None` when it cannot
    /// have had that outcome here, or, with an unknown one, when it would have had no effect.
    pub fn step(&self, operation: &Operation) -> Option<Self> {
        let Operation { call, outcome, begins, .. } = operation;
        match (self, outcome) {
            (Self::Unborn, Outcome::Done(shown)) if *begins => {
                let mut alive = Alive { version: 1, ..Alive::default() };
                alive.change(call);
                alive.shows(shown).then_some(Self::Alive(alive))
            }
            (Self::Alive(alive), Outcome::Done(shown)) if !begins => {
                let after = alive.after(call)?;
                after.shows(shown).then_some(Self::Alive(after))
            }
            (Self::Alive(alive), Outcome::Unmet { version }) => {
                (alive.version == *version && alive.refuses(call)).then(|| self.clone())
            }
            (Self::Alive(_), Outcome::Ended) => (*call == Call::End).then_some(Self::Ended),
            (Self::Ended, Outcome::Gone) => Some(Self::Ended),
            (Self::Alive(_), Outcome::Unknown) if *call == Call::End => Some(Self::Ended),
            (Self::Alive(alive), Outcome::Unknown) => {
                alive.after(call).filter(|after| after.version != alive.version).map(Self::Alive)
            }
            _ => None,
        }
    }

    /// Whether an operation that was done, or perhaps was, changes the session here.
    pub fn is_changed_by(&self, operation: &Operation) -> bool {
        match self {
            Self::Unborn => operation.begins,
            Self::Alive(alive) => match &operation.call {
                Call::Read => false,
                Call::Put { .. } | Call::End => true,
                Call::PutIf { .. } => !alive.refuses(&operation.call),
                Call::Add { order, .. } => order.is_none_or(|order| !alive.orders.contains(&order)),
            },
            Self::Ended => false,
        }
    }
}

impl Alive {
    /// Whether a condition is not met: what it speaks of is not there, or not in that version.
    pub fn refuses(&self, call: &Call) -> bool {
        match call {
            Call::PutIf { key, version, .. } => *version != self.version || !self.values.contains_key(key),
            Call::Read | Call::Put { .. } | Call::Add { .. } | Call::End => false,
        }
    }

    /// After a call that was done. `None` when it could not be.
    fn after(&self, call: &Call) -> Option<Self> {
        let mut after = self.clone();
        match call {
            Call::End => return None,
            Call::PutIf { .. } if self.refuses(call) => return None,
            Call::Add { order: Some(order), .. } if self.orders.contains(order) => {}
            Call::Read => {}
            Call::Put { .. } | Call::PutIf { .. } | Call::Add { .. } => {
                after.version += 1;
                after.change(call);
            }
        }
        Some(after)
    }

    fn change(&mut self, call: &Call) {
        match call {
            Call::Put { key, value } | Call::PutIf { key, value, .. } => {
                self.values.insert(key.clone(), value.clone());
            }
            Call::Add { sku, quantity, order } => {
                *self.cart.entry(sku.clone()).or_default() += quantity;
                self.orders.extend(*order);
            }
            Call::Read | Call::End => {}
        }
    }

    /// Whether an answer shows just this.
    pub fn shows(&self, shown: &Shown) -> bool {
        shown.version.is_none_or(|version| version == self.version)
            && shown.values.as_ref().is_none_or(|values| *values == self.values)
            && shown.cart.as_ref().is_none_or(|cart| *cart == self.cart)
    }
}
