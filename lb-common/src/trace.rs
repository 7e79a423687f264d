//! One steering decision, told to whoever listens: the record of the trace's ring buffer.

use crate::addr::{Addr, Be16};
use bytemuck::{Pod, Zeroable};

/// A decision about one flow or datagram.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Decision {
    /// Nanoseconds since the machine started, without the time it was suspended (`CLOCK_MONOTONIC`).
    pub at: u64,
    pub client: Addr,
    pub client_port: Be16,
    /// Id of the service.
    pub service: u16,
    /// Slot of the backend, or [`crate::maglev::NOBODY`].
    pub backend: u16,
    /// A [`Key`]: what was found where the service's key may stand.
    pub key: u16,
    /// Index of the steering [`crate::counter::Counter`] that says why.
    pub reason: u32,
    pub _pad: u32,
}

/// What was found where a service's key may stand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u16)]
pub enum Key {
    /// Nothing, or the service does not look.
    Absent = 0,
    /// A token that does not verify.
    Invalid = 1,
    /// A valid token.
    Valid = 2,
    /// A key that is hashed.
    Hashed = 4,
    /// A key that a backend had handed out.
    Learned = 5,
    /// A key of that kind that is not known.
    Unknown = 6,
    /// A connection id that names a server.
    Routable = 7,
    /// One that names none.
    Unroutable = 8,
    /// A server's name, where it is not what is hashed.
    Named = 9,
}

impl Key {
    /// From the number in the record; an unknown one is [`Key::Absent`].
    pub const fn from_bits(bits: u16) -> Self {
        match bits {
            1 => Self::Invalid,
            2 => Self::Valid,
            4 => Self::Hashed,
            5 => Self::Learned,
            6 => Self::Unknown,
            7 => Self::Routable,
            8 => Self::Unroutable,
            9 => Self::Named,
            _ => Self::Absent,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Invalid => "invalid",
            Self::Valid => "valid",
            Self::Hashed => "hashed",
            Self::Learned => "learned",
            Self::Unknown => "unknown",
            Self::Routable => "routable",
            Self::Unroutable => "unroutable",
            Self::Named => "named",
        }
    }
}

crate::map_types! { Decision: 40 }
