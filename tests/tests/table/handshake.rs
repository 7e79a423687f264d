//! Segments of a connection that has no flow yet: what the SYN cookie proves, and what it does not.

use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::syn_cookie::{Agreed, MAX_AGE, MAX_AGE_BARE};
use lb_common::tcp::NO_WINDOW_SCALE;
use tests::frame::{ACK, FIN, Opt, PSH, RST, Segment};
use tests::runner::Verdict;
use tests::scene::{ISN, REQUEST, SERVICE, Scene, TS};
use tests::setup::SLOT;
use tests::table::{Row, check_rows, essence};

/// With and without timestamps.
fn scenes() -> Result<[Scene; 2]> {
    Ok([Scene::new(2)?, Scene::new(2)?.without_timestamps()])
}

#[test]
fn what_needs_no_answer_is_absorbed() -> Result<()> {
    for scene in scenes()? {
        let cookie = scene.cookie();
        let drop =
            |name: &str, segment: Segment, counter| Row::new(name, segment.bytes(), Verdict::Drop, counter);
        let rows = [
            drop("the bare ACK", scene.segment(0, 0, b""), Counter::HandshakeAck),
            drop("the bare ACK again, with PSH", scene.segment(0, PSH, b""), Counter::HandshakeAck),
            drop(
                "the ACK of our FIN",
                scene.segment(1, 0, b"").ack(cookie.wrapping_add(2)),
                Counter::HandshakeAck,
            ),
            drop("the second full segment", scene.segment(1460, PSH, b"x"), Counter::DropFirstSegmentMissing),
            drop("a small later segment", scene.segment(10, PSH, b"x"), Counter::DropFirstSegmentMissing),
            drop("a FIN behind lost data", scene.segment(10, FIN, b""), Counter::DropFirstSegmentMissing),
            drop("an RST", scene.segment(0, RST, b""), Counter::DropUnknownRst),
            drop("an RST of nobody", scene.segment(0, 0, b"").flags(RST).ack(0), Counter::DropUnknownRst),
        ];
        check_rows(&scene, rows)?;
        assert_eq!(scene.runner.maps.flows()?, []);
        assert_eq!(scene.runner.maps.stashes()?.len(), 0);
    }
    Ok(())
}

#[test]
fn a_fin_without_data_is_answered_with_a_fin() -> Result<()> {
    for scene in scenes()? {
        let fin = scene.segment(0, FIN, b"");
        let outcome = scene.xdp(&fin)?;
        assert_eq!(
            (outcome.verdict, &outcome.counted[..]),
            (Verdict::Redirect, &[(Counter::FinAnswered, 1)][..])
        );
        let mut expected =
            fin.reply().seq(fin.ack).ack(fin.seq.wrapping_add(1)).flags(ACK | FIN).window(2920 >> 7);
        if scene.stamps {
            expected = expected.timestamps(scene.echo(), TS + 1);
        }
        assert_eq!(essence(&outcome.segment()), essence(&expected));
    }
    Ok(())
}

/// RFC 9293 §3.8.4: a probe stands one byte before what comes next; it may carry one byte of garbage.
#[test]
fn a_keep_alive_is_answered() -> Result<()> {
    for scene in scenes()? {
        for garbage in [&b""[..], b"\0"] {
            let probe = scene.segment(u32::MAX, 0, garbage);
            let outcome = scene.xdp(&probe)?;
            assert_eq!(outcome.counted, [(Counter::KeepAliveAnswered, 1)], "{outcome:?}");
            let mut expected = probe.reply().seq(probe.ack).ack(ISN.wrapping_add(1)).window(2920 >> 7);
            if scene.stamps {
                expected = expected.timestamps(scene.echo(), TS + 1);
            }
            assert_eq!(essence(&outcome.segment()), essence(&expected));
        }
    }
    Ok(())
}

/// RFC 9293 §3.10.7.1: RST with the sequence number that the segment acknowledges.
#[test]
fn segments_of_connections_that_do_not_exist_are_reset() -> Result<()> {
    for scene in scenes()? {
        let cookie = scene.cookie();
        // Of another time even a full segment proves nothing.
        let old = cookie ^ if scene.stamps { 4 << 24 } else { 1 << 31 };
        let strange = [
            ("an ACK with a wrong cookie", scene.segment(0, 0, b"").ack(cookie.wrapping_add(2))),
            ("payload with an old cookie", scene.first(REQUEST).ack(old.wrapping_add(1))),
            (
                "an ACK from another port",
                Segment { src: "10.0.1.2:40001".parse()?, ..scene.segment(0, 0, b"") },
            ),
            (
                "an ACK from another address",
                Segment { src: "10.0.1.3:40000".parse()?, ..scene.segment(0, 0, b"") },
            ),
            ("a FIN with a wrong cookie", scene.segment(0, FIN, b"").ack(old.wrapping_add(1))),
        ];
        for (name, segment) in strange {
            let outcome = scene.xdp(&segment)?;
            assert_eq!(outcome.counted, [(Counter::ResetUnknownFlow, 1)], "{name}: {outcome:?}");
            assert_eq!(outcome.verdict, Verdict::Redirect, "{name}");
            let expected = segment.reply().seq(segment.ack).flags(RST).window(0);
            assert_eq!(essence(&outcome.segment()), essence(&expected), "{name}");
        }
        assert_eq!(scene.runner.maps.flows()?, []);
    }
    Ok(())
}

