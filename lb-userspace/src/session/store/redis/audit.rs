//! Judges every server that may hold sessions or be elected to: when the store is opened, whenever the servers are others
//! than before, and all the time in between, for settings can be changed on a server that runs.

use super::clock::ServerClock;
use super::core::Core;
use super::judge::{self, Judged, Rules};
use super::keys::slot;
use super::link::Need;
use super::options::{Addr, RedisOptions};
use super::router::Router;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// Between two looks while all is well, and while a server will not do.
const PAUSE: Duration = Duration::from_secs(60);
const SHORT_PAUSE: Duration = Duration::from_secs(1);

/// Least time between two looks, whatever happens.
const LEAST_PAUSE: Duration = Duration::from_millis(200);

/// The shortest deadline within which servers with `appendfsync everysec` make a change durable: each writes once a second,
/// and a replica tells once a second what it has written.
const EVERYSEC: Duration = Duration::from_secs(4);

/// What was found when last looked.
#[derive(Default)]
pub(super) struct Findings {
    /// Changes wait for the disks.
    disk: AtomicBool,
    told: Mutex<Told>,
}

#[derive(Clone, Default, PartialEq, Eq)]
struct Told {
    /// Server, or none for what is about all of them, and what is to be known.
    notes: Vec<String>,
    /// What acknowledged means.
    promise: String,
}

impl Findings {
    pub(super) fn disk(&self) -> bool {
        self.disk.load(Ordering::Relaxed)
    }

    /// For people: what acknowledged means, then what else is to be known.
    pub(super) fn lines(&self) -> Vec<String> {
        let told = self.told.lock();
        std::iter::once(told.promise.clone()).chain(told.notes.iter().cloned()).collect()
    }

    fn tell(&self, store: &str, found: Told) {
        let mut told = self.told.lock();
        if told.promise != found.promise {
            tracing::info!(store, "{}", found.promise);
        }
        for note in found.notes.iter().filter(|note| !told.notes.contains(note)) {
            tracing::warn!(store, note, "session store");
        }
        for note in told.notes.iter().filter(|note| !found.notes.contains(note)) {
            tracing::info!(store, note, "session store: this is over");
        }
        *told = found;
    }
}

/// Looks at all servers.
///
/// # Errors
/// The first server that will not do, primary or replica, and why.
pub(super) async fn look(
    router: &Router,
    findings: &Findings,
    rules: Rules,
    options: &RedisOptions,
) -> Result<(), String> {
    let mut judged: BTreeMap<Addr, Result<Judged, String>> = BTreeMap::new();
    // The replicas of a single server are known once it was asked.
    for _ in 0..2 {
        let new: Vec<Addr> = router.known().into_iter().filter(|addr| !judged.contains_key(addr)).collect();
        let looks = new.into_iter().map(|addr| async {
            let found = ask(router, &addr, rules).await;
            (addr, found)
        });
        judged.extend(futures::future::join_all(looks).await);
        if !rules.cluster {
            let replicas = judged.values().flatten().flat_map(|judged| judged.replicas.iter());
            router.add(replicas.map(|(host, port)| Addr { host: host.clone(), port: *port }));
        }
    }
    let mut notes: Vec<String> = Vec::new();
    let mut refused = None;
    for (addr, found) in &judged {
        let mut note = |text: String| {
            let text = format!("redis node {addr}: {text}");
            if !notes.contains(&text) {
                notes.push(text);
            }
        };
        match found {
            Err(why) => note(format!("it cannot be judged now: {why}")),
            Ok(judged) => {
                router.judged(addr, judged.unfit.clone());
                judged.notes.iter().for_each(|text| note(text.clone()));
                if let Some(why) = &judged.unfit {
                    note(why.clone());
                    refused.get_or_insert_with(|| format!("redis node {addr}: {why}"));
                }
            }
        }
    }
    let known: Vec<&Judged> = judged.values().flatten().collect();
    if !known.is_empty() {
        let always = known.iter().all(|judged| judged.fsync.as_deref() == Some("always"));
        let possible = known.iter().all(|judged| judged.has_waitaof);
        let disk = options.waitaof && possible && (always || options.deadline >= EVERYSEC);
        if disk && !always {
            notes.push(
                "appendfsync is not always, so each change waits up to a second or two for the disks: set it to always, or \
                 the store's option waitaof to false"
                    .into(),
            );
        }
        if options.waitaof && possible && !disk {
            notes.push(format!(
                "WAITAOF is not used: a deadline of {:?} is too short for appendfsync everysec",
                options.deadline
            ));
        }
        // The weakest of the primaries says what is promised.
        let primaries = known.iter().filter(|judged| judged.primary);
        let fsync =
            primaries.map(|judged| judged.fsync.as_deref()).min_by_key(|fsync| *fsync == Some("always"));
        findings.disk.store(disk, Ordering::Relaxed);
        let promise = judge::promise(rules.replicas, disk, fsync.flatten());
        findings.tell(&options.place().display().to_string(), Told { notes, promise });
    }
    refused.map_or(Ok(()), Err)
}

async fn ask(router: &Router, addr: &Addr, rules: Rules) -> Result<Judged, String> {
    let answers = router.ask_node(addr, judge::questions().to_vec(), Need::Nothing).await;
    Judged::of(&answers.map_err(|trouble| trouble.to_string())?, rules)
}

/// Asks the server that gives out names for its time: all processes ask the same one.
///
/// # Errors
/// It does not tell.
pub(super) async fn look_at_clock(
    router: &Router,
    clock: &ServerClock,
    slot: u16,
    first: bool,
) -> Result<(), String> {
    let addr = router.primary(slot).ok_or("no redis node gives out names")?;
    let began = clock.began();
    let answers = router.ask_node(&addr, vec![redis::cmd("TIME")], Need::Nothing).await;
    let answers = answers.map_err(|trouble| trouble.to_string())?;
    let time = answers.first().and_then(judge::time_of);
    clock.observe(began, time.ok_or_else(|| format!("redis node {addr} does not tell its time"))?, first);
    Ok(())
}

/// Looks again and again, for as long as it is polled.
pub(super) async fn watch(core: Arc<Core>) {
    let mut well = true;
    loop {
        let pause = if well { PAUSE } else { SHORT_PAUSE };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = core.router.changed() => tokio::time::sleep(LEAST_PAUSE).await,
        }
        well = look(&core.router, &core.findings, core.rules, &core.options).await.is_ok();
        let before = core.clock.note();
        let names = slot(&core.keys.names);
        if let Err(error) = look_at_clock(&core.router, &core.clock, names, false).await {
            tracing::debug!(store = core.place, error, "the time of the servers is not known");
        }
        if let Some(note) = core.clock.note().filter(|_| before.is_none()) {
            tracing::warn!(store = core.place, note, "session store");
        }
        well &= core.clock.refused().is_none();
    }
}
