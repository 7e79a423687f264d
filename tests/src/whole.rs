//! The real lbd with a configuration that somebody has written out whole: an example of the documentation, or many services
//! at once. Its interface is [`NIC`]. Places on the host that the text names become places of the test's own.

use crate::certificates::Certificates;
use crate::client::WATCHDOG;
use crate::daemon::{clear_away, new_directory, program, service_name};
use crate::is_slow;
use crate::netns::{Netns, Process};
use crate::object::path_of;
use crate::topology::NIC;
use anyhow::{Context, Result, bail, ensure};
use aya::programs::{SchedClassifier, TcAttachType};
use lb_userspace::config::Config;
use lb_userspace::control::{BackendView, Response};
use lb_userspace::datapath::JOINT;
use nix::sys::signal::Signal;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitStatus;
use std::time::{Duration, Instant};

/// An lbd that runs with such a configuration. What it leaves behind goes with this.
pub struct Whole {
    process: Process,
    netns: Netns,
    dir: PathBuf,
    /// What the names of services begin with that have managed servers: named namespaces are made of them.
    prefix: String,
    /// As it was meant.
    config: Config,
}

impl Whole {
    /// Starts it and waits until it is ready.
    ///
    /// # Errors
    /// The configuration is none, lbd has ended, or it was not ready within [`WATCHDOG`]; with the end of lbd's log.
    pub fn start(netns: &Netns, text: &str) -> Result<Self> {
        let dir = new_directory()?;
        let prefix = service_name();
        let path = dir.join("lb.toml");
        let started = prepare(text, &dir, &prefix).and_then(|(text, config)| {
            fs::write(&path, text)?;
            let log = File::create(dir.join("lbd.log"))?;
            let mut command = netns.command(&program("lbd", "build")?);
            command.arg("--config").arg(&path).arg("--object").arg(path_of("lb")?);
            command.stdout(log.try_clone()?).stderr(log);
            Ok((config, Process(command.spawn().context("starting lbd")?)))
        });
        let (config, process) = started.inspect_err(|_| clear_away(&dir, &prefix))?;
        let mut lbd = Self { process, netns: netns.clone(), dir, prefix, config };
        lbd.wait_ready().with_context(|| format!("lbd's log ends:\n{}", lbd.log()))?;
        Ok(lbd)
    }

