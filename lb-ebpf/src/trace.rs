//! One log line for each packet that concerns a service, through aya-log: `cargo xtask build --trace`. Not in the
//! ordinary build, which pays nothing for it.

use crate::atomic::launder;
use crate::verdict::Verdict;
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use aya_log_ebpf::info;
use lb_common::counter::{COUNTER_ROOM, NAME_ROOM, PADDED_NAMES};

/// Names by index: an array of bytes, because a table of pointers cannot be relocated here.
static NAMES: [[u8; NAME_ROOM]; COUNTER_ROOM] = PADDED_NAMES;

/// Says what became of a packet.
#[inline(always)]
pub(crate) fn verdict(ctx: &XdpContext, service: u16, verdict: Verdict) {
    if service != 0 {
        lb_log(ctx.ctx, u32::from(service), verdict.counter());
    }
}

/// A global function (see [`crate::cold`]), so that the entry's own stack stays small.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_log(ctx: *mut xdp_md, service: u32, counter: u32) -> u32 {
    let ctx = XdpContext::new(ctx);
    let index = launder(u64::from(counter)) as usize & (COUNTER_ROOM - 1);
    // SAFETY: the index is masked to the table's length; names are ASCII.
    let name = unsafe { core::str::from_utf8_unchecked(&*NAMES.as_ptr().add(index)) };
    info!(&ctx, "service {} interface {} {}", service, ctx.ingress_ifindex(), name);
    0
}
