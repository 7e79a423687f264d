//! The daemon's hands: pins, links and maps of the data path; namespaces, veths and next hops; managed servers; health
//! checks. Each against the real kernel.

use anyhow::{Context, Result};
use futures::future::LocalBoxFuture;
use lb_common::backend::{Backend, State};
use lb_common::endpoint::{Endpoint, KIND_SERVICE, port_and_protocol};
use lb_common::service::{PROMISE_TIMESTAMPS, PROMISE_WINDOW_SCALE};
use lb_common::settings::Settings;
use lb_userspace::datapath::{self, Datapath, DatapathError, DatapathOptions, Limits, MapWrite, Mode};
use lb_userspace::health::{Health, Policy};
use lb_userspace::net::{
    Netns, NextHop, NextHopEvent, NextHops, Peer, Rtnl, check_peer, ethtool, set_sysctl,
};
use lb_userspace::supervisor::{
    Exit, ManagedSpec, Server, ServerEvent, Supervisor, SupervisorError, interface_name, namespace_name,
    remove_all,
};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tests::require_root;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

/// A name that no other test has, short enough for an interface.
fn unique(prefix: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("{prefix}{}n{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

fn ip(last: u8) -> IpAddr {
    Ipv4Addr::new(10, 77, 0, last).into()
}

/// A balancer's namespace and a neighbour's, joined by a veth pair: `lan` (10.77.0.1) here, `eth0` (10.77.0.2) there.
struct Town {
    balancer: Netns,
    neighbour: Netns,
    run_dir: PathBuf,
}

const LAN: &str = "lan";

impl Town {
    fn build() -> Result<Self> {
        require_root();
        let balancer = Netns::create(&unique("lbt-b"))?;
        let neighbour = Netns::create(&unique("lbt-n"))?;
        let town = Self { balancer, neighbour, run_dir: Path::new("/run").join(unique("lbt-run")) };
        town.join()?;
        Ok(town)
    }

    fn join(&self) -> Result<()> {
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

    fn options(&self) -> DatapathOptions {
        let object = std::env::var_os("LB_BPF_DIR")
            .map_or_else(
                || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../target/bpf")),
                PathBuf::from,
            )
            .join("lb");
        DatapathOptions {
            object,
            run_dir: self.run_dir.clone(),
            limits: Limits { services: 4, backends: 8, flows: 512, pending: 16, maglev_size: 251 },
            interfaces: vec![LAN.to_owned()],
            mode: Mode::Auto,
        }
    }

    fn open(&self) -> Result<Datapath, DatapathError> {
        self.open_with(&self.options())
    }

    fn open_with(&self, options: &DatapathOptions) -> Result<Datapath, DatapathError> {
        self.balancer.run(|| Datapath::open(options)).expect("the namespace is there")
    }

    /// Id of the XDP program on the balancer's interface.
    fn program(&self) -> Result<Option<u32>> {
        let link = self.balancer.run(|| Rtnl::open()?.link(LAN))??.context("lan is there")?;
        Ok(link.xdp.map(|xdp| xdp.program_id))
    }

    fn pins(&self) -> Vec<PathBuf> {
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

fn endpoints() -> Vec<Endpoint> {
    let port = port_and_protocol(lb_common::addr::Be16::new(80), 6);
    vec![Endpoint { addr: ip(100).into(), port, kind: KIND_SERVICE, index: 1 }]
}

fn backend(port: u16) -> Backend {
    Backend {
        addr: ip(2).into(),
        port: lb_common::addr::Be16::new(port),
        service: 1,
        state: State::Ready as u8,
        ..Backend::default()
    }
}

#[test]
fn a_second_daemon_takes_over_maps_and_links_without_a_gap() -> Result<()> {
    let town = Town::build()?;
    let mut first = town.open()?;
    assert!(first.inherited().is_none(), "new maps have no history");
    assert_eq!(first.interfaces().collect::<Vec<_>>(), [(LAN, Mode::Driver)]);
    let asked = Settings { cookie_keys: [[1, 2], [3, 4]], idle_ticks: 100, ..Settings::default() };
    let service = lb_common::service::Service { addr: ip(100).into(), ..Default::default() };
    first.apply(&[
        MapWrite::Settings(Box::new(asked)),
        MapWrite::Endpoints(endpoints()),
        MapWrite::Backend { slot: 3, backend: backend(80) },
        MapWrite::Backend { slot: 4, backend: backend(81) },
        MapWrite::Service { id: 1, service, maglev: Some(vec![3; 251]) },
    ])?;
    let kept = *first.flow_seed();
    assert_ne!(kept, [0; 7], "a secret seed is drawn");
    assert!(matches!(town.open(), Err(DatapathError::Busy { .. })), "two daemons at once");
    let before = town.program()?.context("attached")?;
    drop(first);
    assert_eq!(town.program()?, Some(before), "the program stays when its daemon goes");

    let mut second = town.open()?;
    let after = town.program()?.context("attached")?;
    assert_ne!(after, before, "the new daemon's program replaces the old one's");
    let inherited = second.inherited().context("the maps were taken over")?;
    assert_eq!(inherited.cookie_keys, asked.cookie_keys);
    assert_eq!(*second.flow_seed(), kept, "flows are found by the same hash");
    // What the new daemon does not write again is gone once it has settled.
    second.apply(&[MapWrite::Backend { slot: 4, backend: backend(81) }])?;
    second.settle()?;
    drop(second);
    let slots = pinned_backends(&town)?;
    assert_eq!(slots, [4]);
    Ok(())
}

fn pinned_backends(town: &Town) -> Result<Vec<u32>> {
    let pin = town.pins().into_iter().find(|pin| pin.ends_with("BACKENDS")).context("pinned")?;
    let map =
        aya::maps::Array::<_, Backend>::try_from(aya::maps::Map::Array(aya::maps::MapData::from_pin(pin)?))?;
    Ok((0..map.len())
        .filter(|slot| map.get(slot, 0).is_ok_and(|found| found != Backend::default()))
        .collect())
}

#[test]
fn pinned_maps_of_another_size_are_refused_by_name() -> Result<()> {
    let town = Town::build()?;
    drop(town.open()?);
    let mut options = town.options();
    options.limits.backends = 16;
    let error = town.open_with(&options).map(drop).expect_err("8 slots are not 16").to_string();
    for part in ["a number of entries of 8", "16", "detach", "limits"] {
        assert!(error.contains(part), "{part:?} is not in {error:?}");
    }
    assert!(town.program()?.is_some(), "what was attached stays attached");
    drop(town.open()?);
    Ok(())
}

#[test]
fn an_interface_made_again_is_attached_again() -> Result<()> {
    let town = Town::build()?;
    let mut datapath = town.open()?;
    town.balancer.run(|| -> Result<()> {
        let mut rtnl = Rtnl::open()?;
        let lan = rtnl.link(LAN)?.context("there")?;
        Ok(rtnl.delete_link(lan.index)?)
    })??;
    town.join()?;
    assert_eq!(town.program()?, None);
    town.balancer.run(|| datapath.attach_interface(LAN))??;
    assert!(town.program()?.is_some());
    town.balancer.run(|| datapath.attach_interface(LAN))??;
    drop(datapath);
    // And by a daemon that finds the pin of an interface that is no more.
    town.balancer.run(|| -> Result<()> {
        let mut rtnl = Rtnl::open()?;
        let lan = rtnl.link(LAN)?.context("there")?;
        Ok(rtnl.delete_link(lan.index)?)
    })??;
    town.join()?;
    drop(town.open()?);
    assert!(town.program()?.is_some());
    Ok(())
}

#[test]
fn generic_mode_replaces_driver_mode_when_asked() -> Result<()> {
    let town = Town::build()?;
    drop(town.open()?);
    let mut options = town.options();
    options.mode = Mode::Generic;
    let datapath = town.open_with(&options)?;
    assert_eq!(datapath.interfaces().collect::<Vec<_>>(), [(LAN, Mode::Generic)]);
    Ok(())
}

#[test]
fn a_driver_that_cannot_falls_back_to_generic_mode() -> Result<()> {
    let town = Town::build()?;
    // A veth with a jumbo peer cannot run XDP in its driver.
    for namespace in [&town.balancer, &town.neighbour] {
        namespace.run(|| -> Result<()> {
            let name = if namespace.name() == town.balancer.name() { LAN } else { "eth0" };
            let status =
                std::process::Command::new("ip").args(["link", "set", name, "mtu", "9000"]).status()?;
            anyhow::ensure!(status.success(), "ip link set mtu");
            Ok(())
        })??;
    }
    let datapath = town.open()?;
    assert_eq!(datapath.interfaces().collect::<Vec<_>>(), [(LAN, Mode::Generic)]);
    drop(datapath);
    let mut options = town.options();
    options.mode = Mode::Driver;
    let error = town.open_with(&options).map(drop).expect_err("driver mode was insisted on").to_string();
    assert!(error.contains("lan"), "{error}");
    Ok(())
}

#[test]
fn what_cannot_be_attached_is_said_before_anything_is() -> Result<()> {
    let town = Town::build()?;
    let mut options = town.options();
    options.interfaces = vec!["nowhere".to_owned()];
    assert!(matches!(town.open_with(&options), Err(DatapathError::NoInterface(name)) if name == "nowhere"));
    options.interfaces = vec![LAN.to_owned()];
    options.object = "/nonexistent/lb".into();
    let error = town.open_with(&options).map(drop).expect_err("no object").to_string();
    assert!(error.contains("cargo xtask build"), "{error}");
    town.balancer.run(|| -> Result<()> {
        let mut rtnl = Rtnl::open()?;
        let lan = rtnl.link(LAN)?.context("there")?;
        Ok(rtnl.set_down(lan.index)?)
    })??;
    assert!(matches!(town.open(), Err(DatapathError::InterfaceDown(name)) if name == LAN));
    assert_eq!(town.pins(), Vec::<PathBuf>::new());
    Ok(())
}

#[test]
fn detaching_leaves_no_trace() -> Result<()> {
    let town = Town::build()?;
    let datapath = town.open()?;
    assert!(
        matches!(datapath::detach(&town.run_dir), Err(DatapathError::Busy { .. })),
        "while a daemon runs"
    );
    drop(datapath);
    let removed = datapath::detach(&town.run_dir)?;
    assert!(removed.len() > 10, "{removed:?}");
    assert_eq!(town.program()?, None);
    assert!(!town.run_dir.join("bpf").exists());
    assert_eq!(datapath::detach(&town.run_dir)?, Vec::<String>::new(), "twice is fine");
    Ok(())
}

#[test]
fn endpoint_and_maglev_tables_change_halves() -> Result<()> {
    let town = Town::build()?;
    let mut datapath = town.open()?;
    let service = lb_common::service::Service { addr: ip(100).into(), ..Default::default() };
    let mut lives = Vec::new();
    for round in 0..4_u16 {
        datapath.apply(&[
            MapWrite::Endpoints(endpoints()),
            MapWrite::Service { id: 2, service, maglev: Some(vec![round; 251]) },
        ])?;
        lives.push(pinned_settings(&town)?.live);
    }
    assert_ne!(lives[0], lives[1]);
    assert_eq!(lives[..2], lives[2..]);
    assert!(lives.iter().all(|live| live >> 32 == 16_383), "{lives:x?}");
    for (name, result) in [
        ("service id", datapath.apply(&[MapWrite::Service { id: 4, service, maglev: None }])),
        ("backend slot", datapath.apply(&[MapWrite::Backend { slot: 8, backend: backend(1) }])),
    ] {
        let error = result.expect_err("beyond the limits").to_string();
        assert!(error.contains(name) && error.contains("limit"), "{error}");
    }
    Ok(())
}

fn pinned_settings(town: &Town) -> Result<Settings> {
    let pin = town.pins().into_iter().find(|pin| pin.ends_with("SETTINGS")).context("pinned")?;
    let map =
        aya::maps::Array::<_, Settings>::try_from(aya::maps::Map::Array(aya::maps::MapData::from_pin(pin)?))?;
    Ok(map.get(&0, 0)?)
}

#[test]
fn features_that_a_program_took_away_count_as_off() -> Result<()> {
    let town = Town::build()?;
    let _datapath = town.open()?;
    town.neighbour.run(|| -> Result<()> {
        ethtool::switch("eth0", ethtool::Feature::TcpSegmentation, false)?;
        assert!(ethtool::switch("eth0", ethtool::Feature::TcpSegmentation, true).is_err(), "fixed to off");
        Ok(())
    })?
}

#[test]
fn a_veth_whose_peer_does_not_poll_is_noticed() -> Result<()> {
    let town = Town::build()?;
    let look = || -> Result<Peer> {
        town.balancer.run(|| {
            let mut rtnl = Rtnl::open()?;
            let lan = rtnl.link(LAN)?.context("there")?;
            Ok(check_peer(&mut rtnl, &lan)?)
        })?
    };
    assert_eq!(look()?, Peer::Receives);
    town.neighbour.run(|| ethtool::switch("eth0", ethtool::Feature::ReceiveOffload, false))??;
    assert_eq!(look()?, Peer::Ignores);
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Waits for an event that the test cannot do without.
async fn next<T>(events: &mut mpsc::UnboundedReceiver<T>) -> Result<T> {
    tokio::time::timeout(Duration::from_secs(10), events.recv())
        .await
        .context("no event in 10 s")?
        .context("ended")
}

#[test]
fn next_hops_are_resolved_and_follow_changes() -> Result<()> {
    let town = Town::build()?;
    let (lan, eth0) = (
        town.balancer.run(|| Rtnl::open()?.link(LAN))??.context("there")?,
        town.neighbour.run(|| Rtnl::open()?.link("eth0"))??.context("there")?,
    );
    let expected = NextHop { ifindex: lan.index, local_mac: lan.mac, next_hop_mac: eth0.mac };
    town.balancer.run(|| -> Result<()> {
        runtime()?.block_on(async {
            let (events, mut news) = mpsc::unbounded_channel();
            let next_hops = NextHops::spawn(events)?;
            next_hops.watch(ip(2));
            assert_eq!(next(&mut news).await?, NextHopEvent { addr: ip(2), next_hop: Some(expected) });

            // Not there yet: it is asked for until it is.
            next_hops.watch(ip(3));
            let late = async {
                tokio::time::sleep(Duration::from_millis(300)).await;
                town.neighbour.run(|| Rtnl::open()?.add_address(eth0.index, ip(3), 24))??;
                Ok::<_, anyhow::Error>(())
            };
            let (added, event) = tokio::join!(late, next(&mut news));
            added?;
            assert_eq!(event?, NextHopEvent { addr: ip(3), next_hop: Some(expected) });

            // Behind a router.
            let far: IpAddr = Ipv4Addr::new(192, 0, 2, 9).into();
            next_hops.watch(far);
            let mut rtnl = Rtnl::open()?;
            rtnl.set_route((Ipv4Addr::new(192, 0, 2, 0).into(), 24), lan.index, Some(ip(2)), None)?;
            assert_eq!(next(&mut news).await?, NextHopEvent { addr: far, next_hop: Some(expected) });

            // Another machine takes over the address, and says so.
            let mac = [2, 0, 0, 0, 0, 9];
            rtnl.set_neighbour(lan.index, ip(3), mac)?;
            let moved = NextHop { next_hop_mac: mac, ..expected };
            assert_eq!(next(&mut news).await?, NextHopEvent { addr: ip(3), next_hop: Some(moved) });

            // The interface goes down: there is no way any more.
            rtnl.set_down(lan.index)?;
            let mut lost = Vec::new();
            for _ in 0..3 {
                let event = next(&mut news).await?;
                assert_eq!(event.next_hop, None);
                lost.push(event.addr);
            }
            lost.sort();
            assert_eq!(lost, [ip(2), ip(3), far]);
            Ok(())
        })
    })?
}

#[test]
fn namespaces_are_named_as_ip_netns_names_them() -> Result<()> {
    require_root();
    let name = unique("lbt-name");
    let made = Netns::create(&name)?;
    let listed =
        std::process::Command::new("ip").args(["netns", "exec", &name, "ip", "-br", "link"]).output()?;
    let listed = String::from_utf8(listed.stdout)?;
    assert!(listed.starts_with("lo") && listed.contains("UP"), "{listed:?}");
    assert!(Netns::create(&name).is_err(), "the name is taken");
    assert!(Netns::list(&name).contains(&name));
    drop(made);
    assert!(Netns::open(&name).is_err(), "removed with its value");
    assert!(!Netns::remove(&name)?, "fine when it is gone");
    Ok(())
}

/// Tells every client its epoch, and dies in the ways that clients ask for.
struct Parrot {
    epoch: AtomicU32,
    /// How long a connection is held before the answer.
    slow: Duration,
}

impl Server for Parrot {
    fn next_epoch(&self, _: &ManagedSpec) -> Result<u32> {
        Ok(self.epoch.fetch_add(1, Ordering::Relaxed) + 1)
    }

    fn serve(
        &self,
        _: &ManagedSpec,
        epoch: u32,
        listener: std::net::TcpListener,
        mut shutdown: watch::Receiver<bool>,
    ) -> LocalBoxFuture<'static, Result<()>> {
        let slow = self.slow;
        Box::pin(async move {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let mut talks = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        talks.spawn(talk(accepted?.0, epoch, slow));
                    }
                    Some(order) = talks.join_next() => match order? {
                        Ok(b'p') => panic!("as ordered"),
                        Ok(b'f') => anyhow::bail!("failing as ordered"),
                        // A client may hang up without a word.
                        Ok(_) | Err(_) => {}
                    },
                    _ = shutdown.wait_for(|asked| *asked) => break,
                }
            }
            drop(listener);
            while talks.join_next().await.is_some() {}
            Ok(())
        })
    }
}

async fn talk(mut stream: tokio::net::TcpStream, epoch: u32, slow: Duration) -> Result<u8> {
    let order = stream.read_u8().await?;
    tokio::time::sleep(slow).await;
    stream.write_all(format!("{epoch}").as_bytes()).await?;
    Ok(order)
}

/// Asks the server for its epoch from the balancer's namespace.
async fn ask(addr: SocketAddr, order: u8) -> Result<u32> {
    let mut stream = tokio::net::TcpStream::connect(addr).await?;
    stream.write_all(&[order]).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.parse()?)
}

fn managed(name: &str, last: u8, slot: u16) -> ManagedSpec {
    ManagedSpec {
        service: "t".to_owned(),
        service_id: 1,
        name: name.to_owned(),
        slot,
        addr: (Ipv4Addr::new(10, 254, 7, last), 8080).into(),
        gateway: Ipv4Addr::new(10, 254, 7, 1).into(),
    }
}

/// Runs `story` in a namespace of its own with a supervisor of parrots.
fn with_supervisor<F>(
    slow: Duration,
    story: impl FnOnce(Supervisor, mpsc::UnboundedReceiver<ServerEvent>) -> F + Send,
) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    require_root();
    let balancer = Netns::create(&unique("lbt-b"))?;
    balancer.run(|| {
        runtime()?.block_on(async {
            let (events, news) = mpsc::unbounded_channel();
            let parrot = Parrot { epoch: AtomicU32::new(0), slow };
            story(Supervisor::new(Arc::new(parrot), events), news).await
        })
    })?
}

