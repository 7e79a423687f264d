//! Where the torture takes place: lbd with its managed servers, and the doors through which clients come.

use super::Plan;
use super::wire::Line;
use crate::balancer::dial;
use crate::daemon::{Backend, Lbd, Manner};
use crate::netns::Netns;
use crate::topology::{Arms, NIC, Topology};
use anyhow::{Context, Result};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

/// Managed servers of one lbd.
const SERVERS: usize = 3;
/// Where connections past the VIP come from: a port that a flow through the VIP has must not be theirs, too.
const ASIDE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 3);

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

impl House {
    pub(super) fn build(plan: &Plan) -> Result<Self> {
        let town = Topology::new(Arms::Several, 0)?;
        town.client.netns.ip(&[&format!("addr add {ASIDE}/24 dev {NIC}")])?;
        let manner = Manner { fault: plan.fault.clone(), ..Manner::default() };
        let backends: Vec<_> = (0..SERVERS).map(|_| Backend::Managed).collect();
        let lbd = Lbd::start_in(&town, &backends, manner)?;
        let servers = lbd.list()?.into_iter().map(|listed| {
            let addr = listed.addr.parse().with_context(|| format!("the address of {}", listed.name))?;
            let netns = format!("lb-{}-{}", lbd.service(), listed.name);
            Ok(Server { name: listed.name.into(), addr, netns })
        });
        Ok(Self { servers: servers.collect::<Result<_>>()?, lbd, town })
    }

    /// The VIP.
    pub(super) fn front(&self) -> Door {
        Door { name: "the VIP".into(), to: dial(), from: self.town.client.netns.clone(), server: None }
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
