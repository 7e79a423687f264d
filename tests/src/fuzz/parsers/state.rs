//! Sessions, as stores and archives hold them.

use anyhow::{Context, Result, ensure};
use futures::executor::block_on;
use lb_userspace::session::record::Head;
use lb_userspace::session::store::archive::{self, Header, Import};
use lb_userspace::session::store::{redis, sled};
use lb_userspace::session::{MemoryStore, Record, SessionStore, Tag};

/// Bytes of a record before its receipts; behind format and checksum begins what that is about.
const SUMMED: usize = 5;

pub(super) const ARCHIVE_WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\n",
    "\"format\":\"lb-sessions\"",
    "\"version\":1",
    "\"given\":",
    "\"services\":",
    "\"slots\":",
    "\"epochs\":",
    "\"id\":",
    "\"service\":\"shop\"",
    "\"service_id\":1",
    "\"revision\":",
    "\"owner\":",
    "\"created_unix_ms\":",
    "\"expires_unix_ms\":",
    "\"receipts\":",
    "\"state\":",
    "\"sessions\":",
    "18446744073709551615",
    "1e400",
    "\\u0000",
    "\\ud800",
    "null",
];

pub(super) fn record(input: &[u8]) -> Result<()> {
    whole(input)?;
    // Behind its checksum the rest is looked at, too.
    if let Some(rest) = input.get(SUMMED..) {
        let mut summed = vec![2];
        summed.extend(checksum(rest).to_be_bytes());
        summed.extend(rest);
        whole(&summed)?;
        beside(rest, &summed)?;
    }
    for (name, again) in
        [("tally", sled::fuzzing::tally(input)), ("mark of time", sled::fuzzing::mark(input))]
    {
        ensure!(again.is_none_or(|again| again == input), "a {name} is written as another");
    }
    ensure!(
        redis::fuzzing::message(input).is_none_or(|again| again == input),
        "a message is written as another"
    );
    if let Ok(text) = std::str::from_utf8(input)
        && let Some(cursor) = redis::fuzzing::cursor(text)
    {
        ensure!(redis::fuzzing::cursor(&cursor) == Some(cursor.clone()), "{text} became {cursor}");
    }
    if let Some(tag) = Tag::parse(input) {
        ensure!(tag.to_string().as_bytes() == input, "{tag} is written in two ways");
    }
    Ok(())
}

fn whole(bytes: &[u8]) -> Result<()> {
    let Ok(record) = Record::decode(bytes) else { return Ok(()) };
    let head = Head::read(bytes).context("a record without a head")?;
    ensure!((head.version, head.revision) == (record.version, record.revision), "head and record differ");
    let again = Record::decode(&record.encode()).context("what was encoded is damaged")?;
    ensure!(again == record, "{record:?} became {again:?}");
    ensure!(record.weight() >= record.state.bytes(), "a copy weighs less than its state");
    Ok(())
}

/// As Redis has it: a stamp with a checksum of its own, and holders.
fn beside(rest: &[u8], record: &[u8]) -> Result<()> {
    let Some((stamp, holders)) = rest.split_at_checked(22) else { return Ok(()) };
    let mut meta = vec![7; 16];
    meta.extend(stamp);
    meta.extend(checksum(stamp).to_be_bytes());
    meta.extend([0; 6]);
    meta.extend(holders);
    let found = redis::fuzzing::holders(&meta);
    ensure!(
        found.is_ok() == holders.len().is_multiple_of(8),
        "{} bytes of holders: {found:?}",
        holders.len()
    );
    if let Ok(session) = redis::fuzzing::session(&meta, record) {
        ensure!(
            session.revision.to_be_bytes() == stamp[..8],
            "a revision that is not that of the last change"
        );
    }
    Ok(())
}

/// CRC-32 (IEEE 802.3), bit by bit.
fn checksum(bytes: &[u8]) -> u32 {
    let step = |crc: u32| crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
    !bytes.iter().fold(!0, |crc: u32, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| step(crc)))
}

pub(super) fn archive(input: &[u8]) -> Result<()> {
    let Ok(text) = std::str::from_utf8(input) else { return Ok(()) };
    let lines: Vec<&str> = text.lines().filter(|line| line.len() <= archive::MAX_LINE).collect();
    for line in &lines {
        if let Ok(header) = Header::parse(line) {
            let again = Header::parse(&archive::to_line(&header)).map_err(anyhow::Error::msg)?;
            ensure!(again == header, "{header:?} became {again:?}");
        }
        if let Some(end) = Header::parse_end(line) {
            ensure!(Header::parse_end(&archive::to_line(&end)) == Some(end), "{end:?} is not read back");
        }
    }
    block_on(moved(&lines))
}

/// What was imported is exported, and that imported into another store is the same there.
async fn moved(lines: &[&str]) -> Result<()> {
    let (first, exported) = imported(lines.iter().map(|line| (*line).to_owned()).collect()).await?;
    let told = first.new + first.present + first.expired + first.unknown.values().sum::<u64>();
    ensure!(
        told + first.refused.len() as u64 == lines.len() as u64,
        "{} lines, told of: {first:?}",
        lines.len()
    );
    ensure!(first.failed.is_none() && first.replaced == 0, "{first:?}");
    ensure!(exported.len() as u64 == first.new, "{} of {} sessions are exported", exported.len(), first.new);
    let (second, again) = imported(exported.clone()).await?;
    ensure!(second.new == first.new, "of {} exported sessions {second:?}", first.new);
    ensure!(again == exported, "{exported:?} became {again:?}");
    Ok(())
}

/// Imports lines into an empty store at the time 0, and exports all.
async fn imported(lines: Vec<String>) -> Result<(archive::Imported, Vec<String>)> {
    let store = MemoryStore::new();
    let id = store.service_id("shop").await?;
    let how = Import { services: [("shop".to_owned(), id)].into(), replace: false };
    let numbered = lines.into_iter().enumerate().map(|(n, line)| (n as u64 + 1, line)).collect();
    let done = archive::import(&store, None, numbered, &how, 0).await;
    let (mut lines, mut from) = (Vec::new(), None);
    loop {
        let step = archive::export(&store, from, 0).await?;
        ensure!(step.damaged.is_empty(), "{:?}", step.damaged);
        lines.extend(step.lines);
        from = step.next;
        if from.is_none() {
            return Ok((done, lines));
        }
    }
}
