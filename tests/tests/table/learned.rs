//! Sessions whose keys the backends hand out: read from `Set-Cookie` on the way back, and looked for in requests.

use anyhow::Result;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::hash::scale;
use lb_common::home::{Asked, GROUP, Home, spread, tag};
use lb_common::service::Affinity;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;
use tests::frame::PSH;
use tests::learned::{
    FORGOTTEN, IDLE, LEARNED, NAME, PLAIN, connect, counted, forget, head, homes, now, request, respond,
    scene, session, tag_of,
};
use tests::scene::{SERVICE, Scene};

/// Every other connection with the cookie goes where it was handed out, wherever that is.
#[test]
fn a_session_comes_home() -> Result<()> {
    let mut scene = scene(4)?;
    let mut slots = BTreeSet::new();
    for n in 0..24 {
        let value = format!("session-{n}");
        let (slot, why) = connect(&mut scene, &request(None))?;
        assert_eq!(why, Counter::NewSession);
        let line = format!("Set-Cookie: {NAME}={value}; Path=/; HttpOnly");
        assert_eq!(respond(&scene, slot, &[&head(&[&line])])?, [LEARNED]);
        // Again, it is known already.
        assert_eq!(respond(&scene, slot, &[&head(&[&line])])?, [PLAIN]);
        assert_eq!(homes(&scene)?, [(tag_of(&scene, &value), slot)]);
        for _ in 0..3 {
            assert_eq!(connect(&mut scene, &session(&value))?, (slot, Counter::AffinityHit));
        }
        slots.insert(slot);
        forget(&mut scene)?;
    }
    assert_eq!(slots.len(), 4, "new sessions spread");
    Ok(())
}

/// Whatever a server may write, both sides read the same of it.
#[test]
fn every_value_is_hashed_as_it_is_documented() -> Result<()> {
    let scene = RefCell::new(scene(2)?);
    proptest!(ProptestConfig::with_cases(64), |(value in "\"?[!-:<-~]{1,140}\"?")| {
        // One pair of quotes is no part of it.
        let key = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).unwrap_or(&value);
        prop_assume!(!key.is_empty());
        let scene = &mut *scene.borrow_mut();
        let (slot, _) = connect(scene, &request(None)).unwrap();
        respond(scene, slot, &[&head(&[&format!("Set-Cookie: {NAME}={value}; Path=/")])]).unwrap();
        prop_assert_eq!(homes(scene).unwrap(), [(tag_of(scene, key), slot)]);
        prop_assert_eq!(connect(scene, &session(&value)).unwrap(), (slot, Counter::AffinityHit));
        forget(scene).unwrap();
    });
    Ok(())
}

#[test]
fn a_deleted_cookie_is_forgotten() -> Result<()> {
    let mut scene = scene(3)?;
    let deletions = [
        "Set-Cookie: JSESSIONID=",
        "Set-Cookie: JSESSIONID=; Path=/",
        "Set-Cookie: JSESSIONID=deleted; expires=Thu, 01-Jan-1970 00:00:01 GMT; Max-Age=0; path=/",
        "Set-Cookie: JSESSIONID=\"\"; expires=Thu, 01 Jan 1970 00:00:00 GMT; Max-Age=0; Path=/",
        "Set-Cookie: JSESSIONID=x; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT",
        "Set-Cookie: JSESSIONID=x;max-age=0",
        "Set-Cookie: JSESSIONID=x; MAX-AGE=-1; Path=/",
        "Set-Cookie: JSESSIONID=x; expires=Thu, 1 Jan 1970 00:00:00 GMT",
    ];
    for line in deletions {
        // On the connection that got it...
        let first = request(None);
        let (slot, _) = connect(&mut scene, &first)?;
        respond(&scene, slot, &[&head(&["Set-Cookie: JSESSIONID=v"])])?;
        scene.xdp(&scene.segment(first.len() as u32, PSH, &session("v")))?;
        assert_eq!(respond(&scene, slot, &[&head(&[line])])?, [FORGOTTEN], "{line}");
        assert_eq!(homes(&scene)?, [], "{line}");
        // ...and on another one that presents it.
        respond(&scene, slot, &[&head(&["Set-Cookie: JSESSIONID=v"])])?;
        assert_eq!(connect(&mut scene, &session("v"))?, (slot, Counter::AffinityHit));
        assert_eq!(respond(&scene, slot, &[&head(&[line])])?, [FORGOTTEN], "{line}");
        let (_, why) = connect(&mut scene, &session("v"))?;
        assert_eq!(why, Counter::UnknownKey, "{line}");
        forget(&mut scene)?;
    }
    Ok(())
}

