//! QUIC-LB connection ids (draft-ietf-quic-load-balancers-21): a server writes its own id into every connection id it hands
//! out, in the clear or encrypted, and whoever knows the configuration reads it there.
//!
//! | bytes | field |
//! |---|---|
//! | 0 | rotation: which configuration (high 3 bits); the number of bytes that follow, or anything (low 5 bits) |
//! | 1.. | server id (1 to 15 bytes), then nonce (4 to 18 bytes), encrypted together when there is a key |
//!
//! Sixteen bytes of both are one AES block. Any other number goes through a Feistel network of four passes (§5.4.2): two
//! halves, which share the middle byte when the number is odd, and each half in turn is encrypted to hide the other.

use crate::aes::{self, Block, RoundKeys};
use crate::hash::mix64;
use bytemuck::{Pod, Zeroable};

pub mod servers;

/// Configurations that a service can have at once.
pub const CONFIGS: usize = 7;
/// Rotation of ids that name no server (§3.2).
pub const UNROUTABLE: u8 = 7;
/// Configurations in the map for each service: room for every rotation.
pub const ROTATIONS: u32 = 8;
/// Server ids that a backend can have, each of another length.
pub const SERVER_IDS: u32 = 4;
/// Longest server id, in bytes.
pub const MAX_SERVER_ID: usize = 15;
/// Shortest nonce, in bytes.
pub const MIN_NONCE: usize = 4;
/// Longest nonce, in bytes.
pub const MAX_NONCE: usize = 18;
/// Longest connection id of QUIC version 1, in bytes.
pub const MAX_ID: usize = 20;
/// Bytes of server id and nonce that make one block of the cipher.
const SINGLE: usize = 16;

/// No configuration.
pub const NONE: u8 = 0;
/// The server id stands in the clear.
pub const PLAIN: u8 = 1;
/// One block is decrypted.
pub const SINGLE_PASS: u8 = 2;
/// Three passes undo four: the server id is no longer than the nonce, and stands in the left half alone.
pub const THREE_PASSES: u8 = 3;
/// All four are undone.
pub const FOUR_PASSES: u8 = 4;

/// Value of the map of configurations, at service id × [`ROTATIONS`] + rotation: what it takes to read a server id.
/// All zero is no configuration.
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(C)]
pub struct Config {
    /// Round keys; all zero without a key.
    pub keys: RoundKeys,
    /// Those of decryption, for a single pass.
    pub inverse: RoundKeys,
    /// The bits of the left half that count, and of the right one.
    pub halves: [Block; 2],
    /// The bytes of the decrypted text that are the server id.
    pub server: Block,
    /// [`NONE`], [`PLAIN`], [`SINGLE_PASS`], [`THREE_PASSES`] or [`FOUR_PASSES`].
    pub way: u8,
    /// Bytes of server id and nonce.
    pub len: u8,
    /// Bytes of the server id.
    pub server_len: u8,
    /// Where the right half begins.
    pub right_at: u8,
    pub rotation: u8,
    pub _pad: [u8; 3],
}

/// What a connection id names: see [`servers`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Server {
    /// The server id, zeros behind it.
    pub id: Block,
    /// Id of the service.
    pub service: u16,
    /// Bytes of the server id.
    pub len: u8,
    pub _pad: [u8; 5],
}

/// Why there is no such configuration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ConfigError {
    Rotation(u8),
    ServerId(usize),
    Nonce(usize),
    /// Bytes of both.
    Sum(usize),
}

impl core::fmt::Display for ConfigError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Rotation(n) => write!(f, "rotation is {n}, but must be 0 to 6"),
            Self::ServerId(n) => write!(f, "server ids of {n} bytes, but they have 1 to {MAX_SERVER_ID}"),
            Self::Nonce(n) => write!(f, "nonces of {n} bytes, but they have {MIN_NONCE} to {MAX_NONCE}"),
            Self::Sum(n) => {
                write!(
                    f,
                    "server id and nonce have {n} bytes together, but a connection id has room for {}",
                    MAX_ID - 1
                )
            }
        }
    }
}

impl core::error::Error for ConfigError {}

/// A connection id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ConnectionId {
    bytes: [u8; MAX_ID],
    len: u8,
}

impl core::ops::Deref for ConnectionId {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl core::fmt::Debug for Config {
    /// Without its key.
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Config")
            .field("rotation", &self.rotation)
            .field("server_len", &self.server_len)
            .field("len", &self.len)
            .field("way", &self.way)
            .finish_non_exhaustive()
    }
}

