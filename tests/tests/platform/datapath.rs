//! Maps and links that outlive their daemon, and what is refused before anything is attached.

use crate::town::{LAN, Town, ip};
use anyhow::{Context, Result};
use aya::maps::{Map, MapData, PerCpuValues};
use lb_common::addr::Be16;
use lb_common::backend::{Backend, State};
use lb_common::counter::BackendCounters;
use lb_common::endpoint::{Endpoint, KIND_SERVICE, port_and_protocol};
use lb_common::quic_lb::servers::{Bucket, Entry};
use lb_common::quic_lb::{Config, NONE, SERVER_IDS, Server};
use lb_common::service::Service;
use lb_common::settings::Settings;
use lb_userspace::datapath::{self, Datapath, DatapathError, MapWrite, Mode};
use lb_userspace::net::Rtnl;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

fn endpoints() -> Vec<Endpoint> {
    let port = port_and_protocol(Be16::new(80), 6);
    vec![Endpoint { addr: ip(100).into(), port, kind: KIND_SERVICE, index: 1 }]
}

fn backend(port: u16) -> Backend {
    Backend {
        addr: ip(2).into(),
        port: Be16::new(port),
        service: 1,
        state: State::Ready as u8,
        ..Backend::default()
    }
}

fn modes(datapath: &Datapath) -> Vec<(&str, Mode)> {
    datapath.interfaces().map(|(name, attached)| (name, attached.mode)).collect()
}

