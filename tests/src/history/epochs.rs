//! What must be true of instances, whatever the sessions: an epoch grows with each new life of a server and never
//! shrinks, an instance is one server's alone, and a cache answers only those who come with its own instance.

use super::{Operation, Violation};
use std::collections::BTreeMap;
use std::sync::Arc;

/// A new life of a server.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Life {
    pub server: Arc<str>,
    /// What was done to it.
    pub cause: String,
    /// Nanoseconds since the run began: before it was done...
    pub begun: u64,
    /// ...and when the server was seen to serve again.
    pub over: u64,
}

/// All that matters of the answers so far; its size depends on how many epochs there were.
#[derive(Default)]
pub struct Epochs {
    /// Of each server and epoch: the answer that came first, and the one to the request that was sent last.
    seen: BTreeMap<(Arc<str>, u32), (Operation, Operation)>,
    /// Whose slot it is.
    slots: BTreeMap<u16, Operation>,
    lives: Vec<Life>,
}

impl Epochs {
    /// Takes an answer in.
    ///
    /// # Errors
    /// What is wrong with it in itself, or beside those before it.
    pub fn observe(&mut self, operation: &Operation) -> Result<(), Violation> {
        let Some(by) = &operation.by else { return Ok(()) };
        let new = || (operation.clone(), operation.clone());
        let (first, last) = self.seen.entry((by.server.clone(), by.epoch)).or_insert_with(new);
        if operation.returned < first.returned {
            *first = operation.clone();
        }
        if operation.invoked > last.invoked {
            *last = operation.clone();
        }
        if let Some((slot, epoch)) = operation.given {
            if epoch != by.epoch {
                let rule = "a token names another epoch than that of the server that gave it";
                return Err(violation(rule, "", [operation]));
            }
            let owner = self.slots.entry(slot).or_insert_with(|| operation.clone());
            if server(owner) != server(operation) {
                return Err(violation("two servers gave tokens of the same slot", "", [owner, operation]));
            }
        }
        let Some((slot, epoch)) = operation.token.filter(|_| &*by.source == "cache") else { return Ok(()) };
        let elsewhere = self.slots.get(&slot).is_some_and(|owner| server(owner) != server(operation));
        if epoch != by.epoch || elsewhere {
            return Err(violation("a cache answered for another instance", "", [operation]));
        }
        Ok(())
    }

    /// Takes a new life of a server in.
    pub fn begin(&mut self, life: Life) {
        self.lives.push(life);
    }

    /// # Errors
    /// An epoch shrank, or did not grow with a new life.
    pub fn check(&self) -> Result<(), Violation> {
        let seen: Vec<_> = self.seen.iter().map(|((server, epoch), spans)| (server, *epoch, spans)).collect();
        for (name, smaller, (_, last)) in &seen {
            let overtaken = |(other, larger, (first, _)): &&(&Arc<str>, u32, &(Operation, Operation))| {
                other == name && larger > smaller && first.returned < last.invoked
            };
            if let Some((_, _, (first, _))) = seen.iter().find(overtaken) {
                return Err(violation(&format!("the epoch of {name} went back"), "", [first, last]));
            }
        }
        for Life { server, cause, begun, over } in &self.lives {
            for (_, epoch, (first, last)) in seen.iter().filter(|(name, ..)| *name == server) {
                if first.returned < *begun && last.invoked > *over {
                    let rule = format!("{server} has epoch {epoch} still after a new life");
                    let story = format!("Between these two answers: {cause}.");
                    return Err(violation(&rule, &story, [first, last]));
                }
            }
        }
        Ok(())
    }
}

fn server(operation: &Operation) -> Option<&str> {
    operation.by.as_ref().map(|by| &*by.server)
}

fn violation<'a>(rule: &str, story: &str, operations: impl IntoIterator<Item = &'a Operation>) -> Violation {
    let operations = operations.into_iter().cloned().collect();
    Violation { rule: rule.to_owned(), story: story.to_owned(), operations }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::history::{By, Call, Outcome};
    use lb_common::token::SessionId;

    fn answer(server: &str, epoch: u32, invoked: u64, returned: u64) -> Operation {
        Operation {
            client: 0,
            session: SessionId([0; 16]),
            invoked,
            returned,
            call: Call::Read,
            outcome: Outcome::Gone,
            begins: false,
            token: None,
            given: None,
            way: "vip".into(),
            by: Some(By { server: server.into(), epoch, source: "none".into() }),
        }
    }

    fn life(begun: u64, over: u64) -> Life {
        Life { server: "a".into(), cause: "restarted".to_owned(), begun, over }
    }

    fn judge(answers: &[Operation], lives: &[Life]) -> Result<(), String> {
        let mut epochs = Epochs::default();
        answers.iter().try_for_each(|answer| epochs.observe(answer)).map_err(|violation| violation.rule)?;
        lives.iter().cloned().for_each(|life| epochs.begin(life));
        epochs.check().map_err(|violation| violation.rule)
    }

    #[test]
    fn an_epoch_grows_with_each_life_and_never_shrinks() {
        let before = answer("a", 1, 0, 10);
        let rows: [(&str, Vec<Operation>, Vec<Life>, bool); 7] = [
            ("grown", vec![before.clone(), answer("a", 2, 50, 60)], vec![life(20, 40)], true),
            ("not grown", vec![before.clone(), answer("a", 1, 50, 60)], vec![life(20, 40)], false),
            ("sent meanwhile", vec![before.clone(), answer("a", 1, 30, 60)], vec![life(20, 40)], true),
            (
                "answered meanwhile",
                vec![answer("a", 1, 0, 30), answer("a", 1, 50, 60)],
                vec![life(20, 40)],
                true,
            ),
            ("another server", vec![before.clone(), answer("b", 1, 50, 60)], vec![life(20, 40)], true),
            ("shrunk", vec![answer("a", 2, 0, 10), answer("a", 1, 20, 30)], vec![], false),
            ("at the same time", vec![answer("a", 2, 0, 10), answer("a", 1, 5, 30)], vec![], true),
        ];
        for (name, answers, lives, fine) in rows {
            assert_eq!(judge(&answers, &lives).is_ok(), fine, "{name}");
        }
    }

    #[test]
    fn an_instance_belongs_to_one_server() {
        let given = |server: &str, given| Operation { given: Some(given), ..answer(server, 3, 0, 10) };
        assert_eq!(judge(&[given("a", (1, 3)), given("b", (2, 3))], &[]), Ok(()));
        assert!(judge(&[given("a", (1, 3)), given("b", (1, 3))], &[]).is_err());
        assert!(judge(&[given("a", (1, 4))], &[]).is_err());
    }

    #[test]
    fn a_cache_answers_only_its_own_instance() {
        let cached = |token| Operation {
            token: Some(token),
            given: Some((1, 3)),
            by: Some(By { server: "a".into(), epoch: 3, source: "cache".into() }),
            ..answer("a", 3, 0, 10)
        };
        assert_eq!(judge(&[cached((1, 3))], &[]), Ok(()));
        assert!(judge(&[cached((1, 2))], &[]).is_err());
        let other = Operation { given: Some((2, 3)), ..answer("b", 3, 0, 10) };
        assert!(judge(&[other, cached((2, 3))], &[]).is_err());
    }
}
