//! A service: the address that clients dial. Written by the daemon alone; its index in the map is its id.

use crate::addr::{Addr, Be16};
use bytemuck::{Pod, Zeroable};

/// Bytes of a name with what stands around it.
pub const NAME_ROOM: usize = 32;
/// Longest name of a cookie or of a parameter in a query, in bytes.
pub const MAX_COOKIE_NAME: usize = 31;
/// Longest name of a header field, in bytes.
pub const MAX_HEADER_NAME: usize = 30;

/// Value of the service map. An id of 0 is no service.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Service {
    pub addr: Addr,
    pub port: Be16,
    /// IP protocol number: 6 (TCP) or 17 (UDP).
    pub protocol: u8,
    /// 1 when the service delivers.
    pub enabled: u8,
    /// First block of the live Maglev table (see [`crate::maglev::Block`]).
    pub maglev_base: u32,
    /// Entries of the Maglev table; 0 when no backend is ready.
    pub maglev_size: u32,
    /// What the SYN-ACK promises for the backends: MSS in bytes.
    pub mss: u16,
    /// Window scale promised, 0 to 14.
    pub window_scale: u8,
    /// [`PROMISE_SACK`] | [`PROMISE_TIMESTAMPS`] | [`PROMISE_WINDOW_SCALE`]: what every backend can do.
    pub promises: u8,
    /// The words that precede a key's first character: right-aligned in [`NAME_ROOM`] bytes, `name=` of a cookie or a parameter
    /// in a query, or a newline and `name:` of a header field, in lower case...
    pub key_name: [u64; NAME_ROOM / 8],
    /// ...and the masks of the bytes of them that count.
    pub key_mask: [u64; NAME_ROOM / 8],
    /// Bytes of that.
    pub key_name_len: u8,
    /// How many different backends a flow is offered to before its client is reset.
    pub max_tries: u8,
    /// 1 when a safe request that its backend left unanswered goes to another one.
    pub replay: u8,
    /// An [`Affinity`].
    pub affinity: u8,
    /// A [`Place`]: where the key stands.
    pub place: u8,
    /// Bytes between that place and the key.
    pub key_at: u8,
    /// Bytes of the key: [`crate::token::TOKEN_LEN`] or [`crate::token::TOKEN_TEXT_LEN`] of a token, raw or as text.
    pub key_len: u8,
    /// A [`Balance`].
    pub balance: u8,
    /// The bytes that a key stands behind, the first one lowest, and the mask of those that count.
    pub marker: [u64; 2],
    /// Ticks after which a learned session that nobody asked for is forgotten.
    pub learned_ticks: u32,
    /// 1 when a session whose backend does not serve is refused rather than given to another one.
    pub strict: u8,
    /// [`NAMES_LISTED`] | [`NAMES_ONLY`]: whether backends are listed for names of servers.
    pub names: u8,
    /// Bit n is set when a wildcard is listed with n labels behind its asterisk.
    pub wildcards: u16,
    /// Flows that the service may have at the same time; 0: as many as there is room for.
    pub max_flows: u32,
    /// Flows of it that may wait for their backends to answer at the same time; 0: as many as there is room for...
    pub max_pending: u16,
    /// ...and those that may wait for the same backend.
    pub max_backend_pending: u16,
    /// 1 when a header of the PROXY protocol stands in front of what clients send.
    pub accept_proxy: u8,
    pub _pad: [u8; 7],
}

/// Some backend has names.
pub const NAMES_LISTED: u8 = 1;
/// Every backend has: nobody serves other names.
pub const NAMES_ONLY: u8 = 2;

/// How a backend is chosen for what belongs to none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Balance {
    /// By the Maglev table: every node chooses the same.
    Maglev = 0,
    /// Of two that the Maglev table names at random, the one with fewer live flows for its weight (Mitzenmacher, "The Power
    /// of Two Choices in Randomized Load Balancing").
    Least = 1,
}

/// Where a key stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Place {
    /// In a cookie of an HTTP request.
    Cookie = 0,
    /// In a header field of an HTTP request.
    Header = 1,
    /// In a parameter of the query of an HTTP request's target.
    Query = 2,
    /// In a datagram, counted from the beginning of the payload.
    Offset = 3,
    /// In a datagram, counted back from its end, to the end of the key.
    End = 4,
    /// In a datagram, behind the first occurrence of the marker within [`MARKER_ROOM`] bytes.
    Marker = 5,
    /// The server's name in a TLS ClientHello (RFC 6066 §3).
    Sni = 6,
    /// The client's address in a header of the PROXY protocol: for [`Affinity::Source`].
    Proxy = 7,
}

impl Place {
    /// From the byte in the map; an unknown value is [`Place::Cookie`].
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Header,
            2 => Self::Query,
            3 => Self::Offset,
            4 => Self::End,
            5 => Self::Marker,
            6 => Self::Sni,
            7 => Self::Proxy,
            _ => Self::Cookie,
        }
    }
}

/// Longest marker, in bytes.
pub const MAX_MARKER: usize = 8;
/// Longest key that is hashed, in bytes.
pub const MAX_KEY: usize = 64;
/// Payload bytes in which a marker is looked for.
pub const MARKER_ROOM: usize = 1500;

