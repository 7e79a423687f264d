//! How a session finds its backend, and where what it goes by stands.

use super::QuicConfig;
use std::fmt;
use std::time::Duration;

/// By which rule a session comes home.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Affinity {
    /// By the signed token at that place.
    Signed(Place),
    /// By a hash of what stands there.
    Hashed(Place),
    /// By the key that the backend itself handed out there.
    Learned {
        place: Place,
        /// A key that nobody asked for that long is forgotten.
        idle: Duration,
    },
    /// By the server id in a QUIC connection id, as one of these configurations has it there.
    Quic(Vec<QuicConfig>),
    /// By the client's address. Bound at the first packet, so a server may speak first; unless the server's name is read.
    Source { sni: bool },
    /// Not at all: connections are spread by address and port. Bound at the first packet, unless the server's name is read.
    None { sni: bool },
}

/// Where a key stands.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Place {
    /// In the cookie of that name.
    Cookie(String),
    /// In the header field of that name.
    Header(String),
    /// In the parameter of that name in the query of a request's target.
    Query(String),
    /// The server's name in a TLS ClientHello.
    Sni,
    /// In every datagram.
    Datagram { from: Anchor, bytes: u8 },
}

/// From where a key is counted in a datagram.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Anchor {
    /// So many bytes behind the beginning of the payload.
    Offset(u8),
    /// So many bytes stand behind it, up to the payload's end.
    End(u8),
    /// Right behind the first occurrence of these bytes.
    Marker(Vec<u8>),
}

impl Affinity {
    /// Whether clients of a TCP service with this rule speak HTTP: as the program tells it by the key's place.
    pub fn speaks_http(&self) -> bool {
        let place = match self {
            Self::Signed(place) | Self::Hashed(place) | Self::Learned { place, .. } => place,
            Self::Quic(_) | Self::Source { .. } | Self::None { .. } => return false,
        };
        matches!(place, Place::Cookie(_) | Place::Header(_) | Place::Query(_))
    }

    /// The cookie in which managed servers hand out tokens, unless the rule has another.
    pub const COOKIE: &str = "lb";
    /// Where the token stands in the datagrams of managed servers (docs/datagram.md): bytes before it.
    pub const TOKEN_AT: u8 = 4;
    /// How long a learned key is remembered that nobody asks for, unless it is told.
    pub const LEARNED_IDLE: Duration = Duration::from_secs(30 * 60);

    /// The cookie of managed servers.
    pub fn cookie(&self) -> &str {
        match self {
            Self::Signed(Place::Cookie(name)) | Self::Learned { place: Place::Cookie(name), .. } => name,
            _ => Self::COOKIE,
        }
    }

    /// Where the key stands, for a rule that has one.
    pub const fn place(&self) -> Option<&Place> {
        match self {
            Self::Signed(place) | Self::Hashed(place) | Self::Learned { place, .. } => Some(place),
            Self::Source { sni: true } | Self::None { sni: true } => Some(&Place::Sni),
            Self::Quic(_) | Self::Source { .. } | Self::None { .. } => None,
        }
    }

    /// The rule in a word.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Signed(_) => "signed",
            Self::Hashed(_) => "hashed",
            Self::Learned { .. } => "learned",
            Self::Quic(_) => "quic",
            Self::Source { .. } => "source",
            Self::None { .. } => "none",
        }
    }

    /// The rule in a few words.
    pub fn describe(&self) -> String {
        match self.place() {
            Some(place) => format!("{} ({place})", self.kind()),
            None => self.kind().to_owned(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cookie(name) => write!(f, "cookie {name}"),
            Self::Header(name) => write!(f, "header {name}"),
            Self::Query(name) => write!(f, "query {name}"),
            Self::Sni => f.write_str("sni"),
            Self::Datagram { from: Anchor::Offset(offset), .. } => write!(f, "offset {offset}"),
            Self::Datagram { from: Anchor::End(end), .. } => write!(f, "end {end}"),
            Self::Datagram { from: Anchor::Marker(marker), .. } => {
                write!(f, "marker \"{}\"", marker.escape_ascii())
            }
        }
    }
}
