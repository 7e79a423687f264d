//! The first payload: where its token, or the lack of one, sends the flow.

use anyhow::Result;
use lb_common::addr::Be16;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::flow::{Flow, FlowState, Head};
use lb_common::hash::mix64;
use lb_common::token::{SessionId, TOKEN_TEXT_LEN, Token};
use std::collections::BTreeMap;
use tests::frame::{ACK, PSH, RST};
use tests::runner::Verdict;
use tests::scene::{ISN, REQUEST, SERVICE, Scene, macs};
use tests::setup::{TOKEN_KEY, addr, sign};
use tests::table::{essence, steer, with_token};

#[test]
fn a_first_payload_becomes_a_syn_and_leaves_a_flow() -> Result<()> {
    for scene in [Scene::new(3)?, Scene::new(3)?.without_timestamps()] {
        let outcome = scene.xdp(&scene.first(REQUEST))?;
        assert_eq!(outcome.counted, [(Counter::NewSession, 1), (Counter::Bound, 1)], "{outcome:?}");
        let syn = outcome.segment();
        let slot = scene.slot_of(&syn);
        assert_eq!(essence(&syn), essence(&scene.offered(slot)));
        let flows = scene.runner.maps.flows()?;
        let [flow] = &flows[..] else { panic!("{flows:?}") };
        assert_eq!(flow.client, addr(*scene.client.ip()));
        assert_eq!((flow.head.client_port, flow.head.service), (Be16::new(scene.client.port()), SERVICE));
        assert_eq!((flow.head.backend, flow.head.state), (slot, FlowState::Binding as u8));
        assert_eq!((flow.client_isn, flow.cookie), (ISN, scene.cookie()));
        let stashes = scene.runner.maps.stashes()?;
        assert_eq!(stashes.len(), 1);
        assert_eq!(&stashes[0].bytes[..REQUEST.len()], REQUEST);
        let counted = scene.runner.maps.backend_counts(slot)?;
        assert_eq!((counted.new_session, counted.affinity_hit), (1, 0));
    }
    Ok(())
}

#[test]
fn a_valid_token_leads_home() -> Result<()> {
    let mut scene = Scene::new(4)?;
    for slot in 0..4 {
        let token = scene.runner.setup.token(slot, 1_000 + u128::from(slot));
        let steered = steer(&mut scene, &with_token(&token))?;
        assert_eq!((steered.counted, steered.slot), (vec![Counter::AffinityHit, Counter::Bound], slot));
        assert_eq!(scene.runner.maps.backend_counts(slot)?.affinity_hit, 1);
    }
    Ok(())
}

#[test]
fn a_token_of_an_older_instance_still_leads_home_and_is_counted() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let token = scene.runner.setup.token(2, 5);
    scene.runner.change(|setup| setup.backends[2].epoch = 9)?;
    let steered = steer(&mut scene, &with_token(&token))?;
    assert_eq!(steered.slot, 2);
    assert_eq!(steered.counted, [Counter::AffinityHit, Counter::StaleInstance, Counter::Bound]);
    assert_eq!(scene.runner.maps.backend_counts(2)?.stale_instance, 1);
    Ok(())
}

#[test]
fn a_draining_backend_keeps_its_sessions_and_gets_no_new_ones() -> Result<()> {
    let mut scene = Scene::new(3)?;
    scene.runner.change(|setup| setup.set_state(1, State::Drain))?;
    let token = scene.runner.setup.token(1, 5);
    let steered = steer(&mut scene, &with_token(&token))?;
    assert_eq!((steered.counted, steered.slot), (vec![Counter::AffinityHit, Counter::Bound], 1));
    for port in 1..200 {
        scene.client.set_port(port);
        assert_ne!(steer(&mut scene, REQUEST)?.slot, 1);
    }
    Ok(())
}

/// Every node must pick the same substitute, so it depends on the session alone.
#[test]
fn a_session_whose_backend_does_not_serve_moves() -> Result<()> {
    for state in [State::Down, State::Maint, State::Gone] {
        let mut scene = Scene::new(4)?;
        let token = scene.runner.setup.token(1, 77);
        scene.runner.change(|setup| setup.set_state(1, state))?;
        let mut substitutes = Vec::new();
        for port in [1, 2, 3, 60_000] {
            scene.client.set_port(port);
            let steered = steer(&mut scene, &with_token(&token))?;
            assert_eq!(steered.counted, [Counter::Redispatched, Counter::Bound], "{state:?}");
            assert_ne!(steered.slot, 1);
            substitutes.push(steered.slot);
        }
        substitutes.dedup();
        assert_eq!(substitutes.len(), 1, "{substitutes:?}");
        assert_eq!(scene.runner.maps.backend_counts(substitutes[0])?.redispatched, 4);
    }
    Ok(())
}

