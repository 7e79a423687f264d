//! Much data through a spliced flow, byte-identical, with and without losses.

use anyhow::{Context, Result};
use lb_common::counter::Counter;
use std::time::Duration;
use tests::client::{Client, negotiated};
use tests::testbed::Rule;
use tests::topology::Arms;
use tests::world::World;

const MUCH: u64 = 20 << 20;
/// A pause that no repair needs, however busy the machine is.
const STALL: Duration = Duration::from_secs(10);

#[test]
fn twenty_megabytes_each_way() -> Result<()> {
    for arms in [Arms::Several, Arms::One] {
        let world = World::new(arms, 1)?;
        let mut client = Client::connect(&world.town.client.netns)?;
        client.download(MUCH).with_context(|| format!("{arms:?}: {}", world.counts()))?;
        client.upload(MUCH).with_context(|| format!("{arms:?}: {}", world.counts()))?;
        let counted = world.balancer.maps.backend_counts(0)?;
        assert!(counted.bytes_from_client >= MUCH && counted.bytes_from_backend >= MUCH, "{counted:?}");
        let counts = world.balancer.maps.counts()?;
        assert_eq!(counts.get(Counter::Spliced), 1, "{counts:?}");
        assert!(
            Counter::ALL.iter().all(|c| !c.name().starts_with("drop_") || counts.get(*c) == 0),
            "{counts:?}"
        );
    }
    Ok(())
}

/// One frame in 200 is lost on the way to each end point. SACK repairs that without waiting for timers; the client's
/// socket says when nothing came for long.
#[test]
fn twenty_megabytes_each_way_while_one_in_200_is_lost() -> Result<()> {
    let mut world = World::new(Arms::Several, 1)?;
    world.at_client.rules(&[Rule::ANY.drop_every(200)])?;
    world.at_backends[0].rules(&[Rule::ANY.drop_every(200)])?;
    let mut client = Client::connect(&world.town.client.netns)?;
    client.stream().set_read_timeout(Some(STALL))?;
    client.stream().set_write_timeout(Some(STALL))?;
    client.download(MUCH).with_context(|| world.counts())?;
    client.upload(MUCH).with_context(|| world.counts())?;
    for filter in [&world.at_client, &world.at_backends[0]] {
        let tally = filter.tally(0)?;
        assert!(tally.hit >= MUCH / 1448 / 200 / 2, "too little was lost to mean anything: {tally:?}");
    }
    let ours = negotiated(client.stream())?;
    let theirs = world.servers[0].with_last(negotiated).context("a request came")??;
    assert!(
        ours.sack && theirs.sack && ours.retransmits > 0 && theirs.retransmits > 0,
        "{ours:?} {theirs:?}"
    );
    // Blocks that were not shifted name bytes out of the window, which the kernel counts.
    for host in world.town.hosts() {
        assert_eq!(host.netns.counter("TcpExtTCPSACKDiscard")?, 0, "in {}", host.netns);
        assert_eq!(host.netns.counter("TcpExtPAWSEstab")?, 0, "in {}", host.netns);
    }
    Ok(())
}

/// A small window at the client: zero windows and window updates pass through, rescaled.
#[test]
fn a_slow_reader_is_waited_for() -> Result<()> {
    let world = World::new(Arms::Several, 1)?;
    world.town.client.netns.sysctl("ipv4/tcp_rmem", "4096 8192 16384")?;
    let mut client = Client::connect(&world.town.client.netns)?;
    client.download(2 << 20).with_context(|| world.counts())?;
    world.town.backends[0].netns.sysctl("ipv4/tcp_rmem", "4096 8192 16384")?;
    let mut client = Client::connect(&world.town.client.netns)?;
    client.upload(2 << 20).with_context(|| world.counts())?;
    Ok(())
}

#[test]
fn eight_transfers_at_once() -> Result<()> {
    let world = World::new(Arms::Several, 2)?;
    std::thread::scope(|scope| -> Result<()> {
        let transfers: Vec<_> = (0..8)
            .map(|i| {
                let netns = &world.town.client.netns;
                scope.spawn(move || -> Result<()> {
                    let mut client = Client::connect(netns)?;
                    if i % 2 == 0 { client.download(4 << 20) } else { client.upload(4 << 20) }
                })
            })
            .collect();
        transfers.into_iter().try_for_each(|t| t.join().expect("no transfer panics"))
    })
    .with_context(|| world.counts())
}
