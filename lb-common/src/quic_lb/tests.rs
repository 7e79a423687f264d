use super::*;
use proptest::prelude::*;
use std::collections::HashSet;
use std::vec::Vec;

fn hex(text: &str) -> Vec<u8> {
    text.as_bytes()
        .chunks(2)
        .map(|pair| u8::from_str_radix(core::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn key(text: &str) -> [u8; 16] {
    hex(text).try_into().unwrap()
}

/// Appendix B, and the example of §5.4.2. Of the plaintext rows the second is misprinted (its nonce has nine digits); the
/// last encrypted row is printed with rotation 3, but its first octet says 0.
#[test]
fn the_draft_s_own_vectors() {
    const KEY: &str = "8f95f09245765f80256934e50c66207f";
    let rows = [
        (0, None, "c4605e", "4504cc4f", "07c4605e4504cc4f", PLAIN),
        (0, Some(KEY), "ed793a", "ee080dbf", "0720b1d07b359d3c", THREE_PASSES),
        (1, Some(KEY), "ed793a51d49b8f5fab65", "ee080dbf48", "2fcc381bc74cb4fbad2823a3d1f8fed2", FOUR_PASSES),
        (
            2,
            Some(KEY),
            "ed793a51d49b8f5f",
            "ee080dbf48c0d1e5",
            "504dd2d05a7b0de9b2b9907afb5ecf8cc3",
            SINGLE_PASS,
        ),
        (
            0,
            Some(KEY),
            "ed793a51d49b8f5fab",
            "ee080dbf48c0d1e55d",
            "125779c9cc86beb3a3a4a3ca96fce4bfe0cdbc",
            THREE_PASSES,
        ),
        (0, Some("fdf726a9893ec05c0632d3956680baf0"), "31441a", "9c69c275", "0767947d29be054a", THREE_PASSES),
    ];
    for (rotation, secret, server, nonce, id, way) in rows {
        let secret = secret.map(key);
        let (server, nonce, id) = (hex(server), hex(nonce), hex(id));
        let config = Config::new(rotation, server.len(), nonce.len(), secret.as_ref()).unwrap();
        assert_eq!(config.way, way);
        assert_eq!(config.encode(&server, &nonce, config.own_length())[..], id);
        assert_eq!(config.decode(&id, 7), Server::new(7, &server));
        assert_eq!(config.decode(&id[..id.len() - 1], 7), None, "too short");
    }
}

#[test]
fn lengths_beyond_the_limits_are_named() {
    let rows = [
        (7, 1, 4, Err(ConfigError::Rotation(7))),
        (6, 0, 8, Err(ConfigError::ServerId(0))),
        (6, 16, 4, Err(ConfigError::ServerId(16))),
        (6, 1, 3, Err(ConfigError::Nonce(3))),
        (6, 1, 19, Err(ConfigError::Nonce(19))),
        (6, 15, 5, Err(ConfigError::Sum(20))),
        (6, 15, 4, Ok(20)),
        (0, 1, 18, Ok(20)),
        (0, 1, 4, Ok(6)),
    ];
    for (rotation, server, nonce, expected) in rows {
        assert_eq!(Config::new(rotation, server, nonce, None).map(|config| config.id_len()), expected);
    }
}

proptest! {
    /// Whatever the lengths, with and without a key: also when more bytes follow.
    #[test]
    fn what_is_encoded_is_decoded(
        rotation in 0u8..7,
        secret: Option<[u8; 16]>,
        (server, nonce) in (1usize..=15).prop_flat_map(|n| {
            (proptest::collection::vec(any::<u8>(), n), proptest::collection::vec(any::<u8>(), 4..=19 - n))
        }),
        low: u8,
        more: Vec<u8>,
    ) {
        let config = Config::new(rotation, server.len(), nonce.len(), secret.as_ref()).unwrap();
        let id = config.encode(&server, &nonce, low);
        prop_assert_eq!((id.len(), id[0]), (config.id_len(), rotation << 5 | low & 31));
        let longer = [&id[..], &more].concat();
        prop_assert_eq!(config.decode(&longer, 3), Server::new(3, &server));
        if secret.is_none() {
            prop_assert_eq!(&id[1..], [server, nonce].concat());
        }
    }
}

/// Of every length of nonce, no two numbers become the same.
#[test]
fn a_permutation_repeats_nothing() {
    for len in MIN_NONCE..=MAX_NONCE {
        let permutation = Permutation::new(len, &[len as u8; 16]);
        let all: HashSet<_> = (0..2000).map(|n| permutation.apply(n)).collect();
        assert_eq!(all.len(), 2000, "{len} bytes");
        assert!(all.iter().all(|(bytes, n)| *n == len && bytes[len..].iter().all(|byte| *byte == 0)));
    }
    let others = [[1; 16], [2; 16]].map(|key| Permutation::new(8, &key).apply(5));
    assert_ne!(others[0], others[1], "every key has its own");
}