/// A connection that presents no key deletes nobody's, though its place in the table was another one's.
#[test]
fn a_flow_without_a_key_forgets_nothing() -> Result<()> {
    let mut scene = scene(2)?;
    let (slot, _) = connect(&mut scene, &request(None))?;
    respond(&scene, slot, &[&head(&["Set-Cookie: JSESSIONID=v"])])?;
    assert_eq!(connect(&mut scene, &session("v"))?.0, slot);
    let client = scene.client;
    scene.runner.maps.forget()?;
    // The same client and port again, so the same place.
    scene.client.set_port(client.port() - 1);
    let (slot, _) = connect(&mut scene, &request(None))?;
    assert_eq!(scene.client, client);
    assert_eq!(respond(&scene, slot, &[&head(&["Set-Cookie: JSESSIONID=; Max-Age=0"])])?, [PLAIN]);
    assert_eq!(homes(&scene)?.len(), 1);
    Ok(())
}

/// A connection that began before its service learned has no key, whatever a flow left that had the entry before.
#[test]
fn a_flow_that_is_older_than_the_rule_forgets_nothing() -> Result<()> {
    let mut scene = scene(2)?;
    let (slot, _) = connect(&mut scene, &request(None))?;
    respond(&scene, slot, &[&head(&["Set-Cookie: JSESSIONID=v"])])?;
    assert_eq!(connect(&mut scene, &session("v"))?.0, slot);
    scene.runner.maps.forget()?;
    scene.client.set_port(scene.client.port() - 1);
    scene.runner.change(|setup| setup.services[0].affinity = Affinity::Hashed as u8)?;
    let (slot, _) = connect(&mut scene, &request(None))?;
    scene.runner.change(|setup| setup.services[0].affinity = Affinity::Learned as u8)?;
    assert_eq!(respond(&scene, slot, &[&head(&["Set-Cookie: JSESSIONID=; Max-Age=0"])])?, [PLAIN]);
    assert_eq!(homes(&scene)?.len(), 1);
    // Nor does it hand one out: whether this answers a request, nobody knows.
    let given = scene.xdp(&scene.response(slot, 200, PSH, &head(&["Set-Cookie: JSESSIONID=w"])))?;
    assert_eq!(counted(&given), PLAIN);
    Ok(())
}

#[test]
fn an_unknown_key_goes_to_the_same_backend_and_is_not_remembered() -> Result<()> {
    let mut scene = scene(4)?;
    let mut slots = BTreeSet::new();
    for n in 0..16 {
        let value = format!("unknown-{n}");
        let (slot, why) = connect(&mut scene, &session(&value))?;
        assert_eq!(why, Counter::UnknownKey);
        let table = scene.runner.setup.maglev(SERVICE);
        assert_eq!(slot, table[scale(spread(value.as_bytes()), table.len() as u32) as usize]);
        assert_eq!(connect(&mut scene, &session(&value))?, (slot, Counter::UnknownKey));
        slots.insert(slot);
        scene.runner.maps.forget()?;
    }
    assert!(slots.len() > 1 && homes(&scene)?.is_empty());
    // Without a value there is no key.
    assert_eq!(connect(&mut scene, &session(""))?.1, Counter::NewSession);
    assert_eq!(connect(&mut scene, &request(Some("XJSESSIONID=v")))?.1, Counter::NewSession);
    Ok(())
}