fn ready(slot: u16, epoch: u32, interface: &str) -> ServerEvent {
    ServerEvent::Ready { slot, epoch, interface: interface.to_owned() }
}

fn exited(slot: u16, epoch: u32, reason: Exit, after_ms: Option<u64>) -> ServerEvent {
    ServerEvent::Exited { slot, epoch, reason, restart_in: after_ms.map(Duration::from_millis) }
}

#[test]
fn managed_servers_live_die_and_return_with_a_new_epoch() -> Result<()> {
    let name = unique("s");
    with_supervisor(Duration::ZERO, |mut supervisor, mut news| async move {
        let spec = managed(&name, 2, 7);
        let interface = supervisor.spawn(spec.clone())?;
        assert!(matches!(supervisor.spawn(spec.clone()), Err(SupervisorError::Taken(7))));
        assert_eq!(next(&mut news).await?, ready(7, 1, &interface));
        assert_eq!(ask(spec.addr, b'.').await?, 1);
        let link = Rtnl::open()?.link(&interface)?.context("the balancer's end")?;
        assert_eq!(check_peer(&mut Rtnl::open()?, &link)?, Peer::Receives);

        supervisor.restart(7)?;
        assert_eq!(next(&mut news).await?, exited(7, 1, Exit::Stopped, Some(0)));
        assert_eq!(next(&mut news).await?, ready(7, 2, &interface));
        assert_eq!(ask(spec.addr, b'p').await?, 2);
        assert_eq!(next(&mut news).await?, exited(7, 2, Exit::Panicked("as ordered".into()), Some(100)));
        assert_eq!(next(&mut news).await?, ready(7, 3, &interface));
        assert_eq!(ask(spec.addr, b'f').await?, 3);
        assert_eq!(
            next(&mut news).await?,
            exited(7, 3, Exit::Failed("failing as ordered".into()), Some(200)),
            "doubled"
        );
        assert_eq!(next(&mut news).await?, ready(7, 4, &interface));

        supervisor.stop(7)?;
        assert_eq!(next(&mut news).await?, exited(7, 4, Exit::Stopped, None));
        assert!(ask(spec.addr, b'.').await.is_err(), "it stays stopped");
        supervisor.restart(7)?;
        assert_eq!(next(&mut news).await?, ready(7, 5, &interface));
        assert!(matches!(supervisor.restart(8), Err(SupervisorError::Unknown(8))));

        let namespace = namespace_name("t", &name);
        assert!(Netns::open(&namespace).is_ok());
        supervisor.shutdown().await;
        assert_eq!(next(&mut news).await?, exited(7, 5, Exit::Stopped, None));
        assert!(Netns::open(&namespace).is_err(), "removed with the supervisor");
        assert_eq!(Rtnl::open()?.link(&interface)?, None);
        Ok(())
    })
}

