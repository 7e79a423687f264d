//! How many requests a second pass through the balancer, compared with routing alone: wrk in the client's namespace, nginx
//! in three backends', everything on this machine. Both sides are measured in turn, because machines drift; routing has an
//! XDP program that passes everything attached, which is what veth slows down by, whatever the program does.
//!
//! `cargo run -p tests --example throughput`

use anyhow::{Context, Result};
use aya::programs::{Xdp, XdpMode};
use std::net::SocketAddrV4;
use tests::balancer::{Balancer, dial};
use tests::nginx::Nginx;
use tests::object::{load_program, load_testbed};
use tests::topology::{Arms, Topology};

const ROUNDS: usize = 3;

fn main() -> Result<()> {
    let town = Topology::new(Arms::Several, 3)?;
    let _servers = town.backends.iter().map(Nginx::start).collect::<Result<Vec<_>>>()?;
    for (name, headers) in [("connection per request", &["-H", "Connection: close"][..]), ("keep-alive", &[])]
    {
        let (mut routed, mut balanced) = (0.0, 0.0);
        for round in 0..ROUNDS {
            let to = town.backends[round % 3].serves();
            let direct = {
                let mut ebpf = load_testbed()?;
                let empty = load_program(&mut ebpf, "tb_empty", Xdp::load)?;
                town.balancer.run(|| -> Result<()> {
                    for port in town.ports() {
                        empty.attach(&port.name, XdpMode::Driver)?;
                    }
                    Ok(())
                })?;
                wrk(&town, to, headers)?
            };
            let through = {
                let balancer = Balancer::start(&town)?;
                let token = balancer.setup.token((round % 3) as u16, 7);
                let cookie = format!("Cookie: lb={token}");
                wrk(&town, dial(), &[headers, &["-H", &cookie]].concat())?
            };
            println!("{name}: routed {direct:.0}/s, balanced {through:.0}/s");
            routed += direct;
            balanced += through;
        }
        println!("{name}: {:.2} of what routing does", balanced / routed);
    }
    Ok(())
}

/// Requests a second.
fn wrk(town: &Topology, to: SocketAddrV4, headers: &[&str]) -> Result<f64> {
    let output = town
        .client
        .netns
        .command("wrk")
        .args(["-c", "64", "-t", "2", "-d", "4s"])
        .args(headers)
        .arg(format!("http://{to}/"))
        .output()
        .context("running wrk; Debian's package wrk has it")?;
    let text = String::from_utf8_lossy(&output.stdout);
    anyhow::ensure!(!text.contains("Socket errors") && !text.contains("Non-2xx"), "wrk says:\n{text}");
    let line = text.lines().find_map(|line| line.strip_prefix("Requests/sec:"));
    Ok(line.with_context(|| format!("wrk says:\n{text}"))?.trim().parse()?)
}
