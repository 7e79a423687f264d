//! The program that undoes another's work, and the measuring of one behind it: ours, or a peer's.

use super::cases::Case;
use crate::object::{load_program, path_of};
use crate::testbed::rule::{Client, Image, Undo};
use anyhow::{Context, Result, ensure};
use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::{ProgramFd, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use std::net::SocketAddrV4;
use std::time::Duration;

/// Images that a case can have.
pub(super) const IMAGES: u32 = 256;
/// Repeats by which the length of a burst is found, and which bring what it needs into the caches: at least so many,
const TRIAL: u32 = 2_000;
/// and at most.
const LONGEST_TRIAL: u32 = 1 << 15;
/// Repeats of one burst at most.
const MOST: u32 = 2_000_000;

/// A program that is measured.
pub(super) trait Measured {
    fn program(&self) -> &ProgramFd;
    /// Everything that it counts, by name and always in the same order.
    fn counts(&self) -> Result<Vec<(&'static str, u64)>>;
    /// Forgets every flow.
    fn forget(&mut self) -> Result<()>;
}

/// See the module.
pub(super) struct Wrapper {
    next: ProgramArray<MapData>,
    undo: Array<MapData, Undo>,
    images: Array<MapData, Image>,
    clients: Array<MapData, Client>,
    empty_fd: ProgramFd,
    testbed: Ebpf,
}

impl Wrapper {
    /// With room for that many clients.
    pub(super) fn new(loader: &mut EbpfLoader<'_>, clients: u32) -> Result<Self> {
        let mut testbed = loader
            .map_max_entries("TB_IMAGES", IMAGES)
            .map_max_entries("TB_CLIENTS", clients)
            .load_file(path_of("testbed")?)
            .context("loading the test programs")?;
        load_program(&mut testbed, "tb_undo", Xdp::load)?;
        let empty_fd = load_program(&mut testbed, "tb_empty", Xdp::load)?.fd()?.try_clone()?;
        Ok(Self {
            next: take(&mut testbed, "TB_NEXT")?,
            undo: take(&mut testbed, "TB_UNDO")?,
            images: take(&mut testbed, "TB_IMAGES")?,
            clients: take(&mut testbed, "TB_CLIENTS")?,
            empty_fd,
            testbed,
        })
    }

    /// From now on frames come from these clients, in this order.
    pub(super) fn set_clients(&mut self, clients: &[SocketAddrV4]) -> Result<()> {
        for (i, client) in clients.iter().enumerate() {
            self.clients.set(i as u32, Client::new(*client), 0)?;
        }
        Ok(())
    }

    /// Nanoseconds of the empty program.
    pub(super) fn empty(&self, time: Duration) -> Result<f64> {
        let program = self.program("tb_empty")?;
        let repeat = repeats(burst(program, &[0; 64], TRIAL)?, time);
        burst(program, &[0; 64], repeat)
    }

    /// Instructions that the verifier followed in the empty program.
    pub(super) fn verified(&self) -> Result<u32> {
        Ok(self.program("tb_empty")?.info()?.verified_instruction_count().unwrap_or(0))
    }

    /// Nanoseconds that a packet of the case costs more than one that meets the empty program.
    pub(super) fn cost(
        &mut self,
        case: &mut Case,
        measured: &mut dyn Measured,
        time: Duration,
    ) -> Result<f64> {
        self.show(case)?;
        let frame = case.frame();
        let clients = case.undo.client_mask + 1;
        let trial = clients.clamp(TRIAL, LONGEST_TRIAL);

        self.wrap(measured.program(), case.undo)?;
        let repeat = if case.begin {
            measured.forget()?;
            clients
        } else {
            repeats(self.burst(frame, trial)?, time)
        };
        let before = measured.counts()?;
        let with = self.burst(frame, repeat)?;
        let after = measured.counts()?;
        let moved = |((name, now), (_, then)): ((&'static str, u64), (&str, u64))| (name, now - then);
        let counted: Vec<_> = after.into_iter().zip(before).map(moved).filter(|(_, by)| *by > 0).collect();
        let expected: Vec<_> = case.counted.iter().map(|name| (*name, u64::from(repeat))).collect();
        ensure!(
            counted == expected,
            "{repeat} repeats were counted as {counted:?} and not as {expected:?}: they took another path"
        );

        self.wrap(&self.empty_fd.try_clone()?, case.undo)?;
        self.burst(frame, trial)?;
        let without = self.burst(frame, repeat)?;
        // The next round goes on where this one has stopped.
        let run = case.undo.run + u64::from(if case.begin { 0 } else { repeat + trial });
        case.undo.run = run;
        Ok(with - without)
    }

    /// Sends the packet of each client of the case once.
    pub(super) fn send_each(&mut self, case: &Case, measured: &dyn Measured) -> Result<()> {
        self.show(case)?;
        self.wrap(measured.program(), case.undo)?;
        self.burst(case.frame(), case.undo.client_mask + 1)?;
        Ok(())
    }

    fn show(&mut self, case: &Case) -> Result<()> {
        for (i, image) in case.images.iter().enumerate() {
            self.images.set(i as u32, image, 0)?;
        }
        Ok(())
    }

    /// Puts the wrapper in front of a program.
    fn wrap(&mut self, program: &ProgramFd, undo: Undo) -> Result<()> {
        self.next.set(0, program, 0)?;
        Ok(self.undo.set(0, undo, 0)?)
    }

    /// Mean nanoseconds of a run of the wrapper and what is behind it.
    fn burst(&self, frame: &[u8], repeat: u32) -> Result<f64> {
        burst(self.program("tb_undo")?, frame, repeat)
    }

    fn program(&self, name: &str) -> Result<&Xdp> {
        let program = self.testbed.program(name);
        Ok(program.with_context(|| format!("the object has no program {name}"))?.try_into()?)
    }
}

/// One of an object's maps.
pub(super) fn take<T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    name: &str,
) -> Result<T> {
    let map = ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))?;
    T::try_from(map).with_context(|| format!("map {name} is of another type or size"))
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
