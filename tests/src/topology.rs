//! A client, a balancer and backends, joined by veth pairs: each on an interface of its own, or all on one segment.
//!
//! | who | address | gateway |
//! |---|---|---|
//! | client | 10.0.1.2 | 10.0.1.1 |
//! | backend i | 10.0.(10+i).2 | 10.0.(10+i).1 |
//! | service | 10.0.9.1 | – |

use crate::frame::Mac;
use crate::netns::Netns;
use crate::setup::NextHop;
use anyhow::Result;
use std::net::{Ipv4Addr, SocketAddrV4};

/// The address that clients dial.
pub const VIP: Ipv4Addr = Ipv4Addr::new(10, 0, 9, 1);
/// Service and backends listen here.
pub const PORT: u16 = 80;
/// The interface of every end point.
pub const NIC: &str = "eth0";

/// How the balancer is connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Arms {
    /// One interface for the client and one for each backend.
    Several,
    /// Client, backends and balancer on one bridge; the balancer has a single interface.
    One,
}

/// A client or a backend.
pub struct Host {
    pub netns: Netns,
    pub ip: Ipv4Addr,
    pub mac: Mac,
    /// The balancer's address and interface on its side.
    pub gateway: Ipv4Addr,
    pub via: Port,
}

/// An interface of the balancer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Port {
    pub name: String,
    pub ifindex: u32,
    pub mac: Mac,
}

/// The whole town.
pub struct Topology {
    pub client: Host,
    pub balancer: Netns,
    pub backends: Vec<Host>,
    /// Holds the bridge of a one-armed balancer.
    _switch: Option<Netns>,
}

impl Host {
    /// How the balancer reaches it.
    pub fn next_hop(&self) -> NextHop {
        NextHop { ifindex: self.via.ifindex, local_mac: self.via.mac, mac: self.mac }
    }

    /// Where it serves, when it is a backend.
    pub fn serves(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, PORT)
    }
}

impl Topology {
    pub fn new(arms: Arms, backends: usize) -> Result<Self> {
        let balancer = Netns::new("balancer")?;
        for (key, value) in
            [("ipv4/ip_forward", 1), ("ipv4/conf/all/rp_filter", 0), ("ipv6/conf/all/disable_ipv6", 1)]
        {
            balancer.sysctl(key, value)?;
        }
        let switch = (arms == Arms::One).then(|| Netns::new("switch")).transpose()?;
        if let Some(switch) = &switch {
            switch.sysctl("ipv6/conf/default/disable_ipv6", 1)?;
            switch.ip(&[
                "link add br0 type bridge stp_state 0 forward_delay 0 mcast_snooping 0",
                "link set br0 up",
            ])?;
            join(&balancer, NIC, mac(0, 0), switch, "uplink", mac(0, 1))?;
            switch.ip(&["link set uplink master br0"])?;
        }
        let host = |label: &str, n: u8| -> Result<Host> {
            let (ip, gateway) = (Ipv4Addr::new(10, 0, n, 2), Ipv4Addr::new(10, 0, n, 1));
            let netns = Netns::new(label)?;
            netns.sysctl("ipv6/conf/all/disable_ipv6", 1)?;
            let via = match &switch {
                Some(switch) => {
                    let name = format!("to{n}");
                    join(&netns, NIC, mac(n, 2), switch, &name, mac(n, 1))?;
                    switch.ip(&[&format!("link set {name} master br0")])?;
                    Port { name: NIC.to_owned(), ifindex: balancer.ifindex(NIC)?, mac: mac(0, 0) }
                }
                None => {
                    let name = format!("to{n}");
                    join(&netns, NIC, mac(n, 2), &balancer, &name, mac(n, 1))?;
                    Port { ifindex: balancer.ifindex(&name)?, name, mac: mac(n, 1) }
                }
            };
            balancer.ip(&[&format!("addr add {gateway}/24 dev {}", via.name)])?;
            netns
                .ip(&[&format!("addr add {ip}/24 dev {NIC}"), &format!("route add default via {gateway}")])?;
            // Backpressure instead of losses when the 256 slots of a veth ring are full.
            netns.tc(&[&format!("qdisc replace dev {NIC} root pfifo limit 10000")])?;
            Ok(Host { netns, ip, mac: mac(n, 2), gateway, via })
        };
        let client = host("client", 1)?;
        let backends =
            (0..backends).map(|i| host(&format!("backend {i}"), 10 + i as u8)).collect::<Result<_>>()?;
        Ok(Self { client, balancer, backends, _switch: switch })
    }

    /// One that somebody has built of other things than veths.
    pub fn of(client: Host, balancer: Netns, backends: Vec<Host>) -> Self {
        Self { client, balancer, backends, _switch: None }
    }

    /// The balancer's interfaces, each once.
    pub fn ports(&self) -> Vec<Port> {
        let mut ports = vec![self.client.via.clone()];
        for backend in &self.backends {
            if !ports.contains(&backend.via) {
                ports.push(backend.via.clone());
            }
        }
        ports
    }

    /// Client and backends.
    pub fn hosts(&self) -> impl Iterator<Item = &Host> {
        std::iter::once(&self.client).chain(&self.backends)
    }

    /// Sets a sysctl of an end point's TCP, such as `tcp_sack`.
    pub fn tcp(&self, host: &Host, key: &str, value: u32) -> Result<()> {
        host.netns.sysctl(&format!("ipv4/{key}"), value)
    }
}

/// Address of the end that belongs to subnet `n`.
fn mac(n: u8, end: u8) -> Mac {
    [2, 0, 0, 0, n, end]
}

/// A veth pair with both ends up. Receive offload is on, because a frame that XDP redirects to an end without it is lost;
/// checksums are computed by the senders, because XDP sees the frame before anyone would fill them in.
fn join(a: &Netns, a_name: &str, a_mac: Mac, b: &Netns, b_name: &str, b_mac: Mac) -> Result<()> {
    a.ip(&[
        &format!(
            "link add {a_name} address {} type veth peer name {b_name} address {} netns {}",
            text(a_mac),
            text(b_mac),
            b.path()
        ),
        &format!("link set {a_name} up"),
    ])?;
    b.ip(&[&format!("link set {b_name} up")])?;
    for (netns, name) in [(a, a_name), (b, b_name)] {
        netns.sh(&format!("ethtool -K {name} gro on tx off"))?;
    }
    Ok(())
}

fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
