//! Servers that keep sessions in their own memory and hand out cookies of their own, behind the real lbd: everybody comes
//! back to where they are known.

use anyhow::{Context, Result, ensure};
use lb_common::counter::Counter;
use lb_common::home::{self, GROUP};
use lb_common::service::Affinity;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use tests::balancer::Balancer;
use tests::client::{Client, eventually};
use tests::daemon::{Backend, Lbd, Manner};
use tests::object::Sizes;
use tests::share::{at_least, at_most};
use tests::topology::{Arms, Host, Topology};

/// An application with sessions in its memory. Knows nothing of the balancer.
///
/// | path | answer, beside its name |
/// |---|---|
/// | `/visit` | how often the session was here |
/// | `/renew` | the same, and another cookie for it |
/// | `/end` | 0, and no cookie any more |
struct App {
    name: String,
    sessions: Mutex<HashMap<String, u32>>,
}

impl App {
    fn start(host: &Host, name: &str) -> Result<()> {
        let listener = host.netns.run(|| TcpListener::bind(host.serves()))?;
        let app = Arc::new(Self { name: name.to_owned(), sessions: Mutex::default() });
        // Ends with the test's process: nobody else has its namespace by then.
        thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(stream), app) = (stream, Arc::clone(&app)) else { return };
                thread::spawn(move || app.serve(&stream));
            }
        });
        Ok(())
    }

    fn serve(&self, mut stream: &TcpStream) -> Result<()> {
        let mut input = BufReader::new(stream);
        loop {
            let mut head = String::new();
            while !head.ends_with("\r\n\r\n") {
                if input.read_line(&mut head)? == 0 {
                    return Ok(());
                }
            }
            let (cookie, body) = self.answer(&head);
            let length = body.len();
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n{cookie}Content-Length: {length}\r\n\r\n{body}"
            )?;
        }
    }

    /// The line that sets a cookie, and the body.
    fn answer(&self, head: &str) -> (String, String) {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let id = head.lines().find_map(|line| line.strip_prefix("Cookie: sid=")).unwrap_or_default();
        let mut sessions = self.sessions.lock().expect("no holder panics");
        let known = sessions.remove(id);
        if path == "/end" {
            return ("Set-Cookie: sid=; Path=/; Max-Age=0\r\n".to_owned(), format!("{} 0", self.name));
        }
        let count = known.unwrap_or(0) + 1;
        let body = format!("{} {count}", self.name);
        if known.is_some() && path != "/renew" {
            sessions.insert(id.to_owned(), count);
            return (String::new(), body);
        }
        // Keyed at random each time.
        let id = format!("{:016x}", RandomState::new().build_hasher().finish());
        sessions.insert(id.clone(), count);
        (format!("Set-Cookie: sid={id}; Path=/; HttpOnly; SameSite=Lax\r\n"), body)
    }
}

/// Somebody with a cookie jar.
#[derive(Default)]
struct Visitor {
    cookie: Option<String>,
}

impl Visitor {
    /// Asks on a connection of its own. Returns who answered, and the number of the visit.
    fn visit(&mut self, town: &Topology, path: &str) -> Result<(String, u32)> {
        self.visit_on(&mut Client::connect(&town.client.netns)?, path)
    }

    fn visit_on(&mut self, client: &mut Client, path: &str) -> Result<(String, u32)> {
        let header = self.cookie.as_ref().map_or(String::new(), |id| format!("Cookie: sid={id}\r\n"));
        let response = client.get(path, &header)?;
        let set = response.head.lines().find_map(|line| line.strip_prefix("Set-Cookie: sid="));
        if let Some(id) = set.and_then(|value| value.split(';').next()) {
            self.cookie = (!id.is_empty()).then(|| id.to_owned());
        }
        let (name, count) = response.body.split_once(' ').context("a name and a number")?;
        Ok((name.to_owned(), count.parse()?))
    }
}

struct Scene {
    lbd: Lbd,
    town: Topology,
}

