//! Follows the versions that servers told: they say in which order changes took effect, so it remains to be checked that
//! each follows from the one before, that what was shown at a version is the session at that version, and that none of it
//! goes against time. One pass; only a version that nobody was told of is guessed, among operations of unknown outcome.

use super::report::text;
use super::{Call, Model, Operation, Outcome, Violation};
use std::collections::{BTreeMap, BTreeSet};

/// Versions that are gone through, those that were guessed wrong again included, before the guessing is given up.
const BUDGET: usize = 200_000;

/// The place in the order of all that is told after the end of the session.
const AFTER_ALL: u64 = u64::MAX;

/// Checks a session from its beginning. Every answer about a session that is there must tell the version.
///
/// # Errors
/// What cannot have happened, and the operations that show it.
pub fn check(history: &[Operation]) -> Result<(), Violation> {
    let told = Told::new(history)?;
    told.respects_time()?;
    told.follows()
}

/// A history in the order of what was told.
struct Told<'a> {
    history: &'a [Operation],
    /// Operations that told a version, by it.
    at: BTreeMap<u64, Vec<&'a Operation>>,
    /// Operations that ended the session, or found it ended.
    ended: Vec<&'a Operation>,
    /// Operations that may have changed the session without anyone being told.
    unknown: Vec<&'a Operation>,
    /// By time: when something had been told, the latest place that had been told of by then, and what told of it.
    returned: Vec<(u64, u64, &'a Operation)>,
}

/// A place where there was a choice.
struct Fork {
    version: u64,
    /// Operations of unknown outcome that had made earlier versions.
    used: BTreeSet<usize>,
    /// What is left to try; the last comes next.
    choices: Vec<Choice>,
}

/// Which operation made a version (its index, if nobody was told of it), and the session after it.
type Choice = (Option<usize>, Model);

impl<'a> Told<'a> {
    fn new(history: &'a [Operation]) -> Result<Self, Violation> {
        let mut told = Self {
            history,
            at: BTreeMap::new(),
            ended: Vec::new(),
            unknown: Vec::new(),
            returned: Vec::new(),
        };
        for operation in history {
            match &operation.outcome {
                Outcome::Ended if operation.call != Call::End => return Err(odd(operation)),
                Outcome::Done(_) if operation.call == Call::End => return Err(odd(operation)),
                Outcome::Unmet { .. } if !matches!(operation.call, Call::PutIf { .. }) => {
                    return Err(odd(operation));
                }
                Outcome::Repeated(_) if !matches!(operation.call, Call::Add { .. }) => {
                    return Err(odd(operation));
                }
                Outcome::Done(shown) | Outcome::Repeated(shown) => {
                    let Some(version) = shown.version else {
                        return Err(violation("an answer tells no version", String::new(), [operation]));
                    };
                    told.at.entry(version).or_default().push(operation);
                }
                Outcome::Unmet { version } => told.at.entry(*version).or_default().push(operation),
                Outcome::Ended | Outcome::Gone => told.ended.push(operation),
                Outcome::Unknown if operation.call == Call::Read => {}
                Outcome::Unknown => told.unknown.push(operation),
            }
        }
        told.returned = history
            .iter()
            .filter_map(|operation| place(operation).map(|at| (operation.returned, at, operation)))
            .collect();
        told.returned.sort_by_key(|(time, ..)| *time);
        for i in 1..told.returned.len() {
            let (_, place, operation) = told.returned[i - 1];
            if told.returned[i].1 < place {
                (told.returned[i].1, told.returned[i].2) = (place, operation);
            }
        }
        Ok(told)
    }

    /// What was over before a time and tells of the latest version, with that version.
    fn before(&self, time: u64) -> Option<(u64, &'a Operation)> {
        let end = self.returned.partition_point(|(returned, ..)| *returned < time);
        self.returned[..end].last().map(|(_, at, operation)| (*at, *operation))
    }

