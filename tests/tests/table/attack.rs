//! Strangers and slow clients who fill the flow table and the stashes: who loses a place, who keeps it, and what is counted.

use anyhow::Result;
use lb_common::addr::Be16;
use lb_common::counter::Counter;
use lb_common::flow::{DATAGRAMS, FIN_SEEN, Flow, FlowState, Head, NO_STASH, PLAIN, Use};
use lb_common::hash::mix64;
use lb_common::home::{Asked, GROUP, Home, SHARE};
use lb_common::service::Affinity;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Instant;
use tests::balancer::dial;
use tests::frame::{FIN, PSH, RST, Segment};
use tests::learned;
use tests::object::Sizes;
use tests::runner::Verdict;
use tests::scene::{REQUEST, SERVICE, Scene, macs};
use tests::setup::{NextHop, addr};

/// A second service, which binds at the SYN, and the address that its clients dial.
const OTHER: u16 = 2;

fn other() -> SocketAddrV4 {
    SocketAddrV4::new(*dial().ip(), dial().port() + 1)
}

/// One service that waits for the first payload and [`OTHER`], each with a backend.
fn two_services() -> Result<Scene> {
    let mut scene = Scene::new(1)?;
    let ifindex = scene.runner.ifindex()?;
    scene.runner.change(|setup| {
        setup.service(other());
        setup.services[1].affinity = Affinity::None as u8;
        let (local_mac, mac) = macs(7);
        let at = SocketAddrV4::new(Ipv4Addr::new(10, 0, 99, 2), 99);
        setup.backend(OTHER, at, Some(NextHop { ifindex, local_mac, mac }));
    })?;
    Ok(scene)
}

/// A SYN to [`OTHER`] of a client that may not exist.
fn forged(scene: &Scene, n: u32) -> Segment {
    let bits = mix64(u64::from(n) + 1);
    let src = SocketAddrV4::new(
        Ipv4Addr::from(0x0b00_0000 | bits as u32 & 0xff_ffff),
        1024 + (bits >> 40) as u16 % 60_000,
    );
    Segment { src, dst: other(), ..scene.syn() }
}

/// Puts flows of [`SERVICE`] in all eight entries of the only group, each what `flow` makes of its number.
fn fill(scene: &mut Scene, flow: impl Fn(u16) -> Flow) -> Result<()> {
    scene.runner.change(|setup| setup.settings.flow_group_mask = 0)?;
    (0..8).try_for_each(|n| {
        let head = Head { client_port: Be16::new(500 + n), service: SERVICE, ..flow(n).head };
        scene
            .runner
            .maps
            .set_flow(n.into(), &Flow { client: addr(Ipv4Addr::new(10, 9, 9, 9)), head, ..flow(n) })
    })
}

/// An established flow that was heard of `age` ticks ago.
fn aged(scene: &Scene, age: u32) -> Result<Flow> {
    let now = scene.runner.maps.flows()?[0].last_seen;
    let head = Head { state: FlowState::Established as u8, ..Head::default() };
    Ok(Flow { head, stash: NO_STASH, last_seen: now.wrapping_sub(age), ..Flow::default() })
}

fn is_there(scene: &Scene, port: u16) -> Result<bool> {
    Ok(scene.runner.maps.flows()?.iter().any(|flow| flow.head.client_port.get() == port))
}

#[test]
fn a_full_group_evicts_who_was_idle_longest_but_nobody_of_the_last_minute() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.bind(REQUEST)?;
    let minute = scene.runner.setup.settings.evictable_ticks;
    let (young, idle, idler) =
        (aged(&scene, minute - 8)?, aged(&scene, minute + 50)?, aged(&scene, minute + 90)?);
    fill(&mut scene, |n| match n {
        3 => idle,
        5 => Flow { client_flags: PLAIN | DATAGRAMS, ..idler },
        _ => young,
    })?;
    for (port, gone) in [(1, 505), (2, 503)] {
        scene.client.set_port(port);
        let outcome = scene.xdp(&scene.first(REQUEST))?;
        assert!(outcome.counted(Counter::FlowEvicted) && outcome.counted(Counter::Bound), "{outcome:?}");
        assert!(!is_there(&scene, gone)?, "{gone} was idle longest");
    }
    scene.client.set_port(3);
    assert_eq!(scene.xdp(&scene.first(REQUEST))?.counted, [(Counter::DropFlowTableFull, 1)]);
    Ok(())
}

