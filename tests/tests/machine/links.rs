//! What tests may count on in a machine: kinds of links, tunnels, virtual services and shapers, each seen to carry datagrams.

use anyhow::{Context, Result, ensure};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};
use tests::netns::Netns;

const PATIENCE: Duration = Duration::from_secs(30);

/// Two namespaces with a cable between them.
struct Pair {
    near: Netns,
    far: Netns,
}

impl Pair {
    fn new() -> Result<Self> {
        let (near, far) = (Netns::new("near")?, Netns::new("far")?);
        near.ip(&[&format!("link add eth0 type veth peer name eth0 netns {}", far.path())])?;
        for (netns, addr) in [(&near, "192.0.2.1/24"), (&far, "192.0.2.2/24")] {
            netns.ip(&[&format!("addr add {addr} dev eth0"), "link set eth0 up"])?;
        }
        Ok(Self { near, far })
    }

    /// Does the same at both ends, with the near end's address and the far end's, and the other way round.
    fn both(&self, lines: &[&str]) -> Result<()> {
        for (netns, own, other, last) in
            [(&self.near, "192.0.2.1", "192.0.2.2", "1"), (&self.far, "192.0.2.2", "192.0.2.1", "2")]
        {
            let lines: Vec<_> = lines
                .iter()
                .map(|line| line.replace("OWN", own).replace("OTHER", other).replace("LAST", last))
                .collect();
            netns.ip(&lines.iter().map(String::as_str).collect::<Vec<_>>())?;
        }
        Ok(())
    }
}

/// Sends a datagram to a server in the far namespace, by whatever way leads to `dial`; returns how long the answer took.
fn ask(pair: &Pair, serve: SocketAddrV4, dial: SocketAddrV4) -> Result<Duration> {
    let server = pair.far.run(|| UdpSocket::bind(serve)).with_context(|| format!("binding {serve}"))?;
    server.set_read_timeout(Some(PATIENCE))?;
    let client = pair.near.run(|| UdpSocket::bind("0.0.0.0:0"))?;
    client.set_read_timeout(Some(PATIENCE))?;
    let begun = Instant::now();
    client.send_to(b"question", dial).with_context(|| format!("sending to {dial}"))?;
    let mut buffer = [0; 16];
    let (len, from) = server.recv_from(&mut buffer).context("the far end heard nothing")?;
    ensure!(&buffer[..len] == b"question");
    server.send_to(b"answer", from)?;
    let len = client.recv(&mut buffer).context("no answer")?;
    ensure!(&buffer[..len] == b"answer");
    Ok(begun.elapsed())
}

const PORT: u16 = 7_000;

fn at(last: [u8; 4]) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(last), PORT)
}

#[test]
fn a_vlan_device_carries_datagrams() -> Result<()> {
    let pair = Pair::new()?;
    pair.both(&[
        "link add link eth0 name eth0.7 type vlan id 7",
        "addr add 198.51.100.LAST/24 dev eth0.7",
        "link set eth0.7 up",
    ])?;
    ask(&pair, at([198, 51, 100, 2]), at([198, 51, 100, 2])).map(drop)
}

#[test]
fn two_cables_make_a_bond() -> Result<()> {
    let pair = Pair::new()?;
    pair.near.ip(&[&format!("link add eth1 type veth peer name eth1 netns {}", pair.far.path())])?;
    pair.both(&[
        "link set eth0 down",
        "link add bond0 type bond mode active-backup miimon 50",
        "link set eth0 master bond0",
        "link set eth1 master bond0",
        "addr add 198.51.100.LAST/24 dev bond0",
        "link set bond0 up",
        "link set eth0 up",
        "link set eth1 up",
    ])?;
    ask(&pair, at([198, 51, 100, 2]), at([198, 51, 100, 2])).map(drop)
}

#[test]
fn an_ipip_tunnel_carries_datagrams() -> Result<()> {
    let pair = Pair::new()?;
    pair.both(&[
        "link add t0 type ipip local OWN remote OTHER",
        "addr add 198.51.100.LAST/24 dev t0",
        "link set t0 up",
    ])?;
    ask(&pair, at([198, 51, 100, 2]), at([198, 51, 100, 2])).map(drop)
}

#[test]
fn foo_over_udp_carries_datagrams() -> Result<()> {
    let pair = Pair::new()?;
    for netns in [&pair.near, &pair.far] {
        netns.sh("modprobe fou")?;
        netns.sh("ip fou add port 5555 ipproto 4")?;
    }
    pair.both(&[
        "link add t0 type ipip local OWN remote OTHER encap fou encap-sport auto encap-dport 5555",
        "addr add 198.51.100.LAST/24 dev t0",
        "link set t0 up",
    ])?;
    ask(&pair, at([198, 51, 100, 2]), at([198, 51, 100, 2])).map(drop)
}

#[test]
fn a_dummy_holds_an_address() -> Result<()> {
    let pair = Pair::new()?;
    pair.far.ip(&["link add d0 type dummy", "addr add 203.0.113.9/32 dev d0", "link set d0 up"])?;
    pair.near.ip(&["route add 203.0.113.9/32 via 192.0.2.2"])?;
    ask(&pair, at([203, 0, 113, 9]), at([203, 0, 113, 9])).map(drop)
}

#[test]
fn netem_delays_what_leaves() -> Result<()> {
    const DELAY: Duration = Duration::from_millis(80);
    let pair = Pair::new()?;
    // Without it, neighbours have to be found as well, which is delayed, too.
    ask(&pair, at([192, 0, 2, 2]), at([192, 0, 2, 2]))?;
    pair.near.tc(&[&format!("qdisc add dev eth0 root netem delay {}ms", DELAY.as_millis())])?;
    let took = ask(&pair, at([192, 0, 2, 2]), at([192, 0, 2, 2]))?;
    ensure!(took >= DELAY, "a datagram that is held for {DELAY:?} was answered after {took:?}");
    Ok(())
}

#[test]
fn ipvs_hands_datagrams_to_its_server() -> Result<()> {
    let pair = Pair::new()?;
    let vip = "203.0.113.1";
    pair.near.sysctl("ipv4/ip_forward", 1)?;
    pair.near.ip(&[&format!("addr add {vip}/32 dev lo")])?;
    pair.near.sh("modprobe ip_vs_rr")?;
    pair.near.sh(&format!("ipvsadm -A -u {vip}:{PORT} -s rr"))?;
    pair.near.sh(&format!("ipvsadm -a -u {vip}:{PORT} -r 192.0.2.2:{PORT} -m"))?;
    // Its server answers to whom it sees.
    pair.far.ip(&[&format!("route add {vip}/32 via 192.0.2.1")])?;
    ask(&pair, at([192, 0, 2, 2]), SocketAddrV4::new(vip.parse()?, PORT)).map(drop)
}
