//! Ids of sessions that have not been written yet. A visitor gets its token with its first answer, so that all it sends later
//! comes to one session, but nothing is stored before it changes something. The id itself says until when it may begin a
//! session; an id that is not in the database and does not say so, or too late, is never used.
//!
//! | bytes | of such an id |
//! |---|---|
//! | 0..10 | random |
//! | 10..12 | [`MARK`] |
//! | 12..16 | until when, in seconds since 1970, big endian |
//!
//! Clients cannot choose one: ids are believed only where a signed token names them. A session that ends while its id could
//! still begin one leaves a grave, a record of version 0, which goes when the id is of no use any more: what has ended stays
//! ended, and no version comes again with another state.

use super::{Limits, Owner, Receipts, Record, SessionStore, State, StoreError};
use lb_common::token::SessionId;

/// Tells these ids from all others.
const MARK: [u8; 2] = [0x76, 0x1d];
/// Clocks of hosts differ by less.
const SKEW_MS: u64 = 60_000;
/// So much longer than its id is of use a grave stays: a write that was sent in time may be late.
const MARGIN_MS: u64 = 60_000;
/// No id is of use for longer, however sessions are configured.
const LONGEST_MS: u64 = 366 * 86_400_000;

/// A new id that may begin a session until then, in milliseconds since 1970; the second is rounded up.
///
/// # Errors
/// There are no random numbers.
pub(super) fn mint(until: u64) -> Result<SessionId, getrandom::Error> {
    let mut id = [0; 16];
    getrandom::fill(&mut id[..10])?;
    id[10..12].copy_from_slice(&MARK);
    let seconds = u32::try_from(until.div_ceil(1000)).unwrap_or(u32::MAX);
    id[12..].copy_from_slice(&seconds.to_be_bytes());
    Ok(SessionId(id))
}

/// A new id of a session that is written at once.
///
/// # Errors
/// There are no random numbers.
pub(super) fn plain() -> Result<SessionId, getrandom::Error> {
    let mut id = [0; 16];
    getrandom::fill(&mut id)?;
    if id[10..12] == MARK {
        id[10] ^= 1;
    }
    Ok(SessionId(id))
}

/// Until when an id may begin a session, in milliseconds since 1970. `None` for all that [`mint`] did not make.
pub(super) fn until(id: SessionId) -> Option<u64> {
    let [.., a, b, c, d] = id.0;
    (id.0[10..12] == MARK).then(|| u64::from(u32::from_be_bytes([a, b, c, d])) * 1000)
}

/// How long a visitor may take until its first change.
pub(super) fn window(limits: &Limits) -> u64 {
    u64::try_from(limits.idle.min(limits.absolute).as_millis()).unwrap_or(LONGEST_MS).min(LONGEST_MS)
}

/// Whether an id that is not in the database may begin a session.
pub(super) fn is_open(id: SessionId, now: u64, limits: &Limits) -> bool {
    until(id).is_some_and(|until| now < until && until <= now + window(limits) + SKEW_MS)
}

/// Ends a session, if the database holds this revision of it now: deletes it, or leaves a grave where its id could begin one
/// again.
///
/// # Errors
/// [`StoreError`], [`StoreError::Conflict`] among them.
pub(crate) async fn bury(
    store: &dyn SessionStore,
    id: SessionId,
    record: &Record,
    now: u64,
) -> Result<(), StoreError> {
    let goes = until(id).map(|until| until + MARGIN_MS);
    match goes.filter(|goes| now < *goes && *goes <= now + LONGEST_MS) {
        None => store.delete(id, record.revision).await,
        Some(goes) => {
            let grave = Record {
                version: 0,
                revision: record.revision + 1,
                owner: Owner::UNSETTLED,
                expires: goes,
                receipts: Receipts::default(),
                state: State::default(),
                ..*record
            };
            store.save(id, &grave, Some(record.revision)).await.map(drop)
        }
    }
}

impl Record {
    /// Whether it only says that its session has ended.
    pub fn is_grave(&self) -> bool {
        self.version == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::MemoryStore;
    use std::time::Duration;

    fn limits(idle: u64) -> Limits {
        Limits { idle: Duration::from_secs(idle), ..Limits::default() }
    }

    #[test]
    fn an_id_is_open_until_its_time_and_only_if_it_was_minted() {
        let id = mint(1_000_500).unwrap();
        assert_eq!(until(id), Some(1_001_000));
        for (now, idle, open) in [
            (1_000_500, 1800, true),
            (1_000_999, 1800, true),
            (1_001_000, 1800, false),
            // Said to be good for longer than any that was minted here can be.
            (900_000, 40, false),
            (900_000, 41, true),
        ] {
            assert_eq!(is_open(id, now, &limits(idle)), open, "{now} {idle}");
        }
        for _ in 0..100 {
            assert_eq!(until(plain().unwrap()), None);
        }
        assert!(!is_open(SessionId([0x66; 16]), 1, &limits(1)));
        let never = mint(u64::MAX).unwrap();
        assert!(!is_open(
            never,
            1_000_000,
            &Limits { idle: Duration::MAX, absolute: Duration::MAX, ..limits(1) }
        ));
    }

    #[tokio::test]
    async fn a_grave_stays_as_long_as_its_id_could_begin_a_session() {
        let store = MemoryStore::new();
        let record = Record {
            version: 3,
            revision: 5,
            service: 1,
            owner: Owner { slot: 1, epoch: 1 },
            created: 0,
            expires: 9_000_000,
            receipts: Receipts::default(),
            state: State::default(),
        };
        let open = mint(2_000_000).unwrap();
        for (id, now, grave) in [
            (open, 1_000_000, true),
            (open, 2_059_999, true),
            (open, 2_060_000, false),
            (plain().unwrap(), 1_000_000, false),
            (mint(u64::MAX).unwrap(), 1_000_000, false),
        ] {
            store.save(id, &record, None).await.unwrap();
            assert_eq!(
                bury(&store, id, &Record { revision: 4, ..record.clone() }, now).await,
                Err(StoreError::Conflict)
            );
            bury(&store, id, &record, now).await.unwrap();
            let left = store.load(id).await.unwrap();
            assert_eq!(left.as_ref().map(|left| left.expires), grave.then_some(2_060_000), "{now}");
            if let Some(left) = left {
                assert!(left.is_grave() && left.revision == 6);
                store.delete(id, 6).await.unwrap();
            }
        }
    }
}
