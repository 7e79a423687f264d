//! Backends that are added and taken out while datagrams come: what is recognised stays where it is known, wherever its client
//! is by then, until its server is gone.

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use lb_userspace::quic::{QuicLbConfig, QuicLbIds};
use quinn::Connection;
use std::collections::{BTreeMap, HashMap};
use std::net::{Ipv4Addr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tests::balancer::dial;
use tests::client::{datagram_socket, eventually};
use tests::daemon::{Backend, Lbd, Manner};
use tests::quic::{Client, Server, Trust, ask};
use tests::share::{at_least, at_most};
use tests::topology::{Arms, Host, NIC, Topology};
use tokio::runtime::Runtime;

/// The client's second address.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 77);

/// Four backends, and a client with two addresses.
fn town() -> Result<Topology> {
    let town = Topology::new(Arms::Several, 4)?;
    town.client.netns.ip(&[&format!("addr add {ELSEWHERE}/24 dev {NIC}")])?;
    Ok(town)
}

fn remote(town: &Topology, n: usize) -> Vec<Backend<'_>> {
    town.backends[..n].iter().map(Backend::Remote).collect()
}

fn manner(affinity: &str) -> Manner {
    Manner {
        affinity: Some(affinity.to_owned()),
        more: Some("protocol = \"udp\"".to_owned()),
        // The longest that a test leaves a flow alone, and not much longer than it can wait.
        timeouts: Some("closing = \"1s\"\nudp_idle = \"20s\"".to_owned()),
        ..Manner::default()
    }
}

/// The state of a backend as lbctl lists it.
fn state(lbd: &Lbd, name: &str) -> Result<Option<String>> {
    Ok(lbd.list()?.into_iter().find(|backend| backend.name == name).map(|backend| backend.state))
}

/// A server that answers `sid=` and 16 characters with the same, its name and how often that was asked; and anything else
/// with a key that it makes up. Until it is dropped.
struct Teller {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Teller {
    fn start(host: &Host, name: String) -> Result<Self> {
        let socket = host.netns.run(|| UdpSocket::bind(host.serves()))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut counts: HashMap<String, u32> = HashMap::new();
            let mut buffer = [0; 100];
            while !stopped.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut buffer) else { continue };
                let asked = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let key = match asked.strip_prefix("sid=") {
                    Some(key) => key.to_owned(),
                    None => format!("{name:-<8}{:08}", counts.len()),
                };
                let count = counts.entry(key.clone()).or_default();
                *count += 1;
                // A health check may be gone by now.
                let _ = socket.send_to(format!("sid={key} {name} {count}").as_bytes(), client);
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Teller {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it has failed the test already.
            let _ = thread.join();
        }
    }
}

fn socket(town: &Topology, from: Ipv4Addr) -> Result<UdpSocket> {
    let socket = datagram_socket(&town.client.netns, from)?;
    socket.connect(dial())?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    Ok(socket)
}

/// The key of the answer, and who gave it; asked again when a datagram is lost.
fn tell(socket: &UdpSocket, asked: &str) -> Result<(String, String)> {
    let mut buffer = [0; 100];
    for _ in 0..40 {
        // Nobody listens any more, says the server's host; the balancer has yet to find that out.
        if socket.send(asked.as_bytes()).is_err() {
            continue;
        }
        if let Ok(length) = socket.recv(&mut buffer) {
            let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let mut words = answer.split(' ');
            let mut word = || Some(words.next()?.to_owned());
            return word().zip(word()).with_context(|| answer.clone());
        }
    }
    anyhow::bail!("nobody answers {asked}")
}

/// Somebody whom a server knows by a key.
struct Known {
    socket: UdpSocket,
    key: String,
    home: String,
}

impl Known {
    fn begin(town: &Topology) -> Result<Self> {
        let socket = socket(town, town.client.ip)?;
        let (key, home) = tell(&socket, "who am I?")?;
        Ok(Self { socket, key, home })
    }

    fn asks(&self) -> Result<String> {
        Ok(tell(&self.socket, &self.key)?.1)
    }

    fn stays(&self) -> Result<()> {
        let there = self.asks()?;
        ensure!(there == self.home, "{} was left for {there}", self.home);
        Ok(())
    }

    fn moves_to(&mut self, town: &Topology, from: Ipv4Addr) -> Result<()> {
        self.socket = socket(town, from)?;
        Ok(())
    }
}

