//! What is read of bytes from Redis, for the fuzzer.

use super::message::Message;
use super::meta::Meta;
use super::scan::Mark;
use crate::session::record::{Damage, Record};

/// A session of which these are the two stored parts.
///
/// # Errors
/// As when it is loaded.
pub fn session(meta: &[u8], record: &[u8]) -> Result<Record, Damage> {
    Meta::decode(meta)?.complete(record)
}

/// The stored part beside the record.
///
/// # Errors
/// As when it is loaded.
pub fn holders(meta: &[u8]) -> Result<Vec<u64>, Damage> {
    Ok(Meta::decode(meta)?.holders)
}

/// A message between processes, written again.
pub fn message(bytes: &[u8]) -> Option<Vec<u8>> {
    Message::decode(bytes).map(|message| message.encode())
}

/// A cursor of a scan, written again.
pub fn cursor(text: &str) -> Option<String> {
    Mark::parse(text).map(|mark| mark.write().0)
}
