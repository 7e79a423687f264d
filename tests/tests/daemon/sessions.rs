//! The main job, end to end: unmodified curl, the real lbd, managed servers, and a session that comes home.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use tests::browser::Browser;
use tests::client::eventually;
use tests::daemon::{Backend, Lbd};
use tests::topology::{Arms, Topology};

/// Somebody with a session.
struct Visitor<'a>(Browser<'a>);

/// What `GET /session` says.
#[derive(PartialEq, Eq, Clone, Debug)]
struct Seen {
    session: String,
    server: String,
    source: String,
    state: Value,
}

impl<'a> Visitor<'a> {
    fn new(town: &'a Topology) -> Result<Self> {
        Ok(Self(Browser::new(town)?))
    }

    fn seen(&self) -> Result<Seen> {
        let view: Value = serde_json::from_str(&self.0.curl("/session", &[])?)?;
        let text =
            |key: &str| view[key].as_str().map(str::to_owned).with_context(|| format!("no {key}: {view}"));
        Ok(Seen {
            session: text("session")?,
            server: text("server")?,
            source: text("source")?,
            state: view["state"].clone(),
        })
    }

    fn put(&self, key: &str, value: &str) -> Result<()> {
        self.0.curl(&format!("/session/{key}"), &["--request", "PUT", "--data", value]).map(drop)
    }

    /// Its token.
    fn token(&self) -> Result<String> {
        self.0.cookie("lb")
    }
}

/// A counter of the service as lbctl prints it.
fn counter(lbd: &Lbd, name: &str) -> Result<u64> {
    let stats: Value = serde_json::from_str(&lbd.ctl(&["stats", "--json"])?)?;
    let all = stats["counters"].as_array().with_context(|| format!("no counters: {stats}"))?;
    let of_service = |c: &&Value| c["of"] == lbd.service() && c["counter"] == name;
    Ok(all.iter().filter(of_service).filter_map(|c| c["value"].as_u64()).sum())
}

/// Three managed servers.
fn start() -> Result<(Topology, Lbd)> {
    let town = Topology::new(Arms::Several, 0)?;
    let lbd = Lbd::start(&town, &[Backend::Managed, Backend::Managed, Backend::Managed])?;
    Ok((town, lbd))
}

#[test]
fn a_session_comes_home_and_outlives_its_server() -> Result<()> {
    let (town, mut lbd) = start()?;
    let visitor = Visitor::new(&town)?;
    let first = visitor.seen().with_context(|| lbd.log())?;
    ensure!(first.source == "new", "{first:?}");
    visitor.put("color", "\"green\"")?;
    let hits = counter(&lbd, "affinity_hit")?;
    for _ in 0..10 {
        let seen = visitor.seen()?;
        ensure!((&seen.server, &seen.session) == (&first.server, &first.session), "{first:?} then {seen:?}");
        ensure!(seen.source == "cache" && seen.state["color"] == "green", "{seen:?}");
    }
    ensure!(counter(&lbd, "affinity_hit")? == hits + 10);

    // Restarted, it is empty and knows it: the state comes from the database, once.
    lbd.ctl(&["backend", "restart", &first.server])?;
    lbd.wait_ready()?;
    let again = visitor.seen()?;
    let expected = Seen { source: "database".to_owned(), ..again.clone() };
    ensure!(
        again == expected && again.server == first.server && again.state["color"] == "green",
        "{again:?}"
    );
    ensure!(visitor.seen()?.source == "cache");
    ensure!(counter(&lbd, "stale_instance")? >= 1);

    // Killed hard, and away for a while: another server answers.
    lbd.ctl(&["backend", "kill", &first.server, "--down-for", "10m"])?;
    let moved = visitor.seen().with_context(|| lbd.log())?;
    ensure!(moved.server != first.server && moved.session == first.session, "{moved:?}");
    ensure!(moved.source == "database" && moved.state["color"] == "green", "{moved:?}");
    ensure!(visitor.seen()?.source == "cache");

    // The whole daemon dies: the state does not.
    lbd.kill()?;
    lbd.resume()?;
    let after = visitor.seen()?;
    ensure!(after.source == "database" && after.state["color"] == "green", "{after:?}");
    Ok(())
}

