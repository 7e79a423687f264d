//! From an object file to programs in the kernel. Everything that can be wrong is found before anything is attached.

use super::error::DatapathError;
use super::kernel::Kernel;
use super::maps::{self, Maps};
use super::pins::Pins;
use super::{DatapathOptions, JOINT, Limits, XDP, lost};
use crate::net::Rtnl;
use aya::programs::{ProgramError, ProgramInfo, SchedClassifier, Xdp};
use aya::{Ebpf, EbpfLoader};
use std::path::Path;
use std::time::{Duration, Instant};

/// A loaded object.
pub(super) struct Loaded {
    pub(super) ebpf: Ebpf,
    pub(super) maps: Maps,
    pub(super) pins: Pins,
    pub(super) kernel: Kernel,
    /// Id of the XDP program.
    pub(super) xdp: u32,
    /// Whether the maps were pinned by an earlier daemon.
    pub(super) inherited: bool,
}

/// Checks everything, then loads the programs over pinned maps.
pub(super) fn load(options: &DatapathOptions) -> Result<Loaded, DatapathError> {
    options.limits.check()?;
    if !nix::unistd::geteuid().is_root() {
        return Err(DatapathError::NotRoot);
    }
    let kernel = Kernel::look();
    kernel.check()?;
    kernel.log();
    let mut rtnl = Rtnl::open()?;
    for interface in &options.interfaces {
        check_interface(&mut rtnl, interface)?;
    }
    let path = &options.object;
    let (bytes, object) = read(path)?;
    for name in [XDP, JOINT] {
        if !object.programs.contains_key(name) {
            return Err(DatapathError::Lacks { path: path.clone(), kind: "program", name: name.to_owned() });
        }
    }
    let expected = maps::expected(&object, path, &options.limits)?;

    let pins = Pins::open(&options.run_dir)?;
    let inherited = maps::check_pinned(&pins, &expected)?;
    let mut loader = EbpfLoader::new();
    for (name, expected) in &expected {
        loader.map_max_entries(name, expected.max_entries).map_pin_path(name, pins.map(name));
    }
    let mut ebpf = loader.load(&bytes).map_err(DatapathError::system(unreadable(path)))?;
    let xdp: &mut Xdp = program(&mut ebpf, path, XDP)?;
    let begun = Instant::now();
    xdp.load().map_err(refused(XDP))?;
    let info = xdp.info();
    let id = info.as_ref().map(ProgramInfo::id).unwrap_or_default();
    tell(XDP, begun.elapsed(), info);
    let joint: &mut SchedClassifier = program(&mut ebpf, path, JOINT)?;
    let begun = Instant::now();
    joint.load().map_err(refused(JOINT))?;
    tell(JOINT, begun.elapsed(), joint.info());
    let maps = Maps::take(&mut ebpf, path)?;
    Ok(Loaded { ebpf, maps, pins, kernel, xdp: id, inherited })
}

impl Loaded {
    /// Has the frames counted that the kernel drops after a verdict.
    pub(super) fn count_lost(&mut self, path: &Path) -> Result<(), DatapathError> {
        lost::attach(&mut self.ebpf, path, &self.pins, &mut self.maps, self.xdp)
    }
}

/// What it took the verifier.
fn tell(program: &'static str, took: Duration, info: Result<ProgramInfo, ProgramError>) {
    let verified = info.ok().and_then(|info| info.verified_instruction_count());
    let milliseconds = took.as_millis() as u64;
    tracing::info!(program, verified_instructions = verified, milliseconds, "program loaded");
}

/// How many entries each map of an object gets under these limits.
///
/// # Errors
/// The object cannot be read, or lacks a map.
pub fn map_entries(object: &Path, limits: &Limits) -> Result<Vec<(String, u32)>, DatapathError> {
    let (_, parsed) = read(object)?;
    let expected = maps::expected(&parsed, object, limits)?;
    Ok(expected.into_iter().map(|(name, expected)| (name, expected.max_entries)).collect())
}

/// An object file, and what stands in it.
fn read(path: &Path) -> Result<(Vec<u8>, aya_obj::Object), DatapathError> {
    let bytes = std::fs::read(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => DatapathError::NoObject(path.to_owned()),
        _ => DatapathError::system(format!("cannot read BPF object {}", path.display()))(error),
    })?;
    let object = aya_obj::Object::parse(&bytes).map_err(DatapathError::system(unreadable(path)))?;
    Ok((bytes, object))
}

fn unreadable(path: &Path) -> String {
    format!("{} is not a BPF object that can be loaded", path.display())
}

/// A program of the object, as what it is.
pub(super) fn program<'a, P>(ebpf: &'a mut Ebpf, path: &Path, name: &str) -> Result<&'a mut P, DatapathError>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    let lacks = || DatapathError::Lacks { path: path.to_owned(), kind: "program", name: name.to_owned() };
    ebpf.program_mut(name)
        .ok_or_else(lacks)?
        .try_into()
        .map_err(DatapathError::system(format!("program `{name}` in {} is of another type", path.display())))
}

/// Finds an interface and checks that packets can arrive on it.
pub(super) fn check_interface(rtnl: &mut Rtnl, name: &str) -> Result<crate::net::Link, DatapathError> {
    let link = rtnl.link(name)?.ok_or_else(|| DatapathError::NoInterface(name.to_owned()))?;
    if link.up { Ok(link) } else { Err(DatapathError::InterfaceDown(name.to_owned())) }
}

/// What the verifier said, without the thousands of lines before it.
fn refused(name: &'static str) -> impl FnOnce(ProgramError) -> DatapathError {
    move |error| match error {
        ProgramError::LoadError { io_error, verifier_log } => {
            let log = verifier_log.to_string();
            let lines: Vec<_> = log.trim().lines().collect();
            let mut log = lines[lines.len().saturating_sub(20)..].join("\n");
            if log.is_empty() {
                log = io_error.to_string();
            }
            DatapathError::Verifier { name: name.to_owned(), log }
        }
        other => DatapathError::system(format!("cannot load program `{name}`"))(other),
    }
}
