//! How many sessions there are, without looking at them. The committer keeps the number. Before each batch that may add or
//! remove sessions it writes down the number so far and, of each such session, whether it is there. sled recovers its log
//! up to one place and nothing behind it, so after a crash that entry is at least as new as the sessions are, and
//! the number follows from it.

use super::StoreError;
use super::trees::failed;
use lb_common::token::SessionId;
use sled::{Db, Tree};

/// Where it stands in the default tree.
const KEY: &str = "sessions";
/// More sessions than this in one batch are not written down: a crash in it costs one count of all.
const MAX_TOUCHED: usize = 4096;
/// Bytes of a session in the entry: its id, and whether it was there.
const TOUCHED: usize = 17;

/// The number of sessions before a batch, and those that it may add or remove.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tally {
    before: u64,
    touched: Vec<(SessionId, bool)>,
}

impl Tally {
    /// Written down before a batch is done.
    pub(super) fn begin(
        db: &Db,
        sessions: &Tree,
        before: u64,
        mut ids: Vec<SessionId>,
    ) -> Result<Self, StoreError> {
        ids.sort_unstable_by_key(|id| id.0);
        ids.dedup();
        let look = |id: SessionId| Ok((id, sessions.contains_key(id.0).map_err(failed)?));
        let tally = Self { before, touched: ids.into_iter().map(look).collect::<Result<_, StoreError>>()? };
        db.insert(KEY, tally.encode()).map_err(failed)?;
        Ok(tally)
    }

    /// The number as it is.
    pub(super) fn total(&self, sessions: &Tree) -> Result<u64, StoreError> {
        let mut total = self.before;
        for (id, was_there) in &self.touched {
            match (was_there, sessions.contains_key(id.0).map_err(failed)?) {
                (false, true) => total += 1,
                (true, false) => total = total.saturating_sub(1),
                _ => {}
            }
        }
        Ok(total)
    }

    /// The number, 8 bytes, big endian; each session's id, 16 bytes, and 1 or 0. Empty when there are too many.
    pub(super) fn encode(&self) -> Vec<u8> {
        if self.touched.len() > MAX_TOUCHED {
            return Vec::new();
        }
        let mut bytes = self.before.to_be_bytes().to_vec();
        for (id, was_there) in &self.touched {
            bytes.extend(id.0);
            bytes.push(u8::from(*was_there));
        }
        bytes
    }

    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (before, touched) = bytes.split_first_chunk()?;
        let touched = touched.chunks(TOUCHED).map(|entry| {
            let (id, was_there) = entry.split_first_chunk()?;
            match was_there {
                [0] => Some((SessionId(*id), false)),
                [1] => Some((SessionId(*id), true)),
                _ => None,
            }
        });
        Some(Self { before: u64::from_be_bytes(*before), touched: touched.collect::<Option<_>>()? })
    }
}

/// The number of sessions in a database that was just opened. Counts them where nobody has before.
pub(super) fn recover(db: &Db, sessions: &Tree) -> Result<u64, StoreError> {
    let known = db.get(KEY).map_err(failed)?;
    if let Some(tally) = known.as_deref().and_then(Tally::decode) {
        return tally.total(sessions);
    }
    let mut total = 0;
    for key in sessions.iter().keys() {
        key.map_err(failed)?;
        total += 1;
    }
    if known.is_some() || total > 0 {
        tracing::info!(sessions = total, "sessions counted, since no valid number was in the store");
    }
    Tally::begin(db, sessions, total, Vec::new())?;
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_is_read_as_it_was_written() {
        let touched = vec![(SessionId([1; 16]), true), (SessionId([2; 16]), false)];
        for tally in [Tally { before: 7, touched }, Tally { before: 0, touched: Vec::new() }] {
            assert_eq!(Tally::decode(&tally.encode()), Some(tally));
        }
        let many = Tally { before: 7, touched: vec![(SessionId([1; 16]), true); MAX_TOUCHED + 1] };
        for bytes in [many.encode(), vec![0; 7], vec![0; 9], [vec![0; 24], vec![2]].concat()] {
            assert_eq!(Tally::decode(&bytes), None, "{bytes:?}");
        }
    }
}
