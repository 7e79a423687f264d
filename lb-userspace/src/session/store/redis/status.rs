//! How the store is, for people.

use super::core::Core;
use super::link::{Need, text};
use super::options::Addr;
use super::router::field;
use crate::session::store::StoreState;
use parking_lot::Mutex;
use redis::{Value, cmd};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Between two looks at all servers.
const PAUSE: Duration = Duration::from_secs(1);

/// What was seen when last looked.
#[derive(Default)]
pub(super) struct Status {
    /// Replicas that each primary has, or that it is none.
    replicas: Mutex<HashMap<Addr, Result<usize, String>>>,
}

/// Looks at all servers for as long as it is polled.
pub(super) async fn watch(core: Arc<Core>) {
    loop {
        tokio::time::sleep(PAUSE).await;
        look(&core).await;
    }
}

pub(super) async fn look(core: &Core) {
    let shards = core.router.shards();
    let looks = shards.iter().map(|shard| async {
        let mut info = cmd("INFO");
        info.arg("replication");
        // One that does not answer is noted by its connection.
        let answers = core.router.ask_node(&shard.primary, vec![info], Need::Nothing).await.ok()?;
        Some((shard.primary.clone(), count_replicas(answers.first()?)))
    });
    let seen: HashMap<_, _> = futures::future::join_all(looks).await.into_iter().flatten().collect();
    if seen.len() < shards.len() || seen.values().any(Result::is_err) {
        core.router.doubt();
    }
    *core.status.replicas.lock() = seen;
}

fn count_replicas(info: &Value) -> Result<usize, String> {
    let info = text(info);
    match field(&info, "role") {
        Some("master") => {
            Ok(info.lines().filter(|l| l.starts_with("slave") && l.contains("state=online")).count())
        }
        Some(_) => Err("is a replica now".into()),
        None => Err("does not tell its role".into()),
    }
}

pub(super) fn state(core: &Core) -> StoreState {
    let shards = core.router.shards();
    let mut problems: Vec<String> = core.clock.refused().into_iter().collect();
    if !core.router.is_covered() {
        problems.push("some slots of the cluster have no primary".to_owned());
    }
    let seen = core.status.replicas.lock();
    let mut fewest = usize::MAX;
    for shard in &shards {
        let addr = &shard.primary;
        if let Some(why) = core.router.unfit(addr) {
            problems.push(format!("redis node {addr}: {why}"));
            continue;
        }
        if let Some((since, why)) = core.router.failing(addr) {
            problems.push(format!("{why}, for {} s", since.as_secs()));
            continue;
        }
        match seen.get(addr) {
            Some(Ok(replicas)) if *replicas < core.rules.replicas as usize => {
                problems
                    .push(format!("redis node {addr} has {replicas} of {} replicas", core.rules.replicas));
            }
            Some(Ok(replicas)) => fewest = fewest.min(*replicas),
            Some(Err(why)) => problems.push(format!("redis node {addr} {why}")),
            None => problems.push(format!("redis node {addr} has not answered yet")),
        }
    }
    drop(seen);
    let available = problems.is_empty();
    let mut details = problems;
    if available {
        let servers =
            if shards.len() == 1 { "one server".into() } else { format!("{} primaries", shards.len()) };
        let replicas = if fewest == usize::MAX { 0 } else { fewest };
        details
            .push(format!("{servers}, {replicas} replicas or more, {} of them awaited", core.rules.replicas));
    }
    if !core.lease.holds() {
        let why = core.lease.why().map(|why| format!(": {why}")).unwrap_or_default();
        details.push(format!("copies in memory are not used{why}"));
    }
    details.extend(core.clock.note());
    details.extend(core.findings.lines());
    let refused = &core.router.refused;
    for (what, count) in
        [("for a full queue", &refused.queue_full), ("for their deadline", &refused.deadline)]
    {
        match count.load(Ordering::Relaxed) {
            0 => {}
            count => details.push(format!("{count} requests refused {what}")),
        }
    }
    StoreState { place: format!("redis {}", core.place), available, detail: Some(details.join("; ")) }
}
