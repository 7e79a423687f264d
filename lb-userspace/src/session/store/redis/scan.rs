//! Over all sessions: in slices of SCAN, one primary after the other.

use super::super::{Cursor, Entry, Slice};
use super::StoreError;
use super::core::Core;
use super::link::{Need, text};
use super::meta::Meta;
use super::router::{Failure, Pauses, field};
use super::topology::Shard;
use crate::session::record::Damage;
use futures::stream::{self, TryStreamExt};
use redis::{Cmd, Value, cmd};
use std::sync::Arc;
use tokio::time::Instant;

/// Keys that are looked at in one step where nobody says how many.
const STEP: usize = 1000;

/// Sessions that are ended at the same time.
const ENDED_AT_ONCE: usize = 64;

/// Where a scan goes on. Cursors of SCAN mean something only to the server that gave them, with the data it then had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Mark {
    /// First slot of the shard.
    shard: u16,
    /// The server's incarnation.
    run: String,
    cursor: u64,
}

impl Mark {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split('/');
        let mark = Self {
            shard: parts.next()?.parse().ok()?,
            run: parts.next()?.to_owned(),
            cursor: parts.next()?.parse().ok()?,
        };
        parts.next().is_none().then_some(mark)
    }

    pub(super) fn write(&self) -> Cursor {
        Cursor(format!("{}/{}/{}", self.shard, self.run, self.cursor))
    }
}

/// Keys of one step, and where the next begins.
struct Step {
    shard: Shard,
    keys: Vec<Vec<u8>>,
    /// The server is not the one that gave the cursor: its shard is begun again.
    anew: bool,
    next: Option<Mark>,
}

/// Sessions of one step.
struct Counted {
    found: u64,
    anew: bool,
    next: Option<Cursor>,
}

/// How long failures are borne.
struct Patience<'a> {
    core: &'a Core,
    give_up: Instant,
    pauses: Pauses,
}

impl<'a> Patience<'a> {
    fn new(core: &'a Core) -> Self {
        Self { core, give_up: Instant::now() + core.options.deadline, pauses: Pauses::new() }
    }

    /// Waits a moment, unless there is no use in it.
    async fn bear(&mut self, error: StoreError) -> Result<(), StoreError> {
        if !matches!(error, StoreError::Unavailable { .. }) || Instant::now() >= self.give_up {
            return Err(error);
        }
        self.core.router.survey().await;
        tokio::time::sleep(self.pauses.next()).await;
        Ok(())
    }
}

impl Core {
    /// A server that fails over meanwhile is asked again.
    pub(super) async fn scan(&self, from: Option<Cursor>, slice: usize) -> Result<Slice, StoreError> {
        let mut patience = Patience::new(self);
        loop {
            match self.try_scan(from.as_ref(), slice).await {
                Err(error) => patience.bear(error).await?,
                found => return found,
            }
        }
    }

    async fn try_scan(&self, from: Option<&Cursor>, slice: usize) -> Result<Slice, StoreError> {
        let step = self.step(from, slice.max(1)).await?;
        let mut found = Slice { entries: Vec::new(), next: step.next.map(|mark| mark.write()) };
        let reads = step.keys.iter().map(|key| {
            let mut read = cmd("HMGET");
            read.arg(key.as_slice()).arg("m").arg("r");
            read
        });
        let answers = self.ask_shard(&step.shard, reads.collect()).await?;
        for (key, answer) in step.keys.iter().zip(answers) {
            let Value::Array(fields) = answer else {
                let error = Err(Damage::Short(0));
                found.entries.push(Entry { id: self.keys.id(key), key: lossy(key), record: error });
                continue;
            };
            let record = match fields.as_slice() {
                // Gone or ended since.
                [_, Value::Nil] => continue,
                [Value::BulkString(meta), Value::BulkString(record)] => {
                    Meta::decode(meta).and_then(|meta| meta.complete(record))
                }
                _ => Err(Damage::Short(0)),
            };
            let id = self.keys.id(key);
            let key = id.map_or_else(|| lossy(key), |id| id.to_string());
            found.entries.push(Entry { id, key, record });
        }
        Ok(found)
    }

    /// By looking at every key: expiry is the servers' own, and they count for nobody.
    pub(super) async fn count(&self) -> Result<u64, StoreError> {
        let (mut count, mut from) = (0, None);
        let mut patience = Patience::new(self);
        loop {
            match self.count_some(from.as_ref()).await {
                // Some would be counted twice.
                Ok(counted) if counted.anew => (count, from) = (0, None),
                Ok(Counted { found, next: None, .. }) => return Ok(count + found),
                Ok(Counted { found, next, .. }) => (count, from) = (count + found, next),
                Err(error) => {
                    patience.bear(error).await?;
                    (count, from) = (0, None);
                }
            }
        }
    }

