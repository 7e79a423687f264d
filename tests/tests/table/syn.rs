//! A client's SYN and what comes back: the SYN cookie and what is agreed with it.

use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::service::{PROMISE_SACK, PROMISE_TIMESTAMPS, PROMISE_WINDOW_SCALE};
use lb_common::stash::STASH_BYTES;
use lb_common::syn_cookie::{Agreed, MSS_TABLE};
use tests::balancer::dial;
use tests::frame::{ACK, Opt, RST, SYN, Segment};
use tests::runner::Verdict;
use tests::scene::{ISN, SERVICE, Scene};
use tests::table::{Row, check_rows, essence};

/// Sends a SYN with these options; checks everything about the answer that does not depend on them.
fn answer(scene: &Scene, options: Vec<Opt>) -> Result<Segment> {
    let syn = scene.syn().options(options);
    let outcome = scene.xdp(&syn)?;
    assert_eq!(
        (outcome.verdict, &outcome.counted[..]),
        (Verdict::Redirect, &[(Counter::SynAnswered, 1)][..])
    );
    let answer = outcome.segment();
    let expected =
        Segment { seq: answer.seq, window: answer.window, options: answer.options.clone(), ..syn.reply() }
            .ack(ISN.wrapping_add(1))
            .flags(SYN | ACK);
    assert_eq!(essence(&answer), essence(&expected));
    assert_eq!(answer.ttl, 64);
    let agreed = Agreed {
        mss: syn.mss().unwrap_or(536).min(1460),
        window_scale: match answer.window_scale() {
            Some(_) => syn.window_scale().unwrap_or(15).min(14),
            None => 15,
        },
        sack: answer.sack_permitted(),
        timestamps: answer.timestamp().is_some(),
    };
    assert_eq!(answer.seq, scene.runner.setup.cookie(scene.client, SERVICE, ISN, agreed), "{answer}");
    assert_eq!(usize::from(answer.window), STASH_BYTES, "room for what a stash holds");
    assert_eq!(scene.runner.maps.flows()?, [], "a SYN leaves no trace");
    Ok(answer)
}

/// Frames that nobody can be answered to, made of one that somebody can.
fn from_nobody(frame: &Segment) -> Vec<Segment> {
    let sources =
        ["0.0.0.0", "0.1.2.3", "127.0.0.1", "224.0.0.1", "239.255.255.250", "240.0.0.1", "255.255.255.255"];
    let from = |ip: &&str| {
        let mut frame = frame.clone();
        frame.src.set_ip(ip.parse().expect("an address"));
        frame
    };
    let (group, all) = ([1, 0, 0x5e, 0, 0, 1], [0xff; 6]);
    let macs = [(frame.src_mac, group), (frame.src_mac, all), (group, frame.dst_mac), (all, frame.dst_mac)];
    sources.iter().map(from).chain(macs.map(|(src, dst)| frame.clone().macs(src, dst))).collect()
}

#[test]
fn nothing_is_answered_to_who_cannot_be_a_host() -> Result<()> {
    let scene = Scene::new(1)?;
    let rows = [
        (scene.syn(), Counter::SynAnswered),
        (scene.segment(0, 0, b"x").ack(7), Counter::ResetUnknownFlow),
        (scene.segment(0, 0, b"").flags(RST), Counter::DropUnknownRst),
    ];
    for (frame, usual) in rows {
        assert_eq!(scene.xdp(&frame)?.counted, [(usual, 1)]);
        for bad in from_nobody(&frame.seq(5)) {
            let outcome = scene.xdp(&bad)?;
            assert_eq!(
                (outcome.verdict, &outcome.counted[..]),
                (Verdict::Drop, &[(Counter::DropBadSource, 1)][..]),
                "{bad}"
            );
        }
    }
    // The last and the first that may be hosts.
    for ip in ["1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255"] {
        let mut syn = scene.syn();
        syn.src.set_ip(ip.parse()?);
        assert_eq!(scene.xdp(&syn)?.counted, [(Counter::SynAnswered, 1)], "{ip}");
    }
    Ok(())
}

#[test]
fn what_is_offered_is_agreed() -> Result<()> {
    let scene = Scene::new(1)?;
    for bits in 0..8 {
        let scale = (bits & 1 != 0).then_some(10);
        let (sack, stamps) = (bits & 2 != 0, (bits & 4 != 0).then_some((77, 0)));
        let answer = answer(&scene, Opt::linux_syn(1460, scale, sack, stamps))?;
        assert_eq!(answer.mss(), Some(1460));
        assert_eq!(answer.window_scale(), scale.map(|_| 7), "the service's own scale");
        assert_eq!(answer.sack_permitted(), sack);
        // Its own sequence number comes back in every later segment, which proves where that stands.
        assert_eq!(answer.timestamp(), stamps.map(|(val, _)| (scene.echo(), val)));
    }
    Ok(())
}

