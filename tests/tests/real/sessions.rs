//! Applications with sessions of their own, and clients as people have them: whoever comes again, on whatever connection,
//! is where its session is, from its beginning to its end.

use anyhow::{Context, Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use tests::real::visit::{Jar, Program, answer, curl, homes, url};
use tests::real::{App, Scene};

#[test]
fn php_finds_its_sessions() -> Result<()> {
    sessions_of(App::Php, |scene| large_requests_arrive(scene))
}

#[test]
fn express_finds_its_sessions() -> Result<()> {
    sessions_of(App::Express, |scene| {
        servers_drain(scene).context("a server drains")?;
        who_lost_its_server_stays_where_it_went(scene).context("a server is lost")
    })
}

#[test]
fn django_finds_its_sessions() -> Result<()> {
    sessions_of(App::Django, |_| Ok(()))
}

fn sessions_of(app: App, further: impl FnOnce(&mut Scene) -> Result<()>) -> Result<()> {
    Scene::run(app, |scene| {
        everybody_is_at_home(scene).context("sessions that go on")?;
        ids_may_change(scene).context("sessions that change their ids")?;
        sessions_begin_and_end(scene).context("sessions that begin late, and end")?;
        further(scene)
    })
}

/// Clients of each program that come at once, and how often each comes.
const CLIENTS: usize = 12;
const VISITS: usize = 5;

fn everybody_is_at_home(scene: &Scene) -> Result<()> {
    let mut all = BTreeMap::<String, usize>::new();
    for program in Program::ALL {
        let walks = scene.visit(program, "/count", CLIENTS, VISITS)?;
        for (home, clients) in homes(&walks, 1)? {
            *all.entry(home).or_default() += clients;
        }
    }
    ensure!(all.len() == scene.instances.len(), "{} clients are not spread: {all:?}", 5 * CLIENTS);
    Ok(())
}

fn ids_may_change(scene: &Scene) -> Result<()> {
    for program in [Program::Python, Program::PythonKeepingAlive, Program::Node] {
        homes(&scene.visit(program, "/renew", CLIENTS, VISITS)?, 1)?;
    }
    Ok(())
}

fn sessions_begin_and_end(scene: &Scene) -> Result<()> {
    const VISITORS: u64 = 6;
    let count = |name: &str| scene.lbd.counter(name);
    let visitors = (0..VISITORS).map(|_| Visitor::begin(scene)).collect::<Result<Vec<_>>>()?;
    visitors.iter().try_for_each(Visitor::is_at_home)?;
    ensure!(count("unknown_key")? == 0 && count("forgotten")? == 0, "a session ended too early");
    for visitor in &visitors {
        visitor.ask("/end", 1)?;
    }
    ensure!(count("forgotten")? == VISITORS, "{} of {VISITORS} are forgotten", count("forgotten")?);
    let hits = count("affinity_hit")?;
    for visitor in &visitors {
        visitor.ask("/plain", 1)?;
    }
    ensure!(count("unknown_key")? == VISITORS, "{} of {VISITORS} are strangers", count("unknown_key")?);
    ensure!(count("affinity_hit")? == hits, "an ended session has a home");
    Ok(())
}

/// A body of many segments, and a head of two with the cookie in its second one.
fn large_requests_arrive(scene: &Scene) -> Result<()> {
    const BODY: usize = 900_000;
    let body = tempfile::NamedTempFile::new()?;
    std::fs::write(body.path(), vec![b'x'; BODY])?;
    let data = format!("@{}", body.path().display());
    let large = "y".repeat(1800);
    let upload = ["-H", "Content-Type: application/octet-stream", "--data-binary", &data];
    for _ in 0..4 {
        let jar = Jar::new(scene)?;
        let (home, _) = jar.visit("/count")?;
        ensure!(jar.visit_with("/upload", &upload)? == (home.clone(), BODY.to_string()));
        ensure!(jar.visit_with("/count", &["--user-agent", &large])? == (home.clone(), "3".to_owned()));
        ensure!(jar.visit("/count")? == (home, "4".to_owned()));
    }
    let awaited = scene.lbd.counter("head_awaited")?;
    ensure!(awaited >= 4, "of 4 heads, {awaited} went on in a second segment");
    Ok(())
}

/// Clients that came once, and their homes.
fn settled(scene: &Scene, clients: usize) -> Result<Vec<(Jar<'_>, String)>> {
    let settle = |_| {
        let jar = Jar::new(scene)?;
        let (home, count) = jar.visit("/count")?;
        ensure!(count == "1", "a new session was here {count} times");
        Ok((jar, home))
    };
    (0..clients).map(settle).collect()
}

fn servers_drain(scene: &Scene) -> Result<()> {
    let old = settled(scene, 12)?;
    scene.lbd.ctl(&["backend", "drain", "b1"])?;
    for (jar, home) in &old {
        ensure!(jar.visit("/count")? == (home.clone(), "2".to_owned()), "{home} has lost its session");
    }
    ensure!(settled(scene, 12)?.iter().all(|(_, home)| home != "b1"), "b1 drains, and got a new session");
    scene.lbd.ctl(&["backend", "ready", "b1"])?;
    scene.await_state("b1", "ready")
}

/// Sessions in the memory of a process end with it; who then has a new one elsewhere has no reason to come back.
fn who_lost_its_server_stays_where_it_went(scene: &mut Scene) -> Result<()> {
    let mut instances = std::mem::take(&mut scene.instances);
    let scene = &*scene;
    let clients = settled(scene, 16)?;
    instances[0].kill();
    let mut moved = Vec::new();
    for (jar, before) in &clients {
        let (home, count) = jar.visit("/count")?;
        if before == "b0" {
            ensure!(home != "b0" && count == "1", "from nowhere: {count} at {home}");
        } else {
            ensure!(home == *before && count == "2", "{before} became {home} with {count}");
        }
        moved.push((jar, home, count.parse::<usize>()?));
    }
    instances[0].resume()?;
    scene.await_state("b0", "ready")?;
    for (jar, home, count) in &moved {
        ensure!(jar.visit("/count")? == (home.clone(), (count + 1).to_string()), "{home} was left");
    }
    Ok(())
}

/// A client with one session that knows its cookie by heart.
struct Visitor<'a> {
    scene: &'a Scene,
    /// As it stands in requests.
    cookie: String,
    home: String,
}

