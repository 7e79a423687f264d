//! A Rust application that keeps its sessions by the library: an example of lb-userspace, in a backend's namespace.

use crate::client::eventually;
use crate::netns::Process;
use crate::topology::Host;
use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::path::PathBuf;

/// What all processes of a shop have in common.
pub struct Shops {
    /// `shop` or `tower_shop`.
    pub example: &'static str,
    pub service: String,
    /// As its `--store`.
    pub store: String,
    /// Keys and logs.
    pub dir: tempfile::TempDir,
}

/// One process of it, running or not.
pub struct Shop<'a> {
    shops: &'a Shops,
    host: &'a Host,
    backend: String,
    process: Option<Process>,
}

impl Shops {
    pub fn keys(&self) -> PathBuf {
        self.dir.path().join("keys.toml")
    }

    /// Starts one and waits until it serves.
    pub fn start<'a>(&'a self, host: &'a Host, backend: &str) -> Result<Shop<'a>> {
        let mut shop = Shop { shops: self, host, backend: backend.to_owned(), process: None };
        shop.resume()?;
        Ok(shop)
    }
}

impl Shop<'_> {
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// Starts it again and waits until it serves.
    pub fn resume(&mut self) -> Result<()> {
        ensure!(self.process.is_none(), "shop {} runs already", self.backend);
        let test = std::env::current_exe()?;
        let built = test.ancestors().nth(2).context("tests run from target/PROFILE/deps")?;
        let program = built.join("examples").join(self.shops.example);
        ensure!(program.exists(), "no {}: `cargo xtask build` makes it", program.display());
        let log = File::options().create(true).append(true).open(self.log_path())?;
        let mut command = self.host.netns.command(&program.to_string_lossy());
        command
            .args(["--listen", &self.host.serves().to_string(), "--backend", &self.backend])
            .args(["--service", &self.shops.service, "--store", &self.shops.store, "--keys"])
            .arg(self.shops.keys())
            .stdout(log.try_clone()?)
            .stderr(log);
        self.process = Some(Process(command.spawn().context("starting a shop")?));
        eventually("the shop serves", || {
            let process = self.process.as_mut().context("it was just started")?;
            if let Some(status) = process.0.try_wait()? {
                bail!("the shop ended with {status}");
            }
            Ok(self.me().is_ok())
        })
        .with_context(|| self.log())
    }

    /// What it says of itself to somebody without a session, asked past the balancer.
    pub fn me(&self) -> Result<Value> {
        let url = format!("http://{}/me", self.host.serves());
        let output = self.host.netns.command("curl").args(["--silent", "--max-time", "5", &url]).output()?;
        ensure!(output.status.success(), "curl {url}: {}", output.status);
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// Ends it without a chance to say goodbye.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::SIGKILL).map(drop)
    }

    /// Asks it to stop and waits.
    pub fn stop(&mut self) -> Result<()> {
        let status = self.end(Signal::SIGTERM)?;
        ensure!(status.success(), "shop {} ended with {status}: {}", self.backend, self.log());
        Ok(())
    }

    fn end(&mut self, signal: Signal) -> Result<std::process::ExitStatus> {
        self.process.take().context("the shop is not running")?.end(signal)
    }

    fn log_path(&self) -> PathBuf {
        self.shops.dir.path().join(format!("{}.log", self.backend))
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.log_path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }
}
