//! The packet programs. `lb` (XDP) steers every packet of every interface; `lb_joint` (tc ingress) completes a splice
//! where XDP has no room to. This file is the table of contents: parse → direction → action → count.
#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![cfg_attr(
    not(target_arch = "bpf"),
    allow(dead_code, reason = "on the host the programs are only type-checked")
)]

mod asked;
mod atomic;
mod bounds;
mod clock;
mod cold;
mod datagram;
mod endpoints;
mod flows;
mod from_backend;
mod from_client;
mod handshake;
mod header;
mod homes;
mod joint;
mod keep;
mod learn;
mod lost;
mod maps;
mod offer;
mod options;
mod packet;
mod plain;
mod replay;
mod rewrite;
mod scope;
mod select;
mod shares;
mod stash;
mod steer;
mod syn;
mod token;
mod trace;
mod unavailable;
mod unknown;
mod verdict;

use aya_ebpf::macros::{classifier, raw_tracepoint, xdp};
use aya_ebpf::programs::{RawTracePointContext, TcContext, XdpContext};

/// Entry of every packet.
#[xdp]
fn lb(ctx: XdpContext) -> u32 {
    let (service, verdict) = steer::steer(&ctx);
    maps::count(service, verdict.counter());
    verdict.action()
}

/// Entry of what `lb` passed up: only answers of backends to half-bound flows are touched.
#[classifier]
fn lb_joint(ctx: TcContext) -> i32 {
    let Some((service, verdict)) = joint::join(&ctx) else { return joint::PASS };
    maps::count(service, verdict.counter());
    verdict.action() as i32
}

/// The kernel refused a frame that `lb` sent elsewhere.
#[raw_tracepoint(tracepoint = "xdp_redirect_err")]
fn lb_redirect_err(ctx: RawTracePointContext) -> Option<()> {
    lost::redirect_err(&ctx)
}

/// The kernel could not do what `lb` said.
#[raw_tracepoint(tracepoint = "xdp_exception")]
fn lb_exception(ctx: RawTracePointContext) -> Option<()> {
    lost::exception(&ctx)
}

/// A driver was handed frames that were sent to it.
#[raw_tracepoint(tracepoint = "xdp_devmap_xmit")]
fn lb_devmap_xmit(ctx: RawTracePointContext) -> Option<()> {
    lost::devmap_xmit(&ctx)
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
