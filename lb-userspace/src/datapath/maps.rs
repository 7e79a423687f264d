//! The maps: what each must look like, and typed handles through which alone they are written.

use super::error::DatapathError;
use super::limits::Limits;
use super::pins::Pins;
use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapInfo, PerCpuArray, PerCpuHashMap, RingBuf};
use lb_common::backend::{Abilities, Backend};
use lb_common::counter::{BackendCounters, ServiceCounters};
use lb_common::endpoint::Bucket;
use lb_common::flow::{Flow, Use};
use lb_common::home::{Asked, Home, Tail};
use lb_common::lost::{Lost, Watch};
use lb_common::maglev::Block;
use lb_common::name::{Name, Pool};
use lb_common::quic_lb::{self, servers};
use lb_common::service::Service;
use lb_common::settings::Settings;
use lb_common::stash::Stash;
use std::path::Path;

/// A map that this daemon uses.
struct Shape {
    name: &'static str,
    /// Bytes of a value.
    value: usize,
    entries: fn(&Limits) -> u32,
    /// The limits that the number of entries follows from.
    limits: &'static str,
}

/// Processors that the kernel may ever run programs on.
fn processors() -> u32 {
    aya::util::nr_cpus().map_or(1, |n| n as u32)
}

const fn shape<V>(name: &'static str, limits: &'static str, entries: fn(&Limits) -> u32) -> Shape {
    Shape { name, value: size_of::<V>(), entries, limits }
}

/// Interfaces beside those of managed servers whose lost frames can be counted.
const UPLINKS: u32 = 1024;
/// Interfaces times causes.
const LOST_KINDS: u32 = 1024;

const SHAPES: [Shape; 25] = [
    shape::<Settings>("SETTINGS", "", |_| 1),
    shape::<Bucket>("ENDPOINTS", "`services` or `backends`", |limits| 2 * limits.endpoint_buckets()),
    shape::<Service>("SERVICES", "`services`", |limits| limits.services),
    shape::<Backend>("BACKENDS", "`backends`", |limits| limits.backends),
    shape::<Block>("MAGLEV", "`services`, `maglev_size`, `pools` or `pool_maglev_size`", |limits| {
        limits.pool_base(limits.pool_entries() + 1)
    }),
    shape::<u32>("NAMES", "`names`", Limits::name_entries),
    shape::<Pool>("POOLS", "`pools`", |limits| limits.pool_entries() + 1),
    shape::<Flow>("FLOWS", "`flows`", Limits::flow_entries),
    shape::<Asked>("FLOW_KEYS", "`flows`", Limits::flow_entries),
    shape::<Home>("HOMES", "`learned`", Limits::home_entries),
    shape::<Tail>("TAILS", "`pending`", |limits| limits.pending),
    shape::<u64>("LIVE", "`backends`", |limits| limits.backends),
    shape::<u64>("WAITING", "`backends`", |limits| limits.backends),
    shape::<Use>("USES", "`services`", |limits| limits.services),
    shape::<u64>("OVERFLOWS", "`flows`", Limits::flow_groups),
    Shape { name: "TRACE", value: 0, entries: |limits| limits.trace_bytes, limits: "`trace_bytes`" },
    shape::<Stash>("STASHES", "`pending`", |limits| limits.pending + processors()),
    shape::<ServiceCounters>("SERVICE_COUNTERS", "`services`", |limits| limits.services),
    shape::<BackendCounters>("BACKEND_COUNTERS", "`backends`", |limits| limits.backends),
    shape::<Abilities>("ABILITIES", "`backends`", |limits| limits.backends),
    shape::<quic_lb::Config>("QUIC_CONFIGS", "`services`", |limits| limits.services * quic_lb::ROTATIONS),
    shape::<servers::Bucket>("QUIC_SERVERS", "`backends`", |limits| 2 * limits.server_buckets()),
    shape::<Watch>("WATCH", "", |_| 1),
    shape::<u32>("OWN_INTERFACES", "`backends`", |limits| limits.backends + UPLINKS),
    shape::<u64>("LOST", "", |_| LOST_KINDS),
];

/// What a map must be: the object says type and flags, the limits say how many entries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Expected {
    kind: u32,
    key_size: u32,
    value_size: u32,
    pub(super) max_entries: u32,
    flags: u32,
}

