//! TCP arithmetic: sequence numbers, flags, options, windows (RFC 9293, RFC 7323, RFC 2018).

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;

/// IP protocol number.
pub const PROTOCOL: u8 = 6;

/// Whether sequence number `a` comes before `b` (RFC 9293 §3.4).
#[inline(always)]
pub const fn seq_before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// A window field scaled by the sender's factor, as the receiver must see it: shifted left by `shift` (right when
/// negative), saturating. A window that is not zero stays so when it is made coarser, lest the peer should stop.
#[inline(always)]
pub const fn rescale_window(field: u16, shift: i8) -> u16 {
    if shift >= 0 {
        let wide = (field as u32) << (shift as u32 & 15);
        if wide > 0xffff { 0xffff } else { wide as u16 }
    } else {
        let right = shift.unsigned_abs() as u32 & 15;
        let coarse = field >> right;
        if coarse == 0 && field != 0 { 1 } else { coarse }
    }
}

/// Window scale value that says "no such option".
pub const NO_WINDOW_SCALE: u8 = 15;

/// The word with which a timestamp option begins after two no-operations, the way every common stack sends it
/// (RFC 7323 appendix A), in network order.
pub const NOP_NOP_TIMESTAMP: u32 = 0x0101_080a_u32.to_be();

/// Room for a header's options, to be read with a masked index.
pub const OPTIONS_ROOM: usize = 64;
/// Longest option area in bytes (RFC 9293 §3.1).
pub const MAX_OPTIONS: usize = 40;

/// What a walk over the options of a header found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Options {
    /// Maximum segment size in bytes; 536 when absent (RFC 9293 §3.7.1).
    pub mss: u16,
    /// 0 to 14, or [`NO_WINDOW_SCALE`].
    pub window_scale: u8,
    pub sack_permitted: u8,
    /// Offset of TSval within the options, plus 1; 0 when absent.
    pub timestamps_at: u8,
    /// Offset of the first SACK block within the options, plus 1; 0 when absent.
    pub sack_at: u8,
    /// Number of SACK blocks, 0 to 4.
    pub sack_blocks: u8,
    /// Where the walk is.
    pub cursor: u8,
}

impl Options {
    pub const NONE: Self = Self {
        mss: 536,
        window_scale: NO_WINDOW_SCALE,
        sack_permitted: 0,
        timestamps_at: 0,
        sack_at: 0,
        sack_blocks: 0,
        cursor: 0,
    };

    /// Reads the option at the cursor of an area of `len` bytes and moves behind it. Returns whether there may be
    /// another. A malformed option ends the walk; what was read before stays.
    #[inline(always)]
    pub fn step(&mut self, area: &[u8; OPTIONS_ROOM], len: u32) -> bool {
        let at = self.cursor as usize & (OPTIONS_ROOM - 1);
        if at as u32 >= len {
            return false;
        }
        let byte = |i: usize| area[(at + i) & (OPTIONS_ROOM - 1)];
        let kind = byte(0);
        match kind {
            0 => return false,
            1 => {
                self.cursor = at as u8 + 1;
                return true;
            }
            _ => {}
        }
        let size = byte(1);
        if size < 2 || at as u32 + size as u32 > len {
            return false;
        }
        match (kind, size) {
            (2, 4) => self.mss = u16::from_be_bytes([byte(2), byte(3)]),
            (3, 3) => self.window_scale = if byte(2) > 14 { 14 } else { byte(2) },
            (4, 2) => self.sack_permitted = 1,
            (5, 10 | 18 | 26 | 34) => {
                self.sack_at = at as u8 + 3;
                self.sack_blocks = size >> 3;
            }
            (8, 10) => self.timestamps_at = at as u8 + 3,
            _ => {}
        }
        self.cursor = (at as u8).wrapping_add(size);
        true
    }

    /// Walks a whole area.
    pub fn parse(area: &[u8; OPTIONS_ROOM], len: u32) -> Self {
        let mut options = Self::NONE;
        while options.step(area, len) {}
        options
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> Options {
        let mut area = [0; OPTIONS_ROOM];
        area[..bytes.len()].copy_from_slice(bytes);
        Options::parse(&area, bytes.len() as u32)
    }

    #[test]
    fn options_of_common_stacks() {
        let linux = [2, 4, 5, 0xb4, 4, 2, 8, 10, 1, 2, 3, 4, 0, 0, 0, 0, 1, 3, 3, 7];
        let found =
            Options { mss: 1460, window_scale: 7, sack_permitted: 1, timestamps_at: 9, ..Options::NONE };
        assert_eq!(parse(&linux), Options { cursor: 20, ..found });
        let windows = [2, 4, 5, 0xb4, 1, 3, 3, 8, 1, 1, 4, 2];
        let found = Options { mss: 1460, window_scale: 8, sack_permitted: 1, ..Options::NONE };
        assert_eq!(parse(&windows), Options { cursor: 12, ..found });
        let sack = [1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2, 1, 1, 5, 10, 0, 0, 0, 3, 0, 0, 0, 4];
        let found = Options { timestamps_at: 5, sack_at: 17, sack_blocks: 1, ..Options::NONE };
        assert_eq!(parse(&sack), Options { cursor: 24, ..found });
    }

    #[test]
    fn malformed_options_end_the_walk() {
        for bytes in [&[2, 4, 5][..], &[3, 0, 0], &[8, 1], &[5, 40, 0, 0], &[0, 2, 4, 1, 1]] {
            assert_eq!(Options { cursor: 0, ..parse(bytes) }, Options::NONE, "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_end(bytes in proptest::collection::vec(any::<u8>(), 0..=MAX_OPTIONS)) {
            let options = parse(&bytes);
            prop_assert!(options.cursor as usize <= MAX_OPTIONS);
            prop_assert!(options.window_scale <= NO_WINDOW_SCALE);
        }

        #[test]
        fn a_window_is_never_larger_than_its_sender_meant(field: u16, from in 0u8..15, to in 0u8..15) {
            let seen = u64::from(rescale_window(field, from as i8 - to as i8)) << to;
            let meant = u64::from(field) << from;
            prop_assert!(seen <= meant.max(1 << to));
            prop_assert_eq!(seen == 0, meant == 0);
        }

        #[test]
        fn order_is_that_of_the_distance(a: u32, d in 1u32..1 << 31) {
            prop_assert!(seq_before(a, a.wrapping_add(d)));
            prop_assert!(!seq_before(a.wrapping_add(d), a));
        }
    }
}
