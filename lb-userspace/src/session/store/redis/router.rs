//! Brings each request to the server that has its key, follows redirections, and tries again while servers fail over.
//!
//! Trying again is safe here because of what is asked: every request can be done twice, or recognises that it was done.

use super::dialer::Dialer;
use super::judge::Rules;
use super::link::{Answers, Health, Link, Need, Trouble, text};
use super::options::Addr;
use super::scripts::Lua;
use super::topology::{Shard, Topology, redirection};
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use parking_lot::Mutex;
use redis::{Cmd, ServerErrorKind, Value, cmd};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// Connections to a server that wait for its replicas. Two, so that one batch is made up while the other is away.
const LANES: usize = 2;

/// Pause after the first failure; doubled with each.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LONGEST_PAUSE: Duration = Duration::from_millis(150);

/// How long the nodes are given to say who has which slots.
const SURVEY: Duration = Duration::from_millis(300);

/// Least time between two surveys.
pub(super) const SURVEY_PAUSE: Duration = Duration::from_millis(100);

/// A request about one key, or several in one slot.
pub(super) struct Request<'a> {
    pub(super) slot: u16,
    pub(super) need: Need,
    pub(super) ask: What<'a>,
}

pub(super) enum What<'a> {
    Script(&'a Lua, Vec<String>, Vec<Vec<u8>>),
    Plain(Cmd),
}

impl What<'_> {
    fn cmd(&self, whole: bool) -> Cmd {
        match self {
            Self::Script(lua, keys, args) => lua.call(whole, keys, args),
            Self::Plain(cmd) => cmd.clone(),
        }
    }
}

/// What came of a request.
pub(super) struct Outcome {
    pub(super) value: Value,
    /// An earlier try may have done it, too.
    pub(super) repeated: bool,
}

/// Why a request was given up. Whether it was done is not known.
#[derive(Clone, Debug)]
pub(super) struct Failure(pub(super) String);

/// The connections to one server.
struct Node {
    quick: Link,
    lanes: [Link; LANES],
    /// For what waits for a disk: nothing else shall wait as long.
    disk: [Link; LANES],
    health: Arc<Health>,
}

/// Requests that were refused to keep others from waiting, since the store was opened.
#[derive(Default)]
pub(super) struct Refused {
    /// As many waited as may.
    pub(super) queue_full: AtomicU64,
    /// The deadline passed, waiting included.
    pub(super) deadline: AtomicU64,
}

/// Lives in the store's runtime.
pub(super) struct Router {
    dialer: Dialer,
    /// `None`: there is one server, and it is all there is.
    seeds: Option<Vec<Addr>>,
    topology: Mutex<Topology>,
    nodes: Mutex<HashMap<Addr, Arc<Node>>>,
    stale: Notify,
    /// The servers are others than before.
    changed: Notify,
    deadline: Duration,
    /// What servers must be like; `None` until it is known.
    rules: Mutex<Option<Rules>>,
    pub(super) refused: Refused,
}

impl Router {
    pub(super) fn single(addr: Addr, dialer: Dialer, deadline: Duration) -> Self {
        Self::new(None, Topology::single(addr), dialer, deadline)
    }

    pub(super) fn cluster(seeds: Vec<Addr>, dialer: Dialer, deadline: Duration) -> Self {
        Self::new(Some(seeds), Topology::default(), dialer, deadline)
    }

    fn new(seeds: Option<Vec<Addr>>, topology: Topology, dialer: Dialer, deadline: Duration) -> Self {
        let (topology, nodes) = (Mutex::new(topology), Mutex::default());
        Self {
            dialer,
            seeds,
            topology,
            nodes,
            stale: Notify::new(),
            changed: Notify::new(),
            deadline,
            rules: Mutex::default(),
            refused: Refused::default(),
        }
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.seeds.is_some()
    }

    pub(super) fn dialer(&self) -> &Dialer {
        &self.dialer
    }

    /// Before anything is asked that waits for replicas or disks.
    pub(super) fn set_rules(&self, rules: Rules) {
        *self.rules.lock() = Some(rules);
    }

    /// All servers that are known, replicas included.
    pub(super) fn known(&self) -> Vec<Addr> {
        self.topology.lock().nodes.iter().cloned().collect()
    }

    /// Replicas that a single server has.
    pub(super) fn add(&self, replicas: impl IntoIterator<Item = Addr>) {
        self.topology.lock().nodes.extend(replicas);
    }

    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// What became of judging a server.
    pub(super) fn judged(&self, addr: &Addr, unfit: Option<String>) {
        self.node(addr).health.judged(unfit);
    }

    pub(super) fn unfit(&self, addr: &Addr) -> Option<String> {
        self.nodes.lock().get(addr)?.health.unfit()
    }

    pub(super) fn primary(&self, slot: u16) -> Option<Addr> {
        self.topology.lock().primary(slot).cloned()
    }

    /// Sorted by their first slots.
    pub(super) fn shards(&self) -> Vec<Shard> {
        self.topology.lock().shards.clone()
    }

