//! A measured program rewrites its packet, and a test run does not restore it: the second repeat would take another path.
//! This program runs in front of it and puts an image of the frame back; its own cost is measured with an empty program
//! behind it and subtracted. So what it does must not depend on what the program before it left behind.

use crate::bounds::{Length, barrier_var};
use crate::rule::{Client, DESTINATION, HEADERS, HEADERS_LEN, IMAGE_ROOM, INNER, Image, SOURCE, Undo, WHOLE};
use aya_ebpf::bindings::xdp_action::XDP_ABORTED;
use aya_ebpf::helpers::{bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_store_bytes};
use aya_ebpf::macros::map;
use aya_ebpf::maps::{Array, ProgramArray};
use aya_ebpf::programs::XdpContext;
use core::ptr;
use lb_common::flow::{Flow, Head};
use lb_common::home::Asked;

/// 0 → where it is. Written by the test before a measurement, by the program during it.
#[map]
static TB_UNDO: Array<Undo> = Array::with_max_entries(1, 0);

/// Image number → frame. Written by the test.
#[map]
static TB_IMAGES: Array<Image> = Array::with_max_entries(1, 0);

/// Client number → client. Written by the test.
#[map]
static TB_CLIENTS: Array<Client> = Array::with_max_entries(1, 0);

/// 0 → the program that is measured.
#[map]
static TB_NEXT: ProgramArray = ProgramArray::with_max_entries(1, 0);

/// The product's flow table, when the test shares it by a pin.
#[map]
static FLOWS: Array<Flow> = Array::with_max_entries(1, 1 << 10);

/// What is known of requests and responses, shared in the same way.
#[map]
static FLOW_KEYS: Array<Asked> = Array::with_max_entries(1, 0);

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
    // SAFETY: a map value that is only read.
    let image = unsafe { &*TB_IMAGES.get_ptr(run & undo.image_mask)? };
    match undo.what {
        WHOLE => whole(ctx, image)?,
        HEADERS => headers(ctx, image)?,
        INNER => {
            uncover(ctx, image)?;
            headers(ctx, image)?;
        }
        _ => return None,
    }
    if undo.client_is != 0 {
        replace_client(ctx, undo.client_is, TB_CLIENTS.get(run & undo.client_mask)?)?;
    }
    if image.flow != 0 {
        // SAFETY: a map value, of a flow that the last run has left.
        unsafe { (*FLOWS.get_ptr_mut(image.flow - 1)?).head = Head::default() };
    }
    if image.open != 0 {
        let known = FLOW_KEYS.get_ptr_mut(image.open - 1)?;
        // SAFETY: a map value; a measurement runs on one processor.
        unsafe {
            (*known).answered = (*known).asked.wrapping_sub(1);
            (*known).head = 0;
        }
    }
    Some(())
}

/// The frame is cut to this before it grows, so that as much is done when nobody had cut it.
const STUMP: i32 = 14;

#[inline(always)]
fn whole(ctx: &XdpContext, image: &Image) -> Option<()> {
    let cut = STUMP - (ctx.data_end() - ctx.data()) as i32;
    // SAFETY: the context is valid; packet pointers are read again afterwards.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, cut) } != 0 {
        return None;
    }
    // SAFETY: as above.
    if unsafe { bpf_xdp_adjust_tail(ctx.ctx, image.len as i32 - STUMP) } != 0 {
        return None;
    }
    let len = Length::new::<{ IMAGE_ROOM as u32 }>(image.len)?;
    // SAFETY: the image has room for `len` bytes.
    let refused =
        unsafe { bpf_xdp_store_bytes(ctx.ctx, 0, image.bytes.as_ptr().cast_mut().cast(), len.get()) };
    if refused == 0 { Some(()) } else { None }
}

/// Takes off what stands in front of the frame. Nothing is as much work for the kernel as an outer header.
#[inline(always)]
fn uncover(ctx: &XdpContext, image: &Image) -> Option<()> {
    // Packet pointers are subtracted from each other alone: "32-bit pointer arithmetic prohibited".
    let len = barrier_var((ctx.data_end() - ctx.data()) as u64);
    let more = len as i32 - image.len as i32;
    // SAFETY: the context is valid; packet pointers are read again afterwards.
    if unsafe { bpf_xdp_adjust_head(ctx.ctx, more) } == 0 { Some(()) } else { None }
}

#[inline(always)]
fn headers(ctx: &XdpContext, image: &Image) -> Option<()> {
    let (data, end) = (ctx.data(), ctx.data_end());
    if data + HEADERS_LEN > end || (end - data) as u32 != image.len {
        return None;
    }
    let to = data as *mut u8;
    // MAC addresses and ethertype.
    field::<u32>(to, image, 0);
    field::<u16>(to, image, 4);
    field::<u32>(to, image, 6);
    field::<u16>(to, image, 10);
    field::<u16>(to, image, 12);
    // Version, service and length; identification and fragment; time to live and protocol, checksum; addresses.
    let mut at = 14;
    while at < 26 {
        field::<u16>(to, image, at);
        at += 2;
    }
    field::<u32>(to, image, 26);
    field::<u32>(to, image, 30);
    // Ports, sequence numbers, offset and flags, window, checksum, urgent pointer.
    field::<u16>(to, image, 34);
    field::<u16>(to, image, 36);
    field::<u32>(to, image, 38);
    field::<u32>(to, image, 42);
    let mut at = 46;
    while at < 54 {
        field::<u16>(to, image, at);
        at += 2;
    }
    // Options.
    let mut at = 54;
    while at < HEADERS_LEN {
        field::<u32>(to, image, at);
        at += 4;
    }
    Some(())
}

/// Copies one field, by one load and one store of its own.
#[inline(always)]
fn field<T: Copy>(to: *mut u8, image: &Image, at: usize) {
    // SAFETY: every field lies within HEADERS_LEN bytes, which the packet and the image have.
    unsafe {
        let value: T = ptr::read_unaligned(image.bytes.as_ptr().add(at).cast());
        ptr::write_unaligned(to.add(at).cast(), value);
    }
}

#[inline(always)]
fn replace_client(ctx: &XdpContext, which: u32, client: &Client) -> Option<()> {
    let data = ctx.data();
    if data + HEADERS_LEN > ctx.data_end() {
        return None;
    }
    let (addr_at, port_at) = match which {
        SOURCE => (26, 34),
        DESTINATION => (30, 36),
        _ => return None,
    };
    // SAFETY: both fields are within the bytes that were compared with the end.
    unsafe {
        ptr::write_unaligned((data + addr_at) as *mut u32, client.addr);
        ptr::write_unaligned((data + port_at) as *mut u16, client.port);
    }
    Some(())
}
