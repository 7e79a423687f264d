//! The machine's network cards, put where hosts would have them: a client and two backends, each in a namespace of its own, and
//! a balancer with a card at either wire. xtask/src/kernel/wires.rs lays the wires.

use anyhow::{Context, Result, ensure};
use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tests::client::eventually;
use tests::netns::Netns;
use tests::topology::{Host, NIC, Port, Topology};

/// Which cards the balancer has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Model {
    /// virtio, with several queues.
    Virtio,
    /// Another one that qemu emulates.
    Other,
}

/// Last bytes of MAC addresses.
const CLIENT: u8 = 0x01;
const BACKENDS: [u8; 2] = [0x02, 0x03];

/// The balancer's cards: at the clients' wire, and at the backends'.
const fn balancer(model: Model) -> [u8; 2] {
    match model {
        Model::Virtio => [0x10, 0x11],
        Model::Other => [0x20, 0x21],
    }
}

/// Names of the balancer's cards.
pub(crate) const SIDES: [&str; 2] = ["eth0", "eth1"];

/// The cards, in use. There is one set of them, so one test has them at a time.
pub(crate) struct Cards {
    pub(crate) town: Topology,
    _alone: MutexGuard<'static, ()>,
}

impl Cards {
    /// Takes the cards, with this MTU everywhere.
    pub(crate) fn take(model: Model, mtu: u32) -> Result<Self> {
        static ALONE: Mutex<()> = Mutex::new(());
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let own = balancer(model);
        let wanted: Vec<u8> = own.into_iter().chain([CLIENT]).chain(BACKENDS).collect();
        let mut names = BTreeMap::new();
        // Those of a namespace that has just gone come back a moment later.
        eventually("every card is there", || {
            names = names_by_number()?;
            Ok(wanted.iter().all(|number| names.contains_key(number)))
        })
        .context("`cargo xtask test --kernel` makes machines with cards; this is none of them")?;

        let netns = Netns::new("balancer")?;
        for (key, value) in
            [("ipv4/ip_forward", 1), ("ipv4/conf/all/rp_filter", 0), ("ipv6/conf/all/disable_ipv6", 1)]
        {
            netns.sysctl(key, value)?;
        }
        let ports = [0, 1].map(|side| -> Result<Port> {
            put(&names[&own[side]], &netns, SIDES[side], mtu)?;
            let name = SIDES[side].to_owned();
            Ok(Port { ifindex: netns.ifindex(&name)?, mac: mac(own[side]), name })
        });
        let [to_client, to_backends] = ports;
        let (to_client, to_backends) = (to_client?, to_backends?);
        let host = |label: &str, number: u8, subnet: u8, via: &Port| -> Result<Host> {
            let (ip, gateway) = (Ipv4Addr::new(10, 0, subnet, 2), Ipv4Addr::new(10, 0, subnet, 1));
            let own = Netns::new(label)?;
            own.sysctl("ipv6/conf/all/disable_ipv6", 1)?;
            put(&names[&number], &own, NIC, mtu)?;
            netns.ip(&[&format!("addr add {gateway}/24 dev {}", via.name)])?;
            own.ip(&[&format!("addr add {ip}/24 dev {NIC}"), &format!("route add default via {gateway}")])?;
            Ok(Host { netns: own, ip, mac: mac(number), gateway, via: via.clone() })
        };
        let client = host("client", CLIENT, 1, &to_client)?;
        let backends = BACKENDS
            .iter()
            .zip(10..)
            .map(|(number, subnet)| host(&format!("backend {subnet}"), *number, subnet, &to_backends));
        let backends = backends.collect::<Result<_>>()?;
        Ok(Self { town: Topology::of(client, netns, backends), _alone: alone })
    }
}

const fn mac(number: u8) -> [u8; 6] {
    [0x02, 0x4c, 0x42, 0, 0, number]
}

/// The cards in this namespace, by the last byte of their MAC addresses.
fn names_by_number() -> Result<BTreeMap<u8, String>> {
    let mut names = BTreeMap::new();
    for entry in fs::read_dir("/sys/class/net")? {
        let path = entry?.path();
        let address = fs::read_to_string(path.join("address")).unwrap_or_default();
        if let Some(number) = address.trim().strip_prefix("02:4c:42:00:00:")
            && let Some(name) = path.file_name()
        {
            names.insert(u8::from_str_radix(number, 16)?, name.to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Puts a card into a namespace under a name, and brings it up.
fn put(card: &str, netns: &Netns, name: &str, mtu: u32) -> Result<()> {
    let moved = std::process::Command::new("ip")
        .args(["link", "set", "dev", card, "netns", &netns.path(), "name", name])
        .output()
        .context("starting ip")?;
    ensure!(moved.status.success(), "moving {card}: {}", String::from_utf8_lossy(&moved.stderr));
    netns.ip(&[&format!("link set {name} mtu {mtu} up")])
}
