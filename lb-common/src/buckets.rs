//! Building hash tables whose buckets all fit: the daemon looks for a seed under which none overflows, so that a program
//! finds an entry, or its absence, in the one bucket where it looks.

use std::vec::Vec;

/// Why a table cannot be built.
#[derive(Debug, PartialEq, Eq)]
pub struct TableFull {
    pub entries: usize,
    pub buckets: usize,
}

impl core::fmt::Display for TableFull {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} entries do not fit in a table of {} buckets", self.entries, self.buckets)
    }
}

impl core::error::Error for TableFull {}

/// Places every entry in its bucket, whose number is the low bits of `bucket_of`, under the first of `seed_of`'s seeds that lets
/// no bucket overflow. There are eight buckets an entry, and at least `fewest`, unless it takes more. Returns that seed and
/// the buckets, in which entries that are free come last; their number is a power of two up to `most`, another one.
///
/// # Errors
/// [`TableFull`] when no seed of many works.
pub(crate) fn build<E: Copy + Default + PartialEq, S, const N: usize>(
    entries: &[E],
    (fewest, most): (usize, usize),
    seed_of: impl Fn(u64) -> S,
    bucket_of: impl Fn(&S, &E) -> u32,
) -> Result<(S, Vec<[E; N]>), TableFull> {
    assert!(most.is_power_of_two(), "buckets are masked, so their number is a power of two");
    let mut buckets = (8 * entries.len()).next_power_of_two().clamp(fewest.min(most), most);
    loop {
        let attempts = if buckets == most { 4096 } else { 64 };
        for seed in (0..attempts).map(&seed_of) {
            if let Some(table) = place(entries, buckets, |entry| bucket_of(&seed, entry)) {
                return Ok((seed, table));
            }
        }
        if buckets == most {
            return Err(TableFull { entries: entries.len(), buckets });
        }
        buckets *= 2;
    }
}

/// The table, if no bucket of it overflows.
fn place<E: Copy + Default + PartialEq, const N: usize>(
    entries: &[E],
    buckets: usize,
    bucket_of: impl Fn(&E) -> u32,
) -> Option<Vec<[E; N]>> {
    let free = E::default();
    let mut table = std::vec![[free; N]; buckets];
    for entry in entries {
        let bucket = &mut table[bucket_of(entry) as usize & (buckets - 1)];
        *bucket.iter_mut().find(|place| **place == free)? = *entry;
    }
    Some(table)
}
