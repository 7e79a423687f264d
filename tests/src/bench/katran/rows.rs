//! What is measured of both programs: services that both have, flows that both know, and the frames.

use super::program::Vip;
use crate::balancer::dial;
use crate::bench::cases::{self, Case};
use crate::bench::flows::{bound, client, free_place, spliced};
use crate::bench::rig::Product;
use crate::frame::{ACK, Datagram, Opt, PSH, SYN, Segment};
use crate::object::Sizes;
use crate::scene::{CLIENT_MAC, CLIENT_SCALE, ISN, LOCAL_MAC, TS, backend, macs};
use crate::setup::{NextHop, Setup};
use crate::testbed::rule::{DESTINATION, INNER, SOURCE};
use anyhow::Result;
use lb_common::counter::Counter::{FromBackend, FromClient, NewSession, Passed};
use lb_common::flow::{DATAGRAMS, Flow, PLAIN, REPLIED};
use lb_common::hash::mix64;
use lb_common::quic_lb;
use lb_common::service::{Affinity, Place};
use lb_common::tcp;
use std::net::SocketAddrV4;

const UDP: u8 = 17;
/// Servers of each service.
const SERVERS: u16 = 4;
/// Bytes of payload of every packet but SYNs.
const PAYLOAD: usize = 100;

/// A kind of service, and so of flows.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// TCP without affinity: what Katran has as well.
    Plain,
    /// TCP whose backend a cookie chose. To Katran it is as any other.
    Cookie,
    /// UDP without affinity.
    Datagrams,
    Quic,
}

pub(super) const KINDS: [Kind; 4] = [Kind::Plain, Kind::Cookie, Kind::Datagrams, Kind::Quic];

/// A row: a packet of ours and what corresponds to it at Katran.
pub(super) struct Contest {
    pub(super) name: &'static str,
    pub(super) ours: Case,
    pub(super) katran: Option<Case>,
    /// What ours should cost at most, as a multiple of Katran's.
    pub(super) aim: f64,
}

/// As good as Katran.
const EQUAL: f64 = 1.0;
/// Of a segment of the only flow...
const ONE_FLOW: f64 = 0.45;
/// ...and of one among many, where memory decides.
const MANY_FLOWS: f64 = 0.65;

impl Kind {
    fn index(self) -> u16 {
        KINDS.iter().position(|kind| *kind == self).expect("all kinds are listed") as u16
    }

    /// The id of its service.
    pub(super) fn service(self) -> u16 {
        self.index() + 1
    }

    pub(super) fn vip(self) -> Vip {
        let addr = SocketAddrV4::new(*dial().ip(), dial().port() + self.index());
        let protocol = if matches!(self, Self::Plain | Self::Cookie) { tcp::PROTOCOL } else { UDP };
        Vip { addr, protocol, quic: self == Self::Quic }
    }

    /// The slot of a server of its service.
    fn slot(self, server: u32) -> u16 {
        self.index() * SERVERS + server as u16 % SERVERS
    }

    /// The flow of client number `n`, established.
    pub(super) fn flow(self, setup: &Setup, client: SocketAddrV4, n: u32) -> Flow {
        let (service, slot) = (self.service(), self.slot(n));
        match self {
            Self::Cookie => {
                let mut flow = spliced(setup, client, service);
                flow.head.backend = slot;
                flow
            }
            Self::Plain => bound(client, service, slot, PLAIN, REPLIED),
            Self::Datagrams | Self::Quic => bound(client, service, slot, PLAIN | DATAGRAMS, REPLIED),
        }
    }
}

/// The servers as Katran knows them: those of one service, for all.
pub(super) fn servers() -> Vec<SocketAddrV4> {
    (0..SERVERS).map(backend).collect()
}

/// The clients in another order, each with a server's packet as before.
pub(super) fn shuffled(clients: &[SocketAddrV4]) -> Vec<SocketAddrV4> {
    let servers = usize::from(SERVERS).min(clients.len());
    let of_each = clients.len() / servers;
    let mut order: Vec<usize> = (0..clients.len()).collect();
    order.sort_by_key(|n| (n % servers, mix64(*n as u64)));
    (0..clients.len()).map(|n| clients[order[n % servers * of_each + n / servers]]).collect()
}

