//! Keys that servers hand out in their first datagrams.

use anyhow::Result;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::home::{Home, SHARE, tag};
use lb_common::service::{Affinity, Place, Service};
use std::collections::BTreeSet;
use tests::balancer::dial;
use tests::frame::Datagram;
use tests::scene::{CLIENT_MAC, LOCAL_MAC, SERVICE, Scene, backend, macs};

const PROTOCOL: u8 = 17;

/// Keys of six bytes, two bytes behind the beginning.
fn at_two(service: &mut Service) {
    (service.place, service.key_at, service.key_len) = (Place::Offset as u8, 2, 6);
}

fn scene(backends: u16, set: impl FnOnce(&mut Service)) -> Result<Scene> {
    let mut scene = Scene::new(backends)?;
    scene.runner.change(|setup| {
        let service = &mut setup.services[0];
        service.protocol = PROTOCOL;
        service.affinity = Affinity::Learned as u8;
        service.learned_ticks = 1000;
        set(service);
    })?;
    Ok(scene)
}

/// Sends a client's datagram; returns where it went and what was counted.
fn steer(scene: &Scene, payload: &[u8]) -> Result<(u16, Vec<Counter>)> {
    let sent = Datagram::new(scene.client, dial(), payload).macs(CLIENT_MAC, LOCAL_MAC);
    let outcome = scene.runner.xdp(&sent.bytes())?;
    let seen = Datagram::parse(&outcome.frame);
    assert_eq!(seen.payload, payload);
    let all = 0..scene.runner.setup.backends.len() as u16;
    let slot = all.into_iter().find(|slot| backend(*slot) == seen.dst).expect("addressed to a backend");
    Ok((slot, outcome.counted.iter().map(|(counter, _)| *counter).collect()))
}

/// Sends a backend's datagram; returns what was counted.
fn answer(scene: &Scene, slot: u16, payload: &[u8]) -> Result<Vec<Counter>> {
    let (local, next) = macs(slot);
    let sent = Datagram::new(backend(slot), scene.client, payload).macs(next, local);
    let outcome = scene.runner.xdp(&sent.bytes())?;
    assert_eq!(Datagram::parse(&outcome.frame).payload, payload);
    Ok(outcome.counted.iter().map(|(counter, _)| *counter).collect())
}

/// Another address of the same client.
fn move_client(scene: &mut Scene) {
    scene.client.set_port(scene.client.port() + 1);
}

fn homes(scene: &Scene) -> Result<Vec<(u64, u16)>> {
    Ok(scene.runner.maps.homes()?.iter().map(|(_, home)| (home.tag, home.slot)).collect())
}

#[test]
fn a_key_leads_to_who_handed_it_out_wherever_it_stands() -> Result<()> {
    type Build = fn(&str) -> Vec<u8>;
    let rows: [(&str, Place, u8, Build); 4] = [
        ("at an offset", Place::Offset, 3, |key| format!("abc{key} and more").into()),
        ("at the end", Place::End, 0, |key| format!("any length {key}").into()),
        ("behind a marker", Place::Marker, 0, |key| format!("x=1;sid={key};y").into()),
        ("all there is", Place::Offset, 0, |key| key.into()),
    ];
    for (name, place, at, build) in rows {
        for len in [1, 7, 8, 9, 16, 63, 64] {
            let mut scene = scene(4, |service| {
                (service.place, service.key_at, service.key_len) = (place as u8, at, len);
                assert!(service.set_marker(b"sid="));
            })?;
            for n in 0..3 {
                let key = char::from(b'p' + n).to_string().repeat(usize::from(len));
                let (slot, _) = steer(&scene, b"")?;
                let learned = [Counter::Learned, Counter::FromBackend];
                assert_eq!(answer(&scene, slot, &build(&key))?, learned, "{name}, {len}");
                let expected = tag(&scene.runner.setup.settings.home_key, SERVICE, key.as_bytes());
                assert!(homes(&scene)?.contains(&(expected, slot)), "{name}, {len}");
                for _ in 0..3 {
                    move_client(&mut scene);
                    let hit = [Counter::AffinityHit, Counter::FromClient];
                    assert_eq!(steer(&scene, &build(&key))?, (slot, hit.to_vec()), "{name}, {len}");
                }
                move_client(&mut scene);
            }
        }
    }
    Ok(())
}

#[test]
fn a_key_that_is_handed_out_later_is_learned_again() -> Result<()> {
    let mut scene = scene(4, at_two)?;
    let (slot, why) = steer(&scene, b"hello")?;
    assert_eq!(why, [Counter::NewSession, Counter::FromClient]);
    let learned = [Counter::Learned, Counter::FromBackend];
    assert_eq!(answer(&scene, slot, b"xxkey001")?, learned);
    assert_eq!(answer(&scene, slot, b"xxkey001")?, [Counter::FromBackend]);
    steer(&scene, b"xxkey001")?;
    assert_eq!(answer(&scene, slot, b"xxkey002")?, learned);
    // Nothing that is too short for a key.
    assert_eq!(answer(&scene, slot, b"xxkey00")?, [Counter::FromBackend]);
    assert_eq!(homes(&scene)?.len(), 2);
    for key in [b"xxkey001", b"xxkey002"] {
        move_client(&mut scene);
        assert_eq!(steer(&scene, key)?, (slot, vec![Counter::AffinityHit, Counter::FromClient]));
    }
    Ok(())
}

