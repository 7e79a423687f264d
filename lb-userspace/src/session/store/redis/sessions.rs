//! Sessions in Redis: read, changed, handed over, ended.

use super::StoreError;
use super::core::Core;
use super::keys::slot;
use super::link::Need;
use super::meta::{Meta, NONCE, Node, Nonce, Stamp, decode_nodes, decode_owner};
use super::router::{Outcome, Request, What};
use super::scripts::{CHANGE, DELETE, LOAD, Lua, SETTLE};
use crate::session::fault::{Fault, armed};
use crate::session::record::{Damage, Owner, Record};
use lb_common::token::SessionId;
use redis::{Value, cmd};
use std::sync::Arc;

/// How much longer a key stays than its session: clocks differ, and an early end would be one that not everybody sees.
const SLACK_MS: u64 = 60_000;

/// The longest life that every server takes for one: some thousand years.
const LATEST_MS: u64 = 253_402_300_799_000;

/// How long it is remembered that a session was ended, once nobody has a copy: a repeated or late request finds out.
const REST_MS: u64 = 60_000;

/// Holders of a session that has ended, or of one that changed hands, and what settles the matter.
struct Unsettled {
    nonce: Nonce,
    others: Vec<Node>,
    /// Who remains.
    holders: Vec<Node>,
}

impl Core {
    pub(super) async fn load(self: &Arc<Self>, id: SessionId) -> Result<Option<Record>, StoreError> {
        self.check_clock()?;
        // Before the database is asked: a name taken later is not that of a holder yet.
        let me = self.me();
        let Some((meta, record)) = self.fetch(id).await? else { return Ok(None) };
        let meta = Meta::decode(&meta).map_err(|damage| StoreError::Damaged { id, damage })?;
        let Some(record) = record else {
            // Ended, perhaps by one who could not see to it that everybody knows.
            self.void(id);
            let others = meta.holders.into_iter().filter(|node| *node != me).collect();
            self.settle(id, Unsettled { nonce: meta.nonce, others, holders: Vec::new() }).await?;
            return Ok(None);
        };
        let mut record = meta.complete(&record).map_err(|damage| StoreError::Damaged { id, damage })?;
        if meta.holders != [me] {
            record.owner = Owner::UNSETTLED;
        }
        Ok(Some(record))
    }

    /// What is stored: meta, and the record unless the session has ended.
    async fn fetch(&self, id: SessionId) -> Result<Option<(Vec<u8>, Option<Vec<u8>>)>, StoreError> {
        let key = self.keys.session(id);
        let need = self.read();
        let ask = match need {
            Need::Replicas(_) | Need::Disk(_) => What::Script(&LOAD, vec![key.clone()], Vec::new()),
            Need::Nothing | Need::Primary => {
                let mut get = cmd("HMGET");
                get.arg(&key).arg("m").arg("r");
                What::Plain(get)
            }
        };
        let asked = self.router.ask(Request { slot: slot(&key), need, ask }).await;
        let found = asked.map_err(|failure| self.unavailable(failure))?.value;
        let found = match found {
            Value::Array(found) => found,
            other => return Err(self.odd("a read", &other)),
        };
        match <[Value; 2]>::try_from(found) {
            Ok([Value::Nil, Value::Nil]) => Ok(None),
            Ok([Value::BulkString(meta), Value::Nil]) => Ok(Some((meta, None))),
            Ok([Value::BulkString(meta), Value::BulkString(record)]) => Ok(Some((meta, Some(record)))),
            Ok(_) => Err(StoreError::Damaged { id, damage: Damage::Short(0) }),
            Err(other) => Err(self.odd("a read", &Value::Array(other))),
        }
    }

    pub(super) async fn save(
        self: &Arc<Self>,
        id: SessionId,
        stamp: Stamp,
        record: Vec<u8>,
        expected: Option<u64>,
    ) -> Result<Option<Owner>, StoreError> {
        let (former, repeated) = self.change(id, stamp, record, expected).await?;
        match former {
            Some(owner) => Ok(expected.map(|_| owner)),
            // Perhaps it was this very change that a later one was based on: repeated by the caller, it would be made twice.
            None if repeated => Err(self.unknown()),
            None => Err(StoreError::Conflict),
        }
    }

    pub(super) async fn claim(
        self: &Arc<Self>,
        id: SessionId,
        stamp: Stamp,
        expected: u64,
    ) -> Result<Owner, StoreError> {
        // Whoever claims sees the same state afterwards, so it may be repeated.
        self.change(id, stamp, Vec::new(), Some(expected)).await?.0.ok_or(StoreError::Conflict)
    }

