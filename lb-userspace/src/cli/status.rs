//! `lbctl status`

use super::table::Align::{Left, Right};
use super::table::{count, number, sheet, span, table};
use crate::control::{MapView, PhaseView, ShareView, StatusView};
use crate::session::StoreState;

pub(super) fn text(status: &StatusView) -> String {
    let interfaces: Vec<_> =
        status.interfaces.iter().map(|i| format!("{} (xdp {}, {})", i.name, i.mode, i.joint)).collect();
    let took_over = if status.took_over { ", took over from an earlier lbd" } else { "" };
    let leaving = match status.backends_leaving {
        0 => String::new(),
        leaving => format!(", {leaving} leaving"),
    };
    let refused = match status.sessions_refused {
        0 => String::new(),
        refused => format!(", {} refused by the bounds of their services", number(refused)),
    };
    let mut text = sheet(&[
        (
            "lbd",
            format!("{}, pid {}, up {}{took_over}", status.version, status.pid, span(status.uptime_seconds)),
        ),
        ("config", status.config.clone()),
        ("interfaces", interfaces.join(", ")),
        ("services", number(status.services as u64)),
        ("backends", format!("{}, {} ready{leaving}", number(status.backends as u64), status.backends_ready)),
        ("flows", format!("{} of {}", number(status.flows as u64), number(status.flows_limit.into()))),
        (
            "sessions",
            status.sessions.map_or_else(|| "unknown: the store did not tell in time".to_owned(), number)
                + &refused,
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
    ]);
    for warning in &status.warnings {
        text += &format!("WARNING: {warning}\n");
    }
    text += "\n";
    text += &shares(status);
    text += "\n";
    text += &maps(status);
    text
}

/// Of an lbd that starts or stops.
pub(super) fn phase(view: &PhaseView) -> String {
    let PhaseView { version, pid, phase, waits_for, seconds } = view;
    sheet(&[
        ("lbd", format!("{version}, pid {pid}, {phase}")),
        ("waits for", format!("{waits_for}, for {}", span(*seconds))),
    ])
}

/// How much of the tables each service uses.
fn shares(status: &StatusView) -> String {
    let heads = [
        ("SERVICE", Left),
        ("FLOWS", Right),
        ("MAX", Right),
        ("PENDING", Right),
        ("MAX", Right),
        ("REFUSED", Right),
    ];
    let row = |share: &ShareView| {
        let bound = |n: u32| number(n.into());
        vec![
            share.service.clone(),
            number(share.flows),
            bound(share.max_flows),
            number(share.pending),
            bound(share.max_pending),
            number(share.refused),
        ]
    };
    table(&heads, &status.shares.iter().map(row).collect::<Vec<_>>())
}

/// What the programs' maps hold, and the memory that they take.
fn maps(status: &StatusView) -> String {
    let heads = [("MAP", Left), ("ENTRIES", Right), ("IN USE", Right), ("BYTES", Right)];
    let known = |n: Option<u64>| n.map_or_else(|| "-".to_owned(), number);
    let row =
        |map: &MapView| vec![map.name.to_lowercase(), known(map.entries), known(map.used), number(map.bytes)];
    let all = vec!["all of them".to_owned(), String::new(), String::new(), number(status.map_bytes)];
    let rows: Vec<_> = status.maps.iter().map(row).chain([all]).collect();
    table(&heads, &rows)
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
