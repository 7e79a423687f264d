//! Backends that are added to the configuration and taken out of it while connections live: none breaks, and of the new ones no
//! more move than must.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::Duration;
use tests::balancer::dial;
use tests::client::{datagram_socket, eventually};
use tests::daemon::{Backend, Lbd, Manner};
use tests::greeter::{Talk, greet};
use tests::share::{at_least, at_most};
use tests::topology::{Arms, Host, NIC, PORT, Topology};

const CLIENTS: u8 = 100;

/// One connection from each of many addresses.
fn everybody(town: &Topology) -> Result<Vec<Talk>> {
    (0..CLIENTS)
        .map(|n| {
            let from = SocketAddrV4::new(Ipv4Addr::new(10, 0, 1, 100 + n), 0);
            Talk::begin(&town.client.netns, Some(from))
        })
        .collect()
}

fn moved(before: &[Talk], after: &[Talk]) -> usize {
    before.iter().zip(after).filter(|(before, after)| before.server != after.server).count()
}

#[test]
fn connections_outlive_the_configuration_they_began_in() -> Result<()> {
    let town = Topology::new(Arms::Several, 4)?;
    for n in 0..CLIENTS {
        town.client.netns.ip(&[&format!("addr add 10.0.1.{}/24 dev {NIC}", 100 + n)])?;
    }
    for (i, host) in town.backends.iter().enumerate() {
        greet(host, format!("b{i}"))?;
    }
    let all: Vec<Backend<'_>> = town.backends.iter().map(Backend::Remote).collect();
    let manner = Manner {
        affinity: Some("{ kind = \"source\" }".to_owned()),
        timeouts: Some("closing = \"1s\"".to_owned()),
        ..Manner::default()
    };
    let mut lbd = Lbd::start_in(&town, &all[..3], manner)?;
    let mut three = everybody(&town)?;

    // One more: of the new connections its own share moves, and little else.
    lbd.restart_with(&town, &all)?;
    three.iter_mut().try_for_each(|talk| talk.goes_on("one more")).with_context(|| lbd.log())?;
    let mut four = everybody(&town)?;
    let to_the_new_one = four.iter().filter(|talk| talk.server == "b3").count();
    let (all_in_all, moved_away) = (usize::from(CLIENTS), moved(&three, &four));
    ensure!(to_the_new_one >= at_least(all_in_all, 0.25), "{to_the_new_one} came to the new one");
    ensure!(
        moved_away <= at_most(all_in_all, 0.25),
        "{moved_away} moved, {to_the_new_one} of them to the new one"
    );

    // One less, the first: what lives there goes on, what is new goes elsewhere.
    let rest: Vec<Backend<'_>> = town.backends[..3].iter().map(Backend::Remote).collect();
    lbd.restart_with(&town, &rest)?;
    let talks = three.iter_mut().chain(&mut four);
    let mut at_the_old_one = 0;
    for talk in talks {
        at_the_old_one += usize::from(talk.server == "b3");
        talk.goes_on("one less").with_context(|| lbd.log())?;
    }
    ensure!(at_the_old_one > 0, "somebody lived where nobody lives now");
    let again = everybody(&town)?;
    ensure!(again.iter().all(|talk| talk.server != "b3"), "a backend that is gone gets something new");
    ensure!(moved(&three, &again) == 0, "those whom the change did not touch stay");

    // When the last one is closed, it is forgotten.
    drop((three, four));
    eventually("the backend has left", || {
        Ok(lbd.log().contains("removed a backend that is no longer configured"))
    })
    .with_context(|| lbd.log())?;
    Ok(())
}

/// All at once: nobody's place is given to another one while something lives there.
#[test]
fn connections_outlive_the_replacement_of_every_backend() -> Result<()> {
    let town = Topology::new(Arms::Several, 4)?;
    for (i, host) in town.backends.iter().enumerate() {
        greet(host, format!("b{i}"))?;
    }
    let all: Vec<Backend<'_>> = town.backends.iter().map(Backend::Remote).collect();
    let manner = Manner { affinity: Some("{ kind = \"none\" }".to_owned()), ..Manner::default() };
    let mut lbd = Lbd::start_in(&town, &all[..2], manner)?;
    let begin = || Talk::begin(&town.client.netns, None);
    let mut old: Vec<Talk> = (0..20).map(|_| begin()).collect::<Result<_>>()?;
    lbd.replace_with(&town, "c", &all[2..])?;
    old.iter_mut().try_for_each(|talk| talk.goes_on("replaced")).with_context(|| lbd.log())?;
    let new: Vec<Talk> = (0..20).map(|_| begin()).collect::<Result<_>>()?;
    ensure!(new.iter().all(|talk| ["b2", "b3"].contains(&talk.server.as_str())), "to those that there are");
    Ok(())
}

