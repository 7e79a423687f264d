//! One message on the wire: a JSON object on a line of its own, with the version of the protocol, of bounded size.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Version of the protocol; grows when an older peer would misread a message.
pub const VERSION: u32 = 1;

/// Longest request, in bytes: sessions are imported many at a time.
pub const MAX_LINE: u64 = 4 << 20;

/// Longest answer, in bytes: a list of flows is long.
pub(super) const MAX_ANSWER: u64 = 64 << 20;

/// Why a message cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("a message is longer than {0} bytes")]
    TooLong(u64),
    #[error(
        "the peer speaks protocol version {0}, this is version {VERSION}: use lbctl and lbd of one build"
    )]
    Version(u32),
    #[error("a message is not understood: {0}")]
    Malformed(String),
    #[error("the connection ended in the middle of a message")]
    Truncated,
    #[error("the connection broke: {0}")]
    Io(#[from] std::io::Error),
}

#[derive(Serialize, Deserialize)]
struct Envelope<T> {
    v: u32,
    #[serde(flatten)]
    message: T,
}

/// What tells a version before the rest is understood.
#[derive(Deserialize)]
struct Version {
    v: u32,
}

/// Reads a message; `None` when the peer has no more.
pub(super) async fn read<T: DeserializeOwned>(
    reader: &mut (impl AsyncBufRead + Unpin),
    limit: u64,
) -> Result<Option<T>, WireError> {
    read_on(reader, limit, &mut Vec::new()).await
}

/// [`read`] that may be given up at any moment: what has come of a message until then stays in `line`, and the next call
/// with that goes on.
pub(super) async fn read_on<T: DeserializeOwned>(
    reader: &mut (impl AsyncBufRead + Unpin),
    limit: u64,
    line: &mut Vec<u8>,
) -> Result<Option<T>, WireError> {
    reader.take(limit.saturating_sub(line.len() as u64)).read_until(b'\n', line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    if line.last() != Some(&b'\n') {
        return Err(if line.len() as u64 >= limit {
            WireError::TooLong(limit)
        } else {
            WireError::Truncated
        });
    }
    decode(&std::mem::take(line)).map(Some)
}

pub(super) async fn write<T: Serialize>(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), WireError> {
    writer.write_all(&encode(message)).await?;
    writer.flush().await?;
    Ok(())
}

/// A message as its line, with the end of that.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut line = serde_json::to_vec(&Envelope { v: VERSION, message })
        .expect("messages are structs with text keys, which JSON can hold");
    line.push(b'\n');
    line
}

/// The message of a line.
///
/// # Errors
/// [`WireError::Version`] or [`WireError::Malformed`].
pub fn decode<T: DeserializeOwned>(line: &[u8]) -> Result<T, WireError> {
    let malformed = |error: serde_json::Error| WireError::Malformed(error.to_string());
    let value: serde_json::Value = serde_json::from_slice(line).map_err(malformed)?;
    let version: Version = Version::deserialize(&value).map_err(malformed)?;
    if version.v != VERSION {
        return Err(WireError::Version(version.v));
    }
    let mut value = value;
    if let Some(object) = value.as_object_mut() {
        object.remove("v");
    }
    serde_json::from_value(value).map_err(malformed)
}

#[cfg(test)]
mod tests {
    use super::super::{Admin, Refused, Request, Response, StatsView, StoreRequest};
    use super::*;
    use crate::session::Given;
    use crate::session::store::archive::Import;
    use tokio::io::BufReader;

    async fn read_from(bytes: &[u8]) -> Result<Option<Request>, WireError> {
        read(&mut BufReader::new(bytes), 300).await
    }

