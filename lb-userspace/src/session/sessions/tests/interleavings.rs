//! Many servers, one session, any order of everything: which step comes next, who dies, what the store loses, is decided
//! by a seed. The clock of the runtime stands still while anything can go on, so between two steps all is at rest.

use super::history::{Event, Saw, check};
use super::world::{Chance, World};
use super::*;
use crate::session::{Once, Tag, Tags};
use parking_lot::Mutex;

/// Longer than any pause between two tries, in the time of the runtime.
const REST: Duration = Duration::from_secs(1);
/// Requests in one history.
const REQUESTS: u32 = 40;
const CLIENTS: usize = 5;

struct Server {
    /// Another number for each life.
    number: u64,
    sessions: Arc<Sessions>,
    instance: watch::Sender<Instance>,
}

#[derive(Default)]
struct Client {
    busy: bool,
    /// Of its last answer.
    token: Option<Token>,
    tag: Option<Tag>,
    /// A change that it does not know the outcome of.
    again: Option<u32>,
}

struct Town {
    world: Arc<World>,
    peers: Vec<Arc<Peers>>,
    servers: Vec<Server>,
    epochs: Vec<u32>,
    lives: u64,
    now: Arc<AtomicU64>,
}

impl Town {
    fn new(processes: usize, servers: usize) -> Self {
        let mut town = Self {
            world: World::new(processes),
            peers: (0..processes).map(|_| Arc::default()).collect(),
            servers: Vec::new(),
            epochs: vec![0; servers],
            lives: 0,
            now: Arc::new(AtomicU64::new(1_000_000)),
        };
        town.servers = (0..servers).map(|slot| town.start(slot)).collect();
        town
    }

    fn start(&mut self, slot: usize) -> Server {
        self.epochs[slot] += 1;
        self.lives += 1;
        let (instance, watched) = watch::channel(super::instance(slot as u16, self.epochs[slot]));
        let process = slot % self.peers.len();
        let now = self.now.clone();
        let limits = Limits {
            idle: Duration::from_secs(1000),
            absolute: Duration::from_secs(1 << 30),
            ..Limits::default()
        };
        let clock: Clock = Arc::new(move || now.load(Ordering::SeqCst));
        let store = self.world.view(self.lives, process);
        let sessions = Sessions::new(watched, store, limits, self.peers[process].clone(), clock);
        Server { number: self.lives, sessions, instance }
    }

    /// Something that happens to servers and stores.
    fn trouble(&mut self, chance: &mut Chance) {
        let slot = chance.below(self.servers.len());
        match chance.below(6) {
            0 => {
                self.world.kill(self.servers[slot].number, chance);
                self.servers[slot] = self.start(slot);
            }
            1 => {
                self.epochs[slot] += 1;
                self.servers[slot].instance.send_replace(instance(slot as u16, self.epochs[slot]));
            }
            2 if self.peers.len() > 1 => self.world.cut(slot % self.peers.len()),
            2 => self.world.reopen(),
            // So that expiries have to be moved, and yet nothing expires.
            3 if self.now.load(Ordering::SeqCst) < 1_800_000 => {
                self.now.fetch_add(101_000, Ordering::SeqCst);
            }
            _ => self.world.do_late(chance),
        }
    }
}

/// What a request wants.
#[derive(Clone, Copy, Debug)]
enum Wish {
    Find,
    Read,
    Change(u32),
    /// Sent again if its outcome is not known.
    Once(u32),
    /// Only to the version that the client saw last.
    IfMatch(u32, Tag),
    /// A change that refuses, and tells how many changes there are.
    Refuse,
    End,
}

fn log(state: &State) -> Vec<u32> {
    state.get_as("log").unwrap().unwrap_or_default()
}

fn append(change: u32) -> impl Fn(&mut State) -> Result<(), Refusal> {
    move |state| {
        let mut all = log(state);
        all.push(change);
        state.set_as("log", &all).unwrap();
        Ok(())
    }
}

