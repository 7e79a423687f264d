//! A server that speaks first, as SMTP and SSH servers do, and the client that waits for its word.

use crate::client::{Client, WATCHDOG};
use crate::netns::Netns;
use crate::topology::Host;
use anyhow::{Context, Result, ensure};
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddrV4, TcpListener, TcpStream};
use std::thread;

/// Greets everybody with that name and repeats every line, for as long as the test's process lives.
pub fn greet(host: &Host, name: impl Into<String>) -> Result<()> {
    let listener = host
        .netns
        .run(|| TcpListener::bind(host.serves()))
        .with_context(|| format!("listening on {} in {}", host.serves(), host.netns))?;
    let name = name.into();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let (Ok(stream), name) = (stream, name.clone()) else { return };
            // A client may leave at any moment; what tests look at is what the client saw.
            thread::spawn(move || converse(&stream, &name));
        }
    });
    Ok(())
}

fn converse(stream: &TcpStream, name: &str) -> Result<()> {
    say(stream, name)?;
    for line in BufReader::new(stream).lines() {
        say(stream, &line?)?;
    }
    Ok(())
}

/// A line in one piece: in two, the second waits until the other side has acknowledged the first, 40 ms later.
fn say(mut stream: &TcpStream, line: &str) -> Result<()> {
    Ok(stream.write_all(format!("{line}\n").as_bytes())?)
}

/// A connection whose server has greeted.
pub struct Talk {
    stream: BufReader<TcpStream>,
    /// Who greeted.
    pub server: String,
}

impl Talk {
    /// Connects to the service from inside a namespace, from a chosen address if there is one.
    pub fn begin(netns: &Netns, from: Option<SocketAddrV4>) -> Result<Self> {
        let stream = Client::connect_from(netns, from)?.stream().try_clone()?;
        stream.set_read_timeout(Some(WATCHDOG))?;
        let mut talk = Self { stream: BufReader::new(stream), server: String::new() };
        talk.server = talk.line().context("waiting for the greeting")?;
        Ok(talk)
    }

    /// Says something and hears it again.
    ///
    /// # Errors
    /// The connection is broken, or something else came back.
    pub fn goes_on(&mut self, what: &str) -> Result<()> {
        say(self.stream.get_ref(), what)?;
        let said = self.line().with_context(|| format!("at {}, {what}", self.server))?;
        ensure!(said == what, "{said:?} is not {what:?}");
        Ok(())
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.stream.read_line(&mut line)? > 0, "the server has closed");
        Ok(line.trim_end().to_owned())
    }
}
