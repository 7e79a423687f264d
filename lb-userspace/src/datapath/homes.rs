//! The table of learned sessions, seen through a shared mapping: listed without a system call, and freed by
//! compare-and-swap, as the programs do it.

use super::error::DatapathError;
use lb_common::home::{CLAIMED, FREE, GROUP, Home};
use memmap2::{MmapOptions, MmapRaw};
use std::os::fd::{AsFd, AsRawFd};
use std::sync::atomic::{AtomicU64, Ordering};

const WORDS: usize = size_of::<Home>() / size_of::<u64>();
const _: () = assert!(std::mem::offset_of!(Home, tag) == 0 && WORDS == 3);

/// An entry as the words of the map: its tag, where the session is at home, and which cookie of that name it is.
type Entry = [AtomicU64; WORDS];

/// The table. The programs change it at any time, so it is read and written by whole words only.
#[derive(Debug)]
pub struct Homes {
    mapping: MmapRaw,
    entries: usize,
    /// Where the next slice of [`Homes::expire`] begins.
    cursor: usize,
}

impl Homes {
    /// `entries` is a power of two, and not less than a group.
    pub(super) fn map(fd: impl AsFd, entries: u32) -> Result<Self, DatapathError> {
        let entries = entries as usize;
        let mapping = MmapOptions::new()
            .len(entries * size_of::<Home>())
            .map_raw(fd.as_fd().as_raw_fd())
            .map_err(DatapathError::system("cannot map the table of learned sessions into memory"))?;
        Ok(Self { mapping, entries, cursor: 0 })
    }

    fn table(&self) -> &[Entry] {
        // SAFETY: the mapping is page-aligned, of this length, readable and writable, and lives as long as `self`;
        // everybody who shares it, the programs included, accesses its words atomically.
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().cast(), self.entries) }
    }

    /// How many sessions there is room for, if they spread evenly.
    pub fn capacity(&self) -> usize {
        self.entries
    }

    /// Copies of all entries, in no order.
    pub fn iter(&self) -> impl Iterator<Item = Home> + '_ {
        self.table().iter().filter_map(snapshot)
    }

    /// The entry of a tag.
    pub fn find(&self, tag: u64) -> Option<Home> {
        self.group(tag).iter().filter_map(snapshot).find(|home| home.tag == tag)
    }

    /// Forgets the session of a tag. Returns whether it was known.
    pub(super) fn forget(&self, tag: u64) -> bool {
        self.group(tag).iter().fold(false, |known, entry| known | free(entry, tag))
    }

    /// Forgets every session at home at the backend in a slot. Returns how many there were.
    pub(super) fn forget_slot(&self, slot: u16) -> usize {
        let there =
            |entry: &&Entry| snapshot(entry).is_some_and(|home| home.slot == slot && free(entry, home.tag));
        self.table().iter().filter(there).count()
    }

    /// Looks at the next `budget` entries and forgets those that nobody asked for in longer than their service's limit, in
    /// ticks. Returns how many.
    pub(super) fn expire(&mut self, now: u32, budget: usize, limit: impl Fn(u16) -> u32) -> usize {
        let mut expired = 0;
        for _ in 0..budget.min(self.entries) {
            let at = self.cursor;
            self.cursor = (at + 1) % self.entries;
            let entry = &self.table()[at];
            let Some(home) = snapshot(entry) else { continue };
            let age = now.wrapping_sub(home.last_used) as i32;
            // Signed: a packet of this very moment is younger than the time we were given.
            if age < 0 || age as u32 <= limit(home.service) {
                continue;
            }
            // Whoever is asked for at this moment is learned anew with its next response, or hashed to where it is.
            expired += usize::from(free(entry, home.tag));
        }
        expired
    }

    fn group(&self, tag: u64) -> &[Entry] {
        let groups = self.entries / GROUP;
        let first = (tag as usize & (groups - 1)) * GROUP;
        &self.table()[first..first + GROUP]
    }
}

/// The entry as one moment's, unless it is free or being filled in.
fn snapshot(entry: &Entry) -> Option<Home> {
    let tag = entry[0].load(Ordering::Acquire);
    let at = entry[1].load(Ordering::Acquire);
    let which = entry[2].load(Ordering::Acquire);
    if tag == FREE || tag == CLAIMED || entry[0].load(Ordering::Acquire) != tag {
        return None;
    }
    Some(bytemuck::cast([tag, at, which]))
}

/// Frees an entry, if it still has that tag.
fn free(entry: &Entry, tag: u64) -> bool {
    entry[0].compare_exchange(tag, FREE, Ordering::AcqRel, Ordering::Relaxed).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, SeekFrom, Write};

    fn home(tag: u64, slot: u16, service: u16, last_used: u32) -> Home {
        Home { tag, slot, service, last_used, ..Home::default() }
    }

    /// A table of two groups, with these entries at these places.
    fn table(homes: &[(usize, Home)]) -> Homes {
        let mut all = [Home::default(); 2 * GROUP];
        homes.iter().for_each(|(at, home)| all[*at] = *home);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytemuck::cast_slice(&all)).unwrap();
        file.seek(SeekFrom::Start(0)).unwrap();
        Homes::map(file, all.len() as u32).unwrap()
    }

    fn tags(homes: &Homes) -> Vec<u64> {
        homes.iter().map(|home| home.tag).collect()
    }

    #[test]
    fn a_session_is_found_in_its_group_alone() {
        let homes = table(&[
            (3, home(10, 1, 1, 5)),
            (4, home(CLAIMED, 1, 1, 5)),
            (9, home(11, 2, 1, 6)),
            (10, home(12, 3, 1, 6)),
        ]);
        assert_eq!(tags(&homes), [10, 11, 12], "free and claimed entries are no sessions");
        assert_eq!(homes.find(10), Some(home(10, 1, 1, 5)));
        assert_eq!(homes.find(11), Some(home(11, 2, 1, 6)));
        assert_eq!(homes.find(12), None, "an even tag is of the first group");
        assert_eq!(homes.find(FREE), None);
        assert!(homes.forget(11) && !homes.forget(11) && !homes.forget(12));
        assert_eq!(tags(&homes), [10, 12]);
    }

    #[test]
    fn a_backend_takes_its_sessions_with_it() {
        let homes = table(&[(0, home(2, 1, 1, 0)), (1, home(4, 2, 1, 0)), (8, home(3, 1, 2, 0))]);
        assert_eq!(homes.forget_slot(1), 2);
        assert_eq!(homes.forget_slot(1), 0);
        assert_eq!(tags(&homes), [4]);
    }

    #[test]
    fn sessions_expire_by_their_service() {
        let mut homes = table(&[
            (0, home(2, 1, 1, 100)),
            (5, home(4, 1, 2, 100)),
            (8, home(3, 1, 1, 200)),
            (9, home(5, 1, 1, u32::MAX - 5)),
        ]);
        let limit = |service| if service == 1 { 1000 } else { 10 };
        assert_eq!(homes.expire(110, 100, limit), 0, "at the limit is not beyond it");
        assert_eq!(homes.expire(111, 100, limit), 1);
        assert_eq!(tags(&homes), [2, 3, 5]);
        assert_eq!(homes.expire(50, 100, limit), 0, "asked for after now");
        assert_eq!(homes.expire(1101, 1, limit), 1, "a slice");
        assert_eq!(homes.expire(1101, 8, limit), 0, "it goes on where the last one ended");
        assert_eq!(homes.expire(1101, 8, limit), 1, "and across the overflow");
        assert_eq!(tags(&homes), [3]);
    }
}
