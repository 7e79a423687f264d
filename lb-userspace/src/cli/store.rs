//! `lbctl store check|export|import`: goes through the whole store, or fills it, step by step. The lbd that runs is asked
//! for each step; where none runs, the store is opened here.

mod export;
mod import;
#[cfg(test)]
mod tests;

use super::table::{count, number};
use super::{DONE, Lbd, REFUSED, Said, UNREACHABLE};
use crate::config::{Config, Store};
use crate::control::client::{ClientError, ask};
use crate::control::{Refused, Request, Response, StoreRequest, StoreView};
use crate::session::store::archive::Damaged;
use crate::session::{SessionStore, StoreError};
use crate::stores;
use clap::{Args, Subcommand};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Verify every record: checksum, format, whether it can be read; exit code 1 when one is damaged
    Check {
        #[command(flatten)]
        place: Place,
    },
    /// Write all sessions to a file, one line of JSON each
    Export {
        /// The file, readable by root alone; `-` or none is standard output.
        #[arg(default_value = "-")]
        file: PathBuf,
        #[command(flatten)]
        place: Place,
    },
    /// Read sessions from a file that `export` has written, into this store or another
    Import {
        /// The file; `-` is standard input.
        file: PathBuf,
        /// Sessions that are here already become those of the file; without this they stay as they are.
        #[arg(long)]
        replace: bool,
        /// Sessions of service OLD in the file become those of NEW; with nothing for NEW they are left out.
        #[arg(long = "service", value_name = "OLD=NEW", value_parser = import::renaming)]
        services: Vec<import::Renaming>,
        #[command(flatten)]
        place: Place,
    },
}

/// Which store, where no lbd is to be asked.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// Open the sled store in this directory, which no lbd may have open, in place of asking the lbd that runs.
    #[arg(long, value_name = "DIRECTORY", conflicts_with = "config")]
    store: Option<PathBuf>,
    /// Open the store that this configuration names, in place of asking the lbd that runs.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Why something was not done.
#[derive(Debug)]
enum Failure {
    /// No lbd could be asked.
    Unreachable(String),
    Refused(String),
    /// Whoever reads the output has seen enough.
    Closed,
}

impl From<Refused> for Failure {
    fn from(refused: Refused) -> Self {
        Self::Refused(refused.to_string())
    }
}

impl Failure {
    fn of(what: impl std::fmt::Display, path: &Path, error: &std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self::Closed;
        }
        Self::Refused(format!("{what} {}: {error}", path.display()))
    }
}

/// Where steps are done.
enum Door<'a> {
    /// By that lbd.
    Lbd(Lbd<'a>),
    /// Here. With the names of the services that are configured, if that is known.
    Here(Arc<dyn SessionStore>, Option<Vec<String>>),
}

impl Door<'_> {
    async fn step(&self, step: StoreRequest) -> Result<Response, Failure> {
        let response = match self {
            Self::Lbd(lbd) => ask_lbd(*lbd, &Request::Store { step }).await?,
            Self::Here(store, _) => stores::answer(&**store, None, step).await,
        };
        match response {
            Response::Refused(refused) => Err(refused.into()),
            response => Ok(response),
        }
    }

    async fn look(&self) -> Result<StoreView, Failure> {
        match self.step(StoreRequest::Look {}).await? {
            Response::Store(view) => Ok(*view),
            other => Err(misunderstood(&other)),
        }
    }

    /// Names of the services whose sessions can be served here; `None` when nobody knows.
    async fn services(&self) -> Result<Option<Vec<String>>, Failure> {
        match self {
            Self::Here(_, names) => Ok(names.clone()),
            Self::Lbd(lbd) => match ask_lbd(*lbd, &Request::ServiceList {}).await? {
                Response::Services { services } => {
                    Ok(Some(services.into_iter().map(|service| service.name).collect()))
                }
                other => Err(misunderstood(&other)),
            },
        }
    }
}

async fn ask_lbd(lbd: Lbd<'_>, request: &Request) -> Result<Response, Failure> {
    ask(lbd.socket, request, lbd.patience).await.map_err(|error| {
        let mut text = error.to_string();
        if matches!(error, ClientError::NotRunning { .. }) {
            text += "\nwithout an lbd, name the store with --config lb.toml or --store DIRECTORY";
        }
        Failure::Unreachable(text)
    })
}

fn misunderstood(response: &Response) -> Failure {
    Failure::Refused(format!("lbd answered something else than it was asked: {response:?}"))
}

