//! Random numbers that a seed determines.

use lb_common::hash::mix64;

/// A source of them; whoever needs an own one gets it by [`Dice::of`].
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(mix64(seed ^ 0x7075_7474_6865_6d69))
    }

    /// Another source, which depends on the seed and on who it is for, and on nothing that was drawn before.
    pub fn of(seed: u64, who: u64, when: u64) -> Self {
        Self::new(mix64(mix64(seed).wrapping_add(who)).wrapping_add(when))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix64(self.0)
    }

    /// A number below `n`, which is not 0.
    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// True so many times of a hundred.
    pub fn percent(&mut self, n: usize) -> bool {
        self.below(100) < n
    }

    /// One of some things. There must be one.
    pub fn choose<'a, T>(&mut self, of: &'a [T]) -> &'a T {
        &of[self.below(of.len())]
    }

    pub fn shuffle<T>(&mut self, things: &mut [T]) {
        for i in (1..things.len()).rev() {
            things.swap(i, self.below(i + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_determines_all_and_users_differ() {
        let draw = |mut dice: Dice| (0..8).map(|_| dice.below(1000)).collect::<Vec<_>>();
        assert_eq!(draw(Dice::of(1, 2, 3)), draw(Dice::of(1, 2, 3)));
        let others = [Dice::of(2, 2, 3), Dice::of(1, 3, 3), Dice::of(1, 2, 4), Dice::of(1, 3, 2)];
        for other in others {
            assert_ne!(draw(Dice::of(1, 2, 3)), draw(other));
        }
    }

    #[test]
    fn shuffling_loses_nothing() {
        let mut things: Vec<_> = (0..20).collect();
        Dice::new(5).shuffle(&mut things);
        assert_ne!(things, (0..20).collect::<Vec<_>>());
        things.sort_unstable();
        assert_eq!(things, (0..20).collect::<Vec<_>>());
    }
}
