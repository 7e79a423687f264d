//! TLS that nobody between the ends can read but for the name that the client asks for: that name is steered by.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use tests::balancer::dial;
use tests::client::eventually;
use tests::daemon::Manner;
use tests::real::browser::Browser;
use tests::real::nginx::{LARGE, NAMES, certificate};
use tests::real::visit::{answer, curl, printed};
use tests::real::{App, Scene};
use tests::topology::NIC;

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

/// Asks for a page by a name, from one of the client's addresses, and believes the certificates of these instances for `listed`
/// alone: then it is one of them that has answered, and nobody between.
fn fetch(
    scene: &Scene,
    from: &str,
    name: &str,
    page: &str,
    listed: &str,
    trusted: &[usize],
) -> Result<String> {
    let bundle = tempfile::NamedTempFile::new()?;
    let each =
        trusted.iter().map(|i| Ok(fs::read_to_string(certificate(scene.instances[*i].dir(), listed))?));
    fs::write(&bundle, each.collect::<Result<String>>()?)?;
    let bundle = bundle.path().to_str().context("a temporary file has a plain name")?;
    let port = dial().port();
    let there = format!("{name}:{port}:{}", dial().ip());
    let url = format!("https://{name}:{port}{page}");
    curl(&scene.town, &["--interface", from, "--cacert", bundle, "--resolve", &there, &url])
}

/// The server that answered, which was called by that name.
fn server(scene: &Scene, from: &str, name: &str, listed: &str, trusted: &[usize]) -> Result<String> {
    let (server, called) = answer(&fetch(scene, from, name, "/", listed, trusted)?)?;
    ensure!(called == name, "{name} was called {called} at {server}");
    ensure!(trusted.iter().any(|i| scene.instances[*i].name() == server), "{name} is answered by {server}");
    Ok(server)
}

/// What openssl's client prints of a connection with these options, with what it is answered.
fn s_client(scene: &Scene, options: &str) -> Result<String> {
    let mut shell = scene.town.client.netns.command("sh");
    let request = "printf 'GET / HTTP/1.0\\r\\n\\r\\n'";
    shell.args([
        "-c",
        &format!("{request} | timeout 30 openssl s_client -ign_eof -connect {} {options} 2>&1", dial()),
    ]);
    printed(shell)
}

/// The client's own address, and some more that it is given.
fn addresses(scene: &Scene, count: u8) -> Result<Vec<String>> {
    let addresses: Vec<String> = (0..count).map(|i| format!("10.0.1.{}", 100 + i)).collect();
    for address in &addresses {
        scene.town.client.netns.ip(&[&format!("addr add {address}/24 dev {NIC}")])?;
    }
    Ok(addresses)
}

const CLIENT: &str = "10.0.1.2";
const REST: &str = NAMES[0];
const SHOP: &str = NAMES[1];
const BLOG: &str = NAMES[2];

/// The shop is at the first two, the blogs are at the second, and the third has the rest.
fn names(i: usize) -> String {
    match i {
        0 => "sni = [\"shop.example.test\"]\n".to_owned(),
        1 => "sni = [\"Shop.Example.Test\", \"*.blog.example.test\"]\n".to_owned(),
        _ => String::new(),
    }
}

fn manner(kind: &str) -> Manner {
    let affinity = Some(format!("{{ kind = \"{kind}\", sni = true }}"));
    Manner { affinity, each: Some(names), ..Manner::default() }
}

#[test]
fn names_lead_to_chosen_servers() -> Result<()> {
    Scene::run_in(App::Tls, manner("none"), |scene| {
        let shops = |scene: &Scene| -> Result<BTreeSet<String>> {
            (0..16).map(|_| server(scene, CLIENT, SHOP, SHOP, &[0, 1])).collect()
        };
        ensure!(shops(scene)?.len() == 2, "connections spread over both shops");
        for name in ["a.blog.example.test", "b.blog.example.test"] {
            ensure!(server(scene, CLIENT, name, BLOG, &[1])? == "b1");
        }
        ensure!(server(scene, CLIENT, REST, REST, &[2])? == "b2");
        // The same name at another server has another certificate, so these say who has answered.
        ensure!(server(scene, CLIENT, REST, REST, &[0, 1]).is_err(), "any certificate would do");
        let said = s_client(scene, "-servername SHOP.EXAMPLE.TEST")?;
        ensure!(said.contains("\nb0 ") || said.contains("\nb1 "), "{said}");
        for options in ["-noservername", "-servername blog.example.test", "-servername www.shop.example.test"]
        {
            let said = s_client(scene, options)?;
            ensure!(said.contains("\nb2 "), "{options}: {said}");
        }
        let list: Value = serde_json::from_str(&scene.lbd.ctl(&["backend", "list", "--json"])?)?;
        ensure!(
            list["backends"][1]["sni"] == serde_json::json!(["shop.example.test", "*.blog.example.test"]),
            "{list}"
        );
        let explained = scene.lbd.ctl(&["explain", "--name", "x.blog.example.test"])?;
        ensure!(explained.contains("b1 is listed for *.blog.example.test"), "{explained}");
        let status = scene.lbd.ctl(&["status"])?;
        ensure!(
            status.lines().any(|line| line.split_whitespace().take(3).eq(["names", "2,048", "2"])),
            "{status}"
        );

        // Who is drained or gone is no shop any more; who is not listed never becomes one.
        scene.lbd.ctl(&["backend", "drain", "b0"])?;
        ensure!(shops(scene)? == ["b1".to_owned()].into());
        scene.lbd.ctl(&["backend", "ready", "b0"])?;
        scene.instances[1].kill();
        // Refused at the one, offered to the other, whether lbd knows by now or not.
        ensure!(shops(scene)? == ["b0".to_owned()].into());
        eventually("the blogs are away", || {
            Ok(server(scene, CLIENT, "a.blog.example.test", BLOG, &[1, 2]).is_err())
        })?;
        ensure!(server(scene, CLIENT, REST, REST, &[2])? == "b2");
        scene.instances[1].resume()?;
        scene.await_state("b1", "ready")?;
        ensure!(server(scene, CLIENT, "a.blog.example.test", BLOG, &[1])? == "b1");
        // Another lbd goes on with the same names.
        scene.lbd.kill()?;
        ensure!(server(scene, CLIENT, "a.blog.example.test", BLOG, &[1])? == "b1", "while there is none");
        scene.lbd.resume()?;
        ensure!(
            server(scene, CLIENT, "a.blog.example.test", BLOG, &[1])? == "b1" && shops(scene)?.len() == 2
        );
        Ok(())
    })
}

