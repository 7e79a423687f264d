//! Loads, checks, attaches and feeds the packet programs. It performs what the registry decided and decides nothing.
//!
//! Everything here is a short system call and never waits for the network, so it may be called from the event loop.

mod attach;
mod btf;
mod clock;
mod counters;
mod error;
mod flows;
mod homes;
mod kernel;
mod left;
mod limits;
mod load;
mod lost;
mod maps;
mod memory;
mod pins;
mod pools;
mod quic;
mod sys;
mod tables;
mod trace;
mod write;

pub use attach::{Attached, JointHook};
pub use clock::{Clock, ClockError};
pub use counters::Counters;
pub use error::DatapathError;
use flows::Tables;
pub use flows::{Expired, Flows};
pub use homes::Homes;
pub use kernel::Kernel;
pub use left::Left;
pub use limits::{LimitError, Limits};
pub use load::map_entries;
pub use memory::MapMemory;
pub use pools::Listed;
pub use trace::Decisions;
pub use write::MapWrite;

use crate::net::{Rtnl, devices};
use attach::Attacher;
use lb_common::backend::Abilities;
use lb_common::counter::Counter;
use lb_common::hash::FlowSeed;
use lb_common::home;
use lb_common::lost::Lost;
use lb_common::settings::Settings;
use load::Loaded;
use pins::Pins;
use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use write::Writer;

/// Name of the XDP program in the object.
pub const XDP: &str = "lb";
/// Name of the tc program in the object.
pub const JOINT: &str = "lb_joint";

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
pub struct Datapath {
    loaded: Loaded,
    object: PathBuf,
    mode: Mode,
    writer: Writer,
    flows: Flows,
    homes: Homes,
    attached: BTreeMap<String, Attached>,
    /// Why frames that the kernel drops after a verdict are not counted, if they are not.
    uncounted: Option<String>,
}

impl Datapath {
    /// Loads the object and attaches it; takes over the pinned maps and links of an earlier daemon, so that no packet
    /// is lost.
    ///
    /// # Errors
    /// Nothing is attached when the kernel, an interface, the object or a pinned map is not what it should be.
    pub fn open(options: &DatapathOptions) -> Result<Self, DatapathError> {
        let mut loaded = load::load(options)?;
        let uncounted = loaded.count_lost(&options.object).err().map(|error| {
            let reason = format!("{:#}", anyhow::Error::from(error));
            tracing::warn!(%reason, "frames that the kernel drops after a verdict are not counted");
            reason
        });
        let flows = {
            let (limits, maps) = (&options.limits, &loaded.maps);
            Flows::map(Tables {
                flows: (maps.flows.fd().as_fd(), limits.flow_entries()),
                live: maps.live.fd().as_fd(),
                waiting: maps.waiting.fd().as_fd(),
                backends: limits.backends,
                uses: (maps.uses.fd().as_fd(), limits.services),
                overflows: maps.overflows.fd().as_fd(),
            })?
        };
        let homes = Homes::map(loaded.maps.homes.fd(), options.limits.home_entries())?;
        let writer = Writer::new(&mut loaded.maps, options.limits, loaded.inherited)?;
        let (object, mode) = (options.object.clone(), options.mode);
        let mut datapath =
            Self { loaded, object, mode, writer, flows, homes, attached: BTreeMap::new(), uncounted };
        for interface in &options.interfaces {
            datapath.attach_interface(interface)?;
        }
        datapath.settle_mode(&options.interfaces)?;
        tracing::info!(inherited = datapath.loaded.inherited, object = %options.object.display(), "data path loaded");
        Ok(datapath)
    }

    /// In mode `auto`: where an interface can never take frames from programs in drivers, all run in generic mode.
    fn settle_mode(&mut self, interfaces: &[String]) -> Result<(), DatapathError> {
        if self.attached.values().all(|attached| attached.mode == Mode::Generic) {
            return Ok(());
        }
        let mut rtnl = Rtnl::open()?;
        for name in interfaces {
            let link = load::check_interface(&mut rtnl, name)?;
            if devices::can_take_redirected(&link)? {
                continue;
            }
            if self.mode != Mode::Auto {
                return Err(DatapathError::TakesNoFrames { interface: name.clone(), kind: link.kind });
            }
            tracing::warn!(
                interface = name,
                kind = link.kind,
                "this device takes no frames from XDP programs in drivers: attaching to all interfaces in generic mode, \
                 which is slower"
            );
            self.mode = Mode::Generic;
            self.attached.clear();
            return interfaces.iter().try_for_each(|name| self.attach_interface(name));
        }
        Ok(())
    }

    /// The settings of an earlier daemon, when its maps were taken over. Keep their SYN cookie keys: else handshakes in
    /// flight are lost.
    pub fn inherited(&self) -> Option<&Settings> {
        self.loaded.inherited.then_some(self.writer.settings())
    }

