//! Whether the running kernel takes the programs: run it as root, with the BPF objects built.

use clap::Parser;
use std::process::ExitCode;

/// Load every program into the running kernel, with maps of the sizes that lbd makes unless it is told otherwise
#[derive(Parser)]
struct Arguments {
    /// Print one JSON object on one line
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let Arguments { json } = Arguments::parse();
    match tests::load::run(json) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