#[test]
fn stopping_waits_for_answers_and_killing_does_not() -> Result<()> {
    let name = unique("s");
    with_supervisor(Duration::from_millis(300), |mut supervisor, mut news| async move {
        let spec = managed(&name, 3, 1);
        let interface = supervisor.spawn(spec.clone())?;
        assert_eq!(next(&mut news).await?, ready(1, 1, &interface));
        #[expect(
            clippy::async_yields_async,
            reason = "the answer is awaited later, when the server is stopping"
        )]
        let ask_early = || async {
            let asking = tokio::spawn(ask(spec.addr, b'.'));
            // Until the request is there.
            tokio::time::sleep(Duration::from_millis(100)).await;
            asking
        };
        let asking = ask_early().await;
        supervisor.restart(1)?;
        assert_eq!(asking.await??, 1, "answered before it stopped");
        assert_eq!(next(&mut news).await?, exited(1, 1, Exit::Stopped, Some(0)));
        assert_eq!(next(&mut news).await?, ready(1, 2, &interface));

        let asking = ask_early().await;
        supervisor.kill(1, Some(Duration::from_millis(200)))?;
        assert!(asking.await?.is_err(), "cut off in the middle");
        assert_eq!(next(&mut news).await?, exited(1, 2, Exit::Killed, Some(200)));
        let refused = ask(spec.addr, b'.').await.expect_err("nobody listens").to_string();
        assert!(refused.contains("refused"), "{refused}");
        assert_eq!(next(&mut news).await?, ready(1, 3, &interface));
        supervisor.shutdown().await;
        Ok(())
    })
}

