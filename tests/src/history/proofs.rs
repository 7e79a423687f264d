//! The checkers checked: histories that happened are accepted, the same with one lie in them are refused, and on
//! histories of pure noise both checkers and a third one, which tries every order there is, say the same.

use super::search::Verdict;
use super::{Call, Model, Operation, Outcome, Shown, check, search, witness};
use lb_common::token::SessionId;
use proptest::prelude::*;
use std::sync::Arc;

/// What happens in one step of a history, as random numbers.
#[derive(Clone, Debug)]
struct Dice {
    kind: u8,
    which: u8,
    /// How long before and after its effect the operation was under way.
    early: u16,
    late: u16,
    /// Of 8: below 1 the client never hears of it, below 2 it did not even happen.
    fate: u8,
}

fn dice() -> impl Strategy<Value = Dice> {
    (0u8..10, any::<u8>(), 0u16..5000, 0u16..5000, 0u8..16)
        .prop_map(|(kind, which, early, late, fate)| Dice { kind, which, early, late, fate })
}

fn text(text: impl ToString) -> Arc<str> {
    text.to_string().into()
}

fn operation(call: Call, outcome: Outcome, invoked: u64, returned: u64) -> Operation {
    Operation {
        client: 0,
        session: SessionId([7; 16]),
        invoked,
        returned,
        call,
        outcome,
        begins: false,
        token: None,
        given: None,
        way: text("vip"),
        by: None,
    }
}

fn shown(model: &Model) -> Shown {
    let Model::Alive(alive) = model else { return Shown::default() };
    Shown { version: Some(alive.version), values: Some(alive.values.clone()), cart: Some(alive.cart.clone()) }
}

/// What a call is answered with, by servers that do all they promise.
fn answer(model: &Model, call: &Call) -> (Outcome, Model) {
    let asked = operation(call.clone(), Outcome::Unknown, 0, 0);
    match (model, call) {
        (Model::Ended | Model::Unborn, _) => (Outcome::Gone, model.clone()),
        (Model::Alive(_), Call::End) => (Outcome::Ended, Model::Ended),
        (Model::Alive(alive), call) if alive.refuses(call) => {
            (Outcome::Unmet { version: alive.version }, model.clone())
        }
        (Model::Alive(alive), Call::Add { order: Some(number), .. })
            if alive.orders.iter().any(|order| order.number == *number) =>
        {
            let order = alive.orders.iter().find(|order| order.number == *number).unwrap();
            let cart = Some((*order.cart).clone());
            (Outcome::Repeated(Shown { version: Some(order.version), values: None, cart }), model.clone())
        }
        _ => {
            let after = model.step(&asked).unwrap_or_else(|| model.clone());
            (Outcome::Done(shown(&after)), after)
        }
    }
}

/// Something that happened: one operation after the other takes effect, each somewhere between its beginning and its end.
fn happen(dice: &[Dice], end: bool) -> Vec<Operation> {
    let begin = Operation {
        begins: true,
        ..operation(
            Call::Put { key: text("k"), value: text("first") },
            Outcome::Done(Shown { version: Some(1), ..Shown::default() }),
            1000,
            1400,
        )
    };
    let mut model = Model::Unborn.step(&begin).unwrap();
    let mut history = vec![Operation { outcome: Outcome::Done(shown(&model)), ..begin }];
    for (i, dice) in dice.iter().enumerate() {
        let key = text(format!("k{}", dice.which % 3));
        let value = text(i);
        let call = match dice.kind {
            0..=2 => Call::Put { key, value },
            3 => {
                Call::PutIf { key, value, version: model.version().saturating_sub(u64::from(dice.which % 2)) }
            }
            4 | 5 => Call::Add { sku: key, quantity: 1, order: Some(u64::from(dice.which % 4)) },
            6 => Call::Add { sku: key, quantity: 2, order: None },
            _ => Call::Read,
        };
        // One step in about forty.
        let call = if end && dice.which.is_multiple_of(40) { Call::End } else { call };
        let (outcome, after) = answer(&model, &call);
        if dice.fate != 1 {
            model = after;
        }
        let outcome = if dice.fate < 2 { Outcome::Unknown } else { outcome };
        let point = 10_000 + 1000 * i as u64;
        let late = point + 1 + u64::from(dice.late);
        history.push(operation(call, outcome, point - u64::from(dice.early), late));
    }
    history
}

fn explained(history: &[Operation]) -> Verdict {
    search::check(history, &Model::Unborn, search::BUDGET)
}

