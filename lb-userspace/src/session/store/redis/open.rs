//! Finding the servers and making sure that they keep what they acknowledge.

use super::StoreError;
use super::audit::{self, Findings};
use super::clock::ServerClock;
use super::core::Core;
use super::dialer::Dialer;
use super::judge::Rules;
use super::keys::{Keys, slot};
use super::link::{Need, text};
use super::names::FORMAT;
use super::options::{Addr, RedisOptions, Seeds};
use super::router::{Failure, Request, Router, SURVEY_PAUSE, What, field};
use super::scripts;
use super::{alive, status};
use crate::session::clock::TimeSource;
use redis::{Pipeline, Value, cmd};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Everything that must be right before the first session is touched.
pub(super) async fn open(
    options: RedisOptions,
    seeds: Seeds,
    clocks: Arc<dyn TimeSource>,
) -> Result<Arc<Core>, StoreError> {
    let refuse = |reason: String| StoreError::Open { path: options.place(), reason };
    let tls = seeds.tls.then(|| options.tls.clone());
    let dialer = Dialer::new(seeds.login.clone(), tls, options.deadline);
    let (addr, info) =
        first_answer(&seeds.addrs, &dialer).await.map_err(|reason| unavailable(&options, reason))?;
    let cluster = field(&info, "cluster_enabled") == Some("1");
    let router = if cluster {
        if seeds.login.db() != 0 {
            return Err(refuse("a cluster has no databases but 0: leave the number out".into()));
        }
        Router::cluster(seeds.addrs, dialer, options.deadline)
    } else {
        if seeds.addrs.len() > 1 {
            return Err(refuse(format!(
                "several nodes, and {addr} is not part of a cluster: name one server"
            )));
        }
        if field(&info, "role") != Some("master") {
            return Err(refuse(format!("{addr} is a replica: name the primary")));
        }
        Router::single(addr, dialer, options.deadline)
    };
    primaries_answer(&router, options.deadline).await.map_err(|reason| unavailable(&options, reason))?;
    let replicas = options.replicas.unwrap_or(u32::from(cluster));
    let rules = Rules { replicas, cluster, volatile: options.volatile };
    router.set_rules(rules);
    let findings = Findings::default();
    audit::look(&router, &findings, rules, &options).await.map_err(refuse)?;
    let clock = ServerClock::new(clocks);
    audit::look_at_clock(&router, &clock, slot(&Keys::new(&options.prefix).names), true)
        .await
        .map_err(|reason| unavailable(&options, reason))?;
    if let Some(why) = clock.refused() {
        return Err(refuse(why));
    }
    let core = Arc::new(Core::new(options.clone(), router, rules, findings, clock));
    check_format(&core).await?;
    // Those are no news.
    core.learn_epochs().await?;
    alive::register(&core, core.options.deadline).await?;
    status::look(&core).await;
    Ok(core)
}

/// Waits until every slot has a primary that answers: one that does not cannot be judged, and cannot be used either. A
/// failover may be under way, or nodes are slow.
///
/// # Errors
/// What was missing when the deadline was over.
async fn primaries_answer(router: &Router, deadline: Duration) -> Result<(), String> {
    let give_up = Instant::now() + deadline;
    loop {
        router.survey().await;
        let Err(why) = all_answer(router).await else { return Ok(()) };
        if Instant::now() >= give_up {
            return Err(why);
        }
        tokio::time::sleep(SURVEY_PAUSE).await;
    }
}

async fn all_answer(router: &Router) -> Result<(), String> {
    if !router.is_covered() {
        return Err("the nodes know of no primaries for some slots of the cluster".into());
    }
    for shard in router.shards() {
        let asked = router.ask_node(&shard.primary, vec![cmd("PING")], Need::Nothing).await;
        asked.map_err(|trouble| trouble.to_string())?;
    }
    Ok(())
}

fn unavailable(options: &RedisOptions, reason: String) -> StoreError {
    StoreError::Unavailable { store: options.place().display().to_string(), reason }
}

/// From whom the first answer comes, and what it says about itself.
async fn first_answer(addrs: &[Addr], dialer: &Dialer) -> Result<(Addr, String), String> {
    let mut reasons = Vec::new();
    for addr in addrs {
        let asked = async {
            let mut connection = dialer.dial(addr).await?;
            let mut pipeline = Pipeline::new();
            pipeline.add_command(cmd("INFO"));
            let info = connection.ask(&pipeline).await.map(|mut answers| answers.pop().unwrap_or(Value::Nil));
            info.map_err(|error| {
                let tls = "; it may ask for a client's certificate: name one with cert_file and key_file";
                format!("redis node {addr}: {error}{}", if dialer.tls.is_some() { tls } else { "" })
            })
        };
        match tokio::time::timeout(dialer.answer, asked).await {
            Ok(Ok(Value::ServerError(error))) => reasons.push(format!("redis node {addr}: {error}")),
            Ok(Ok(info)) => return Ok((addr.clone(), text(&info))),
            Ok(Err(reason)) => reasons.push(reason),
            Err(_) => reasons.push(format!("redis node {addr} does not answer")),
        }
    }
    Err(reasons.join("; "))
}

async fn check_format(core: &Core) -> Result<(), StoreError> {
    let key = core.keys.names.clone();
    let ask = What::Script(&scripts::FORMAT, vec![key.clone()], vec![FORMAT.into()]);
    let asked = core.router.ask(Request { slot: slot(&key), need: core.durable(), ask }).await;
    let found = asked.map_err(|Failure(why)| core.unavailable(Failure(why)))?.value;
    match text(&found) {
        found if found == FORMAT => Ok(()),
        found => Err(StoreError::Format {
            path: format!("{}, prefix {}", core.place, core.options.prefix).into(),
            found,
            expected: FORMAT.into(),
        }),
    }
}
