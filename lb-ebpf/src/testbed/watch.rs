//! Checks the checksums of every frame, independently of the product's own arithmetic: the kernel's helper adds up.

use crate::bounds::Length;
use crate::rule::Seen;
use aya_ebpf::helpers::{bpf_csum_diff, bpf_xdp_load_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, PerCpuArray};
use aya_ebpf::programs::XdpContext;

/// 0 → what was seen. Written here; one receive queue at a time, so plain additions do.
#[map]
static TB_SEEN: Array<Seen> = Array::with_max_entries(1, 0);

const CHUNK: usize = 512;
/// Chunks in the longest segment.
const CHUNKS: u32 = 4;

/// 0 → bytes on their way to the helper.
#[map]
static TB_CHUNK: PerCpuArray<[u32; CHUNK / 4]> = PerCpuArray::with_max_entries(1, 0);

/// Looks at one frame and counts what is wrong with it.
#[inline(always)]
pub(crate) fn verify(ctx: &XdpContext) {
    let Some(seen) = TB_SEEN.get_ptr_mut(0) else { return };
    // SAFETY: the pointer is to a map value; see there for why nobody else writes it.
    let seen = unsafe { &mut *seen };
    seen.frames += 1;
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + 34 > end {
        return;
    }
    let half = |at: usize| {
        // SAFETY: all uses are below byte 34, which was compared with the end.
        u16::from_be(unsafe { core::ptr::read_unaligned((data + at) as *const u16) })
    };
    // Other protocols (IGMP with its options, say) are not looked at.
    if half(12) != 0x0800 || half(22) & 0xff != 6 {
        return;
    }
    let total = u32::from(half(16));
    if half(14) >> 8 != 0x45 || half(20) & 0x3fff != 0 || total as usize + 14 > end - data || total < 20 {
        seen.odd += 1;
        return;
    }
    let mut sum = 0u32;
    let mut at = 14;
    while at < 34 {
        sum += u32::from(half(at));
        at += 2;
    }
    if fold(sum) != 0xffff {
        seen.bad_ip += 1;
    }
    seen.tcp += 1;
    let len = total - 20;
    let pseudo = u32::from(half(26))
        + u32::from(half(28))
        + u32::from(half(30))
        + u32::from(half(32))
        + 6
        + (len & 0xffff);
    // The helper adds words as they stand in memory, so the pseudo header must stand like that, too.
    match sum_of(ctx, 34, len, u32::from(fold(pseudo).to_be())) {
        Some(sum) if fold(sum) == 0xffff => {}
        Some(_) => seen.bad_tcp += 1,
        None => seen.odd += 1,
    }
}

/// One's complement sum of `len` bytes at `offset`, on top of `sum`.
#[inline(always)]
fn sum_of(ctx: &XdpContext, offset: u32, len: u32, mut sum: u32) -> Option<u32> {
    let chunk = TB_CHUNK.get_ptr_mut(0)?;
    let mut i = 0;
    while i < CHUNKS {
        let from = i * CHUNK as u32;
        if from >= len {
            break;
        }
        let n = Length::at_most::<{ CHUNK as u32 }>(len - from)?;
        let words = n.get().div_ceil(4);
        let whole = Length::new::<{ CHUNK as u32 }>(words * 4)?;
        // SAFETY: a value of this processor's own, CHUNK bytes long, and neither n nor the words exceed that.
        let added = unsafe {
            // The helper takes whole words: what follows the last byte must be zero.
            (*chunk)[(words - 1) as usize & (CHUNK / 4 - 1)] = 0;
            if bpf_xdp_load_bytes(ctx.ctx, offset + from, chunk.cast(), n.get()) != 0 {
                return None;
            }
            bpf_csum_diff(core::ptr::null_mut(), 0, chunk.cast(), whole.get(), sum)
        };
        if added < 0 {
            return None;
        }
        sum = added as u32;
        i += 1;
    }
    Some(sum)
}

#[inline(always)]
fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    (sum + (sum >> 16)) as u16
}
