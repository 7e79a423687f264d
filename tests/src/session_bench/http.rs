//! Load over HTTP/1.1: connections that are kept open, each with one request under way, all on one thread. It does as
//! little as it can, because it shares the machine with what it measures.

use super::stint::{Sample, Stint, closed_loop};
use anyhow::{Context, Result, bail, ensure};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// A set of requests, and how their answers are known to be what the row says.
#[derive(Clone)]
pub(super) struct Load {
    pub(super) addr: SocketAddr,
    /// Whole requests, taken in turn.
    pub(super) requests: Arc<[Vec<u8>]>,
    /// Bytes that stand in the head of every right answer.
    pub(super) marked: &'static str,
}

/// A GET with a cookie, as a browser's would be, but shorter.
pub(super) fn get(path: &str, cookie: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: shop.test\r\nAccept: */*\r\nCookie: {cookie}\r\n\r\n").into_bytes()
}

impl Load {
    /// Asks over that many connections for a while.
    pub(super) fn run(&self, connections: usize, time: Duration) -> Result<Sample> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(closed_loop(connections, time, |worker, stint| {
            self.clone().ask(worker, connections, stint)
        }))
    }

    /// Every request once, so that what follows finds what it needs.
    pub(super) async fn once(&self, connections: usize) -> Result<()> {
        let asking = (0..connections).map(|worker| {
            let load = self.clone();
            tokio::spawn(async move {
                let mut connection = Connection::open(load.addr).await?;
                for request in load.requests.iter().skip(worker).step_by(connections) {
                    connection.ask(request).await?;
                }
                anyhow::Ok(())
            })
        });
        for connection in asking.collect::<Vec<_>>() {
            connection.await??;
        }
        Ok(())
    }

    async fn ask(self, worker: usize, connections: usize, mut stint: Stint) -> Result<Stint> {
        let mut connection = Connection::open(self.addr).await?;
        let turns = (worker..).step_by(connections);
        for turn in turns {
            if !stint.goes_on().await {
                break;
            }
            let head = connection.ask(&self.requests[turn % self.requests.len()]).await?;
            ensure!(
                find(head, self.marked.as_bytes()).is_some(),
                "an answer without {:?}: {}",
                self.marked,
                head.escape_ascii()
            );
            stint.done();
        }
        Ok(stint)
    }
}

struct Connection {
    stream: TcpStream,
    buffer: Vec<u8>,
}

impl Connection {
    async fn open(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr).await.with_context(|| format!("connecting to {addr}"))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, buffer: Vec::with_capacity(4096) })
    }

    /// The head of the answer, whose body has come, too.
    async fn ask(&mut self, request: &[u8]) -> Result<&[u8]> {
        self.stream.write_all(request).await?;
        self.buffer.clear();
        let mut whole = None;
        while whole.is_none_or(|(_, whole)| self.buffer.len() < whole) {
            if self.stream.read_buf(&mut self.buffer).await? == 0 {
                bail!("the connection was closed after {}", self.buffer.escape_ascii());
            }
            if whole.is_none() {
                whole = lengths(&self.buffer)?;
            }
        }
        let (head, whole) = whole.expect("the loop ends with it");
        ensure!(self.buffer.len() == whole, "more came than an answer");
        let head = &self.buffer[..head];
        ensure!(head.starts_with(b"HTTP/1.1 200 "), "refused: {}", self.buffer.escape_ascii());
        Ok(head)
    }
}

/// Bytes of an answer's head, and of all of it, once its head has come.
fn lengths(answer: &[u8]) -> Result<Option<(usize, usize)>> {
    const LENGTH: &[u8] = b"\r\ncontent-length: ";
    let Some(head) = find(answer, b"\r\n\r\n") else { return Ok(None) };
    let head = head + 4;
    let at = find(&answer[..head], LENGTH).context("an answer without content-length")? + LENGTH.len();
    let digits = answer[at..].iter().take_while(|byte| byte.is_ascii_digit());
    let body = digits.fold(0, |sum, digit| 10 * sum + usize::from(digit - b'0'));
    Ok(Some((head, head + body)))
}

/// Where `what` first stands. hyper writes header names in lower case.
fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_whole_when_its_body_is() {
        let head = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: 12\r\n\r\n";
        assert_eq!(lengths(&head[..head.len() - 1]).unwrap(), None);
        assert_eq!(lengths(head).unwrap(), Some((head.len(), head.len() + 12)));
        assert!(lengths(b"HTTP/1.1 200 OK\r\n\r\n").is_err());
    }
}
