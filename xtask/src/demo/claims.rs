//! What the demonstration claims, whether it held, and what was measured: as a table for people, as JSON for programs.

use anyhow::{Context, Result};
use console::{Term, style};
use serde::Serialize;
use std::path::Path;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Claims {
    claims: Vec<Claim>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Claim {
    name: String,
    holds: bool,
    measured: String,
}

impl Claims {
    pub(crate) fn add(&mut self, name: &str, holds: bool, measured: String) {
        self.claims.push(Claim { name: name.to_owned(), holds, measured });
    }

    /// Whether there is a claim, and none that failed.
    pub(crate) fn all_hold(&self) -> bool {
        !self.claims.is_empty() && self.claims.iter().all(|claim| claim.holds)
    }

    pub(crate) fn print(&self) {
        let width =
            |text: fn(&Claim) -> &str| self.claims.iter().map(|claim| text(claim).chars().count()).max();
        let name = width(|claim| &claim.name).unwrap_or_default();
        let measured = width(|claim| &claim.measured).unwrap_or_default();
        // On a narrow terminal each measurement gets a line of its own.
        let room = Term::stdout().size_checked().map_or(usize::MAX, |(_, columns)| usize::from(columns));
        let gap = if 6 + name + measured <= room { "  " } else { "\n      " };
        println!("\n{}", style("What was claimed, and what was measured").bold());
        for claim in &self.claims {
            println!("  {} {:name$}{gap}{}", mark(claim.holds), claim.name, style(&claim.measured).dim());
        }
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(self)
            .expect("claims are text and truth values, which JSON can hold");
        std::fs::write(file, json + "\n").with_context(|| format!("cannot write {}", file.display()))
    }
}

pub(crate) fn mark(good: bool) -> console::StyledObject<&'static str> {
    if good { style("✓").green().bold() } else { style("✗").red().bold() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failure_fails_all_and_no_claim_holds_nothing() {
        let mut claims = Claims::default();
        assert!(!claims.all_hold());
        claims.add("a", true, "1".to_owned());
        assert!(claims.all_hold());
        claims.add("b", false, "2".to_owned());
        assert!(!claims.all_hold());
    }

    #[test]
    fn the_json_has_the_documented_shape() {
        let mut claims = Claims::default();
        claims.add("a", true, "10 of 10".to_owned());
        let json = serde_json::to_string(&claims).unwrap();
        assert_eq!(json, r#"{"claims":[{"name":"a","holds":true,"measured":"10 of 10"}]}"#);
    }
}
