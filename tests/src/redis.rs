//! Real `redis-server` processes: one alone, one with replicas, or a cluster of three primaries with a replica each. Their
//! files lie in a directory that goes with them; whatever ends the test, no process stays behind.

use crate::client::eventually;
use crate::netns::{Netns, Process};
use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use std::fs::{self, OpenOptions};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{OnceLock, mpsc};
use std::time::Duration;

/// How long a node of a cluster may be silent before the others elect another primary.
pub const NODE_TIMEOUT: Duration = Duration::from_secs(2);

/// Only a hang makes a command this slow.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where the servers listen.
#[derive(Clone)]
pub struct Place {
    /// `None`: the namespace that the test runs in.
    pub netns: Option<Netns>,
    pub ip: Ipv4Addr,
}

impl Default for Place {
    fn default() -> Self {
        Self { netns: None, ip: Ipv4Addr::LOCALHOST }
    }
}

/// Some servers that belong together. In a cluster nodes 0 to 2 begin as primaries, and node `3 + i` as the replica of node
/// `i`; without one node 0 is the primary of all others.
pub struct Redis {
    nodes: Vec<Node>,
    place: Place,
    cluster: bool,
    extra: Vec<String>,
    dir: tempfile::TempDir,
}

struct Node {
    addr: SocketAddrV4,
    bus: u16,
    process: Option<Process>,
}

impl Redis {
    /// One server on the loopback. It appends each write to its file before it answers, so a `kill -9` loses none.
    pub fn single() -> Result<Self> {
        Self::start(Place::default(), 0, &[])
    }

    /// One server with so many replicas, and with further settings, `("appendfsync", "always")` for example.
    pub fn start(place: Place, replicas: usize, settings: &[(&str, &str)]) -> Result<Self> {
        let mut redis = Self::new(place, 1 + replicas, false, settings)?;
        redis.start_all()?;
        let primary = redis.nodes[0].addr;
        for replica in 1..=replicas {
            redis.ask(replica, &["REPLICAOF", &primary.ip().to_string(), &primary.port().to_string()])?;
        }
        for replica in 1..=replicas {
            redis.await_replica(replica)?;
        }
        Ok(redis)
    }

    /// Three primaries with a replica each, on the loopback.
    pub fn cluster() -> Result<Self> {
        Self::start_cluster(Place::default(), &[])
    }

    /// The same somewhere else, and with further settings.
    pub fn start_cluster(place: Place, settings: &[(&str, &str)]) -> Result<Self> {
        const SLOTS: [(u16, u16); 3] = [(0, 5460), (5461, 10922), (10923, 16383)];
        let mut redis = Self::new(place, 6, true, settings)?;
        redis.start_all()?;
        for node in 0..6 {
            // Distinct from the start, so that the nodes have nothing to settle among themselves.
            redis.ask(node, &["CLUSTER", "SET-CONFIG-EPOCH", &(node + 1).to_string()])?;
        }
        for (node, (first, last)) in SLOTS.into_iter().enumerate() {
            redis.ask(node, &["CLUSTER", "ADDSLOTSRANGE", &first.to_string(), &last.to_string()])?;
        }
        for node in 1..6 {
            let (ip, port) = (redis.nodes[0].addr.ip().to_string(), redis.nodes[0].addr.port().to_string());
            redis.ask(node, &["CLUSTER", "MEET", &ip, &port, &redis.nodes[0].bus.to_string()])?;
        }
        for node in 0..6 {
            eventually("every node knows all others", || {
                let nodes = redis.ask(node, &["CLUSTER", "NODES"])?;
                Ok(nodes.lines().filter(|line| !line.contains("handshake")).count() == 6)
            })?;
        }
        for replica in 3..6 {
            let primary = redis.ask(replica - 3, &["CLUSTER", "MYID"])?;
            redis.ask(replica, &["CLUSTER", "REPLICATE", &primary])?;
        }
        redis.await_cluster()?;
        Ok(redis)
    }

    fn new(place: Place, nodes: usize, cluster: bool, settings: &[(&str, &str)]) -> Result<Self> {
        let extra =
            settings.iter().flat_map(|(name, value)| [format!("--{name}"), (*value).into()]).collect();
        let nodes = (0..nodes)
            .map(|_| {
                let addr = SocketAddrV4::new(place.ip, free_port(&place)?);
                Ok(Node { addr, bus: free_port(&place)?, process: None })
            })
            .collect::<Result<_>>()?;
        Ok(Self { nodes, place, cluster, extra, dir: tempfile::tempdir()? })
    }

