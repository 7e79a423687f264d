//! Namespaces, features of veths, and the way to a backend.

use crate::town::{LAN, Town, ip, next, runtime, unique};
use anyhow::{Context, Result};
use lb_userspace::net::{Netns, NextHop, NextHopEvent, NextHops, Peer, Rtnl, check_peer, ethtool};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;
use tests::require_root;
use tokio::sync::mpsc;

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

            // Somebody said for good where it is, and that stays.
            let mac = [2, 0, 0, 0, 0, 4];
            let mut rtnl = Rtnl::open()?;
            rtnl.set_neighbour(lan.index, ip(4), mac)?;
            next_hops.watch(ip(4));
            let fixed = NextHop { next_hop_mac: mac, ..expected };
            assert_eq!(next(&mut news).await?, NextHopEvent { addr: ip(4), next_hop: Some(fixed) });
            let kept = rtnl.neighbour(lan.index, ip(4))?.context("kept")?;
            assert!(kept.fresh && kept.mac == Some(mac), "{kept:?}");
            next_hops.forget(ip(4));

            // Behind a router.
            let far: IpAddr = Ipv4Addr::new(192, 0, 2, 9).into();
            next_hops.watch(far);
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
