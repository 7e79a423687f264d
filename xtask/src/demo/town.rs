//! The town of the demonstration: a namespace for the client, one for the balancer with lbd in it, three managed servers
//! behind. Everything has a fixed name, so that a town left behind can be taken down by anyone who knows the names.

use super::counters::Counters;
use super::curl::{self, Answer};
use super::go_on;
use crate::build::Profile;
use crate::process::ip;
use crate::steps::{self, Step};
use crate::{process, workspace};
use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MntFlags, umount2};
use nix::net::if_::if_nametoindex;
use nix::unistd::Pid;
use serde::Deserialize;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

// lbd takes names that begin with `lb-` for its own.
pub(crate) const BALANCER: &str = "demo-balancer";
pub(crate) const CLIENT: &str = "demo-client";
/// Sockets, pins and the daemon's process id.
const RUN: &str = "/run/lb-demo";
const SERVICE: &str = "demo";
pub(crate) const SERVERS: [&str; 3] = ["anna", "bela", "carl"];
/// RFC 2544 §C.2.2 sets 198.18.0.0/15 aside for trials: nobody's real network.
pub(crate) const VIP: &str = "198.18.0.1";
/// The host's own way to the shop, for a town that is kept.
const HOST_LINK: &str = "demo-host";

/// For how long the town may take to come up.
const PATIENCE: Duration = Duration::from_secs(30);
const MOMENT: Duration = Duration::from_millis(20);

/// A town that stands; taken down when dropped, unless it is to be kept.
pub(crate) struct Town {
    lbd: Option<Child>,
    keep: bool,
}

/// A server, as `lbctl backend list --json` tells.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Backend {
    pub(crate) name: String,
    pub(crate) state: String,
    pub(crate) epoch: u32,
}

#[derive(Deserialize)]
struct Backends {
    backends: Vec<Backend>,
}

impl Town {
    /// Builds it. With `keep` the host itself can reach the shop, and the town stays when this is dropped.
    pub(crate) fn up(keep: bool) -> Result<Self> {
        down()?;
        // Half a town is of no use: until it stands it is taken down whatever goes wrong.
        let mut town = Self { lbd: None, keep: false };
        let step = Step::begin("a town: two namespaces, lbd with its programs, three servers");
        for directory in [Path::new(RUN), &state()] {
            fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
        }
        lay_out(keep)?;
        fs::write(config(), config_text(keep))
            .with_context(|| format!("cannot write {}", config().display()))?;
        let mut lbd = start_lbd()?;
        let ready = town.await_servers(&mut lbd);
        town.lbd = Some(lbd);
        ready?;
        step.end(true);
        town.keep = keep;
        Ok(town)
    }

    /// Until every server takes sessions.
    fn await_servers(&self, lbd: &mut Child) -> Result<()> {
        let begun = Instant::now();
        loop {
            go_on()?;
            if let Some(status) = lbd.try_wait()? {
                bail!("lbd ended at once ({status}):\n{}", log_tail());
            }
            let backends = self.backends();
            if backends
                .as_ref()
                .is_ok_and(|all| all.iter().filter(|b| b.state == "ready").count() == SERVERS.len())
            {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                bail!(
                    "the servers are not ready after {} s: {backends:?}\n{}",
                    PATIENCE.as_secs(),
                    log_tail()
                );
            }
            std::thread::sleep(MOMENT);
        }
    }

    /// One request of the client for a path of the shop.
    pub(crate) fn curl<S: AsRef<OsStr>>(&self, path: &str, arguments: &[S]) -> Result<Answer> {
        let url = format!("http://{VIP}{path}");
        let arguments = arguments.iter().map(AsRef::as_ref).chain([OsStr::new(&url)]);
        curl::curl(CLIENT, arguments).with_context(|| format!("curl {url}"))
    }

    pub(crate) fn backends(&self) -> Result<Vec<Backend>> {
        let json = lbctl(&["backend", "list", "--json"])?;
        let list: Backends =
            serde_json::from_str(&json).context("`lbctl backend list --json` printed something else")?;
        Ok(list.backends)
    }