    fn wait_ready(&mut self) -> Result<()> {
        let begin = Instant::now();
        loop {
            if let Some(status) = self.process.0.try_wait()? {
                bail!("lbd ended with {status}");
            }
            let Err(not_yet) = self.is_ready() else { return Ok(()) };
            // There the verifier alone may take most of that time.
            let limit = if is_slow() { 3 * WATCHDOG } else { WATCHDOG };
            if begin.elapsed() > limit {
                return Err(not_yet.context(format!("not ready after {limit:?}")));
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Every service is listed as it was meant, every managed server is ready, and the programs are attached.
    fn is_ready(&self) -> Result<()> {
        let Response::Status(status) = self.ask(&["status"])? else { bail!("lbctl tells no status") };
        let Response::Services { services } = self.ask(&["service", "list"])? else {
            bail!("lbctl lists no services")
        };
        let Response::Backends { backends } = self.ask(&["backend", "list"])? else {
            bail!("lbctl lists no backends")
        };
        ensure!(
            status.services == self.config.services.len(),
            "lbctl status tells {} services",
            status.services
        );
        ensure!(status.interfaces.iter().any(|interface| interface.name == NIC), "lbd is not on {NIC}");
        for service in &self.config.services {
            let name = &service.name;
            let listed = services.iter().find(|listed| listed.name == *name);
            let listed = listed.with_context(|| format!("service {name} is not listed"))?;
            let meant = (service.vip.to_string(), service.affinity.describe(), service.backends.len());
            let is = (listed.vip.clone(), listed.affinity.clone(), listed.backends);
            ensure!(is == meant, "service {name} is listed as {is:?}, but meant as {meant:?}");
            ensure!(listed.protocol == service.protocol.name(), "service {name} speaks {}", listed.protocol);
            for backend in &service.backends {
                let of = |b: &&BackendView| b.service == *name && b.name == backend.name;
                let listed = backends.iter().find(of);
                let listed =
                    listed.with_context(|| format!("backend {name}/{} is not listed", backend.name))?;
                let ready = !backend.managed || listed.state == "ready";
                ensure!(ready, "backend {name}/{} is {}: {:?}", backend.name, listed.state, listed.reason);
            }
        }
        self.is_attached()
    }

    /// What the kernel says of the interface.
    fn is_attached(&self) -> Result<()> {
        let link = self.netns.sh(&format!("ip link show dev {NIC}"))?;
        ensure!(link.contains("prog/xdp"), "no XDP program is on {NIC}: {link}");
        let links = self.netns.run(|| SchedClassifier::query_tcx(NIC, TcAttachType::Ingress));
        let by_link =
            links.is_ok_and(|(_, programs)| programs.iter().any(|p| p.name_as_str() == Some(JOINT)));
        // Kernels before 6.6 know filters alone.
        let attached =
            by_link || self.netns.sh(&format!("tc filter show dev {NIC} ingress"))?.contains(JOINT);
        ensure!(attached, "{JOINT} is not on {NIC}");
        Ok(())
    }

    fn ask(&self, args: &[&str]) -> Result<Response> {
        let mut command = self.netns.command(&program("lbctl", "build")?);
        let output =
            command.arg("--socket").arg(&self.config.lbd.socket).arg("--json").args(args).output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "lbctl {args:?}: {}: {stderr}", output.status);
        serde_json::from_slice(&output.stdout).with_context(|| format!("reading what lbctl {args:?} printed"))
    }

    /// Asks it to stop and waits.
    ///
    /// # Errors
    /// It has not ended within [`WATCHDOG`], or not well.
    pub fn stop(mut self) -> Result<()> {
        let status = self.end().with_context(|| format!("lbd's log ends:\n{}", self.log()))?;
        ensure!(status.success(), "lbd ended with {status}; its log ends:\n{}", self.log());
        Ok(())
    }

    fn end(&mut self) -> Result<ExitStatus> {
        self.process.signal(Signal::SIGTERM)?;
        let begin = Instant::now();
        loop {
            if let Some(status) = self.process.0.try_wait()? {
                return Ok(status);
            }
            ensure!(begin.elapsed() < WATCHDOG, "lbd did not stop within {WATCHDOG:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// The end of its log.
    fn log(&self) -> String {
        let text = fs::read_to_string(self.dir.join("lbd.log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        // Both fail only when it has ended already.
        let _ = self.process.0.kill();
        let _ = self.process.0.wait();
        clear_away(&self.dir, &self.prefix);
    }
}

/// What a configuration says, wherever it is: as [`Whole`] starts it.
///
/// # Errors
/// It is none: every fault with its line.
pub fn meaning(text: &str) -> Result<Config> {
    let dir = tempfile::tempdir()?;
    Ok(prepare(text, dir.path(), "t")?.1)
}

/// The text with places below `dir`, and what it means there. Services with managed servers get names that no other test has,
/// and the key file that docs/quic.md tells to make is made.
fn prepare(text: &str, dir: &Path, prefix: &str) -> Result<(String, Config)> {
    let (path, key) = (dir.join("lb.toml"), dir.join("quic.key"));
    fs::write(&key, "000102030405060708090a0b0c0d0e0f\n")?;
    fs::set_permissions(&key, Permissions::from_mode(0o600))?;
    if text.contains("ca_file = ") {
        Certificates::of_the_examples()?.copy_to(dir)?;
    }
    let dir = dir.display();
    let mut text = text.replace("/run/lb", &format!("{dir}/run")).replace("/var/lib/lb", &dir.to_string());
    for (key, place) in [("run_dir", "run"), ("store", "sessions"), ("keys", "keys.toml")] {
        if !text.contains(&format!("\n{key} = ")) {
            text = text.replacen("[lbd]\n", &format!("[lbd]\n{key} = \"{dir}/{place}\"\n"), 1);
        }
    }
    for service in Config::parse(&path, &text)?.services {
        if service.backends.iter().any(|backend| backend.managed) {
            let line = |name: &str| format!("\nname = \"{name}\"\n");
            text = text.replace(&line(&service.name), &line(&format!("{prefix}-{}", service.name)));
        }
    }
    let config = Config::parse(&path, &text)?;
    Ok((text, config))
}