#[test]
fn a_strict_service_gives_no_learned_session_away() -> Result<()> {
    let mut scene = scene(4)?;
    let (slot, _) = connect(&mut scene, &request(None))?;
    respond(&scene, slot, &[&head(&["Set-Cookie: JSESSIONID=v"])])?;
    scene.runner.change(|setup| {
        setup.services[0].strict = 1;
        setup.set_state(slot, State::Down);
    })?;
    scene.client.set_port(scene.client.port() + 1);
    let refused = scene.xdp(&scene.first(&session("v")))?;
    assert_eq!(counted(&refused), [Counter::Rejected, Counter::Unavailable], "{refused:?}");
    assert_eq!(connect(&mut scene, &session("of nobody"))?.1, Counter::UnknownKey, "it has no home");
    scene.runner.change(|setup| setup.set_state(slot, State::Ready))?;
    assert_eq!(connect(&mut scene, &session("v"))?, (slot, Counter::AffinityHit));
    Ok(())
}

#[test]
fn a_session_whose_backend_does_not_serve_moves_and_comes_back() -> Result<()> {
    let mut scene = scene(4)?;
    let (slot, _) = connect(&mut scene, &request(None))?;
    respond(&scene, slot, &[&head(&["Set-Cookie: JSESSIONID=v"])])?;
    scene.runner.change(|setup| setup.set_state(slot, State::Drain))?;
    assert_eq!(connect(&mut scene, &session("v"))?, (slot, Counter::AffinityHit));
    scene.runner.change(|setup| setup.set_state(slot, State::Down))?;
    let (other, why) = connect(&mut scene, &session("v"))?;
    assert!(why == Counter::Redispatched && other != slot);
    assert_eq!(connect(&mut scene, &session("v"))?, (other, Counter::Redispatched), "from everywhere");
    scene.runner.change(|setup| setup.set_state(slot, State::Ready))?;
    assert_eq!(connect(&mut scene, &session("v"))?, (slot, Counter::AffinityHit));
    // The substitute hands the key out itself: now the session is at home there.
    scene.runner.change(|setup| setup.set_state(slot, State::Down))?;
    connect(&mut scene, &session("v"))?;
    assert_eq!(respond(&scene, other, &[&head(&["Set-Cookie: JSESSIONID=v"])])?, [LEARNED]);
    scene.runner.change(|setup| setup.set_state(slot, State::Ready))?;
    assert_eq!(connect(&mut scene, &session("v"))?, (other, Counter::AffinityHit));
    assert_eq!(homes(&scene)?, [(tag_of(&scene, "v"), other)]);
    // Its slot is another service's.
    scene.runner.change(|setup| setup.backends[usize::from(other)].service = 2)?;
    assert_eq!(connect(&mut scene, &session("v"))?.1, Counter::UnknownKey);
    Ok(())
}

#[test]
fn what_nobody_asked_for_is_forgotten() -> Result<()> {
    let mut scene = scene(3)?;
    let (slot, _) = connect(&mut scene, &request(None))?;
    respond(&scene, slot, &[&head(&["Set-Cookie: JSESSIONID=v"])])?;
    let now = now(&scene)?;
    let (index, home) = scene.runner.maps.homes()?[0];
    assert!(now.wrapping_sub(home.last_used) < 20, "{home:?} at {now}");
    let age = |scene: &mut Scene, age: u32| -> Result<()> {
        scene.runner.maps.set_home(index, &Home { last_used: now.wrapping_sub(age), ..home })
    };
    let last_used = |scene: &Scene| -> Result<u32> { Ok(scene.runner.maps.homes()?[0].1.last_used) };
    age(&mut scene, IDLE + 1)?;
    assert_eq!(connect(&mut scene, &session("v"))?.1, Counter::UnknownKey);
    assert_eq!(last_used(&scene)?, now.wrapping_sub(IDLE + 1), "what is forgotten stays so");
    // A request keeps it...
    age(&mut scene, IDLE - 200)?;
    assert_eq!(connect(&mut scene, &session("v"))?, (slot, Counter::AffinityHit));
    assert!(last_used(&scene)?.wrapping_sub(now) < 200);
    // ...and so does every later one on the same connection.
    age(&mut scene, IDLE - 200)?;
    scene.xdp(&scene.segment(1_000, PSH, &session("v")))?;
    assert!(last_used(&scene)?.wrapping_sub(now) < 200);
    // One that was forgotten is learned anew.
    age(&mut scene, IDLE + 1)?;
    respond(&scene, slot, &[&head(&["Set-Cookie: JSESSIONID=v"])])?;
    assert_eq!(connect(&mut scene, &session("v"))?, (slot, Counter::AffinityHit));
    Ok(())
}

