//! States of backends, and when a new epoch begins.

use super::*;

#[test]
fn nothing_is_ready_before_it_was_seen() {
    let fixture = Fixture::new();
    assert_eq!(fixture.maps.endpoints, 8);
    assert!((S1..=BLOG2).all(|slot| fixture.maps.state(slot) == State::Down));
    assert!(fixture.maps.tables[&SHOP].is_empty() && fixture.maps.tables[&BLOG].is_empty());
    let checked: Vec<_> = [WEB1, WEB2, WEB3, BLOG1, BLOG2].map(|slot| Effect::Check { slot }).into();
    assert_eq!(fixture.effects, checked, "a managed server is checked when it listens");
    assert_eq!(fixture.view(S1).reason.unwrap(), "its server is starting");
    assert_eq!(fixture.view(WEB1).reason.unwrap(), "not checked yet");
}

#[test]
fn a_restarted_server_returns_in_its_new_epoch() {
    let mut fixture = Fixture::all_ready();
    let outcome = fixture.apply(Change::Restart { backend: "s1".into() });
    assert_eq!((outcome.slot, &outcome.effects[..]), (Some(S1), &[Effect::Restart { slot: S1 }][..]));
    assert_eq!(fixture.maps.state(S1), State::Down);
    assert!(!fixture.maps.tables[&SHOP].contains(&S1));
    fixture.apply(Change::ServerGone { slot: S1, reason: "restarting".into() });
    fixture.apply(Change::ServerReady { slot: S1, epoch: 6 });
    assert_eq!(fixture.effects, [Effect::Check { slot: S1 }]);
    assert_eq!(fixture.maps.state(S1), State::Down, "nobody has reached it yet");
    fixture.up(S1);
    assert_eq!(fixture.registry.backend(S1), Some((State::Ready, 6)));
    assert_eq!(fixture.maps.backends[&S1].epoch, 6);
    assert!(fixture.maps.tables[&SHOP].contains(&S1));
    assert_eq!(fixture.effects, [], "it needs no second restart");
}

#[test]
fn a_crash_is_told_with_its_reason() {
    let mut fixture = Fixture::all_ready();
    assert_eq!(
        fixture.apply(Change::Kill { backend: "shop/s1".into(), down_for: None }).effects,
        [Effect::Kill { slot: S1, down_for: None }]
    );
    let outcome = fixture.apply(Change::ServerGone { slot: S1, reason: "killed".into() });
    let expected = Transition {
        service: "shop".into(),
        backend: "s1".into(),
        slot: S1,
        from: State::Ready,
        to: State::Down,
        epoch: 5,
        reason: Some("killed".into()),
    };
    assert_eq!(outcome.transitions, [expected]);
}

/// DESIGN §7, promise 5: what a server cached before others served its sessions is never trusted.
#[test]
fn coming_back_from_down_begins_a_new_epoch() {
    let mut fixture = Fixture::all_ready();
    fixture.down(WEB1);
    assert_eq!(fixture.view(WEB1).reason.unwrap(), "connection refused");
    fixture.up(WEB1);
    assert_eq!(fixture.effects, [Effect::NextEpoch { slot: WEB1 }]);
    fixture.up(WEB1);
    assert_eq!(fixture.effects, [], "asked once");
    assert_eq!(fixture.maps.state(WEB1), State::Down);
    fixture.apply(Change::Epoch { slot: WEB1, epoch: 1 });
    assert_eq!(fixture.effects, [Effect::NextEpoch { slot: WEB1 }], "an epoch that did not grow is none");
    fixture.apply(Change::Epoch { slot: WEB1, epoch: 2 });
    assert_eq!(fixture.registry.backend(WEB1), Some((State::Ready, 2)));
    // A server that lbd runs begins its new epoch with a new life.
    fixture.down(S1);
    fixture.up(S1);
    assert_eq!(fixture.effects, [Effect::Restart { slot: S1 }]);
}

#[test]
fn maint_takes_everything_and_ends_in_a_new_epoch() {
    let mut fixture = Fixture::all_ready();
    fixture.admin("b2", Admin::Maint);
    assert_eq!(fixture.maps.state(BLOG2), State::Maint);
    assert!(fixture.maps.tables[&BLOG].iter().all(|slot| *slot == BLOG1));
    fixture.admin("b2", Admin::Ready);
    assert_eq!(fixture.effects, [Effect::NextEpoch { slot: BLOG2 }]);
    fixture.apply(Change::Epoch { slot: BLOG2, epoch: 2 });
    assert_eq!(fixture.maps.state(BLOG2), State::Ready);
}

