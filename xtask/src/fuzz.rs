//! `cargo xtask fuzz`: every parser, and the loaded programs, fed by libFuzzer with coverage of this workspace's code.
//!
//! cargo-fuzz needs a nightly compiler. What it asks of one, the stable compiler has as well: LLVM's coverage for libFuzzer is a pass of
//! its own. This program stands between cargo and the compiler, and asks for that pass where a crate of the workspace is compiled;
//! the other crates stay as other builds left them.

use crate::build;
use crate::setup::Need;
use crate::{steps, toolchain, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// Set for the compilations of which coverage is wanted.
const WRAPPED: &str = "LB_FUZZ_COMPILER";

/// What libFuzzer reads (<https://llvm.org/docs/LibFuzzer.html>, <https://clang.llvm.org/docs/SanitizerCoverage.html>): a counter for
/// each edge, where that is, and operands of comparisons.
const COVERAGE: [&str; 6] = [
    "-Copt-level=2",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// What is fed; without it, each target in turn
    target: Option<String>,
    /// For how long, all targets together
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,
    /// Print the targets and feed nothing
    #[arg(long, conflicts_with = "target")]
    list: bool,
}

/// Whether cargo has started this program in place of the compiler.
pub(crate) fn is_compiler() -> bool {
    env::var_os(WRAPPED).is_some()
        && env::args_os().nth(1).is_some_and(|name| Path::new(&name).is_absolute() || name == "rustc")
}

/// Becomes the compiler.
pub(crate) fn compile() -> ExitCode {
    let mut arguments = env::args_os().skip(1);
    let compiler = arguments.next().unwrap_or_default();
    let arguments: Vec<OsString> = arguments.collect();
    let named = arguments.iter().skip_while(|argument| *argument != "--crate-name").nth(1);
    let mut command = Command::new(&compiler);
    command.args(&arguments);
    // Without a name, or with that one, cargo asks the compiler about itself.
    if named.is_some_and(|name| name != "___") {
        command.args(COVERAGE);
    }
    let error = command.exec();
    eprintln!("error: cannot start {}: {error}", compiler.display());
    ExitCode::FAILURE
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let targets = targets()?;
    if arguments.list {
        for (name, about) in &targets {
            println!("{name:14} {about}");
        }
        return Ok(());
    }
    let chosen: Vec<&str> = match &arguments.target {
        None => targets.iter().map(|(name, _)| name.as_str()).collect(),
        Some(name) => {
            let known = targets.iter().any(|(known, _)| known == name);
            ensure!(known, "there is no target {name}: `cargo xtask fuzz --list` prints them");
            vec![name]
        }
    };
    ensure!(
        workspace::is_root(),
        "the programs are loaded to be fed, and that needs root: run `sudo env \"PATH=$PATH\" cargo xtask fuzz`"
    );
    build::build_objects(&[Need::Fuzzer])?;
    let fuzzer = compiled()?;
    let share = (arguments.seconds / chosen.len() as u64).max(1);
    let mut failed = Vec::new();
    for name in chosen {
        println!("\n{name}, {share} s");
        if !feed(&fuzzer, name, share)? {
            failed.push(name);
        }
    }
    if !failed.is_empty() {
        bail!("the fuzzer found something in {}: see above", failed.join(", "));
    }
    println!("\nnothing was found");
    Ok(())
}

/// Names and descriptions.
fn targets() -> Result<Vec<(String, String)>> {
    let mut cargo = toolchain::host_cargo();
    cargo.args(["run", "--quiet", "--package", "tests", "--bin", "fuzz-targets"]);
    let output = cargo.output().context("cannot start cargo")?;
    ensure!(
        output.status.success(),
        "the targets cannot be listed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    let text = String::from_utf8(output.stdout)?;
    let line = |line: &str| line.split_once('\t').map(|(name, about)| (name.to_owned(), about.to_owned()));
    Ok(text.lines().filter_map(line).collect())
}

/// Builds the fuzzer with coverage.
fn compiled() -> Result<PathBuf> {
    let this = env::current_exe().context("where is this program?")?;
    let mut cargo = toolchain::host_cargo();
    cargo.args(["build", "--package", "tests", "--features", "libfuzzer", "--bin", "fuzz"]);
    steps::show(cargo.env("RUSTC_WORKSPACE_WRAPPER", this).env(WRAPPED, "1"))?;
    Ok(build::Profile::Debug.directory().join("fuzz"))
}

/// Feeds a target; whether all went well. What was interesting stays in the build's directory, for the next time.
fn feed(fuzzer: &Path, name: &str, seconds: u64) -> Result<bool> {
    let work = workspace::target().join("fuzz");
    let (inputs, found) = (work.join("inputs").join(name), work.join("found").join(name));
    for directory in [&inputs, &found] {
        fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    }
    keep(&workspace::root().join("tests/corpus").join(name), &inputs)?;
    let mut command = Command::new(fuzzer);
    command.current_dir(workspace::root()).env("LB_FUZZ_TARGET", name);
    command.arg(format!("-max_total_time={seconds}")).arg("-max_len=4096").arg("-timeout=60");
    command
        .args(["-print_final_stats=1", "-verbosity=1"])
        .arg(format!("-artifact_prefix={}/", found.display()));
    command.arg(inputs);
    Ok(command.status().with_context(|| format!("cannot start {}", fuzzer.display()))?.success())
}

/// Copies the kept inputs but those that show a fault that is not mended yet.
fn keep(corpus: &Path, inputs: &Path) -> Result<()> {
    for file in fs::read_dir(corpus).with_context(|| format!("cannot read {}", corpus.display()))? {
        let path = file?.path();
        if let Some(name) =
            path.file_name().filter(|_| path.extension().is_none_or(|ending| ending != "waiting"))
        {
            fs::copy(&path, inputs.join(name)).with_context(|| format!("cannot copy {}", path.display()))?;
        }
    }
    Ok(())
}
