//! The flow table, seen through a shared mapping: listed without a system call, and freed by compare-and-swap.

use super::error::DatapathError;
use lb_common::flow::{Flow, FlowState, Head};
use lb_common::settings::Settings;
use memmap2::{MmapOptions, MmapRaw};
use std::mem::offset_of;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicU64, Ordering};

/// How many flows a slice of the table freed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Expired {
    pub binding: u32,
    pub established: u32,
    pub closing: u32,
}

impl Expired {
    pub fn total(&self) -> u32 {
        self.binding + self.established + self.closing
    }
}

const WORDS: usize = size_of::<Flow>() / size_of::<u64>();
const HEAD: usize = offset_of!(Flow, head) / size_of::<u64>();
const _: () = assert!(offset_of!(Flow, head).is_multiple_of(size_of::<u64>()));

/// A flow as the words of the map.
type Entry = [AtomicU64; WORDS];

/// The flow table, and how many live flows each backend has. The programs change both at any time, so they are read and
/// written by whole words only.
#[derive(Debug)]
pub struct Flows {
    mapping: MmapRaw,
    entries: usize,
    live: MmapRaw,
    backends: usize,
    /// Where the next slice of [`Flows::expire`] begins.
    cursor: usize,
}

impl Flows {
    pub(super) fn map(
        flows: impl AsFd,
        entries: u32,
        live: impl AsFd,
        backends: u32,
    ) -> Result<Self, DatapathError> {
        let (entries, backends) = (entries as usize, backends as usize);
        let map = |fd: BorrowedFd<'_>, bytes, what| {
            let mapping = MmapOptions::new().len(bytes).map_raw(fd.as_raw_fd());
            mapping.map_err(DatapathError::system(format!("cannot map the {what} into memory")))
        };
        let mapping = map(flows.as_fd(), entries * size_of::<Flow>(), "flow table")?;
        let live = map(live.as_fd(), backends * size_of::<u64>(), "counts of live flows")?;
        Ok(Self { mapping, entries, live, backends, cursor: 0 })
    }

    fn counts(&self) -> &[AtomicU64] {
        // SAFETY: as in `table`.
        unsafe { std::slice::from_raw_parts(self.live.as_ptr().cast(), self.backends) }
    }

    /// How many live flows the backend in a slot has: those that are binding, opening or established.
    pub fn live(&self, slot: u16) -> u64 {
        let count = self.counts().get(usize::from(slot)).map_or(0, |count| count.load(Ordering::Relaxed));
        // Between an end and its beginning on two processors it may be less than nothing.
        count.cast_signed().max(0).cast_unsigned()
    }

    fn table(&self) -> &[Entry] {
        // SAFETY: the mapping is page-aligned, of this length, readable and writable, and lives as long as `self`;
        // everybody who shares it, the programs included, accesses its words atomically.
        unsafe { std::slice::from_raw_parts(self.mapping.as_ptr().cast(), self.entries) }
    }

    /// How many flows there is room for, if they spread evenly.
    pub fn capacity(&self) -> usize {
        self.entries
    }

    /// Copies of all flows, in no order, with their index. A flow that changes while it is copied may be seen as it was
    /// or as it becomes, but never as a mixture of two flows.
    pub fn iter(&self) -> impl Iterator<Item = (u32, Flow)> + '_ {
        self.table().iter().enumerate().filter_map(|(i, entry)| Some((i as u32, snapshot(entry)?)))
    }

    /// Looks at the next `budget` entries and frees those whose time has come.
    pub(super) fn expire(&mut self, now: u32, budget: usize, settings: &Settings) -> Expired {
        let mut expired = Expired::default();
        for _ in 0..budget.min(self.entries) {
            let at = self.cursor;
            self.cursor = (at + 1) % self.entries;
            let entry = &self.table()[at];
            let head = entry[HEAD].load(Ordering::Acquire);
            let Flow { client_flags, last_seen, .. } = copy(entry);
            let (limit, count) = match FlowState::from_bits(Head::from_bits(head).state) {
                // A processor claims an entry for less than a microsecond.
                FlowState::Free | FlowState::Claimed => continue,
                FlowState::Binding | FlowState::Opening | FlowState::Awaiting => {
                    (settings.binding_ticks, &mut expired.binding)
                }
                FlowState::Established => (settings.idle_ticks_of(client_flags), &mut expired.established),
                FlowState::Closing => (settings.closing_ticks, &mut expired.closing),
            };
            let age = now.wrapping_sub(last_seen) as i32;
            // Signed: a packet of this very moment is younger than the time we were given.
            if age < 0 || age as u32 <= limit {
                continue;
            }
            // The head is what it was: nobody took the entry or moved the flow on meanwhile.
            if entry[HEAD].compare_exchange(head, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                *count += 1;
                let head = Head::from_bits(head);
                let live = self.counts().get(usize::from(head.backend));
                if let Some(live) = live.filter(|_| FlowState::from_bits(head.state).is_live()) {
                    live.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
        expired
    }
}

fn copy(entry: &Entry) -> Flow {
    bytemuck::cast(std::array::from_fn::<u64, WORDS, _>(|i| entry[i].load(Ordering::Relaxed)))
}

fn snapshot(entry: &Entry) -> Option<Flow> {
    for _ in 0..4 {
        let before = Head::from_bits(entry[HEAD].load(Ordering::Acquire));
        if matches!(FlowState::from_bits(before.state), FlowState::Free | FlowState::Claimed) {
            return None;
        }
        let flow = copy(entry);
        std::sync::atomic::fence(Ordering::Acquire);
        let after = Head::from_bits(entry[HEAD].load(Ordering::Relaxed));
        let same =
            |a: Head, b: Head| Head::key(a.client_port, a.service) == Head::key(b.client_port, b.service);
        if same(before, after) && same(flow.head, after) {
            return Some(flow);
        }
    }
    // Taken over and over while we look: it is not there long enough to be listed.
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::addr::Be16;
    use lb_common::flow::DATAGRAMS;
    use std::io::{Seek, SeekFrom, Write};

    fn timeouts() -> Settings {
        Settings {
            binding_ticks: 10,
            idle_ticks: 1000,
            closing_ticks: 20,
            datagram_idle_ticks: 500,
            ..Settings::default()
        }
    }

    fn flow(port: u16, state: FlowState, last_seen: u32) -> Flow {
        let head = Head { client_port: Be16::new(port), service: 1, state: state as u8, ..Head::default() };
        Flow { head, last_seen, ..Flow::default() }
    }

    fn table(flows: &[Flow]) -> Flows {
        let file = |bytes: &[u8]| {
            let mut file = tempfile::tempfile().unwrap();
            file.write_all(bytes).unwrap();
            file.seek(SeekFrom::Start(0)).unwrap();
            file
        };
        let live = flows.iter().filter(|flow| FlowState::from_bits(flow.head.state).is_live()).count();
        let live = file(bytemuck::bytes_of(&(live as u64)));
        Flows::map(file(bytemuck::cast_slice(flows)), flows.len() as u32, live, 1).unwrap()
    }

    fn ports(flows: &Flows) -> Vec<u16> {
        flows.iter().map(|(_, flow)| flow.head.client_port.get()).collect()
    }

    #[test]
    fn flows_expire_by_their_state() {
        let mut flows = table(&[
            flow(1, FlowState::Binding, 100),
            flow(2, FlowState::Established, 100),
            flow(3, FlowState::Closing, 100),
            flow(4, FlowState::Claimed, 0),
            Flow::default(),
            flow(6, FlowState::Established, 200),
            Flow { client_flags: DATAGRAMS, ..flow(7, FlowState::Established, 100) },
        ]);
        assert_eq!(ports(&flows), [1, 2, 3, 6, 7], "free and claimed entries are no flows");
        assert_eq!(flows.expire(110, 100, &timeouts()), Expired::default(), "at the limit is not beyond it");
        assert_eq!(flows.expire(111, 100, &timeouts()), Expired { binding: 1, ..Expired::default() });
        assert_eq!(flows.expire(121, 100, &timeouts()), Expired { closing: 1, ..Expired::default() });
        assert_eq!(flows.expire(600, 100, &timeouts()), Expired::default());
        assert_eq!(flows.expire(601, 100, &timeouts()), Expired { established: 1, ..Expired::default() });
        assert_eq!(ports(&flows), [2, 6], "datagrams have a time of their own");
        assert_eq!(flows.expire(1101, 100, &timeouts()), Expired { established: 1, ..Expired::default() });
        assert_eq!(ports(&flows), [6]);
        assert_eq!(
            (flows.live(0), flows.live(1)),
            (1, 0),
            "closing flows are not live, and there is one backend"
        );
    }

    #[test]
    fn a_slice_goes_on_where_the_last_ended() {
        let mut flows = table(&(1..=10).map(|port| flow(port, FlowState::Binding, 0)).collect::<Vec<_>>());
        assert_eq!(flows.expire(11, 4, &timeouts()).total(), 4);
        assert_eq!(ports(&flows), [5, 6, 7, 8, 9, 10]);
        assert_eq!(flows.expire(11, 4, &timeouts()).total(), 4);
        assert_eq!(flows.expire(11, 4, &timeouts()).total(), 2, "and around the end");
    }

    #[test]
    fn a_flow_seen_after_now_is_young() {
        let mut flows = table(&[flow(1, FlowState::Binding, 5), flow(2, FlowState::Binding, u32::MAX - 5)]);
        assert_eq!(flows.expire(3, 10, &timeouts()).total(), 0, "9 ticks across the overflow");
        assert_eq!(flows.expire(6, 10, &timeouts()).total(), 1);
        assert_eq!(ports(&flows), [1]);
    }
}
