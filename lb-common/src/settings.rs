//! What all packets share: keys, sizes, timeouts, the clock. One value, written by the daemon alone, word by word.

use crate::addr::Addr;
use crate::flow::DATAGRAMS;
use crate::hash::{FlowSeed, SipKey};
use crate::quic_lb;
use bytemuck::{Pod, Zeroable};

/// Value of the settings map.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Settings {
    /// Which half of the endpoint table is live: first bucket of it in the low 32 bits, bucket mask in the high 32.
    /// One word, so that both change at once.
    pub live: u64,
    /// Hash seed of each half of the endpoint table.
    pub endpoint_seed: [u64; 2],
    /// Which half of the table of QUIC server ids is live, in the same way...
    pub quic_live: u64,
    /// ...and the hash seed of each half.
    pub quic_seed: [quic_lb::servers::Seed; 2],
    /// Secret multipliers of the flow table.
    pub flow_seed: FlowSeed,
    /// Groups in the flow table − 1 (their number is a power of two).
    pub flow_group_mask: u32,
    /// Stashes − 1 (their number is a power of two).
    pub stash_mask: u32,
    /// SYN cookie keys; see [`crate::syn_cookie`].
    pub cookie_keys: [SipKey; 2],
    /// Which of them is used for new cookies, 0 or 1.
    pub cookie_key: u32,
    /// Time slot that began at `slot_jiffies`.
    pub slot_base: u32,
    /// Kernel clock (jiffies) at which slot `slot_base` began.
    pub slot_jiffies: u64,
    /// Slots a jiffy, times 2^32.
    pub slot_mult: u64,
    /// A tick is 2^tick_shift jiffies: the unit of the timeouts below and of `last_seen`.
    pub tick_shift: u32,
    /// Ticks after which an established connection without a packet from its client expires...
    pub idle_ticks: u32,
    /// ...and after which an established flow of datagrams does.
    pub datagram_idle_ticks: u32,
    /// Ticks after which a closing flow expires.
    pub closing_ticks: u32,
    /// Ticks after which a flow whose backend never answered expires.
    pub binding_ticks: u32,
    pub _pad: u32,
    /// Token keys by key id...
    pub token_keys: [SipKey; 16],
    /// ...and a bit for each that is alive.
    pub token_key_mask: u32,
    /// Groups in the table of learned sessions − 1 (their number is a power of two).
    pub home_group_mask: u32,
    /// Secret under which the keys of learned sessions are hashed; for the life of the maps.
    pub home_key: SipKey,
    /// Secret under which names of servers are hashed; for the life of the maps.
    pub name_key: SipKey,
    /// 1 while somebody listens to steering decisions...
    pub trace: u32,
    /// ...of this service alone (0: of all)...
    pub trace_service: u32,
    /// ...and of this client alone (all zero: of all).
    pub trace_client: Addr,
}

impl Settings {
    /// The present time slot of SYN cookies.
    #[inline(always)]
    pub const fn slot(&self, jiffies: u64) -> u32 {
        let passed = jiffies.wrapping_sub(self.slot_jiffies).wrapping_mul(self.slot_mult) >> 32;
        self.slot_base.wrapping_add(passed as u32)
    }

    /// Ticks after which an established flow that has these `client_flags` expires.
    #[inline(always)]
    pub const fn idle_ticks_of(&self, client_flags: u8) -> u32 {
        if client_flags & DATAGRAMS != 0 { self.datagram_idle_ticks } else { self.idle_ticks }
    }
}

crate::map_types! { Settings: 560 }
