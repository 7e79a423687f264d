//! Every map: key → value, who writes, who reads. Sizes are placeholders; the daemon sets them when it loads.

use crate::bounds::barrier_var;
use crate::header::MAX_HEADER;
use crate::packet::OptionArea;
use crate::token::quic::Scratch;
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, HashMap, PerCpuArray, PerCpuHashMap, RingBuf};
use lb_common::backend::{Abilities, Backend};
use lb_common::counter::{BackendCounters, COUNTER_ROOM, ServiceCounters};
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

/// Values begin on a page, so that a cache line never straddles, and user space reads them without system calls.
const MMAPABLE: u32 = 1 << 10;
/// Memory is taken as entries come: what few services use costs nothing by its size alone.
const NO_PREALLOCATION: u32 = 1;

/// 0 → settings. Written by the daemon.
#[map]
pub(crate) static SETTINGS: Array<Settings> = Array::with_max_entries(1, 0);

/// Hash bucket → the endpoints in it; two halves. Written by the daemon.
#[map]
pub(crate) static ENDPOINTS: Array<Bucket> = Array::with_max_entries(2 * 16_384, 0);

/// Service id → service. Written by the daemon.
#[map]
pub(crate) static SERVICES: Array<Service> = Array::with_max_entries(16, 0);

/// Slot → backend. Written by the daemon.
#[map]
pub(crate) static BACKENDS: Array<Backend> = Array::with_max_entries(1024, 0);

/// Block → 32 entries of a Maglev table; two tables a service, and behind them two a pool. Written by the daemon.
#[map]
pub(crate) static MAGLEV: Array<Block> = Array::with_max_entries(16 * 2 * 2049 + 129 * 2 * 128, 0);

/// Service and name of a server → the pool of the backends that are listed for it. Written by the daemon.
#[map]
pub(crate) static NAMES: HashMap<Name, u32> = HashMap::with_max_entries(2048, NO_PREALLOCATION);

/// Pool → its Maglev table. Written by the daemon.
#[map]
pub(crate) static POOLS: Array<Pool> = Array::with_max_entries(129, 0);

/// Flow index → flow. Entries are created here; the daemon frees expired ones.
#[map]
pub(crate) static FLOWS: Array<Flow> = Array::with_max_entries(131_072, MMAPABLE);

/// Flow index → whose request the flow's client sent last, for learned services. Written here alone.
#[map]
pub(crate) static FLOW_KEYS: Array<Asked> = Array::with_max_entries(131_072, 0);

/// Index → where a learned session is at home (see [`lb_common::home`]). Created here; the daemon forgets those of a backend
/// that is removed.
#[map]
pub(crate) static HOMES: Array<Home> = Array::with_max_entries(65_536, MMAPABLE);

/// Flow index, modulo their number → the line that a response's segment was cut in. Written here alone.
#[map]
pub(crate) static TAILS: Array<Tail> = Array::with_max_entries(1024, 0);

/// Slot → flows that live there. Counted here, corrected by the daemon when it frees expired ones.
#[map]
pub(crate) static LIVE: Array<u64> = Array::with_max_entries(1024, MMAPABLE);

/// Slot → flows that wait for its answer to a SYN. Counted as [`LIVE`] is.
#[map]
pub(crate) static WAITING: Array<u64> = Array::with_max_entries(1024, MMAPABLE);

/// Service id → how much of the tables it uses. Counted as [`LIVE`] is.
#[map]
pub(crate) static USES: Array<Use> = Array::with_max_entries(16, MMAPABLE);

/// Group of the flow table → not 0 when flows that it is the first group of may stand in their other one. Raised here; the daemon
/// makes it 0 again when there are none.
#[map]
pub(crate) static OVERFLOWS: Array<u64> = Array::with_max_entries(16_384, MMAPABLE);

/// Steering decisions ([`lb_common::trace::Decision`]) for whoever listens. Written here, read by the daemon.
#[map]
pub(crate) static TRACE: RingBuf = RingBuf::with_byte_size(262_144, 0);

