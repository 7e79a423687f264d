//! What an operator does with the store of a running lbd: looks at it, ends sessions, moves everything to another store,
//! fills the disk, takes the servers of the store away.

use anyhow::{Context, Result, ensure};
use lb_userspace::session::{RedisOptions, RedisStore, SessionStore};
use nix::mount::{MsFlags, mount};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};
use tests::client::eventually;
use tests::daemon::{Backend, Lbd, Manner};
use tests::redis::{Place, Redis};
use tests::topology::{Arms, Topology};
use tests::visitor::{Visitor, status};

/// Longer than lbctl may take to tell how a store is that does not answer.
const PROMPT: Duration = Duration::from_secs(4);

fn lbctl(lbd: &Lbd, args: &[&str]) -> Result<(bool, String)> {
    let Output { status, stdout, stderr } = lbd.lbctl(args)?.output()?;
    Ok((status.success(), String::from_utf8(stdout)? + &String::from_utf8(stderr)?))
}

/// An answer of lbctl as JSON.
fn told(lbd: &Lbd, args: &[&str]) -> Result<Value> {
    Ok(serde_json::from_str(&lbd.ctl(&[args, &["--json"]].concat())?)?)
}

/// Epoch and reason of a backend.
fn backend(lbd: &Lbd, name: &str) -> Result<(u64, String, String)> {
    let list = told(lbd, &["backend", "list"])?;
    let all = list["backends"].as_array().context("a list")?;
    let found = all.iter().find(|backend| backend["name"] == name).context("no such backend")?;
    let text = |key: &str| found[key].as_str().unwrap_or_default().to_owned();
    Ok((found["epoch"].as_u64().context("an epoch")?, text("state"), text("reason")))
}

fn redis(town: &Topology) -> Result<Redis> {
    Redis::start(Place { netns: Some(town.balancer.clone()), ..Place::default() }, 0, &[])
}

/// `store` of a configuration.
fn redis_store(redis: &Redis) -> String {
    format!("{{ kind = \"redis\", nodes = {:?} }}", redis.urls())
}

#[test]
fn a_session_ends_everywhere_when_the_operator_says_so() -> Result<()> {
    let town = Topology::new(Arms::Several, 0)?;
    let lbd = Lbd::start(&town, &[Backend::Managed, Backend::Managed])?;
    let netns = &town.client.netns;
    let mut visitor = Visitor::default();
    visitor.put(netns, "n", "1")?;
    ensure!(visitor.session(netns)?["source"] == "cache", "the server has a copy");
    let (token, id) = (visitor.token()?.to_owned(), visitor.session(netns)?["session"].clone());
    let id = id.as_str().context("an id")?;
    let said = lbd.ctl(&["session", "end", &token])?;
    ensure!(said == format!("session {id} has ended; whoever has its token begins anew\n"), "{said}");
    let after = visitor.session(netns)?;
    ensure!(after["session"] != id && after["state"].as_object().is_some_and(|s| s.is_empty()), "{after}");
    let (done, said) = lbctl(&lbd, &["session", "end", id])?;
    ensure!(!done && said.contains("it has ended already, or never was"), "{said}");
    let (done, said) = lbctl(&lbd, &["session", "end", "rubbish"])?;
    ensure!(!done && said.contains("a token is the value of the session cookie"), "{said}");
    let (done, said) = lbctl(&lbd, &["session", "end", after["session"].as_str().context("an id")?])?;
    ensure!(!done && said.contains("never was"), "nothing was stored for a visit: {said}");
    // By its id, too.
    visitor.put(netns, "n", "2")?;
    let session = visitor.session(netns)?["session"].clone();
    lbd.ctl(&["session", "end", session.as_str().context("an id")?])?;
    ensure!(visitor.session(netns)?["session"] != session, "it is another one");
    Ok(())
}

