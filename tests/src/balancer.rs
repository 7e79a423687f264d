//! The product's programs at work between the namespaces, told what to do by the test instead of by the daemon.

use crate::maps::Maps;
use crate::object::{Sizes, load_lb, load_program};
use crate::setup::Setup;
use crate::topology::{PORT, Topology, VIP};
use anyhow::{Context, Result};
use aya::Ebpf;
use aya::programs::tc::qdisc_add_clsact;
use aya::programs::{SchedClassifier, TcAttachType, Xdp, XdpMode};
use std::net::SocketAddrV4;

/// Attached for as long as it lives.
pub struct Balancer {
    pub setup: Setup,
    pub maps: Maps,
    /// Owns programs and links.
    _ebpf: Ebpf,
}

/// The service that [`Balancer::start`] makes.
pub const SERVICE: u16 = 1;

impl Balancer {
    /// One service in front of every backend of the town, all of them ready.
    pub fn start(town: &Topology) -> Result<Self> {
        Self::start_sized(town, Sizes::large())
    }

    pub fn start_sized(town: &Topology, sizes: Sizes) -> Result<Self> {
        Self::start_with(town, Self::setup_of(town, sizes))
    }

    /// One service in front of every backend of the town.
    pub fn setup_of(town: &Topology, sizes: Sizes) -> Setup {
        let mut setup = Setup::new(sizes);
        let service = setup.service(dial());
        for backend in &town.backends {
            setup.backend(service, backend.serves(), Some(backend.next_hop()));
        }
        setup
    }

    /// Loads, fills the maps, attaches to every interface of the balancer.
    pub fn start_with(town: &Topology, setup: Setup) -> Result<Self> {
        Self::start_in(town, setup, XdpMode::Driver)
    }

    /// As [`Balancer::start_with`] in a mode of the caller's.
    pub fn start_in(town: &Topology, setup: Setup, mode: XdpMode) -> Result<Self> {
        let mut ebpf = load_lb(setup.sizes)?;
        let mut maps = Maps::take(&mut ebpf)?;
        maps.apply(&setup)?;
        let xdp = load_program(&mut ebpf, "lb", Xdp::load)?;
        town.balancer.run(|| -> Result<()> {
            for port in town.ports() {
                xdp.attach(&port.name, mode).with_context(|| format!("attaching lb to {}", port.name))?;
            }
            Ok(())
        })?;
        let joint = load_program(&mut ebpf, "lb_joint", SchedClassifier::load)?;
        town.balancer.run(|| -> Result<()> {
            for port in town.ports() {
                if joint.attach(&port.name, TcAttachType::Ingress).is_ok() {
                    continue;
                }
                // Before Linux 6.6 it is a filter, which stands in a queueing discipline.
                qdisc_add_clsact(&port.name).with_context(|| format!("adding clsact to {}", port.name))?;
                joint
                    .attach(&port.name, TcAttachType::Ingress)
                    .with_context(|| format!("attaching lb_joint to {}", port.name))?;
            }
            Ok(())
        })?;
        Ok(Self { setup, maps, _ebpf: ebpf })
    }

    /// Changes what it was told.
    pub fn change(&mut self, change: impl FnOnce(&mut Setup)) -> Result<()> {
        change(&mut self.setup);
        self.maps.apply(&self.setup)
    }
}

/// What clients connect to.
pub fn dial() -> SocketAddrV4 {
    SocketAddrV4::new(VIP, PORT)
}