#[test]
fn sessions_of_a_lost_backend_spread_over_the_others() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let tokens: Vec<String> =
        (0..300).map(|n| scene.runner.setup.token(3, u128::from(mix64(n + 1)) << 64 | 9)).collect();
    scene.runner.change(|setup| setup.set_state(3, State::Down))?;
    let mut shares = BTreeMap::<u16, u32>::new();
    for token in tokens {
        *shares.entry(steer(&mut scene, &with_token(&token))?.slot).or_default() += 1;
    }
    assert!(shares.len() == 3 && shares.values().all(|n| *n > 60), "{shares:?}");
    Ok(())
}

#[test]
fn new_sessions_follow_the_weights() -> Result<()> {
    let mut scene = Scene::new(3)?;
    scene.runner.change(|setup| {
        for (backend, weight) in setup.backends.iter_mut().zip([0, 1, 3]) {
            backend.weight = weight;
        }
    })?;
    let mut shares = [0u32; 3];
    for port in 0..1_000 {
        scene.client.set_port(1_024 + port);
        shares[usize::from(steer(&mut scene, REQUEST)?.slot)] += 1;
    }
    assert_eq!(shares[0], 0, "{shares:?}");
    assert!((180..320).contains(&shares[1]), "{shares:?}");
    Ok(())
}

#[test]
fn what_does_not_verify_is_a_new_session_and_counted() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let good =
        Token { key_id: TOKEN_KEY.0, service: SERVICE, slot: 2, epoch: 1, session: SessionId([7; 16]) };
    let text = sign(good);
    let flip = |at: usize| {
        let mut bytes = text.clone().into_bytes();
        bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
        String::from_utf8(bytes).expect("ASCII")
    };
    let mut bad: Vec<(String, String)> =
        (0..TOKEN_TEXT_LEN).map(|at| (format!("character {at} changed"), flip(at))).collect();
    bad.push(("an unknown key".to_owned(), sign(Token { key_id: 9, ..good })));
    bad.push(("another service's token".to_owned(), sign(Token { service: 2, ..good })));
    bad.push(("no token at all".to_owned(), "x".repeat(TOKEN_TEXT_LEN)));
    for (name, token) in bad {
        let steered = steer(&mut scene, &with_token(&token))?;
        assert_eq!(steered.counted, [Counter::NewSession, Counter::InvalidToken, Counter::Bound], "{name}");
    }
    Ok(())
}

/// A key that is no longer alive verifies nothing; one that lives on beside a newer one does.
#[test]
fn token_keys_rotate() -> Result<()> {
    let mut scene = Scene::new(4)?;
    let token = with_token(&scene.runner.setup.token(2, 7));
    scene.runner.change(|setup| {
        setup.settings.token_keys[4] = [1, 2];
        setup.settings.token_key_mask |= 1 << 4;
    })?;
    assert_eq!(steer(&mut scene, &token)?.counted, [Counter::AffinityHit, Counter::Bound]);
    scene.runner.change(|setup| setup.settings.token_key_mask = 1 << 4)?;
    assert!(steer(&mut scene, &token)?.counted.contains(&Counter::InvalidToken));
    Ok(())
}

/// One that would not understand a response.
#[test]
fn without_a_ready_backend_the_client_is_reset() -> Result<()> {
    let mut scene = Scene::new(2)?;
    let token = scene.runner.setup.token(1, 7);
    scene.runner.change(|setup| {
        setup.services[0].place = lb_common::service::Place::Sni as u8;
        setup.set_state(0, State::Down);
        setup.set_state(1, State::Maint);
    })?;
    for payload in [REQUEST.to_vec(), with_token(&token)] {
        let first = scene.first(&payload);
        let outcome = scene.xdp(&first)?;
        assert_eq!(outcome.verdict, Verdict::Redirect, "{outcome:?}");
        assert_eq!(outcome.counted, [(Counter::ResetNoBackend, 1)], "{outcome:?}");
        let expected = first.reply().seq(first.ack).ack(first.end()).flags(RST | ACK).window(0);
        assert_eq!(essence(&outcome.segment()), essence(&expected));
    }
    assert_eq!(scene.runner.maps.flows()?, []);
    assert_eq!(scene.runner.maps.stashes()?.len(), 0);
    Ok(())
}

