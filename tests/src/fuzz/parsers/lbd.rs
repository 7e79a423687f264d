//! What operators give to lbd: its configuration, and requests through its socket.

use anyhow::{Result, ensure};
use lb_userspace::config::{Config, ConfigError, ServerName};
use lb_userspace::control::{self, Request, Response};
use std::path::Path;

pub(super) const CONFIG_WORDS: &[&str] = &[
    "[lbd]\n",
    "[[service]]\n",
    "[[service.backend]]\n",
    "[limits]\n",
    "[timeouts]\n",
    "name = \"a\"\n",
    "vip = \"192.0.2.1:80\"\n",
    "addr = \"192.0.2.10:80\"\n",
    "managed = true\n",
    "affinity = ",
    "kind = ",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\n",
    "#",
    ",",
    "=",
    "true",
    "\"learned\"",
    "\"hashed\"",
    "\"signed\"",
    "\"source\"",
    "\"quic\"",
    "cookie = ",
    "header = ",
    "query = ",
    "sni = ",
    "*.",
    "weight = ",
    "\"redis\"",
    "nodes = ",
    "redis://",
    "@",
    "store = ",
    "1s",
    "0",
    "-1",
    "18446744073709551616",
    "\u{1f980}",
    "\t",
    "\\u0000",
    "'''",
];

pub(super) const CONTROL_WORDS: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "\"v\":1",
    "\"verb\":",
    "\"answer\":",
    "\"status\"",
    "\"service\":",
    "\"backend\":",
    "null",
    "true",
    "\"limit\":",
    "\"store\"",
    "\"step\":",
    "\"lines\":",
    "\"how\":",
    "1e400",
    "-0",
    "18446744073709551615",
    "\\u0000",
    "\\ud800",
];

pub(super) fn config(input: &[u8]) -> Result<()> {
    let Ok(text) = std::str::from_utf8(input) else { return Ok(()) };
    match Config::parse(Path::new("/etc/lb/lb.toml"), text) {
        Ok(config) => {
            let mut names: Vec<_> = config.services.iter().map(|service| &service.name).collect();
            names.sort();
            let services = names.len();
            names.dedup();
            ensure!(names.len() == services, "two services have one name");
        }
        Err(ConfigError::Faults(faults)) => {
            ensure!(!faults.is_empty(), "refused without a reason");
            let lines = text.split('\n').count();
            for fault in &faults {
                ensure!((1..=lines).contains(&fault.line), "line {} of {lines}: {fault}", fault.line);
                ensure!(fault.column >= 1 && !fault.reason.is_empty(), "{fault:?}");
                // A line may end in more than is shown of it.
                let line = text.split('\n').nth(fault.line - 1).unwrap_or_default();
                ensure!(fault.column <= line.chars().count() + 1, "{fault:?}");
            }
        }
        Err(other) => anyhow::bail!("nothing was read: {other}"),
    }
    for line in text.lines() {
        if let Ok(name) = ServerName::parse(line) {
            ensure!(ServerName::parse(&name.to_string()) == Ok(name), "{line} is written as another name");
        }
    }
    Ok(())
}

pub(super) fn control(input: &[u8]) -> Result<()> {
    if let Ok(request) = control::decode::<Request>(input) {
        let again: Request = control::decode(&control::encode(&request))?;
        ensure!(again == request, "{request:?} became {again:?}");
    }
    if let Ok(response) = control::decode::<Response>(input) {
        let line = control::encode(&response);
        ensure!(line.iter().filter(|byte| **byte == b'\n').count() == 1, "an answer is not one line");
        let again: Response = control::decode(&line)?;
        ensure!(again == response, "{response:?} became {again:?}");
    }
    Ok(())
}