#[test]
fn a_namespace_that_was_left_behind_is_taken_over() -> Result<()> {
    let name = unique("s");
    with_supervisor(Duration::ZERO, |mut supervisor, mut news| async move {
        let spec = managed(&name, 4, 1);
        let namespace = namespace_name("t", &name);
        // What a daemon leaves that was killed while it arranged the network.
        let left = Netns::create(&namespace)?.keep();
        let interface = interface_name("t", &name);
        Rtnl::open()?.add_veth(&interface, "elsewhere", None)?;
        assert_eq!(supervisor.spawn(spec.clone())?, interface);
        assert_eq!(next(&mut news).await?, ready(1, 1, &interface));
        assert_eq!(ask(spec.addr, b'.').await?, 1);
        // And one that was killed later, its network whole.
        let index = Rtnl::open()?.link(&interface)?.context("there")?.index;
        let (events, mut second_news) = mpsc::unbounded_channel();
        supervisor.stop(1)?;
        assert_eq!(next(&mut news).await?, exited(1, 1, Exit::Stopped, None));
        let parrot = Parrot { epoch: AtomicU32::new(10), slow: Duration::ZERO };
        let mut second = Supervisor::new(Arc::new(parrot), events);
        second.spawn(spec.clone())?;
        assert_eq!(next(&mut second_news).await?, ready(1, 11, &interface));
        assert_eq!(Rtnl::open()?.link(&interface)?.context("there")?.index, index, "the same veth pair");
        assert_eq!(ask(spec.addr, b'.').await?, 11);
        second.shutdown().await;
        drop((left, supervisor));
        Ok(())
    })
}

