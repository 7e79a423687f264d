//! kill -9 of lbd in the middle of writes: every write that was acknowledged is there afterwards.

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use std::sync::atomic::{AtomicU64, Ordering};
use tests::client::{Client, Response, eventually};
use tests::daemon::{Backend, Lbd};
use tests::topology::{Arms, Topology};

const ROUNDS: usize = 20;
const WRITERS: usize = 4;

/// One client with a session of its own, counting upwards in it.
#[derive(Default)]
struct Writer {
    token: Option<String>,
    /// The last value that was acknowledged...
    acknowledged: u64,
    /// ...and the last that was sent.
    sent: u64,
}

impl Writer {
    fn headers(&self) -> String {
        self.token.as_ref().map_or_else(String::new, |token| format!("Cookie: lb={token}\r\n"))
    }

    fn keep_token(&mut self, response: &Response) {
        let cookie = |line: &str| {
            let (name, value) = line.split_once(':')?;
            let value = value.trim().strip_prefix("lb=")?;
            name.eq_ignore_ascii_case("set-cookie").then(|| value.split(';').next().map(str::to_owned))?
        };
        if let Some(token) = response.head.lines().find_map(cookie) {
            self.token = Some(token);
        }
    }

    /// Writes on one connection until it breaks.
    fn write(&mut self, town: &Topology, acknowledged: &AtomicU64) -> Result<()> {
        let mut client = Client::connect(&town.client.netns)?;
        loop {
            self.sent += 1;
            let body = self.sent.to_string();
            let head = format!(
                "PUT /session/n HTTP/1.1\r\nHost: shop\r\n{}Content-Length: {}\r\n\r\n{body}",
                self.headers(),
                body.len()
            );
            client.send(head.as_bytes())?;
            let response = client.response()?;
            // 201 when the key comes into being.
            let made = ["HTTP/1.1 200", "HTTP/1.1 201"].iter().any(|line| response.head.starts_with(line));
            ensure!(made, "refused: {response:?}");
            self.acknowledged = self.sent;
            self.keep_token(&response);
            acknowledged.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Reads the session back: the value must be the last that was acknowledged, or the one that was under way.
    fn check(&mut self, town: &Topology) -> Result<()> {
        let response = Client::connect(&town.client.netns)?.get("/session", &self.headers())?;
        ensure!(response.head.starts_with("HTTP/1.1 200"), "refused: {response:?}");
        self.keep_token(&response);
        let session: Value = serde_json::from_str(&response.body)?;
        let value = session["state"]["n"].as_u64().unwrap_or(0);
        ensure!(
            value == self.acknowledged || value == self.sent,
            "acknowledged {}, sent {}, found {value}: {}",
            self.acknowledged,
            self.sent,
            response.body
        );
        ensure!(session["source"] != "cache" || value == self.sent, "a killed server's cache answered");
        // What was under way may be there or not; from now on it counts as written.
        (self.acknowledged, self.sent) = (value, value);
        Ok(())
    }
}

#[test]
fn acknowledged_writes_survive_twenty_kills() -> Result<()> {
    let town = Topology::new(Arms::Several, 0)?;
    let mut lbd = Lbd::start(&town, &[Backend::Managed, Backend::Managed])?;
    let mut writers: Vec<Writer> = (0..WRITERS).map(|_| Writer::default()).collect();
    for round in 0..ROUNDS {
        let acknowledged = AtomicU64::new(0);
        std::thread::scope(|scope| -> Result<()> {
            let clients: Vec<_> =
                writers.iter_mut().map(|writer| scope.spawn(|| writer.write(&town, &acknowledged))).collect();
            // Between kills there is a different number of writes, so they fall on different places.
            let enough = 20 + 13 * round as u64;
            let wrote =
                eventually("writes are acknowledged", || Ok(acknowledged.load(Ordering::Relaxed) >= enough));
            lbd.kill()?;
            for client in clients {
                let end =
                    client.join().expect("no writer panics").expect_err("writers end with their connection");
                let broken = end.downcast_ref::<std::io::Error>().is_some()
                    || end.to_string().contains("reading a response")
                    || end.to_string().contains("the connection ended");
                ensure!(broken, "a writer failed before lbd was killed: {end:#}");
            }
            wrote
        })
        .with_context(|| format!("round {round}; lbd's log:\n{}", lbd.log()))?;
        lbd.resume().with_context(|| format!("round {round}"))?;
        for writer in &mut writers {
            writer.check(&town).with_context(|| format!("round {round}; lbd's log:\n{}", lbd.log()))?;
        }
    }
    Ok(())
}
