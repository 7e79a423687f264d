//! Every program of both objects into the running kernel, one after the other: what the verifier followed, how long it took,
//! or why it was refused. One that is refused keeps none of the others from being tried.

use crate::object::{path_of, refusal};
use anyhow::{Context, Result};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use lb_userspace::datapath::{Limits, map_entries};
use serde::Serialize;
use std::fmt;
use std::path::Path;
use std::time::{Duration, Instant};

/// What the kernel said of all programs.
#[derive(Serialize)]
struct Report {
    kernel: String,
    programs: Vec<Loaded>,
}

/// What it said of one.
#[derive(Serialize)]
struct Loaded {
    name: String,
    /// Instructions that the verifier followed; none where it does not tell, or has refused.
    verified: Option<u32>,
    /// None of a program that was refused: it was tried twice, the second time for the log.
    milliseconds: Option<f64>,
    refused: Option<String>,
}

/// Loads them and prints what became of each. Returns whether all were taken.
///
/// # Errors
/// An object cannot be read.
pub fn run(json: bool) -> Result<bool> {
    let system = nix::sys::utsname::uname().context("asking for the kernel's release")?;
    let mut report = Report { kernel: system.release().to_string_lossy().into_owned(), programs: Vec::new() };
    if !json {
        println!("kernel {}", report.kernel);
    }
    for object in ["lb", "testbed"] {
        load(&path_of(object)?, &mut |loaded| {
            // At once: who waits for a slow kernel sees how far it is.
            if !json {
                println!("{loaded}");
            }
            report.programs.push(loaded);
        })?;
    }
    if json {
        println!("{}", serde_json::to_string(&report)?);
    }
    Ok(report.programs.iter().all(|program| program.refused.is_none()))
}

/// Loads the programs of one object, by their names.
fn load(path: &Path, told: &mut dyn FnMut(Loaded)) -> Result<()> {
    let bytes = std::fs::read(path).with_context(|| format!("reading {}", path.display()))?;
    let object = aya_obj::Object::parse(&bytes).with_context(|| format!("reading {}", path.display()))?;
    let mut names: Vec<&String> = object.programs.keys().collect();
    names.sort();
    match make_maps(path, &bytes)? {
        Ok(mut ebpf) => names.iter().for_each(|name| told(load_one(&mut ebpf, name))),
        Err(error) => {
            let why = format!("its maps cannot be made: {:#}", anyhow::Error::from(error));
            names.iter().for_each(|name| told(Loaded::refused(name, why.clone())));
        }
    }
    Ok(())
}

/// The object with its maps; those of the product are as large as lbd makes them unless it is told otherwise.
fn make_maps(path: &Path, bytes: &[u8]) -> Result<Result<Ebpf, EbpfError>> {
    let mut loader = EbpfLoader::new();
    let entries = if path.ends_with("lb") { map_entries(path, &Limits::default())? } else { Vec::new() };
    for (name, entries) in &entries {
        loader.map_max_entries(name, *entries);
    }
    Ok(loader.load(bytes))
}

fn load_one(ebpf: &mut Ebpf, name: &str) -> Loaded {
    let Some(program) = ebpf.program_mut(name) else {
        return Loaded::refused(name, "the loader has lost it".to_owned());
    };
    let begun = Instant::now();
    let loaded = match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        _ => return Loaded::refused(name, "it is of a kind that is not loaded here".to_owned()),
    };
    let time = begun.elapsed();
    match loaded.and_then(|()| verified(program)) {
        Ok(verified) => Loaded::taken(name, verified, time),
        Err(error) => Loaded::refused(name, refusal(&error)),
    }
}

fn verified(program: &Program) -> Result<Option<u32>, ProgramError> {
    Ok(program.info()?.verified_instruction_count())
}

impl Loaded {
    fn taken(name: &str, verified: Option<u32>, time: Duration) -> Self {
        let milliseconds = (time.as_secs_f64() * 1e4).round() / 10.0;
        Self { name: name.to_owned(), verified, milliseconds: Some(milliseconds), refused: None }
    }

    fn refused(name: &str, why: String) -> Self {
        Self { name: name.to_owned(), verified: None, milliseconds: None, refused: Some(why) }
    }
}

impl fmt::Display for Loaded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, verified, milliseconds, refused } = self;
        if let Some(why) = refused {
            return write!(f, "{name:10} REFUSED {why}");
        }
        let verified = verified.map_or_else(|| "?".to_owned(), |count| count.to_string());
        write!(f, "{name:10} {verified:>8} instructions {:10.1} ms", milliseconds.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_read_what_people_read() {
        let taken = Loaded::taken("lb", Some(275_213), Duration::from_micros(164_249));
        assert_eq!(taken.to_string(), "lb           275213 instructions      164.2 ms");
        let refused = Loaded::refused("lb_joint", "Permission denied; its log ends:\nR1 !read_ok".to_owned());
        assert_eq!(refused.to_string(), "lb_joint   REFUSED Permission denied; its log ends:\nR1 !read_ok");
        let report = Report { kernel: "6.1.0".to_owned(), programs: vec![taken, refused] };
        assert_eq!(
            serde_json::to_string(&report).unwrap(),
            "{\"kernel\":\"6.1.0\",\"programs\":[\
             {\"name\":\"lb\",\"verified\":275213,\"milliseconds\":164.2,\"refused\":null},\
             {\"name\":\"lb_joint\",\"verified\":null,\"milliseconds\":null,\
             \"refused\":\"Permission denied; its log ends:\\nR1 !read_ok\"}]}"
        );
    }

    /// No processor of another architecture is at hand, but what its object holds instead of plain loads every kernel takes.
    #[test]
    fn objects_for_another_architecture_are_taken_here_too() -> Result<()> {
        let other = if std::env::consts::ARCH == "aarch64" { "x86_64" } else { "aarch64" };
        for object in ["lb", "testbed"] {
            let path = path_of(&format!("{other}/{object}"))
                .with_context(|| format!("`cargo xtask build --arch {other}` builds it"))?;
            let mut programs = Vec::new();
            load(&path, &mut |loaded| programs.push(loaded))?;
            assert!(!programs.is_empty(), "{} holds no program", path.display());
            for program in programs {
                assert_eq!(program.refused, None, "{}", program.name);
            }
        }
        Ok(())
    }
}
