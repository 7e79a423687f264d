//! What the balancer is told: services, backends, keys. Written out by hand, without the daemon.

use crate::object::Sizes;
use lb_common::addr::{Addr, Be16, Mac};
use lb_common::backend::{Backend, State};
use lb_common::endpoint::{Endpoint, KIND_BACKEND, KIND_SERVICE, port_and_protocol};
use lb_common::hash::{SipKey, mix64};
use lb_common::maglev::{self, Candidate};
use lb_common::name::{self, EXACT, WILDCARD};
use lb_common::quic_lb;
use lb_common::service::{
    NAMES_LISTED, NAMES_ONLY, PROMISE_SACK, PROMISE_TIMESTAMPS, PROMISE_WINDOW_SCALE, Service,
};
use lb_common::settings::Settings;
use lb_common::syn_cookie::{self, Agreed, Peer};
use lb_common::tcp;
use lb_common::token::{SessionId, Token, encode};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

/// The time slot at which the clock of the tests stands still.
pub const SLOT: u32 = 28_105_651;
/// Key id and key of every valid token.
pub const TOKEN_KEY: (u8, SipKey) = (3, [0x0123_4567_89ab_cdef, 0xfeed_face_cafe_beef]);
/// Name of the cookie that every service reads.
pub const COOKIE: &str = "lb";

/// The whole desired state.
#[derive(Clone)]
pub struct Setup {
    pub sizes: Sizes,
    pub settings: Settings,
    /// Service ids begin at 1: index 0 is id 1.
    pub services: Vec<Service>,
    /// The index is the slot.
    pub backends: Vec<Backend>,
    /// Names of servers, and the slots that are listed for each.
    pub listed: Vec<(u16, Listed, Vec<u16>)>,
    /// How QUIC connection ids are read, by service...
    pub quic: Vec<(u16, quic_lb::Config)>,
    /// ...and the slots that the ids in them name.
    pub quic_servers: Vec<(quic_lb::Server, u16)>,
}

/// A name, or what stands behind the asterisk of a wildcard.
#[derive(Clone, Debug)]
pub struct Listed {
    /// [`EXACT`] or [`WILDCARD`].
    pub kind: u16,
    pub text: String,
}

/// Where frames for a backend leave and who takes them.
#[derive(Clone, Copy, Debug)]
pub struct NextHop {
    pub ifindex: u32,
    pub local_mac: Mac,
    pub mac: Mac,
}

impl Setup {
    pub fn new(sizes: Sizes) -> Self {
        let mut settings = Settings {
            flow_seed: std::array::from_fn(|i| mix64(i as u64 + 99)),
            flow_group_mask: sizes.groups - 1,
            stash_mask: sizes.stashes - 1,
            home_group_mask: sizes.homes - 1,
            home_key: [21, 22],
            name_key: [23, 24],
            cookie_keys: [[11, 12], [13, 14]],
            slot_base: SLOT,
            // The clock stands still, so a cookie made by a test is of the program's present slot.
            slot_mult: 0,
            tick_shift: 6,
            idle_ticks: 4 * 900,
            datagram_idle_ticks: 4 * 300,
            closing_ticks: 4 * 10,
            binding_ticks: 4 * 30,
            head_ticks: 4 * 10,
            opening_ticks: 4 * 20,
            half_closed_ticks: 4 * 60,
            evictable_ticks: 4 * 60,
            token_key_mask: 1 << TOKEN_KEY.0,
            ..Settings::default()
        };
        settings.token_keys[usize::from(TOKEN_KEY.0)] = TOKEN_KEY.1;
        Self {
            sizes,
            settings,
            services: Vec::new(),
            backends: Vec::new(),
            listed: Vec::new(),
            quic: Vec::new(),
            quic_servers: Vec::new(),
        }
    }

    /// Adds a service that promises everything and returns its id.
    pub fn service(&mut self, dial: SocketAddrV4) -> u16 {
        let mut service = Service {
            addr: IpAddr::V4(*dial.ip()).into(),
            port: Be16::new(dial.port()),
            protocol: tcp::PROTOCOL,
            enabled: 1,
            mss: 1460,
            window_scale: 7,
            promises: PROMISE_SACK | PROMISE_TIMESTAMPS | PROMISE_WINDOW_SCALE,
            max_tries: 3,
            ..Service::default()
        };
        assert!(service.set_cookie_name(COOKIE), "the name is short enough");
        self.services.push(service);
        self.services.len() as u16
    }

    /// Adds a ready backend of weight 1 and epoch 1 and returns its slot.
    pub fn backend(&mut self, service: u16, addr: SocketAddrV4, hop: Option<NextHop>) -> u16 {
        let behind = &self.services[usize::from(service) - 1];
        let backend = Backend {
            addr: IpAddr::V4(*addr.ip()).into(),
            port: Be16::new(addr.port()),
            service,
            state: State::Ready as u8,
            has_next_hop: u8::from(hop.is_some()),
            local_mac: hop.map_or([0; 6], |hop| hop.local_mac),
            next_hop_mac: hop.map_or([0; 6], |hop| hop.mac),
            ifindex: hop.map_or(0, |hop| hop.ifindex),
            epoch: 1,
            weight: 1,
            ..Backend::default()
        };
        self.backends.push(backend.behind(behind.addr, behind.port));
        (self.backends.len() - 1) as u16
    }

    pub fn set_state(&mut self, slot: u16, state: State) {
        self.backends[usize::from(slot)].state = state as u8;
    }

