//! An input that fails becomes the shortest that still does (Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing
//! Input": their algorithm with complements alone).

use super::Shape;
use std::time::{Duration, Instant};

/// For how long a shorter input is looked for.
const PATIENCE: Duration = Duration::from_secs(30);

/// A part of `input` that `fails` as well: bytes, or whole lines, are left out.
pub fn shorten(shape: Shape, input: &[u8], mut fails: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = match shape {
        Shape::Bytes => input.chunks(1).collect(),
        Shape::Steps => input.split_inclusive(|byte| *byte == b'\n').collect(),
    };
    let begun = Instant::now();
    let mut size = parts.len().div_ceil(2).max(1);
    while begun.elapsed() < PATIENCE {
        let before = parts.len();
        let mut at = 0;
        while at < parts.len() && begun.elapsed() < PATIENCE {
            let end = parts.len().min(at + size);
            let rest: Vec<&[u8]> = [&parts[..at], &parts[end..]].concat();
            if fails(&rest.concat()) {
                parts = rest;
            } else {
                at = end;
            }
        }
        if size == 1 && parts.len() == before {
            break;
        }
        size = size.div_ceil(2).max(1);
    }
    parts.concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matters_stays() {
        let fails = |input: &[u8]| input.contains(&b'x') && input.contains(&b'y');
        assert_eq!(shorten(Shape::Bytes, b"aaaaaxaaaaaaayaaa", fails), b"xy");
        let lines = b"one\ntwo x\nthree\ny\nfive\n";
        assert_eq!(shorten(Shape::Steps, lines, fails), b"two x\ny\n");
        assert_eq!(shorten(Shape::Bytes, b"", |_| true), b"");
    }
}