    /// Whether every slot has a primary, as far as is known.
    pub(super) fn is_covered(&self) -> bool {
        self.topology.lock().covered() == usize::from(super::keys::SLOTS)
    }

    /// How a server was when it was last asked.
    pub(super) fn failing(&self, addr: &Addr) -> Option<(Duration, String)> {
        self.nodes.lock().get(addr)?.health.failing()
    }

    /// Asks for one answer, again and again until there is one or the deadline has passed.
    pub(super) async fn ask(&self, request: Request<'_>) -> Result<Outcome, Failure> {
        self.ask_within(request, self.deadline).await
    }

    /// As [`Router::ask`], with a deadline of its own.
    pub(super) async fn ask_within(
        &self,
        request: Request<'_>,
        deadline: Duration,
    ) -> Result<Outcome, Failure> {
        let give_up = Instant::now() + deadline;
        let mut pauses = Pauses::new();
        let mut before: Option<String> = None;
        let mut state = Try { addr: None, asking: false, whole: false, repeated: false };
        loop {
            let target = state.addr.clone().or_else(|| self.primary(request.slot));
            let why = match target {
                None => format!("no redis node serves slot {}", request.slot),
                Some(addr) => match self.attempt(&request, &mut state, &addr, give_up).await {
                    Next::Done(value) => return Ok(Outcome { value, repeated: state.repeated }),
                    Next::Never(why) => return Err(Failure(why)),
                    Next::AtOnce if Instant::now() < give_up => continue,
                    Next::AtOnce => format!("redis node {addr} sends from one node to another"),
                    Next::Late(why) => before.take().unwrap_or(why),
                    Next::Later(why) => why,
                },
            };
            self.stale.notify_one();
            let pause = pauses.next();
            if Instant::now() + pause >= give_up {
                self.refused.deadline.fetch_add(1, Ordering::Relaxed);
                return Err(Failure(format!("{why} (tried for {deadline:?})")));
            }
            tokio::time::sleep(pause).await;
            before = Some(why);
            (state.addr, state.asking) = (None, false);
        }
    }

    async fn attempt(&self, request: &Request<'_>, state: &mut Try, addr: &Addr, give_up: Instant) -> Next {
        let mut cmds = Vec::with_capacity(2);
        if state.asking {
            cmds.push(cmd("ASKING"));
        }
        cmds.push(request.ask.cmd(state.whole));
        let node = self.node(addr);
        let link = match request.need {
            Need::Replicas(_) => &node.lanes[usize::from(request.slot) % LANES],
            Need::Disk(_) => &node.disk[usize::from(request.slot) % LANES],
            Need::Nothing | Need::Primary => &node.quick,
        };
        if matches!(request.need, Need::Replicas(_) | Need::Disk(_))
            && let Some(why) = node.health.unfit()
        {
            // Whether that is still so is found out beside the requests.
            self.changed.notify_one();
            return Next::Never(Trouble::Unfit(addr.clone(), why).to_string());
        }
        match link.ask(cmds, request.need, give_up).await {
            Ok(mut values) => match values.pop() {
                Some(Value::ServerError(error)) => self.obey(request, state, addr, &error),
                Some(value) => Next::Done(value),
                None => Next::Never(format!("redis node {addr} gave no answer")),
            },
            Err(Trouble::Full(addr)) => {
                self.refused.queue_full.fetch_add(1, Ordering::Relaxed);
                Next::Never(Trouble::Full(addr).to_string())
            }
            Err(trouble @ Trouble::Unfit(..)) => {
                self.changed.notify_one();
                Next::Never(trouble.to_string())
            }
            Err(trouble) => {
                let done = matches!(
                    trouble,
                    Trouble::Lost(_) | Trouble::Late(_) | Trouble::Replicas { .. } | Trouble::Disk { .. }
                );
                state.repeated |= done;
                if matches!(trouble, Trouble::Late(_)) {
                    return Next::Late(trouble.to_string());
                }
                Next::Later(trouble.to_string())
            }
        }
    }

    /// What to do about an error: all of these say that nothing was done.
    fn obey(&self, request: &Request<'_>, state: &mut Try, addr: &Addr, error: &redis::ServerError) -> Next {
        let details = error.details().unwrap_or_default();
        let told = || format!("redis node {addr}: {} {details}", error.code());
        let asking = std::mem::take(&mut state.asking);
        match error.kind() {
            Some(ServerErrorKind::NoScript) if !state.whole => {
                state.whole = true;
                (state.addr, state.asking) = (Some(addr.clone()), asking);
                Next::AtOnce
            }
            Some(kind @ (ServerErrorKind::Moved | ServerErrorKind::Ask)) => {
                let Some(to) = redirection(details, addr) else { return Next::Later(told()) };
                if kind == ServerErrorKind::Moved {
                    self.topology.lock().learn(request.slot, to.clone());
                    self.stale.notify_one();
                    // One that sends back and forth is not asked without a pause.
                    return if state.addr.is_some() { Next::Later(told()) } else { state.follow(to) };
                }
                state.asking = true;
                state.follow(to)
            }
            Some(
                ServerErrorKind::TryAgain
                | ServerErrorKind::ClusterDown
                | ServerErrorKind::MasterDown
                | ServerErrorKind::BusyLoading
                | ServerErrorKind::ReadOnly,
            ) => Next::Later(told()),
            _ => match error.code() {
                "BUSY" | "NOREPLICAS" => Next::Later(told()),
                // It ceased to be a primary while it worked on this.
                "UNBLOCKED" => {
                    state.repeated = true;
                    Next::Later(told())
                }
                "OOM" => Next::Never(format!("{}: raise its maxmemory", told())),
                "MISCONF" => Next::Never(format!("{}: see that its disk has space", told())),
                "NOAUTH" | "WRONGPASS" | "NOPERM" => {
                    Next::Never(format!("{}: give user and password in the node's URL", told()))
                }
                _ => Next::Never(told()),
            },
        }
    }

