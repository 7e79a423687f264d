//! Steps that take a while: one line each, with a spinner and the time it takes on a terminal, plain lines elsewhere.
//! What a step's command prints goes to a log; its end is shown when the step fails.

use crate::workspace;
use anyhow::{Context, Result, bail};
use console::style;
use indicatif::{ProgressBar, ProgressStyle};
use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, IsTerminal, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Lines of a failed command's output that are worth showing.
const TAIL: usize = 25;

/// Runs `command` as the step `name`, quietly.
pub(crate) fn run(name: &str, command: &mut Command) -> Result<()> {
    let step = Step::begin(name);
    let log_path = log_path(name)?;
    let mut log = File::create(&log_path).with_context(|| format!("cannot write {}", log_path.display()))?;
    let (reader, writer) = io::pipe()?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone()?)
        .stderr(writer)
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    // The command holds the pipe's writing end; drop it here too, or the reader below never sees the end.
    command.stdout(Stdio::null()).stderr(Stdio::null());

    let mut tail = VecDeque::new();
    for line in BufReader::new(reader).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        // A progress bar overwrites itself: what stands last is what it shows.
        let line = line.trim_end().rsplit('\r').next().unwrap_or_default();
        writeln!(log, "{line}")?;
        step.says(line);
        if tail.len() == TAIL {
            tail.pop_front();
        }
        tail.push_back(line.to_owned());
    }
    let status = child.wait()?;
    step.end(status.success());
    if !status.success() {
        for line in tail {
            eprintln!("    {line}");
        }
        bail!("{name} failed ({status}); all it printed is in {}", log_path.display());
    }
    Ok(())
}

/// Runs `command` with this terminal, for commands that tell their own progress.
pub(crate) fn show(command: &mut Command) -> Result<()> {
    let status =
        command.status().with_context(|| format!("cannot start {}", command.get_program().display()))?;
    if !status.success() {
        bail!("`{}` failed ({status})", written(command));
    }
    Ok(())
}

/// A command as one would type it.
pub(crate) fn written(command: &Command) -> String {
    let program = command.get_program().to_string_lossy();
    let arguments = command.get_args().map(|argument| argument.to_string_lossy());
    std::iter::once(program).chain(arguments).collect::<Vec<_>>().join(" ")
}

/// A line on its way to ✓ or ✗.
pub(crate) struct Step {
    name: String,
    begun: Instant,
    bar: Option<ProgressBar>,
    good: bool,
}

impl Step {
    pub(crate) fn begin(name: &str) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("  {spinner} {prefix} {elapsed:.dim}  {wide_msg:.dim}")
                .expect("the template is well formed");
            let bar = ProgressBar::new_spinner().with_style(style).with_prefix(name.to_owned());
            bar.enable_steady_tick(Duration::from_millis(120));
            bar
        });
        if bar.is_none() {
            eprintln!("  … {name}");
        }
        Self { name: name.to_owned(), begun: Instant::now(), bar, good: false }
    }

    fn says(&self, line: &str) {
        if let Some(bar) = &self.bar {
            bar.set_message(line.to_owned());
        }
    }

    pub(crate) fn end(mut self, good: bool) {
        self.good = good;
    }
}

/// A step that is left by an error has failed.
impl Drop for Step {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
        let mark = if self.good { style("✓").green() } else { style("✗").red() };
        eprintln!("  {} {} ({:.1} s)", mark.for_stderr(), self.name, self.begun.elapsed().as_secs_f32());
    }
}

fn log_path(name: &str) -> Result<PathBuf> {
    let directory = workspace::target().join("xtask");
    fs::create_dir_all(&directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let word = |c: char| if c.is_ascii_alphanumeric() { c } else { '-' };
    let file: String = name.chars().map(word).take(40).collect();
    Ok(directory.join(format!("{}.log", file.trim_end_matches('-'))))
}
