//! QUIC: each packet is steered by the server id in its destination connection id.

use anyhow::Result;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::quic_lb::{Config, Server};
use lb_common::service::Affinity;
use proptest::prelude::*;
use std::collections::BTreeSet;
use tests::balancer::dial;
use tests::frame::Datagram;
use tests::runner::Verdict;
use tests::scene::{CLIENT_MAC, LOCAL_MAC, SERVICE, Scene, backend, macs};

const KEY: [u8; 16] = *b"sixteen bytes ok";
const BACKENDS: u16 = 4;

/// One service with configurations; the backend in a slot has that slot as the last byte of its server ids.
fn scene(configs: &[Config]) -> Result<Scene> {
    let mut scene = Scene::new(BACKENDS)?;
    scene.runner.change(|setup| {
        setup.services[0].protocol = 17;
        setup.services[0].affinity = Affinity::Quic as u8;
        for config in configs {
            setup.quic.push((SERVICE, *config));
            for slot in 0..BACKENDS {
                let server = Server::new(SERVICE, &server_id(config, slot)).expect("of a right length");
                setup.quic_servers.push((server, slot));
            }
        }
    })?;
    Ok(scene)
}

fn server_id(config: &Config, slot: u16) -> Vec<u8> {
    let mut id = vec![0x5e; config.server_len.into()];
    *id.last_mut().expect("a server id is not empty") = slot as u8;
    id
}

/// A connection id that leads to a slot.
fn id(config: &Config, slot: u16, nonce: u8) -> Vec<u8> {
    config.encode(&server_id(config, slot), &vec![nonce; config.nonce_len()], config.own_length()).to_vec()
}

fn short(id: &[u8]) -> Vec<u8> {
    [&[0x4f][..], id, &[7; 30]].concat()
}

fn long(id: &[u8]) -> Vec<u8> {
    [&[0xc3, 0, 0, 0, 1, id.len() as u8][..], id, &[8], &[9; 8], &[7; 300]].concat()
}

/// Sends a datagram; returns where it went, if anywhere, and what was counted.
fn sent(scene: &Scene, payload: &[u8]) -> Result<(Option<u16>, Vec<Counter>)> {
    let datagram = Datagram::new(scene.client, dial(), payload).macs(CLIENT_MAC, LOCAL_MAC);
    let outcome = scene.runner.xdp(&datagram.bytes())?;
    let counted = outcome.counted.iter().map(|(counter, _)| *counter).collect();
    if outcome.verdict == Verdict::Drop {
        return Ok((None, counted));
    }
    let seen = Datagram::parse(&outcome.frame);
    let slot = (0..BACKENDS).find(|slot| backend(*slot) == seen.dst).expect("addressed to a backend");
    let (local, next) = macs(slot);
    assert_eq!(seen, Datagram { dst: seen.dst, ttl: 63, ..datagram.macs(local, next) });
    Ok((Some(slot), counted))
}

/// One of each way to read a server id.
fn configs() -> [Config; 6] {
    let of = |rotation, server, nonce, key: Option<&[u8; 16]>| {
        Config::new(rotation, server, nonce, key).expect("within the limits")
    };
    [
        of(0, 2, 6, None),
        of(1, 1, 4, None),
        of(2, 8, 8, Some(&KEY)),
        of(3, 3, 4, Some(&KEY)),
        of(4, 10, 5, Some(&KEY)),
        of(6, 10, 9, Some(&KEY)),
    ]
}

#[test]
fn a_server_id_leads_home_however_it_is_written() -> Result<()> {
    let mut scene = scene(&configs())?;
    for config in configs() {
        for slot in 0..BACKENDS {
            for payload in [short(&id(&config, slot, 3)), long(&id(&config, slot, 4))] {
                // A new address each time: the connection has moved.
                scene.client.set_port(scene.client.port() + 1);
                let expected = vec![Counter::AffinityHit, Counter::FromClient];
                assert_eq!(sent(&scene, &payload)?, (Some(slot), expected), "rotation {}", config.rotation);
                assert_eq!(sent(&scene, &payload)?, (Some(slot), vec![Counter::FromClient]));
            }
        }
    }
    Ok(())
}

