//! What is done to the nodes of the store.

use super::super::shared::Shared;
use super::Blow;
use crate::dice::Dice;
use crate::redis::{NODE_TIMEOUT, Redis};
use anyhow::{Context, Result};
use std::time::Duration;

pub(super) fn strike(
    blow: Blow,
    redis: &mut Redis,
    pause: Duration,
    dice: &mut Dice,
    shared: &Shared,
) -> Result<()> {
    let primary = primary_of_some_session(redis, dice, shared)?;
    let replica = replica_of(redis, primary)?;
    // A replica takes over from a primary that is silent for longer.
    let long = if dice.percent(50) { NODE_TIMEOUT * 2 } else { pause };
    match blow {
        Blow::Failover => {
            redis.kill(primary)?;
            redis.await_cluster()?;
            std::thread::sleep(pause);
            redis.restart(primary)?;
        }
        Blow::Silence => {
            redis.stop(primary)?;
            std::thread::sleep(long);
            redis.resume(primary)?;
        }
        Blow::Lag => {
            redis.stop(replica)?;
            std::thread::sleep(long);
            redis.resume(replica)?;
        }
        Blow::Betrayal => {
            redis.stop(replica)?;
            // What is on its way to it would be there when it wakes up.
            redis.ask(primary, &["CLIENT", "KILL", "TYPE", "replica"])?;
            // Time in which things are written that it never hears of.
            std::thread::sleep(Duration::from_millis(500) + pause);
            redis.kill(primary)?;
            redis.resume(replica)?;
            redis.await_cluster()?;
            redis.restart(primary)?;
        }
        _ => {}
    }
    redis.await_cluster()
}

/// A primary that has a session of this round.
fn primary_of_some_session(redis: &Redis, dice: &mut Dice, shared: &Shared) -> Result<usize> {
    let primaries = redis.primaries();
    let session = shared.at(dice.below(shared.places())).id;
    for primary in &primaries {
        if !redis.ask(*primary, &["KEYS", &format!("*{session}*")])?.is_empty() {
            return Ok(*primary);
        }
    }
    // It has ended.
    (!primaries.is_empty()).then(|| *dice.choose(&primaries)).context("the store has no primary")
}

fn replica_of(redis: &Redis, primary: usize) -> Result<usize> {
    let master = format!("master_port:{}", redis.addr(primary).port());
    for node in 0..redis.nodes() {
        let info = redis.ask(node, &["INFO", "replication"])?;
        if info.contains("role:slave") && info.lines().any(|line| line.trim_end() == master) {
            return Ok(node);
        }
    }
    anyhow::bail!("primary {primary} of the store has no replica")
}
