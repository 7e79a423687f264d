//! The flow table, seen through a shared mapping: listed without a system call, and freed by compare-and-swap.

use super::error::DatapathError;
use lb_common::flow::{Flow, FlowState, GROUP, HELD, Head, LIVES, PENDS, Use, WAITS, first_group};
use lb_common::hash::flow_hash;
use lb_common::settings::Settings;
use memmap2::{MmapOptions, MmapRaw};
use std::mem::offset_of;
use std::os::fd::{AsRawFd, BorrowedFd};
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
    waiting: MmapRaw,
    backends: usize,
    uses: MmapRaw,
    services: usize,
    overflows: MmapRaw,
    /// Where the next slice of [`Flows::expire`] begins.
    cursor: usize,
    sweep: Sweep,
}

/// The maps that belong to the flow table, and how many values each has.
#[derive(Clone, Copy)]
pub(super) struct Tables<'a> {
    pub(super) flows: (BorrowedFd<'a>, u32),
    pub(super) live: BorrowedFd<'a>,
    pub(super) waiting: BorrowedFd<'a>,
    pub(super) backends: u32,
    pub(super) uses: (BorrowedFd<'a>, u32),
    pub(super) overflows: BorrowedFd<'a>,
}

/// What is known of the groups that have overflowed.
#[derive(Debug)]
struct Sweep {
    /// Whether a flow was seen in the other group since the table was begun anew, for each first group...
    strayed: Vec<bool>,
    /// ...the marks as they were then...
    marks: Vec<u64>,
    /// ...and as they were when it was begun anew the time before.
    before: Vec<u64>,
}

impl Sweep {
    fn new(groups: usize) -> Self {
        // No mark is ever that: nothing is known yet.
        Self { strayed: vec![false; groups], marks: vec![u64::MAX; groups], before: vec![u64::MAX; groups] }
    }
}

impl Flows {
    pub(super) fn map(tables: Tables<'_>) -> Result<Self, DatapathError> {
        let (entries, backends, services) =
            (tables.flows.1 as usize, tables.backends as usize, tables.uses.1 as usize);
        let map = |fd: BorrowedFd<'_>, bytes, what| {
            let mapping = MmapOptions::new().len(bytes).map_raw(fd.as_raw_fd());
            mapping.map_err(DatapathError::system(format!("cannot map the {what} into memory")))
        };
        let groups = entries / GROUP;
        Ok(Self {
            mapping: map(tables.flows.0, entries * size_of::<Flow>(), "flow table")?,
            entries,
            live: map(tables.live, backends * size_of::<u64>(), "counts of live flows")?,
            waiting: map(tables.waiting, backends * size_of::<u64>(), "counts of flows that wait")?,
            backends,
            uses: map(tables.uses.0, services * size_of::<Use>(), "counts of services' flows")?,
            services,
            overflows: map(tables.overflows, groups * size_of::<u64>(), "marks of groups that overflowed")?,
            cursor: 0,
            sweep: Sweep::new(groups),
        })
    }

    fn counts(&self) -> &[AtomicU64] {
        words(&self.live, self.backends)
    }

    /// How many live flows the backend in a slot has: those that are binding, opening or established.
    pub fn live(&self, slot: u16) -> u64 {
        self.counts().get(usize::from(slot)).map_or(0, read)
    }

    /// How many flows wait for an answer of the backend in a slot to their SYN.
    pub fn waiting(&self, slot: u16) -> u64 {
        words(&self.waiting, self.backends).get(usize::from(slot)).map_or(0, read)
    }

    /// How much of the tables a service uses.
    pub fn used(&self, service: u16) -> Use {
        match self.uses().get(usize::from(service)) {
            Some([flows, pending]) => Use { flows: read(flows), pending: read(pending) },
            None => Use::default(),
        }
    }

    fn uses(&self) -> &[[AtomicU64; 2]] {
        let (pairs, _) = words(&self.uses, 2 * self.services).as_chunks();
        pairs
    }

    fn table(&self) -> &[Entry] {
        let (entries, _) = words(&self.mapping, WORDS * self.entries).as_chunks();
        entries
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
            if at == 0 {
                self.begin_sweep();
            }
            self.cursor = (at + 1) % self.entries;
            let entry = &self.table()[at];
            let head = entry[HEAD].load(Ordering::Acquire);
            let Flow { client, client_flags, backend_flags, last_seen, .. } = copy(entry);
            let seen = Head::from_bits(head);
            let Some(limit) = settings.lifetime(seen.state, client_flags, backend_flags) else { continue };
            let tail = Head::key(seen.client_port, seen.service);
            let first = first_group(flow_hash(&settings.flow_seed, client, tail), settings.flow_group_mask);
            if first as usize != at / GROUP
                && let Some(strayed) = self.sweep.strayed.get_mut(first as usize)
            {
                *strayed = true;
            }
            let entry = &self.table()[at];
            let count = match FlowState::from_bits(seen.state) {
                FlowState::Established => &mut expired.established,
                FlowState::Closing => &mut expired.closing,
                _ => &mut expired.binding,
            };
            let age = now.wrapping_sub(last_seen) as i32;
            // Signed: a packet of this very moment is younger than the time we were given.
            if age < 0 || age as u32 <= limit {
                continue;
            }
            // The head is what it was: nobody took the entry or moved the flow on meanwhile.
            if entry[HEAD].compare_exchange(head, 0, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                *count += 1;
                self.uncount(seen);
            }
        }
        expired
    }

    /// Takes a flow that was freed out of the counts, as the programs do.
    fn uncount(&self, head: Head) {
        let counted = head.counted();
        let less = |count: Option<&AtomicU64>, kind: u8| {
            if let Some(count) = count.filter(|_| counted & kind != 0) {
                count.fetch_sub(1, Ordering::Relaxed);
            }
        };
        let slot = usize::from(head.backend);
        less(self.counts().get(slot), LIVES);
        less(words(&self.waiting, self.backends).get(slot), WAITS);
        if let Some([flows, pending]) = self.uses().get(usize::from(head.service)) {
            less(Some(flows), HELD);
            less(Some(pending), PENDS);
        }
    }

    /// Takes the marks off groups none of whose flows was seen in its other group all around the table. A program marks a group
    /// just before it places the flow, so only a mark counts that was there one time around earlier: what was placed since
    /// then may stand where we had looked already.
    fn begin_sweep(&mut self) {
        let mut sweep = std::mem::replace(&mut self.sweep, Sweep::new(0));
        let marks = words(&self.overflows, self.entries / GROUP);
        for (group, mark) in marks.iter().enumerate() {
            let present = mark.load(Ordering::Acquire);
            if present != 0 && present == sweep.before[group] && !sweep.strayed[group] {
                // Unchanged still, or somebody has just placed a flow.
                let _ = mark.compare_exchange(present, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
            sweep.before[group] = sweep.marks[group];
            sweep.marks[group] = mark.load(Ordering::Acquire);
        }
        sweep.strayed.fill(false);
        self.sweep = sweep;
    }
}

/// The words of a mapping, as many as it was made for.
fn words(mapping: &MmapRaw, count: usize) -> &[AtomicU64] {
    assert!(count * size_of::<u64>() <= mapping.len(), "no more than was mapped");
    // SAFETY: the mapping is page-aligned, of this length, readable and writable, and lives as long as the reference to it;
    // everybody who shares it, the programs included, accesses its words atomically.
    unsafe { std::slice::from_raw_parts(mapping.as_ptr().cast(), count) }
}

/// A count that several processors change: between an end and its beginning it may be less than nothing.
fn read(count: &AtomicU64) -> u64 {
    count.load(Ordering::Relaxed).cast_signed().max(0).cast_unsigned()
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
    use lb_common::flow::{DATAGRAMS, FIN_SEEN};
    use std::io::{Seek, SeekFrom, Write};
    use std::os::fd::AsFd;

    fn timeouts() -> Settings {
        Settings {
            binding_ticks: 10,
            idle_ticks: 1000,
            closing_ticks: 20,
            datagram_idle_ticks: 500,
            half_closed_ticks: 60,
            opening_ticks: 5,
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
        let count = |kind: u8| {
            let is = |flow: &&Flow| flow.head.counted() & kind != 0;
            flows.iter().filter(is).count() as u64
        };
        let live = file(bytemuck::bytes_of(&count(LIVES)));
        let waiting = file(bytemuck::bytes_of(&count(WAITS)));
        let used = Use { flows: count(HELD), pending: count(PENDS) };
        let uses = file(bytemuck::cast_slice(&[Use::default(), used]));
        let mut entries = flows.to_vec();
        entries.resize(flows.len().next_multiple_of(GROUP), Flow::default());
        let overflows = file(bytemuck::cast_slice(&vec![0_u64; entries.len() / GROUP]));
        Flows::map(Tables {
            flows: (file(bytemuck::cast_slice(&entries)).as_fd(), entries.len() as u32),
            live: live.as_fd(),
            waiting: waiting.as_fd(),
            backends: 1,
            uses: (uses.as_fd(), 2),
            overflows: overflows.as_fd(),
        })
        .unwrap()
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
    fn what_one_side_has_closed_and_what_nobody_confirmed_expires_sooner() {
        let mut flows = table(&[
            Flow { backend_flags: FIN_SEEN, ..flow(1, FlowState::Established, 100) },
            Flow { client_flags: FIN_SEEN, ..flow(2, FlowState::Established, 100) },
            flow(3, FlowState::Established, 100),
            flow(4, FlowState::Opening, 100),
        ]);
        assert_eq!(flows.expire(106, 100, &timeouts()), Expired { binding: 1, ..Expired::default() });
        assert_eq!(flows.expire(160, 100, &timeouts()), Expired::default(), "at the limit is not beyond it");
        assert_eq!(flows.expire(161, 100, &timeouts()), Expired { established: 2, ..Expired::default() });
        assert_eq!(ports(&flows), [3]);
    }

    #[test]
    fn what_expires_is_taken_out_of_its_service_s_share() {
        let mut flows = table(&[
            flow(1, FlowState::Binding, 100),
            flow(2, FlowState::Awaiting, 105),
            flow(3, FlowState::Closing, 100),
            flow(4, FlowState::Established, 100),
        ]);
        assert_eq!((flows.used(1), flows.waiting(0)), (Use { flows: 4, pending: 2 }, 1));
        flows.expire(111, 100, &timeouts());
        assert_eq!((flows.used(1), flows.waiting(0)), (Use { flows: 3, pending: 1 }, 0));
        flows.expire(130, 100, &timeouts());
        assert_eq!(
            (flows.used(1), flows.used(0), flows.used(9)),
            (Use { flows: 1, pending: 0 }, Use::default(), Use::default())
        );
    }

    /// A mark stays for as long as a flow stands in its other group, and while one that was just placed there may have been
    /// missed.
    #[test]
    fn a_mark_goes_when_no_flow_is_in_its_other_group() {
        let settings = Settings { flow_group_mask: 3, flow_seed: [3, 5, 7, 11, 13, 17, 19], ..timeouts() };
        let group = |port| {
            let tail = Head::key(Be16::new(port), 1);
            first_group(flow_hash(&settings.flow_seed, Flow::default().client, tail), 3)
        };
        let strayed = (1..).find(|port| group(*port) == 1).expect("some port");
        let mut entries = vec![Flow::default(); 4 * GROUP];
        entries[0] = flow(strayed, FlowState::Established, 100);
        let mut flows = table(&entries);
        let marks = |flows: &Flows| -> Vec<u64> {
            words(&flows.overflows, 4).iter().map(|mark| mark.load(Ordering::Relaxed)).collect()
        };
        let around = |flows: &mut Flows| flows.expire(101, 4 * GROUP, &settings);
        for group in [1, 2] {
            words(&flows.overflows, 4)[group].store(1, Ordering::Relaxed);
        }
        for _ in 0..2 {
            around(&mut flows);
            assert_eq!(marks(&flows), [0, 1, 1, 0], "nothing is known for sure yet");
        }
        for _ in 0..3 {
            around(&mut flows);
        }
        assert_eq!(marks(&flows), [0, 1, 0, 0], "nobody strayed from group 2");
        // A flow is placed from group 1 while the last one there ends.
        words(&flows.overflows, 4)[1].store(2, Ordering::Relaxed);
        flows.table()[0][HEAD].store(0, Ordering::Relaxed);
        around(&mut flows);
        around(&mut flows);
        assert_eq!(marks(&flows)[1], 2);
        for _ in 0..2 {
            around(&mut flows);
        }
        assert_eq!(marks(&flows), [0; 4]);
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