/// Where `binding` is longer than a minute, a flow whose backend has been silent for one makes room as well.
#[test]
fn a_full_group_evicts_who_waits_for_a_silent_backend_beyond_a_minute() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.bind(REQUEST)?;
    let minute = scene.runner.setup.settings.evictable_ticks;
    scene.runner.change(|setup| setup.settings.binding_ticks = 10 * minute)?;
    let (young, idle) = (aged(&scene, minute - 8)?, aged(&scene, minute + 50)?);
    let waits = |flow: Flow| Flow { head: Head { state: FlowState::Binding as u8, ..flow.head }, ..flow };
    fill(&mut scene, |n| waits(if n == 6 { idle } else { young }))?;
    scene.client.set_port(1);
    assert!(scene.xdp(&scene.first(REQUEST))?.counted(Counter::FlowEvicted));
    assert!(!is_there(&scene, 506)?);
    scene.client.set_port(2);
    assert_eq!(scene.xdp(&scene.first(REQUEST))?.counted, [(Counter::DropFlowTableFull, 1)]);
    Ok(())
}

/// Of flows that only begin, those of the service that has more of them make room first: a flood takes its own places, and so do
/// the clients of other services.
#[test]
fn the_service_that_is_flooded_gives_way_first() -> Result<()> {
    for (flooded, gone) in [(true, 503), (false, 500)] {
        let mut scene = two_services()?;
        scene.bind(REQUEST)?;
        let (older, newer) = (aged(&scene, 20)?, aged(&scene, 4)?);
        let opens = |flow: Flow| Flow { head: Head { state: FlowState::Opening as u8, ..flow.head }, ..flow };
        fill(&mut scene, |n| opens(if n == 0 { older } else { newer }))?;
        let head = Head { client_port: Be16::new(503), service: OTHER, ..opens(newer).head };
        let flow = Flow { head, client: addr(Ipv4Addr::new(10, 9, 9, 9)), ..newer };
        scene.runner.maps.set_flow(3, &flow)?;
        scene.runner.maps.set_used(OTHER, Use { flows: if flooded { 100 } else { 1 }, pending: 0 })?;
        scene.client.set_port(1);
        assert!(scene.xdp(&scene.first(REQUEST))?.counted(Counter::FlowEvicted));
        let left: Vec<u16> = (500..508).filter(|port| !is_there(&scene, *port).unwrap_or(true)).collect();
        assert_eq!(left, [gone]);
    }
    Ok(())
}

#[test]
fn a_connection_that_its_server_closed_is_forgotten_after_a_minute() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.bind(REQUEST)?;
    let limit = scene.runner.setup.settings.half_closed_ticks;
    scene.runner.change(|setup| setup.settings.evictable_ticks = setup.settings.idle_ticks)?;
    let (young, idle) = (aged(&scene, limit - 8)?, aged(&scene, limit + 8)?);
    fill(&mut scene, |n| match n {
        2 => Flow { backend_flags: FIN_SEEN, ..idle },
        6 => Flow { client_flags: FIN_SEEN, ..idle },
        4 => idle,
        _ => Flow { backend_flags: FIN_SEEN, ..young },
    })?;
    for (port, expected) in [(1, Counter::Bound), (2, Counter::Bound), (3, Counter::DropFlowTableFull)] {
        scene.client.set_port(port);
        let outcome = scene.xdp(&scene.first(REQUEST))?;
        assert!(outcome.counted(expected) && !outcome.counted(Counter::FlowEvicted), "{port}: {outcome:?}");
    }
    assert!(!is_there(&scene, 502)? && !is_there(&scene, 506)? && is_there(&scene, 504)?);
    Ok(())
}

