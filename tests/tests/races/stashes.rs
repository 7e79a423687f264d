//! Stashes: who has the lock has it alone, and who reads without it knows whether what it read was the flow's.

use crate::atomic;
use crate::clock::NOW;
use crate::flows::{self, Entry};
use crate::maps::{FLOWS, STASHES, settings};
use crate::stash::{self, Slot};
use crate::table::{head, put, set_up};
use lb_common::flow::{FlowState, GROUP};
use lb_common::stash::{VIEW_USED, VIEWS, View};
use std::sync::atomic::{AtomicU32, Ordering};

/// Who has the lock of the only stash: a flow's index + 1.
static INSIDE: AtomicU32 = AtomicU32::new(0);

fn enter(flow: u32) {
    atomic::step();
    assert_eq!(INSIDE.swap(flow + 1, Ordering::SeqCst), 0, "two processors have the lock");
    atomic::step();
}

fn leave() {
    atomic::step();
    INSIDE.store(0, Ordering::SeqCst);
}

/// Clients of the flows in these entries: that of the index + 1.
fn set_up_flows(states: &[FlowState]) {
    set_up(GROUP, 1);
    INSIDE.store(0, Ordering::SeqCst);
    for (index, state) in states.iter().enumerate() {
        put(index as u32, index as u16 + 1, *state, NOW);
    }
}

/// Adds a segment of two bytes that says whose it is. The caller has the lock.
fn append(slot: Slot, flow: u32, at: u16) {
    let mark = flow as u8 + 1;
    for i in 0..2 {
        // SAFETY: the stash has room for it.
        unsafe { atomic::write((&raw mut (*slot.stash).bytes).cast::<u8>().add(usize::from(at) + i), mark) };
    }
    let view = View { at, len: 2, sum: u16::from(mark), flags: VIEW_USED };
    assert!(stash::is_held(slot, view) || stash::publish(slot, view, 0), "there is room");
}

/// Claims the stash for a flow, keeps a segment in it and goes on.
fn claim(flow: u32) -> bool {
    let settings = settings().expect("settings");
    let index = stash::claim(flow, 0, 1, NOW);
    if stash::refused(index).is_err() {
        return false;
    }
    let slot = Slot { stash: STASHES.get_ptr_mut(index).expect("a stash"), index: index as u16 };
    enter(flow);
    append(slot, flow, 0);
    let entry = entry(flow);
    // SAFETY: a field of an entry, which this thread alone binds.
    unsafe { atomic::write(&raw mut (*entry.flow).stash, slot.index) };
    assert!(settings.stash_mask == 0 && stash::of(flow, slot.index).is_some(), "locked, it stays the flow's");
    leave();
    stash::unlock(slot);
    true
}

fn entry(flow: u32) -> Entry {
    Entry { flow: FLOWS.get_ptr_mut(flow).expect("an entry"), index: flow }
}

/// More from the client of a flow.
fn more(flow: u32) {
    let Some(slot) = stash::lock(flow, 0) else { return };
    enter(flow);
    append(slot, flow, 2);
    assert!(stash::of(flow, 0).is_some(), "locked, it stays the flow's");
    leave();
    stash::unlock(slot);
}

/// The flow has no use for its stash any more.
fn give_back(flow: u32) {
    let Some(slot) = stash::lock(flow, 0) else { return };
    enter(flow);
    leave();
    stash::release(slot);
}

/// What the joint does: it reads without the lock, and sends what it has read if it still is the flow's.
fn send(flow: u32) {
    let Some(slot) = stash::of(flow, 0) else { return };
    // SAFETY: a map value stays valid.
    let stash = unsafe { &*slot.stash };
    for i in 0..VIEWS {
        // SAFETY: a view is one aligned word.
        let view = View::from_bits(unsafe { atomic::read(&raw const stash.views[i]) });
        if view.flags & VIEW_USED == 0 {
            return;
        }
        let at = (&raw const stash.bytes).cast::<u8>();
        // SAFETY: views lie in the bytes.
        let bytes = [0, 1].map(|i| unsafe { atomic::read(at.add(usize::from(view.at) + i)) });
        if !stash::is_still(stash, flow) {
            return;
        }
        let mark = flow as u8 + 1;
        assert_eq!((bytes, view.sum), ([mark; 2], mark.into()), "bytes of another flow are sent");
    }
}

#[test]
fn one_processor_at_a_time_has_the_lock() {
    crate::explore(|| {
        set_up_flows(&[FlowState::Binding; 3]);
        crate::together(vec![
            Box::new(|| {
                claim(0);
                give_back(0);
            }),
            Box::new(|| {
                if claim(1) {
                    more(1);
                }
            }),
            Box::new(|| {
                claim(2);
                give_back(2);
            }),
            Box::new(|| (0..3).for_each(more)),
        ]);
        // SAFETY: everybody has finished.
        assert_eq!(unsafe { (*STASHES.get_ptr_mut(0).expect("a stash")).lock }, 0, "somebody kept the lock");
    });
}

#[test]
fn what_is_sent_was_the_flows_own() {
    crate::explore(|| {
        set_up_flows(&[FlowState::Binding; 2]);
        assert!(claim(0), "the stash is free");
        crate::together(vec![
            Box::new(|| send(0)),
            Box::new(|| more(0)),
            Box::new(|| give_back(0)),
            Box::new(|| {
                claim(1);
                send(1);
            }),
        ]);
    });
}

#[test]
fn who_waits_for_its_head_is_ended_or_bound() {
    crate::explore(|| {
        set_up_flows(&[FlowState::Awaiting, FlowState::Binding]);
        assert!(claim(0), "the stash is free");
        crate::together(vec![
            Box::new(|| {
                let Some(slot) = stash::lock(0, 0) else { return };
                enter(0);
                let was = flows::head(entry(0));
                assert_eq!(was, head(1, FlowState::Awaiting), "its stash was not taken, but it was ended");
                let bound = flows::replace(entry(0), was, head(1, FlowState::Binding));
                assert!(bound && stash::of(0, 0).is_some(), "locked, it stays the flow's");
                leave();
                stash::unlock(slot);
            }),
            Box::new(|| {
                if claim(1) {
                    let first = flows::head(entry(0)).state;
                    assert_eq!(first, FlowState::Free as u8, "a flow that is bound lost its stash");
                }
            }),
        ]);
    });
}
