//! `lbctl backend list|ready|drain|maint|restart|kill|forget`

use super::table::Align::{Left, Right};
use super::table::{number, span, table};
use crate::config::parse_duration;
use crate::control::{Admin, BackendView, Request};
use clap::{Args, Subcommand};
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List all backends, or those of one service
    List {
        /// Only those of this service.
        #[arg(long)]
        service: Option<String>,
    },
    /// Let a backend take everything; waits until it does
    Ready(Name),
    /// Give a backend no new sessions; those that live there still go there
    Drain(Name),
    /// Take a backend out: nothing goes there, its sessions move to others
    Maint(Name),
    /// End a managed server gracefully and start it anew, with a new epoch and an empty cache; waits until it is ready
    Restart(Name),
    /// Let a managed server crash, for drills: its memory is lost, connections break; it starts again by itself
    Kill {
        #[command(flatten)]
        name: Name,
        /// How long it stays away, such as 5s; without it, it starts again at once.
        #[arg(long, value_name = "TIME", value_parser = time)]
        down_for: Option<Duration>,
    },
    /// Free the slot of a backend that is in no configuration any more, of this lbd or of others on the same store
    Forget {
        /// SERVICE/BACKEND, as it was configured.
        #[arg(value_parser = full_name)]
        name: (String, String),
    },
}

#[derive(Debug, Args)]
pub(super) struct Name {
    /// SERVICE/BACKEND, or just BACKEND where only one service has one of that name.
    name: String,
}

fn time(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "not a duration; write it like 500ms, 5s or 1m".to_owned())
}

fn full_name(text: &str) -> Result<(String, String), String> {
    match text.split_once('/') {
        Some((service, backend)) if !service.is_empty() && !backend.is_empty() => {
            Ok((service.to_owned(), backend.to_owned()))
        }
        _ => Err("write SERVICE/BACKEND".to_owned()),
    }
}

impl Verb {
    pub(super) fn request(&self) -> Request {
        let set = |name: &Name, admin| Request::BackendSet { backend: name.name.clone(), admin };
        match self {
            Self::List { service } => Request::BackendList { service: service.clone() },
            Self::Ready(name) => set(name, Admin::Ready),
            Self::Drain(name) => set(name, Admin::Drain),
            Self::Maint(name) => set(name, Admin::Maint),
            Self::Restart(name) => Request::BackendRestart { backend: name.name.clone() },
            Self::Forget { name: (service, backend) } => {
                Request::BackendForget { service: service.clone(), backend: backend.clone() }
            }
            Self::Kill { name, down_for } => Request::BackendKill {
                backend: name.name.clone(),
                down_for_ms: down_for.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            },
        }
    }
}

pub(super) fn text(backends: &[BackendView]) -> String {
    // For those who use names.
    let named = backends.iter().any(|backend| !backend.sni.is_empty());
    let mut heads = vec![
        ("BACKEND", Left),
        ("SLOT", Right),
        ("ADDRESS", Left),
        ("RUN BY", Left),
        ("STATE", Left),
        ("FOR", Right),
        ("FLOWS", Right),
        ("EPOCH", Right),
        ("WEIGHT", Right),
        ("HEALTH", Left),
        ("REASON", Left),
    ];
    if named {
        heads.insert(3, ("NAMES", Left));
    }
    let row = |b: &BackendView| {
        let mut row = vec![
            format!("{}/{}", b.service, b.name),
            b.slot.to_string(),
            b.addr.clone(),
            if b.managed { "lbd" } else { "others" }.to_owned(),
            b.state.clone(),
            span(b.since_seconds),
            number(b.flows),
            b.epoch.to_string(),
            b.weight.to_string(),
            b.health.clone(),
            b.reason.clone().unwrap_or_default(),
        ];
        if named {
            let service = || backends.iter().filter(|other| other.service == b.service);
            let takes_others = b.state != "leaving" && service().any(|other| !other.sni.is_empty());
            row.insert(3, names(&b.sni, takes_others));
        }
        row
    };
    table(&heads, &backends.iter().map(row).collect::<Vec<_>>())
}

/// Names that are shown of one backend; the answer as JSON has all.
const SHOWN: usize = 3;

/// The names of a backend; one without may take all others.
fn names(sni: &[String], takes_others: bool) -> String {
    match sni.len() {
        0 if takes_others => "others".to_owned(),
        0 => "-".to_owned(),
        n if n > SHOWN => format!("{} +{}", sni[..SHOWN].join(" "), n - SHOWN),
        _ => sni.join(" "),
    }
}