/// As the server of a connection ends it: what was seen of the one FIN stays, and shortens the flow's life.
#[test]
fn a_fin_of_one_side_is_noted() -> Result<()> {
    let scene = Scene::new(1)?;
    let slot = scene.splice()?;
    scene.xdp(&scene.response(slot, 0, FIN, b""))?;
    let [flow] = scene.runner.maps.flows()?[..] else { panic!("one flow") };
    let settings = &scene.runner.setup.settings;
    assert_eq!(flow.head.state, FlowState::Established as u8);
    assert_eq!(
        settings.lifetime(flow.head.state, flow.client_flags, flow.backend_flags),
        Some(settings.half_closed_ticks)
    );
    Ok(())
}

#[test]
fn a_flood_of_syns_has_its_service_s_share_and_no_more() -> Result<()> {
    let mut scene = two_services()?;
    scene.runner.change(|setup| setup.services[1].max_flows = 20)?;
    let (mut evicted, mut refused) = (0, 0);
    for n in 0..5_000 {
        let outcome = scene.xdp(&forged(&scene, n))?;
        evicted += u32::from(outcome.counted(Counter::FlowEvicted));
        refused += u32::from(outcome.counted(Counter::DropFlowShare));
        assert!(scene.runner.maps.used(OTHER)?.flows <= 20);
    }
    // Newer ones take the places of older ones in their groups, where there are any.
    assert!(evicted > 1_000 && evicted + refused == 5_000 - 20, "{evicted} evicted, {refused} refused");
    // The other service has the rest of the table, up to 12 of 16 stashes here.
    for port in 0..12 {
        scene.client.set_port(1_000 + port);
        let outcome = scene.xdp(&scene.first(REQUEST))?;
        assert!(outcome.counted(Counter::Bound) && !outcome.counted(Counter::FlowEvicted), "{outcome:?}");
    }
    assert_eq!(scene.runner.maps.used(SERVICE)?.flows, 12);
    Ok(())
}

/// Three forged SYNs for each real one, at a service that may have half of a large table. The other one has as many clients as the
/// table has room for beside that, and half as many again begin and end. Nobody's place goes to the flood.
#[test]
fn a_flood_starves_no_other_service() -> Result<()> {
    const GROUPS: u32 = 1024;
    const REAL: u32 = GROUPS * 3;
    let mut scene = Scene::sized(Sizes { groups: GROUPS, ..Sizes::default() }, 1)?;
    scene.runner.change(|setup| {
        setup.service(other());
        setup.services.iter_mut().for_each(|service| service.affinity = Affinity::None as u8);
        setup.services[1].max_flows = GROUPS * 4;
        // However long this takes, nothing expires.
        setup.settings.opening_ticks = setup.settings.idle_ticks;
        setup.settings.evictable_ticks = setup.settings.idle_ticks;
        setup.backend(OTHER, SocketAddrV4::new(Ipv4Addr::new(10, 0, 99, 2), 99), None);
    })?;
    let (mut evicted, mut refused) = (0, 0);
    for n in 0..REAL {
        for more in 0..3 {
            scene.xdp(&forged(&scene, 4 * n + more))?;
        }
        let outcome = scene.xdp(&Segment { dst: dial(), ..forged(&scene, 4 * n + 3) })?;
        evicted += u32::from(outcome.counted(Counter::FlowEvicted));
        refused += u32::from(outcome.verdict == Verdict::Drop);
    }
    let used = |service| scene.runner.maps.used(service).map(|used| used.flows as u32);
    println!("{evicted} of {REAL} took a place of the flood, {refused} were refused");
    assert_eq!((used(SERVICE)?, refused), (REAL, 0));
    assert!(used(OTHER)? <= GROUPS * 4);
    Ok(())
}