    /// Gives a backend another address.
    pub fn set_addr(&mut self, slot: u16, addr: SocketAddrV4) {
        let backend = &mut self.backends[usize::from(slot)];
        let service = &self.services[usize::from(backend.service) - 1];
        let moved = Backend { addr: IpAddr::V4(*addr.ip()).into(), port: Be16::new(addr.port()), ..*backend };
        *backend = moved.behind(service.addr, service.port);
    }

    /// Every address that the program must know.
    pub fn endpoints(&self) -> Vec<Endpoint> {
        let service = |(i, s): (usize, &Service)| Endpoint {
            addr: s.addr,
            port: port_and_protocol(s.port, s.protocol),
            kind: KIND_SERVICE,
            index: i as u16 + 1,
        };
        let backend = |(i, b): (usize, &Backend)| Endpoint {
            addr: b.addr,
            port: port_and_protocol(
                b.port,
                self.services
                    .get(usize::from(b.service).wrapping_sub(1))
                    .map_or(tcp::PROTOCOL, |s| s.protocol),
            ),
            kind: KIND_BACKEND,
            index: i as u16,
        };
        let present =
            self.backends.iter().enumerate().filter(|(_, b)| State::from_bits(b.state) != State::Gone);
        self.services.iter().enumerate().map(service).chain(present.map(backend)).collect()
    }

    /// Lists backends for a name, or for a wildcard such as `*.example.org`.
    pub fn list(&mut self, service: u16, name: &str, slots: &[u16]) {
        let listed = match name.strip_prefix("*.") {
            Some(end) => Listed { kind: WILDCARD, text: end.to_owned() },
            None => Listed { kind: EXACT, text: name.to_owned() },
        };
        self.listed.push((service, listed, slots.to_vec()));
    }

    /// What the program must know of the names of a service.
    pub fn names(&self, service: u16) -> (u8, u16) {
        let of = || self.listed.iter().filter(|(id, ..)| *id == service);
        let wildcards = of().filter(|(_, listed, _)| listed.kind == WILDCARD);
        let wildcards = wildcards.fold(0, |bits, (_, listed, _)| bits | 1 << name::labels(&listed.text));
        let others = self.backends.iter().enumerate().any(|(slot, backend)| {
            backend.service == service && of().all(|(.., slots)| !slots.contains(&(slot as u16)))
        });
        match (of().count(), others) {
            (0, _) => (0, 0),
            (_, true) => (NAMES_LISTED, wildcards),
            (_, false) => (NAMES_LISTED | NAMES_ONLY, wildcards),
        }
    }

    /// The Maglev table of a service over its ready backends that are listed for no name; empty when there is none.
    pub fn maglev(&self, service: u16) -> Vec<u16> {
        self.table(|slot, backend| {
            backend.service == service && self.listed.iter().all(|(.., slots)| !slots.contains(&slot))
        })
    }

    /// The Maglev table over some backends, those of them that are ready.
    pub fn table(&self, is_one: impl Fn(u16, &Backend) -> bool) -> Vec<u16> {
        let ready = self.backends.iter().enumerate().filter(|(slot, backend)| {
            State::from_bits(backend.state) == State::Ready && is_one(*slot as u16, backend)
        });
        let candidates: Vec<Candidate> = ready
            .map(|(slot, b)| Candidate {
                id: mix64(b.addr.lo ^ u64::from(b.port.get())),
                slot: slot as u16,
                weight: b.weight,
            })
            .collect();
        maglev::build(&candidates, self.sizes.maglev)
    }

    /// A valid token's text for a session on that backend, at its present epoch.
    pub fn token(&self, slot: u16, session: u128) -> String {
        let backend = &self.backends[usize::from(slot)];
        sign(Token {
            key_id: TOKEN_KEY.0,
            service: backend.service,
            slot,
            epoch: backend.epoch,
            session: SessionId(session.to_be_bytes()),
        })
    }

    /// The SYN cookie that the program makes, or accepts, for a client's connection to a service.
    pub fn cookie(&self, client: SocketAddrV4, service: u16, isn: u32, agreed: Agreed) -> u32 {
        self.cookie_of_slot(client, service, isn, agreed, SLOT)
    }

    /// One made in another time slot.
    pub fn cookie_of_slot(
        &self,
        client: SocketAddrV4,
        service: u16,
        isn: u32,
        agreed: Agreed,
        slot: u32,
    ) -> u32 {
        let peer = Peer { client: addr(*client.ip()), port: Be16::new(client.port()), service };
        syn_cookie::make(&self.settings, &peer, isn, agreed, slot)
    }

    /// The TSval of the SYN-ACK with that cookie.
    pub fn stamp(&self, client: SocketAddrV4, service: u16, isn: u32) -> u32 {
        self.stamp_of_slot(client, service, isn, SLOT)
    }

    /// One made in another time slot.
    pub fn stamp_of_slot(&self, client: SocketAddrV4, service: u16, isn: u32, slot: u32) -> u32 {
        let peer = Peer { client: addr(*client.ip()), port: Be16::new(client.port()), service };
        isn ^ syn_cookie::pad(&self.settings, &peer, slot)
    }
}

/// The text of a token under the key that every [`Setup`] knows.
pub fn sign(token: Token) -> String {
    String::from_utf8(encode(&token.sign(&TOKEN_KEY.1)).to_vec()).expect("base64url is ASCII")
}

/// An IPv4 address as the maps hold it.
pub fn addr(ip: Ipv4Addr) -> Addr {
    IpAddr::V4(ip).into()
}
