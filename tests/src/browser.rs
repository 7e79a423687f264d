//! curl as a browser: with a cookie jar of its own.

use crate::balancer::dial;
use crate::topology::Topology;
use anyhow::{Context, Result, ensure};

/// A visitor of the service, whose cookies are kept from one request to the next.
pub struct Browser<'a> {
    town: &'a Topology,
    jar: tempfile::NamedTempFile,
}

impl<'a> Browser<'a> {
    /// One without cookies.
    pub fn new(town: &'a Topology) -> Result<Self> {
        Ok(Self { town, jar: tempfile::NamedTempFile::new()? })
    }

    /// One request on a connection of its own, with more of curl's arguments: the body of the answer.
    ///
    /// # Errors
    /// The service does not answer, or answers with an error.
    pub fn curl(&self, path: &str, args: &[&str]) -> Result<String> {
        let jar = self.jar.path();
        let output = self
            .town
            .client
            .netns
            .command("curl")
            .args(["--silent", "--show-error", "--fail-with-body", "--max-time", "30"])
            .arg("--cookie")
            .arg(jar)
            .arg("--cookie-jar")
            .arg(jar)
            .args(args)
            .arg(format!("http://{}{path}", dial()))
            .output()
            .context("running curl; `cargo xtask setup` installs it")?;
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        ensure!(output.status.success(), "curl {path}: {}: {err}{out}", output.status);
        Ok(out.into_owned())
    }

    /// The value of a cookie that it has.
    pub fn cookie(&self, name: &str) -> Result<String> {
        let jar = std::fs::read_to_string(self.jar.path())?;
        let value = jar.lines().find_map(|line| match line.split('\t').collect::<Vec<_>>()[..] {
            [.., key, value] if key == name => Some(value.to_owned()),
            _ => None,
        });
        value.with_context(|| format!("no cookie {name} in {jar}"))
    }
}
