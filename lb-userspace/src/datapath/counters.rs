//! Reads the counters. Each processor has its own, so that none waits for another; here they are summed.

use super::error::DatapathError;
use super::maps::Maps;
use aya::maps::{MapData, PerCpuArray, PerCpuValues};
use lb_common::counter::{BackendCounters, COUNTERS, Counter, ServiceCounters};

/// What the programs counted.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// By service id; index 0 counts packets that belong to no service.
    pub services: Vec<[u64; COUNTERS]>,
    /// By backend slot.
    pub backends: Vec<BackendCounters>,
}

const BACKEND_WORDS: usize = size_of::<BackendCounters>() / size_of::<u64>();

pub(super) fn read(maps: &Maps) -> Result<Counters, DatapathError> {
    let services = sums(&maps.service_counters, "SERVICE_COUNTERS", |ServiceCounters(row)| *row)?;
    let backends = sums(&maps.backend_counters, "BACKEND_COUNTERS", |row: &BackendCounters| {
        bytemuck::cast::<_, [u64; BACKEND_WORDS]>(*row)
    })?;
    Ok(Counters {
        services: services.iter().map(|row| std::array::from_fn(|i| row[i])).collect(),
        backends: backends.into_iter().map(bytemuck::cast).collect(),
    })
}

/// Packets between clients and the backend in a slot, both ways.
pub(super) fn packets_of(maps: &Maps, slot: u16) -> Result<u64, DatapathError> {
    let rows = maps.backend_counters.get(&u32::from(slot), 0);
    let rows = rows.map_err(DatapathError::system("cannot read map BACKEND_COUNTERS"))?;
    let packets = |row: &BackendCounters| row.packets_from_client.wrapping_add(row.packets_from_backend);
    Ok(rows.iter().map(packets).fold(0, u64::wrapping_add))
}

impl Maps {
    /// Begins to count anew for the backend in a slot: what its former one had is none of the new one's.
    pub(super) fn clear_backend_counters(&mut self, slot: u16) -> Result<(), DatapathError> {
        let mut write = || -> anyhow::Result<()> {
            let processors = aya::util::nr_cpus().map_err(|(_, error)| error)?;
            let zeros = PerCpuValues::try_from(vec![BackendCounters::default(); processors])?;
            Ok(self.backend_counters.set(u32::from(slot), zeros, 0)?)
        };
        write().map_err(DatapathError::system("cannot write map BACKEND_COUNTERS"))
    }
}

/// One counter of every service, by id.
pub(super) fn of_services(maps: &Maps, counter: Counter) -> Result<Vec<u64>, DatapathError> {
    let rows =
        sums(&maps.service_counters, "SERVICE_COUNTERS", |ServiceCounters(row)| [row[counter as usize]])?;
    Ok(rows.into_iter().map(|[value]| value).collect())
}

fn sums<V: aya::Pod, const N: usize>(
    map: &PerCpuArray<MapData, V>,
    name: &str,
    words: impl Fn(&V) -> [u64; N],
) -> Result<Vec<[u64; N]>, DatapathError> {
    let row = |index| {
        let values = map.get(&index, 0)?;
        let mut sum = [0_u64; N];
        for value in values.iter() {
            for (sum, word) in sum.iter_mut().zip(words(value)) {
                *sum = sum.wrapping_add(word);
            }
        }
        Ok(sum)
    };
    let rows: Result<_, aya::maps::MapError> = (0..map.len()).map(row).collect();
    rows.map_err(DatapathError::system(format!("cannot read map {name}")))
}
