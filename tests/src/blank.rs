//! Loaded programs that are used again: verifying them takes a fifth of a second, and seconds in an emulated machine, and
//! hundreds of tests want them. Between two tests every byte of every map becomes zero, as in maps that are new.

use crate::maps::Maps;
use crate::object::{Sizes, load_lb, load_program};
use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::maps::{Map, MapData};
use aya::programs::{SchedClassifier, Xdp};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};

/// `lb` and `lb_joint` in the kernel, with maps that nobody has written to.
pub struct Loaded {
    pub maps: Maps,
    pub(crate) ebpf: Ebpf,
    sizes: Sizes,
    blanks: Vec<Blank>,
}

/// Those that no test has at the moment.
static IDLE: Mutex<Vec<Loaded>> = Mutex::new(Vec::new());

impl Loaded {
    pub(crate) fn take(sizes: Sizes) -> Result<Self> {
        let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = idle.iter().position(|loaded| loaded.sizes == sizes) {
            return Ok(idle.swap_remove(at));
        }
        drop(idle);
        let mut ebpf = load_lb(sizes)?;
        load_program(&mut ebpf, "lb", Xdp::load)?;
        load_program(&mut ebpf, "lb_joint", SchedClassifier::load)?;
        // Constants stay, and nobody may write them.
        let written = ebpf.maps().filter(|(name, _)| !name.starts_with(".rodata"));
        let blanks = written.map(|(name, map)| Blank::of(name, map)).collect::<Result<_>>()?;
        let maps = Maps::take(&mut ebpf)?;
        Ok(Self { maps, ebpf, sizes, blanks })
    }

    /// Makes it forget all packets, and nothing else.
    pub fn forget_packets(&self) -> Result<()> {
        let filled = self.blanks.iter().filter(|blank| FILLED.contains(&blank.name.as_str()));
        filled.into_iter().try_for_each(Blank::clear)
    }

    /// Makes it as new, for the next test.
    pub(crate) fn give_back(mut self) -> Result<()> {
        self.maps.forget_tables();
        for blank in &self.blanks {
            blank.clear()?;
        }
        IDLE.lock().unwrap_or_else(PoisonError::into_inner).push(self);
        Ok(())
    }
}

/// Maps that packets alone fill.
const FILLED: [&str; 6] = ["FLOWS", "FLOW_KEYS", "HOMES", "LIVE", "STASHES", "TAILS"];

/// A map that can be emptied.
struct Blank {
    name: String,
    fd: OwnedFd,
    kind: Kind,
    /// Bytes of all processors' values of one key.
    value: usize,
    entries: u32,
}

#[derive(Clone, Copy)]
enum Kind {
    Array,
    Hash,
    /// Emptied by who reads it.
    Ring,
}

const NEXT_KEY: libc::c_long = 4;
const UPDATE: libc::c_long = 2;
const DELETE: libc::c_long = 3;

impl Blank {
    fn of(name: &str, map: &Map) -> Result<Self> {
        let processors = aya::util::nr_cpus().map_or(1, |n| n);
        let (data, kind, processors): (&MapData, _, _) = match map {
            Map::Array(data) => (data, Kind::Array, 1),
            Map::PerCpuArray(data) => (data, Kind::Array, processors),
            Map::HashMap(data) => (data, Kind::Hash, 1),
            Map::PerCpuHashMap(data) => (data, Kind::Hash, processors),
            Map::RingBuf(data) => (data, Kind::Ring, 1),
            _ => bail!("map {name} is of a kind that nobody knows how to empty"),
        };
        let info = data.info().with_context(|| format!("asking about map {name}"))?;
        // Each processor's value begins at a multiple of eight.
        let value = info.value_size() as usize;
        let value = if processors > 1 { value.next_multiple_of(8) * processors } else { value };
        let fd = data.fd().as_fd().try_clone_to_owned()?;
        Ok(Self { name: name.to_owned(), fd, kind, value, entries: info.max_entries() })
    }

    fn clear(&self) -> Result<()> {
        match self.kind {
            Kind::Array => {
                let zero = vec![0_u8; self.value];
                for key in 0..self.entries {
                    self.call(UPDATE, key.to_ne_bytes().as_ptr(), zero.as_ptr())?;
                }
            }
            Kind::Hash => {
                // The longest key there is; whichever comes first goes, until none does.
                let mut key = [0_u8; 64];
                while self.first(&mut key)? {
                    self.call(DELETE, key.as_ptr(), std::ptr::null())?;
                }
            }
            Kind::Ring => {}
        }
        Ok(())
    }

    /// The first key. Returns whether there is one.
    fn first(&self, key: &mut [u8; 64]) -> Result<bool> {
        match self.call(NEXT_KEY, std::ptr::null(), key.as_mut_ptr().cast_const()) {
            Ok(()) => Ok(true),
            Err(error) if error.downcast_ref::<std::io::Error>().is_some_and(is_absent) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A command on one element (`union bpf_attr`: descriptor, key, value, flags).
    fn call(&self, command: libc::c_long, key: *const u8, value: *const u8) -> Result<()> {
        let attributes: [u64; 4] = [self.fd.as_raw_fd() as u64, key as u64, value as u64, 0];
        // SAFETY: the attributes are read; key and value have as many bytes as the map says, or more.
        let outcome =
            unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(&attributes)) };
        if outcome != 0 {
            return Err(std::io::Error::last_os_error())
                .with_context(|| format!("emptying map {}", self.name));
        }
        Ok(())
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOENT)
}

// The only map with keys of its own.
const _: () = assert!(size_of::<lb_common::name::Name>() <= 64);

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::ensure;

    #[test]
    fn what_is_given_back_is_as_new() -> Result<()> {
        crate::require_root();
        let sizes = Sizes { pools: 3, ..Sizes::default() };
        let mut loaded = Loaded::take(sizes)?;
        let mut setup = crate::setup::Setup::new(sizes);
        let service = setup.service(crate::balancer::dial());
        let slot = setup.backend(service, crate::scene::backend(0), None);
        setup.list(service, "one.example.org", &[slot]);
        loaded.maps.apply(&setup)?;
        let dirty = loaded.blanks.iter().map(|blank| blank.bytes()).collect::<Result<Vec<_>>>()?;
        ensure!(dirty.iter().flatten().any(|byte| *byte != 0), "a setup leaves its traces");
        loaded.give_back()?;
        let again = Loaded::take(sizes)?;
        for blank in &again.blanks {
            ensure!(blank.bytes()?.iter().all(|byte| *byte == 0), "map {} is not empty", blank.name);
        }
        Ok(())
    }

    impl Blank {
        /// Everything in it.
        fn bytes(&self) -> Result<Vec<u8>> {
            const LOOKUP: libc::c_long = 1;
            let mut all = Vec::new();
            match self.kind {
                Kind::Array => {
                    let mut value = vec![0_u8; self.value];
                    for key in 0..self.entries {
                        self.call(LOOKUP, key.to_ne_bytes().as_ptr(), value.as_mut_ptr().cast_const())?;
                        all.extend_from_slice(&value);
                    }
                }
                Kind::Hash => all.push(u8::from(self.first(&mut [0; 64])?)),
                Kind::Ring => {}
            }
            Ok(all)
        }
    }
}
