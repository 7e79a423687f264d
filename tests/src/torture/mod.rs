//! Torture: many clients over real connections, while servers are restarted, killed, drained and cut off, and lbd itself is
//! killed; and a proof, round by round, that every session's history could have happened without any of that.

mod asked;
mod client;
mod nemesis;
mod shared;
mod summary;
mod town;
mod wire;

use crate::client::WATCHDOG;
use crate::dice::Dice;
use crate::history::epochs::Epochs;
use crate::history::{self, Operation, Violation};
use anyhow::{Context, Result};
use asked::Beginning;
use client::Client;
use nemesis::Nemesis;
use shared::Shared;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};
pub use summary::Summary;
use town::{Door, Town};
use wire::Ticket;

/// Clients at once.
const CLIENTS: u32 = 10;
/// Sessions that they share: few, so that they meet.
const SESSIONS: usize = 5;
/// After so long sessions are read for the last time and checked, and new ones begin.
const ROUND: Duration = Duration::from_secs(3);
/// Number of the client that begins sessions and reads them for the last time.
const LAST: u32 = CLIENTS;

/// Which store the sessions are in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Store {
    /// The embedded one, of one lbd.
    Sled,
    /// A cluster, shared by two lbds.
    Redis,
}

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Plan {
    /// It takes at least so long, and until everything was done once.
    pub time: Duration,
    pub seed: u64,
    pub store: Store,
    /// A promise that lbd breaks.
    pub fault: Option<String>,
}

/// Goes on until the time is over, everything was done once, or a promise is broken. `tell` hears how far it is.
///
/// # Errors
/// Something is not as it should be that is no matter of promises: a server that does not come back, for example.
pub fn run(plan: &Plan, tell: &mut dyn FnMut(&Summary)) -> Result<Summary> {
    let mut town = Town::build(plan)?;
    let begin = Instant::now();
    let mut torture = Torture {
        plan,
        begin,
        nemesis: Nemesis::new(Dice::of(plan.seed, u64::MAX, 0), &town),
        epochs: Epochs::default(),
        summary: Summary::default(),
    };
    while torture.summary.violations.is_empty()
        && (begin.elapsed() < plan.time || !torture.nemesis.was_thorough())
    {
        torture.round(&mut town, tell)?;
    }
    Ok(torture.summary)
}

struct Torture<'a> {
    plan: &'a Plan,
    begin: Instant,
    nemesis: Nemesis,
    epochs: Epochs,
    summary: Summary,
}

/// Ends a round, whatever happens in it.
struct Finish<'a>(&'a Shared);

impl Drop for Finish<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}

impl Torture<'_> {
    fn round(&mut self, town: &mut Town, tell: &mut dyn FnMut(&Summary)) -> Result<()> {
        let doors = town.doors();
        let number = self.summary.rounds as u64;
        let mut log = Vec::new();
        let begun = (0..SESSIONS)
            .map(|n| {
                let beginning = if n % 2 == 0 { Beginning::Visit } else { Beginning::Change };
                self.begin(beginning, &doors[0], &mut log)
            })
            .collect::<Result<_>>()?;
        let shared = Shared::new(self.begin, begun);
        let (shared, doors) = (&shared, &doors[..]);
        let dealt = std::thread::scope(|scope| -> Result<Result<()>> {
            let finish = Finish(shared);
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let dice = Dice::of(self.plan.seed, u64::from(client), number);
                    scope.spawn(move || {
                        let mut client = Client::new(client, dice, shared, doors);
                        let ran = client.run();
                        (client.log, client.unsent, ran)
                    })
                })
                .collect();
            let until = Instant::now() + ROUND;
            let mut dealt = Ok(());
            while dealt.is_ok()
                && Instant::now() < until
                && !clients.iter().any(|client| client.is_finished())
            {
                dealt = self.nemesis.deal(town, shared);
                self.summary.seconds = self.begin.elapsed().as_secs();
                tell(&self.summary);
            }
            drop(finish);
            for client in clients {
                let (heard, unsent, ran) = client.join().expect("no client panics");
                log.extend(heard);
                self.summary.unsent += unsent;
                ran?;
            }
            Ok(dealt)
        })?;
        if dealt.is_ok() {
            for ticket in shared.all() {
                log.push(self.last_look(&doors[0], &ticket)?);
            }
        }
        self.check(&log);
        self.summary.rounds += 1;
        match dealt {
            Ok(()) => Ok(()),
            Err(error) => match error.downcast::<Violation>() {
                Ok(violation) => {
                    self.summary.violations.push(violation);
                    Ok(())
                }
                Err(_) if !self.summary.violations.is_empty() => Ok(()),
                Err(error) => Err(error),
            },
        }
    }

    fn now(&self) -> u64 {
        self.begin.elapsed().as_nanos() as u64
    }

    /// Begins a session: its token and version.
    fn begin(&self, beginning: Beginning, door: &Door, log: &mut Vec<Operation>) -> Result<(Ticket, u64)> {
        let begin = || door.visit(|| asked::begin(beginning, LAST, door, &|| self.now()));
        let (operation, ticket, version) = patiently(begin).context("a session cannot begin")?;
        log.push(operation);
        Ok((ticket, version))
    }

    /// Reads a session for the last time: all that was acknowledged must be there.
    fn last_look(&self, door: &Door, ticket: &Ticket) -> Result<Operation> {
        patiently(|| door.visit(|| asked::look(LAST, door, ticket, &|| self.now())))
            .with_context(|| format!("session {} cannot be read at the end", ticket.session))
    }

    /// Checks what happened in a round, and counts it.
    fn check(&mut self, log: &[Operation]) {
        let summary = &mut self.summary;
        let mut sessions: BTreeMap<_, Vec<Operation>> = BTreeMap::new();
        for operation in log {
            summary.count(operation);
            if let Err(violation) = self.epochs.observe(operation) {
                summary.violations.push(violation);
            }
            sessions.entry(operation.session).or_default().push(operation.clone());
        }
        for life in self.nemesis.lives.drain(..) {
            summary.lives += 1;
            self.epochs.begin(life);
        }
        for history in sessions.values_mut() {
            history.sort_by_key(|operation| operation.invoked);
            summary.sessions += 1;
            if let Err(violation) = history::check(history) {
                summary.violations.push(violation);
            }
        }
        if let Err(violation) = self.epochs.check() {
            summary.violations.push(violation);
        }
        for (blow, count) in &self.nemesis.dealt {
            summary.blows.insert(blow.name(), *count);
        }
    }
}

/// Tries until it is done, or nothing but a hang can be the reason.
fn patiently<T>(mut f: impl FnMut() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    loop {
        match f() {
            Ok(done) => return Ok(done),
            Err(error) if begin.elapsed() > WATCHDOG => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}
