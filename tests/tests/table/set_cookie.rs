//! Heads of responses, and the cookies that they set, as they come: whole, cut, out of order, several in one segment.

use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::service::Affinity;
use std::collections::{BTreeMap, BTreeSet};
use tests::balancer::dial;
use tests::frame::{PSH, Segment};
use tests::learned::{
    FORGOTTEN, LEARNED, NAME, PLAIN, connect, counted, forget, head, homes, learns, request, respond, scene,
    session, tag_of,
};
use tests::object::Sizes;
use tests::runner::{Runner, Verdict};
use tests::scene::Scene;

#[test]
fn what_a_head_says_is_read() -> Result<()> {
    let mut scene = scene(3)?;
    let long = "x".repeat(127);
    let longer = "x".repeat(300);
    let blanks = " \t".repeat(40);
    let many: Vec<String> = (0..30).map(|n| format!("S{n}-a: {n}")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).chain(["Set-Cookie: JSESSIONID=v"]).collect();
    let rows: &[(&str, &[&str], Option<&str>)] = &[
        ("as it is written", &["Set-Cookie: JSESSIONID=v"], Some("v")),
        ("in lower case", &["set-cookie: JSESSIONID=v; path=/"], Some("v")),
        ("in upper case", &["SET-COOKIE: JSESSIONID=v; path=/"], Some("v")),
        ("without white space", &["Set-Cookie:JSESSIONID=v;path=/"], Some("v")),
        ("with a tab and blanks", &["Set-Cookie:\t  JSESSIONID=v\t; path=/"], Some("v")),
        ("with a blank behind the name", &["Set-Cookie: JSESSIONID =v"], Some("v")),
        ("with tabs and blanks behind the name", &["Set-Cookie: JSESSIONID\t \t= \tv"], Some("v")),
        (
            "with much white space",
            &[&format!("Set-Cookie:{blanks}JSESSIONID{blanks}={blanks}v{blanks};x")],
            Some("v"),
        ),
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
        ("quoted", &["Set-Cookie: JSESSIONID=\"v w\"; Path=/"], Some("v w")),
        ("as long as eight", &["Set-Cookie: JSESSIONID=12345678"], Some("12345678")),
        ("as long as sixteen", &["Set-Cookie: JSESSIONID=1234567812345678;"], Some("1234567812345678")),
        ("long", &[&format!("Set-Cookie: JSESSIONID={long}; Path=/")], Some(&long)),
        ("longer", &[&format!("Set-Cookie: JSESSIONID={longer}; Path=/")], Some(&longer)),
        ("lives long", &["Set-Cookie: JSESSIONID=v; Max-Age=3600; Expires=Thu, 01 Jan 1970 0"], Some("v")),
        ("an age that begins with 0", &["Set-Cookie: JSESSIONID=v; Max-Age=010"], Some("v")),
        ("a path of that year", &["Set-Cookie: JSESSIONID=v; Path=/Expires=Thu, 01 Jan 1970"], Some("v")),
        ("until another year", &["Set-Cookie: JSESSIONID=v; Expires=Thu, 01 Jan 2070 00:00:00"], Some("v")),
        ("another name", &["Set-Cookie: SESSIONID=v"], None),
        ("a longer name", &["Set-Cookie: XJSESSIONID=v"], None),
        ("something else behind the name", &["Set-Cookie: JSESSIONID!=v"], None),
        ("two names", &["Set-Cookie: JSESSIONID b=v"], None),
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
        let first = request(None);
        let (slot, _) = connect(&mut scene, &first)?;
        // Two requests were sent ahead.
        scene.xdp(&scene.segment(first.len() as u32, PSH, &first))?;
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
    let fields = "S-e-t-: x\r\n".repeat(70);
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
