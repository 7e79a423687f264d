//! Requests as RFC 9110, 9112, 6265 and 3986 let them be written: the key is found in whatever form it has, and never in a body.

use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::service::{Affinity, Service};
use std::collections::BTreeSet;
use tests::learned::{
    NAME, connect, counted, head, homes, request, respond, scene as learning, session, tag_of,
};
use tests::scene::Scene;
use tests::table::steer;

fn scene(set: impl FnOnce(&mut Service) -> bool) -> Result<Scene> {
    let mut scene = Scene::new(4)?;
    scene.runner.change(|setup| assert!(set(&mut setup.services[0])))?;
    Ok(scene)
}

/// Each of these requests comes home to slot 2, or none does.
fn check(scene: &mut Scene, hit: bool, requests: &[String]) -> Result<()> {
    for text in requests {
        let steered = steer(scene, text.as_bytes())?;
        assert_eq!(steered.counted.contains(&Counter::AffinityHit), hit, "{text:?}: {:?}", steered.counted);
        assert!(!hit || steered.slot == 2, "{text:?}");
    }
    Ok(())
}

#[test]
fn a_token_in_a_cookie_is_found_in_every_form() -> Result<()> {
    let mut scene = scene(|service| service.set_cookie_name("lb"))?;
    let token = scene.runner.setup.token(2, 7);
    let other = "A".repeat(token.len());
    let blanks = " \t".repeat(40);
    let crumbs: String = (0..60).map(|n| format!("Cookie: c{n}=1\r\n")).collect();
    let with = |lines: &str| format!("GET / HTTP/1.1\r\nHost: s\r\n{lines}\r\n\r\n");
    check(
        &mut scene,
        true,
        &[
            with(&format!("Cookie: a=b\r\nCookie: lb={token}")),
            with(&format!("Cookie: lb={token}\r\nCookie: a=b")),
            with(&format!("{crumbs}Cookie: lb={token}")),
            with(&format!("Cookie: lb={other}; lb={token}")),
            with(&format!("Cookie: lb={other}\r\nCookie: a=b; lb={token}; lb={other}")),
            with(&format!("Cookie: lb=; lb={token}")),
            with(&format!("Cookie: lb=\"{token}\"")),
            with(&format!("Cookie: lb= {token}")),
            with(&format!("Cookie: lb ={token}")),
            with(&format!("Cookie: a=b;\tlb\t = \t{token}\t; c=d")),
            with(&format!("Cookie: a=b;{blanks}lb{blanks}={blanks}{token}{blanks}; c=d")),
            with(&format!("Cookie: a=b;\r\n lb={token}")),
            format!("\r\nGET / HTTP/1.1\r\nCookie: lb={token}\r\n\r\n"),
            format!("GET / HTTP/1.1\nHost: s\nCookie: lb={token}\n\n"),
            format!("GET http://s/ HTTP/1.1\r\ncookie:lb={token}\r\n\r\n"),
        ],
    )?;
    check(
        &mut scene,
        false,
        &[
            // In a body, and in a request that follows.
            format!("POST / HTTP/1.1\r\nContent-Length: 99\r\n\r\na\r\nCookie: lb={token}\r\n\r\n"),
            format!("POST / HTTP/1.1\nContent-Length: 99\n\na\nCookie: lb={token}\n\n"),
            format!("GET / HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nCookie: lb={token}\r\n\r\n"),
            with(&format!("Cookie: a=\"b lb={token}\"")),
            with(&format!("Cookie: lb!={token}")),
            with(&format!("Cookie: lb b={token}")),
            with(&format!("Cookie: blb ={token}")),
            with(&format!("Cookie: {}lb={token}", format!("lb={other}; ").repeat(17))),
        ],
    )
}

#[test]
fn a_header_field_is_found_behind_a_hundred_others() -> Result<()> {
    let mut scene = scene(|service| service.set_header_name("X-Tenant"))?;
    let token = scene.runner.setup.token(2, 7);
    for pads in [0, 30, 31, 32, 100] {
        for pad in ["X-Pad", "X-Padt"] {
            let lines: String = (0..pads).map(|n| format!("{pad}{}: 1\r\n", n % 10)).collect();
            let text = format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}X-Tenant: {token}\r\n\r\n");
            check(&mut scene, true, &[text])?;
        }
    }
    let lines = "X-Penant: 1\r\n".repeat(90);
    check(&mut scene, true, &[format!("GET / HTTP/1.1\n{lines}x-tenant:\t \t{token}\n\n")])
}

#[test]
fn a_parameter_is_found_in_every_form() -> Result<()> {
    let mut scene = scene(|service| service.set_query_name("sid"))?;
    let token = scene.runner.setup.token(2, 7);
    let coded: String = token.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let partly = format!("{}%{:02X}{}", &token[..5], token.as_bytes()[5], &token[6..]);
    let with = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: s\r\n\r\n");
    let hits: Vec<String> = [
        format!("http://host/path?sid={token}"),
        format!("/?a=b&%73id={token}"),
        format!("/?%73%69%64={coded}&c=d"),
        format!("/?sid={coded}"),
        format!("/?x=%73id&sid={partly}"),
        format!("/?sid=old&sid={token}"),
    ]
    .iter()
    .map(|target| with(target))
    .collect();
    check(&mut scene, true, &hits)?;
    let misses: Vec<String> = [
        format!("/?a=b?sid={token}"),
        format!("/?sid%3d={token}"),
        format!("/#?sid={token}"),
        format!("/?a#&sid={token}"),
        format!("/&sid={token}"),
    ]
    .iter()
    .map(|target| with(target))
    .collect();
    check(&mut scene, false, &misses)
}

