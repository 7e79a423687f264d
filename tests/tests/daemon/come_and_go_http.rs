//! Backends that are added and taken out while HTTP connections with signed tokens are kept alive.

use anyhow::{Context, Result, ensure};
use lb_common::token::SessionId;
use lb_userspace::session::{Owner, TokenKeys};
use serde_json::Value;
use std::time::{Duration, Instant};
use tests::client::{Client, eventually};
use tests::daemon::{Backend, Lbd, Manner};
use tests::server::Server;
use tests::share::{at_least, at_most};
use tests::topology::{Arms, Topology};

/// Somebody whose token names a backend, and who keeps a connection.
struct Guest {
    /// A header line.
    token: String,
    home: String,
    kept: Client,
}

impl Guest {
    fn goes_on(&mut self) -> Result<()> {
        let there = self.kept.get("/", &self.token)?.body;
        ensure!(there == self.home, "{there} is not {}", self.home);
        Ok(())
    }

    /// Who answers on a connection of its own.
    fn visit(&self, town: &Topology) -> Result<String> {
        Ok(Client::connect(&town.client.netns)?.get("/", &self.token)?.body)
    }
}

/// Who answers those without a token.
fn strangers(town: &Topology, n: usize) -> Result<Vec<String>> {
    (0..n).map(|_| Ok(Client::connect(&town.client.netns)?.get("/", "")?.body)).collect()
}

#[test]
fn tokens_of_a_server_elsewhere_lead_there_as_long_as_it_is_configured() -> Result<()> {
    const EACH: u8 = 8;
    const STRANGERS: usize = 200;
    let town = Topology::new(Arms::Several, 4)?;
    let _servers: Vec<Server> =
        (0..4).map(|i| Server::start(&town.backends[i], &format!("b{i}"))).collect::<Result<_>>()?;
    let all: Vec<Backend<'_>> = town.backends.iter().map(Backend::Remote).collect();
    let manner = Manner { timeouts: Some("closing = \"1s\"".to_owned()), ..Manner::default() };
    let mut lbd = Lbd::start_in(&town, &all[..3], manner)?;
    // An application's part: it has the keys, and mints tokens in the name of its slot.
    let keys = TokenKeys::load(&lbd.dir().join("keys.toml"))?;
    let service: Value = serde_json::from_str(&lbd.ctl(&["service", "list", "--json"])?)?;
    let service = service["services"][0]["id"].as_u64().with_context(|| service.to_string())? as u16;
    let slots: Value = serde_json::from_str(&lbd.ctl(&["backend", "list", "--json"])?)?;
    let guest = |backend: &Value, n: u8| -> Result<Guest> {
        let number = |key: &str| backend[key].as_u64().with_context(|| format!("no {key}: {backend}"));
        let (slot, epoch) = (number("slot")? as u16, number("epoch")? as u32);
        let token = keys.token(service, Owner { slot, epoch }, SessionId([n; 16]));
        let token = format!("Cookie: lb={}\r\n", keys.sign(&token).context("a token")?);
        let home = backend["name"].as_str().context("a name")?.to_owned();
        let kept = Client::connect(&town.client.netns)?;
        let mut guest = Guest { token, home, kept };
        guest.goes_on()?;
        Ok(guest)
    };
    let mut guests = Vec::new();
    for backend in slots["backends"].as_array().context("backends")? {
        for _ in 0..EACH {
            guests.push(guest(backend, guests.len() as u8)?);
        }
    }

    // One more: whoever has a token stays, on the connection that is kept and on others.
    lbd.restart_with(&town, &all)?;
    for guest in &mut guests {
        guest.goes_on().with_context(|| lbd.log())?;
        ensure!(guest.visit(&town)? == guest.home, "a token leads home");
    }
    let there = strangers(&town, STRANGERS)?.iter().filter(|name| *name == "b3").count();
    let (least, most) = (at_least(STRANGERS, 0.25), at_most(STRANGERS, 0.25));
    ensure!((least..=most).contains(&there), "{there} of {STRANGERS} came to the new one");

    // Two less: connections go on, new ones are redispatched, and nobody else notices.
    lbd.restart_with(&town, &all[..2])?;
    let redispatched = lbd.counter("redispatched")?;
    for guest in &mut guests {
        guest.goes_on().with_context(|| lbd.log())?;
        let there = guest.visit(&town)?;
        match guest.home.as_str() {
            "b2" => ensure!(there != "b2" && there != "b3", "{there} is gone"),
            home => ensure!(there == home, "{there} is not {home}"),
        }
        guest.goes_on().with_context(|| lbd.log())?;
    }
    ensure!(lbd.counter("redispatched")? == redispatched + u64::from(EACH), "each of those alone");
    ensure!(strangers(&town, 40)?.iter().all(|name| name != "b2" && name != "b3"), "nothing new");

    // The operator sees that it is leaving, how much lives there, and that it is too late to change anything.
    let listed: Value = serde_json::from_str(&lbd.ctl(&["backend", "list", "--json"])?)?;
    let leaving = listed["backends"].as_array().context("backends")?.iter().find(|b| b["name"] == "b2");
    let leaving = leaving.with_context(|| listed.to_string())?;
    ensure!(leaving["state"] == "leaving" && leaving["flows"] == u64::from(EACH), "{leaving}");
    ensure!(lbd.ctl(&["status"])?.contains("2, 2 ready, "), "{}", lbd.ctl(&["status"])?);
    let flows = lbd.ctl(&["flow", "list", "--backend", "b2"])?;
    ensure!(
        flows.lines().filter(|line| line.contains("/b2 ") && line.contains("established")).count()
            == usize::from(EACH),
        "{flows}"
    );
    let token = guests.iter().find(|guest| guest.home == "b2").context("somebody")?.token.clone();
    let token = token.trim_start_matches("Cookie: lb=").trim_end();
    let explained = lbd.ctl(&["explain", "--token", token])?;
    ensure!(explained.contains("b2 holds the session, but is leaving"), "{explained}");
    for args in [&["backend", "ready", "b2"][..], &["backend", "drain", "b2"], &["backend", "restart", "b2"]]
    {
        let refused = lbd.lbctl(args)?.output()?;
        let told = String::from_utf8(refused.stderr)?;
        ensure!(refused.status.code() == Some(1) && told.contains("`b2` is leaving"), "{args:?}: {told}");
    }
    let forget = lbd.lbctl(&["backend", "forget", &format!("{}/b2", lbd.service())])?.output()?;
    let told = String::from_utf8(forget.stderr)?;
    ensure!(told.contains("connections still live"), "{told}");

    // One that comes back before it has left is as any other, and its connections have not noticed.
    lbd.restart_with(&town, &all[..3]).context("b2 is back")?;
    for guest in &mut guests {
        guest.goes_on().with_context(|| lbd.log())?;
        ensure!(guest.visit(&town)? == guest.home, "a token leads home again");
    }
    lbd.restart_with(&town, &all[..2])?;
    drop(guests);
    eventually("it has left", || Ok(lbd.list()?.iter().all(|backend| backend.state == "ready")))
        .with_context(|| lbd.log())
}

