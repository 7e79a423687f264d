//! A client with one session: keeps the token of every answer, each request on a connection of its own.

use crate::client::{Client, Response};
use crate::netns::Netns;
use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A browser, as far as sessions go.
#[derive(Clone, Debug, Default)]
pub struct Visitor {
    pub token: Option<String>,
}

impl Visitor {
    /// Sends a request and keeps the token that comes back.
    pub fn request(&mut self, netns: &Netns, method: &str, path: &str, body: &str) -> Result<Response> {
        let cookie = self.token.as_ref().map_or_else(String::new, |token| format!("Cookie: lb={token}\r\n"));
        let text = format!(
            "{method} {path} HTTP/1.1\r\nHost: shop\r\n{cookie}Connection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut client = Client::connect(netns)?;
        client.send(text.as_bytes())?;
        let response = client.response()?;
        if let Some(token) = response.head.lines().find_map(cookie_of) {
            self.token = Some(token.to_owned());
        }
        Ok(response)
    }

    /// Stores a value; fails unless it was acknowledged.
    pub fn put(&mut self, netns: &Netns, key: &str, value: &str) -> Result<()> {
        let response = self.request(netns, "PUT", &format!("/session/{key}"), value)?;
        ensure!(status(&response).starts_with('2'), "not stored: {response:?}");
        Ok(())
    }

    /// What the server knows of the session.
    pub fn session(&mut self, netns: &Netns) -> Result<Value> {
        let response = self.request(netns, "GET", "/session", "")?;
        ensure!(response.head.starts_with("HTTP/1.1 200"), "no session: {response:?}");
        Ok(serde_json::from_str(&response.body)?)
    }

    pub fn token(&self) -> Result<&str> {
        self.token.as_deref().context("no token yet")
    }
}

/// The token in a line of an answer's head.
fn cookie_of(line: &str) -> Option<&str> {
    let (name, value) = line.split_once(':')?;
    let value = value.trim().strip_prefix("lb=")?;
    name.eq_ignore_ascii_case("set-cookie").then(|| value.split(';').next())?
}

/// The status of an answer.
pub fn status(response: &Response) -> &str {
    response.head.split(' ').nth(1).unwrap_or_default()
}
