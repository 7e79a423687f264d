//! What all packets share: keys, sizes, timeouts, the clock. One value, written by the daemon alone, word by word.

use crate::addr::Addr;
use crate::flow::{DATAGRAMS, FIN_SEEN, FlowState};
use crate::hash::{FlowSeed, SipKey};
use crate::quic_lb;
use bytemuck::{Pod, Zeroable};
use core::fmt;

/// Value of the settings map.
#[derive(Clone, Copy, Default, PartialEq, Eq, Pod, Zeroable)]
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
    /// Which of them is used for new cookies, 0 or 1, in the lowest bit; above it the time slot since when. One word, so that
    /// both change at once.
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
    /// Ticks after which the rest of a head is no longer waited for.
    pub head_ticks: u32,
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
    /// Ticks after which a flow expires that was bound at its first packet and whose client has confirmed nothing.
    pub opening_ticks: u32,
    /// Ticks without a packet from its client after which an established flow may make room for another one.
    pub evictable_ticks: u32,
    /// Ticks after which an established connection expires of which one side has sent its FIN.
    pub half_closed_ticks: u32,
    /// 1: what comes in the name of a backend, and from another interface than the one that leads to it, is a stranger's.
    pub check_interfaces: u32,
}

/// Without the keys, seeds and secrets: whoever reads a log must not be able to forge or to steer.
impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Settings")
            .field("live", &self.live)
            .field("quic_live", &self.quic_live)
            .field("flow_group_mask", &self.flow_group_mask)
            .field("stash_mask", &self.stash_mask)
            .field("home_group_mask", &self.home_group_mask)
            .field("cookie_key", &self.cookie_key)
            .field("slot_base", &self.slot_base)
            .field("slot_jiffies", &self.slot_jiffies)
            .field("slot_mult", &self.slot_mult)
            .field("tick_shift", &self.tick_shift)
            .field("idle_ticks", &self.idle_ticks)
            .field("datagram_idle_ticks", &self.datagram_idle_ticks)
            .field("half_closed_ticks", &self.half_closed_ticks)
            .field("closing_ticks", &self.closing_ticks)
            .field("binding_ticks", &self.binding_ticks)
            .field("opening_ticks", &self.opening_ticks)
            .field("head_ticks", &self.head_ticks)
            .field("evictable_ticks", &self.evictable_ticks)
            .field("token_key_mask", &self.token_key_mask)
            .field("trace", &self.trace)
            .field("trace_service", &self.trace_service)
            .field("trace_client", &self.trace_client)
            .finish_non_exhaustive()
    }
}

/// Whether more than `limit` ticks lie between `then` and `now`. Signed: another processor may have written a tick that
/// began after this one has read the clock, and that is no age at all.
#[inline(always)]
pub const fn is_over(limit: u32, then: u32, now: u32) -> bool {
    now.wrapping_sub(then) as i32 > limit as i32
}

impl Settings {
    /// The present time slot of SYN cookies.
    #[inline(always)]
    pub const fn slot(&self, jiffies: u64) -> u32 {
        let passed = jiffies.wrapping_sub(self.slot_jiffies).wrapping_mul(self.slot_mult) >> 32;
        self.slot_base.wrapping_add(passed as u32)
    }

    /// The key of the SYN cookies that are made in a time slot.
    #[inline(always)]
    pub const fn cookie_key_of(&self, slot: u32) -> SipKey {
        // 31 bits, signed: what comes before lies at most half the numbers back.
        let is_before = ((slot << 1).wrapping_sub(self.cookie_key & !1) as i32) < 0;
        // By a mask: an index that is the outcome of exclusive or has no bounds for the verifier of 6.1 ("math between map_value
        // pointer and register with unbounded min value is not allowed").
        let mask = (((self.cookie_key & 1) ^ is_before as u32) as u64).wrapping_neg();
        let [first, second] = self.cookie_keys;
        [first[0] & !mask | second[0] & mask, first[1] & !mask | second[1] & mask]
    }

    /// These settings with another SYN cookie key, from the next pair of time slots on. The key before the present one is gone.
    #[must_use]
    pub fn with_cookie_key(mut self, key: SipKey, slot: u32) -> Self {
        let unused = (self.cookie_key & 1) ^ 1;
        self.cookie_keys[unused as usize] = key;
        self.cookie_key = ((slot & !1).wrapping_add(2) << 1) | unused;
        self
    }

    /// Ticks after which an established flow that has these `client_flags` expires.
    #[inline(always)]
    pub const fn idle_ticks_of(&self, client_flags: u8) -> u32 {
        if client_flags & DATAGRAMS != 0 { self.datagram_idle_ticks } else { self.idle_ticks }
    }

    /// Ticks without a packet from its client after which a flow expires that has this state and these flags. `None`: the
    /// entry holds no flow, or some processor is filling it in, which takes less than a microsecond.
    #[inline(always)]
    pub const fn lifetime(&self, state: u8, client_flags: u8, backend_flags: u8) -> Option<u32> {
        Some(match FlowState::from_bits(state) {
            FlowState::Free | FlowState::Claimed => return None,
            FlowState::Binding | FlowState::Awaiting => self.binding_ticks,
            FlowState::Opening => self.opening_ticks,
            FlowState::Established => {
                let idle = self.idle_ticks_of(client_flags);
                let half_closed = (client_flags | backend_flags) & FIN_SEEN != 0;
                if half_closed && self.half_closed_ticks < idle { self.half_closed_ticks } else { idle }
            }
            FlowState::Closing => self.closing_ticks,
        })
    }
}

crate::map_types! { Settings: 576 }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_message_shows_a_secret() {
        const SECRET: u64 = 0xabab_abab_abab_abab;
        let mut settings = Settings {
            endpoint_seed: [SECRET; 2],
            cookie_keys: [[SECRET; 2]; 2],
            token_keys: [[SECRET; 2]; 16],
            home_key: [SECRET; 2],
            name_key: [SECRET; 2],
            ..Settings::default()
        };
        bytemuck::bytes_of_mut(&mut settings.flow_seed).fill(0xab);
        bytemuck::bytes_of_mut(&mut settings.quic_seed).fill(0xab);
        let shown = std::format!("{settings:?} {settings:x?}");
        assert!(shown.contains("idle_ticks"), "{shown}");
        for word in [SECRET, u64::from(SECRET as u32), u64::from(SECRET as u16)] {
            let (decimal, hexadecimal) = (std::format!("{word}"), std::format!("{word:x}"));
            assert!(!shown.contains(&decimal) && !shown.contains(&hexadecimal), "{word}: {shown}");
        }
    }
}