#[test]
fn what_datagrams_have_learned_is_known_until_the_server_is_gone() -> Result<()> {
    const CLIENTS: usize = 60;
    const MORE: usize = 200;
    let town = town()?;
    let mut tellers: Vec<Teller> =
        (0..4).map(|i| Teller::start(&town.backends[i], format!("b{i}"))).collect::<Result<_>>()?;
    let mut lbd = Lbd::start_in(
        &town,
        &remote(&town, 3),
        manner("{ kind = \"learned\", marker = \"sid=\", bytes = 16, idle = \"10m\" }"),
    )?;
    let mut known: Vec<Known> = (0..CLIENTS).map(|_| Known::begin(&town)).collect::<Result<_>>()?;

    lbd.restart_with(&town, &remote(&town, 4))?;
    known.iter().try_for_each(Known::stays).with_context(|| lbd.log())?;
    let mut new: Vec<Known> = (0..MORE).map(|_| Known::begin(&town)).collect::<Result<_>>()?;
    let there = new.iter().filter(|known| known.home == "b3").count();
    let (least, most) = (at_least(MORE, 0.25), at_most(MORE, 0.25));
    ensure!((least..=most).contains(&there), "{there} of {MORE} came to the new one");
    known.append(&mut new);

    // One less: it is known still who lives there, from another address, too. New ones go elsewhere.
    lbd.restart_with(&town, &remote(&town, 3))?;
    known.iter().try_for_each(Known::stays).with_context(|| lbd.log())?;
    for somebody in &mut known {
        somebody.moves_to(&town, ELSEWHERE)?;
        somebody.stays().with_context(|| lbd.log())?;
    }
    for _ in 0..40 {
        ensure!(Known::begin(&town)?.home != "b3", "a backend that is gone gets something new");
    }
    ensure!(state(&lbd, "b3")?.as_deref() == Some("leaving"), "{:?}", lbd.list()?);
    let backend = format!("{}/b3", lbd.service());
    let sessions = lbd.ctl(&["session", "list", "--backend", &backend, "--limit", "1000"])?;
    ensure!(sessions.lines().filter(|line| line.contains(&backend)).count() == there, "{sessions}");

    // Its server dies: whoever lived there goes to another one, and nobody else does.
    drop(tellers.pop());
    eventually("it is found out", || {
        Ok(lbd.ctl(&["backend", "list"])?.contains("no longer configured; down: "))
    })
    .with_context(|| lbd.log())?;
    for somebody in &known {
        match somebody.home.as_str() {
            "b3" => ensure!(somebody.asks()? != "b3", "nobody is there any more"),
            _ => somebody.stays()?,
        }
    }
    eventually("it has left", || Ok(state(&lbd, "b3")?.is_none())).with_context(|| lbd.log())?;
    let sessions = lbd.ctl(&["session", "list", "--backend", "b0", "--limit", "1000"])?;
    ensure!(!sessions.contains(&backend), "{sessions}");
    Ok(())
}

/// A key that is hashed has no other home than its hash: of all keys the new backend's share moves, and comes back.
#[test]
fn of_hashed_datagrams_the_share_of_who_comes_and_goes_moves() -> Result<()> {
    const KEYS: usize = 400;
    let town = town()?;
    let _tellers: Vec<Teller> =
        (0..4).map(|i| Teller::start(&town.backends[i], format!("b{i}"))).collect::<Result<_>>()?;
    let affinity = "{ kind = \"hashed\", marker = \"sid=\", bytes = 16 }";
    let mut lbd = Lbd::start_in(&town, &remote(&town, 3), manner(affinity))?;
    let one = socket(&town, town.client.ip)?;
    let two = socket(&town, ELSEWHERE)?;
    let round = || -> Result<Vec<String>> {
        let key = |n| {
            let key = format!("sid=key-{n:012}");
            let (a, b) = (tell(&one, &key)?.1, tell(&two, &key)?.1);
            ensure!(a == b, "{key} leads to {a} and {b}");
            Ok(a)
        };
        (0..KEYS).map(key).collect()
    };
    let three = round()?;
    lbd.restart_with(&town, &remote(&town, 4))?;
    let four = round().with_context(|| lbd.log())?;
    let moved = three.iter().zip(&four).filter(|(before, after)| before != after).count();
    let there = four.iter().filter(|name| *name == "b3").count();
    ensure!(there >= at_least(KEYS, 0.25), "{there} of {KEYS} came to the new one");
    ensure!(moved <= at_most(KEYS, 0.25), "{moved} of {KEYS} moved, {there} of them to the new one");
    lbd.restart_with(&town, &remote(&town, 3))?;
    ensure!(round().with_context(|| lbd.log())? == three, "each key is where it was");
    Ok(())
}

