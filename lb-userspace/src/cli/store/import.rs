//! `lbctl store import`

use super::{Door, Failure, Place, as_json, misunderstood, open, progress};
use crate::cli::table::{count, number};
use crate::cli::{DONE, Lbd, REFUSED, Said};
use crate::control::{Response, StoreRequest};
use crate::session::Given;
use crate::session::store::archive::{Header, Import, Imported, MAX_LINE};
use indicatif::ProgressBar;
use serde::Serialize;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

/// Lines, and bytes of them, that one step imports.
const STEP: (usize, usize) = (256, 1 << 20);

/// What becomes of a service's sessions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::cli) struct Renaming {
    old: String,
    /// `None`: they are left out.
    new: Option<String>,
}

pub(in crate::cli) fn renaming(text: &str) -> Result<Renaming, String> {
    match text.split_once('=') {
        Some((old, new)) if !old.is_empty() => {
            Ok(Renaming { old: old.to_owned(), new: (!new.is_empty()).then(|| new.to_owned()) })
        }
        _ => Err("write OLD=NEW, or OLD= to leave its sessions out".to_owned()),
    }
}

#[derive(Serialize)]
struct Done {
    #[serde(flatten)]
    imported: Imported,
    /// Whether the file had its last line.
    complete: bool,
}

pub(super) async fn run(
    file: &Path,
    replace: bool,
    renamings: &[Renaming],
    place: &Place,
    lbd: Lbd<'_>,
    json: bool,
) -> Result<Said, Failure> {
    let mut source = Source::open(file)?;
    let header = match source.line()? {
        Some((_, line)) => Header::parse(&line).map_err(|reason| source.refuse(1, &reason))?,
        None => return Err(Failure::Refused(format!("{} is empty", source.name))),
    };
    // Looked at before a store is opened, or made.
    let door = open(place, lbd, true).await?;
    let view = door.look().await?;
    let known = door.services().await?;
    let plan = plan(&header.given, renamings, known.as_deref()).map_err(Failure::Refused)?;
    door.step(StoreRequest::Adopt { given: plan.adopt }).await?;
    let how = Import { services: plan.services, replace };
    let (mut imported, complete) = fill(&door, &mut source, &how).await?;
    for service in plan.left_out {
        imported.unknown.remove(&service);
    }
    let troubled = !complete
        || imported.failed.is_some()
        || !imported.refused.is_empty()
        || !imported.unknown.is_empty();
    let code = if troubled { REFUSED } else { DONE };
    if json {
        return Ok(Said { out: as_json(&Done { imported, complete }), err: String::new(), code });
    }
    Ok(Said {
        out: summary(&imported, &view.state.place),
        err: troubles(&imported, complete, &source.name),
        code,
    })
}

/// What of a file fits here.
#[derive(Debug)]
struct Plan {
    adopt: Given,
    /// Names as in the file, and ids.
    services: BTreeMap<String, u16>,
    left_out: Vec<String>,
}

fn plan(given: &Given, renamings: &[Renaming], known: Option<&[String]>) -> Result<Plan, String> {
    let list = |names: &mut dyn Iterator<Item = &String>| names.cloned().collect::<Vec<_>>().join(", ");
    for Renaming { old, .. } in renamings {
        if !given.services.contains_key(old) {
            let there = list(&mut given.services.keys());
            return Err(format!("the file has no service `{old}`\nit has: {there}"));
        }
    }
    let here = |old: &str| {
        let renamed = renamings.iter().rev().find(|renaming| renaming.old == old);
        let new = renamed.map_or_else(|| Some(old.to_owned()), |renaming| renaming.new.clone())?;
        known.is_none_or(|known| known.contains(&new)).then_some(new)
    };
    let mut plan = Plan {
        adopt: Given { epochs: given.epochs.clone(), ..Given::default() },
        services: BTreeMap::new(),
        left_out: renamings.iter().filter(|r| r.new.is_none()).map(|r| r.old.clone()).collect(),
    };
    for (old, id) in &given.services {
        let Some(new) = here(old) else { continue };
        if plan.adopt.services.insert(new.clone(), *id).is_some() {
            return Err(format!("two services of the file would become `{new}`, and their tokens differ"));
        }
        plan.services.insert(old.clone(), *id);
    }
    if plan.services.is_empty() && plan.left_out.len() < given.services.len() {
        let there = list(&mut given.services.keys());
        let here = known.map_or_else(String::new, |known| list(&mut known.iter()));
        return Err(format!(
            "no service of the file is configured here: it has {there}, here is {here}\n--service OLD=NEW imports the \
             sessions of OLD as those of NEW"
        ));
    }
    let slots =
        given.slots.iter().filter_map(|(old, backend, slot)| Some((here(old)?, backend.clone(), *slot)));
    plan.adopt.slots = slots.collect();
    Ok(plan)
}