#[test]
fn a_flood_of_syns_evicts_nobody_who_has_proved_his_address() -> Result<()> {
    for (what, state, flags) in [
        ("a head that is awaited", FlowState::Awaiting, 0),
        ("a flow of datagrams", FlowState::Established, PLAIN | DATAGRAMS),
        ("a connection", FlowState::Established, 0),
        ("a connection whose backend has not answered", FlowState::Binding, 0),
    ] {
        let mut scene = two_services()?;
        scene.bind(REQUEST)?;
        let young = aged(&scene, 4)?;
        let head = Head { state: state as u8, ..young.head };
        fill(&mut scene, |_| Flow { head, client_flags: flags, ..young })?;
        for n in 0..200 {
            let outcome = scene.xdp(&forged(&scene, n))?;
            assert_eq!(outcome.counted, [(Counter::DropFlowTableFull, 1)], "{what}");
        }
        assert!((500..508).all(|port| is_there(&scene, port).unwrap_or(false)), "{what}");
    }
    Ok(())
}

/// Two thousand groups with as many flows as there may be connections: what each begins with finds a place, and is found there again,
/// through 100,000 ends and beginnings.
#[test]
fn at_the_limit_every_flow_finds_a_place() -> Result<()> {
    const GROUPS: u32 = 2048;
    const LIVE: u32 = GROUPS * 4;
    let mut scene = Scene::sized(Sizes { groups: GROUPS, ..Sizes::default() }, 1)?;
    scene.runner.change(|setup| {
        setup.services[0].affinity = Affinity::None as u8;
        // However long this takes, nothing expires.
        setup.settings.opening_ticks = setup.settings.idle_ticks;
        setup.settings.evictable_ticks = setup.settings.idle_ticks;
    })?;
    let syn = |scene: &Scene, n: u32| Segment { dst: dial(), ..forged(scene, n) };
    let taken = |scene: &Scene, n: u32| -> Result<()> {
        let outcome = scene.xdp(&syn(scene, n))?;
        let fine = outcome.verdict == Verdict::Redirect && !outcome.counted(Counter::FlowEvicted);
        assert!(fine && outcome.counted(Counter::NewSession), "{n}: {outcome:?}");
        Ok(())
    };
    (0..LIVE).try_for_each(|n| taken(&scene, n))?;
    let strayed = (0..GROUPS).filter(|group| scene.runner.maps.has_overflowed(*group).unwrap_or(false));
    let strayed = strayed.count() as u32;
    assert!(strayed > 0 && strayed < GROUPS / 2, "{strayed} groups have overflowed");
    for n in 0..LIVE {
        assert!(scene.xdp(&syn(&scene, n))?.counted(Counter::SynRepeated), "{n} is found again");
    }
    for n in 0..100_000 {
        // Somebody ends, anybody with the same chance.
        let mut draw = mix64(u64::from(n));
        while scene.runner.maps.flow(draw as u32 % (GROUPS * 8))?.head == Head::default() {
            draw = mix64(draw);
        }
        let gone = draw as u32 % (GROUPS * 8);
        scene.runner.maps.set_flow(gone, &Flow::default())?;
        taken(&scene, LIVE + n)?;
    }
    assert_eq!(scene.runner.maps.flows()?.len() as u32, LIVE);
    Ok(())
}

#[test]
fn one_silent_backend_takes_no_more_than_its_share_of_the_stashes() -> Result<()> {
    let mut scene = Scene::new(2)?;
    scene.runner.change(|setup| setup.services[0].max_backend_pending = 4)?;
    let mut slots = [0; 2];
    for port in 0..8 {
        scene.client.set_port(1_000 + port);
        slots[usize::from(scene.bind(REQUEST)?)] += 1;
    }
    assert_eq!(slots, [4, 4], "what belongs nowhere goes where there is room");
    assert_eq!((scene.runner.maps.waiting(0)?, scene.runner.maps.waiting(1)?), (4, 4));
    scene.client.set_port(2_000);
    assert_eq!(scene.xdp(&scene.first(REQUEST))?.counted, [(Counter::DropBackendPending, 1)]);
    assert_eq!(scene.runner.maps.used(SERVICE)?.pending, 8, "it left nothing behind");
    // One backend answers.
    scene.client.set_port(1_000);
    let flows = scene.runner.maps.flows()?;
    let waits = flows.iter().find(|flow| flow.head.client_port.get() == 1_000);
    let slot = waits.expect("it waits").head.backend;
    assert!(scene.joint(&scene.syn_ack(slot))?.counted(Counter::Spliced));
    assert_eq!(scene.runner.maps.waiting(slot)?, 3);
    // A session that belongs to the other one waits, a new one need not.
    scene.client.set_port(2_000);
    let token = scene.runner.setup.token(1 - slot, 7);
    assert_eq!(scene.xdp(&scene.request(&token))?.counted, [(Counter::DropBackendPending, 1)]);
    assert_eq!(scene.bind(REQUEST)?, slot);
    Ok(())
}

