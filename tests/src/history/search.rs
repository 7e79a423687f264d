//! Looks for an order of all operations that explains every outcome and respects time: Wing and Gong's search, which
//! takes operations one by one and goes back where it is stuck, with Lowe's memoization of what has been tried.
//!
//! Operations of unknown outcome are tried only where no other fits, and never past a version that somebody has still
//! to be shown; so those that servers leave behind when they are killed do not multiply.

use super::{Call, Model, Operation, Outcome};
use std::collections::{BTreeMap, HashSet};

/// Steps after which a search gives up. Histories that can be explained take about one for each operation.
pub const BUDGET: usize = 2_000_000;

/// What a search found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verdict {
    Explained,
    Impossible,
    /// The budget did not suffice.
    Undecided,
}

/// Whether a history can have happened to a session that was `from` at first.
pub fn check(history: &[Operation], from: &Model, budget: usize) -> Verdict {
    Search::new(history, from.clone()).run(budget)
}

/// Ends of the list.
const NONE: usize = usize::MAX;

/// A call or a return of an operation with a known outcome, in a list in the order of time.
#[derive(Clone, Copy)]
struct Event {
    operation: usize,
    is_call: bool,
    before: usize,
    after: usize,
}

/// Where the search goes on at a node.
#[derive(Clone, Copy)]
enum At {
    /// With this event.
    Event(usize),
    /// With the unknown operation of this index.
    Unknown(usize),
}

/// A step that was taken.
struct Step {
    operation: usize,
    before: Model,
    /// What is tried next where it was taken.
    next: At,
}

struct Search<'a> {
    history: &'a [Operation],
    events: Vec<Event>,
    /// First event that is left.
    head: usize,
    /// Call and return of each operation with a known outcome.
    places: Vec<(usize, usize)>,
    /// Operations of unknown outcome that could have an effect, in the order of time.
    unknown: Vec<usize>,
    taken: Vec<u64>,
    /// How many operations with a known outcome are left.
    left: usize,
    /// The versions that the session must not be past while those are left, and how many there are of each.
    caps: BTreeMap<u64, usize>,
    model: Model,
    steps: Vec<Step>,
    tried: HashSet<(Box<[u64]>, Model)>,
}

impl<'a> Search<'a> {
    fn new(history: &'a [Operation], model: Model) -> Self {
        let known = |i: &usize| history[*i].outcome != Outcome::Unknown;
        let mut times: Vec<(u64, bool, usize)> = (0..history.len())
            .filter(known)
            .flat_map(|i| [(history[i].invoked, false, i), (history[i].returned, true, i)])
            .collect();
        // At the same time calls come first: nothing says which of the two operations was before the other.
        times.sort_unstable();
        let mut places = vec![(NONE, NONE); history.len()];
        let mut events = Vec::with_capacity(times.len());
        for (at, (_, is_return, operation)) in times.iter().copied().enumerate() {
            let after = if at + 1 < times.len() { at + 1 } else { NONE };
            events.push(Event { operation, is_call: !is_return, before: at.wrapping_sub(1), after });
            if is_return {
                places[operation].1 = at;
            } else {
                places[operation].0 = at;
            }
        }
        let mut unknown: Vec<usize> =
            (0..history.len()).filter(|i| !known(i) && history[*i].call != Call::Read).collect();
        unknown.sort_unstable_by_key(|i| history[*i].invoked);
        let mut caps = BTreeMap::new();
        for cap in (0..history.len()).filter(known).filter_map(|i| cap(&history[i])) {
            *caps.entry(cap).or_default() += 1;
        }
        Self {
            history,
            head: if events.is_empty() { NONE } else { 0 },
            left: events.len() / 2,
            events,
            places,
            unknown,
            taken: vec![0; history.len().div_ceil(64)],
            caps,
            model,
            steps: Vec::new(),
            tried: HashSet::new(),
        }
    }

    fn run(mut self, budget: usize) -> Verdict {
        let mut at = At::Event(self.head);
        for _ in 0..budget {
            if self.left == 0 {
                return Verdict::Explained;
            }
            at = match self.candidate(at) {
                Some((operation, next)) => {
                    if self.take(operation, next) {
                        At::Event(self.head)
                    } else {
                        next
                    }
                }
                None => match self.go_back() {
                    Some(next) => next,
                    None => return Verdict::Impossible,
                },
            };
        }
        Verdict::Undecided
    }

