//! The maps of a loaded `lb`: a [`Setup`] is written into them, counters and flows are read out.

use crate::object::Table;
use crate::setup::Setup;
use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData, PerCpuArray, RingBuf};
use lb_common::backend::{Abilities, Backend};
use lb_common::counter::{BackendCounters, COUNTERS, Counter, ServiceCounters};
use lb_common::endpoint::{self, Bucket};
use lb_common::flow::{Flow, FlowState, Use};
use lb_common::home::{Asked, FREE, Home};
use lb_common::maglev::{BLOCK, Block, NOBODY};
use lb_common::name::{self, Name, Pool};
use lb_common::quic_lb::{self, servers};
use lb_common::service::Service;
use lb_common::settings::Settings;
use lb_common::stash::Stash;
use lb_common::trace::Decision;

/// Handles on every map.
pub struct Maps {
    settings: Array<MapData, Settings>,
    endpoints: Array<MapData, Bucket>,
    services: Array<MapData, Service>,
    backends: Array<MapData, Backend>,
    maglev: Array<MapData, Block>,
    names: HashMap<MapData, Name, u32>,
    pools: Array<MapData, Pool>,
    flows: Array<MapData, Flow>,
    homes: Array<MapData, Home>,
    flow_keys: Array<MapData, Asked>,
    stashes: Array<MapData, Stash>,
    live: Array<MapData, u64>,
    waiting: Array<MapData, u64>,
    uses: Array<MapData, Use>,
    overflows: Array<MapData, u64>,
    trace: RingBuf<MapData>,
    service_counters: PerCpuArray<MapData, ServiceCounters>,
    backend_counters: PerCpuArray<MapData, BackendCounters>,
    abilities: Array<MapData, Abilities>,
    quic_configs: Array<MapData, quic_lb::Config>,
    quic_servers: Array<MapData, servers::Bucket>,
    /// The half of the doubled tables that the next [`Maps::apply`] fills.
    half: u32,
}

/// Counters summed over services and processors.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Counts([u64; COUNTERS]);

impl Maps {
    /// Takes the maps out of a loaded object.
    pub fn take(ebpf: &mut Ebpf) -> Result<Self> {
        fn map<T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(
            ebpf: &mut Ebpf,
            name: &str,
        ) -> Result<T> {
            let map = ebpf.take_map(name).ok_or_else(|| anyhow!("the object has no map {name}"))?;
            T::try_from(map).with_context(|| format!("map {name} is of another type or size"))
        }
        Ok(Self {
            settings: map(ebpf, "SETTINGS")?,
            endpoints: map(ebpf, "ENDPOINTS")?,
            services: map(ebpf, "SERVICES")?,
            backends: map(ebpf, "BACKENDS")?,
            maglev: map(ebpf, "MAGLEV")?,
            names: map(ebpf, "NAMES")?,
            pools: map(ebpf, "POOLS")?,
            flows: map(ebpf, "FLOWS")?,
            homes: map(ebpf, "HOMES")?,
            flow_keys: map(ebpf, "FLOW_KEYS")?,
            stashes: map(ebpf, "STASHES")?,
            live: map(ebpf, "LIVE")?,
            waiting: map(ebpf, "WAITING")?,
            uses: map(ebpf, "USES")?,
            overflows: map(ebpf, "OVERFLOWS")?,
            trace: map(ebpf, "TRACE")?,
            service_counters: map(ebpf, "SERVICE_COUNTERS")?,
            backend_counters: map(ebpf, "BACKEND_COUNTERS")?,
            abilities: map(ebpf, "ABILITIES")?,
            quic_configs: map(ebpf, "QUIC_CONFIGS")?,
            quic_servers: map(ebpf, "QUIC_SERVERS")?,
            half: 0,
        })
    }

