//! Maglev hashing (Eisenbud et al., NSDI 2016, §3.4), weighted: which backend gets what has no owner.

use crate::addr::{Addr, Be16};
use crate::hash::mix64;
use crate::token::SessionId;
use bytemuck::{Pod, Zeroable};

/// Entries in one map value.
pub const BLOCK: usize = 32;
/// Entry that names no backend.
pub const NOBODY: u16 = u16::MAX;

/// Value of the Maglev map: 32 consecutive entries, each a backend slot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Block(pub [u16; BLOCK]);

/// Blocks that a table of `size` entries takes.
pub const fn blocks(size: u32) -> u32 {
    size.div_ceil(BLOCK as u32)
}

/// Where a session stands in a table whose owner is gone: the same on every node, so all pick the same substitute.
#[inline(always)]
pub const fn session_hash(id: &SessionId) -> u32 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = id.0;
    let low = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let high = u64::from_le_bytes([i, j, k, l, m, n, o, p]);
    mix64(low ^ high) as u32
}

/// Where a client stands in a table, by its address alone (port 0) or with its port: the same on every node, so that a
/// connection that a router moves to another node stays with its backend.
#[inline(always)]
pub const fn client_hash(client: Addr, port: Be16) -> u32 {
    mix64(client.lo ^ client.hi.rotate_left(32) ^ (port.bits() as u64) << 16) as u32
}

/// The hash to try next when the backend that `hash` chose does not take the flow.
#[inline(always)]
pub const fn next_hash(hash: u32) -> u32 {
    hash.wrapping_mul(0x9E37_79B1).rotate_left(15) ^ 0x85EB_CA6B
}

/// Entries that a walk looks at before giving up.
pub const WALK: u32 = 32;

/// One backend as the table sees it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Candidate {
    /// The same on every node: a hash of the backend's address and port.
    pub id: u64,
    pub slot: u16,
    /// Relative share; 0 takes no part.
    pub weight: u16,
}

/// Whether `n` is a prime: a table's size must be.
pub fn is_prime(n: u32) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

/// Builds the table of `size` entries, a prime. Empty when no candidate has weight.
///
/// Each turn a candidate claims the next free entry of its own permutation; one of weight w takes w turns of every
/// `max(w)`.
#[cfg(feature = "std")]
pub fn build(candidates: &[Candidate], size: u32) -> std::vec::Vec<u16> {
    struct Turn {
        id: u64,
        slot: u16,
        weight: u64,
        position: u64,
        skip: u64,
        due: u64,
    }
    let size64 = u64::from(size);
    let mut turns: std::vec::Vec<Turn> = candidates
        .iter()
        .filter(|c| c.weight > 0)
        .map(|c| Turn {
            id: c.id,
            slot: c.slot,
            weight: u64::from(c.weight),
            position: mix64(c.id) % size64,
            skip: mix64(c.id ^ 0x5bd1_e995_9d1b_54a5) % (size64 - 1) + 1,
            due: 0,
        })
        .collect();
    // The order of turns must not depend on the order of slots, which differs from node to node.
    turns.sort_by_key(|turn| (turn.position, turn.skip, turn.id));
    let Some(heaviest) = turns.iter().map(|turn| turn.weight).max() else {
        return std::vec::Vec::new();
    };
    let mut table = std::vec![NOBODY; size as usize];
    let mut free = size;
    for round in 1.. {
        for turn in &mut turns {
            if round * turn.weight < turn.due + heaviest {
                continue;
            }
            turn.due += heaviest;
            while table[turn.position as usize] != NOBODY {
                turn.position = (turn.position + turn.skip) % size64;
            }
            table[turn.position as usize] = turn.slot;
            free -= 1;
            if free == 0 {
                return table;
            }
        }
    }
    table
}

