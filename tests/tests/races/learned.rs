//! The table of learned sessions: a session is found where it was learned, or nowhere, and stands there once.

use crate::homes::{lb_forget, lb_home, lb_learn};
use crate::maps::{self, BACKENDS, HOMES, SERVICES, SETTINGS};
use crate::table::write;
use lb_common::backend::{Backend, State};
use lb_common::home::{CLAIMED, FREE, GROUP};
use lb_common::maglev::NOBODY;
use lb_common::service::Service;

const SERVICE: u32 = 1;
/// Of all cookies.
const SCOPE: u32 = 7;

fn set_up() {
    maps::reset(GROUP, 1);
    write(SETTINGS.get_ptr_mut(0), crate::settings());
    write(SERVICES.get_ptr_mut(SERVICE), Service { learned_ticks: 100, ..Service::default() });
    for slot in 0..16 {
        let backend = Backend { service: SERVICE as u16, state: State::Ready as u8, ..Backend::default() };
        write(BACKENDS.get_ptr_mut(slot), backend);
    }
}

/// Tags from 16 on; each session is learned at the backend of this slot.
fn slot_of(tag: u64) -> u32 {
    tag as u32 % 16
}

fn learn_at(tag: u64, slot: u32) {
    lb_learn(SERVICE, tag, slot, 0, SCOPE);
}

fn learn(tag: u64) {
    learn_at(tag, slot_of(tag));
}

fn look_up(tag: u64) {
    let found = lb_home(SERVICE, tag);
    assert!(found == u32::from(NOBODY) || found == slot_of(tag), "session {tag} is found at {found}");
}

/// Tags of the table, once everybody has finished.
fn tags() -> Vec<u64> {
    let tags: Vec<u64> = (0..GROUP as u32).filter_map(|i| HOMES.get(i)).map(|home| home.tag).collect();
    assert!(!tags.contains(&CLAIMED), "somebody kept an entry");
    tags.into_iter().filter(|tag| *tag != FREE).collect()
}

/// Forgets as the daemon does: whatever it sees.
fn sweep() {
    for i in 0..GROUP as u32 {
        let home = HOMES.get_ptr_mut(i).expect("an entry");
        // SAFETY: an aligned word of an entry.
        unsafe {
            let tag = crate::atomic::read(&raw const (*home).tag);
            if tag != FREE && tag != CLAIMED {
                crate::atomic::compare_exchange(&raw mut (*home).tag, tag, FREE);
            }
        }
    }
}

#[test]
fn a_session_is_found_where_it_was_learned_or_nowhere() {
    crate::explore(|| {
        set_up();
        // The group is full but for one entry, so that they displace each other.
        (0..GROUP as u64 - 1).for_each(|i| learn(32 + i));
        crate::together(vec![
            Box::new(|| (16..18).for_each(learn)),
            Box::new(|| (17..19).for_each(learn)),
            Box::new(|| (16..19).for_each(look_up)),
            Box::new(|| (32..35).for_each(look_up)),
            Box::new(|| {
                lb_forget(16);
            }),
        ]);
        let mut tags = tags();
        tags.sort_unstable();
        tags.dedup();
        tags.iter().for_each(|tag| look_up(*tag));
    });
}

#[test]
fn a_session_that_is_learned_twice_at_once_stands_once() {
    crate::explore(|| {
        set_up();
        crate::together(vec![
            Box::new(|| learn_at(16, 3)),
            Box::new(|| learn_at(16, 4)),
            Box::new(|| learn_at(17, 5)),
        ]);
        let tags = tags();
        assert_eq!(tags.iter().filter(|tag| **tag == 16).count(), 1, "{tags:?}");
        assert!([3, 4].contains(&lb_home(SERVICE, 16)));
        assert_eq!(lb_home(SERVICE, 17), 5);
    });
}

#[test]
fn what_the_daemon_forgets_is_forgotten_and_nothing_else_is_found() {
    crate::explore(|| {
        set_up();
        (16..20).for_each(learn);
        crate::together(vec![
            Box::new(sweep),
            Box::new(|| (20..22).for_each(learn)),
            Box::new(|| (16..22).for_each(look_up)),
        ]);
        assert!(
            tags().iter().all(|tag| *tag >= 20),
            "the daemon saw all that were there before: {:?}",
            tags()
        );
    });
}
