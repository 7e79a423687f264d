//! One service: its Maglev tables and what it may promise, both following from its backends.

use super::backend::Backend;
use super::table::{Pool, Sizes, Table, pools};
use crate::config::{
    self, Affinity, Anchor, Balance, OnUnavailable, Place, Protocol, QuicConfig, ServerName,
};
use crate::datapath::{Clock, Listed, MapWrite};
use lb_common::addr::Be16;
use lb_common::backend::State;
use lb_common::endpoint::{Endpoint, KIND_SERVICE, port_and_protocol};
use lb_common::name::{EXACT, WILDCARD};
use lb_common::service::{
    self as map, NAMES_LISTED, NAMES_ONLY, PROMISE_SACK, PROMISE_TIMESTAMPS, PROMISE_WINDOW_SCALE,
};
use std::net::SocketAddr;

/// What Ethernet carries; promised until a backend is known to take less.
const MSS: u16 = 1460;

#[derive(Debug)]
pub(super) struct Service {
    pub(super) id: u16,
    pub(super) name: String,
    pub(super) vip: SocketAddr,
    pub(super) protocol: Protocol,
    pub(super) affinity: Affinity,
    pub(super) balance: Balance,
    pub(super) on_unavailable: OnUnavailable,
    /// Ticks for which a learned key is remembered.
    learned_ticks: u32,
    window_scale: u8,
    max_tries: u8,
    max_flows: u32,
    max_pending: u16,
    max_backend_pending: u16,
    replay: bool,
    accept_proxy: bool,
    /// Some of [`PROMISE_SACK`] and the like.
    pub(super) promises: u8,
    pub(super) mss: u16,
    /// Of its backends that are listed for no name.
    pub(super) table: Table,
    /// Of those that are.
    pub(super) pools: Vec<Pool>,
    /// Every backend is listed for names.
    pub(super) names_only: bool,
    pub(super) written: Option<map::Service>,
}

impl Service {
    pub(super) fn new(
        config: &config::Service,
        (id, slots): (u16, &[u16]),
        clock: &Clock,
        left: Option<&map::Service>,
    ) -> Self {
        Self {
            id,
            name: config.name.clone(),
            vip: config.vip,
            protocol: config.protocol,
            affinity: config.affinity.clone(),
            balance: config.balance,
            on_unavailable: config.on_unavailable,
            learned_ticks: match config.affinity {
                Affinity::Learned { idle, .. } => clock.ticks(idle),
                _ => 0,
            },
            window_scale: config.window_scale,
            max_tries: config.max_tries,
            max_flows: config.max_flows,
            max_pending: config.max_pending,
            max_backend_pending: config.max_backend_pending,
            replay: config.replay,
            accept_proxy: config.accept_proxy,
            // What was true of the backends a moment ago, until they are checked.
            promises: left.map_or(0, |left| left.promises),
            mss: left.map_or(MSS, |left| left.mss),
            table: Table::default(),
            pools: pools(config, id, slots),
            names_only: config.backends.iter().all(|backend| !backend.sni.is_empty()),
            written: None,
        }
    }

