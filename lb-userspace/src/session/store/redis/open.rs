//! Finding the servers and making sure that they keep what they acknowledge.

use super::StoreError;
use super::core::Core;
use super::keys::slot;
use super::link::{Dialer, Need, text};
use super::names::FORMAT;
use super::options::{Addr, RedisOptions, Seeds};
use super::router::{Failure, Request, Router, What, field};
use super::scripts;
use super::status::Status;
use super::topology::Shard;
use super::{alive, status};
use redis::{Value, cmd};
use std::sync::Arc;

/// The oldest that has all that is used here.
const OLDEST: (u32, u32) = (6, 2);

/// Everything that must be right before the first session is touched.
pub(super) async fn open(options: RedisOptions, seeds: Seeds) -> Result<Arc<Core>, StoreError> {
    let refuse = |reason: String| StoreError::Open { path: options.place(), reason };
    let dialer = Dialer {
        login: seeds.login.clone(),
        connect: options.deadline / 4,
        answer: options.deadline / 2,
        replicas: options.deadline / 4,
    };
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
    router.survey().await;
    if !router.is_covered() {
        return Err(unavailable(
            &options,
            "the nodes know of no primaries for some slots of the cluster".into(),
        ));
    }
    let replicas = options.replicas.unwrap_or(u32::from(cluster));
    let mut notes: Vec<String> = Vec::new();
    for shard in router.shards() {
        for note in check(&router, &shard, replicas, &options).await? {
            if !notes.contains(&note) {
                notes.push(note);
            }
        }
    }
    for note in &notes {
        tracing::warn!(store = %options.place().display(), note, "session store");
    }
    let core = Arc::new(Core::new(options, router, replicas, Status::new(notes)));
    check_format(&core).await?;
    // Those are no news.
    core.learn_epochs().await?;
    alive::register(&core, core.options.deadline).await?;
    status::look(&core).await;
    Ok(core)
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
            let info = connection.send_packed_command(&cmd("INFO")).await;
            info.map_err(|error| format!("redis node {addr}: {error}"))
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

/// Refuses a server that would forget; tells what else is to be known about it.
async fn check(
    router: &Router,
    shard: &Shard,
    replicas: u32,
    options: &RedisOptions,
) -> Result<Vec<String>, StoreError> {
    let mut config = cmd("CONFIG");
    config.arg("GET").arg("appendfsync");
    let answers = router.ask_node(&shard.primary, vec![cmd("INFO"), config], Need::Nothing).await;
    let answers = answers.map_err(|trouble| unavailable(options, trouble.to_string()))?;
    let info = answers.first().map(text).unwrap_or_default();
    let fsync = match answers.get(1) {
        Some(Value::Array(pair)) => pair.get(1).map(text),
        _ => None,
    };
    let server = Server { info: &info, fsync, replicas, has_replicas: shard.replicas > 0 };
    server.judge(options.volatile).map_err(|reason| StoreError::Open {
        path: options.place(),
        reason: format!("redis node {}: {reason}", shard.primary),
    })
}

/// What a server says about itself.
struct Server<'a> {
    info: &'a str,
    /// `None` where it does not tell.
    fsync: Option<String>,
    /// That a change must be on.
    replicas: u32,
    has_replicas: bool,
}

impl Server<'_> {
    fn judge(&self, volatile: bool) -> Result<Vec<String>, String> {
        let get = |name: &str| field(self.info, name).unwrap_or_default();
        let version = get("redis_version");
        if version_of(version).is_none_or(|version| version < OLDEST) {
            let (major, minor) = OLDEST;
            return Err(format!(
                "version {version:?} is too old: {major}.{minor} is the oldest that will do"
            ));
        }
        let policy = get("maxmemory_policy");
        if get("maxmemory") != "0" && policy != "noeviction" {
            return Err(format!(
                "maxmemory-policy {policy} throws sessions away when memory is short: set it to noeviction"
            ));
        }
        let mut notes = Vec::new();
        if get("aof_enabled") != "1" {
            if !volatile {
                return Err(
                    "it has no append-only file, so what it acknowledged is gone when it restarts: set \
                            appendonly to yes"
                        .into(),
                );
            }
            notes.push(
                "a server without an append-only file forgets acknowledged writes when it restarts".into(),
            );
        }
        if self.replicas == 0 && self.has_replicas {
            if !volatile {
                return Err("its replicas may take over without having what was acknowledged: set the store's option \
                            replicas to 1 or more"
                    .into());
            }
            notes.push("replicas may take over without having what was acknowledged".into());
        }
        if let Some(fsync) = self.fsync.as_deref().filter(|fsync| *fsync != "always")
            && self.replicas == 0
        {
            notes.push(format!(
                "appendfsync is {fsync}: a crash of the server can take the last seconds; `always` keeps everything"
            ));
        }
        Ok(notes)
    }
}

fn version_of(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
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

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str =
        "redis_version:7.0.15\r\nmaxmemory:0\r\nmaxmemory_policy:allkeys-lru\r\naof_enabled:1\r\n";

    fn judge(info: &str, replicas: u32, has_replicas: bool, volatile: bool) -> Result<Vec<String>, String> {
        Server { info, fsync: Some("everysec".into()), replicas, has_replicas }.judge(volatile)
    }

    #[test]
    fn a_server_that_would_forget_is_refused() {
        for (from, to, why) in [
            ("7.0.15", "6.0.9", "too old"),
            ("7.0.15", "", "too old"),
            ("maxmemory:0", "maxmemory:1000", "throws sessions away"),
            ("aof_enabled:1", "aof_enabled:0", "set appendonly to yes"),
        ] {
            let refused = judge(&GOOD.replace(from, to), 1, true, false).unwrap_err();
            assert!(refused.contains(why), "{refused}");
        }
        assert!(judge(GOOD, 0, true, false).unwrap_err().contains("replicas"));
    }

    #[test]
    fn what_is_merely_risky_is_told() {
        assert_eq!(judge(GOOD, 1, true, false), Ok(Vec::new()));
        let notes = judge(GOOD, 0, false, false).unwrap();
        assert!(notes.len() == 1 && notes[0].contains("appendfsync is everysec"), "{notes:?}");
        assert_eq!(judge(&GOOD.replace("aof_enabled:1", "aof_enabled:0"), 0, true, true).unwrap().len(), 3);
    }
}
