//! Our session servers on one store: two in process, and one that answers over HTTP as those of lbd do, on a thread of
//! its own.

use super::content::{CART, Content, Item, SECRET, VISITOR};
use super::http::{Load, get};
use super::stint::{Sample, closed_loop};
use anyhow::{Context, Result, ensure};
use arc_swap::ArcSwap;
use lb_common::token::SessionId;
use lb_userspace::server::{ServerContext, serve};
use lb_userspace::session::{
    Admission, Instance, Limits, Peers, Refusal, SessionStore, Sessions, Source, State, TokenKeys,
    unix_millis,
};
use lb_userspace::web::Cookie;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{oneshot, watch};

const SERVICE: &str = "bench";
const COOKIE: &str = "lb";

/// Servers, and the sessions that they serve.
pub(super) struct Site {
    keys: Arc<ArcSwap<TokenKeys>>,
    /// Two servers that are asked in process.
    servers: [Arc<Sessions>; 2],
    /// Sessions of the first server: read there only, written there only, and read by both in turn.
    read: Arc<[SessionId]>,
    written: Arc<[SessionId]>,
    shared: Arc<[SessionId]>,
    web: Web,
    /// Sessions of the server behind HTTP.
    visited: Vec<SessionId>,
}

/// How a session is asked for in process.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Read {
    /// With the token of the server's own instance.
    Hit,
    /// With a token of an earlier instance of the same server.
    Reload,
    /// At another server than the last time.
    TakeOver,
}

impl Site {
    /// Starts the servers and begins so many sessions of each kind.
    pub(super) async fn new(store: Arc<dyn SessionStore>, sessions: usize, writers: usize) -> Result<Self> {
        let peers = Arc::new(Peers::default());
        let keys = Arc::new(ArcSwap::from_pointee(TokenKeys::generate()?));
        let context = |instance| ServerContext {
            instance: watch::channel(instance).1,
            store: store.clone(),
            keys: keys.clone(),
            peers: peers.clone(),
            limits: Limits::default(),
            connections: Default::default(),
            counters: Default::default(),
            admission: Arc::new(Admission::new(&Limits { new_per_second: u32::MAX, ..Limits::default() })),
            cookie: Cookie::default(),
            clock: Arc::new(unix_millis),
        };
        let server = |instance| {
            let ServerContext { instance, store, peers, limits, clock, .. } = context(instance);
            Sessions::new(instance, store, limits, peers, clock)
        };
        let first = server(instance(&*store, "first").await?);
        let second = server(instance(&*store, "second").await?);
        let web = Web::start(context(instance(&*store, "web").await?))?;
        let site = Self {
            read: begin(&first, sessions).await?,
            written: begin(&first, writers).await?,
            shared: begin(&first, sessions).await?,
            visited: begin(&first, sessions).await?.to_vec(),
            servers: [first, second],
            keys,
            web,
        };
        // From now on the server behind HTTP owns what it is asked for.
        site.load(Read::Reload).once(16).await?;
        Ok(site)
    }

    /// Reads of that kind, each as a request would make it: from the text of its token to a value of the session.
    pub(super) async fn read(&self, kind: Read, workers: usize, time: Duration) -> Result<Sample> {
        let owner = self.servers[0].instance();
        let token = |id| match kind {
            Read::Hit | Read::TakeOver => self.text(&owner, id),
            Read::Reload => self.text(&before(&owner), id),
        };
        let ids = if kind == Read::TakeOver { &self.shared } else { &self.read };
        let texts: Arc<[String]> = ids.iter().map(|id| token(*id)).collect();
        let expected = if kind == Read::Hit { Source::Cache } else { Source::Database };
        closed_loop(workers, time, |worker, mut stint| {
            let (servers, keys, texts) = (self.servers.clone(), self.keys.clone(), texts.clone());
            async move {
                let mut turns = (worker..).step_by(workers);
                let mut round = 0;
                while stint.goes_on().await {
                    let mut turn = turns.next().expect("numbers do not end") % texts.len();
                    let mut server = &servers[0];
                    if kind == Read::TakeOver {
                        // A worker has a few sessions to itself and goes through them, each time at the other server.
                        let own = (texts.len() / workers).max(1);
                        server = &servers[(round / own + 1) % 2];
                        turn = (worker * own + round % own) % texts.len();
                        round += 1;
                    }
                    let token = keys.load().verify(texts[turn].as_bytes())?;
                    let seen = server.read(Some(token)).await?;
                    ensure!(
                        seen.source == expected && seen.id == token.session,
                        "a read came from {:?} and not from {expected:?}",
                        seen.source
                    );
                    let cart: Vec<Item> =
                        seen.record.state.get_as(CART)?.context("a session without a cart")?;
                    ensure!(cart.len() == 5, "a cart of {} things", cart.len());
                    stint.done();
                }
                Ok(stint)
            }
        })
        .await
    }

