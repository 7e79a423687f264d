//! Inputs that are kept: seeds, and what once failed. One file each, in `tests/corpus/TARGET/`.

use super::{Check, Target, failure, shorten};
use crate::dice::Dice;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};

/// Files with this ending show a fault that is known and not mended yet: they are not fed.
const WAITING: &str = "waiting";

/// The kept inputs of a target.
pub fn directory(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// Names and contents, in the order of their names.
pub fn kept(target: &Target) -> Result<Vec<(String, Vec<u8>)>> {
    let directory = directory(target);
    let mut kept = Vec::new();
    let files = fs::read_dir(&directory).with_context(|| format!("reading {}", directory.display()))?;
    for file in files {
        let path = file?.path();
        if path.extension().is_some_and(|ending| ending == WAITING) {
            continue;
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        kept.push((name, fs::read(&path).with_context(|| format!("reading {}", path.display()))?));
    }
    kept.sort();
    ensure!(!kept.is_empty(), "{} holds no input", directory.display());
    Ok(kept)
}

/// Feeds every kept input, then so many mutations of them as the target says, or as `rounds` does.
///
/// # Errors
/// The first that fails: why, and the shortest input that does, written to a file, with the seed.
pub fn run(target: &Target, seed: u64, rounds: Option<u32>) -> Result<()> {
    let mut check = (target.start)().with_context(|| format!("target {}", target.name))?;
    let kept = kept(target)?;
    for (name, input) in &kept {
        if let Some(why) = failure(&mut *check, input) {
            bail!("{} fails with {}/{name}: {why}", target.name, directory(target).display());
        }
    }
    let mut dice = Dice::of(seed, 0, 0);
    for round in 0..rounds.unwrap_or(target.rounds) {
        let (first, second) = (&dice.choose(&kept).1, &dice.choose(&kept).1);
        let input = target.mutate(&mut dice, first, second);
        if let Some(why) = failure(&mut *check, &input) {
            let told = report(target, &mut *check, &input, &why)?;
            bail!("seed {seed}, round {round} (LB_FUZZ_SEED={seed} repeats it): {told}");
        }
    }
    Ok(())
}

/// Makes an input that fails as short as it can be, keeps it in a file of the build's directory, and tells all about it.
pub fn report(target: &Target, check: &mut dyn Check, input: &[u8], why: &str) -> Result<String> {
    let shortest = shorten::shorten(target.shape, input, |input| failure(check, input).is_some());
    let why = failure(check, &shortest).unwrap_or_else(|| format!("{why} (not every time)"));
    let found = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz/found").join(target.name);
    fs::create_dir_all(&found).with_context(|| format!("making {}", found.display()))?;
    let found = found.canonicalize()?;
    let hash = shortest.iter().fold(0_u64, |hash, byte| lb_common::hash::mix64(hash ^ u64::from(*byte)));
    let file = found.join(format!("{hash:016x}"));
    fs::write(&file, &shortest).with_context(|| format!("writing {}", file.display()))?;
    Ok(format!(
        "target {}: {why}\n{}\nkeep it with:\n  cp {} tests/corpus/{}/NAME",
        target.name,
        String::from_utf8_lossy(&shortest).trim_end(),
        file.display(),
        target.name
    ))
}
