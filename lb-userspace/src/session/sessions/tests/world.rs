//! A store that does as little as its contract allows, as late as it allows, in an order that a seed decides. One or two
//! processes use it; each step of each operation waits until the test lets it go on.

use crate::session::store::{Answer, Cursor, Given, SessionStore, Slice, StoreState, Swept};
use crate::session::{Copies, MemoryStore, Owner, Record, StoreError};
use futures::FutureExt;
use lb_common::token::SessionId;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::oneshot;

/// Numbers by chance, the same ones for the same seed.
pub(super) struct Chance(u64);

impl Chance {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// Less than `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }

    pub(super) fn percent(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What becomes of an operation that waits to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Done,
    /// It is done, and yet the caller hears that the store does not answer.
    DoneUnheard,
    /// Not done, and the caller does not know.
    Lost,
    /// Done some time later, when the caller has long heard that the store does not answer.
    Late,
    /// Not done, for want of space.
    NoSpace,
}

#[derive(Clone, Debug)]
enum Op {
    Load,
    Save(Box<Record>, Option<u64>),
    Claim(u64, Owner, u64),
    Delete(u64),
}

enum Reply {
    Loaded(Option<Record>),
    /// The owner until then.
    Changed(Option<Owner>),
}

/// An operation that waits for its next step.
struct Waiting {
    server: u64,
    /// Until it is done.
    op: Option<(SessionId, Op)>,
    go: oneshot::Sender<Fate>,
}

#[derive(Default)]
struct Process {
    copies: Vec<Weak<dyn Copies>>,
    /// It hears of what the others change.
    holds: bool,
}

#[derive(Default)]
struct Inner {
    records: BTreeMap<SessionId, Record>,
    /// As the last change of each left it; hand-overs since then are not durable.
    durable: BTreeMap<SessionId, Record>,
    /// Processes that may have a copy and would answer from it.
    copied: BTreeMap<SessionId, BTreeSet<usize>>,
    processes: Vec<Process>,
    waiting: Vec<Waiting>,
    late: Vec<(SessionId, Op)>,
}

pub(super) struct World {
    inner: Mutex<Inner>,
    names: MemoryStore,
}

impl World {
    pub(super) fn new(processes: usize) -> Arc<Self> {
        let processes = (0..processes).map(|_| Process { holds: true, ..Process::default() }).collect();
        let inner = Mutex::new(Inner { processes, ..Inner::default() });
        Arc::new(Self { inner, names: MemoryStore::new() })
    }

    /// The store as a server of a process has it.
    pub(super) fn view(self: &Arc<Self>, server: u64, process: usize) -> Arc<View> {
        Arc::new(View { world: self.clone(), server, process })
    }

    fn shared(&self) -> bool {
        self.inner.lock().processes.len() > 1
    }

    /// Lets one operation take its next step. False when none waits.
    pub(super) fn step(&self, chance: &mut Chance, trouble: usize) -> bool {
        let shared = self.shared();
        let mut inner = self.inner.lock();
        if inner.waiting.is_empty() {
            return false;
        }
        let at = chance.below(inner.waiting.len());
        let waiting = inner.waiting.swap_remove(at);
        let mut fate = Fate::Done;
        if let Some((id, op)) = waiting.op
            && chance.percent(trouble)
        {
            let changes = !matches!(op, Op::Load);
            fate = match chance.below(4) {
                0 if changes => Fate::DoneUnheard,
                1 if changes && shared => Fate::Late,
                2 if changes => Fate::NoSpace,
                _ => Fate::Lost,
            };
            if fate == Fate::Late {
                inner.late.push((id, op));
            }
        }
        drop(inner);
        // Nobody waits for an operation of a server that is gone.
        let _ = waiting.go.send(fate);
        true
    }

    /// Does something that somebody gave up waiting for.
    pub(super) fn do_late(&self, chance: &mut Chance) {
        let mut inner = self.inner.lock();
        if !inner.late.is_empty() {
            let at = chance.below(inner.late.len());
            let (id, op) = inner.late.swap_remove(at);
            let _ = inner.execute(None, id, op);
        }
    }

