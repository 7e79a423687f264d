//! `cargo xtask attach IFACE --config FILE`: builds the release and becomes lbd on that interface; and `cargo xtask detach
//! IFACE`, which stops it and removes what it left in the kernel.

use crate::build::{self, Profile};
use crate::setup::Need;
use crate::{process, steps, workspace};
use anyhow::{Context, Result, bail, ensure};
use nix::net::if_::{if_nameindex, if_nametoindex};
use nix::unistd::Pid;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Interface that clients are behind; the configuration may name more
    interface: String,
    /// Use the release that was built before
    #[arg(long)]
    built: bool,
    /// lbd's configuration; docs/lb.example.toml shows every key
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
}

#[derive(clap::Args)]
pub(crate) struct DetachArguments {
    /// Interface that was given to `attach`
    interface: String,
    /// The configuration that was given to `attach`, if that is not known any more
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Which lbd was attached to which interface: `PID CONFIG`, for `detach`.
const ATTACHED: &str = "/run/lb-attached";

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { interface, built, config } = arguments;
    ensure_root("attach")?;
    ensure_interface(interface)?;
    let config = config.canonicalize().with_context(|| format!("cannot read {}", config.display()))?;
    if !built {
        build::build(&[Need::Run], Profile::Release)?;
    }
    steps::show(Command::new(lbd()).arg("check").arg(&config))?;

    if let Some((pid, config)) = attached(interface) {
        ensure!(
            !process::is_lbd_with(pid, &config),
            "an lbd is attached to {interface} already (process {pid}, configuration {}): `cargo xtask detach {interface}` \
             first",
            config.display()
        );
    }
    fs::create_dir_all(ATTACHED).with_context(|| format!("cannot make {ATTACHED}"))?;
    let record = record(interface);
    fs::write(&record, format!("{} {}", std::process::id(), config.display()))
        .with_context(|| format!("cannot write {}", record.display()))?;
    println!(
        "lbd runs on {interface}; Ctrl-C stops it, `cargo xtask detach {interface}` removes it without a trace"
    );
    // This process becomes lbd, so the process id in the record is lbd's.
    let failed = Command::new(lbd()).arg("--interface").arg(interface).arg("--config").arg(config).exec();
    Err(failed).with_context(|| format!("cannot start {}", lbd().display()))
}

pub(crate) fn detach(arguments: &DetachArguments) -> Result<()> {
    let interface = &arguments.interface;
    ensure_root("detach")?;
    let known = attached(interface);
    let config = match (&arguments.config, &known) {
        (Some(config), _) => {
            config.canonicalize().with_context(|| format!("cannot read {}", config.display()))?
        }
        (None, Some((_, config))) => config.clone(),
        (None, None) => bail!(
            "nothing was attached to {interface} by `cargo xtask attach`; if lbd was started in another way, stop it, and \
             say with --config FILE what it was started with"
        ),
    };
    if let Some((pid, _)) = known {
        process::stop(pid, &config)?;
    }
    ensure!(lbd().is_file(), "{} is not there: `cargo xtask build --release` first", lbd().display());
    steps::show(Command::new(lbd()).arg("detach").arg(config))?;
    let record = record(interface);
    if record.exists() {
        fs::remove_file(&record).with_context(|| format!("cannot remove {}", record.display()))?;
    }
    // Fails while others are attached; then it stays.
    let _ = fs::remove_dir(ATTACHED);
    if carries_xdp(interface)? {
        bail!(
            "{interface} still carries an XDP program that is not lbd's; `ip link show {interface}` tells which"
        );
    }
    println!("{interface} is as it was");
    Ok(())
}

fn ensure_root(verb: &str) -> Result<()> {
    ensure!(
        workspace::is_root(),
        "this loads programs into the kernel and needs root: run `sudo env \"PATH=$PATH\" cargo xtask {verb} …`"
    );
    Ok(())
}

/// Asks the kernel, not /sys: that may show another network namespace.
fn ensure_interface(interface: &str) -> Result<()> {
    if if_nametoindex(interface).is_ok() {
        return Ok(());
    }
    let all = if_nameindex().context("cannot list interfaces")?;
    let names = all.iter().map(|interface| interface.name().to_string_lossy().into_owned());
    let names: Vec<_> = names.filter(|name| name != "lo").collect();
    bail!("there is no interface {interface}; there is {}", names.join(", "))
}

fn carries_xdp(interface: &str) -> Result<bool> {
    let output = Command::new("ip").args(["link", "show", "dev", interface]).output();
    let output = output.context("cannot start ip (`cargo xtask setup` installs it)")?;
    Ok(String::from_utf8_lossy(&output.stdout).contains("prog/xdp"))
}

/// Process id and configuration of the lbd that was attached to the interface, whether it still runs or not.
fn attached(interface: &str) -> Option<(Pid, PathBuf)> {
    let text = fs::read_to_string(record(interface)).ok()?;
    let (pid, config) = text.split_once(' ')?;
    Some((Pid::from_raw(pid.parse().ok()?), config.into()))
}

fn record(interface: &str) -> PathBuf {
    Path::new(ATTACHED).join(interface)
}

fn lbd() -> PathBuf {
    Profile::Release.directory().join("lbd")
}
