//! Sessions in sled. Every change compares the whole record that it replaces, so the committer and the claims of the
//! servers' own threads cannot undo each other.

use super::StoreError;
use super::trees::{MAX_RECORD_BYTES, Trees, failed};
use crate::session::fault::{Fault, armed};
use crate::session::record::{Damage, Head, Owner, Record, hand_over};
use crate::session::store::{Cursor, Entry, Slice, Swept};
use lb_common::token::SessionId;
use sled::IVec;
use std::ops::Bound;

pub(super) fn load(trees: &Trees, id: SessionId) -> Result<Option<Record>, StoreError> {
    let bytes = trees.sessions.get(id.0).map_err(failed)?;
    bytes.map(|bytes| Record::decode(&bytes).map_err(|damage| StoreError::Damaged { id, damage })).transpose()
}

pub(super) fn save(
    trees: &Trees,
    id: SessionId,
    bytes: &[u8],
    expected: Option<u64>,
) -> Result<Option<Owner>, StoreError> {
    if bytes.len() > MAX_RECORD_BYTES {
        return Err(StoreError::RecordSize { bytes: bytes.len(), limit: MAX_RECORD_BYTES });
    }
    let before = replace(trees, id, expected, |_| Some(bytes.to_vec()))?;
    Ok(before.map(|head| head.owner))
}

pub(super) fn delete(trees: &Trees, id: SessionId, expected: u64) -> Result<(), StoreError> {
    match replace(trees, id, Some(expected), |_| None) {
        Err(StoreError::Damaged { .. }) => {
            trees.sessions.remove(id.0).map_err(failed)?;
            Ok(())
        }
        replaced => replaced.map(drop),
    }
}

pub(super) fn claim(
    trees: &Trees,
    id: SessionId,
    expected: u64,
    owner: Owner,
    expires: u64,
) -> Result<Owner, StoreError> {
    let before = replace(trees, id, Some(expected), |old| {
        let mut bytes = old.to_vec();
        hand_over(&mut bytes, expected + 1, owner, expires);
        Some(bytes)
    })?;
    before.map(|head| head.owner).ok_or(StoreError::Conflict)
}

/// Takes a session past a revision that the database has forgotten, to nobody.
pub(super) fn skip(trees: &Trees, id: SessionId, revision: u64) -> Result<(), StoreError> {
    let Some(bytes) = trees.sessions.get(id.0).map_err(failed)? else { return Ok(()) };
    let found = head(id, &bytes)?;
    if found.revision <= revision {
        let mut bytes = bytes.to_vec();
        hand_over(&mut bytes, revision + 1, Owner::UNSETTLED, found.expires);
        trees.sessions.insert(id.0, bytes).map_err(failed)?;
    }
    Ok(())
}

/// Puts `change(old)` in place of a record of the expected revision.
fn replace(
    trees: &Trees,
    id: SessionId,
    expected: Option<u64>,
    change: impl Fn(&[u8]) -> Option<Vec<u8>>,
) -> Result<Option<Head>, StoreError> {
    loop {
        let old = trees.sessions.get(id.0).map_err(failed)?;
        let before = match &old {
            Some(bytes) => Some(head(id, bytes)?),
            None => None,
        };
        if before.map(|head| head.revision) != expected && !armed(Fault::SkipCas) {
            return Err(StoreError::Conflict);
        }
        let new = change(old.as_deref().unwrap_or_default());
        match trees.sessions.compare_and_swap(id.0, old, new).map_err(failed)? {
            Ok(()) => return Ok(before),
            Err(_changed) => {}
        }
    }
}