#[test]
fn what_the_backends_lack_is_not_promised() -> Result<()> {
    let mut scene = Scene::new(1)?;
    for promises in 0..8 {
        scene.runner.change(|setup| setup.services[0].promises = promises)?;
        let answer = answer(&scene, scene.syn().options)?;
        assert_eq!(answer.window_scale().is_some(), promises & PROMISE_WINDOW_SCALE != 0);
        assert_eq!(answer.sack_permitted(), promises & PROMISE_SACK != 0);
        assert_eq!(answer.timestamp().is_some(), promises & PROMISE_TIMESTAMPS != 0);
    }
    Ok(())
}

#[test]
fn any_mss_is_rounded_down() -> Result<()> {
    let scene = Scene::new(1)?;
    let sizes = [0, 1, 88, 535, 536, 537, 1199, 1200, 1380, 1459, 1460, 1461, 8960, 65_535];
    for mss in sizes.into_iter().chain(MSS_TABLE) {
        answer(&scene, vec![Opt::Mss(mss)])?;
    }
    // RFC 9293 §3.7.1: without the option it is 536.
    answer(&scene, vec![])?;
    Ok(())
}

/// Other stacks order and pad their options differently.
#[test]
fn options_are_found_in_any_order() -> Result<()> {
    let scene = Scene::new(1)?;
    let windows = vec![Opt::Mss(1460), Opt::Nop, Opt::WindowScale(8), Opt::Nop, Opt::Nop, Opt::SackPermitted];
    let found = answer(&scene, windows)?;
    assert!(found.sack_permitted() && found.window_scale().is_some() && found.timestamp().is_none());
    let macos = vec![
        Opt::Mss(1460),
        Opt::Nop,
        Opt::WindowScale(6),
        Opt::Nop,
        Opt::Nop,
        Opt::Timestamps { val: 9, echo: 0 },
        Opt::SackPermitted,
        Opt::End,
        Opt::End,
    ];
    let found = answer(&scene, macos)?;
    assert!(found.sack_permitted() && found.window_scale().is_some());
    assert_eq!(found.timestamp(), Some((scene.echo(), 9)));
    let odd = vec![
        Opt::Nop,
        Opt::Timestamps { val: 5, echo: 0 },
        Opt::Raw(vec![254, 4, 1, 2]),
        Opt::WindowScale(200),
        Opt::Mss(1300),
    ];
    assert_eq!(answer(&scene, odd)?.timestamp(), Some((scene.echo(), 5)));
    let all =
        vec![Opt::Raw([vec![30, 32], vec![7; 30]].concat()), Opt::Mss(1400), Opt::WindowScale(3), Opt::Nop];
    assert_eq!(answer(&scene, all)?.window_scale(), Some(7));
    Ok(())
}

/// What stood before a malformed option counts, what stands behind it does not; the SYN is answered all the same.
#[test]
fn malformed_options_are_survived() -> Result<()> {
    let scene = Scene::new(1)?;
    for bad in [vec![8, 1], vec![8, 200], vec![3, 0], vec![5, 3, 0], vec![255, 1, 0], vec![2]] {
        let syn = scene.syn().options([Opt::Mss(1460), Opt::SackPermitted, Opt::Raw(bad.clone())]);
        let outcome = scene.xdp(&syn)?;
        assert!(outcome.counted(Counter::SynAnswered), "{bad:?}: {outcome:?}");
        let answer = outcome.segment();
        assert!(answer.sack_permitted(), "{bad:?}: {answer}");
    }
    Ok(())
}

/// The answer must fit whatever length the SYN had.
#[test]
fn syns_of_every_length_are_answered() -> Result<()> {
    let scene = Scene::new(1)?;
    for len in [0, 1, 20, 500, 1460 - 20] {
        let outcome = scene.xdp(&scene.syn().payload(vec![b'x'; len]))?;
        let answer = outcome.segment();
        // Data on a SYN (RFC 7413 without a cookie) is not acknowledged: the client sends it again.
        assert_eq!((answer.ack, answer.flags, answer.payload.len()), (ISN.wrapping_add(1), SYN | ACK, 0));
    }
    let bare = scene.syn().options([]);
    assert_eq!(scene.xdp(&bare)?.segment().flags, SYN | ACK);
    Ok(())
}

#[test]
fn a_switched_off_service_stays_silent() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.runner.change(|setup| setup.services[0].enabled = 0)?;
    check_rows(&scene, [Row::new("off", scene.syn().bytes(), Verdict::Drop, Counter::DropNoService)])
}

/// Each service has its own id in the cookie, so one's cookie is no good for another.
#[test]
fn services_are_told_apart() -> Result<()> {
    let mut scene = Scene::new(1)?;
    let other = std::net::SocketAddrV4::new(*dial().ip(), 443);
    let mut id = 0;
    scene.runner.change(|setup| id = setup.service(other))?;
    let answer = scene.xdp(&Segment { dst: other, ..scene.syn() })?.segment();
    assert_eq!(answer.src, other);
    assert_eq!(answer.seq, scene.runner.setup.cookie(scene.client, id, ISN, scene.agreed));
    let stray = Segment { dst: other, ..scene.segment(0, 0, b"") };
    assert!(scene.xdp(&stray)?.counted(Counter::ResetUnknownFlow));
    Ok(())
}
