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

/// How many buckets a table may have: numbers that are powers of two.
pub(crate) struct Sizes {
    /// Buckets for each entry, to begin with.
    pub(crate) each: usize,
    pub(crate) fewest: usize,
    pub(crate) most: usize,
}

/// Places every entry in its bucket, whose number is the low bits of `bucket_of`, under the first of `seed_of`'s seeds that lets
/// no bucket overflow. Returns that seed and the buckets, in which entries that are free come last.
///
/// # Errors
/// [`TableFull`] when no seed of many works.
pub(crate) fn build<E: Copy + Default, S, const N: usize>(
    entries: &[E],
    Sizes { each, fewest, most }: Sizes,
    seed_of: impl Fn(u64) -> S,
    bucket_of: impl Fn(&S, &E) -> u32,
) -> Result<(S, Vec<[E; N]>), TableFull> {
    assert!(most.is_power_of_two(), "buckets are masked, so their number is a power of two");
    let mut buckets = (each * entries.len()).next_power_of_two().clamp(fewest.min(most), most);
    let mut counts = Vec::new();
    loop {
        let attempts = if buckets == most { 4096 } else { 64 };
        let bucket = |seed: &S, entry: &E| bucket_of(seed, entry) as usize & (buckets - 1);
        for seed in (0..attempts).map(&seed_of) {
            counts.clear();
            counts.resize(buckets, 0_u8);
            let fits = entries.iter().all(|entry| {
                let count = &mut counts[bucket(&seed, entry)];
                *count += 1;
                usize::from(*count) <= N
            });
            if fits {
                let mut table = std::vec![[E::default(); N]; buckets];
                for entry in entries {
                    let bucket = bucket(&seed, entry);
                    counts[bucket] -= 1;
                    table[bucket][usize::from(counts[bucket])] = *entry;
                }
                return Ok((seed, table));
            }
        }
        if buckets == most {
            return Err(TableFull { entries: entries.len(), buckets });
        }
        buckets *= 2;
    }
}