/// Checks the maps of a parsed object against what this daemon knows of them, and says what each must be once loaded.
/// Maps that only the programs know are taken as they are; the object's own data sections are not pinned.
pub(super) fn expected(
    object: &aya_obj::Object,
    path: &Path,
    limits: &Limits,
) -> Result<Vec<(String, Expected)>, DatapathError> {
    for shape in &SHAPES {
        let Some(map) = object.maps.get(shape.name) else {
            return Err(DatapathError::Lacks {
                path: path.to_owned(),
                kind: "map",
                name: shape.name.to_owned(),
            });
        };
        let expected = shape.value as u32;
        if map.value_size() != expected {
            return Err(DatapathError::ObjectMap {
                path: path.to_owned(),
                name: shape.name.to_owned(),
                what: "values of a size of",
                found: map.value_size(),
                expected,
            });
        }
    }
    let kept = object.maps.iter().filter(|(name, _)| !name.starts_with('.'));
    let mut expected: Vec<_> = kept
        .map(|(name, map)| {
            let shape = SHAPES.iter().find(|shape| shape.name == name);
            let expected = Expected {
                kind: map.map_type(),
                key_size: map.key_size(),
                value_size: map.value_size(),
                max_entries: shape.map_or(map.max_entries(), |shape| (shape.entries)(limits)),
                flags: map.map_flags(),
            };
            (name.clone(), expected)
        })
        .collect();
    // So that the same is told each time.
    expected.sort_by(|(a, _), (b, _)| a.cmp(b));
    Ok(expected)
}

/// Checks every map that is pinned already. Returns whether all of them are there.
pub(super) fn check_pinned(pins: &Pins, expected: &[(String, Expected)]) -> Result<bool, DatapathError> {
    let mut complete = true;
    for (name, expected) in expected {
        let pin = pins.map(name);
        if !pin.exists() {
            complete = false;
            continue;
        }
        let found = MapInfo::from_pin(&pin).map_err(DatapathError::system(format!(
            "cannot open pinned map {}",
            pins.show(&pin).display()
        )))?;
        // Kinds without keys or with sizes set by the kernel are none of ours: all five must agree.
        let kind = found.map_type().map_or(0, |kind| kind as u32);
        let rows = [
            ("type", kind, expected.kind),
            ("keys of a size of", found.key_size(), expected.key_size),
            ("values of a size of", found.value_size(), expected.value_size),
            ("a number of entries of", found.max_entries(), expected.max_entries),
            ("flags", found.map_flags(), expected.flags),
        ];
        if let Some((what, found, expected)) = rows.into_iter().find(|(_, found, expected)| found != expected)
        {
            let limits = SHAPES.iter().find(|shape| shape.name == name).map_or("", |shape| shape.limits);
            let limits = if limits.is_empty() { "what changed" } else { limits };
            return Err(DatapathError::PinnedMap { pin: pins.show(&pin), what, found, expected, limits });
        }
    }
    Ok(complete)
}

/// Typed handles of the maps.
pub(super) struct Maps {
    pub(super) settings: Array<MapData, Settings>,
    pub(super) endpoints: Array<MapData, Bucket>,
    pub(super) services: Array<MapData, Service>,
    pub(super) backends: Array<MapData, Backend>,
    pub(super) maglev: Array<MapData, Block>,
    pub(super) names: HashMap<MapData, Name, u32>,
    pub(super) pools: Array<MapData, Pool>,
    pub(super) flows: MapData,
    pub(super) homes: MapData,
    pub(super) live: MapData,
    pub(super) waiting: MapData,
    pub(super) uses: MapData,
    pub(super) overflows: MapData,
    pub(super) service_counters: PerCpuArray<MapData, ServiceCounters>,
    pub(super) backend_counters: PerCpuArray<MapData, BackendCounters>,
    pub(super) abilities: Array<MapData, Abilities>,
    pub(super) watch: Array<MapData, Watch>,
    pub(super) own_interfaces: HashMap<MapData, u32, u32>,
    pub(super) lost: PerCpuHashMap<MapData, Lost, u64>,
    pub(super) quic_configs: Array<MapData, quic_lb::Config>,
    pub(super) quic_servers: Array<MapData, servers::Bucket>,
    /// Until somebody reads it.
    pub(super) trace: Option<RingBuf<MapData>>,
}