const CONFIG: (u8, usize, usize) = (3, 4, 6);

fn server_id(slot: usize) -> Vec<u8> {
    vec![0x5e, 0xed, 0x00, slot as u8]
}

fn names(runtime: &Runtime, connections: &[Connection], nth: u32) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for some in connections.chunks(50) {
        for (name, asked) in runtime.block_on(try_join_all(some.iter().map(|c| ask(c, 10))))? {
            ensure!(asked == nth, "{name} remembers {asked} questions, not {nth}");
            names.push(name);
        }
    }
    Ok(names)
}

fn count(names: &[String]) -> BTreeMap<&str, usize> {
    let mut counts = BTreeMap::new();
    names.iter().for_each(|name| *counts.entry(name.as_str()).or_default() += 1);
    counts
}

#[test]
fn quic_connections_live_on_where_they_began_wherever_their_client_is() -> Result<()> {
    const CLIENTS: usize = 60;
    const MORE: usize = 120;
    let town = town()?;
    let (rotation, server, nonce) = CONFIG;
    let config = QuicLbConfig::new(rotation, server, nonce, None)?;
    let affinity = format!(
        "{{ kind = \"quic\", configs = [{{ rotation = {rotation}, server_id_bytes = {server}, nonce_bytes = {nonce} }}] }}"
    );
    let manner =
        Manner { each: Some(|slot| format!("server_id = \"5eed000{slot}\"\n")), ..manner(&affinity) };
    let (runtime, trust) = (Runtime::new()?, Trust::new()?);
    let _entered = runtime.enter();
    let mut servers = Vec::new();
    for (slot, host) in town.backends.iter().enumerate() {
        let ids = QuicLbIds::new(config, &server_id(slot))?;
        servers.push(Server::start(host, &format!("b{slot}"), &ids, &trust)?);
    }
    let mut lbd = Lbd::start_in(&town, &remote(&town, 3), manner)?;
    // One socket with connections to every server, as a proxy has it.
    let client = Client::new(&town.client.netns, town.client.ip, &trust)?;
    let connect = |n: usize| runtime.block_on(try_join_all((0..n).map(|_| client.connect(dial()))));
    let old = connect(CLIENTS)?;
    let homes = names(&runtime, &old, 1)?;
    ensure!(count(&homes).len() == 3, "{homes:?}");

    lbd.restart_with(&town, &remote(&town, 4))?;
    ensure!(names(&runtime, &old, 2).with_context(|| lbd.log())? == homes, "none was broken");
    let new = connect(MORE)?;
    let new_homes = names(&runtime, &new, 1)?;
    let there = count(&new_homes).get("b3").copied().unwrap_or(0);
    let (least, most) = (at_least(MORE, 0.25), at_most(MORE, 0.25));
    ensure!((least..=most).contains(&there), "{there} of {MORE} came to the new one");

    // One less. Its connections are known by their ids, so that their client may be anywhere.
    lbd.restart_with(&town, &remote(&town, 3))?;
    ensure!(names(&runtime, &new, 2).with_context(|| lbd.log())? == new_homes, "none was broken");
    client.move_to(&town.client.netns, ELSEWHERE)?;
    ensure!(names(&runtime, &new, 3).with_context(|| lbd.log())? == new_homes, "from another address");
    ensure!(names(&runtime, &old, 3)? == homes, "nor of those that had nothing to do with it");
    let later = connect(40)?;
    ensure!(
        !count(&names(&runtime, &later, 1)?).contains_key("b3"),
        "a backend that is gone gets something new"
    );
    let id = config.encode(&server_id(3), &[9; 6], config.own_length());
    let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let told = lbd.ctl(&["explain", "--connection-id", &id])?;
    ensure!(told.contains("its server id 5eed0003 is that of b3, which is leaving"), "{told}");

    // The next lbd knows as well.
    lbd.restart_with(&town, &remote(&town, 3))?;
    ensure!(names(&runtime, &new, 4).with_context(|| lbd.log())? == new_homes, "after another restart");
    let live = servers[3].connections();
    ensure!(live == there, "{live} connections live where {there} began");
    Ok(())
}
