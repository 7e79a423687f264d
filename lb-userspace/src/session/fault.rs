//! Deliberate faults, so that the tests can show that they would notice. Only in builds with the feature `faults`; in
//! all others nothing can be armed and every question is answered at compile time.

#[cfg(feature = "faults")]
use std::sync::atomic::{AtomicU8, Ordering};

/// A promise to break.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Fault {
    /// A restarted server keeps its epoch.
    SkipEpoch = 1,
    /// A write takes effect whatever revision it is based on.
    SkipCas = 2,
    /// A write is acknowledged before it is durable: on the disk, or on the replicas.
    AckBeforeFlush = 4,
    /// Taking a session over leaves the former owner's copy as it is.
    SkipInvalidate = 8,
}

impl Fault {
    pub const ALL: [Self; 4] = [Self::SkipEpoch, Self::SkipCas, Self::AckBeforeFlush, Self::SkipInvalidate];

    pub const fn name(self) -> &'static str {
        match self {
            Self::SkipEpoch => "skip-epoch",
            Self::SkipCas => "skip-cas",
            Self::AckBeforeFlush => "ack-before-flush",
            Self::SkipInvalidate => "skip-invalidate",
        }
    }

    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|fault| fault.name() == name)
    }
}

#[cfg(feature = "faults")]
static ARMED: AtomicU8 = AtomicU8::new(0);

/// Breaks a promise from now on, in this process.
#[cfg(feature = "faults")]
pub fn arm(fault: Fault) {
    ARMED.fetch_or(fault as u8, Ordering::SeqCst);
    tracing::warn!(fault = fault.name(), "deliberate fault armed: what this process promises is not true");
}

/// Whether a promise is to be broken.
#[cfg(feature = "faults")]
pub fn armed(fault: Fault) -> bool {
    ARMED.load(Ordering::Relaxed) & fault as u8 != 0
}

/// Whether a promise is to be broken: never.
#[cfg(not(feature = "faults"))]
pub const fn armed(_fault: Fault) -> bool {
    false
}
