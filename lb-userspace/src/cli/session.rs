//! `lbctl session list|show|end`

use super::table::Align::{Left, Right};
use super::table::{number, sheet, span, table};
use crate::control::{LearnedListView, LearnedView, Request, SessionView};
use clap::Subcommand;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List learned sessions: those whose keys the backends hand out
    List {
        /// Only those of this service.
        #[arg(long)]
        service: Option<String>,
        /// Only those at home at this backend.
        #[arg(long)]
        backend: Option<String>,
        /// At most this many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
    /// Show what a token says, and what the database has of its session; or where a learned session is at home
    Show {
        /// The value of the session cookie, or the tag of a learned session, 16 hexadecimal digits.
        token: String,
        /// Look for a learned session of this service only.
        #[arg(long)]
        service: Option<String>,
    },
    /// End a session everywhere at once: whoever has its token begins anew; or forget where a learned session is at home
    End {
        /// The value of the session cookie, or the session's id, 32 hexadecimal digits, or the tag of a learned session, 16.
        session: String,
        /// Look for a learned session of this service only.
        #[arg(long)]
        service: Option<String>,
    },
}

impl Verb {
    pub(super) fn request(&self) -> Request {
        match self {
            Self::List { service, backend, limit } => {
                Request::SessionList { service: service.clone(), backend: backend.clone(), limit: *limit }
            }
            Self::Show { token, service } => {
                Request::SessionShow { token: token.clone(), service: service.clone() }
            }
            Self::End { session, service } => {
                Request::SessionEnd { session: session.clone(), service: service.clone() }
            }
        }
    }
}

pub(super) fn list(view: &LearnedListView) -> String {
    let heads =
        [("TAG", Left), ("SERVICE", Left), ("BACKEND", Left), ("IDLE", Right), ("FORGOTTEN IN", Right)];
    let row = |session: &LearnedView| {
        vec![
            session.tag.clone(),
            session.service.clone(),
            session.backend.clone(),
            span(session.idle_ms / 1000),
            span(session.forgotten_in_ms / 1000),
        ]
    };
    let mut text = table(&heads, &view.sessions.iter().map(row).collect::<Vec<_>>());
    let hidden = view.total.saturating_sub(view.sessions.len());
    if hidden > 0 {
        text += &format!("and {} more; --limit shows more of them\n", number(hidden as u64));
    }
    text
}

pub(super) fn learned(view: &LearnedView) -> String {
    sheet(&[
        ("session", format!("{}, learned from its backend", view.tag)),
        ("service", view.service.clone()),
        ("backend", view.backend.clone()),
        ("idle", span(view.idle_ms / 1000)),
        ("forgotten in", span(view.forgotten_in_ms / 1000)),
    ])
}

pub(super) fn text(view: &SessionView) -> String {
    let token = &view.token;
    let backend = token.backend.clone().unwrap_or_else(|| format!("slot {}, where nobody is", token.slot));
    let mut lines = vec![
        ("session", token.session.clone()),
        ("service", token.service.clone()),
        ("token", format!("{backend} in epoch {}, signed with key {}", token.epoch, token.key)),
    ];
    if !view.found {
        lines.push(("database", "no such session, or it has expired".to_owned()));
        return sheet(&lines);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
    let ago = |then: u64| super::table::span(now.abs_diff(then) / 1000);
    lines.push(("owner", view.owner.clone().unwrap_or_default()));
    lines.extend(view.version.map(|version| ("version", version.to_string())));
    lines.extend(view.created_unix_ms.map(|then| ("created", format!("{} ago", ago(then)))));
    lines.extend(view.expires_unix_ms.map(|then| ("expires", format!("in {}", ago(then)))));
    let state = view.state.as_ref().and_then(|state| serde_json::to_string_pretty(state).ok());
    format!("{}{}\n", sheet(&lines), state.unwrap_or_default())
}
