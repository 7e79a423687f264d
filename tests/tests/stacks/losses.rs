//! Losses on every leg of the way. What matters is not speed but that nothing that is merely late is taken for wrong: a
//! connection that is reset would have been a healthy one.

use anyhow::{Context, Result};
use lb_common::counter::Counter;
use std::sync::atomic::{AtomicUsize, Ordering};
use tests::client::{Client, get};
use tests::testbed::{Filter, Rule, Side};
use tests::topology::Arms;
use tests::world::World;

/// Loses one frame in `every` on each of the four legs between client, balancer and backends; the numbers are made a
/// little different, so that losses do not march in step.
fn lose(world: &mut World, every: u32) -> Result<Vec<Filter>> {
    let rule = |n: u32| [Rule::ANY.drop_every(every + n)];
    world.at_client.rules(&rule(0))?;
    let mut filters = vec![Filter::attach(&world.town.client, Side::Egress)?];
    for (i, filter) in world.at_backends.iter_mut().enumerate() {
        filter.rules(&rule(1 + i as u32))?;
        filters.push(Filter::attach(&world.town.backends[i], Side::Egress)?);
    }
    for (i, filter) in filters.iter_mut().enumerate() {
        filter.rules(&rule(5 + i as u32))?;
    }
    Ok(filters)
}

/// `n` connections from many threads: waiting for a retransmission takes time, not work.
fn connections(world: &World, n: usize, request: impl Fn() -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let worker = || -> Result<()> {
            while next.fetch_add(1, Ordering::Relaxed) < n {
                request().with_context(|| world.counts())?;
            }
            Ok(())
        };
        let workers: Vec<_> = (0..32).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().try_for_each(|worker| worker.join().expect("no worker panics"))
    })
}

#[test]
fn a_thousand_connections_at_two_percent() -> Result<()> {
    for timestamps in [1, 0] {
        let mut world = World::new(Arms::Several, 2)?;
        world.town.tcp(&world.town.client, "tcp_timestamps", timestamps)?;
        let filters = lose(&mut world, 50)?;
        connections(&world, 1_000, || get(&world.town.client.netns, "").map(drop))?;
        let lost: u64 =
            filters.iter().map(|filter| filter.tally(0).map(|tally| tally.hit)).sum::<Result<_>>()?;
        assert!(lost > 150, "too little was lost to mean anything: {lost}");
        let resets = world.town.client.netns.counter("TcpEstabResets")?;
        assert_eq!(resets, 0, "timestamps {timestamps}: {}", world.counts());
    }
    Ok(())
}

/// First requests that take several segments, headers and body apart.
#[test]
fn long_first_requests_at_five_percent() -> Result<()> {
    let mut world = World::new(Arms::Several, 2)?;
    let _filters = lose(&mut world, 20)?;
    let long = format!("X-Long: {}\r\n", "x".repeat(2_000));
    connections(&world, 200, || {
        let mut client = Client::connect(&world.town.client.netns)?;
        client.get("/", &long)?;
        client.upload(5_000)?;
        client.download(5_000)
    })?;
    let counts = world.balancer.maps.counts()?;
    assert!(counts.get(Counter::Spliced) >= 200, "{counts:?}");
    assert_eq!(world.balancer.maps.stashes()?.len(), 0, "every stash was given back");
    Ok(())
}

/// Crumbs from many clients at once: appending to a stash and emptying it happen on different processors.
#[test]
fn crumbs_from_many_clients_arrive_whole() -> Result<()> {
    let world = World::new(Arms::Several, 3)?;
    let body = 60;
    connections(&world, 2_000, || {
        let mut client = Client::connect(&world.town.client.netns)?;
        client.send(format!("POST / HTTP/1.1\r\nContent-Length: {body}\r\n\r\n").as_bytes())?;
        for i in 0..body {
            client.send(&[tests::server::pattern(i)])?;
        }
        let said = client.response()?.body;
        anyhow::ensure!(said == format!("{body} same"), "the server says: {said}");
        Ok(())
    })?;
    assert_eq!(world.balancer.maps.stashes()?.len(), 0, "every stash was given back");
    Ok(())
}
