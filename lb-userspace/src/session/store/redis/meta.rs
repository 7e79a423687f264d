//! What is stored beside a session's record: who may hold a copy of it, and what a hand-over changes.
//!
//! | bytes, big endian | field |
//! |---|---|
//! | 0..16 | nonce of the last change |
//! | 16..24 | revision |
//! | 24..26, 26..30 | the owner's slot and epoch |
//! | 30..38 | expires: milliseconds since 1970 |
//! | 38..42 | CRC-32 of 16..38 |
//! | 42..48 | the owner until the last change |
//! | 48.. | holders: the nodes that may have a copy in memory, 8 bytes each |
//!
//! The record itself is as it was last saved; revision, owner and expiry of it are those here. A hand-over can so be one
//! small write, whatever the size of the session. The scripts know these offsets.

use crate::session::record::{Damage, Owner, Record};

pub(super) const NONCE: usize = 16;
const STAMP: usize = 26;
const HEAD: usize = NONCE + STAMP + 6;

/// One process with this store open, from one registration to the next.
pub(super) type Node = u64;

/// Tells one change from all others, so that a repeated one knows itself.
pub(super) type Nonce = [u8; NONCE];

/// What each change sets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stamp {
    pub(super) revision: u64,
    pub(super) owner: Owner,
    /// Milliseconds since 1970.
    pub(super) expires: u64,
}

impl Stamp {
    pub(super) fn of(record: &Record) -> Self {
        Self { revision: record.revision, owner: record.owner, expires: record.expires }
    }

    pub(super) fn encode(&self) -> [u8; STAMP] {
        let mut bytes = [0; STAMP];
        bytes[..8].copy_from_slice(&self.revision.to_be_bytes());
        bytes[8..14].copy_from_slice(&encode_owner(self.owner));
        bytes[14..22].copy_from_slice(&self.expires.to_be_bytes());
        let sum = crc32fast::hash(&bytes[..22]).to_be_bytes();
        bytes[22..].copy_from_slice(&sum);
        bytes
    }

    fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        if crc32fast::hash(&bytes[..22]).to_be_bytes() != bytes[22..STAMP] {
            return Err(Damage::Checksum);
        }
        Ok(Self {
            revision: u64::from_be_bytes(array(&bytes[..8])),
            owner: decode_owner(&bytes[8..14]),
            expires: u64::from_be_bytes(array(&bytes[14..22])),
        })
    }
}

/// All of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Meta {
    pub(super) nonce: Nonce,
    pub(super) stamp: Stamp,
    pub(super) holders: Vec<Node>,
}

impl Meta {
    /// # Errors
    /// [`Damage`]: nothing is used of what is not whole.
    pub(super) fn decode(bytes: &[u8]) -> Result<Self, Damage> {
        if bytes.len() < HEAD {
            return Err(Damage::Short(bytes.len()));
        }
        Ok(Self {
            nonce: array(&bytes[..NONCE]),
            stamp: Stamp::decode(&bytes[NONCE..NONCE + STAMP])?,
            holders: decode_nodes(&bytes[HEAD..]).ok_or(Damage::Checksum)?,
        })
    }

    /// The record that it belongs to, as it is now.
    ///
    /// # Errors
    /// [`Damage`] of the record.
    pub(super) fn complete(&self, record: &[u8]) -> Result<Record, Damage> {
        let Stamp { revision, owner, expires } = self.stamp;
        Ok(Record { revision, owner, expires, ..Record::decode(record)? })
    }
}

pub(super) fn encode_owner(owner: Owner) -> [u8; 6] {
    let mut bytes = [0; 6];
    bytes[..2].copy_from_slice(&owner.slot.to_be_bytes());
    bytes[2..].copy_from_slice(&owner.epoch.to_be_bytes());
    bytes
}

/// From 6 bytes.
pub(super) fn decode_owner(bytes: &[u8]) -> Owner {
    Owner { slot: u16::from_be_bytes(array(&bytes[..2])), epoch: u32::from_be_bytes(array(&bytes[2..6])) }
}

/// From 8 bytes each; `None` where that does not come out even.
pub(super) fn decode_nodes(bytes: &[u8]) -> Option<Vec<Node>> {
    let nodes = bytes.chunks_exact(8);
    nodes.remainder().is_empty().then(|| nodes.map(|node| Node::from_be_bytes(array(node))).collect())
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(&bytes[..N]);
    array
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn encoded(nonce: Nonce, stamp: Stamp, holders: &[Node]) -> Vec<u8> {
        let mut bytes = nonce.to_vec();
        bytes.extend(stamp.encode());
        bytes.extend(encode_owner(Owner::UNSETTLED));
        holders.iter().for_each(|node| bytes.extend(node.to_be_bytes()));
        bytes
    }

    proptest! {
        #[test]
        fn decode_undoes_encode(
            nonce: Nonce, revision: u64, slot: u16, epoch: u32, expires: u64, holders: Vec<Node>,
        ) {
            let stamp = Stamp { revision, owner: Owner { slot, epoch }, expires };
            let bytes = encoded(nonce, stamp, &holders);
            prop_assert_eq!(Meta::decode(&bytes), Ok(Meta { nonce, stamp, holders }));
            prop_assert!(Meta::decode(&bytes[..bytes.len() - 1]).is_err());
        }

        #[test]
        fn a_flipped_bit_of_the_stamp_is_noticed(at in NONCE..NONCE + STAMP, bit in 0u32..8) {
            let stamp = Stamp { revision: 1, owner: Owner { slot: 2, epoch: 3 }, expires: 4 };
            let mut bytes = encoded([9; NONCE], stamp, &[5]);
            bytes[at] ^= 1 << bit;
            prop_assert_eq!(Meta::decode(&bytes), Err(Damage::Checksum));
        }
    }
}