/// Both checkers refuse it.
fn refused(history: &[Operation]) -> Result<(), TestCaseError> {
    prop_assert!(witness::check(history).is_err(), "the witness accepts {history:#?}");
    prop_assert_eq!(explained(history), Verdict::Impossible, "the search accepts {:#?}", history);
    let violation = check(history).unwrap_err();
    prop_assert!(!violation.operations.is_empty(), "{}", violation);
    Ok(())
}

/// The first pair of operations of which the one was over before the other began, and that has a property.
fn pair<'a>(history: &'a [Operation], is: impl Fn(&Operation, &Operation) -> bool) -> Option<(usize, usize)> {
    let all = 0..history.len();
    all.clone().flat_map(|a| all.clone().map(move |b| (a, b))).find(|(a, b)| {
        let (a, b): (&'a Operation, &'a Operation) = (&history[*a], &history[*b]);
        a.precedes(b) && is(a, b)
    })
}

fn version(operation: &Operation) -> Option<u64> {
    match &operation.outcome {
        Outcome::Done(shown) => shown.version,
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_global_rejects: 1 << 20, ..ProptestConfig::default() })]

    #[test]
    fn what_happened_is_accepted(dice in proptest::collection::vec(dice(), 0..60), end: bool) {
        let history = happen(&dice, end);
        prop_assert_eq!(witness::check(&history), Ok(()));
        prop_assert_eq!(explained(&history), Verdict::Explained);
        prop_assert_eq!(check(&history), Ok(()));
    }

    #[test]
    fn the_order_in_which_it_was_written_down_does_not_matter(
        dice in proptest::collection::vec(dice(), 0..40), end: bool, turn: prop::sample::Index,
    ) {
        let mut history = happen(&dice, end);
        let middle = turn.index(history.len());
        history.rotate_left(middle);
        history[..middle].reverse();
        prop_assert_eq!(check(&history), Ok(()));
    }

    #[test]
    fn a_stale_read_is_refused(dice in proptest::collection::vec(dice(), 10..60)) {
        let mut history = happen(&dice, false);
        let found = pair(&history, |a, b| b.call == Call::Read && version(a) == version(b) && version(b) > Some(1));
        prop_assume!(found.is_some());
        let (_, read) = found.unwrap();
        let old = version(&history[read]).map(|version| version - 1);
        let state = history.iter().find(|other| version(other) == old).map(|other| other.outcome.clone());
        prop_assume!(state.is_some());
        history[read].outcome = state.unwrap();
        refused(&history)?;
    }

    #[test]
    fn reading_back_in_time_is_refused(dice in proptest::collection::vec(dice(), 10..60)) {
        let mut history = happen(&dice, false);
        let reads = |a: &Operation, b: &Operation| {
            a.call == Call::Read && b.call == Call::Read && version(a).zip(version(b)).is_some_and(|(a, b)| a < b)
        };
        let found = pair(&history, reads);
        prop_assume!(found.is_some());
        let (a, b) = found.unwrap();
        let first = history[a].outcome.clone();
        history[a].outcome = std::mem::replace(&mut history[b].outcome, first);
        refused(&history)?;
    }

    #[test]
    fn a_lost_update_is_refused(dice in proptest::collection::vec(dice(), 10..60), which: prop::sample::Index) {
        let mut history = happen(&dice, false);
        let puts: Vec<_> = (0..history.len())
            .filter(|i| matches!(history[*i].call, Call::Put { .. }) && version(&history[*i]).is_some())
            .collect();
        prop_assume!(puts.len() > 2);
        // It was made to the state that the other one was made to, and says so.
        let at = 1 + which.index(puts.len() - 1);
        let (other, lost) = (puts[at - 1], puts[at]);
        let Outcome::Done(other) = history[other].outcome.clone() else { unreachable!() };
        let Outcome::Done(shown) = &mut history[lost].outcome else { unreachable!() };
        shown.version = other.version;
        refused(&history)?;
    }

    #[test]
    fn an_acknowledged_write_that_is_not_there_is_refused(dice in proptest::collection::vec(dice(), 10..60)) {
        let mut history = happen(&dice, false);
        let last = (0..history.len())
            .filter(|i| matches!(history[*i].call, Call::Put { .. }))
            .filter(|i| version(&history[*i]).is_some_and(|version| version > 1))
            .max_by_key(|i| version(&history[*i]));
        prop_assume!(last.is_some());
        let made = version(&history[last.unwrap()]);
        // Everything told of it or what came after is forgotten, and a last read shows the state before.
        let before = history.iter().filter(|other| version(other) < made && version(other).is_some());
        let before = before.max_by_key(|other| version(other)).map(|other| other.outcome.clone());
        let unmet = |operation: &Operation| matches!(operation.outcome, Outcome::Unmet { version } if Some(version) >= made);
        let last = last.unwrap();
        let mut i = 0;
        history.retain(|operation| {
            i += 1;
            i - 1 == last || version(operation).is_none_or(|version| Some(version) < made) && !unmet(operation)
        });
        history.push(operation(Call::Read, before.unwrap(), 1 << 40, (1 << 40) + 5));
        refused(&history)?;
    }

    #[test]
    fn a_value_from_nowhere_is_refused(dice in proptest::collection::vec(dice(), 1..40), at: prop::sample::Index) {
        let mut history = happen(&dice, false);
        let at = at.index(history.len());
        let Outcome::Done(shown) = &mut history[at].outcome else { return Ok(()) };
        shown.values.as_mut().unwrap().insert(text("k1"), text("nobody's"));
        refused(&history)?;
    }

    #[test]
    fn an_effect_that_was_had_twice_is_refused(mut dice in proptest::collection::vec(dice(), 5..60)) {
        // What nobody knows of could explain it.
        dice.iter_mut().for_each(|dice| dice.fate = dice.fate.max(2));
        let history = happen(&dice, false);
        let order = |operation: &Operation| match &operation.call {
            Call::Add { order, .. } if version(operation).is_some() => *order,
            _ => None,
        };
        let found = history.iter().rposition(|operation| matches!(operation.outcome, Outcome::Repeated(_)));
        prop_assume!(found.is_some());
        let replay = found.unwrap();
        // It is said to be done once more, which nothing that was told later contradicts.
        let mut history: Vec<_> = history.into_iter().take(replay).collect();
        let last = history.iter().filter(|operation| version(operation).is_some());
        let last = last.max_by_key(|operation| version(operation)).unwrap();
        let Outcome::Done(mut shown) = last.outcome.clone() else { unreachable!() };
        let again = history.iter().find(|operation| order(operation).is_some()).unwrap().call.clone();
        let Call::Add { sku, quantity, .. } = again.clone() else { unreachable!() };
        shown.version = shown.version.map(|version| version + 1);
        *shown.cart.as_mut().unwrap().entry(sku).or_default() += quantity;
        history.push(operation(again, Outcome::Done(shown), 1 << 40, (1 << 40) + 5));
        refused(&history)?;
    }

    #[test]
    fn a_session_that_comes_back_is_refused(dice in proptest::collection::vec(dice(), 5..40)) {
        let mut history = happen(&dice, false);
        let last = history.iter().filter(|operation| version(operation).is_some());
        let state = last.max_by_key(|operation| version(operation)).unwrap().outcome.clone();
        history.push(operation(Call::End, Outcome::Ended, 1 << 40, (1 << 40) + 5));
        prop_assert_eq!(check(&history), Ok(()));
        history.push(operation(Call::Read, Outcome::Gone, (1 << 40) + 10, (1 << 40) + 15));
        prop_assert_eq!(check(&history), Ok(()));
        history.push(operation(Call::Read, state, (1 << 40) + 20, (1 << 40) + 25));
        refused(&history)?;
    }

    #[test]
    fn a_session_that_is_lost_is_refused(dice in proptest::collection::vec(dice(), 5..40)) {
        let mut history = happen(&dice, false);
        history.push(operation(Call::Read, Outcome::Gone, 1 << 40, (1 << 40) + 5));
        refused(&history)?;
    }

    #[test]
    fn on_noise_all_three_agree(noise in proptest::collection::vec(noise(), 1..6), born in noise()) {
        let mut history = noise;
        let begun = matches!(born.outcome, Outcome::Done(_));
        let first = Outcome::Done(Shown { version: Some(1), ..Shown::default() });
        let call = if born.call == Call::End { Call::Read } else { born.call };
        history.push(Operation { begins: true, outcome: if begun { born.outcome } else { first }, call, ..born });
        let found = explained(&history);
        prop_assert_eq!(witness::check(&history).is_ok(), found == Verdict::Explained, "witness and search");
        prop_assert_eq!(every_order(&history), found == Verdict::Explained, "every order and search");
        for operation in &mut history {
            if let Outcome::Done(shown) | Outcome::Repeated(shown) = &mut operation.outcome {
                shown.version = None;
            }
        }
        let found = explained(&history);
        prop_assert_eq!(every_order(&history), found == Verdict::Explained, "without versions");
    }

    #[test]
    fn on_near_truth_all_three_agree(
        dice in proptest::collection::vec(dice(), 1..5), end: bool,
        at: prop::sample::Index, from: prop::sample::Index,
    ) {
        let mut history = happen(&dice, end);
        // The first began the session, whatever else is not true.
        let (at, from) = (1 + at.index(history.len() - 1), from.index(history.len()));
        let outcome = history[from].outcome.clone();
        history[at].outcome = outcome;
        let found = explained(&history);
        prop_assert_eq!(witness::check(&history).is_ok(), found == Verdict::Explained, "witness and search");
        prop_assert_eq!(every_order(&history), found == Verdict::Explained, "every order and search");
    }
}

