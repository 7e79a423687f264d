//! `cargo xtask bench` runs this: packets as root, with the BPF objects built.

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Measure what a packet costs on each path, or what sessions cost
#[derive(Parser)]
#[command(name = "cargo xtask bench")]
struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand)]
enum What {
    /// What a packet costs on each path
    Packets {
        #[command(flatten)]
        extent: Extent,
    },
    /// What a packet costs beside Katran's program
    Katran {
        #[command(flatten)]
        extent: Extent,
        /// Katran's program, compiled
        #[arg(long, value_name = "FILE")]
        object: PathBuf,
        /// Of which commit, and compiled how
        #[arg(long, value_name = "TEXT")]
        origin: String,
    },
    /// What sessions cost, beside an application that keeps them in Redis the usual way
    Session {
        #[command(flatten)]
        extent: Extent,
        /// Make the stores' directories in here, on a real disk
        #[arg(long, value_name = "DIRECTORY")]
        directory: PathBuf,
    },
}

#[derive(clap::Args)]
struct Extent {
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
    let measured = match Arguments::parse().what {
        What::Packets { extent: Extent { json, quick, only } } => {
            tests::bench::run(&tests::bench::Options { quick, json, only })
        }
        What::Katran { extent: Extent { json, quick, only }, object, origin } => {
            tests::bench::katran::run(&tests::bench::Options { quick, json, only }, &object, &origin)
        }
        What::Session { extent: Extent { json, quick, only }, directory } => {
            tests::session_bench::run(&tests::session_bench::Options { quick, json, only, directory })
        }
    };
    match measured {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
