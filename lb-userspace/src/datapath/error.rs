//! Why the data path cannot do what it was asked.

use super::{ClockError, LimitError};
use crate::net::NetError;
use std::path::PathBuf;

/// Why the data path cannot do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum DatapathError {
    #[error("loading packet programs needs root: start lbd with sudo, or as a system service")]
    NotRoot,
    #[error("kernel {release} cannot run the packet programs; it is without {lacks}")]
    Kernel { release: String, lacks: String },
    #[error(
        "this process may not load BPF programs: it needs CAP_SYS_ADMIN and CAP_NET_ADMIN; a container has them with \
         `--privileged`"
    )]
    Forbidden,
    #[error("kernel {release} refuses even the smallest XDP program: {reason}")]
    Trial { release: String, reason: String },
    #[error(transparent)]
    Limit(#[from] LimitError),
    #[error("no BPF object at {0}: build it with `cargo xtask build`, or name another with `--object`")]
    NoObject(PathBuf),
    #[error(
        "BPF object {path} has no {kind} `{name}`: it is not of this version; build it with `cargo xtask build`"
    )]
    Lacks { path: PathBuf, kind: &'static str, name: String },
    #[error(
        "map {name} in BPF object {path} has {what} {found} where this lbd expects {expected}: it is not of this \
         version; build it with `cargo xtask build`"
    )]
    ObjectMap { path: PathBuf, name: String, what: &'static str, found: u32, expected: u32 },
    #[error(
        "pinned map {pin} has {what} {found} where this configuration needs {expected}: change {limits} in \
         [limits] back, or give up all flows with `lbd detach FILE`, the configuration's file"
    )]
    PinnedMap { pin: PathBuf, what: &'static str, found: u32, expected: u32, limits: &'static str },
    #[error("the kernel's verifier refuses program `{name}`; its last words:\n{log}")]
    Verifier { name: String, log: String },
    #[error(
        "another lbd (process {pid}) works in {run_dir}: stop it, or give this one a `run_dir` of its own"
    )]
    Busy { run_dir: PathBuf, pid: String },
    #[error("there is no interface {0} in this network namespace; `ip link` shows those there are")]
    NoInterface(String),
    #[error("interface {0} is down: bring it up with `ip link set {0} up`")]
    InterfaceDown(String),
    #[error(
        "interface {interface} carries another XDP program (id {program}): remove it first, `ip link set dev \
         {interface} xdp off`"
    )]
    ForeignXdp { interface: String, program: u32 },
    #[error(
        "interface {interface}{} takes no frames from XDP programs in drivers: with `mode = \"auto\"` or \"generic\" all \
         interfaces run them in generic mode",
        if kind.is_empty() { String::new() } else { format!(", a {kind} device,") }
    )]
    TakesNoFrames { interface: String, kind: String },
    #[error("cannot attach program `{program}` to {interface}: {reason}")]
    Attach { interface: String, program: &'static str, reason: String },
    #[error("{kind} {index} is beyond the limit of {limit}: raise `{name}` under [limits]")]
    Beyond { kind: &'static str, index: u32, limit: u32, name: &'static str },
    #[error(
        "the name {0} has the hash of another one, which happens to one pair in 2^64: a new secret comes with new maps, so \
         give up the flows in them with `lbd detach FILE`, the configuration's file"
    )]
    SameHash(String),
    #[error("{what}")]
    System {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Clock(#[from] ClockError),
}

impl DatapathError {
    /// Turns another error into one that says what could not be done.
    pub(super) fn system<E>(what: impl Into<String>) -> impl FnOnce(E) -> Self
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        move |source| Self::System { what: what.into(), source: source.into() }
    }
}
