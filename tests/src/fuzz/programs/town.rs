//! Services of every kind that the programs tell apart, and their backends.

use crate::frame::Mac;
use crate::learned;
use crate::object::Sizes;
use crate::scene::{backend, macs};
use crate::setup::{COOKIE, NextHop, SLOT, Setup};
use anyhow::{Context, Result};
use lb_common::quic_lb::{Config, Server};
use lb_common::service::{Affinity, Balance, Place, Service};
use std::net::SocketAddrV4;

/// Services; their ids are 1 to this.
pub(super) const SERVICES: u16 = 9;
/// Backends of each: those of service `id` have the slots from `2 * (id - 1)` on.
pub(super) const BACKENDS: u16 = 2;

/// Ids of those that the references know.
pub(super) const SIGNED: u16 = 1;
pub(super) const LEARNED: u16 = 2;
pub(super) const NAMED: u16 = 5;
pub(super) const QUIC: u16 = 9;

pub(super) const UDP: u8 = 17;
/// Name that the first backend of [`NAMED`] is listed for.
pub(super) const NAME: &str = "shop.example.org";
/// The wildcard that the second one is listed for.
pub(super) const WILDCARD: &str = "*.example.org";

pub(super) const CLIENT_MAC: Mac = [2, 0, 0, 0, 1, 2];
pub(super) const LOCAL_MAC: Mac = [2, 0, 0, 0, 1, 1];

/// Where clients dial a service.
pub(super) fn dial(service: u16) -> SocketAddrV4 {
    SocketAddrV4::new([10, 0, 9, service as u8].into(), 80)
}

/// The client of a conversation.
pub(super) fn client(conn: u8) -> SocketAddrV4 {
    SocketAddrV4::new([10, 0, 1, 2 + conn % 100].into(), 40_000 + u16::from(conn))
}

/// The service of a conversation.
pub(super) fn service_of(conn: u8) -> u16 {
    u16::from(conn) % SERVICES + 1
}

/// Slots of a service's backends.
pub(super) fn slots(service: u16) -> std::ops::Range<u16> {
    (service - 1) * BACKENDS..service * BACKENDS
}

/// How the ids of the QUIC service are read: rotation 0 in the clear, 1 in one block, 2 in four passes.
pub(super) fn quic_configs() -> Result<Vec<Config>> {
    let key = b"sixteen bytes ok";
    let all = [(0, 2, 6, None), (1, 8, 8, Some(key)), (2, 10, 5, Some(key))];
    let config = |(rotation, server, nonce, key)| Config::new(rotation, server, nonce, key);
    all.into_iter().map(config).collect::<Result<_, _>>().map_err(|error| anyhow::anyhow!("{error}"))
}

/// The server id of a slot.
pub(super) fn server_id(config: &Config, slot: u16) -> Vec<u8> {
    let mut id = vec![0x5e; config.server_len.into()];
    if let Some(last) = id.last_mut() {
        *last = slot as u8;
    }
    id
}

/// A connection id of a slot, by the configuration whose turn it is.
pub(super) fn connection_id(slot: u16) -> Result<Vec<u8>> {
    let configs = quic_configs()?;
    let config = &configs[usize::from(slot) % configs.len()];
    Ok(config.encode(&server_id(config, slot), &vec![3; config.nonce_len()], config.own_length()).to_vec())
}

/// The text of a token of a slot.
pub(super) fn token(setup: &Setup, slot: u16) -> String {
    setup.token(slot % (SERVICES * BACKENDS), u128::from(slot) + 77)
}

/// All of it. Frames for backends leave through that interface.
pub(super) fn setup(ifindex: u32) -> Result<Setup> {
    let slots = u32::from(SERVICES * BACKENDS);
    let sizes = Sizes { services: u32::from(SERVICES) + 1, backends: slots, ..Sizes::default() };
    let mut setup = Setup::new(sizes);
    setup.settings.slot_base = SLOT;
    for id in 1..=SERVICES {
        setup.service(dial(id));
        kind(id, &mut setup.services[usize::from(id) - 1]).context("a name is too long")?;
        for slot in self::slots(id) {
            let (local_mac, mac) = macs(slot);
            setup.backend(id, backend(slot), Some(NextHop { ifindex, local_mac, mac }));
        }
    }
    setup.list(NAMED, NAME, &[self::slots(NAMED).start]);
    setup.list(NAMED, WILDCARD, &[self::slots(NAMED).start + 1]);
    for config in quic_configs()? {
        setup.quic.push((QUIC, config));
        for slot in self::slots(QUIC) {
            let server = Server::new(QUIC, &server_id(&config, slot)).context("a server id is too long")?;
            setup.quic_servers.push((server, slot));
        }
    }
    Ok(setup)
}

/// What is special about a service. `None`: a name has no room.
fn kind(id: u16, service: &mut Service) -> Option<()> {
    let right = match id {
        SIGNED => service.set_cookie_name(COOKIE),
        LEARNED => {
            learned::learns(service);
            true
        }
        3 => {
            service.affinity = Affinity::Source as u8;
            true
        }
        4 => {
            service.affinity = Affinity::Hashed as u8;
            service.balance = Balance::Least as u8;
            service.set_header_name("X-Key")
        }
        NAMED => {
            (service.affinity, service.place) = (Affinity::Hashed as u8, Place::Sni as u8);
            true
        }
        6 => {
            (service.replay, service.strict) = (1, 1);
            service.set_query_name("k")
        }
        7 => {
            service.protocol = UDP;
            (service.place, service.key_len) = (Place::Marker as u8, lb_common::token::TOKEN_LEN as u8);
            service.set_marker(b"tok=")
        }
        8 => {
            (service.protocol, service.affinity) = (UDP, Affinity::Learned as u8);
            service.learned_ticks = learned::IDLE;
            (service.place, service.key_at, service.key_len) = (Place::Offset as u8, 2, 6);
            true
        }
        _ => {
            (service.protocol, service.affinity) = (UDP, Affinity::Quic as u8);
            true
        }
    };
    right.then_some(())
}