/// Servers that lbd runs end with it, whether they are configured or not: what was asked is answered, connections end in order,
/// and every session is there with what was acknowledged.
#[test]
fn connections_of_managed_servers_end_in_order_and_sessions_go_on() -> Result<()> {
    const CLIENTS: usize = 24;
    let town = Topology::new(Arms::Several, 0)?;
    let three = || [Backend::Managed, Backend::Managed, Backend::Managed];
    let mut lbd = Lbd::start(&town, &three())?;
    struct Guest {
        kept: Client,
        token: String,
        written: usize,
    }
    impl Guest {
        /// Adds to what it has written, and keeps the token that it gets.
        fn write(&mut self) -> Result<String> {
            let body = (self.written + 1).to_string();
            let length = body.len();
            self.kept.send(
                format!(
                    "PUT /session/n HTTP/1.1\r\nHost: shop\r\n{}Content-Length: {length}\r\n\r\n{body}",
                    self.token
                )
                .as_bytes(),
            )?;
            let response = self.kept.response()?;
            ensure!(response.head.starts_with("HTTP/1.1 20"), "{response:?}");
            self.written += 1;
            self.learn(&response.head);
            Ok(response.body)
        }

        fn learn(&mut self, head: &str) {
            let is_token = |line: &&str| line.to_ascii_lowercase().starts_with("set-cookie: lb=");
            let set = head.lines().find(is_token);
            if let Some(value) = set.and_then(|line| line["set-cookie: lb=".len()..].split(';').next()) {
                self.token = format!("Cookie: lb={value}\r\n");
            }
        }

        fn check(&mut self) -> Result<String> {
            let response = self.kept.get("/session", &self.token)?;
            self.learn(&response.head);
            let view: Value = serde_json::from_str(&response.body)?;
            ensure!(view["state"]["n"] == self.written, "{} was written: {view}", self.written);
            Ok(view["server"].as_str().context("a server")?.to_owned())
        }
    }
    let mut guests = Vec::new();
    for _ in 0..CLIENTS {
        let kept = Client::connect(&town.client.netns)?;
        guests.push(Guest { kept, token: String::new(), written: 0 });
    }
    for (from, to) in [(3, 2), (2, 3)] {
        let mut homes = Vec::new();
        for guest in &mut guests {
            guest.write()?;
            homes.push(guest.check()?);
        }
        ensure!((0..from).all(|n| homes.contains(&format!("b{n}"))), "{homes:?}");
        lbd.restart_with(&town, &three()[..to])?;
        let begun = Instant::now();
        for (guest, home) in guests.iter_mut().zip(&homes) {
            let over = guest.write();
            ensure!(over.is_err(), "its server ended with lbd");
            guest.kept = Client::connect(&town.client.netns)?;
            let there = guest.check()?;
            ensure!(there != "b2" || to > 2, "b2 is gone");
            ensure!(there == *home || home == "b2", "{there} is not {home}");
        }
        ensure!(begun.elapsed() < Duration::from_secs(30), "nobody was kept waiting: {:?}", begun.elapsed());
    }
    Ok(())
}
