//! TCP options: the shapes that common stacks send at once, any other by a walk.
//!
//! A plain bounded loop over options makes the verifier follow every combination of lengths ("BPF program is too
//! large. Processed 1000001 insn"); `bpf_loop` verifies its body once.

use crate::atomic::fill;
use crate::bounds::{Length, barrier_var};
use crate::maps::AREA;
use crate::packet::{OptionArea, Packet, at, read};
use core::ffi::c_void;
use lb_common::tcp::{MAX_OPTIONS, NO_WINDOW_SCALE, NOP_NOP_TIMESTAMP, OPTIONS_ROOM, Options};

/// TSval and TSecr of a segment, as numbers.
#[derive(Clone, Copy)]
pub(crate) struct Timestamps {
    pub(crate) val: u32,
    pub(crate) ecr: u32,
}

impl Timestamps {
    const ZERO: Self = Self { val: 0, ecr: 0 };
}

/// One turn of [`walk`]. The loop's context must lie on the stack ("R3 type=map_value expected=fp"), so the area is
/// looked up again.
extern "C" fn step(_turn: u64, _context: *mut c_void) -> u64 {
    let Some(area) = AREA.get_ptr_mut(0) else { return 1 };
    // SAFETY: the value belongs to this processor while the program runs.
    let area = unsafe { &mut *area };
    let OptionArea { bytes, options, len } = area;
    u64::from(!options.step(bytes, *len))
}

/// Reads all options of a segment whose TCP header has `header` bytes. The slow way, for every order and padding.
#[inline(never)]
pub(crate) fn walk<P: Packet>(packet: &P, header: u32) -> Option<&'static OptionArea> {
    let place = AREA.get_ptr_mut(0)?;
    // SAFETY: the value belongs to this processor while the program runs, and one walk is over before the next.
    let area = unsafe { &mut *place };
    // SAFETY: the area begins with that many bytes, and is aligned.
    unsafe { fill::<{ OPTIONS_ROOM / 8 }>(area.bytes.as_mut_ptr().cast(), 0) };
    (area.options, area.len) = (Options::NONE, 0);
    let Some(len) = Length::new::<{ MAX_OPTIONS as u32 }>(header.wrapping_sub(20)) else {
        return Some(area);
    };
    // SAFETY: the area has 64 bytes, the length is at most 40.
    if unsafe { packet.copy(at::OPTIONS as u32, area.bytes.as_mut_ptr(), len) } {
        area.len = len.get();
        let mut context = 0_u64;
        // SAFETY: the callback and its context outlive the call, which is synchronous.
        unsafe {
            aya_ebpf::helpers::bpf_loop(
                MAX_OPTIONS as u32,
                step as *mut c_void,
                (&raw mut context).cast(),
                0,
            );
        }
    }
    // SAFETY: as above; read anew, the callback has written to it.
    Some(unsafe { &*place })
}

/// Value of an area at a place that the walk reported (offset plus 1).
#[inline(always)]
pub(crate) fn word(area: &OptionArea, at_plus_1: u32) -> u32 {
    let byte = |i: u32| area.bytes[(at_plus_1.wrapping_sub(1).wrapping_add(i)) as usize & (OPTIONS_ROOM - 1)];
    u32::from_be_bytes([byte(0), byte(1), byte(2), byte(3)])
}

/// The timestamps of any segment but a SYN.
#[inline(always)]
pub(crate) fn timestamps<P: Packet>(packet: &P, header: u32) -> Option<Timestamps> {
    let (present, stamps) = look_for_timestamps(packet, header);
    if_present(present, stamps)
}

/// The compiler is not to know whence these come: it would leave registers unwritten on the way without timestamps and put
/// them on the stack all the same ("R1 !read_ok").
#[inline(always)]
fn if_present(present: bool, stamps: Timestamps) -> Option<Timestamps> {
    if barrier_var(u64::from(present)) != 0 { Some(stamps) } else { None }
}