#[test]
fn no_request_fails_while_a_server_is_killed() -> Result<()> {
    let (town, mut lbd) = start()?;
    let visitors = (0..6).map(|_| Visitor::new(&town)).collect::<Result<Vec<_>>>()?;
    for (i, visitor) in visitors.iter().enumerate() {
        visitor.put("n", &i.to_string()).with_context(|| lbd.log())?;
    }
    for name in ["b0", "b1", "b2"] {
        std::thread::scope(|scope| -> Result<()> {
            let visits: Vec<_> = visitors
                .iter()
                .enumerate()
                .map(|(i, visitor)| {
                    scope.spawn(move || -> Result<()> {
                        for _ in 0..15 {
                            let seen = visitor.seen()?;
                            ensure!(seen.state["n"] == i, "{seen:?}");
                        }
                        Ok(())
                    })
                })
                .collect();
            lbd.ctl(&["backend", "kill", name])?;
            visits.into_iter().try_for_each(|visit| visit.join().expect("no visit panics"))
        })
        .with_context(|| format!("while {name} was killed: {}", lbd.log()))?;
        lbd.wait_ready()?;
    }
    Ok(())
}

#[test]
fn a_draining_server_keeps_its_sessions_and_maintenance_moves_them() -> Result<()> {
    let (town, lbd) = start()?;
    let visitor = Visitor::new(&town)?;
    visitor.put("k", "1")?;
    let home = visitor.seen()?.server;
    lbd.ctl(&["backend", "drain", &home])?;
    ensure!(visitor.seen()?.server == home, "a draining server serves who lives there");
    for _ in 0..30 {
        ensure!(Visitor::new(&town)?.seen()?.server != home, "a draining server gets no new sessions");
    }
    lbd.ctl(&["backend", "maint", &home])?;
    let moved = visitor.seen()?;
    ensure!(moved.server != home && moved.source == "database" && moved.state["k"] == 1, "{moved:?}");
    lbd.ctl(&["backend", "ready", &home])?;
    eventually("it serves again", || Ok(Visitor::new(&town)?.seen()?.server == home))
}

#[test]
fn explain_tells_what_happens() -> Result<()> {
    let (town, lbd) = start()?;
    let visitor = Visitor::new(&town)?;
    let home = visitor.seen()?.server;
    let token = visitor.token()?;
    let explain = || -> Result<Value> {
        Ok(serde_json::from_str(&lbd.ctl(&["explain", "--token", &token, "--json"])?)?)
    };
    let named = |server: &str| format!("{}/{server}", lbd.service());
    let told = explain()?;
    ensure!(told["backend"] == named(&home) && told["verdict"] == "hit", "{told}");
    lbd.ctl(&["backend", "maint", &home])?;
    let told = explain()?;
    ensure!(told["verdict"] == "redispatched", "{told}");
    let moved = visitor.seen()?;
    ensure!(told["backend"] == named(&moved.server), "lbctl said {told}, the program did {moved:?}");
    Ok(())
}

#[test]
fn sessions_spread_and_forged_tokens_are_new_sessions() -> Result<()> {
    let (town, lbd) = start()?;
    let mut spread = BTreeMap::<String, usize>::new();
    let mut last = None;
    for _ in 0..90 {
        let visitor = Visitor::new(&town)?;
        let seen = visitor.seen()?;
        *spread.entry(seen.server.clone()).or_default() += 1;
        last = Some((visitor, seen));
    }
    ensure!(spread.len() == 3 && spread.values().all(|n| *n >= 10), "{spread:?}");
    let (visitor, seen) = last.context("there were visits")?;
    let invalid = counter(&lbd, "invalid_token")?;
    let token = visitor.token()?;
    let forged = format!("{}{}", if token.starts_with('E') { 'F' } else { 'E' }, &token[1..]);
    let stranger = Visitor::new(&town)?;
    let view: Value =
        serde_json::from_str(&stranger.0.curl("/session", &["--header", &format!("Cookie: lb={forged}")])?)?;
    ensure!(view["source"] == "new" && view["session"] != seen.session.as_str(), "{view}");
    ensure!(counter(&lbd, "invalid_token")? == invalid + 1);
    Ok(())
}

#[test]
fn the_cart_is_kept() -> Result<()> {
    let (town, mut lbd) = start()?;
    let visitor = Visitor::new(&town)?;
    ensure!(visitor.0.curl("/", &[])?.contains("<html"));
    let item = r#"{"sku":"tea","quantity":2}"#;
    visitor.0.curl("/cart/items", &["--json", item]).with_context(|| lbd.log())?;
    let home = visitor.seen()?.server;
    lbd.ctl(&["backend", "restart", &home])?;
    lbd.wait_ready()?;
    ensure!(visitor.0.curl("/cart", &[])?.contains("tea"));
    visitor.0.curl("/cart/items/tea", &["--request", "DELETE"])?;
    ensure!(!visitor.0.curl("/cart", &[])?.contains("tea"));
    Ok(())
}
