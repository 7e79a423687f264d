//! A client: makes requests about the shared sessions, with tokens old and new, through the VIP and past it, and writes down
//! what it asked and what it was told.

use super::asked::Asked;
use super::shared::Shared;
use super::town::Door;
use super::wire::{Answer, Line, View, half};
use crate::dice::Dice;
use crate::history::{Call, Operation, Outcome, Shown};
use anyhow::{Context, Result, bail, ensure};
use lb_common::token::SessionId;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Requests that are made on one connection before it is given up, at most.
const KEPT: usize = 40;
/// Tries of an order whose outcome is not known.
const TRIES: usize = 4;

/// One of many.
pub(super) struct Client<'a> {
    number: u32,
    dice: Dice,
    shared: &'a Shared,
    doors: &'a [Door],
    /// Kept connections, by door.
    lines: HashMap<usize, (Line, usize)>,
    /// What it has to say about the values that it writes.
    written: usize,
    /// All that it did.
    pub(super) log: Vec<Operation>,
    /// Requests that could not even be sent.
    pub(super) unsent: usize,
}

impl<'a> Client<'a> {
    pub(super) fn new(number: u32, dice: Dice, shared: &'a Shared, doors: &'a [Door]) -> Self {
        Self { number, dice, shared, doors, lines: HashMap::new(), written: 0, log: Vec::new(), unsent: 0 }
    }

    /// Goes on until the round is over.
    ///
    /// # Errors
    /// An answer that no server should give.
    pub(super) fn run(&mut self) -> Result<()> {
        while !self.shared.is_over() {
            // Several sessions on one connection: it leads to the server of the first.
            let many = if self.dice.percent(12) { 2 + self.dice.below(2) } else { 1 };
            let asked: Vec<_> = (0..many).map(|_| self.think()).collect();
            let orders: Vec<_> = asked
                .iter()
                .filter(|asked| matches!(asked.call, Call::Add { order: Some(_), .. }))
                .map(Asked::again)
                .collect();
            let before = self.log.len();
            self.ask(asked)?;
            let unknown = self.log[before..].iter().any(|operation| operation.outcome == Outcome::Unknown);
            if unknown || self.log.len() == before {
                self.breathe();
            }
            for order in orders {
                self.repeat(order, unknown)?;
            }
        }
        Ok(())
    }

    /// Gives the servers time, as a client does whose request failed; else it would do nothing but fail.
    fn breathe(&mut self) {
        std::thread::sleep(Duration::from_millis(self.dice.below(50) as u64));
    }

    /// What to ask next.
    fn think(&mut self) -> Asked {
        let place = self.dice.below(self.shared.places());
        let known = self.shared.at(place);
        let newest = known.tickets.last().expect("a session is known by a token");
        let ticket = if self.dice.percent(60) { newest } else { self.dice.choose(&known.tickets) }.clone();
        self.written += 1;
        let value: Arc<str> = format!("{}.{}", self.number, self.written).into();
        let key = |n: usize| -> Arc<str> { format!("k{n}").into() };
        let (mut unless, kind) = (None, self.dice.below(1000));
        let call = match kind {
            0..430 => {
                unless = self.dice.percent(15).then_some(known.version);
                Call::Read
            }
            430..690 => Call::Put { key: key(self.dice.below(4)), value },
            690..820 => Call::PutIf { key: key(0), value, version: known.version },
            820..995 => Call::Add {
                sku: format!("s{}", self.dice.below(8)).into(),
                quantity: 1 + self.dice.below(2) as u32,
                order: self.dice.percent(90).then(|| self.shared.order()),
            },
            // The answer at version 0, that there is nothing, would be that of a session which has ended.
            _ if known.version == 0 => Call::Read,
            _ => Call::End,
        };
        Asked { place, session: known.id, ticket, call, unless }
    }

    /// Makes an order again that perhaps was not carried out, and now and then one that was.
    fn repeat(&mut self, order: Asked, unknown: bool) -> Result<()> {
        let mut doubtful = unknown || self.dice.percent(15);
        for _ in 1..TRIES {
            if !doubtful || self.shared.is_over() {
                break;
            }
            let before = self.log.len();
            let mut again = order.again();
            // Perhaps somebody has a better token by now.
            let known = self.shared.at(order.place);
            if known.id == order.session && self.dice.percent(50) {
                again.ticket = self.dice.choose(&known.tickets).clone();
            }
            self.ask(vec![again])?;
            doubtful = self.log[before..].iter().any(|operation| operation.outcome == Outcome::Unknown);
        }
        Ok(())
    }

