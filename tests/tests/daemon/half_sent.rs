//! Requests that nobody finishes, and everybody else.

use anyhow::{Context, Result, ensure};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use serde_json::Value;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tests::balancer::dial;
use tests::client::{WATCHDOG, eventually};
use tests::daemon::{Backend, Lbd, Manner};
use tests::server::Server;
use tests::topology::{Arms, NIC, PORT, Topology};
use tests::visitor::Visitor;

/// The rest of the head is missing.
const HALF_A_HEAD: &[u8] = b"GET /session HTTP/1.1\r\nHost: shop\r\nX: ";
/// The rest of the body is.
const HALF_A_BODY: &[u8] = b"PUT /session/n HTTP/1.1\r\nHost: shop\r\nContent-Length: 100\r\n\r\n\"";
const REQUESTS: usize = 10_000;
/// They come from so many addresses: each may have 512 connections to a managed server.
const ADDRESSES: u8 = 50;
/// Descriptors of this process: one for each request, and some.
const FILES: u64 = REQUESTS as u64 + 1000;
/// Whoever has not been served for so long is starved. A connection that finds a full queue is tried again after 1, 2 and 4 s.
const STARVED: Duration = Duration::from_secs(15);

/// Another service, with a backend on a host of its own.
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 2);

/// The second backend is the other service's.
fn other(backend: usize) -> String {
    if backend > 0 {
        return String::new();
    }
    format!(
        "[[service]]\nname = \"other\"\nvip = \"{OTHER}:{PORT}\"\naffinity = {{ kind = \"none\" }}\n\
         [service.health]\ninterval = \"200ms\"\ntimeout = \"1s\"\nrise = 1\nfall = 2\n"
    )
}

/// A request of which the rest never comes.
fn half(from: Ipv4Addr, request: &[u8]) -> Result<Socket> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
    socket.bind(&SockAddr::from(SocketAddr::from((from, 0))))?;
    socket.connect_timeout(&SocketAddr::V4(dial()).into(), WATCHDOG)?;
    socket.set_nonblocking(true)?;
    (&socket).write_all(request)?;
    Ok(socket)
}

/// All of them, as fast as they go.
fn burst(town: &Topology, from: &[Ipv4Addr], request: &[u8]) -> Result<Vec<Socket>> {
    const AT_ONCE: usize = 8;
    let some = |first: usize| -> Result<Vec<Socket>> {
        let numbers = (first..REQUESTS).step_by(AT_ONCE);
        town.client.netns.run(|| numbers.map(|n| half(from[n % from.len()], request)).collect())
    };
    std::thread::scope(|scope| {
        let some = &some;
        let threads: Vec<_> = (0..AT_ONCE).map(|first| scope.spawn(move || some(first))).collect();
        let mut all = Vec::with_capacity(REQUESTS);
        for thread in threads {
            all.extend(thread.join().expect("no thread panics")?);
        }
        Ok(all)
    })
}

/// Asks the other service.
fn ask_other(town: &Topology) -> Result<String> {
    let mut stream = town.client.netns.run(|| TcpStream::connect((OTHER, PORT)))?;
    stream.set_read_timeout(Some(STARVED))?;
    stream.write_all(b"GET / HTTP/1.1\r\nHost: other\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// What `f` returns, if it does not take too long.
fn soon<T>(what: &str, f: impl FnOnce() -> Result<T>) -> Result<T> {
    let begin = Instant::now();
    let done = f().with_context(|| what.to_owned())?;
    ensure!(begin.elapsed() < STARVED, "{what} took {:?}", begin.elapsed());
    Ok(done)
}

/// Everybody else asks for something, and gets it.
fn serve(town: &Topology, lbd: &Lbd, regular: &mut Visitor, n: u32) -> Result<()> {
    let netns = &town.client.netns;
    soon("a visitor with a session", || regular.put(netns, "n", &n.to_string()))?;
    let seen = soon("its session", || regular.session(netns))?;
    ensure!(seen["state"]["n"] == n, "{seen}");
    soon("a new visitor", || Visitor::default().put(netns, "n", "1"))?;
    let answer = soon("another service", || ask_other(town))?;
    ensure!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("elsewhere"), "{answer}");
    let told: Value = serde_json::from_str(&soon("lbctl", || lbd.ctl(&["status", "--json"]))?)?;
    ensure!(told["store"]["available"] == true, "{told}");
    let states = lbd.states()?;
    ensure!(states.iter().all(|(_, state)| state == "ready"), "{states:?}");
    Ok(())
}

/// Sends so many halves of a request, and serves others meanwhile. Returns lbd's counters of the first service.
fn starve(request: &[u8], counters: &[&str]) -> Result<Vec<u64>> {
    // One of them at a time: there are not descriptors for more.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, FILES.max(hard), FILES.max(hard))
        .with_context(|| format!("this test needs {FILES} open files"))?;
    let town = Topology::new(Arms::Several, 1)?;
    let netns = &town.client.netns;
    let addresses: Vec<_> = (0..ADDRESSES).map(|n| Ipv4Addr::new(10, 0, 1, 100 + n)).collect();
    let added: Vec<_> = addresses.iter().map(|addr| format!("addr add {addr}/24 dev {NIC}")).collect();
    netns.ip(&added.iter().map(String::as_str).collect::<Vec<_>>())?;
    let _server = Server::start(&town.backends[0], "elsewhere")?;
    let backends = [Backend::Managed, Backend::Remote(&town.backends[0])];
    let lbd = Lbd::start_in(&town, &backends, Manner { each: Some(other), ..Manner::default() })?;
    let mut regular = Visitor::default();
    regular.put(netns, "n", "0")?;

    let halves = burst(&town, &addresses, request).with_context(|| lbd.log())?;
    for n in 1..=20 {
        serve(&town, &lbd, &mut regular, n)
            .with_context(|| format!("{}\n{}", lbd.log(), lbd.ctl(&["stats"]).unwrap_or_default()))?;
    }
    let stats: Value = serde_json::from_str(&lbd.ctl(&["stats", "--json"])?)?;
    let all = stats["counters"].as_array().context("counters")?;
    let local = all.iter().find(|c| c["counter"] == "health_local_errors").context("a counter")?;
    ensure!(local["value"] == 0, "no descriptor was left for a check: {stats}");
    let counted = counters.iter().map(|name| lbd.counter(name)).collect();
    drop(halves);
    eventually("the last of them are gone", || Ok(regular.session(netns)?["source"] == "cache"))?;
    counted
}

#[test]
fn ten_thousand_half_sent_heads_leave_everything_else_served() -> Result<()> {
    let counted = starve(HALF_A_HEAD, &["head_awaited", "stash_evicted"])?;
    // A segment may still be on its way once more.
    ensure!(counted[0] > REQUESTS as u64 * 9 / 10 && counted[1] > 0, "{counted:?}");
    Ok(())
}

/// These reach the server, which has no places for all of them.
#[test]
fn ten_thousand_half_sent_bodies_leave_everything_else_served() -> Result<()> {
    let counted = starve(HALF_A_BODY, &["spliced", "server_connections_full", "waiting_connections_closed"])?;
    ensure!(counted[0] > 8192 && counted[1] > 0 && counted[2] > 0, "{counted:?}");
    Ok(())
}