/// In a full group the one that was not asked for longest makes room; one whose time is over does so without a word.
#[test]
fn a_full_group_makes_room() -> Result<()> {
    let mut scene = scene(2)?;
    let mask = u64::from(scene.runner.setup.sizes.homes - 1);
    let values: Vec<String> =
        (0..).map(|n| format!("v{n}")).filter(|v| tag_of(&scene, v) & mask == 5).take(GROUP + 3).collect();
    let (slot, _) = connect(&mut scene, &request(None))?;
    let hand_out = |scene: &Scene, value: &str| -> Result<Vec<Counter>> {
        Ok(respond(scene, slot, &[&head(&[&format!("Set-Cookie: JSESSIONID={value}")])])?.concat())
    };
    for value in &values[..GROUP] {
        assert_eq!(hand_out(&scene, value)?, LEARNED);
    }
    let now = now(&scene)?;
    let at = |scene: &mut Scene, n: usize, age: u32| -> Result<()> {
        let tag = tag_of(scene, &values[n]);
        let known = scene.runner.maps.homes()?;
        let (index, home) = known.into_iter().find(|(_, home)| home.tag == tag).expect("it is known");
        scene.runner.maps.set_home(index, &Home { last_used: now.wrapping_sub(age), ..home })
    };
    for n in 0..GROUP {
        at(&mut scene, n, 100 + n as u32)?;
    }
    at(&mut scene, 2, 500)?;
    assert_eq!(
        hand_out(&scene, &values[GROUP])?,
        [Counter::Learned, Counter::LearnedEvicted, Counter::FromBackend]
    );
    let known = |scene: &Scene, n: usize| -> Result<bool> {
        let tag = tag_of(scene, &values[n]);
        Ok(homes(scene)?.iter().any(|(known, _)| *known == tag))
    };
    assert!(!known(&scene, 2)? && known(&scene, 0)? && known(&scene, GROUP)?);
    at(&mut scene, 6, IDLE + 1)?;
    assert_eq!(hand_out(&scene, &values[GROUP + 1])?, LEARNED);
    assert!(!known(&scene, 6)? && known(&scene, GROUP + 1)?);
    scene.runner.maps.set_home(5 * GROUP as u32 + 4, &Home::default())?;
    assert_eq!(hand_out(&scene, &values[GROUP + 2])?, LEARNED);
    assert_eq!(homes(&scene)?.len(), GROUP);
    Ok(())
}

/// The same value of two services is two sessions; a service that steers by something else learns nothing.
#[test]
fn services_do_not_share_sessions() -> Result<()> {
    let mut scene = scene(2)?;
    let (slot, _) = connect(&mut scene, &request(None))?;
    respond(&scene, slot, &[&head(&["Set-Cookie: JSESSIONID=v"])])?;
    let other = tag(&scene.runner.setup.settings.home_key, SERVICE + 1, b"v");
    assert_ne!(tag_of(&scene, "v"), other);
    for affinity in [Affinity::Signed, Affinity::Hashed, Affinity::Source, Affinity::None] {
        scene.runner.change(|setup| setup.services[0].affinity = affinity as u8)?;
        assert_eq!(respond(&scene, slot, &[&head(&["Set-Cookie: JSESSIONID=w"])])?, [PLAIN]);
    }
    assert_eq!(homes(&scene)?.len(), 1);
    Ok(())
}

