//! A network namespace without a name: it vanishes with the last descriptor and process that refers to it.

use crate::client::eventually;
use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

/// Clones share the namespace.
#[derive(Clone)]
pub struct Netns {
    label: String,
    file: Arc<File>,
}

impl Netns {
    /// A new one with its loopback up. The label appears in messages only.
    pub fn new(label: &str) -> Result<Self> {
        crate::require_root();
        let create = || -> Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            Ok(File::open("/proc/thread-self/ns/net")?)
        };
        // A thread of its own, because a thread cannot be given back once it has changed its namespace.
        let file = std::thread::scope(|scope| scope.spawn(create).join().expect("creating does not panic"))
            .context("creating a network namespace")?;
        let netns = Self { label: label.to_owned(), file: Arc::new(file) };
        netns.ip(&["link set lo up"])?;
        Ok(netns)
    }

    /// A path by which other processes can open it while this process lives: `nsenter --net=PATH`.
    pub fn path(&self) -> String {
        format!("/proc/{}/fd/{}", std::process::id(), self.file.as_raw_fd())
    }

    /// Runs `f` in a thread inside the namespace and waits for it.
    ///
    /// # Panics
    /// When `f` does.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            self.enter();
            f()
        };
        std::thread::scope(|scope| match scope.spawn(inside).join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    }

    /// Starts a thread inside the namespace.
    pub fn spawn<T: Send + 'static>(
        &self,
        f: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let netns = self.clone();
        std::thread::spawn(move || {
            netns.enter();
            f()
        })
    }

    /// Moves the calling thread into the namespace, for good.
    pub(crate) fn enter(&self) {
        setns(&*self.file, CloneFlags::CLONE_NEWNET).expect("root may enter a namespace it holds open");
    }

    /// A command that will run inside the namespace, and die with the thread that starts it.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let file = Arc::clone(&self.file);
        let enter = move || {
            // SAFETY: the file is owned by this closure, so the descriptor is open.
            let fd = unsafe { BorrowedFd::borrow_raw(file.as_raw_fd()) };
            setns(fd, CloneFlags::CLONE_NEWNET)?;
            nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?;
            Ok(())
        };
        // SAFETY: two system calls, no allocation, no lock.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a command line, split at blanks, and returns what it printed.
    pub fn sh(&self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (program, args) = words.split_first().context("an empty command line")?;
        let output =
            self.command(program).args(args).output().with_context(|| {
                format!("running {program}; `cargo xtask setup` installs what tests need")
            })?;
        self.printed(line, &output)
    }

    /// Runs many `ip` commands in one process.
    pub fn ip(&self, lines: &[&str]) -> Result<()> {
        self.batch("ip", lines)
    }

    /// Runs many `tc` commands in one process.
    pub fn tc(&self, lines: &[&str]) -> Result<()> {
        self.batch("tc", lines)
    }

    fn batch(&self, program: &str, lines: &[&str]) -> Result<()> {
        let script = lines.join("\n");
        let mut child = self
            .command(program)
            .args(["-batch", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("running {program}; Debian's package iproute2 has it"))?;
        child.stdin.take().context("standard input is piped")?.write_all(script.as_bytes())?;
        self.printed(&script, &child.wait_with_output()?).map(drop)
    }

    fn printed(&self, what: &str, output: &Output) -> Result<String> {
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("in {}: `{what}`: {}: {}", self.label, output.status, stderr.trim());
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Sets `net.KEY` (with slashes) of this namespace.
    pub fn sysctl(&self, key: &str, value: impl ToString) -> Result<()> {
        let (path, value) = (format!("/proc/sys/net/{key}"), value.to_string());
        let written = self.run(|| std::fs::write(&path, &value));
        written.with_context(|| format!("in {}: writing {value} to {path}", self.label))
    }

    /// A counter of the namespace by the name that nstat prints, such as `TcpInCsumErrors` or `TcpExtListenDrops`.
    pub fn counter(&self, name: &str) -> Result<u64> {
        let read = |file: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        let text = self.run(|| Ok::<_, std::io::Error>(read("snmp")? + &read("netstat")?))?;
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.chunks_exact(2) {
            let (names, values) = (pair[0].split_whitespace(), pair[1].split_whitespace());
            let prefix = pair[0].split(':').next().unwrap_or_default();
            for (key, value) in names.zip(values).skip(1) {
                if name.strip_prefix(prefix) == Some(key) {
                    return Ok(value.parse()?);
                }
            }
        }
        bail!("the kernel has no counter {name}")
    }

    /// Index of an interface.
    pub fn ifindex(&self, name: &str) -> Result<u32> {
        self.run(|| nix::net::if_::if_nametoindex(name))
            .with_context(|| format!("no interface {name} in {}", self.label))
    }
}

impl std::fmt::Display for Netns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.label, self.path())
    }
}

/// A child that is killed when this is dropped.
pub struct Process(pub Child);

impl Process {
    /// Kills it with `signal` and waits.
    pub fn end(&mut self, signal: Signal) -> Result<std::process::ExitStatus> {
        self.signal(signal)?;
        Ok(self.0.wait()?)
    }

    /// Stops it where it is and waits until that has happened: a thread that is deep in the kernel comes out first, and until the
    /// signal has reached it the others go on.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)?;
        eventually("every thread stands still", || {
            for task in std::fs::read_dir(format!("/proc/{}/task", self.0.id()))? {
                let Ok(stat) = std::fs::read_to_string(task?.path().join("stat")) else { continue };
                // Behind the name, which may hold anything.
                if !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" T")) {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Lets it go on.
    pub fn thaw(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    /// Sends it a signal and does not wait.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.0.id() as i32), signal)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Either fails only when the child has ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
