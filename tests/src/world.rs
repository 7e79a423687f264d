//! Everything together: a town, the balancer in it, and a watch at every end point that no wrong checksum gets past.

use crate::balancer::Balancer;
use crate::object::Sizes;
use crate::server::Server;
use crate::testbed::{Filter, Side};
use crate::topology::{Arms, Topology};
use anyhow::Result;

/// Fields in the order in which they must go.
pub struct World {
    /// One for each backend that has one.
    pub servers: Vec<Server>,
    pub balancer: Balancer,
    /// Ingress of the client.
    pub at_client: Filter,
    /// Ingress of each backend.
    pub at_backends: Vec<Filter>,
    pub town: Topology,
}

impl World {
    /// Backends named `b0`, `b1`, … each with a server.
    pub fn new(arms: Arms, backends: usize) -> Result<Self> {
        Self::sized(arms, backends, Sizes::large())
    }

    /// The same with tables of other sizes.
    pub fn sized(arms: Arms, backends: usize, sizes: Sizes) -> Result<Self> {
        let mut world = Self::silent_sized(arms, backends, sizes)?;
        for (i, backend) in world.town.backends.iter().enumerate() {
            world.servers.push(Server::start(backend, &format!("b{i}"))?);
        }
        Ok(world)
    }

    /// Backends on which nobody listens.
    pub fn silent(arms: Arms, backends: usize) -> Result<Self> {
        Self::silent_sized(arms, backends, Sizes::large())
    }

    fn silent_sized(arms: Arms, backends: usize, sizes: Sizes) -> Result<Self> {
        let town = Topology::new(arms, backends)?;
        let at_client = Filter::attach(&town.client, Side::Ingress)?;
        let at_backends =
            town.backends.iter().map(|host| Filter::attach(host, Side::Ingress)).collect::<Result<_>>()?;
        let balancer = Balancer::start_sized(&town, sizes)?;
        Ok(Self { servers: Vec::new(), balancer, at_client, at_backends, town })
    }

    /// # Panics
    /// When an end point saw a wrong checksum or its kernel counted one.
    pub fn check(&self) -> Result<()> {
        let filters = std::iter::once(&self.at_client).chain(&self.at_backends);
        for (host, filter) in self.town.hosts().zip(filters) {
            let seen = filter.seen()?;
            assert_eq!((seen.bad_ip, seen.bad_tcp, seen.odd), (0, 0, 0), "at {}: {seen:?}", host.netns);
            assert_eq!(host.netns.counter("TcpInCsumErrors")?, 0, "in {}", host.netns);
        }
        Ok(())
    }

    /// What the programs counted, for messages.
    pub fn counts(&self) -> String {
        self.balancer.maps.counts().map_or_else(|error| format!("{error:#}"), |counts| format!("{counts:?}"))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // Every test checks this on its way out; one that is failing already has more to say.
        if !std::thread::panicking() {
            self.check().expect("counters can be read while the namespaces exist");
        }
    }
}
