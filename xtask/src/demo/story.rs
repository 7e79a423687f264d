//! The story: one chapter for each claim, each line with what was done, what came back, and what XDP counted.

use super::claims::{Claims, mark};
use super::counters::Counters;
use super::curl::Answer;
use super::go_on;
use super::town::{self, SERVERS, Town, VIP};
use anyhow::{Context, Result, ensure};
use console::style;
use serde_json::Value;
use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Sessions that are spread, and the least that each of three servers has to get: each gets 67 on average, and one of
/// fair choosers in ten thousand gives some server fewer than 40.
const VISITORS: usize = 200;
const LEAST: usize = 40;
/// Requests before the kill, and after it.
const BEFORE: usize = 20;
const AFTER: usize = 40;

/// A browser's memory: the token of the answer before.
struct Visitor {
    token: String,
}

/// Tells the whole story. An error ends it early: Ctrl-C, or something that no claim speaks of.
pub(crate) fn tell(town: &Town, claims: &mut Claims) -> Result<()> {
    println!("\n{}", style("The town").bold());
    println!("  curl ─── veth ───▶ XDP, lbd ─── veth ───▶ {}", SERVERS.join(" | "));
    println!(
        "  {}",
        style(format!("in {} · in {} · each in a namespace of its own", town::CLIENT, town::BALANCER)).dim()
    );
    println!(
        "  The shop is http://{VIP}/. No proxy: XDP reads the token in the first segment and passes the flow on."
    );

    let mut teller = Teller { town, claims, chapter: 0 };
    let mut visitor = Visitor { token: String::new() };
    teller.chapter("a first visit gets a token", |told| first_visit(told, &mut visitor))?;
    teller.chapter("ten more requests are cache hits at home", |told| come_home(told, &mut visitor))?;
    teller.chapter("200 sessions spread over three servers", spread)?;
    teller.chapter("a restarted server reloads the session", |told| restart(told, &mut visitor))?;
    teller.chapter("a killed server fails no request", |told| kill(told, &mut visitor))?;
    teller.chapter("a forged token is refused and counted", |told| forge(told, &visitor))
}

struct Teller<'a> {
    town: &'a Town,
    claims: &'a mut Claims,
    chapter: usize,
}

/// What a chapter found: whether its claim holds, and the measured words for the table.
type Found = Result<(bool, String)>;

impl Teller<'_> {
    /// Tells one chapter and notes its claim. What goes wrong in it is a claim that does not hold, and the story goes on.
    fn chapter(&mut self, claim: &str, tell: impl FnOnce(&mut Lines<'_>) -> Found) -> Result<()> {
        go_on()?;
        self.chapter += 1;
        println!("\n{}", style(format!("{}. {claim}", self.chapter)).bold());
        let mut lines = Lines { town: self.town, counted: self.town.counters()? };
        let found = tell(&mut lines);
        // A curl that Ctrl-C ended is no failure of the balancer.
        go_on()?;
        let (holds, measured) = found.unwrap_or_else(|error| (false, format!("{error:#}")));
        println!("  {} {measured}", mark(holds));
        self.claims.add(claim, holds, measured);
        Ok(())
    }
}

/// Prints the lines of a chapter, each with what the counters did since the line before.
struct Lines<'a> {
    town: &'a Town,
    counted: Counters,
}

impl Lines<'_> {
    /// What was done, what came of it, and what XDP counted meanwhile: all steering, and `names`.
    fn line(&mut self, done: &str, came: &str, names: &[&str]) -> Result<Counters> {
        let now = self.town.counters()?;
        let grown = now.since(&self.counted);
        self.counted = now;
        println!("  {} {done}", style("$").dim());
        println!("      {came}");
        println!("      {} {}", style("XDP:").cyan(), grown.only(names));
        Ok(grown)
    }

    fn epoch_of(&self, server: &str) -> Result<u32> {
        let backends = self.town.backends()?;
        let found = backends.iter().find(|backend| backend.name == server);
        Ok(found.with_context(|| format!("lbctl lists no backend {server}"))?.epoch)
    }

    /// A request with the visitor's token; the token of the answer is the visitor's next.
    fn ask(&self, visitor: &mut Visitor, path: &str, arguments: &[&str]) -> Result<Answer> {
        go_on()?;
        let cookie = format!("lb={}", visitor.token);
        let mut all = arguments.to_vec();
        if !visitor.token.is_empty() {
            all.extend(["-b", &cookie]);
        }
        let answer = self.town.curl(path, &all)?;
        ensure!(
            answer.status < 300,
            "{path} was answered with status {}: {}",
            answer.status,
            answer.body.trim()
        );
        if let Some(token) = answer.token() {
            visitor.token = token.to_owned();
        }
        Ok(answer)
    }
}