#[test]
fn sessions_move_from_sled_to_redis_and_keep_their_tokens() -> Result<()> {
    const VISITORS: usize = 40;
    let town = Topology::new(Arms::Several, 0)?;
    let netns = &town.client.netns;
    let servers = [Backend::Managed, Backend::Managed];
    let place = tempfile::tempdir()?;
    let mut lbd = Lbd::start(&town, &servers)?;
    let status = told(&lbd, &["status"])?;
    let in_sled = format!("sled {}/sessions", lbd.dir().display());
    ensure!(status["store"]["place"] == in_sled.as_str() && status["store"]["available"] == true, "{status}");
    let mut visitors = vec![Visitor::default(); VISITORS];
    for (n, visitor) in visitors.iter_mut().enumerate() {
        visitor.put(netns, "n", &n.to_string())?;
    }
    let said = lbd.ctl(&["store", "check"])?;
    ensure!(said.contains(" records in sled ") && said.ends_with(": all whole\n"), "{said}");
    let file = place.path().join("sessions.jsonl");
    let file = file.to_str().context("a path")?;
    // While it runs, nobody else opens its store.
    let config = lbd.config();
    let config = config.to_str().context("a path")?;
    let (done, said) = lbctl(&lbd, &["store", "export", file, "--config", config])?;
    ensure!(!done && said.contains("is in use by process") && !Path::new(file).exists(), "{said}");
    let said = lbd.ctl(&["store", "export", file])?;
    ensure!(said.starts_with(&format!("exported {VISITORS} sessions from sled ")), "{said}");
    ensure!(lbd.stop()?.success(), "{}", lbd.log());
    // The same without an lbd.
    let (done, said) = lbctl(&lbd, &["store", "check", "--config", config])?;
    ensure!(done && said.contains(": all whole"), "{said}");
    let (done, said) = lbctl(&lbd, &["store", "check"])?;
    ensure!(!done && said.contains("name the store with --config lb.toml or --store DIRECTORY"), "{said}");

    let redis = redis(&town)?;
    let store = redis_store(&redis);
    let text = fs::read_to_string(config)?;
    let line = text.lines().find(|line| line.starts_with("store = ")).context("a store")?;
    let other = place.path().join("redis.toml");
    fs::write(&other, text.replace(line, &format!("store = {store}")))?;
    let said = lbd.ctl(&["store", "import", file, "--config", other.to_str().context("a path")?])?;
    ensure!(said.starts_with(&format!("imported {VISITORS} sessions into redis ")), "{said}");
    // Nothing else changes in the configuration.
    fs::copy(&other, config)?;
    lbd.resume()?;
    let status = told(&lbd, &["status"])?;
    ensure!(status["sessions"] == VISITORS && status["store"]["available"] == true, "{status}");
    for (n, visitor) in visitors.iter_mut().enumerate() {
        let seen = visitor.session(netns)?;
        ensure!(seen["state"]["n"] == n && seen["source"] == "database", "visitor {n}: {seen}");
        visitor.put(netns, "n", &(1000 + n).to_string())?;
        ensure!(visitor.session(netns)?["state"]["n"] == 1000 + n, "it works on");
    }
    for name in ["b0", "b1"] {
        ensure!(backend(&lbd, name)?.0 == 2, "no instance of the other store is one here");
    }
    // And on the way back, through lbd: everything is there already.
    let said = lbd.ctl(&["store", "import", file])?;
    ensure!(said.contains("imported 0 sessions into redis ") && said.contains("there already"), "{said}");
    ensure!(visitors[7].session(netns)?["state"]["n"] == 1007, "left as it is");
    lbd.ctl(&["store", "import", "--replace", file])?;
    ensure!(
        visitors[7].session(netns)?["state"]["n"] == 7,
        "servers do not answer from memory what was replaced"
    );
    Ok(())
}

