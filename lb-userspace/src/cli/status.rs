//! `lbctl status`

use super::table::{count, number, sheet, span};
use crate::control::StatusView;
use crate::session::StoreState;

pub(super) fn text(status: &StatusView) -> String {
    let interfaces: Vec<_> = status.interfaces.iter().map(|i| format!("{} ({})", i.name, i.mode)).collect();
    let took_over = if status.took_over { ", took over from an earlier lbd" } else { "" };
    sheet(&[
        (
            "lbd",
            format!("{}, pid {}, up {}{took_over}", status.version, status.pid, span(status.uptime_seconds)),
        ),
        ("config", status.config.clone()),
        ("interfaces", interfaces.join(", ")),
        ("services", number(status.services as u64)),
        ("backends", format!("{}, {} ready", number(status.backends as u64), status.backends_ready)),
        ("flows", format!("{} of {}", number(status.flows as u64), number(status.flows_limit.into()))),
        (
            "sessions",
            status.sessions.map_or_else(|| "unknown: the store did not tell in time".to_owned(), number),
        ),
        ("store", store(&status.store)),
        (
            "token keys",
            format!(
                "{} alive, key {} signs",
                count(status.token_keys.into(), "key", "keys"),
                status.token_key
            ),
        ),
    ])
}

fn store(state: &StoreState) -> String {
    let StoreState { place, available, detail } = state;
    match (available, detail) {
        (true, None) => place.clone(),
        (true, Some(detail)) => format!("{place}, {detail}"),
        (false, None) => format!("{place}, CANNOT BE USED"),
        (false, Some(detail)) => format!("{place}, CANNOT BE USED: {detail}"),
    }
}