fn first_visit(told: &mut Lines<'_>, visitor: &mut Visitor) -> Found {
    let answer = told.ask(visitor, "/session", &[])?;
    let token = answer.token().context("the answer sets no cookie lb=…")?.to_owned();
    let grown = told.line(
        &format!("curl -i http://{VIP}/session"),
        &format!("{}; Set-Cookie: lb={}…", by(&answer), &token[..12.min(token.len())]),
        &["syn_answered", "new_session", "spliced"],
    )?;
    let counted = grown.get("new_session");
    let holds = answer.source() == "new" && token.len() == 44 && counted == 1;
    Ok((holds, format!("{} characters from {}, new_session +{counted}", token.len(), answer.server())))
}

fn come_home(told: &mut Lines<'_>, visitor: &mut Visitor) -> Found {
    let home = fill_cart(told, visitor)?;
    let mut hits = 0;
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        let answer = told.ask(visitor, "/cart", &[])?;
        hits += usize::from(answer.server() == home.server() && answer.source() == "cache");
        slowest = slowest.max(answer.took);
    }
    let grown = told.line(
        &format!("10 × curl -b lb=… http://{VIP}/cart, each on a new connection"),
        &format!(
            "{hits} answered by {} from its cache, the slowest in {}",
            home.server(),
            milliseconds(slowest)
        ),
        &["affinity_hit", "spliced"],
    )?;
    let counted = grown.get("affinity_hit");
    Ok((hits == 10 && counted == 10, format!("{hits} of 10 by {}, affinity_hit +{counted}", home.server())))
}

/// One look into the cart, and its line.
fn look(told: &mut Lines<'_>, visitor: &mut Visitor) -> Result<Answer> {
    let answer = told.ask(visitor, "/cart", &[])?;
    told.line(
        &format!("curl -b lb=… http://{VIP}/cart"),
        &format!("{}; the cart: {}", by(&answer), cart_words(&answer.json()?)),
        &["affinity_hit", "stale_instance"],
    )?;
    Ok(answer)
}

