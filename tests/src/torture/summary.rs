//! What is said of a torture at its end.

use crate::history::{Operation, Outcome, Violation};
use std::collections::BTreeMap;
use std::fmt;

/// Violations that are printed.
const SHOWN: usize = 3;

/// What was done, and what came of it.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub seconds: u64,
    pub rounds: usize,
    pub operations: usize,
    /// By kind.
    pub outcomes: BTreeMap<&'static str, usize>,
    /// Requests that found no server to send them to.
    pub unsent: usize,
    /// Answers from the database to clients that came with another instance's token.
    pub takeovers: usize,
    /// Sessions whose history was checked.
    pub sessions: usize,
    pub lives: usize,
    pub blows: BTreeMap<&'static str, usize>,
    /// Broken promises; there must be none.
    pub violations: Vec<Violation>,
}

impl Summary {
    /// Counts an operation.
    pub(super) fn count(&mut self, operation: &Operation) {
        self.operations += 1;
        let kind = match &operation.outcome {
            Outcome::Done(_) if operation.begins => "begun",
            Outcome::Done(_) => "done",
            Outcome::Repeated(_) => "repeated",
            Outcome::Unmet { .. } => "refused",
            Outcome::Ended => "ended",
            Outcome::Gone => "gone",
            Outcome::Unknown => "unknown",
        };
        *self.outcomes.entry(kind).or_default() += 1;
        let instance = operation.by.as_ref().filter(|by| &*by.source == "database").and(operation.given);
        self.takeovers += usize::from(instance.is_some() && instance != operation.token);
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |counts: &BTreeMap<&'static str, usize>| {
            counts.iter().map(|(name, count)| format!("{count} {name}")).collect::<Vec<_>>().join(", ")
        };
        writeln!(f, "operations  {} in {} s: {}", self.operations, self.seconds, list(&self.outcomes))?;
        writeln!(f, "            {} more found no server", self.unsent)?;
        writeln!(f, "takeovers   {}", self.takeovers)?;
        writeln!(f, "done to it  {}; {} new lives of servers", list(&self.blows), self.lives)?;
        writeln!(f, "checked     {} sessions in {} rounds", self.sessions, self.rounds)?;
        for violation in self.violations.iter().take(SHOWN) {
            write!(f, "\nBROKEN: {violation}")?;
        }
        if self.violations.len() > SHOWN {
            writeln!(f, "\n{} more promises are broken.", self.violations.len() - SHOWN)?;
        }
        Ok(())
    }
}
