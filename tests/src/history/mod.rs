//! What clients did to sessions and what they were told, and whether all of it can have happened one after the other.
//!
//! A session is an object of its own, so each is checked alone, twice: [`witness`] follows the versions that the servers
//! told, in one pass; [`search`] looks for any order that explains everything, after Wing and Gong with Lowe's
//! memoization. Both say the same, which [`proofs`] tests; two programs rarely have the same mistake.
//!
//! There are checkers in Rust (stateright's `LinearizabilityTester`, todc-utils' `WGLChecker`), but neither is fit for
//! this: the one remembers nothing of what it has tried, the other panics at an operation without a response. Here every
//! killed server leaves some of those.

pub mod epochs;
mod model;
#[cfg(test)]
mod proofs;
mod report;
pub mod search;
pub mod witness;

pub use model::Model;
pub use report::Violation;

use lb_common::token::SessionId;
use search::Verdict;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Keys and the JSON text of their values.
pub type Values = BTreeMap<Arc<str>, Arc<str>>;
/// What is in a cart: how many of each.
pub type Cart = BTreeMap<Arc<str>, u32>;

/// What a client asked of a session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    Read,
    Put {
        key: Arc<str>,
        value: Arc<str>,
    },
    /// As `Put`, but only when the session has this key and this version.
    PutIf {
        key: Arc<str>,
        value: Arc<str>,
        version: u64,
    },
    /// Puts something into the cart. Of all that have the same order number, one takes effect.
    Add {
        sku: Arc<str>,
        quantity: u32,
        order: Option<u64>,
    },
    End,
}

/// A session as an answer showed it; what an answer does not show is `None`.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Shown {
    pub version: Option<u64>,
    pub values: Option<Values>,
    pub cart: Option<Cart>,
}

/// What a client was told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// Done, with the session as it was afterwards.
    Done(Shown),
    /// Not done, because it had been done before: with the session as it was after that.
    Repeated(Shown),
    /// Not done, because the session had this version, and not the one that the client named or not the key.
    Unmet { version: u64 },
    /// [`Call::End`] was done.
    Ended,
    /// Not done: there is no such session any more.
    Gone,
    /// No answer, or one that says that nobody knows: it may take effect at any later time, or never.
    Unknown,
}

/// Who answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct By {
    pub server: Arc<str>,
    pub epoch: u32,
    /// `new`, `cache`, `database` or `none`.
    pub source: Arc<str>,
}

/// Slot and epoch, as a token names them.
pub type Instance = (u16, u32);

/// One request about one session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Operation {
    pub client: u32,
    pub session: SessionId,
    /// Nanoseconds since the run began: just before the first byte was sent...
    pub invoked: u64,
    /// ...and just after the last byte of the answer had come, or when the client gave up.
    pub returned: u64,
    pub call: Call,
    pub outcome: Outcome,
    /// The session began with it: the client came without one, or with one that was gone. Only of what was done.
    pub begins: bool,
    /// The instance in the token that the client presented.
    pub token: Option<Instance>,
    /// The instance in the token that it was given.
    pub given: Option<Instance>,
    /// What was dialled.
    pub way: Arc<str>,
    pub by: Option<By>,
}

impl Operation {
    /// Whether it certainly was over before the other began.
    pub fn precedes(&self, other: &Self) -> bool {
        self.outcome != Outcome::Unknown && self.returned < other.invoked
    }
}

/// Checks the history of one session, in any order.
///
/// # Errors
/// The smallest part of it that cannot have happened.
pub fn check(history: &[Operation]) -> Result<(), Violation> {
    let witnessed = witness::check(history);
    // What the witness refuses need not be searched for long.
    let budget = if witnessed.is_ok() { search::BUDGET } else { search::BUDGET / 100 };
    match (witnessed, search::check(history, &Model::Unborn, budget)) {
        (Ok(()), Verdict::Explained | Verdict::Undecided) => Ok(()),
        (Err(violation), Verdict::Impossible | Verdict::Undecided) => Err(violation),
        (Ok(()), Verdict::Impossible) => Err(report::smallest(history)),
        (Err(mut violation), Verdict::Explained) => {
            violation.rule = format!("the two checkers disagree; one says: {}", violation.rule);
            Err(violation)
        }
    }
}
