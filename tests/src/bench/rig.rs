//! The product and the wrapper that undoes its work, loaded around one flow table.

use super::cases::Case;
use super::{flows, kinds};
use crate::balancer::dial;
use crate::maps::Maps;
use crate::object::{Sizes, load_lb_with, load_program, path_of};
use crate::scene::{backend, macs};
use crate::setup::{NextHop, Setup};
use crate::testbed::rule::{Client, Image, Undo};
use anyhow::{Context, Result, ensure};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{ProgramFd, SchedClassifier, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use lb_common::backend::State;
use lb_common::flow::GROUP;
use nix::mount::{MsFlags, mount, umount};
use nix::sched::{CloneFlags, unshare};
use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

pub(super) const SERVICE: u16 = 1;
/// Backends; the last one is in maintenance.
pub(super) const BACKENDS: u16 = 4;
/// Images that a case can have.
pub(super) const IMAGES: u32 = 256;
/// Repeats by which the length of a burst is found, and which bring what it needs into the caches: at least so many,
const TRIAL: u32 = 2_000;
/// and at most.
const LONGEST_TRIAL: u32 = 1 << 15;
/// Repeats of one burst at most.
const MOST: u32 = 2_000_000;

/// See the module.
pub(super) struct Rig {
    pub(super) setup: Setup,
    /// Those that have a flow, in the order in which their frames come.
    pub(super) clients: Vec<SocketAddrV4>,
    pub(super) maps: Maps,
    /// How long the kernel took to verify and compile `lb` and `lb_joint`.
    pub(super) load_time: [Duration; 2],
    next: ProgramArray<MapData>,
    undo: Array<MapData, Undo>,
    images: Array<MapData, Image>,
    lb_fd: ProgramFd,
    empty_fd: ProgramFd,
    lb: Ebpf,
    testbed: Ebpf,
}

impl Rig {
    /// With that many established flows in a table sized to them.
    pub(super) fn new(count: u32) -> Result<Self> {
        // As large as the daemon makes them by default; the flow table as it would for that limit of flows. Rows that need
        // no established flow want groups to themselves.
        let groups = (2 * count).next_power_of_two() / GROUP as u32;
        let sizes = Sizes {
            services: 16,
            backends: 1024,
            buckets: 16_384,
            groups: groups.max(1024),
            stashes: 1024,
            maglev: 65_537,
            homes: 64,
            pools: 16,
        };
        let (mut lb, mut testbed) = load(sizes, count)?;
        let mut maps = Maps::take(&mut lb)?;
        let setup = setup(sizes);
        maps.apply(&setup)?;
        let mut load_time = [Duration::ZERO; 2];
        let begun = Instant::now();
        let lb_fd = load_program(&mut lb, "lb", Xdp::load)?.fd()?.try_clone()?;
        load_time[0] = begun.elapsed();
        let begun = Instant::now();
        load_program(&mut lb, "lb_joint", SchedClassifier::load)?;
        load_time[1] = begun.elapsed();
        load_program(&mut testbed, "tb_undo", Xdp::load)?;
        let empty_fd = load_program(&mut testbed, "tb_empty", Xdp::load)?.fd()?.try_clone()?;

        let clients = flows::fill(&mut maps, &setup, count)?;
        if count == 1 {
            kinds::fill(&mut maps, &setup)?;
        }
        let mut table: Array<_, Client> = take(&mut testbed, "TB_CLIENTS")?;
        for (i, client) in clients.iter().enumerate() {
            table.set(i as u32, Client::new(*client), 0)?;
        }
        Ok(Self {
            setup,
            clients,
            maps,
            load_time,
            next: take(&mut testbed, "TB_NEXT")?,
            undo: take(&mut testbed, "TB_UNDO")?,
            images: take(&mut testbed, "TB_IMAGES")?,
            lb_fd,
            empty_fd,
            lb,
            testbed,
        })
    }

    /// Nanoseconds of the empty program.
    pub(super) fn empty(&self, time: Duration) -> Result<f64> {
        let program = program(&self.testbed, "tb_empty")?;
        let repeat = repeats(burst(program, &[0; 64], TRIAL)?, time);
        burst(program, &[0; 64], repeat)
    }

    /// Nanoseconds that a packet of the case costs more than one that meets the empty program.
    pub(super) fn cost(&mut self, case: &mut Case, time: Duration) -> Result<f64> {
        for (i, image) in case.images.iter().enumerate() {
            self.images.set(i as u32, image, 0)?;
        }
        let wrapper = program(&self.testbed, "tb_undo")?;
        let frame = &case.images[0].bytes[..case.images[0].len as usize];
        let trial = (case.undo.client_mask + 1).clamp(TRIAL, LONGEST_TRIAL);

        self.next.set(0, &self.lb_fd, 0)?;
        self.undo.set(0, case.undo, 0)?;
        let repeat = repeats(burst(wrapper, frame, trial)?, time);
        let before = self.maps.counts()?;
        let with = burst(wrapper, frame, repeat)?;
        let counted = self.maps.counts()?.since(&before);
        let expected: Vec<_> = case.counted.iter().map(|counter| (*counter, u64::from(repeat))).collect();
        ensure!(
            counted == expected,
            "{repeat} repeats were counted as {counted:?} and not as {expected:?}: they took another path"
        );

        self.next.set(0, &self.empty_fd, 0)?;
        self.undo.set(0, case.undo, 0)?;
        burst(wrapper, frame, trial)?;
        let without = burst(wrapper, frame, repeat)?;
        // The next round goes on where this one has stopped.
        case.undo.run += u64::from(repeat + trial);
        Ok(with - without)
    }

    /// Instructions that the verifier followed in `lb`, `lb_joint` and `tb_empty`.
    pub(super) fn verified(&self) -> Result<[u32; 3]> {
        let joint: &SchedClassifier =
            self.lb.program("lb_joint").context("no program lb_joint")?.try_into()?;
        let infos =
            [program(&self.lb, "lb")?.info()?, joint.info()?, program(&self.testbed, "tb_empty")?.info()?];
        Ok(infos.map(|info| info.verified_instruction_count().unwrap_or(0)))
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

/// Loads both objects so that they share the flow table. Its pin lives in a mount namespace of this thread's own, for
/// as long as the loading takes.
fn load(sizes: Sizes, clients: u32) -> Result<(Ebpf, Ebpf)> {
    let place = tempfile::tempdir()?;
    unshare(CloneFlags::CLONE_NEWNS).context("entering a mount namespace")?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).context("making mounts private")?;
    mount(Some("bpf"), place.path(), Some("bpf"), MsFlags::empty(), none)
        .context("mounting a BPF file system")?;
    let pin = place.path().join("FLOWS");
    let lb = load_lb_with(sizes, EbpfLoader::new().map_pin_path("FLOWS", &pin))?;
    let testbed = EbpfLoader::new()
        .map_pin_path("FLOWS", &pin)
        .map_max_entries("TB_IMAGES", IMAGES)
        .map_max_entries("TB_CLIENTS", clients)
        .load_file(path_of("testbed")?)
        .context("loading the test programs")?;
    umount(place.path()).context("unmounting the BPF file system")?;
    Ok((lb, testbed))
}

fn take<T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T> {
    let map = ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))?;
    T::try_from(map).with_context(|| format!("map {name} is of another type or size"))
}

fn program<'a>(ebpf: &'a Ebpf, name: &str) -> Result<&'a Xdp> {
    Ok(ebpf.program(name).with_context(|| format!("the object has no program {name}"))?.try_into()?)
}

/// Mean nanoseconds of a run.
fn burst(program: &Xdp, frame: &[u8], repeat: u32) -> Result<f64> {
    let options = TestRunOptions { data_in: Some(frame), repeat, ..TestRunOptions::default() };
    let result = program.test_run(options)?;
    ensure!(result.return_value != 0, "the program aborted: the packet could not be put back");
    Ok(result.duration.as_nanos() as f64)
}

/// How many runs of that many nanoseconds fill the time.
fn repeats(nanoseconds: f64, time: Duration) -> u32 {
    let fill = time.as_nanos() as f64 / nanoseconds.max(1.0);
    (fill as u32).clamp(TRIAL, MOST)
}
