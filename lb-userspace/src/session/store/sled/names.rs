//! Epochs, service ids and slots: what must never be given out twice. Only the committer's thread writes here, so that
//! it needs no lock.

use super::sessions::of_service;
use super::trees::{Trees, failed};
use super::{Given, StoreError};
use crate::session::fault::{Fault, armed};
use sled::Tree;
use std::collections::BTreeSet;

const MAX_NAME: usize = 255;

pub(super) fn next_epoch(trees: &Trees, slot: u16) -> Result<u32, StoreError> {
    let last = last_epoch(trees, slot)?;
    if last > 0 && armed(Fault::SkipEpoch) {
        return Ok(last);
    }
    let next = last.checked_add(1).ok_or(StoreError::Exhausted("epoch of that slot"))?;
    trees.epochs.insert(slot.to_be_bytes(), &next.to_be_bytes()).map_err(failed)?;
    Ok(next)
}

/// 0 for a slot that never had one.
fn last_epoch(trees: &Trees, slot: u16) -> Result<u32, StoreError> {
    match trees.epochs.get(slot.to_be_bytes()).map_err(failed)? {
        None => Ok(0),
        Some(bytes) => epoch(&bytes, slot),
    }
}

fn epoch(bytes: &[u8], slot: u16) -> Result<u32, StoreError> {
    let bytes = bytes
        .try_into()
        .map_err(|_| StoreError::DamagedName { name: format!("the epoch of slot {slot}") })?;
    Ok(u32::from_be_bytes(bytes))
}

pub(super) fn service_id(trees: &Trees, service: &str) -> Result<u16, StoreError> {
    check(service)?;
    assign(&trees.services, service.as_bytes(), service, 1, "service id")
}

pub(super) fn slot(trees: &Trees, service: &str, backend: &str) -> Result<u16, StoreError> {
    let name = format!("{service}/{backend}");
    assign(&trees.slots, &slot_key(service, backend)?, &name, 0, "slot")
}

pub(super) fn slots(trees: &Trees) -> Result<Vec<(String, String, u16)>, StoreError> {
    let mut slots = Vec::new();
    for entry in &trees.slots {
        let (key, value) = entry.map_err(failed)?;
        let damaged = || StoreError::DamagedName { name: format!("{key:?}") };
        let (len, names) = key.split_first().ok_or_else(damaged)?;
        let (service, backend) = names.split_at_checked(usize::from(*len)).ok_or_else(damaged)?;
        let text = |name: &[u8]| String::from_utf8(name.to_vec()).map_err(|_| damaged());
        slots.push((text(service)?, text(backend)?, number(&value, "a slot")?));
    }
    Ok(slots)
}

pub(super) fn given(trees: &Trees) -> Result<Given, StoreError> {
    let mut given = Given { slots: slots(trees)?, ..Given::default() };
    for entry in &trees.services {
        let (key, value) = entry.map_err(failed)?;
        let name = String::from_utf8(key.to_vec())
            .map_err(|_| StoreError::DamagedName { name: format!("a service {key:?}") })?;
        given.services.insert(name.clone(), number(&value, &name)?);
    }
    for entry in &trees.epochs {
        let (key, value) = entry.map_err(failed)?;
        let slot = number(&key, "an epoch")?;
        given.epochs.push((slot, epoch(&value, slot)?));
    }
    Ok(given)
}

/// Services last: a crash in between leaves nothing that tokens could be taken for.
pub(super) fn adopt(trees: &Trees, other: &Given) -> Result<(), StoreError> {
    let here = given(trees)?;
    let services = other.new_services(&here.services)?;
    services.iter().try_for_each(|(service, _)| check(service))?;
    for (service, backend, slot) in &other.slots {
        let key = slot_key(service, backend)?;
        let taken = here.slots.iter().any(|(s, b, taken)| taken == slot || (s, b) == (service, backend));
        if !taken {
            trees.slots.insert(key, &slot.to_be_bytes()).map_err(failed)?;
        }
    }
    for (slot, epoch) in &other.epochs {
        if *epoch > last_epoch(trees, *slot)? {
            trees.epochs.insert(slot.to_be_bytes(), &epoch.to_be_bytes()).map_err(failed)?;
        }
    }
    for (service, id) in services {
        trees.services.insert(service, &id.to_be_bytes()).map_err(failed)?;
    }
    Ok(())
}

/// The epoch of the slot stays: a token of the forgotten backend must not fit the next one there.
pub(super) fn forget_slot(trees: &Trees, service: &str, backend: &str) -> Result<(), StoreError> {
    trees.slots.remove(slot_key(service, backend)?).map_err(failed)?;
    Ok(())
}

/// The id of a service, if it has one.
pub(super) fn known_service(trees: &Trees, service: &str) -> Result<Option<u16>, StoreError> {
    check(service)?;
    let value = trees.services.get(service).map_err(failed)?;
    value.map(|value| number(&value, service)).transpose()
}

/// Frees the id of a service whose sessions are gone. False while some are there: before they are gone, no other service
/// can have the id.
pub(super) fn forget_service(trees: &Trees, service: &str) -> Result<bool, StoreError> {
    if let Some(id) = known_service(trees, service)? {
        if !of_service(trees, id, 1)?.is_empty() {
            return Ok(false);
        }
        trees.services.remove(service).map_err(failed)?;
    }
    Ok(true)
}

/// What `key` was given, or the smallest number from `first` on that nothing has.
fn assign(tree: &Tree, key: &[u8], name: &str, first: u16, what: &'static str) -> Result<u16, StoreError> {
    if let Some(value) = tree.get(key).map_err(failed)? {
        return number(&value, name);
    }
    let mut taken = BTreeSet::new();
    for value in tree.iter().values() {
        taken.insert(number(&value.map_err(failed)?, name)?);
    }
    let free = (first..=u16::MAX).find(|n| !taken.contains(n)).ok_or(StoreError::Exhausted(what))?;
    tree.insert(key, &free.to_be_bytes()).map_err(failed)?;
    Ok(free)
}

fn number(value: &[u8], name: &str) -> Result<u16, StoreError> {
    value.try_into().map(u16::from_be_bytes).map_err(|_| StoreError::DamagedName { name: name.into() })
}

fn slot_key(service: &str, backend: &str) -> Result<Vec<u8>, StoreError> {
    check(service)?;
    check(backend)?;
    let len = u8::try_from(service.len()).expect("names are at most 255 bytes");
    Ok([&[len], service.as_bytes(), backend.as_bytes()].concat())
}

fn check(name: &str) -> Result<(), StoreError> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(StoreError::Name(name.into()));
    }
    Ok(())
}