    /// Sends requests on one connection, all before the first answer, and writes down what comes of them.
    fn ask(&mut self, asked: Vec<Asked>) -> Result<()> {
        let direct = self.doors.len() > 1 && self.dice.percent(30);
        let vips = self.doors.iter().filter(|door| door.server.is_none()).count();
        let door = if direct { self.dice.below(self.doors.len()) } else { self.dice.below(vips) };
        let kept = self.lines.remove(&door).filter(|_| self.dice.percent(70));
        let (mut line, used) = match kept {
            Some((line, used)) => (line, used),
            None => match self.doors[door].open() {
                Ok(line) => (line, 0),
                Err(_) => {
                    self.unsent += 1;
                    return Ok(());
                }
            },
        };
        let invoked = self.shared.now();
        let bytes: Vec<u8> = asked.iter().flat_map(Asked::bytes).collect();
        let mut answers = match line.send(&bytes) {
            Ok(()) => Some(&mut line),
            Err(_) => None,
        };
        for asked in &asked {
            let answer = answers.as_mut().and_then(|line| line.answer().ok());
            let returned = self.shared.now();
            if answer.as_ref().is_none_or(|answer| answer.last) {
                answers = None;
            }
            let operation = Operation {
                client: self.number,
                session: asked.session,
                invoked,
                returned,
                call: asked.call.clone(),
                outcome: Outcome::Unknown,
                begins: false,
                token: Some(asked.ticket.instance),
                given: None,
                way: self.doors[door].name.clone(),
                by: None,
            };
            match answer {
                Some(answer) => self.told(asked, operation, answer)?,
                None => self.log.push(operation),
            }
        }
        if answers.is_some() && used + asked.len() < KEPT {
            self.lines.insert(door, (line, used + asked.len()));
        }
        Ok(())
    }

    /// Writes an answer down.
    fn told(&mut self, asked: &Asked, mut operation: Operation, answer: Answer) -> Result<()> {
        let context = || format!("{} to {:?}", String::from_utf8_lossy(&answer.body), asked.call);
        operation.by = Some(answer.by.clone());
        match answer.status {
            200 | 201 if asked.call == Call::End => {
                let ended: serde_json::Value = serde_json::from_slice(&answer.body).with_context(context)?;
                operation.outcome = match ended["ended"].as_bool().with_context(context)? {
                    true => Outcome::Ended,
                    false => Outcome::Gone,
                };
            }
            200 | 201 => {
                let view = View::read(&answer.body).with_context(context)?;
                let told_by_token = answer.ticket.as_ref().map(|ticket| ticket.session);
                ensure!(
                    told_by_token.is_none_or(|id| id == view.session),
                    "another session's token: {}",
                    context()
                );
                let shown = Shown { version: Some(view.version), values: view.values, cart: view.cart };
                if view.session != asked.session {
                    return self.began_anew(asked, operation, answer, view.session, shown);
                }
                operation.outcome = match answer.repeated {
                    true => Outcome::Repeated(shown),
                    false => Outcome::Done(shown),
                };
            }
            304 | 412 => match answer.tag {
                Some((of, version)) => {
                    ensure!(of == half(asked.session), "another session's tag: {}", context());
                    operation.outcome = match asked.call {
                        Call::Read => Outcome::Done(Shown { version: Some(version), ..Shown::default() }),
                        _ => Outcome::Unmet { version },
                    };
                }
                None if answer.status == 412 => operation.outcome = Outcome::Gone,
                None => bail!("304 without a tag: {}", context()),
            },
            // It was not done, and nothing was shown.
            409 | 507 => return Ok(()),
            503 => {}
            status => bail!("status {status}: {}", context()),
        }
        let version = match &operation.outcome {
            Outcome::Done(shown) | Outcome::Repeated(shown) => shown.version,
            Outcome::Unmet { version } => Some(*version),
            Outcome::Ended | Outcome::Gone | Outcome::Unknown => None,
        };
        let ticket = answer.ticket.filter(|ticket| ticket.session == asked.session);
        operation.given = ticket.as_ref().map(|ticket| ticket.instance);
        self.shared.told(asked.place, &operation, ticket, version);
        self.log.push(operation);
        Ok(())
    }

    /// The session was gone, and a new one began with the request.
    fn began_anew(
        &mut self,
        asked: &Asked,
        operation: Operation,
        answer: Answer,
        session: SessionId,
        shown: Shown,
    ) -> Result<()> {
        let ticket = answer.ticket.context("a session began without a token")?;
        let version = shown.version.context("a session began without a version")?;
        let begun = Operation {
            session,
            outcome: Outcome::Done(shown),
            begins: true,
            token: None,
            given: Some(ticket.instance),
            ..operation.clone()
        };
        self.log.push(Operation { outcome: Outcome::Gone, ..operation });
        self.log.push(begun);
        self.shared.replace(asked.place, asked.session, ticket, version);
        Ok(())
    }
}