/// The program reads what the library writes, whatever the lengths.
#[test]
fn every_length_is_read() -> Result<()> {
    let mut scene = scene(&[])?;
    for server in 1..=15 {
        for nonce in 4..=19 - server {
            for key in [None, Some(&KEY)] {
                let config = Config::new(5, server, nonce, key).expect("within the limits");
                scene.runner.change(|setup| {
                    setup.quic = vec![(SERVICE, config)];
                    let ids = (0..BACKENDS).map(|slot| (server_id(&config, slot), slot));
                    setup.quic_servers = ids
                        .map(|(id, slot)| (Server::new(SERVICE, &id).expect("of a right length"), slot))
                        .collect();
                })?;
                for slot in 0..BACKENDS {
                    scene.client.set_port(10_000 + scene.client.port() % 50_000 + 1);
                    let (to, _) = sent(&scene, &short(&id(&config, slot, 200)))?;
                    assert_eq!(to, Some(slot), "{server} and {nonce} bytes, {key:?}");
                }
                // Nothing behind the id, and about as much as is read at once when it is there.
                for bytes in [0, 38, 39, 40, 41] {
                    for (header, payload) in [(1, short(&id(&config, 2, 77))), (6, long(&id(&config, 2, 78)))]
                    {
                        let bytes = bytes.max(header + config.id_len());
                        scene.client.set_port(10_000 + scene.client.port() % 50_000 + 1);
                        let (to, _) = sent(&scene, &payload[..bytes.min(payload.len())])?;
                        assert_eq!(to, Some(2), "{server} and {nonce} bytes, {bytes} in all, {key:?}");
                    }
                }
                scene.runner.maps.forget()?;
            }
        }
    }
    Ok(())
}

/// One socket of a client with connections to several servers: each packet finds its own, and answers find the client.
#[test]
fn connections_of_one_socket_do_not_disturb_each_other() -> Result<()> {
    let scene = scene(&configs())?;
    let config = configs()[3];
    for round in 0..3 {
        for slot in [2, 0, 3] {
            assert_eq!(sent(&scene, &short(&id(&config, slot, round)))?.0, Some(slot));
            let (local, next) = macs(slot);
            let answer = Datagram::new(backend(slot), scene.client, b"answer").macs(next, local);
            let seen = Datagram::parse(&scene.runner.xdp(&answer.bytes())?.frame);
            assert_eq!((seen.src, seen.dst), (dial(), scene.client));
        }
    }
    assert_eq!(scene.runner.maps.flows()?.len(), 1);
    Ok(())
}

#[test]
fn a_server_that_does_not_serve_is_replaced_or_the_packet_refused() -> Result<()> {
    let mut scene = scene(&configs())?;
    let config = configs()[2];
    scene.runner.change(|setup| setup.set_state(1, State::Drain))?;
    assert_eq!(sent(&scene, &short(&id(&config, 1, 1)))?.0, Some(1), "drained");
    scene.runner.change(|setup| setup.set_state(1, State::Down))?;
    let (to, counted) = sent(&scene, &short(&id(&config, 1, 1)))?;
    assert!(to.is_some_and(|to| to != 1), "{to:?}");
    assert_eq!(counted, [Counter::Redispatched, Counter::FromClient, Counter::FlowMoved]);
    // The same substitute for everyone, as long as the id is the same.
    scene.client.set_port(999);
    assert_eq!(sent(&scene, &short(&id(&config, 1, 1)))?.0, to);
    scene.runner.change(|setup| setup.services[0].strict = 1)?;
    let (to, counted) = sent(&scene, &short(&id(&config, 1, 2)))?;
    assert_eq!((to, counted), (None, vec![Counter::Rejected, Counter::DropNoBackend]));
    Ok(())
}

/// What a client sends before it knows a server's id: by the hash of the id that it made up, from wherever it comes, and
/// never because of other connections of the same socket.
#[test]
fn new_connections_spread_whatever_their_flow() -> Result<()> {
    let mut scene = scene(&configs()[..1])?;
    let mut seen = BTreeSet::new();
    for n in 0..60_u8 {
        // A rotation without a configuration; one that has, and a server id that nobody has; the reserved one.
        let rotation = [0x20, 0, 0xe0][usize::from(n) % 3];
        let payload = long(&[&[rotation | 8, 0xff, n][..], &[n.wrapping_mul(77); 5]].concat());
        let (to, counted) = sent(&scene, &payload)?;
        assert!(counted == [Counter::FromClient] || counted[0] == Counter::NewSession, "{counted:?}");
        let port = scene.client.port();
        scene.client.set_port(2);
        assert_eq!(sent(&scene, &payload)?.0, to, "from another address");
        scene.client.set_port(port);
        seen.insert(to);
    }
    assert_eq!(seen.len(), 4, "{seen:?}");
    Ok(())
}

