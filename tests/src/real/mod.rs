//! Applications as people run them, unchanged, behind the balancer: each keeps sessions of its own in its own way, names
//! itself in `X-Server`, and knows nothing of lbd. Their sources are in tests/fixtures; what they need beside Debian's
//! packages is in target/tools, where `cargo xtask setup` puts it.

pub mod browser;
pub mod django;
mod express;
mod family;
pub mod nginx;
mod php;
mod smtp;
mod sshd;
pub mod tools;
pub mod visit;

use crate::client::eventually;
use crate::daemon::{Backend, Lbd, Manner};
use crate::netns::Netns;
use crate::topology::{Arms, Host, Topology};
use anyhow::{Context, Result, bail, ensure};
use family::Family;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{SocketAddrV4, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What serves.
///
/// | path | the answer of an application with sessions |
/// |---|---|
/// | `/plain` | its name; touches no session |
/// | `/count` | its name and the number of the session's visits |
/// | `/renew` | the same, after the session got another id |
/// | `/end` | its name, after the session and its cookie are gone |
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum App {
    /// PHP's own sessions, in files, behind nginx.
    Php,
    /// express-session, in the memory of Node.
    Express,
    /// Django's sessions and users, in a database of each instance, under gunicorn.
    Django,
    /// nginx alone, which gives each visitor an id and keeps nothing. It answers its name and the id.
    Nginx,
    /// nginx that speaks TLS and answers its name and the one that it was called by.
    Tls,
    /// OpenSSH's server, each with a host key of its own.
    Sshd,
    /// aiosmtpd, which puts mail into a maildir.
    Smtp,
}

impl App {
    /// The affinity that keeps its clients at home, as TOML.
    pub fn affinity(self) -> String {
        let learned = |cookie: &str| format!("{{ kind = \"learned\", cookie = \"{cookie}\" }}");
        match self {
            Self::Php => learned("PHPSESSID"),
            Self::Express => learned("connect.sid"),
            Self::Django => learned("sessionid"),
            Self::Nginx => learned("uid"),
            Self::Tls => "{ kind = \"hashed\", sni = true }".to_owned(),
            Self::Sshd => "{ kind = \"source\" }".to_owned(),
            Self::Smtp => "{ kind = \"none\" }".to_owned(),
        }
    }

    /// What it begins with when it is well: unasked, or when it is asked for `/plain`.
    fn begins(self) -> &'static str {
        match self {
            Self::Sshd => "SSH-2.0-",
            Self::Smtp => "220 ",
            // It says that it wants to be asked by TLS.
            Self::Tls => "HTTP/1.1 400",
            Self::Php | Self::Express | Self::Django | Self::Nginx => "HTTP/1.1 200",
        }
    }

    fn commands(self, place: &Place) -> Result<Vec<Command>> {
        match self {
            Self::Php => php::commands(place),
            Self::Express => Ok(vec![express::command(place)?]),
            Self::Django => Ok(vec![django::command(place)?]),
            Self::Nginx => Ok(vec![nginx::naming_visitors(place)?]),
            Self::Tls => Ok(vec![nginx::with_tls(place)?]),
            Self::Sshd => Ok(vec![sshd::command(place)?]),
            Self::Smtp => Ok(vec![smtp::command(place)?]),
        }
    }
}

/// Where an instance lives.
struct Place {
    netns: Netns,
    addr: SocketAddrV4,
    name: String,
    /// Its own, and empty when it first starts.
    dir: PathBuf,
}

/// One server, running or not. What it keeps on disk outlives a restart.
pub struct Instance {
    app: App,
    place: Place,
    families: Vec<Family>,
    _dir: tempfile::TempDir,
}