/// Stash index → what a client sent before its backend answered; behind those, processor → a request that is only looked at.
/// Written here alone.
#[map]
pub(crate) static STASHES: Array<Stash> = Array::with_max_entries(1024, MMAPABLE);

/// Slot → what the backend's SYN-ACKs offered. Written here, read by the daemon.
#[map]
pub(crate) static ABILITIES: Array<Abilities> = Array::with_max_entries(1024, 0);

/// Service id × 8 + rotation → how server ids are read out of QUIC connection ids. Written by the daemon.
#[map]
pub(crate) static QUIC_CONFIGS: Array<quic_lb::Config> = Array::with_max_entries(16 * quic_lb::ROTATIONS, 0);

/// Hash bucket → the server ids in it, and whose they are; two halves. Written by the daemon.
#[map]
pub(crate) static QUIC_SERVERS: Array<servers::Bucket> =
    Array::with_max_entries(2 * 1024 * servers::BUCKETS, 0);

/// 0 → a QUIC connection id while it is read. Of this processor.
#[map]
pub(crate) static QUIC: PerCpuArray<Scratch> = PerCpuArray::with_max_entries(1, 0);

/// Service id (0: none) → counters of this processor.
#[map]
pub(crate) static SERVICE_COUNTERS: PerCpuArray<ServiceCounters> = PerCpuArray::with_max_entries(16, 0);

/// Slot → counters of this processor.
#[map]
pub(crate) static BACKEND_COUNTERS: PerCpuArray<BackendCounters> = PerCpuArray::with_max_entries(1024, 0);

/// 0 → whose frames the programs of the tracepoints count, and where they find that. Written by the daemon.
#[map]
pub(crate) static WATCH: Array<Watch> = Array::with_max_entries(1, 0);

/// Index of an interface that carries `lb` → 1. Written by the daemon.
#[map]
pub(crate) static OWN_INTERFACES: HashMap<u32, u32> = HashMap::with_max_entries(2048, 0);

/// Interface and cause → frames that the kernel dropped after a verdict, counted by this processor.
#[map]
pub(crate) static LOST: PerCpuHashMap<Lost, u64> = PerCpuHashMap::with_max_entries(1024, 0);

/// 0 → room for the options of one header, too large for the stack beside everything else. Of this processor.
#[map]
pub(crate) static AREA: PerCpuArray<OptionArea> = PerCpuArray::with_max_entries(1, 0);

/// 0 → what is looked at of a datagram or a response. Of this processor.
#[map]
pub(crate) static SCRATCH: PerCpuArray<Stash> = PerCpuArray::with_max_entries(1, 0);

/// 0 → a header that the joint composes: on the stack the verifier would want every field aligned. Of this processor.
#[map]
pub(crate) static HEADER: PerCpuArray<[u8; MAX_HEADER]> = PerCpuArray::with_max_entries(1, 0);

/// The settings; absent only if the daemon never wrote them, when every packet passes.
#[inline(always)]
pub(crate) fn settings() -> Option<&'static Settings> {
    SETTINGS.get(0)
}

/// Adds one to the counter of a service that has this index.
#[inline(always)]
pub(crate) fn count(service: u16, counter: u32) {
    if let Some(counters) = SERVICE_COUNTERS.get_ptr_mut(u32::from(service)) {
        let index = barrier_var(u64::from(counter)) as usize & (COUNTER_ROOM - 1);
        // SAFETY: the value belongs to this processor while the program runs; the index is masked to its room.
        unsafe { *(&raw mut (*counters).0).cast::<u64>().add(index) += 1 };
    }
}

/// Changes this processor's counters of a backend.
#[inline(always)]
pub(crate) fn count_backend(slot: u16, change: impl FnOnce(&mut BackendCounters)) {
    if let Some(counters) = BACKEND_COUNTERS.get_ptr_mut(u32::from(slot)) {
        // SAFETY: the value belongs to this processor while the program runs.
        change(unsafe { &mut *counters });
    }
}
