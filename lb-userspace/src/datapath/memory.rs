//! How much memory the maps take: the kernel's own numbers.

use super::error::DatapathError;
use super::pins::Pins;
use super::sys;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

/// `BPF_MAP_TYPE_RINGBUF` (`linux/bpf.h`).
const RING_BUFFER: u64 = 27;

/// One map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MapMemory {
    pub name: String,
    /// How many entries it has room for; `None` for a ring buffer, which has bytes only.
    pub entries: Option<u64>,
    /// What the kernel has set aside for it.
    pub bytes: u64,
}

/// All pinned maps, by name.
pub(super) fn maps(pins: &Pins) -> Result<Vec<MapMemory>, DatapathError> {
    let mut maps = Vec::new();
    for (name, pin) in pins.maps() {
        let failed = || format!("cannot ask about pinned map {}", pins.show(&pin).display());
        maps.push(map(name, &pin).map_err(DatapathError::system(failed()))?);
    }
    maps.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(maps)
}

fn map(name: String, pin: &Path) -> io::Result<MapMemory> {
    let map = sys::open(pin)?;
    let told = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", map.as_raw_fd()))?;
    read(name, &told)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "fdinfo of a map lacks numbers"))
}

/// Reads lines of a name, a colon and a number.
fn read(name: String, told: &str) -> Option<MapMemory> {
    let number = |key: &str| {
        let line = told.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
        line.trim().parse::<u64>().ok()
    };
    let entries = number("max_entries")?;
    let kind = number("map_type")?;
    let memlock = number("memlock")?;
    Some(if kind == RING_BUFFER {
        // Linux before 6.4 multiplies by the size of a value, and a ring buffer has none; its size is in bytes.
        MapMemory { name, entries: None, bytes: memlock.max(entries) }
    } else {
        MapMemory { name, entries: Some(entries), bytes: memlock }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_are_read() {
        let told = "pos:\t0\nflags:\t02000002\nmap_type:\t2\nkey_size:\t4\nvalue_size:\t64\nmax_entries:\t131072\n\
                    map_flags:\t0x400\nmap_extra:\t0x0\nmemlock:\t8392704\nmap_id:\t7\nfrozen:\t0\n";
        let flows = MapMemory { name: "FLOWS".into(), entries: Some(131_072), bytes: 8_392_704 };
        assert_eq!(read("FLOWS".into(), told), Some(flows));
        let ring = read("TRACE".into(), &told.replace("map_type:\t2", "map_type:\t27")).unwrap();
        assert_eq!((ring.entries, ring.bytes), (None, 8_392_704));
        let before_6_4 = "map_type:\t27\nmax_entries:\t262144\nmemlock:\t0\n";
        assert_eq!(read("TRACE".into(), before_6_4).unwrap().bytes, 262_144);
        assert_eq!(read("X".into(), "map_type:\t2\nmax_entries:\t1\n"), None);
    }
}