    /// Nobody is told of an older version than somebody was told of before.
    fn respects_time(&self) -> Result<(), Violation> {
        for operation in self.history {
            let Some(at) = place(operation) else { continue };
            let Some((seen, earlier)) = self.before(operation.invoked) else { continue };
            // What had been done before may be told at any later time.
            let late = matches!(operation.outcome, Outcome::Repeated(_)) && seen < AFTER_ALL;
            if seen > at && !late {
                let rule = match (seen, &operation.call) {
                    (AFTER_ALL, _) => "a session that had ended came back",
                    (_, Call::Read) => "a read showed an older state than was told before it began",
                    _ => "a change was made to an older state than was told before it began",
                };
                return Err(self.because(rule, operation, earlier));
            }
        }
        self.ends()
    }

    /// The session is gone only after something ended it, and ends once.
    fn ends(&self) -> Result<(), Violation> {
        let by: Vec<_> = self.ended.iter().filter(|operation| operation.outcome == Outcome::Ended).collect();
        if let [first, second, ..] = by[..] {
            return Err(violation("a session was ended twice", String::new(), [*first, *second]));
        }
        let Some(gone) = self.ended.iter().min_by_key(|operation| operation.returned) else { return Ok(()) };
        if let [end] = by[..] {
            if gone.precedes(end) {
                return Err(self.because("a session that was gone was ended", end, gone));
            }
            return Ok(());
        }
        let possible =
            |operation: &&&Operation| operation.call == Call::End && operation.invoked <= gone.returned;
        if self.unknown.iter().any(|operation| possible(&operation)) {
            return Ok(());
        }
        let story = "Nobody had asked for its end, and it could not have expired.".to_owned();
        let last = self.before(gone.invoked).map(|(_, operation)| operation);
        Err(violation("a session was lost", story, last.into_iter().chain([*gone])))
    }

    /// Each version follows from the one before, and answers show what there was.
    fn follows(&self) -> Result<(), Violation> {
        let last = self.at.keys().next_back().copied().unwrap_or(0);
        // A visit begins a session with version 0, a change with version 1.
        let first = u64::from(!self.at.contains_key(&0));
        let (mut version, mut model, mut used) = (first, Model::Unborn, BTreeSet::new());
        let mut forks: Vec<Fork> = Vec::new();
        // Of all that did not fit, what came furthest is nearest to the truth.
        let mut furthest: Option<(u64, Violation)> = None;
        for _ in 0..BUDGET {
            if version > last {
                return Ok(());
            }
            match self.next(version, &model, &used) {
                Ok(mut choices) => {
                    let (index, after) = choices.pop().expect("without a choice there is a violation");
                    if !choices.is_empty() {
                        forks.push(Fork { version, used: used.clone(), choices });
                    }
                    used.extend(index);
                    model = after;
                    version += 1;
                }
                Err(violation) => {
                    if furthest.as_ref().is_none_or(|(reached, _)| version > *reached) {
                        furthest = Some((version, violation));
                    }
                    let Some(fork) = forks.last_mut() else {
                        return Err(furthest.expect("this violation, or one that came further").1);
                    };
                    let (index, after) = fork.choices.pop().expect("a fork without choices is no fork");
                    (version, model) = (fork.version + 1, after);
                    used.clone_from(&fork.used);
                    used.extend(index);
                    if fork.choices.is_empty() {
                        forks.pop();
                    }
                }
            }
        }
        let story =
            format!("{} operations of unknown outcome leave too many possibilities.", self.unknown.len());
        Err(violation("the versions could not be followed", story, []))
    }

