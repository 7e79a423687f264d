//! A session as the database keeps it: who owns it, when it expires, and its state.
//!
//! | bytes, big endian | field |
//! |---|---|
//! | 0 | format, 2 |
//! | 1..5 | CRC-32 of all that follows |
//! | 5..13 | version |
//! | 13..21 | revision |
//! | 21..23 | service id |
//! | 23..25, 25..29 | the owner's slot and epoch |
//! | 29..37, 37..45 | created, expires: milliseconds since 1970 |
//! | 45..47 | bytes of the receipts |
//! | 47.. | receipts ([`Receipts`]) |
//! | the rest | state, as a JSON object |

use super::{Receipts, State};

const FORMAT: u8 = 2;
const HEADER: usize = 47;

/// The instance that may answer for a session from its cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Owner {
    pub slot: u16,
    pub epoch: u32,
}

impl Owner {
    /// Nobody yet: whoever wants to keep a copy has to become the owner first. Epochs begin at 1, so no instance is this.
    pub const UNSETTLED: Self = Self { slot: u16::MAX, epoch: 0 };
}

/// One session.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// Grows by one with each change of the state; 1 when the session begins. What clients see of it. 0: there is nothing, yet
    /// or any more.
    pub version: u64,
    /// Grows by one with each change of the record, hand-overs and moved expiries included; 1 when the session begins.
    /// A change takes effect only while the database holds the revision that it is based on, so one that arrives late
    /// finds out whatever happened in between.
    pub revision: u64,
    /// The service whose session it is.
    pub service: u16,
    pub owner: Owner,
    /// Milliseconds since 1970.
    pub created: u64,
    /// Milliseconds since 1970; from then on the session does not exist.
    pub expires: u64,
    /// Of changes that are to be made once, however often they are asked for.
    pub receipts: Receipts,
    pub state: State,
}

/// Why stored bytes are not a record.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Damage {
    #[error("only {0} bytes long")]
    Short(usize),
    #[error("format {0}, and this version reads format {FORMAT}")]
    Format(u8),
    #[error("its checksum does not match")]
    Checksum,
    #[error("its receipts are not whole")]
    Receipts,
    #[error("its state is not a JSON object: {0}")]
    State(String),
}

impl Record {
    pub fn is_expired(&self, now: u64) -> bool {
        now >= self.expires
    }

    /// Bytes of memory that a cached copy takes, bookkeeping included.
    pub fn weight(&self) -> usize {
        const RECORD: usize = 320;
        const ENTRY: usize = 80;
        RECORD + self.receipts.bytes() + self.state.bytes() + self.state.len() * ENTRY
    }

    pub fn encode(&self) -> Vec<u8> {
        // Braces; for each entry two quotes, a colon, a comma, and a little for characters that are escaped.
        let mut bytes = Vec::with_capacity(HEADER + 2 + self.state.bytes() + 8 * self.state.len());
        bytes.resize(HEADER, 0);
        bytes[0] = FORMAT;
        bytes[5..13].copy_from_slice(&self.version.to_be_bytes());
        bytes[21..23].copy_from_slice(&self.service.to_be_bytes());
        bytes[29..37].copy_from_slice(&self.created.to_be_bytes());
        self.receipts.encode(&mut bytes);
        let receipts =
            u16::try_from(bytes.len() - HEADER).expect("receipts are bounded, and read as long as they were");
        bytes[45..47].copy_from_slice(&receipts.to_be_bytes());
        serde_json::to_writer(&mut bytes, &self.state).expect("a map of strings to JSON is JSON");
        hand_over(&mut bytes, self.revision, self.owner, self.expires);
        bytes
    }

    /// # Errors
    /// [`Damage`]: nothing of a record that is not whole is used.
    pub fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        let head = Head::read(bytes)?;
        let receipts = usize::from(u16::from_be_bytes(array(&bytes[45..])));
        let (receipts, state) = bytes[HEADER..].split_at_checked(receipts).ok_or(Damage::Receipts)?;
        let receipts = Receipts::decode(receipts).ok_or(Damage::Receipts)?;
        let state = serde_json::from_slice(state).map_err(|error| Damage::State(error.to_string()))?;
        Ok(Self {
            version: head.version,
            revision: head.revision,
            service: head.service,
            owner: head.owner,
            created: head.created,
            expires: head.expires,
            receipts,
            state,
        })
    }
}

