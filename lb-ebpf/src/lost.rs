//! What becomes of a frame after the verdict: a redirect can fail, and nothing but a tracepoint tells. Each program here
//! counts under the interface and the cause ([`lb_common::lost`]) what the daemon's own programs and interfaces lost; it never
//! runs while nothing is lost, but for `xdp_devmap_xmit`, once for each burst of redirected frames.

use crate::maps::{LOST, OWN_INTERFACES, WATCH};
use aya_ebpf::helpers::bpf_probe_read_kernel;
use aya_ebpf::programs::RawTracePointContext;
use lb_common::lost::{EXCEPTION, Lost, RING_FULL, Watch};

const XDP_REDIRECT: u32 = aya_ebpf::bindings::xdp_action::XDP_REDIRECT;

/// `xdp_redirect_err(dev, prog, target, err, map_type, map_id, index)`: the frame was refused at once.
#[inline(always)]
pub(crate) fn redirect_err(ctx: &RawTracePointContext) -> Option<()> {
    let watch = WATCH.get(0)?;
    if !is_own_program(watch, ctx.arg(1))? {
        return None;
    }
    let errno = ctx.arg::<i32>(3).wrapping_neg() as u32;
    // Without a map the index is that of the interface.
    add(Lost { ifindex: ctx.arg(6), cause: errno & 0xffff }, 1);
    Some(())
}

/// `xdp_exception(dev, prog, action)`
#[inline(always)]
pub(crate) fn exception(ctx: &RawTracePointContext) -> Option<()> {
    let watch = WATCH.get(0)?;
    let action: u32 = ctx.arg(2);
    // Some drivers tell of a failed redirect here, too.
    if action == XDP_REDIRECT || !is_own_program(watch, ctx.arg(1))? {
        return None;
    }
    let ifindex = read::<u32>(ctx.arg(0), watch.dev_ifindex)?;
    add(Lost { ifindex, cause: EXCEPTION | action & 0xffff }, 1);
    Some(())
}

/// `xdp_devmap_xmit(from, to, sent, drops, err)`: frames that had been taken were handed to the driver.
#[inline(always)]
pub(crate) fn devmap_xmit(ctx: &RawTracePointContext) -> Option<()> {
    let drops = ctx.arg::<i32>(3);
    if drops <= 0 {
        return None;
    }
    let watch = WATCH.get(0)?;
    let (from, to): (u64, u64) = (ctx.arg(0), ctx.arg(1));
    let net = read::<u64>(from, watch.dev_net)?;
    if watch.netns == 0 || read::<u32>(net, watch.net_inum)? != watch.netns {
        return None;
    }
    OWN_INTERFACES.get_ptr(read::<u32>(from, watch.dev_ifindex)?)?;
    let errno = ctx.arg::<i32>(4).wrapping_neg();
    let cause = if errno > 0 { errno as u32 & 0xffff } else { RING_FULL };
    add(Lost { ifindex: read(to, watch.dev_ifindex)?, cause }, drops as u64);
    Some(())
}

#[inline(always)]
fn is_own_program(watch: &Watch, program: u64) -> Option<bool> {
    let aux = read::<u64>(program, watch.prog_aux)?;
    let id = read::<u32>(aux, watch.aux_id)?;
    Some(id != 0 && (id == watch.programs[0] || id == watch.programs[1]))
}

/// A field of one of the kernel's own structures.
#[inline(always)]
fn read<T>(at: u64, offset: u32) -> Option<T> {
    // SAFETY: the helper checks the address and copies, or fails.
    unsafe { bpf_probe_read_kernel((at + u64::from(offset)) as *const T) }.ok()
}

#[inline(always)]
fn add(lost: Lost, frames: u64) {
    // SAFETY: the value belongs to this processor while the program runs.
    unsafe {
        if let Some(count) = LOST.get_ptr_mut(lost) {
            *count += frames;
        } else if LOST.insert(lost, frames, 0).is_err()
            && let Some(count) = LOST.get_ptr_mut(Lost { ifindex: 0, cause: 0 })
        {
            *count += frames;
        }
    }
}
