//! One TCP connection through the balancer: the value of the flow table.
//!
//! The table is an array of our own with entries that hold their key, in groups of [`GROUP`]; a flow stands anywhere
//! in the group that [`crate::hash::flow_hash`] names. Both directions find the same entry: the key is the client's
//! address and port and the service, and a backend belongs to one service.
//!
//! The program alone creates entries; the daemon only frees those that have expired, with the same compare-and-swap
//! on [`Flow::head`] by which the program claims them.

use crate::addr::{Addr, Be16, Mac};
use bytemuck::{Pod, Zeroable};

/// Entries in a group.
pub const GROUP: usize = 8;

/// Where a flow stands in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum FlowState {
    /// The entry holds no flow.
    Free = 0,
    /// Some processor is filling it in.
    Claimed = 1,
    /// The backend has a SYN and has not answered.
    Binding = 2,
    /// Spliced.
    Established = 3,
    /// FIN seen from both sides, or RST from one.
    Closing = 4,
    /// Bound at its SYN, and the client has not answered the backend's SYN-ACK: forged, for all we know.
    Opening = 5,
    /// The client's first segment was full and what it begins goes on: no backend is chosen yet.
    Awaiting = 6,
}

impl FlowState {
    /// From the byte in the map; an unknown value is [`FlowState::Free`].
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Claimed,
            2 => Self::Binding,
            3 => Self::Established,
            4 => Self::Closing,
            5 => Self::Opening,
            6 => Self::Awaiting,
            _ => Self::Free,
        }
    }
    pub const fn name(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Claimed => "claimed",
            Self::Binding => "binding",
            Self::Established => "established",
            Self::Closing => "closing",
            Self::Opening => "opening",
            Self::Awaiting => "awaiting",
        }
    }
    /// Whether a flow in this state counts as one of its backend's live ones.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Binding | Self::Established | Self::Opening)
    }
}

/// The word by which an entry is found, claimed and freed in one step: client port and service id (the low half: the
/// part of the key that is not the address), backend slot, state, window shift. On the wire of the map, little endian:
/// bytes 0..2 port (network order), 2..4 service, 4..6 slot, 6 state, 7 window shift.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct Head {
    pub client_port: Be16,
    pub service: u16,
    pub backend: u16,
    pub state: u8,
    /// By how much a window field from the backend is shifted left for the client; see [`crate::tcp::rescale_window`].
    pub window_shift: i8,
}

impl Head {
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        Self::key(self.client_port, self.service) as u64
            | (self.backend as u64) << 32
            | (self.state as u64) << 48
            | (self.window_shift as u8 as u64) << 56
    }
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            client_port: Be16::from_bits(bits as u16),
            service: (bits >> 16) as u16,
            backend: (bits >> 32) as u16,
            state: (bits >> 48) as u8,
            window_shift: (bits >> 56) as i8,
        }
    }
    /// Client port and service id, as [`Head`] begins with them.
    #[inline(always)]
    pub const fn key(client_port: Be16, service: u16) -> u32 {
        client_port.bits() as u32 | (service as u32) << 16
    }
}

/// The conversions to and from 64 bits are shifts, which compile to nothing better than the loads and stores that they
/// are on the machines that XDP runs on.
const _: () = assert!(cfg!(target_endian = "little"), "the layout of `Head` is that of a little-endian word");

