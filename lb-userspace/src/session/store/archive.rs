//! All sessions of a store as JSON lines, to look at, to keep, and to move to another store.
//!
//! The first line says what the store had given out: a token names a service's id, a slot and an epoch, so the store that
//! the sessions move to must give out the same ([`SessionStore::adopt`]). Then one line for each session. The last line
//! says how many there were, so that a file that was cut off is noticed.
//!
//! An imported session is owned by nobody ([`Owner::UNSETTLED`]): whoever is asked for it takes it over first, whatever
//! instances there are here.

use super::{Cursor, Given, MAX_STATE_BYTES, SessionStore, StoreError};
use crate::session::{Copies, Owner, Receipts, Record, State};
use futures::StreamExt;
use lb_common::token::SessionId;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// What the first line calls itself.
const FORMAT: &str = "lb-sessions";
/// Grows with any change that this version could not read.
const VERSION: u32 = 1;

/// Longest line, in bytes. The largest session takes less, whatever its keys are made of.
pub const MAX_LINE: usize = 1 << 20;

/// Records that one step looks at: few enough that nobody waits for it.
pub const SLICE: usize = 128;

/// Imports under way at the same time: they share the database's flushes.
const AT_ONCE: usize = 256;
/// How often an import is tried while somebody else changes that session.
const TRIES: usize = 8;

/// The first line.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    format: String,
    version: u32,
    /// Milliseconds since 1970.
    pub exported_unix_ms: u64,
    /// The store that the sessions were in, for people.
    pub from: String,
    pub given: Given,
}

/// The last line.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct End {
    /// Lines between the first and the last.
    pub sessions: u64,
}

/// Any other line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    service: String,
    service_id: u16,
    version: u64,
    revision: u64,
    /// For people: of no use in another store.
    owner: LineOwner,
    created_unix_ms: u64,
    expires_unix_ms: u64,
    #[serde(default, skip_serializing_if = "Receipts::is_empty")]
    receipts: Receipts,
    state: State,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LineOwner {
    slot: u16,
    epoch: u32,
}

impl Header {
    pub fn new(given: Given, from: String, exported_unix_ms: u64) -> Self {
        Self { format: FORMAT.into(), version: VERSION, exported_unix_ms, from, given }
    }

    /// # Errors
    /// What the line is instead, and what to do.
    pub fn parse(line: &str) -> Result<Self, String> {
        #[derive(Deserialize)]
        struct Kind {
            format: String,
            version: u32,
        }
        match serde_json::from_str::<Kind>(line) {
            Ok(kind) if kind.format == FORMAT && kind.version == VERSION => {}
            Ok(kind) if kind.format == FORMAT => {
                return Err(format!(
                    "the file has version {}, this lbctl reads version {VERSION}: use the lbctl that wrote it",
                    kind.version
                ));
            }
            _ => {
                return Err("this is no export of sessions: its first line should say what it is".into());
            }
        }
        serde_json::from_str(line).map_err(|error| format!("the first line is damaged: {error}"))
    }

    /// Of the last line, where it is that.
    pub fn parse_end(line: &str) -> Option<End> {
        serde_json::from_str(line).ok()
    }
}

/// One line of text, without its end.
pub fn to_line(value: &impl Serialize) -> String {
    let text = serde_json::to_string(value).expect("text keys and plain values are JSON");
    // Values are kept as they came in. A line break in JSON is a space between its parts, never a part.
    text.replace(['\n', '\r'], " ")
}

/// What a step of an export found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Exported {
    pub lines: Vec<String>,
    /// Sessions that have ended, though nobody has removed them yet.
    pub expired: u64,
    pub damaged: Vec<Damaged>,
    /// Where the next step begins; `None` when this one reached the end.
    pub next: Option<String>,
}

/// What a step of a check found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Checked {
    pub records: u64,
    pub damaged: Vec<Damaged>,
    pub next: Option<String>,
}

/// A record that cannot be used.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Damaged {
    /// The session's id, or whatever stands in its place.
    pub key: String,
    pub reason: String,
}

