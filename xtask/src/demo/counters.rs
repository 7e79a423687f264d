//! What XDP counted between two moments, by the names that `lbctl stats` prints.

use anyhow::{Context, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;

/// The counters of one service at one moment, or how much each grew between two.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters(BTreeMap<String, u64>);

#[derive(Deserialize)]
struct Stats {
    counters: Vec<Row>,
}

#[derive(Deserialize)]
struct Row {
    of: String,
    counter: String,
    value: u64,
}

impl Counters {
    /// From `lbctl stats --json`.
    pub(crate) fn parse(json: &str, service: &str) -> Result<Self> {
        let stats: Stats =
            serde_json::from_str(json).context("`lbctl stats --json` printed something else")?;
        let rows = stats.counters.into_iter().filter(|row| row.of == service);
        Ok(Self(rows.map(|row| (row.counter, row.value)).collect()))
    }

    pub(crate) fn get(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or_default()
    }

    /// How much each grew since `earlier`.
    pub(crate) fn since(&self, earlier: &Self) -> Self {
        let grown = self.0.iter().map(|(name, now)| (name.clone(), now.saturating_sub(earlier.get(name))));
        Self(grown.filter(|(_, grown)| *grown > 0).collect())
    }

    /// Those of `names`, for a line of the story.
    pub(crate) fn only(&self, names: &[&str]) -> Self {
        Self(names.iter().map(|name| ((*name).to_owned(), self.get(name))).collect())
    }
}

impl fmt::Display for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (name, grown)) in self.0.iter().enumerate() {
            write!(f, "{}{name} +{grown}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_growth_of_one_service_is_told() {
        let before = r#"{"counters":[{"of":"shop","counter":"affinity_hit","value":2}]}"#;
        let after = r#"{"counters":[{"of":"shop","counter":"affinity_hit","value":5},
            {"of":"shop","counter":"bound","value":1},{"of":"shop/a","counter":"affinity_hit","value":9}]}"#;
        let (before, after) =
            (Counters::parse(before, "shop").unwrap(), Counters::parse(after, "shop").unwrap());
        let grown = after.since(&before);
        assert_eq!(grown.to_string(), "affinity_hit +3, bound +1");
        assert_eq!(grown.only(&["bound"]).to_string(), "bound +1");
        assert_eq!(after.since(&after).to_string(), "");
    }
}