    /// A server dies. What it has sent off may be done all the same.
    pub(super) fn kill(&self, server: u64, chance: &mut Chance) {
        let mut inner = self.inner.lock();
        let (dead, rest) = std::mem::take(&mut inner.waiting).into_iter().partition(|w| w.server == server);
        inner.waiting = rest;
        let dead: Vec<Waiting> = dead;
        for waiting in dead {
            if let Some((id, op)) = waiting.op
                && !matches!(op, Op::Load)
                && chance.percent(60)
            {
                inner.late.push((id, op));
            }
        }
    }

    /// A process no longer hears of the others, or hears of them again. The others do not wait for one that does not.
    pub(super) fn cut(&self, process: usize) {
        let mut inner = self.inner.lock();
        if inner.processes[process].holds {
            inner.processes[process].holds = false;
            inner.copied.values_mut().for_each(|processes| processes.retain(|other| *other != process));
        } else {
            inner.void_all(process);
            inner.processes[process].holds = true;
        }
    }

    /// The database is opened anew, as the embedded one is after a failed write: what was not durable is undone, but for
    /// the revisions that somebody may remember.
    pub(super) fn reopen(&self) {
        let mut inner = self.inner.lock();
        let lost = std::mem::take(&mut inner.records);
        inner.records = inner.durable.clone();
        for (id, record) in &mut inner.records {
            let revision = lost[id].revision;
            if record.revision < revision {
                (record.revision, record.owner) = (revision + 1, Owner::UNSETTLED);
            }
        }
        inner.void_all(0);
    }
}

impl Inner {
    fn void_all(&self, process: usize) {
        self.processes[process].copies.iter().filter_map(Weak::upgrade).for_each(|copies| copies.void_all());
    }

    /// One atomic step in the database, for a process or for one that is no longer heard of.
    fn execute(&mut self, process: Option<usize>, id: SessionId, op: Op) -> Result<Reply, StoreError> {
        let found = self.records.get(&id).cloned();
        let revision = found.as_ref().map(|record| record.revision);
        let owner = found.as_ref().map(|record| record.owner);
        let expect = |expected| if revision == expected { Ok(()) } else { Err(StoreError::Conflict) };
        match op {
            Op::Load => {
                let Some(mut record) = found else { return Ok(Reply::Loaded(None)) };
                let process = process.expect("only a live process reads");
                let all = self.processes.len();
                let copied = self.copied.entry(id).or_default();
                let elsewhere = copied.iter().any(|other| *other != process);
                if elsewhere || usize::from(record.owner.slot) % all != process {
                    record.owner = Owner::UNSETTLED;
                }
                if self.processes[process].holds {
                    copied.insert(process);
                }
                return Ok(Reply::Loaded(Some(record)));
            }
            Op::Save(record, expected) => {
                expect(expected)?;
                self.durable.insert(id, Record::clone(&record));
                self.records.insert(id, *record);
            }
            Op::Claim(expected, owner, expires) => {
                expect(Some(expected))?;
                let record = self.records.get_mut(&id).expect("it has a revision");
                (record.revision, record.owner, record.expires) = (expected + 1, owner, expires);
            }
            Op::Delete(expected) => {
                expect(Some(expected))?;
                self.durable.remove(&id);
                self.records.remove(&id);
            }
        }
        // Whoever writes keeps a copy of what was written.
        if let Some(process) = process
            && self.processes[process].holds
        {
            self.copied.entry(id).or_default().insert(process);
        }
        Ok(Reply::Changed(owner))
    }

    /// The others answer no more from copies that they have of this session.
    fn void_others(&mut self, process: usize, id: SessionId) {
        for other in self.copied.remove(&id).unwrap_or_default() {
            if other == process {
                self.copied.entry(id).or_default().insert(other);
                continue;
            }
            self.processes[other].copies.iter().filter_map(Weak::upgrade).for_each(|copies| copies.void(id));
        }
    }
}

/// The store as one server has it.
pub(super) struct View {
    world: Arc<World>,
    server: u64,
    process: usize,
}

impl View {
    /// Waits until the test lets it go on; for ever, once the server is dead.
    async fn wait(&self, op: Option<(SessionId, Op)>) -> Fate {
        let (go, going) = oneshot::channel();
        self.world.inner.lock().waiting.push(Waiting { server: self.server, op, go });
        match going.await {
            Ok(fate) => fate,
            Err(_) => std::future::pending().await,
        }
    }

