//! Which of a client's changes a session has seen already, so that one that is sent again is not made again.
//!
//! A receipt is written in the same step as the change that it is for, into the same record: there is never one without
//! the other, at whichever server, and after whatever crash. They do not count as the session's state, but they are
//! bounded: the last [`MAX_RECEIPTS`], for [`MAX_AGE`], in [`MAX_BYTES`].

use super::State;
use lb_common::hash::{SipKey, siphash24_bytes};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// Receipts that a session keeps, the latest ones.
pub const MAX_RECEIPTS: usize = 32;
/// How long a receipt is good for.
pub const MAX_AGE: Duration = Duration::from_secs(24 * 3600);
/// Bytes of what one receipt remembers of its answer, as JSON text.
const MAX_SHOWN_BYTES: usize = 4 * 1024;
/// Bytes of all receipts of a session, as stored.
pub const MAX_BYTES: usize = 12 * 1024;

/// Bytes of a stored receipt before what it remembers of its answer.
const FIXED: usize = 16 + 16 + 8 + 8 + 1 + 2;
const _: () = assert!(MAX_RECEIPTS * FIXED <= MAX_BYTES && MAX_BYTES <= u16::MAX as usize);

const CREATED: u8 = 1;
const SHOWN: u8 = 2;

/// Not secret: whoever makes two of his own requests look the same has only fooled himself.
const HASH_KEYS: [SipKey; 2] =
    [[0x6b65_7973_206f_6620, 0x7265_6365_6970_7473], [0x7468_6520_6f74_6865, 0x7220_6861_6c66_2e2e]];

/// A change that is to be made once, however often it is asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Once {
    key: Digest,
    request: Digest,
    /// The only key of the state that the answer is made from, or all of it.
    pub(super) shows: Option<&'static str>,
}

impl Once {
    /// `key` is the client's name for the request. `request` is all that makes it this request and no other, in parts
    /// whose order and number never change. The answer is made from the value of the key `shows`, or from the whole
    /// state.
    pub fn new(key: &[u8], request: &[&[u8]], shows: Option<&'static str>) -> Self {
        let mut parts = Vec::new();
        for part in request {
            // With its length before it, so that no two requests have the same text.
            parts.extend_from_slice(&(part.len() as u64).to_be_bytes());
            parts.extend_from_slice(part);
        }
        Self { key: Digest::of(key), request: Digest::of(&parts), shows }
    }
}

/// 128 bits that tell two texts apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Digest(u128);

impl Digest {
    fn of(text: &[u8]) -> Self {
        let [high, low] = HASH_KEYS.map(|key| u128::from(siphash24_bytes(&key, text)));
        Self(high << 64 | low)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        format!("{:032x}", digest.0)
    }
}

impl TryFrom<String> for Digest {
    type Error = std::num::ParseIntError;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        u128::from_str_radix(&text, 16).map(Self)
    }
}

/// A change that was made.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    key: Digest,
    request: Digest,
    /// Milliseconds since 1970.
    at: u64,
    /// Of the state, with the change in it.
    pub(super) version: u64,
    /// Whether what was asked for came into being with it.
    pub(super) created: bool,
    /// The part of the state that the answer was made from, as JSON text, unless it was too large to be kept.
    shown: Option<Box<str>>,
}

impl Receipt {
    /// The part of the state that the answer was made from, as it was then, if it was kept.
    pub(super) fn state(&self) -> Option<State> {
        // What was written as a state can be read as one; if not, the present state is as good an answer.
        serde_json::from_str(self.shown.as_ref()?).ok()
    }

    fn bytes(&self) -> usize {
        FIXED + self.shown.as_ref().map_or(0, |shown| shown.len())
    }
}

/// Why a change is not to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Seen<'a> {
    /// It was made.
    Made(&'a Receipt),
    /// Its key is that of another one.
    Other,
}

/// The receipts of a session, the oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<Receipt>", into = "Vec<Receipt>")]
pub struct Receipts(Arc<Vec<Receipt>>);

impl From<Receipts> for Vec<Receipt> {
    fn from(receipts: Receipts) -> Self {
        Arc::unwrap_or_clone(receipts.0)
    }
}

impl TryFrom<Vec<Receipt>> for Receipts {
    type Error = String;

    fn try_from(all: Vec<Receipt>) -> Result<Self, String> {
        let receipts = Self(Arc::new(all));
        if receipts.len() > MAX_RECEIPTS || receipts.bytes() > MAX_BYTES {
            return Err(format!("more than {MAX_RECEIPTS} receipts, or more than {MAX_BYTES} bytes of them"));
        }
        Ok(receipts)
    }
}