/// The fixed part of a stored record: enough to compare, to expire, to hand over, without reading the state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Head {
    pub version: u64,
    pub revision: u64,
    pub owner: Owner,
    pub service: u16,
    pub created: u64,
    pub expires: u64,
}

impl Head {
    /// # Errors
    /// [`Damage`], the checksum over the whole record included.
    pub fn read(bytes: &[u8]) -> Result<Self, Damage> {
        match bytes.first() {
            None => return Err(Damage::Short(0)),
            Some(&FORMAT) => {}
            Some(&other) => return Err(Damage::Format(other)),
        }
        if bytes.len() < HEADER {
            return Err(Damage::Short(bytes.len()));
        }
        if bytes[1..5] != crc32fast::hash(&bytes[5..]).to_be_bytes() {
            return Err(Damage::Checksum);
        }
        Ok(Self {
            version: u64::from_be_bytes(array(&bytes[5..])),
            revision: u64::from_be_bytes(array(&bytes[13..])),
            owner: Owner {
                slot: u16::from_be_bytes(array(&bytes[23..])),
                epoch: u32::from_be_bytes(array(&bytes[25..])),
            },
            service: u16::from_be_bytes(array(&bytes[21..])),
            created: u64::from_be_bytes(array(&bytes[29..])),
            expires: u64::from_be_bytes(array(&bytes[37..])),
        })
    }
}

/// Writes what changes when a session is handed over into an encoded record, and the checksum that then holds.
pub fn hand_over(bytes: &mut [u8], revision: u64, owner: Owner, expires: u64) {
    bytes[13..21].copy_from_slice(&revision.to_be_bytes());
    bytes[23..25].copy_from_slice(&owner.slot.to_be_bytes());
    bytes[25..29].copy_from_slice(&owner.epoch.to_be_bytes());
    bytes[37..45].copy_from_slice(&expires.to_be_bytes());
    let sum = crc32fast::hash(&bytes[5..]).to_be_bytes();
    bytes[1..5].copy_from_slice(&sum);
}

/// The first `N` bytes; callers have checked that there are as many.
fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[..N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::Once;
    use proptest::prelude::*;

    fn any_record() -> impl Strategy<Value = Record> {
        let state = proptest::collection::btree_map(".*", ".*", 0..5).prop_map(|entries| {
            let mut state = State::default();
            for (key, value) in entries {
                state.set_as(key, &value).unwrap();
            }
            state
        });
        let header =
            (any::<(u64, u64)>(), any::<u16>(), any::<u16>(), any::<u32>(), any::<u64>(), any::<u64>());
        let receipts = proptest::collection::vec((any::<u64>(), any::<bool>()), 0..4);
        (header, receipts, state).prop_map(|(header, changes, state)| {
            let ((version, revision), service, slot, epoch, created, expires) = header;
            let receipts = changes.into_iter().fold(Receipts::default(), |receipts, (version, created)| {
                let once = Once::new(&version.to_be_bytes(), &[], None);
                receipts.with(&once, 0, version, created, &state)
            });
            let owner = Owner { slot, epoch };
            Record { version, revision, service, owner, created, expires, receipts, state }
        })
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(record in any_record()) {
            prop_assert_eq!(Record::decode(&record.encode()), Ok(record));
        }

        #[test]
        fn any_flipped_bit_is_noticed(record in any_record(), at: prop::sample::Index, bit in 0u32..8) {
            let mut bytes = record.encode();
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert!(Record::decode(&bytes).is_err());
        }

        #[test]
        fn any_lost_tail_is_noticed(record in any_record(), at: prop::sample::Index) {
            let bytes = record.encode();
            prop_assert!(Record::decode(&bytes[..at.index(bytes.len())]).is_err());
        }

        #[test]
        fn a_hand_over_changes_nothing_else(
            record in any_record(), revision: u64, slot: u16, epoch: u32, expires: u64,
        ) {
            let mut bytes = record.encode();
            let owner = Owner { slot, epoch };
            hand_over(&mut bytes, revision, owner, expires);
            prop_assert_eq!(Record::decode(&bytes), Ok(Record { revision, owner, expires, ..record }));
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
            let _ = Record::decode(&bytes);
        }
    }

    #[test]
    fn another_format_is_named() {
        assert_eq!(Record::decode(&[1; 64]), Err(Damage::Format(1)));
        assert_eq!(Damage::Format(1).to_string(), "format 1, and this version reads format 2");
    }
}
