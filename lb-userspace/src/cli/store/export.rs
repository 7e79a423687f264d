//! `lbctl store export`

use super::{Failure, Place, as_json, misunderstood, name, open, progress};
use crate::cli::table::count;
use crate::cli::{DONE, Lbd, REFUSED, Said};
use crate::control::{Response, StoreRequest};
use crate::session::store::archive::{Damaged, End, Header, to_line};
use crate::session::unix_millis;
use serde::Serialize;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

#[derive(Default, Serialize)]
struct Found {
    sessions: u64,
    expired: u64,
    damaged: Vec<Damaged>,
}

pub(super) async fn run(file: &Path, place: &Place, lbd: Lbd<'_>, json: bool) -> Result<Said, Failure> {
    let door = open(place, lbd, false).await?;
    let view = door.look().await?;
    let failed = |error: io::Error| Failure::of("cannot write", file, &error);
    let mut target = Target::open(file).map_err(failed)?;
    let header = Header::new(view.given, view.state.place.clone(), unix_millis());
    target.line(&to_line(&header)).map_err(failed)?;
    let bar = progress(view.sessions, "sessions");
    let mut all = Found::default();
    let mut from = None;
    loop {
        let exported = match door.step(StoreRequest::Export { from }).await? {
            Response::StoreExported(exported) => exported,
            other => return Err(misunderstood(&other)),
        };
        for line in &exported.lines {
            target.line(line).map_err(failed)?;
        }
        let lines = exported.lines.len() as u64;
        bar.inc(lines + exported.expired + exported.damaged.len() as u64);
        all.sessions += lines;
        all.expired += exported.expired;
        all.damaged.extend(exported.damaged);
        from = exported.next;
        if from.is_none() {
            break;
        }
    }
    target.line(&to_line(&End { sessions: all.sessions })).map_err(failed)?;
    target.finish().map_err(failed)?;
    let to_file = file != Path::new("-");
    bar.finish_and_clear();
    let code = if all.damaged.is_empty() { DONE } else { REFUSED };
    let said = if json {
        as_json(&all)
    } else {
        let mut text =
            format!("exported {} from {}", count(all.sessions, "session", "sessions"), view.state.place);
        if to_file {
            text += &format!(" to {}", file.display());
        }
        if all.expired > 0 {
            text += &format!("; {} had expired", all.expired);
        }
        text + "\n"
    };
    let damaged = if json { String::new() } else { name(&all.damaged) };
    // Standard output is for the sessions where they go there.
    Ok(match to_file {
        true => Said { out: said, err: damaged, code },
        false => Said { out: String::new(), err: damaged + &said, code },
    })
}

/// Where the lines go. A file is there when it is complete, or not at all.
struct Target {
    writer: BufWriter<Box<dyn Write>>,
    file: Option<Part>,
}

/// A file in the making, beside the one that it will be.
struct Part {
    file: File,
    path: PathBuf,
    whole: PathBuf,
}

impl Target {
    fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self { writer: BufWriter::new(Box::new(io::stdout())), file: None });
        }
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            // A device or a pipe: not to be replaced.
            let file = OpenOptions::new().write(true).open(path)?;
            return Ok(Self { writer: BufWriter::new(Box::new(file)), file: None });
        }
        let mut part = path.as_os_str().to_owned();
        part.push(format!(".{}.part", std::process::id()));
        let part = PathBuf::from(part);
        // What is in sessions is nobody else's business.
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&part)?;
        let writer = BufWriter::new(Box::new(file.try_clone()?) as Box<dyn Write>);
        Ok(Self { writer, file: Some(Part { file, path: part, whole: path.to_owned() }) })
    }

    fn line(&mut self, line: &str) -> io::Result<()> {
        self.writer.write_all(line.as_bytes())?;
        self.writer.write_all(b"\n")
    }

    fn finish(mut self) -> io::Result<()> {
        self.writer.flush()?;
        if let Some(part) = &self.file {
            part.file.sync_all()?;
            fs::rename(&part.path, &part.whole)?;
        }
        Ok(())
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        // Gone already when the export was finished.
        let _ = fs::remove_file(&self.path);
    }
}