    /// Asks one server, once.
    pub(super) async fn ask_node(&self, addr: &Addr, cmds: Vec<Cmd>, need: Need) -> Answers {
        self.node(addr).quick.ask(cmds, need, Instant::now() + self.deadline).await
    }

    fn node(&self, addr: &Addr) -> Arc<Node> {
        let mut nodes = self.nodes.lock();
        if let Some(node) = nodes.get(addr) {
            return node.clone();
        }
        let health = Arc::<Health>::default();
        let link = |rules| Link::new(addr.clone(), self.dialer.clone(), health.clone(), rules);
        let rules = *self.rules.lock();
        let node = Arc::new(Node {
            quick: link(None),
            lanes: std::array::from_fn(|_| link(rules)),
            disk: std::array::from_fn(|_| link(rules)),
            health: health.clone(),
        });
        nodes.insert(addr.clone(), node.clone());
        node
    }

    /// Finds out anew who has which slots, whenever something looks wrong; for as long as it is polled.
    pub(super) async fn keep_up(&self) {
        loop {
            self.stale.notified().await;
            self.survey().await;
            tokio::time::sleep(SURVEY_PAUSE).await;
        }
    }

    /// Something looks wrong.
    pub(super) fn doubt(&self) {
        self.stale.notify_one();
    }

    /// Asks all nodes who has which slots; who knows of the latest election is right.
    pub(super) async fn survey(&self) {
        let Some(seeds) = &self.seeds else { return };
        let mut known = self.topology.lock().nodes.clone();
        known.extend(seeds.iter().cloned());
        let mut asked: FuturesUnordered<_> = known.iter().map(|addr| self.view(addr)).collect();
        let mut best: Option<(u64, Topology)> = None;
        let give_up = Instant::now() + SURVEY;
        while let Ok(Some(view)) = tokio::time::timeout_at(give_up, asked.next()).await {
            let rank = |(epoch, topology): &(u64, Topology)| (topology.covered(), *epoch);
            if let Some(view) = view
                && best.as_ref().is_none_or(|best| rank(best) < rank(&view))
            {
                best = Some(view);
            }
        }
        drop(asked);
        let Some((_, topology)) = best else { return };
        self.nodes.lock().retain(|addr, _| topology.nodes.contains(addr));
        let mut known = self.topology.lock();
        let others = known.nodes != topology.nodes || known.shards != topology.shards;
        *known = topology;
        drop(known);
        if others {
            self.changed.notify_one();
        }
    }

    /// What one node says, and the latest election that it knows of.
    async fn view(&self, addr: &Addr) -> Option<(u64, Topology)> {
        let mut info = cmd("CLUSTER");
        info.arg("INFO");
        let mut slots = cmd("CLUSTER");
        slots.arg("SLOTS");
        let answers = self.ask_node(addr, vec![info, slots], Need::Nothing).await.ok()?;
        let [info, slots] = answers.as_slice() else { return None };
        let epoch = field(&text(info), "cluster_current_epoch")?.parse().ok()?;
        Some((epoch, Topology::parse(slots, addr)?))
    }
}

/// What the next attempt has to know.
struct Try {
    /// Where a redirection sent to.
    addr: Option<Addr>,
    asking: bool,
    /// The script itself instead of its hash.
    whole: bool,
    repeated: bool,
}

impl Try {
    fn follow(&mut self, to: Addr) -> Next {
        self.addr = Some(to);
        Next::AtOnce
    }
}

enum Next {
    Done(Value),
    AtOnce,
    Later(String),
    /// The deadline passed; what was wrong before says more.
    Late(String),
    Never(String),
}

/// Longer and longer, and never the same for two who failed together.
pub(super) struct Pauses(Duration);

impl Pauses {
    pub(super) fn new() -> Self {
        Self(FIRST_PAUSE)
    }

    pub(super) fn next(&mut self) -> Duration {
        let pause = self.0;
        self.0 = (pause * 2).min(LONGEST_PAUSE);
        let mut byte = [128];
        // Without random numbers pauses are merely equal.
        let _ = getrandom::fill(&mut byte);
        pause / 2 + pause * u32::from(byte[0]) / 256
    }
}

/// A field of what INFO answers: lines of `name:value`.
pub(super) fn field<'a>(info: &'a str, name: &str) -> Option<&'a str> {
    info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}