/// Imports all lines. Says whether the file was complete.
async fn fill(door: &Door<'_>, source: &mut Source, how: &Import) -> Result<(Imported, bool), Failure> {
    let mut all = Imported::default();
    let mut lines = 0;
    let mut end = None;
    let mut batch: Vec<(u64, String)> = Vec::new();
    let bar = source.bar.clone();
    loop {
        let line = source.line()?;
        let more = line.is_some();
        if let Some((number, text)) = line {
            match (end, Header::parse_end(&text)) {
                (None, Some(found)) => end = Some(found),
                (None, None) => {
                    lines += 1;
                    batch.push((number, text));
                }
                (Some(_), _) => all.refused.push((number, "it stands behind the last line".to_owned())),
            }
        }
        let bytes: usize = batch.iter().map(|(_, text)| text.len()).sum();
        if !batch.is_empty() && (!more || batch.len() >= STEP.0 || bytes >= STEP.1) {
            let step = StoreRequest::Import { lines: std::mem::take(&mut batch), how: how.clone() };
            match door.step(step).await? {
                Response::StoreImported(imported) => all.add(imported),
                other => return Err(misunderstood(&other)),
            }
        }
        if !more || all.failed.is_some() {
            break;
        }
    }
    bar.finish_and_clear();
    // What the store refused to go on with says nothing about the file.
    let complete = all.failed.is_some() || end.is_some_and(|end| end.sessions == lines);
    Ok((all, complete))
}

fn summary(imported: &Imported, place: &str) -> String {
    let Imported { new, replaced, present, expired, .. } = imported;
    let mut text = format!("imported {} into {place}", count(*new, "session", "sessions"));
    if *replaced > 0 {
        text += &format!("; {} replaced", number(*replaced));
    }
    if *present > 0 {
        text += &format!("; {} there already and left as they are (--replace)", number(*present));
    }
    if *expired > 0 {
        text += &format!("; {} had expired", number(*expired));
    }
    text + "\n"
}

fn troubles(imported: &Imported, complete: bool, file: &str) -> String {
    /// Of each kind: a file that is wrong throughout needs no more.
    const SHOWN: usize = 20;
    let mut text: String = imported
        .refused
        .iter()
        .take(SHOWN)
        .map(|(number, reason)| format!("{file}:{number}: {reason}\n"))
        .collect();
    if imported.refused.len() > SHOWN {
        text += &format!(
            "and {} more lines; --json lists all\n",
            number((imported.refused.len() - SHOWN) as u64)
        );
    }
    for (service, lines) in &imported.unknown {
        let lines = count(*lines, "session was", "sessions were");
        text += &format!(
            "lbctl: {lines} not imported: service `{service}` is not known here; --service {service}=NAME imports them as \
             those of NAME, --service {service}= leaves them out\n"
        );
    }
    if let Some(reason) = &imported.failed {
        text += &format!(
            "lbctl: the store took no more: {reason}\nimport the file again then: what is there already is left as it is\n"
        );
    }
    if !complete {
        text += &format!("lbctl: {file} was cut off: its last line does not say how many sessions it has\n");
    }
    text
}

/// Lines of a file.
struct Source {
    reader: Box<dyn BufRead>,
    name: String,
    number: u64,
    bar: ProgressBar,
}

impl Source {
    fn open(path: &Path) -> Result<Self, Failure> {
        let (reader, length): (Box<dyn BufRead>, _) = if path == Path::new("-") {
            (Box::new(BufReader::new(io::stdin())), None)
        } else {
            let failed = |error: io::Error| Failure::of("cannot read", path, &error);
            let file = File::open(path).map_err(failed)?;
            let metadata = file.metadata().map_err(failed)?;
            (Box::new(BufReader::new(file)), metadata.is_file().then_some(metadata.len()))
        };
        let name =
            if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
        Ok(Self { reader, name, number: 0, bar: progress(length, "bytes") })
    }

    fn refuse(&self, number: u64, reason: &str) -> Failure {
        Failure::Refused(format!("{}:{number}: {reason}", self.name))
    }

    /// The next line that is not empty, and its number.
    fn line(&mut self) -> Result<Option<(u64, String)>, Failure> {
        loop {
            let mut line = Vec::new();
            let mut reader = (&mut self.reader).take(MAX_LINE as u64);
            let read = reader.read_until(b'\n', &mut line);
            let length =
                read.map_err(|error| Failure::Refused(format!("cannot read {}: {error}", self.name)))?;
            if length == 0 {
                return Ok(None);
            }
            self.number += 1;
            self.bar.inc(length as u64);
            if length == MAX_LINE && line.last() != Some(&b'\n') {
                return Err(self.refuse(self.number, &format!("it is longer than {MAX_LINE} bytes")));
            }
            // Told by whoever reads the line as JSON.
            let text = String::from_utf8_lossy(&line);
            let text = text.trim();
            if !text.is_empty() {
                return Ok(Some((self.number, text.to_owned())));
            }
        }
    }
}