#[test]
fn what_a_killed_daemon_left_of_its_servers_can_be_removed() -> Result<()> {
    let (name, lonely) = (unique("s"), unique("s"));
    with_supervisor(Duration::ZERO, |mut supervisor, mut news| async move {
        let spec = managed(&name, 8, 1);
        let interface = supervisor.spawn(spec)?;
        next(&mut news).await?;
        // A namespace whose veth pair went with a balancer's namespace.
        let namespaces = [namespace_name("t", &name), namespace_name("t", &lonely)];
        drop(Netns::create(&namespaces[1])?.keep());
        // Nobody removes anything when the daemon is killed; what it leaves is what stands here.
        let removed = remove_all([("t", lonely.as_str())])?;
        assert_eq!(
            removed,
            [
                format!("interface {interface}"),
                format!("network namespace {}", namespaces[0]),
                format!("network namespace {}", namespaces[1])
            ]
        );
        assert_eq!(Rtnl::open()?.link(&interface)?, None);
        assert_eq!(remove_all([])?, Vec::<String>::new());
        supervisor.shutdown().await;
        Ok(())
    })
}

#[test]
fn an_address_that_is_taken_is_reported_and_tried_again() -> Result<()> {
    let name = unique("s");
    with_supervisor(Duration::ZERO, |mut supervisor, mut news| async move {
        let spec = managed(&name, 5, 1);
        let netns = Netns::create(&namespace_name("t", &name))?.keep();
        let squatter = netns.run(|| std::net::TcpListener::bind(("0.0.0.0", 8080)))??;
        supervisor.spawn(spec.clone())?;
        let ServerEvent::Failed { slot: 1, reason, .. } = next(&mut news).await? else {
            anyhow::bail!("it cannot start")
        };
        assert!(reason.contains("10.254.7.5:8080") && reason.contains("in use"), "{reason}");
        drop(squatter);
        while let ServerEvent::Failed { .. } = next(&mut news).await? {}
        assert!(ask(spec.addr, b'.').await.is_ok());
        supervisor.shutdown().await;
        Ok(())
    })
}

