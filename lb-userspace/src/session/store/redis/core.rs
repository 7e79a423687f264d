//! What all parts of an open store share.

use super::audit::Findings;
use super::clock::ServerClock;
use super::judge::Rules;
use super::keys::{Keys, slot};
use super::lease::Lease;
use super::link::Need;
use super::message::{Message, Receipt};
use super::meta::Node;
use super::options::RedisOptions;
use super::router::{Failure, Outcome, Request, Router, What};
use super::scripts::{Lua, SEND};
use super::status::Status;
use super::{StoreError, names};
use crate::session::Copies;
use crate::session::fault::{Fault, armed};
use lb_common::token::SessionId;
use parking_lot::Mutex;
use redis::Value;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;

/// Messages that are kept for those who are behind. Who is further behind forgets all copies.
const KEPT: usize = 65_536;

/// Dead nodes that are remembered: more than have left copies behind that nobody has taken over since.
const DEAD: usize = 4096;

pub(super) struct Core {
    pub(super) options: RedisOptions,
    /// For messages.
    pub(super) place: String,
    pub(super) keys: Keys,
    pub(super) router: Router,
    pub(super) rules: Rules,
    pub(super) findings: Findings,
    pub(super) lease: Lease,
    me: Identity,
    copies: Mutex<Vec<Weak<dyn Copies>>>,
    pub(super) tickets: Mutex<HashMap<Receipt, Ticket>>,
    tickets_given: AtomicU64,
    pub(super) dead: Mutex<HashMap<Node, Instant>>,
    pub(super) epochs: Mutex<names::Epochs>,
    pub(super) announced: broadcast::Sender<(u16, u32)>,
    pub(super) status: Status,
    pub(super) clock: ServerClock,
}

/// A message that is not answered by all yet.
pub(super) struct Ticket {
    pub(super) waiting: HashSet<Node>,
    pub(super) answered: Arc<Notify>,
}

/// Under which names this process is known.
#[derive(Default)]
struct Identity {
    now: AtomicU64,
    all: Mutex<HashSet<Node>>,
}

impl Core {
    pub(super) fn new(
        options: RedisOptions,
        router: Router,
        rules: Rules,
        findings: Findings,
        clock: ServerClock,
    ) -> Self {
        Self {
            place: options.place().display().to_string(),
            keys: Keys::new(&options.prefix),
            lease: Lease::new(options.lease),
            options,
            router,
            rules,
            findings,
            me: Identity::default(),
            copies: Mutex::default(),
            tickets: Mutex::default(),
            tickets_given: AtomicU64::new(0),
            dead: Mutex::default(),
            epochs: Mutex::default(),
            announced: broadcast::Sender::new(1024),
            status: Status::default(),
            clock,
        }
    }

    /// What a change has to wait for.
    pub(super) fn durable(&self) -> Need {
        match self.shared() {
            Need::Replicas(replicas) if self.findings.disk() && !armed(Fault::AckBeforeFlush) => {
                Need::Disk(replicas)
            }
            need => need,
        }
    }

    /// What has to be waited for where a server that loses its memory loses nothing: for leases and messages, whose loss
    /// everyone notices by the server's new history, and for reads, which are told once a change behind them is durable.
    pub(super) fn shared(&self) -> Need {
        Need::Replicas(if armed(Fault::AckBeforeFlush) { 0 } else { self.rules.replicas })
    }

    /// What a read has to wait for.
    pub(super) fn read(&self) -> Need {
        match self.shared() {
            // Replicas of a cluster redirect; elsewhere they answer.
            Need::Replicas(0) if self.router.is_cluster() => Need::Nothing,
            Need::Replicas(0) => Need::Primary,
            need => need,
        }
    }

    pub(super) fn unavailable(&self, failure: Failure) -> StoreError {
        StoreError::Unavailable { store: self.place.clone(), reason: failure.0 }
    }

    /// Whether the clock of this host lets it use the store.
    pub(super) fn check_clock(&self) -> Result<(), StoreError> {
        self.clock.refused().map_or(Ok(()), |why| Err(self.unavailable(Failure(why))))
    }

    /// Runs a script on one key.
    pub(super) async fn script(
        &self,
        lua: &Lua,
        key: &str,
        args: Vec<Vec<u8>>,
        need: Need,
    ) -> Result<Outcome, StoreError> {
        let ask = What::Script(lua, vec![key.to_owned()], args);
        let asked = self.router.ask(Request { slot: slot(key), need, ask }).await;
        asked.map_err(|failure| self.unavailable(failure))
    }

    /// Tells everyone something. Answers whether each of some nodes is alive.
    pub(super) async fn send(
        &self,
        message: &Message,
        nodes: &[Node],
        need: Need,
    ) -> Result<Vec<bool>, StoreError> {
        let mut keys = vec![self.keys.mail.clone(), self.keys.last.clone()];
        keys.extend(nodes.iter().map(|node| self.keys.node(*node)));
        let ask = What::Script(&SEND, keys, vec![message.encode(), KEPT.to_string().into_bytes()]);
        let request = Request { slot: slot(&self.keys.mail), need, ask };
        let sent = self.router.ask(request).await.map_err(|failure| self.unavailable(failure))?;
        match sent.value {
            Value::Array(alive) if alive.len() == nodes.len() => {
                Ok(alive.iter().map(|alive| *alive == Value::Int(1)).collect())
            }
            other => Err(self.odd("a message", &other)),
        }
    }

    /// For an answer that this version of the scripts never gives.
    pub(super) fn odd(&self, to: &str, answer: &Value) -> StoreError {
        StoreError::Failed(format!("{} answered to {to}: {answer:?}", self.place))
    }

    /// The name that changes made now go under.
    pub(super) fn me(&self) -> Node {
        self.me.now.load(Ordering::Acquire)
    }

    /// Whether a node is this process, under whatever name.
    pub(super) fn is_me(&self, node: Node) -> bool {
        self.me.all.lock().contains(&node)
    }

    /// From now on this process goes under another name, and has no copies from before.
    pub(super) fn rename(&self, node: Node) {
        self.me.all.lock().insert(node);
        self.me.now.store(node, Ordering::Release);
        self.void_all();
    }

    pub(super) fn receipt(&self) -> Receipt {
        Receipt { to: self.me(), number: self.tickets_given.fetch_add(1, Ordering::Relaxed) }
    }

    pub(super) fn watch(&self, copies: Weak<dyn Copies>) {
        let mut watched = self.copies.lock();
        watched
            .retain(|other| other.strong_count() > 0 && !std::ptr::addr_eq(other.as_ptr(), copies.as_ptr()));
        watched.push(copies);
    }

    /// Forgets a session in this process.
    pub(super) fn void(&self, id: SessionId) {
        self.watched().iter().for_each(|copies| copies.void(id));
    }

    /// Forgets all sessions in this process.
    pub(super) fn void_all(&self) {
        self.watched().iter().for_each(|copies| copies.void_all());
    }

    fn watched(&self) -> Vec<Arc<dyn Copies>> {
        self.copies.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// A node answers from no copy any more, from some moment on.
    pub(super) fn buried(&self, node: Node, from: Instant) -> Instant {
        let mut dead = self.dead.lock();
        if dead.len() >= DEAD {
            // Forgetting one costs a wait, should it still be named anywhere.
            let oldest = dead.iter().min_by_key(|(_, from)| **from).map(|(node, _)| *node);
            oldest.map(|node| dead.remove(&node));
        }
        let known = dead.entry(node).or_insert(from);
        *known = from.min(*known);
        *known
    }
}
