//! `cargo xtask test --kernel 6.1,6.12`: other kernels than the one that runs here, each in a virtual machine.
//!
//! source.rs finds kernels, what.rs builds what is to run and says its steps, image.rs makes the machine's file system,
//! machine.rs runs it, guest.rs is the first process in it, report.rs prints what was seen.

pub(crate) mod guest;
mod image;
mod machine;
mod protocol;
mod report;
mod source;
mod what;
mod wires;

use anyhow::{Context, Result, bail};
use machine::{Accelerator, Machine};
use protocol::{Event, Plan};
use report::Report;
use source::Kernel;
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;
pub(crate) use what::Extent;
use what::What;
use wires::Wires;

/// The word for the kernel that runs here: no machine, the same steps.
const HERE: &str = "here";

/// Runs an extent of the tests on each kernel, and prints a table.
pub(crate) fn run(words: &[String], extent: &Extent) -> Result<()> {
    // Before anything is built: a wrong word is told at once.
    let kernels = words.iter().map(|word| Ok((word, found(word)?))).collect::<Result<Vec<_>>>()?;
    let what = What::build(extent)?;
    let image = what.image()?;
    let accelerator = match kernels.iter().find_map(|(_, kernel)| kernel.as_ref()) {
        Some(kernel) => machine::accelerator(kernel)?,
        None => Accelerator::Emulated,
    };
    // Loading is short and mostly waiting for one processor, so kernels do it side by side; tests would be in each other's way.
    let at_once = matches!(extent, Extent::Load);
    let mut reports = Vec::new();
    let one = |(word, kernel): &(&String, Option<Kernel>)| -> (Report, Result<()>) {
        let mut report = Report::new(word, &what.steps);
        let done = match kernel {
            Some(kernel) => in_machine(kernel, &image, &what, accelerator, &mut report),
            None => here(&what, &mut report),
        };
        (report, done)
    };
    if at_once {
        std::thread::scope(|scope| {
            let running: Vec<_> = kernels.iter().map(|kernel| scope.spawn(|| one(kernel))).collect();
            reports
                .extend(running.into_iter().map(|run| run.join().expect("running a machine does not panic")));
        });
    } else {
        reports.extend(kernels.iter().map(one));
    }
    let mut failed = Vec::new();
    for (report, done) in &reports {
        print!("{}", report.troubles());
        if let Err(error) = done {
            println!("\n{}: {error:#}", report.label);
        }
        if let Extent::Tests(filter) = extent
            && !report.has_tests()
        {
            bail!("no test that runs on other kernels has a name that contains `{filter}`");
        }
        if done.is_err() || !report.is_good() {
            failed.push(report.label.clone());
        }
    }
    let reports: Vec<_> = reports.into_iter().map(|(report, _)| report).collect();
    println!("\n{}", report::table(&reports));
    if !failed.is_empty() {
        bail!(
            "kernel {} failed; all that was printed is in {}",
            failed.join(", "),
            source::directory()?.display()
        );
    }
    Ok(())
}

fn found(word: &str) -> Result<Option<Kernel>> {
    if word == HERE { Ok(None) } else { source::find(word).map(Some) }
}

/// For how long a machine may run beside its steps.
const OVERHEAD: Duration = Duration::from_secs(120);

fn in_machine(
    kernel: &Kernel,
    image: &image::Image,
    what: &What,
    accelerator: Accelerator,
    report: &mut Report,
) -> Result<()> {
    let directory = source::directory()?;
    let initramfs = Temporary(directory.join(format!("{}.cpio", kernel.release)));
    let mut steps = what.steps.clone();
    if accelerator == Accelerator::Emulated {
        steps.iter_mut().for_each(|step| step.environment.push(("LB_EMULATED".into(), "1".into())));
    }
    let plan = Plan {
        modules: ["virtio_pci", "virtio_net", "e1000e", "vmxnet3", "tun"].map(str::to_owned).into(),
        steps,
    };
    let mut image = image.clone();
    image.modules(kernel)?;
    image.text(protocol::PLAN, serde_json::to_vec(&plan)?)?;
    image.write(&initramfs.0)?;
    let has_cards = plan.steps.iter().any(|step| step.name == what::MACHINE);
    let wires = has_cards.then(|| Wires::lay(|module| image.has_module(module))).transpose()?;
    let console = directory.join(format!("{}.console.log", kernel.release));
    let machine = Machine {
        kernel,
        initramfs: &initramfs.0,
        console: &console,
        accelerator,
        wires: wires.as_ref(),
        limit: OVERHEAD + Duration::from_secs(plan.steps.iter().map(|step| step.seconds).sum()),
    };
    let mut log = Log::open(&directory.join(format!("{}.log", kernel.release)))?;
    let mut failed = Ok(());
    machine.run(&mut |event| {
        report.note(&event);
        if let Err(error) = log.write(&report.label, what, &event) {
            failed = Err(error);
        }
    })?;
    failed
}

/// The same on the kernel that runs here.
fn here(what: &What, report: &mut Report) -> Result<()> {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease")?.trim().to_owned();
    let mut log = Log::open(&source::directory()?.join(format!("{release}.log")))?;
    report.note(&Event::Up { release, seconds: 0.0 });
    for (index, step) in what.steps.iter().enumerate() {
        if step.name == what::MACHINE {
            report.leave_out(index);
            continue;
        }
        let mut tell = |event: &Event| {
            report.note(event);
            log.write(HERE, what, event)
        };
        guest::run_step(&mut tell, index, step)?;
    }
    Ok(())
}

/// All that steps print, in a file; their beginnings and ends here, too.
struct Log(File);

impl Log {
    fn open(path: &Path) -> Result<Self> {
        Ok(Self(File::create(path).with_context(|| format!("cannot write {}", path.display()))?))
    }

    fn write(&mut self, label: &str, what: &What, event: &Event) -> Result<()> {
        let name = |step: &usize| what.steps.get(*step).map_or("?", |step| step.name.as_str());
        match event {
            Event::Up { release, seconds } => writeln!(self.0, "{release} runs after {seconds:.1} s")?,
            Event::Begin { step } => {
                eprintln!("  … {label}: {}", name(step));
                writeln!(self.0, "== {}", name(step))?;
            }
            Event::Line { text, .. } => writeln!(self.0, "{text}")?,
            Event::End { step, ended, seconds } => {
                let mark = if *ended == protocol::Ended::Well { "✓" } else { "✗" };
                eprintln!("  {mark} {label}: {} ({seconds:.1} s)", name(step));
                writeln!(self.0, "== {} {ended:?} {seconds:.1} s", name(step))?;
            }
            Event::Trouble { text } => {
                eprintln!("    {label}: {text}");
                writeln!(self.0, "== {text}")?;
            }
            Event::Off => {}
        }
        Ok(())
    }
}

/// A file that goes with this.
struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // It is large and can be made again; where it cannot be removed, it stays.
        let _ = std::fs::remove_file(&self.0);
    }
}