    fn start_all(&mut self) -> Result<()> {
        (0..self.nodes.len()).try_for_each(|node| self.spawn(node))?;
        (0..self.nodes.len()).try_for_each(|node| self.await_node(node))
    }

    fn spawn(&mut self, node: usize) -> Result<()> {
        ensure!(self.nodes[node].process.is_none(), "redis node {node} runs already");
        let dir = self.node_dir(node);
        fs::create_dir_all(&dir)?;
        let log = OpenOptions::new().create(true).append(true).open(dir.join("log"))?;
        let Node { addr, bus, .. } = self.nodes[node];
        let mut command = match &self.place.netns {
            Some(netns) => netns.command("redis-server"),
            None => mortal(&server()),
        };
        command.current_dir(&dir).stdout(log.try_clone()?).stderr(log);
        for (name, value) in [
            ("port", addr.port().to_string().as_str()),
            ("bind", &addr.ip().to_string()),
            ("protected-mode", "no"),
            ("save", ""),
            ("appendonly", "yes"),
            ("appendfsync", "always"),
            ("repl-diskless-sync-delay", "0"),
            ("repl-ping-replica-period", "1"),
        ] {
            command.args([&format!("--{name}"), value]);
        }
        if self.cluster {
            command.args(["--cluster-enabled", "yes", "--cluster-port", &bus.to_string()]);
            command.args(["--cluster-node-timeout", &NODE_TIMEOUT.as_millis().to_string()]);
        }
        command.args(&self.extra);
        self.nodes[node].process = Some(Process(spawn(command)?));
        Ok(())
    }

    /// Waits until it answers and has read its files.
    fn await_node(&mut self, node: usize) -> Result<()> {
        eventually("redis-server answers", || {
            let process = self.nodes[node].process.as_mut().context("it was just started")?;
            if let Some(status) = process.0.try_wait()? {
                anyhow::bail!("redis node {node} ended with {status}; its log:\n{}", self.log(node));
            }
            Ok(self.ask(node, &["PING"]).is_ok())
        })
    }

    /// Waits until a replica has all that its primary has, also in its append-only file, and follows it.
    pub fn await_replica(&self, node: usize) -> Result<()> {
        eventually("a replica follows its primary", || {
            let follows = self.ask(node, &["INFO", "replication"])?.contains("master_link_status:up");
            Ok(follows && self.has_its_file(node)?)
        })
    }

    /// Until the first rewrite has ended, a replica does not tell what its file has.
    fn has_its_file(&self, node: usize) -> Result<bool> {
        let info = self.ask(node, &["INFO", "persistence"])?;
        Ok(["aof_enabled:1", "aof_rewrite_in_progress:0", "aof_rewrite_scheduled:0"]
            .iter()
            .all(|field| info.contains(field)))
    }

    /// Waits until the cluster serves every slot, all running nodes agree on that, and each replica that runs follows.
    pub fn await_cluster(&self) -> Result<()> {
        for node in (0..self.nodes.len()).filter(|node| self.nodes[*node].process.is_some()) {
            eventually("the cluster is well", || {
                let well = self.ask(node, &["CLUSTER", "INFO"])?.contains("cluster_state:ok");
                let info = self.ask(node, &["INFO", "replication"])?;
                let synced = info.contains("role:master") || info.contains("master_link_status:up");
                Ok(well && synced && self.has_its_file(node)?)
            })?;
        }
        eventually("each primary sees its replicas", || {
            let alive = self.nodes.iter().filter(|node| node.process.is_some()).count();
            let (mut primaries, mut replicas) = (0, 0);
            for node in 0..self.nodes.len() {
                let Ok(info) = self.ask(node, &["INFO", "replication"]) else { continue };
                if info.contains("role:master") {
                    primaries += 1;
                    replicas += info.matches("state=online").count();
                }
            }
            Ok(primaries == 3 && primaries + replicas == alive)
        })
    }

    /// `redis://ip:port` of every node, as lbd's configuration wants them.
    pub fn urls(&self) -> Vec<String> {
        self.nodes.iter().map(|node| format!("redis://{}", node.addr)).collect()
    }

    pub fn nodes(&self) -> usize {
        self.nodes.len()
    }

    pub fn addr(&self, node: usize) -> SocketAddrV4 {
        self.nodes[node].addr
    }

