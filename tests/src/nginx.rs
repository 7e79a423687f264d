//! An unmodified server: nginx in a backend's namespace, its files in a directory that goes with it.

use crate::client::eventually;
use crate::netns::Process;
use crate::topology::Host;
use anyhow::{Context, Result};
use std::fs;
use std::net::TcpStream;

/// What it answers.
pub const BODY: &str = "from nginx";

/// Serves until it is dropped.
pub struct Nginx {
    _process: Process,
    _dir: tempfile::TempDir,
}

impl Nginx {
    /// Starts it and waits until it listens.
    pub fn start(host: &Host) -> Result<Self> {
        Self::start_as(host, "", "", "")
    }

    /// The same with more words of its `listen`, and more lines of its `http` and its `server`.
    pub fn start_as(host: &Host, listen: &str, http: &str, server: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let prefix = dir.path().display().to_string();
        fs::write(dir.path().join("index.html"), BODY)?;
        let config = format!(
            "daemon off; master_process off; pid {prefix}/pid; error_log {prefix}/error.log;\n\
             events {{ worker_connections 4000; }}\n\
             http {{ access_log off; keepalive_requests 100000000; client_body_temp_path {prefix}/b;\n\
             proxy_temp_path {prefix}/p; fastcgi_temp_path {prefix}/f; uwsgi_temp_path {prefix}/u;\n\
             scgi_temp_path {prefix}/s; {http}\n\
             server {{ listen {} backlog=4000 {listen}; root {prefix}; {server} }} }}\n",
            host.serves()
        );
        let file = dir.path().join("nginx.conf");
        fs::write(&file, config)?;
        let process = host
            .netns
            .command("nginx")
            .args(["-e", &format!("{prefix}/error.log"), "-c"])
            .arg(&file)
            .spawn()
            .context("starting nginx; `cargo xtask setup` installs it")?;
        let nginx = Self { _process: Process(process), _dir: dir };
        eventually("nginx listens", || Ok(host.netns.run(|| TcpStream::connect(host.serves())).is_ok()))?;
        Ok(nginx)
    }
}
