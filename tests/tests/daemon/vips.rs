//! lbd adds VIPs to `lo` and takes back what it added, and nothing else.

use anyhow::{Context, Result, ensure};
use std::fs;
use tests::daemon::{Backend, Lbd, program};
use tests::nginx::Nginx;
use tests::topology::{Arms, Topology};

const VIP: &str = "10.0.9.1";
const OTHER: &str = "10.0.9.2";

fn has(town: &Topology, vip: &str) -> Result<bool> {
    Ok(town.balancer.sh("ip -br addr show dev lo")?.contains(&format!("{vip}/32")))
}

/// Gives the only service another VIP.
fn move_service(lbd: &Lbd, from: &str, to: &str) -> Result<()> {
    let text = fs::read_to_string(lbd.config())?;
    let moved = text.replace(&format!("vip = \"{from}:"), &format!("vip = \"{to}:"));
    ensure!(moved != text, "{text}");
    Ok(fs::write(lbd.config(), moved)?)
}

fn detach(town: &Topology, lbd: &Lbd) -> Result<String> {
    let output = town.balancer.command(&program("lbd", "build")?).arg("detach").arg(lbd.config()).output()?;
    let text =
        String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{text}");
    Ok(text)
}

#[test]
fn a_vip_that_somebody_else_has_added_stays() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let _server = Nginx::start(&town.backends[0])?;
    town.balancer.ip(&[&format!("addr add {VIP}/32 dev lo")])?;
    let mut lbd = Lbd::start(&town, &[Backend::Remote(&town.backends[0])])?;
    lbd.kill()?;
    // The service leaves the file.
    move_service(&lbd, VIP, OTHER)?;
    lbd.resume().with_context(|| lbd.log())?;
    ensure!(has(&town, VIP)? && has(&town, OTHER)?, "{}", lbd.log());
    move_service(&lbd, OTHER, VIP)?;
    lbd.stop()?;
    let said = detach(&town, &lbd)?;
    ensure!(has(&town, VIP)? && !has(&town, OTHER)?, "{said}");
    Ok(())
}

#[test]
fn a_vip_that_lbd_has_added_goes_also_when_its_service_has_left_the_file() -> Result<()> {
    let town = Topology::new(Arms::Several, 1)?;
    let _server = Nginx::start(&town.backends[0])?;
    let mut lbd = Lbd::start(&town, &[Backend::Remote(&town.backends[0])])?;
    lbd.kill()?;
    lbd.resume()?;
    ensure!(has(&town, VIP)?, "the next lbd keeps it");
    lbd.kill()?;
    move_service(&lbd, VIP, OTHER)?;
    let said = detach(&town, &lbd)?;
    ensure!(!has(&town, VIP)? && said.contains(&format!("address {VIP} of lo")), "{said}");

    // And at a start.
    lbd.resume()?;
    ensure!(has(&town, OTHER)?, "{}", lbd.log());
    lbd.kill()?;
    move_service(&lbd, OTHER, VIP)?;
    lbd.resume()?;
    ensure!(has(&town, VIP)? && !has(&town, OTHER)?, "{}", lbd.log());
    lbd.stop()?;
    detach(&town, &lbd).map(drop)
}
