//! Short tortures: what is promised holds, and each promise that is broken on purpose is noticed.

use anyhow::{Result, ensure};
use std::time::Duration;
use tests::torture::{Plan, Store, run};

/// Everything is done once, and no session notices.
fn holds(store: Store) -> Result<()> {
    let plan = Plan { time: Duration::from_secs(8), seed: 1, store, fault: None };
    let summary = run(&plan, &mut |_| {})?;
    ensure!(summary.violations.is_empty(), "seed {}:\n{summary}", plan.seed);
    ensure!(
        summary.takeovers > 0 && summary.lives > 0 && summary.sessions > 10,
        "too little happened:\n{summary}"
    );
    Ok(())
}

/// It goes on until the fault is noticed, which takes some seconds; only not to notice it takes minutes.
fn notices(store: Store, fault: &str) -> Result<()> {
    let plan = Plan { time: Duration::from_secs(240), seed: 1, store, fault: Some(fault.to_owned()) };
    let summary = run(&plan, &mut |_| {})?;
    ensure!(!summary.violations.is_empty(), "{fault} went unnoticed:\n{summary}");
    Ok(())
}

#[test]
fn sessions_in_sled_never_notice() -> Result<()> {
    holds(Store::Sled)
}

#[test]
fn sessions_in_redis_never_notice() -> Result<()> {
    holds(Store::Redis)
}

#[test]
fn a_restarted_server_that_keeps_its_epoch_is_noticed() -> Result<()> {
    notices(Store::Sled, "skip-epoch")
}

#[test]
fn a_restarted_server_that_keeps_its_epoch_is_noticed_on_redis() -> Result<()> {
    notices(Store::Redis, "skip-epoch")
}

#[test]
fn writes_that_overwrite_each_other_are_noticed() -> Result<()> {
    notices(Store::Sled, "skip-cas")
}

#[test]
fn writes_that_overwrite_each_other_are_noticed_on_redis() -> Result<()> {
    notices(Store::Redis, "skip-cas")
}

#[test]
fn writes_that_are_acknowledged_too_early_are_noticed() -> Result<()> {
    notices(Store::Sled, "ack-before-flush")
}

#[test]
fn writes_that_are_acknowledged_too_early_are_noticed_on_redis() -> Result<()> {
    notices(Store::Redis, "ack-before-flush")
}

#[test]
fn copies_that_outlive_a_takeover_are_noticed() -> Result<()> {
    notices(Store::Sled, "skip-invalidate")
}

#[test]
fn copies_that_outlive_a_takeover_are_noticed_on_redis() -> Result<()> {
    notices(Store::Redis, "skip-invalidate")
}