/// Every service, with its servers.
pub(super) fn setup(sizes: Sizes) -> Setup {
    let mut setup = Setup::new(sizes);
    for kind in KINDS {
        let id = setup.service(kind.vip().addr);
        assert_eq!(id, kind.service());
        let service = &mut setup.services[usize::from(id) - 1];
        service.protocol = kind.vip().protocol;
        match kind {
            Kind::Cookie => {}
            Kind::Plain | Kind::Datagrams => service.affinity = Affinity::None as u8,
            Kind::Quic => {
                service.affinity = Affinity::Quic as u8;
                service.place = Place::Offset as u8;
            }
        }
        for server in 0..SERVERS {
            let slot = kind.slot(server.into());
            let (local_mac, mac) = macs(slot);
            setup.backend(id, backend(slot), Some(NextHop { ifindex: 1, local_mac, mac }));
        }
    }
    let id = Kind::Quic.service();
    setup.quic.push((id, quic_config()));
    for server in 0..u32::from(SERVERS) {
        let known = quic_lb::Server::new(id, &our_server_id(server)).expect("a server id's length");
        setup.quic_servers.push((known, Kind::Quic.slot(server)));
    }
    setup
}

/// Server ids of two bytes in the clear.
fn quic_config() -> quic_lb::Config {
    quic_lb::Config::new(0, 2, 6, None).expect("within the limits")
}

fn our_server_id(server: u32) -> [u8; 2] {
    [7, server as u8]
}

/// A kind of flows, and how many there are.
struct Flows {
    kind: Kind,
    count: u32,
}

impl Flows {
    /// A packet of a flow that both know; beside ours what Katran counts more than of any packet that it sends on.
    fn known(
        &self,
        name: &'static str,
        ours: Vec<Vec<u8>>,
        katran: Vec<Vec<u8>>,
        counted: &[&'static str],
    ) -> Contest {
        let aim = match self.kind {
            Kind::Plain | Kind::Cookie if self.count == 1 => ONE_FLOW,
            Kind::Plain | Kind::Cookie => MANY_FLOWS,
            Kind::Datagrams | Kind::Quic => EQUAL,
        };
        let counted = [&SENT_ON[..], counted].concat();
        let ours = Case::of_bytes(name, INNER, ours, &[FromClient]).of_clients(self.count, SOURCE);
        let katran = Case::counted_as(name, INNER, katran, counted).of_clients(self.count, SOURCE);
        Contest { name, ours, katran: Some(katran), aim }
    }

    /// What a server answers: Katran's do so themselves.
    fn answers(&self, name: &'static str, frame: fn(u16) -> Vec<u8>) -> Contest {
        let frames = self.servers().map(|server| frame(self.kind.slot(server)));
        let ours = Case::of_bytes(name, INNER, frames, &[FromBackend]);
        Contest { name, ours: ours.of_clients(self.count, DESTINATION), katran: None, aim: EQUAL }
    }

    /// The first packet of a flow.
    fn first(&self, name: &'static str, frame: Vec<u8>, misses: &[&'static str]) -> Contest {
        let [begun @ .., chosen] = SENT_ON;
        let counted = [&begun[..], misses, &[chosen]].concat();
        let mut ours = Case::of_bytes(name, INNER, [frame.clone()], &[NewSession, FromClient]);
        let mut katran = Case::counted_as(name, INNER, [frame], counted);
        // A single flow is written again and again.
        (ours.begin, katran.begin) = (self.count > 1, self.count > 1);
        let [ours, katran] = [ours, katran].map(|case| case.of_clients(self.count, SOURCE));
        Contest { name, ours, katran: Some(katran), aim: EQUAL }
    }

    /// One image for each server that has flows: run n takes client n and image n, each by its own mask.
    fn servers(&self) -> std::ops::Range<u32> {
        0..self.count.min(SERVERS.into())
    }
}

/// What Katran counts of every packet that it sends on.
const SENT_ON: [&str; 4] = ["packets", "sent", "for a service", "to a server"];

/// The rows of a kind with that many flows, those first that leave the flows as they are.
pub(super) fn contests(kind: Kind, count: u32, product: &Product, setup: &Setup) -> Result<Vec<Contest>> {
    let flows = Flows { kind, count };
    let vip = kind.vip().addr;
    let segment = || mid_stream(vip).bytes();
    Ok(match kind {
        Kind::Plain => {
            let misses = ["not in the table", "not in the table: SYN"];
            let mut begins = flows.first("TCP, SYN of a new flow", syn(vip), &misses);
            if count == 1 {
                // Katran's SYN overwrites its entry; ours would find its flow.
                let place = free_place(&product.maps, setup, client(0), kind.service())?;
                begins.ours.images[0].flow = place + 1;
            }
            vec![
                flows.known("TCP, from client", vec![segment()], vec![segment()], &[]),
                flows.answers("TCP, from backend", answer),
                begins,
            ]
        }
        Kind::Cookie => {
            let ours = cases::eighths().map(|ack| mid_stream(vip).ack(ack).bytes()).collect();
            vec![
                flows.known("TCP by cookie, from client", ours, vec![segment()], &[]),
                flows.answers("TCP by cookie, from backend", answer),
            ]
        }
        Kind::Datagrams => {
            let datagram = || datagram(vip, vec![7; PAYLOAD]);
            let mut contests = vec![
                flows.known("UDP, from client", vec![datagram()], vec![datagram()], &[]),
                flows.answers("UDP, from backend", reply),
            ];
            // At Katran one client's datagrams cannot all be first.
            if count > 1 {
                contests.push(flows.first("UDP, datagram of a new flow", datagram(), &["not in the table"]));
            }
            contests
        }
        Kind::Quic => {
            let packets = |id: fn(u32) -> Vec<u8>| -> Vec<Vec<u8>> {
                let payload = |server| [&[0x4f][..], &id(server), &[7; PAYLOAD - 10]].concat();
                flows.servers().map(|server| datagram(vip, payload(server))).collect()
            };
            let (ours, katran) = (packets(our_connection_id), packets(katrans_connection_id));
            let counted = ["by connection id", "agrees with the table"];
            vec![flows.known("QUIC, from client", ours, katran, &counted)]
        }
    })
}

