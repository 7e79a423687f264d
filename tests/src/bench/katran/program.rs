//! Katran's program and its maps, filled as its own daemon fills them: services, servers, rings, and the connection table of this
//! processor.
//!
//! What stands where is what `katran/lib/bpf/balancer_{structs,consts,maps}.h` say; a map of another shape is refused.

use crate::bench::wrapper::{Measured, take};
use crate::object::load_program;
use crate::scene::LOCAL_MAC;
use anyhow::{Context, Result, ensure};
use aya::maps::{Array, ArrayOfMaps, HashMap, Map, MapData, PerCpuArray};
use aya::programs::{ProgramFd, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use aya_obj::generated::bpf_map_type::BPF_MAP_TYPE_LRU_HASH;
use std::net::SocketAddrV4;
use std::path::Path;

const PROGRAM: &str = "balancer_ingress";
/// Positions in the ring of a service.
const RING: u32 = 65_537;
/// Room for services, which the numbers of all other counters begin behind.
const MAX_VIPS: u32 = 512;
/// A service whose packets are steered by their connection ids.
const QUIC: u32 = 1 << 2;
/// A server's number is its place among the servers, from this.
const FIRST_SERVER: u32 = 1;
/// Bytes of an outer IPv4 header.
const OUTER: usize = 20;
const IPIP: u8 = 4;
const XDP_TX: u32 = 3;

/// A service.
#[derive(Clone, Copy)]
pub(super) struct Vip {
    pub(super) addr: SocketAddrV4,
    pub(super) protocol: u8,
    pub(super) quic: bool,
}

type FlowKey = [u8; 40];
type Lru = HashMap<MapData, FlowKey, [u64; 2]>;

/// See the module.
pub(super) struct Katran {
    program: ProgramFd,
    /// Services first, then the program's own.
    stats: PerCpuArray<MapData, [u64; 2]>,
    quic_stats: PerCpuArray<MapData, [u64; 13]>,
    tables: ArrayOfMaps<MapData, Lru>,
    /// The connection table of the processor that measures.
    table: Option<Lru>,
    entries: u32,
    vips: u32,
    ebpf: Ebpf,
}

/// What its counters are called here, and where they stand: half of an entry of its own counters.
const COUNTERS: [(&str, u32, usize); 9] = [
    ("packets", 16, 0),
    ("sent", 17, 0),
    ("dropped", 18, 0),
    ("passed", 19, 0),
    ("for a service", 0, 0),
    ("not in the table", 0, 1),
    ("not in the table: SYN", 1, 0),
    ("not in the table: mid-stream", 1, 1),
    ("without a table", 3, 0),
];

/// The same of QUIC packets.
const QUIC_COUNTERS: [(&str, usize); 6] = [
    ("by hash", 0),
    ("by connection id", 4),
    ("unknown server", 5),
    ("agrees with the table", 10),
    ("contradicts the table", 11),
    ("new in the table", 12),
];

impl Katran {
    /// Loads the object with these services, each with the same servers, and frames that leave for `router`.
    pub(super) fn new(
        object: &Path,
        vips: &[Vip],
        servers: &[SocketAddrV4],
        router: [u8; 6],
    ) -> Result<Self> {
        let mut ebpf =
            EbpfLoader::new().load_file(object).with_context(|| format!("loading {}", object.display()))?;
        let mut control: Array<_, [u8; 8]> = take(&mut ebpf, "ctl_array")?;
        let [a, b, c, d, e, f] = router;
        control.set(0, [a, b, c, d, e, f, 0, 0], 0)?;
        let mut reals: Array<_, [u8; 20]> = take(&mut ebpf, "reals")?;
        let mut ids: Array<_, u32> = take(&mut ebpf, "server_id_map")?;
        for (number, server) in (FIRST_SERVER..).zip(servers) {
            let mut real = [0; 20];
            real[..4].copy_from_slice(&server.ip().octets());
            reals.set(number, real, 0)?;
            ids.set(number, number, 0)?;
        }
        let mut map: HashMap<_, [u8; 20], [u32; 2]> = take(&mut ebpf, "vip_map")?;
        let mut rings: Array<_, u32> = take(&mut ebpf, "ch_rings")?;
        for (number, vip) in (0..).zip(vips) {
            let mut key = [0; 20];
            key[..4].copy_from_slice(&vip.addr.ip().octets());
            key[16..18].copy_from_slice(&vip.addr.port().to_be_bytes());
            key[18] = vip.protocol;
            map.insert(key, [if vip.quic { QUIC } else { 0 }, number], 0)?;
            for position in 0..RING {
                // Each server has its share of the ring; who stands where is the same to a packet.
                let server = FIRST_SERVER + position % servers.len() as u32;
                rings.set(number * RING + position, server, 0)?;
            }
        }
        let stats: PerCpuArray<_, _> = take(&mut ebpf, "stats")?;
        ensure!(stats.len() == 2 * MAX_VIPS, "this Katran has room for another number of services");
        let program = load_program(&mut ebpf, PROGRAM, Xdp::load)?.fd()?.try_clone()?;
        Ok(Self {
            program,
            stats,
            quic_stats: take(&mut ebpf, "quic_stats_map")?,
            tables: take(&mut ebpf, "lru_mapping")?,
            table: None,
            entries: 0,
            vips: vips.len() as u32,
            ebpf,
        })
    }

    /// Gives this processor an empty connection table of that many entries.
    pub(super) fn resize(&mut self, entries: u32) -> Result<()> {
        let (key, value) = (size_of::<FlowKey>() as u32, size_of::<[u64; 2]>() as u32);
        let shape = aya_obj::Map::new_from_params(BPF_MAP_TYPE_LRU_HASH as u32, key, value, entries, 0);
        let map = MapData::create(shape, "katran_lru", None).context("making Katran's connection table")?;
        let table: Lru = Map::LruHashMap(map).try_into()?;
        let here = nix::sched::sched_getcpu().context("asking which processor this is")?;
        self.tables.set(here as u32, &table, 0).context("giving Katran its connection table")?;
        self.table = Some(table);
        self.entries = entries;
        Ok(())
    }

    /// Whether a client's flow is in the connection table.
    pub(super) fn knows(&self, client: SocketAddrV4, vip: Vip) -> bool {
        let mut key = [0; size_of::<FlowKey>()];
        key[..4].copy_from_slice(&client.ip().octets());
        key[16..20].copy_from_slice(&vip.addr.ip().octets());
        key[32..34].copy_from_slice(&client.port().to_be_bytes());
        key[34..36].copy_from_slice(&vip.addr.port().to_be_bytes());
        key[36] = vip.protocol;
        self.table.as_ref().is_some_and(|table| table.get(&key, 0).is_ok())
    }

    /// Looks whether a frame for a service leaves as it should: to the router, in a tunnel to one of the servers, unchanged
    /// inside.
    pub(super) fn prove(&self, frame: &[u8], servers: &[SocketAddrV4], router: [u8; 6]) -> Result<()> {
        let mut out = vec![0; frame.len() + OUTER];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let result = self.xdp()?.test_run(options)?;
        ensure!(result.return_value == XDP_TX, "Katran does not send the frame on: {}", result.return_value);
        let (header, inner) = out.split_at(14 + OUTER);
        let to = &header[30..34];
        ensure!(
            header[..6] == router && header[6..12] == LOCAL_MAC && header[23] == IPIP,
            "Katran's frame is none of IP in IP: {header:x?}"
        );
        ensure!(servers.iter().any(|server| server.ip().octets() == to), "Katran sends to {to:?}");
        ensure!(*inner == frame[14..], "Katran changes what it sends on");
        Ok(())
    }

    /// Instructions that the verifier followed.
    pub(super) fn verified(&self) -> Result<u32> {
        Ok(self.xdp()?.info()?.verified_instruction_count().unwrap_or(0))
    }

    fn xdp(&self) -> Result<&Xdp> {
        let program = self.ebpf.program(PROGRAM);
        Ok(program.with_context(|| format!("Katran's object has no program {PROGRAM}"))?.try_into()?)
    }

    fn sum(&self, index: u32, half: usize) -> Result<u64> {
        Ok(self.stats.get(&index, 0)?.iter().map(|counter| counter[half]).sum())
    }
}

impl Measured for Katran {
    fn program(&self) -> &ProgramFd {
        &self.program
    }

    fn counts(&self) -> Result<Vec<(&'static str, u64)>> {
        let mut counts = Vec::new();
        for (name, index, half) in COUNTERS {
            counts.push((name, self.sum(MAX_VIPS + index, half)?));
        }
        let of_services: Result<Vec<u64>> = (0..self.vips).map(|vip| self.sum(vip, 0)).collect();
        counts.push(("to a server", of_services?.iter().sum()));
        let quic = self.quic_stats.get(&0, 0)?;
        let named = |(name, at): (_, usize)| (name, quic.iter().map(|counters| counters[at]).sum());
        counts.extend(QUIC_COUNTERS.into_iter().map(named));
        Ok(counts)
    }

    fn forget(&mut self) -> Result<()> {
        self.resize(self.entries)
    }
}
