//! What is done to the servers while they serve: restarts, crashes, drains, maintenance, failing health checks, the death
//! of lbd itself, and of nodes of the store. In an order that the seed determines, each kind in turn before any comes again.

mod nodes;

use super::patiently;
use super::shared::Shared;
use super::town::{Door, House, Server, Town};
use crate::client::WATCHDOG;
use crate::dice::Dice;
use crate::history::Violation;
use crate::history::epochs::Life;
use crate::netns::Process;
use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Something that can be done.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Blow {
    /// A server ends gracefully and begins anew.
    Restart,
    /// A server crashes and begins anew at once.
    Crash,
    /// A server crashes and is away for a while.
    Absence,
    Drain,
    Maintenance,
    /// A server's health checks fail, while it goes on serving.
    Flap,
    /// `kill -9` of lbd, and with it of all its servers.
    Death,
    /// `kill -9` of a primary of the store: a replica takes over.
    Failover,
    /// A primary hears and says nothing for a while, perhaps for so long that a replica takes over.
    Silence,
    /// A replica does.
    Lag,
    /// A replica that was cut off takes over.
    Betrayal,
}

impl Blow {
    const ON_SERVERS: [Self; 7] =
        [Self::Restart, Self::Crash, Self::Absence, Self::Drain, Self::Maintenance, Self::Flap, Self::Death];
    const ON_NODES: [Self; 4] = [Self::Failover, Self::Silence, Self::Lag, Self::Betrayal];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Restart => "restarts",
            Self::Crash => "crashes",
            Self::Absence => "absences",
            Self::Drain => "drains",
            Self::Maintenance => "maintenances",
            Self::Flap => "health flaps",
            Self::Death => "deaths of lbd",
            Self::Failover => "failovers",
            Self::Silence => "silent primaries",
            Self::Lag => "silent replicas",
            Self::Betrayal => "failovers to a replica that was cut off",
        }
    }
}

/// Deals the blows.
pub(super) struct Nemesis {
    dice: Dice,
    /// What can be done.
    all: Vec<Blow>,
    deck: Vec<Blow>,
    /// How often each was dealt.
    pub(super) dealt: BTreeMap<Blow, usize>,
    /// The new lives that servers began.
    pub(super) lives: Vec<Life>,
}

impl Nemesis {
    pub(super) fn new(dice: Dice, town: &Town) -> Self {
        let mut all = Blow::ON_SERVERS.to_vec();
        if town.redis.is_some() {
            all.extend(Blow::ON_NODES);
        }
        Self { dice, all, deck: Vec::new(), dealt: BTreeMap::new(), lives: Vec::new() }
    }

    /// Whether everything was done at least once.
    pub(super) fn was_thorough(&self) -> bool {
        self.all.iter().all(|blow| self.dealt.contains_key(blow))
    }

    /// Deals one blow, and waits until everything is as it was before.
    ///
    /// # Errors
    /// A [`Violation`] when a promise is broken, anything else when something did not come back.
    pub(super) fn deal(&mut self, town: &mut Town, shared: &Shared) -> Result<()> {
        if self.deck.is_empty() {
            self.deck.clone_from(&self.all);
            self.dice.shuffle(&mut self.deck);
            if self.dealt.is_empty() {
                // Begins with what takes back most, if anything is: the last card is dealt first.
                self.deck.sort_by_key(|blow| matches!(blow, Blow::Betrayal));
            }
        }
        let blow = self.deck.pop().expect("a new deck is not empty");
        let house = self.dice.below(town.houses.len());
        let server = self.dice.choose(&town.houses[house].servers).clone();
        let pause = Duration::from_millis(self.dice.below(400) as u64);
        let dealt = match &mut town.redis {
            Some(redis) if Blow::ON_NODES.contains(&blow) => {
                nodes::strike(blow, redis, pause, &mut self.dice, shared)
            }
            _ => self.strike(blow, &server, pause, &mut town.houses[house], shared),
        };
        dealt.with_context(|| {
            let logs: Vec<_> = town.houses.iter().map(|house| house.lbd.log()).collect();
            format!("{blow:?}, {}; the ends of lbd's logs:\n{}", server.name, logs.join("\n"))
        })?;
        *self.dealt.entry(blow).or_default() += 1;
        Ok(())
    }

    fn strike(
        &mut self,
        blow: Blow,
        server: &Server,
        pause: Duration,
        house: &mut House,
        shared: &Shared,
    ) -> Result<()> {
        let name = &*server.name;
        let milliseconds = format!("{}ms", pause.as_millis() + 1);
        let order = |words: &[&str]| [&["backend"], words].concat().iter().map(ToString::to_string).collect();
        match blow {
            Blow::Restart => self.renew(house, server, shared, "restarted", order(&["restart", name])),
            Blow::Crash => self.renew(house, server, shared, "killed", order(&["kill", name])),
            Blow::Absence => {
                let order = order(&["kill", name, "--down-for", &milliseconds]);
                self.renew(house, server, shared, "killed, and away for a while", order)
            }
            Blow::Drain => {
                house.lbd.ctl(&["backend", "drain", name])?;
                std::thread::sleep(pause);
                house.lbd.ctl(&["backend", "ready", name]).map(drop)
            }
            Blow::Maintenance => {
                house.lbd.ctl(&["backend", "maint", name])?;
                std::thread::sleep(pause);
                self.renew(house, server, shared, "in maintenance, then ready", order(&["ready", name]))
            }
            Blow::Flap => self.flap(house, server, pause, shared),
            Blow::Death => self.kill(house, pause, shared),
            Blow::Failover | Blow::Silence | Blow::Lag | Blow::Betrayal => Ok(()),
        }?;
        house.lbd.wait_ready()
    }

