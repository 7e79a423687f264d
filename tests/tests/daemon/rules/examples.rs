//! What the documentation shows as configuration is one: each example by itself, and lbd starts with it.

use super::FRAME;
use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use tests::certificates::Certificates;
use tests::redis::{Place, Redis};
use tests::topology::{Arms, Topology};
use tests::whole::{Whole, meaning};

const README: &str = include_str!("../../../../README.md");

/// Of the one server in a namespace of its own that speaks TLS.
const TLS_PORT: u16 = 6390;

/// What an example is a piece of.
enum Piece {
    /// A whole configuration.
    Whole(String),
    /// Services.
    Services(String),
    /// `store` of `[lbd]`, one line.
    Store(String),
}

/// A piece, and where it stands.
struct Example {
    place: String,
    piece: Piece,
}

impl Example {
    /// The piece as a configuration.
    fn complete(&self) -> String {
        match &self.piece {
            Piece::Whole(text) => text.clone(),
            Piece::Services(text) => format!("{FRAME}\n{text}"),
            Piece::Store(line) => with_store(&format!("{FRAME}\n{}", service(0, "", "")), line),
        }
    }

    fn wants_redis(&self) -> bool {
        self.complete().lines().any(|line| line.starts_with("store = ") && line.contains("\"redis\""))
    }
}

fn with_store(text: &str, line: &str) -> String {
    text.replacen("[lbd]\n", &format!("[lbd]\n{line}\n"), 1)
}

/// A service in front of one server elsewhere, the `n`-th of its kind.
fn service(n: usize, lines: &str, of_backend: &str) -> String {
    format!(
        "[[service]]\nname = \"line{n}\"\nvip = \"203.0.113.1:{port}\"\n{lines}\n\
         [[service.backend]]\nname = \"b\"\n{addr}\n{of_backend}\n",
        port = 1000 + n,
        addr = addr(n),
    )
}

fn addr(n: usize) -> String {
    format!("addr = \"198.51.100.1:{}\"", 1000 + n)
}

/// The directory of the documentation.
fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
}

