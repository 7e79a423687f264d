//! The flow table: who claims an entry has it alone, and the counts are those of the table.

use crate::atomic;
use crate::clock::NOW;
use crate::flows::{self, Claimant, Entry, Key};
use crate::maps::{self, FLOWS, LIVE, SETTINGS, USES, WAITING};
use lb_common::addr::{Addr, Be16};
use lb_common::flow::{Flow, FlowState, GROUP, Head};
use lb_common::settings::Settings;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

const SERVICE: u16 = 1;

/// What the programs of one round share.
pub(crate) fn set_up(flows: usize, stashes: usize) {
    maps::reset(flows, stashes);
    write(SETTINGS.get_ptr_mut(0), Settings { stash_mask: stashes as u32 - 1, ..crate::settings() });
}

pub(crate) fn write<T>(place: Option<*mut T>, value: T) {
    // SAFETY: an entry of a map; before a round's threads run nobody else uses it.
    unsafe { place.expect("such an entry").write(value) };
}

fn known() -> &'static Settings {
    maps::settings().expect("settings")
}

pub(crate) fn key(client: u16) -> Key {
    Key {
        client: Addr::from(IpAddr::from([10, 0, 0, client as u8])),
        port: Be16::new(1024 + client),
        service: SERVICE,
    }
}

pub(crate) fn head(client: u16, state: FlowState) -> Head {
    Head {
        client_port: key(client).port,
        service: SERVICE,
        backend: client % 2,
        state: state as u8,
        window_shift: 0,
    }
}

/// Puts a flow of a client at an index, last heard of at a tick, and counts it.
pub(crate) fn put(index: u32, client: u16, state: FlowState, last_seen: u32) -> Entry {
    let flow = FLOWS.get_ptr_mut(index).expect("an entry");
    write(Some(flow), Flow { client: key(client).client, last_seen, ..Flow::default() });
    let entry = Entry { flow, index };
    flows::publish(entry, head(client, state));
    entry
}

/// Claims an entry for a client, if there is one, fills it in and publishes it.
fn begin(client: u16) {
    let key = key(client);
    let Ok(entry) = flows::claim(known(), &key, None, NOW, Claimant::Proven) else { return };
    // Field by field, as the programs do.
    // SAFETY: the entry is this thread's.
    unsafe {
        atomic::write(&raw mut (*entry.flow).client, key.client);
        atomic::write(&raw mut (*entry.flow).cookie, u32::from(client));
        assert_eq!(
            atomic::read(&raw const (*entry.flow).client),
            key.client,
            "somebody else fills in the entry"
        );
        assert_eq!(
            atomic::read(&raw const (*entry.flow).cookie),
            u32::from(client),
            "somebody else fills in the entry"
        );
    }
    flows::publish(entry, head(client, FlowState::Binding));
}

/// Frees an entry whose time is over, as the daemon does.
fn sweep(index: u32) {
    let entry = Entry { flow: FLOWS.get_ptr_mut(index).expect("an entry"), index };
    let was = flows::head(entry);
    // SAFETY: an aligned field of an entry.
    let last_seen = unsafe { atomic::read(&raw const (*entry.flow).last_seen) };
    let limit = known().lifetime(was.state, 0, 0);
    if limit.is_some_and(|limit| NOW.wrapping_sub(last_seen) as i32 > limit as i32) {
        flows::replace(entry, was, Head::default());
    }
}

/// Everything that is counted, once everybody has finished.
fn counts_are_right() {
    let (mut held, mut pending, mut live, mut waiting) = (0, 0, [0; 4], [0; 4]);
    for index in 0..GROUP as u32 {
        let head = FLOWS.get(index).expect("an entry").head;
        let counted = head.counted();
        held += u64::from(counted & lb_common::flow::HELD != 0);
        pending += u64::from(counted & lb_common::flow::PENDS != 0);
        live[usize::from(head.backend % 4)] += u64::from(counted & lb_common::flow::LIVES != 0);
        waiting[usize::from(head.backend % 4)] += u64::from(counted & lb_common::flow::WAITS != 0);
    }
    let used = USES.get(SERVICE.into()).expect("uses");
    assert_eq!((used.flows, used.pending), (held, pending), "flows and waiting flows of the service");
    for slot in 0..4 {
        let counted = |count: Option<&u64>| *count.expect("a count");
        assert_eq!(counted(LIVE.get(slot)), live[slot as usize], "live flows of backend {slot}");
        assert_eq!(counted(WAITING.get(slot)), waiting[slot as usize], "waiting flows of backend {slot}");
    }
}