/// A segment for the first service.
pub(super) fn sample() -> Vec<u8> {
    mid_stream(KINDS[0].vip().addr).bytes()
}

/// Packets for nobody here.
pub(super) fn strangers() -> Vec<Contest> {
    let both = |name, frame: Vec<u8>| {
        let ours = Case::of_bytes(name, INNER, [frame.clone()], &[Passed]);
        let katran = Case::counted_as(name, INNER, [frame], vec!["packets", "passed"]);
        Contest { name, ours, katran: Some(katran), aim: EQUAL }
    };
    let elsewhere = SocketAddrV4::new([10, 0, 7, 7].into(), 443);
    vec![
        both("not for a service, passed", mid_stream(elsewhere).bytes()),
        both("ARP, passed", cases::arp_frame()),
    ]
}

/// Nine bytes: our first says that the config is that with rotation 0 and does not say how long the id is.
fn our_connection_id(server: u32) -> Vec<u8> {
    let config = quic_config();
    config.encode(&our_server_id(server), &vec![5; config.nonce_len()], config.own_length()).to_vec()
}

/// Katran's second version: two bits of it, then after the first byte 24 bits of server.
fn katrans_connection_id(server: u32) -> Vec<u8> {
    vec![0x80, 0, 0, 1 + server as u8, 5, 5, 5, 5, 5]
}

fn syn(vip: SocketAddrV4) -> Vec<u8> {
    Segment::new(client(0), vip)
        .macs(CLIENT_MAC, LOCAL_MAC)
        .seq(ISN)
        .flags(SYN)
        .options(Opt::linux_syn(1460, Some(CLIENT_SCALE), true, Some((TS, 0))))
        .bytes()
}

fn mid_stream(to: SocketAddrV4) -> Segment {
    Segment::new(client(0), to)
        .macs(CLIENT_MAC, LOCAL_MAC)
        .seq(0x5555_0000)
        .ack(0x0123_4567)
        .flags(ACK | PSH)
        .window(501)
        .timestamps(TS + 99, 0x7777_7777)
        .payload([7; PAYLOAD])
}

fn answer(slot: u16) -> Vec<u8> {
    let (local, next) = macs(slot);
    Segment::new(backend(slot), client(0))
        .macs(next, local)
        .seq(0x6666_0000)
        .ack(0x5555_0000)
        .flags(ACK | PSH)
        .window(300)
        .timestamps(0x7777_7777, TS + 99)
        .payload([7; PAYLOAD])
        .bytes()
}

fn datagram(vip: SocketAddrV4, payload: Vec<u8>) -> Vec<u8> {
    Datagram::new(client(0), vip, payload).macs(CLIENT_MAC, LOCAL_MAC).bytes()
}

fn reply(slot: u16) -> Vec<u8> {
    let (local, next) = macs(slot);
    Datagram::new(backend(slot), client(0), [7; PAYLOAD]).macs(next, local).bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shuffled_clients_keep_their_servers() {
        for count in [1, 2, 64] {
            let clients: Vec<SocketAddrV4> = (0..count).map(client).collect();
            let after = shuffled(&clients);
            let place = |of: &SocketAddrV4| clients.iter().position(|client| client == of).unwrap();
            let mut places: Vec<usize> = after.iter().map(place).collect();
            let servers = usize::from(SERVERS).min(clients.len());
            assert!(places.iter().enumerate().all(|(now, before)| now % servers == before % servers));
            let next_to_each_other = places.windows(2).filter(|pair| pair[0] + 1 == pair[1]).count();
            assert!(count < 64 || next_to_each_other < 8, "{places:?}");
            places.sort_unstable();
            assert!(places.into_iter().eq(0..clients.len()), "each client once");
        }
    }
}
