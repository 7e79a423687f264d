//! The disk under the stores. What it takes to make a few bytes durable bounds what one writer can do.

use anyhow::{Context, Result};
use hdrhistogram::Histogram;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// Bytes that are written and made durable at a time: a page.
const WRITE: usize = 4096;

/// Type of the file system that holds `path`, from `/proc/self/mounts`.
pub(super) fn file_system(path: &Path) -> Result<String> {
    let path = path.canonicalize().with_context(|| format!("there is no {}", path.display()))?;
    let mounts = std::fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    let holder = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            Some((fields.next()?, fields.next()?))
        })
        // Of two on the same directory the later one is seen.
        .filter(|(at, _)| path.starts_with(at))
        .max_by_key(|(at, _)| at.len());
    Ok(holder.with_context(|| format!("no mount holds {}", path.display()))?.1.to_owned())
}

/// A file that is written to again and again, as a log is.
pub(super) struct Probe {
    file: File,
    end: u64,
}

impl Probe {
    pub(super) fn new(directory: &Path) -> Result<Self> {
        let path = directory.join("probe");
        let file = OpenOptions::new().create_new(true).write(true).open(&path);
        Ok(Self { file: file.with_context(|| format!("making {}", path.display()))?, end: 0 })
    }

    /// Nanoseconds of an append and its `fdatasync`, for a while: the median and the 99th percentile.
    pub(super) fn run(&mut self, time: Duration) -> Result<(u64, u64)> {
        let mut times = Histogram::<u64>::new(3).expect("three digits are allowed");
        let until = Instant::now() + time;
        loop {
            let begun = Instant::now();
            self.file.write_all_at(&[7; WRITE], self.end)?;
            self.file.sync_data()?;
            let now = Instant::now();
            times.record((now - begun).as_nanos() as u64)?;
            self.end += WRITE as u64;
            if now >= until {
                return Ok((times.value_at_quantile(0.5), times.value_at_quantile(0.99)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_file_system_by_its_longest_mount_point() {
        assert_eq!(file_system(Path::new("/proc/self")).unwrap(), "proc");
    }
}
