//! Fills the product's flow table with established flows, at the places where the program looks for them.

use crate::maps::Maps;
use crate::scene::{CLIENT_MAC, CLIENT_SCALE, LOCAL_MAC};
use crate::setup::{Setup, addr};
use anyhow::{Result, bail};
use lb_common::addr::Be16;
use lb_common::flow::{Flow, FlowState, GROUP, Head, NO_STASH};
use lb_common::hash::{flow_hash, mix64};
use lb_common::syn_cookie::Agreed;
use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddrV4};

/// The backend of every flow.
pub(super) const SLOT: u16 = 0;

/// Places `count` flows of as many clients of a service, in no order: each what `flow` makes of its client and place in that
/// order. Returns the clients.
pub(super) fn fill(
    maps: &mut Maps,
    setup: &Setup,
    count: u32,
    service: u16,
    flow: impl Fn(SocketAddrV4, u32) -> Flow,
) -> Result<Vec<SocketAddrV4>> {
    let mut taken = vec![false; setup.sizes.groups as usize * GROUP];
    let mut clients = Vec::with_capacity(count as usize);
    let mut known = HashSet::with_capacity(count as usize);
    for number in 0.. {
        if clients.len() == count as usize {
            break;
        }
        let client = client(number);
        // Numbers that make the same client exist.
        if !known.insert(client) {
            continue;
        }
        let first = first_place(setup, client, service);
        let (group, first) = (first / GROUP as u32, first % GROUP as u32);
        let mut places = (0..GROUP as u32).map(|i| group * GROUP as u32 + (first + i) % GROUP as u32);
        // A few groups overflow at this load; their clients would be refused, so others take their turns.
        let Some(place) = places.find(|place| !taken[*place as usize]) else { continue };
        taken[place as usize] = true;
        maps.set_flow(place, &flow(client, clients.len() as u32))?;
        clients.push(client);
    }
    Ok(clients)
}

/// Number `n` of all clients; neighbours have nothing in common.
pub(super) fn client(n: u32) -> SocketAddrV4 {
    let bits = mix64(u64::from(n) + 1);
    let ip = Ipv4Addr::from(0x0a80_0000 | (bits as u32 & 0x003f_ffff));
    SocketAddrV4::new(ip, 1024 + (bits >> 32) as u16 % 60_000)
}

/// Where the program begins to look for the flow of a client of a service.
pub(super) fn first_place(setup: &Setup, client: SocketAddrV4, service: u16) -> u32 {
    let tail = Head::key(Be16::new(client.port()), service);
    let hash = flow_hash(&setup.settings.flow_seed, addr(*client.ip()), tail);
    (hash & setup.settings.flow_group_mask) * GROUP as u32 + (hash >> 29) % GROUP as u32
}

/// Where the program will put a flow of a client of a service: the first free place in the order in which it looks.
pub(super) fn free_place(maps: &Maps, setup: &Setup, client: SocketAddrV4, service: u16) -> Result<u32> {
    let first = first_place(setup, client, service);
    let (group, first) = (first / GROUP as u32, first % GROUP as u32);
    let places = (0..GROUP as u32).map(|i| group * GROUP as u32 + (first + i) % GROUP as u32);
    for place in places {
        if maps.flow(place)?.head == Head::default() {
            return Ok(place);
        }
    }
    bail!("the group of {client} is full")
}

/// Where the flow of a client of a service stands.
pub(super) fn place_of(maps: &Maps, setup: &Setup, client: SocketAddrV4, service: u16) -> Result<u32> {
    let group = first_place(setup, client, service) / GROUP as u32 * GROUP as u32;
    for place in group..group + GROUP as u32 {
        let flow = maps.flow(place)?;
        if flow.client == addr(*client.ip()) && flow.head.service == service {
            return Ok(place);
        }
    }
    bail!("{client} has no flow of service {service}")
}

/// An established flow of a service that does not splice.
pub(super) fn bound(
    client: SocketAddrV4,
    service: u16,
    slot: u16,
    client_flags: u8,
    backend_flags: u8,
) -> Flow {
    Flow {
        client: addr(*client.ip()),
        head: Head {
            client_port: Be16::new(client.port()),
            service,
            backend: slot,
            state: FlowState::Established as u8,
            window_shift: 0,
        },
        client_mac: CLIENT_MAC,
        local_mac: LOCAL_MAC,
        client_ifindex: 1,
        // Long from now: the flows of other rows must not find these expired.
        last_seen: u32::MAX / 4,
        stash: NO_STASH,
        client_flags,
        backend_flags,
        ..Flow::default()
    }
}

/// A spliced flow whose backend scales windows by two more than the service promised.
pub(super) fn spliced(setup: &Setup, client: SocketAddrV4, service: u16) -> Flow {
    let agreed = Agreed { mss: 1460, window_scale: CLIENT_SCALE, sack: true, timestamps: true };
    let isn = u32::from(client.port()) << 16;
    Flow {
        client: addr(*client.ip()),
        head: Head {
            client_port: Be16::new(client.port()),
            service,
            backend: SLOT,
            state: FlowState::Established as u8,
            window_shift: 2,
        },
        seq_delta: 0x1357_9bdf,
        ts_delta: 0x0246_8ace,
        cookie: setup.cookie(client, service, isn, agreed),
        client_isn: isn,
        client_mac: CLIENT_MAC,
        local_mac: LOCAL_MAC,
        client_ifindex: 1,
        stash: NO_STASH,
        ..Flow::default()
    }
}
