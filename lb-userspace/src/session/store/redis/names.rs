//! Service ids, slots and epochs: one hash, changed as a whole or not at all.
//!
//! | field | value |
//! |---|---|
//! | `format` | of the whole store |
//! | `version` | grows with each change of the names |
//! | `i:` service | its id |
//! | `s:` bytes of the service's name `:` service, backend | slot |
//! | `e:` slot | its last epoch |

use super::super::Given;
use super::StoreError;
use super::core::Core;
use super::link::{Need, text};
use super::message::Message;
use super::meta::NONCE;
use super::scripts::{EPOCH, NAMES, RENAME};
use crate::session::fault::{Fault, armed};
use redis::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

/// Of everything under the prefix; grows with any change that this version could not read.
pub(super) const FORMAT: &str = "1";

const MAX_NAME: usize = 255;

/// How often a change is repeated that met another one.
const TRIES: usize = 100;

/// Epochs that are known here.
#[derive(Default)]
pub(super) struct Epochs {
    last: HashMap<u16, u32>,
    /// Slots that this process is about to get an epoch for.
    asked: HashSet<u16>,
}

/// All names, as they were when they were read.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub(super) struct Names {
    version: String,
    given: Given,
}

/// Fields to set and to remove.
#[derive(Default)]
struct Edits {
    set: Vec<(String, String)>,
    remove: Vec<String>,
}

impl Names {
    /// Fields and values in turn.
    fn parse(answer: &[Value]) -> Result<Self, StoreError> {
        let mut names = Self::default();
        for pair in answer.chunks_exact(2) {
            let (field, value) = (text(&pair[0]), text(&pair[1]));
            let damaged = || StoreError::DamagedName { name: field.clone() };
            if field == "version" {
                names.version = value;
            } else if let Some(service) = field.strip_prefix("i:") {
                names.given.services.insert(service.to_owned(), value.parse().map_err(|_| damaged())?);
            } else if let Some(slot) = field.strip_prefix("s:") {
                let (len, both) = slot.split_once(':').ok_or_else(damaged)?;
                let len: usize = len.parse().map_err(|_| damaged())?;
                let (service, backend) = both.split_at_checked(len).ok_or_else(damaged)?;
                let slot = value.parse().map_err(|_| damaged())?;
                names.given.slots.push((service.to_owned(), backend.to_owned(), slot));
            } else if let Some(slot) = field.strip_prefix("e:") {
                let slot = slot.parse().map_err(|_| damaged())?;
                names.given.epochs.push((slot, value.parse().map_err(|_| damaged())?));
            }
        }
        names.given.slots.sort();
        names.given.epochs.sort_unstable();
        Ok(names)
    }

    fn slot(&self, service: &str, backend: &str) -> Option<u16> {
        self.given
            .slots
            .iter()
            .find(|(s, b, _)| (s.as_str(), b.as_str()) == (service, backend))
            .map(|found| found.2)
    }

    fn adopt(&self, other: &Given) -> Result<Edits, StoreError> {
        let mut edits = Edits::default();
        for (service, id) in other.new_services(&self.given.services)? {
            check(service)?;
            edits.set.push((service_field(service), id.to_string()));
        }
        let mut slots: BTreeSet<u16> = self.given.slots.iter().map(|(.., slot)| *slot).collect();
        for (service, backend, slot) in &other.slots {
            check(service).and_then(|()| check(backend))?;
            if self.slot(service, backend).is_none() && slots.insert(*slot) {
                edits.set.push((slot_field(service, backend), slot.to_string()));
            }
        }
        let here: BTreeMap<u16, u32> = self.given.epochs.iter().copied().collect();
        for (slot, epoch) in &other.epochs {
            if here.get(slot).is_none_or(|here| here < epoch) {
                edits.set.push((epoch_field(*slot), epoch.to_string()));
            }
        }
        Ok(edits)
    }
}

