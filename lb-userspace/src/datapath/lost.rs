//! Frames that the kernel dropped after a verdict of ours: programs on three tracepoints count them. A kernel that lacks what
//! these need loses the counts and nothing else.

use super::error::DatapathError;
use super::load::program;
use super::maps::Maps;
use super::pins::Pins;
use super::{btf, sys};
use aya::Ebpf;
use aya::maps::{MapError, PerCpuValues};
use aya::programs::RawTracePoint;
use lb_common::lost::{Lost, Watch};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Programs of the object, and the tracepoints that they belong to.
pub(super) const PROGRAMS: [(&str, &str); 3] = [
    ("lb_redirect_err", "xdp_redirect_err"),
    ("lb_exception", "xdp_exception"),
    ("lb_devmap_xmit", "xdp_devmap_xmit"),
];

/// A [`Watch`] with the offsets of the running kernel.
///
/// # Errors
/// The kernel does not tell them.
pub(super) fn offsets() -> io::Result<Watch> {
    let [prog_aux, aux_id, dev_ifindex, dev_net, net_ns, ns_inum] = btf::offsets([
        ("bpf_prog", "aux"),
        ("bpf_prog_aux", "id"),
        ("net_device", "ifindex"),
        ("net_device", "nd_net"),
        ("net", "ns"),
        ("ns_common", "inum"),
    ])?;
    Ok(Watch { prog_aux, aux_id, dev_ifindex, dev_net, net_inum: net_ns + ns_inum, ..Watch::default() })
}

/// Puts the programs on their tracepoints, in the place of those of an earlier daemon.
///
/// # Errors
/// The kernel cannot; what an earlier daemon attached counts on where it can.
pub(super) fn attach(
    ebpf: &mut Ebpf,
    path: &Path,
    pins: &Pins,
    maps: &mut Maps,
    xdp: u32,
) -> Result<(), DatapathError> {
    let without = "cannot find fields of the kernel's structures";
    let offsets = offsets().map_err(DatapathError::system(without))?;
    let netns = std::fs::metadata("/proc/thread-self/ns/net")
        .map_err(DatapathError::system("cannot look at the network namespace"))?;
    let mut watch = || -> anyhow::Result<()> {
        let [before, _] = maps.watch.get(&0, 0)?.programs;
        let watch = Watch { programs: [xdp, before], netns: netns.ino() as u32, ..offsets };
        maps.watch.set(0, watch, 0)?;
        // Where those go that have no room of their own.
        if maps.lost.get(&Lost::default(), 0).is_err() {
            let processors = aya::util::nr_cpus().map_err(|(_, error)| error)?;
            let zeros = PerCpuValues::try_from(vec![0; processors])?;
            maps.lost.insert(Lost::default(), zeros, 0)?;
        }
        Ok(())
    };
    watch().map_err(DatapathError::system("cannot write maps WATCH and LOST"))?;
    for (name, _) in PROGRAMS {
        let counter: &mut RawTracePoint = program(ebpf, path, name)?;
        counter.load().map_err(DatapathError::system(format!("cannot load program `{name}`")))?;
    }
    for (name, tracepoint) in PROGRAMS {
        let failed = || format!("cannot attach program `{name}` to tracepoint {tracepoint}");
        let pin = pins.tracepoint(tracepoint);
        if pin.exists() {
            // A link of this kind cannot be given another program; two of them would count twice.
            pins.remove_link(&pin)?;
        }
        let counter: &mut RawTracePoint = program(ebpf, path, name)?;
        let attach = || -> anyhow::Result<()> {
            let program = counter.fd()?;
            Ok(sys::attach_tracepoint(tracepoint, program.as_fd(), &pin)?)
        };
        attach().map_err(DatapathError::system(failed()))?;
    }
    Ok(())
}

/// Frames by interface and cause, summed over all processors.
pub(super) fn read(maps: &Maps) -> Result<Vec<(Lost, u64)>, DatapathError> {
    let counts: Result<Vec<_>, _> = maps.lost.iter().collect();
    let counts = counts.map_err(DatapathError::system("cannot read map LOST"))?;
    let sum = |(lost, frames): (Lost, PerCpuValues<u64>)| (lost, frames.iter().sum());
    let mut sums: Vec<(Lost, u64)> = counts.into_iter().map(sum).filter(|(_, frames)| *frames > 0).collect();
    sums.sort();
    Ok(sums)
}

/// Says of an interface whether its frames are ours.
pub(super) fn own(maps: &mut Maps, ifindex: u32, is_own: bool) -> Result<(), DatapathError> {
    let written = if is_own {
        maps.own_interfaces.insert(ifindex, 1, 0)
    } else {
        match maps.own_interfaces.remove(&ifindex) {
            Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => {
                Ok(())
            }
            removed => removed,
        }
    };
    written.map_err(DatapathError::system("cannot write map OWN_INTERFACES"))
}

/// The interfaces whose frames are ours.
pub(super) fn owned(maps: &Maps) -> Vec<u32> {
    maps.own_interfaces.keys().flatten().collect()
}