    /// Secret seed of the flow table's hash: for the life of the maps.
    pub fn flow_seed(&self) -> &FlowSeed {
        &self.writer.settings().flow_seed
    }

    /// Performs map writes in order.
    ///
    /// # Errors
    /// The first write that fails; those before it are done.
    pub fn apply(&mut self, writes: &[MapWrite]) -> Result<(), DatapathError> {
        self.writer.write(&mut self.loaded.maps, &self.homes, writes)
    }

    /// Ends the take-over of an earlier daemon's state. Services, backends and links that it left and this daemon has
    /// not written or attached by now are removed, so call it when everything in the configuration has been.
    ///
    /// # Errors
    /// Something cannot be removed.
    pub fn settle(&mut self) -> Result<(), DatapathError> {
        self.writer.remove_unwritten(&mut self.loaded.maps, &self.homes)?;
        for link in self.loaded.pins.links() {
            if !self.attached.contains_key(&link.interface) {
                tracing::info!(interface = link.interface, "detached: no longer configured");
                self.loaded.pins.remove_link(&link.path)?;
                attach::detach_filter(&link.interface);
            }
        }
        for ifindex in lost::owned(&self.loaded.maps) {
            if self.attached.values().all(|attached| attached.ifindex != ifindex) {
                lost::own(&mut self.loaded.maps, ifindex, false)?;
            }
        }
        if self.loaded.pins.remove_older_layouts()? > 0 {
            tracing::warn!("removed the maps of another version of lbd; the flows in them are lost");
        }
        Ok(())
    }

    /// Attaches both programs to one more interface, or again to one that was re-created. Does nothing when they are
    /// attached already.
    ///
    /// # Errors
    /// The interface is missing, down, or carries a foreign XDP program.
    pub fn attach_interface(&mut self, name: &str) -> Result<(), DatapathError> {
        let mut rtnl = Rtnl::open()?;
        let link = load::check_interface(&mut rtnl, name)?;
        if let Some(attached) = self.attached.get(name)
            && attach::missing(&mut rtnl, &self.loaded.pins, &link, attached, self.loaded.xdp)?.is_none()
        {
            return Ok(());
        }
        let Loaded { ebpf, pins, kernel, .. } = &mut self.loaded;
        let (object, mode, tcx) = (&self.object, self.mode, kernel.tcx() != Some(false));
        let attached = Attacher { ebpf, pins, object, mode, tcx }.attach(&link)?;
        tracing::info!(interface = name, mode = ?attached.mode, joint = attached.joint.name(), "attached");
        lost::own(&mut self.loaded.maps, attached.ifindex, true)?;
        if let Some(before) = self.attached.insert(name.to_owned(), attached)
            && before.ifindex != attached.ifindex
        {
            lost::own(&mut self.loaded.maps, before.ifindex, false)?;
        }
        Ok(())
    }

    /// Attaches again where an interface was made anew under its old name, or somebody took a program off. Call it now and
    /// then.
    ///
    /// # Errors
    /// The first interface that cannot be attached; the others were looked at as well.
    pub fn reattach(&mut self) -> Result<(), DatapathError> {
        let mut rtnl = Rtnl::open()?;
        let mut outcome = Ok(());
        for link in rtnl.links()? {
            let Some(attached) = self.attached.get(&link.name).filter(|_| link.up) else { continue };
            let looked = attach::missing(&mut rtnl, &self.loaded.pins, &link, attached, self.loaded.xdp);
            outcome = outcome.and(looked.and_then(|missing| {
                let Some(program) = missing else { return Ok(()) };
                self.attach_interface(&link.name)?;
                tracing::warn!(
                    interface = link.name,
                    program,
                    "somebody had removed this program: attached again"
                );
                Ok(())
            }));
        }
        outcome
    }

    /// Detaches from an interface; fine when it is gone already.
    ///
    /// # Errors
    /// The pins cannot be removed.
    pub fn detach_interface(&mut self, name: &str) -> Result<(), DatapathError> {
        if let Some(attached) = self.attached.remove(name) {
            lost::own(&mut self.loaded.maps, attached.ifindex, false)?;
        }
        for link in self.loaded.pins.links() {
            if link.interface == name {
                self.loaded.pins.remove_link(&link.path)?;
            }
        }
        attach::detach_filter(name);
        Ok(())
    }

    /// Interfaces that carry the programs, and how.
    pub fn interfaces(&self) -> impl Iterator<Item = (&str, &Attached)> {
        self.attached.iter().map(|(name, attached)| (name.as_str(), attached))
    }

