//! Inputs become other inputs.

use super::MAX_INPUT;
use crate::dice::Dice;

/// Bytes on which decisions often turn.
const TURNING: [u8; 12] = [0, 1, 2, 3, 0x7f, 0x80, 0xff, b'\n', b'\r', b' ', b'=', b';'];

/// Bytes with up to eight changes; some of them bring in a part of `other`, or a word.
pub fn bytes(dice: &mut Dice, input: &[u8], other: &[u8], words: &[&str]) -> Vec<u8> {
    let mut bytes = input.to_vec();
    for _ in 0..=dice.below(8) {
        change(dice, &mut bytes, other, words);
    }
    bytes.truncate(MAX_INPUT);
    bytes
}

fn change(dice: &mut Dice, bytes: &mut Vec<u8>, other: &[u8], words: &[&str]) {
    let any = dice.below(256) as u8;
    if bytes.is_empty() {
        bytes.push(any);
        return;
    }
    let at = dice.below(bytes.len());
    match dice.below(10) {
        0 => bytes[at] ^= 1 << dice.below(8),
        1 => bytes[at] = any,
        2 => bytes[at] = *dice.choose(&TURNING),
        3 => bytes[at] = bytes[at].wrapping_add(dice.below(9) as u8).wrapping_sub(4),
        4 => bytes.insert(at, if dice.percent(50) { any } else { *dice.choose(&TURNING) }),
        5 => drop(bytes.drain(span(dice, bytes))),
        6 => {
            let part = bytes[span(dice, bytes)].to_vec();
            put(bytes, at, &part);
        }
        7 if !other.is_empty() => {
            let part = other[span(dice, other)].to_vec();
            put(bytes, at, &part);
        }
        8 => bytes.truncate(at + 1),
        _ if !words.is_empty() => {
            let word = dice.choose(words).as_bytes();
            if dice.percent(50) {
                put(bytes, at, word);
            } else {
                let end = bytes.len().min(at + word.len());
                bytes.splice(at..end, word.iter().copied());
            }
        }
        _ => bytes.push(any),
    }
}

/// A part, short ones more often.
fn span(dice: &mut Dice, bytes: &[u8]) -> std::ops::Range<usize> {
    let at = dice.below(bytes.len());
    let longest = bytes.len() - at;
    let longest = if dice.percent(75) { longest.min(16) } else { longest };
    at..at + 1 + dice.below(longest)
}

fn put(bytes: &mut Vec<u8>, at: usize, part: &[u8]) {
    bytes.splice(at..at, part.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_numbers_make_the_same_input_and_others_another() {
        let make = |seed| bytes(&mut Dice::new(seed), b"hello, world", b"abc", &["word"]);
        assert_eq!(make(1), make(1));
        let different: std::collections::BTreeSet<_> = (0..200).map(make).collect();
        assert!(different.len() > 150, "{}", different.len());
        assert!((0..200).all(|seed| bytes(&mut Dice::new(seed), &[7; 5000], b"", &[]).len() <= MAX_INPUT));
    }

    #[test]
    fn nothing_becomes_something() {
        assert!(!bytes(&mut Dice::new(3), b"", b"", &[]).is_empty());
    }
}
