//! `lbctl stats`

use super::table::Align::{Left, Right};
use super::table::{number, table};
use crate::control::{Request, StatsView};
use crate::session::Admission;
use lb_common::counter::Counter;
use lb_common::lost::Lost;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only those of this service and its backends.
    #[arg(long)]
    service: Option<String>,
    /// Also those that are zero.
    #[arg(long)]
    pub(super) all: bool,
}

impl Args {
    pub(super) fn request(&self) -> Request {
        Request::Stats { service: self.service.clone() }
    }
}

pub(super) fn text(view: &StatsView, all: bool) -> String {
    let heads = [("OF", Left), ("COUNTER", Left), ("VALUE", Right), ("MEANING", Left)];
    let rows: Vec<_> = view
        .counters
        .iter()
        .filter(|counter| all || counter.value > 0)
        .map(|c| vec![c.of.clone(), c.counter.clone(), number(c.value), meaning(&c.of, &c.counter)])
        .collect();
    if rows.is_empty() {
        return "nothing was counted yet; --all shows the names of all counters\n".to_owned();
    }
    table(&heads, &rows)
}

/// One sentence about a counter of a service; those of a backend speak for themselves.
fn meaning(of: &str, name: &str) -> String {
    if of.contains('/') {
        return String::new();
    }
    let counter = Counter::ALL.iter().find(|counter| counter.name() == name);
    let described = counter.map(|counter| counter.describe().trim()).or_else(|| Lost::describe(name));
    described.or_else(|| Admission::describe(name)).unwrap_or_default().to_owned()
}