    async fn count_some(&self, from: Option<&Cursor>) -> Result<Counted, StoreError> {
        let step = self.step(from, STEP).await?;
        let there = step.keys.iter().map(|key| {
            let mut there = cmd("HEXISTS");
            there.arg(key.as_slice()).arg("r");
            there
        });
        let answers = self.ask_shard(&step.shard, there.collect()).await?;
        let found = answers.iter().filter(|there| **there == Value::Int(1)).count() as u64;
        Ok(Counted { found, anew: step.anew, next: step.next.map(|mark| mark.write()) })
    }

    /// Ends every session of a service.
    pub(super) async fn end_all(self: &Arc<Self>, service: u16) -> Result<(), StoreError> {
        let mut from = None;
        loop {
            let slice = self.scan(from, STEP).await?;
            let doomed = slice.entries.into_iter().filter_map(|entry| {
                let id = entry.id?;
                entry
                    .record
                    .ok()
                    .filter(|record| record.service == service)
                    .map(|record| (id, record.revision))
            });
            stream::iter(doomed.map(Ok::<_, StoreError>))
                .try_for_each_concurrent(ENDED_AT_ONCE, |(id, mut revision)| async move {
                    loop {
                        match self.delete(id, revision).await {
                            Err(StoreError::Conflict) => {}
                            other => return other,
                        }
                        match self.load(id).await? {
                            Some(record) => revision = record.revision,
                            None => return Ok(()),
                        }
                    }
                })
                .await?;
            match slice.next {
                Some(next) => from = Some(next),
                None => return Ok(()),
            }
        }
    }

    /// One step of SCAN. A shard whose server is another one by now is begun anew.
    async fn step(&self, from: Option<&Cursor>, slice: usize) -> Result<Step, StoreError> {
        let mark = match from {
            None => None,
            Some(cursor) => Some(Mark::parse(&cursor.0).ok_or_else(|| {
                StoreError::Failed(format!(
                    "{:?} is no place where a scan of this store could go on",
                    cursor.0
                ))
            })?),
        };
        if !self.router.is_covered() {
            self.router.survey().await;
        }
        let shards = self.router.shards();
        let first = mark.as_ref().map_or(0, |mark| mark.shard);
        let Some(at) = shards.iter().position(|shard| shard.first >= first) else {
            let why = format!("no redis node has the slots from {first} on");
            return Err(self.unavailable(Failure(why)));
        };
        let shard = shards[at].clone();
        let mut info = cmd("INFO");
        info.arg("server");
        let run = match self.ask_shard(&shard, vec![info]).await?.first() {
            Some(info) => field(&text(info), "run_id").unwrap_or_default().to_owned(),
            None => String::new(),
        };
        let going_on = mark.filter(|mark| !mark.run.is_empty());
        let cursor = going_on.as_ref().filter(|mark| mark.shard == shard.first && mark.run == run);
        let anew = going_on.is_some() && cursor.is_none();
        let cursor = cursor.map_or(0, |mark| mark.cursor);
        let mut scan = cmd("SCAN");
        scan.arg(cursor).arg("MATCH").arg(self.keys.sessions()).arg("COUNT").arg(slice);
        let answers = self.ask_shard(&shard, vec![scan]).await?;
        let odd = || self.odd("SCAN", answers.first().unwrap_or(&Value::Nil));
        let Some(Value::Array(answer)) = answers.first() else { return Err(odd()) };
        let [cursor, Value::Array(keys)] = answer.as_slice() else { return Err(odd()) };
        let next = match text(cursor).parse().map_err(|_| odd())? {
            0 => shards.get(at + 1).map(|next| Mark { shard: next.first, run: String::new(), cursor: 0 }),
            cursor => Some(Mark { shard: shard.first, run, cursor }),
        };
        let keys = keys.iter().filter_map(|key| match key {
            Value::BulkString(key) => Some(key.clone()),
            _ => None,
        });
        Ok(Step { keys: keys.collect(), shard, anew, next })
    }

    async fn ask_shard(&self, shard: &Shard, cmds: Vec<Cmd>) -> Result<Vec<Value>, StoreError> {
        if cmds.is_empty() {
            return Ok(Vec::new());
        }
        let need = if self.router.is_cluster() { Need::Nothing } else { Need::Primary };
        self.router.ask_node(&shard.primary, cmds, need).await.map_err(|trouble| {
            self.router.doubt();
            self.unavailable(Failure(trouble.to_string()))
        })
    }
}

fn lossy(key: &[u8]) -> String {
    String::from_utf8_lossy(key).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_as_it_was_written() {
        let mark = Mark { shard: 5461, run: "abc".into(), cursor: u64::MAX };
        assert_eq!(Mark::parse(&mark.write().0), Some(mark));
        assert_eq!(Mark::parse("1//0"), Some(Mark { shard: 1, run: String::new(), cursor: 0 }));
        for text in ["", "1", "1/a", "1/a/x", "1/a/2/3", "70000/a/1"] {
            assert_eq!(Mark::parse(text), None, "{text}");
        }
    }
}