/// Sends a request. With what it tells, the client may learn a token and a tag. A session that began with a visit has one
/// version less: the first change begins it.
async fn ask(server: &Arc<Sessions>, token: Token, wish: Wish, visit: bool) -> (Saw, Option<Seen>) {
    let version = |seen: &Seen| seen.record.version + u64::from(visit);
    let this = |seen: Seen| if seen.id == token.session { Some(seen) } else { None };
    let state = |seen: Option<Seen>| match seen {
        Some(seen) => (Saw::State { version: version(&seen), log: log(&seen.record.state) }, Some(seen)),
        None => (Saw::Gone, None),
    };
    let change = |id: u32, terms: Terms| server.write_on(Some(token), terms, append(id));
    let (id, changed) = match wish {
        Wish::Find => {
            return match server.find(Some(token)).await {
                // Perhaps it has not begun.
                Ok(None) if visit => (Saw::Nothing, None),
                found => found.map_or((Saw::Nothing, None), state),
            };
        }
        Wish::Read => {
            return server.read(Some(token)).await.map_or((Saw::Nothing, None), |seen| state(this(seen)));
        }
        Wish::End => {
            let saw = match server.end(Some(token)).await {
                Ok(ended) if ended || !visit => Saw::Gone,
                _ => Saw::Nothing,
            };
            return (saw, None);
        }
        Wish::Refuse => {
            let refuse = |state: &mut State| -> Result<(), Refusal> {
                Err(Refusal::Unfit(serde_json::to_string(&log(state)).unwrap()))
            };
            // An empty log may be that of a new session, were this one gone.
            return match server.write(Some(token), refuse).await {
                Err(SessionError::Refused(Refusal::Unfit(text))) if text != "[]" => {
                    let log: Vec<u32> = serde_json::from_str(&text).unwrap();
                    (Saw::State { version: log.len() as u64 + 1, log }, None)
                }
                _ => (Saw::Nothing, None),
            };
        }
        Wish::Change(id) => (id, change(id, Terms::default()).await),
        Wish::Once(id) => {
            let once = Some(Once::new(&id.to_be_bytes(), &[], None));
            (id, change(id, Terms { once, ..Terms::default() }).await)
        }
        Wish::IfMatch(id, tag) => {
            let preconditions =
                Preconditions { if_match: Some(Tags::Of(vec![tag])), ..Preconditions::default() };
            let terms = Terms { preconditions, ..Terms::default() };
            (id, change(id, terms).await)
        }
    };
    match changed {
        Ok(Changed { seen, repeated, .. }) => match this(seen) {
            None => (Saw::Gone, None),
            Some(seen) => {
                let (version, log) = (version(&seen), log(&seen.record.state));
                let saw = match repeated {
                    true => Saw::Repeated { change: id, version, log },
                    false => Saw::Made { change: id, version, log },
                };
                (saw, Some(seen))
            }
        },
        Err(SessionError::Precondition { seen: Some(seen), .. }) => {
            if let Wish::IfMatch(_, tag) = wish {
                assert_ne!(seen.tag(), tag, "refused, and yet it matches");
            }
            state(Some(*seen))
        }
        Err(SessionError::Precondition { seen: None, .. }) => (Saw::Gone, None),
        Err(_) => (Saw::Nothing, None),
    }
}

