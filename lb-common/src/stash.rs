//! What a client sent before its backend answered.
//!
//! Every byte stands at its offset in the stream, so the same byte written twice is the same byte. Segments are views
//! of that buffer, published one 64-bit word at a time: the joint may read while the client's processor appends, and
//! sends either the older or the newer segment, both right.

use bytemuck::{Pod, Zeroable};

/// Segments that a stash can hold.
pub const VIEWS: usize = 8;
/// Payload bytes that a stash accepts: two full segments.
pub const STASH_BYTES: usize = 2 * 1460;
/// Room for the bytes: a longest segment may begin at the last offset that is accepted.
pub const STASH_ROOM: usize = STASH_BYTES + 1536;
/// Backends that a flow remembers having tried.
pub const TRIED: usize = 8;

/// [`Stash::whole`]: it can, if what is there is the beginning of a request...
pub const OPEN: u8 = 0;
/// ...it cannot: the head, the target or the ClientHello has ended...
pub const WHOLE: u8 = 1;
/// ...or it can in any case: what is there is cut.
pub const CUT: u8 = 2;

/// [`Stash::notes`]: the service's clients begin with a header of the PROXY protocol, and this one does not...
pub const PROXY_MISSING: u8 = 1;
/// ...its header makes no sense...
pub const PROXY_INVALID: u8 = 2;
/// ...or one stands where none is expected.
pub const PROXY_UNEXPECTED: u8 = 4;
/// Its header is longer than a stash.
pub const PROXY_TOO_LONG: u8 = 8;
/// It speaks HTTP/2 without having asked (RFC 9113 §3.3).
pub const HTTP2: u8 = 16;
/// Its ClientHello goes on in something else than a record of a handshake, or in one of an impossible length.
pub const HELLO_BROKEN: u8 = 32;

/// One segment of the stash in 64 bits: offset in the stream, length, one's complement sum of its bytes, flags.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(C, align(8))]
pub struct View {
    pub at: u16,
    /// Bytes.
    pub len: u16,
    /// Sum of the bytes, the first one standing at an even offset.
    pub sum: u16,
    /// [`VIEW_USED`], [`VIEW_PSH`], [`VIEW_FIN`].
    pub flags: u16,
}

pub const VIEW_USED: u16 = 1;
pub const VIEW_PSH: u16 = 2;
pub const VIEW_FIN: u16 = 4;

impl View {
    #[inline(always)]
    pub const fn to_bits(self) -> u64 {
        self.at as u64 | (self.len as u64) << 16 | (self.sum as u64) << 32 | (self.flags as u64) << 48
    }
    #[inline(always)]
    pub const fn from_bits(bits: u64) -> Self {
        Self {
            at: bits as u16,
            len: (bits >> 16) as u16,
            sum: (bits >> 32) as u16,
            flags: (bits >> 48) as u16,
        }
    }
    /// First offset behind it.
    #[inline(always)]
    pub const fn end(self) -> u32 {
        self.at as u32 + self.len as u32
    }
    /// This segment and `next`, which begins where it ends, as one; `None` when they do not touch or exceed `mss`.
    #[inline(always)]
    pub const fn join(self, next: Self, mss: u32) -> Option<Self> {
        if self.end() != next.at as u32
            || self.len as u32 + next.len as u32 > mss
            || self.flags & VIEW_FIN != 0
        {
            return None;
        }
        let tail = if self.len & 1 == 1 { crate::checksum::at_odd_offset(next.sum) } else { next.sum };
        Some(Self {
            at: self.at,
            len: self.len + next.len,
            sum: crate::checksum::fold(self.sum as u64 + tail as u64),
            flags: self.flags | next.flags,
        })
    }
}

/// Slots of backends, up to [`TRIED`] of them, in 16-bit lanes; a lane that holds none is all ones.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Tried([u64; TRIED / 4]);

impl Tried {
    pub const NONE: Self = Self([u64::MAX; TRIED / 4]);

    /// Whether a slot is among them: all lanes are compared at once, without a branch for each.
    #[inline(always)]
    pub const fn contains(&self, slot: u16) -> bool {
        const LOWS: u64 = 0x0001_0001_0001_0001;
        let lanes = slot as u64 * LOWS;
        let (a, b) = (self.0[0] ^ lanes, self.0[1] ^ lanes);
        ((a.wrapping_sub(LOWS) & !a) | (b.wrapping_sub(LOWS) & !b)) & (LOWS << 15) != 0
    }