/// The sessions of a slice that have expired by `now`, as they were found.
pub(super) fn expired(
    trees: &Trees,
    now: u64,
    after: Option<SessionId>,
    slice: usize,
) -> Result<(Swept, Vec<(SessionId, IVec)>), StoreError> {
    let from = after.map_or(Bound::Unbounded, |id| Bound::Excluded(id.0));
    let (mut swept, mut expired) = (Swept::default(), Vec::new());
    for entry in trees.sessions.range::<[u8; 16], _>((from, Bound::Unbounded)).take(slice) {
        let (key, bytes) = entry.map_err(failed)?;
        let id = SessionId(
            key.as_ref().try_into().map_err(|_| StoreError::DamagedName { name: format!("{key:?}") })?,
        );
        swept.examined += 1;
        swept.after = Some(id);
        match Head::read(&bytes) {
            Ok(head) if now >= head.expires => expired.push((id, bytes)),
            Ok(_) => {}
            Err(damage) => tracing::warn!(session = %id, %damage, "damaged record in the session store"),
        }
    }
    if swept.examined < slice {
        swept.after = None;
    }
    Ok((swept, expired))
}

/// Removes sessions that are as they were found: someone who extended one in the meantime wins. Returns how many.
pub(super) fn remove(trees: &Trees, found: Vec<(SessionId, IVec)>) -> Result<usize, StoreError> {
    let mut removed = 0;
    for (id, bytes) in found {
        let gone = trees.sessions.compare_and_swap(id.0, Some(bytes), None::<&[u8]>).map_err(failed)?;
        removed += usize::from(gone.is_ok());
    }
    Ok(removed)
}

pub(super) fn scan(trees: &Trees, from: Option<&Cursor>, slice: usize) -> Result<Slice, StoreError> {
    let from = match from {
        None => Bound::Unbounded,
        Some(Cursor(text)) => Bound::Excluded(bytes_of(text).ok_or_else(|| {
            StoreError::Failed(format!("{text:?} is no place where a scan of this store could go on"))
        })?),
    };
    let mut found = Slice::default();
    for entry in trees.sessions.range::<Vec<u8>, _>((from, Bound::Unbounded)).take(slice) {
        let (key, bytes) = entry.map_err(failed)?;
        let id = key.as_ref().try_into().ok().map(SessionId);
        // Of whatever is there, session or not.
        found.next = Some(Cursor(key.iter().map(|byte| format!("{byte:02x}")).collect()));
        let key = id.map_or_else(|| format!("{key:?}"), |id| id.to_string());
        found.entries.push(Entry { id, key, record: Record::decode(&bytes) });
    }
    if found.entries.len() < slice {
        found.next = None;
    }
    Ok(found)
}

fn bytes_of(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.as_bytes();
    let pairs = digits.chunks_exact(2);
    let whole = pairs.remainder().is_empty() && digits.iter().all(u8::is_ascii_hexdigit);
    whole.then(|| {
        pairs.filter_map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
    })
}

/// Up to `limit` sessions of a service.
pub(super) fn of_service(trees: &Trees, service: u16, limit: usize) -> Result<Vec<SessionId>, StoreError> {
    let mut found = Vec::new();
    for entry in &trees.sessions {
        let (key, bytes) = entry.map_err(failed)?;
        if Head::read(&bytes).is_ok_and(|head| head.service == service)
            && let Ok(id) = key.as_ref().try_into()
        {
            found.push(SessionId(id));
            if found.len() == limit {
                break;
            }
        }
    }
    Ok(found)
}

/// Removes sessions as far as they are of that service.
pub(super) fn remove_of(trees: &Trees, service: u16, ids: &[SessionId]) -> Result<(), StoreError> {
    for id in ids {
        let found = trees.sessions.get(id.0).map_err(failed)?;
        if found.is_some_and(|bytes| Head::read(&bytes).is_ok_and(|head| head.service == service)) {
            trees.sessions.remove(id.0).map_err(failed)?;
        }
    }
    Ok(())
}

fn head(id: SessionId, bytes: &[u8]) -> Result<Head, StoreError> {
    Head::read(bytes).map_err(|damage: Damage| StoreError::Damaged { id, damage })
}
