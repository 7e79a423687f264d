//! Sessions whose keys the backends hand out: read from `Set-Cookie` on the way back, and looked for in requests.

use anyhow::Result;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::hash::scale;
use lb_common::home::{GROUP, Home, spread, tag};
use lb_common::service::Affinity;
use proptest::prelude::*;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;
use tests::balancer::dial;
use tests::frame::{PSH, Segment};
use tests::learned::{
    FORGOTTEN, IDLE, LEARNED, NAME, PLAIN, connect, counted, forget, head, homes, learns, now, request,
    respond, scene, session, tag_of,
};
use tests::object::Sizes;
use tests::runner::{Runner, Verdict};
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

#[test]
fn what_a_head_says_is_read() -> Result<()> {
    let mut scene = scene(3)?;
    let long = "x".repeat(127);
    let longest = "x".repeat(128);
    let longer = "x".repeat(300);
    let many: Vec<String> = (0..30).map(|n| format!("S{n}-a: {n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain(["Set-Cookie: JSESSIONID=v"]).collect();
    let rows: &[(&str, &[&str], Option<&str>)] = &[
        ("as it is written", &["Set-Cookie: JSESSIONID=v"], Some("v")),
        ("in lower case", &["set-cookie: JSESSIONID=v; path=/"], Some("v")),
        ("in upper case", &["SET-COOKIE: JSESSIONID=v; path=/"], Some("v")),
        ("without white space", &["Set-Cookie:JSESSIONID=v;path=/"], Some("v")),
        ("with a tab and blanks", &["Set-Cookie:\t  JSESSIONID=v\t; path=/"], Some("v")),
        ("first", &["Set-Cookie: JSESSIONID=v", "Content-Length: 0", "X-Y: Z"], Some("v")),
        ("last", &["Content-Length: 0", "Server-A: Z", "Set-Cookie: JSESSIONID=v"], Some("v")),
        (
            "one of several",
            &["Set-Cookie: a=b", "Set-Cookie: JSESSIONID=v; Secure", "Set-Cookie: c=d"],
            Some("v"),
        ),
        ("behind many that look like it", &many, Some("v")),
        ("the last one counts", &["Set-Cookie: JSESSIONID=w", "Set-Cookie: JSESSIONID=v"], Some("v")),
        ("with equals signs", &["Set-Cookie: JSESSIONID=a=b==; Path=/"], Some("a=b==")),
        ("quoted", &["Set-Cookie: JSESSIONID=\"v w\"; Path=/"], Some("\"v")),
        ("as long as eight", &["Set-Cookie: JSESSIONID=12345678"], Some("12345678")),
        ("as long as sixteen", &["Set-Cookie: JSESSIONID=1234567812345678;"], Some("1234567812345678")),
        ("long", &[&format!("Set-Cookie: JSESSIONID={long}; Path=/")], Some(&long)),
        ("longest", &[&format!("Set-Cookie: JSESSIONID={longest}; Path=/")], Some(&longest)),
        ("longer", &[&format!("Set-Cookie: JSESSIONID={longer}; Path=/")], Some(&longest)),
        ("lives long", &["Set-Cookie: JSESSIONID=v; Max-Age=3600; Expires=Thu, 01 Jan 1970 0"], Some("v")),
        ("an age that begins with 0", &["Set-Cookie: JSESSIONID=v; Max-Age=010"], Some("v")),
        ("a path of that year", &["Set-Cookie: JSESSIONID=v; Path=/Expires=Thu, 01 Jan 1970"], Some("v")),
        ("until another year", &["Set-Cookie: JSESSIONID=v; Expires=Thu, 01 Jan 2070 00:00:00"], Some("v")),
        ("another name", &["Set-Cookie: SESSIONID=v"], None),
        ("a longer name", &["Set-Cookie: XJSESSIONID=v"], None),
        ("a longer name behind", &["Set-Cookie: JSESSIONIDS=v"], None),
        ("the name in another case", &["Set-Cookie: jsessionid=v"], None),
        ("in the value of another", &["Set-Cookie: a=b; JSESSIONID=v"], None),
        ("another field", &["Set-Cookie2: JSESSIONID=v"], None),
        ("another field that ends so", &["X-Set-Cookie: JSESSIONID=v"], None),
        ("a request's field", &["Cookie: JSESSIONID=v"], None),
        ("in another field", &["X: Set-Cookie: JSESSIONID=v"], None),
        ("empty", &["Set-Cookie: JSESSIONID=; Path=/"], None),
        ("in the body", &["Content-Length: 26", "", "Set-Cookie: JSESSIONID=v"], None),
    ];
    for (name, lines, value) in rows {
        let (slot, _) = connect(&mut scene, &request(None))?;
        respond(&scene, slot, &[&head(lines)])?;
        let expected: Vec<_> = value.iter().map(|value| (tag_of(&scene, value), slot)).collect();
        let found: Vec<_> =
            homes(&scene)?.into_iter().filter(|(tag, _)| *tag != tag_of(&scene, "w")).collect();
        assert_eq!(found, expected, "{name}");
        if let Some(value) = value {
            assert_eq!(connect(&mut scene, &session(value))?, (slot, Counter::AffinityHit), "{name}");
        }
        forget(&mut scene)?;
    }
    Ok(())
}

/// Whatever a server may write, both sides read the same of it.
#[test]
fn every_value_is_hashed_as_it_is_documented() -> Result<()> {
    let scene = RefCell::new(scene(2)?);
    proptest!(ProptestConfig::with_cases(64), |(value in "[!-:<-~]{1,140}")| {
        let scene = &mut *scene.borrow_mut();
        let (slot, _) = connect(scene, &request(None)).unwrap();
        respond(scene, slot, &[&head(&[&format!("Set-Cookie: {NAME}={value}; Path=/")])]).unwrap();
        prop_assert_eq!(homes(scene).unwrap(), [(tag_of(scene, &value), slot)]);
        prop_assert_eq!(connect(scene, &session(&value)).unwrap(), (slot, Counter::AffinityHit));
        forget(scene).unwrap();
    });
    Ok(())
}

/// Segments end where they like.
#[test]
fn a_head_in_several_segments_is_read_as_one() -> Result<()> {
    let mut scene = scene(3)?;
    let whole = head(&["A: b", "Set-Cookie: JSESSIONID=value-in-two; Path=/", "C: d"]);
    let expected = tag_of(&scene, "value-in-two");
    for cut in 8..whole.len() {
        let (slot, _) = connect(&mut scene, &request(None))?;
        let (a, b) = whole.split_at(cut);
        let counts = respond(&scene, slot, &[a, b])?;
        assert_eq!(homes(&scene)?, [(expected, slot)], "cut at {cut}");
        assert_eq!(counts.concat().iter().filter(|c| **c == Counter::Learned).count(), 1, "cut at {cut}");
        // It is over: what follows is the body, whatever it looks like.
        let at = whole.len() as u32;
        let body = scene.response(slot, at, PSH, b"\r\nSet-Cookie: JSESSIONID=no\r\n\r\n");
        assert_eq!(counted(&scene.xdp(&body)?), PLAIN, "cut at {cut}");
        scene.runner.maps.forget()?;
        forget(&mut scene)?;
    }
    for size in [1, 2, 7, 8, 9, 30] {
        let (slot, _) = connect(&mut scene, &request(None))?;
        let (first, rest) = whole.split_at(8);
        let parts: Vec<&[u8]> = std::iter::once(first).chain(rest.chunks(size)).collect();
        respond(&scene, slot, &parts)?;
        assert_eq!(homes(&scene)?, [(expected, slot)], "in pieces of {size}");
        forget(&mut scene)?;
    }
    Ok(())
}

/// A line of which the first segment has so much that it is not kept.
#[test]
fn a_long_line_that_is_cut_is_learned_if_its_value_is_there() -> Result<()> {
    let mut scene = scene(2)?;
    /// For each of two segments.
    type Counts = [&'static [Counter]; 2];
    let fill = |n: usize| "x".repeat(n);
    let rows: [(&str, Vec<u8>, Counts); 5] = [
        (
            "in an attribute",
            head(&[&format!("Set-Cookie: JSESSIONID=v; Path=/{}", fill(1200))]),
            [LEARNED, PLAIN],
        ),
        (
            "in the value",
            head(&[&format!("Set-Cookie: JSESSIONID={}; Path=/", fill(1200))]),
            [&[Counter::LearnedCut, Counter::FromBackend], PLAIN],
        ),
        (
            "in another cookie",
            head(&[&format!("Set-Cookie: JSESSIONIDS={}; Path=/", fill(1200))]),
            [PLAIN, PLAIN],
        ),
        (
            "in another field, the cookie behind it",
            head(&[&format!("X-Y: {}", fill(1200)), "Set-Cookie: JSESSIONID=v"]),
            [PLAIN, LEARNED],
        ),
        (
            "in an attribute that is near",
            head(&[
                &format!("X-Y: {}", fill(600)),
                &format!("Set-Cookie: JSESSIONID=v; Path=/{}", fill(600)),
            ]),
            [PLAIN, LEARNED],
        ),
    ];
    for (name, whole, counts) in rows {
        let (slot, _) = connect(&mut scene, &request(None))?;
        let (a, b) = whole.split_at(1000);
        assert_eq!(respond(&scene, slot, &[a, b])?, counts, "{name}");
        forget(&mut scene)?;
    }
    Ok(())
}

/// Sent again, out of order, or with something in between: what waits for the rest of a line waits for the right one.
#[test]
fn segments_out_of_order_do_no_harm() -> Result<()> {
    let mut scene = scene(2)?;
    let whole = head(&["Set-Cookie: JSESSIONID=abcdef; Path=/"]);
    let (a, b) = whole.split_at(whole.len() - 15);
    let body = &b"HTTP is a protocol"[..];
    let send = |scene: &Scene, slot, at: usize, part: &[u8]| -> Result<Vec<Counter>> {
        Ok(counted(&scene.xdp(&scene.response(slot, at as u32, PSH, part))?))
    };
    let (slot, _) = connect(&mut scene, &request(None))?;
    assert_eq!(send(&scene, slot, 0, a)?, PLAIN);
    assert_eq!(send(&scene, slot, whole.len(), body)?, PLAIN, "the next but one overtakes");
    assert_eq!(send(&scene, slot, 0, a)?, PLAIN, "the first again");
    assert_eq!(send(&scene, slot, a.len(), b)?, LEARNED);
    assert_eq!(send(&scene, slot, a.len(), b)?, PLAIN, "the second again");
    assert_eq!(send(&scene, slot, whole.len(), body)?, PLAIN);
    assert_eq!(homes(&scene)?, [(tag_of(&scene, "abcdef"), slot)]);
    Ok(())
}

/// A scene with far more flows than places for cut lines.
fn crowd(backends: u16) -> Result<Scene> {
    let mut scene = Scene::new(backends)?;
    let mut setup = scene.runner.setup.clone();
    setup.sizes = Sizes { groups: 256, ..setup.sizes };
    setup.settings.flow_group_mask = setup.sizes.groups - 1;
    learns(&mut setup.services[0]);
    scene.runner = Runner::new(setup)?;
    let ifindex = scene.runner.ifindex()?;
    scene.runner.change(|setup| setup.backends.iter_mut().for_each(|b| b.ifindex = ifindex))?;
    Ok(scene)
}

/// Two flows that share a place for cut lines: the later one has it, the earlier one's is counted as cut.
#[test]
fn a_line_whose_place_is_taken_is_counted() -> Result<()> {
    let mut scene = crowd(2)?;
    let places = scene.runner.setup.sizes.stashes;
    let place =
        |scene: &Scene| -> Result<u32> { Ok(scene.runner.maps.index_of(scene.client.port())? % places) };
    let whole = head(&["Set-Cookie: JSESSIONID=abcdef; Path=/"]);
    let (a, b) = whole.split_at(whole.len() - 15);
    let (slot, _) = connect(&mut scene, &request(None))?;
    let first = (place(&scene)?, scene.client, slot);
    assert_eq!(respond(&scene, slot, &[a])?, [PLAIN]);
    loop {
        let (slot, _) = connect(&mut scene, &request(None))?;
        if place(&scene)? == first.0 {
            assert_eq!(respond(&scene, slot, &[a, b])?, [PLAIN, LEARNED]);
            break;
        }
    }
    scene.client = first.1;
    let late = scene.response(first.2, a.len() as u32, PSH, b);
    assert_eq!(counted(&scene.xdp(&late)?), [Counter::LearnedCut, Counter::FromBackend]);
    // The next response is read again.
    assert_eq!(respond(&scene, first.2, &[&head(&["Set-Cookie: JSESSIONID=other"])])?, [LEARNED]);
    Ok(())
}

/// Every place for cut lines is taken, four times over, with responses going on: who has a place is learned, who has none is
/// counted, all are served, and nobody's line is taken for another's.
#[test]
fn all_places_for_cut_lines_taken_harms_nobody() -> Result<()> {
    let mut scene = crowd(3)?;
    let places = scene.runner.setup.sizes.stashes;
    let mut flows = Vec::new();
    let mut last = BTreeMap::new();
    while flows.len() < 4 * places as usize || last.len() < places as usize {
        let n = flows.len();
        let (slot, _) = connect(&mut scene, &request(None))?;
        let whole = head(&[&format!("Set-Cookie: {NAME}=cut-{n:04}; Path=/")]);
        let (a, b) = whole.split_at(whole.len() - 15);
        assert_eq!(respond(&scene, slot, &[a])?, [PLAIN], "{n}");
        last.insert(scene.runner.maps.index_of(scene.client.port())? % places, n);
        flows.push((scene.client, slot, a.len() as u32, b.to_vec()));
    }
    let kept: BTreeSet<usize> = last.into_values().collect();
    for (n, (client, slot, at, rest)) in flows.iter().enumerate() {
        scene.client = *client;
        let outcome = scene.xdp(&scene.response(*slot, *at, PSH, rest))?;
        assert_eq!((outcome.verdict, outcome.segment().payload), (Verdict::Redirect, rest.clone()), "{n}");
        let expected = if kept.contains(&n) { LEARNED } else { &[Counter::LearnedCut, Counter::FromBackend] };
        assert_eq!(counted(&outcome), expected, "{n}");
    }
    let expected: BTreeSet<_> =
        kept.iter().map(|n| (tag_of(&scene, &format!("cut-{n:04}")), flows[*n].1)).collect();
    assert_eq!(homes(&scene)?.into_iter().collect::<BTreeSet<_>>(), expected);
    // What comes next on each of the connections is read again.
    for (n, (client, slot, ..)) in flows.iter().enumerate() {
        scene.client = *client;
        let later = head(&[&format!("Set-Cookie: {NAME}=later-{n}")]);
        let counted = respond(&scene, *slot, &[&later])?.concat();
        assert!(counted.contains(&Counter::Learned), "{n}: {counted:?}");
    }
    Ok(())
}

#[test]
fn interim_responses_are_skipped() -> Result<()> {
    let mut scene = scene(2)?;
    let last = head(&["Set-Cookie: JSESSIONID=v; Path=/"]);
    let with = |first: &str| [first.as_bytes(), &last].concat();
    let rows: [(&str, Vec<Vec<u8>>, bool); 6] = [
        ("in the same segment", vec![with("HTTP/1.1 100 Continue\r\n\r\n")], true),
        (
            "two of them",
            vec![with("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n")],
            true,
        ),
        ("in its own segment", vec![b"HTTP/1.1 100 Continue\r\n\r\n".to_vec(), last.clone()], true),
        ("behind one without a body", vec![with("HTTP/1.1 304 Not Modified\r\nETag: \"a\"\r\n\r\n")], true),
        ("the body of another", vec![with("HTTP/1.1 200 OK\r\nContent-Type: message/http\r\n\r\n")], false),
        ("of the older version", vec![String::from_utf8(last.clone())?.replace("/1.1", "/1.0").into()], true),
    ];
    for (name, parts, is_learned) in rows {
        let (slot, _) = connect(&mut scene, &request(None))?;
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        respond(&scene, slot, &parts)?;
        assert_eq!(!homes(&scene)?.is_empty(), is_learned, "{name}");
        forget(&mut scene)?;
    }
    Ok(())
}

/// A kept-alive connection: each of its responses may hand out a key, or take it back.
#[test]
fn every_response_of_a_connection_counts() -> Result<()> {
    let mut scene = scene(3)?;
    let ask = request(None);
    let (slot, _) = connect(&mut scene, &ask)?;
    let responses = [
        (head(&["Content-Length: 0"]), PLAIN),
        (head(&["Set-Cookie: JSESSIONID=one"]), LEARNED),
        (head(&["Set-Cookie: JSESSIONID=two"]), LEARNED),
        (head(&["Set-Cookie: JSESSIONID=; Max-Age=0"]), FORGOTTEN),
        (head(&["Set-Cookie: JSESSIONID=; Max-Age=0"]), PLAIN),
        (head(&["Set-Cookie: JSESSIONID=three"]), LEARNED),
    ];
    let (mut asked, mut said) = (0, 0);
    for (i, (response, expected)) in responses.iter().enumerate() {
        if i > 0 {
            asked += ask.len() as u32;
            // A browser presents what it was given last.
            let ask = if i == 3 { session("two") } else { ask.clone() };
            scene.xdp(&scene.segment(asked, PSH, &ask))?;
        }
        let outcome = scene.xdp(&scene.response(slot, said, PSH, response))?;
        assert_eq!(counted(&outcome), *expected, "{i}");
        said += response.len() as u32;
    }
    let known: BTreeSet<_> = homes(&scene)?.into_iter().collect();
    assert_eq!(known, ["one", "three"].map(|value| (tag_of(&scene, value), slot)).into());
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
    // It may hand one out.
    let given = scene.xdp(&scene.response(slot, 200, PSH, &head(&["Set-Cookie: JSESSIONID=w"])))?;
    assert_eq!(counted(&given), LEARNED);
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

/// What begins like a head and is none, or is nothing at all.
#[test]
fn what_is_no_head_is_left_alone() -> Result<()> {
    let mut scene = scene(2)?;
    let (slot, _) = connect(&mut scene, &request(None))?;
    let parts: [&[u8]; 7] = [
        b"H",
        b"HTTP/1.",
        b"HTTP/2 200\r\nSet-Cookie: JSESSIONID=v\r\n\r\n",
        b"\r\nSet-Cookie: JSESSIONID=v\r\n\r\n",
        &[b'\n'; 1400],
        b"Set-Cookie: JSESSIONID=v\r\n",
        &[0; 1460],
    ];
    let counts = respond(&scene, slot, &parts)?;
    assert!(counts.iter().all(|counted| counted == PLAIN), "{counts:?}");
    assert_eq!(homes(&scene)?, []);
    let fields = "S-e-t-: x\r\n".repeat(60);
    let many = format!("HTTP/1.1 200 OK\r\n{}Set-Cookie: JSESSIONID=v\r\n\r\n", fields.replace("-e-t", "et"));
    assert_eq!(
        respond(&scene, slot, &[many.as_bytes()])?,
        [[Counter::LearnedCut, Counter::FromBackend]],
        "more than are looked at"
    );
    Ok(())
}

#[test]
fn the_frame_is_what_it_would_be_without_learning() -> Result<()> {
    let mut scene = scene(1)?;
    let (slot, _) = connect(&mut scene, &request(None))?;
    let sent = scene.response(slot, 0, PSH, &head(&["Set-Cookie: JSESSIONID=v"]));
    let learned: Segment = scene.xdp(&sent)?.segment();
    scene.runner.change(|setup| setup.services[0].affinity = Affinity::None as u8)?;
    assert_eq!(scene.xdp(&sent)?.segment(), learned);
    assert_eq!(learned.src, dial());
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
    for burst in 0..BURSTS {
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