    /// Frames that the kernel dropped after a verdict: by interface and cause.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn lost(&self) -> Result<Vec<(Lost, u64)>, DatapathError> {
        lost::read(&self.loaded.maps)
    }

    /// Why [`Datapath::lost`] stands still, if it does.
    pub fn uncounted(&self) -> Option<&str> {
        self.uncounted.as_deref()
    }

    /// All counters, summed over all processors.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn counters(&self) -> Result<Counters, DatapathError> {
        counters::read(&self.loaded.maps)
    }

    /// Packets between clients and the backend in a slot, both ways.
    ///
    /// # Errors
    /// The slot is beyond the limit.
    pub fn packets(&self, slot: u16) -> Result<u64, DatapathError> {
        counters::packets_of(&self.loaded.maps, slot)
    }

    /// Every map with the memory that it takes.
    ///
    /// # Errors
    /// A map cannot be asked about.
    pub fn memory(&self) -> Result<Vec<MapMemory>, DatapathError> {
        memory::maps(&self.loaded.pins)
    }

    /// The steering decisions that the programs tell while somebody listens; `None` when they were taken before. To be
    /// called on a tokio runtime.
    ///
    /// # Errors
    /// They cannot be waited for.
    pub fn decisions(&mut self) -> Result<Option<Decisions>, DatapathError> {
        self.loaded.maps.trace.take().map(Decisions::new).transpose()
    }

    /// By service id, how many decisions the programs could not tell.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn trace_lost(&self) -> Result<Vec<u64>, DatapathError> {
        counters::of_services(&self.loaded.maps, Counter::TraceLost)
    }

    /// What the programs found out about a backend's TCP from its SYN-ACKs; `None` when nothing yet.
    ///
    /// # Errors
    /// The slot is beyond the limit.
    pub fn abilities(&self, slot: u16) -> Result<Option<Abilities>, DatapathError> {
        let abilities = self.loaded.maps.abilities.get(&u32::from(slot), 0);
        let abilities =
            abilities.map_err(DatapathError::system(format!("cannot read map ABILITIES at {slot}")))?;
        Ok((abilities.seen != 0).then_some(abilities))
    }

    /// The flow table.
    pub fn flows(&self) -> &Flows {
        &self.flows
    }

    /// Looks at the next `budget` flow entries and frees those that have expired. Call it a few times a second, with
    /// a budget that goes around [`Flows::capacity`] within the shortest timeout.
    pub fn expire(&mut self, budget: usize) -> Expired {
        self.flows.expire(self.writer.clock().tick(), budget, self.writer.settings())
    }

    /// The table of learned sessions.
    pub fn homes(&self) -> &Homes {
        &self.homes
    }

    /// The tag of the learned session of a service that has this key.
    pub fn tag(&self, service: u16, key: &[u8]) -> u64 {
        home::tag(&self.writer.settings().home_key, service, key)
    }

    /// Forgets a learned session. Returns whether it was known.
    pub fn forget_home(&self, tag: u64) -> bool {
        self.homes.forget(tag)
    }

    /// Forgets every learned session that is at home at the backend in a slot. One that leaves its slot takes them with it in
    /// any case.
    pub fn forget_homes_of(&self, slot: u16) {
        let forgotten = self.homes.forget_slot(slot);
        if forgotten > 0 {
            tracing::info!(slot, forgotten, "forgot the sessions learned from a backend that is gone");
        }
    }

    /// Ticks after which a session of a service is forgotten that nobody asked for; 0 where none are learned.
    pub fn learned_ticks(&self, service: u16) -> u32 {
        self.writer.learned_ticks(service)
    }

    /// Looks at the next `budget` learned sessions and forgets those that nobody asked for in too long. Returns how many. What
    /// is past its time counts as forgotten whether this is called or not.
    pub fn forget_idle(&mut self, budget: usize) -> usize {
        let (now, writer) = (self.writer.clock().tick(), &self.writer);
        self.homes.expire(now, budget, |service| writer.learned_ticks(service))
    }

    /// The kernel's clock, as the programs see it.
    pub fn clock(&self) -> Clock {
        self.writer.clock()
    }

    /// The present time slot of SYN cookies.
    pub fn cookie_slot(&self) -> u32 {
        self.writer.cookie_slot()
    }

    /// Measures the clock again, and writes it into the settings when it has drifted. Call it every minute, so that
    /// time slots stay those of the other nodes.
    ///
    /// # Errors
    /// The clock cannot be read, or the map not written.
    pub fn refresh_clock(&mut self) -> Result<(), DatapathError> {
        self.writer.refresh_clock(&mut self.loaded.maps)
    }
}

/// Removes every trace of the data path of a daemon that kept its state in `run_dir`: links, pins and the mount.
/// Fine when there is none. Returns what was removed, one line each.
///
/// # Errors
/// A daemon is still running there.
pub fn detach(run_dir: &Path) -> Result<Vec<String>, DatapathError> {
    let removed = Pins::remove(run_dir)?;
    // Filters have no pins; kernels with TCX links have no filters of ours.
    for link in Rtnl::open()?.links()? {
        attach::detach_filter(&link.name);
    }
    Ok(removed)
}
