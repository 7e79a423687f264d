//! One message of the datagram protocol, as bytes and as what they mean: docs/datagram.md. For servers and clients alike.

use crate::session::Source;
use lb_common::token::TOKEN_LEN;

/// The first byte of every message.
pub(super) const VERSION: u8 = 1;
/// Bytes before the token, in requests and responses alike: where services of managed servers look for it.
pub const TOKEN_AT: usize = 4;
/// Longest message, in bytes: it fits in a packet on the narrowest of usual paths, and is never fragmented.
pub const MAX_MESSAGE: usize = 1400;
/// Added to the operation in a response.
const RESPONSE: u8 = 0x80;
/// Added to the source in a response to a change that had been made before.
const REPEATED: u8 = 0x80;
/// Bytes of a request before its key.
const REQUEST_HEAD: usize = TOKEN_AT + TOKEN_LEN + 8;
/// Bytes of a response before the server's name.
const RESPONSE_HEAD: usize = TOKEN_AT + TOKEN_LEN + 8 + 4 + 8 + 1;
/// Longest value, in bytes: its server's answer, which begins with the server's name, must have room for it.
pub const MAX_VALUE: usize = MAX_MESSAGE - RESPONSE_HEAD - MAX_NAME;
/// Longest name of a server, in bytes, as the configuration allows it.
const MAX_NAME: usize = 32;

/// A token as it stands in a datagram. All zero: none.
pub type RawToken = [u8; TOKEN_LEN];
/// What stands in a token's place where there is none.
pub const NO_TOKEN: RawToken = [0; TOKEN_LEN];

/// What a request asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Operation {
    /// A sign of life; touches no session.
    Ping = 0,
    /// The whole session, which begins with it if need be.
    Show = 1,
    /// The value of a key.
    Get = 2,
    /// Sets a key to a value.
    Put = 3,
    /// Removes a key.
    Delete = 4,
    /// Ends the session.
    End = 5,
}

impl Operation {
    const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Ping,
            1 => Self::Show,
            2 => Self::Get,
            3 => Self::Put,
            4 => Self::Delete,
            5 => Self::End,
            _ => return None,
        })
    }

    /// Whether it is about one key.
    pub const fn has_key(self) -> bool {
        matches!(self, Self::Get | Self::Put | Self::Delete)
    }
}

/// What came of a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Status {
    Done = 0,
    /// Done, and the key was not there before.
    Created = 1,
    /// The request is not what it should be.
    BadRequest = 2,
    /// There is no such key.
    NotFound = 3,
    /// A limit of the service's sessions is passed; nothing was stored.
    TooLarge = 4,
    /// The answer does not fit in a datagram.
    TooLong = 5,
    /// Others changed the session at the same time, again and again; nothing was stored.
    Conflict = 6,
    /// The session has seen this request id with another request; nothing was stored.
    Reused = 7,
    /// Not now: send it again in a second.
    Unavailable = 8,
    /// The store is full: send it again later.
    Full = 9,
    /// The session is damaged: begin a new one.
    Damaged = 10,
}

impl Status {
    const fn from_bits(bits: u8) -> Option<Self> {
        Some(match bits {
            0 => Self::Done,
            1 => Self::Created,
            2 => Self::BadRequest,
            3 => Self::NotFound,
            4 => Self::TooLarge,
            5 => Self::TooLong,
            6 => Self::Conflict,
            7 => Self::Reused,
            8 => Self::Unavailable,
            9 => Self::Full,
            10 => Self::Damaged,
            _ => return None,
        })
    }

    pub const fn is_success(self) -> bool {
        matches!(self, Self::Done | Self::Created)
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Created => "created",
            Self::BadRequest => "bad request",
            Self::NotFound => "not found",
            Self::TooLarge => "too large",
            Self::TooLong => "too long",
            Self::Conflict => "conflict",
            Self::Reused => "request id reused",
            Self::Unavailable => "unavailable",
            Self::Full => "store full",
            Self::Damaged => "damaged",
        }
    }
}

/// Why bytes are no message.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Malformed {
    #[error("shorter than the head of a message")]
    Short,
    #[error("version {0} of the protocol is not spoken here, version {VERSION} is")]
    Version(u8),
    #[error("{0} is no operation")]
    Operation(u8),
    #[error("{0} is no status")]
    Status(u8),
    #[error("{0} is no source")]
    Source(u8),
    #[error("ends within its key or name")]
    Cut,
    #[error("a key or name is not UTF-8")]
    Text,
    #[error("this operation needs a key")]
    NoKey,
    #[error("this operation has no key")]
    Key,
    #[error("only a put has a value")]
    Value,
}