impl Scene {
    fn new(backends: usize, idle: &str) -> Result<Self> {
        let town = Topology::new(Arms::Several, backends)?;
        for (i, host) in town.backends.iter().enumerate() {
            App::start(host, &format!("app{i}"))?;
        }
        let affinity = format!("{{ kind = \"learned\", cookie = \"sid\", idle = \"{idle}\" }}");
        let manner = Manner { affinity: Some(affinity), ..Manner::default() };
        let all: Vec<Backend<'_>> = town.backends.iter().map(Backend::Remote).collect();
        let lbd = Lbd::start_in(&town, &all, manner)?;
        Ok(Self { lbd, town })
    }

    /// Starts lbd anew with these servers as its backends `b0`, `b1`, …
    fn restart_with(&mut self, apps: &[usize]) -> Result<()> {
        let these: Vec<Backend<'_>> = apps.iter().map(|i| Backend::Remote(&self.town.backends[*i])).collect();
        self.lbd.restart_with(&self.town, &these)
    }

    fn json(&self, args: &[&str]) -> Result<Value> {
        let args = [args, &["--json"]].concat();
        Ok(serde_json::from_str(&self.lbd.ctl(&args)?)?)
    }

    /// The learned sessions that lbctl lists: backends by tag.
    fn list(&self) -> Result<BTreeMap<String, String>> {
        let list = self.json(&["session", "list", "--limit", "1000"])?;
        let sessions = list["sessions"].as_array().context("a list")?;
        ensure!(list["total"] == sessions.len(), "{list}");
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        Ok(sessions.iter().map(|session| (text(&session["tag"]), text(&session["backend"]))).collect())
    }

    /// The value of a counter of the service.
    fn counted(&self, name: &str) -> Result<u64> {
        let stats = self.json(&["stats", "--all"])?;
        let counters = stats["counters"].as_array().context("counters")?;
        let own = counters.iter().find(|c| c["of"] == self.lbd.service() && c["counter"] == name);
        own.and_then(|counter| counter["value"].as_u64()).with_context(|| format!("no counter {name}"))
    }

    /// The name that lbd has for a backend.
    fn backend(&self, n: usize) -> String {
        format!("{}/b{n}", self.lbd.service())
    }
}

/// So many visitors, each of whom has been somewhere once; and where.
fn visitors(scene: &Scene, n: usize) -> Result<Vec<(Visitor, String)>> {
    let first = |_| {
        let mut visitor = Visitor::default();
        let (home, count) = visitor.visit(&scene.town, "/visit")?;
        ensure!(count == 1 && visitor.cookie.is_some(), "a session begins");
        Ok((visitor, home))
    };
    (0..n).map(first).collect()
}

#[test]
fn everybody_comes_home_whatever_happens_to_lbd() -> Result<()> {
    let mut scene = Scene::new(3, "10m")?;
    let mut visitors = visitors(&scene, 24)?;
    let homes: BTreeSet<_> = visitors.iter().map(|(_, home)| home.clone()).collect();
    ensure!(homes.len() == 3, "new sessions spread: {homes:?}");
    let mut round = |scene: &Scene, nth: u32| -> Result<()> {
        for (visitor, home) in &mut visitors {
            let visit = visitor.visit(&scene.town, "/visit")?;
            ensure!(visit == (home.clone(), nth), "{visit:?} is not visit {nth} of {home}");
        }
        Ok(())
    };
    round(&scene, 2)?;
    round(&scene, 3)?;
    let known = scene.list()?;
    ensure!(known.len() == 24 && scene.counted("learned")? == 24, "{known:?}");
    ensure!(scene.counted("affinity_hit")? == 48 && scene.counted("unknown_key")? == 0, "each was a hit");

    scene.lbd.kill()?;
    round(&scene, 4).context("while no lbd runs")?;
    scene.lbd.resume()?;
    round(&scene, 5).with_context(|| scene.lbd.log())?;
    scene.lbd.stop()?;
    scene.lbd.resume()?;
    round(&scene, 6).with_context(|| scene.lbd.log())?;
    ensure!(scene.list()? == known, "the same as before");

    // A connection that is kept shows the way as well, and a new cookie on it is learned.
    let (visitor, home) = &mut visitors[0];
    let mut kept = Client::connect(&scene.town.client.netns)?;
    for nth in 7..10 {
        ensure!(visitor.visit_on(&mut kept, "/visit")? == (home.clone(), nth), "visit {nth}");
    }
    ensure!(visitor.visit_on(&mut kept, "/renew")? == (home.clone(), 10), "another cookie");
    ensure!(visitor.visit(&scene.town, "/visit")? == (home.clone(), 11), "on another connection");
    ensure!(scene.list()?.len() == 25, "both are known until the old one is idle");
    Ok(())
}

