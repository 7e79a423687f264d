//! How many of many may move when a backend comes or goes.

/// At most so many of `n` are expected in a share of them that chance deals out: the share, four standard deviations of a
/// binomial distribution (one test run in 30,000 fails by chance), and a twentieth for the entries of a small Maglev table
/// that change their backend though they need not.
pub fn at_most(n: usize, share: f64) -> usize {
    let n = n as f64;
    (n * share + 4.0 * (n * share * (1.0 - share)).sqrt() + n / 20.0).ceil() as usize
}

/// And at least so many.
pub fn at_least(n: usize, share: f64) -> usize {
    let n = n as f64;
    (n * share - 4.0 * (n * share * (1.0 - share)).sqrt() - n / 20.0).max(0.0) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn margins_are_narrow_for_many_and_wide_for_few() {
        assert_eq!((at_least(10_000, 0.25), at_most(10_000, 0.25)), (1826, 3174));
        assert_eq!((at_least(100, 0.25), at_most(100, 0.25)), (2, 48));
        assert_eq!((at_least(10, 0.25), at_most(10, 0.0)), (0, 1));
    }
}
