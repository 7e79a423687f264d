//! One backend: what is known of it, and the state that follows from it.

use super::Effect;
use super::service::Service;
use crate::config::{self, Config, Protocol, ServerName};
use crate::control::Admin;
use crate::net::NextHop;
use lb_common::addr::{Addr, Be16};
use lb_common::backend::{self as map, Abilities, State};
use lb_common::endpoint::{Endpoint, KIND_BACKEND, port_and_protocol};
use lb_common::hash::mix64;
use lb_common::maglev::Candidate;
use lb_common::quic_lb;
use std::net::SocketAddr;
use std::time::Instant;

#[derive(Debug)]
pub(super) struct Backend {
    /// Id of its service.
    pub(super) service: u16,
    pub(super) name: String,
    pub(super) slot: u16,
    pub(super) addr: SocketAddr,
    pub(super) weight: u16,
    /// How QUIC connection ids name it.
    pub(super) server_ids: Vec<Vec<u8>>,
    /// Where its host alone counts in the table: a number for the group.
    pub(super) group: Option<u64>,
    /// Names of servers that it is listed for.
    pub(super) sni: Vec<ServerName>,
    pub(super) admin: Admin,
    pub(super) server: Server,
    pub(super) health: Health,
    pub(super) next_hop: Option<NextHop>,
    pub(super) abilities: Abilities,
    /// Promises that its SYN-ACKs to clients did not take up.
    pub(super) lacks: u8,
    pub(super) epoch: u32,
    /// The epoch in which it last served and stopped: only a later one may serve again.
    spent: u32,
    /// The epoch in which it serves now.
    serving: Option<u32>,
    /// Whether a new epoch is on its way.
    asked: bool,
    pub(super) state: State,
    pub(super) reason: Option<String>,
    pub(super) since: Instant,
    /// The configuration does not have it any more.
    pub(super) leaving: bool,
    written: Option<map::Backend>,
}

/// What is known of the server's process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Server {
    /// lbd does not run it.
    Elsewhere,
    Starting,
    Running,
    Gone(String),
}

/// What the checks say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Health {
    Unknown,
    Up,
    Down(String),
}

impl Health {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::Down(_) => "down",
        }
    }
}

impl Backend {
    pub(super) fn new(
        config: &config::Backend,
        service: u16,
        slot: u16,
        all: &Config,
        left: Option<&map::Backend>,
        now: Instant,
    ) -> Self {
        let own = || SocketAddr::new(all.managed.server(slot).into(), config::Managed::PORT);
        let addr = config.addr.unwrap_or_else(own);
        let mut backend = Self {
            weight: config.weight,
            server_ids: config.server_ids.clone(),
            sni: config.sni.clone(),
            server: if config.managed { Server::Starting } else { Server::Elsewhere },
            ..Self::unseen(service, config.name.clone(), slot, addr, now)
        };
        let port = Be16::new(addr.port());
        if let Some(left) = left
            && (left.addr, left.port, left.service) == (Addr::from(addr.ip()), port, service)
        {
            backend.resume(left);
        }
        backend
    }

    /// One that the configuration does not have any more. Nothing new goes there. Connections go on by themselves; but a
    /// datagram is steered anew each time, so there the backend must serve what lives at it, if it did.
    pub(super) fn leaving(
        name: String,
        slot: u16,
        found: &map::Backend,
        service: &Service,
        server_ids: Vec<Vec<u8>>,
        now: Instant,
    ) -> Self {
        let addr = SocketAddr::new(found.addr.into(), found.port.get());
        let mut backend = Self {
            weight: found.weight,
            server_ids,
            leaving: true,
            ..Self::unseen(found.service, name, slot, addr, now)
        };
        backend.resume(found);
        let state = State::from_bits(found.state);
        // One that failed while it was leaving may come back.
        let serves = state.serves_sessions() || state == State::Down && found.leaving != 0;
        backend.admin = if service.protocol == Protocol::Udp && serves { Admin::Drain } else { Admin::Maint };
        backend
    }

