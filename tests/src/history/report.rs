//! What is said of a history that cannot have happened: the smallest part of it that shows it.

use super::{Model, Operation, Outcome, search};
use std::fmt;

/// Operations at the end of a history that is too long to be shown whole.
const SHOWN: usize = 24;

/// Something that cannot have happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Violation {
    pub rule: String,
    /// More about it, in sentences; may be empty.
    pub story: String,
    /// What shows it.
    pub operations: Vec<Operation>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", self.rule)?;
        if !self.story.is_empty() {
            writeln!(f, "  {}", self.story)?;
        }
        if let Some(first) = self.operations.first() {
            writeln!(f, "  session {}", first.session)?;
        }
        let begin = self.operations.iter().map(|operation| operation.invoked).min().unwrap_or(0);
        for operation in &self.operations {
            writeln!(f, "  {}", text::operation(operation, begin))?;
        }
        Ok(())
    }
}

impl std::error::Error for Violation {}

/// Of a history that no order explains, the part that matters: the shortest beginning that no order explains, without
/// the operations that changed nothing and are not needed for that.
pub(super) fn smallest(history: &[Operation]) -> Violation {
    let impossible = |part: &[Operation]| {
        search::check(part, &Model::Unborn, search::BUDGET) == search::Verdict::Impossible
    };
    let mut ends: Vec<u64> = history.iter().map(|operation| operation.returned).collect();
    ends.sort_unstable();
    let first = ends.partition_point(|end| !impossible(&until(history, *end)));
    let mut part = ends.get(first).map_or_else(|| history.to_vec(), |end| until(history, *end));
    part.sort_by_key(|operation| operation.invoked);
    for i in (0..part.len()).rev() {
        if changes_nothing(&part[i]) {
            let operation = part.remove(i);
            if !impossible(&part) {
                part.insert(i, operation);
            }
        }
    }
    let omitted = part.len().saturating_sub(SHOWN);
    let story = if omitted == 0 { String::new() } else { format!("{omitted} operations came before these.") };
    let operations = part.split_off(omitted);
    Violation { rule: "no order of these operations explains what was told".to_owned(), story, operations }
}

/// What was known at a time.
fn until(history: &[Operation], time: u64) -> Vec<Operation> {
    let mut part: Vec<_> = history.iter().filter(|operation| operation.invoked <= time).cloned().collect();
    for operation in &mut part {
        if operation.returned > time {
            operation.outcome = Outcome::Unknown;
        }
    }
    part
}

/// Whether the history without the operation has the same states in it.
fn changes_nothing(operation: &Operation) -> bool {
    match &operation.outcome {
        Outcome::Repeated(_) | Outcome::Unmet { .. } | Outcome::Gone => true,
        Outcome::Done(_) => operation.call == super::Call::Read && !operation.begins,
        Outcome::Ended | Outcome::Unknown => false,
    }
}

/// How things are written for people.
pub(super) mod text {
    use super::super::model::Alive;
    use super::super::{Call, Cart, Instance, Model, Operation, Outcome, Shown, Values};
    use std::fmt::Write;

    /// A span of time in nanoseconds, in milliseconds.
    pub(in super::super) fn span(nanoseconds: u64) -> String {
        format!("{:.3} ms", nanoseconds as f64 / 1e6)
    }

    pub(in super::super) fn model(model: &Model) -> String {
        match model {
            Model::Unborn => "not there yet".to_owned(),
            Model::Ended => "ended".to_owned(),
            Model::Alive(Alive { version, values, cart, .. }) => {
                format!("version {version}{}", contents(Some(values), Some(cart)))
            }
        }
    }

    /// One line, with times since `begin`.
    pub(in super::super) fn operation(operation: &Operation, begin: u64) -> String {
        let since = |time: u64| time.saturating_sub(begin) as f64 / 1e6;
        let mut line = format!(
            "{:>10.3} … {:>10.3} ms  client {:<3} {:<34} to {:<10} with {:<9}",
            since(operation.invoked),
            since(operation.returned),
            operation.client,
            call(&operation.call),
            operation.way,
            operation.token.map_or_else(|| "no token".to_owned(), instance),
        );
        if let Some(by) = &operation.by {
            let _ = write!(line, " {} epoch {} ({})", by.server, by.epoch, by.source);
        }
        let _ = write!(line, ": {}", outcome(operation));
        line
    }

    fn instance((slot, epoch): Instance) -> String {
        format!("{slot}@{epoch}")
    }

    fn call(call: &Call) -> String {
        match call {
            Call::Read => "read".to_owned(),
            Call::Put { key, value } => format!("put {key}={value}"),
            Call::PutIf { key, value, version } => format!("put {key}={value} if version {version}"),
            Call::Add { sku, quantity, order } => {
                let order = order.map_or_else(String::new, |order| format!(" (order {order})"));
                format!("add {quantity} {sku}{order}")
            }
            Call::End => "end".to_owned(),
        }
    }

    fn outcome(operation: &Operation) -> String {
        match &operation.outcome {
            Outcome::Done(Shown { version, values, cart }) => {
                let version =
                    version.map_or_else(|| "done".to_owned(), |version| format!("version {version}"));
                let begins = if operation.begins { "a new session, " } else { "" };
                format!("{begins}{version}{}", contents(values.as_ref(), cart.as_ref()))
            }
            Outcome::Repeated(Shown { version, cart, .. }) => {
                let version = version.map_or_else(String::new, |version| format!(" as version {version}"));
                format!("had been done{version}{}", contents(None, cart.as_ref()))
            }
            Outcome::Unmet { version } => format!("refused, it was version {version}"),
            Outcome::Ended => "ended".to_owned(),
            Outcome::Gone => "no such session".to_owned(),
            Outcome::Unknown => "nobody knows".to_owned(),
        }
    }

    fn contents(values: Option<&Values>, cart: Option<&Cart>) -> String {
        let mut text = String::new();
        for (key, value) in values.into_iter().flatten() {
            let _ = write!(text, " {key}={value}");
        }
        for (sku, quantity) in cart.into_iter().flatten() {
            let _ = write!(text, " {quantity}×{sku}");
        }
        text
    }
}