/// A short header with an id that names no server stays where its flow is; without a flow its hash decides.
#[test]
fn an_unroutable_short_header_follows_its_flow() -> Result<()> {
    let mut scene = scene(&configs()[..1])?;
    let strange = short(&[0xe8, 1, 2, 3, 4, 5, 6, 7, 8]);
    let (to, counted) = sent(&scene, &strange)?;
    assert_eq!(counted, [Counter::Unroutable, Counter::FromClient]);
    let other = (to.expect("somewhere") + 1) % BACKENDS;
    let moved = [Counter::AffinityHit, Counter::FromClient, Counter::FlowMoved];
    assert_eq!(sent(&scene, &short(&id(&configs()[0], other, 9)))?, (Some(other), moved.to_vec()));
    assert_eq!(sent(&scene, &strange)?, (Some(other), vec![Counter::FromClient]));
    scene.runner.change(|setup| setup.set_state(other, State::Maint))?;
    let (after, counted) = sent(&scene, &strange)?;
    assert_eq!((after, counted[0]), (to, Counter::Unroutable));
    Ok(())
}

/// Too short for what its rotation promises, or not QUIC at all.
#[test]
fn what_is_cut_off_is_unroutable() -> Result<()> {
    let mut scene = scene(&configs())?;
    let whole = id(&configs()[0], 2, 3);
    let rows: [(&str, Vec<u8>, Counter); 8] = [
        ("nothing", vec![], Counter::Unroutable),
        ("a short header", vec![0x4f], Counter::Unroutable),
        ("a connection id that is cut", [&[0x4f][..], &whole[..8]].concat(), Counter::Unroutable),
        ("a version that is cut", vec![0xc3, 0, 0], Counter::NewSession),
        ("a length without an id", vec![0xc3, 0, 0, 0, 1, 9], Counter::NewSession),
        ("a long id that is cut", [&[0xc3, 0, 0, 0, 1, 9][..], &whole[..8]].concat(), Counter::NewSession),
        (
            "a length that is too small",
            {
                let mut long = long(&whole);
                long[5] = 8;
                long
            },
            Counter::NewSession,
        ),
        ("zeros", vec![0; 9], Counter::Unroutable),
    ];
    for (name, payload, counter) in rows {
        let (to, counted) = sent(&scene, &payload)?;
        assert!(to.is_some(), "{name}");
        assert_eq!(counted, [counter, Counter::FromClient], "{name}");
        scene.runner.maps.forget()?;
    }
    // With its last byte it is whole.
    let (to, counted) = sent(&scene, &[&[0x4f][..], &whole].concat())?;
    assert_eq!((to, counted), (Some(2), vec![Counter::AffinityHit, Counter::FromClient]));
    Ok(())
}

/// The same bytes name a server of one service and none of another; without a configuration nothing is routable.
#[test]
fn a_configuration_is_its_service_s_own() -> Result<()> {
    let config = configs()[0];
    let mut scene = scene(&[])?;
    scene.runner.change(|setup| {
        setup.quic.push((2, config));
        setup.quic_servers.push((Server::new(2, &server_id(&config, 1)).expect("of a right length"), 1));
    })?;
    assert_eq!(sent(&scene, &short(&id(&config, 1, 1)))?.1[0], Counter::Unroutable);
    scene.runner.change(|setup| setup.quic.push((SERVICE, config)))?;
    scene.client.set_port(1);
    assert_eq!(
        sent(&scene, &short(&id(&config, 1, 1)))?.1[0],
        Counter::Unroutable,
        "another service's server"
    );
    Ok(())
}

/// Whatever arrives goes to some backend, and the same each time.
#[test]
fn any_bytes_go_somewhere() -> Result<()> {
    let scene = scene(&configs())?;
    proptest!(ProptestConfig::with_cases(500), |(payload: Vec<u8>)| {
        let (to, _) = sent(&scene, &payload).unwrap();
        prop_assert!(to.is_some());
        prop_assert_eq!(sent(&scene, &payload).unwrap().0, to);
    });
    Ok(())
}