#[test]
fn health_learns_what_a_backend_can_do() -> Result<()> {
    let name = unique("s");
    with_supervisor(Duration::ZERO, |mut supervisor, mut news| async move {
        let spec = managed(&name, 6, 1);
        supervisor.spawn(spec.clone())?;
        next(&mut news).await?;
        let (events, mut opinions) = mpsc::unbounded_channel();
        let mut health = Health::new(events);
        let policy = Policy {
            interval: Duration::from_millis(50),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 2,
        };
        health.watch(1, spec.addr, policy);
        let event = next(&mut opinions).await?;
        assert!(event.up);
        assert_eq!((event.learned.seen, event.learned.promises, event.learned.mss), (1, 7, 1460));
        // A server without SACK and timestamps: found out by the next check.
        let netns = Netns::open(&namespace_name("t", &name))?;
        netns.run(|| -> Result<()> {
            set_sysctl("net/ipv4/tcp_sack", "0")?;
            set_sysctl("net/ipv4/tcp_timestamps", "0")?;
            Ok(())
        })??;
        let mut event = next(&mut opinions).await?;
        if event.learned.promises & PROMISE_TIMESTAMPS != 0 {
            // A check came between the two changes.
            event = next(&mut opinions).await?;
        }
        assert!(event.up, "{event:?}");
        assert_eq!((event.learned.promises, event.learned.mss), (PROMISE_WINDOW_SCALE, 1460));
        // Silence instead of a refusal.
        let eth0 = netns.run(|| Rtnl::open()?.link("eth0"))??.context("there")?;
        netns.run(|| Rtnl::open()?.set_down(eth0.index))??;
        let event = next(&mut opinions).await?;
        assert!(!event.up);
        supervisor.shutdown().await;
        Ok(())
    })
}