/// What a flow's backend depends on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Affinity {
    /// A signed token in its first payload.
    Signed = 0,
    /// The client's address: bound at the SYN, unless a [`Place`] is to be looked at.
    Source = 1,
    /// The client's address and port, as good as chance: bound at the SYN, unless a [`Place`] is to be looked at.
    None = 2,
    /// What the client sends at a certain place, hashed.
    Hashed = 3,
    /// What the backend itself handed out: its cookie, or the key in its first datagram.
    Learned = 4,
    /// The server id in a QUIC connection id (draft-ietf-quic-load-balancers).
    Quic = 5,
}

impl Affinity {
    /// From the byte in the map; an unknown value is [`Affinity::Signed`].
    #[inline(always)]
    pub const fn from_bits(bits: u8) -> Self {
        match bits {
            1 => Self::Source,
            2 => Self::None,
            3 => Self::Hashed,
            4 => Self::Learned,
            5 => Self::Quic,
            _ => Self::Signed,
        }
    }
}

pub const PROMISE_SACK: u8 = 1;
pub const PROMISE_TIMESTAMPS: u8 = 2;
pub const PROMISE_WINDOW_SCALE: u8 = 4;

impl Service {
    /// Whether a flow is bound when its first packet comes, whatever its payload says.
    #[inline(always)]
    pub const fn binds_at_once(&self) -> bool {
        (self.affinity == Affinity::Source as u8 || self.affinity == Affinity::None as u8)
            && self.place != Place::Sni as u8
            && self.place != Place::Proxy as u8
    }

    /// Sets the marker: 1 to [`MAX_MARKER`] bytes. Returns whether the length is right.
    pub fn set_marker(&mut self, marker: &[u8]) -> bool {
        let n = marker.len();
        if n == 0 || n > MAX_MARKER {
            return false;
        }
        let (mut bytes, mut mask) = ([0; MAX_MARKER], [0; MAX_MARKER]);
        bytes[..n].copy_from_slice(marker);
        mask[..n].fill(0xff);
        self.marker = [u64::from_le_bytes(bytes), u64::from_le_bytes(mask)];
        true
    }

    /// Bytes of the marker.
    #[inline(always)]
    pub const fn marker_len(&self) -> u32 {
        (self.marker[1].count_ones()) / 8
    }

    /// The key stands in the cookie of that name: 1 to [`MAX_COOKIE_NAME`] bytes. Returns whether the length is right.
    pub fn set_cookie_name(&mut self, name: &str) -> bool {
        self.place = Place::Cookie as u8;
        self.set_name(b"", name.as_bytes(), b'=')
    }

    /// The key stands in the parameter of that name, as it is written in the query: 1 to [`MAX_COOKIE_NAME`] bytes.
    /// Returns whether the length is right.
    pub fn set_query_name(&mut self, name: &str) -> bool {
        self.place = Place::Query as u8;
        self.set_name(b"", name.as_bytes(), b'=')
    }

    /// The key stands in the header field of that name, in any case: 1 to [`MAX_HEADER_NAME`] bytes. Returns whether the
    /// length is right.
    pub fn set_header_name(&mut self, name: &str) -> bool {
        self.place = Place::Header as u8;
        // The program sets the bit that tells the case of a letter, in every byte alike.
        let mut lower = [0; MAX_HEADER_NAME];
        let Some(lower) = lower.get_mut(..name.len()) else { return false };
        lower.copy_from_slice(name.as_bytes());
        lower.iter_mut().for_each(|byte| *byte |= 0x20);
        self.set_name(&[b'\n' | 0x20], lower, b':')
    }

    fn set_name(&mut self, before: &[u8], name: &[u8], behind: u8) -> bool {
        const END: usize = NAME_ROOM - 1;
        let n = before.len() + name.len();
        if name.is_empty() || n > END {
            return false;
        }
        let (mut bytes, mut mask) = ([0u8; NAME_ROOM], [0u8; NAME_ROOM]);
        bytes[END - n..END - name.len()].copy_from_slice(before);
        bytes[END - name.len()..END].copy_from_slice(name);
        bytes[END] = behind;
        mask[END - n..].fill(0xff);
        self.key_name = bytemuck::cast(bytes);
        self.key_mask = bytemuck::cast(mask);
        self.key_name_len = n as u8 + 1;
        true
    }
}

crate::map_types! { Service: 144 }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cookie_name_is_right_aligned_before_its_token() {
        let mut service = Service::default();
        assert!(service.set_cookie_name("lb"));
        assert_eq!(&bytemuck::cast::<_, [u8; NAME_ROOM]>(service.key_name)[28..], b"\0lb=");
        let mask: [u8; NAME_ROOM] = bytemuck::cast(service.key_mask);
        assert_eq!((mask[28], mask[29], service.key_name_len), (0, 0xff, 3));
        assert!(service.set_cookie_name(&"c".repeat(MAX_COOKIE_NAME)));
        assert!(!service.set_cookie_name(&"c".repeat(MAX_COOKIE_NAME + 1)) && !service.set_cookie_name(""));
        assert!(service.set_header_name("X-Session") && service.place == Place::Header as u8);
        assert_eq!(&bytemuck::cast::<_, [u8; NAME_ROOM]>(service.key_name)[21..], b"*x-session:");
        assert!(service.set_header_name(&"h".repeat(MAX_HEADER_NAME)));
        assert!(!service.set_header_name(&"h".repeat(MAX_HEADER_NAME + 1)) && !service.set_header_name(""));
    }
}
