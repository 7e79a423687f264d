//! Tables that are full, with real clients at work: what has its place goes on, what has none waits and is counted by name.

use anyhow::{Context, Result, ensure};
use lb_common::counter::Counter;
use lb_common::flow::{FlowState, GROUP};
use lb_common::service::Affinity;
use std::net::{Ipv4Addr, UdpSocket};
use std::thread;
use std::time::Duration;
use tests::balancer::{Balancer, dial};
use tests::client::{Client, datagram_socket, eventually};
use tests::object::Sizes;
use tests::testbed::Rule;
use tests::topology::{Arms, NIC, PORT, Topology};
use tests::world::World;

/// A town with small tables.
fn world(sizes: Sizes) -> Result<World> {
    World::sized(Arms::Several, 1, sizes)
}

fn count(world: &World, counter: Counter) -> Result<u64> {
    Ok(world.balancer.maps.counts()?.get(counter))
}

#[test]
fn a_full_flow_table_keeps_what_it_has() -> Result<()> {
    let world = world(Sizes { groups: 1, ..Sizes::default() })?;
    let client = &world.town.client.netns;
    let mut there: Vec<Client> = (0..GROUP)
        .map(|_| {
            let mut client = Client::connect(client)?;
            client.get("/", "")?;
            Ok(client)
        })
        .collect::<Result<_>>()?;
    ensure!(world.balancer.maps.flows()?.len() == GROUP, "every place is taken");
    thread::scope(|scope| -> Result<()> {
        let one_more = scope.spawn(|| Client::connect(client)?.get("/", "").context("the one that waits"));
        eventually("it is turned away by name", || Ok(count(&world, Counter::DropFlowTableFull)? > 0))?;
        for client in &mut there {
            client.upload(100_000)?;
            client.download(100_000)?;
        }
        ensure!(!one_more.is_finished(), "there is no place for it");
        // One goes, and the one that waits sends again what was not taken.
        drop(there.pop());
        let response = one_more.join().expect("no client panics").context(world.counts())?;
        ensure!(response.body == "b0", "{response:?}");
        Ok(())
    })?;
    there.iter_mut().try_for_each(|client| client.get("/", "").map(drop))?;
    world.check()
}

#[test]
fn a_full_stash_table_delays_and_loses_nothing() -> Result<()> {
    let mut world = world(Sizes { stashes: 1, ..Sizes::default() })?;
    let mut there = Client::connect(&world.town.client.netns)?;
    there.get("/", "")?;
    // The backend answers no SYN for a while, so the only stash stays with the first who needs one.
    const SYN: u8 = 2;
    let silent = Rule { flags_mask: SYN, flags: SYN, ..Rule::ANY.drop_every(1) };
    world.at_backends[0].rules(&[silent])?;
    let client = &world.town.client.netns;
    let (filters, balancer) = (&mut world.at_backends, &world.balancer);
    thread::scope(|scope| -> Result<()> {
        let ask = || Client::connect(client)?.get("/", "");
        let first = scope.spawn(ask);
        eventually("one waits for the backend", || Ok(balancer.maps.stashes()?.len() == 1))?;
        let second = scope.spawn(ask);
        eventually("the other one is turned away by name", || {
            Ok(balancer.maps.counts()?.get(Counter::DropNoStash) > 0)
        })?;
        there.upload(100_000)?;
        there.download(100_000)?;
        filters[0].rules(&[])?;
        for waiting in [first, second] {
            ensure!(waiting.join().expect("no client panics")?.body == "b0", "served by nobody else");
        }
        Ok(())
    })
    .with_context(|| world.counts())?;
    world.check()
}

/// Datagrams from forged addresses fill the table; clients who were answered keep their places.
#[test]
fn a_flood_of_datagrams_takes_no_place_from_those_who_were_answered() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let mut setup = Balancer::setup_of(&town, Sizes { groups: 2, ..Sizes::default() });
    setup.services[0].protocol = 17;
    setup.services[0].affinity = Affinity::None as u8;
    // In ticks of 256 ms: nothing expires while the test runs.
    setup.settings.binding_ticks = 1 << 20;
    let balancer = Balancer::start_with(&town, setup)?;
    let server = town.backends[0].netns.run(|| UdpSocket::bind(("0.0.0.0", PORT)))?;
    thread::spawn(move || {
        let mut buffer = [0; 100];
        // Ends with the test's process.
        while let Ok((len, from)) = server.recv_from(&mut buffer) {
            if buffer[..len] != *b"flood" {
                let _ = server.send_to(&buffer[..len], from);
            }
        }
    });
    let socket = |ip: Ipv4Addr| -> Result<UdpSocket> {
        let socket = datagram_socket(&town.client.netns, ip)?;
        socket.connect(dial())?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        Ok(socket)
    };
    let echo = |socket: &UdpSocket| -> Result<()> {
        socket.send(b"hello")?;
        let mut buffer = [0; 100];
        let len = socket.recv(&mut buffer).context("no answer")?;
        ensure!(buffer[..len] == *b"hello", "another answer");
        Ok(())
    };
    let there: Vec<UdpSocket> = (0..4).map(|_| socket(town.client.ip)).collect::<Result<_>>()?;
    // The second datagram shows that the answer to the first was heard.
    for socket in &there {
        echo(socket)?;
        echo(socket)?;
    }
    let established = || -> Result<usize> {
        let is = |state| FlowState::from_bits(state) == FlowState::Established;
        Ok(balancer.maps.flows()?.iter().filter(|flow| is(flow.head.state)).count())
    };
    ensure!(established()? == there.len(), "those who were answered are confirmed");
    town.client.netns.ip(&[&format!("addr add 10.0.1.77/24 dev {NIC}")])?;
    for _ in 0..200 {
        socket([10, 0, 1, 77].into())?.send(b"flood")?;
    }
    eventually("the flood has evicted its own", || {
        Ok(balancer.maps.counts()?.get(Counter::FlowEvicted) > 50)
    })?;
    ensure!(established()? == there.len(), "and nobody else");
    there.iter().try_for_each(echo).with_context(|| format!("{:?}", balancer.maps.counts()))?;
    Ok(())
}

/// Services, backends and their addresses: each table exactly as large as what is in it.
#[test]
fn tables_without_a_free_place_serve_all_that_they_hold() -> Result<()> {
    let sizes = Sizes { services: 2, backends: 4, buckets: 4, ..Sizes::default() };
    let world = World::sized(Arms::Several, 4, sizes)?;
    let mut seen = std::collections::BTreeSet::new();
    for slot in 0..4 {
        let token = world.balancer.setup.token(slot, 1);
        let response = Client::connect(&world.town.client.netns)?
            .get("/", &format!("Cookie: lb={token}\r\nConnection: close\r\n"))?;
        seen.insert(response.body);
    }
    ensure!(seen.into_iter().eq(["b0", "b1", "b2", "b3"]), "{}", world.counts());
    // A token of a slot beyond the table is a token of nobody.
    let mut beyond = world.balancer.setup.clone();
    beyond.backends.push(beyond.backends[0]);
    let cookie = format!("Cookie: lb={}\r\n", beyond.token(4, 1));
    Client::connect(&world.town.client.netns)?.get("/", &cookie)?;
    ensure!(count(&world, Counter::Redispatched)? == 1, "{}", world.counts());
    world.check()
}