    /// Makes the maps say what the setup says; packets meanwhile see the old state or the new.
    pub fn apply(&mut self, setup: &Setup) -> Result<()> {
        for (slot, backend) in setup.backends.iter().enumerate() {
            self.backends.set(slot as u32, backend, 0)?;
        }
        for (i, service) in setup.services.iter().enumerate() {
            let id = i as u16 + 1;
            let table = setup.maglev(id);
            let maglev_base =
                self.write_table(setup.sizes.maglev_base(Table::Service(id), self.half), &table)?;
            let (names, wildcards) = setup.names(id);
            let maglev_size = table.len() as u32;
            let service = Service { maglev_base, maglev_size, names, wildcards, ..*service };
            self.services.set(u32::from(id), service, 0)?;
        }
        for (i, (service, listed, slots)) in setup.listed.iter().enumerate() {
            let index = i as u32 + 1;
            let table = setup.table(|slot, _| slots.contains(&slot));
            let base = self.write_table(setup.sizes.maglev_base(Table::Pool(index), self.half), &table)?;
            self.pools.set(index, Pool { base, size: table.len() as u32, id: 0 }, 0)?;
            let hash = name::hash(&setup.settings.name_key, listed.text.as_bytes());
            let name = Name { hash, service: *service, kind: listed.kind, _pad: 0 };
            self.names.insert(name, index, 0)?;
        }
        for (service, config) in &setup.quic {
            let index = u32::from(*service) * quic_lb::ROTATIONS + u32::from(config.rotation);
            self.quic_configs.set(index, config, 0)?;
        }
        let buckets = setup.sizes.server_buckets();
        let (quic_seed, table) = servers::build(setup.quic_servers.iter().copied(), buckets as usize, 1)?;
        let first = self.half * buckets;
        for (i, bucket) in table.iter().enumerate() {
            self.quic_servers.set(first + i as u32, bucket, 0)?;
        }
        let quic_live = u64::from(first) | (table.len() as u64 - 1) << 32;
        let buckets = setup.sizes.buckets;
        let (seed, table) = endpoint::build(&setup.endpoints(), buckets as usize, 1)?;
        let first = self.half * buckets;
        for (i, bucket) in table.iter().enumerate() {
            self.endpoints.set(first + i as u32, bucket, 0)?;
        }
        // The seeds of the halves that are not live first, then the words that make them live.
        let mut settings = self.settings.get(&0, 0)?;
        settings.endpoint_seed[self.half as usize] = seed;
        settings.quic_seed[self.half as usize] = quic_seed;
        let Settings { endpoint_seed, quic_seed, .. } = settings;
        self.settings.set(0, settings, 0)?;
        let live = u64::from(first) | (table.len() as u64 - 1) << 32;
        self.settings.set(0, Settings { live, endpoint_seed, quic_live, quic_seed, ..setup.settings }, 0)?;
        self.half ^= 1;
        Ok(())
    }

    /// For maps that somebody else empties: what was told is forgotten, and the next [`Maps::apply`] begins as the first one.
    pub(crate) fn forget_tables(&mut self) {
        self.half = 0;
        while self.trace.next().is_some() {}
    }

    /// Writes a Maglev table from that block on, which it returns.
    fn write_table(&mut self, base: u32, table: &[u16]) -> Result<u32> {
        for (block, entries) in table.chunks(BLOCK).enumerate() {
            let mut value = Block([NOBODY; BLOCK]);
            value.0[..entries.len()].copy_from_slice(entries);
            self.maglev.set(base + block as u32, value, 0)?;
        }
        Ok(base)
    }

    /// Entries of the flow table that are in use.
    pub fn flows(&self) -> Result<Vec<Flow>> {
        let mut flows = Vec::new();
        for flow in self.flows.iter() {
            let flow = flow?;
            if FlowState::from_bits(flow.head.state) != FlowState::Free {
                flows.push(flow);
            }
        }
        Ok(flows)
    }

    /// The flow at an index of the table.
    pub fn flow(&self, index: u32) -> Result<Flow> {
        Ok(self.flows.get(&index, 0)?)
    }

    /// Writes a flow at an index of the table: for tables that are full, or flows in a state that takes long to reach.
    pub fn set_flow(&mut self, index: u32, flow: &Flow) -> Result<()> {
        Ok(self.flows.set(index, flow, 0)?)
    }

    /// Learned sessions, by their index.
    pub fn homes(&self) -> Result<Vec<(u32, Home)>> {
        let mut homes = Vec::new();
        for (i, home) in self.homes.iter().enumerate() {
            let home = home?;
            if home.tag != FREE {
                homes.push((i as u32, home));
            }
        }
        Ok(homes)
    }

    /// Writes an entry of the table of learned sessions.
    pub fn set_home(&mut self, index: u32, home: &Home) -> Result<()> {
        Ok(self.homes.set(index, home, 0)?)
    }

    /// Whose request the client of the flow at an index sent last.
    pub fn asked(&self, index: u32) -> Result<Asked> {
        Ok(self.flow_keys.get(&index, 0)?)
    }

    /// Writes that, as many requests later.
    pub fn set_asked(&mut self, index: u32, asked: &Asked) -> Result<()> {
        Ok(self.flow_keys.set(index, asked, 0)?)
    }

    /// Index of the flow of a client's port.
    pub fn index_of(&self, port: u16) -> Result<u32> {
        for index in 0..self.flows.len() {
            let flow = self.flow(index)?;
            if flow.head.state != 0 && flow.head.client_port.get() == port {
                return Ok(index);
            }
        }
        anyhow::bail!("no flow of port {port} is in the table")
    }

