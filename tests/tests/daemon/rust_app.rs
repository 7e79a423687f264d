//! A Rust web application that keeps its sessions by the library, twice behind the balancer: lbd does not run it, only
//! knows where it is. Sessions are in Redis, which lbd and both processes share.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use tests::browser::Browser;
use tests::client::eventually;
use tests::daemon::{Backend, Lbd, Manner, service_name};
use tests::redis::{Place, Redis};
use tests::shop::{Shop, Shops};
use tests::topology::{Arms, Topology};

/// Somebody who buys mugs.
struct Buyer<'a> {
    browser: Browser<'a>,
    /// Mugs that it was told are in its cart.
    mugs: u64,
}

impl<'a> Buyer<'a> {
    fn new(town: &'a Topology) -> Result<Self> {
        Ok(Self { browser: Browser::new(town)?, mugs: 0 })
    }

    fn buy(&mut self) -> Result<()> {
        self.browser.curl("/cart", &["--data", "good=mug"])?;
        self.mugs += 1;
        Ok(())
    }

    fn me(&self) -> Result<Value> {
        Ok(serde_json::from_str(&self.browser.curl("/me", &[])?)?)
    }

    /// Visits, finds all its mugs, and tells who answered.
    fn home(&self) -> Result<String> {
        let me = self.me()?;
        ensure!(me["state"]["cart"]["mug"] == self.mugs, "{} mugs were bought: {me}", self.mugs);
        Ok(me["server"].as_str().context("a shop tells its name")?.to_owned())
    }
}

/// Everything; fields in the order in which they must go.
struct Scene<'a> {
    lbd: Lbd,
    shops: Vec<Shop<'a>>,
    town: &'a Topology,
}

impl<'a> Scene<'a> {
    fn new(town: &'a Topology, redis: &Redis, shops: &'a Shops) -> Result<Self> {
        let running = town
            .backends
            .iter()
            .enumerate()
            .map(|(i, host)| shops.start(host, &format!("b{i}")))
            .collect::<Result<Vec<_>>>()?;
        let remote: Vec<_> = town.backends.iter().map(Backend::Remote).collect();
        let store = format!("{{ kind = \"redis\", nodes = {:?} }}", redis.urls());
        let (service, keys) = (Some(shops.service.clone()), Some(shops.keys()));
        let manner = Manner { service, store: Some(store), keys, ..Manner::default() };
        let mut scene = Self { lbd: Lbd::start_in(town, &remote, manner)?, shops: running, town };
        scene.settle()?;
        Ok(scene)
    }

    /// Waits until every backend is ready and lbd knows the epoch that each shop has.
    fn settle(&mut self) -> Result<()> {
        self.lbd.wait_ready()?;
        eventually("lbd knows every epoch", || {
            let list: Value = serde_json::from_str(&self.lbd.ctl(&["backend", "list", "--json"])?)?;
            let mut known = BTreeMap::new();
            collect(&list, &mut known);
            for shop in &self.shops {
                if known.get(shop.backend()) != shop.me()?["epoch"].as_u64().as_ref() {
                    return Ok(false);
                }
            }
            Ok(true)
        })
        .with_context(|| self.logs())
    }

    /// Buyers that have bought a mug, by the shop that has their session: some of each.
    fn browsers(&self, of_each: usize) -> Result<BTreeMap<String, Vec<Buyer<'a>>>> {
        let mut homes = BTreeMap::<String, Vec<Buyer<'a>>>::new();
        eventually("both shops have sessions", || {
            let mut browser = Buyer::new(self.town)?;
            browser.buy()?;
            homes.entry(browser.home()?).or_default().push(browser);
            Ok(homes.len() == 2 && homes.values().all(|browsers| browsers.len() >= of_each))
        })
        .with_context(|| self.logs())?;
        Ok(homes)
    }

    fn logs(&self) -> String {
        let shops = self.shops.iter().map(|shop| format!("{}:\n{}\n", shop.backend(), shop.log()));
        format!("lbd:\n{}\n{}", self.lbd.log(), shops.collect::<String>())
    }
}

/// Names and epochs.
fn collect(value: &Value, epochs: &mut BTreeMap<String, u64>) {
    match value {
        Value::Array(values) => values.iter().for_each(|value| collect(value, epochs)),
        Value::Object(fields) => match (fields.get("name"), fields.get("epoch")) {
            (Some(Value::String(name)), Some(Value::Number(epoch))) => {
                epochs.insert(name.clone(), epoch.as_u64().unwrap_or(0));
            }
            _ => fields.values().for_each(|value| collect(value, epochs)),
        },
        _ => {}
    }
}