    pub(super) async fn delete(self: &Arc<Self>, id: SessionId, expected: u64) -> Result<(), StoreError> {
        self.check_clock()?;
        let stamp = Stamp { revision: expected + 1, owner: Owner::UNSETTLED, expires: 0 };
        let (me, nonce) = (self.me(), nonce()?);
        let args = vec![
            expected.to_be_bytes().to_vec(),
            nonce.to_vec(),
            stamp.encode().to_vec(),
            me.to_be_bytes().to_vec(),
            REST_MS.to_string().into_bytes(),
            skip_compare(),
        ];
        let outcome = self.commit(id, &DELETE, args).await?;
        match self.former(&outcome)? {
            Some((_, holders)) => {
                // Of this process, too: another one that finds it ended need not ask here.
                self.void(id);
                let others = holders.into_iter().filter(|node| *node != me).collect();
                self.settle(id, Unsettled { nonce, others, holders: Vec::new() }).await
            }
            None if outcome.repeated => Err(self.unknown()),
            None => Err(StoreError::Conflict),
        }
    }

    /// Writes if the revision is as expected: the former owner then, once nobody else has a copy. And whether it may have
    /// been done twice.
    async fn change(
        self: &Arc<Self>,
        id: SessionId,
        stamp: Stamp,
        record: Vec<u8>,
        expected: Option<u64>,
    ) -> Result<(Option<Owner>, bool), StoreError> {
        self.check_clock()?;
        let (me, nonce) = (self.me(), nonce()?);
        // Counted from now on, whatever clock anybody has: never over before it was acknowledged.
        let goes = stamp.expires.saturating_sub(self.clock.now()).saturating_add(SLACK_MS).min(LATEST_MS);
        let args = vec![
            expected.map(|revision| revision.to_be_bytes().to_vec()).unwrap_or_default(),
            nonce.to_vec(),
            stamp.encode().to_vec(),
            me.to_be_bytes().to_vec(),
            goes.to_string().into_bytes(),
            record,
            skip_compare(),
        ];
        let outcome = self.commit(id, &CHANGE, args).await?;
        let Some((owner, holders)) = self.former(&outcome)? else { return Ok((None, outcome.repeated)) };
        let others = holders.into_iter().filter(|node| *node != me).collect();
        self.settle(id, Unsettled { nonce, others, holders: vec![me] }).await?;
        Ok((Some(owner), outcome.repeated))
    }

    async fn commit(&self, id: SessionId, lua: &Lua, args: Vec<Vec<u8>>) -> Result<Outcome, StoreError> {
        self.script(lua, &self.keys.session(id), args, self.durable()).await
    }

    /// The former owner and all who may have a copy now; `None` for a conflict.
    fn former(&self, outcome: &Outcome) -> Result<Option<(Owner, Vec<Node>)>, StoreError> {
        if let Value::Array(answer) = &outcome.value {
            match answer.as_slice() {
                [Value::Int(0)] => return Ok(None),
                [Value::Int(1), Value::BulkString(owner), Value::BulkString(holders)] if owner.len() == 6 => {
                    if let Some(holders) = decode_nodes(holders) {
                        return Ok(Some((decode_owner(owner), holders)));
                    }
                }
                _ => {}
            }
        }
        Err(self.odd("a change", &outcome.value))
    }

    /// Sees to it that the others have no copy, and writes that down. Should that get lost, they are asked again in vain.
    async fn settle(self: &Arc<Self>, id: SessionId, matter: Unsettled) -> Result<(), StoreError> {
        if matter.others.is_empty() {
            return Ok(());
        }
        self.void_at(id, &matter.others).await?;
        let key = self.keys.session(id);
        let holders = matter.holders.iter().flat_map(|node| node.to_be_bytes()).collect();
        let args = vec![matter.nonce.to_vec(), holders, REST_MS.to_string().into_bytes()];
        // The same connection as for changes, so that this is done before a change that follows the answer.
        let (core, need) = (self.clone(), self.durable());
        tokio::spawn(async move {
            if let Err(error) = core.script(&SETTLE, &key, args, need).await {
                tracing::debug!(session = %id, %error, "it is not written down that nobody else has a copy");
            }
        });
        Ok(())
    }

    /// It was sent and no answer came, and by now the session is another one.
    fn unknown(&self) -> StoreError {
        StoreError::Unavailable {
            store: self.place.clone(),
            reason: "a connection was lost, and whether the change was made cannot be seen any more".into(),
        }
    }
}

fn skip_compare() -> Vec<u8> {
    if armed(Fault::SkipCas) { b"1".to_vec() } else { Vec::new() }
}

fn nonce() -> Result<Nonce, StoreError> {
    let mut nonce = [0; NONCE];
    getrandom::fill(&mut nonce)
        .map_err(|error| StoreError::Failed(format!("no random numbers for a change: {error}")))?;
    Ok(nonce)
}