fn whole_example() -> Result<String> {
    let path = docs().join("lb.example.toml");
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// All examples of all pages, and the rules that lb.example.toml has in comments.
fn examples() -> Result<Vec<Example>> {
    let mut pages = vec![("README.md".to_owned(), README.to_owned())];
    for entry in fs::read_dir(docs()).with_context(|| format!("reading {}", docs().display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "md") {
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            pages.push((format!("docs/{name}"), fs::read_to_string(&path)?));
        }
    }
    pages.sort();
    let (mut examples, mut count) = (Vec::new(), 0);
    for (page, text) in &pages {
        for (line, block) in blocks(text) {
            let place = format!("{page}:{line}");
            for piece in pieces(&block, &mut count).with_context(|| place.clone())? {
                examples.push(Example { place: place.clone(), piece });
            }
        }
    }
    let text = whole_example()?;
    for (n, line) in text.lines().enumerate() {
        if let Some(rule) = line.strip_prefix("# ").filter(|line| line.starts_with("affinity = ")) {
            let place = format!("docs/lb.example.toml:{}", n + 1);
            examples.push(Example { place, piece: Piece::Services(of_rule(&mut count, rule)) });
        }
    }
    Ok(examples)
}

/// The blocks of TOML on a page, each with the number of its first line.
fn blocks(page: &str) -> Vec<(usize, String)> {
    let mut blocks = Vec::new();
    let mut lines = page.lines().enumerate();
    while let Some((n, line)) = lines.next() {
        let Some(indent) = line.strip_suffix("```toml").filter(|indent| indent.trim().is_empty()) else {
            continue;
        };
        let inside = lines.by_ref().map(|(_, line)| line.strip_prefix(indent).unwrap_or(line));
        let block: Vec<&str> = inside.take_while(|line| *line != "```").collect();
        blocks.push((n + 2, block.join("\n") + "\n"));
    }
    blocks
}

/// What a block shows. A block may show several lines of which a configuration has one.
fn pieces(block: &str, count: &mut usize) -> Result<Vec<Piece>> {
    if block.starts_with("# Cargo.toml\n") {
        return Ok(Vec::new());
    }
    let begins = |what: &str| block.lines().any(|line| line.starts_with(what));
    if begins("[[service]]") {
        let piece = if begins("[lbd]") { Piece::Whole } else { Piece::Services };
        return Ok(vec![piece(block.to_owned())]);
    }
    if let Some(lines) = block.strip_prefix("[lbd]\n") {
        return lines
            .lines()
            .map(|line| {
                ensure!(line.starts_with("store = "), "`{line}` is nothing that is completed here");
                Ok(Piece::Store(line.to_owned()))
            })
            .collect();
    }
    // A line that is no rule goes with the rule before.
    let mut rules: Vec<String> = Vec::new();
    for line in block.lines() {
        match rules.last_mut() {
            _ if line.starts_with("affinity = ") => rules.push(line.to_owned()),
            Some(rule) => *rule = format!("{rule}\n{line}"),
            None => bail!("`{line}` is nothing that is completed here"),
        }
    }
    Ok(rules.iter().map(|rule| Piece::Services(of_rule(count, rule))).collect())
}

/// A service with this rule.
fn of_rule(count: &mut usize, rule: &str) -> String {
    *count += 1;
    let quic = rule.contains("\"quic\"");
    let udp = quic || ["offset", "end", "marker"].iter().any(|place| rule.contains(&format!(" {place} = ")));
    let lines = if udp { format!("protocol = \"udp\"\n{rule}") } else { rule.to_owned() };
    let text = service(*count, &lines, if quic { "server_id = \"0a0b\"" } else { "" });
    // Attributes belong to a cookie that lbd's own servers set.
    if rule.contains("same_site = ") { text.replace(&addr(*count), "managed = true") } else { text }
}

/// As few configurations as hold all examples that need no Redis, each with the places that it is made of. Services go
/// together as long as they do not collide.
fn configurations(examples: &[Example]) -> Vec<(String, String)> {
    let mut made: Vec<(String, String)> = Vec::new();
    let (stores, others): (Vec<_>, Vec<_>) = examples
        .iter()
        .filter(|example| !example.wants_redis())
        .partition(|example| matches!(example.piece, Piece::Store(_)));
    let mut shared: Vec<(String, String)> = Vec::new();
    for example in others {
        let Piece::Services(text) = &example.piece else {
            made.push((example.place.clone(), example.complete()));
            continue;
        };
        let room = shared.iter_mut().find_map(|(places, whole)| {
            let more = format!("{whole}\n{text}");
            meaning(&more).is_ok().then_some((places, whole, more))
        });
        match room {
            Some((places, whole, more)) => {
                *whole = more;
                *places += &format!(", {}", example.place);
            }
            None => shared.push((example.place.clone(), example.complete())),
        }
    }
    made.extend(shared);
    for example in stores {
        let Piece::Store(line) = &example.piece else { continue };
        match made.iter_mut().find(|(_, whole)| !whole.contains("\nstore = ")) {
            Some((places, whole)) => {
                *whole = with_store(whole, line);
                *places += &format!(", {}", example.place);
            }
            None => made.push((example.place.clone(), example.complete())),
        }
    }
    made
}

#[test]
fn every_example_is_a_configuration() -> Result<()> {
    meaning(&whole_example()?).context("docs/lb.example.toml")?;
    let examples = examples()?;
    for example in &examples {
        meaning(&example.complete()).with_context(|| example.place.clone())?;
    }
    let count = |is: fn(&Piece) -> bool| examples.iter().filter(|example| is(&example.piece)).count();
    let counts = [
        count(|piece| matches!(piece, Piece::Whole(_))),
        count(|piece| matches!(piece, Piece::Services(_))),
        count(|piece| matches!(piece, Piece::Store(_))),
    ];
    ensure!(!counts.contains(&0), "of one sort no example was found: {counts:?}");
    Ok(())
}

#[test]
fn the_example_of_every_key_starts() -> Result<()> {
    let town = Topology::new(Arms::One, 0)?;
    Whole::start(&town.balancer, &whole_example()?).context("docs/lb.example.toml")?.stop()
}

#[test]
fn every_example_starts() -> Result<()> {
    for (places, text) in configurations(&examples()?) {
        let town = Topology::new(Arms::One, 0)?;
        let started = Whole::start(&town.balancer, &text).and_then(Whole::stop);
        started.with_context(|| format!("an example does not start; it is one of {places}"))?;
    }
    Ok(())
}

/// Those that need Redis, with servers of our own in place of the ones that they name.
#[test]
fn every_example_with_redis_starts() -> Result<()> {
    let town = Topology::new(Arms::One, 0)?;
    for example in examples()?.iter().filter(|example| example.wants_redis()) {
        let text = example.complete();
        let (before, rest) = text.split_once("nodes = [").with_context(|| example.place.clone())?;
        let (nodes, behind) = rest.split_once(']').with_context(|| example.place.clone())?;
        let place = Place { netns: Some(town.balancer.clone()), ..Place::default() };
        let settings = Certificates::of_the_examples()?.redis_settings(TLS_PORT);
        let settings: Vec<(&str, &str)> =
            settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let tls = nodes.contains("rediss://");
        let servers = match nodes.split(',').count() {
            1 if tls => Redis::start(place, 0, &settings)?,
            1 => Redis::start(place, usize::from(text.contains("replicas = 1")), &[])?,
            // On an emulated machine a node is silent for longer than the usual bound while programs are loaded.
            _ => Redis::start_cluster(place, &[("cluster-node-timeout", "60000")])?,
        };
        let count = if nodes.contains(',') { servers.nodes() } else { 1 };
        let urls = match tls {
            true => vec![format!("rediss://{}:{TLS_PORT}", servers.addr(0).ip())],
            false => servers.urls()[..count].to_vec(),
        };
        let text = format!("{before}nodes = {urls:?}{behind}");
        let started = Whole::start(&town.balancer, &text).and_then(Whole::stop);
        started.with_context(|| format!("the example {} does not start", example.place))?;
    }
    Ok(())
}
