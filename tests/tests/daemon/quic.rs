//! QUIC through the balancer, with quinn at both ends: connections stay with their servers, whatever becomes of addresses,
//! of backends and of keys.

use anyhow::{Context, Result};
use futures::future::try_join_all;
use lb_common::backend::State;
use lb_common::counter::Counter;
use lb_common::quic_lb;
use lb_common::service::Affinity;
use lb_userspace::quic::{QuicLbConfig, QuicLbIds};
use quinn::Connection;
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use tests::balancer::{Balancer, SERVICE, dial};
use tests::daemon::{Backend, Lbd, Manner};
use tests::object::Sizes;
use tests::quic::{Client, Server, Trust, ask};
use tests::share::{at_least, at_most};
use tests::topology::{Arms, Topology};
use tokio::runtime::Runtime;

/// The client's second address.
const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(10, 0, 1, 77);

/// Fields in the order in which they must go.
struct Quic {
    servers: Vec<Server>,
    ids: Vec<QuicLbIds>,
    trust: Trust,
    balancer: Balancer,
    runtime: Runtime,
    town: Topology,
}

impl Quic {
    /// A server behind each backend, the first of them ready; connection ids are made with the first configuration.
    fn new(configs: &[QuicLbConfig], backends: usize, ready: usize) -> Result<Self> {
        let town = Topology::new(Arms::Several, backends)?;
        town.client.netns.ip(&[&format!("addr add {ELSEWHERE}/24 dev eth0")])?;
        let mut setup = Balancer::setup_of(&town, Sizes::large());
        setup.services[0].protocol = 17;
        setup.services[0].affinity = Affinity::Quic as u8;
        for config in configs {
            setup.quic.push((SERVICE, *config));
            for slot in 0..backends as u16 {
                let server =
                    quic_lb::Server::new(SERVICE, &server_id(config, slot)).context("a server id")?;
                setup.quic_servers.push((server, slot));
            }
        }
        for slot in ready..backends {
            setup.set_state(slot as u16, State::Gone);
        }
        let balancer = Balancer::start_with(&town, setup)?;
        let runtime = Runtime::new()?;
        let trust = Trust::new()?;
        let entered = runtime.enter();
        let (mut servers, mut ids) = (Vec::new(), Vec::new());
        for (slot, host) in town.backends.iter().enumerate() {
            let made = QuicLbIds::new(configs[0], &server_id(&configs[0], slot as u16))?;
            servers.push(Server::start(host, &format!("b{slot}"), &made, &trust)?);
            ids.push(made);
        }
        drop(entered);
        Ok(Self { servers, ids, trust, balancer, runtime, town })
    }

    fn client(&self) -> Result<Client> {
        let _entered = self.runtime.enter();
        Client::new(&self.town.client.netns, self.town.client.ip, &self.trust)
    }

    /// Another port, and another address if `to` is one.
    fn moved(&self, client: &Client, to: Ipv4Addr) -> Result<()> {
        let _entered = self.runtime.enter();
        client.move_to(&self.town.client.netns, to)
    }

    fn connect(&self, client: &Client, connections: usize) -> Result<Vec<Connection>> {
        let all = self.runtime.block_on(try_join_all((0..connections).map(|_| client.connect(dial()))));
        all.with_context(|| format!("connecting {connections} times; {:?}", self.balancer.maps.counts()))
    }

    /// Who answers on each connection. They must have asked as often.
    fn ask(&self, connections: &[Connection], nth: u32) -> Result<Vec<String>> {
        let mut answers = Vec::new();
        // Not all at once: this is no test of how many datagrams a socket holds.
        for some in connections.chunks(100) {
            let some = self.runtime.block_on(try_join_all(some.iter().map(|c| ask(c, 10))));
            answers.extend(some.with_context(|| format!("{:?}", self.balancer.maps.counts()))?);
        }
        for (n, (name, asked)) in answers.iter().enumerate() {
            assert_eq!(*asked, nth, "connection {n}: {name} remembers something else");
        }
        Ok(answers.into_iter().map(|(name, _)| name).collect())
    }

    fn count(&self, counter: Counter) -> Result<u64> {
        Ok(self.balancer.maps.counts()?.get(counter))
    }
}

fn server_id(config: &QuicLbConfig, slot: u16) -> Vec<u8> {
    let mut id = vec![0x5e; config.server_len.into()];
    *id.last_mut().expect("a server id is not empty") = slot as u8;
    id
}