impl Config {
    /// The configuration of a rotation, with lengths in bytes, encrypted if there is a key.
    ///
    /// # Errors
    /// A number is beyond its limits (§5.3).
    pub fn new(
        rotation: u8,
        server_len: usize,
        nonce_len: usize,
        key: Option<&[u8; 16]>,
    ) -> Result<Self, ConfigError> {
        if usize::from(rotation) >= CONFIGS {
            return Err(ConfigError::Rotation(rotation));
        }
        if !(1..=MAX_SERVER_ID).contains(&server_len) {
            return Err(ConfigError::ServerId(server_len));
        }
        if !(MIN_NONCE..=MAX_NONCE).contains(&nonce_len) {
            return Err(ConfigError::Nonce(nonce_len));
        }
        let len = server_len + nonce_len;
        if len >= MAX_ID {
            return Err(ConfigError::Sum(len));
        }
        let way = match key {
            None => PLAIN,
            Some(_) if len == SINGLE => SINGLE_PASS,
            Some(_) if server_len <= nonce_len => THREE_PASSES,
            Some(_) => FOUR_PASSES,
        };
        Ok(Self {
            rotation,
            server_len: server_len as u8,
            server: first(server_len),
            way,
            ..network(len, key)
        })
    }

    /// Bytes of the whole connection id.
    pub const fn id_len(&self) -> usize {
        self.len as usize + 1
    }

    /// Bytes of the nonce.
    pub const fn nonce_len(&self) -> usize {
        (self.len - self.server_len) as usize
    }

    /// Writes a connection id. `low` are the low five bits of the first octet; [`Config::own_length`] says how long the id is.
    ///
    /// # Panics
    /// When server id or nonce have another length than the configuration says.
    pub fn encode(&self, server: &[u8], nonce: &[u8], low: u8) -> ConnectionId {
        assert_eq!(
            (server.len(), nonce.len()),
            (self.server_len.into(), self.nonce_len()),
            "the lengths configured"
        );
        let mut bytes = [0; MAX_ID];
        let (first, text) = bytes.split_at_mut(1);
        first[0] = self.rotation << 5 | low & 0x1f;
        text[..server.len()].copy_from_slice(server);
        text[server.len()..self.len.into()].copy_from_slice(nonce);
        match self.way {
            PLAIN => {}
            SINGLE_PASS => {
                let text = text.first_chunk_mut::<SINGLE>().expect("a connection id has room for a block");
                *text = aes::bytes(aes::encrypt(&self.keys, aes::block(*text)));
            }
            _ => self.scramble(&mut text[..self.len.into()]),
        }
        ConnectionId { bytes, len: self.len + 1 }
    }

    /// The low five bits of a first octet that says how many bytes follow it.
    pub const fn own_length(&self) -> u8 {
        self.len
    }

    /// The server that a connection id names, whatever its rotation; `None` when it is too short.
    pub fn decode(&self, id: &[u8], service: u16) -> Option<Server> {
        let text = id.get(1..self.id_len())?;
        let mut room = [0; 2 * SINGLE];
        room[..text.len()].copy_from_slice(text);
        let at = |from: usize| {
            aes::block(*room[from..].first_chunk().expect("both halves begin in the first block"))
        };
        let text = match self.way {
            PLAIN => at(0),
            SINGLE_PASS => aes::decrypt(&self.inverse, at(0)),
            _ => {
                let mut halves = self.split(at(0), at(self.right_at.into()));
                for number in (self.last_pass()..=4).rev() {
                    self.change(&mut halves, number);
                }
                let [left, right] = halves;
                let joined = aes::bytes(right);
                let mut text = aes::bytes(left);
                text[self.right_at.into()..].iter_mut().zip(joined).for_each(|(to, from)| *to |= from);
                aes::block(text)
            }
        };
        Some(self.server(text, service))
    }

    /// The server id at the beginning of the decrypted text.
    #[inline(always)]
    pub const fn server(&self, text: Block, service: u16) -> Server {
        let id = [text[0] & self.server[0], text[1] & self.server[1]];
        Server { id, service, len: self.server_len, _pad: [0; 5] }
    }

    /// Both halves of an encrypted text, from the 16 bytes at its beginning and those where the right half begins.
    #[inline(always)]
    pub const fn split(&self, left: Block, right: Block) -> [Block; 2] {
        [and(left, self.halves[0]), and(right, self.halves[1])]
    }