#[test]
fn a_name_that_nobody_has_is_refused_by_name() -> Result<()> {
    let every = |i: usize| format!("sni = [\"{}\"]\n", NAMES[2 - i]);
    Scene::run_in(App::Tls, Manner { each: Some(every), ..manner("source") }, |scene| {
        for (name, listed, home) in [(SHOP, SHOP, 1), ("x.blog.example.test", BLOG, 0), (REST, REST, 2)] {
            ensure!(server(scene, CLIENT, name, listed, &[home])? == format!("b{home}"));
        }
        ensure!(scene.lbd.counter("unknown_name")? == 0);
        let refused = fetch(scene, CLIENT, "other.example.test", "/", REST, &[0, 1, 2]);
        let error = format!("{:#}", refused.err().context("nobody is listed for it")?);
        ensure!(error.to_lowercase().contains("reset"), "{error}");
        ensure!(scene.lbd.counter("unknown_name")? == 1);
        let explained = scene.lbd.ctl(&["explain", "--name", "other.example.test"])?;
        ensure!(explained.contains("unknown_name"), "{explained}");
        Ok(())
    })
}

/// Each client has one server for each pool of names, and clients spread over a pool.
#[test]
fn clients_of_a_name_stay_where_their_address_leads() -> Result<()> {
    Scene::run_in(App::Tls, manner("source"), |scene| {
        let mut homes = BTreeMap::new();
        for from in addresses(scene, 12)? {
            let home = server(scene, &from, SHOP, SHOP, &[0, 1])?;
            for _ in 0..3 {
                ensure!(server(scene, &from, SHOP, SHOP, &[0, 1])? == home, "{from} was at {home}");
            }
            let explained = scene.lbd.ctl(&["explain", "--json", "--name", SHOP, "--client", &from])?;
            let explained: Value = serde_json::from_str(&explained)?;
            let expected = format!("{}/{home}", scene.lbd.service());
            ensure!(explained["backend"] == expected, "{from}, at {home}: {explained}");
            ensure!(server(scene, &from, REST, REST, &[2])? == "b2");
            homes.insert(from, home);
        }
        ensure!(homes.values().collect::<BTreeSet<_>>().len() == 2, "{homes:?}");
        sessions_go_on(scene, SHOP, &[0, 1])
    })
}

/// Without `sni`, TLS is bound at the SYN, whatever it says: a client's connections are all at one server.
#[test]
fn tls_that_is_passed_through_stays_with_its_client() -> Result<()> {
    Scene::run_with(App::Tls, "{ kind = \"source\" }".to_owned(), |scene| {
        let mut homes = BTreeMap::new();
        for from in addresses(scene, 12)? {
            let mut at = BTreeSet::new();
            for (name, listed) in [(SHOP, SHOP), (REST, REST), ("a.blog.example.test", BLOG), (SHOP, SHOP)] {
                at.insert(server(scene, &from, name, listed, &[0, 1, 2])?);
            }
            ensure!(at.len() == 1, "{from} is at {at:?}");
            homes.insert(from, at);
        }
        ensure!(homes.values().collect::<BTreeSet<_>>().len() > 1, "{homes:?}");
        ensure!(scene.lbd.counter("syn_answered")? == 0 && scene.lbd.counter("hashed")? >= 48);
        sessions_go_on(scene, SHOP, &[0, 1, 2])
    })
}

/// A TLS session of one connection is resumed in the next ones, which only the server can that has begun it; and what is long
/// arrives whole.
fn sessions_go_on(scene: &Scene, name: &str, trusted: &[usize]) -> Result<()> {
    let file = tempfile::NamedTempFile::new()?;
    let ticket = |option: &str, path: &Path| format!("-servername {name} {option} {}", path.display());
    let said = s_client(scene, &ticket("-sess_out", file.path()))?;
    ensure!(said.contains("\nNew, TLSv1.3"), "{said}");
    for _ in 0..4 {
        let said = s_client(scene, &ticket("-sess_in", file.path()))?;
        ensure!(said.contains("\nReused, TLSv1.3"), "{said}");
    }
    let home = server(scene, CLIENT, name, name, trusted)?;
    let large = fetch(scene, CLIENT, name, "/large", name, trusted)?;
    ensure!(large == home.repeat(LARGE / home.len()), "{} bytes from {home}", large.len());
    Ok(())
}
