//! Headless Chromium in the client's namespace, told what to do over the pipe of its DevTools protocol: requests and events
//! are JSON, each with a zero byte behind it.

use super::family::{self, Family};
use super::{tools, visit};
use crate::balancer::dial;
use crate::client::WATCHDOG;
use crate::topology::Topology;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// One browser with one page.
pub struct Browser {
    _family: Family,
    orders: ChildStdin,
    answers: Receiver<Value>,
    /// Events that came while something else was awaited.
    events: Vec<Value>,
    last: u64,
    /// The page, as the protocol names it; empty before there is one.
    page: String,
    _profile: tempfile::TempDir,
}

/// Chromium has the pipe's ends at 3 and 4; they come here as standard input and output.
const SCRIPT: &str = "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null";

impl Browser {
    /// Starts it with an empty profile.
    pub fn start(town: &Topology) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let log = File::create(profile.path().join("log"))?;
        let mut process = family::command(&town.client.netns, "sh")
            .args(["-c", SCRIPT, "sh"])
            .arg(tools::program("chromium")?)
            .args(["--headless", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"])
            .args(["--disable-dev-shm-usage", "--no-first-run", "--no-proxy-server", "--disable-quic"])
            // It is alone with the service: what it asks of the wide world would only fail.
            .args(["--disable-background-networking", "--disable-component-update", "--disable-sync"])
            .arg(format!("--host-resolver-rules=MAP *.test {}", dial().ip()))
            .arg("--ignore-certificate-errors")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .env("HOME", profile.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .context("starting Chromium")?;
        let orders = process.stdin.take().context("its input is piped")?;
        let pipe = process.stdout.take().context("its output is piped")?;
        let (sender, answers) = channel();
        // Ends with the pipe.
        std::thread::spawn(move || {
            for message in BufReader::new(pipe).split(0) {
                let Some(message) = message.ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()) else {
                    return;
                };
                if sender.send(message).is_err() {
                    return;
                }
            }
        });
        let mut browser = Self {
            _family: Family(process),
            orders,
            answers,
            events: Vec::new(),
            last: 0,
            page: String::new(),
            _profile: profile,
        };
        let target = browser.order("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let page = browser.order("Target.attachToTarget", attach)?;
        browser.page = page["sessionId"].as_str().context("a page has a session")?.to_owned();
        browser.order("Page.enable", json!({}))?;
        Ok(browser)
    }

    /// Goes to a page of the service and waits until it is there.
    pub fn visit(&mut self, path: &str) -> Result<()> {
        self.go(&visit::url(path))
    }

    /// The same with a whole URL. All names that end in `.test` are the service's.
    pub fn go(&mut self, url: &str) -> Result<()> {
        self.loading(|browser| {
            let went = browser.order("Page.navigate", json!({ "url": url }))?;
            ensure!(went.get("errorText").is_none(), "going to {url}: {}", went["errorText"]);
            Ok(())
        })
    }

    /// Fills in the fields of the page's form, by their names, presses its button, and waits for the page that comes.
    pub fn submit(&mut self, fields: &[(&str, &str)]) -> Result<()> {
        let mut script = String::new();
        for (name, value) in fields {
            script += &format!("document.getElementsByName({})[0].value = {};\n", json!(name), json!(value));
        }
        script += "document.querySelector('form button').click()";
        self.loading(|browser| browser.script(&script).map(drop))
    }

    /// What the page shows in the element of that id; nothing where there is none.
    pub fn text(&mut self, id: &str) -> Result<Option<String>> {
        let value = self.script(&format!("document.getElementById({})?.textContent", json!(id)))?;
        Ok(value.as_str().map(str::to_owned))
    }

    /// All the text of the page.
    pub fn page(&mut self) -> Result<String> {
        Ok(self.script("document.body.textContent")?.as_str().context("a page is text")?.to_owned())
    }

    /// The page's title.
    pub fn title(&mut self) -> Result<String> {
        Ok(self.script("document.title")?.as_str().context("a title is text")?.to_owned())
    }

    /// The value of a cookie.
    pub fn cookie(&mut self, name: &str) -> Result<Option<String>> {
        let cookies = self.order("Network.getCookies", json!({ "urls": [visit::url("/")] }))?;
        let cookies = cookies["cookies"].as_array().context("cookies are a list")?;
        let found = cookies.iter().find(|cookie| cookie["name"] == name);
        Ok(found.and_then(|cookie| cookie["value"].as_str()).map(str::to_owned))
    }

    fn script(&mut self, script: &str) -> Result<Value> {
        let mut answer = self.order("Runtime.evaluate", json!({ "expression": script }))?;
        ensure!(answer.get("exceptionDetails").is_none(), "{script}: {answer}");
        Ok(answer["result"]["value"].take())
    }

    /// Does what makes a page load, and waits until it has loaded.
    fn loading(&mut self, act: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        self.events.clear();
        act(self)?;
        let loaded = |event: &Value| event["method"] == "Page.loadEventFired";
        while !self.events.iter().any(loaded) {
            let event = self.next().context("a page loads")?;
            self.events.push(event);
        }
        Ok(())
    }

    /// A command of the protocol, and what it returns.
    fn order(&mut self, method: &str, params: Value) -> Result<Value> {
        self.last += 1;
        let mut order = json!({ "id": self.last, "method": method, "params": params });
        if !self.page.is_empty() {
            order["sessionId"] = json!(self.page);
        }
        self.orders.write_all(format!("{order}\0").as_bytes()).context("Chromium has ended")?;
        loop {
            let mut answer = self.next().with_context(|| method.to_owned())?;
            if answer["id"] != self.last {
                self.events.push(answer);
            } else if answer.get("error").is_some() {
                bail!("{method}: {}", answer["error"]);
            } else {
                return Ok(answer["result"].take());
            }
        }
    }

    fn next(&self) -> Result<Value> {
        self.answers.recv_timeout(WATCHDOG).with_context(|| {
            let log = std::fs::read_to_string(self._profile.path().join("log")).unwrap_or_default();
            format!("Chromium says nothing; its log:\n{log}")
        })
    }
}
