//! Performs the registry's map writes, and owns the fields of the settings that describe the maps and the clock.

use super::clock::Clock;
use super::error::DatapathError;
use super::homes::Homes;
use super::limits::Limits;
use super::maps::Maps;
use super::pools::{Listed, Pools};
use super::tables::{Endpoints, MaglevTables, Servers};
use lb_common::addr::{Addr, Be16};
use lb_common::backend::Backend;
use lb_common::endpoint::Endpoint;
use lb_common::home;
use lb_common::quic_lb;
use lb_common::service::Service;
use lb_common::settings::Settings;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// One change to what the programs see. The registry makes them, [`Datapath::apply`] performs them in order.
#[derive(Clone, Debug)]
pub enum MapWrite {
    /// Keys and timeouts. The fields that describe the maps and the clock (`live`, `endpoint_seed`, `quic_live`, `quic_seed`, `flow_seed`,
    /// `flow_group_mask`, `stash_mask`, `home_group_mask`, `home_key`, `name_key`, `slot_*`, `tick_shift`) are the data path's own: whatever stands in them is
    /// replaced. See [`Clock::ticks`] for the timeouts.
    Settings(Box<Settings>),
    /// The whole table of who a packet is for, replacing the previous one at once.
    Endpoints(Vec<Endpoint>),
    /// A pool of backends: the ready ones as a Maglev table of their slots. It is known by its id, which is not 0, and comes before
    /// the names that lead to it.
    Pool { id: u64, maglev: Vec<u16> },
    /// Names of servers that lead to pools of a service. What the service had before and this does not name goes when the
    /// take-over ends.
    Names { service: u16, listed: Vec<Listed> },
    /// A service. With a table of backend slots, that becomes its Maglev table (empty: no backend is ready); without,
    /// the present table stays. `maglev_base` and `maglev_size` are filled in.
    Service { id: u16, service: Service, maglev: Option<Vec<u16>> },
    /// How a service's QUIC connection ids are read, and the slots of the servers that they name: all of them; what was there
    /// before and is not among them is removed.
    Quic { id: u16, configs: Vec<quic_lb::Config>, servers: Vec<(quic_lb::Server, u16)> },
    /// A backend; `Backend::default()` removes it.
    Backend { slot: u16, backend: Backend },
}

/// What stands in the maps that the daemon writes.
#[derive(Debug)]
pub(super) struct Writer {
    limits: Limits,
    clock: Clock,
    pub(super) settings: Settings,
    endpoints: Endpoints,
    pub(super) servers: Servers,
    /// The QUIC server ids that are known, and the slots of their backends.
    pub(super) quic: BTreeMap<quic_lb::Server, u16>,
    maglev: BTreeMap<u16, MaglevTables>,
    pools: Pools,
    /// What this daemon has written, and so has not merely found: of services, for how long their learned sessions are kept.
    services: BTreeMap<u16, u32>,
    backends: BTreeSet<u16>,
}

impl Writer {
    /// Reads what an earlier daemon left, or begins anew.
    pub(super) fn new(maps: &mut Maps, limits: Limits, inherited: bool) -> Result<Self, DatapathError> {
        let clock = Clock::measure()?;
        let found = maps.settings.get(&0, 0).map_err(DatapathError::system("cannot read map SETTINGS"))?;
        let mut settings = if inherited { found } else { Settings::default() };
        // Flows are found by their hash, so its secret lives as long as their map.
        if settings.flow_seed == [0; 7] {
            settings.flow_seed = random()?;
        }
        if settings.home_key == [0; 2] {
            settings.home_key = random()?;
        }
        if settings.name_key == [0; 2] {
            settings.name_key = random()?;
        }
        settings.home_group_mask = limits.home_entries() / home::GROUP as u32 - 1;
        settings.flow_group_mask = limits.flow_groups() - 1;
        settings.stash_mask = limits.pending - 1;
        clock.fill(&mut settings);
        let [seed] = random()?;
        let writer = Self {
            limits,
            clock,
            settings,
            endpoints: Endpoints::new(limits.endpoint_buckets(), seed),
            servers: Servers::new(limits.server_buckets(), seed),
            quic: Servers::read(maps, settings.quic_live)?,
            maglev: BTreeMap::new(),
            pools: Pools::left(maps, limits)?,
            services: BTreeMap::new(),
            backends: BTreeSet::new(),
        };
        writer.write_settings(maps)?;
        Ok(writer)
    }

