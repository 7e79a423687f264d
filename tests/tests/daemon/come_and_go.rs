//! Backends that are added to the configuration and taken out of it while connections live: none breaks, and of the new ones no
//! more move than must.

use anyhow::{Context, Result, ensure};
use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::thread;
use std::time::Duration;
use tests::balancer::dial;
use tests::client::eventually;
use tests::daemon::{Backend, Lbd, Manner};
use tests::greeter::{Talk, greet};
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
    ensure!((10..=40).contains(&to_the_new_one), "{to_the_new_one} of {CLIENTS} came to the new one");
    let moved_in_vain = moved(&three, &four) - to_the_new_one;
    ensure!(moved_in_vain <= 10, "{moved_in_vain} moved between those that there were");

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
    ensure!(moved(&three, &again) <= 10, "those whom the change did not touch stay");

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
        let socket = town.client.netns.run(|| UdpSocket::bind((town.client.ip, 0)))?;
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
