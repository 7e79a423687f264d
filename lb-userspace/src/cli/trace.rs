//! `lbctl trace`

use super::{DONE, Lbd, REFUSED, UNREACHABLE};
use crate::control::client::follow;
use crate::control::{DecisionView, Request, Response, TraceView};
use std::io::{self, Write};
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only decisions of this service.
    #[arg(long)]
    service: Option<String>,
    /// Only decisions about this client, an address.
    #[arg(long, value_name = "ADDRESS")]
    client: Option<IpAddr>,
    /// End after so many decisions.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
}

/// lbd finds out what was lost four times a second.
const LAST_NEWS: Duration = Duration::from_millis(300);

/// Prints decisions as they come, until there were enough, or the user ends it, or lbd does.
pub(super) async fn run(args: &Args, lbd: Lbd<'_>, json: bool) -> u8 {
    let request = Request::Trace { service: args.service.clone(), client: args.client };
    let (first, mut answers) = match follow(lbd.socket, &request, lbd.patience).await {
        Ok(following) => following,
        Err(error) => return complain(&error, UNREACHABLE),
    };
    if let Response::Refused(refused) = first {
        if json {
            let answer = Response::Refused(refused);
            let text = serde_json::to_string_pretty(&answer).expect("answers came as JSON and go as JSON");
            // A closed pipe is nobody's loss.
            let _ = writeln!(io::stdout(), "{text}");
            return REFUSED;
        }
        return complain(&refused, REFUSED);
    }
    let mut left = args.count.unwrap_or(u64::MAX);
    let mut lost = 0;
    let mut code = DONE;
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    while left > 0 {
        let answer = tokio::select! {
            answer = answers.next() => answer,
            _ = &mut interrupt => break,
        };
        let view = match answer {
            Ok(Response::Traced(view)) => view,
            Ok(_) => continue,
            Err(error) => {
                code = complain(&error, UNREACHABLE);
                break;
            }
        };
        lost = view.lost;
        match print(&view, left, json) {
            Ok(printed) => left -= printed,
            // Whoever closes the pipe has seen enough.
            Err(_) => return DONE,
        }
    }
    // What is lost is told a little later than what is not.
    let until = Instant::now() + LAST_NEWS;
    while code == DONE
        && let Ok(Ok(Response::Traced(view))) = timeout_at(until, answers.next()).await
    {
        lost = view.lost;
    }
    if json {
        let _ = writeln!(io::stdout(), "{}", serde_json::json!({ "lost": lost }));
    } else if lost > 0 {
        let _ = writeln!(
            io::stderr(),
            "lbctl: {lost} decisions were lost: there were more than could be read; narrow it with --service or --client, or raise `trace_bytes` in [limits]"
        );
    }
    code
}

/// Prints up to `most` decisions; says how many.
fn print(view: &TraceView, most: u64, json: bool) -> io::Result<u64> {
    let mut out = io::stdout().lock();
    let mut printed = 0;
    for decision in view.decisions.iter().take(usize::try_from(most).unwrap_or(usize::MAX)) {
        let line = if json { serde_json::to_string(decision)? } else { text(decision) };
        writeln!(out, "{line}")?;
        printed += 1;
    }
    out.flush()?;
    Ok(printed)
}

/// One line: when (UTC), flow, what was found, and what came of it.
fn text(decision: &DecisionView) -> String {
    let DecisionView { at_unix_us, service, client, key, backend, reason } = decision;
    let (seconds, micros) = (at_unix_us / 1_000_000, at_unix_us % 1_000_000);
    let (hours, minutes) = (seconds / 3600 % 24, seconds / 60 % 60);
    let backend = backend.as_deref().unwrap_or("-");
    format!(
        "{hours:02}:{minutes:02}:{:02}.{micros:06}  {client:<21} -> {service}  {key:<10}  {reason:<14}  {backend}",
        seconds % 60
    )
}

fn complain(error: &dyn std::fmt::Display, code: u8) -> u8 {
    let _ = writeln!(io::stderr(), "lbctl: {error}");
    code
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_is_one_line() {
        let mut decision = DecisionView {
            at_unix_us: 1_700_000_000_000_042,
            service: "shop".into(),
            client: "192.0.2.7:40000".into(),
            key: "valid".into(),
            backend: Some("shop/s1".into()),
            reason: "affinity_hit".into(),
        };
        assert_eq!(
            text(&decision),
            "22:13:20.000042  192.0.2.7:40000       -> shop  valid       affinity_hit    shop/s1"
        );
        decision.backend = None;
        assert!(text(&decision).ends_with("affinity_hit    -"));
    }
}
