//! `cargo xtask bench` runs this as root, with the BPF objects built.

use clap::Parser;
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure what a packet costs on each path
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    /// Write the rows to this file as well
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Fewer and shorter rounds
    #[arg(long)]
    quick: bool,
    /// Measure only rows whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
}

fn main() -> ExitCode {
    let Arguments { json, quick, only } = Arguments::parse();
    match tests::bench::run(&tests::bench::Options { quick, json, only }) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