#[test]
fn one_service_takes_no_more_than_its_share_of_the_stashes() -> Result<()> {
    let mut scene = two_services()?;
    scene.runner.change(|setup| {
        setup.services[0].max_pending = 4;
        setup.services[1].affinity = Affinity::Signed as u8;
    })?;
    for port in 0..4 {
        scene.client.set_port(1_000 + port);
        scene.bind(REQUEST)?;
    }
    scene.client.set_port(2_000);
    assert_eq!(scene.xdp(&scene.first(REQUEST))?.counted, [(Counter::DropPendingShare, 1)]);
    assert_eq!(scene.runner.maps.used(SERVICE)?.flows, 4, "it left nothing behind");
    Ok(())
}

/// A session waits for its own backend alone. A client that was told that some of its request had arrived would not send that again: it is
/// told that nobody takes it.
#[test]
fn who_was_told_that_its_head_had_arrived_is_refused_where_it_cannot_wait() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.runner.change(|setup| setup.services[0].max_backend_pending = 1)?;
    scene.bind(REQUEST)?;
    scene.client.set_port(2_000);
    let (begin, rest) = REQUEST.split_at(9);
    let outcome = scene.xdp(&scene.first(begin))?;
    assert!(outcome.counted(Counter::HeadAwaited) && outcome.verdict == Verdict::Redirect, "{outcome:?}");
    let outcome = scene.xdp(&scene.segment(begin.len() as u32, PSH, rest))?;
    assert!(outcome.counted(Counter::Unavailable) && outcome.segment().has(FIN), "{outcome:?}");
    assert_eq!(scene.runner.maps.used(SERVICE)?, Use { flows: 2, pending: 1 });
    Ok(())
}

/// The same of one whose stash another one has: its next segment is reset, and its own RST is not answered.
#[test]
fn who_was_told_that_its_head_had_arrived_is_reset_when_it_loses_its_stash() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.runner.change(|setup| setup.services[0].max_pending = 1)?;
    let begin = b"GET / HTTP/1.1\r\n";
    let outcome = scene.xdp(&scene.first(begin))?;
    assert!(outcome.counted(Counter::HeadAwaited) && outcome.verdict == Verdict::Redirect, "{outcome:?}");
    let next = scene.segment(begin.len() as u32, PSH, b"\r\n");
    let gives_up = scene.segment(begin.len() as u32, RST, b"");
    scene.client.set_port(2_000);
    let outcome = scene.xdp(&scene.first(REQUEST))?;
    assert!(outcome.counted(Counter::StashEvicted) && outcome.counted(Counter::Bound), "{outcome:?}");
    assert_eq!(scene.runner.maps.used(SERVICE)?, Use { flows: 2, pending: 1 });
    let outcome = scene.xdp(&next)?;
    assert!(outcome.counted(Counter::ResetUnknownFlow) && outcome.segment().has(RST), "{outcome:?}");
    assert_eq!(scene.xdp(&gives_up)?.verdict, Verdict::Drop);
    Ok(())
}

/// Clients who send half a head and then nothing: newer ones take their stashes, so that they cannot keep all others out.
#[test]
fn half_heads_make_room_for_other_clients_of_the_same_service() -> Result<()> {
    let mut scene = Scene::new(1)?;
    scene.runner.change(|setup| setup.services[0].max_pending = 4)?;
    let half = [b"GET / HTTP/1.1\r\nX: ".as_slice(), &[b'x'; 1429]].concat();
    let mut evicted = 0;
    for port in 0..200 {
        scene.client.set_port(1_000 + port);
        let outcome = scene.xdp(&scene.first(&half))?;
        assert!(outcome.counted(Counter::HeadAwaited), "{outcome:?}");
        evicted += u32::from(outcome.counted(Counter::StashEvicted));
        assert!(scene.runner.maps.used(SERVICE)?.pending <= 4);
    }
    assert_eq!(evicted, 196);
    scene.client.set_port(5_000);
    scene.bind(REQUEST)?;
    Ok(())
}