    /// Brings tables and promises in line with its backends. Returns the writes, when something changed: what names lead to
    /// first, so that no service says that it has names which lead nowhere yet.
    pub(super) fn settle<'a>(
        &mut self,
        backends: impl Iterator<Item = &'a Backend>,
        sizes: Sizes,
    ) -> Vec<MapWrite> {
        let serving: Vec<_> = backends.filter(|backend| backend.state.serves_sessions()).collect();
        self.promise(&serving);
        let ready: Vec<_> = serving.into_iter().filter(|b| b.state == State::Ready && b.weight > 0).collect();
        let mut writes = Vec::new();
        for pool in &mut self.pools {
            let listed = ready.iter().filter(|backend| pool.slots.contains(&backend.slot));
            if let Some(maglev) = pool.table.rebuilt(listed, sizes.pool) {
                writes.push(MapWrite::Pool { id: pool.id, maglev });
            }
        }
        if self.written.is_none() && !self.pools.is_empty() {
            writes.push(self.names_write());
        }
        let others = ready.iter().filter(|backend| backend.sni.is_empty());
        let maglev = self.table.rebuilt(others, sizes.service);
        let entry = self.entry();
        let changed = self.written.replace(entry) != Some(entry);
        if changed || maglev.is_some() {
            writes.push(MapWrite::Service { id: self.id, service: entry, maglev });
        }
        writes
    }

    fn names_write(&self) -> MapWrite {
        let listed = |pool: &Pool| {
            let listed = |name: &ServerName| Listed {
                kind: match name {
                    ServerName::Exact(_) => EXACT,
                    ServerName::Wildcard(_) => WILDCARD,
                },
                text: name.text().to_owned(),
                pool: pool.id,
            };
            pool.names.iter().map(listed).collect::<Vec<_>>()
        };
        MapWrite::Names { service: self.id, listed: self.pools.iter().flat_map(listed).collect() }
    }

    /// Clients are told what all backends can do that may get them.
    fn promise(&mut self, serving: &[&Backend]) {
        let abilities: Vec<_> = serving.iter().map(|b| b.abilities).filter(|l| l.seen != 0).collect();
        if abilities.is_empty() {
            return;
        }
        let lacks = serving.iter().fold(0, |lacks, b| lacks | b.lacks);
        self.promises = abilities.iter().fold(ALL, |all, l| all & l.promises) & !lacks;
        self.mss = abilities.iter().map(|l| l.mss).filter(|mss| *mss > 0).min().unwrap_or(MSS).min(MSS);
    }

    fn entry(&self) -> map::Service {
        let mut entry = map::Service {
            addr: self.vip.ip().into(),
            port: Be16::new(self.vip.port()),
            protocol: self.protocol.number(),
            enabled: 1,
            mss: self.mss,
            window_scale: self.window_scale,
            promises: self.promises,
            max_tries: self.max_tries,
            max_flows: self.max_flows,
            max_pending: self.max_pending,
            max_backend_pending: self.max_backend_pending,
            replay: u8::from(self.replay),
            accept_proxy: u8::from(self.accept_proxy),
            ..map::Service::default()
        };
        entry.affinity = match self.affinity {
            Affinity::Signed(_) => map::Affinity::Signed,
            Affinity::Hashed(_) => map::Affinity::Hashed,
            Affinity::Learned { .. } => map::Affinity::Learned,
            Affinity::Quic(_) => map::Affinity::Quic,
            Affinity::Source { .. } => map::Affinity::Source,
            Affinity::None { .. } => map::Affinity::None,
        } as u8;
        entry.balance = match self.balance {
            Balance::Maglev => map::Balance::Maglev,
            Balance::Least => map::Balance::Least,
        } as u8;
        entry.strict = u8::from(self.on_unavailable == OnUnavailable::Reject);
        entry.learned_ticks = self.learned_ticks;
        if let Some(place) = self.affinity.place() {
            let fits = set_place(&mut entry, place);
            assert!(fits, "the configuration's check allows no name or marker that is too long");
        } else if self.accept_proxy {
            entry.place = map::Place::Proxy as u8;
        }
        if !self.pools.is_empty() {
            entry.names = if self.names_only { NAMES_LISTED | NAMES_ONLY } else { NAMES_LISTED };
        }
        let names = self.pools.iter().flat_map(|pool| &pool.names);
        entry.wildcards =
            names.map(ServerName::wildcard_labels).filter(|n| *n > 0).fold(0, |bits, n| bits | 1 << n);
        entry
    }

    /// How its connection ids are read, and whom they name: for every service, so that nothing stays of what another
    /// configuration had.
    pub(super) fn quic_write<'a>(&self, backends: impl Iterator<Item = &'a Backend>) -> MapWrite {
        let configs = match &self.affinity {
            Affinity::Quic(configs) => configs.iter().map(QuicConfig::to_map).collect(),
            _ => Ok(Vec::new()),
        };
        let configs = configs.expect("the configuration's check allows no other lengths");
        let named = |backend: &'a Backend| backend.servers().map(|server| (server, backend.slot));
        MapWrite::Quic { id: self.id, configs, servers: backends.flat_map(named).collect() }
    }

    pub(super) fn endpoint(&self) -> Endpoint {
        Endpoint {
            addr: self.vip.ip().into(),
            port: port_and_protocol(Be16::new(self.vip.port()), self.protocol.number()),
            kind: KIND_SERVICE,
            index: self.id,
        }
    }

    /// What clients are told that every backend can do.
    pub(super) fn promise_names(&self) -> Vec<String> {
        PROMISES
            .iter()
            .filter(|(bit, _)| self.promises & bit != 0)
            .map(|(_, name)| (*name).to_owned())
            .collect()
    }
}

const ALL: u8 = PROMISE_SACK | PROMISE_TIMESTAMPS | PROMISE_WINDOW_SCALE;
const PROMISES: [(u8, &str); 3] =
    [(PROMISE_WINDOW_SCALE, "window_scale"), (PROMISE_SACK, "sack"), (PROMISE_TIMESTAMPS, "timestamps")];

/// Writes down where the key stands. Returns whether its name or marker has room.
fn set_place(entry: &mut map::Service, place: &Place) -> bool {
    match place {
        Place::Cookie(name) => entry.set_cookie_name(name),
        Place::Header(name) => entry.set_header_name(name),
        Place::Query(name) => entry.set_query_name(name),
        Place::Sni => {
            entry.place = map::Place::Sni as u8;
            true
        }
        Place::Datagram { from, bytes } => {
            entry.key_len = *bytes;
            let (place, at) = match from {
                Anchor::Offset(at) => (map::Place::Offset, *at),
                Anchor::End(at) => (map::Place::End, *at),
                Anchor::Marker(_) => (map::Place::Marker, 0),
            };
            (entry.place, entry.key_at) = (place as u8, at);
            !matches!(from, Anchor::Marker(marker) if !entry.set_marker(marker))
        }
    }
}