impl<'a> Visitor<'a> {
    /// Begins a session with the third request of a connection.
    fn begin(scene: &'a Scene) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let heads = dir.path().join("heads");
        let heads_at = heads.to_str().context("a temporary file has a plain name")?;
        let (plain, count) = (url("/plain"), url("/count"));
        let args = ["--dump-header", heads_at, "--write-out", "%{num_connects}\n", &plain, &plain, &count];
        let said = curl(&scene.town, &args)?;
        let lines: Vec<&str> = said.lines().collect();
        ensure!(lines.len() == 6 && [lines[1], lines[3], lines[5]] == ["1", "0", "0"], "not kept: {said}");
        let servers = [answer(lines[0])?.0, answer(lines[2])?.0, answer(lines[4])?.0];
        let home = servers[0].clone();
        ensure!(servers.iter().all(|server| *server == home), "one connection, many servers: {servers:?}");
        let heads = std::fs::read_to_string(heads)?;
        let set = heads.lines().find_map(|line| line.strip_prefix("Set-Cookie: "));
        let set = set.with_context(|| format!("no session began: {heads}"))?;
        let cookie = set.split(';').next().context("a cookie has a value")?.to_owned();
        Ok(Self { scene, cookie, home })
    }

    /// Asks for a page some times, each on a connection of its own; the servers that answered.
    fn ask(&self, path: &str, times: usize) -> Result<BTreeSet<String>> {
        let (cookie, page) = (format!("Cookie: {}", self.cookie), url(path));
        let mut args = vec!["-H", "Connection: close", "-H", &cookie];
        args.extend(std::iter::repeat_n(page.as_str(), times));
        let said = curl(&self.scene.town, &args)?;
        ensure!(said.lines().count() == times, "{path} {times} times: {said}");
        said.lines().map(|line| Ok(answer(line)?.0)).collect()
    }

    fn is_at_home(&self) -> Result<()> {
        let servers = self.ask("/plain", 6)?;
        ensure!(servers == BTreeSet::from([self.home.clone()]), "home is {}, not {servers:?}", self.home);
        Ok(())
    }
}

#[test]
fn nginx_sees_its_visitors_again() -> Result<()> {
    Scene::run(App::Nginx, |scene| {
        let mut ids = BTreeSet::new();
        let mut servers = BTreeSet::new();
        for program in Program::ALL {
            for walk in scene.visit(program, "/", 8, 4)? {
                // The id that was set at the first visit comes back at the others, to the same server.
                ensure!(walk.iter().all(|visit| *visit == walk[0]), "{program:?} is another: {walk:?}");
                let (server, id) = walk[0].clone();
                ensure!(ids.insert(id), "two visitors have one id: {walk:?}");
                servers.insert(server);
            }
        }
        ensure!(servers.len() == 3, "visitors are at {servers:?} alone");
        Ok(())
    })
}