    pub(crate) fn counters(&self) -> Result<Counters> {
        Counters::parse(&lbctl(&["stats", "--json"])?, SERVICE)
    }
}

impl Drop for Town {
    fn drop(&mut self) {
        if !self.keep {
            if let Err(error) = down() {
                eprintln!(
                    "the town could not be taken down: {error:#}\nTry again with `cargo xtask demo --down`"
                );
            }
            // It has ended; this takes its process id back.
            self.lbd.as_mut().map(Child::wait);
        }
    }
}

/// A server's name as lbctl takes it.
pub(crate) fn backend(server: &str) -> String {
    format!("{SERVICE}/{server}")
}

/// Runs lbctl against the town's lbd and returns what it printed.
pub(crate) fn lbctl(arguments: &[&str]) -> Result<String> {
    let mut lbctl = lbctl_command(arguments);
    let output = lbctl.output().context("cannot start lbctl")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`lbctl {}`: {}", arguments.join(" "), errors.trim());
    Ok(String::from_utf8(output.stdout)?)
}

pub(crate) fn lbctl_command(arguments: &[&str]) -> Command {
    let mut lbctl = Command::new(program("lbctl"));
    lbctl.arg("--socket").arg(socket()).args(arguments);
    lbctl
}

/// Takes down what stands of a town, in whatever state it is; fine when there is none.
pub(crate) fn down() -> Result<()> {
    if let Some(pid) = fs::read_to_string(pid_file()).ok().and_then(|pid| pid.parse().ok()) {
        process::stop(Pid::from_raw(pid), &config())?;
    }
    let servers = SERVERS.map(|server| format!("lb-{SERVICE}-{server}"));
    for namespace in servers.iter().map(String::as_str).chain([CLIENT, BALANCER]) {
        if Path::new("/run/netns").join(namespace).exists() {
            quiet(Command::new("ip").args(["netns", "delete", namespace]))?;
        }
    }
    if if_nametoindex(HOST_LINK).is_ok() {
        quiet(Command::new("ip").args(["link", "delete", HOST_LINK]))?;
    }
    unmount_pins()?;
    for directory in [Path::new(RUN), &state()] {
        if directory.exists() {
            fs::remove_dir_all(directory)
                .with_context(|| format!("cannot remove {}", directory.display()))?;
        }
    }
    Ok(())
}

/// The BPF file system that lbd mounted: what is pinned goes with it.
fn unmount_pins() -> Result<()> {
    let mounts = fs::read_to_string("/proc/self/mounts").context("cannot read /proc/self/mounts")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| Path::new(point).starts_with(RUN)) {
        umount2(point, MntFlags::MNT_DETACH).with_context(|| format!("cannot unmount {point}"))?;
    }
    Ok(())
}

/// What to type to look around in a town that stays.
pub(crate) fn tour() -> String {
    let lbctl = format!("{} --socket {}", shown(&program("lbctl")), socket().display());
    format!(
        "The town stays up. Look around:\n\
         \x20 curl -i http://{VIP}/session                                from this host\n\
         \x20 ip netns exec {CLIENT} curl -i http://{VIP}/cart     from the client\n\
         \x20 {lbctl} status\n\
         \x20 {lbctl} backend list\n\
         \x20 {lbctl} backend restart {}\n\
         \x20 {lbctl} stats\n\
         The shop, in a browser on this host: http://{VIP}/\n\
         From elsewhere: ssh -L 8080:{VIP}:80 THIS-HOST, then http://localhost:8080/\n\
         lbd's log: {}\n\
         Take it down with: cargo xtask demo --down",
        SERVERS[0],
        shown(&log()),
    )
}

