//! Backends behind a VLAN device: no driver takes frames for one, and its parent merges frames unless it is told not to.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::client::{Client, get};
use tests::daemon::{Backend, Lbd, Manner};
use tests::server::Server;
use tests::topology::{Arms, NIC, Port, Topology};

const MEGABYTE: u64 = 1 << 20;

/// The backend's subnet is on VLAN 200 of the cable to it.
fn with_a_vlan() -> Result<Topology> {
    let mut town = Topology::new(Arms::Several, 1)?;
    let backend = &mut town.backends[0];
    let (ip, gateway, via) = (backend.ip, backend.gateway, backend.via.clone());
    let name = format!("{}.200", via.name);
    for (netns, parent, addr) in [(&backend.netns, NIC, ip), (&town.balancer, &*via.name, gateway)] {
        netns.ip(&[
            &format!("addr flush dev {parent}"),
            &format!("link add link {parent} name {parent}.200 type vlan id 200"),
            &format!("addr add {addr}/24 dev {parent}.200"),
            &format!("link set {parent}.200 up"),
        ])?;
    }
    backend.netns.ip(&[&format!("route replace default via {gateway}")])?;
    backend.via = Port { ifindex: town.balancer.ifindex(&name)?, name, mac: via.mac };
    Ok(town)
}

#[test]
fn a_backend_behind_a_vlan_device_is_served() -> Result<()> {
    let town = with_a_vlan()?;
    let _server = Server::start(&town.backends[0], "b0")?;
    let lbd = Lbd::start(&town, &[Backend::Remote(&town.backends[0])])?;
    let status: Value = serde_json::from_str(&lbd.ctl(&["status", "--json"])?)?;
    for interface in status["interfaces"].as_array().context("interfaces")? {
        ensure!(interface["mode"] == "generic", "{status}");
    }
    let log = lbd.log();
    ensure!(log.contains("to10.200") && log.contains("takes no frames from XDP programs"), "{log}");
    get(&town.client.netns, "").with_context(|| lbd.log())?;
    let mut client = Client::connect(&town.client.netns)?;
    client.download(4 * MEGABYTE).with_context(|| lbd.log())?;
    client.upload(4 * MEGABYTE).with_context(|| lbd.log())
}

#[test]
fn a_vlan_device_is_refused_in_driver_mode() -> Result<()> {
    let town = with_a_vlan()?;
    let _server = Server::start(&town.backends[0], "b0")?;
    let driver = Manner { lbd: Some("mode = \"driver\"".to_owned()), ..Manner::default() };
    let refused = Lbd::start_in(&town, &[Backend::Remote(&town.backends[0])], driver).map(drop);
    let refused = format!("{:#}", refused.expect_err("a VLAN device has no driver"));
    ensure!(refused.contains("to10.200"), "{refused}");
    Ok(())
}