#[test]
fn the_operator_sees_and_ends_what_was_learned() -> Result<()> {
    let scene = Scene::new(3, "10m")?;
    let mut visitors = visitors(&scene, 6)?;
    let known = scene.list()?;
    for (visitor, home) in &visitors {
        let value = visitor.cookie.clone().context("it has one")?;
        let shown = scene.json(&["session", "show", &value])?;
        let tag = shown["tag"].as_str().context("a tag")?;
        let n: usize = home.trim_start_matches("app").parse()?;
        assert_eq!(known.get(tag), Some(&scene.backend(n)), "{shown}");
        assert_eq!(shown["service"], scene.lbd.service());
        ensure!(shown["idle_ms"].as_u64() < Some(60_000), "{shown}");
        ensure!(shown["forgotten_in_ms"].as_u64() > Some(500_000), "{shown}");
        assert_eq!(scene.json(&["session", "show", tag])?["backend"], shown["backend"]);
        let of = scene.json(&["session", "list", "--backend", &scene.backend(n)])?;
        ensure!(of["sessions"].as_array().is_some_and(|all| all.iter().any(|s| s["tag"] == tag)), "{of}");
    }
    let value = visitors[3].0.cookie.clone().context("it has one")?;
    let explained = scene.json(&["explain", "--token", &value])?;
    ensure!(explained["verdict"] == "hit" && explained["counters"][0] == "affinity_hit", "{explained}");
    let n: usize = visitors[3].1.trim_start_matches("app").parse()?;
    assert_eq!(explained["backend"], scene.backend(n));
    let explained = scene.json(&["explain", "--token", "nobody's"])?;
    ensure!(explained["verdict"] == "unknown" && explained["counters"][0] == "unknown_key", "{explained}");
    let mut stranger = Visitor { cookie: Some("nobody's".to_owned()) };
    let (there, _) = stranger.visit(&scene.town, "/visit")?;
    assert_eq!(explained["backend"], scene.backend(there.trim_start_matches("app").parse()?));
    scene.lbd.ctl(&["session", "end", &stranger.cookie.context("it was given one")?])?;

    let some = scene.lbd.ctl(&["session", "list", "--limit", "2"])?;
    ensure!(
        some.ends_with("and 4 more; --limit shows more of them\n") && some.lines().count() == 4,
        "{some}"
    );

    // One by its value, one by its tag; then they are known no more.
    let value = visitors[0].0.cookie.clone().context("it has one")?;
    let other = visitors[1].0.cookie.clone().context("it has one")?;
    let tag = scene.json(&["session", "show", &other])?["tag"].as_str().context("a tag")?.to_owned();
    let said = scene.lbd.ctl(&["session", "end", &value, "--service", scene.lbd.service()])?;
    ensure!(said.contains("is forgotten"), "{said}");
    scene.lbd.ctl(&["session", "end", &tag])?;
    assert_eq!(scene.list()?.len(), 4);
    let unknown =
        scene.lbd.lbctl(&["session", "show", &value, "--service", scene.lbd.service()])?.output()?;
    let told = String::from_utf8(unknown.stderr)?;
    ensure!(unknown.status.code() == Some(1) && told.contains("knows no such session"), "{told}");
    visitors[0].0.visit(&scene.town, "/visit")?;
    assert_eq!(scene.counted("unknown_key")?, 2);

    // One that its server ends.
    let (visitor, home) = &mut visitors[2];
    ensure!(visitor.visit(&scene.town, "/end")? == (home.clone(), 0) && visitor.cookie.is_none(), "it ends");
    assert_eq!(scene.counted("forgotten")?, 1);
    Ok(())
}