    pub(super) fn settings(&self) -> &Settings {
        &self.settings
    }

    pub(super) fn clock(&self) -> Clock {
        self.clock
    }

    /// Ticks after which a learned session of a service is forgotten that nobody asked for.
    pub(super) fn learned_ticks(&self, service: u16) -> u32 {
        self.services.get(&service).copied().unwrap_or(0)
    }

    /// Performs writes in order. Server ids of backends whose slots others get, or nobody, go first and all at once: in between
    /// they would lead to the wrong one.
    pub(super) fn write(
        &mut self,
        maps: &mut Maps,
        homes: &Homes,
        writes: &[MapWrite],
    ) -> Result<(), DatapathError> {
        if !self.quic.is_empty() {
            let mut going = BTreeSet::new();
            for write in writes {
                if let MapWrite::Backend { slot, backend } = write
                    && self.quic.values().any(|known| known == slot)
                    && identity(&maps.backend(*slot)?) != identity(backend)
                {
                    going.insert(*slot);
                }
            }
            self.forget_quic_servers(maps, &going)?;
        }
        writes.iter().try_for_each(|write| self.write_one(maps, homes, write))
    }

    fn write_one(&mut self, maps: &mut Maps, homes: &Homes, write: &MapWrite) -> Result<(), DatapathError> {
        match write {
            MapWrite::Settings(settings) => {
                self.settings = own_fields(&self.settings, settings);
                self.write_settings(maps)
            }
            MapWrite::Endpoints(endpoints) => self.write_endpoints(maps, endpoints),
            MapWrite::Pool { id, maglev } => self.pools.write(maps, *id, maglev),
            MapWrite::Names { service, listed } => {
                self.pools.list(maps, &self.settings.name_key, *service, listed)
            }
            MapWrite::Service { id, service, maglev } => {
                self.write_service(maps, *id, *service, maglev.as_deref())
            }
            MapWrite::Quic { id, configs, servers } => self.write_quic(maps, *id, configs, servers),
            MapWrite::Backend { slot, backend } => self.write_backend(maps, homes, *slot, backend),
        }
    }

    /// Removes services and backends that were in the maps before and have not been written since.
    pub(super) fn remove_unwritten(&mut self, maps: &mut Maps, homes: &Homes) -> Result<(), DatapathError> {
        let unwritten = |limit: u32, is_written: &dyn Fn(&u16) -> bool| {
            let indices = 0..u16::try_from(limit - 1).expect("limits were checked to fit in 16 bits") + 1;
            indices.filter(|index| !is_written(index)).collect::<Vec<_>>()
        };
        let mut removed = BTreeSet::new();
        for slot in unwritten(self.limits.backends, &|slot| self.backends.contains(slot)) {
            if maps.backend(slot)? != Backend::default() {
                removed.insert(slot);
            }
        }
        self.forget_quic_servers(maps, &removed)?;
        for slot in removed {
            tracing::info!(slot, "removed a backend that is no longer configured");
            self.write_backend(maps, homes, slot, &Backend::default())?;
        }
        for id in unwritten(self.limits.services, &|id| self.services.contains_key(id)) {
            let found = maps
                .services
                .get(&u32::from(id), 0)
                .map_err(DatapathError::system("cannot read map SERVICES"))?;
            if found != Service::default() {
                tracing::info!(id, "removed a service that is no longer configured");
                self.write_quic(maps, id, &[], &[])?;
                maps.services
                    .set(u32::from(id), Service::default(), 0)
                    .map_err(DatapathError::system("cannot write map SERVICES"))?;
            }
        }
        self.pools.remove_unwritten(maps)
    }

    pub(super) fn cookie_slot(&self) -> u32 {
        self.settings.slot(self.clock.jiffies())
    }

    pub(super) fn refresh_clock(&mut self, maps: &mut Maps) -> Result<(), DatapathError> {
        self.clock = Clock::measure()?;
        // Several fields change and a packet may see some of them, so a drift that no one notices is left alone.
        if self.clock.drift(&self.settings) < Duration::from_millis(500) {
            return Ok(());
        }
        self.clock.fill(&mut self.settings);
        self.write_settings(maps)
    }

    pub(super) fn write_settings(&self, maps: &mut Maps) -> Result<(), DatapathError> {
        maps.settings.set(0, self.settings, 0).map_err(DatapathError::system("cannot write map SETTINGS"))
    }