impl Instance {
    /// Starts it; whether it serves yet is not known.
    fn spawn(app: App, host: &Host, name: &str) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let place = Place {
            netns: host.netns.clone(),
            addr: host.serves(),
            name: name.to_owned(),
            dir: dir.path().to_owned(),
        };
        let mut instance = Self { app, place, families: Vec::new(), _dir: dir };
        instance.launch()?;
        Ok(instance)
    }

    fn launch(&mut self) -> Result<()> {
        ensure!(self.families.is_empty(), "{} runs already", self.place.name);
        for mut command in self.app.commands(&self.place)? {
            let log = File::options().create(true).append(true).open(self.place.dir.join("log"))?;
            let child = command.stdout(log.try_clone()?).stderr(log).spawn();
            self.families.push(Family(child.with_context(|| format!("starting {:?}", self.app))?));
        }
        Ok(())
    }

    fn await_ready(&mut self) -> Result<()> {
        eventually("the application serves", || {
            for family in &mut self.families {
                if let Some(status) = family.0.try_wait()? {
                    bail!("{:?} ended with {status}", self.app);
                }
            }
            Ok(self.is_well().unwrap_or(false))
        })
        .with_context(|| self.log())
    }

    /// `kill -9` to all its processes; waits until they are gone.
    pub fn kill(&mut self) {
        self.families.clear();
    }

    /// Starts it again and waits until it serves.
    pub fn resume(&mut self) -> Result<()> {
        self.launch()?;
        self.await_ready()
    }

    fn connect(&self) -> Result<TcpStream> {
        let stream = self.place.netns.run(|| TcpStream::connect(self.place.addr))?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(stream)
    }

    fn is_well(&self) -> Result<bool> {
        let mut stream = self.connect()?;
        if !matches!(self.app, App::Sshd | App::Smtp) {
            write!(stream, "GET /plain HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")?;
        }
        let mut begins = vec![0; self.app.begins().len()];
        stream.read_exact(&mut begins)?;
        Ok(begins == self.app.begins().as_bytes())
    }

    /// Asks it past the balancer, with further header lines, each ending in CRLF; the whole answer.
    pub fn get(&self, path: &str, headers: &str) -> Result<String> {
        let mut stream = self.connect()?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\n{headers}Connection: close\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    }

    /// Where it keeps what it keeps.
    pub fn dir(&self) -> &Path {
        &self.place.dir
    }

    /// The name that it gives itself.
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        let text = fs::read_to_string(self.place.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        format!("{}:\n{}\n", self.place.name, lines[lines.len().saturating_sub(15)..].join("\n"))
    }
}

/// Everything; fields in the order in which they must go.
pub struct Scene {
    pub lbd: Lbd,
    /// Those behind lbd, in the order of its backends, and of the same names.
    pub instances: Vec<Instance>,
    pub town: Topology,
}

impl Scene {
    /// Instances of one application behind an lbd that is told this, all ready.
    fn new(app: App, backends: usize, manner: Manner) -> Result<Self> {
        let town = Topology::new(Arms::Several, backends)?;
        let mut instances = town
            .backends
            .iter()
            .enumerate()
            .map(|(i, host)| Instance::spawn(app, host, &format!("b{i}")))
            .collect::<Result<Vec<_>>>()?;
        instances.iter_mut().try_for_each(Instance::await_ready)?;
        let remote: Vec<_> = town.backends.iter().map(Backend::Remote).collect();
        let lbd = Lbd::start_in(&town, &remote, manner)?;
        Ok(Self { lbd, instances, town })
    }

    /// Three instances with the affinity that suits them, for a test whose failure tells the logs.
    pub fn run(app: App, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        Self::run_with(app, app.affinity(), test)
    }

    /// The same with another affinity.
    pub fn run_with(app: App, affinity: String, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        Self::run_in(app, Manner { affinity: Some(affinity), ..Manner::default() }, test)
    }

    /// The same behind an lbd that is told this.
    pub fn run_in(app: App, manner: Manner, test: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut scene = Self::new(app, 3, manner)?;
        test(&mut scene).with_context(|| scene.logs())
    }

    /// Waits until lbd says that of a backend.
    pub fn await_state(&self, backend: &str, state: &str) -> Result<()> {
        eventually("lbd has seen the backend's state", || {
            let states = self.lbd.states()?;
            Ok(states.iter().any(|(name, now)| name == backend && now == state))
        })
    }

    fn logs(&self) -> String {
        let stats = self.lbd.ctl(&["stats"]).unwrap_or_else(|error| format!("{error:#}"));
        let instances: String = self.instances.iter().map(Instance::log).collect();
        format!("lbd:\n{}\n{stats}\n{instances}", self.lbd.log())
    }
}
