use super::*;
use proptest::prelude::*;
use std::os::unix::fs::PermissionsExt;

const ME: Owner = Owner { slot: 3, epoch: 9 };
const ID: SessionId = SessionId([7; 16]);

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

#[test]
fn made_once_then_read_again() {
    let directory = directory();
    let path = directory.path().join("new/keys.toml");
    let keys = TokenKeys::load_or_create(&path).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(TokenKeys::load_or_create(&path).unwrap(), keys);
    let names: Vec<_> =
        fs::read_dir(path.parent().unwrap()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["keys.toml"], "no temporary file is left");
}

#[test]
fn a_file_that_others_can_read_is_refused() {
    let directory = directory();
    let path = directory.path().join("keys");
    TokenKeys::load_or_create(&path).unwrap();
    for mode in [0o640, 0o604, 0o620, 0o666] {
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        let error = TokenKeys::load_or_create(&path).unwrap_err();
        assert!(matches!(error, KeysError::Mode { mode: m, .. } if m == mode), "{error}");
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}

#[test]
fn a_file_that_is_not_a_key_file_is_refused_and_stays() {
    let secret = "00112233445566778899aabbccddeeff";
    let rows = [
        ("", "missing field"),
        ("format = 2\nnewest = 0\nkey = []\n", "format 2"),
        ("format = 1\nnewest = 0\nkey = []\n", "none of that id"),
        (&format!("format = 1\nnewest = 16\n[[key]]\nid = 16\nsecret = \"{secret}\"\n"), "0 to 15"),
        (&format!("format = 1\nnewest = 1\n[[key]]\nid = 0\nsecret = \"{secret}\"\n"), "none of that id"),
        (
            "format = 1\nnewest = 0\n[[key]]\nid = 0\nsecret = \"+0112233445566778899aabbccddeeff\"\n",
            "digits",
        ),
        (
            &format!(
                "format = 1\nnewest = 0\n[[key]]\nid = 0\nsecret = \"{secret}\"\n[[key]]\nid = 0\nsecret = \"{secret}\"\n"
            ),
            "twice",
        ),
        (&format!("format = 1\nnewest = 0\n[[key]]\nid = 0\nsecret = \"{secret}\" x\n"), "line 5"),
    ];
    let directory = directory();
    let path = directory.path().join("keys");
    for (text, expected) in rows {
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let error = TokenKeys::load_or_create(&path).unwrap_err().to_string();
        assert!(error.contains(expected), "{text}: {error}");
        assert!(!error.contains("00112233"), "a secret is shown: {error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }
}

#[test]
fn rotation_keeps_what_sixteen_keys_signed() {
    let directory = directory();
    let path = directory.path().join("keys");
    let mut keys = TokenKeys::load_or_create(&path).unwrap();
    let texts: Vec<String> = (0..20)
        .map(|_| {
            let text = keys.sign(&keys.token(1, ME, ID)).unwrap();
            keys.rotate(&path).unwrap();
            text
        })
        .collect();
    // 20 rotations: the last 16 keys are those made by rotations 5 to 20; text n was signed with the key of rotation n.
    for (n, text) in texts.iter().enumerate() {
        assert_eq!(keys.verify(text.as_bytes()).is_ok(), n >= 5, "text {n}");
    }
    assert_eq!(keys.ids().len(), MAX_KEYS);
    assert_eq!(keys.ids()[0], 4);
    assert_eq!(TokenKeys::load(&path).unwrap(), keys);
    assert_eq!(keys.as_map().1, 0xffff);
}

#[test]
fn the_map_has_what_signs() {
    let keys = TokenKeys::generate().unwrap().rotated().unwrap();
    let (map, mask) = keys.as_map();
    assert_eq!(mask, 0b11);
    let token = keys.token(5, ME, ID);
    assert_eq!(token.key_id, 1);
    let raw = token::decode(keys.sign(&token).unwrap().as_bytes()).unwrap();
    assert_eq!(Token::verify(&raw, &map[1]), Ok(token));
}

#[test]
fn a_key_that_is_not_alive_is_named() {
    let keys = TokenKeys::generate().unwrap();
    let other = keys.rotated().unwrap();
    let text = other.sign(&other.token(1, ME, ID)).unwrap();
    assert_eq!(keys.verify(text.as_bytes()), Err(TokenError::UnknownKey(1)));
    assert_eq!(keys.sign(&other.token(1, ME, ID)), None);
}

#[test]
fn debug_shows_no_secret() {
    assert_eq!(format!("{:?}", TokenKeys::generate().unwrap()), "TokenKeys { ids: [0], .. }");
}

proptest! {
    #[test]
    fn the_file_says_all(rotations in 0usize..20) {
        let mut keys = TokenKeys::generate().unwrap();
        for _ in 0..rotations {
            keys = keys.rotated().unwrap();
        }
        prop_assert!(TokenKeys::from_text(&keys.to_text()) == Ok(keys));
    }

    #[test]
    fn no_text_is_a_token_by_accident(text: Vec<u8>) {
        prop_assert!(TokenKeys::generate().unwrap().verify(&text).is_err());
    }
}

#[test]
fn a_prepared_key_verifies_first_and_signs_after_the_next_rotation() {
    let directory = directory();
    let path = directory.path().join("keys");
    let here = TokenKeys::load_or_create(&path).unwrap();
    let prepared = here.prepared().unwrap();
    assert_eq!((prepared.next(), prepared.ids().len()), (Some(1), 2));
    assert_eq!(prepared.prepared().unwrap(), prepared, "one is enough");
    assert_eq!(prepared.token(1, ME, ID).key_id, 0, "it does not sign yet");
    prepared.store(&path).unwrap();
    // Another host reads the same file; whoever rotates first, the other one verifies.
    let there = TokenKeys::load(&path).unwrap();
    assert_eq!(there, prepared);
    let rotated = prepared.rotated().unwrap();
    let token = rotated.token(1, ME, ID);
    assert_eq!((token.key_id, rotated.next()), (1, None));
    assert_eq!(there.verify(rotated.sign(&token).unwrap().as_bytes()).unwrap(), token);
    assert_eq!(there.rotated().unwrap(), rotated, "both come to the same keys");
}

#[test]
fn a_next_key_that_is_not_there_is_refused() {
    let secret = "00112233445566778899aabbccddeeff";
    let directory = directory();
    let path = directory.path().join("keys");
    for next in [0, 1, 99] {
        let text = format!("format = 1\nnewest = 0\nnext = {next}\n[[key]]\nid = 0\nsecret = \"{secret}\"\n");
        write(&path, &text, |temporary| fs::rename(temporary, &path)).unwrap();
        let error = TokenKeys::load(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("the next key is said to be {next}")), "{error}");
    }
}

#[test]
fn keys_that_are_lost_are_named() {
    let here = TokenKeys::generate().unwrap();
    let rotated = here.rotated().unwrap();
    assert!(rotated.lost(&here).is_empty());
    assert_eq!(here.lost(&rotated), [1]);
    assert_eq!(TokenKeys::generate().unwrap().lost(&rotated), [1, 0], "another secret is another key");
}