    /// Gives lbd an order that ends a server's life, and waits for the next one.
    fn renew(
        &mut self,
        house: &House,
        server: &Server,
        shared: &Shared,
        cause: &str,
        order: Vec<String>,
    ) -> Result<()> {
        let words: Vec<&str> = order.iter().map(String::as_str).collect();
        let mut lbctl = house.lbd.lbctl(&words)?;
        let life = house.back(server).visit(|| -> Result<Life> {
            let witness = Witness::call(house, server)?;
            let begun = shared.now();
            // It waits for what is waited for here, too, and is not trusted in that.
            let mut lbctl = Process(lbctl.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?);
            let life = witness.life(cause, begun, shared)?;
            let status = lbctl.0.wait()?;
            ensure!(status.success(), "lbctl {order:?}: {status}");
            Ok(life)
        })?;
        self.lives.push(life);
        Ok(())
    }

    /// Lets a server's answers to its checks get lost until lbd has noticed.
    fn flap(&mut self, house: &mut House, server: &Server, pause: Duration, shared: &Shared) -> Result<()> {
        let gateway = ip(server, &["route", "show", "default"])?;
        let gateway = gateway.split(' ').nth(2).context("a managed server has a router")?.to_owned() + "/32";
        let life = house.back(server).visit(|| -> Result<Life> {
            let witness = Witness::call(house, server)?;
            let begun = shared.now();
            ip(server, &["route", "replace", "blackhole", &gateway])?;
            let noticed = eventually("a server whose checks fail is down", || {
                Ok(house.lbd.states()?.iter().any(|(name, state)| **name == *server.name && state == "down"))
            });
            std::thread::sleep(pause);
            ip(server, &["route", "del", "blackhole", &gateway])?;
            ip(server, &["route", "add", &gateway, "dev", "eth0", "scope", "link"])?;
            noticed?;
            witness.life("down for a while", begun, shared)
        })?;
        self.lives.push(life);
        Ok(())
    }

    /// Kills lbd and starts it again.
    fn kill(&mut self, house: &mut House, pause: Duration, shared: &Shared) -> Result<()> {
        let call = |house: &House| -> Result<Vec<Witness>> {
            house
                .servers
                .iter()
                .map(|server| house.back(server).visit(|| Witness::call(house, server)))
                .collect()
        };
        let witnesses = call(house)?;
        let begun = shared.now();
        house.lbd.kill()?;
        std::thread::sleep(pause);
        patiently(|| {
            house.lbd.resume().inspect_err(|_| {
                // It does not start while its store has no primary; then it has ended by itself.
                let _ = house.lbd.kill();
            })
        })?;
        for witness in witnesses {
            let door = witness.door.clone();
            self.lives.push(door.visit(|| witness.life("lbd killed and started again", begun, shared))?);
        }
        Ok(())
    }
}

/// A connection to a server, by which the end of its life is noticed.
struct Witness {
    door: Door,
    line: super::wire::Line,
    epoch: u32,
}

impl Witness {
    fn call(house: &House, server: &Server) -> Result<Self> {
        let door = house.back(server);
        let mut found = None;
        eventually("a server answers at its own address", || {
            found = ask(&door).ok();
            Ok(found.is_some())
        })?;
        let (line, epoch) = found.expect("it was waited for");
        Ok(Self { door, line, epoch })
    }

    /// Waits until this life is over and the next one has begun.
    fn life(mut self, cause: &str, begun: u64, shared: &Shared) -> Result<Life> {
        self.line.await_end(WATCHDOG).context("the old life of a server does not end")?;
        let after = Self::again(&self.door)?;
        let life = Life {
            server: self.door.name.clone(),
            cause: format!("{} {cause}", self.door.name),
            begun,
            over: shared.now(),
        };
        if after.epoch <= self.epoch {
            return Err(Violation {
                rule: format!(
                    "{} has epoch {} after a new life, and had {}",
                    life.server, after.epoch, self.epoch
                ),
                story: format!("What was done: {}.", life.cause),
                operations: Vec::new(),
            }
            .into());
        }
        Ok(life)
    }

    fn again(door: &Door) -> Result<Self> {
        let mut found = None;
        eventually("a server answers in its next life", || {
            found = ask(door).ok();
            Ok(found.is_some())
        })?;
        let (line, epoch) = found.expect("it was waited for");
        Ok(Self { door: door.clone(), line, epoch })
    }
}

/// Waits until `is` holds.
///
/// # Errors
/// It does not, for so long that only a hang can be the reason.
fn eventually(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !is()? {
        ensure!(begin.elapsed() < WATCHDOG, "still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Asks a server for its epoch; the connection stays open.
fn ask(door: &Door) -> Result<(super::wire::Line, u32)> {
    let mut line = door.open()?;
    line.send(b"GET /healthz HTTP/1.1\r\nHost: shop\r\n\r\n")?;
    let answer = line.answer()?;
    ensure!(answer.status == 200 && !answer.last, "not well: {answer:?}");
    Ok((line, answer.by.epoch))
}

/// Runs `ip` in a server's namespace.
fn ip(server: &Server, words: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(["-n", &server.netns]).args(words).output().context("running ip")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "ip {words:?} in {}: {stderr}", server.netns);
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
