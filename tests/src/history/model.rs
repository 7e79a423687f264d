//! What a session is when one thing happens after the other: the specification.

use super::{Call, Cart, Operation, Outcome, Shown, Values};
use std::sync::Arc;

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
    /// 0 while only a visit has begun it, 1 with its first change; each change makes it one more.
    pub version: u64,
    pub values: Values,
    pub cart: Cart,
    /// Orders that have taken effect, the latest ones, the oldest first.
    pub orders: Vec<Order>,
}

/// An order that has taken effect.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Order {
    pub number: u64,
    /// What the session was with it.
    pub version: u64,
    pub cart: Arc<Cart>,
}

/// How many orders a session remembers at least: what is promised of idempotency keys.
const ORDERS: usize = 32;

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
                let version = u64::from(*call != Call::Read);
                let mut alive = Alive { version, ..Alive::default() };
                alive.change(call);
                alive.shows(shown).then_some(Self::Alive(alive))
            }
            (Self::Alive(alive), Outcome::Done(shown)) if !begins => {
                let after = alive.after(call)?;
                after.shows(shown).then_some(Self::Alive(after))
            }
            (Self::Alive(alive), Outcome::Repeated(shown)) if !begins => {
                let Order { version, cart, .. } = alive.order(call)?;
                let fits = shown.values.is_none()
                    && shown.version.is_none_or(|shown| shown == *version)
                    && shown.cart.as_ref().is_none_or(|shown| shown == &**cart);
                fits.then(|| self.clone())
            }
            (Self::Alive(alive), Outcome::Unmet { version }) => {
                (alive.version == *version && alive.refuses(call)).then(|| self.clone())
            }
            (Self::Alive(_), Outcome::Ended) => (*call == Call::End).then_some(Self::Ended),
            (Self::Ended, Outcome::Gone) => Some(Self::Ended),
            (Self::Alive(_), Outcome::Unknown) if *call == Call::End => Some(Self::Ended),
            (Self::Alive(alive), Outcome::Unknown) => {
                if alive.order(call).is_some() || *call == Call::Read {
                    return None;
                }
                alive.after(call).map(Self::Alive)
            }
            _ => None,
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
            Call::Add { .. } if self.order(call).is_some() => return None,
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
                if let Some(number) = *order {
                    if self.orders.len() == ORDERS {
                        self.orders.remove(0);
                    }
                    let cart = Arc::new(self.cart.clone());
                    self.orders.push(Order { number, version: self.version, cart });
                }
            }
            Call::Read | Call::End => {}
        }
    }

    /// What is remembered of an order that is made again.
    fn order(&self, call: &Call) -> Option<&Order> {
        let Call::Add { order: Some(number), .. } = call else { return None };
        self.orders.iter().find(|order| order.number == *number)
    }

    /// Whether an answer shows just this.
    pub fn shows(&self, shown: &Shown) -> bool {
        shown.version.is_none_or(|version| version == self.version)
            && shown.values.as_ref().is_none_or(|values| *values == self.values)
            && shown.cart.as_ref().is_none_or(|cart| *cart == self.cart)
    }
}
