//! Many short connections: none may fail.

use anyhow::{Context, Result};
use lb_common::counter::Counter;
use lb_common::flow::FlowState;
use std::collections::BTreeMap;
use tests::client::{eventually, get};
use tests::topology::Arms;
use tests::world::World;

/// `n` requests on connections of their own, from several threads; who answered how often.
fn requests(world: &World, n: usize, headers: &str) -> Result<BTreeMap<String, usize>> {
    const THREADS: usize = 8;
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|_| {
                let netns = &world.town.client.netns;
                scope.spawn(move || -> Result<Vec<String>> {
                    (0..n / THREADS)
                        .map(|i| get(netns, headers).with_context(|| format!("request {i} of a worker")))
                        .collect()
                })
            })
            .collect();
        let mut answers = BTreeMap::new();
        for worker in workers {
            for name in worker.join().expect("no worker panics")? {
                *answers.entry(name).or_default() += 1;
            }
        }
        Ok(answers)
    })
}

#[test]
fn ten_thousand_short_connections() -> Result<()> {
    let world = World::new(Arms::Several, 3)?;
    let answers = requests(&world, 10_000, "").with_context(|| world.counts())?;
    assert_eq!(answers.values().sum::<usize>(), 10_000);
    assert!(answers.len() == 3 && answers.values().all(|n| *n > 2_500), "{answers:?}");
    let counts = world.balancer.maps.counts()?;
    // Where a machine is busy, the kernel may have no room for what the joint sends. The client sends that again.
    let (spliced, sent_again) = (counts.get(Counter::Spliced), counts.get(Counter::DropJoint));
    assert!(spliced <= 10_000 && spliced + sent_again >= 10_000, "{counts:?}");
    assert_eq!(counts.get(Counter::NewSession), 10_000, "{counts:?}");
    assert_eq!(world.balancer.maps.stashes()?.len(), 0, "every stash was given back");
    // The last FINs may still be under way.
    eventually("every flow is closing", || {
        let flows = world.balancer.maps.flows()?;
        Ok(flows.iter().all(|flow| flow.head.state == FlowState::Closing as u8))
    })?;
    Ok(())
}

#[test]
fn a_token_brings_every_connection_home() -> Result<()> {
    for arms in [Arms::Several, Arms::One] {
        let world = World::new(arms, 3)?;
        for slot in 0..3 {
            let token = world.balancer.setup.token(slot, 42);
            let answers = requests(&world, 200, &format!("Cookie: a=b; lb={token}\r\n"))?;
            assert_eq!(answers, BTreeMap::from([(format!("b{slot}"), 200)]), "{}", world.counts());
        }
        let counts = world.balancer.maps.counts()?;
        assert_eq!(counts.get(Counter::AffinityHit), 600, "{counts:?}");
    }
    Ok(())
}