    /// Writes a stash: as another processor may have left it, or be using it.
    pub fn set_stash(&mut self, index: u32, stash: &Stash) -> Result<()> {
        Ok(self.stashes.set(index, stash, 0)?)
    }

    /// Stashes that have an owner.
    pub fn stashes(&self) -> Result<Vec<Stash>> {
        let mut stashes = Vec::new();
        for stash in self.stashes.iter() {
            let stash = stash?;
            if stash.owner != 0 {
                stashes.push(stash);
            }
        }
        Ok(stashes)
    }

    /// Every flow, by its index; free entries as well.
    pub fn table(&self) -> Result<Vec<Flow>> {
        Ok(self.flows.iter().collect::<Result<_, _>>()?)
    }

    /// Every stash, by its index; free ones as well.
    pub fn every_stash(&self) -> Result<Vec<Stash>> {
        Ok(self.stashes.iter().collect::<Result<_, _>>()?)
    }

    /// Makes every stash look taken by a flow that just began, or free again.
    pub fn fill_stashes(&mut self, owner: u64) -> Result<()> {
        for i in 0..self.stashes.len() {
            let stash = self.stashes.get(&i, 0)?;
            self.stashes.set(i, Stash { owner, ..stash }, 0)?;
        }
        Ok(())
    }

    /// Frees every flow and every stash.
    pub fn forget(&mut self) -> Result<()> {
        for i in 0..self.flows.len() {
            self.flows.set(i, Flow::default(), 0)?;
        }
        for slot in 0..self.live.len() {
            self.live.set(slot, 0, 0)?;
            self.waiting.set(slot, 0, 0)?;
        }
        for id in 0..self.uses.len() {
            self.uses.set(id, Use::default(), 0)?;
        }
        for group in 0..self.overflows.len() {
            self.overflows.set(group, 0, 0)?;
        }
        self.fill_stashes(0)
    }

    /// How many live flows a backend has.
    pub fn live(&self, slot: u16) -> Result<u64> {
        Ok(self.live.get(&u32::from(slot), 0)?)
    }

    /// How many flows wait for a backend's answer.
    pub fn waiting(&self, slot: u16) -> Result<u64> {
        Ok(self.waiting.get(&u32::from(slot), 0)?)
    }

    /// How much of the tables a service uses.
    pub fn used(&self, service: u16) -> Result<Use> {
        Ok(self.uses.get(&u32::from(service), 0)?)
    }

    /// Makes a service use so much.
    pub fn set_used(&mut self, service: u16, used: Use) -> Result<()> {
        Ok(self.uses.set(u32::from(service), used, 0)?)
    }

    /// Whether a group of the flow table is marked as overflowed.
    pub fn has_overflowed(&self, group: u32) -> Result<bool> {
        Ok(self.overflows.get(&group, 0)? != 0)
    }

    /// Every decision that was told since it was asked last.
    pub fn told(&mut self) -> Vec<Decision> {
        std::iter::from_fn(|| self.trace.next().map(|record| bytemuck::pod_read_unaligned(&record))).collect()
    }

    pub fn abilities(&self, slot: u16) -> Result<Abilities> {
        Ok(self.abilities.get(&u32::from(slot), 0)?)
    }

    /// All counters, of packets that belong to no service too.
    pub fn counts(&self) -> Result<Counts> {
        let mut sum = [0; COUNTERS];
        for per_cpu in self.service_counters.iter() {
            for value in per_cpu?.iter() {
                sum.iter_mut().zip(value.0).for_each(|(sum, n)| *sum += n);
            }
        }
        Ok(Counts(sum))
    }

    pub fn backend_counts(&self, slot: u16) -> Result<BackendCounters> {
        let mut sum = [0u64; size_of::<BackendCounters>() / 8];
        for value in self.backend_counters.get(&u32::from(slot), 0)?.iter() {
            let words: [u64; size_of::<BackendCounters>() / 8] = bytemuck::cast(*value);
            sum.iter_mut().zip(words).for_each(|(sum, n)| *sum += n);
        }
        Ok(bytemuck::cast(sum))
    }
}

impl Counts {
    pub fn get(&self, counter: Counter) -> u64 {
        self.0[counter as usize]
    }

    /// What was counted since `earlier`: each counter that moved, by how much.
    pub fn since(&self, earlier: &Self) -> Vec<(Counter, u64)> {
        let moved = |counter: &Counter| (*counter, self.get(*counter) - earlier.get(*counter));
        Counter::ALL.iter().map(moved).filter(|(_, by)| *by > 0).collect()
    }
}

impl std::fmt::Debug for Counts {
    /// Those that are not zero, by name.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let counted = Counter::ALL.iter().filter(|c| self.get(**c) > 0);
        f.debug_map().entries(counted.map(|c| (c.name(), self.get(*c)))).finish()
    }
}