impl Core {
    pub(super) async fn next_epoch(self: &Arc<Self>, slot: u16) -> Result<u32, StoreError> {
        self.epochs.lock().asked.insert(slot);
        let given = self.give_epoch(slot).await;
        let mut epochs = self.epochs.lock();
        epochs.asked.remove(&slot);
        let epoch = given?;
        epochs.last.insert(slot, epoch);
        drop(epochs);
        let core = self.clone();
        tokio::spawn(async move {
            let message = Message::Epoch { by: core.me(), slot, epoch };
            if let Err(error) = core.send(&message, &[], Need::Nothing).await {
                tracing::warn!(slot, epoch, %error, "cannot tell the others of a new epoch; they find out when they look");
            }
        });
        Ok(epoch)
    }

    async fn give_epoch(&self, slot: u16) -> Result<u32, StoreError> {
        let skip = if armed(Fault::SkipEpoch) { "1" } else { "" };
        let args = vec![epoch_field(slot).into_bytes(), u32::MAX.to_string().into_bytes(), skip.into()];
        let answer = self.script(&EPOCH, &self.keys.names, args, self.durable()).await?.value;
        match answer {
            Value::Int(0) => Err(StoreError::Exhausted("epoch of that slot")),
            Value::Int(-1) => Err(StoreError::DamagedName { name: epoch_field(slot) }),
            Value::Int(epoch) => {
                u32::try_from(epoch).map_err(|_| StoreError::DamagedName { name: epoch_field(slot) })
            }
            other => Err(self.odd("a request for an epoch", &other)),
        }
    }

    /// Another process gave out an epoch.
    pub(super) fn heard_epoch(&self, slot: u16, epoch: u32) {
        let mut epochs = self.epochs.lock();
        // One that is just being given out here is larger than any that was heard of before.
        if epochs.asked.contains(&slot) || epochs.last.get(&slot).is_some_and(|last| *last >= epoch) {
            return;
        }
        epochs.last.insert(slot, epoch);
        drop(epochs);
        // Nobody may be listening.
        let _ = self.announced.send((slot, epoch));
    }

    /// Announces what was given out unheard.
    pub(super) async fn compare_epochs(&self) {
        match self.names().await {
            Ok(names) => names.given.epochs.iter().for_each(|(slot, epoch)| self.heard_epoch(*slot, *epoch)),
            Err(error) => tracing::warn!(%error, "cannot look for epochs that other processes gave out"),
        }
    }

    /// The epochs that there are when the store is opened.
    pub(super) async fn learn_epochs(&self) -> Result<(), StoreError> {
        let names = self.names().await?;
        self.epochs.lock().last = names.given.epochs.into_iter().collect();
        Ok(())
    }

    pub(super) async fn names(&self) -> Result<Names, StoreError> {
        let answer = self.script(&NAMES, &self.keys.names, Vec::new(), self.durable()).await?.value;
        match &answer {
            Value::Array(fields) => Names::parse(fields),
            other => Err(self.odd("a look at the names", other)),
        }
    }

    pub(super) async fn given(&self) -> Result<Given, StoreError> {
        Ok(self.names().await?.given)
    }

    pub(super) async fn service_id(&self, service: &str) -> Result<u16, StoreError> {
        check(service)?;
        self.edit(|names| {
            let services = &names.given.services;
            if let Some(id) = services.get(service) {
                return Ok((*id, Edits::default()));
            }
            let id = free(1, services.values().copied()).ok_or(StoreError::Exhausted("service id"))?;
            Ok((id, Edits { set: vec![(service_field(service), id.to_string())], remove: Vec::new() }))
        })
        .await
    }

    pub(super) async fn slot(&self, service: &str, backend: &str) -> Result<u16, StoreError> {
        check(service).and_then(|()| check(backend))?;
        self.edit(|names| {
            if let Some(slot) = names.slot(service, backend) {
                return Ok((slot, Edits::default()));
            }
            let taken = names.given.slots.iter().map(|(.., slot)| *slot);
            let slot = free(0, taken).ok_or(StoreError::Exhausted("slot"))?;
            Ok((
                slot,
                Edits { set: vec![(slot_field(service, backend), slot.to_string())], remove: Vec::new() },
            ))
        })
        .await
    }

    pub(super) async fn adopt(&self, other: &Given) -> Result<(), StoreError> {
        self.edit(|names| Ok(((), names.adopt(other)?))).await
    }