/// Value of the flow table: one cache line.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Flow {
    pub client: Addr,
    pub head: Head,
    /// Add it to a sequence number of the backend to get the client's view of it (cookie − backend's initial one). Of a flow
    /// that no backend takes: the sequence number behind what its client has sent.
    pub seq_delta: u32,
    /// Add it to a timestamp of the backend to get the client's view of it. Of a flow that no backend takes: the timestamp that
    /// its client is shown.
    pub ts_delta: u32,
    /// The SYN cookie: our initial sequence number towards the client. Its options say what was agreed with it. Of a flow
    /// that is [`PLAIN`]: the sequence number of the backend's first segment.
    pub cookie: u32,
    /// The client's initial sequence number, the same on both halves; once there is no stash any more, a sequence number that its
    /// backend has acknowledged, at most [`NEWS`] bytes ago.
    pub client_isn: u32,
    /// Where frames for the client go: where its own last came from.
    pub client_mac: Mac,
    /// The address of ours they were sent to.
    pub local_mac: Mac,
    /// Interface on which the client is.
    pub client_ifindex: u32,
    /// When the client last sent something, in [`crate::settings::Settings`] ticks.
    pub last_seen: u32,
    /// Index of its stash, or [`NO_STASH`].
    pub stash: u16,
    /// [`FIN_SEEN`], [`SYN_REPEATED`], [`WENT_ON`], [`ACKNOWLEDGED`], [`PLAIN`], [`DATAGRAMS`], [`LEARNS`]:
    /// written on the client's path, and before the splice on that of a backend that refuses.
    pub client_flags: u8,
    /// [`FIN_SEEN`], [`REPLIED`], [`IN_HEAD`], [`RESET_SEEN`], [`RESCALE_CLIENT`]: written on the backend's path alone, so that neither path can lose the other's bit.
    pub backend_flags: u8,
}

pub const NO_STASH: u16 = u16::MAX;

/// A FIN of that side was forwarded.
pub const FIN_SEEN: u8 = 1;
/// The client retransmitted once while the present backend had the SYN.
pub const SYN_REPEATED: u8 = 2;
/// The client has sent more than the stash holds: no other backend can be given its request.
pub const WENT_ON: u8 = 8;
/// The client was told that what it has sent arrived, by us or by a backend that is gone: it will not repeat that.
pub const ACKNOWLEDGED: u8 = 16;
/// Bound at its first packet: client and backend speak to each other, nothing is stashed and nothing spliced.
pub const PLAIN: u8 = 32;
/// A flow of datagrams: the client's next one would make it again, so it makes room before a connection does.
pub const DATAGRAMS: u8 = 64;
/// The flow's service learns: whose each request is, is looked at.
pub const LEARNS: u8 = 128;
/// The backend has sent something: the flow's client is heard.
pub const REPLIED: u8 = 2;
/// The head of the backend's response goes on in its next segment.
pub const IN_HEAD: u8 = 4;
/// The backend has sent an RST.
pub const RESET_SEEN: u8 = 8;
/// The backend does not scale windows though the client does: its window fields are unscaled on the way.
pub const RESCALE_CLIENT: u8 = 16;

/// By how much what a backend acknowledges must differ from what is noted, to be noted, in bytes.
pub const NEWS: u32 = 1 << 16;
/// How much a client may have sent that its backend has not acknowledged, in bytes, to be believed...
const AHEAD: u32 = 1 << 18;
/// ...and how far back it may begin.
const BEHIND: u32 = 1 << 14;

impl Flow {
    /// Whether a sequence number of the client is near what its backend has acknowledged. Of those that a stranger makes up one in
    /// 12,000 is.
    #[inline(always)]
    pub const fn is_near(&self, seq: u32) -> bool {
        seq.wrapping_sub(self.client_isn).wrapping_add(BEHIND) < BEHIND + NEWS + AHEAD
    }
}

crate::map_types! { Flow: 64, Head: 8 }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn head_is_its_bits() {
        let head = Head {
            client_port: Be16::new(0x1234),
            service: 7,
            backend: 0x0102,
            state: FlowState::Established as u8,
            window_shift: -3,
        };
        assert_eq!(Head::from_bits(head.to_bits()), head);
        assert_eq!(bytemuck::cast::<Head, u64>(head), head.to_bits());
        assert_eq!(bytemuck::cast::<Head, [u32; 2]>(head)[0], Head::key(head.client_port, head.service));
    }
}