/// Puts something into the cart that every later chapter has to find again.
fn fill_cart(told: &mut Lines<'_>, visitor: &mut Visitor) -> Result<Answer> {
    let mut last = None;
    for (sku, quantity) in [("teapot", 1), ("mug", 2)] {
        let item = format!(r#"{{"sku":"{sku}","quantity":{quantity}}}"#);
        let json = "content-type: application/json";
        last = Some(told.ask(visitor, "/cart/items", &["-X", "POST", "-H", json, "-d", &item])?);
    }
    let last = last.expect("something was put into the cart");
    told.line(
        &format!("2 × curl -b lb=… -X POST http://{VIP}/cart/items, then GET /cart"),
        &format!("{}; the cart: {}", by(&last), cart_words(&told.ask(visitor, "/cart", &[])?.json()?)),
        &["affinity_hit"],
    )?;
    Ok(last)
}

fn spread(told: &mut Lines<'_>) -> Found {
    let mut servers: BTreeMap<String, usize> = SERVERS.iter().map(|name| ((*name).to_owned(), 0)).collect();
    for _ in 0..VISITORS {
        let answer = told.ask(&mut Visitor { token: String::new() }, "/session", &[])?;
        *servers.entry(answer.server().to_owned()).or_default() += 1;
    }
    let grown = told.line(
        &format!("{VISITORS} × curl http://{VIP}/session, without a token"),
        &format!("{} sessions on {} servers", VISITORS, servers.values().filter(|n| **n > 0).count()),
        &["new_session", "spliced"],
    )?;
    for (name, sessions) in &servers {
        println!("      {name:>6} {:<25} {sessions}", style("▇".repeat(sessions / 4)).cyan());
    }
    let counted = grown.get("new_session");
    let fair = servers.len() == SERVERS.len() && servers.values().all(|sessions| *sessions >= LEAST);
    let shares: Vec<_> = servers.iter().map(|(name, sessions)| format!("{name} {sessions}")).collect();
    Ok((fair && counted == VISITORS as u64, format!("{}, new_session +{counted}", shares.join(", "))))
}

fn restart(told: &mut Lines<'_>, visitor: &mut Visitor) -> Found {
    let before = look(told, visitor)?;
    let home = before.server().to_owned();
    let name = town::backend(&home);
    town::lbctl(&["backend", "restart", &name])?;
    told.line(
        &format!("lbctl backend restart {name}"),
        &format!("{home} is back with an empty cache: epoch {}", told.epoch_of(&home)?),
        &["affinity_hit"],
    )?;

    let counted = told.town.counters()?;
    let reloaded = look(told, visitor)?;
    let stale = told.counted.since(&counted).get("stale_instance");
    let again = look(told, visitor)?;

    let same = [&reloaded, &again].iter().all(|answer| answer.server() == home);
    let sources = (reloaded.source(), again.source());
    let intact = items(&reloaded.json()?) == items(&before.json()?) && !items(&before.json()?).is_empty();
    let newer = reloaded.epoch() > before.epoch();
    let holds = same && sources == ("database", "cache") && intact && newer && stale == 1;
    let cart = if intact { "cart intact" } else { "cart changed" };
    let epochs = format!("epoch {} → {}", before.epoch(), reloaded.epoch());
    Ok((
        holds,
        format!("{home}: {} then {}, {epochs}, {cart}, stale_instance +{stale}", sources.0, sources.1),
    ))
}

fn kill(told: &mut Lines<'_>, visitor: &mut Visitor) -> Found {
    let before = look(told, visitor)?;
    let home = before.server().to_owned();
    let name = town::backend(&home);
    let mut stream = Stream::default();
    for step in 0..BEFORE {
        stream.ask(told, visitor, step)?;
    }
    // Not waited for: requests go on while the server dies.
    let mut lbctl = town::lbctl_command(&["backend", "kill", &name, "--down-for", "10s"]);
    let mut kill = lbctl.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut step = BEFORE;
    let killed_at = loop {
        stream.ask(told, visitor, step)?;
        step += 1;
        if let Some(status) = kill.try_wait()? {
            ensure!(status.success(), "`lbctl backend kill {name}` failed ({status})");
            break step;
        }
    };
    for step in killed_at..killed_at + AFTER {
        stream.ask(told, visitor, step)?;
    }
    told.line(
        &format!("lbctl backend kill {name}, in the middle of {} × curl", stream.answers.len()),
        &stream.words(),
        &["affinity_hit", "redispatched", "retried", "spliced"],
    )?;

    let after = look(told, visitor)?;
    let kept = told.ask(visitor, "/session", &[])?.json()?["state"]["step"].as_u64();
    let intact = items(&after.json()?) == items(&before.json()?) && !items(&after.json()?).is_empty();

    let moved = stream.answers.iter().find(|answer| answer.server() != home);
    let reloaded = moved.is_some_and(|answer| answer.source() == "database");
    let newest = stream.written == kept;
    let total = stream.answers.len();
    let holds = stream.failed == 0 && after.server() != home && reloaded && intact && newest;
    let elsewhere = moved.map_or("nobody else answered".to_owned(), |answer| {
        format!("{home} → {} ({})", answer.server(), answer.source())
    });
    let kept = if intact && newest { "every write kept" } else { "a write was lost" };
    let slowest = milliseconds(stream.slowest);
    let again =
        if stream.repeated == 0 { String::new() } else { format!(" ({} asked again)", stream.repeated) };
    Ok((holds, format!("{} of {total} failed{again}, {elsewhere}, {kept}, slowest {slowest}", stream.failed)))
}

/// Requests of one visitor, one after the other: reads and writes in turn.
#[derive(Default)]
struct Stream {
    answers: Vec<Answer>,
    failed: usize,
    /// Requests that were in the dying server's hands, and were asked again as a browser would.
    repeated: usize,
    slowest: Duration,
    /// The last write that was acknowledged.
    written: Option<u64>,
}

impl Stream {
    fn ask(&mut self, told: &Lines<'_>, visitor: &mut Visitor, step: usize) -> Result<()> {
        let value = step.to_string();
        let write = step % 2 == 1;
        let json = "content-type: application/json";
        let put: &[&str] = &["-X", "PUT", "-H", json, "-d", &value];
        let (path, arguments) = if write { ("/session/step", put) } else { ("/cart", &[] as &[&str]) };
        let begun = Instant::now();
        let answer = told.ask(visitor, path, arguments).or_else(|_| {
            // Both are safe to repeat (RFC 9110 §9.2.2), and a client does when its connection breaks (§9.2.2).
            self.repeated += 1;
            told.ask(visitor, path, arguments)
        });
        go_on()?;
        match answer {
            Ok(answer) => {
                self.slowest = self.slowest.max(begun.elapsed());
                if write {
                    self.written = Some(step as u64);
                }
                self.answers.push(answer);
            }
            Err(error) => {
                println!("      {} {error:#}", mark(false));
                self.failed += 1;
            }
        }
        Ok(())
    }

    /// Who answered, in runs: "20 by anna from cache, 1 by bela from database, 39 by bela from cache".
    fn words(&self) -> String {
        let mut runs: Vec<(String, usize)> = Vec::new();
        for answer in &self.answers {
            let who = format!("{} from {}", answer.server(), answer.source());
            match runs.last_mut() {
                Some((last, count)) if *last == who => *count += 1,
                _ => runs.push((who, 1)),
            }
        }
        let runs: Vec<_> = runs.into_iter().map(|(who, count)| format!("{count} by {who}")).collect();
        format!("{}; asked again: {}; failed: {}", runs.join(", "), self.repeated, self.failed)
    }
}

fn forge(told: &mut Lines<'_>, visitor: &Visitor) -> Found {
    // Another session id, the same signature: the shape is right and the signature is not.
    let mut forged = visitor.token.clone().into_bytes();
    let byte = forged.get_mut(20).context("there is no token to forge")?;
    *byte = if *byte == b'A' { b'B' } else { b'A' };
    let forged = String::from_utf8(forged)?;
    let answer = told.ask(&mut Visitor { token: forged.clone() }, "/cart", &[])?;
    let grown = told.line(
        &format!("curl -b lb={}… http://{VIP}/cart, one character changed", &forged[..22]),
        &format!("{}; the cart: {}", by(&answer), cart_words(&answer.json()?)),
        &["invalid_token", "affinity_hit", "new_session"],
    )?;
    let counted = grown.get("invalid_token");
    let fresh = answer.source() == "new" && items(&answer.json()?).is_empty();
    let other = answer.token().is_some_and(|token| token != forged && token != visitor.token);
    let holds = counted == 1 && fresh && other && grown.get("affinity_hit") == 0;
    let got = if fresh { "a new, empty session" } else { "a session that is not the forger's" };
    Ok((holds, format!("{got}, invalid_token +{counted}, affinity_hit +{}", grown.get("affinity_hit"))))
}

/// "anna answered (epoch 1, state from cache) in 2.1 ms".
fn by(answer: &Answer) -> String {
    let took = milliseconds(answer.took);
    format!("{} answered in {took}: epoch {}, state: {}", answer.server(), answer.epoch(), answer.source())
}

fn milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// What is in a cart, and how many of each.
fn items(cart: &Value) -> BTreeMap<String, u64> {
    let items = cart["items"].as_array().into_iter().flatten();
    items.filter_map(|item| Some((item["sku"].as_str()?.to_owned(), item["quantity"].as_u64()?))).collect()
}

fn cart_words(cart: &Value) -> String {
    let words: Vec<_> = items(cart).iter().map(|(sku, quantity)| format!("{quantity} {sku}")).collect();
    if words.is_empty() { "empty".to_owned() } else { words.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cart_is_told_whatever_else_it_says() {
        let cart = serde_json::json!({
            "items": [{"sku": "teapot", "quantity": 1, "price": 4180}, {"sku": "mug", "quantity": 2}],
            "count": 3,
        });
        assert_eq!(cart_words(&cart), "2 mug, 1 teapot");
        assert_eq!(cart_words(&serde_json::json!({"items": []})), "empty");
        assert_eq!(cart_words(&serde_json::json!("nonsense")), "empty");
    }
}
