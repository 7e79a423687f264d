//! HTTP as the clients of the torture speak it: requests can be pipelined, and an answer is whole or none.

use crate::history::{By, Cart, Instance, Values};
use anyhow::{Context, Result, bail, ensure};
use lb_common::token::{SessionId, decode};
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream};
use std::sync::Arc;
use std::time::Duration;

/// A client that has waited so long gives up: the outcome is unknown then.
const PATIENCE: Duration = Duration::from_secs(4);
/// More than any answer has.
const MAX_BODY: usize = 1 << 20;

/// A token as the client has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Ticket {
    pub(super) text: Arc<str>,
    pub(super) instance: Instance,
    pub(super) session: SessionId,
}

impl Ticket {
    /// What is in a token, on its word: the signature is the servers' business.
    pub(super) fn read(text: &str) -> Option<Self> {
        let raw = decode(text.as_bytes()).ok()?;
        let mut session = [0; 16];
        session.copy_from_slice(&raw[9..25]);
        let slot = u16::from_be_bytes([raw[3], raw[4]]);
        let epoch = u32::from_be_bytes([raw[5], raw[6], raw[7], raw[8]]);
        Some(Self { text: text.into(), instance: (slot, epoch), session: SessionId(session) })
    }
}

/// A connection from the namespace of the calling thread.
pub(super) struct Line {
    stream: TcpStream,
    input: BufReader<TcpStream>,
}

/// An answer.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) by: By,
    /// A new token.
    pub(super) ticket: Option<Ticket>,
    /// Half a session's id, as its tag has it, and the version.
    pub(super) tag: Option<(u64, u64)>,
    pub(super) body: Vec<u8>,
    /// What was asked had been done before.
    pub(super) repeated: bool,
    /// The server closes the connection after it.
    pub(super) last: bool,
}

impl Line {
    /// Opens it, from an address of the caller's if there is one.
    pub(super) fn open(from: Option<Ipv4Addr>, to: SocketAddrV4) -> std::io::Result<Self> {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP))?;
        if let Some(from) = from {
            socket.bind(&SocketAddr::from((from, 0)).into())?;
        }
        socket.connect_timeout(&SocketAddr::V4(to).into(), PATIENCE)?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        stream.set_nodelay(true)?;
        let input = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, input })
    }

    pub(super) fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Waits until the other side has closed the connection, up to a limit.
    pub(super) fn await_end(&mut self, limit: Duration) -> Result<()> {
        self.stream.set_read_timeout(Some(limit))?;
        match self.input.read(&mut [0; 1]) {
            Ok(0) => Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
            Ok(_) => bail!("an answer that nobody had asked for"),
            Err(error) => Err(error).context("the connection was not closed"),
        }
    }

    /// Reads one whole answer.
    pub(super) fn answer(&mut self) -> Result<Answer> {
        let mut line = self.line()?;
        let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).context("no status")?;
        let (mut server, mut epoch, mut source) = (None, None, None);
        let (mut ticket, mut tag, mut length) = (None, None, None);
        let (mut repeated, mut last) = (false, false);
        loop {
            line = self.line()?;
            if line.is_empty() {
                break;
            }
            let (name, value) = line.split_once(':').context("a header without a colon")?;
            let value = value.trim();
            match name.to_ascii_lowercase().as_str() {
                "lb-server" => server = Some(Arc::from(value)),
                "lb-epoch" => epoch = value.parse().ok(),
                "lb-source" => source = Some(Arc::from(value)),
                "set-cookie" => {
                    let text = value.strip_prefix("lb=").and_then(|rest| rest.split(';').next());
                    ticket = text.filter(|text| !text.is_empty()).and_then(Ticket::read);
                }
                "etag" => tag = read_tag(value),
                "content-length" => length = value.parse().ok(),
                "idempotent-replayed" => repeated = value == "true",
                "connection" => last = value.eq_ignore_ascii_case("close"),
                _ => {}
            }
        }
        let by = By {
            server: server.context("no LB-Server")?,
            epoch: epoch.context("no LB-Epoch")?,
            source: source.context("no LB-Source")?,
        };
        let length = if status == 304 { 0 } else { length.context("no Content-Length")? };
        ensure!(length <= MAX_BODY, "an answer of {length} bytes");
        let mut body = vec![0; length];
        self.input.read_exact(&mut body)?;
        Ok(Answer { status, by, ticket, tag, body, repeated, last })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        ensure!(self.input.read_line(&mut line)? > 0 && line.ends_with("\r\n"), "the connection ended");
        line.truncate(line.len() - 2);
        Ok(line)
    }
}

