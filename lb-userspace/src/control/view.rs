//! What lbctl shows: the answers' contents, in the words and units that people and programs read.

use super::Admin;
use crate::session::{Given, StoreState};
use serde::{Deserialize, Serialize};

/// The daemon as a whole.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct StatusView {
    /// Version of lbd.
    pub version: String,
    pub pid: u32,
    pub uptime_seconds: u64,
    pub config: String,
    /// Whether the maps were taken over from an earlier lbd.
    pub took_over: bool,
    pub interfaces: Vec<InterfaceView>,
    pub services: usize,
    pub backends: usize,
    /// Backends that take everything.
    pub backends_ready: usize,
    /// Those that the configuration does not have any more, and at which something lives; not among `backends`.
    pub backends_leaving: usize,
    pub flows: usize,
    pub flows_limit: u32,
    /// Sessions in the database; `None` when it did not tell in time.
    pub sessions: Option<u64>,
    /// Sessions that were not begun, because of the service's bounds, since lbd was started.
    #[serde(default)]
    pub sessions_refused: u64,
    /// Which key signs new tokens...
    pub token_key: u8,
    /// ...and how many verify.
    pub token_keys: u32,
    pub store: StoreState,
    /// What is wrong and can be mended by whoever runs lbd: one sentence each.
    #[serde(default)]
    pub warnings: Vec<String>,
    /// How much of the tables each service uses.
    #[serde(default)]
    pub shares: Vec<ShareView>,
    /// The maps of the programs.
    pub maps: Vec<MapView>,
    /// Bytes that all of them take.
    pub map_bytes: u64,
}

/// What an lbd does that does not serve yet, or not any more.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PhaseView {
    pub version: String,
    pub pid: u32,
    /// `starting` or `stopping`.
    pub phase: String,
    /// What it waits for.
    pub waits_for: String,
    /// For how long.
    pub seconds: u64,
}

/// How much of the tables a service uses, and how much it may.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ShareView {
    pub service: String,
    pub flows: u64,
    pub max_flows: u32,
    /// Flows that wait for a backend.
    pub pending: u64,
    pub max_pending: u32,
    /// Flows that were refused because of these bounds since the counters began.
    pub refused: u64,
}

/// A map of the programs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct MapView {
    pub name: String,
    /// What it has room for; none where it has bytes only.
    pub entries: Option<u64>,
    /// Entries that are taken, where that is known.
    pub used: Option<u64>,
    pub bytes: u64,
}

/// A store as a whole.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct StoreView {
    pub state: StoreState,
    /// `None` when it did not tell in time.
    pub sessions: Option<u64>,
    pub given: Given,
}

/// An interface that carries the programs.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct InterfaceView {
    pub name: String,
    /// `driver` or `generic`.
    pub mode: String,
    /// How `lb_joint` is attached: `tcx` or `clsact`.
    #[serde(default)]
    pub joint: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ServiceView {
    pub name: String,
    pub id: u16,
    pub vip: String,
    pub protocol: String,
    pub affinity: String,
    pub backends: usize,
    /// Those that take everything...
    pub ready: usize,
    /// ...and those that take the sessions that live there.
    pub draining: usize,
    /// Those that the configuration does not have any more; not among `backends`.
    pub leaving: usize,
    /// What clients are told that every backend can do: some of `window_scale`, `sack`, `timestamps`.
    pub promises: Vec<String>,
    /// In bytes.
    pub mss: u16,
    pub maglev_size: u32,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct BackendView {
    pub service: String,
    pub name: String,
    pub slot: u16,
    pub addr: String,
    /// Whether lbd runs it.
    pub managed: bool,
    /// `ready`, `drain`, `maint`, `down`; or `leaving`, when the configuration does not have it any more.
    pub state: String,
    /// What the operator wants.
    pub admin: Admin,
    /// What the checks say: `up`, `down` or `unknown`.
    pub health: String,
    /// Why it is down, or leaving.
    pub reason: Option<String>,
    /// Flows that live there.
    pub flows: u64,
    pub weight: u16,
    /// Names of servers that it is listed for.
    #[serde(default)]
    pub sni: Vec<String>,
    pub epoch: u32,
    /// How long it has been in that state.
    pub since_seconds: u64,
    /// Where frames for it go.
    pub next_hop: Option<String>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct TokenView {
    pub session: String,
    pub service: String,
    /// Name of the backend, when there is one in that slot.
    pub backend: Option<String>,
    pub slot: u16,
    pub epoch: u32,
    /// The key that signed it.
    pub key: u8,
}

/// A token, and what the database has of its session.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct SessionView {
    pub token: TokenView,
    /// False when the database has no such session, or it has expired.
    pub found: bool,
    pub version: Option<u64>,
    /// The instance that may answer from its cache: backend and epoch.
    pub owner: Option<String>,
    pub created_unix_ms: Option<u64>,
    pub expires_unix_ms: Option<u64>,
    pub state: Option<serde_json::Value>,
}

/// Where a session is at home whose key the backend handed out. The key itself is not kept.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LearnedView {
    /// Keyed hash of service and key: 16 hexadecimal digits.
    pub tag: String,
    pub service: String,
    pub backend: String,
    /// Since a client last asked for it.
    pub idle_ms: u64,
    /// When it is forgotten unless one does.
    pub forgotten_in_ms: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct LearnedListView {
    pub sessions: Vec<LearnedView>,
    /// How many there are; `sessions` may have been cut off at the limit.
    pub total: usize,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct FlowView {
    pub service: String,
    pub backend: String,
    pub client: String,
    pub state: String,
    /// Since the client last sent something.
    pub idle_ms: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct FlowsView {
    pub flows: Vec<FlowView>,
    /// How many there are; `flows` may have been cut off at the limit.
    pub total: usize,
}

/// One named counter.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct CounterView {
    /// Name of the service, `service/backend`, `interface NAME` for frames that the kernel dropped after the verdict, or `-` for
    /// packets that belong to no service.
    pub of: String,
    pub counter: String,
    pub value: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StatsView {
    pub counters: Vec<CounterView>,
}

/// Where a request with a token would go, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ExplainView {
    pub service: String,
    /// What the token says, if it verifies.
    pub token: Option<TokenView>,
    /// `hit`, `stale`, `redispatched`, `unknown`, `hashed`, `new`; `unavailable`, `reset` or `dropped` where nobody takes it.
    pub verdict: String,
    /// The backend that would get it; `None` when that is chosen by weight, or there is none.
    pub backend: Option<String>,
    /// One sentence.
    pub why: String,
    /// The counters that would grow.
    pub counters: Vec<String>,
}

/// Steering decisions, in the order in which they were made.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct TraceView {
    pub decisions: Vec<DecisionView>,
    /// How many were lost since the trace began.
    pub lost: u64,
}

/// One steering decision.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DecisionView {
    /// Microseconds since 1970.
    pub at_unix_us: u64,
    pub service: String,
    /// Address and port.
    pub client: String,
    /// What was found where the service's key may stand: `valid`, `invalid`, `absent`, `hashed`, ...
    pub key: String,
    /// The backend that was chosen, if there was one.
    pub backend: Option<String>,
    /// The counter that says why.
    pub reason: String,
}
