//! Devices that do something to frames behind XDP's back: lbd switches it off, or says what helps.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::TcpStream;
use std::time::{Duration, Instant};
use tests::balancer::dial;
use tests::client::{Client, eventually, get};
use tests::daemon::{Backend, Lbd, Manner};
use tests::netns::Netns;
use tests::nginx::{BODY, Nginx};
use tests::server::Server;
use tests::topology::{Arms, Port, Topology};

const MEGABYTE: u64 = 1 << 20;

fn status(lbd: &Lbd) -> Result<Value> {
    Ok(serde_json::from_str(&lbd.ctl(&["status", "--json"])?)?)
}

fn warns(lbd: &Lbd, of: &[&str]) -> Result<bool> {
    let status = status(lbd)?;
    let warnings = status["warnings"].as_array().context("warnings")?;
    let has = |warning: &Value| of.iter().all(|part| warning.to_string().contains(part));
    Ok(warnings.iter().any(has))
}

fn left_alone() -> Manner {
    Manner { lbd: Some("set_offloads = false".to_owned()), ..Manner::default() }
}

fn is_on(netns: &Netns, feature: &str) -> Result<bool> {
    let features = netns.sh("ethtool -k eth0")?;
    let line = features.lines().find(|line| line.trim_start().starts_with(&format!("{feature}:")));
    Ok(line.context("known")?.contains(": on"))
}

#[test]
fn veths_that_leave_checksums_to_hardware_are_mended() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let _server = Nginx::start(&town.backends[0])?;
    for host in town.hosts() {
        host.netns.sh("ethtool -K eth0 tx on")?;
    }
    let lbd = Lbd::start(&town, &[Backend::Remote(&town.backends[0])])?;
    ensure!(get(&town.client.netns, "").with_context(|| lbd.log())? == BODY);
    ensure!(lbd.log().contains("sends frames without checksums"), "{}", lbd.log());
    for host in town.hosts() {
        ensure!(!is_on(&host.netns, "tx-checksumming")?, "{}", host.netns);
    }
    // A container that is made again comes with its usual features.
    town.backends[0].netns.sh("ethtool -K eth0 tx on")?;
    eventually("it is mended again", || Ok(!is_on(&town.backends[0].netns, "tx-checksumming")?))
}

#[test]
fn veths_that_leave_checksums_to_hardware_are_told_with_the_command() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let _server = Nginx::start(&town.backends[0])?;
    for host in town.hosts() {
        host.netns.sh("ethtool -K eth0 tx on")?;
    }
    let lbd = Lbd::start_in(&town, &[Backend::Remote(&town.backends[0])], left_alone())?;
    for host in town.hosts() {
        ensure!(warns(&lbd, &[&host.via.name, "nsenter ", "ethtool -K eth0 tx off"])?, "{}", status(&lbd)?);
        ensure!(is_on(&host.netns, "tx-checksumming")?, "it was to be left alone");
    }
    Ok(())
}

/// The kernel notes whether a veth takes redirected frames when it comes up, and when GRO is switched at its other end while that
/// is up; so it misses GRO that was on before.
#[test]
fn a_veth_whose_other_end_came_up_later_takes_redirected_frames() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let _server = Nginx::start(&town.backends[0])?;
    let (backend, via) = (&town.backends[0], &town.backends[0].via.name);
    let late = || -> Result<()> {
        backend.netns.ip(&["link set eth0 down"])?;
        backend.netns.sh("ethtool -K eth0 gro off")?;
        town.balancer.ip(&[&format!("link set {via} down"), &format!("link set {via} up")])?;
        backend.netns.sh("ethtool -K eth0 gro on")?;
        backend.netns.ip(&["link set eth0 up", &format!("route add default via {}", backend.gateway)])
    };
    late()?;
    let lbd = Lbd::start_in(&town, &[Backend::Remote(backend)], left_alone())?;
    // Kernels before 6.3 do not note it, and ask the ring.
    let told = warns(&lbd, &[via, "does not take redirected frames", "gro off", "gro on"])?;
    ensure!(told || get(&town.client.netns, "")? == BODY, "{}", lbd.log());
    drop(lbd);
    let lbd = Lbd::start(&town, &[Backend::Remote(backend)])?;
    ensure!(get(&town.client.netns, "").with_context(|| lbd.log())? == BODY);
    Ok(())
}

/// What a client in front of a bridge does with its balancer.
fn carries_bulk(town: &Topology, lbd: &Lbd) -> Result<()> {
    let begun = Instant::now();
    let mut client = Client::connect(&town.client.netns)?;
    client.download(4 * MEGABYTE).with_context(|| lbd.log())?;
    client.upload(4 * MEGABYTE).with_context(|| lbd.log())?;
    ensure!(begun.elapsed() < Duration::from_secs(60), "8 MB took {:?}", begun.elapsed());
    Ok(())
}

/// The balancer's side of the client's cable becomes the port of a bridge.
fn with_a_bridge() -> Result<Topology> {
    let mut town = Topology::new(Arms::Several, 1)?;
    let (via, gateway) = (town.client.via.clone(), town.client.gateway);
    town.balancer.ip(&[
        "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
        &format!("addr del {gateway}/24 dev {}", via.name),
        &format!("link set {} master br0", via.name),
        &format!("addr add {gateway}/24 dev br0"),
        "link set br0 up",
    ])?;
    town.client.netns.sh("ethtool -K eth0 tx on gro on")?;
    town.client.via = Port { name: "br0".to_owned(), ifindex: town.balancer.ifindex("br0")?, mac: via.mac };
    Ok(town)
}

#[test]
fn a_bridge_whose_ports_merge_frames_carries_bulk() -> Result<()> {
    let town = with_a_bridge()?;
    let _server = Server::start(&town.backends[0], "b0")?;
    let lbd = Lbd::start(&town, &[Backend::Remote(&town.backends[0])])?;
    let status = status(&lbd)?;
    for interface in status["interfaces"].as_array().context("interfaces")? {
        ensure!(interface["mode"] == "generic", "a bridge takes no frames from drivers: {status}");
    }
    carries_bulk(&town, &lbd)
}

#[test]
fn a_bridge_is_refused_in_driver_mode_and_told_of_where_features_are_left_alone() -> Result<()> {
    let town = with_a_bridge()?;
    let _server = Server::start(&town.backends[0], "b0")?;
    let lbd = Lbd::start_in(&town, &[Backend::Remote(&town.backends[0])], left_alone())?;
    ensure!(warns(&lbd, &["br0", "merges frames", "`ethtool -K to1 gro off`"])?, "{}", status(&lbd)?);
    drop(lbd);
    let driver = Manner { lbd: Some("mode = \"driver\"".to_owned()), ..Manner::default() };
    let refused = Lbd::start_in(&town, &[Backend::Remote(&town.backends[0])], driver).map(drop);
    let refused = format!("{:#}", refused.expect_err("a bridge has no driver"));
    ensure!(refused.contains("br0"), "{refused}");
    let dialled =
        town.client.netns.run(|| TcpStream::connect_timeout(&dial().into(), Duration::from_secs(1)));
    ensure!(dialled.is_err(), "nothing is half attached");
    Ok(())
}
