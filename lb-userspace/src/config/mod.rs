//! The configuration: [`raw`] is what was typed, [`Config`] what it means; [`check`] leads from one to the other and
//! tells every error with its line. Touches nothing but the file, and the files of keys that it names.

mod affinity;
mod check;
mod fault;
mod name;
mod quic;
mod raw;
mod secret;
mod store;
mod values;

#[cfg(test)]
mod tests;

pub use crate::datapath::{Limits, Mode};
pub use crate::session::Limits as SessionLimits;
pub use crate::web::Cookie;
pub use affinity::{Affinity, Anchor, Place};
pub use fault::{ConfigError, Fault};
pub use name::{Pool, ServerName};
pub(crate) use quic::hex;
pub use quic::{QuicConfig, QuicKey};
pub use store::{Redis, Store};
pub use values::{Subnet, parse_duration, show_duration};

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// All that lbd is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Config {
    pub lbd: Lbd,
    pub limits: Limits,
    /// Connections that one client's address may have to one managed server.
    pub client_connections: usize,
    pub timeouts: Timeouts,
    pub managed: Managed,
    pub services: Vec<Service>,
}

/// The daemon itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lbd {
    /// Run-time state: the BPF file system and the control socket.
    pub run_dir: PathBuf,
    pub socket: PathBuf,
    pub store: Store,
    /// File of the token keys.
    pub keys: PathBuf,
    /// The packet programs; found beside the executable when absent.
    pub object: Option<PathBuf>,
    /// Whether to add each VIP to `lo`, so that the host answers ARP for it.
    pub announce: bool,
    /// Whether features of devices are switched that frames behind XDP do not survive.
    pub set_offloads: bool,
    /// Whether what comes in the name of a backend counts only from the interface that leads to it.
    pub check_interfaces: bool,
    /// Interfaces on which clients and remote backends are.
    pub interfaces: Vec<String>,
    pub mode: Mode,
}

/// How long things may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Timeouts {
    /// Connection without a packet from its client.
    pub idle: Duration,
    /// Flow of datagrams without one from its client.
    pub udp_idle: Duration,
    /// Flow after FINs or RST.
    pub closing: Duration,
    /// Flow whose backend never answered.
    pub binding: Duration,
    /// Rest of a request's head, or of a ClientHello.
    pub head: Duration,
    /// Flow that was bound at its first packet and whose client has confirmed nothing.
    pub opening: Duration,
    /// Connection of which one side has sent its FIN, without a packet from its client.
    pub half_closed: Duration,
    /// Managed servers that finish their requests when lbd stops.
    pub drain: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            idle: Duration::from_secs(15 * 60),
            udp_idle: Duration::from_secs(5 * 60),
            closing: Duration::from_secs(10),
            binding: Duration::from_secs(30),
            head: Duration::from_secs(10),
            opening: Duration::from_secs(30),
            half_closed: Duration::from_secs(60),
            drain: Duration::from_secs(10),
        }
    }
}

/// Where managed servers live.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Managed {
    /// The balancer takes the first address of it, each server one more.
    pub subnet: Subnet,
}

impl Default for Managed {
    fn default() -> Self {
        Self { subnet: Subnet { base: Ipv4Addr::new(10, 254, 0, 0), prefix: 16 } }
    }
}

impl Managed {
    /// Port of a managed server whose address is not given.
    pub const PORT: u16 = 8080;

    /// The balancer's address in that network: every server's router.
    pub const fn gateway(&self) -> Ipv4Addr {
        self.subnet.nth(1)
    }

    /// Address of the server in that slot.
    pub const fn server(&self, slot: u16) -> Ipv4Addr {
        self.subnet.nth(slot as u32 + 2)
    }

    /// For how many slots there is an address: neither the network's, the balancer's, nor the broadcast address.
    pub const fn room(&self) -> u64 {
        self.subnet.size().saturating_sub(3)
    }
}

/// A VIP with its backends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    pub name: String,
    pub vip: SocketAddr,
    pub protocol: Protocol,
    pub affinity: Affinity,
    /// Services of one group send a client to the same host.
    pub affinity_group: Option<String>,
    pub balance: Balance,
    pub on_unavailable: OnUnavailable,
    /// Window scale that the SYN-ACK promises.
    pub window_scale: u8,
    /// Backends that a flow is offered to before its client is reset.
    pub max_tries: u8,
    /// Flows at the same time.
    pub max_flows: u32,
    /// Flows that wait for a backend's answer at the same time...
    pub max_pending: u16,
    /// ...and those that wait for the same backend.
    pub max_backend_pending: u16,
    /// A GET or HEAD that its backend left unanswered goes to another one.
    pub replay: bool,
    /// A header of the PROXY protocol stands in front of what clients send.
    pub accept_proxy: bool,
    pub health: Health,
    /// In which its managed servers hand out tokens over HTTP.
    pub cookie: Cookie,
    /// Of the sessions that its managed servers keep.
    pub session: SessionLimits,
    pub backends: Vec<Backend>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// How a backend is chosen for what belongs to none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Balance {
    /// By the Maglev table: every balancer chooses the same.
    Maglev,
    /// The one of two with fewer live flows.
    Least,
}

/// What becomes of a session whose backend does not serve.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OnUnavailable {
    /// Another backend gets it.
    Redispatch,
    /// It is refused.
    Reject,
}

/// When a backend counts as up or down.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Health {
    pub interval: Duration,
    pub timeout: Duration,
    /// Successes in a row until it is up.
    pub rise: u32,
    /// Failures in a row until it is down.
    pub fall: u32,
    /// What a UDP backend is sent; without it nothing, and only a closed port is a failure.
    pub send: Option<Vec<u8>>,
    /// What its answer to that must contain; without it any answer will do.
    pub expect: Option<Vec<u8>>,
}

impl Default for Health {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(2),
            timeout: Duration::from_secs(1),
            rise: 2,
            fall: 3,
            send: None,
            expect: None,
        }
    }
}

/// One server behind a service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Backend {
    pub name: String,
    /// Whether lbd runs it.
    pub managed: bool,
    /// Where it listens; a managed server without gets an address of the managed network, by its slot.
    pub addr: Option<SocketAddr>,
    /// Share of new sessions; 0 takes none.
    pub weight: u16,
    /// How QUIC connection ids name it, in one length for each configuration.
    pub server_ids: Vec<Vec<u8>>,
    /// Names of servers that it is listed for; one without takes what no other is listed for.
    pub sni: Vec<ServerName>,
}

impl Service {
    /// The backends that are listed for names of servers, by these.
    pub fn pools(&self) -> Vec<Pool> {
        name::pools(&self.backends)
    }
}

impl Config {
    /// What to say when others can read a password in this configuration, which was loaded from `file`.
    pub fn readable_secret(&self, file: &Path) -> Option<String> {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(file).ok()?.permissions().mode();
        let shown = file.display();
        (self.lbd.store.has_password() && mode & 0o044 != 0)
            .then(|| format!("{shown} contains a password, and others can read it: chmod 600 {shown}"))
    }

    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`]: all that is wrong with it, each with its line.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(path, &text)
    }

    /// Checks a text; relative paths in it start from the directory of `path`.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        check::config(path, text)
    }
}
