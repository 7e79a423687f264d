//! One connection to one server. What is asked while an answer is awaited goes out together as the next batch, with one
//! WAIT for all of it: many writers share a trip to the replicas, as they share a flush elsewhere, and a lone one never
//! waits for others.

use super::options::{Addr, Login};
use parking_lot::Mutex;
use redis::aio::MultiplexedConnection;
use redis::io::tcp::TcpSettings;
use redis::{AsyncConnectionConfig, Client, Cmd, ConnectionAddr, IntoConnectionInfo, Pipeline, Value, cmd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::{mpsc, oneshot};

/// Requests in one batch at most: bounds the time until the first of them is answered.
const MAX_BATCH: usize = 256;

/// What must be true of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Need {
    Nothing,
    /// It comes from a primary, in a place where replicas answer reads as well.
    Primary,
    /// What it tells, and what it did, is on so many replicas; none is a number, too.
    Replicas(u32),
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

/// How to connect, and for how long to wait for what.
#[derive(Clone)]
pub(super) struct Dialer {
    pub(super) login: Login,
    pub(super) connect: Duration,
    /// Until a batch is answered.
    pub(super) answer: Duration,
    /// Until the replicas have it; shorter.
    pub(super) replicas: Duration,
}

impl Dialer {
    pub(super) async fn dial(&self, addr: &Addr) -> Result<MultiplexedConnection, String> {
        let told = |error: redis::RedisError| format!("cannot connect to redis node {addr}: {error}");
        let info = ConnectionAddr::Tcp(addr.host.clone(), addr.port).into_connection_info().map_err(told)?;
        let info = info
            .set_tcp_settings(TcpSettings::default().set_nodelay(true))
            .set_redis_settings(self.login.info());
        // A batch has a timeout of its own.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect))
            .set_response_timeout(None);
        let client = Client::open(info).map_err(told)?;
        let connecting = client.get_multiplexed_async_connection_with_config(&config);
        // The crate's own timeout does not cover logging in.
        match tokio::time::timeout(self.connect * 2, connecting).await {
            Ok(connected) => connected.map_err(told),
            Err(_) => Err(format!("redis node {addr} does not answer")),
        }
    }
}

/// How a server was when it was last asked something.
#[derive(Default)]
pub(super) struct Health(Mutex<Option<(Instant, String)>>);

impl Health {
    /// Since when it fails, and how, if it does.
    pub(super) fn failing(&self) -> Option<(Duration, String)> {
        self.0.lock().as_ref().map(|(since, why)| (since.elapsed(), why.clone()))
    }

    fn well(&self) {
        *self.0.lock() = None;
    }

    fn ill(&self, why: String) {
        let mut state = self.0.lock();
        let since = state.as_ref().map_or_else(Instant::now, |(since, _)| *since);
        *state = Some((since, why));
    }
}

/// Where requests to a connection are handed in.
pub(super) struct Link(mpsc::UnboundedSender<Job>);

impl Link {
    /// Connects when it is first used, and again after each failure. Must be called in the store's runtime.
    pub(super) fn new(addr: Addr, dialer: Dialer, health: Arc<Health>) -> Self {
        let (sender, jobs) = mpsc::unbounded_channel();
        tokio::spawn(Worker { addr, dialer, health, jobs, connection: None }.run());
        Self(sender)
    }

    /// Commands in this order, with nothing of anyone else between them.
    pub(super) async fn ask(&self, cmds: Vec<Cmd>, need: Need) -> Answers {
        let (answer, answered) = oneshot::channel();
        let gone = || Trouble::Lost("the store is closing".into());
        self.0.send(Job { cmds, need, answer }).map_err(|_| gone())?;
        answered.await.unwrap_or_else(|_| Err(gone()))
    }
}

struct Worker {
    addr: Addr,
    dialer: Dialer,
    health: Arc<Health>,
    jobs: mpsc::UnboundedReceiver<Job>,
    connection: Option<MultiplexedConnection>,
}

impl Worker {
    async fn run(mut self) {
        let mut batch = Vec::new();
        while self.jobs.recv_many(&mut batch, MAX_BATCH).await > 0 {
            let outcome = self.exchange(&batch).await;
            match &outcome {
                Ok(_) => self.health.well(),
                Err(Trouble::Unreachable(why) | Trouble::Lost(why)) => self.health.ill(why.clone()),
                Err(_) => {}
            }
            match outcome {
                Ok(replies) => self.distribute(&mut batch, replies),
                Err(trouble) => {
                    batch.drain(..).for_each(|job| drop(job.answer.send(Err(trouble.clone()))));
                    self.turn_away(&trouble);
                }
            }
        }
    }

    /// Whoever has come meanwhile would wait as long for the same, one batch after the other: they are told now, and decide
    /// themselves whether and when to try again.
    fn turn_away(&mut self, trouble: &Trouble) {
        let (Trouble::Unreachable(why) | Trouble::Lost(why)) = trouble else { return };
        while let Ok(job) = self.jobs.try_recv() {
            // Of these nothing was sent.
            let _ = job.answer.send(Err(Trouble::Unreachable(why.clone())));
        }
    }

    async fn exchange(&mut self, batch: &[Job]) -> Result<Replies, Trouble> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let dialled = self.dialer.dial(&self.addr).await.map_err(Trouble::Unreachable)?;
                self.connection.insert(dialled)
            }
        };
        let role = batch.iter().any(|job| job.need == Need::Primary);
        let wait = batch.iter().filter_map(|job| replicas(job.need)).max();
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
        let count = pipeline.len();
        let exchange = connection.send_packed_commands(&pipeline, 0, count);
        let lost = |why: String| Trouble::Lost(format!("redis node {} {why}", self.addr));
        let values = match tokio::time::timeout(self.dialer.answer, exchange).await {
            Ok(Ok(values)) if values.len() == count => Ok(values),
            Ok(Ok(values)) => Err(lost(format!("gave {} answers to {count} commands", values.len()))),
            Ok(Err(error)) => Err(lost(format!("was lost: {error}"))),
            Err(_) => Err(lost(format!("did not answer within {:?}", self.dialer.answer))),
        };
        if values.is_err() {
            // Whatever still comes on it would be taken for the answer to something else.
            self.connection = None;
        }
        let mut values = values?.into_iter();
        let primary = !role || values.next().is_some_and(|role| is_primary(&role));
        let found = wait.and_then(|_| values.next_back());
        Ok(Replies { primary, found, values: values.collect() })
    }

    fn distribute(&self, batch: &mut Vec<Job>, replies: Replies) {
        let mut values = replies.values.into_iter();
        let mut short = None;
        for job in batch.drain(..) {
            let mine: Vec<Value> = values.by_ref().take(job.cmds.len()).collect();
            let answer = match (job.need, &replies.found) {
                (Need::Primary, _) if !replies.primary => Err(Trouble::NotPrimary(self.addr.clone())),
                (Need::Replicas(wanted), Some(Value::Int(found))) if *found < i64::from(wanted) => {
                    short = Some(format!("{found} of {wanted} replicas have the last change"));
                    Err(Trouble::Replicas { addr: self.addr.clone(), wanted, found: *found })
                }
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
    values: Vec<Value>,
}

fn replicas(need: Need) -> Option<u32> {
    match need {
        Need::Replicas(wanted) => Some(wanted).filter(|wanted| *wanted > 0),
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
        let dialer = Dialer { login: seeds.login, connect: ANSWER, answer: ANSWER, replicas: ANSWER };
        let link = Link::new(seeds.addrs[0].clone(), dialer, Arc::default());
        let began = Instant::now();
        let asked = (0..MAX_BATCH * 8).map(|_| link.ask(vec![cmd("PING")], Need::Nothing));
        let answers = futures::future::join_all(asked).await;
        assert!(answers.iter().all(Result::is_err), "{answers:?}");
        assert!(began.elapsed() < ANSWER * 4, "{:?}", began.elapsed());
    }
}
