//! Programs that only tests and benchmarks use: they watch the end points, lose and double frames, and put frames back
//! between the runs of a measurement. No part of the product.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "on the host the programs are only type-checked")
)]

#[allow(dead_code, reason = "the product's own; not all of it is used here")]
mod bounds;
#[path = "testbed/filter.rs"]
mod filter;
#[path = "testbed/rule.rs"]
#[allow(unreachable_pub, reason = "the tests crate compiles this file, too, and exports it")]
mod rule;
#[path = "testbed/undo.rs"]
mod undo;
#[path = "testbed/watch.rs"]
mod watch;

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use aya_ebpf::macros::{classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};

/// Does nothing: what any program costs at least.
#[xdp]
fn tb_empty(_ctx: XdpContext) -> u32 {
    XDP_PASS
}

/// At an end point's ingress: checks every checksum, then loses what the rules say.
#[xdp]
fn tb_watch(ctx: XdpContext) -> u32 {
    watch::verify(&ctx);
    let lose = filter::headers(ctx.data(), ctx.data_end()).is_some_and(|h| filter::fate(&h) == rule::DROP);
    if lose { XDP_DROP } else { XDP_PASS }
}

/// At an end point's egress: loses or doubles what the rules say.
#[classifier]
fn tb_filter(ctx: TcContext) -> i32 {
    filter::at_egress(&ctx)
}

/// Puts the frame back as it was before the last run, then becomes the program in `TB_NEXT`.
#[xdp]
fn tb_undo(ctx: XdpContext) -> u32 {
    undo::put_back(&ctx)
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    // Never reached: the verifier refuses a program that could loop here.
    loop {}
}

#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