impl Receipts {
    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Bytes that they take when stored; in memory, about as many.
    pub fn bytes(&self) -> usize {
        self.0.iter().map(Receipt::bytes).sum()
    }

    /// Whether a change was made already.
    pub(super) fn seen(&self, once: &Once, now: u64) -> Option<Seen<'_>> {
        let known = self.0.iter().rev().find(|receipt| receipt.key == once.key && good(receipt, now))?;
        Some(if known.request == once.request { Seen::Made(known) } else { Seen::Other })
    }

    /// With the receipt of a change that made `state` of the session.
    pub(super) fn with(&self, once: &Once, now: u64, version: u64, created: bool, state: &State) -> Self {
        let shown = match once.shows {
            None => serde_json::to_string(state),
            Some(key) => serde_json::to_string(&state.only(key)),
        };
        let shown = shown.expect("a map of strings to JSON is JSON");
        let shown = (shown.len() <= MAX_SHOWN_BYTES).then(|| shown.into());
        let receipt = Receipt { key: once.key, request: once.request, at: now, version, created, shown };
        let mut all: Vec<_> = self.0.iter().filter(|old| good(old, now)).cloned().collect();
        all.drain(..all.len().saturating_sub(MAX_RECEIPTS - 1));
        all.push(receipt);
        // Where they are too large together, the oldest forget their answers: that a change was made is what counts.
        let mut bytes: usize = all.iter().map(Receipt::bytes).sum();
        for receipt in &mut all {
            if bytes <= MAX_BYTES {
                break;
            }
            bytes -= receipt.bytes() - FIXED;
            receipt.shown = None;
        }
        Self(Arc::new(all))
    }

    /// Appends them as they are stored. Numbers are big endian.
    ///
    /// | bytes | field |
    /// |---|---|
    /// | 0..16, 16..32 | digests of the client's key and of the request |
    /// | 32..40 | when, milliseconds since 1970 |
    /// | 40..48 | version of the state with the change in it |
    /// | 48 | bit 0: something came into being; bit 1: what the answer showed follows |
    /// | 49..51 | bytes of what follows |
    /// | 51.. | what the answer showed of the state, as a JSON object |
    pub(super) fn encode(&self, bytes: &mut Vec<u8>) {
        for receipt in self.0.iter() {
            let shown = receipt.shown.as_deref().unwrap_or_default();
            let created = if receipt.created { CREATED } else { 0 };
            let kept = if receipt.shown.is_some() { SHOWN } else { 0 };
            let len = u16::try_from(shown.len()).expect("what is larger is not kept, nor read");
            bytes.extend_from_slice(&receipt.key.0.to_be_bytes());
            bytes.extend_from_slice(&receipt.request.0.to_be_bytes());
            bytes.extend_from_slice(&receipt.at.to_be_bytes());
            bytes.extend_from_slice(&receipt.version.to_be_bytes());
            bytes.push(created | kept);
            bytes.extend_from_slice(&len.to_be_bytes());
            bytes.extend_from_slice(shown.as_bytes());
        }
    }

    /// Undoes [`Receipts::encode`]. `None` for anything else.
    pub(super) fn decode(mut bytes: &[u8]) -> Option<Self> {
        let mut all = Vec::new();
        while !bytes.is_empty() {
            let key = u128::from_be_bytes(take(&mut bytes)?);
            let request = u128::from_be_bytes(take(&mut bytes)?);
            let at = u64::from_be_bytes(take(&mut bytes)?);
            let version = u64::from_be_bytes(take(&mut bytes)?);
            let [flags] = take(&mut bytes)?;
            let len = usize::from(u16::from_be_bytes(take(&mut bytes)?));
            let (shown, rest) = bytes.split_at_checked(len)?;
            bytes = rest;
            let shown = std::str::from_utf8(shown).ok()?;
            if flags & !(CREATED | SHOWN) != 0 || (flags & SHOWN == 0 && len > 0) {
                return None;
            }
            all.push(Receipt {
                key: Digest(key),
                request: Digest(request),
                at,
                version,
                created: flags & CREATED != 0,
                shown: (flags & SHOWN != 0).then(|| shown.into()),
            });
        }
        Some(Self(Arc::new(all)))
    }
}

/// Whether a receipt is not too old. One from the future is good: clocks of servers differ.
fn good(receipt: &Receipt, now: u64) -> bool {
    now.saturating_sub(receipt.at) < MAX_AGE.as_millis() as u64
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(*head)
}

#[cfg(test)]
mod tests;