/// A request.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request<'a> {
    pub operation: Operation,
    pub token: RawToken,
    /// Chosen by the client by chance: the same when it sends the same request again.
    pub id: u64,
    /// Empty for operations about no key.
    pub key: &'a str,
    /// JSON; empty for all but [`Operation::Put`].
    pub value: &'a [u8],
}

impl<'a> Request<'a> {
    pub fn new(operation: Operation, token: RawToken, id: u64) -> Self {
        Self { operation, token, id, key: "", value: &[] }
    }

    /// Reads a request.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(bytes: &'a [u8]) -> Result<Self, Malformed> {
        let (head, rest) = bytes.split_first_chunk::<REQUEST_HEAD>().ok_or(Malformed::Short)?;
        if head[0] != VERSION {
            return Err(Malformed::Version(head[0]));
        }
        let operation = Operation::from_bits(head[1]).ok_or(Malformed::Operation(head[1]))?;
        let key_bytes = usize::from(u16::from_be_bytes([head[2], head[3]]));
        let (token, id) = token_and_id(head);
        let (key, value) = rest.split_at_checked(key_bytes).ok_or(Malformed::Cut)?;
        let key = std::str::from_utf8(key).map_err(|_| Malformed::Text)?;
        match (operation.has_key(), key.is_empty()) {
            (true, true) => return Err(Malformed::NoKey),
            (false, false) => return Err(Malformed::Key),
            _ => {}
        }
        if operation != Operation::Put && !value.is_empty() {
            return Err(Malformed::Value);
        }
        Ok(Self { operation, token, id, key, value })
    }

    /// Writes it. Check its length against [`MAX_MESSAGE`]; the key is cut at 65,535 bytes, far beyond that.
    pub fn to_bytes(&self) -> Vec<u8> {
        let key = &self.key.as_bytes()[..self.key.len().min(u16::MAX.into())];
        let mut bytes = Vec::with_capacity(REQUEST_HEAD + key.len() + self.value.len());
        bytes.extend_from_slice(&[VERSION, self.operation as u8]);
        bytes.extend_from_slice(&(key.len() as u16).to_be_bytes());
        bytes.extend_from_slice(&self.token);
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes.extend_from_slice(key);
        bytes.extend_from_slice(self.value);
        bytes
    }
}

/// What a message with a whole head has behind its first four bytes.
fn token_and_id(head: &[u8]) -> (RawToken, u64) {
    let (mut token, mut id) = (NO_TOKEN, [0; 8]);
    token.copy_from_slice(&head[TOKEN_AT..TOKEN_AT + TOKEN_LEN]);
    id.copy_from_slice(&head[TOKEN_AT + TOKEN_LEN..][..8]);
    (token, u64::from_be_bytes(id))
}

/// Operation byte, token and request id of what may be no right request: what its answer repeats. `None` where not even
/// these can be read, or where it is a response, so that two servers never talk to each other.
pub(super) fn echo(bytes: &[u8]) -> Option<(u8, RawToken, u64)> {
    let head = bytes.get(..REQUEST_HEAD)?;
    let (token, id) = token_and_id(head);
    (head[1] & RESPONSE == 0).then_some((head[1], token, id))
}

/// A response.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    /// The operation byte of the request.
    pub operation: u8,
    pub status: Status,
    /// Where the session's state came from; `None` when no session was looked at.
    pub source: Option<Source>,
    /// The change had been made before, and this is what was answered then.
    pub repeated: bool,
    /// What the client presents from now on.
    pub token: RawToken,
    /// That of the request.
    pub id: u64,
    /// Of the instance that answers.
    pub epoch: u32,
    /// Of the session's state; 0 when none was looked at.
    pub version: u64,
    /// The server's name.
    pub server: String,
    /// JSON, or why there is none.
    pub body: Vec<u8>,
}