/// More sessions than there is room for: each new one is learned, an old one makes room, and whoever was forgotten is served
/// all the same.
#[test]
fn a_full_table_harms_nobody() -> Result<()> {
    let mut scene = scene(3)?;
    let room = GROUP * scene.runner.setup.sizes.homes as usize;
    let (mut given, mut evicted) = (Vec::new(), 0);
    for n in 0..4 * room {
        let value = format!("crowd-{n}");
        let (slot, _) = connect(&mut scene, &request(None))?;
        let counted = respond(&scene, slot, &[&head(&[&format!("Set-Cookie: {NAME}={value}")])])?.concat();
        assert!(counted.contains(&Counter::Learned), "{counted:?}");
        evicted += usize::from(counted.contains(&Counter::LearnedEvicted));
        scene.runner.maps.forget()?;
        given.push((value, slot));
    }
    let known = homes(&scene)?;
    assert_eq!((known.len(), evicted), (room, 3 * room));
    let mut found = 0;
    for (value, slot) in &given {
        let (to, why) = connect(&mut scene, &session(value))?;
        let is_known = known.contains(&(tag_of(&scene, value), *slot));
        assert_eq!(why, if is_known { Counter::AffinityHit } else { Counter::UnknownKey }, "{value}");
        assert!(!is_known || to == *slot, "{value}");
        found += usize::from(is_known);
        scene.runner.maps.forget()?;
    }
    assert_eq!(found, room);
    Ok(())
}

/// Two processors that learn in one group at the same moment, also the same session: nothing is lost, and nothing stands there
/// twice.
#[test]
fn processors_that_learn_at_once_agree() -> Result<()> {
    const BURSTS: usize = 3_000;
    let mut scene = scene(2)?;
    let mask = u64::from(scene.runner.setup.sizes.homes - 1);
    let mut ends = BTreeMap::new();
    while ends.len() < 2 {
        let (slot, _) = connect(&mut scene, &request(None))?;
        ends.insert(slot, scene.client);
    }
    // Six sessions of one group, two of which both teach.
    let values: Vec<String> =
        (0..).map(|n| format!("v{n}")).filter(|v| tag_of(&scene, v) & mask == 3).take(6).collect();
    let mut frame = |n: usize| {
        let slot = (n % 2) as u16;
        scene.client = ends[&slot];
        scene.response(slot, 0, PSH, &head(&[&format!("Set-Cookie: {NAME}={}", values[n])])).bytes()
    };
    let sets = [[0, 1, 2, 3].map(&mut frame), [4, 1, 5, 3].map(&mut frame)];
    let expected: BTreeSet<_> = (0..6).map(|n| (tag_of(&scene, &values[n]), (n % 2) as u16)).collect();
    let flows = ends.values().map(|client| scene.runner.maps.index_of(client.port()));
    let flows = flows.collect::<Result<Vec<_>>>()?;
    for burst in 0..BURSTS {
        // As many requests are open, and a new second has begun.
        for flow in &flows {
            scene.runner.maps.set_asked(*flow, &Asked { asked: 8, ..Asked::default() })?;
        }
        let (runner, start) = (&scene.runner, Barrier::new(2));
        std::thread::scope(|scope| {
            let floods: Vec<_> = sets
                .iter()
                .map(|set| {
                    let start = &start;
                    // Nobody begins before both are ready.
                    let frames = set.iter().enumerate().map(move |(i, frame)| {
                        if i == 0 {
                            start.wait();
                        }
                        frame.as_slice()
                    });
                    scope.spawn(move || runner.flood(frames))
                })
                .collect();
            floods.into_iter().try_for_each(|flood| flood.join().expect("sending does not panic"))
        })?;
        let known = homes(&scene)?;
        let agreed =
            known.len() == expected.len() && known.iter().copied().collect::<BTreeSet<_>>() == expected;
        assert!(agreed, "burst {burst}: {known:?} are not {expected:?}");
        for (index, _) in scene.runner.maps.homes()? {
            scene.runner.maps.set_home(index, &Home::default())?;
        }
    }
    Ok(())
}