    async fn run(&self, id: SessionId, op: Op) -> Result<Reply, StoreError> {
        let lost = || StoreError::Unavailable { store: "trial".into(), reason: "made to".into() };
        let fate = self.wait(Some((id, op.clone()))).await;
        match fate {
            Fate::Lost | Fate::Late => return Err(lost()),
            Fate::NoSpace => return Err(StoreError::NoSpace { path: "/full".into(), free: 0, reserve: 1 }),
            Fate::Done | Fate::DoneUnheard => {}
        }
        let changes = !matches!(op, Op::Load);
        let reply = self.world.inner.lock().execute(Some(self.process), id, op);
        if fate == Fate::DoneUnheard {
            return reply.and_then(|_| Err(lost()));
        }
        if changes && reply.is_ok() {
            self.wait(None).await;
            self.world.inner.lock().void_others(self.process, id);
        }
        self.wait(None).await;
        reply
    }

    async fn change(&self, id: SessionId, op: Op) -> Result<Option<Owner>, StoreError> {
        match self.run(id, op).await? {
            Reply::Changed(owner) => Ok(owner),
            Reply::Loaded(_) => unreachable!("a change does not load"),
        }
    }
}

impl SessionStore for View {
    fn load(&self, id: SessionId) -> Answer<'_, Option<Record>> {
        async move {
            match self.run(id, Op::Load).await? {
                Reply::Loaded(record) => Ok(record),
                Reply::Changed(_) => unreachable!("a load does not change"),
            }
        }
        .boxed()
    }
    fn save<'a>(
        &'a self,
        id: SessionId,
        record: &Record,
        expected: Option<u64>,
    ) -> Answer<'a, Option<Owner>> {
        self.change(id, Op::Save(Box::new(record.clone()), expected)).boxed()
    }
    fn claim(&self, id: SessionId, expected: u64, owner: Owner, expires: u64) -> Answer<'_, Owner> {
        async move {
            let before = self.change(id, Op::Claim(expected, owner, expires)).await?;
            before.ok_or(StoreError::Conflict)
        }
        .boxed()
    }
    fn delete(&self, id: SessionId, expected: u64) -> Answer<'_, ()> {
        async move { self.change(id, Op::Delete(expected)).await.map(drop) }.boxed()
    }
    fn watch(&self, copies: Weak<dyn Copies>) {
        self.world.inner.lock().processes[self.process].copies.push(copies);
    }
    fn holds(&self) -> bool {
        self.world.inner.lock().processes[self.process].holds
    }
    /// Time passes here only while nothing else can happen.
    fn patience(&self) -> Duration {
        Duration::MAX
    }
    fn sweep(&self, now: u64, after: Option<SessionId>, slice: usize) -> Answer<'_, Swept> {
        self.world.names.sweep(now, after, slice)
    }
    fn count(&self) -> Answer<'_, u64> {
        self.world.names.count()
    }
    fn next_epoch(&self, slot: u16) -> Answer<'_, u32> {
        self.world.names.next_epoch(slot)
    }
    fn service_id(&self, service: &str) -> Answer<'_, u16> {
        self.world.names.service_id(service)
    }
    fn slot(&self, service: &str, backend: &str) -> Answer<'_, u16> {
        self.world.names.slot(service, backend)
    }
    fn slots(&self) -> Answer<'_, Vec<(String, String, u16)>> {
        self.world.names.slots()
    }
    fn given(&self) -> Answer<'_, Given> {
        self.world.names.given()
    }
    fn adopt(&self, given: Given) -> Answer<'_, ()> {
        self.world.names.adopt(given)
    }
    fn forget_slot(&self, service: &str, backend: &str) -> Answer<'_, ()> {
        self.world.names.forget_slot(service, backend)
    }
    fn forget_service(&self, service: &str) -> Answer<'_, ()> {
        self.world.names.forget_service(service)
    }
    fn scan(&self, from: Option<Cursor>, slice: usize) -> Answer<'_, Slice> {
        self.world.names.scan(from, slice)
    }
    fn state(&self) -> StoreState {
        self.world.names.state()
    }
}