/// A server in whose datagrams something else stands at that place.
#[test]
fn one_flow_of_datagrams_fills_no_table() -> Result<()> {
    let mut scene = scene(1, at_two)?;
    let (slot, _) = steer(&scene, b"hello")?;
    let begun = std::time::Instant::now();
    let mut learned = 0;
    for n in 0..1_000 {
        let counted = answer(&scene, slot, format!("xx{n:06}").as_bytes())?;
        let refused = counted.contains(&Counter::LearnedRefused);
        assert_ne!(refused, counted.contains(&Counter::Learned), "{counted:?}");
        learned += u64::from(!refused);
    }
    assert!(learned <= (begun.elapsed().as_secs() + 2) * u64::from(SHARE), "{learned}");
    move_client(&mut scene);
    Ok(())
}

/// A stranger who has a key of his own sends it in the client's name.
#[test]
fn a_key_of_somebody_else_moves_no_confirmed_flow() -> Result<()> {
    let mut scene = scene(4, at_two)?;
    let (other, _) = steer(&scene, b"hello")?;
    answer(&scene, other, b"xxstrang")?;
    let slot = loop {
        move_client(&mut scene);
        let (slot, _) = steer(&scene, b"hello")?;
        if slot != other {
            break slot;
        }
    };
    answer(&scene, slot, b"welcome!")?;
    steer(&scene, b"I go on")?;
    for _ in 0..3 {
        // It goes where it leads, as each datagram does.
        assert_eq!(steer(&scene, b"xxstrang")?, (other, vec![Counter::FromClient, Counter::FlowKept]));
        assert_eq!(steer(&scene, b"me")?, (slot, vec![Counter::FromClient]));
    }
    // What its own server handed out on this flow leads wherever that session is.
    let (index, home) = known(&scene, b"lcome!")?;
    answer(&scene, slot, b"welcome!")?;
    scene.runner.maps.set_home(index, &Home { slot: other, ..home })?;
    let moved = vec![Counter::AffinityHit, Counter::FromClient, Counter::FlowMoved];
    assert_eq!(steer(&scene, b"welcome!")?, (other, moved));
    assert_eq!(steer(&scene, b"me")?, (other, vec![Counter::FromClient]));
    Ok(())
}

/// The entry of a key.
fn known(scene: &Scene, key: &[u8]) -> Result<(u32, Home)> {
    let tag = tag(&scene.runner.setup.settings.home_key, SERVICE, key);
    Ok(scene.runner.maps.homes()?.into_iter().find(|(_, home)| home.tag == tag).expect("it is known"))
}

#[test]
fn an_unknown_key_stays_where_its_flow_is_or_is_hashed() -> Result<()> {
    let mut scene = scene(4, at_two)?;
    let mut slots = BTreeSet::new();
    for n in 0..16 {
        let payload = format!("xxkey{n:03}");
        let (slot, why) = steer(&scene, payload.as_bytes())?;
        assert_eq!(why, [Counter::UnknownKey, Counter::FromClient]);
        // Another of that flow stays; the same from elsewhere goes to the same one.
        assert_eq!(steer(&scene, b"xxother0")?, (slot, vec![Counter::FromClient]));
        move_client(&mut scene);
        assert_eq!(steer(&scene, payload.as_bytes())?.0, slot);
        move_client(&mut scene);
        scene.runner.maps.forget()?;
        slots.insert(slot);
    }
    assert!(slots.len() > 1 && homes(&scene)?.is_empty());
    Ok(())
}

#[test]
fn a_known_key_moves_its_flow() -> Result<()> {
    let mut scene = scene(4, at_two)?;
    let (slot, _) = steer(&scene, b"hello")?;
    answer(&scene, slot, b"xxkey001")?;
    loop {
        move_client(&mut scene);
        let (other, _) = steer(&scene, b"hello")?;
        if other != slot {
            break;
        }
    }
    let (moved, why) = steer(&scene, b"xxkey001")?;
    assert_eq!((moved, why), (slot, vec![Counter::AffinityHit, Counter::FromClient, Counter::FlowMoved]));
    assert_eq!(steer(&scene, b"no key")?, (slot, vec![Counter::FromClient]));
    Ok(())
}

#[test]
fn a_key_whose_backend_does_not_serve_goes_to_the_same_one_from_everywhere() -> Result<()> {
    let mut scene = scene(4, at_two)?;
    let (slot, _) = steer(&scene, b"hello")?;
    answer(&scene, slot, b"xxkey001")?;
    scene.runner.change(|setup| setup.set_state(slot, State::Down))?;
    let mut to = BTreeSet::new();
    for _ in 0..4 {
        move_client(&mut scene);
        let (other, why) = steer(&scene, b"xxkey001")?;
        assert_eq!(why, [Counter::Redispatched, Counter::FromClient]);
        to.insert(other);
    }
    assert!(to.len() == 1 && !to.contains(&slot), "{to:?}");
    scene.runner.change(|setup| setup.set_state(slot, State::Ready))?;
    assert_eq!(steer(&scene, b"xxkey001")?.0, slot, "its entry stayed");
    Ok(())
}

#[test]
fn an_idle_key_is_forgotten() -> Result<()> {
    let mut scene = scene(4, at_two)?;
    let (slot, _) = steer(&scene, b"hello")?;
    answer(&scene, slot, b"xxkey001")?;
    let (index, home) = scene.runner.maps.homes()?[0];
    let old = |by: u32| Home { last_used: home.last_used.wrapping_sub(by), ..home };
    scene.runner.maps.set_home(index, &old(900))?;
    move_client(&mut scene);
    assert_eq!(steer(&scene, b"xxkey001")?.1[0], Counter::AffinityHit);
    assert!(scene.runner.maps.homes()?[0].1.last_used >= home.last_used, "it was asked for");
    scene.runner.maps.set_home(index, &old(1001))?;
    move_client(&mut scene);
    assert_eq!(steer(&scene, b"xxkey001")?.1[0], Counter::UnknownKey);
    Ok(())
}