    /// The epoch of the slot stays: a token of the forgotten backend must not fit the next one there.
    pub(super) async fn forget_slot(&self, service: &str, backend: &str) -> Result<(), StoreError> {
        check(service).and_then(|()| check(backend))?;
        self.edit(|names| {
            let remove = names.slot(service, backend).map(|_| slot_field(service, backend));
            Ok(((), Edits { set: Vec::new(), remove: remove.into_iter().collect() }))
        })
        .await
    }

    pub(super) async fn forget_service(self: &Arc<Self>, service: &str) -> Result<(), StoreError> {
        check(service)?;
        let Some(id) = self.names().await?.given.services.get(service).copied() else { return Ok(()) };
        // Its sessions first: whatever happens in between, no other service can have the id before they are gone.
        self.end_all(id).await?;
        self.edit(|names| {
            let remove = names.given.services.get(service).map(|_| service_field(service));
            Ok(((), Edits { set: Vec::new(), remove: remove.into_iter().collect() }))
        })
        .await
    }

    /// Decides on what there is, and writes that down unless somebody else wrote meanwhile.
    async fn edit<T>(
        &self,
        decide: impl Fn(&Names) -> Result<(T, Edits), StoreError>,
    ) -> Result<T, StoreError> {
        for _ in 0..TRIES {
            let names = self.names().await?;
            let (decision, edits) = decide(&names)?;
            if edits.set.is_empty() && edits.remove.is_empty() {
                return Ok(decision);
            }
            let mut nonce = [0; NONCE];
            getrandom::fill(&mut nonce)
                .map_err(|error| StoreError::Failed(format!("no random numbers for a change: {error}")))?;
            let mut args =
                vec![names.version.into_bytes(), nonce.to_vec(), edits.set.len().to_string().into()];
            args.extend(edits.set.into_iter().flat_map(|(field, value)| [field.into(), value.into()]));
            args.extend(edits.remove.into_iter().map(String::into_bytes));
            let outcome = self.script(&RENAME, &self.keys.names, args, self.durable()).await?;
            if outcome.value == Value::Int(1) {
                return Ok(decision);
            }
        }
        Err(StoreError::Failed(format!(
            "{}: the names changed {TRIES} times while they were being changed",
            self.place
        )))
    }
}

/// The smallest number from `first` on that is not taken.
fn free(first: u16, taken: impl Iterator<Item = u16>) -> Option<u16> {
    let taken: BTreeSet<u16> = taken.collect();
    (first..=u16::MAX).find(|n| !taken.contains(n))
}

fn service_field(service: &str) -> String {
    format!("i:{service}")
}

fn slot_field(service: &str, backend: &str) -> String {
    format!("s:{}:{service}{backend}", service.len())
}

fn epoch_field(slot: u16) -> String {
    format!("e:{slot}")
}

fn check(name: &str) -> Result<(), StoreError> {
    if name.is_empty() || name.len() > MAX_NAME {
        return Err(StoreError::Name(name.into()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fields: &[(&str, &str)]) -> Result<Names, StoreError> {
        let bulk = |text: &str| Value::BulkString(text.into());
        let answer: Vec<Value> =
            fields.iter().flat_map(|(field, value)| [bulk(field), bulk(value)]).collect();
        Names::parse(&answer)
    }

    #[test]
    fn names_are_read_as_they_were_written() {
        let slot = slot_field("a:b", "c");
        let names =
            parse(&[("format", "1"), ("version", "7"), ("i:a:b", "3"), (&slot, "2"), ("e:2", "9")]).unwrap();
        assert_eq!(names.version, "7");
        assert_eq!(names.given.services, [("a:b".to_owned(), 3)].into());
        assert_eq!(names.given.slots, [("a:b".to_owned(), "c".to_owned(), 2)]);
        assert_eq!(names.given.epochs, [(2, 9)]);
        assert_eq!(names.slot("a:b", "c"), Some(2));
        assert_eq!(names.slot("a", ":bc"), None);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        for field in ["i:shop", "s:4:shopb", "s:9:shopb", "s:shop", "e:x"] {
            let error = parse(&[(field, "x")]).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn the_smallest_free_number_is_given_out() {
        assert_eq!(free(1, [1, 2, 4].into_iter()), Some(3));
        assert_eq!(free(0, [].into_iter()), Some(0));
        assert_eq!(free(1, 1..=u16::MAX), None);
    }
}
