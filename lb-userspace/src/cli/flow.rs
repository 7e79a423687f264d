//! `lbctl flow list`

use super::table::Align::{Left, Right};
use super::table::{number, span, table};
use crate::control::{FlowView, FlowsView, Request};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List connections
    List {
        /// Only those to this service.
        #[arg(long)]
        service: Option<String>,
        /// Only those to this backend.
        #[arg(long)]
        backend: Option<String>,
        /// At most this many.
        #[arg(long, default_value_t = 100)]
        limit: usize,
    },
}

impl Verb {
    pub(super) fn request(&self) -> Request {
        match self {
            Self::List { service, backend, limit } => {
                Request::FlowList { service: service.clone(), backend: backend.clone(), limit: *limit }
            }
        }
    }
}

pub(super) fn text(view: &FlowsView) -> String {
    let heads = [("SERVICE", Left), ("CLIENT", Left), ("BACKEND", Left), ("STATE", Left), ("IDLE", Right)];
    let row = |f: &FlowView| {
        vec![
            f.service.clone(),
            f.client.clone(),
            f.backend.clone(),
            f.state.clone(),
            if f.idle_ms < 1000 { format!("{}ms", f.idle_ms) } else { span(f.idle_ms / 1000) },
        ]
    };
    let mut text = table(&heads, &view.flows.iter().map(row).collect::<Vec<_>>());
    let hidden = view.total.saturating_sub(view.flows.len());
    if hidden > 0 {
        text += &format!("and {} more; --limit shows more of them\n", number(hidden as u64));
    }
    text
}