crate::map_types! { Block: 64 }

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use crate::hash::scale;
    use proptest::prelude::*;
    use std::vec::Vec;

    fn candidates(weights: &[u16]) -> Vec<Candidate> {
        weights
            .iter()
            .enumerate()
            .map(|(i, w)| Candidate { id: mix64(i as u64 + 77), slot: i as u16, weight: *w })
            .collect()
    }

    fn shares(table: &[u16], n: usize) -> Vec<u32> {
        let mut shares = std::vec![0; n];
        table.iter().for_each(|slot| shares[*slot as usize] += 1);
        shares
    }

    /// The paper's §5.3: at M = 65537 the fullest backend has little more than the least.
    #[test]
    fn equal_weights_get_equal_shares() {
        for n in [1, 3, 10, 100] {
            let shares = shares(&build(&candidates(&std::vec![1; n]), 65_537), n);
            let (min, max) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(max - min <= 1, "{n} backends: {min} to {max}");
        }
    }

    #[test]
    fn weights_set_the_shares() {
        let shares = shares(&build(&candidates(&[1, 2, 5, 0]), 65_537), 4);
        for (share, weight) in shares.iter().zip([1.0, 2.0, 5.0, 0.0]) {
            let expected = 65_537.0 * weight / 8.0;
            assert!((f64::from(*share) - expected).abs() <= expected * 0.01 + 1.0, "{shares:?}");
        }
    }

    /// Figure 12 of the paper: few entries change hands beyond those of the backend that left.
    #[test]
    fn a_leaving_backend_disturbs_few_others() {
        let n = 20;
        let before = build(&candidates(&std::vec![1; n]), 65_537);
        let mut fewer = candidates(&std::vec![1; n]);
        fewer.remove(7);
        let after = build(&fewer, 65_537);
        let moved = before.iter().zip(&after).filter(|(b, a)| **b != 7 && b != a).count();
        assert!(moved < 65_537 * 3 / 100, "{moved} entries changed hands among those that stayed");
    }

    proptest! {
        #[test]
        fn the_order_of_backends_does_not_matter(ids in proptest::collection::hash_set(any::<u64>(), 1..12)) {
            let forward: Vec<_> = ids.iter().map(|id| Candidate { id: *id, slot: (*id % 60_000) as u16, weight: 1 }).collect();
            let backward: Vec<_> = forward.iter().rev().copied().collect();
            prop_assert_eq!(build(&forward, 251), build(&backward, 251));
        }
    }

    /// A walk soon leaves the entry that it began at and comes past every backend.
    #[test]
    fn a_walk_reaches_other_entries() {
        let table = build(&candidates(&[1, 1, 1, 1]), 65_537);
        for i in 0..1000u64 {
            let mut id = [0; 16];
            id[..8].copy_from_slice(&mix64(i).to_le_bytes());
            let mut hash = session_hash(&SessionId(id));
            let mut seen = [false; 4];
            for _ in 0..64 {
                seen[table[scale(hash, 65_537) as usize] as usize] = true;
                hash = next_hash(hash);
            }
            assert_eq!(seen, [true; 4], "session {i}");
        }
    }

    /// Two ids with one permutation: a matter of time with a small table.
    #[test]
    fn equal_permutations_take_turns_in_the_order_of_ids() {
        let same = |id: u64| (mix64(id) % 3, mix64(id ^ 0x5bd1_e995_9d1b_54a5) % 2);
        let other = (2..).find(|id| same(*id) == same(1)).expect("there are six permutations");
        let [a, b] = [(1, 10), (other, 20)].map(|(id, slot)| Candidate { id, slot, weight: 1 });
        assert_eq!(build(&[a, b], 3), build(&[b, a], 3));
    }

    #[test]
    fn nobody_ready_is_an_empty_table() {
        assert!(build(&[], 251).is_empty());
        assert!(build(&candidates(&[0, 0]), 251).is_empty());
        assert!(is_prime(65_537) && is_prime(2) && !is_prime(65_536) && !is_prime(1));
    }
}