#[test]
fn a_backend_without_a_next_hop_gets_nothing_yet() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.runner.change(|setup| setup.backends[0].has_next_hop = 0)?;
    let outcome = scene.xdp(&scene.first(REQUEST))?;
    assert_eq!(outcome.verdict, Verdict::Drop);
    assert!(outcome.counted(Counter::DropNoNextHop), "{outcome:?}");
    // Once it is known, the client's retransmission finds its way.
    let (local_mac, next_hop_mac) = macs(0);
    scene.runner.change(|setup| {
        let backend = &mut setup.backends[0];
        (backend.has_next_hop, backend.local_mac, backend.next_hop_mac) = (1, local_mac, next_hop_mac);
    })?;
    let outcome = scene.xdp(&scene.first(REQUEST))?;
    assert_eq!(essence(&outcome.segment()), essence(&scene.offered(0)), "{outcome:?}");
    Ok(())
}

#[test]
fn a_full_stash_table_drops_what_would_need_one() -> Result<()> {
    let mut scene = Scene::new(1)?;
    for port in 0..scene.runner.setup.sizes.stashes as u16 {
        scene.client.set_port(1_000 + port);
        scene.bind(REQUEST)?;
    }
    scene.client.set_port(999);
    let outcome = scene.xdp(&scene.first(REQUEST))?;
    assert_eq!((outcome.verdict, &outcome.counted[..]), (Verdict::Drop, &[(Counter::DropNoStash, 1)][..]));
    assert_eq!(scene.runner.maps.flows()?.len(), scene.runner.setup.sizes.stashes as usize);
    Ok(())
}

#[test]
fn a_full_flow_table_drops_what_would_need_an_entry() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.runner.change(|setup| setup.settings.flow_group_mask = 0)?;
    for port in 0..8 {
        scene.client.set_port(1_000 + port);
        scene.bind(REQUEST)?;
    }
    scene.client.set_port(999);
    let outcome = scene.xdp(&scene.first(REQUEST))?;
    assert_eq!(
        (outcome.verdict, &outcome.counted[..]),
        (Verdict::Drop, &[(Counter::DropFlowTableFull, 1)][..])
    );
    Ok(())
}

/// Another processor may have seen the clock tick already: its flows are young, not as old as the clock.
#[test]
fn a_flow_seen_after_now_is_not_expired() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.runner.change(|setup| setup.settings.flow_group_mask = 0)?;
    for port in 0..8 {
        scene.client.set_port(1_000 + port);
        scene.bind(REQUEST)?;
    }
    scene.runner.change(|setup| setup.settings.tick_shift += 1)?;
    scene.client.set_port(999);
    assert_eq!(scene.xdp(&scene.first(REQUEST))?.counted, [(Counter::DropFlowTableFull, 1)]);
    Ok(())
}

/// Nor is one that a processor has just claimed, whose time is still the former flow's.
#[test]
fn an_entry_that_is_being_filled_in_is_not_taken() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.runner.change(|setup| setup.settings.flow_group_mask = 0)?;
    let head = Head { state: FlowState::Claimed as u8, ..Head::default() };
    for index in 0..8 {
        scene.runner.maps.set_flow(index, &Flow { head, ..Flow::default() })?;
    }
    assert_eq!(scene.xdp(&scene.first(REQUEST))?.counted, [(Counter::DropFlowTableFull, 1)]);
    Ok(())
}

/// The window of the first segment is scaled by what the client announced; the SYN's is not (RFC 7323 §2.2).
#[test]
fn the_syns_window_is_what_the_client_has() -> Result<()> {
    let mut scene = Scene::new(1)?;
    for (window, in_syn) in [(0, 0), (1, 1 << 10), (63, 63 << 10), (64, 65_535), (65_535, 65_535)] {
        let syn = scene.xdp(&scene.segment(0, PSH, REQUEST).window(window))?.segment();
        assert_eq!(u32::from(syn.window), in_syn, "window {window}");
        scene.runner.maps.forget()?;
    }
    Ok(())
}
