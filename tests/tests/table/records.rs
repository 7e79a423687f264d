//! ClientHellos that are cut into several records of TLS.

use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::service::{Affinity, Place};
use tests::frame::PSH;
use tests::hello::{asks_for, grease, hello, in_records, server_name};
use tests::scene::{SERVICE, Scene};
use tests::table::{steer, steer_all};

/// Four backends: 0 has the shop, 1 all below another domain, the rest is for who asks for neither.
fn scene() -> Result<Scene> {
    let mut scene = Scene::new(4)?;
    scene.runner.change(|setup| {
        setup.services[0].affinity = Affinity::Hashed as u8;
        setup.services[0].place = Place::Sni as u8;
        setup.list(SERVICE, "shop.example.org", &[0]);
        setup.list(SERVICE, "*.example.net", &[1]);
    })?;
    Ok(scene)
}

/// RFC 8446 §5.1: handshake messages may be fragmented over several records.
#[test]
fn a_name_is_found_however_the_hello_is_cut_into_records() -> Result<()> {
    let mut scene = scene()?;
    let long = hello(32, &[grease(1200), server_name("Shop.example.org"), grease(300)]);
    let below = hello(0, &[grease(0), server_name("a.b.example.net")]);
    for (hello, slot) in [(asks_for("shop.example.org"), 0), (long, 0), (below, 1)] {
        let mut cuts: Vec<Vec<usize>> =
            [1, 2, 7, 8, 9, 40, 64, 100, 512].iter().map(|len| vec![*len; 3000]).collect();
        cuts.extend((1..90).map(|len| vec![len]));
        cuts.extend([vec![3, 1, 60, 2], vec![1, 1, 1], vec![hello.len() - 6]]);
        for lens in cuts {
            let records = in_records(&hello, &lens);
            if records.len() > 1448 {
                continue;
            }
            let steered = steer(&mut scene, &records)?;
            assert_eq!(steered.counted, [Counter::Hashed, Counter::Bound], "{:?}", &lens[..1]);
            assert_eq!(steered.slot, slot, "{:?}", &lens[..1]);
        }
    }
    Ok(())
}

/// Records and segments know nothing of each other.
#[test]
fn records_are_awaited_however_they_are_cut_into_segments() -> Result<()> {
    let mut scene = scene()?;
    for (records, size) in [(64, 1), (100, 3), (64, 100), (30, 69), (512, 5)] {
        let payload = in_records(&asks_for("shop.example.org"), &vec![records; 100]);
        let mut at = 0;
        let bound = loop {
            let end = payload.len().min(at + size);
            let outcome = scene.xdp(&scene.segment(at as u32, PSH, &payload[at..end]))?;
            if !outcome.counted(Counter::HeadAwaited) {
                break outcome;
            }
            at = end;
            assert!(at < payload.len(), "records of {records} in segments of {size} are never whole");
        };
        assert!(
            bound.counted(Counter::Hashed) && bound.counted(Counter::Bound),
            "{records} {size}: {bound:?}"
        );
        assert!(!bound.counted(Counter::HeadIncomplete), "{bound:?}");
        assert_eq!(scene.slot_of(&bound.segment()), 0, "{records} {size}");
        scene.runner.maps.forget()?;
    }
    // More records than two segments hold.
    let long =
        in_records(&hello(32, &[grease(1000), server_name("shop.example.org"), grease(500)]), &[16; 200]);
    let first = scene.xdp(&scene.first(&long[..1448]))?;
    assert!(first.counted(Counter::HeadAwaited), "{first:?}");
    let second = scene.xdp(&scene.segment(1448, PSH, &long[1448..]))?;
    assert_eq!(scene.slot_of(&second.segment()), 0, "{second:?}");
    assert!(second.counted(Counter::Hashed), "{second:?}");
    Ok(())
}

#[test]
fn a_hello_without_a_name_in_several_records_is_whole() -> Result<()> {
    let mut scene = scene()?;
    let payload = in_records(&hello(32, &[grease(3)]), &[50, 1]);
    assert_eq!(steer(&mut scene, &payload)?.counted, [Counter::NewSession, Counter::Bound]);
    // What follows it is no part of it: early data, and what middle boxes want to see (RFC 8446 §D.4).
    let behind = [&in_records(&asks_for("shop.example.org"), &[50])[..], &[20, 3, 3, 0, 1, 1]].concat();
    let steered = steer(&mut scene, &behind)?;
    assert_eq!((steered.slot, &steered.counted[..]), (0, &[Counter::Hashed, Counter::Bound][..]));
    // The end of it is not there.
    let steered = steer_all(&mut scene, &payload[..payload.len() - 1])?;
    assert_eq!(steered.counted, [Counter::NewSession, Counter::Bound, Counter::HeadIncomplete]);
    Ok(())
}

/// RFC 8446 §5.1: no record of another kind stands between those of a message, and none of them is empty.
#[test]
fn a_hello_that_goes_on_in_nonsense_is_named() -> Result<()> {
    let mut scene = scene()?;
    let records = in_records(&asks_for("shop.example.org"), &[40]);
    let (first, rest) = records.split_at(45);
    let long = [22, 3, 1, 0x40, 1];
    for (name, behind) in [
        ("an alert", &[21, 3, 1, 0, 2, 1, 0][..]),
        ("an empty record", &[22, 3, 1, 0, 0]),
        ("too long a record", &long),
        ("text", b"GET / HTTP/1.1\r\n\r\n"),
    ] {
        let payload = [first, behind, rest].concat();
        let steered = steer(&mut scene, &payload)?;
        assert_eq!(steered.counted, [Counter::NewSession, Counter::Bound, Counter::HelloBroken], "{name}");
    }
    Ok(())
}
