//! TLS connections steered by the server's name in their ClientHello.

use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::service::{Affinity, Place};
use std::collections::BTreeSet;
use tests::frame::PSH;
use tests::runner::Verdict;
use tests::scene::Scene;
use tests::table::{Row, check_rows, steer};

fn scene() -> Result<Scene> {
    let mut scene = Scene::new(8)?;
    scene.runner.change(|setup| {
        setup.services[0].affinity = Affinity::Hashed as u8;
        setup.services[0].place = Place::Sni as u8;
    })?;
    Ok(scene)
}

/// An extension.
fn extension(kind: u16, body: &[u8]) -> Vec<u8> {
    [&kind.to_be_bytes(), &(body.len() as u16).to_be_bytes(), body].concat()
}

fn server_name(name: &str) -> Vec<u8> {
    let entry = [&[0][..], &(name.len() as u16).to_be_bytes(), name.as_bytes()].concat();
    extension(0, &[&(entry.len() as u16).to_be_bytes(), &entry[..]].concat())
}

/// A ClientHello in one record, with a session id of that length and these extensions.
fn hello(session: usize, extensions: &[Vec<u8>]) -> Vec<u8> {
    let extensions = extensions.concat();
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(session as u8);
    body.extend(vec![9; session]);
    body.extend([0, 4, 0x13, 1, 0x13, 2, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let message = [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
    [&[22, 3, 1][..], &(message.len() as u16).to_be_bytes(), &message].concat()
}

fn grease(len: usize) -> Vec<u8> {
    extension(0x1a1a, &vec![5; len])
}

#[test]
fn the_same_name_comes_to_the_same_backend() -> Result<()> {
    let mut scene = scene()?;
    let mut chosen = BTreeSet::new();
    for name in
        ["a.example.org", "b.example.org", "shop.example.org", "x", "y.z", "0123456", "01234567", "012345678"]
    {
        let forms = [
            hello(0, &[server_name(name)]),
            hello(32, &[grease(3), server_name(&name.to_uppercase()), grease(100)]),
            hello(32, &[grease(0), grease(600), server_name(name)]),
        ];
        let slots: BTreeSet<u16> = forms
            .iter()
            .map(|payload| {
                let steered = steer(&mut scene, payload)?;
                assert_eq!(steered.counted, [Counter::Hashed, Counter::Bound], "{name}");
                Ok(steered.slot)
            })
            .collect::<Result<_>>()?;
        assert_eq!(slots.len(), 1, "{name}");
        chosen.extend(slots);
    }
    assert!(chosen.len() > 3, "names spread: {chosen:?}");
    Ok(())
}

#[test]
fn what_has_no_name_is_balanced() -> Result<()> {
    let mut scene = scene()?;
    let no_host = extension(0, &[0, 4, 1, 0, 1, b'x']);
    let lies = extension(0, &[0, 200, 0, 0, 198, b'x']);
    let whole: [Vec<u8>; 6] = [
        hello(0, &[]),
        hello(0, &[grease(50)]),
        hello(0, &[no_host]),
        hello(0, &[lies]),
        hello(0, &vec![grease(0); 33].into_iter().chain([server_name("late")]).collect::<Vec<_>>()),
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ];
    for payload in whole {
        assert_eq!(
            steer(&mut scene, &payload)?.counted,
            [Counter::NewSession, Counter::Bound],
            "{payload:?}"
        );
    }
    let mut cut = hello(32, &[grease(50), server_name("shop.example.org")]);
    for len in [1, 5, 6, 43, 44, 80, cut.len() - 1] {
        cut.truncate(len);
        let counted = steer(&mut scene, &cut)?.counted;
        let expected = [Counter::NewSession, Counter::Bound, Counter::HeadIncomplete];
        assert_eq!(counted, expected, "cut after {len}");
        cut = hello(32, &[grease(50), server_name("shop.example.org")]);
    }
    Ok(())
}

/// As browsers send it since key shares have more than a thousand bytes.
#[test]
fn a_name_in_the_second_segment_is_found() -> Result<()> {
    let mut scene = scene()?;
    let name = "shop.example.org";
    let expected = steer(&mut scene, &hello(0, &[server_name(name)]))?.slot;
    for before in [1340, 1355, 1370, 1600] {
        let payload = hello(32, &[grease(before), server_name(name), grease(100)]);
        let first = scene.first(&payload[..1448]);
        check_rows(&scene, [Row::new("first", first.bytes(), Verdict::Drop, Counter::HeadAwaited)])?;
        let outcome = scene.xdp(&scene.segment(1448, PSH, &payload[1448..]))?;
        assert!(outcome.counted(Counter::Hashed) && outcome.counted(Counter::Bound), "{before}: {outcome:?}");
        assert_eq!(scene.slot_of(&outcome.segment()), expected, "{before}");
        scene.runner.maps.forget()?;
    }
    Ok(())
}