/// The same value in another form is the same key.
#[test]
fn forms_of_a_value_are_hashed_alike() -> Result<()> {
    type Set = fn(&mut Service) -> bool;
    let places: [(Set, &[&str]); 3] = [
        (
            |service| service.set_query_name("k"),
            &["GET /?k=a%20b%2Fc HTTP/1.1\r\n\r\n", "GET /?k=a+b/c&x=1 HTTP/1.1\r\n\r\n"],
        ),
        (
            |service| service.set_header_name("K"),
            &[
                "GET / HTTP/1.1\r\nK:a b\r\n\r\n",
                "GET / HTTP/1.1\r\nk: \t a b \t \r\n\r\n",
                "GET / HTTP/1.1\nk: a b\n\n",
            ],
        ),
        (
            |service| service.set_cookie_name("k"),
            &[
                "GET / HTTP/1.1\r\nCookie: k=ab\r\n\r\n",
                "GET / HTTP/1.1\r\nCookie: x=1; k=\"ab\" ; y=2\r\n\r\n",
            ],
        ),
    ];
    for (set, requests) in places {
        let mut scene = scene(|service| {
            service.affinity = Affinity::Hashed as u8;
            set(service)
        })?;
        let mut slots = BTreeSet::new();
        for text in requests {
            for port in 1..9 {
                scene.client.set_port(port);
                let steered = steer(&mut scene, text.as_bytes())?;
                assert_eq!(steered.counted, [Counter::Hashed, Counter::Bound], "{text:?}");
                slots.insert(steered.slot);
            }
        }
        assert_eq!(slots.len(), 1, "{requests:?}");
    }
    Ok(())
}

/// Of several values the one that is known counts; what a response deletes is then nobody's.
#[test]
fn a_learned_key_that_stands_twice_is_the_known_one() -> Result<()> {
    let mut scene = learning(4)?;
    let (slot, _) = connect(&mut scene, &request(None))?;
    respond(&scene, slot, &[&head(&[&format!("Set-Cookie: {NAME}=live; Path=/")])])?;
    for (first, second) in [("stranger", "live"), ("live", "old")] {
        let both = request(Some(&format!("{NAME}={first}; {NAME}={second}")));
        assert_eq!(connect(&mut scene, &both)?, (slot, Counter::AffinityHit));
        let gone = head(&[&format!("Set-Cookie: {NAME}=; Path=/auth; Max-Age=0")]);
        assert_eq!(respond(&scene, slot, &[&gone])?, [[Counter::FromBackend]]);
        assert_eq!(homes(&scene)?, [(tag_of(&scene, "live"), slot)], "{first} {second}");
    }
    // The same value twice is one.
    let twice = request(Some(&format!("{NAME}=live; {NAME}=live")));
    assert_eq!(connect(&mut scene, &twice)?, (slot, Counter::AffinityHit));
    respond(&scene, slot, &[&head(&[&format!("Set-Cookie: {NAME}=; Max-Age=0")])])?;
    assert_eq!(homes(&scene)?, []);
    Ok(())
}

/// A cookie that moves to another domain is set there and deleted where it was, in either order.
#[test]
fn a_set_beats_a_deletion_in_one_head() -> Result<()> {
    let set = format!("Set-Cookie: {NAME}=new; Domain=.example.org; Path=/");
    let delete = format!("Set-Cookie: {NAME}=; Path=/; Max-Age=0");
    for lines in [[&set, &delete], [&delete, &set]] {
        let mut scene = learning(4)?;
        let (slot, _) = connect(&mut scene, &request(None))?;
        respond(&scene, slot, &[&head(&[lines[0], lines[1]])])?;
        assert_eq!(homes(&scene)?, [(tag_of(&scene, "new"), slot)], "{lines:?}");
        assert_eq!(connect(&mut scene, &session("new"))?, (slot, Counter::AffinityHit));
    }
    Ok(())
}

#[test]
fn a_request_that_is_at_home_elsewhere_is_counted() -> Result<()> {
    let mut scene = learning(4)?;
    let mut known = Vec::new();
    for n in 0.. {
        let (slot, _) = connect(&mut scene, &request(None))?;
        respond(&scene, slot, &[&head(&[&format!("Set-Cookie: {NAME}=v{n}")])])?;
        known.push((format!("v{n}"), slot));
        if known.iter().any(|(_, other)| *other != slot) {
            break;
        }
    }
    let (mine, slot) = known.last().cloned().expect("one was learned");
    let (other, _) = known.iter().find(|(_, at)| *at != slot).cloned().expect("the loop ends with one");
    let first = session(&mine);
    assert_eq!(connect(&mut scene, &first)?, (slot, Counter::AffinityHit));
    let mut at = first.len() as u32;
    for (value, elsewhere) in [(&mine, false), (&other, true), (&mine, false)] {
        let ask = session(value);
        let outcome = scene.xdp(&scene.segment(at, tests::frame::PSH, &ask))?;
        assert_eq!(counted(&outcome).contains(&Counter::KeptElsewhere), elsewhere, "{value}");
        at += ask.len() as u32;
    }
    Ok(())
}
