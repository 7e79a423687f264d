//! `cargo xtask torture` runs this, as root, with lbd and the BPF objects built.

use clap::{Parser, ValueEnum};
use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;
use tests::torture::{Plan, Store, Summary, run};

/// Many clients, servers that are killed in every way, and a proof that no session ever noticed
#[derive(Parser)]
#[command(name = "cargo xtask torture")]
struct Arguments {
    /// How long, at least; it ends after everything was done once
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// What happens; without it, a seed is drawn and printed
    #[arg(long, value_name = "S")]
    seed: Option<u64>,
    /// Where the sessions are
    #[arg(long, value_enum, default_value_t = Kind::Sled)]
    store: Kind,
    /// A promise that lbd is to break: the torture must notice
    #[arg(long, value_name = "NAME")]
    fault: Option<String>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Kind {
    Sled,
    Redis,
}

fn main() -> ExitCode {
    let Arguments { seconds, seed, store, fault } = Arguments::parse();
    let drawn = || {
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |t| t.as_nanos() as u64)
    };
    let seed = seed.unwrap_or_else(|| drawn() % 1_000_000_007);
    let (store, name) = match store {
        Kind::Sled => (Store::Sled, "sled"),
        Kind::Redis => (Store::Redis, "redis"),
    };
    let plan = Plan { time: Duration::from_secs(seconds), seed, store, fault: fault.clone() };
    let fault = fault.map_or_else(String::new, |fault| format!(" --fault {fault}"));
    let again = format!("cargo xtask torture --seconds {seconds} --seed {seed} --store {name}{fault}");
    eprintln!("seed {seed}; again: {again}");
    let terminal = std::io::stderr().is_terminal();
    let mut tell = |summary: &Summary| {
        if terminal {
            eprint!(
                "\r{} s, {} operations, {} sessions checked, {} new lives ",
                summary.seconds, summary.operations, summary.sessions, summary.lives
            );
            let _ = std::io::stderr().flush();
        }
    };
    let done = run(&plan, &mut tell);
    if terminal {
        eprintln!();
    }
    match done {
        Ok(summary) => {
            print!("{summary}");
            if summary.violations.is_empty() {
                println!("PASS");
                return ExitCode::SUCCESS;
            }
            println!("\nFAIL: a promise is broken; again: {again}");
        }
        Err(error) => println!("FAIL: {error:#}\nagain: {again}"),
    }
    ExitCode::FAILURE
}
