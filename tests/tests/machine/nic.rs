//! The programs on cards with real drivers: their queues, their offloads, large frames, and lbd that comes and goes.

use crate::cards::{Cards, Model, SIDES};
use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::fs;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use tests::client::{Client, eventually, get, negotiated};
use tests::daemon::{Backend, Lbd, Manner, program};
use tests::netns::{Netns, Process};
use tests::server::Server;
use tests::topology::{NIC, Topology};

const ETHERNET: u32 = 1500;
const MEGABYTE: u64 = 1 << 20;

/// Cards, a server on each backend, and lbd in front of them.
struct Town {
    lbd: Lbd,
    _servers: Vec<Server>,
    cards: Cards,
}

impl Town {
    fn new(model: Model, mtu: u32, manner: Manner) -> Result<Self> {
        let cards = Cards::take(model, mtu)?;
        let town = &cards.town;
        let servers = town.backends.iter().enumerate();
        let servers =
            servers.map(|(i, host)| Server::start(host, &format!("b{i}"))).collect::<Result<_>>()?;
        let backends: Vec<_> = town.backends.iter().map(Backend::Remote).collect();
        let lbd = Lbd::start_in(town, &backends, manner)?;
        Ok(Self { lbd, _servers: servers, cards })
    }

    fn client(&self) -> &Netns {
        &self.cards.town.client.netns
    }

    fn balancer(&self) -> &Netns {
        &self.cards.town.balancer
    }

    /// In which mode the programs run on each of the balancer's cards.
    fn modes(&self) -> Result<Vec<String>> {
        let status: Value = serde_json::from_str(&self.lbd.ctl(&["status", "--json"])?)?;
        let interfaces =
            status["interfaces"].as_array().with_context(|| format!("no interfaces: {status}"))?;
        let mode = |name: &&str| {
            let found = interfaces.iter().find(|interface| interface["name"] == **name)?;
            found["mode"].as_str().map(str::to_lowercase)
        };
        SIDES
            .iter()
            .map(|name| mode(name).with_context(|| format!("{name} is not listed: {status}")))
            .collect()
    }
}

/// A connection that carries much, in either direction, with every byte compared.
fn bulk(netns: &Netns, bytes: u64) -> Result<Client> {
    let mut client = Client::connect(netns)?;
    client.download(bytes)?;
    client.upload(bytes)?;
    Ok(client)
}

/// No end point's kernel has found a wrong checksum.
fn no_bad_checksum(town: &Topology) -> Result<()> {
    for host in town.hosts() {
        let bad = host.netns.counter("TcpInCsumErrors")?;
        ensure!(bad == 0, "{bad} segments with a wrong checksum in {}", host.netns);
    }
    Ok(())
}

/// A driver's feature, as `ethtool -k` prints it.
fn is_on(netns: &Netns, card: &str, feature: &str) -> Result<bool> {
    let features = netns.sh(&format!("ethtool -k {card}"))?;
    let line = features.lines().find(|line| line.trim_start().starts_with(&format!("{feature}:")));
    Ok(line.with_context(|| format!("{card} knows no {feature}"))?.contains(": on"))
}

/// Packets that each receive queue of a virtio card has given to XDP.
fn packets_by_queue(netns: &Netns, card: &str) -> Result<Vec<u64>> {
    let statistics = netns.sh(&format!("ethtool -S {card}"))?;
    // `rx_queue_0_xdp_packets: 12`, or since Linux 6.11 `rx0_xdp_packets: 12`.
    let of_queue = |line: &str| {
        let (name, value) = line.trim().split_once(": ")?;
        (name.starts_with("rx") && name.ends_with("_xdp_packets")).then(|| value.parse().ok())?
    };
    let counts: Vec<u64> = statistics.lines().filter_map(of_queue).collect();
    ensure!(!counts.is_empty(), "{card} does not count by queue:\n{statistics}");
    Ok(counts)
}

#[test]
fn virtio_runs_the_programs_in_its_driver_on_every_queue() -> Result<()> {
    let town = Town::new(Model::Virtio, ETHERNET, Manner::default())?;
    ensure!(town.modes()? == ["driver", "driver"], "{:?}:\n{}", town.modes()?, town.lbd.log());
    for _ in 0..100 {
        get(town.client(), "")?;
    }
    for card in SIDES {
        let counts = packets_by_queue(town.balancer(), card)?;
        let used = counts.iter().filter(|count| **count > 0).count();
        ensure!(used >= 2, "of {card}'s queues only {used} had packets: {counts:?}");
    }
    ensure!(town.lbd.counter("spliced")? >= 100, "{}", town.lbd.ctl(&["stats"])?);
    no_bad_checksum(&town.cards.town)
}

#[test]
fn segments_that_cards_would_have_cut_and_summed_arrive_whole() -> Result<()> {
    let town = Town::new(Model::Virtio, ETHERNET, Manner::default())?;
    for host in town.cards.town.hosts() {
        for feature in ["tx-checksumming", "tcp-segmentation-offload", "generic-receive-offload"] {
            ensure!(is_on(&host.netns, NIC, feature)?, "{feature} is off in {}", host.netns);
        }
    }
    bulk(town.client(), 8 * MEGABYTE)?;
    no_bad_checksum(&town.cards.town)
}

#[test]
fn frames_of_3000_bytes_pass_in_the_driver() -> Result<()> {
    // Bound at the SYN, so that both ends agree on what they have themselves.
    let manner = Manner { affinity: Some("{ kind = \"source\" }".to_owned()), ..Manner::default() };
    let town = Town::new(Model::Virtio, 3000, manner)?;
    ensure!(town.modes()? == ["driver", "driver"], "{:?}:\n{}", town.modes()?, town.lbd.log());
    let client = bulk(town.client(), 4 * MEGABYTE)?;
    let mss = negotiated(client.stream())?.snd_mss;
    ensure!(mss > 2800, "segments have {mss} bytes");
    no_bad_checksum(&town.cards.town)
}

