//! A backend: one server behind a service. Written by the daemon alone; its index in the map is its slot.

use crate::addr::{Addr, Be16, Mac};
use crate::checksum::{fold, sub, sum_addr};
use bytemuck::{Pod, Zeroable};

/// Server states, as HAProxy names them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum State {
    /// No such backend.
    Gone = 0,
    /// Takes everything.
    Ready = 1,
    /// Takes only sessions that live here.
    Drain = 2,
    /// Taken out by the operator.
    Maint = 3,
    /// Failed its health check.
    Down = 4,
}

impl State {
    /// From the byte in the map; an unknown value is [`State::Gone`].
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Ready,
            2 => Self::Drain,
            3 => Self::Maint,
            4 => Self::Down,
            _ => Self::Gone,
        }
    }
    /// Whether a session that lives here is served here.
    #[inline(always)]
    pub const fn serves_sessions(self) -> bool {
        matches!(self, Self::Ready | Self::Drain)
    }
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Ready => "ready",
            Self::Drain => "drain",
            Self::Maint => "maint",
            Self::Down => "down",
        }
    }
}

/// Value of the backend map: one cache line, all that the established path needs of a backend.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Backend {
    pub addr: Addr,
    pub port: Be16,
    /// Id of the service it stands behind.
    pub service: u16,
    /// A [`State`].
    pub state: u8,
    /// 1 once the next hop below is known.
    pub has_next_hop: u8,
    /// Source address for frames to it: the outgoing interface's own.
    pub local_mac: Mac,
    /// Where frames for it go: its own address, or its router's.
    pub next_hop_mac: Mac,
    pub _pad: u16,
    /// Outgoing interface.
    pub ifindex: u32,
    /// Epoch of its current instance.
    pub epoch: u32,
    /// Checksum change when the service's address and port become the backend's, from client to backend: to add to
    /// the complement of a TCP checksum, folded to 16 bits (RFC 1624).
    pub tcp_delta: u16,
    /// The same for the IPv4 header checksum: addresses only.
    pub ip_delta: u16,
    /// The service's port, for the way back.
    pub service_port: Be16,
    pub weight: u16,
    /// 1 when the configuration does not have it any more: it stays until what lives there has ended.
    pub leaving: u8,
    pub _pad2: [u8; 11],
}

/// Found by the joint in a backend's SYN-ACKs: which TCP options it has.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Abilities {
    /// 1 once something is known.
    pub seen: u8,
    /// As [`crate::service::Service::promises`].
    pub promises: u8,
    /// Window scale, when promised.
    pub window_scale: u8,
    /// Those of the promises that were offered to it and that it did not take up: clients must not be told them.
    pub lacks: u8,
    pub mss: u16,
    pub _pad2: u16,
}

impl Backend {
    /// Puts it behind the service at that address and port: fills in the port and the checksum changes.
    pub fn behind(mut self, service_addr: Addr, service_port: Be16) -> Self {
        let ip = sub(fold(sum_addr(self.addr)), fold(sum_addr(service_addr)));
        self.service_port = service_port;
        self.ip_delta = ip;
        self.tcp_delta = fold(u64::from(ip) + u64::from(sub(self.port.bits(), service_port.bits())));
        self
    }
}

crate::map_types! { Backend: 64, Abilities: 8 }
