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
    pub tried: [u16; TRIED],
    /// The client's window at its first segment.
    pub window: u32,
    pub _pad: u32,
    pub bytes: [u8; STASH_ROOM],
}

crate::map_types! { Stash: 4576, View: 8 }

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
    fn views_that_do_not_fit_stay_apart() {
        let (a, b) = (view(0, &[1; 1000]), view(1000, &[2; 461]));
        assert_eq!(a.join(b, 1460), None, "longer than a segment");
        assert_eq!(a.join(view(999, &[2; 3]), 1460), None, "overlap");
        assert_eq!(a.join(view(1001, &[2; 3]), 1460), None, "gap");
        let fin = View { flags: VIEW_USED | VIEW_FIN, ..a };
        assert_eq!(fin.join(view(1000, &[2; 3]), 1460), None, "behind a FIN");
    }
}
