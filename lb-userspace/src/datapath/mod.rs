//! Loads, checks, attaches and feeds the packet programs. It performs what the registry decided and decides nothing.
//!
//! Everything here is a short system call and never waits for the network, so it may be called from the event loop.

mod clock;
mod flows;
mod limits;

pub use clock::{Clock, ClockError};
pub use flows::{Expired, Flows};
pub use limits::Limits;

use lb_common::backend::{Backend, Learned};
use lb_common::counter::{BackendCounters, COUNTERS};
use lb_common::endpoint::Endpoint;
use lb_common::service::Service;
use lb_common::settings::Settings;
use std::path::{Path, PathBuf};

/// One change to what the programs see. The registry makes them, [`Datapath::apply`] performs them in order.
#[derive(Clone, Debug)]
pub enum MapWrite {
    /// Keys and timeouts. The fields that describe the maps and the clock (`live`, `endpoint_seed`, `flow_seed`,
    /// `flow_group_mask`, `stash_mask`, `slot_*`, `tick_shift`) are the data path's own: whatever stands in them is
    /// replaced. See [`Clock::ticks`] for the timeouts.
    Settings(Box<Settings>),
    /// The whole table of who a packet is for, replacing the previous one at once.
    Endpoints(Vec<Endpoint>),
    /// A service. With a table of backend slots, that becomes its Maglev table (empty: no backend is ready); without,
    /// the present table stays. `maglev_base` and `maglev_size` are filled in.
    Service { id: u16, service: Service, maglev: Option<Vec<u16>> },
    /// A backend; `Backend::default()` removes it.
    Backend { slot: u16, backend: Backend },
}

/// How programs are attached to interfaces.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// In the driver, or generic with a warning where the driver cannot.
    #[default]
    Auto,
    Driver,
    Generic,
}

/// What to load and where to attach it.
#[derive(Clone, Debug)]
pub struct DatapathOptions {
    /// The BPF object file.
    pub object: PathBuf,
    /// Directory for run-time state, such as /run/lb: the BPF file system is mounted at `bpf` below it.
    pub run_dir: PathBuf,
    pub limits: Limits,
    /// Interfaces to attach to at once; more may follow with [`Datapath::attach_interface`].
    pub interfaces: Vec<String>,
    pub mode: Mode,
}

/// The loaded programs, their maps and their attachments. Dropping it leaves everything in place: packets keep flowing.
#[derive(Debug)]
pub struct Datapath {}

/// Why the data path cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {}

/// What the programs counted, summed over all processors.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// By service id; index 0 counts packets that belong to no service.
    pub services: Vec<[u64; COUNTERS]>,
    /// By backend slot.
    pub backends: Vec<BackendCounters>,
}

/// What an earlier daemon left in the maps that were taken over.
#[derive(Clone, Debug, Default)]
pub struct Inherited {
    /// Ids of services in the map.
    pub services: Vec<u16>,
    /// Slots of backends in the map.
    pub backends: Vec<u16>,
    /// Settings in use: keep their SYN cookie keys, or handshakes in flight are lost.
    pub settings: Option<Box<Settings>>,
}

impl Datapath {
    /// Loads the object and attaches it; takes over the pinned maps and links of an earlier daemon, so that no packet
    /// is lost.
    ///
    /// # Errors
    /// Nothing is attached when an interface, the kernel, the object or a pinned map is not what it should be.
    pub fn open(_options: &DatapathOptions) -> Result<Self, DatapathError> {
        unimplemented!()
    }

    /// What was found in the maps at [`Datapath::open`]; empty when they are new.
    pub fn inherited(&self) -> &Inherited {
        unimplemented!()
    }

    /// Performs map writes in order.
    ///
    /// # Errors
    /// The first write that fails; those before it are done.
    pub fn apply(&mut self, _writes: &[MapWrite]) -> Result<(), DatapathError> {
        unimplemented!()
    }

    /// Attaches both programs to one more interface, or again to one that was re-created. Does nothing when they are
    /// attached already.
    ///
    /// # Errors
    /// The interface is missing, down, or carries a foreign XDP program.
    pub fn attach_interface(&mut self, _name: &str) -> Result<(), DatapathError> {
        unimplemented!()
    }

    /// Detaches from an interface; fine when it is gone already.
    ///
    /// # Errors
    /// The pins cannot be removed.
    pub fn detach_interface(&mut self, _name: &str) -> Result<(), DatapathError> {
        unimplemented!()
    }

    /// Interfaces that carry the programs, with the mode they run in.
    pub fn interfaces(&self) -> Vec<(String, Mode)> {
        unimplemented!()
    }

    /// All counters.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        unimplemented!()
    }

    /// What the programs learned of a backend's TCP from its SYN-ACKs; `None` when nothing yet.
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn learned(&self, _slot: u16) -> Result<Option<Learned>, DatapathError> {
        unimplemented!()
    }

    /// The flow table.
    pub fn flows(&self) -> &Flows {
        unimplemented!()
    }

    /// Looks at the next `budget` flow entries and frees those that have expired; call it a few times a second.
    pub fn expire(&mut self, _budget: usize) -> Expired {
        unimplemented!()
    }

    /// The kernel's clock, as the programs see it.
    pub fn clock(&self) -> Clock {
        unimplemented!()
    }

    /// Writes the clock into the settings again, so that cookie slots stay with the wall clock; call it every minute.
    ///
    /// # Errors
    /// The map cannot be written.
    pub fn refresh_clock(&mut self) -> Result<(), DatapathError> {
        unimplemented!()
    }
}

/// Removes every trace of a daemon that kept its state in `run_dir`: links, pins and the mount.
/// Fine when there is none. Returns what was removed, one line each.
///
/// # Errors
/// Something is still in use, or not ours to remove.
pub fn detach(_run_dir: &Path) -> Result<Vec<String>, DatapathError> {
    unimplemented!()
}
