//! Where the torture takes place: lbd with its managed servers, and the doors through which clients come.

use super::wire::Line;
use super::{Plan, Store, patiently};
use crate::balancer::dial;
use crate::daemon::{Backend, Lbd, Manner, service_name};
use crate::netns::Netns;
use crate::redis::{Place, Redis};
use crate::topology::{Arms, NIC, Topology};
use anyhow::{Context, Result};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

/// Managed servers of one lbd.
const SERVERS: usize = 3;
/// Where connections past the VIP come from: a port that a flow through the VIP has must not be theirs, too.
const ASIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);

/// Where the store is, when it has a place of its own.
const VAULT: Ipv4Addr = Ipv4Addr::new(10, 0, 200, 1);

/// All of it. Fields in the order in which they must go.
pub(super) struct Town {
    pub(super) houses: Vec<House>,
    /// The store, where it is one of its own.
    pub(super) redis: Option<Redis>,
    /// Holds the store's namespace, and the token keys.
    _vault: Option<(Netns, tempfile::TempDir)>,
}

/// One lbd and what is around it. Fields in the order in which they must go.
pub(super) struct House {
    pub(super) lbd: Lbd,
    pub(super) town: Topology,
    pub(super) servers: Vec<Server>,
}

/// A managed server.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) name: Arc<str>,
    /// Its own address, past the VIP.
    pub(super) addr: SocketAddrV4,
    /// Its named network namespace.
    pub(super) netns: String,
}

/// An address that clients can dial.
#[derive(Clone)]
pub(super) struct Door {
    pub(super) name: Arc<str>,
    to: SocketAddrV4,
    from: Netns,
    /// The server behind it, when there is only one.
    pub(super) server: Option<Arc<str>>,
}

impl Town {
    pub(super) fn build(plan: &Plan) -> Result<Self> {
        let manner = Manner { fault: plan.fault.clone(), ..Manner::default() };
        match plan.store {
            Store::Sled => {
                let house = House::build(outskirts()?, manner)?;
                Ok(Self { houses: vec![house], redis: None, _vault: None })
            }
            Store::Redis => Self::build_around_redis(manner),
        }
    }

    /// Two lbds, which have nothing in common but the service, the token keys, and a cluster of three primaries with a
    /// replica each.
    fn build_around_redis(manner: Manner) -> Result<Self> {
        let vault = Netns::new("store")?;
        vault.ip(&[&format!("addr add {VAULT}/32 dev lo")])?;
        let redis = Redis::start_cluster(Place { netns: Some(vault.clone()), ip: VAULT }, &[])?;
        let safe = tempfile::tempdir()?;
        let keys = safe.path().join("keys.toml");
        let store = format!("{{ kind = \"redis\", nodes = {:?} }}", redis.urls());
        let service = service_name();
        let houses = ["a", "b"].into_iter().enumerate().map(|(i, prefix)| -> Result<House> {
            let town = outskirts()?;
            let (n, near, far) = (201 + i, format!("10.0.{}.1", 201 + i), format!("10.0.{}.2", 201 + i));
            town.balancer.ip(&[
                &format!("link add store type veth peer name house{n} netns {}", vault.path()),
                &format!("addr add {near}/24 dev store"),
                "link set store up",
            ])?;
            vault.ip(&[&format!("addr add {far}/24 dev house{n}"), &format!("link set house{n} up")])?;
            town.balancer.ip(&[&format!("route add {VAULT} via {far}")])?;
            let manner = Manner {
                service: Some(service.clone()),
                prefix: Some(prefix),
                store: Some(store.clone()),
                keys: Some(keys.clone()),
                ..manner.clone()
            };
            House::build(town, manner)
        });
        Ok(Self { houses: houses.collect::<Result<_>>()?, redis: Some(redis), _vault: Some((vault, safe)) })
    }

    /// All doors, those that lead to any server first.
    pub(super) fn doors(&self) -> Vec<Door> {
        let fronts = self.houses.iter().map(House::front);
        let backs =
            self.houses.iter().flat_map(|house| house.servers.iter().map(|server| house.back(server)));
        fronts.chain(backs).collect()
    }
}

/// Client and balancer, and an address of the client's for connections past the VIP.
fn outskirts() -> Result<Topology> {
    let town = Topology::new(Arms::Several, 0)?;
    town.client.netns.ip(&[&format!("addr add {ASIDE}/24 dev {NIC}")])?;
    Ok(town)
}

impl House {
    fn build(town: Topology, manner: Manner) -> Result<Self> {
        let backends: Vec<_> = (0..SERVERS).map(|_| Backend::Managed).collect();
        // It does not start while its store has no primary, as may be when the machine is busy.
        let lbd = patiently(|| Lbd::start_in(&town, &backends, manner.clone()))?;
        let servers = lbd.list()?.into_iter().map(|listed| {
            let addr = listed.addr.parse().with_context(|| format!("the address of {}", listed.name))?;
            let netns = format!("lb-{}-{}", lbd.service(), listed.name);
            Ok(Server { name: listed.name.into(), addr, netns })
        });
        Ok(Self { servers: servers.collect::<Result<_>>()?, lbd, town })
    }

    /// The VIP.
    pub(super) fn front(&self) -> Door {
        let name = format!("{}'s VIP", self.servers[0].name.trim_end_matches('0'));
        Door { name: name.into(), to: dial(), from: self.town.client.netns.clone(), server: None }
    }

    /// A server's own.
    pub(super) fn back(&self, server: &Server) -> Door {
        let from = self.town.client.netns.clone();
        Door { name: server.name.clone(), to: server.addr, from, server: Some(server.name.clone()) }
    }
}

impl Door {
    /// Opens a connection. The calling thread stays in the client's namespace.
    pub(super) fn open(&self) -> std::io::Result<Line> {
        self.from.enter();
        Line::open(self.server.as_ref().map(|_| ASIDE), self.to)
    }

    /// Runs something that opens it, in a thread that may stay there.
    pub(super) fn visit<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        self.from.run(f)
    }
}