#[test]
fn a_backend_takes_what_it_taught_with_it() -> Result<()> {
    let mut scene = Scene::new(4, "10m")?;
    scene.restart_with(&[0, 1, 2])?;
    let mut visitors = visitors(&scene, 24)?;
    let known = scene.list()?;
    let at =
        |known: &BTreeMap<String, String>, backend: &str| known.values().filter(|b| *b == backend).count();
    let (first, last) = (at(&known, &scene.backend(0)), at(&known, &scene.backend(2)));
    ensure!(known.len() == 24 && first > 0 && last > 0, "{known:?}");

    // Out of the configuration: its visitors begin anew elsewhere, and nobody else notices.
    scene.restart_with(&[0, 1])?;
    let rest = scene.list()?;
    ensure!(rest.len() == 24 - last && at(&rest, &scene.backend(2)) == 0, "{rest:?}");
    for (visitor, home) in &mut visitors {
        let (there, count) = visitor.visit(&scene.town, "/visit")?;
        if home == "app2" {
            ensure!(there != "app2" && count == 1, "{there} {count}");
            *home = there;
        } else {
            ensure!((&there, count) == (&*home, 2), "{there} {count} is not {home} 2");
        }
    }
    let known = scene.list()?;
    ensure!(known.len() == 24, "{known:?}");

    // Another server in its place, under its name: it never handed those keys out.
    let first = at(&known, &scene.backend(0));
    scene.restart_with(&[3, 1])?;
    let rest = scene.list()?;
    ensure!(rest.len() == 24 - first && at(&rest, &scene.backend(0)) == 0, "{rest:?}");
    for (visitor, home) in &mut visitors {
        let (there, count) = visitor.visit(&scene.town, "/visit")?;
        ensure!(home == "app0" && count == 1 || there == *home && count > 1, "{there} {count} for {home}");
    }
    Ok(())
}

/// Connections that are kept go on whatever comes and goes; what was learned at a backend that goes is forgotten, and it teaches
/// nothing more.
#[test]
fn kept_connections_outlive_their_backend_and_sessions_do_not() -> Result<()> {
    const MORE: usize = 100;
    let mut scene = Scene::new(4, "10m")?;
    scene.restart_with(&[0, 1, 2])?;
    let begin = |scene: &Scene| -> Result<(Visitor, String, Client)> {
        let (mut visitor, mut kept) = (Visitor::default(), Client::connect(&scene.town.client.netns)?);
        let (home, _) = visitor.visit_on(&mut kept, "/visit")?;
        Ok((visitor, home, kept))
    };
    let mut guests: Vec<_> = (0..24).map(|_| begin(&scene)).collect::<Result<_>>()?;
    // One more: nobody who is known moves, and of those who are not it gets its share.
    scene.restart_with(&[0, 1, 2, 3])?;
    for (visitor, home, kept) in &mut guests {
        ensure!(visitor.visit_on(kept, "/visit")? == (home.clone(), 2), "the connection that is kept");
        ensure!(visitor.visit(&scene.town, "/visit")? == (home.clone(), 3), "another one");
    }
    let mut more: Vec<_> = (0..MORE).map(|_| begin(&scene)).collect::<Result<_>>()?;
    let there = more.iter().filter(|(_, home, _)| home == "app3").count();
    let (least, most) = (at_least(MORE, 0.25), at_most(MORE, 0.25));
    ensure!((least..=most).contains(&there), "{there} of {MORE} came to the new one");

    // One less.
    scene.restart_with(&[0, 1, 2])?;
    let unknown = scene.counted("unknown_key")?;
    for (visitor, home, kept) in &mut more {
        ensure!(visitor.visit_on(kept, "/visit")? == (home.clone(), 2), "the connection that is kept");
        if home == "app3" {
            // Even a cookie that it hands out now leads elsewhere, and the connection goes on.
            ensure!(visitor.visit_on(kept, "/renew")? == (home.clone(), 3), "another cookie");
            let mut same = Visitor { cookie: visitor.cookie.clone() };
            let (elsewhere, count) = same.visit(&scene.town, "/visit")?;
            ensure!(elsewhere != "app3" && count == 1, "{elsewhere} {count}");
            ensure!(visitor.visit_on(kept, "/visit")? == (home.clone(), 4), "the connection that is kept");
        } else {
            ensure!(visitor.visit(&scene.town, "/visit")? == (home.clone(), 3), "another connection");
        }
    }
    ensure!(scene.counted("unknown_key")? == unknown + there as u64, "each of those alone");
    let known = scene.list()?;
    ensure!(known.values().all(|backend| *backend != scene.backend(3)), "{known:?}");
    for (visitor, home, kept) in &mut guests {
        ensure!(visitor.visit_on(kept, "/visit")? == (home.clone(), 4), "nobody else noticed");
    }
    Ok(())
}