    /// One of which nothing is known but who it is.
    fn unseen(service: u16, name: String, slot: u16, addr: SocketAddr, now: Instant) -> Self {
        Self {
            service,
            name,
            slot,
            addr,
            weight: 0,
            server_ids: Vec::new(),
            group: None,
            sni: Vec::new(),
            admin: Admin::Ready,
            server: Server::Elsewhere,
            health: Health::Unknown,
            next_hop: None,
            abilities: Abilities::default(),
            lacks: 0,
            epoch: 0,
            spent: 0,
            serving: None,
            asked: false,
            state: State::Gone,
            reason: None,
            since: now,
            leaving: false,
            written: None,
        }
    }

    /// Goes on where an earlier lbd left off.
    fn resume(&mut self, left: &map::Backend) {
        let state = State::from_bits(left.state);
        self.admin = match state {
            // It has come back: what it was while it left is not what the operator wanted.
            _ if left.leaving != 0 => Admin::Ready,
            State::Drain => Admin::Drain,
            State::Maint => Admin::Maint,
            State::Ready | State::Down | State::Gone => Admin::Ready,
        };
        // The servers that lbd runs have ended with it; their epochs come with the new ones.
        if self.server == Server::Elsewhere {
            self.epoch = left.epoch;
            if state.serves_sessions() {
                self.health = Health::Up;
                self.serving = Some(left.epoch);
            } else {
                self.spent = left.epoch;
            }
            self.next_hop = (left.has_next_hop != 0).then_some(NextHop {
                ifindex: left.ifindex,
                local_mac: left.local_mac,
                next_hop_mac: left.next_hop_mac,
            });
        }
    }

    pub(super) fn checked(&mut self, up: bool, abilities: Abilities, reason: Option<String>) {
        self.health =
            if up { Health::Up } else { Health::Down(reason.unwrap_or_else(|| "no connection".to_owned())) };
        if abilities.seen != 0 {
            self.abilities = abilities;
        }
    }

    /// A managed server has begun its life as the instance of `epoch`.
    pub(super) fn started(&mut self, epoch: u32) {
        self.server = Server::Running;
        // What was seen of the instance before says nothing about this one.
        self.health = Health::Unknown;
        self.renewed(epoch);
    }

    /// A managed server has come to its end.
    pub(super) fn ended(&mut self, reason: String) {
        self.server = Server::Gone(reason);
        self.health = Health::Unknown;
    }

    /// An epoch that does not grow is none: it is asked for again.
    pub(super) fn renewed(&mut self, epoch: u32) {
        self.asked = false;
        self.epoch = self.epoch.max(epoch);
    }

    /// The epochs of servers that lbd runs are those that it started them in; others' are known by hearsay.
    pub(super) fn announced(&mut self, epoch: u32) {
        if self.server == Server::Elsewhere {
            self.epoch = self.epoch.max(epoch);
        }
    }

    /// Whether its health makes a difference: connections of one that is leaving end by themselves.
    pub(super) fn is_checked(&self) -> bool {
        self.server == Server::Elsewhere && !(self.leaving && self.admin == Admin::Maint)
    }