#[test]
fn lbd_goes_on_without_redis_and_comes_back_with_it() -> Result<()> {
    let town = Topology::new(Arms::Several, 0)?;
    let netns = &town.client.netns;
    let mut redis = redis(&town)?;
    let manner = Manner { store: Some(redis_store(&redis)), ..Manner::default() };
    let mut lbd = Lbd::start_in(&town, &[Backend::Managed, Backend::Managed], manner)?;
    let mut visitor = Visitor::default();
    visitor.put(netns, "n", "1")?;
    let epoch = backend(&lbd, "b0")?.0;
    redis.kill(0)?;
    let node = redis.addr(0).to_string();
    let answer = visitor.request(netns, "PUT", "/session/n", "2")?;
    ensure!(status(&answer) == "503" && answer.head.to_lowercase().contains("retry-after"), "{answer:?}");
    let asked = Instant::now();
    let said = told(&lbd, &["status"])?;
    ensure!(asked.elapsed() < PROMPT, "status took {:?}", asked.elapsed());
    let detail = said["store"]["detail"].as_str().unwrap_or_default();
    ensure!(said["store"]["available"] == false && detail.contains(&node), "{said}");
    ensure!(
        said["sessions"].is_null() && said["backends_ready"] == 2,
        "health is no matter of the store: {said}"
    );
    // A server that begins now has no epoch: it stays down until there is one.
    lbd.ctl(&["backend", "kill", "b0"])?;
    eventually("b0 is down for want of an epoch", || {
        let (_, state, reason) = backend(&lbd, "b0")?;
        Ok(state == "down" && reason.contains("cannot begin an epoch") && reason.contains(&node))
    })?;
    ensure!(backend(&lbd, "b1")?.1 == "ready", "the other one is not touched");
    redis.restart(0)?;
    lbd.wait_ready()?;
    ensure!(backend(&lbd, "b0")?.0 > epoch, "in a new epoch");
    eventually("sessions can be used again", || {
        Ok(status(&visitor.request(netns, "PUT", "/session/n", "3")?) == "200")
    })?;
    ensure!(visitor.session(netns)?["state"]["n"] == 3, "and are what they were");
    // One that starts without its store says so and ends.
    ensure!(lbd.stop()?.success(), "{}", lbd.log());
    redis.kill(0)?;
    let error = format!("{:#}", lbd.resume().err().context("it cannot start")?);
    ensure!(error.contains("lbd ended with exit status: 1") && error.contains(&node), "{error}");
    Ok(())
}

/// An application behind a backend that lbd does not run begins its epochs itself, in the same store.
#[test]
fn epochs_that_others_begin_are_heard() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let _nginx = tests::nginx::Nginx::start(&town.backends[0])?;
    let redis = redis(&town)?;
    let servers = [Backend::Managed, Backend::Remote(&town.backends[0])];
    let manner = Manner { store: Some(redis_store(&redis)), ..Manner::default() };
    let mut lbd = Lbd::start_in(&town, &servers, manner)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let options = RedisOptions { nodes: redis.urls(), ..RedisOptions::default() };
    // Its connections are made where it is opened.
    let store = town.balancer.run(|| runtime.block_on(RedisStore::open(options)))?;
    let service = lbd.service().to_owned();
    let begin = |name: &str| -> Result<u64> {
        let slot = runtime.block_on(store.slot(&service, name))?;
        Ok(runtime.block_on(store.next_epoch(slot))?.into())
    };
    for _ in 0..3 {
        let epoch = begin("b1")?;
        eventually("lbd knows the application's epoch", || Ok(backend(&lbd, "b1")?.0 == epoch))?;
    }
    let own = backend(&lbd, "b0")?.0;
    begin("b0")?;
    // Heard in the order in which they were given out.
    let last = begin("b1")?;
    eventually("lbd has heard of both", || Ok(backend(&lbd, "b1")?.0 == last))?;
    ensure!(backend(&lbd, "b0")?.0 == own, "lbd knows better about what it runs itself");
    // What is begun while lbd is away counts, too.
    ensure!(lbd.stop()?.success(), "{}", lbd.log());
    let missed = begin("b1")?;
    lbd.resume()?;
    eventually("lbd knows what it has missed", || Ok(backend(&lbd, "b1")?.0 > missed))?;
    // A slot that nobody has any more is freed by hand where others could have it.
    let slot = runtime.block_on(store.slot(&service, "gone"))?;
    let said = lbd.ctl(&["backend", "forget", &format!("{service}/gone")])?;
    ensure!(said == format!("slot {slot} of {service}/gone is free\n"), "{said}");
    for (name, why) in [("gone", "has no slot"), ("b1", "is configured here")] {
        let (done, said) = lbctl(&lbd, &["backend", "forget", &format!("{service}/{name}")])?;
        ensure!(!done && said.contains(why), "{said}");
    }
    Ok(())
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room() -> Result<()> {
    let town = Topology::new(Arms::Several, 0)?;
    let netns = &town.client.netns;
    let disk = tempfile::tempdir()?;
    // lbd keeps 64 MiB free.
    let options = Some("size=112m,mode=0700");
    mount(Some("tmpfs"), disk.path(), Some("tmpfs"), MsFlags::empty(), options)
        .context("mounting a tmpfs")?;
    let _unmounted = Unmounted(disk.path());
    let store = format!("\"{}/sessions\"", disk.path().display());
    let lbd = Lbd::start_in(&town, &[Backend::Managed], Manner { store: Some(store), ..Manner::default() })?;
    let mut visitor = Visitor::default();
    visitor.put(netns, "n", "1")?;
    let ballast = disk.path().join("ballast");
    fs::write(&ballast, vec![7; 60 << 20])?;
    let full = visitor.request(netns, "PUT", "/session/n", "2")?;
    ensure!(status(&full) == "507", "{full:?}");
    let mut stranger = Visitor::default();
    ensure!(status(&stranger.request(netns, "PUT", "/session/n", "2")?) == "507", "nor do sessions begin");
    ensure!(visitor.session(netns)?["state"]["n"] == 1, "reading goes on");
    let said = told(&lbd, &["status"])?;
    ensure!(said["store"]["available"] == false, "{said}");
    let detail = said["store"]["detail"].as_str().unwrap_or_default();
    ensure!(detail.starts_with("no space left for "), "{said}");
    // What is there can be taken out.
    let file = disk.path().join("sessions.jsonl");
    let said = lbd.ctl(&["store", "export", file.to_str().context("a path")?])?;
    ensure!(said.starts_with("exported 1 session from "), "{said}");
    fs::remove_file(&ballast)?;
    visitor.put(netns, "n", "3")?;
    ensure!(visitor.session(netns)?["state"]["n"] == 3, "and is there");
    ensure!(told(&lbd, &["status"])?["store"]["available"] == true, "lbctl knows");
    Ok(())
}