/// Does it, and says what came of it.
pub(super) async fn run(verb: &Verb, lbd: Lbd<'_>, json: bool) -> Said {
    let done = match verb {
        Verb::Check { place } => check(place, lbd, json).await,
        Verb::Export { file, place } => export::run(file, place, lbd, json).await,
        Verb::Import { file, replace, services, place } => {
            import::run(file, *replace, services, place, lbd, json).await
        }
    };
    done.unwrap_or_else(|failure| {
        let (code, err) = match failure {
            Failure::Unreachable(text) => (UNREACHABLE, format!("lbctl: {text}\n")),
            Failure::Refused(text) => (REFUSED, format!("lbctl: {text}\n")),
            Failure::Closed => (DONE, String::new()),
        };
        Said { out: String::new(), err, code }
    })
}

/// `may_create`: whether a sled store that is not there is to be made.
async fn open<'a>(place: &Place, lbd: Lbd<'a>, may_create: bool) -> Result<Door<'a>, Failure> {
    let (store, services) = match (&place.store, &place.config) {
        (None, None) => return Ok(Door::Lbd(lbd)),
        (Some(path), _) => (Store::Sled { path: path.clone() }, None),
        (None, Some(file)) => {
            let config = Config::load(file).map_err(|error| Failure::Refused(error.to_string()))?;
            let names = config.services.into_iter().map(|service| service.name).collect();
            (config.lbd.store, Some(names))
        }
    };
    if let Store::Sled { path } = &store
        && !may_create
        && !path.join("db").exists()
    {
        return Err(Failure::Refused(format!("there is no session store in {}", path.display())));
    }
    match stores::open(&store).await {
        Ok(store) => Ok(Door::Here(store, services)),
        Err(StoreError::Locked { path, pid }) => Err(Failure::Refused(format!(
            "store {} is in use by process {pid}, the lbd that runs\nleave --store and --config away to ask that lbd, or stop \
             it first",
            path.display()
        ))),
        Err(error) => Err(Failure::Refused(error.to_string())),
    }
}

async fn check(place: &Place, lbd: Lbd<'_>, json: bool) -> Result<Said, Failure> {
    #[derive(Default, Serialize)]
    struct Found {
        records: u64,
        damaged: Vec<Damaged>,
    }
    let door = open(place, lbd, false).await?;
    let mut all = Found::default();
    // Not asked when the names are damaged: that is for the check to tell.
    let view = door.look().await.ok();
    let bar = progress(view.as_ref().and_then(|view| view.sessions), "records");
    let mut from = None;
    loop {
        let checked = match door.step(StoreRequest::Check { from }).await? {
            Response::StoreChecked(checked) => checked,
            other => return Err(misunderstood(&other)),
        };
        all.records += checked.records;
        all.damaged.extend(checked.damaged);
        bar.inc(checked.records);
        from = checked.next;
        if from.is_none() {
            break;
        }
    }
    bar.finish_and_clear();
    let code = if all.damaged.is_empty() { DONE } else { REFUSED };
    if json {
        return Ok(Said { out: as_json(&all), err: String::new(), code });
    }
    let place = view.map_or_else(String::new, |view| format!(" in {}", view.state.place));
    let records = count(all.records, "record", "records");
    if all.damaged.is_empty() {
        return Ok(Said { out: format!("{records}{place}: all whole\n"), err: String::new(), code });
    }
    let damaged = all.damaged.len() as u64;
    let out = format!("{}{records}{place}: {} damaged\n", name(&all.damaged), number(damaged));
    let err =
        "lbctl: a damaged session is answered with an error; `lbctl session end ID` removes it\n".to_owned();
    Ok(Said { out, err, code })
}

/// A line for each.
fn name(damaged: &[Damaged]) -> String {
    damaged.iter().map(|damaged| format!("damaged: {}: {}\n", damaged.key, damaged.reason)).collect()
}

/// How far it is, on a terminal; nothing elsewhere.
fn progress(of: Option<u64>, what: &str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(of, ProgressDrawTarget::stderr());
    let style = match (of, what) {
        (Some(_), "bytes") => "{wide_bar} {bytes} of {total_bytes}, {eta} left",
        (Some(_), _) => "{wide_bar} {human_pos} of {human_len} {msg}, {eta} left",
        (None, "bytes") => "{spinner} {bytes}",
        (None, _) => "{spinner} {human_pos} {msg}",
    };
    let style = ProgressStyle::with_template(style).expect("the templates above are right");
    bar.with_style(style).with_message(what.to_owned())
}

fn as_json(value: &impl Serialize) -> String {
    let mut text = serde_json::to_string_pretty(value).expect("text and numbers are JSON");
    text.push('\n');
    text
}
