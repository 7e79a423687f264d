//! What the clients of one session saw, and whether that can be. Every change appends its number to the session's log, so
//! the version that an answer names says which changes must be in it.

use std::collections::{BTreeMap, BTreeSet};

/// What an answer tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Saw {
    /// The session as it is.
    State { version: u64, log: Vec<u32> },
    /// The session with this change in it, made just now.
    Made { change: u32, version: u64, log: Vec<u32> },
    /// The session as it was when this change was made, some time ago.
    Repeated { change: u32, version: u64, log: Vec<u32> },
    /// There is no such session, or it has been ended just now.
    Gone,
    /// Nothing for certain: an error, or no answer at all.
    Nothing,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Event {
    pub(super) began: usize,
    /// `None` when no answer ever came.
    pub(super) ended: Option<usize>,
    pub(super) saw: Saw,
}

/// Whether there is an order of the events in which each takes effect at one moment between its beginning and its end.
pub(super) fn check(events: &[Event]) -> Result<(), String> {
    let mut logs: BTreeMap<u64, &[u32]> = BTreeMap::new();
    let mut made = BTreeSet::new();
    for event in events {
        let (version, log) = match &event.saw {
            Saw::State { version, log } => (*version, log),
            Saw::Made { change, version, log } | Saw::Repeated { change, version, log } => {
                if log.last() != Some(change) {
                    return Err(format!("the answer to change {change} shows another one last: {event:?}"));
                }
                if matches!(event.saw, Saw::Made { .. }) && !made.insert(*version) {
                    return Err(format!("two changes made version {version}: {event:?}"));
                }
                (*version, log)
            }
            Saw::Gone | Saw::Nothing => continue,
        };
        if log.len() as u64 + 1 != version {
            return Err(format!(
                "version {version} has {} changes: one was lost, or made twice: {event:?}",
                log.len()
            ));
        }
        if log.iter().collect::<BTreeSet<_>>().len() != log.len() {
            return Err(format!("a change was made twice: {event:?}"));
        }
        if *logs.entry(version).or_insert(log) != log.as_slice() {
            return Err(format!("version {version} is not the same for all: {event:?}"));
        }
    }
    let mut before: &[u32] = &[];
    for log in logs.values() {
        if !log.starts_with(before) {
            return Err(format!("{log:?} does not go on from {before:?}"));
        }
        before = log;
    }
    for first in events.iter().filter(|event| event.ended.is_some()) {
        for then in events.iter().filter(|event| Some(event.began) >= first.ended && event.ended.is_some()) {
            follows(first, then)?;
        }
    }
    Ok(())
}

/// Whether what was seen later can follow what was seen before.
fn follows(first: &Event, then: &Event) -> Result<(), String> {
    let at_least = match &first.saw {
        Saw::State { version, .. } | Saw::Made { version, .. } | Saw::Repeated { version, .. } => *version,
        Saw::Nothing => return Ok(()),
        Saw::Gone => {
            return match then.saw {
                Saw::Gone | Saw::Nothing => Ok(()),
                _ => Err(format!("a session that was gone is back: {first:?}, then {then:?}")),
            };
        }
    };
    let fits = match &then.saw {
        Saw::State { version, .. } => *version >= at_least,
        Saw::Made { version, .. } => *version > at_least,
        // What is told is old by its nature.
        Saw::Repeated { .. } | Saw::Gone | Saw::Nothing => true,
    };
    if fits { Ok(()) } else { Err(format!("an old state was told: {first:?}, then {then:?}")) }
}

#[test]
fn histories_that_can_be_pass_and_others_do_not() {
    let state = |log: &[u32]| Saw::State { version: log.len() as u64 + 1, log: log.to_vec() };
    let made = |log: &[u32]| Saw::Made {
        change: log[log.len() - 1],
        version: log.len() as u64 + 1,
        log: log.to_vec(),
    };
    let repeated = |log: &[u32]| Saw::Repeated {
        change: log[log.len() - 1],
        version: log.len() as u64 + 1,
        log: log.to_vec(),
    };
    // Each event: when it began, when it ended, what it saw.
    type Row = (&'static str, Vec<(usize, usize, Saw)>, Option<&'static str>);
    let rows: [Row; 13] = [
        ("one after the other", vec![(0, 1, state(&[])), (1, 2, made(&[7])), (2, 3, state(&[7]))], None),
        (
            "at the same time, either order",
            vec![(0, 9, made(&[7])), (1, 2, state(&[])), (3, 4, state(&[7]))],
            None,
        ),
        ("ended", vec![(0, 1, made(&[7])), (1, 2, Saw::Gone), (2, 3, Saw::Gone)], None),
        ("told again", vec![(0, 1, made(&[7])), (1, 2, made(&[7, 8])), (2, 3, repeated(&[7]))], None),
        ("an old read", vec![(0, 1, made(&[7])), (1, 2, state(&[]))], Some("old state")),
        (
            "reads that go back",
            vec![(0, 9, made(&[7])), (1, 2, state(&[7])), (3, 4, state(&[]))],
            Some("old state"),
        ),
        ("a change on old state", vec![(0, 1, state(&[7])), (1, 2, made(&[8]))], Some("not the same")),
        (
            "a change that comes too early",
            vec![(0, 1, state(&[7, 8])), (1, 2, made(&[7]))],
            Some("old state"),
        ),
        ("a lost change", vec![(0, 1, Saw::State { version: 3, log: vec![7] })], Some("lost")),
        ("a change made twice", vec![(0, 1, state(&[7, 7]))], Some("twice")),
        ("two winners", vec![(0, 9, made(&[7])), (0, 9, made(&[7]))], Some("two changes")),
        ("a log that was rewritten", vec![(0, 9, state(&[7])), (0, 9, state(&[8, 7]))], Some("go on")),
        ("back from the end", vec![(0, 1, Saw::Gone), (1, 2, state(&[]))], Some("is back")),
    ];
    for (name, events, expected) in rows {
        let events: Vec<_> =
            events.into_iter().map(|(began, ended, saw)| Event { began, ended: Some(ended), saw }).collect();
        let result = check(&events);
        match expected {
            None => assert_eq!(result, Ok(()), "{name}"),
            Some(words) => assert!(result.as_ref().is_err_and(|e| e.contains(words)), "{name}: {result:?}"),
        }
    }
}
