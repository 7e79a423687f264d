//! What runs on a kernel: the steps, and what has to be built and to be in the machine for them.

use super::image::Image;
use super::machine;
use super::protocol::Step;
use crate::build::{self, HOST, Profile};
use crate::setup::Need;
use crate::{steps, toolchain, workspace};
use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// How much of it.
#[derive(Clone, Debug)]
pub(crate) enum Extent {
    /// Every program and every rule is loaded, nothing else: what each change has to pass.
    Load,
    /// Everything.
    All,
    /// The tests whose name contains this.
    Tests(String),
}

/// Programs of the package `tests`, and what of each runs on every kernel: all where there is nothing said, else the tests whose
/// names contain one of these. Left out is what says nothing about a kernel, and what needs programs that machines have not.
const TESTS: [(&str, &[&str]); 6] = [
    ("table", &[]),
    ("stacks", &[]),
    ("platform", &[]),
    ("daemon", &["rules::", "sessions::", "learned::", "datagrams::", "quic::", "takeover::", "status::"]),
    ("real", &["tls::a_name_that_nobody_has"]),
    (MACHINE, &[]),
];
/// The program whose tests need a machine.
pub(crate) const MACHINE: &str = "machine";
/// Tests of how long something takes: in a machine they would tell of the machine.
const TIMED: &str = "far::";
/// The tests that start lbd with every rule of a configuration.
const RULES: &str = "rules::";

/// Commands that tests and lbd call, or that a person wants who looks around.
const COMMANDS: [&str; 24] = [
    "sh",
    "ip",
    "tc",
    "ss",
    "ethtool",
    "nsenter",
    "unshare",
    "curl",
    "nginx",
    "modprobe",
    "mount",
    "umount",
    "cat",
    "ls",
    "sleep",
    "kill",
    "ping",
    "dmesg",
    "env",
    "grep",
    "true",
    "redis-server",
    "openssl",
    "ipvsadm",
];
/// Files and directories that programs read.
const FILES: [&str; 7] = [
    "/etc/passwd",
    "/etc/group",
    "/etc/nsswitch.conf",
    "/etc/protocols",
    "/etc/services",
    "/etc/iproute2",
    "/usr/lib/ssl/openssl.cnf",
];

/// Seconds that a step may take. Emulated machines are slow, and their host may be busy.
const LIMIT: u64 = 3600;

/// Built, and ready to be put into machines or to be run here.
pub(crate) struct What {
    pub(crate) steps: Vec<Step>,
    /// Programs, and where they stand.
    programs: Vec<PathBuf>,
    files: Vec<PathBuf>,
}

impl What {
    /// Builds what the extent takes.
    pub(crate) fn build(extent: &Extent) -> Result<Self> {
        build::build(&[Need::Kernels, Need::Run, Need::Peers], Profile::Debug)?;
        let built = cargo_test_programs()?;
        let debug = Profile::Debug.directory();
        let this = debug.join("xtask");
        let mut what = Self { steps: Vec::new(), programs: vec![this.clone()], files: Vec::new() };
        what.files.extend(["lb", "testbed"].map(|object| workspace::bpf_objects().join(object)));
        what.programs.extend(["lbd", "lbctl"].map(|name| debug.join(name)));
        what.files.push(debug.join("lb.bpf.o"));
        what.files.push(workspace::root().join("README.md"));
        match extent {
            Extent::Load => {
                what.load(&built)?;
                let daemon = built.test("daemon")?;
                what.test("rules", &daemon, &[RULES]);
            }
            Extent::All => {
                what.load(&built)?;
                for (name, those) in TESTS {
                    let program = built.test(name)?;
                    what.test(name, &program, those);
                }
                what.programs.extend(["shop", "tower_shop"].map(|name| debug.join("examples").join(name)));
                what.step("demo", &this, &["demo", "--built"]);
            }
            Extent::Tests(filter) => {
                for (name, _) in TESTS {
                    let program = built.test(name)?;
                    what.programs.push(program.clone());
                    what.step(name, &program, &[filter, "--test-threads", "2"]);
                }
            }
        }
        Ok(what)
    }