/// An operation that makes no sense, most of the time.
fn noise() -> impl Strategy<Value = Operation> {
    let call = (0u8..6, 0u64..3, 0u8..2).prop_map(|(kind, number, value)| {
        let (key, value) = (text("k"), text(value));
        match kind {
            0 => Call::Read,
            1 => Call::PutIf { key, value, version: number },
            2 => Call::Add { sku: key, quantity: 1, order: Some(number % 2) },
            3 => Call::End,
            _ => Call::Put { key, value },
        }
    });
    let state = (1u64..4, 0u8..3, 0u32..3).prop_map(|(version, value, quantity)| Shown {
        version: Some(version),
        values: (value < 2).then(|| [(text("k"), text(value))].into()),
        cart: (quantity > 0).then(|| [(text("k"), quantity)].into()),
    });
    let outcome = prop_oneof![
        8 => state.clone().prop_map(Outcome::Done),
        2 => state.prop_map(|shown| Outcome::Repeated(Shown { values: None, ..shown })),
        1 => (1u64..4).prop_map(|version| Outcome::Unmet { version }),
        1 => Just(Outcome::Ended),
        1 => Just(Outcome::Gone),
        3 => Just(Outcome::Unknown),
    ];
    (call, outcome, 0u64..12, 0u64..12)
        .prop_map(|(call, outcome, invoked, long)| operation(call, outcome, invoked, invoked + long))
}

