use super::*;
use proptest::prelude::*;

const DAY: u64 = MAX_AGE.as_millis() as u64;

fn state(key: &str, len: usize) -> State {
    let mut state = State::default();
    state.set_as(key, &"x".repeat(len)).unwrap();
    state
}

fn once(n: u32) -> Once {
    Once::new(&n.to_be_bytes(), &[b"POST", b"/", b""], None)
}

/// The version that a receipt names, if there is one for this change.
fn made(receipts: &Receipts, once: &Once, now: u64) -> Option<u64> {
    match receipts.seen(once, now)? {
        Seen::Made(receipt) => Some(receipt.version),
        Seen::Other => panic!("the same request"),
    }
}

#[test]
fn a_change_is_known_by_its_key_and_is_that_change_only() {
    let change = |key: &str, parts: &[&[u8]]| Once::new(key.as_bytes(), parts, None);
    let receipts =
        Receipts::default().with(&change("k", &[b"POST", b"/a", b"1"]), 0, 2, false, &state("a", 3));
    assert_eq!(made(&receipts, &change("k", &[b"POST", b"/a", b"1"]), 0), Some(2));
    assert_eq!(receipts.seen(&change("K", &[b"POST", b"/a", b"1"]), 0), None);
    for other in [&[b"POST".as_slice(), b"/a", b"2"], &[b"POST", b"/", b"a1"], &[b"POST/a", b"", b"1"]] {
        assert_eq!(receipts.seen(&change("k", other), 0), Some(Seen::Other), "{other:?}");
    }
}

#[test]
fn a_receipt_is_good_for_a_day_and_then_makes_room() {
    let receipts = Receipts::default().with(&once(1), 1000, 2, false, &state("a", 3));
    assert_eq!(made(&receipts, &once(1), 1000 + DAY - 1), Some(2));
    assert_eq!(receipts.seen(&once(1), 1000 + DAY), None);
    assert_eq!(made(&receipts, &once(1), 0), Some(2), "the clock of another server");
    assert_eq!(receipts.with(&once(2), 1000 + DAY, 3, false, &state("a", 3)).len(), 1);
    // A key that is used again after its day is a new one.
    let again = receipts.with(&once(1), 1000 + DAY, 9, false, &state("a", 3));
    assert_eq!(made(&again, &once(1), 1000 + DAY), Some(9));
}

#[test]
fn what_the_answer_showed_is_kept_as_it_was() {
    let mut both = state("cart", 3);
    both.set_as("other", &1).unwrap();
    for (shows, expected) in
        [(None, both.clone()), (Some("cart"), state("cart", 3)), (Some("no"), State::default())]
    {
        let once = Once::new(b"k", &[], shows);
        let receipts = Receipts::default().with(&once, 0, 2, true, &both);
        let Some(Seen::Made(receipt)) = receipts.seen(&once, 0) else { panic!("no receipt") };
        assert_eq!((receipt.state(), receipt.created), (Some(expected), true));
    }
    let receipts = Receipts::default().with(&once(1), 0, 2, false, &state("a", MAX_SHOWN_BYTES));
    let Some(Seen::Made(receipt)) = receipts.seen(&once(1), 0) else { panic!("no receipt") };
    assert_eq!(receipt.state(), None, "too large");
}

#[test]
fn what_is_not_whole_is_noticed() {
    let receipts = Receipts::default().with(&once(1), 5, 2, true, &state("a", 3)).with(
        &once(2),
        6,
        3,
        false,
        &state("a", MAX_SHOWN_BYTES),
    );
    let mut bytes = Vec::new();
    receipts.encode(&mut bytes);
    assert_eq!(bytes.len(), receipts.bytes());
    assert_eq!(Receipts::decode(&bytes), Some(receipts.clone()));
    let first = receipts.0[0].bytes();
    for end in (1..bytes.len()).filter(|end| *end != first) {
        assert_eq!(Receipts::decode(&bytes[..end]), None, "{end} bytes");
    }
    bytes[48] = 4;
    assert_eq!(Receipts::decode(&bytes), None, "an unknown flag");
}

proptest! {
    #[test]
    fn the_latest_are_there_and_all_bounds_hold(
        changes in proptest::collection::vec((0usize..6000, 0..DAY / 20), 1..100),
    ) {
        let mut receipts = Receipts::default();
        let mut now = 0;
        for (n, (len, later)) in changes.iter().enumerate() {
            now += later;
            receipts = receipts.with(&once(n as u32), now, n as u64, false, &state("a", *len));
            prop_assert!(receipts.len() <= MAX_RECEIPTS && receipts.bytes() <= MAX_BYTES);
            let mut bytes = Vec::new();
            receipts.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), receipts.bytes());
            prop_assert_eq!(Receipts::decode(&bytes), Some(receipts.clone()));
            let text = serde_json::to_string(&receipts).unwrap();
            prop_assert_eq!(serde_json::from_str::<Receipts>(&text).unwrap(), receipts.clone());
        }
        let mut at = now;
        for (back, (n, (len, later))) in changes.iter().enumerate().rev().enumerate() {
            let found = receipts.seen(&once(n as u32), now);
            prop_assert_eq!(found.is_some(), back < MAX_RECEIPTS && now - at < DAY, "{} back", back);
            if back == 0 {
                let Some(Seen::Made(receipt)) = found else { panic!("no receipt") };
                prop_assert_eq!(receipt.state(), (len + 8 <= MAX_SHOWN_BYTES).then(|| state("a", *len)));
            }
            at -= later;
        }
    }

    #[test]
    fn arbitrary_bytes_never_panic(bytes: Vec<u8>) {
        let _ = Receipts::decode(&bytes);
    }
}
