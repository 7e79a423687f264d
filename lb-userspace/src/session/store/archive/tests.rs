use super::*;
use crate::session::receipts::Once;
use crate::session::store::sled::SledOptions;
use crate::session::{Instance, Limits, MemoryStore, Peers, Sessions, SledStore, Source};
use lb_common::token::Token;
use std::sync::Arc;
use tokio::sync::watch;

const NOW: u64 = 1_000_000;
const LATER: u64 = NOW + 60_000;

fn id(n: u8) -> SessionId {
    SessionId([n; 16])
}

fn record(service: u16, text: &str) -> Record {
    let mut state = State::default();
    state.set("k", State::parse_value(text.as_bytes()).unwrap());
    let owner = Owner { slot: 1, epoch: 5 };
    Record {
        version: 3,
        revision: 9,
        service,
        owner,
        created: NOW - 5,
        expires: LATER,
        receipts: Receipts::default(),
        state,
    }
}

/// A store with two services, `shop` with id 1 and `api` with id 2.
async fn store() -> MemoryStore {
    let store = MemoryStore::new();
    for service in ["shop", "api"] {
        store.service_id(service).await.unwrap();
        let slot = store.slot(service, "s1").await.unwrap();
        for _ in 0..=slot {
            store.next_epoch(slot).await.unwrap();
        }
    }
    store
}

async fn lines(store: &dyn SessionStore) -> Vec<(u64, String)> {
    let mut lines = Vec::new();
    let mut from = None;
    loop {
        let exported = export(store, from, NOW).await.unwrap();
        assert_eq!(exported.damaged, []);
        lines.extend(exported.lines);
        from = exported.next;
        if from.is_none() {
            return lines.into_iter().enumerate().map(|(n, line)| (n as u64 + 2, line)).collect();
        }
    }
}

fn how(replace: bool) -> Import {
    Import { services: [("shop".to_owned(), 1), ("api".to_owned(), 2)].into(), replace }
}

async fn all(store: &dyn SessionStore) -> Vec<(SessionId, Record)> {
    let found = store.scan(None, 10_000).await.unwrap();
    found.entries.into_iter().map(|entry| (entry.id.unwrap(), entry.record.unwrap())).collect()
}

/// As it is in another store: owned by nobody, and at its first revision there.
fn moved(record: &Record) -> Record {
    Record { revision: 1, owner: Owner::UNSETTLED, ..record.clone() }
}

#[tokio::test]
async fn everything_moves_to_an_empty_store() {
    let from = store().await;
    let odd = [
        (1, "1"),
        (2, "12345678901234567890.1234567890123456789e-7"),
        (1, "\"\\u0000 \\n \u{1f980} \\\"\""),
        (2, "{\n  \"several\":\r\n [1,\n2]}"),
        (1, "null"),
    ];
    for n in 0..250 {
        let (service, text) = odd[usize::from(n) % odd.len()];
        from.save(id(n), &record(service, text), None).await.unwrap();
    }
    from.save(id(254), &Record { expires: NOW, ..record(1, "0") }, None).await.unwrap();
    let lines = lines(&from).await;
    assert_eq!(lines.len(), 250, "what has expired does not move");
    assert!(lines.iter().all(|(_, line)| !line.contains(['\n', '\r'])));
    let to = MemoryStore::new();
    to.adopt(from.given().await.unwrap()).await.unwrap();
    let imported = import(&to, None, lines, &how(false), NOW).await;
    assert_eq!(imported, Imported { new: 250, ..Imported::default() });
    let meaning = |record: &Record| serde_json::to_value(&record.state).unwrap();
    for ((id, record), (other, found)) in all(&from).await.iter().zip(all(&to).await) {
        assert_eq!((*id, meaning(record)), (other, meaning(&found)));
        assert_eq!(found, Record { state: found.state.clone(), ..moved(record) });
    }
    assert_eq!(to.given().await.unwrap(), from.given().await.unwrap());
    assert_eq!(to.next_epoch(1).await.unwrap(), 3, "an instance of the other store is never one here");
}

/// A client that repeats a request after the move does not buy twice.
#[tokio::test]
async fn receipts_move_with_their_session() {
    let from = store().await;
    let once = Once::new(b"key", &[b"buy"], None);
    let plain = record(1, "1");
    let receipts = plain.receipts.with(&once, NOW, 3, true, &plain.state);
    from.save(id(1), &Record { receipts: receipts.clone(), ..plain }, None).await.unwrap();
    let to = store().await;
    let imported = import(&to, None, lines(&from).await, &how(false), NOW).await;
    assert_eq!(imported.new, 1, "{imported:?}");
    assert_eq!(to.load(id(1)).await.unwrap().unwrap().receipts, receipts);
}

#[tokio::test]
async fn digits_stay_what_they_were() {
    let text = "[12345678901234567890123, 0.10, 1E+2]";
    let from = store().await;
    from.save(id(1), &record(1, text), None).await.unwrap();
    let to = store().await;
    import(&to, None, lines(&from).await, &how(false), NOW).await;
    let found = to.load(id(1)).await.unwrap().unwrap();
    assert_eq!(found.state.get("k").unwrap().get(), text);
}