    fn write_endpoints(&mut self, maps: &mut Maps, endpoints: &[Endpoint]) -> Result<(), DatapathError> {
        let next = self.endpoints.write(maps, self.settings.live, endpoints)?;
        // The seed first, then the half that it belongs to.
        self.settings.endpoint_seed[next.half] = next.seed;
        self.write_settings(maps)?;
        self.settings.live = next.live;
        self.write_settings(maps)?;
        self.endpoints.flipped();
        Ok(())
    }

    fn write_service(
        &mut self,
        maps: &mut Maps,
        id: u16,
        mut service: Service,
        maglev: Option<&[u16]>,
    ) -> Result<(), DatapathError> {
        let beyond = |kind, index, limit, name| Err(DatapathError::Beyond { kind, index, limit, name });
        if id == 0 || u32::from(id) >= self.limits.services {
            return beyond("service id", id.into(), self.limits.services, "services");
        }
        let before = maps
            .services
            .get(&u32::from(id), 0)
            .map_err(DatapathError::system(format!("cannot read map SERVICES at {id}")))?;
        (service.maglev_base, service.maglev_size) = match maglev {
            None => (before.maglev_base, before.maglev_size),
            // The table that is live stays until there is a new one; nobody looks at it meanwhile.
            Some([]) => (before.maglev_base, 0),
            Some(table) if table.len() > self.limits.maglev_size as usize => {
                return beyond("table of size", table.len() as u32, self.limits.maglev_size, "maglev_size");
            }
            Some(table) => {
                let blocks = self.limits.maglev_blocks();
                let first = u32::from(id) * 2 * blocks;
                let tables = self.maglev.entry(id).or_default();
                (tables.write(maps, (first, blocks), before.maglev_base, table)?, table.len() as u32)
            }
        };
        self.services.insert(id, service.learned_ticks);
        maps.services
            .set(u32::from(id), service, 0)
            .map_err(DatapathError::system(format!("cannot write map SERVICES at {id}")))?;
        if let Some(tables) = self.maglev.get_mut(&id).filter(|_| maglev.is_some()) {
            tables.flipped();
        }
        Ok(())
    }

    fn write_backend(
        &mut self,
        maps: &mut Maps,
        homes: &Homes,
        slot: u16,
        backend: &Backend,
    ) -> Result<(), DatapathError> {
        if u32::from(slot) >= self.limits.backends {
            let (kind, name) = ("backend slot", "backends");
            return Err(DatapathError::Beyond {
                kind,
                index: slot.into(),
                limit: self.limits.backends,
                name,
            });
        }
        let before = maps.backend(slot)?;
        let another = identity(&before) != identity(backend);
        if another && *backend != Backend::default() {
            maps.clear_backend_counters(slot)?;
        }
        self.backends.insert(slot);
        maps.backends
            .set(u32::from(slot), backend, 0)
            .map_err(DatapathError::system(format!("cannot write map BACKENDS at {slot}")))?;
        if before != Backend::default() && another {
            // Who has the slot now never handed out a key of those. What comes late from the former one finds it gone.
            let forgotten = homes.forget_slot(slot);
            if forgotten > 0 {
                tracing::info!(slot, forgotten, "forgot the sessions learned from a backend that is gone");
            }
        }
        Ok(())
    }
}

/// Who a backend is, whatever becomes of it.
fn identity(backend: &Backend) -> (u16, Addr, Be16) {
    (backend.service, backend.addr, backend.port)
}

/// The settings that were asked for, with our own fields as they are.
fn own_fields(own: &Settings, asked: &Settings) -> Settings {
    Settings {
        live: own.live,
        endpoint_seed: own.endpoint_seed,
        quic_live: own.quic_live,
        quic_seed: own.quic_seed,
        flow_seed: own.flow_seed,
        flow_group_mask: own.flow_group_mask,
        stash_mask: own.stash_mask,
        home_group_mask: own.home_group_mask,
        home_key: own.home_key,
        name_key: own.name_key,
        slot_base: own.slot_base,
        slot_jiffies: own.slot_jiffies,
        slot_mult: own.slot_mult,
        tick_shift: own.tick_shift,
        ..*asked
    }
}

fn random<const N: usize>() -> Result<[u64; N], DatapathError> {
    let mut words = [0; N];
    getrandom::fill(bytemuck::cast_slice_mut(&mut words))
        .map_err(|error| error.to_string())
        .map_err(DatapathError::system("the kernel gives no random numbers"))?;
    Ok(words)
}