/// A table of learned sessions in which each group is full of sessions that clients have presented. Who begins new ones in great
/// number, and presents none, takes one entry of each group.
#[test]
fn sessions_that_nobody_presents_flush_no_table() -> Result<()> {
    let mut scene = learned::scene(1)?;
    let room = GROUP * scene.runner.setup.sizes.homes as usize;
    learned::connect(&mut scene, &learned::request(None))?;
    let last_used = learned::now(&scene)?;
    let known: Vec<Home> = (0..room)
        .map(|n| Home {
            tag: 2 + n as u64 / GROUP as u64 + scene_groups(&scene) * (1 + n as u64 % GROUP as u64),
            service: SERVICE,
            last_used,
            seen: 1,
            ..Home::default()
        })
        .collect();
    for home in &known {
        // Where it stands in its group does not matter.
        let group = home.tag & (scene_groups(&scene) - 1);
        let at = group * GROUP as u64 + home.tag / scene_groups(&scene) % GROUP as u64;
        scene.runner.maps.set_home(at as u32, home)?;
    }
    assert_eq!(scene.runner.maps.homes()?.len(), room);
    let mut evicted = 0;
    for n in 0..20 * room {
        let (slot, _) = learned::connect(&mut scene, &learned::request(None))?;
        let line = format!("Set-Cookie: {}=flood-{n}", learned::NAME);
        let counted = learned::respond(&scene, slot, &[&learned::head(&[&line])])?.concat();
        evicted += usize::from(counted.contains(&Counter::LearnedEvicted));
        scene.runner.maps.forget()?;
    }
    let left: Vec<u64> = scene.runner.maps.homes()?.iter().map(|(_, home)| home.tag).collect();
    let left = known.iter().filter(|home| left.contains(&home.tag)).count();
    println!("{evicted} new sessions made room for one another; {left} of {room} known ones are left");
    assert_eq!((evicted, left), (20 * room, room - room / GROUP));
    Ok(())
}

fn scene_groups(scene: &Scene) -> u64 {
    u64::from(scene.runner.setup.sizes.homes)
}

/// A connection that hands out sessions one after the other, as fast as it can.
#[test]
fn one_connection_begins_no_more_than_its_share_of_sessions() -> Result<()> {
    let mut scene = Scene::sized(Sizes { homes: 256, ..Sizes::default() }, 1)?;
    scene.runner.change(|setup| learned::learns(&mut setup.services[0]))?;
    let (slot, _) = learned::connect(&mut scene, &learned::request(None))?;
    let flow = scene.runner.maps.index_of(scene.client.port())?;
    let (mut learned, mut refused) = (0, 0);
    let begun = Instant::now();
    for n in 0..1_000_u32 {
        let asked = Asked { asked: 1, answered: 0, ..scene.runner.maps.asked(flow)? };
        scene.runner.maps.set_asked(flow, &asked)?;
        let response = learned::head(&[&format!("Set-Cookie: {}=flood-{n}", learned::NAME)]);
        let outcome = scene.xdp(&scene.response(slot, n * 1_000, PSH, &response))?;
        assert_eq!(outcome.verdict, Verdict::Redirect, "{outcome:?}");
        learned += u64::from(outcome.counted(Counter::Learned));
        refused += u64::from(outcome.counted(Counter::LearnedRefused));
    }
    // Each second that has begun has a share.
    let seconds = begun.elapsed().as_secs() + 2;
    println!("{learned} of 1000 learned, {refused} refused, in {:?}", begun.elapsed());
    assert!(learned + refused == 1_000 && learned <= seconds * u64::from(SHARE), "{learned} in {seconds} s");
    assert!(learned >= u64::from(SHARE));
    Ok(())
}