#[tokio::test]
async fn a_line_that_is_wrong_is_named_and_changes_nothing() {
    let from = store().await;
    from.save(id(1), &record(1, "1"), None).await.unwrap();
    let (_, good) = lines(&from).await.remove(0);
    let large = format!("\"{}\"", "x".repeat(MAX_STATE_BYTES));
    let deep = format!("{}{}", "[".repeat(200), "]".repeat(200));
    let hex = id(1).to_string();
    let rows = [
        ("{", "", "it is no session: EOF while parsing"),
        (&good[..], "[]", "it is no session: invalid"),
        ("\"version\":3", "\"version\":-3", "it is no session: invalid value: integer `-3`"),
        ("\"version\":3", "\"version\":0", "its version is 0"),
        ("\"version\":3,", "", "it is no session: missing field `version`"),
        ("\"version\":3", "\"version\":3,\"more\":1", "it is no session: unknown field `more`"),
        (&hex, &hex[1..], "is not 32 hexadecimal digits"),
        (&hex, "x", "its id \"x\" is not 32 hexadecimal digits"),
        ("\"service_id\":1", "\"service_id\":2", "service shop has id 1 in the first line, and 2 here"),
        (
            "\"expires_unix_ms\":1060000",
            "\"expires_unix_ms\":7",
            "it expires at 7, and was created at 999995",
        ),
        ("{\"k\":1}", "[1]", "it is no session: invalid type"),
        ("{\"k\":1}", &format!("{{\"k\":{large}}}"), "its state has 65539 bytes, more than 65536"),
        ("{\"k\":1}", &format!("{{\"k\":{deep}}}"), "its value of \"k\" cannot be used: recursion limit"),
        ("\"k\":1}", "\"k\":1}} trailing", "it is no session: trailing characters"),
    ];
    let to = store().await;
    for (n, (what, instead, reason)) in rows.into_iter().enumerate() {
        let text = if what == "{" { "{".to_owned() } else { good.replacen(what, instead, 1) };
        assert_ne!(text, good);
        let imported = import(&to, None, vec![(n as u64, text)], &how(true), NOW).await;
        let [(number, told)] = &imported.refused[..] else { panic!("{reason}: {imported:?}") };
        assert!(*number == n as u64 && told.contains(reason), "{told}");
        assert_eq!(imported, Imported { refused: imported.refused.clone(), ..Imported::default() });
    }
    assert_eq!(to.count().await.unwrap(), 0);
    // The lines around a wrong one are imported.
    let other = good.replacen(&hex, &id(2).to_string(), 1);
    let lines = vec![(2, good), (3, "rubbish".to_owned()), (4, other)];
    let imported = import(&to, None, lines, &how(false), NOW).await;
    assert_eq!((imported.new, imported.refused.len(), imported.refused[0].0), (2, 1, 3));
}

#[tokio::test]
async fn what_is_here_already_stays_or_is_replaced() {
    let from = store().await;
    for n in [1, 2, 3] {
        from.save(id(n), &record(1, "\"there\""), None).await.unwrap();
    }
    let to = store().await;
    let here = Record { version: 7, revision: 7, ..record(1, "\"here\"") };
    to.save(id(1), &Record { version: 1, revision: 1, ..here.clone() }, None).await.unwrap();
    to.save(id(1), &Record { version: 7, revision: 2, ..here.clone() }, Some(1)).await.unwrap();
    to.save(id(2), &Record { revision: 1, expires: NOW, ..here.clone() }, None).await.unwrap();
    let lines = lines(&from).await;
    let imported = import(&to, None, lines.clone(), &how(false), NOW).await;
    assert_eq!(imported, Imported { new: 1, replaced: 1, present: 1, ..Imported::default() });
    let found = to.load(id(1)).await.unwrap().unwrap();
    assert_eq!((found.state.clone(), found.version), (here.state, 7));
    let imported = import(&to, None, lines.clone(), &how(true), NOW).await;
    assert_eq!(imported, Imported { replaced: 3, ..Imported::default() });
    let found = to.load(id(1)).await.unwrap().unwrap();
    assert_eq!(found.state.get("k").unwrap().get(), "\"there\"");
    assert_eq!(
        (found.version, found.revision, found.owner),
        (8, 3, Owner::UNSETTLED),
        "no ETag means two states"
    );
    // Later, all of them have expired.
    let imported = import(&to, None, lines, &how(true), LATER).await;
    assert_eq!(imported, Imported { expired: 3, ..Imported::default() });
}

#[tokio::test]
async fn sessions_of_other_services_are_told_by_name() {
    let from = store().await;
    for n in 0..5 {
        from.save(id(n), &record(1 + u16::from(n % 2), "1"), None).await.unwrap();
    }
    let only = Import { services: [("shop".to_owned(), 1)].into(), replace: false };
    let imported = import(&store().await, None, lines(&from).await, &only, NOW).await;
    assert_eq!(imported, Imported { new: 3, unknown: [("api".to_owned(), 2)].into(), ..Imported::default() });
}