fn lay_out(with_host: bool) -> Result<()> {
    ip(&format!(
        "netns add {BALANCER}\n\
         netns add {CLIENT}\n\
         link add client netns {BALANCER} type veth peer name eth0 netns {CLIENT}\n"
    ))?;
    in_namespace(
        BALANCER,
        "ip link set lo up && ip addr add 198.18.1.1/24 dev client && ip link set client up && \
         ethtool -K client gro on tx off && echo 1 > /proc/sys/net/ipv4/ip_forward",
    )?;
    // Checksums are computed by the client's kernel: XDP sees its frames before a card would fill them in.
    in_namespace(
        CLIENT,
        "ip link set lo up && ip addr add 198.18.1.2/24 dev eth0 && ip link set eth0 up && \
         ethtool -K eth0 gro on tx off && ip route add default via 198.18.1.1",
    )?;
    if with_host {
        ip(&format!(
            "link add {HOST_LINK} type veth peer name host netns {BALANCER}\n\
             addr add 198.18.2.2/30 dev {HOST_LINK}\n\
             link set {HOST_LINK} up\n"
        ))?;
        in_namespace(
            BALANCER,
            "ip addr add 198.18.2.1/30 dev host && ip link set host up && ethtool -K host gro on tx off",
        )?;
        quiet(Command::new("ethtool").args(["-K", HOST_LINK, "gro", "on", "tx", "off"]))?;
        ip(&format!("route add {VIP}/32 via 198.18.2.1\n"))?;
    }
    Ok(())
}

fn config_text(with_host: bool) -> String {
    let interfaces = if with_host { r#""client", "host""# } else { r#""client""# };
    let state = state();
    let backends: String = SERVERS
        .iter()
        .map(|name| format!("\n[[service.backend]]\nname = \"{name}\"\nmanaged = true\n"))
        .collect();
    format!(
        "# Written by `cargo xtask demo`.\n\
         [lbd]\n\
         run_dir = \"{RUN}\"\n\
         socket = \"{}\"\n\
         store = \"{}\"\n\
         keys = \"{}\"\n\
         interfaces = [{interfaces}]\n\n\
         [managed]\n\
         subnet = \"198.19.0.0/24\"\n\n\
         [[service]]\n\
         name = \"{SERVICE}\"\n\
         vip = \"{VIP}:80\"\n\
         affinity = {{ kind = \"signed\", cookie = \"lb\" }}\n{backends}",
        socket().display(),
        state.join("sessions").display(),
        state.join("keys.toml").display(),
    )
}

fn start_lbd() -> Result<Child> {
    let log = File::create(log()).with_context(|| format!("cannot write {}", log().display()))?;
    let mut nsenter = Command::new("nsenter");
    nsenter
        // Not `ip netns exec`: that gives its child mounts of its own, and lbd's pins would be lost with them.
        .arg(format!("--net=/run/netns/{BALANCER}"))
        .arg(program("lbd"))
        .arg("--config")
        .arg(config())
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        // Ctrl-C is for us: we stop lbd when the story has been told to its end.
        .process_group(0);
    let child = nsenter.spawn().context("cannot start nsenter (Debian's package util-linux has it)")?;
    // nsenter becomes lbd, so its process id is lbd's.
    fs::write(pid_file(), child.id().to_string())
        .with_context(|| format!("cannot write {}", pid_file().display()))?;
    Ok(child)
}

fn in_namespace(namespace: &str, script: &str) -> Result<()> {
    quiet(Command::new("nsenter").arg(format!("--net=/run/netns/{namespace}")).args(["sh", "-ec", script]))
}

fn quiet(command: &mut Command) -> Result<()> {
    let output =
        command.output().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}`: {}", steps::written(command), errors.trim());
    Ok(())
}

fn log_tail() -> String {
    let text = fs::read_to_string(log()).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(15)..].join("\n")
}

/// What the town keeps on disk: its configuration, keys and database.
fn state() -> PathBuf {
    workspace::target().join("demo/town")
}

fn config() -> PathBuf {
    state().join("lb.toml")
}

/// Outlives the town.
pub(crate) fn log() -> PathBuf {
    workspace::target().join("demo/lbd.log")
}

fn socket() -> PathBuf {
    Path::new(RUN).join("lbd.sock")
}

fn pid_file() -> PathBuf {
    Path::new(RUN).join("lbd.pid")
}

fn program(name: &str) -> PathBuf {
    Profile::Debug.directory().join(name)
}

fn shown(path: &Path) -> String {
    path.strip_prefix(workspace::root()).unwrap_or(path).display().to_string()
}
