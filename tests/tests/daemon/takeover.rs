//! lbd may die: traffic to remote backends flows on through what is pinned, and the next lbd takes over.

use anyhow::{Context, Result, ensure};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tests::client::{Client, eventually, get};
use tests::daemon::{Backend, Lbd};
use tests::nginx::{BODY, Nginx};
use tests::topology::{Arms, Topology};

/// Requests without pause, on new connections and on kept ones, until told to stop.
struct Traffic {
    stop: AtomicBool,
    done: AtomicU64,
}

impl Traffic {
    fn run(&self, town: &Topology, keep: bool) -> Result<()> {
        let mut kept = Client::connect(&town.client.netns)?;
        while !self.stop.load(Ordering::Relaxed) {
            let body = if keep { kept.get("/", "")?.body } else { get(&town.client.netns, "")? };
            ensure!(body == BODY, "another answer: {body}");
            self.done.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Lets so many more requests be answered.
    fn more(&self, n: u64) -> Result<()> {
        let until = self.done.load(Ordering::Relaxed) + n;
        eventually("more requests were answered", || Ok(self.done.load(Ordering::Relaxed) >= until))
    }
}

#[test]
fn not_one_request_fails_while_lbd_is_killed_and_started_again() -> Result<()> {
    let town = Topology::new(Arms::Several, 2)?;
    let _servers = [Nginx::start(&town.backends[0])?, Nginx::start(&town.backends[1])?];
    let mut lbd =
        Lbd::start(&town, &[Backend::Remote(&town.backends[0]), Backend::Remote(&town.backends[1])])?;
    let traffic = Traffic { stop: AtomicBool::new(false), done: AtomicU64::new(0) };
    let (traffic, town) = (&traffic, &town);
    std::thread::scope(|scope| -> Result<()> {
        let clients: Vec<_> =
            [true, false, true, false].map(|keep| scope.spawn(move || traffic.run(town, keep))).into();
        let mut story = || -> Result<()> {
            for _ in 0..3 {
                traffic.more(500)?;
                lbd.kill()?;
                traffic.more(500)?;
                lbd.resume()?;
            }
            traffic.more(500)
        };
        let told = story();
        traffic.stop.store(true, Ordering::Relaxed);
        for client in clients {
            client.join().expect("no client panics").context("a request failed")?;
        }
        told
    })
    .with_context(|| lbd.log())?;
    // A new connection is steered as before, and the counters were taken over, too.
    ensure!(get(&town.client.netns, "")? == BODY);
    Ok(())
}

/// With a backend gone while no lbd watches, clients are still served: the data path itself asks the next one.
#[test]
fn a_backend_that_dies_meanwhile_is_worked_around() -> Result<()> {
    let town = Topology::new(Arms::One, 2)?;
    let (first, _second) = (Nginx::start(&town.backends[0])?, Nginx::start(&town.backends[1])?);
    let mut lbd =
        Lbd::start(&town, &[Backend::Remote(&town.backends[0]), Backend::Remote(&town.backends[1])])?;
    lbd.kill()?;
    drop(first);
    for _ in 0..50 {
        ensure!(get(&town.client.netns, "").with_context(|| lbd.log())? == BODY);
    }
    Ok(())
}

#[test]
fn asked_to_stop_it_stops_within_its_time() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let _server = Nginx::start(&town.backends[0])?;
    let mut lbd = Lbd::start(&town, &[Backend::Remote(&town.backends[0])])?;
    ensure!(get(&town.client.netns, "")? == BODY);
    let begin = std::time::Instant::now();
    let status = lbd.stop()?;
    ensure!(status.success(), "lbd ended with {status}: {}", lbd.log());
    ensure!(begin.elapsed() < Duration::from_secs(30), "stopping took {:?}", begin.elapsed());
    Ok(())
}