/// Tries every order of all operations, those of unknown outcome left out or not.
fn every_order(history: &[Operation]) -> bool {
    fn from(model: &Model, left: &[&Operation]) -> bool {
        if left.iter().all(|operation| operation.outcome == Outcome::Unknown) {
            return true;
        }
        (0..left.len()).any(|i| {
            let first = left[i];
            let others: Vec<_> = left.iter().filter(|other| !std::ptr::eq(**other, first)).copied().collect();
            !others.iter().any(|other| other.precedes(first))
                && model.step(first).is_some_and(|after| from(&after, &others))
        })
    }
    from(&Model::Unborn, &history.iter().collect::<Vec<_>>())
}

#[test]
fn thousands_of_operations_with_hundreds_of_unknown_ones_are_within_the_budget() {
    // Every tenth is left behind by a killed server, half of those took effect.
    let dice: Vec<_> = (0..5000u32)
        .map(|i| Dice {
            kind: (i % 10) as u8,
            which: (i / 7 % 251) as u8,
            early: (i * 7919 % 30_000) as u16 % 9000,
            late: (i * 104_729 % 60_000) as u16 % 9000,
            fate: if i % 10 == 0 { (i / 10 % 2) as u8 } else { 9 },
        })
        .collect();
    let history = happen(&dice, false);
    assert_eq!(witness::check(&history), Ok(()));
    assert_eq!(explained(&history), Verdict::Explained);
}

#[test]
fn a_violation_tells_what_happened() {
    let put = |value: &str, version, invoked, returned| {
        let done =
            Shown { version: Some(version), values: Some([(text("k"), text(value))].into()), cart: None };
        operation(Call::Put { key: text("k"), value: text(value) }, Outcome::Done(done), invoked, returned)
    };
    let first = Operation { begins: true, ..put("one", 1, 1_000_000, 2_000_000) };
    let second = Operation { client: 3, token: Some((2, 9)), ..put("two", 2, 3_000_000, 4_000_000) };
    let stale = Operation { call: Call::Read, client: 4, begins: false, ..first.clone() };
    let stale = Operation { invoked: 5_500_000, returned: 6_000_000, ..stale };
    let text = check(&[first, second, stale]).unwrap_err().to_string();
    for part in [
        "a read showed an older state",
        "1.500 ms after the first was over",
        "session 0707",
        "client 3",
        "put k=two",
        "with 2@9",
        "version 2 k=two",
        "client 4",
        "version 1 k=one",
    ] {
        assert!(text.contains(part), "no {part:?} in:\n{text}");
    }
}