/// A file system that goes when this does.
struct Unmounted<'a>(&'a Path);

impl Drop for Unmounted<'_> {
    fn drop(&mut self) {
        // lbd may have it open still.
        let _ = nix::mount::umount2(self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Of both backends.
struct Epochs([u64; 2]);

impl Epochs {
    /// Fails unless those of `which`, and no others, are larger than when it was last asked.
    fn have_grown(&mut self, lbd: &Lbd, what: &str, which: [bool; 2]) -> Result<[u64; 2]> {
        let now = [backend(lbd, "b0")?.0, backend(lbd, "b1")?.0];
        for (n, grows) in which.into_iter().enumerate() {
            let right = if grows { now[n] > self.0[n] } else { now[n] == self.0[n] };
            ensure!(right, "{what}: epochs were {:?}, are {now:?}", self.0);
        }
        self.0 = now;
        Ok(now)
    }
}

/// DESIGN §7, promise 5, from outside: whatever happens to a server, its epoch has grown when it is back.
#[test]
fn epochs_grow_with_whatever_happens() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let nginx = tests::nginx::Nginx::start(&town.backends[0])?;
    let servers = [Backend::Managed, Backend::Remote(&town.backends[0])];
    let mut lbd = Lbd::start(&town, &servers)?;
    let mut epochs = Epochs([0; 2]);
    let mut grown = |lbd: &Lbd, what: &str, which| epochs.have_grown(lbd, what, which);
    grown(&lbd, "the start", [true, true])?;
    lbd.ctl(&["backend", "restart", "b0"])?;
    lbd.wait_ready()?;
    grown(&lbd, "a restart", [true, false])?;
    lbd.ctl(&["backend", "kill", "b0"])?;
    eventually("b0 is back", || Ok(backend(&lbd, "b0")?.0 > 2))?;
    lbd.wait_ready()?;
    grown(&lbd, "a crash", [true, false])?;
    for name in ["b0", "b1"] {
        lbd.ctl(&["backend", "maint", name])?;
        lbd.ctl(&["backend", "ready", name])?;
    }
    lbd.wait_ready()?;
    grown(&lbd, "maintenance", [true, true])?;
    for name in ["b0", "b1"] {
        lbd.ctl(&["backend", "drain", name])?;
        lbd.ctl(&["backend", "ready", name])?;
    }
    grown(&lbd, "draining, through which both serve", [false, false])?;
    drop(nginx);
    eventually("b1 is down", || Ok(backend(&lbd, "b1")?.1 == "down"))?;
    let _nginx = tests::nginx::Nginx::start(&town.backends[0])?;
    lbd.wait_ready()?;
    grown(&lbd, "a failed check", [false, true])?;
    let mut last = [backend(&lbd, "b0")?.0, backend(&lbd, "b1")?.0];
    for round in 0..6 {
        let what = if round % 2 == 0 {
            lbd.kill()?;
            "kill -9 of lbd"
        } else {
            lbd.stop()?;
            "a restart of lbd"
        };
        lbd.resume()?;
        // b1 serves on meanwhile; its new epoch is asked for at the start.
        let before = last[1];
        eventually("b1 has its next epoch", || Ok(backend(&lbd, "b1")?.0 > before))?;
        last = grown(&lbd, what, [true, true])?;
    }
    Ok(())
}

#[test]
fn a_second_lbd_on_the_same_store_is_told_who_has_it() -> Result<()> {
    let town = Topology::new(Arms::Several, 0)?;
    let first = Lbd::start(&town, &[Backend::Managed])?;
    let other = Topology::new(Arms::Several, 0)?;
    let path = first.dir().join("sessions");
    let manner = Manner { store: Some(format!("{:?}", path)), ..Manner::default() };
    let error = Lbd::start_in(&other, &[Backend::Managed], manner).err().context("it must not start")?;
    let error = format!("{error:#}");
    let pid = told(&first, &["status"])?["pid"].to_string();
    let expected = format!("store {} is in use by process {pid}: stop that lbd first", path.display());
    ensure!(error.contains(&expected), "{error}");
    Ok(())
}

#[test]
fn keys_are_prepared_copied_and_read_again() -> Result<()> {
    let town = Topology::new(Arms::Several, 0)?;
    let netns = &town.client.netns;
    let lbd = Lbd::start(&town, &[Backend::Managed])?;
    let file = lbd.dir().join("keys.toml");
    let first = fs::read_to_string(&file)?;
    let mut visitor = Visitor::default();
    visitor.put(netns, "n", "1")?;
    let said = lbd.ctl(&["keys", "prepare"])?;
    ensure!(said.starts_with("key 0 signs new tokens; 2 keys verify; key 1 is prepared: "), "{said}");
    let prepared = fs::read_to_string(&file)?;
    let said = lbd.ctl(&["keys", "rotate"])?;
    ensure!(said == "key 1 signs new tokens; 2 keys verify\n", "{said}");
    ensure!(visitor.session(netns)?["state"]["n"] == 1, "the old token is good");
    // Another host's file, from before the rotation: this one verifies what the other one signs, and the other way round.
    fs::write(&file, &prepared)?;
    let (done, said) = lbctl(&lbd, &["keys", "rotate"])?;
    ensure!(!done && said.contains("holds other keys than lbd uses"), "{said}");
    let said = lbd.ctl(&["keys", "reload"])?;
    ensure!(said.starts_with("key 0 signs new tokens; 2 keys verify; key 1 is prepared"), "{said}");
    ensure!(visitor.session(netns)?["state"]["n"] == 1, "a token of key 1 is good");
    // A rubbish file changes nothing.
    fs::write(&file, "rubbish")?;
    let (done, said) = lbctl(&lbd, &["keys", "reload"])?;
    ensure!(!done && said.contains("lbd goes on with the keys that it has"), "{said}");
    ensure!(visitor.session(netns)?["state"]["n"] == 1, "it does");
    // Without the key that signed a token, the token is none. By signal this time.
    fs::write(&file, first)?;
    lbd.process()?.signal(nix::sys::signal::Signal::SIGHUP)?;
    eventually("one key is left", || Ok(told(&lbd, &["status"])?["token_keys"] == 1))?;
    ensure!(visitor.session(netns)?["state"]["n"] == 1, "key 0 signed it");
    ensure!(lbd.log().contains("gone: key 1: sessions whose tokens it signed begin anew"), "{}", lbd.log());
    Ok(())
}
