//! Keys in HTTP requests other than a token in a cookie: in header fields and queries, signed or hashed.

use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::service::{Affinity, Service};
use std::collections::BTreeMap;
use tests::scene::Scene;
use tests::table::{steer, steer_all};

fn scene(set: impl FnOnce(&mut Service) -> bool) -> Result<Scene> {
    let mut scene = Scene::new(4)?;
    scene.runner.change(|setup| assert!(set(&mut setup.services[0])))?;
    Ok(scene)
}

/// A request with that target and these header lines.
fn request(target: &str, lines: &[&str]) -> Vec<u8> {
    let lines: String = lines.iter().map(|line| format!("{line}\r\n")).collect();
    format!("GET {target} HTTP/1.1\r\nHost: shop\r\n{lines}Accept: */*\r\n\r\n").into_bytes()
}

#[test]
fn a_token_is_found_in_a_header_field() -> Result<()> {
    let mut scene = scene(|service| service.set_header_name("X-Session"))?;
    for slot in 0..4 {
        let token = scene.runner.setup.token(slot, 40 + u128::from(slot));
        let hits = [
            request("/", &[&format!("X-Session: {token}")]),
            request("/", &[&format!("x-session:{token}")]),
            request("/", &[&format!("X-SESSION:\t{token}"), "Cookie: a=b"]),
            request("/", &["X-Sess: 1", "XX-Session: 2", "X-Session2: 3", &format!("X-Session: {token}")]),
        ];
        for payload in hits {
            let steered = steer(&mut scene, &payload)?;
            assert_eq!((steered.counted, steered.slot), (vec![Counter::AffinityHit, Counter::Bound], slot));
        }
    }
    let token = scene.runner.setup.token(0, 1);
    let mut in_body = request("/", &[]);
    in_body.extend(format!("\r\nX-Session: {token}\r\n").bytes());
    let misses = [
        request("/", &[]),
        request("/", &[&format!("Y-Session: {token}")]),
        request(&format!("/X-Session:{token}"), &[]),
        request("/", &[&format!("Cookie: X-Session={token}")]),
        in_body,
    ];
    for payload in misses {
        let counted = steer(&mut scene, &payload)?.counted;
        assert_eq!(counted, [Counter::NewSession, Counter::Bound], "{}", String::from_utf8_lossy(&payload));
    }
    Ok(())
}

#[test]
fn a_token_is_found_in_a_query() -> Result<()> {
    let mut scene = scene(|service| service.set_query_name("sid"))?;
    let token = scene.runner.setup.token(2, 40);
    let hits =
        [format!("/?sid={token}"), format!("/a/b?x=1&sid={token}&y=2"), format!("/?sid=&sid2=1&sid={token}")];
    for target in &hits {
        let steered = steer(&mut scene, &request(target, &[]))?;
        assert_eq!(
            (steered.counted, steered.slot),
            (vec![Counter::AffinityHit, Counter::Bound], 2),
            "{target}"
        );
    }
    for (target, line) in [
        (format!("/sid={token}"), "A: b".to_owned()),
        (format!("/?nosid={token}"), "A: b".to_owned()),
        ("/".to_owned(), format!("Referer: /?sid={token}")),
        ("/".to_owned(), format!("Cookie: sid={token}")),
    ] {
        let counted = steer(&mut scene, &request(&target, &[&line]))?.counted;
        assert_eq!(counted, [Counter::NewSession, Counter::Bound], "{target} {line}");
    }
    Ok(())
}

type Place = fn(&mut Service) -> bool;
type Build = fn(&str) -> Vec<u8>;

/// Where a value may stand, and two requests that hold the same one.
const PLACES: [(&str, Place, Build, Build); 3] = [
    (
        "cookie",
        |service| service.set_cookie_name("JSESSIONID"),
        |value| request("/", &[&format!("Cookie: JSESSIONID={value}")]),
        |value| request("/other", &["X: y", &format!("cookie: a=b; JSESSIONID={value}; c=d")]),
    ),
    (
        "header",
        |service| service.set_header_name("X-User"),
        |value| request("/", &[&format!("X-User: {value}")]),
        |value| request("/much/longer", &["Cookie: X-User=no", &format!("x-user:{value}")]),
    ),
    (
        "query",
        |service| service.set_query_name("room"),
        |value| request(&format!("/?room={value}"), &[]),
        |value| request(&format!("/chat?a=b&room={value}&c=d"), &["Cookie: room=no"]),
    ),
];

#[test]
fn a_value_is_hashed_to_one_backend() -> Result<()> {
    for (place, set, one, other) in PLACES {
        let mut scene = scene(|service| {
            service.affinity = Affinity::Hashed as u8;
            set(service)
        })?;
        let mut shares = BTreeMap::<u16, u32>::new();
        for n in 0..120_u32 {
            // Of every length up to far more than what is hashed.
            let value = format!("{n:03}-{}", "0123456789abcdef".repeat(n as usize % 12))
                + &"x".repeat(n as usize % 17);
            scene.client.set_port(1 + n as u16);
            let first = steer(&mut scene, &one(&value))?;
            scene.client.set_port(1000 + n as u16);
            let second = steer(&mut scene, &other(&value))?;
            assert_eq!(first.counted, [Counter::Hashed, Counter::Bound], "{place} {value}");
            assert_eq!(first.slot, second.slot, "{place} {value}");
            *shares.entry(first.slot).or_default() += 1;
        }
        assert!(shares.len() == 4 && shares.values().all(|n| *n > 10), "{place}: {shares:?}");
        for empty in [one(""), request("/", &[])] {
            let counted = steer(&mut scene, &empty)?.counted;
            assert_eq!(counted, [Counter::NewSession, Counter::Bound], "{place}");
        }
    }
    Ok(())
}

/// Values that differ anywhere are different keys, long ones too: tokens that carry claims differ far behind their beginning.
#[test]
fn every_byte_of_a_value_counts() -> Result<()> {
    for (place, set, build, _) in PLACES {
        let mut scene = scene(|service| {
            service.affinity = Affinity::Hashed as u8;
            set(service)
        })?;
        for at in [0, 1, 7, 8, 15, 63, 127, 128, 201, 899] {
            let mut slots = Vec::new();
            for byte in b'a'..b'm' {
                let mut value = [b'-'; 900];
                value[at] = byte;
                slots.push(steer(&mut scene, &build(std::str::from_utf8(&value)?))?.slot);
            }
            slots.sort_unstable();
            slots.dedup();
            assert!(slots.len() > 1, "{place}: byte {at} does not count");
        }
    }
    Ok(())
}

/// A value that is cut off by the end of the segment is hashed as far as it goes, and a request that is all value too.
#[test]
fn a_value_at_the_very_end_is_no_trouble() -> Result<()> {
    for (place, set, build, _) in PLACES {
        let mut scene = scene(|service| {
            service.affinity = Affinity::Hashed as u8;
            set(service)
        })?;
        let whole = build("0123456789");
        let ends = whole.windows(10).position(|w| w == b"0123456789").expect("it is there") + 10;
        for cut in 1..10 {
            let counted = steer_all(&mut scene, &whole[..ends - cut])?.counted;
            // Half a value is none.
            let incomplete = [Counter::NewSession, Counter::Bound, Counter::HeadIncomplete];
            assert_eq!(counted, incomplete, "{place} {cut}");
        }
    }
    Ok(())
}
