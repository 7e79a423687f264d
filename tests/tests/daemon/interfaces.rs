//! What happens to the interfaces of a running lbd: programs that somebody takes off, and frames that the kernel drops after
//! the verdict.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::TcpStream;
use std::time::Duration;
use tests::balancer::dial;
use tests::client::{Client, eventually, get};
use tests::daemon::{Backend, Lbd};
use tests::nginx::{BODY, Nginx};
use tests::topology::{Arms, Topology};

fn status(lbd: &Lbd) -> Result<Value> {
    Ok(serde_json::from_str(&lbd.ctl(&["status", "--json"])?)?)
}

/// How the joint is on an interface, as lbd tells it.
fn joint(lbd: &Lbd, interface: &str) -> Result<String> {
    let status = status(lbd)?;
    let interfaces = status["interfaces"].as_array().context("interfaces")?;
    let found = interfaces.iter().find(|found| found["name"] == interface).context("listed")?;
    Ok(found["joint"].as_str().context("a hook")?.to_owned())
}

/// What was counted of an interface under a name.
fn lost(lbd: &Lbd, interface: &str, names: &[&str]) -> Result<u64> {
    let stats: Value = serde_json::from_str(&lbd.ctl(&["stats", "--json"])?)?;
    let counters = stats["counters"].as_array().context("counters")?;
    let of = format!("interface {interface}");
    let is_it = |c: &&Value| c["of"] == of && names.iter().any(|name| c["counter"] == *name);
    Ok(counters.iter().filter(is_it).filter_map(|c| c["value"].as_u64()).sum())
}

#[test]
fn connections_open_again_after_somebody_has_removed_clsact() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let _server = Nginx::start(&town.backends[0])?;
    let lbd = Lbd::start(&town, &[Backend::Remote(&town.backends[0])])?;
    ensure!(get(&town.client.netns, "")? == BODY);
    let to_backend = &town.backends[0].via.name;
    let hook = joint(&lbd, to_backend)?;
    if hook == "clsact" {
        town.balancer.tc(&[&format!("qdisc del dev {to_backend} clsact")])?;
        eventually("the filter is back", || {
            Ok(town.balancer.sh(&format!("tc filter show dev {to_backend} ingress"))?.contains("lb_joint"))
        })?;
        ensure!(lbd.log().contains("somebody had removed"), "{}", lbd.log());
    } else {
        // Nobody can take a link with the queueing discipline.
        ensure!(hook == "tcx", "{hook}");
        town.balancer.tc(&[&format!("qdisc add dev {to_backend} clsact")])?;
        town.balancer.tc(&[&format!("qdisc del dev {to_backend} clsact")])?;
    }
    ensure!(get(&town.client.netns, "")? == BODY, "{}", lbd.log());
    Ok(())
}

#[test]
fn frames_that_the_kernel_drops_after_the_verdict_are_counted_by_name() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let other_town = Topology::new(Arms::Several, 1)?;
    let _servers = [Nginx::start(&town.backends[0])?, Nginx::start(&other_town.backends[0])?];
    let mut lbd = Lbd::start(&town, &[Backend::Remote(&town.backends[0])])?;
    let other = Lbd::start(&other_town, &[Backend::Remote(&other_town.backends[0])])?;
    ensure!(get(&town.client.netns, "")? == BODY);
    let before = status(&lbd)?;
    ensure!(before["warnings"] == Value::Array(Vec::new()), "{before}");

    // The way to the backend becomes narrower than what the client was promised.
    let to_backend = &town.backends[0].via.name;
    let mut client = Client::connect(&town.client.netns)?;
    client.get("/", "")?;
    town.balancer.ip(&[&format!("link set {to_backend} mtu 600")])?;
    client.send(&[b'x'; 1400])?;
    eventually("frames that are too large are counted", || {
        Ok(lost(&lbd, to_backend, &["drop_redirect_too_large"])? > 0)
    })?;
    let text = lbd.ctl(&["stats"])?;
    ensure!(text.contains("Longer than the MTU of the interface"), "{text}");
    eventually("lbctl status warns", || {
        Ok(lbd.ctl(&["status"])?.contains("WARNING: the kernel drops frames"))
    })?;
    ensure!(status(&lbd)?["warnings"].to_string().contains(to_backend.as_str()), "{}", status(&lbd)?);
    town.balancer.ip(&[&format!("link set {to_backend} mtu 1500")])?;

    // The far end of the client's cable takes no redirected frames any more.
    town.client.netns.sh("ethtool -K eth0 gro off")?;
    let names = ["drop_redirect_not_received", "drop_redirect_unsupported"];
    let dial = town.client.netns.run(|| TcpStream::connect_timeout(&dial().into(), Duration::from_secs(1)));
    ensure!(dial.is_err(), "the SYN-ACK arrived");
    eventually("frames towards an end that does not receive are counted", || {
        Ok(lost(&lbd, &town.client.via.name, &names)? > 0)
    })?;

    // What was counted is the next lbd's, too, and no other's.
    let counted = lost(&lbd, to_backend, &["drop_redirect_too_large"])?;
    lbd.kill()?;
    lbd.resume()?;
    ensure!(lost(&lbd, to_backend, &["drop_redirect_too_large"])? >= counted);
    let stats = other.ctl(&["stats", "--json"])?;
    ensure!(!stats.contains("interface "), "{stats}");
    Ok(())
}