impl Maps {
    /// Takes the maps out of a loaded object.
    pub(super) fn take(ebpf: &mut Ebpf, path: &Path) -> Result<Self, DatapathError> {
        Ok(Self {
            settings: take(ebpf, path, "SETTINGS")?,
            endpoints: take(ebpf, path, "ENDPOINTS")?,
            services: take(ebpf, path, "SERVICES")?,
            backends: take(ebpf, path, "BACKENDS")?,
            maglev: take(ebpf, path, "MAGLEV")?,
            names: take(ebpf, path, "NAMES")?,
            pools: take(ebpf, path, "POOLS")?,
            flows: take_mapped(ebpf, path, "FLOWS")?,
            homes: take_mapped(ebpf, path, "HOMES")?,
            live: take_mapped(ebpf, path, "LIVE")?,
            waiting: take_mapped(ebpf, path, "WAITING")?,
            uses: take_mapped(ebpf, path, "USES")?,
            overflows: take_mapped(ebpf, path, "OVERFLOWS")?,
            service_counters: take(ebpf, path, "SERVICE_COUNTERS")?,
            backend_counters: take(ebpf, path, "BACKEND_COUNTERS")?,
            abilities: take(ebpf, path, "ABILITIES")?,
            watch: take(ebpf, path, "WATCH")?,
            own_interfaces: take(ebpf, path, "OWN_INTERFACES")?,
            lost: take(ebpf, path, "LOST")?,
            quic_configs: take(ebpf, path, "QUIC_CONFIGS")?,
            quic_servers: take(ebpf, path, "QUIC_SERVERS")?,
            trace: Some(take(ebpf, path, "TRACE")?),
        })
    }
}

impl Maps {
    /// The backend in a slot; all zero when there is none.
    pub(super) fn backend(&self, slot: u16) -> Result<Backend, DatapathError> {
        let found = self.backends.get(&u32::from(slot), 0);
        found.map_err(DatapathError::system(format!("cannot read map BACKENDS at {slot}")))
    }
}

fn take<M: TryFrom<Map, Error = aya::maps::MapError>>(
    ebpf: &mut Ebpf,
    path: &Path,
    name: &str,
) -> Result<M, DatapathError> {
    let lacks = || DatapathError::Lacks { path: path.to_owned(), kind: "map", name: name.to_owned() };
    let map = ebpf.take_map(name).ok_or_else(lacks)?;
    M::try_from(map)
        .map_err(DatapathError::system(format!("map {name} in {} is not as expected", path.display())))
}

/// An array that is mapped into memory rather than asked for.
fn take_mapped(ebpf: &mut Ebpf, path: &Path, name: &str) -> Result<MapData, DatapathError> {
    match ebpf.take_map(name) {
        Some(Map::Array(data)) => Ok(data),
        _ => Err(DatapathError::Lacks { path: path.to_owned(), kind: "array", name: name.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_names_the_limits_that_it_follows() {
        // So few that services make a difference to the table of both.
        let usual = Limits { backends: 8, ..Limits::default() };
        for (name, other) in [
            ("services", Limits { services: 256, ..usual }),
            ("backends", Limits { backends: 2048, ..usual }),
            ("flows", Limits { flows: 1 << 20, ..usual }),
            ("pending", Limits { pending: 2048, ..usual }),
            ("maglev_size", Limits { maglev_size: 251, ..usual }),
            ("names", Limits { names: 2048, ..usual }),
            ("pools", Limits { pools: 128, ..usual }),
            ("pool_maglev_size", Limits { pool_maglev_size: 251, ..usual }),
            ("learned", Limits { learned: 1 << 20, ..usual }),
            ("trace_bytes", Limits { trace_bytes: 1 << 20, ..usual }),
        ] {
            let follow = |shape: &&Shape| (shape.entries)(&usual) != (shape.entries)(&other);
            let found: Vec<_> = SHAPES.iter().filter(follow).map(|shape| shape.name).collect();
            let told = |shape: &&Shape| shape.limits.contains(&format!("`{name}`"));
            let told: Vec<_> = SHAPES.iter().filter(told).map(|shape| shape.name).collect();
            assert_eq!(told, found, "{name}");
            assert!(!found.is_empty());
        }
    }
}