fn config(rotation: u8, server: usize, nonce: usize, key: Option<&[u8; 16]>) -> QuicLbConfig {
    QuicLbConfig::new(rotation, server, nonce, key).expect("within the limits")
}

fn shares(names: &[String]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    names.iter().for_each(|name| *shares.entry(name.as_str()).or_default() += 1);
    shares
}

const KEY: [u8; 16] = *b"a key of the lot";

/// With each way to write a server id: in the clear, in one pass, in three and in four.
#[test]
fn connections_stay_when_their_client_moves() -> Result<()> {
    for config in [
        config(0, 2, 6, None),
        config(2, 8, 8, Some(&KEY)),
        config(5, 3, 5, Some(&KEY)),
        config(6, 9, 4, Some(&KEY)),
    ] {
        let quic = Quic::new(&[config], 3, 3)?;
        let client = quic.client()?;
        let connections = quic.connect(&client, 30)?;
        let before = quic.ask(&connections, 1)?;
        assert_eq!(shares(&before).len(), 3, "one socket, all servers: {before:?}");
        // Another port, another address, and back.
        for (nth, to) in [(2, quic.town.client.ip), (3, ELSEWHERE), (4, quic.town.client.ip)] {
            quic.moved(&client, to)?;
            assert_eq!(quic.ask(&connections, nth)?, before, "rotation {}, move {nth}", config.rotation);
        }
        let live: usize = quic.servers.iter().map(Server::connections).sum();
        assert_eq!(live, connections.len(), "none was begun twice");
        assert_eq!(quic.count(Counter::Unroutable)? + quic.count(Counter::Redispatched)?, 0);
        assert!(quic.count(Counter::AffinityHit)? > 0);
    }
    Ok(())
}

/// Megabytes over one connection, through moves.
#[test]
fn what_is_sent_arrives_through_a_move() -> Result<()> {
    let quic = Quic::new(&[config(1, 4, 7, Some(&KEY))], 3, 3)?;
    let client = quic.client()?;
    let connection = quic.connect(&client, 1)?.remove(0);
    let (first, asked) = quic.runtime.block_on(ask(&connection, 1 << 20))?;
    assert_eq!(asked, 1);
    for nth in 2..6 {
        let sending = quic.runtime.spawn({
            let connection = connection.clone();
            async move { ask(&connection, 1 << 20).await }
        });
        quic.moved(&client, if nth % 2 == 0 { ELSEWHERE } else { quic.town.client.ip })?;
        assert_eq!(quic.runtime.block_on(sending)??, (first.clone(), nth));
    }
    Ok(())
}

/// 1,000 connections; a fourth backend changes the table by which new ones are spread, and their clients move.
#[test]
fn a_backend_that_is_added_breaks_no_connection() -> Result<()> {
    let mut quic = Quic::new(&[config(3, 3, 6, Some(&KEY))], 4, 3)?;
    let clients: Vec<Client> = (0..10).map(|_| quic.client()).collect::<Result<_>>()?;
    let mut connections = Vec::new();
    for client in &clients {
        connections.extend(quic.connect(client, 100)?);
    }
    let before = quic.ask(&connections, 1)?;
    let spread = shares(&before);
    assert_eq!((before.len(), spread.len()), (1_000, 3));
    assert!(spread.values().all(|share| (230..440).contains(share)), "{spread:?}");
    quic.balancer.change(|setup| setup.set_state(3, State::Ready))?;
    assert_eq!(quic.ask(&connections, 2)?, before);
    for client in &clients {
        quic.moved(client, ELSEWHERE)?;
    }
    assert_eq!(quic.ask(&connections, 3)?, before);
    let new = quic.connect(&clients[0], 300)?;
    let spread = quic.ask(&new, 1)?;
    let (least, most) = (at_least(300, 0.25), at_most(300, 0.25));
    assert!((least..=most).contains(&shares(&spread)["b3"]), "no more than its share: {:?}", shares(&spread));
    assert_eq!(quic.ask(&connections, 4)?, before);
    assert!(connections.iter().all(|connection| connection.close_reason().is_none()));
    let live: usize = quic.servers.iter().map(Server::connections).sum();
    assert_eq!(live, 1_300);
    Ok(())
}