/// An application that keeps sessions in the same store begins its epochs itself; other lbds begin some, too.
#[test]
fn what_others_announce_counts_for_backends_that_others_run() {
    let mut fixture = Fixture::all_ready();
    let outcome = fixture.apply(Change::Announced { slot: WEB1, epoch: 7 });
    assert_eq!(fixture.registry.backend(WEB1), Some((State::Ready, 7)));
    assert_eq!((fixture.maps.backends[&WEB1].epoch, outcome.writes.len()), (7, 1), "the programs are told");
    assert_eq!(fixture.explain(&token(WEB1, 7)).verdict, "hit");
    fixture.apply(Change::Announced { slot: WEB1, epoch: 3 });
    assert_eq!(fixture.registry.backend(WEB1), Some((State::Ready, 7)), "epochs never shrink");
    // lbd knows best what it runs itself: another lbd's server of that name is another instance.
    let outcome = fixture.apply(Change::Announced { slot: S1, epoch: 99 });
    assert_eq!(fixture.registry.backend(S1), Some((State::Ready, 5)));
    assert!(outcome.writes.is_empty());
    // Slots of nobody here.
    assert!(fixture.apply(Change::Announced { slot: 900, epoch: 9 }).writes.is_empty());
}

#[test]
fn an_application_that_starts_in_a_new_epoch_needs_no_second_one() {
    let mut fixture = Fixture::all_ready();
    fixture.down(WEB1);
    fixture.apply(Change::Announced { slot: WEB1, epoch: 2 });
    assert_eq!(fixture.maps.state(WEB1), State::Down, "nobody has reached it yet");
    fixture.up(WEB1);
    assert_eq!((fixture.registry.backend(WEB1), &fixture.effects[..]), (Some((State::Ready, 2)), &[][..]));
    // What was announced before it went away does not count as a new beginning.
    fixture.down(WEB1);
    fixture.apply(Change::Announced { slot: WEB1, epoch: 2 });
    fixture.up(WEB1);
    assert_eq!(fixture.effects, [Effect::NextEpoch { slot: WEB1 }]);
}

/// DESIGN §7, promise 5, for a server that lbd runs.
#[test]
fn a_managed_server_begins_anew_after_maint_and_after_a_failed_check() {
    let mut fixture = Fixture::all_ready();
    fixture.admin("s1", Admin::Maint);
    fixture.admin("s1", Admin::Ready);
    assert_eq!(fixture.effects, [Effect::Restart { slot: S1 }]);
    assert_eq!(fixture.maps.state(S1), State::Down, "not before its new epoch");
    fixture.apply(Change::ServerGone { slot: S1, reason: "restarting".into() });
    fixture.apply(Change::ServerReady { slot: S1, epoch: 6 });
    fixture.up(S1);
    assert_eq!(fixture.registry.backend(S1), Some((State::Ready, 6)));
    // An epoch that cannot be had keeps it down, whatever the checks say.
    fixture.apply(Change::Restart { backend: "s1".into() });
    fixture.apply(Change::ServerGone { slot: S1, reason: "cannot begin an epoch: the store is away".into() });
    fixture.up(S1);
    assert_eq!(fixture.maps.state(S1), State::Down);
    assert_eq!(fixture.view(S1).reason.unwrap(), "cannot begin an epoch: the store is away");
    fixture.apply(Change::ServerReady { slot: S1, epoch: 7 });
    fixture.up(S1);
    assert_eq!(fixture.registry.backend(S1), Some((State::Ready, 7)));
}

#[test]
fn drain_keeps_epoch_and_sessions() {
    let mut fixture = Fixture::all_ready();
    fixture.admin("web2", Admin::Drain);
    assert_eq!(fixture.maps.state(WEB2), State::Drain);
    assert!(!fixture.maps.tables[&SHOP].contains(&WEB2));
    assert_eq!(fixture.explain(&token(WEB2, 1)).verdict, "hit");
    fixture.admin("web2", Admin::Ready);
    assert_eq!((fixture.registry.backend(WEB2), &fixture.effects[..]), (Some((State::Ready, 1)), &[][..]));
}

#[test]
fn a_lost_way_is_kept_until_the_checks_decide() {
    let mut fixture = Fixture::all_ready();
    let outcome = fixture.apply(Change::NextHop { addr: IpAddr::from([192, 0, 2, 11]), hop: None });
    assert!(outcome.writes.is_empty());
    assert_eq!(fixture.maps.state(WEB2), State::Ready);
}

#[test]
fn stopping_takes_managed_servers_out_and_leaves_the_others() {
    let mut fixture = Fixture::all_ready();
    fixture.apply(Change::Stopping);
    assert_eq!(fixture.maps.state(S1), State::Down);
    assert_eq!(fixture.maps.state(WEB2), State::Ready);
    assert!(!fixture.maps.tables[&SHOP].contains(&S1));
    let refused = fixture.apply(Change::Restart { backend: "s1".into() }).refused.unwrap();
    assert_eq!(refused.reason, "lbd is stopping");
}
