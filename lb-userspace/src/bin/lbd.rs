//! lbd: arguments, logging, run; nothing else.

use clap::{Parser, Subcommand};
use lb_userspace::config::{Config, ConfigError};
use lb_userspace::daemon::{self, Options};
use lb_userspace::datapath::Kernel;
#[cfg(feature = "faults")]
use lb_userspace::session::fault::{self, Fault};
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tracing_subscriber::EnvFilter;

/// A load balancer that brings sessions home: loads the packet programs, runs the session servers, watches backends.
#[derive(Debug, Parser)]
#[command(name = "lbd", version, args_conflicts_with_subcommands = true, arg_required_else_help = true)]
struct Cli {
    /// The configuration; docs/lb.example.toml has every key with its default.
    #[arg(long, value_name = "FILE", required = true)]
    config: Option<PathBuf>,
    /// The packet programs, in place of those that the configuration names or `cargo xtask build` has built.
    #[arg(long, value_name = "FILE")]
    object: Option<PathBuf>,
    /// An interface that clients or backends are behind, beside those of the configuration; can be given several times.
    #[arg(long = "interface", value_name = "IFACE")]
    interfaces: Vec<String>,
    /// A promise to break deliberately, for the tests of the tests; can be given several times.
    #[cfg(feature = "faults")]
    #[arg(long = "fault", value_name = "NAME", value_parser = promise)]
    faults: Vec<Fault>,
    /// What is logged, such as `debug` or `lb_userspace::health=trace,info`.
    #[arg(long, value_name = "FILTER", default_value = "info", env = "LB_LOG")]
    log: String,
    #[command(subcommand)]
    verb: Option<Verb>,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Only check a configuration: says what is wrong with it, with line and reason; and what this machine's kernel lacks
    Check {
        /// The configuration.
        file: PathBuf,
    },
    /// Remove everything that an lbd with this configuration has left in the kernel; sessions and keys stay
    Detach {
        /// The configuration.
        file: PathBuf,
    },
}

pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match (cli.verb, cli.config) {
        (Some(Verb::Check { file }), _) => check(&file),
        (Some(Verb::Detach { file }), _) => detach(&file),
        (None, Some(config)) => begin_log(&cli.log).and_then(|()| {
            #[cfg(feature = "faults")]
            cli.faults.iter().copied().for_each(fault::arm);
            run(Options { config, object: cli.object, interfaces: cli.interfaces })
        }),
        (None, None) => Ok(()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<ConfigError>() {
                // Each begins with file and line, where editors look for them.
                Some(ConfigError::Faults(_)) => eprintln!("{error}"),
                _ => eprintln!("lbd: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

#[cfg(feature = "faults")]
fn promise(name: &str) -> Result<Fault, String> {
    let names = || Fault::ALL.map(Fault::name).join(", ");
    Fault::from_name(name).ok_or_else(|| format!("there are: {}", names()))
}

fn check(file: &Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let backends: usize = config.services.iter().map(|service| service.backends.len()).sum();
    let services: Vec<_> =
        config.services.iter().map(|service| format!("{} at {}", service.name, service.vip)).collect();
    println!("{}: fine; services: {}; backends: {backends}", file.display(), services.join(", "));
    if let Some(warning) = config.readable_secret(file) {
        println!("warning: {warning}");
    }
    // Another machine may be the one that shall run it: what this one lacks is no fault of the file.
    println!("{}", Kernel::look());
    Ok(())
}

fn detach(file: &Path) -> anyhow::Result<()> {
    let removed = daemon::detach(&Config::load(file)?)?;
    removed.iter().for_each(|what| println!("removed {what}"));
    if removed.is_empty() {
        println!("there was nothing to remove");
    }
    Ok(())
}

fn begin_log(filter: &str) -> anyhow::Result<()> {
    // That crate warns of every attribute that a newer kernel has added.
    let filter = EnvFilter::try_new(format!("netlink_packet_route=error,{filter}"))?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false)
        .init();
    Ok(())
}

/// How long tasks that are under way when lbd ends may take: one may be inside of a store that is slow to open.
const REST: Duration = Duration::from_secs(2);

fn run(options: Options) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let ended = runtime.block_on(daemon::run(options));
    runtime.shutdown_timeout(REST);
    ended
}