/// One step of an export.
///
/// # Errors
/// Those of the store.
pub async fn export(
    store: &dyn SessionStore,
    from: Option<String>,
    now: u64,
) -> Result<Exported, StoreError> {
    let given = store.given().await?;
    let names: BTreeMap<u16, &String> = given.services.iter().map(|(name, id)| (*id, name)).collect();
    let found = store.scan(from.map(Cursor), SLICE).await?;
    let mut exported = Exported { next: found.next.map(|cursor| cursor.0), ..Exported::default() };
    for entry in found.entries {
        let damaged = |reason: String| Damaged { key: entry.key.clone(), reason };
        match (entry.id, entry.record) {
            (None, _) => exported.damaged.push(damaged("it is no session id".into())),
            (_, Err(damage)) => exported.damaged.push(damaged(damage.to_string())),
            (_, Ok(record)) if record.is_grave() || record.is_expired(now) => exported.expired += 1,
            (Some(id), Ok(record)) => match names.get(&record.service) {
                Some(service) => exported.lines.push(line(id, service, record)),
                None => exported.damaged.push(damaged(format!("no service has its id, {}", record.service))),
            },
        }
    }
    Ok(exported)
}

fn line(id: SessionId, service: &str, record: Record) -> String {
    // All of it, by name: whatever a record learns to hold must find its way into a line.
    let Record { version, revision, service: service_id, owner, created, expires, receipts, state } = record;
    to_line(&Line {
        id: id.to_string(),
        service: service.to_owned(),
        service_id,
        version,
        revision,
        owner: LineOwner { slot: owner.slot, epoch: owner.epoch },
        created_unix_ms: created,
        expires_unix_ms: expires,
        receipts,
        state,
    })
}

/// One step of a check: whether every record is whole, and belongs to a service.
///
/// # Errors
/// Those of the store.
pub async fn check(store: &dyn SessionStore, from: Option<String>) -> Result<Checked, StoreError> {
    let given = match store.given().await {
        Ok(given) => Some(given),
        Err(StoreError::DamagedName { name }) => {
            let key = "ids, slots and epochs".to_owned();
            let damaged = Damaged { key, reason: format!("the entry for {name} cannot be read") };
            return step(store, from, None, vec![damaged]).await;
        }
        Err(error) => return Err(error),
    };
    step(store, from, given, Vec::new()).await
}

async fn step(
    store: &dyn SessionStore,
    from: Option<String>,
    given: Option<Given>,
    names: Vec<Damaged>,
) -> Result<Checked, StoreError> {
    // Told in the first step alone.
    let damaged = if from.is_none() { names } else { Vec::new() };
    let found = store.scan(from.map(Cursor), SLICE).await?;
    let records = found.entries.len() as u64;
    let mut checked = Checked { records, damaged, next: found.next.map(|cursor| cursor.0) };
    for entry in found.entries {
        let reason = match (entry.id, &entry.record, &given) {
            (None, ..) => "it is no session id".to_owned(),
            (_, Err(damage), _) => damage.to_string(),
            (_, Ok(record), Some(given)) if !given.services.values().any(|id| *id == record.service) => {
                format!("no service has its id, {}", record.service)
            }
            _ => continue,
        };
        checked.damaged.push(Damaged { key: entry.key, reason });
    }
    Ok(checked)
}

/// How lines are imported.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Import {
    /// Names of services as the lines have them, and their ids, which are the same here.
    pub services: BTreeMap<String, u16>,
    /// Whether a session that is here already becomes the one of the line.
    pub replace: bool,
}

/// What came of some lines.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Imported {
    /// Sessions that are new here.
    pub new: u64,
    pub replaced: u64,
    /// Left as they are here.
    pub present: u64,
    /// They have ended meanwhile.
    pub expired: u64,
    /// Of services that are not known here, by name.
    pub unknown: BTreeMap<String, u64>,
    /// Numbers of lines that were refused, with the reason.
    pub refused: Vec<(u64, String)>,
    /// Why the store took no more. Some of the lines may have been imported.
    pub failed: Option<String>,
}

impl Imported {
    pub fn add(&mut self, other: Self) {
        self.new += other.new;
        self.replaced += other.replaced;
        self.present += other.present;
        self.expired += other.expired;
        for (service, lines) in other.unknown {
            *self.unknown.entry(service).or_default() += lines;
        }
        self.refused.extend(other.refused);
        self.failed = self.failed.take().or(other.failed);
    }
}

enum Verdict {
    New,
    Replaced,
    Present,
    Expired,
    Unknown(String),
    Refused(String),
    Failed(StoreError),
}