    /// Puts a slot into lane `n`, counted modulo their number.
    #[inline(always)]
    pub const fn note(&mut self, n: u32, slot: u16) {
        let shift = n % 4 * 16;
        let lane = (0xffff << shift, (slot as u64) << shift);
        if n & 4 == 0 {
            self.0[0] = self.0[0] & !lane.0 | lane.1;
        } else {
            self.0[1] = self.0[1] & !lane.0 | lane.1;
        }
    }
}

/// What steering needs of a valid token.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Claim {
    pub service: u16,
    pub slot: u16,
    pub epoch: u32,
    /// Where the session stands in a Maglev table.
    pub hash: u32,
    pub _pad: u32,
}

/// Value of the stash map.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
pub struct Stash {
    /// Flow index + 1 in the low half, tick of the claim in the high half; 0 when free.
    pub owner: u64,
    /// 1 while a processor appends.
    pub lock: u64,
    /// [`View`]s; the first unused one ends the list.
    pub views: [u64; VIEWS],
    /// The client's timestamp, for SYNs that are sent again.
    pub ts_val: u32,
    /// 1 when the client uses timestamps.
    pub has_timestamps: u32,
    /// Steering of the flow: hash by which a next backend is chosen.
    pub hash: u32,
    /// How many of `tried` are in use.
    pub tried_len: u32,
    /// Slots of the backends that were offered the flow.
    pub tried: Tried,
    /// The client's window at its first segment.
    pub window: u32,
    /// Where the request, or the ClientHello, begins: behind a header of the PROXY protocol and empty lines (RFC 9112 §2.2).
    pub begin: u16,
    /// Whether what follows can hold the service's key: [`OPEN`], [`WHOLE`] or [`CUT`].
    pub whole: u8,
    /// What else was seen there: [`PROXY_MISSING`] and the like.
    pub notes: u8,
    /// Bytes that are scanned. In memory, because the verifier forgets what it knows of a value only there.
    pub limit: u32,
    /// Why the last backend was chosen: index of a steering counter.
    pub reason: u32,
    /// A token while it is decoded, the first 33 bytes of it: on the stack the verifier would want it aligned.
    pub token: [u8; 40],
    /// What a valid token said.
    pub claim: Claim,
    /// The client's view of the backend's timestamp in its SYN-ACK. Grows when the flow moves to another backend: what
    /// a client sees never goes back (RFC 7323 §5).
    pub ts_base: u32,
    /// The pool in which the flow's backend is chosen: that of the server's name that the client asks for; 0 for the
    /// service's own table.
    pub pool: u32,
    pub bytes: [u8; STASH_ROOM],
}

crate::map_types! { Stash: 4648, View: 8 }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checksum::{fold, sum_bytes};
    use proptest::prelude::*;

    fn view(at: usize, bytes: &[u8]) -> View {
        View { at: at as u16, len: bytes.len() as u16, sum: fold(sum_bytes(bytes)), flags: VIEW_USED }
    }

    proptest! {
        #[test]
        fn joined_views_have_the_sum_of_the_whole(bytes in proptest::collection::vec(any::<u8>(), 2..1000), cut: prop::sample::Index) {
            let cut = 1 + cut.index(bytes.len() - 1);
            let joined = view(0, &bytes[..cut]).join(view(cut, &bytes[cut..]), 1460).unwrap();
            let whole = view(0, &bytes);
            prop_assert_eq!((joined.at, joined.len), (whole.at, whole.len));
            prop_assert!(joined.sum == whole.sum || joined.sum % 0xffff == whole.sum % 0xffff);
        }

        #[test]
        fn a_view_is_its_bits(at: u16, len: u16, sum: u16, flags: u16) {
            let view = View { at, len, sum, flags };
            prop_assert_eq!(View::from_bits(view.to_bits()), view);
        }
    }

    #[test]
    fn what_was_tried_is_remembered() {
        let mut tried = Tried::NONE;
        for (n, slot) in [0, 1, 7, 255, 256, 0x8000, 1023, 65_534].into_iter().enumerate() {
            assert!(!tried.contains(slot), "{slot}");
            tried.note(n as u32, slot);
            assert!(tried.contains(slot), "{slot}");
        }
        assert!((0..65_535).filter(|slot| tried.contains(*slot)).count() == TRIED);
    }

    #[test]
    fn views_that_do_not_fit_stay_apart() {
        let (a, b) = (view(0, &[1; 1000]), view(1000, &[2; 461]));
        assert_eq!(a.join(b, 1460), None, "longer than a segment");
        assert_eq!(a.join(view(999, &[2; 3]), 1460), None, "overlap");
        assert_eq!(a.join(view(1001, &[2; 3]), 1460), None, "gap");
        let fin = View { flags: VIEW_USED | VIEW_FIN, ..a };
        assert_eq!(fin.join(view(1000, &[2; 3]), 1460), None, "behind a FIN");
    }
}