    /// What pass `number`, 1 to 4, makes of the half that it changes, given the other one: again, it is undone. Even passes
    /// change the left half, odd ones the right one.
    #[inline(always)]
    pub fn pass(&self, number: u32, half: Block, other: Block) -> Block {
        let mask = self.halves[(number & 1) as usize];
        // The other half, zeros, the length of both, the number of the pass.
        let expanded = [other[0], other[1] | (self.len as u64) << 48 | (number as u64) << 56];
        let hidden = aes::encrypt(&self.keys, expanded);
        and([half[0] ^ hidden[0], half[1] ^ hidden[1]], mask)
    }

    /// The last pass that is undone (§5.5.2).
    #[inline(always)]
    pub const fn last_pass(&self) -> u32 {
        if self.way == FOUR_PASSES { 1 } else { 2 }
    }

    /// The four passes (§5.4.2), on exactly as many bytes as are configured.
    fn scramble(&self, text: &mut [u8]) {
        let half = text.len().div_ceil(2);
        let from = text.len() / 2;
        let word = |bytes: &[u8]| {
            let mut room = [0; SINGLE];
            room[..bytes.len()].copy_from_slice(bytes);
            aes::block(room)
        };
        let mut halves = self.split(word(&text[..half]), word(&text[from..]));
        for number in 1..=4 {
            self.change(&mut halves, number);
        }
        let [left, right] = halves;
        text[..half].copy_from_slice(&aes::bytes(left)[..half]);
        text[half..].fill(0);
        text[from..].iter_mut().zip(aes::bytes(right)).for_each(|(to, byte)| *to |= byte);
    }

    fn change(&self, halves: &mut [Block; 2], number: u32) {
        let changed = (number & 1) as usize;
        halves[changed] = self.pass(number, halves[changed], halves[changed ^ 1]);
    }
}

/// What four passes over `len` bytes need.
fn network(len: usize, key: Option<&[u8; 16]>) -> Config {
    let half = len.div_ceil(2);
    let (mut left, mut right) = ([0_u8; SINGLE], [0_u8; SINGLE]);
    left[..half].fill(0xff);
    right[..half].fill(0xff);
    if len % 2 == 1 {
        left[half - 1] = 0xf0;
        right[0] = 0x0f;
    }
    let keys = key.map_or([0; 44], aes::expand);
    Config {
        keys,
        inverse: key.map_or([0; 44], |_| aes::invert(&keys)),
        halves: [aes::block(left), aes::block(right)],
        len: len as u8,
        right_at: (len / 2) as u8,
        ..Config::zeroed()
    }
}

/// A permutation of all texts of some length, 4 to 18 bytes: how to make numbers that look random and never repeat.
#[derive(Clone, Copy)]
pub struct Permutation(Config);

impl Permutation {
    /// Over texts of `len` bytes.
    ///
    /// # Panics
    /// When `len` is no length of a nonce.
    pub fn new(len: usize, key: &[u8; 16]) -> Self {
        assert!((MIN_NONCE..=MAX_NONCE).contains(&len), "the length of a nonce");
        Self(network(len, Some(key)))
    }

    /// What the number `n`, whose higher bits do not count, becomes.
    pub fn apply(&self, n: u128) -> ([u8; MAX_NONCE], usize) {
        let len = usize::from(self.0.len);
        let mut text = [0; MAX_NONCE];
        let bytes = n.to_le_bytes();
        let counted = len.min(bytes.len());
        text[..counted].copy_from_slice(&bytes[..counted]);
        self.0.scramble(&mut text[..len]);
        (text, len)
    }
}

/// Where a connection id that names nobody who serves stands in a Maglev table, by its first eight bytes, zeros behind a
/// shorter one. As many must be random in the id that a client chooses (RFC 9000 §7.2), and a short header does not say
/// how many there are, so more of them would give the same id another hash.
#[inline(always)]
pub const fn hash(first: u64) -> u32 {
    mix64(first) as u32
}

/// The first `len` bytes.
const fn first(len: usize) -> Block {
    let mask = u128::MAX >> (8 * (SINGLE - len));
    [mask as u64, (mask >> 64) as u64]
}

#[inline(always)]
const fn and(a: Block, b: Block) -> Block {
    [a[0] & b[0], a[1] & b[1]]
}

impl Server {
    /// A server id of 1 to [`MAX_SERVER_ID`] bytes; `None` when it is shorter or longer.
    pub fn new(service: u16, id: &[u8]) -> Option<Self> {
        if id.is_empty() || id.len() > MAX_SERVER_ID {
            return None;
        }
        let mut bytes = [0; SINGLE];
        bytes[..id.len()].copy_from_slice(id);
        Some(Self { id: aes::block(bytes), service, len: id.len() as u8, _pad: [0; 5] })
    }
}

crate::map_types! { Config: 408, Server: 24 }

#[cfg(test)]
mod tests;