/// Imports lines, each wholly or not at all. `copies` are what this process holds in memory.
pub async fn import(
    store: &dyn SessionStore,
    copies: Option<&dyn Copies>,
    lines: Vec<(u64, String)>,
    how: &Import,
    now: u64,
) -> Imported {
    let mut imported = Imported::default();
    let mut verdicts = futures::stream::iter(lines)
        .map(|(number, text)| async move { (number, import_line(store, copies, &text, how, now).await) })
        .buffered(AT_ONCE);
    while let Some((number, verdict)) = verdicts.next().await {
        match verdict {
            Verdict::New => imported.new += 1,
            Verdict::Replaced => imported.replaced += 1,
            Verdict::Present => imported.present += 1,
            Verdict::Expired => imported.expired += 1,
            Verdict::Unknown(service) => *imported.unknown.entry(service).or_default() += 1,
            Verdict::Refused(reason) => imported.refused.push((number, reason)),
            Verdict::Failed(error) => {
                imported.failed = Some(format!("line {number}: {error}"));
                break;
            }
        }
    }
    imported
}

async fn import_line(
    store: &dyn SessionStore,
    copies: Option<&dyn Copies>,
    text: &str,
    how: &Import,
    now: u64,
) -> Verdict {
    let (id, record) = match parse(text, how) {
        Ok(parsed) => parsed,
        Err(verdict) => return verdict,
    };
    if record.is_expired(now) {
        return Verdict::Expired;
    }
    for _ in 0..TRIES {
        let (saved, verdict) = match store.save(id, &record, None).await {
            Err(StoreError::Conflict) => match store.load(id).await {
                Ok(Some(here)) if how.replace || here.is_expired(now) => {
                    // Never a version that clients have seen with another state.
                    let version = record.version.max(here.version + 1);
                    let record = Record { version, revision: here.revision + 1, ..record.clone() };
                    (store.save(id, &record, Some(here.revision)).await, Verdict::Replaced)
                }
                Ok(Some(_)) => return Verdict::Present,
                Ok(None) => continue,
                Err(error) => (Err(error), Verdict::Replaced),
            },
            saved => (saved, Verdict::New),
        };
        if let Some(copies) = copies {
            copies.void(id);
        }
        match saved {
            Ok(_) => return verdict,
            Err(StoreError::Conflict) => {}
            Err(error @ (StoreError::RecordSize { .. } | StoreError::Damaged { .. })) => {
                return Verdict::Refused(error.to_string());
            }
            Err(error) => return Verdict::Failed(error),
        }
    }
    Verdict::Refused("others change this session all the time; import it again".into())
}

fn parse(text: &str, how: &Import) -> Result<(SessionId, Record), Verdict> {
    let refused = |reason: String| Verdict::Refused(reason);
    let line: Line =
        serde_json::from_str(text).map_err(|error| refused(format!("it is no session: {error}")))?;
    let Line {
        id,
        service,
        service_id,
        version,
        revision: _,
        owner: _,
        created_unix_ms: created,
        expires_unix_ms: expires,
        receipts,
        state,
    } = line;
    let id = SessionId::from_hex(id.as_bytes())
        .ok_or_else(|| refused(format!("its id {id:?} is not 32 hexadecimal digits")))?;
    match how.services.get(&service) {
        None => return Err(Verdict::Unknown(service)),
        Some(known) if *known != service_id => {
            return Err(refused(format!(
                "service {service} has id {known} in the first line, and {service_id} here"
            )));
        }
        Some(_) => {}
    }
    if version == 0 {
        return Err(refused("its version is 0; the first is 1".into()));
    }
    if expires <= created {
        return Err(refused(format!("it expires at {expires}, and was created at {created}")));
    }
    if state.bytes() > MAX_STATE_BYTES {
        let bytes = state.bytes();
        return Err(refused(format!("its state has {bytes} bytes, more than {MAX_STATE_BYTES}")));
    }
    for (key, value) in state.iter() {
        State::parse_value(value.as_bytes())
            .map_err(|error| refused(format!("its value of {key:?} cannot be used: {error}")))?;
    }
    let record = Record {
        version,
        revision: 1,
        service: service_id,
        owner: Owner::UNSETTLED,
        created,
        expires,
        receipts,
        state,
    };
    Ok((id, record))
}

#[cfg(test)]
mod tests;
