//! The product and the wrapper that undoes its work, loaded around one flow table.

use super::cases::Case;
use super::wrapper::{Measured, Wrapper};
use super::{flows, kinds};
use crate::balancer::dial;
use crate::maps::Maps;
use crate::object::{Sizes, load_lb_with, load_program};
use crate::scene::{backend, macs};
use crate::setup::{NextHop, Setup};
use anyhow::{Context, Result};
use aya::programs::{ProgramFd, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::flow::GROUP;
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

pub(super) const SERVICE: u16 = 1;
/// Backends; the last one is in maintenance.
pub(super) const BACKENDS: u16 = 4;

/// See the module.
pub(super) struct Rig {
    pub(super) setup: Setup,
    /// Those that have a flow, in the order in which their frames come.
    pub(super) clients: Vec<SocketAddrV4>,
    pub(super) product: Product,
    pub(super) wrapper: Wrapper,
}

/// `lb`, loaded.
pub(super) struct Product {
    pub(super) maps: Maps,
    /// How long the kernel took to verify and compile `lb` and `lb_joint`.
    pub(super) load_time: [Duration; 2],
    lb_fd: ProgramFd,
    lb: Ebpf,
}

impl Rig {
    /// With that many established flows in a table sized to them.
    pub(super) fn new(count: u32) -> Result<Self> {
        let mut rig = Self::bare(count, setup(sizes(count)))?;
        let (maps, setup) = (&mut rig.product.maps, &rig.setup);
        rig.clients =
            flows::fill(maps, setup, count, SERVICE, |client, _| flows::spliced(setup, client, SERVICE))?;
        if count == 1 {
            kinds::fill(maps, setup)?;
        }
        rig.wrapper.set_clients(&rig.clients)?;
        Ok(rig)
    }

    /// With no flow, but room for that many clients.
    pub(super) fn bare(clients: u32, setup: Setup) -> Result<Self> {
        let (mut lb, wrapper) = load(setup.sizes, clients)?;
        let mut maps = Maps::take(&mut lb)?;
        maps.apply(&setup)?;
        let mut load_time = [Duration::ZERO; 2];
        let begun = Instant::now();
        let lb_fd = load_program(&mut lb, "lb", Xdp::load)?.fd()?.try_clone()?;
        load_time[0] = begun.elapsed();
        let begun = Instant::now();
        load_program(&mut lb, "lb_joint", SchedClassifier::load)?;
        load_time[1] = begun.elapsed();
        let product = Product { maps, load_time, lb_fd, lb };
        Ok(Self { setup, clients: Vec::new(), product, wrapper })
    }

    /// Nanoseconds that a packet of the case costs more than one that meets the empty program.
    pub(super) fn cost(&mut self, case: &mut Case, time: Duration) -> Result<f64> {
        self.wrapper.cost(case, &mut self.product, time)
    }

    /// Instructions that the verifier followed in `lb`, `lb_joint` and `tb_empty`.
    pub(super) fn verified(&self) -> Result<[u32; 3]> {
        let Product { lb, .. } = &self.product;
        let xdp: &Xdp = lb.program("lb").context("no program lb")?.try_into()?;
        let joint: &SchedClassifier = lb.program("lb_joint").context("no program lb_joint")?.try_into()?;
        let [lb, joint] =
            [xdp.info()?, joint.info()?].map(|info| info.verified_instruction_count().unwrap_or(0));
        Ok([lb, joint, self.wrapper.verified()?])
    }
}

impl Measured for Product {
    fn program(&self) -> &ProgramFd {
        &self.lb_fd
    }

    fn counts(&self) -> Result<Vec<(&'static str, u64)>> {
        let counts = self.maps.counts()?;
        Ok(Counter::ALL.iter().map(|counter| (counter.name(), counts.get(*counter))).collect())
    }

    fn forget(&mut self) -> Result<()> {
        self.maps.forget()
    }
}

/// As large as the daemon makes them by default; the flow table as it would for that limit of flows. Rows that need no
/// established flow want groups to themselves.
pub(super) fn sizes(flows: u32) -> Sizes {
    let groups = (2 * flows).next_power_of_two() / GROUP as u32;
    Sizes {
        services: 32,
        backends: 1024,
        buckets: 16_384,
        groups: groups.max(1024),
        stashes: 1024,
        maglev: 65_537,
        homes: 64,
        pools: 16,
    }
}

/// One service in front of a few backends. Frames that leave go to an interface that need not exist: a test run only
/// notes its number.
fn setup(sizes: Sizes) -> Setup {
    let mut setup = Setup::new(sizes);
    setup.service(dial());
    for slot in 0..BACKENDS {
        let (local_mac, mac) = macs(slot);
        setup.backend(SERVICE, backend(slot), Some(NextHop { ifindex: 1, local_mac, mac }));
    }
    setup.set_state(BACKENDS - 1, State::Maint);
    kinds::add(&mut setup);
    setup
}

/// What both objects know of flows.
const SHARED: [&str; 2] = ["FLOWS", "FLOW_KEYS"];

/// Loads both objects so that they share these maps. Their pins live in a mount namespace of this thread's own, for
/// as long as the loading takes.
fn load(sizes: Sizes, clients: u32) -> Result<(Ebpf, Wrapper)> {
    let place = tempfile::tempdir()?;
    unshare(CloneFlags::CLONE_NEWNS).context("entering a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")?;
    mount(Some("bpf"), place.path(), Some("bpf"), MsFlags::empty(), none)
        .context("mounting a BPF file system")?;
    let pins = SHARED.map(|name| (name, place.path().join(name)));
    let loader = || {
        let mut loader = EbpfLoader::new();
        for (name, pin) in &pins {
            loader.map_pin_path(name, pin);
        }
        loader
    };
    let lb = load_lb_with(sizes, &mut loader())?;
    let wrapper = Wrapper::new(&mut loader(), clients)?;
    umount(place.path()).context("unmounting the BPF file system")?;
    Ok((lb, wrapper))
}