#[test]
fn what_nobody_asks_for_is_swept() -> Result<()> {
    let mut scene = Scene::new(2, "3s")?;
    let mut visitors = visitors(&scene, 8)?;
    assert_eq!(scene.list()?.len(), 8);
    // One keeps coming; the others stay away.
    let mut nth = 1;
    let (visitor, home) = &mut visitors[0];
    eventually("the others are forgotten", || {
        nth += 1;
        let visit = visitor.visit(&scene.town, "/visit")?;
        ensure!(visit == (home.clone(), nth), "{visit:?} is not visit {nth} of {home}");
        Ok(scene.list()?.len() == 1)
    })?;
    eventually("the last one is as well", || Ok(scene.list()?.is_empty()))?;
    assert_eq!(scene.counted("forgotten")?, 0, "no backend deleted a cookie");
    scene.restart_with(&[0, 1])?;
    Ok(())
}

/// Many more sessions than there is room for: a session that had to make room begins anew somewhere, and nobody is turned away.
#[test]
fn a_full_table_turns_nobody_away() -> Result<()> {
    let town = Topology::new(Arms::Several, 2)?;
    for (i, host) in town.backends.iter().enumerate() {
        App::start(host, &format!("app{i}"))?;
    }
    let mut setup = Balancer::setup_of(&town, Sizes { homes: 1, ..Sizes::large() });
    setup.services[0].affinity = Affinity::Learned as u8;
    // In ticks of a quarter of a second: nothing is idle for too long.
    setup.services[0].learned_ticks = 1 << 20;
    assert!(setup.services[0].set_cookie_name("sid"));
    let key = setup.settings.home_key;
    let balancer = Balancer::start_with(&town, setup)?;
    let count = |counter| -> Result<u64> { Ok(balancer.maps.counts()?.get(counter)) };

    // Kept connections need no table.
    let mut kept = Client::connect(&town.client.netns)?;
    let mut regular = Visitor::default();
    let home = regular.visit_on(&mut kept, "/visit")?.0;
    let mut visitors: Vec<Visitor> = (0..4 * GROUP).map(|_| Visitor::default()).collect();
    for (n, visitor) in visitors.iter_mut().enumerate() {
        ensure!(visitor.visit(&town, "/visit")?.1 == 1, "a session begins");
        let nth = n as u32 + 2;
        ensure!(regular.visit_on(&mut kept, "/visit")? == (home.clone(), nth), "visit {nth}");
    }
    let all = 4 * GROUP as u64 + 1;
    assert_eq!((count(Counter::Learned)?, count(Counter::LearnedEvicted)?), (all, all - GROUP as u64));

    // Whoever is known comes home; whoever is not is served as well.
    let known = balancer.maps.homes()?;
    let is_known = |visitor: &Visitor| {
        let tag = home::tag(&key, 1, visitor.cookie.as_deref().unwrap_or_default().as_bytes());
        known.iter().any(|(_, home)| home.tag == tag)
    };
    let (mut there, mut gone): (Vec<_>, Vec<_>) = visitors.into_iter().partition(is_known);
    ensure!(there.len() >= GROUP - 1 && gone.len() >= 3 * GROUP, "{known:?}");
    for visitor in &mut there {
        ensure!(visitor.visit(&town, "/visit")?.1 == 2, "one who is known is at home");
    }
    assert_eq!(count(Counter::AffinityHit)?, there.len() as u64);
    for visitor in &mut gone {
        ensure!(visitor.visit(&town, "/visit")?.1 <= 2, "one who is not known is served");
    }
    assert_eq!(count(Counter::UnknownKey)?, gone.len() as u64);
    Ok(())
}