    /// Its state in a word.
    pub(super) fn state_name(&self) -> &'static str {
        if self.leaving { "leaving" } else { self.state.name() }
    }

    /// What connection ids call it.
    pub(super) fn servers(&self) -> impl Iterator<Item = quic_lb::Server> {
        self.server_ids.iter().filter_map(|id| quic_lb::Server::new(self.service, id))
    }

    /// Brings the state in line with what is known. Returns the state before, when it changed.
    pub(super) fn settle(
        &mut self,
        stopping: bool,
        now: Instant,
        effects: &mut Vec<Effect>,
    ) -> Option<(State, Option<String>)> {
        let (mut state, mut reason) = self.judge(stopping);
        if state.serves_sessions() && self.epoch <= self.spent {
            if !self.asked {
                self.asked = true;
                effects.push(self.renew());
            }
            (state, reason) = (State::Down, Some("its next epoch has not begun yet".to_owned()));
        }
        if state.serves_sessions() {
            self.serving = Some(self.epoch);
        } else if let Some(epoch) = self.serving.take() {
            // Others serve its sessions from now on, and it does not see what they write.
            self.spent = epoch;
        }
        let before = self.state;
        (self.state, self.reason) = (state, reason.clone());
        if before == state {
            return None;
        }
        self.since = now;
        Some((before, reason))
    }

    /// How a new epoch begins: for a server that lbd runs with its own new life, and an empty cache.
    fn renew(&mut self) -> Effect {
        if self.server == Server::Elsewhere {
            return Effect::NextEpoch { slot: self.slot };
        }
        self.server = Server::Starting;
        Effect::Restart { slot: self.slot }
    }

    /// The state, epochs left aside, and why it is down.
    fn judge(&self, stopping: bool) -> (State, Option<String>) {
        let down = |reason: &str| (State::Down, Some(reason.to_owned()));
        if self.admin == Admin::Maint {
            return (State::Maint, None);
        }
        match &self.server {
            Server::Elsewhere => {}
            _ if stopping => return down("lbd is stopping"),
            Server::Starting => return down("its server is starting"),
            Server::Gone(reason) => return down(reason),
            Server::Running => {}
        }
        match &self.health {
            Health::Down(reason) => return down(reason),
            Health::Unknown => return down("not checked yet"),
            Health::Up => {}
        }
        if self.next_hop.is_none() {
            return down("the way to it is not resolved yet");
        }
        match self.admin {
            Admin::Drain => (State::Drain, None),
            Admin::Ready | Admin::Maint => (State::Ready, None),
        }
    }

    /// Its map value, when that differs from what was written last.
    pub(super) fn unwritten(&mut self, service: &Service) -> Option<map::Backend> {
        let entry = self.entry(service);
        (self.written.replace(entry) != Some(entry)).then_some(entry)
    }

    /// Its map value.
    pub(super) fn entry(&self, service: &Service) -> map::Backend {
        let mut entry = map::Backend {
            addr: self.addr.ip().into(),
            port: Be16::new(self.addr.port()),
            service: self.service,
            state: self.state as u8,
            epoch: self.epoch,
            weight: self.weight,
            leaving: self.leaving.into(),
            ..map::Backend::default()
        };
        if let Some(hop) = self.next_hop {
            entry.has_next_hop = 1;
            entry.local_mac = hop.local_mac;
            entry.next_hop_mac = hop.next_hop_mac;
            entry.ifindex = hop.ifindex;
        }
        entry.behind(service.vip.ip().into(), Be16::new(service.vip.port()))
    }

    pub(super) fn endpoint(&self, service: &Service) -> Endpoint {
        Endpoint {
            addr: self.addr.ip().into(),
            port: port_and_protocol(Be16::new(self.addr.port()), service.protocol.number()),
            kind: KIND_BACKEND,
            index: self.slot,
        }
    }

    /// How it stands in the Maglev table: by its address, which is the same on every node. In a group by its host: tables of
    /// the same hosts are the same, so that one client's hash leads to the same host.
    pub(super) fn candidate(&self) -> Candidate {
        let octets = Addr::from(self.addr.ip()).octets();
        let [high, low] = [0, 8].map(|at| u64::from_be_bytes(std::array::from_fn(|i| octets[at + i])));
        let id = mix64(mix64(high) ^ low) ^ self.group.unwrap_or(u64::from(self.addr.port()));
        Candidate { id: mix64(id), slot: self.slot, weight: self.weight }
    }
}

/// A number for the name of a group, the same on every node. No port.
pub(super) fn group(name: &str) -> u64 {
    name.bytes().fold(1 << 32, |hash, byte| mix64(hash ^ u64::from(byte)))
}