/// One history from one seed: what was seen.
async fn history(seed: u64) -> Vec<Event> {
    let mut chance = Chance::new(seed);
    let (processes, servers) = (1 + chance.below(2), 2 + chance.below(3));
    let mut town = Town::new(processes, servers);
    let visit = chance.percent(50);
    let first = {
        let server = town.servers[0].sessions.clone();
        let begun = tokio::spawn(async move {
            match visit {
                true => server.read(None).await.unwrap(),
                false => super::begun(&server).await,
            }
        });
        while !begun.is_finished() {
            tokio::time::sleep(REST).await;
            town.world.step(&mut chance, 0);
        }
        begun.await.unwrap()
    };
    let clients: Arc<Vec<Mutex<Client>>> = Arc::new((0..CLIENTS).map(|_| Mutex::default()).collect());
    let events: Arc<Mutex<Vec<Event>>> = Arc::default();
    let mut tokens = vec![token(&first).unwrap()];
    let (trouble, ends) = (chance.below(12), chance.percent(30));
    let moment = Arc::new(AtomicU64::new(0));
    let mut sent = 0;
    loop {
        tokio::time::sleep(REST).await;
        moment.fetch_add(1, Ordering::SeqCst);
        tokens.extend(
            clients
                .iter()
                .filter_map(|client| client.lock().token)
                .filter(|t| !tokens.contains(t))
                .collect::<Vec<_>>(),
        );
        if sent < REQUESTS && chance.percent(35) {
            let at = chance.below(CLIENTS);
            let mut client = clients[at].lock();
            if client.busy && chance.percent(10) {
                // It does not wait any longer; the answer may come all the same.
                client.busy = false;
            }
            if !client.busy {
                client.busy = true;
                sent += 1;
                let token = match client.token {
                    Some(token) if chance.percent(70) => token,
                    _ => tokens[chance.below(tokens.len())],
                };
                let home = usize::from(token.slot);
                let slot = if chance.percent(75) { home } else { chance.below(servers) };
                let wish = match (chance.below(20), client.again, client.tag) {
                    (0..8, _, _) => Wish::Find,
                    (8, _, _) => Wish::Read,
                    (9..12, _, _) => Wish::Change(sent),
                    (12..16, again, _) => Wish::Once(again.unwrap_or(sent)),
                    (16..18, _, Some(tag)) => Wish::IfMatch(sent, tag),
                    (18, _, _) if ends && sent > REQUESTS / 2 => Wish::End,
                    _ => Wish::Refuse,
                };
                client.again = if let Wish::Once(id) = wish { Some(id) } else { client.again };
                drop(client);
                let (server, clients, events) =
                    (town.servers[slot].sessions.clone(), clients.clone(), events.clone());
                let moment = moment.clone();
                let began = moment.load(Ordering::SeqCst) as usize;
                let index = events.lock().len();
                events.lock().push(Event { began, ended: None, saw: Saw::Nothing });
                tokio::spawn(async move {
                    let (saw, seen) = ask(&server, token, wish, visit).await;
                    let mut client = clients[at].lock();
                    client.busy = false;
                    if let Some(seen) = seen {
                        client.token = super::token(&seen);
                        client.tag = Some(seen.tag());
                    }
                    if matches!(
                        (wish, &saw),
                        (Wish::Once(_), Saw::Made { .. } | Saw::Repeated { .. } | Saw::Gone)
                    ) {
                        client.again = None;
                    }
                    let ended = Some(moment.load(Ordering::SeqCst) as usize + 1);
                    events.lock()[index] = Event { began, ended, saw };
                });
            }
            continue;
        }
        if chance.below(100) < trouble {
            town.trouble(&mut chance);
        } else if !town.world.step(&mut chance, trouble) && sent == REQUESTS {
            break;
        }
    }
    let events = events.lock();
    events.clone()
}

/// Histories of many seeds, each checked.
fn explore(seeds: std::ops::Range<u64>) {
    let mut told = [0; 4];
    for seed in seeds {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let events = runtime.block_on(history(seed));
        for event in &events {
            match event.saw {
                Saw::State { .. } => told[0] += 1,
                Saw::Made { .. } => told[1] += 1,
                Saw::Repeated { .. } => told[2] += 1,
                Saw::Gone => told[3] += 1,
                Saw::Nothing => {}
            }
        }
        if let Err(error) = check(&events) {
            let all: Vec<String> = events.iter().map(|event| format!("{event:?}")).collect();
            panic!("seed {seed}: {error}\n{}", all.join("\n"));
        }
    }
    // A test in which nothing happens would show nothing.
    assert!(told.iter().all(|count| *count > 0), "states, changes, repetitions, ends: {told:?}");
    println!("states, changes, repetitions, ends: {told:?}");
}

/// `INTERLEAVINGS=100000` explores more.
#[test]
fn in_no_order_of_events_is_an_old_state_told_or_a_change_lost() {
    let more = std::env::var("INTERLEAVINGS").ok().map(|text| text.parse().expect("a number of histories"));
    explore(0..more.unwrap_or(1000));
}