#[test]
fn two_flows_never_fill_in_one_entry() {
    crate::explore(|| {
        set_up(GROUP, 1);
        // Two are free.
        for index in 2..GROUP as u32 {
            put(index, 100 + index as u16, FlowState::Established, NOW);
        }
        let claim = |client| Box::new(move || begin(client)) as Box<dyn FnOnce() + Send>;
        crate::together((1..=4).map(claim).collect());
        counts_are_right();
        let (mut seen, flows) = (Vec::new(), (0..2).filter_map(|index| FLOWS.get(index)));
        for flow in flows.filter(|flow| flow.head.state != FlowState::Free as u8) {
            assert_eq!(flow.head, head(flow.cookie as u16, FlowState::Binding), "an entry is of two flows");
            assert_eq!(flow.client, key(flow.cookie as u16).client, "an entry is of two flows");
            seen.push(flow.cookie);
        }
        assert!(!seen.is_empty(), "somebody is the fastest");
    });
}

#[test]
fn what_expires_is_freed_or_claimed_once() {
    crate::explore(|| {
        set_up(GROUP, 1);
        for index in 0..GROUP as u32 {
            let last_seen = if index < 2 { NOW - 200 } else { NOW };
            put(index, 100 + index as u16, FlowState::Established, last_seen);
        }
        let mut threads: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
        for client in 1..=2 {
            threads.push(Box::new(move || begin(client)));
        }
        threads.push(Box::new(|| (0..2).for_each(sweep)));
        threads.push(Box::new(|| (0..2).for_each(sweep)));
        crate::together(threads);
        counts_are_right();
    });
}

#[test]
fn a_flow_goes_on_in_one_way_only() {
    crate::explore(|| {
        set_up(GROUP, 1);
        put(0, 1, FlowState::Binding, NOW);
        let moved = Arc::new(AtomicU32::new(0));
        let moves = |state: FlowState| {
            let moved = moved.clone();
            Box::new(move || {
                let entry = Entry { flow: FLOWS.get_ptr_mut(0).expect("an entry"), index: 0 };
                let was = flows::head(entry);
                if was == head(1, FlowState::Binding)
                    && flows::replace(entry, was, Head { state: state as u8, ..was })
                {
                    moved.fetch_add(1, Ordering::SeqCst);
                }
            }) as Box<dyn FnOnce() + Send>
        };
        crate::together(vec![
            moves(FlowState::Established),
            moves(FlowState::Closing),
            moves(FlowState::Established),
            Box::new(|| begin(2)),
        ]);
        assert_eq!(moved.load(Ordering::SeqCst), 1, "ways in which it went on");
        counts_are_right();
    });
}

#[test]
fn what_is_found_is_the_flow_of_that_client() {
    crate::explore(|| {
        set_up(GROUP, 1);
        put(0, 1, FlowState::Established, NOW - 200);
        let claim = |client| Box::new(move || begin(client)) as Box<dyn FnOnce() + Send>;
        let find = Box::new(|| {
            if let Some(entry) = flows::find(known(), &key(1)) {
                // Where its head is still this client's, all that was written before it is, too.
                // SAFETY: fields of an entry.
                let client = unsafe { atomic::read(&raw const (*entry.flow).client) };
                let head = flows::head(entry);
                if head == self::head(1, FlowState::Established) || head == self::head(1, FlowState::Binding)
                {
                    assert_eq!(client, key(1).client, "the entry is another client's");
                }
            }
        });
        crate::together(vec![claim(2), claim(3), find]);
        counts_are_right();
    });
}