#[test]
fn frames_of_9000_bytes_pass_though_the_driver_refuses_the_programs() -> Result<()> {
    let manner = Manner { affinity: Some("{ kind = \"source\" }".to_owned()), ..Manner::default() };
    let town = Town::new(Model::Virtio, 9000, manner)?;
    ensure!(town.modes()? == ["generic", "generic"], "{:?}", town.modes()?);
    let log = town.lbd.log();
    ensure!(log.contains("generic mode") && log.contains("MTU"), "lbd does not say why:\n{log}");
    let client = bulk(town.client(), 4 * MEGABYTE)?;
    let mss = negotiated(client.stream())?.snd_mss;
    ensure!(mss > 8000, "segments have {mss} bytes");
    no_bad_checksum(&town.cards.town)
}

#[test]
fn a_card_whose_driver_has_no_xdp_gets_generic_mode_and_a_warning() -> Result<()> {
    let town = Town::new(Model::Other, ETHERNET, Manner::default())?;
    let driver = town.balancer().sh(&format!("ethtool -i {}", SIDES[0]))?;
    let log = town.lbd.log();
    if town.modes()? == ["driver", "driver"] {
        // vmxnet3 has learned it (Linux 6.6); then there is no warning.
        ensure!(driver.contains("vmxnet3"), "{driver}");
        ensure!(!log.contains("generic mode"), "{log}");
    } else {
        ensure!(town.modes()? == ["generic", "generic"], "{:?} with\n{driver}", town.modes()?);
        ensure!(log.contains("the driver cannot run XDP programs"), "{log}");
    }
    for _ in 0..20 {
        get(town.client(), "")?;
    }
    bulk(town.client(), 2 * MEGABYTE)?;
    no_bad_checksum(&town.cards.town)
}

#[test]
fn traffic_goes_on_while_lbd_is_killed_stopped_and_replaced() -> Result<()> {
    let mut town = Town::new(Model::Virtio, ETHERNET, Manner::default())?;
    let client = town.client().clone();
    let (done, answered) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|scope| -> Result<()> {
        let requests = scope.spawn(|| -> Result<()> {
            while !done.load(Ordering::SeqCst) {
                get(&client, "").with_context(|| format!("after {answered:?} requests"))?;
                answered.fetch_add(1, Ordering::SeqCst);
            }
            Ok(())
        });
        let connection = scope.spawn(|| -> Result<()> {
            let mut one = Client::connect(&client)?;
            while !done.load(Ordering::SeqCst) {
                one.download(MEGABYTE / 4)?;
            }
            Ok(())
        });
        let more = |requests: &std::thread::ScopedJoinHandle<'_, Result<()>>| {
            let until = answered.load(Ordering::SeqCst) + 10;
            eventually("ten more requests", || {
                Ok(answered.load(Ordering::SeqCst) >= until || requests.is_finished())
            })
        };
        let outcome = (|| -> Result<()> {
            for turn in 0..4 {
                more(&requests)?;
                if turn % 2 == 0 {
                    town.lbd.kill()?;
                } else {
                    town.lbd.stop()?;
                }
                more(&requests)?;
                // The next one puts its own programs in the place of the former's.
                town.lbd.resume()?;
                ensure!(town.modes()? == ["driver", "driver"], "{:?}", town.modes()?);
            }
            more(&requests)
        })();
        done.store(true, Ordering::SeqCst);
        requests.join().expect("asking does not panic").context("a request failed")?;
        connection.join().expect("downloading does not panic").context("a connection was cut")?;
        outcome
    })?;
    no_bad_checksum(&town.cards.town)
}

#[test]
fn xtask_attaches_to_a_card_and_detaches_without_a_trace() -> Result<()> {
    let mut town = Town::new(Model::Virtio, ETHERNET, Manner::default())?;
    town.lbd.stop()?;
    let config = town.lbd.config();
    let log = fs::File::create(town.lbd.dir().join("attach.log"))?;
    let xtask =
        || -> Result<std::process::Command> { Ok(town.balancer().command(&program("xtask", "build")?)) };
    let mut attach = xtask()?;
    attach.args(["attach", SIDES[0], "--built", "--config"]).arg(&config);
    let attached = Process(attach.stdout(log.try_clone()?).stderr(log).spawn().context("starting xtask")?);
    let said = || fs::read_to_string(town.lbd.dir().join("attach.log")).unwrap_or_default();
    eventually("the backends are ready again", || {
        let states = town.lbd.states().unwrap_or_default();
        Ok(states.len() == 2 && states.iter().all(|(_, state)| state == "ready"))
    })
    .with_context(said)?;
    for _ in 0..10 {
        get(town.client(), "")?;
    }
    let detached = xtask()?.args(["detach", SIDES[0]]).output()?;
    let text =
        String::from_utf8_lossy(&detached.stdout).into_owned() + &String::from_utf8_lossy(&detached.stderr);
    ensure!(detached.status.success() && text.contains("eth0 is as it was"), "{text}");
    drop(attached);
    for card in SIDES {
        let link = town.balancer().sh(&format!("ip link show {card}"))?;
        ensure!(!link.contains("xdp"), "{link}");
        let filters = town.balancer().sh(&format!("tc filter show dev {card} ingress"))?;
        ensure!(!filters.contains("lb_joint"), "{filters}");
    }
    ensure!(get(town.client(), "").is_err(), "the service answers without its balancer");
    Ok(())
}
