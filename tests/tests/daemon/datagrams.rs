//! UDP, end to end: the real lbd, session servers that speak datagrams, and clients whose addresses change.

use anyhow::{Context, Result, anyhow, ensure};
use aya::maps::{Array, Map, MapData};
use lb_common::settings::Settings;
use lb_userspace::server::datagram::{NO_TOKEN, Operation, RawToken, Request, Response, Status};
use lb_userspace::session::Source;
use serde_json::Value;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tests::balancer::dial;
use tests::client::{datagram_socket, eventually};
use tests::daemon::{Backend, Lbd, Manner, program};
use tests::netns::{Netns, Process};
use tests::topology::{Arms, Host, NIC, PORT, Topology};

/// How long an answer is waited for before the request is sent again.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often a request is sent.
const TRIES: usize = 20;

fn managed() -> Manner {
    let (affinity, more) = ("{ kind = \"signed\", offset = 4 }".to_owned(), "protocol = \"udp\"".to_owned());
    Manner { affinity: Some(affinity), more: Some(more), ..Manner::default() }
}

/// A socket of the client, at an address of its own choice, that hears the VIP alone.
fn socket(town: &Topology, from: Ipv4Addr) -> Result<UdpSocket> {
    let socket = datagram_socket(&town.client.netns, from)?;
    socket.connect(dial())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

/// Asks, and asks again when nothing comes. Every answer to the request is one of this protocol.
fn ask(socket: &UdpSocket, request: &Request<'_>) -> Result<Response> {
    let mut buffer = [0; 2000];
    for _ in 0..TRIES {
        socket.send(&request.to_bytes())?;
        match socket.recv(&mut buffer) {
            Ok(length) => {
                let response = Response::parse(&buffer[..length])?;
                if (response.id, response.operation) == (request.id, request.operation as u8) {
                    return Ok(response);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error).context("asking"),
        }
    }
    anyhow::bail!("no answer to {request:?}")
}

fn show(token: RawToken, id: u64) -> Request<'static> {
    Request::new(Operation::Show, token, id)
}

fn put<'a>(token: RawToken, id: u64, key: &'a str, value: &'a str) -> Request<'a> {
    Request { key, value: value.as_bytes(), ..Request::new(Operation::Put, token, id) }
}

#[test]
fn a_session_stays_at_home_wherever_its_client_is_and_survives_its_server() -> Result<()> {
    let town = Topology::new(Arms::Several, 0)?;
    town.client.netns.ip(&[&format!("addr add 10.0.1.77/24 dev {NIC}")])?;
    let lbd = Lbd::start_in(&town, &[Backend::Managed, Backend::Managed, Backend::Managed], managed())
        .context("lbd")?;
    let own = town.client.ip;
    let begun = ask(&socket(&town, own)?, &put(NO_TOKEN, 1, "cart", "[1]"))?;
    ensure!((begun.status, begun.source) == (Status::Created, Some(Source::New)), "{begun:?}");
    let (home, token) = (begun.server, begun.token);
    // From another port each time, and from another address: never anywhere else, never from the database.
    for i in 0..30 {
        let from = if i % 3 == 0 { Ipv4Addr::new(10, 0, 1, 77) } else { own };
        let seen = ask(&socket(&town, from)?, &show(token, 100 + i))?;
        ensure!(
            (&seen.server, seen.source, seen.token) == (&home, Some(Source::Cache), token),
            "{i}: {seen:?}"
        );
    }
    ensure!(lbd.counter("affinity_hit")? >= 30 && lbd.counter("new_session")? >= 1);
    // A change that is sent again, from elsewhere, is made once.
    let change = put(token, 2, "cart", "[1, 2]");
    let first = ask(&socket(&town, own)?, &change)?;
    let again = ask(&socket(&town, Ipv4Addr::new(10, 0, 1, 77))?, &change)?;
    ensure!(!first.repeated && again == Response { repeated: true, ..first.clone() }, "{first:?} {again:?}");

    lbd.ctl(&["backend", "restart", &home])?;
    let after = ask(&socket(&town, own)?, &show(token, 3))?;
    ensure!((&after.server, after.source) == (&home, Some(Source::Database)), "{after:?}");
    ensure!(after.epoch > first.epoch && after.body == br#"{"cart":[1, 2]}"#, "{after:?}");
    let cached = ask(&socket(&town, own)?, &show(after.token, 4))?;
    ensure!((&cached.server, cached.source) == (&home, Some(Source::Cache)), "{cached:?}");
    ensure!(lbd.counter("stale_instance")? >= 1);

    lbd.ctl(&["backend", "maint", &home])?;
    let moved = ask(&socket(&town, own)?, &show(after.token, 5))?;
    ensure!(moved.server != home && moved.source == Some(Source::Database), "{moved:?}");
    ensure!(moved.body == br#"{"cart":[1, 2]}"#, "{moved:?}");
    ensure!(lbd.counter("redispatched")? >= 1);
    let ended = ask(&socket(&town, own)?, &Request::new(Operation::End, moved.token, 6))?;
    ensure!((ended.status, ended.token) == (Status::Done, NO_TOKEN), "{ended:?}");
    Ok(())
}

/// Sends a request until it is done, the very same one.
fn until_done(socket: &UdpSocket, request: &Request<'_>) -> Result<Response> {
    loop {
        let answer = ask(socket, request)?;
        match answer.status {
            Status::Done | Status::Created => return Ok(answer),
            Status::Unavailable | Status::Conflict => {}
            _ => anyhow::bail!("{request:?}: {answer:?}"),
        }
    }
}

/// One client writes and reads what it wrote, again and again, until it is told to stop. All count how often.
fn insist(town: &Topology, stop: &AtomicBool, all: &AtomicU64) -> Result<u64> {
    let begun = ask(&socket(town, town.client.ip)?, &show(NO_TOKEN, 0))?;
    let mut token = begun.token;
    let mut written = 0;
    while !stop.load(Ordering::Relaxed) {
        let socket = socket(town, town.client.ip)?;
        written += 1;
        let value = written.to_string();
        let put = until_done(&socket, &put(token, written, "n", &value))?;
        let get = Request { key: "n", ..Request::new(Operation::Get, put.token, written) };
        let seen = until_done(&socket, &get)?;
        ensure!(seen.body == value.as_bytes(), "{value} was written, this was read: {seen:?}");
        ensure!(seen.version == put.version, "{put:?} was written, this was read: {seen:?}");
        token = seen.token;
        all.fetch_add(1, Ordering::Relaxed);
    }
    Ok(written)
}

#[test]
fn what_was_acknowledged_is_there_whatever_happens_to_the_servers() -> Result<()> {
    let town = Topology::new(Arms::Several, 0)?;
    let lbd = Lbd::start_in(&town, &[Backend::Managed, Backend::Managed, Backend::Managed], managed())?;
    let (stop, all) = (AtomicBool::new(false), AtomicU64::new(0));
    let written = std::thread::scope(|scope| -> Result<Vec<u64>> {
        let clients: Vec<_> = (0..6).map(|_| scope.spawn(|| insist(&town, &stop, &all))).collect();
        let trouble = || -> Result<()> {
            for round in 0..6 {
                for (verb, n) in [("kill", 0), ("maint", 1), ("ready", 1), ("restart", 2)] {
                    let before = all.load(Ordering::Relaxed);
                    lbd.ctl(&["backend", verb, &format!("b{}", (round + n) % 3)])?;
                    eventually("clients get on", || {
                        let failed = clients.iter().any(|client| client.is_finished());
                        Ok(failed || all.load(Ordering::Relaxed) > before + 40)
                    })?;
                }
            }
            Ok(())
        };
        let troubled = trouble();
        stop.store(true, Ordering::Relaxed);
        let written = clients.into_iter().map(|client| client.join().expect("no panic")).collect();
        troubled.and(written)
    })?;
    ensure!(written.iter().all(|count| *count > 10), "{written:?}");
    ensure!(lbd.counter("redispatched")? > 0, "nobody had to move");
    Ok(())
}

/// A server that answers every datagram with the address that it came from, until it is dropped.
struct Mirror {
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Mirror {
    fn start(host: &Host) -> Result<Self> {
        let addr = host.serves();
        let socket = host.netns.run(|| UdpSocket::bind(addr))?;
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = [0; 2000];
            while !stopped.load(Ordering::Relaxed) {
                if let Ok((_, client)) = socket.recv_from(&mut buffer) {
                    // Whoever asked and has gone is nobody's trouble.
                    let _ = socket.send_to(client.to_string().as_bytes(), client);
                }
            }
        });
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Mirror {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic in it has failed the test already.
            let _ = thread.join();
        }
    }
}

#[test]
fn servers_of_others_see_the_client_and_it_sees_the_vip() -> Result<()> {
    let town = Topology::new(Arms::Several, 2)?;
    let mirrors = town.backends.iter().map(Mirror::start).collect::<Result<Vec<_>>>()?;
    let backends: Vec<_> = town.backends.iter().map(Backend::Remote).collect();
    let manner = Manner {
        affinity: Some("{ kind = \"none\" }".to_owned()),
        more: Some("protocol = \"udp\"".to_owned()),
        ..Manner::default()
    };
    let lbd = Lbd::start_in(&town, &backends, manner)?;
    for _ in 0..20 {
        let socket = socket(&town, town.client.ip)?;
        let own = socket.local_addr()?;
        let mut buffer = [0; 100];
        for _ in 0..TRIES {
            socket.send(b"who am I?")?;
            // A connected socket hears nobody but the VIP.
            if let Ok(length) = socket.recv(&mut buffer) {
                let seen: SocketAddr = std::str::from_utf8(&buffer[..length])?.parse()?;
                ensure!(seen == own, "{seen} is not {own}");
                buffer[0] = 0xff;
                break;
            }
        }
        ensure!(buffer[0] == 0xff, "no answer");
    }
    ensure!(lbd.counter("new_session")? >= 20);
    // A server whose socket is closed is found out, without anything that it would have to answer.
    drop(mirrors);
    eventually("both are down", || Ok(lbd.states()?.iter().all(|(_, state)| state == "down")))?;
    let told: Value = serde_json::from_str(&lbd.ctl(&["backend", "list", "--json"])?)?;
    ensure!(told.to_string().contains("Connection refused"), "{told}");
    Ok(())
}

/// lbctl on the client's host, which knows of no lbd.
fn udp_ping(town: &Topology, target: &str, args: &[&str]) -> Result<(i32, Vec<Value>, String)> {
    let mut command = town.client.netns.command(&program("lbctl", "build")?);
    command.args(["--socket", "/nonexistent", "--json", "udp-ping", target]).args(args);
    let output = command.output()?;
    let text = String::from_utf8(output.stdout)?;
    let lines = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok((output.status.code().context("a code")?, lines, String::from_utf8(output.stderr)?))
}

#[test]
fn udp_ping_needs_no_lbd_and_tells_what_each_request_came_to() -> Result<()> {
    let town = Topology::new(Arms::Several, 0)?;
    let lbd = Lbd::start_in(&town, &[Backend::Managed, Backend::Managed], managed())?;
    let vip = dial().to_string();
    let (code, lines, _) = udp_ping(&town, &vip, &["--count", "6", "--interval", "10ms", "--new-port"])?;
    ensure!(code == 0 && lines.len() == 7, "{code}: {lines:?}");
    let states: Vec<_> = lines[..6].iter().map(|line| line["state"].as_str().unwrap_or("?")).collect();
    ensure!(states == ["new", "visit", "visit", "visit", "visit", "visit"], "{lines:?}");
    let summary = &lines[6]["summary"];
    ensure!(summary["sent"] == 6 && summary["lost"] == 0 && summary["visits"] == 5, "{summary}");
    let token = summary["token"].as_str().context("a token")?;
    let home = lines[0]["server"].as_str().context("a server")?;
    ensure!(lines.iter().take(6).all(|line| line["server"] == home), "{lines:?}");
    let status: Value = serde_json::from_str(&lbd.ctl(&["status", "--json"])?)?;
    ensure!(status["sessions"] == 0, "a ping leaves nothing behind: {status}");
    // Its first change begins it, at home.
    let raw = lb_common::token::decode(token.as_bytes()).map_err(|error| anyhow!("{error}"))?;
    let begun = ask(&socket(&town, town.client.ip)?, &put(raw, 1, "n", "1"))?;
    ensure!((begun.status, &*begun.server, begun.version) == (Status::Created, home, 1), "{begun:?}");
    let (code, lines, _) = udp_ping(&town, &vip, &["--count", "1", "--session", token])?;
    ensure!(code == 0 && lines[0]["state"] == "hit" && lines[0]["server"] == home, "{lines:?}");
    // The same session after a restart of its server: reloaded once.
    lbd.ctl(&["backend", "restart", home])?;
    let (code, lines, _) =
        udp_ping(&town, &vip, &["--count", "3", "--interval", "10ms", "--session", token])?;
    let states: Vec<_> = lines[..3].iter().map(|line| line["state"].as_str().unwrap_or("?")).collect();
    ensure!(code == 0 && states == ["reload", "hit", "hit"], "{lines:?}");
    ensure!(lines[0]["token_epoch"].as_u64() < lines[0]["epoch"].as_u64(), "{lines:?}");
    // Everybody new: both servers get some.
    let (_, lines, _) =
        udp_ping(&town, &vip, &["--count", "40", "--interval", "1ms", "--session", "new", "--new-port"])?;
    let summary = &lines[40]["summary"];
    ensure!(summary["new"] == 40, "{summary}");
    ensure!(summary["servers"].as_object().is_some_and(|servers| servers.len() == 2), "{summary}");
    // Nobody at all, and nothing that could be asked.
    let silent = format!("{}:{}", dial().ip(), PORT + 1);
    let (code, lines, _) = udp_ping(&town, &silent, &["--count", "1", "--timeout", "100ms"])?;
    ensure!(code == 1 && lines[1]["summary"]["lost"] == 1, "{lines:?}");
    let (code, _, err) = udp_ping(&town, "[2001:db8::1]:80", &["--count", "1"])?;
    ensure!(code == 2 && err.contains("cannot ask"), "{code}: {err}");
    Ok(())
}

/// Whether the programs of an lbd tell decisions.
fn traced(lbd: &Lbd) -> Result<u32> {
    let pin = find(&lbd.dir().join("run"), "SETTINGS").context("the pinned settings")?;
    let map = Map::Array(MapData::from_pin(&pin)?);
    let settings: Array<_, Settings> = Array::try_from(&map)?;
    Ok(settings.get(&0, 0)?.trace)
}

fn find(directory: &Path, name: &str) -> Option<PathBuf> {
    std::fs::read_dir(directory).ok()?.flatten().find_map(|entry| {
        let path = entry.path();
        if path.is_dir() { find(&path, name) } else { (entry.file_name() == name).then_some(path) }
    })
}

/// An lbctl that listens, with its output in a file.
struct Listener {
    process: Process,
    out: PathBuf,
}

impl Listener {
    fn start(lbd: &Lbd, name: &str, args: &[&str]) -> Result<Self> {
        let out = lbd.dir().join(name);
        let mut command: Command = lbd.lbctl(&["--json", "trace"])?;
        command.args(args).stdout(std::fs::File::create(&out)?).stderr(Stdio::inherit());
        Ok(Self { process: Process(command.spawn()?), out })
    }

    fn decisions(&self) -> Result<Vec<Value>> {
        let text = std::fs::read_to_string(&self.out)?;
        // The last line may be on its way still.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        Ok(whole.lines().map(serde_json::from_str).collect::<Result<_, _>>()?)
    }
}

/// Asks from a port of its own in that namespace, so that there is a decision; says which port.
fn decide(town: &Topology, netns: &Netns, from: Ipv4Addr) -> Result<SocketAddr> {
    let socket = datagram_socket(netns, from)?;
    socket.connect(dial())?;
    socket.set_read_timeout(Some(PATIENCE))?;
    ask(&socket, &show(NO_TOKEN, 1)).context(town.client.ip)?;
    Ok(socket.local_addr()?)
}

#[test]
fn trace_tells_decisions_to_who_listens_and_nothing_when_nobody_does() -> Result<()> {
    let town = Topology::new(Arms::Several, 0)?;
    let other = Ipv4Addr::new(10, 0, 1, 77);
    town.client.netns.ip(&[&format!("addr add {other}/24 dev {NIC}")])?;
    let lbd = Lbd::start_in(&town, &[Backend::Managed, Backend::Managed], managed())?;
    let netns = &town.client.netns;
    decide(&town, netns, town.client.ip)?;
    ensure!(traced(&lbd)? == 0);
    let mut all = Listener::start(&lbd, "all", &[])?;
    eventually("the programs tell", || Ok(traced(&lbd)? == 1))?;
    let mut one = Listener::start(&lbd, "one", &["--client", &other.to_string()])?;
    let mut two = Listener::start(&lbd, "two", &["--service", lbd.service(), "--count", "3"])?;
    // Nobody knows when the others have begun to listen; when they hear the first, they do.
    eventually("all three hear", || {
        decide(&town, netns, town.client.ip)?;
        decide(&town, netns, other)?;
        Ok([&one, &two].iter().all(|listener| listener.decisions().is_ok_and(|heard| !heard.is_empty())))
    })?;
    let before = one.decisions()?.len();
    let (mine, others) = (decide(&town, netns, town.client.ip)?, decide(&town, netns, other)?);
    eventually("both are told", || {
        let of = |client: SocketAddr, heard: &[Value]| {
            heard.iter().any(|decision| decision["client"] == client.to_string())
        };
        let (all, one) = (all.decisions()?, one.decisions()?);
        Ok(of(mine, &all) && of(others, &all) && of(others, &one))
    })?;
    let heard = one.decisions()?;
    ensure!(
        heard.len() > before
            && heard.iter().all(|decision| decision["client"]
                .as_str()
                .is_some_and(|client| client.starts_with("10.0.1.77:"))),
        "{heard:?}"
    );
    let decision = heard.last().context("at least one")?;
    ensure!(decision["service"] == lbd.service(), "{decision}");
    let told = (decision["key"].as_str(), decision["reason"].as_str());
    ensure!(told == (Some("absent"), Some("new_session")), "zeros are no token: {decision}");
    let backend = decision["backend"].as_str().context("a backend")?;
    ensure!([0, 1].iter().any(|n| backend == format!("{}/b{n}", lbd.service())), "{decision}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_micros() as u64;
    ensure!(
        decision["at_unix_us"].as_u64().is_some_and(|at| at <= now && now - at < 60_000_000),
        "{decision}"
    );
    let token = ask(&socket(&town, other)?, &show(NO_TOKEN, 1))?.token;
    let client = socket(&town, other)?;
    ask(&client, &show(token, 2))?;
    eventually("a hit is told", || {
        let heard = one.decisions()?;
        let of = client.local_addr()?.to_string();
        let hit = heard.iter().find(|decision| decision["client"] == of.as_str());
        Ok(hit.is_some_and(|hit| hit["key"] == "valid" && hit["reason"] == "affinity_hit"))
    })?;
    // One that has heard enough ends, and tells that nothing was lost.
    eventually("it has heard enough", || {
        decide(&town, netns, town.client.ip)?;
        Ok(two.process.0.try_wait()?.is_some_and(|status| status.success()))
    })?;
    let heard = two.decisions()?;
    ensure!(heard.len() == 4 && heard[3]["lost"] == 0, "{heard:?}");
    // A listener that is killed is gone all the same; the last one ends it.
    ensure!(traced(&lbd)? == 1);
    one.process.end(nix::sys::signal::Signal::SIGKILL)?;
    all.process.end(nix::sys::signal::Signal::SIGKILL)?;
    eventually("the programs tell nobody", || Ok(traced(&lbd)? == 0))?;
    // An lbd that stops takes its listeners with it, and one that died leaves none to the next.
    let mut lbd = lbd;
    for graceful in [true, false] {
        let mut last = Listener::start(&lbd, "last", &[])?;
        eventually("the programs tell again", || Ok(traced(&lbd)? == 1))?;
        if graceful {
            lbd.stop()?;
            ensure!(traced(&lbd)? == 0, "nobody is left to read");
        } else {
            lbd.kill()?;
        }
        let status = last.process.0.wait()?;
        ensure!(status.code() == Some(2), "lbctl is told that lbd is gone: {status}");
        lbd.resume()?;
        ensure!(traced(&lbd)? == 0, "graceful: {graceful}");
    }
    Ok(())
}

#[test]
fn decisions_that_nobody_reads_are_counted_and_told_as_lost() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let _mirror = Mirror::start(&town.backends[0])?;
    let manner = Manner {
        affinity: Some("{ kind = \"none\" }".to_owned()),
        more: Some("protocol = \"udp\"".to_owned()),
        limits: Some("trace_bytes = \"4 KiB\"".to_owned()),
        ..Manner::default()
    };
    let lbd = Lbd::start_in(&town, &[Backend::Remote(&town.backends[0])], manner)?;
    let visit = || -> Result<()> {
        let socket = socket(&town, town.client.ip)?;
        let mut buffer = [0; 100];
        for _ in 0..TRIES {
            socket.send(b"x")?;
            if socket.recv(&mut buffer).is_ok() {
                return Ok(());
            }
        }
        anyhow::bail!("no answer")
    };
    let listener = Listener::start(&lbd, "all", &[])?;
    eventually("it listens", || {
        visit()?;
        Ok(!listener.decisions()?.is_empty())
    })?;
    let heard = listener.decisions()?.len();
    // While lbd stands still, more is decided than the buffer holds: 4096 bytes, 48 a decision. Traffic goes on.
    lbd.process()?.freeze()?;
    let stood = (0..200).try_for_each(|_| visit());
    lbd.process()?.thaw()?;
    stood?;
    eventually("it goes on", || {
        visit()?;
        Ok(listener.decisions()?.len() > heard + 85)
    })?;
    let lost = lbd.counter("trace_lost")?;
    ensure!((100..200).contains(&lost), "{lost} lost");
    // The user ends it, and hears what it has not.
    let mut listener = listener;
    eventually("it says what was lost", || {
        listener.process.signal(nix::sys::signal::Signal::SIGINT)?;
        Ok(listener.process.0.try_wait()?.is_some())
    })?;
    let text = std::fs::read_to_string(&listener.out)?;
    let last: Value = serde_json::from_str(text.lines().last().context("a line")?)?;
    ensure!(last["lost"].as_u64() == Some(lost), "{last}, not {lost}");
    Ok(())
}
