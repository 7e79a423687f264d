//! How lbctl and lbd speak: one JSON object a line over a Unix socket, a [`Request`] answered by a [`Response`].
//! What stands here is data; [`server`] and [`client`] carry it, the daemon gives the answers.

pub mod client;
pub mod server;
#[cfg(test)]
mod tests;
mod view;
mod wire;

pub use view::{
    BackendView, CounterView, DecisionView, ExplainView, FlowView, FlowsView, InterfaceView, LearnedListView,
    LearnedView, MapView, PhaseView, ServiceView, SessionView, ShareView, StatsView, StatusView, StoreView,
    TokenView, TraceView,
};
pub use wire::{MAX_LINE, VERSION, WireError, decode, encode};

use crate::session::Given;
use crate::session::store::archive::{Checked, Exported, Import, Imported};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// What lbctl can ask for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Status {},
    ServiceList {},
    BackendList {
        service: Option<String>,
    },
    /// Sets what the operator wants of a backend.
    BackendSet {
        backend: String,
        admin: Admin,
    },
    /// Ends a managed server gracefully and starts it anew; answered when it is ready.
    BackendRestart {
        backend: String,
    },
    /// Ends a managed server as a crash would. It comes back after `down_for_ms`, or at once.
    BackendKill {
        backend: String,
        down_for_ms: Option<u64>,
    },
    /// Frees the slot of a backend that no configuration has any more.
    BackendForget {
        service: String,
        backend: String,
    },
    /// Learned sessions.
    SessionList {
        service: Option<String>,
        backend: Option<String>,
        limit: usize,
    },
    SessionShow {
        /// Its token; or the key or tag of a learned one.
        token: String,
        /// Where that key is looked for; everywhere, without.
        service: Option<String>,
    },
    /// Ends a session everywhere at once, or forgets where a learned one is at home.
    SessionEnd {
        /// Its token, or its id; or the key or tag of a learned one.
        session: String,
        service: Option<String>,
    },
    FlowList {
        service: Option<String>,
        backend: Option<String>,
        limit: usize,
    },
    Stats {
        service: Option<String>,
    },
    Explain {
        token: String,
        service: Option<String>,
    },
    ExplainName {
        /// The server's name that a TLS client asks for; none when it is empty.
        name: String,
        service: Option<String>,
        client: Option<IpAddr>,
    },
    /// A new key signs tokens from now on, or the one that was prepared; the older ones still verify.
    KeysRotate {},
    /// A new key verifies from now on, and signs after the next rotation.
    KeysPrepare {},
    /// Reads the key file again.
    KeysReload {},
    /// Wants to be told of steering decisions from the answer on, until the connection ends.
    Trace {
        service: Option<String>,
        client: Option<IpAddr>,
    },
    /// Goes through the whole store, or fills it, step by step.
    Store {
        step: StoreRequest,
    },
}

/// How long lbctl is kept waiting for a server's restart.
pub const RESTART_PATIENCE: Duration = Duration::from_secs(30);
/// How long lbctl is kept waiting for a backend that shall be ready.
pub const READY_PATIENCE: Duration = Duration::from_secs(10);
/// What a step on the whole store may take: a slice of records, from the disk or from another host.
const STEP_PATIENCE: Duration = Duration::from_secs(30);

impl Request {
    /// How long the answer may take when all is well.
    pub fn takes(&self) -> Duration {
        match self {
            Self::BackendRestart { .. } => RESTART_PATIENCE,
            Self::BackendSet { admin: Admin::Ready, .. } => READY_PATIENCE,
            Self::Store { .. } => STEP_PATIENCE,
            _ => Duration::ZERO,
        }
    }
}

/// A step on the whole store. Each begins where the one before said that it ended.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum StoreRequest {
    Look {},
    Check {
        from: Option<String>,
    },
    Export {
        from: Option<String>,
    },
    /// Before the first import: what the other store had given out.
    Adopt {
        given: Given,
    },
    /// Lines with their numbers.
    Import {
        lines: Vec<(u64, String)>,
        how: Import,
    },
}

/// What lbd says.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "snake_case")]
pub enum Response {
    Status(Box<StatusView>),
    /// In place of the status, while lbd starts or stops.
    Phase(PhaseView),
    Services {
        services: Vec<ServiceView>,
    },
    Backends {
        backends: Vec<BackendView>,
    },
    Session(Box<SessionView>),
    Learned(Box<LearnedView>),
    LearnedSessions(LearnedListView),
    Flows(FlowsView),
    Stats(StatsView),
    Explain(Box<ExplainView>),
    Traced(TraceView),
    Store(Box<StoreView>),
    StoreChecked(Checked),
    StoreExported(Exported),
    StoreImported(Imported),
    Done {
        message: String,
    },
    Refused(Refused),
}

/// Why something was not done, and what to do about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{reason}{}", help.as_ref().map_or(String::new(), |help| format!("\n{help}")))]
pub struct Refused {
    pub reason: String,
    pub help: Option<String>,
}

impl Refused {
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), help: None }
    }

    pub fn with_help(reason: impl Into<String>, help: impl Into<String>) -> Self {
        Self { reason: reason.into(), help: Some(help.into()) }
    }
}

/// What the operator wants of a backend; whether it is up is another matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Admin {
    /// Takes everything.
    Ready,
    /// Takes only sessions that live there.
    Drain,
    /// Takes nothing.
    Maint,
}

impl Admin {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
        }
    }
}

impl fmt::Display for Admin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