/// What lives somewhere lives at an address, whatever the configuration calls it.
#[test]
fn connections_outlive_other_names_and_other_addresses() -> Result<()> {
    let town = Topology::new(Arms::Several, 4)?;
    for (i, host) in town.backends.iter().enumerate() {
        greet(host, format!("b{i}"))?;
    }
    let these = |hosts: [usize; 3]| hosts.map(|i| Backend::Remote(&town.backends[i]));
    let manner = Manner {
        affinity: Some("{ kind = \"none\" }".to_owned()),
        timeouts: Some("closing = \"1s\"".to_owned()),
        ..Manner::default()
    };
    let mut lbd = Lbd::start_in(&town, &these([0, 1, 2]), manner)?;
    let begin = || Talk::begin(&town.client.netns, None);
    let mut talks: Vec<Talk> = (0..30).map(|_| begin()).collect::<Result<_>>()?;
    let at = |talks: &[Talk], name: &str| talks.iter().filter(|talk| talk.server == name).count() as u64;
    let names = |lbd: &Lbd| -> Result<Vec<String>> {
        Ok(lbd.list()?.into_iter().map(|backend| format!("{} {}", backend.name, backend.state)).collect())
    };
    let flows = |lbd: &Lbd, backend: &str| -> Result<u64> {
        let list: Value = serde_json::from_str(&lbd.ctl(&["backend", "list", "--json"])?)?;
        let all = list["backends"].as_array().context("backends")?;
        all.iter().find(|b| b["name"] == backend).and_then(|b| b["flows"].as_u64()).context(list.to_string())
    };

    // Other names: the same servers, to which new connections come as well.
    lbd.replace_with(&town, "c", &these([0, 1, 2]))?;
    talks.iter_mut().try_for_each(|talk| talk.goes_on("renamed")).with_context(|| lbd.log())?;
    ensure!(names(&lbd)? == ["c0 ready", "c1 ready", "c2 ready"], "{:?}", names(&lbd)?);
    for n in 0..3 {
        ensure!(flows(&lbd, &format!("c{n}"))? == at(&talks, &format!("b{n}")), "c{n} has its connections");
    }
    // Two of them change places, and the third is another server: the slots of those two do not change.
    lbd.restart_with(&town, &these([1, 0, 3]))?;
    talks.iter_mut().try_for_each(|talk| talk.goes_on("changed")).with_context(|| lbd.log())?;
    let former = format!("c2@{}", town.backends[2].serves());
    let mut expected = ["c0 ready", "c1 ready", "c2 ready", &format!("{former} leaving")].map(str::to_owned);
    expected.sort();
    let mut listed = names(&lbd)?;
    listed.sort();
    ensure!(listed == expected, "{listed:?}");
    ensure!(flows(&lbd, "c0")? == at(&talks, "b1") && flows(&lbd, "c1")? == at(&talks, "b0"), "{listed:?}");
    ensure!(flows(&lbd, &former)? == at(&talks, "b2"), "{former}");
    let more: Vec<Talk> = (0..30).map(|_| begin()).collect::<Result<_>>()?;
    ensure!(at(&more, "b2") == 0 && at(&more, "b3") > 0, "to those that there are");
    // And back: the one that was leaving has its name again.
    talks.extend(more);
    lbd.restart_with(&town, &these([0, 1, 2]))?;
    talks.iter_mut().try_for_each(|talk| talk.goes_on("as before")).with_context(|| lbd.log())?;
    ensure!(flows(&lbd, "c2")? == at(&talks, "b2"), "{:?}", names(&lbd)?);
    Ok(())
}

/// Answers each datagram with its name.
fn answer(host: &Host, name: String) -> Result<()> {
    let socket = host.netns.run(|| UdpSocket::bind(("0.0.0.0", PORT)))?;
    // Ends with the test's process: nobody else has its namespace by then.
    thread::spawn(move || {
        let mut buffer = [0; 100];
        while let Ok((_, from)) = socket.recv_from(&mut buffer) {
            // A health check may be gone by now.
            let _ = socket.send_to(name.as_bytes(), from);
        }
    });
    Ok(())
}

/// Who answers a socket; asked again when a datagram is lost.
fn who(socket: &UdpSocket) -> Result<String> {
    let mut buffer = [0; 100];
    for _ in 0..20 {
        socket.send(b"who?")?;
        if let Ok(length) = socket.recv(&mut buffer) {
            return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    }
    anyhow::bail!("nobody answers")
}

#[test]
fn flows_of_datagrams_outlive_it_as_well() -> Result<()> {
    let town = Topology::new(Arms::Several, 3)?;
    for (i, host) in town.backends.iter().enumerate() {
        answer(host, format!("b{i}"))?;
    }
    let all: Vec<Backend<'_>> = town.backends.iter().map(Backend::Remote).collect();
    let manner = Manner {
        affinity: Some("{ kind = \"none\" }".to_owned()),
        more: Some("protocol = \"udp\"".to_owned()),
        ..Manner::default()
    };
    let mut lbd = Lbd::start_in(&town, &all, manner)?;
    let begin = || -> Result<(UdpSocket, String)> {
        let socket = datagram_socket(&town.client.netns, town.client.ip)?;
        socket.connect(dial())?;
        socket.set_read_timeout(Some(Duration::from_millis(500)))?;
        let server = who(&socket)?;
        Ok((socket, server))
    };
    let flows: Vec<_> = (0..60).map(|_| begin()).collect::<Result<_>>()?;
    ensure!(flows.iter().any(|(_, server)| server == "b2"), "somebody lives where nobody will");
    let rest: Vec<Backend<'_>> = town.backends[..2].iter().map(Backend::Remote).collect();
    lbd.restart_with(&town, &rest)?;
    for (socket, server) in &flows {
        let now = who(socket).with_context(|| lbd.log())?;
        ensure!(now == *server, "{server} was left for {now}");
    }
    for _ in 0..40 {
        ensure!(begin()?.1 != "b2", "a backend that is gone gets something new");
    }
    Ok(())
}