impl Response {
    /// Reads a response.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn parse(bytes: &[u8]) -> Result<Self, Malformed> {
        let (head, rest) = bytes.split_first_chunk::<RESPONSE_HEAD>().ok_or(Malformed::Short)?;
        if head[0] != VERSION {
            return Err(Malformed::Version(head[0]));
        }
        if head[1] & RESPONSE == 0 {
            return Err(Malformed::Operation(head[1]));
        }
        let (token, id) = token_and_id(head);
        let tail = &head[TOKEN_AT + TOKEN_LEN + 8..];
        let (mut epoch, mut version) = ([0; 4], [0; 8]);
        epoch.copy_from_slice(&tail[..4]);
        version.copy_from_slice(&tail[4..12]);
        let (name, body) = rest.split_at_checked(tail[12].into()).ok_or(Malformed::Cut)?;
        Ok(Self {
            operation: head[1] & !RESPONSE,
            status: Status::from_bits(head[2]).ok_or(Malformed::Status(head[2]))?,
            source: match head[3] & !REPEATED {
                0 => None,
                1 => Some(Source::New),
                2 => Some(Source::Cache),
                3 => Some(Source::Database),
                other => return Err(Malformed::Source(other)),
            },
            repeated: head[3] & REPEATED != 0,
            token,
            id,
            epoch: u32::from_be_bytes(epoch),
            version: u64::from_be_bytes(version),
            server: std::str::from_utf8(name).map_err(|_| Malformed::Text)?.to_owned(),
            body: body.to_vec(),
        })
    }

    /// Writes it. A name is cut at 255 bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let name = &self.server.as_bytes()[..self.server.len().min(255)];
        let mut bytes = Vec::with_capacity(RESPONSE_HEAD + name.len() + self.body.len());
        let source = match self.source {
            None => 0,
            Some(Source::New) => 1,
            Some(Source::Cache) => 2,
            Some(Source::Database) => 3,
        };
        let repeated = if self.repeated { REPEATED } else { 0 };
        bytes.extend_from_slice(&[VERSION, self.operation | RESPONSE, self.status as u8, source | repeated]);
        bytes.extend_from_slice(&self.token);
        bytes.extend_from_slice(&self.id.to_be_bytes());
        bytes.extend_from_slice(&self.epoch.to_be_bytes());
        bytes.extend_from_slice(&self.version.to_be_bytes());
        bytes.push(name.len() as u8);
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// A request for a sign of life.
pub fn ping() -> Vec<u8> {
    Request::new(Operation::Ping, NO_TOKEN, 0).to_bytes()
}

/// How the answer to [`ping`] begins.
pub const fn pong() -> [u8; 4] {
    [VERSION, Operation::Ping as u8 | RESPONSE, Status::Done as u8, 0]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn put() -> Request<'static> {
        Request { key: "cart", value: b"[1]", ..Request::new(Operation::Put, [7; TOKEN_LEN], 0x0102) }
    }

    #[test]
    fn messages_are_laid_out_as_documented() {
        let bytes = put().to_bytes();
        assert_eq!(bytes[..4], [1, 3, 0, 4]);
        assert_eq!(bytes[4..37], [7; 33]);
        assert_eq!(bytes[37..45], [0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!(&bytes[45..], b"cart[1]");
        let response = Response {
            operation: 3,
            status: Status::Created,
            source: Some(Source::Database),
            repeated: true,
            token: [8; TOKEN_LEN],
            id: 9,
            epoch: 10,
            version: 11,
            server: "s1".into(),
            body: b"{}".to_vec(),
        };
        let bytes = response.to_bytes();
        assert_eq!(bytes[..4], [1, 0x83, 1, 0x83]);
        assert_eq!((&bytes[4..37], &bytes[37..45]), (&[8; 33][..], &[0, 0, 0, 0, 0, 0, 0, 9][..]));
        assert_eq!((&bytes[45..49], &bytes[49..57]), (&[0, 0, 0, 10][..], &[0, 0, 0, 0, 0, 0, 0, 11][..]));
        assert_eq!(&bytes[57..], b"\x02s1{}");
        assert_eq!(Response::parse(&bytes), Ok(response));
    }

    #[test]
    fn what_is_no_request_is_told_as_such() {
        let right = put().to_bytes();
        assert_eq!(Request::parse(&right), Ok(put()));
        let with = |at: usize, byte: u8| {
            let mut bytes = right.clone();
            bytes[at] = byte;
            bytes
        };
        let show = Request::new(Operation::Show, NO_TOKEN, 1).to_bytes();
        for (name, bytes, expected) in [
            ("nothing", Vec::new(), Malformed::Short),
            ("one byte short of a head", right[..44].to_vec(), Malformed::Short),
            ("another version", with(0, 2), Malformed::Version(2)),
            ("a response", with(1, 0x83), Malformed::Operation(0x83)),
            ("no operation", with(1, 6), Malformed::Operation(6)),
            ("a key longer than the datagram", with(3, 8), Malformed::Cut),
            ("no UTF-8", with(45, 0xff), Malformed::Text),
            ("a put without a key", with(3, 0), Malformed::NoKey),
            ("a show with a key", with(1, 1), Malformed::Key),
            ("a show with a value", [&show[..], b"1"].concat(), Malformed::Value),
            ("a get with a value", with(1, 2), Malformed::Value),
        ] {
            assert_eq!(Request::parse(&bytes), Err(expected), "{name}");
        }
        assert_eq!(echo(&right), Some((3, [7; TOKEN_LEN], 0x0102)));
        assert_eq!(echo(&with(1, 0x83)), None, "responses are not answered");
        assert_eq!(echo(&right[..44]), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = Request::parse(&bytes) {
                prop_assert_eq!(request.to_bytes(), &bytes[..]);
            }
            if let Ok(response) = Response::parse(&bytes) {
                prop_assert_eq!(response.to_bytes(), bytes);
            }
        }
    }
}
