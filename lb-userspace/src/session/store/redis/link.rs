//! One connection to one server. What is asked while an answer is awaited goes out together as the next batch, with one
//! WAIT for all of it: many writers share a trip to the replicas, as they share a flush elsewhere, and a lone one never
//! waits for others.

use super::dialer::{Connection, Dialer};
use super::judge::{self, Judged, Rules};
use super::options::Addr;
use parking_lot::Mutex;
use redis::{Cmd, Pipeline, Value, cmd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Requests in one batch at most: bounds the time until the first of them is answered.
const MAX_BATCH: usize = 256;

/// The same where a batch waits for a disk, which takes as long for many as for one.
const MAX_DISK_BATCH: usize = QUEUE;

/// Requests that wait for a connection at most. One more is refused at once: it would only come too late.
pub(super) const QUEUE: usize = 4096;

/// What must be true of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Need {
    Nothing,
    /// It comes from a primary, in a place where replicas answer reads as well.
    Primary,
    /// What it tells, and what it did, is on so many replicas; none is a number, too.
    Replicas(u32),
    /// What it did is on the disk of the primary and of so many replicas.
    Disk(u32),
}

/// Why there is no answer.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub(super) enum Trouble {
    /// There is no connection: nothing was done.
    #[error("{0}")]
    Unreachable(String),
    /// It is not known what was done.
    #[error("{0}")]
    Lost(String),
    /// It was done, and perhaps not everywhere it must be.
    #[error("only {found} of {wanted} replicas of redis node {addr} answer")]
    Replicas { addr: Addr, wanted: u32, found: i64 },
    /// The same of the disks.
    #[error(
        "redis node {addr} has not told in time that the change is on its disk and on that of {wanted} replicas"
    )]
    Disk { addr: Addr, wanted: u32 },
    /// As many wait as may: nothing was done.
    #[error("the queue of redis node {0} is full: {QUEUE} requests wait for it")]
    Full(Addr),
    /// Its time was over before the answer came.
    #[error("redis node {0} did not answer before the deadline")]
    Late(Addr),
    /// The server forgets what it acknowledges: nothing was done.
    #[error("redis node {0}: {1}")]
    Unfit(Addr, String),
    /// The server follows another one: nothing was done.
    #[error("redis node {0} is a replica now")]
    NotPrimary(Addr),
}

pub(super) type Answers = Result<Vec<Value>, Trouble>;

struct Job {
    cmds: Vec<Cmd>,
    need: Need,
    answer: oneshot::Sender<Answers>,
}

/// How a server was when it was last asked something.
#[derive(Default)]
pub(super) struct Health {
    failing: Mutex<Option<(Instant, String)>>,
    /// Why it will not do, whoever connects to it.
    unfit: Mutex<Option<String>>,
}

impl Health {
    /// Since when it fails, and how, if it does.
    pub(super) fn failing(&self) -> Option<(Duration, String)> {
        self.failing.lock().as_ref().map(|(since, why)| (since.elapsed(), why.clone()))
    }

    /// Why it may not be used, as was seen when it was last judged.
    pub(super) fn unfit(&self) -> Option<String> {
        self.unfit.lock().clone()
    }

    pub(super) fn judged(&self, unfit: Option<String>) {
        *self.unfit.lock() = unfit;
    }

    fn well(&self) {
        *self.failing.lock() = None;
    }

    fn ill(&self, why: String) {
        let mut state = self.failing.lock();
        let since = state.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *state = Some((since, why));
    }
}

/// Where requests to a connection are handed in.
pub(super) struct Link {
    addr: Addr,
    jobs: mpsc::Sender<Job>,
}

impl Link {
    /// Connects when it is first used, and again after each failure. With `rules`, a server is judged by them on each new
    /// connection, before it is asked for anything. Must be called in the store's runtime.
    pub(super) fn new(addr: Addr, dialer: Dialer, health: Arc<Health>, rules: Option<Rules>) -> Self {
        let (sender, jobs) = mpsc::channel(QUEUE);
        let worker = Worker { addr: addr.clone(), dialer, health, rules, jobs, connection: None };
        tokio::spawn(worker.run());
        Self { addr, jobs: sender }
    }