    /// Those that are primaries now, as far as they answer.
    pub fn primaries(&self) -> Vec<usize> {
        (0..self.nodes.len())
            .filter(|node| self.nodes[*node].process.is_some())
            .filter(|node| self.ask(*node, &["INFO", "replication"]).is_ok_and(|i| i.contains("role:master")))
            .collect()
    }

    /// One command to one node; the answer as text, a list with its items on lines.
    pub fn ask(&self, node: usize, command: &[&str]) -> Result<String> {
        let url = format!("redis://{}", self.nodes[node].addr);
        let ask = || -> Result<String> {
            let mut connection = redis::Client::open(url.as_str())?.get_connection_with_timeout(PATIENCE)?;
            connection.set_read_timeout(Some(PATIENCE))?;
            let mut request = redis::cmd(command[0]);
            request.arg(&command[1..]);
            Ok(text(&request.query(&mut connection)?))
        };
        let answer = match &self.place.netns {
            Some(netns) => netns.run(ask),
            None => ask(),
        };
        answer.with_context(|| format!("asking redis node {node} at {url}: {}", command.join(" ")))
    }

    /// `kill -9`.
    pub fn kill(&mut self, node: usize) -> Result<()> {
        let mut process = self.nodes[node].process.take().context("that redis node is not running")?;
        process.end(Signal::SIGKILL).map(drop)
    }

    /// Freezes it: its connections stay open and nothing is answered.
    pub fn stop(&self, node: usize) -> Result<()> {
        self.process(node)?.freeze()
    }

    /// Ends [`Redis::stop`].
    pub fn resume(&self, node: usize) -> Result<()> {
        self.process(node)?.thaw()
    }

    /// Starts it again, on its old files and address, and waits until it answers.
    pub fn restart(&mut self, node: usize) -> Result<()> {
        self.spawn(node)?;
        self.await_node(node)
    }

    fn process(&self, node: usize) -> Result<&Process> {
        self.nodes[node].process.as_ref().context("that redis node is not running")
    }

    fn node_dir(&self, node: usize) -> PathBuf {
        self.dir.path().join(node.to_string())
    }

    /// The end of a node's log.
    pub fn log(&self, node: usize) -> String {
        let text = fs::read_to_string(self.node_dir(node).join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

/// Ports below those that the kernel gives to connections, so a node that is down finds its own again.
fn free_port(place: &Place) -> Result<u16> {
    const PORTS: std::ops::Range<u16> = 15_000..32_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let begin = (std::process::id() as u16).wrapping_mul(61);
    for _ in PORTS {
        let n = begin.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let addr = SocketAddrV4::new(place.ip, PORTS.start + n % (PORTS.end - PORTS.start));
        let bind = || TcpListener::bind(addr);
        let bound = match &place.netns {
            Some(netns) => netns.run(bind),
            None => bind(),
        };
        if bound.is_ok() {
            return Ok(addr.port());
        }
    }
    anyhow::bail!("no free port on {} between {} and {}", place.ip, PORTS.start, PORTS.end)
}

/// The server's program: `REDIS_SERVER`, to try the tests on another version, or the one that is installed.
fn server() -> String {
    std::env::var("REDIS_SERVER").unwrap_or_else(|_| "redis-server".into())
}

/// A command that dies with the thread that starts it.
fn mortal(program: &str) -> Command {
    let mut command = Command::new(program);
    let bind = || Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?);
    // SAFETY: one system call, no allocation, no lock.
    unsafe { command.pre_exec(bind) };
    command
}

/// Starts it from a thread that lives as long as the test's process, whoever calls.
fn spawn(command: Command) -> Result<Child> {
    type Order = (Command, mpsc::Sender<std::io::Result<Child>>);
    static KEEPER: OnceLock<mpsc::Sender<Order>> = OnceLock::new();
    let keeper = KEEPER.get_or_init(|| {
        let (sender, orders) = mpsc::channel::<Order>();
        std::thread::spawn(move || {
            for (mut command, answer) in orders {
                // Who has gone away meanwhile gets no child: it is dropped, and ends with this process.
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    let (sender, answer) = mpsc::channel();
    keeper.send((command, sender)).expect("the keeper never ends");
    let child = answer.recv().expect("the keeper answers every order");
    child.context("starting redis-server; `cargo xtask setup` installs it")
}

fn text(value: &redis::Value) -> String {
    match value {
        redis::Value::Nil => String::new(),
        redis::Value::Okay => "OK".into(),
        redis::Value::Int(n) => n.to_string(),
        redis::Value::SimpleString(text) => text.clone(),
        redis::Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        redis::Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join("\n"),
        other => format!("{other:?}"),
    }
}
