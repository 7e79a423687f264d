//! TLS that nobody between the ends can read but for the name that the client asks for: that name is steered by.

use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use tests::balancer::dial;
use tests::real::browser::Browser;
use tests::real::visit::{answer, curl};
use tests::real::{App, Scene};

#[test]
fn a_name_stays_with_its_server() -> Result<()> {
    const NAMES: usize = 24;
    Scene::run(App::Tls, |scene| {
        let mut homes = BTreeMap::new();
        for i in 0..NAMES {
            let name = format!("shop-{i}.example.test");
            let page = format!("https://{name}:{}/", dial().port());
            let there = format!("::{}", dial());
            let said = curl(&scene.town, &["--insecure", "--connect-to", &there, &page, &page, &page])?;
            let visits = said.lines().map(answer).collect::<Result<Vec<_>>>()?;
            ensure!(
                visits.len() == 3 && visits.iter().all(|visit| *visit == visits[0]),
                "{name}: {visits:?}"
            );
            ensure!(visits[0].1 == name, "{name} was called {}", visits[0].1);
            homes.insert(name, visits[0].0.clone());
        }
        let servers: BTreeSet<_> = homes.values().collect();
        ensure!(servers.len() > 1, "{NAMES} names are all at {servers:?}");

        // Chromium's greeting has a key that is larger than a segment, and anything may stand behind it.
        let mut browser = Browser::start(&scene.town)?;
        for (name, home) in &homes {
            browser.go(&format!("https://{name}:{}/", dial().port()))?;
            let (server, called) = answer(&browser.page()?).with_context(|| name.clone())?;
            ensure!(server == *home && called == *name, "{name} of {home} is {called} at {server}");
        }
        let awaited = scene.lbd.counter("head_awaited")?;
        ensure!(awaited > 0, "no greeting went on in a second segment");
        Ok(())
    })
}