    /// Commands in this order, with nothing of anyone else between them. Waiting for its turn included, it takes until the
    /// deadline and no longer.
    pub(super) async fn ask(&self, cmds: Vec<Cmd>, need: Need, deadline: tokio::time::Instant) -> Answers {
        let (answer, answered) = oneshot::channel();
        let gone = || Trouble::Lost("the store is closing".into());
        self.jobs.try_send(Job { cmds, need, answer }).map_err(|refused| match refused {
            mpsc::error::TrySendError::Full(_) => Trouble::Full(self.addr.clone()),
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        match tokio::time::timeout_at(deadline, answered).await {
            Ok(answer) => answer.unwrap_or_else(|_| Err(gone())),
            // Whether it was sent is not known here.
            Err(_) => Err(Trouble::Late(self.addr.clone())),
        }
    }
}

struct Worker {
    addr: Addr,
    dialer: Dialer,
    health: Arc<Health>,
    rules: Option<Rules>,
    jobs: mpsc::Receiver<Job>,
    connection: Option<Connection>,
}

impl Worker {
    async fn run(mut self) {
        let mut batch = Vec::new();
        while self.jobs.recv_many(&mut batch, MAX_DISK_BATCH).await > 0 {
            let mut rest = Vec::new();
            loop {
                // Nobody waits any more for those whose deadline has passed: they are not done.
                batch.retain(|job| !job.answer.is_closed());
                let most = match batch.iter().any(|job| matches!(job.need, Need::Disk(_))) {
                    true => MAX_DISK_BATCH,
                    false => MAX_BATCH,
                };
                if batch.len() > most {
                    rest = batch.split_off(most);
                }
                if !batch.is_empty() {
                    self.serve(&mut batch, &mut rest).await;
                }
                batch = std::mem::take(&mut rest);
                if batch.is_empty() {
                    break;
                }
            }
        }
    }

    /// Does a batch; `rest` waits behind it.
    async fn serve(&mut self, batch: &mut Vec<Job>, rest: &mut Vec<Job>) {
        let outcome = self.exchange(batch).await;
        match &outcome {
            Ok(_) => self.health.well(),
            Err(Trouble::Unreachable(why) | Trouble::Lost(why)) => self.health.ill(why.clone()),
            Err(_) => {}
        }
        match outcome {
            Ok(replies) => self.distribute(batch, replies),
            Err(trouble) => {
                batch.drain(..).for_each(|job| drop(job.answer.send(Err(trouble.clone()))));
                self.turn_away(rest, &trouble);
            }
        }
    }

    /// Whoever has come meanwhile would wait as long for the same, one batch after the other: they are told now, and decide
    /// themselves whether and when to try again.
    fn turn_away(&mut self, rest: &mut Vec<Job>, trouble: &Trouble) {
        let trouble = match trouble {
            // Of these nothing was sent.
            Trouble::Unreachable(why) | Trouble::Lost(why) => Trouble::Unreachable(why.clone()),
            Trouble::Unfit(..) => trouble.clone(),
            _ => return,
        };
        rest.drain(..).for_each(|job| drop(job.answer.send(Err(trouble.clone()))));
        while let Ok(job) = self.jobs.try_recv() {
            let _ = job.answer.send(Err(trouble.clone()));
        }
    }

    /// A connection to a server that will do.
    async fn connect(&self) -> Result<Connection, Trouble> {
        let mut connection = self.dialer.dial(&self.addr).await.map_err(Trouble::Unreachable)?;
        let Some(rules) = self.rules else { return Ok(connection) };
        let mut pipeline = Pipeline::new();
        for question in judge::questions() {
            pipeline.add_command(question);
        }
        let unreachable = |why: String| Trouble::Unreachable(format!("redis node {} {why}", self.addr));
        let answers = tokio::time::timeout(self.dialer.answer, connection.ask(&pipeline)).await;
        let answers = answers.map_err(|_| unreachable("does not answer".into()))?;
        let answers = answers.map_err(|error| unreachable(format!("was lost: {error}")))?;
        let judged = Judged::of(&answers, rules).map_err(unreachable)?;
        self.health.judged(judged.unfit.clone());
        match judged.unfit {
            Some(why) => Err(Trouble::Unfit(self.addr.clone(), why)),
            None => Ok(connection),
        }
    }

    async fn exchange(&mut self, batch: &[Job]) -> Result<Replies, Trouble> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let connected = self.connect().await?;
                self.connection.insert(connected)
            }
        };
        let role = batch.iter().any(|job| job.need == Need::Primary);
        let wait = batch.iter().filter_map(|job| replicas(job.need)).max();
        let disk =
            batch.iter().filter_map(|job| if let Need::Disk(n) = job.need { Some(n) } else { None }).max();
        let mut pipeline = Pipeline::new();
        if role {
            pipeline.add_command(cmd("ROLE"));
        }
        for cmd in batch.iter().flat_map(|job| &job.cmds) {
            pipeline.add_command(cmd.clone());
        }
        if let Some(replicas) = wait {
            let mut cmd = cmd("WAIT");
            cmd.arg(replicas).arg(self.dialer.replicas.as_millis() as u64);
            pipeline.add_command(cmd);
        }
        // Behind WAIT: a replica that gets a change and the question for its disk at once answers the question before its
        // file has the change, and then tells nothing for a second.
        if let Some(replicas) = disk {
            let mut cmd = cmd("WAITAOF");
            cmd.arg(1).arg(replicas).arg(self.dialer.disk[0].as_millis() as u64);
            pipeline.add_command(cmd);
        }
        let count = pipeline.len();
        let patience = if disk.is_some() { self.dialer.disk[1] } else { self.dialer.answer };
        let exchange = connection.ask(&pipeline);
        let lost = |why: String| Trouble::Lost(format!("redis node {} {why}", self.addr));
        let values = match tokio::time::timeout(patience, exchange).await {
            Ok(Ok(values)) if values.len() == count => Ok(values),
            Ok(Ok(values)) => Err(lost(format!("gave {} answers to {count} commands", values.len()))),
            Ok(Err(error)) => Err(lost(format!("was lost: {error}"))),
            Err(_) => Err(lost(format!("did not answer within {patience:?}"))),
        };
        if values.is_err() {
            // Whatever still comes on it would be taken for the answer to something else.
            self.connection = None;
        }
        let mut values = values?.into_iter();
        let primary = !role || values.next().is_some_and(|role| is_primary(&role));
        let disks = disk.and_then(|_| values.next_back());
        let found = wait.and_then(|_| values.next_back());
        Ok(Replies { primary, found, disks, values: values.collect() })
    }

    fn distribute(&self, batch: &mut Vec<Job>, replies: Replies) {
        let mut values = replies.values.into_iter();
        let mut short = None;
        for job in batch.drain(..) {
            let mine: Vec<Value> = values.by_ref().take(job.cmds.len()).collect();
            let answer = match (job.need, &replies.found) {
                (Need::Primary, _) if !replies.primary => Err(Trouble::NotPrimary(self.addr.clone())),
                (Need::Replicas(wanted) | Need::Disk(wanted), Some(Value::Int(found)))
                    if *found < i64::from(wanted) =>
                {
                    short = Some(format!("{found} of {wanted} replicas have the last change"));
                    Err(Trouble::Replicas { addr: self.addr.clone(), wanted, found: *found })
                }
                (Need::Disk(wanted), _) => match &replies.disks {
                    Some(Value::Array(disks))
                        if matches!(disks.as_slice(), [Value::Int(here), Value::Int(there)]
                            if *here >= 1 && *there >= i64::from(wanted)) =>
                    {
                        Ok(mine)
                    }
                    Some(Value::Array(disks)) => {
                        short = Some(format!(
                            "the disks that have the last change: {disks:?}, 1 and {wanted} wanted"
                        ));
                        Err(Trouble::Disk { addr: self.addr.clone(), wanted })
                    }
                    // It became a replica meanwhile, or its append-only file was turned off.
                    other => {
                        Err(Trouble::Lost(format!("redis node {} answered to WAITAOF: {other:?}", self.addr)))
                    }
                },
                (Need::Replicas(0) | Need::Nothing | Need::Primary, _)
                | (Need::Replicas(_), Some(Value::Int(_))) => Ok(mine),
                // It became a replica meanwhile, for example.
                (Need::Replicas(_), other) => {
                    Err(Trouble::Lost(format!("redis node {} answered to WAIT: {other:?}", self.addr)))
                }
            };
            // Whoever asked may have gone away.
            let _ = job.answer.send(answer);
        }
        if let Some(short) = short {
            self.health.ill(format!("redis node {}: {short}", self.addr));
        }
    }
}