    /// Changes, each to a session of the writer's own, done when they are durable.
    pub(super) async fn write(&self, writers: usize, time: Duration) -> Result<Sample> {
        ensure!(writers <= self.written.len(), "there are sessions for {} writers", self.written.len());
        let owner = self.servers[0].instance();
        closed_loop(writers, time, |writer, mut stint| {
            let (server, id) = (self.servers[0].clone(), self.written[writer]);
            let (keys, text) = (self.keys.clone(), self.text(&owner, id));
            async move {
                let mut number = 0u64;
                while stint.goes_on().await {
                    number += 1;
                    let token = keys.load().verify(text.as_bytes())?;
                    let change = move |state: &mut State| state.set_as("number", &number).map_err(unfit);
                    let (seen, ()) = server.write(Some(token), change).await?;
                    ensure!(seen.id == id, "a write began a new session");
                    stint.done();
                }
                Ok(stint)
            }
        })
        .await
    }

    /// `GET /session` for each session of the server behind HTTP.
    pub(super) fn load(&self, kind: Read) -> Load {
        let owner = match kind {
            Read::Hit => self.web.instance.clone(),
            Read::Reload => before(&self.web.instance),
            Read::TakeOver => self.servers[0].instance(),
        };
        let request = |id: &SessionId| get("/session", &format!("{COOKIE}={}", self.text(&owner, *id)));
        let marked = if kind == Read::Hit { "lb-source: cache" } else { "lb-source: database" };
        Load { addr: self.web.addr, requests: self.visited.iter().map(request).collect(), marked }
    }

    /// The text of a token for a session at an instance.
    fn text(&self, instance: &Instance, id: SessionId) -> String {
        let keys = self.keys.load();
        let token = keys.token(instance.service, instance.owner(), id);
        keys.sign(&token).expect("the newest key is alive")
    }
}

/// The next instance of a backend; never its first, so that there was one before.
async fn instance(store: &dyn SessionStore, name: &str) -> Result<Instance> {
    let service = store.service_id(SERVICE).await?;
    let slot = store.slot(SERVICE, name).await?;
    store.next_epoch(slot).await?;
    Ok(Instance { service, slot, epoch: store.next_epoch(slot).await?, name: name.into() })
}

/// The incarnation before.
fn before(instance: &Instance) -> Instance {
    Instance { epoch: instance.epoch - 1, ..instance.clone() }
}

/// Begins sessions at a server.
async fn begin(server: &Arc<Sessions>, sessions: usize) -> Result<Arc<[SessionId]>> {
    let beginning = (0..sessions).map(|number| {
        let (server, content) = (server.clone(), Content::new(number as u64));
        tokio::spawn(async move {
            let fill = move |state: &mut State| {
                state.set_as(VISITOR, &content.visitor).map_err(unfit)?;
                state.set_as(CART, &content.cart).map_err(unfit)?;
                state.set_as(SECRET, &content.csrf).map_err(unfit)
            };
            anyhow::Ok(server.write(None, fill).await?.0.id)
        })
    });
    let mut ids = Vec::new();
    for session in beginning.collect::<Vec<_>>() {
        ids.push(session.await??);
    }
    Ok(ids.into())
}

fn unfit(error: serde_json::Error) -> Refusal {
    Refusal::Unfit(error.to_string())
}

/// A session server as lbd runs it: a thread, a current-thread runtime, a listener.
struct Web {
    instance: Instance,
    addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<std::io::Result<()>>>,
}

impl Web {
    fn start(context: ServerContext) -> Result<Self> {
        let instance = context.instance.borrow().clone();
        let listener = TcpListener::bind("127.0.0.1:0").context("binding a port on the loopback")?;
        let addr = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::Builder::new()
            .name("bench-web".into())
            .spawn(move || runtime.block_on(serve(listener, context, async { drop(stopped.await) })))?;
        Ok(Self { instance, addr, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It has served every request of a finished run by now; how it ended changes nothing.
            let _ = thread.join();
        }
    }
}
