//! curl, nginx, and keys that stand elsewhere than in the server's own cookie: hashed, or signed by who has the keys.

use anyhow::{Context, Result, ensure};
use lb_common::token::SessionId;
use lb_userspace::session::{Owner, TokenKeys};
use std::collections::{BTreeMap, BTreeSet};
use tests::real::visit::{answer, curl, url};
use tests::real::{App, Scene};

/// Sends a key three times, on three connections, and returns who answered all of them.
fn home(scene: &Scene, place: Place, key: &str) -> Result<String> {
    let (page, header) = match place {
        Place::Cookie => (url("/plain"), format!("Cookie: theme=dark; basket={key}; lang=en")),
        Place::Header => (url("/plain"), format!("X-Session: {key}")),
        Place::Query => (url(&format!("/plain?page=2&sid={key}&sort=up")), "Accept: */*".to_owned()),
    };
    let said = curl(&scene.town, &["-H", "Connection: close", "-H", &header, &page, &page, &page])?;
    let servers = said.lines().map(|line| Ok(answer(line)?.0)).collect::<Result<Vec<_>>>()?;
    ensure!(servers.len() == 3, "{place:?} {key}: {said}");
    let home = servers[0].clone();
    ensure!(servers.iter().all(|server| *server == home), "{place:?} {key}: {servers:?}");
    Ok(home)
}

/// Where a key stands in a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    Cookie,
    Header,
    Query,
}

impl Place {
    const ALL: [Self; 3] = [Self::Cookie, Self::Header, Self::Query];

    fn affinity(self, kind: &str) -> String {
        let place = match self {
            Self::Cookie => "cookie = \"basket\"",
            Self::Header => "header = \"X-Session\"",
            Self::Query => "query = \"sid\"",
        };
        format!("{{ kind = \"{kind}\", {place} }}")
    }
}

#[test]
fn a_hashed_key_stays_with_its_server() -> Result<()> {
    const KEYS: usize = 40;
    for place in Place::ALL {
        Scene::run_with(App::Nginx, place.affinity("hashed"), |scene| {
            let mut homes = BTreeMap::new();
            for i in 0..KEYS {
                homes.insert(i, home(scene, place, &format!("visitor-{i}"))?);
            }
            let used: BTreeSet<_> = homes.values().collect();
            ensure!(used.len() == 3, "{KEYS} keys are at {used:?}");

            // One server goes: its keys move, the others stay, and all are back when it is. What
            // follows the hash is the same wherever the key stood.
            if place != Place::Cookie {
                return Ok(());
            }
            scene.instances[0].kill();
            scene.await_state("b0", "down")?;
            for (i, before) in &homes {
                let now = home(scene, place, &format!("visitor-{i}"))?;
                ensure!(now == *before || before == "b0", "{place:?}: key {i} moved from {before} to {now}");
                ensure!(now != "b0", "{place:?}: b0 is gone");
            }
            scene.instances[0].resume()?;
            scene.lbd.wait_ready()?;
            for (i, before) in &homes {
                let now = home(scene, place, &format!("visitor-{i}"))?;
                ensure!(now == *before, "{place:?}: key {i} was at {before}, is at {now}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn a_signed_key_names_its_server() -> Result<()> {
    for place in Place::ALL {
        Scene::run_with(App::Nginx, place.affinity("signed"), |scene| {
            let keys = TokenKeys::load(&scene.lbd.dir().join("keys.toml"))?;
            for slot in [2, 0, 1, 1, 2] {
                // The first service of a new database, whose backends are in their first epoch.
                let token = keys.token(1, Owner { slot, epoch: 1 }, SessionId([slot as u8; 16]));
                let token = keys.sign(&token).context("the newest key is alive")?;
                ensure!(home(scene, place, &token)? == format!("b{slot}"), "{place:?}: {token}");
            }
            Ok(())
        })?;
    }
    Ok(())
}