fn run(example: &'static str, test: impl FnOnce(&mut Scene<'_>) -> Result<()>) -> Result<()> {
    let town = Topology::new(Arms::Several, 2)?;
    let place = Place { netns: Some(town.balancer.clone()), ip: town.backends[0].gateway };
    let redis = Redis::start(place, 0, &[])?;
    let (service, store) = (service_name(), redis.urls()[0].clone());
    let shops = Shops { example, service, store, dir: tempfile::tempdir()? };
    let mut scene = Scene::new(&town, &redis, &shops)?;
    test(&mut scene).with_context(|| scene.logs())
}

fn at_home(scene: &mut Scene<'_>) -> Result<()> {
    let homes = scene.browsers(3)?;
    let count = |name: &str| scene.lbd.counter(name);
    let (hits, stale) = (count("affinity_hit")?, count("stale_instance")?);
    ensure!(stale == 0, "the tokens of a running application are those that lbd knows: {stale}");
    for (home, browsers) in &homes {
        for browser in browsers {
            let first = browser.me()?;
            for _ in 0..5 {
                let me = browser.me()?;
                ensure!(me == first && me["server"] == home.as_str(), "{first} then {me}");
                // tower-sessions does not tell.
                ensure!(me.get("source").is_none_or(|source| source == "cache"), "{me}");
            }
        }
    }
    let visits = 6 * homes.values().map(Vec::len).sum::<usize>() as u64;
    ensure!(count("affinity_hit")? == hits + visits && count("stale_instance")? == 0);
    Ok(())
}

fn killed_and_back(scene: &mut Scene<'_>) -> Result<()> {
    let mut homes = scene.browsers(4)?;
    let (mut away, other) = (homes.remove("b0").context("b0")?, homes.remove("b1").context("b1")?);
    let mut patient = away.split_off(away.len() / 2);
    scene.shops[0].kill()?;
    // Some come while it is down: the other shop has their carts, and they go on buying there.
    for browser in &mut away {
        ensure!(browser.home()? == "b1");
        browser.buy()?;
        ensure!(browser.home()? == "b1");
    }
    scene.shops[0].resume()?;
    scene.settle()?;
    // Others only after it is back: it knows that it knows nothing.
    for browser in &mut patient {
        ensure!(browser.home()? == "b0");
        browser.buy()?;
        ensure!(browser.home()? == "b0");
    }
    for browser in away.iter().chain(&other) {
        ensure!(browser.home()? == "b1", "those who moved stay");
    }
    ensure!(scene.lbd.counter("stale_instance")? > 0, "tokens of the killed instance were told apart");
    // Stopped in the ordinary way, it gives its sessions back at once.
    scene.shops[1].stop()?;
    for browser in away.iter().chain(&other).chain(&patient) {
        ensure!(browser.home()? == "b0");
    }
    Ok(())
}

fn drained(scene: &mut Scene<'_>) -> Result<()> {
    let mut homes = scene.browsers(2)?;
    scene.lbd.ctl(&["backend", "drain", "b1"])?;
    let drained = homes.get_mut("b1").context("b1")?;
    for browser in drained.iter_mut() {
        browser.buy()?;
        ensure!(browser.home()? == "b1", "a draining shop serves who lives there");
    }
    for _ in 0..10 {
        let mut newcomer = Buyer::new(scene.town)?;
        newcomer.buy()?;
        ensure!(newcomer.home()? == "b0", "a draining shop gets no new sessions");
    }
    scene.lbd.ctl(&["backend", "maint", "b1"])?;
    for browser in drained.iter_mut() {
        ensure!(browser.home()? == "b0");
        browser.buy()?;
    }
    scene.lbd.ctl(&["backend", "ready", "b1"])?;
    scene.settle()?;
    // Back, it takes a new epoch, and whoever comes to it by an old token finds nothing old.
    let kept: Vec<_> = homes.into_values().flatten().collect();
    for browser in &kept {
        ensure!(browser.home()? == "b0");
    }
    scene.browsers(1).map(drop)
}

#[test]
fn the_same_session_finds_the_same_shop() -> Result<()> {
    run("shop", at_home)
}

#[test]
fn carts_survive_kill_and_restart() -> Result<()> {
    run("shop", killed_and_back)
}

#[test]
fn a_drain_moves_carts_without_loss() -> Result<()> {
    run("shop", drained)
}

#[test]
fn with_tower_sessions_the_same_session_finds_the_same_shop() -> Result<()> {
    run("tower_shop", at_home)
}

#[test]
fn with_tower_sessions_carts_survive_kill_and_restart() -> Result<()> {
    run("tower_shop", killed_and_back)
}
