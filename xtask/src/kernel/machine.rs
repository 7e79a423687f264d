//! A virtual machine: qemu with a kernel and an initramfs, a console in a file, and events over its second serial port.

use super::protocol::{Event, Plan};
use super::source::{self, Kernel};
use super::wires::Wires;
use crate::{steps, workspace};
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

const QEMU: &str = "qemu-system-x86_64";

/// How instructions are run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    /// Every instruction is translated: 5 to 20 times slower.
    Emulated,
}

/// What a machine is made of.
pub(crate) struct Machine<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) initramfs: &'a Path,
    /// What its kernel prints.
    pub(crate) console: &'a Path,
    pub(crate) accelerator: Accelerator,
    pub(crate) wires: Option<&'a Wires>,
    pub(crate) limit: Duration,
}

/// Processors and memory: as CI has, and room for the file system twice, packed and unpacked.
const PROCESSORS: u32 = 2;
const MEBIBYTES: u32 = 4096;

/// No console but the first serial port; a panic ends the machine; no time for what only real machines need.
const COMMAND_LINE: &str =
    "console=ttyS0 quiet loglevel=4 panic=-1 rdinit=/init no5lvl mitigations=off audit=0 tsc=reliable";

impl Machine<'_> {
    /// Runs it to its end, and tells every event.
    ///
    /// # Errors
    /// It does not end in its time, or not with the plan's end.
    pub(crate) fn run(&self, tell: &mut dyn FnMut(Event)) -> Result<()> {
        let mut qemu = Running(self.start()?);
        let lines = lines_of(&mut qemu.0)?;
        let until = Instant::now() + self.limit;
        let mut off = false;
        loop {
            match lines.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => match serde_json::from_str(line.trim()) {
                    Ok(event) => {
                        off |= event == Event::Off;
                        tell(event);
                    }
                    // The port of a machine that dies may say anything.
                    Err(_) => tell(Event::Trouble { text: line }),
                },
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => bail!(
                    "the machine did not end within {} s; its console: {}\n{}",
                    self.limit.as_secs(),
                    self.console.display(),
                    self.console_tail()
                ),
            }
        }
        let status = qemu.0.wait().context("cannot wait for qemu")?;
        ensure!(
            off && status.success(),
            "the machine stopped before its plan had ended ({status}); its console: {}\n{}",
            self.console.display(),
            self.console_tail()
        );
        Ok(())
    }

    fn start(&self) -> Result<Child> {
        let (accelerator, processor) = match self.accelerator {
            Accelerator::Kvm => ("kvm", "host"),
            Accelerator::Emulated => ("tcg,thread=multi", "max"),
        };
        let mut qemu = Command::new(QEMU);
        qemu.args(["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"])
            .args(["-accel", accelerator, "-cpu", processor])
            .args(["-smp", &PROCESSORS.to_string(), "-m", &MEBIBYTES.to_string()])
            .arg("-kernel")
            .arg(&self.kernel.image)
            .arg("-initrd")
            .arg(self.initramfs)
            .args(["-append", COMMAND_LINE])
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .args(["-chardev", "stdio,id=events,signal=off", "-serial", "chardev:events"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        if let Some(wires) = self.wires {
            wires.plug_in(&mut qemu);
        }
        qemu.spawn().context("cannot start qemu-system-x86_64: `cargo xtask setup` installs it")
    }

    fn console_tail(&self) -> String {
        let text = fs::read(self.console).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(25)..]
            .iter()
            .map(|line| format!("    {line}"))
            .collect::<Vec<_>>()
            .join("\n")
    }
}

/// Ended with this process's interest in it, after Ctrl-C and a panic, too.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // Either fails only when it has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What it says, and what qemu itself complains of.
fn lines_of(qemu: &mut Child) -> Result<Receiver<String>> {
    let (send, lines) = channel();
    let out: Box<dyn std::io::Read + Send> = Box::new(qemu.stdout.take().context("qemu's output is piped")?);
    let errors: Box<dyn std::io::Read + Send> =
        Box::new(qemu.stderr.take().context("qemu's errors are piped")?);
    for stream in [out, errors] {
        let send = send.clone();
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { return };
                let line = String::from_utf8_lossy(&line).into_owned();
                if !line.trim().is_empty() && send.send(line).is_err() {
                    return;
                }
            }
        });
    }
    Ok(lines)
}

/// A machine with KVM does nothing else in this time than to start and to stop; without, it may hang.
const KVM_LIMIT: Duration = Duration::from_secs(10);

/// Whether KVM works here. Where there is a device that does not work, machines hang: so one is tried, with a limit of time,
/// and the outcome remembered.
pub(crate) fn accelerator(kernel: &Kernel) -> Result<Accelerator> {
    if !Path::new("/dev/kvm").exists() {
        return Ok(Accelerator::Emulated);
    }
    let directory = source::directory()?;
    let host = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let remembered = directory.join("kvm");
    let known = fs::read_to_string(&remembered).unwrap_or_default();
    for (word, accelerator) in [("works", Accelerator::Kvm), ("hangs", Accelerator::Emulated)] {
        if known == format!("{word} {host}") {
            return Ok(accelerator);
        }
    }
    let initramfs = directory.join("kvm.cpio");
    let mut image = super::image::Image::new()?;
    let this = std::env::current_exe().context("cannot find this program")?;
    image.program(&this, Path::new("/init"))?;
    image.text(super::protocol::PLAN, serde_json::to_vec(&Plan::default())?)?;
    image.write(&initramfs)?;
    let step = steps::Step::begin("trying KVM");
    let console = directory.join("kvm.log");
    let machine = Machine {
        kernel,
        initramfs: &initramfs,
        console: &console,
        accelerator: Accelerator::Kvm,
        wires: None,
        limit: KVM_LIMIT,
    };
    let works = machine.run(&mut |_| {}).is_ok();
    step.end(true);
    if !works {
        eprintln!("    /dev/kvm is there but does not work: machines are emulated, which is slower");
    }
    fs::write(&remembered, format!("{} {host}", if works { "works" } else { "hangs" }))?;
    Ok(if works { Accelerator::Kvm } else { Accelerator::Emulated })
}

/// A copy of a program without its debugging information: a tenth of the size.
pub(crate) fn stripped(program: &Path) -> Result<PathBuf> {
    let directory = source::directory()?.join("stripped");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let name = program.file_name().with_context(|| format!("{} names no file", program.display()))?;
    let to = directory.join(name);
    let changed = |path: &Path| path.metadata().and_then(|found| found.modified()).ok();
    if changed(&to).is_some() && changed(&to) >= changed(program) {
        return Ok(to);
    }
    let strip = workspace::command("strip")
        .context("no command strip: `cargo xtask setup` installs what is missing")?;
    let output =
        Command::new(strip).arg("-o").arg(&to).arg(program).output().context("cannot start strip")?;
    ensure!(output.status.success(), "strip: {}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(to)
}
