//! The real lbd in the balancer's namespace. What it leaves outside of that (mounts, named namespaces, files) lies under
//! names of this process, and is removed when this is dropped or, after a `kill -9`, by the next run.

use crate::balancer::dial;
use crate::client::eventually;
use crate::netns::{Netns, Process};
use crate::object::path_of;
use crate::topology::{Host, Topology};
use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs::{self, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

/// Directories of all test runs, one for each process.
const HOME: &str = "/run/lb-tests";

/// A backend of the only service.
pub enum Backend<'a> {
    /// A session server that lbd runs.
    Managed,
    /// A server of the town, which runs already.
    Remote(&'a Host),
}

/// What an lbd is told beside its backends. The default is an lbd of its own, with a store of its own.
#[derive(Clone, Debug, Default)]
pub struct Manner {
    /// The service, where several lbds have the same one; its name must begin as [`service_name`] does.
    pub service: Option<String>,
    /// What the names of backends begin with, `b` if nothing else is said.
    pub prefix: Option<&'static str>,
    /// `store` of the configuration, as TOML.
    pub store: Option<String>,
    /// `affinity` of the service, as TOML.
    pub affinity: Option<String>,
    /// More lines of the service, as TOML.
    pub more: Option<String>,
    /// More lines of each backend, by its number, as TOML.
    pub each: Option<fn(usize) -> String>,
    /// More lines of `[limits]`.
    pub limits: Option<String>,
    /// Lines of `[timeouts]`.
    pub timeouts: Option<String>,
    /// More lines of `[lbd]`, as TOML.
    pub lbd: Option<String>,
    /// The file of the token keys.
    pub keys: Option<PathBuf>,
    /// A promise that this lbd breaks; it is the one that `cargo xtask torture --fault` builds.
    pub fault: Option<String>,
}

/// A name for a service that no other test has at the same time.
pub fn service_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!("t{}x{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}

/// An lbd, running or not. Its backends are named `b0`, `b1`, …
pub struct Lbd {
    process: Option<Process>,
    manner: Manner,
    dir: PathBuf,
    /// Unique among all tests: named namespaces are made of it.
    service: String,
    netns: Netns,
    backends: usize,
}

impl Lbd {
    /// Starts it and waits until every backend is ready.
    pub fn start(town: &Topology, backends: &[Backend<'_>]) -> Result<Self> {
        Self::start_in(town, backends, Manner::default())
    }

    /// The same in a manner of the caller's.
    pub fn start_in(town: &Topology, backends: &[Backend<'_>], manner: Manner) -> Result<Self> {
        let service = manner.service.clone().unwrap_or_else(service_name);
        let dir = new_directory()?;
        let (netns, backends_count) = (town.balancer.clone(), backends.len());
        let lbd = Self { process: None, manner, dir, service, netns, backends: backends_count };
        fs::write(lbd.config(), lbd.text(town, backends)?)?;
        let mut lbd = lbd;
        lbd.resume()?;
        Ok(lbd)
    }

    /// The file of its configuration.
    pub fn config(&self) -> PathBuf {
        self.dir.join("lb.toml")
    }

    /// Where it keeps its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn text(&self, town: &Topology, backends: &[Backend<'_>]) -> Result<String> {
        let dir = self.dir.display();
        let interfaces: Vec<String> = town.ports().into_iter().map(|port| port.name).collect();
        let Manner { store, keys, prefix, affinity, more, limits, timeouts, .. } = &self.manner;
        let affinity = affinity.as_deref().unwrap_or("{ kind = \"signed\", cookie = \"lb\" }");
        let store = store.clone().unwrap_or_else(|| format!("\"{dir}/sessions\""));
        let keys = keys.clone().unwrap_or_else(|| self.dir.join("keys.toml"));
        let prefix = prefix.unwrap_or("b");
        let mut text = format!(
            "[lbd]\nrun_dir = \"{dir}/run\"\nsocket = \"{dir}/lbd.sock\"\nstore = {store}\n\
             keys = \"{}\"\nobject = \"{}\"\ninterfaces = {interfaces:?}\n{}\n\
             [limits]\nmaglev_size = 251\n{}\n[timeouts]\n{}\n\
             [[service]]\nname = \"{}\"\nvip = \"{}\"\naffinity = {affinity}\n{}\n\
             [service.health]\ninterval = \"200ms\"\ntimeout = \"1s\"\nrise = 1\nfall = 2\n",
            keys.display(),
            path_of("lb")?.display(),
            self.manner.lbd.as_deref().unwrap_or_default(),
            limits.as_deref().unwrap_or_default(),
            timeouts.as_deref().unwrap_or_default(),
            self.service,
            dial(),
            more.as_deref().unwrap_or_default(),
        );
        for (i, backend) in backends.iter().enumerate() {
            text += &match backend {
                Backend::Managed => format!("[[service.backend]]\nname = \"{prefix}{i}\"\nmanaged = true\n"),
                Backend::Remote(host) => {
                    format!("[[service.backend]]\nname = \"{prefix}{i}\"\naddr = \"{}\"\n", host.serves())
                }
            };
            text += &self.manner.each.map_or_else(String::new, |each| each(i));
        }
        Ok(text)
    }

    /// Starts it anew with other backends behind its service. Those that it had keep their names.
    pub fn restart_with(&mut self, town: &Topology, backends: &[Backend<'_>]) -> Result<()> {
        self.stop()?;
        self.backends = backends.len();
        fs::write(self.config(), self.text(town, backends)?)?;
        self.resume()
    }

    /// The same with backends that have other names.
    pub fn replace_with(
        &mut self,
        town: &Topology,
        prefix: &'static str,
        backends: &[Backend<'_>],
    ) -> Result<()> {
        self.manner.prefix = Some(prefix);
        self.restart_with(town, backends)
    }

    /// Starts it again and waits until every backend is ready.
    pub fn resume(&mut self) -> Result<()> {
        self.launch()?;
        self.wait_ready()
    }

    /// Starts it again and waits for nothing.
    pub fn launch(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "lbd runs already");
        let log = OpenOptions::new().create(true).append(true).open(self.log_path())?;
        let mut command = match &self.manner.fault {
            None => self.netns.command(&program("lbd", "build")?),
            Some(fault) => {
                let mut command = self.netns.command(&program("lbd-faulty", "torture --fault")?);
                command.args(["--fault", fault]);
                command
            }
        };
        command.arg("--config").arg(self.config()).stdout(log.try_clone()?).stderr(log);
        self.process = Some(Process(command.spawn().context("starting lbd")?));
        Ok(())
    }

    /// Waits until every backend is ready that is configured.
    pub fn wait_ready(&mut self) -> Result<()> {
        let ready = |lbd: &mut Self| -> Result<bool> {
            if let Some(process) = &mut lbd.process
                && let Some(status) = process.0.try_wait()?
            {
                anyhow::bail!("lbd ended with {status}; its log:\n{}", lbd.log());
            }
            let mut states = lbd.states().unwrap_or_default();
            states.retain(|(_, state)| state != "leaving");
            Ok(states.len() == lbd.backends && states.iter().all(|(_, state)| state == "ready"))
        };
        eventually("every backend is ready", || ready(self)).with_context(|| self.log())
    }

    /// Name of its service.
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Names and states of the backends, as lbctl tells them.
    pub fn states(&self) -> Result<Vec<(String, String)>> {
        let states = self.list()?.into_iter().map(|server| (server.name, server.state));
        Ok(states.collect())
    }

    /// The backends, as lbctl tells them.
    pub fn list(&self) -> Result<Vec<Listed>> {
        let list: Value = serde_json::from_str(&self.ctl(&["backend", "list", "--json"])?)?;
        let mut found = Vec::new();
        collect(&list, &mut found);
        Ok(found)
    }

    /// A counter of the service as lbctl prints it.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let stats: Value = serde_json::from_str(&self.ctl(&["stats", "--json"])?)?;
        let all = stats["counters"].as_array().with_context(|| format!("no counters: {stats}"))?;
        let of_service = |c: &&Value| c["of"] == self.service() && c["counter"] == name;
        Ok(all.iter().filter(of_service).filter_map(|c| c["value"].as_u64()).sum())
    }

    /// Runs lbctl and returns what it printed.
    pub fn ctl(&self, args: &[&str]) -> Result<String> {
        let output = self.lbctl(args)?.output().context("running lbctl")?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "lbctl {args:?}: {}: {stderr}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    /// An lbctl that talks to it.
    pub fn lbctl(&self, args: &[&str]) -> Result<Command> {
        let mut command = self.netns.command(&program("lbctl", "build")?);
        command.arg("--socket").arg(self.dir.join("lbd.sock")).args(args);
        Ok(command)
    }

    /// Ends it without a chance to say goodbye.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL).map(drop)
    }

    /// Asks it to stop and waits.
    pub fn stop(&mut self) -> Result<std::process::ExitStatus> {
        self.end(Signal::SIGTERM)
    }

    /// Waits until it has ended by itself.
    pub fn ended(&mut self) -> Result<std::process::ExitStatus> {
        let process = self.process.as_mut().context("lbd is not running")?;
        let mut ended = None;
        eventually("lbd has ended by itself", || {
            ended = process.0.try_wait()?;
            Ok(ended.is_some())
        })?;
        self.process = None;
        ended.context("it was waited for")
    }

    /// Its process, to be sent signals.
    pub fn process(&self) -> Result<&Process> {
        self.process.as_ref().context("lbd is not running")
    }

    fn end(&mut self, signal: Signal) -> Result<std::process::ExitStatus> {
        self.process.take().context("lbd is not running")?.end(signal)
    }

    fn log_path(&self) -> PathBuf {
        self.dir.join("lbd.log")
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Lbd {
    fn drop(&mut self) {
        self.process = None;
        clear_away(&self.dir, &self.service);
    }
}

/// A backend as lbctl lists it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    pub name: String,
    pub state: String,
    pub addr: String,
}

/// Every object that has a name and a state.
fn collect(value: &Value, found: &mut Vec<Listed>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect(value, found)),
        Value::Object(fields) => {
            let text = |key: &str| fields.get(key).and_then(Value::as_str).map(str::to_owned);
            match text("name").zip(text("state")) {
                Some((name, state)) => {
                    found.push(Listed { name, state, addr: text("addr").unwrap_or_default() });
                }
                None => fields.values().for_each(|value| collect(value, found)),
            }
        }
        _ => {}
    }
}

/// The path of a binary of the workspace, beside the test's own, which that verb of xtask builds.
///
/// # Errors
/// It was not built.
pub fn program(name: &str, verb: &str) -> Result<String> {
    let own = std::env::current_exe()?;
    let own = own.parent().context("a program lies in a directory")?;
    // Tests run from target/PROFILE/deps, programs from target/PROFILE.
    let profile = if own.ends_with("deps") { own.parent() } else { Some(own) };
    let beside = profile.context("tests run from target/PROFILE/deps")?.join(name);
    ensure!(beside.exists(), "no {name} at {}: `cargo xtask {verb}` makes it", beside.display());
    Ok(beside.to_string_lossy().into_owned())
}

/// A directory for an lbd, after those of processes that are no more were removed.
pub(crate) fn new_directory() -> Result<PathBuf> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    remove_leftovers();
    let n = COUNT.fetch_add(1, Ordering::Relaxed);
    let dir = PathBuf::from(HOME).join(std::process::id().to_string()).join(n.to_string());
    fs::create_dir_all(&dir).with_context(|| format!("making {}", dir.display()))?;
    Ok(dir)
}

/// Removes what an lbd has left: its directory, and the namespaces of the managed servers of services with this name, or
/// whose names begin with it and a dash.
pub(crate) fn clear_away(dir: &Path, service: &str) {
    remove_traces(dir);
    remove_namespaces(&format!("{service}-"));
    // Goes when it is empty: with the last lbd of this process.
    let _ = dir.parent().map(fs::remove_dir);
    let _ = fs::remove_dir(HOME);
}

/// Unmounts what is mounted below a directory and removes it.
fn remove_traces(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = |line: &str| line.split(' ').nth(1).map(PathBuf::from).filter(|path| path.starts_with(dir));
    for path in mounts.lines().rev().filter_map(below) {
        let _ = umount2(&path, MntFlags::MNT_DETACH);
    }
    let _ = fs::remove_dir_all(dir);
}

/// Removes named network namespaces of managed servers.
fn remove_namespaces(of_service: &str) {
    for entry in fs::read_dir("/run/netns").into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().strip_prefix("lb-").is_some_and(|n| n.starts_with(of_service))
        {
            let _ = umount2(&entry.path(), MntFlags::MNT_DETACH);
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// Of test processes that are no more.
fn remove_leftovers() {
    for entry in fs::read_dir(HOME).into_iter().flatten().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if !Path::new("/proc").join(&pid).exists() {
            remove_traces(&entry.path());
            remove_namespaces(&format!("t{pid}x"));
        }
    }
}
