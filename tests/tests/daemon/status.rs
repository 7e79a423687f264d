//! What `lbctl status` says of the maps is what the kernel says.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use tests::client::get;
use tests::daemon::{Backend, Lbd};
use tests::topology::{Arms, Topology};

#[test]
fn every_map_is_told_with_its_memory() -> Result<()> {
    let town = Topology::new(Arms::Several, 0)?;
    let lbd = Lbd::start(&town, &[Backend::Managed, Backend::Managed])?;
    get(&town.client.netns, "")?;
    let status: Value = serde_json::from_str(&lbd.ctl(&["status", "--json"])?)?;
    let maps = status["maps"].as_array().context("maps")?;
    let map = |name: &str| maps.iter().find(|map| map["name"] == name).with_context(|| name.to_owned());
    // Two tables of 251 for each service; and two of 4,093 for each of 64 pools, those of an lbd before included.
    let maglev = 16 * 2 * 8 + 2 * 64 * 2 * 128;
    // Each processor has one more, for what it puts together.
    let processors = aya::util::nr_cpus().map_err(|(_, error)| error)? as u64;
    // Kernels before 6.4 count whole pages.
    const PAGE: u64 = 4096;
    // Entries, those in use (at least), and bytes that they take at least: a flow has 64, a learned session 16.
    for (name, entries, used, least) in [
        ("FLOWS", 131_072, Some(1), 131_072 * 64),
        ("HOMES", 131_072, Some(0), 131_072 * 16),
        ("BACKENDS", 1024, Some(2), 1024 * 64),
        ("SERVICES", 16, Some(1), 16 * 136),
        ("STASHES", 4096 + processors, Some(0), 4096 * 4000),
        ("WAITING", 1024, None, 1024 * 8),
        ("OVERFLOWS", 131_072 / 8, None, 131_072),
        ("MAGLEV", maglev, None, maglev * 64),
    ] {
        let map = map(name)?;
        ensure!(map["entries"] == entries, "{map}");
        ensure!(map["used"].as_u64().is_some() == used.is_some() && map["used"].as_u64() >= used, "{map}");
        ensure!(
            map["bytes"].as_u64().is_some_and(|bytes| (least..least * 2 + PAGE).contains(&bytes)),
            "{map}"
        );
    }
    let trace = map("TRACE")?;
    ensure!(trace["entries"].is_null() && trace["bytes"].as_u64() >= Some(256 << 10), "{trace}");
    let sum: u64 = maps.iter().filter_map(|map| map["bytes"].as_u64()).sum();
    ensure!(sum > 15 << 20 && status["map_bytes"].as_u64() == Some(sum), "{sum}: {status}");
    let share = &status["shares"][0];
    ensure!(share["flows"].as_u64() >= Some(1) && share["max_flows"] == 65_536, "{share}");
    ensure!(share["max_pending"] == 2048 && share["refused"] == 0, "{share}");
    let text = lbd.ctl(&["status"])?;
    ensure!(text.contains("all of them") && text.lines().any(|line| line.starts_with("flows ")), "{text}");
    Ok(())
}
