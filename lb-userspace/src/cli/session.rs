//! `lbctl session show|end`

use super::table::sheet;
use crate::control::{Request, SessionView};
use clap::Subcommand;
use std::time::{SystemTime, UNIX_EPOCH};

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Show what a token says, and what the database has of its session
    Show {
        /// The value of the session cookie: 44 characters.
        token: String,
    },
    /// End a session everywhere at once: whoever has its token begins anew
    End {
        /// The value of the session cookie, 44 characters, or the session's id, 32 hexadecimal digits.
        session: String,
    },
}

impl Verb {
    pub(super) fn request(&self) -> Request {
        match self {
            Self::Show { token } => Request::SessionShow { token: token.clone() },
            Self::End { session } => Request::SessionEnd { session: session.clone() },
        }
    }
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
