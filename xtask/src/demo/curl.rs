//! One request by the real curl, from the client's namespace, each on a connection of its own.

use anyhow::{Context, Result, bail};
use std::ffi::OsStr;
use std::process::Command;
use std::time::Duration;

/// Longer than any answer may take; what hangs fails.
const PATIENCE: &str = "15";

/// What curl got.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: String,
    pub(crate) took: Duration,
}

impl Answer {
    /// The server that answered.
    pub(crate) fn server(&self) -> &str {
        self.header("lb-server").unwrap_or("nobody")
    }

    /// Which incarnation of it.
    pub(crate) fn epoch(&self) -> u32 {
        self.header("lb-epoch").and_then(|epoch| epoch.parse().ok()).unwrap_or_default()
    }

    /// Where the state came from: `new`, `cache` or `database`.
    pub(crate) fn source(&self) -> &str {
        self.header("lb-source").unwrap_or("nowhere")
    }

    /// The token that this answer hands out.
    pub(crate) fn token(&self) -> Option<&str> {
        let cookies = self.headers.iter().filter(|(name, _)| name == "set-cookie");
        cookies.into_iter().find_map(|(_, value)| value.strip_prefix("lb=")?.split(';').next())
    }

    pub(crate) fn json(&self) -> Result<serde_json::Value> {
        serde_json::from_str(&self.body).with_context(|| format!("not JSON: {}", self.body))
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// Runs curl in a network namespace. An error means that curl got no answer.
pub(crate) fn curl<S: AsRef<OsStr>>(netns: &str, arguments: impl IntoIterator<Item = S>) -> Result<Answer> {
    let output = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{netns}"))
        // Without `--disable`, ~/.curlrc would have its say; a proxy would be asked in the client's place.
        .args(["curl", "--disable", "--noproxy", "*", "-sSi", "--max-time", PATIENCE])
        .args(["-w", "%{stderr}%{time_total}"])
        .args(arguments)
        .output()
        .context("cannot start nsenter (Debian's package util-linux has it)")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let reason = errors.lines().find(|line| line.starts_with("curl:")).unwrap_or(&errors);
        bail!("{}", reason.trim());
    }
    let took = errors.lines().last().and_then(|line| line.parse().ok()).unwrap_or_default();
    parse(&String::from_utf8_lossy(&output.stdout), Duration::from_secs_f64(took))
}

fn parse(text: &str, took: Duration) -> Result<Answer> {
    let (head, body) = text.split_once("\r\n\r\n").with_context(|| format!("no HTTP answer: {text:?}"))?;
    let mut lines = head.lines();
    let status_line = lines.next().unwrap_or_default();
    let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let status = status.with_context(|| format!("no HTTP status in {status_line:?}"))?;
    Ok(Answer { status, headers, body: body.to_owned(), took })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_tells_its_server_source_and_token() {
        let text = "HTTP/1.1 200 OK\r\nLB-Server: bob\r\nlb-epoch: 3\r\nlb-source: cache\r\n\
                    Set-Cookie: other=1\r\nset-cookie: lb=AAbb; HttpOnly; SameSite=Lax; Path=/\r\n\r\n{\"a\":1}";
        let answer = parse(text, Duration::from_millis(2)).unwrap();
        assert_eq!(
            (answer.status, answer.server(), answer.epoch(), answer.source()),
            (200, "bob", 3, "cache")
        );
        assert_eq!(answer.token(), Some("AAbb"));
        assert_eq!(answer.json().unwrap()["a"], 1);
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for text in ["", "nonsense", "HTTP/1.1\r\n\r\n"] {
            assert!(parse(text, Duration::ZERO).is_err(), "{text:?}");
        }
    }
}