/// Two keys are good at once, so servers change from one to the other without a connection that ends.
#[test]
fn keys_change_while_connections_live() -> Result<()> {
    let (old, new) = (config(0, 3, 6, Some(&KEY)), config(1, 3, 6, Some(b"another key here")));
    let quic = Quic::new(&[old, new], 3, 3)?;
    let client = quic.client()?;
    let mut connections = quic.connect(&client, 30)?;
    let mut before = quic.ask(&connections, 1)?;
    for (slot, ids) in quic.ids.iter().enumerate() {
        ids.rotate(new, &server_id(&new, slot as u16))?;
    }
    let later = quic.connect(&client, 30)?;
    before.extend(quic.ask(&later, 1)?);
    connections.extend(later);
    for (nth, to) in [(2, ELSEWHERE), (3, quic.town.client.ip)] {
        quic.moved(&client, to)?;
        assert_eq!(quic.ask(&connections, nth)?, before);
    }
    Ok(())
}

/// lbd reads configurations, keys and server ids, writes them for the programs, and says of an id where it leads.
#[test]
fn lbd_steers_by_its_configuration() -> Result<()> {
    let town = Topology::new(Arms::Several, 3)?;
    town.client.netns.ip(&[&format!("addr add {ELSEWHERE}/24 dev eth0")])?;
    let (clear, hidden) = (config(0, 1, 7, None), config(1, 2, 6, Some(&KEY)));
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let manner = Manner {
        affinity: Some(format!(
            "{{ kind = \"quic\", configs = [{{ rotation = 0, server_id_bytes = 1, nonce_bytes = 7 }}, \
             {{ rotation = 1, server_id_bytes = 2, nonce_bytes = 6, key = \"{}\" }}] }}",
            hex(&KEY)
        )),
        more: Some("protocol = \"udp\"".to_owned()),
        each: Some(|slot| format!("server_id = [\"0{slot}\", \"5e0{slot}\"]\n")),
        ..Manner::default()
    };
    let runtime = Runtime::new()?;
    let trust = Trust::new()?;
    let _entered = runtime.enter();
    let mut ids = Vec::new();
    let mut servers = Vec::new();
    for (slot, host) in town.backends.iter().enumerate() {
        let made = QuicLbIds::new(hidden, &server_id(&hidden, slot as u16))?;
        servers.push(Server::start(host, &format!("b{slot}"), &made, &trust)?);
        ids.push(made);
    }
    let backends: Vec<_> = town.backends.iter().map(Backend::Remote).collect();
    let lbd = Lbd::start_in(&town, &backends, manner)?;
    let client = Client::new(&town.client.netns, town.client.ip, &trust)?;
    let connections = runtime.block_on(try_join_all((0..12).map(|_| client.connect(dial()))))?;
    let asked = |nth: u32| -> Result<Vec<String>> {
        let answers = runtime.block_on(try_join_all(connections.iter().map(|c| ask(c, 10))))?;
        assert!(answers.iter().all(|(_, asked)| *asked == nth), "{answers:?}");
        Ok(answers.into_iter().map(|(name, _)| name).collect())
    };
    let before = asked(1)?;
    assert!(shares(&before).len() > 1, "{before:?}");
    // In the clear from now on, too; and from another address.
    for (slot, ids) in ids.iter().enumerate() {
        ids.rotate(clear, &[slot as u8])?;
    }
    client.move_to(&town.client.netns, ELSEWHERE)?;
    assert_eq!(asked(2)?, before);
    assert!(lbd.counter("affinity_hit")? > 0);

    let id = hidden.encode(&server_id(&hidden, 2), &[9; 6], hidden.own_length());
    let told = lbd.ctl(&["explain", "--connection-id", &hex(&id)])?;
    assert!(
        told.contains("b2") && told.contains("its server id 5e02 is that of b2, which is ready"),
        "{told}"
    );
    let listed = lbd.ctl(&["service", "list"])?;
    assert!(listed.contains("quic") && !listed.contains(&hex(&KEY)), "{listed}");
    Ok(())
}

/// Who is drained keeps its connections and gets no new one.
#[test]
fn a_drained_server_keeps_its_connections() -> Result<()> {
    let mut quic = Quic::new(&[config(4, 1, 4, None)], 3, 3)?;
    let client = quic.client()?;
    let connections = quic.connect(&client, 30)?;
    let before = quic.ask(&connections, 1)?;
    quic.balancer.change(|setup| setup.set_state(0, State::Drain))?;
    quic.moved(&client, ELSEWHERE)?;
    assert_eq!(quic.ask(&connections, 2)?, before);
    let new = quic.connect(&client, 30)?;
    let new = quic.ask(&new, 1)?;
    assert!(shares(&before).contains_key("b0") && !shares(&new).contains_key("b0"), "{new:?}");
    Ok(())
}