    #[tokio::test]
    async fn every_request_survives_the_wire() {
        let backend = || "shop/s1".to_owned();
        for request in [
            Request::Status {},
            Request::ServiceList {},
            Request::BackendList { service: None },
            Request::BackendSet { backend: backend(), admin: Admin::Drain },
            Request::BackendRestart { backend: backend() },
            Request::BackendKill { backend: backend(), down_for_ms: Some(5) },
            Request::BackendForget { service: "shop".into(), backend: "s1".into() },
            Request::SessionShow { token: "t".into(), service: None },
            Request::SessionList { service: Some("s".into()), backend: None, limit: 5 },
            Request::FlowList { service: Some("shop".into()), backend: None, limit: 9 },
            Request::Stats { service: None },
            Request::Explain { token: "t".into(), service: None },
            Request::ExplainName { name: "n".into(), service: None, client: Some([192, 0, 2, 7].into()) },
            Request::SessionEnd { session: "t".into(), service: Some("s".into()) },
            Request::Trace { service: Some("shop".into()), client: Some([192, 0, 2, 7].into()) },
            Request::KeysRotate {},
            Request::KeysPrepare {},
            Request::KeysReload {},
            Request::Store { step: StoreRequest::Look {} },
            Request::Store { step: StoreRequest::Export { from: Some("00".into()) } },
            Request::Store {
                step: StoreRequest::Import {
                    lines: vec![(7, "{}\\".into())],
                    how: Import { services: [("shop".to_owned(), 1)].into(), replace: true },
                },
            },
            Request::Store {
                step: StoreRequest::Adopt {
                    given: Given {
                        services: [("shop".to_owned(), 1)].into(),
                        slots: vec![("shop".into(), "s1".into(), 3)],
                        epochs: vec![(3, 9)],
                    },
                },
            },
        ] {
            let line = encode(&request);
            assert_eq!(line.iter().filter(|b| **b == b'\n').count(), 1);
            assert_eq!(read_from(&line).await.unwrap(), Some(request));
        }
    }

    #[tokio::test]
    async fn answers_survive_the_wire() {
        for response in [
            Response::Done { message: "one\ntwo".into() },
            Response::Refused(Refused::with_help("no", "try")),
            Response::Services { services: Vec::new() },
            Response::Stats(StatsView::default()),
        ] {
            assert_eq!(decode::<Response>(&encode(&response)).unwrap(), response);
        }
        let line = String::from_utf8(encode(&Response::Done { message: "ok".into() })).unwrap();
        assert_eq!(line, "{\"v\":1,\"answer\":\"done\",\"message\":\"ok\"}\n");
    }

    #[tokio::test]
    async fn a_message_that_was_given_up_half_way_is_read_on() {
        use futures::FutureExt;
        let (mut there, here) = tokio::io::duplex(1000);
        let (mut reader, mut line) = (BufReader::new(here), Vec::new());
        let bytes = [encode(&Request::Status {}), encode(&Request::KeysRotate {})].concat();
        for byte in &bytes[..10] {
            there.write_all(&[*byte]).await.unwrap();
            assert!(read_on::<Request>(&mut reader, 300, &mut line).now_or_never().is_none());
        }
        there.write_all(&bytes[10..]).await.unwrap();
        drop(there);
        for expected in [Some(Request::Status {}), Some(Request::KeysRotate {}), None] {
            assert_eq!(read_on(&mut reader, 300, &mut line).await.unwrap(), expected);
        }
    }

    #[tokio::test]
    async fn what_is_no_message_is_told_as_such() {
        for (bytes, expected) in [
            (&b"{\"v\":2,\"verb\":\"anything\"}\n"[..], "the peer speaks protocol version 2"),
            (b"{\"v\":1,\"verb\":\"dance\"}\n", "a message is not understood: unknown variant `dance`"),
            (
                b"{\"v\":1,\"verb\":\"status\",\"loud\":1}\n",
                "a message is not understood: unknown field `loud`",
            ),
            (b"{\"verb\":\"status\"}\n", "a message is not understood: missing field `v`"),
            (b"GET / HTTP/1.1\r\n", "a message is not understood"),
            (b"{\"v\":1", "the connection ended in the middle of a message"),
            (&[b' '; 400], "a message is longer than 300 bytes"),
        ] {
            let error = read_from(bytes).await.unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
        assert_eq!(read_from(b"").await.unwrap(), None);
    }
}
