//! Session state: an LRU cache in front of one shared database, and the tokens that bring a session home.
//!
//! What must stay true is written down in [`sessions`]; nothing here knows about HTTP, maps or network namespaces.
//!
//! From the outside in:
//!
//! * [`Member`] is this process's place among the backends of a service: its [`Instance`], kept right while it runs.
//! * [`Sessions`] finds, begins, changes and ends sessions. What it answers with is [`Seen`]: a [`Record`] with its [`State`],
//!   and the instance that the client's next token names.
//! * [`SessionCache`] is what it keeps in memory, within [`Limits`]; a [`SessionStore`] is what it keeps for good:
//!   `SledStore`, `RedisStore`, or [`MemoryStore`] where nothing has to be kept. A store of your own implements the trait.
//! * [`Keyring`] turns a session and its instance into a token's text and back.

pub mod admission;
pub mod cache;
#[cfg(any(feature = "redis", feature = "sled"))]
pub mod clock;
pub mod condition;
pub mod fault;
pub mod keyring;
pub mod limits;
pub mod member;
pub mod receipts;
pub mod record;
pub mod sessions;
pub mod shelf;
pub mod state;
pub mod store;
pub mod token;
pub mod visit;

pub use admission::{Admission, NotAdmitted};
pub use cache::SessionCache;
pub use condition::{Preconditions, Tag, Tags, Target, Unmet};
pub use keyring::Keyring;
pub use lb_common::token::{SessionId, Token};
pub use limits::{Limits, TooLarge};
pub use member::Member;
pub use receipts::{Once, Receipts};
pub use record::{Owner, Record};
pub use sessions::{Changed, Refusal, Seen, SessionError, Sessions, Source, Terms};
pub use shelf::Peers;
pub use state::State;
pub use store::memory::MemoryStore;
#[cfg(feature = "redis")]
pub use store::redis::{RedisOptions, RedisStore, RedisTls};
#[cfg(feature = "sled")]
pub use store::sled::SledStore;
pub use store::{Copies, Given, SessionStore, StoreError, StoreState};
pub use token::{KeysError, TokenKeys};

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// One incarnation of a session server: its slot never changes, its epoch grows with each incarnation.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Instance {
    /// Id of the service it stands behind, from [`SessionStore::service_id`].
    pub service: u16,
    /// From [`SessionStore::slot`].
    pub slot: u16,
    /// From [`SessionStore::next_epoch`].
    pub epoch: u32,
    /// Name of the backend, for people.
    pub name: String,
}

impl Instance {
    /// The part of it that a record or a token names.
    pub fn owner(&self) -> Owner {
        Owner { slot: self.slot, epoch: self.epoch }
    }
}

/// Milliseconds since 1970, as everything that expires here counts time.
pub type Clock = Arc<dyn Fn() -> u64 + Send + Sync>;

/// The system's clock.
pub fn unix_millis() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