/// An RST would kill a healthy connection whose first segment was lost: whatever could be one is dropped silently.
#[test]
fn what_may_be_a_reordered_first_flight_is_never_reset() -> Result<()> {
    for scene in scenes()? {
        for at in [1, 2, 536, 1459, 1460, 1461, 2000, 2919] {
            let outcome = scene.xdp(&scene.segment(at, PSH, b"later"))?;
            assert_eq!(outcome.counted, [(Counter::DropFirstSegmentMissing, 1)], "at {at}: {outcome:?}");
        }
    }
    Ok(())
}

#[test]
fn cookies_live_for_their_time() -> Result<()> {
    for scene in scenes()? {
        for age in 0..=MAX_AGE {
            let (setup, slot) = (&scene.runner.setup, SLOT - age);
            let cookie = setup.cookie_of_slot(scene.client, SERVICE, ISN, scene.agreed, slot);
            let mut ack = scene.segment(0, 0, b"").ack(cookie.wrapping_add(1));
            if scene.stamps {
                let echo = setup.stamp_of_slot(scene.client, SERVICE, ISN, slot);
                ack = Segment { options: Vec::new(), ..ack }.timestamps(TS + 1, echo);
            }
            let lives = if scene.stamps { age < MAX_AGE } else { SLOT / 2 - slot / 2 < MAX_AGE_BARE };
            let expected = if lives { Counter::HandshakeAck } else { Counter::ResetUnknownFlow };
            let outcome = scene.xdp(&ack)?;
            assert_eq!(outcome.counted, [(expected, 1)], "age {age}: {outcome:?}");
        }
    }
    Ok(())
}

#[test]
fn a_cookie_survives_the_rotation_of_keys_once() -> Result<()> {
    let mut scene = Scene::new(1)?;
    let ack = scene.segment(0, 0, b"").bytes();
    let before = scene.runner.setup.settings;
    // What began with the former key in this pair of slots goes on with it; from the next one on there is the new one.
    for later in [0, 2] {
        scene.runner.change(|setup| {
            setup.settings = before.with_cookie_key([5, 6], SLOT);
            setup.settings.slot_base = SLOT + later;
        })?;
        let former = Row::new("the former key", ack.clone(), Verdict::Drop, Counter::HandshakeAck);
        check_rows(&scene, [former])?;
        let answer = scene.xdp(&scene.syn())?.segment();
        let setup = &scene.runner.setup;
        let made = setup.cookie_of_slot(scene.client, SERVICE, ISN, scene.agreed, SLOT + later);
        assert_eq!(answer.seq, made, "the key of the slot, {later} later");
        let mut other = scene.runner.setup.clone();
        other.settings.cookie_keys[usize::from(later != 0)] = [7, 8];
        let other = other.cookie_of_slot(scene.client, SERVICE, ISN, scene.agreed, SLOT + later);
        assert_ne!(other, made, "the other key, {later} later");
    }
    scene.runner.change(|setup| setup.settings.cookie_keys[0] = [7, 8])?;
    assert!(scene.runner.xdp(&ack)?.counted(Counter::ResetUnknownFlow), "the key is gone");
    Ok(())
}

/// The client's own cookie, with options changed on the way: the code covers them.
#[test]
fn a_cookies_options_cannot_be_changed() -> Result<()> {
    let scene = Scene::new(1)?;
    for bit in 16..32 {
        let ack = scene.segment(0, 0, b"").ack((scene.cookie() ^ 1 << bit).wrapping_add(1));
        let outcome = scene.xdp(&ack)?;
        assert!(outcome.counted(Counter::ResetUnknownFlow), "bit {bit}: {outcome:?}");
    }
    Ok(())
}

/// Timestamps in an unusual place prove as well as in the usual one.
#[test]
fn timestamps_are_found_anywhere_among_the_options() -> Result<()> {
    let scene = Scene::new(1)?;
    let stamps = Opt::Timestamps { val: TS + 1, echo: scene.echo() };
    let orders = [
        vec![stamps.clone(), Opt::Nop, Opt::Nop],
        vec![Opt::Nop, stamps.clone(), Opt::Nop],
        vec![Opt::Raw(vec![99, 6, 0, 0, 0, 0]), stamps.clone()],
        vec![Opt::Sack(vec![(1, 2), (3, 4)]), stamps],
    ];
    for options in orders {
        let ack = scene.segment(0, 0, b"").options(options.clone());
        let rows = [Row::new(format!("{options:?}"), ack.bytes(), Verdict::Drop, Counter::HandshakeAck)];
        check_rows(&scene, rows)?;
    }
    Ok(())
}

/// What a client may send before its backend answers is not more after a keep-alive, whatever the scale it was told.
#[test]
fn an_answer_offers_no_more_than_the_syn_ack() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.runner.change(|setup| setup.services[0].window_scale = 14)?;
    let probe = scene.segment(u32::MAX, 0, b"");
    assert_eq!(scene.xdp(&probe)?.segment().window, 1, "never closed");
    scene.agreed = Agreed { window_scale: NO_WINDOW_SCALE, ..scene.agreed };
    let probe = scene.segment(u32::MAX, 0, b"");
    assert_eq!(scene.xdp(&probe)?.segment().window, 2920, "not scaled");
    Ok(())
}