/// Whether there are any, and if not, zeros.
#[inline(always)]
fn look_for_timestamps<P: Packet>(packet: &P, header: u32) -> (bool, Timestamps) {
    const NONE: (bool, Timestamps) = (false, Timestamps::ZERO);
    if header == 20 {
        return NONE;
    }
    if header >= 32
        && let Some(start) = packet.window(at::OPTIONS + 12)
    {
        // SAFETY: the window covers the first twelve bytes of options.
        let words: [u32; 3] = unsafe { read(start.add(at::OPTIONS)) };
        if words[0] == NOP_NOP_TIMESTAMP {
            return (true, Timestamps { val: u32::from_be(words[1]), ecr: u32::from_be(words[2]) });
        }
    }
    let Some(area) = walk(packet, header) else { return NONE };
    let at = u32::from(area.options.timestamps_at);
    if at == 0 { NONE } else { (true, Timestamps { val: word(area, at), ecr: word(area, at + 4) }) }
}

/// Everything a SYN or SYN-ACK offers.
#[derive(Clone, Copy)]
pub(crate) struct Offer {
    pub(crate) mss: u16,
    /// 0 to 14, or [`lb_common::tcp::NO_WINDOW_SCALE`].
    pub(crate) window_scale: u8,
    pub(crate) sack: bool,
    has_timestamps: bool,
    /// Zeros without that.
    stamps: Timestamps,
}

impl Offer {
    const NONE: Self = Self {
        mss: 536,
        window_scale: NO_WINDOW_SCALE,
        sack: false,
        has_timestamps: false,
        stamps: Timestamps::ZERO,
    };

    #[inline(always)]
    pub(crate) fn timestamps(&self) -> Option<Timestamps> {
        if_present(self.has_timestamps, self.stamps)
    }

    #[inline(always)]
    pub(crate) const fn has_timestamps(&self) -> bool {
        self.has_timestamps
    }

    /// The timestamps of an answer whose own one is `val`, where they are `agreed`.
    #[inline(always)]
    pub(crate) fn answered(&self, agreed: bool, val: u32) -> Option<Timestamps> {
        if_present(agreed, Timestamps { val, ecr: self.stamps.val })
    }
}

/// First option words of a Linux SYN: MSS, then SACK permitted and timestamps.
const MSS_OPTION: u32 = 0x0204_0000_u32.to_be();
const SACK_TIMESTAMP: u32 = 0x0402_080a_u32.to_be();
const NOP_WINDOW_SCALE: u32 = 0x0103_0300_u32.to_be();

/// The options of a SYN or SYN-ACK.
#[inline(always)]
pub(crate) fn offer<P: Packet>(packet: &P, header: u32) -> Offer {
    if header == 40
        && let Some(start) = packet.window(at::OPTIONS + 20)
    {
        // SAFETY: the window covers twenty bytes of options.
        let words: [u32; 5] = unsafe { read(start.add(at::OPTIONS)) };
        if words[0] & 0xffff_u32 == MSS_OPTION & 0xffff
            && words[1] == SACK_TIMESTAMP
            && words[4] & 0x00ff_ffff == NOP_WINDOW_SCALE & 0x00ff_ffff
        {
            let scale = words[4].to_be() as u8;
            return Offer {
                mss: words[0].to_be() as u16,
                window_scale: if scale > 14 { 14 } else { scale },
                sack: true,
                has_timestamps: true,
                stamps: Timestamps { val: words[2].to_be(), ecr: words[3].to_be() },
            };
        }
    }
    let Some(area) = walk(packet, header) else { return Offer::NONE };
    let found = area.options;
    let at = u32::from(found.timestamps_at);
    Offer {
        mss: found.mss,
        window_scale: found.window_scale,
        sack: found.sack_permitted != 0,
        has_timestamps: at != 0,
        stamps: if at == 0 {
            Timestamps::ZERO
        } else {
            Timestamps { val: word(area, at), ecr: word(area, at + 4) }
        },
    }
}