#[test]
fn a_second_daemon_takes_over_maps_and_links_without_a_gap() -> Result<()> {
    let town = Town::build()?;
    let mut first = town.open()?;
    assert!(first.inherited().is_none(), "new maps have no history");
    assert_eq!(modes(&first), [(LAN, Mode::Driver)]);
    let asked = Settings { cookie_keys: [[1, 2], [3, 4]], idle_ticks: 100, ..Settings::default() };
    let service = Service { addr: ip(100).into(), ..Default::default() };
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
fn counters_begin_anew_with_another_backend_in_a_slot() -> Result<()> {
    let town = Town::build()?;
    let mut first = town.open()?;
    first.apply(&[MapWrite::Backend { slot: 3, backend: backend(80) }])?;
    let pin = town.pins().into_iter().find(|pin| pin.ends_with("BACKEND_COUNTERS")).context("pinned")?;
    let map = Map::PerCpuArray(MapData::from_pin(pin)?);
    let mut map = aya::maps::PerCpuArray::<_, BackendCounters>::try_from(map)?;
    let counted = BackendCounters { packets_from_client: 7, ..BackendCounters::default() };
    let counted = vec![counted; aya::util::nr_cpus().map_err(|(_, error)| error)?];
    map.set(3, PerCpuValues::try_from(counted)?, 0)?;
    let packets = |datapath: &Datapath| datapath.counters().map(|c| c.backends[3].packets_from_client > 0);
    drop(first);
    let mut second = town.open()?;
    second.apply(&[MapWrite::Backend { slot: 3, backend: backend(80) }])?;
    assert!(packets(&second)?, "a restart takes nothing away");
    second.apply(&[MapWrite::Backend { slot: 3, backend: Backend::default() }])?;
    assert!(packets(&second)?, "nor does its leaving");
    second.apply(&[MapWrite::Backend { slot: 3, backend: backend(81) }])?;
    assert!(!packets(&second)?, "but this is another one");
    Ok(())
}

/// As many server ids as there can be, and then as many others: new ones are there before old ones go.
#[test]
fn quic_ids_are_replaced_and_go_with_their_service() -> Result<()> {
    let town = Town::build()?;
    let mut first = town.open()?;
    let most = town.options().limits.backends * SERVER_IDS;
    let servers = |from: u32| -> Servers {
        let server = |n: u32| Server::new(1, &n.to_be_bytes()).expect("of a right length");
        (from..from + most).map(|n| (server(n), (n % 8) as u16)).collect()
    };
    let config = |rotation| Config::new(rotation, 4, 4, Some(&[rotation; 16])).expect("within the limits");
    let quic = |rotations: &[u8], servers| MapWrite::Quic {
        id: 1,
        configs: rotations.iter().map(|rotation| config(*rotation)).collect(),
        servers,
    };
    let service = Service { addr: ip(100).into(), ..Default::default() };
    first.apply(&[MapWrite::Service { id: 1, service, maglev: None }, quic(&[0, 3], servers(0))])?;
    assert_eq!(pinned_quic(&town)?, (vec![8, 11], sorted(servers(0))));
    first.apply(&[quic(&[3, 6], servers(1_000))])?;
    assert_eq!(pinned_quic(&town)?, (vec![11, 14], sorted(servers(1_000))));
    // Who gets a slot gets none of the ids of who had it; those of both slots go at once.
    let live = pinned_settings(&town)?.quic_live as u32;
    first.apply(&[
        MapWrite::Backend { slot: 0, backend: backend(80) },
        MapWrite::Backend { slot: 1, backend: backend(81) },
    ])?;
    let rest: Servers = servers(1_000).into_iter().filter(|(_, slot)| *slot > 1).collect();
    assert_eq!(pinned_quic(&town)?, (vec![11, 14], sorted(rest)));
    assert_ne!(pinned_settings(&town)?.quic_live as u32, live, "the table was built once");
    drop(first);
    let mut second = town.open()?;
    second.settle()?;
    assert_eq!(pinned_quic(&town)?, (vec![], vec![]), "the service is no longer configured");
    Ok(())
}

/// Server ids and the slots that they name.
type Servers = Vec<(Server, u16)>;

fn sorted(mut servers: Servers) -> Servers {
    servers.sort_by_key(|(server, _)| server.id);
    servers
}

/// Indices of the configurations that are there, and all servers.
fn pinned_quic(town: &Town) -> Result<(Vec<u32>, Servers)> {
    let pin = |name: &str| -> Result<MapData> {
        let pin = town.pins().into_iter().find(|pin| pin.ends_with(name)).context("pinned")?;
        Ok(MapData::from_pin(pin)?)
    };
    let configs = aya::maps::Array::<_, Config>::try_from(Map::Array(pin("QUIC_CONFIGS")?))?;
    let servers = aya::maps::Array::<_, Bucket>::try_from(Map::Array(pin("QUIC_SERVERS")?))?;
    let there = (0..configs.len()).filter(|index| configs.get(index, 0).is_ok_and(|found| found.way != NONE));
    let live = pinned_settings(town)?.quic_live;
    let mut found = Vec::new();
    for index in 0..=(live >> 32) as u32 {
        found.extend(servers.get(&(live as u32 + index), 0)?.0.iter().filter_map(Entry::get));
    }
    Ok((there.collect(), sorted(found)))
}

#[test]
fn pinned_maps_of_another_size_are_refused_by_name() -> Result<()> {
    let town = Town::build()?;
    drop(town.open()?);
    let mut options = town.options();
    options.limits.backends = 16;
    let error = town.open_with(&options).map(drop).expect_err("8 slots are not 16").to_string();
    for part in ["a number of entries of 8", "16", "detach", "`backends` in [limits]"] {
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
    town.balancer.run(|| datapath.reattach())??;
    let program = town.program()?;
    assert!(program.is_some());
    town.balancer.run(|| datapath.reattach())??;
    town.balancer.run(|| datapath.attach_interface(LAN))??;
    assert_eq!(town.program()?, program, "once is enough");
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
    assert_eq!(modes(&datapath), [(LAN, Mode::Generic)]);
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
    assert_eq!(modes(&datapath), [(LAN, Mode::Generic)]);
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
    let service = Service { addr: ip(100).into(), ..Default::default() };
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
    assert!(lives.iter().all(|live| live >> 32 == 63), "few endpoints, few buckets: {lives:x?}");
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

const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

fn bpf(command: libc::c_long, attributes: &[u64]) -> Result<i32> {
    // SAFETY: both commands above only read attributes, of the length given, and the string that one of them points to.
    let outcome =
        unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    anyhow::ensure!(outcome >= 0, "{}", std::io::Error::last_os_error());
    Ok(i32::try_from(outcome)?)
}

/// Takes the joint off the balancer's interface as somebody else would: by force where a link holds it, else with the queueing
/// discipline that its filter belongs to.
fn remove_joint(town: &Town) -> Result<()> {
    match town.pins().into_iter().find(|pin| pin.ends_with(format!("{LAN}-tc"))) {
        Some(pin) => {
            let path = std::ffi::CString::new(pin.to_string_lossy().into_owned())?;
            let link = bpf(BPF_OBJ_GET, &[path.as_ptr() as u64, 0])?;
            // SAFETY: the descriptor was just returned to us and nobody else has it.
            let link = unsafe { OwnedFd::from_raw_fd(link) };
            bpf(BPF_LINK_DETACH, &[link.as_raw_fd() as u64])?;
        }
        None => {
            let tc =
                || std::process::Command::new("tc").args(["qdisc", "del", "dev", LAN, "clsact"]).status();
            anyhow::ensure!(town.balancer.run(tc)??.success(), "tc qdisc del");
        }
    }
    Ok(())
}

#[test]
fn a_joint_that_somebody_removed_is_put_back() -> Result<()> {
    let town = Town::build()?;
    let mut datapath = town.open()?;
    let (program, joint) = (town.program()?, town.joint()?);
    assert!(joint.is_some(), "attached at start");
    town.balancer.run(|| datapath.reattach())??;
    assert_eq!(town.joint()?, joint, "nothing is missing");
    remove_joint(&town)?;
    assert_eq!(town.joint()?, None, "removed");
    town.balancer.run(|| datapath.reattach())??;
    assert_eq!(town.joint()?, joint, "put back");
    assert_eq!(town.program()?, program, "and nothing else was touched");
    drop(datapath);
    // While no daemon runs nobody sees it; the next one puts it back.
    remove_joint(&town)?;
    let _datapath = town.open()?;
    assert!(town.joint()?.is_some());
    Ok(())
}

#[test]
fn another_xdp_program_in_our_place_is_named() -> Result<()> {
    let town = Town::build()?;
    let mut datapath = town.open()?;
    let pin = town.pins().into_iter().find(|pin| pin.ends_with(format!("{LAN}-xdp"))).context("pinned")?;
    std::fs::remove_file(pin)?;
    tests::client::eventually("the program goes with its link", || Ok(town.program()?.is_none()))?;
    let mut other = aya::Ebpf::load_file(tests::object::path_of("testbed")?)?;
    let empty: &mut aya::programs::Xdp = other.program_mut("tb_empty").context("there")?.try_into()?;
    empty.load()?;
    let id = empty.info()?.id();
    town.balancer.run(|| empty.attach(LAN, aya::programs::XdpMode::Driver))??;
    let error = town.balancer.run(|| datapath.reattach())?.expect_err("it is not ours");
    assert!(matches!(error, DatapathError::ForeignXdp { program, .. } if program == id), "{error}");
    assert_eq!(town.program()?, Some(id), "it is left alone");
    Ok(())
}

#[test]
fn programs_on_tracepoints_are_pinned_taken_over_and_removed() -> Result<()> {
    let town = Town::build()?;
    let pins = || {
        let mut pins = town.pins();
        pins.retain(|pin| pin.to_string_lossy().contains("/tracepoint-"));
        pins.len()
    };
    for _ in 0..2 {
        let datapath = town.open()?;
        assert_eq!(datapath.uncounted(), None);
        assert_eq!((pins(), datapath.lost()?), (3, vec![]));
    }
    datapath::detach(&town.run_dir)?;
    assert_eq!(pins(), 0);
    Ok(())
}
