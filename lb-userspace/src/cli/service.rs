//! `lbctl service list`

use super::table::Align::{Left, Right};
use super::table::table;
use crate::control::{Request, ServiceView};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// List all services
    List,
}

impl Verb {
    pub(super) fn request(&self) -> Request {
        match self {
            Self::List => Request::ServiceList {},
        }
    }
}

pub(super) fn text(services: &[ServiceView]) -> String {
    let heads = [
        ("SERVICE", Left),
        ("ID", Right),
        ("VIP", Left),
        ("PROTOCOL", Left),
        ("AFFINITY", Left),
        ("READY", Right),
        ("DRAIN", Right),
        ("LEAVING", Right),
        ("BACKENDS", Right),
        ("MSS", Right),
        ("PROMISES", Left),
    ];
    let row = |s: &ServiceView| {
        vec![
            s.name.clone(),
            s.id.to_string(),
            s.vip.clone(),
            s.protocol.clone(),
            s.affinity.clone(),
            s.ready.to_string(),
            s.draining.to_string(),
            s.leaving.to_string(),
            s.backends.to_string(),
            s.mss.to_string(),
            if s.promises.is_empty() { "-".to_owned() } else { s.promises.join(" ") },
        ]
    };
    table(&heads, &services.iter().map(row).collect::<Vec<_>>())
}