    /// How `version` can have come to be after `model`: one possibility or several, the likeliest last.
    fn next(&self, version: u64, model: &Model, used: &BTreeSet<usize>) -> Result<Vec<Choice>, Violation> {
        let told = self.at.get(&version).map_or(&[][..], Vec::as_slice);
        let changing: Vec<&Operation> = told
            .iter()
            .filter(|operation| {
                matches!(operation.outcome, Outcome::Done(_))
                    && (operation.begins || operation.call != Call::Read)
            })
            .copied()
            .collect();
        let unknown = self.unknown.iter().enumerate().filter(|(index, _)| !used.contains(index));
        let candidates: Vec<(Option<usize>, &Operation)> = match changing[..] {
            [] => unknown.map(|(index, operation)| (Some(index), *operation)).collect(),
            [maker] => vec![(None, maker)],
            [first, second, ..] => {
                let rule = "two changes were acknowledged with the same version, so one of them is lost";
                return Err(violation(rule, String::new(), [first, second]));
            }
        };
        let mut choices: Vec<Choice> = candidates
            .iter()
            .filter(|(_, operation)| self.before(operation.invoked).is_none_or(|(seen, _)| seen < version))
            .filter_map(|(index, operation)| {
                let after = model.step(operation).filter(|after| after.version() == version)?;
                let others = told.iter().filter(|other| !std::ptr::eq(**other, *operation));
                let fits = others.clone().all(|other| after.step(other).is_some());
                fits.then_some((*index, after))
            })
            .collect();
        choices.reverse();
        if choices.is_empty() { Err(self.nobody(version, model, told, &changing)) } else { Ok(choices) }
    }

    /// Why nothing could have made this version.
    fn nobody(&self, version: u64, model: &Model, told: &[&Operation], changing: &[&Operation]) -> Violation {
        let story = format!("Before version {version} the session was {}.", text::model(model));
        if let [maker, ..] = changing[..] {
            let Some(after) = model.step(maker).filter(|after| after.version() == version) else {
                let rule = "the answer to a change does not follow from the state that it was made to";
                return violation(rule, story, self.at_or_before(version, maker));
            };
            if let Some(other) =
                told.iter().find(|other| !std::ptr::eq(**other, maker) && after.step(other).is_none())
            {
                let rule = "an answer does not show what its version holds";
                return violation(rule, story, [maker, *other]);
            }
            let (_, earlier) = self.before(maker.invoked).expect("only time is left as an obstacle");
            return self.because("the version of a change was known before the change began", maker, earlier);
        }
        match told {
            [shown, ..] => {
                violation("a state was shown that nobody made", story, self.at_or_before(version, shown))
            }
            [] => {
                let next = self.at.range(version..).next().and_then(|(_, told)| told.first());
                violation("a version was skipped that nobody can have made", story, next.copied())
            }
        }
    }

    /// What told of the version before, and an operation.
    fn at_or_before<'b>(
        &'b self,
        version: u64,
        operation: &'b Operation,
    ) -> impl Iterator<Item = &'b Operation> {
        let before = self.at.range(..version).next_back().and_then(|(_, told)| told.first()).copied();
        before.into_iter().chain([operation])
    }

    /// A violation of time: an operation, and one that was over before it began.
    fn because(&self, rule: &str, operation: &Operation, earlier: &Operation) -> Violation {
        let story = format!(
            "The second began {} after the first was over.",
            text::span(operation.invoked.saturating_sub(earlier.returned))
        );
        violation(rule, story, [earlier, operation])
    }
}

/// Where in the order of versions an operation stands; `None` when it does not say.
fn place(operation: &Operation) -> Option<u64> {
    match &operation.outcome {
        Outcome::Done(shown) | Outcome::Repeated(shown) => shown.version,
        Outcome::Unmet { version } => Some(*version),
        Outcome::Ended | Outcome::Gone => Some(AFTER_ALL),
        Outcome::Unknown => None,
    }
}

fn odd(operation: &Operation) -> Violation {
    violation("an answer does not belong to its question", String::new(), [operation])
}

fn violation<'a>(
    rule: &str,
    story: String,
    operations: impl IntoIterator<Item = &'a Operation>,
) -> Violation {
    Violation { rule: rule.to_owned(), story, operations: operations.into_iter().cloned().collect() }
}
