//! A measured program rewrites its packet, and a test run does not restore it: the second repeat would take another path.
//! This program runs in front of it and puts an image of the frame back; its own cost is measured with an empty program
//! behind it and subtracted.

use crate::rule::{IMAGE_ROOM, Image, Undo, client_of, scramble};
use crate::watch::opaque;
use aya_ebpf::bindings::xdp_action::XDP_ABORTED;
use aya_ebpf::helpers::{bpf_xdp_adjust_tail, bpf_xdp_store_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::XdpContext;

/// 0 → where it is. Written by the test before a measurement, by the program during it.
#[map]
static TB_UNDO: Array<Undo> = Array::with_max_entries(1, 0);

/// Image number → frame. Written by the test.
#[map]
static TB_IMAGES: Array<Image> = Array::with_max_entries(1, 0);

/// 0 → the program that is measured.
#[map]
static TB_NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

#[inline(always)]
pub(crate) fn put_back(ctx: &XdpContext) -> u32 {
    if restore(ctx).is_some() {
        // SAFETY: returns only when there is no such program.
        unsafe { TB_NEXT.tail_call(ctx, 0) };
    }
    XDP_ABORTED
}

#[inline(always)]
fn restore(ctx: &XdpContext) -> Option<()> {
    // SAFETY: a map value; a measurement runs on one processor.
    let undo = unsafe { &mut *TB_UNDO.get_ptr_mut(0)? };
    let run = undo.run as u32;
    undo.run += 1;
    let image = TB_IMAGES.get_ptr_mut(run & undo.image_mask)?;
    // SAFETY: a map value.
    let len = unsafe { (*image).len };
    let change = len as i32 - (ctx.data_end() - ctx.data()) as i32;
    // SAFETY: the context is valid; packet pointers are read again afterwards.
    if change != 0 && unsafe { bpf_xdp_adjust_tail(ctx.ctx, change) } != 0 {
        return None;
    }
    let head = opaque(if undo.head == 0 { len } else { undo.head });
    if head == 0 || head > IMAGE_ROOM as u64 {
        return None;
    }
    // SAFETY: the image has at least `head` bytes of room.
    if unsafe { bpf_xdp_store_bytes(ctx.ctx, 0, (&raw mut (*image).bytes).cast(), head as u32) } != 0 {
        return None;
    }
    if undo.clients != 0 {
        let (address, port) = client_of(scramble(run, undo.clients));
        let data = ctx.data();
        if data + 54 > ctx.data_end() {
            return None;
        }
        let (address_at, port_at) = if undo.to_client != 0 { (30, 36) } else { (26, 34) };
        // SAFETY: both fields are within the bytes that were compared with the end.
        unsafe {
            core::ptr::write_unaligned((data + address_at) as *mut u32, address.to_be());
            core::ptr::write_unaligned((data + port_at) as *mut u16, port.to_be());
        }
    }
    Some(())
}