#[tokio::test]
async fn a_store_that_takes_no_more_ends_the_import_and_it_can_be_done_again() {
    let from = store().await;
    for n in 0..9 {
        from.save(id(n), &record(1, "1"), None).await.unwrap();
    }
    let lines = lines(&from).await;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let to = SledStore::open(&path).unwrap();
    to.adopt(from.given().await.unwrap()).await.unwrap();
    import(&to, None, lines[..4].to_vec(), &how(false), NOW).await;
    drop(to);
    let full = SledOptions { reserve_bytes: u64::MAX, ..SledOptions::default() };
    let to = SledStore::open_with(&path, full).unwrap();
    let imported = import(&to, None, lines[4..].to_vec(), &how(false), NOW).await;
    let failed = imported.failed.unwrap();
    assert!(failed.starts_with("line 6: no space left for "), "{failed}");
    assert_eq!(export(&to, None, NOW).await.unwrap().lines.len(), 4, "reading goes on");
    drop(to);
    let to = SledStore::open(&path).unwrap();
    let imported = import(&to, None, lines, &how(false), NOW).await;
    assert_eq!(imported, Imported { new: 5, present: 4, ..Imported::default() });
}

/// The tokens that clients have name instances of the other store.
#[tokio::test]
async fn old_tokens_find_their_sessions_in_the_other_store() {
    let from = store().await;
    from.save(id(1), &record(1, "\"moved\""), None).await.unwrap();
    let to: Arc<dyn SessionStore> = Arc::new(MemoryStore::new());
    to.adopt(from.given().await.unwrap()).await.unwrap();
    import(&*to, None, lines(&from).await, &how(false), NOW).await;
    let owner = from.load(id(1)).await.unwrap().unwrap().owner;
    let token = Token { key_id: 0, service: 1, slot: owner.slot, epoch: owner.epoch, session: id(1) };
    // Even where an instance here has the very number of the one there.
    for epoch in [owner.epoch, 77] {
        let instance = Instance { service: 1, slot: owner.slot, epoch, name: "s1".into() };
        let (_held, instance) = watch::channel(instance);
        let sessions =
            Sessions::new(instance, to.clone(), Limits::default(), Arc::default(), Arc::new(|| NOW));
        let seen = sessions.read(Some(token)).await.unwrap();
        assert_eq!((seen.id, seen.source), (id(1), Source::Database));
        assert_eq!(seen.record.state.get("k").unwrap().get(), "\"moved\"");
    }
}

#[tokio::test]
async fn a_replaced_session_is_not_answered_from_memory() {
    let there = store().await;
    there.save(id(1), &record(1, "\"imported\""), None).await.unwrap();
    let here: Arc<dyn SessionStore> = Arc::new(store().await);
    let instance = Instance { service: 1, slot: 0, epoch: 1, name: "s1".into() };
    let owner = instance.owner();
    here.save(id(1), &Record { owner, revision: 1, ..record(1, "\"before\"") }, None).await.unwrap();
    let (_held, instance) = watch::channel(instance);
    let peers: Arc<Peers> = Arc::default();
    let sessions = Sessions::new(instance, here.clone(), Limits::default(), peers.clone(), Arc::new(|| NOW));
    let token = Token { key_id: 0, service: 1, slot: 0, epoch: 1, session: id(1) };
    for source in [Source::Database, Source::Cache] {
        assert_eq!(sessions.read(Some(token)).await.unwrap().source, source);
    }
    import(&*here, Some(&*peers), lines(&there).await, &how(true), NOW).await;
    let seen = sessions.read(Some(token)).await.unwrap();
    assert_eq!(seen.source, Source::Database);
    assert_eq!(seen.record.state.get("k").unwrap().get(), "\"imported\"");
}

#[test]
fn first_lines_are_told_from_others() {
    let header = Header::new(Given::default(), "sled /x".into(), 7);
    let line = to_line(&header);
    assert_eq!(Header::parse(&line), Ok(header));
    let end = to_line(&End { sessions: 3 });
    assert_eq!((Header::parse_end(&end), Header::parse_end(&line)), (Some(End { sessions: 3 }), None));
    for (text, reason) in [
        ("{}", "this is no export of sessions: its first line should say what it is"),
        ("rubbish", "this is no export of sessions: its first line should say what it is"),
        (&end, "this is no export of sessions: its first line should say what it is"),
        (
            &line.replace("\"version\":1", "\"version\":2"),
            "the file has version 2, this lbctl reads version 1: use the lbctl that wrote it",
        ),
    ] {
        assert_eq!(Header::parse(text), Err(reason.to_owned()), "{text}");
    }
    let damaged = Header::parse(&line.replace("given", "taken")).unwrap_err();
    assert!(damaged.starts_with("the first line is damaged: unknown field `taken`"), "{damaged}");
}