/// The answers to a batch.
struct Replies {
    primary: bool,
    /// To WAIT.
    found: Option<Value>,
    /// To WAITAOF.
    disks: Option<Value>,
    values: Vec<Value>,
}

fn replicas(need: Need) -> Option<u32> {
    match need {
        Need::Replicas(wanted) | Need::Disk(wanted) => Some(wanted).filter(|wanted| *wanted > 0),
        Need::Nothing | Need::Primary => None,
    }
}

fn is_primary(role: &Value) -> bool {
    matches!(role, Value::Array(items) if items.first().is_some_and(|name| text(name) == "master"))
}

/// A string; empty for everything that is none.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        Value::Okay => "OK".into(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::store::redis::RedisOptions;

    /// A server that takes connections and says nothing.
    #[tokio::test]
    async fn nobody_waits_for_a_silent_server_more_than_twice() {
        const ANSWER: Duration = Duration::from_millis(300);
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let nodes = vec![format!("redis://{}", silent.local_addr().unwrap())];
        let seeds = RedisOptions { nodes, ..RedisOptions::default() }.seeds().unwrap();
        let dialer = Dialer { connect: ANSWER, answer: ANSWER, ..Dialer::new(seeds.login, None, ANSWER) };
        let link = Link::new(seeds.addrs[0].clone(), dialer, Arc::default(), None);
        let began = Instant::now();
        let deadline = tokio::time::Instant::now() + ANSWER * 40;
        let asked = (0..MAX_BATCH * 8).map(|_| link.ask(vec![cmd("PING")], Need::Nothing, deadline));
        let answers = futures::future::join_all(asked).await;
        assert!(answers.iter().all(Result::is_err), "{answers:?}");
        assert!(began.elapsed() < ANSWER * 4, "{:?}", began.elapsed());
    }

    #[tokio::test]
    async fn a_full_queue_and_a_passed_deadline_are_told_at_once() {
        const LONG: Duration = Duration::from_secs(20);
        const DEADLINE: Duration = Duration::from_millis(300);
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let nodes = vec![format!("redis://{}", silent.local_addr().unwrap())];
        let seeds = RedisOptions { nodes, ..RedisOptions::default() }.seeds().unwrap();
        let link =
            Link::new(seeds.addrs[0].clone(), Dialer::new(seeds.login, None, LONG), Arc::default(), None);
        let began = Instant::now();
        let deadline = tokio::time::Instant::now() + DEADLINE;
        let asked = (0..QUEUE + 10).map(|_| link.ask(vec![cmd("PING")], Need::Nothing, deadline));
        let answers = futures::future::join_all(asked).await;
        let full = answers.iter().filter(|answer| matches!(answer, Err(Trouble::Full(_)))).count();
        let late = answers.iter().filter(|answer| matches!(answer, Err(Trouble::Late(_)))).count();
        assert_eq!((full, late), (10, QUEUE));
        assert!(began.elapsed() < DEADLINE * 5, "{:?}", began.elapsed());
    }
}