    /// The next operation that could be the next to take effect, and where to go on if it is not.
    fn candidate(&self, at: At) -> Option<(usize, At)> {
        let mut index = match at {
            At::Event(event) if event != NONE && self.events[event].is_call => {
                let Event { operation, after, .. } = self.events[event];
                return Some((operation, At::Event(after)));
            }
            // Whatever was called later comes after what returned here.
            At::Event(_) => 0,
            At::Unknown(index) => index,
        };
        let deadline = self.deadline();
        loop {
            let operation = *self.unknown.get(index)?;
            if self.history[operation].invoked > deadline {
                return None;
            }
            index += 1;
            if !self.is_taken(operation) {
                return Some((operation, At::Unknown(index)));
            }
        }
    }

    /// When the first operation that is left returned.
    fn deadline(&self) -> u64 {
        let mut at = self.head;
        while at != NONE {
            let event = self.events[at];
            if !event.is_call {
                return self.history[event.operation].returned;
            }
            at = event.after;
        }
        u64::MAX
    }

    /// Lets an operation take effect, unless it cannot, or that was tried.
    fn take(&mut self, operation: usize, next: At) -> bool {
        let Some(after) = self.model.step(&self.history[operation]) else { return false };
        self.lift(operation);
        let passed = self.caps.keys().next().is_some_and(|cap| after.version() > *cap);
        if passed || !self.tried.insert((self.taken.clone().into_boxed_slice(), after.clone())) {
            self.put_back(operation);
            return false;
        }
        let before = std::mem::replace(&mut self.model, after);
        self.steps.push(Step { operation, before, next });
        true
    }

    /// Takes the last step back. `None` when there was none.
    fn go_back(&mut self) -> Option<At> {
        let Step { operation, before, next } = self.steps.pop()?;
        self.model = before;
        self.put_back(operation);
        Some(next)
    }

    fn is_taken(&self, operation: usize) -> bool {
        self.taken[operation / 64] & 1 << (operation % 64) != 0
    }

    fn lift(&mut self, operation: usize) {
        self.taken[operation / 64] |= 1 << (operation % 64);
        let (call, back) = self.places[operation];
        if call == NONE {
            return;
        }
        self.unlink(call);
        self.unlink(back);
        self.left -= 1;
        if let Some(cap) = cap(&self.history[operation]) {
            let count = self.caps.get_mut(&cap).expect("what is left is counted");
            *count -= 1;
            if *count == 0 {
                self.caps.remove(&cap);
            }
        }
    }

    /// Undoes the last `lift` that was not undone.
    fn put_back(&mut self, operation: usize) {
        self.taken[operation / 64] &= !(1 << (operation % 64));
        let (call, back) = self.places[operation];
        if call == NONE {
            return;
        }
        self.link(back);
        self.link(call);
        self.left += 1;
        if let Some(cap) = cap(&self.history[operation]) {
            *self.caps.entry(cap).or_default() += 1;
        }
    }

    fn unlink(&mut self, at: usize) {
        let Event { before, after, .. } = self.events[at];
        match before {
            NONE => self.head = after,
            before => self.events[before].after = after,
        }
        if after != NONE {
            self.events[after].before = before;
        }
    }

    /// Undoes `unlink`: an event that is not in the list still knows its neighbours.
    fn link(&mut self, at: usize) {
        let Event { before, after, .. } = self.events[at];
        match before {
            NONE => self.head = at,
            before => self.events[before].after = at,
        }
        if after != NONE {
            self.events[after].before = at;
        }
    }
}

/// The last version that the session can have before the operation takes effect or shows it.
fn cap(operation: &Operation) -> Option<u64> {
    match (&operation.outcome, &operation.call) {
        (Outcome::Done(shown), Call::Put { .. } | Call::PutIf { .. } | Call::Add { .. }) => {
            shown.version.map(|version| version.saturating_sub(1))
        }
        (Outcome::Done(shown), _) => shown.version,
        (Outcome::Unmet { version }, _) => Some(*version),
        (Outcome::Repeated(_) | Outcome::Ended | Outcome::Gone | Outcome::Unknown, _) => None,
    }
}
