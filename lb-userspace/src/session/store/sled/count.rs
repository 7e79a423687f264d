//! How many sessions each service has, without looking at them. The committer keeps the numbers. Before each batch that may add or
//! remove sessions it writes down the numbers so far and, of each such session, whose it is if it is there. sled recovers
//! its log up to one place and nothing behind it, so after a crash that entry is at least as new as the sessions are,
//! and the numbers follow from it.

use super::StoreError;
use super::trees::failed;
use crate::session::record::Head;
use lb_common::token::SessionId;
use sled::{Db, Tree};
use std::collections::BTreeMap;

/// Where it stands in the default tree.
const KEY: &str = "counts";
/// Where versions before kept one number for all services.
const FORMER: &str = "sessions";
/// More sessions than this in one batch are not written down: a crash in it costs one count of all.
const MAX_TOUCHED: usize = 4096;
/// Of records that are damaged.
const NOBODY: u16 = 0;

/// Sessions by service.
pub(super) type Counts = BTreeMap<u16, u64>;

/// The numbers of sessions before a batch, and those that it may add or remove, with the service if they were there.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tally {
    before: Counts,
    touched: Vec<(SessionId, Option<u16>)>,
}

impl Tally {
    /// Written down before a batch is done.
    pub(super) fn begin(
        db: &Db,
        sessions: &Tree,
        before: Counts,
        mut ids: Vec<SessionId>,
    ) -> Result<Self, StoreError> {
        ids.sort_unstable_by_key(|id| id.0);
        ids.dedup();
        let look = |id: SessionId| Ok((id, whose(sessions, id)?));
        let tally = Self { before, touched: ids.into_iter().map(look).collect::<Result<_, StoreError>>()? };
        db.insert(KEY, tally.encode()).map_err(failed)?;
        Ok(tally)
    }

    /// The numbers as they are.
    pub(super) fn total(&self, sessions: &Tree) -> Result<Counts, StoreError> {
        let mut total = self.before.clone();
        for (id, was) in &self.touched {
            let is = whose(sessions, *id)?;
            if is == *was {
                continue;
            }
            if let Some(count) = was.and_then(|was| total.get_mut(&was)) {
                *count = count.saturating_sub(1);
            }
            if let Some(is) = is {
                *total.entry(is).or_default() += 1;
            }
        }
        total.retain(|_, count| *count > 0);
        Ok(total)
    }

    /// All big endian: how many services, 2 bytes; of each its id, 2 bytes, and its number, 8 bytes. Then of each session its id,
    /// 16 bytes, 1 or 0, and its service, 2 bytes. Empty when there are too many.
    pub(super) fn encode(&self) -> Vec<u8> {
        if self.touched.len() > MAX_TOUCHED {
            return Vec::new();
        }
        let services = u16::try_from(self.before.len()).expect("ids of services have 16 bits, and 0 is none");
        let mut bytes = services.to_be_bytes().to_vec();
        for (service, count) in &self.before {
            bytes.extend(service.to_be_bytes());
            bytes.extend(count.to_be_bytes());
        }
        for (id, was) in &self.touched {
            bytes.extend(id.0);
            bytes.push(u8::from(was.is_some()));
            bytes.extend(was.unwrap_or(NOBODY).to_be_bytes());
        }
        bytes
    }

    /// `None` when it is nothing that [`Tally::encode`] writes.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (services, mut rest) = bytes.split_first_chunk()?;
        let mut before = Counts::new();
        for _ in 0..u16::from_be_bytes(*services) {
            let (service, after) = rest.split_first_chunk()?;
            let (count, after) = after.split_first_chunk()?;
            let service = u16::from_be_bytes(*service);
            if before.last_key_value().is_some_and(|(last, _)| service <= *last) {
                return None;
            }
            before.insert(service, u64::from_be_bytes(*count));
            rest = after;
        }
        let mut touched = Vec::new();
        while let Some((id, after)) = rest.split_first_chunk() {
            let ([there], after) = after.split_first_chunk()?;
            let (service, after) = after.split_first_chunk()?;
            let was = match (there, u16::from_be_bytes(*service)) {
                (0, NOBODY) => None,
                (1, service) => Some(service),
                _ => return None,
            };
            touched.push((SessionId(*id), was));
            rest = after;
        }
        rest.is_empty().then_some(Self { before, touched })
    }
}

/// Whose session it is, if it is there.
fn whose(sessions: &Tree, id: SessionId) -> Result<Option<u16>, StoreError> {
    let found = sessions.get(id.0).map_err(failed)?;
    Ok(found.map(|bytes| Head::read(&bytes).map_or(NOBODY, |head| head.service)))
}

/// The numbers of sessions in a database that was just opened. Counts them where nobody has before.
pub(super) fn recover(db: &Db, sessions: &Tree) -> Result<Counts, StoreError> {
    let known = db.get(KEY).map_err(failed)?;
    if let Some(tally) = known.as_deref().and_then(Tally::decode) {
        return tally.total(sessions);
    }
    let mut total = Counts::new();
    for bytes in sessions.iter().values() {
        let bytes = bytes.map_err(failed)?;
        *total.entry(Head::read(&bytes).map_or(NOBODY, |head| head.service)).or_default() += 1;
    }
    if known.is_some() || !total.is_empty() {
        let sessions: u64 = total.values().sum();
        tracing::info!(sessions, "sessions counted, since no valid numbers were in the store");
    }
    Tally::begin(db, sessions, total.clone(), Vec::new())?;
    db.remove(FORMER).map_err(failed)?;
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tally_is_read_as_it_was_written() {
        let touched = vec![(SessionId([1; 16]), Some(3)), (SessionId([2; 16]), None)];
        let before = Counts::from([(1, 7), (3, u64::MAX)]);
        for tally in
            [Tally { before: before.clone(), touched }, Tally { before: Counts::new(), touched: Vec::new() }]
        {
            assert_eq!(Tally::decode(&tally.encode()), Some(tally));
        }
        let many = Tally { before, touched: vec![(SessionId([1; 16]), Some(1)); MAX_TOUCHED + 1] };
        let flag = [vec![0; 18], vec![2, 0, 0]].concat();
        for bytes in [many.encode(), vec![0; 1], vec![0; 3], vec![0; 18], vec![0, 1, 0], flag] {
            assert_eq!(Tally::decode(&bytes), None, "{bytes:?}");
        }
    }
}