    /// Every program, with what the verifier did.
    fn load(&mut self, built: &Built) -> Result<()> {
        let load = built.program("load")?;
        self.step("load", &load, &["--json"]);
        self.programs.push(load);
        Ok(())
    }

    fn test(&mut self, name: &str, program: &Path, those: &[&str]) {
        self.programs.push(program.to_owned());
        let common = ["--test-threads", "2", "--skip", TIMED];
        let arguments: Vec<_> = those.iter().copied().chain(common).collect();
        self.step(name, program, &arguments);
    }

    fn step(&mut self, name: &str, program: &Path, arguments: &[&str]) {
        let path = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        self.steps.push(Step {
            name: name.to_owned(),
            program: program.to_owned(),
            arguments: arguments.iter().map(|&word| word.to_owned()).collect(),
            environment: vec![
                ("PATH".into(), path.into()),
                ("HOME".into(), "/root".into()),
                ("RUST_BACKTRACE".into(), "1".into()),
            ],
            directory: workspace::root().join("tests"),
            seconds: LIMIT,
        });
    }

    /// All of it in a file system.
    pub(crate) fn image(&self) -> Result<Image> {
        let mut image = Image::new()?;
        let this = Profile::Debug.directory().join("xtask");
        image.program(&machine::stripped(&this)?, Path::new("/init"))?;
        for program in &self.programs {
            image.program(&machine::stripped(program)?, program)?;
        }
        for command in COMMANDS {
            image.command(command)?;
        }
        // What `xtask attach` runs; built as the rest.
        for (name, strip) in [("lbd", true), ("lb.bpf.o", false)] {
            let (from, to) = (Profile::Debug.directory().join(name), Profile::Release.directory().join(name));
            if strip { image.program(&machine::stripped(&from)?, &to)? } else { image.copy(&from, &to)? }
        }
        // Wherever modprobe is here, the kernel looks for it in one place.
        let modprobe = workspace::command("modprobe").context("no command modprobe")?;
        image.program(&modprobe, Path::new("/sbin/modprobe"))?;
        for file in &self.files {
            image.file(file)?;
        }
        for directory in ["docs", "tests/fixtures"] {
            image.tree(&workspace::root().join(directory))?;
        }
        for file in FILES.map(Path::new) {
            if file.is_dir() {
                image.tree(file)?;
            } else if file.exists() {
                image.file(file)?;
            }
        }
        image.text("/etc/hosts", "127.0.0.1 localhost\n")?;
        image.text("/etc/resolv.conf", "")?;
        Ok(image)
    }
}

/// The programs that `cargo test` would run.
struct Built(Vec<Artifact>);

#[derive(Deserialize)]
struct Artifact {
    target: Target,
    executable: Option<PathBuf>,
    profile: Made,
}

#[derive(Deserialize)]
struct Target {
    name: String,
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Made {
    test: bool,
}

impl Built {
    fn test(&self, name: &str) -> Result<PathBuf> {
        self.find(name, "test")
    }

    fn program(&self, name: &str) -> Result<PathBuf> {
        self.find(name, "bin")
    }

    fn find(&self, name: &str, kind: &str) -> Result<PathBuf> {
        let is_it = |made: &&Artifact| {
            made.target.name == name
                && made.target.kind.iter().any(|is| is == kind)
                && made.profile.test == (kind == "test")
        };
        let found = self.0.iter().find(is_it).and_then(|made| made.executable.clone());
        found.with_context(|| format!("cargo built no {kind} program {name}"))
    }
}

fn cargo_test_programs() -> Result<Built> {
    let mut cargo = toolchain::host_cargo();
    cargo.args(["test", "--no-run", "--message-format", "json-render-diagnostics"]).args(HOST);
    cargo.args(["--lib", "--bins"]).args(TESTS.iter().flat_map(|(name, _)| ["--test", name]));
    let output = cargo.stderr(Stdio::inherit()).output().context("cannot start cargo")?;
    ensure!(output.status.success(), "`{}` failed ({})", steps::written(&cargo), output.status);
    let lines = String::from_utf8(output.stdout).context("cargo speaks UTF-8")?;
    // Messages of other kinds have no target or no executable.
    Ok(Built(lines.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()))
}
