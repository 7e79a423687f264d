//! Clients that people have, each with a cookie jar, that visit the service again and again.

use super::{Scene, tools};
use crate::balancer::dial;
use crate::topology::Topology;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::process::Command;

/// What visits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    Curl,
    Wget,
    /// requests, a connection for each visit.
    Python,
    /// requests, with connections that it keeps for some visits.
    PythonKeepingAlive,
    /// fetch, with fetch-cookie.
    Node,
}

impl Program {
    pub const ALL: [Self; 5] = [Self::Curl, Self::Wget, Self::Python, Self::PythonKeepingAlive, Self::Node];
}

/// What one client was answered, visit by visit: the server's name and what it said.
pub type Walk = Vec<(String, String)>;

impl Scene {
    /// So many clients at once, each of which visits `path` so many times.
    pub fn visit(&self, program: Program, path: &str, clients: usize, visits: usize) -> Result<Vec<Walk>> {
        let walks = match program {
            Program::Curl => each(clients, || {
                let jar = Jar::new(self)?;
                (0..visits).map(|_| jar.visit(path)).collect()
            }),
            Program::Wget => each(clients, || with_wget(&self.town, path, visits)),
            Program::Python => script(python(&self.town, path)?, clients, visits, &[]),
            Program::PythonKeepingAlive => script(python(&self.town, path)?, clients, visits, &["keep"]),
            Program::Node => script(node(&self.town, path)?, clients, visits, &[]),
        };
        let walks = walks.with_context(|| format!("{program:?} visits {path}"))?;
        let all = walks.len() == clients && walks.iter().all(|walk| walk.len() == visits);
        ensure!(all, "{clients} clients visited {visits} times: {walks:?}");
        Ok(walks)
    }
}

/// Fails unless each client was always at the same server, and was always told its own next number, the first of which is
/// `first`. Returns how many clients each server has.
pub fn homes(walks: &[Walk], first: usize) -> Result<BTreeMap<String, usize>> {
    let mut homes = BTreeMap::new();
    for walk in walks {
        let home = &walk.first().context("a walk without a visit")?.0;
        for (i, (server, count)) in walk.iter().enumerate() {
            ensure!(server == home && *count == (first + i).to_string(), "visit {i} is lost: {walk:?}");
        }
        *homes.entry(home.clone()).or_default() += 1;
    }
    Ok(homes)
}

pub fn url(path: &str) -> String {
    format!("http://{}{path}", dial())
}

/// What one curl in the client's namespace prints; fails when it does.
pub fn curl(town: &Topology, args: &[&str]) -> Result<String> {
    let mut curl = town.client.netns.command("curl");
    curl.args(["--silent", "--show-error", "--fail", "--max-time", "30"]).args(args);
    printed(curl)
}

fn each(clients: usize, walk: impl Fn() -> Result<Walk> + Sync) -> Result<Vec<Walk>> {
    std::thread::scope(|scope| {
        let walks: Vec<_> = (0..clients).map(|_| scope.spawn(&walk)).collect();
        walks.into_iter().map(|walk| walk.join().expect("walking does not panic")).collect()
    })
}

/// curl with a cookie jar, and a connection for each visit.
pub struct Jar<'a> {
    town: &'a Topology,
    file: tempfile::NamedTempFile,
}

impl<'a> Jar<'a> {
    pub fn new(scene: &'a Scene) -> Result<Self> {
        Ok(Self { town: &scene.town, file: tempfile::NamedTempFile::new()? })
    }

    /// The two words that are answered.
    pub fn visit(&self, path: &str) -> Result<(String, String)> {
        self.visit_with(path, &[])
    }

    /// The same with further arguments for curl.
    pub fn visit_with(&self, path: &str, more: &[&str]) -> Result<(String, String)> {
        let jar = self.file.path().to_str().context("a temporary file has a plain name")?;
        let url = url(path);
        let args = [&["--cookie", jar, "--cookie-jar", jar, url.as_str()], more].concat();
        answer(&curl(self.town, &args)?)
    }
}

fn with_wget(town: &Topology, path: &str, visits: usize) -> Result<Walk> {
    let jar = tempfile::NamedTempFile::new()?;
    let visit = |_| {
        let mut wget = town.client.netns.command("wget");
        wget.args(["--quiet", "--timeout=30", "--tries=1", "--output-document=-", "--keep-session-cookies"])
            .arg("--load-cookies")
            .arg(jar.path())
            .arg("--save-cookies")
            .arg(jar.path())
            .arg(url(path));
        answer(&printed(wget)?)
    };
    (0..visits).map(visit).collect()
}

fn python(town: &Topology, path: &str) -> Result<Command> {
    let mut python = town.client.netns.command(&tools::python()?.to_string_lossy());
    python.arg(tools::fixture("python/clients/visit.py")).arg(url(path));
    Ok(python)
}

fn node(town: &Topology, path: &str) -> Result<Command> {
    let mut node = town.client.netns.command("node");
    node.arg(tools::fixture("node/visit.js")).arg(url(path)).env("NODE_PATH", tools::node_path()?);
    Ok(node)
}

/// A script that prints `CLIENT SERVER WORD` for each visit.
fn script(mut command: Command, clients: usize, visits: usize, more: &[&str]) -> Result<Vec<Walk>> {
    command.args([clients.to_string(), visits.to_string()]).args(more);
    let mut walks = vec![Walk::new(); clients];
    for line in printed(command)?.lines() {
        let (client, said) = line.split_once(' ').with_context(|| format!("printed {line:?}"))?;
        walks.get_mut(client.parse::<usize>()?).context("an unknown client")?.push(answer(said)?);
    }
    Ok(walks)
}

/// The two words of `SERVER WORD`.
pub fn answer(text: &str) -> Result<(String, String)> {
    let (server, said) = text.trim_end().split_once(' ').with_context(|| format!("answered {text:?}"))?;
    Ok((server.to_owned(), said.to_owned()))
}

/// What a command prints; fails when it does.
pub fn printed(mut command: Command) -> Result<String> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output =
        command.output().with_context(|| format!("running {program}; `cargo xtask setup` installs it"))?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program}: {}: {}", output.status, stderr.trim_end());
    Ok(String::from_utf8(output.stdout)?)
}
