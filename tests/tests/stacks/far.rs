//! Clients that are far away: what delayed binding costs them, counted in round trips.

use anyhow::{Context, Result, ensure};
use lb_common::counter::Counter;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::time::{Duration, Instant};
use tests::balancer::dial;
use tests::client::WATCHDOG;
use tests::delay::Far;
use tests::server::{pattern, send_pattern};
use tests::topology::Arms;
use tests::world::World;

/// To the client's router; every round trip takes twice that.
const ONE_WAY: Duration = Duration::from_millis(15);
/// What the issue allows beyond two round trips.
const SLACK: Duration = Duration::from_millis(2);

/// A request, its body included, and the body of its answer.
struct Exchange {
    name: &'static str,
    request: Vec<u8>,
    answer: String,
}

fn exchanges(token: &str) -> Result<Vec<Exchange>> {
    let upload = |n: u64, headers: &str| -> Result<Vec<u8>> {
        let mut request = format!(
            "POST / HTTP/1.1\r\nHost: shop\r\n{headers}Content-Length: {n}\r\nConnection: close\r\n\r\n"
        )
        .into_bytes();
        send_pattern(&mut request, n)?;
        Ok(request)
    };
    let (long, cookie) = (format!("X-Long: {}\r\n", "l".repeat(8_000)), format!("Cookie: lb={token}\r\n"));
    ensure!(pattern(1) != pattern(2), "the body is no constant");
    Ok(vec![
        Exchange { name: "1 MB", request: upload(1_000_000, &cookie)?, answer: "1000000 same".into() },
        Exchange {
            name: "8 kB of headers",
            request: upload(10, &format!("{cookie}{long}"))?,
            answer: "10 same".into(),
        },
        Exchange {
            name: "the token behind 1,600 bytes",
            request: upload(10, &format!("X: {}\r\n{cookie}", "l".repeat(1_600)))?,
            answer: "10 same".into(),
        },
        Exchange {
            name: "the token behind 8 kB",
            request: upload(10, &format!("{long}{cookie}"))?,
            answer: "10 same".into(),
        },
    ])
}

/// Connects, asks, and reads the answer to its end; returns how long that took.
fn ask(far: &Far, to: SocketAddrV4, exchange: &Exchange) -> Result<Duration> {
    let begun = Instant::now();
    let mut stream = far.netns.run(|| TcpStream::connect(to))?;
    stream.set_read_timeout(Some(WATCHDOG))?;
    stream.set_nodelay(true)?;
    stream.write_all(&exchange.request)?;
    let mut input = BufReader::new(stream);
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        ensure!(input.read_line(&mut line)? > 0, "closed within the head");
    }
    let mut body = String::new();
    input.read_to_string(&mut body)?;
    ensure!(body == exchange.answer, "{}: answer {body:?}", exchange.name);
    Ok(begun.elapsed())
}

/// How often the client sent something again, and how long it took: what is worse comes first.
type Cost = (u64, Duration);

/// The best of some tries: what the machine does beside is not what is asked for.
fn best(far: &Far, to: SocketAddrV4, exchange: &Exchange, tries: u32, aim: Duration) -> Result<Cost> {
    let mut best = (u64::MAX, Duration::MAX);
    for _ in 0..tries {
        let before = resent(far)?;
        let took = ask(far, to, exchange)?;
        best = best.min((resent(far)? - before, took));
        if best <= (0, aim) {
            break;
        }
    }
    Ok(best)
}

/// Timeouts of the client and segments that it sent again.
fn resent(far: &Far) -> Result<u64> {
    Ok(far.netns.counter("TcpExtTCPTimeouts")? + far.netns.counter("TcpRetransSegs")?)
}

#[test]
fn large_requests_suffer_no_retransmission_timeout() -> Result<()> {
    let world = World::new(Arms::Several, 1)?;
    let far = Far::behind(&world.town, ONE_WAY)?;
    let direct = world.town.backends[0].serves();
    let token = world.balancer.setup.token(0, 7);
    for exchange in exchanges(&token)? {
        let context = || format!("{}: {}", exchange.name, world.counts());
        let (_, without) = best(&far, direct, &exchange, 4, Duration::ZERO).with_context(context)?;
        let aim = without + 4 * ONE_WAY + SLACK;
        let (resent, with) = best(&far, dial(), &exchange, 20, aim).with_context(context)?;
        let told =
            format!("{}: {without:?} without the balancer, {with:?} with it, {resent} resent", exchange.name);
        println!("{told}");
        assert!((resent, with) <= (0, aim), "{told}, {}", world.counts());
    }
    let counts = world.balancer.maps.counts()?;
    assert!(counts.get(Counter::HeadAwaited) > 0, "{counts:?}");
    assert!(counts.get(Counter::HeadIncomplete) > 0, "the token behind 8 kB: {counts:?}");
    assert!(counts.get(Counter::AffinityHit) > counts.get(Counter::NewSession), "{counts:?}");
    world.check()
}
