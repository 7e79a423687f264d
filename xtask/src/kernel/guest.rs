//! The first process of a machine that `cargo xtask test --kernel` starts: mounts what a system has, runs the plan's steps,
//! says on the second serial port what happens, and switches the power off.

use super::protocol::{Ended, Event, PLAN, PORT, Plan, Step};
use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::Pid;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// Whether this process is the first one of such a machine: the kernel has started it, with arguments of its own.
pub(crate) fn is_first() -> bool {
    std::process::id() == 1 && Path::new(PLAN).exists()
}

/// Runs the plan and switches the power off.
pub(crate) fn first() -> ExitCode {
    if let Err(error) = serve() {
        eprintln!("guest: {error:#}");
    }
    let Err(error) = reboot(RebootMode::RB_POWER_OFF);
    // The first process ends: the kernel panics, and the host sees a machine that stopped.
    eprintln!("guest: cannot switch the power off: {error}");
    ExitCode::FAILURE
}

/// The kernel gives its first process none.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Starts the steps and takes in every process that has lost its parent, until they are done.
fn serve() -> Result<()> {
    for (what, kind, on) in [
        ("proc", "proc", "/proc"),
        ("sysfs", "sysfs", "/sys"),
        ("devtmpfs", "devtmpfs", "/dev"),
        ("devpts", "devpts", "/dev/pts"),
        ("tmpfs", "tmpfs", "/dev/shm"),
        ("bpf", "bpf", "/sys/fs/bpf"),
        ("cgroup2", "cgroup2", "/sys/fs/cgroup"),
        ("tracefs", "tracefs", "/sys/kernel/tracing"),
    ] {
        // /tmp and /run stay as they are: the root is in memory, and the checkout may lie below one of them.
        // In a file system that is a mount itself, the directory may be missing.
        let _ = fs::create_dir_all(on);
        if let Err(error) = mount(Some(what), on, Some(kind), MsFlags::empty(), None::<&str>) {
            eprintln!("guest: cannot mount {kind} on {on}: {error}");
        }
    }
    let _ = std::os::unix::fs::symlink("/proc/self/fd", "/dev/fd");
    let worker = Command::new("/proc/self/exe").arg("guest").env("PATH", PATH).spawn();
    let worker = Pid::from_raw(worker.context("cannot start the steps")?.id() as i32);
    loop {
        match waitpid(None, None).context("cannot wait")? {
            WaitStatus::Exited(pid, _) | WaitStatus::Signaled(pid, ..) if pid == worker => return Ok(()),
            _ => {}
        }
    }
}

struct Port(File);

impl Port {
    fn tell(&mut self, event: &Event) -> Result<()> {
        let mut line = serde_json::to_string(event)?;
        line.push('\n');
        Ok(self.0.write_all(line.as_bytes())?)
    }
}

/// Runs the plan.
pub(crate) fn steps() -> Result<()> {
    let mut port =
        Port(OpenOptions::new().write(true).open(PORT).with_context(|| format!("opening {PORT}"))?);
    let up = fs::read_to_string("/proc/uptime")?;
    let seconds = up.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_default();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    port.tell(&Event::Up { release, seconds })?;
    let plan: Plan = serde_json::from_slice(&fs::read(PLAN)?)?;
    for module in &plan.modules {
        let output = Command::new("modprobe").arg(module).output();
        let trouble = match output {
            Ok(output) if output.status.success() => continue,
            Ok(output) => String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(error) => error.to_string(),
        };
        // A kernel that has it built in, or a machine without such a card, needs none.
        eprintln!("guest: module {module}: {trouble}");
    }
    let _ = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    for (index, step) in plan.steps.iter().enumerate() {
        run_step(&mut |event| port.tell(event), index, step)?;
    }
    port.tell(&Event::Off)
}

/// Runs one step and tells what happens.
pub(super) fn run_step(tell: &mut dyn FnMut(&Event) -> Result<()>, index: usize, step: &Step) -> Result<()> {
    tell(&Event::Begin { step: index })?;
    let begun = Instant::now();
    let ended = match start(step) {
        Ok((child, lines)) => follow(tell, index, step, child, &lines)?,
        Err(error) => {
            tell(&Event::Line { step: index, text: format!("{error:#}") })?;
            Ended::Badly
        }
    };
    tell(&Event::End { step: index, ended, seconds: begun.elapsed().as_secs_f64() })
}

fn start(step: &Step) -> Result<(Child, Receiver<String>)> {
    let (reader, writer) = std::io::pipe()?;
    let child = Command::new(&step.program)
        .args(&step.arguments)
        .envs(step.environment.iter().map(|(name, value)| (name, value)))
        .current_dir(&step.directory)
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .process_group(0)
        .spawn()
        .with_context(|| format!("cannot start {}", step.program.display()))?;
    let (send, lines) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(reader).split(b'\n') {
            let Ok(line) = line else { return };
            if send.send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    });
    Ok((child, lines))
}

/// How often it is asked whether a silent step has ended.
const MOMENT: Duration = Duration::from_millis(20);
/// For how long what a step has left behind may hold its output.
const GRACE: Duration = Duration::from_secs(2);

fn follow(
    tell: &mut dyn FnMut(&Event) -> Result<()>,
    index: usize,
    step: &Step,
    mut child: Child,
    lines: &Receiver<String>,
) -> Result<Ended> {
    let limit = Instant::now() + Duration::from_secs(step.seconds);
    let group = Pid::from_raw(child.id() as i32);
    let mut ended = None;
    loop {
        match lines.recv_timeout(MOMENT) {
            Ok(text) => tell(&Event::Line { step: index, text })?,
            Err(RecvTimeoutError::Disconnected) => break,
            Err(RecvTimeoutError::Timeout) => {}
        }
        if ended.is_none() && (child.try_wait()?.is_some() || Instant::now() > limit) {
            let late = child.try_wait()?.is_none();
            // Fails when nobody is left, which is as well.
            let _ = killpg(group, Signal::SIGKILL);
            let status = child.wait()?;
            let how = if late {
                Ended::Late
            } else if status.success() {
                Ended::Well
            } else {
                Ended::Badly
            };
            ended = Some((how, Instant::now() + GRACE));
        }
        if ended.is_some_and(|(_, until)| Instant::now() > until) {
            break;
        }
    }
    match ended {
        Some((how, _)) => Ok(how),
        None => Ok(if child.wait()?.success() { Ended::Well } else { Ended::Badly }),
    }
}
