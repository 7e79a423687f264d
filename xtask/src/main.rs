//! `cargo xtask`: the developer's verbs. This file lists them; each has a file of its own.

mod attach;
mod bench;
mod build;
mod check;
mod demo;
mod fuzz;
mod kernel;
mod process;
mod setup;
mod steps;
mod test;
mod toolchain;
mod torture;
mod workspace;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about, disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Find what this machine lacks to build and run the balancer, and install just that
    Setup,
    /// Build the BPF objects and the workspace
    Build(build::Arguments),
    /// Formatting, and clippy with warnings denied, on every crate and on the BPF target
    Check,
    /// Set up, build and run every test; needs root
    Test(test::Arguments),
    /// Build a town of namespaces, drive it with curl, and tell what XDP counts; needs root
    Demo(demo::Arguments),
    /// Measure what a packet costs on each path, or what sessions cost
    Bench(bench::Arguments),
    /// Kill servers in every way under many clients, and prove that no session noticed; needs root
    Torture(torture::Arguments),
    /// Feed every parser and the loaded programs with what coverage makes of kept inputs; needs root
    Fuzz(fuzz::Arguments),
    /// Build the release and run lbd on a network interface; needs root
    Attach(attach::Arguments),
    /// Run the plan of a virtual machine of `test --kernel`
    #[command(hide = true)]
    Guest,
    /// Stop the lbd of `attach` and remove every trace of it; needs root
    Detach(attach::DetachArguments),
}

fn main() -> ExitCode {
    if kernel::guest::is_first() {
        return kernel::guest::first();
    }
    if fuzz::is_compiler() {
        return fuzz::compile();
    }
    let done = match Arguments::parse().verb {
        Verb::Setup => setup::run(),
        Verb::Build(arguments) => build::run(&arguments),
        Verb::Check => check::run(),
        Verb::Test(arguments) => test::run(&arguments),
        Verb::Demo(arguments) => demo::run(&arguments),
        Verb::Bench(arguments) => bench::run(&arguments),
        Verb::Torture(arguments) => torture::run(&arguments),
        Verb::Fuzz(arguments) => fuzz::run(&arguments),
        Verb::Attach(arguments) => attach::run(&arguments),
        Verb::Guest => kernel::guest::steps(),
        Verb::Detach(arguments) => attach::detach(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