/// `"0123456789abcdef-17"`: the first half of the session's id, and the version.
fn read_tag(value: &str) -> Option<(u64, u64)> {
    let (half, version) = value.strip_prefix('"')?.strip_suffix('"')?.split_once('-')?;
    Some((u64::from_str_radix(half, 16).ok()?, version.parse().ok()?))
}

/// The tag that `read_tag` reads.
pub(super) fn tag(session: SessionId, version: u64) -> String {
    format!("\"{:016x}-{version}\"", half(session))
}

/// The first half of a session's id.
pub(super) fn half(session: SessionId) -> u64 {
    session.0[..8].iter().fold(0, |half, byte| half << 8 | u64::from(*byte))
}

/// What the body of an answer says of a session.
pub(super) struct View {
    pub(super) session: SessionId,
    pub(super) version: u64,
    pub(super) values: Option<Values>,
    pub(super) cart: Option<Cart>,
}

impl View {
    /// Of `/session` and below, and of `/cart` and below.
    pub(super) fn read(body: &[u8]) -> Result<Self> {
        let view: Value = serde_json::from_slice(body).context("the body is not JSON")?;
        let session = view["session"].as_str().and_then(|id| SessionId::from_hex(id.as_bytes()));
        let state = view["state"].as_object();
        let values = state.map(|state| {
            let plain = state.iter().filter(|(_, value)| value.is_string());
            plain
                .map(|(key, value)| (Arc::from(key.as_str()), Arc::from(value.as_str().unwrap_or_default())))
                .collect()
        });
        // A session without a cart has an empty one.
        let items = match state {
            Some(state) => Some(state.get("cart").and_then(Value::as_array).cloned().unwrap_or_default()),
            None => view["items"].as_array().cloned(),
        };
        let cart = items.map(|items| items.iter().map(item).collect::<Option<Cart>>().context("an odd item"));
        Ok(Self {
            session: session.with_context(|| format!("no session in {view}"))?,
            version: view["version"].as_u64().context("no version")?,
            values,
            cart: cart.transpose()?,
        })
    }
}

fn item(item: &Value) -> Option<(Arc<str>, u32)> {
    Some((item["sku"].as_str()?.into(), u32::try_from(item["quantity"].as_u64()?).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_as_they_are_written() {
        let id = SessionId(std::array::from_fn(|i| 0xf0 + i as u8));
        assert_eq!(tag(id, 12), "\"f0f1f2f3f4f5f6f7-12\"");
        assert_eq!(read_tag(&tag(id, 12)), Some((half(id), 12)));
        assert_eq!(read_tag("W/\"1-2\""), None);
    }

    #[test]
    fn views_of_sessions_and_carts() {
        let session = "000102030405060708090a0b0c0d0e0f";
        let body = format!(
            r#"{{"session":"{session}","version":3,"state":{{"k":"v","cart":[{{"sku":"mug","quantity":2}}]}}}}"#
        );
        let view = View::read(body.as_bytes()).unwrap();
        assert_eq!((view.version, view.session.to_string().as_str()), (3, session));
        assert_eq!(view.values, Some([("k".into(), "v".into())].into()));
        assert_eq!(view.cart, Some([("mug".into(), 2)].into()));
        let body = format!(r#"{{"session":"{session}","version":3,"items":[{{"sku":"mug","quantity":2}}]}}"#);
        let view = View::read(body.as_bytes()).unwrap();
        assert_eq!((view.values, view.cart), (None, Some([("mug".into(), 2)].into())));
    }
}
