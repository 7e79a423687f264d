//! Two namespaces joined by a veth pair, and what every test here needs.

use anyhow::{Context, Result};
use aya::programs::{SchedClassifier, TcAttachType};
use lb_userspace::datapath::{self, Datapath, DatapathError, DatapathOptions, JOINT, Limits, Mode};
use lb_userspace::net::{Netns, Rtnl, ethtool};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tests::require_root;
use tokio::sync::mpsc;

/// A name that no other test has, short enough for an interface.
pub(crate) fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

pub(crate) fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 77, 0, last).into()
}

/// A balancer's namespace and a neighbour's, joined by a veth pair: `lan` (10.77.0.1) here, `eth0` (10.77.0.2) there.
pub(crate) struct Town {
    pub(crate) balancer: Netns,
    pub(crate) neighbour: Netns,
    pub(crate) run_dir: PathBuf,
}

pub(crate) const LAN: &str = "lan";

impl Town {
    pub(crate) fn build() -> Result<Self> {
        require_root();
        let balancer = Netns::create(&unique("lbt-b"))?;
        let neighbour = Netns::create(&unique("lbt-n"))?;
        let town = Self { balancer, neighbour, run_dir: Path::new("/run").join(unique("lbt-run")) };
        town.join()?;
        Ok(town)
    }

    pub(crate) fn join(&self) -> Result<()> {
        self.balancer.run(|| -> Result<()> {
            let mut rtnl = Rtnl::open()?;
            rtnl.add_veth(LAN, "eth0", Some(self.neighbour.as_fd()))?;
            let lan = rtnl.link(LAN)?.context("just created")?;
            rtnl.add_address(lan.index, ip(1), 24)?;
            rtnl.set_up(lan.index)?;
            Ok(())
        })??;
        self.neighbour.run(|| -> Result<()> {
            let mut rtnl = Rtnl::open()?;
            let eth0 = rtnl.link("eth0")?.context("just created")?;
            rtnl.add_address(eth0.index, ip(2), 24)?;
            rtnl.set_up(eth0.index)?;
            ethtool::switch("eth0", ethtool::Feature::ReceiveOffload, true)?;
            ethtool::switch("eth0", ethtool::Feature::TxChecksum, false)?;
            Ok(())
        })??;
        Ok(())
    }

    pub(crate) fn options(&self) -> DatapathOptions {
        let object = std::env::var_os("LB_BPF_DIR")
            .map_or_else(
                || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf")),
                PathBuf::from,
            )
            .join("lb");
        DatapathOptions {
            object,
            run_dir: self.run_dir.clone(),
            limits: Limits {
                services: 4,
                backends: 8,
                flows: 512,
                pending: 16,
                maglev_size: 251,
                ..Limits::default()
            },
            interfaces: vec![LAN.to_owned()],
            mode: Mode::Auto,
        }
    }

    pub(crate) fn open(&self) -> Result<Datapath, DatapathError> {
        self.open_with(&self.options())
    }

    pub(crate) fn open_with(&self, options: &DatapathOptions) -> Result<Datapath, DatapathError> {
        self.balancer.run(|| Datapath::open(options)).expect("the namespace is there")
    }

    /// Id of the XDP program on the balancer's interface.
    pub(crate) fn program(&self) -> Result<Option<u32>> {
        let link = self.balancer.run(|| Rtnl::open()?.link(LAN))??.context("lan is there")?;
        Ok(link.xdp.map(|xdp| xdp.program_id))
    }

    /// How the joint is on the balancer's interface: by a TCX link, or as a filter.
    pub(crate) fn joint(&self) -> Result<Option<&'static str>> {
        let links = self.balancer.run(|| SchedClassifier::query_tcx(LAN, TcAttachType::Ingress))?;
        // Kernels before 6.6 know filters alone.
        if links.is_ok_and(|(_, programs)| programs.iter().any(|p| p.name_as_str() == Some(JOINT))) {
            return Ok(Some("tcx"));
        }
        let show = || Command::new("tc").args(["filter", "show", "dev", LAN, "ingress"]).output();
        let filters = String::from_utf8(self.balancer.run(show)??.stdout)?;
        Ok(filters.contains(JOINT).then_some("clsact"))
    }

    pub(crate) fn pins(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut directories = vec![self.run_dir.join("bpf")];
        while let Some(directory) = directories.pop() {
            for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
                if entry.path().is_dir() { directories.push(entry.path()) } else { found.push(entry.path()) }
            }
        }
        found
    }
}

impl Drop for Town {
    fn drop(&mut self) {
        if let Err(error) = datapath::detach(&self.run_dir) {
            eprintln!("{}: {:#}", self.run_dir.display(), anyhow::Error::from(error));
        }
        let _ = std::fs::remove_dir_all(&self.run_dir);
    }
}

pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Waits for an event that the test cannot do without.
pub(crate) async fn next<T>(events: &mut mpsc::UnboundedReceiver<T>) -> Result<T> {
    tokio::time::timeout(Duration::from_secs(10), events.recv())
        .await
        .context("no event in 10 s")?
        .context("ended")
}
