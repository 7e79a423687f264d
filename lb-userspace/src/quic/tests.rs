use super::*;
use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;

const KEY: [u8; 16] = *b"sixteen bytes ok";

fn config(rotation: u8, nonce: usize, key: Option<&[u8; 16]>) -> QuicLbConfig {
    QuicLbConfig::new(rotation, 2, nonce, key).unwrap()
}

#[test]
fn every_id_names_the_server_and_no_two_are_the_same() {
    for key in [None, Some(&KEY)] {
        let config = config(3, 4, key);
        let mut ids = QuicLbIds::new(config, &[1, 2]).unwrap();
        assert_eq!((ids.cid_len(), ids.cid_lifetime()), (7, None));
        let mut seen = HashSet::new();
        // A random nonce of four bytes would have come twice among them, most likely.
        for _ in 0..200_000 {
            let id = ids.generate_cid();
            assert_eq!((id.len(), id[0]), (7, 3 << 5 | 6));
            assert_eq!(config.decode(&id, 9), Server::new(9, &[1, 2]));
            assert!(seen.insert(id.to_vec()));
        }
        assert_eq!(ids.left(), (1 << 32) - 200_000);
    }
}

#[test]
fn clones_share_their_nonces() {
    let ids = QuicLbIds::new(config(0, 4, None), &[1, 2]).unwrap().lifetime(Duration::from_secs(9));
    let (mut a, mut b) = (ids.clone(), ids);
    assert_ne!(a.generate_cid(), b.generate_cid());
    assert_eq!(b.cid_lifetime(), Some(Duration::from_secs(9)));
}

#[test]
fn it_knows_its_own_ids() {
    let config = config(1, 6, Some(&KEY));
    let mut ids = QuicLbIds::new(config, &[1, 2]).unwrap();
    let own = ids.generate_cid();
    assert!(ids.validate(&own).is_ok());
    let mut other = QuicLbIds::new(config, &[1, 3]).unwrap();
    assert!(ids.validate(&other.generate_cid()).is_err(), "another server's");
    assert!(ids.validate(&ConnectionId::new(&own[..8])).is_err(), "too short");
    assert!(ids.validate(&ConnectionId::new(&[])).is_err());
    let mut turned = own.to_vec();
    turned[0] ^= 0x40;
    assert!(ids.validate(&ConnectionId::new(&turned)).is_err(), "another rotation");
}

#[test]
fn keys_are_changed_while_connections_live() {
    let mut ids = QuicLbIds::new(config(0, 6, Some(&KEY)), &[1, 2]).unwrap();
    let mut clone = ids.clone();
    let old = ids.generate_cid();
    ids.rotate(config(1, 6, Some(&[9; 16])), &[1, 2]).unwrap();
    let new = clone.generate_cid();
    assert_eq!(new[0] >> 5, 1, "clones follow");
    assert!(ids.validate(&old).is_ok() && ids.validate(&new).is_ok());
    // The first rotation is used again: what was made with its first key is nobody's any more.
    ids.rotate(config(0, 6, Some(&[8; 16])), &[1, 2]).unwrap();
    assert!(ids.validate(&new).is_ok() && ids.validate(&old).is_err());
    let longer = ids.rotate(config(2, 7, None), &[1, 2]).unwrap_err().to_string();
    assert!(
        longer.starts_with("the new configuration makes connection ids of 10 bytes, but those in use have 9")
    );
    let server = ids.rotate(config(2, 6, None), &[1]).unwrap_err().to_string();
    assert_eq!(server, "the server id has 1 bytes, but the configuration says 2");
    assert_eq!(ids.generate_cid()[0] >> 5, 0, "the present one stays");
}

/// The process ends and begins again, in the middle of what it had written down in advance.
#[test]
fn no_nonce_comes_twice_through_restarts() {
    let dir = tempfile::tempdir().unwrap();
    for key in [None, Some(&KEY)] {
        let config = config(0, 4, key);
        let mut seen = HashSet::new();
        for n in [1, 10, 5_000, 3] {
            let mut ids = QuicLbIds::durable(config, &[1, 2], dir.path()).unwrap();
            for _ in 0..n {
                assert!(seen.insert(ids.generate_cid().to_vec()));
            }
        }
        let ids = QuicLbIds::durable(config, &[1, 2], dir.path()).unwrap();
        assert_eq!(ids.left(), (1 << 32) - 5 * 4096, "four starts, and one that went on to a second lot");
    }
    for file in fs::read_dir(dir.path()).unwrap() {
        assert_eq!(file.unwrap().metadata().unwrap().mode() & 0o777, 0o600);
    }
}

#[test]
fn two_processes_do_not_share_a_server_id() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(0, 4, Some(&KEY));
    let first = QuicLbIds::durable(config, &[1, 2], dir.path()).unwrap();
    let taken = |server: &[u8]| QuicLbIds::durable(config, server, dir.path());
    assert!(matches!(taken(&[1, 2]), Err(QuicLbError::Taken(_))));
    assert!(taken(&[1, 3]).is_ok(), "another server's nonces are its own");
    drop(first);
    let again = taken(&[1, 2]);
    assert!(again.is_ok());
    let path = dir.path().join(fingerprint(&config, &[1, 2]));
    drop(again);
    fs::write(path, "torn").unwrap();
    assert!(matches!(taken(&[1, 2]), Err(QuicLbError::Unreadable(_))));
}

/// Of nonces that have run out, or cannot be written down, none is used again: ids name no server then.
#[test]
fn without_a_nonce_ids_are_unroutable() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(0, 4, Some(&KEY));
    drop(QuicLbIds::durable(config, &[1, 2], dir.path()).unwrap());
    let path = dir.path().join(fingerprint(&config, &[1, 2]));
    let secret = fs::read_to_string(&path).unwrap().split(' ').next().unwrap().to_owned();
    fs::write(&path, format!("{secret} {}", (1_u64 << 32) - 2)).unwrap();
    let mut ids = QuicLbIds::durable(config, &[1, 2], dir.path()).unwrap();
    assert_eq!(ids.left(), 2);
    let last: Vec<_> = (0..4).map(|_| ids.generate_cid()).collect();
    assert_eq!(last.iter().map(|id| id[0] >> 5).collect::<Vec<_>>(), [0, 0, 7, 7]);
    assert!(last[2] != last[3] && last[3].len() == 7 && last[3][0] & 31 == 6);
    assert!(ids.validate(&last[3]).is_ok());
    // A new key has nonces of its own.
    ids.rotate(self::config(1, 4, Some(&[1; 16])), &[1, 2]).unwrap();
    assert_eq!(ids.generate_cid()[0] >> 5, 1);
    assert_eq!(ids.left(), (1 << 32) - 1);
    // Its directory is gone when the nonces granted in advance have been used.
    fs::remove_dir_all(dir.path()).unwrap();
    let made: Vec<_> = (0..4096).map(|_| ids.generate_cid()[0] >> 5).collect();
    assert_eq!((made[4094], made[4095]), (1, 7));
}
