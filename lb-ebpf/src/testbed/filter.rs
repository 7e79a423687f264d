//! Rules: which frames are lost or doubled.

use crate::rule::{DROP, DUPLICATE, RULES, Rule, Tally};
use aya_ebpf::EbpfContext;
use aya_ebpf::bindings::{TC_ACT_OK, TC_ACT_STOLEN};
use aya_ebpf::helpers::bpf_clone_redirect;
use aya_ebpf::macros::map;
use aya_ebpf::maps::Array;
use aya_ebpf::programs::TcContext;

/// Rule number → rule. Written by the test.
#[map]
static TB_RULES: Array<Rule> = Array::with_max_entries(RULES, 0);

/// Rule number → what became of it. Written here.
#[map]
static TB_TALLY: Array<Tally> = Array::with_max_entries(RULES, 0);

/// What rules look at; all zero but for `ipv4` when the frame is not TCP.
pub(crate) struct Headers {
    tcp: bool,
    src_port: u16,
    dst_port: u16,
    flags: u8,
    with_payload: bool,
}

/// Reads the headers of an IPv4 frame without options; `None` for any other frame.
#[inline(always)]
pub(crate) fn headers(data: usize, data_end: usize) -> Option<Headers> {
    if data + 34 > data_end {
        return None;
    }
    let byte = |at: usize| {
        // SAFETY: every use below is within the bytes compared with the end before it.
        unsafe { *((data + at) as *const u8) }
    };
    let half = |at: usize| u16::from_be_bytes([byte(at), byte(at + 1)]);
    if half(12) != 0x0800 || byte(14) != 0x45 {
        return None;
    }
    if byte(23) != 6 || data + 54 > data_end {
        return Some(Headers { tcp: false, src_port: 0, dst_port: 0, flags: 0, with_payload: false });
    }
    let header = 20 + (u16::from(byte(46)) >> 4) * 4;
    Some(Headers {
        tcp: true,
        src_port: half(34),
        dst_port: half(36),
        flags: byte(47),
        with_payload: half(16) > header,
    })
}

/// What the first rule that hits does with the frame; 0 when none does. Every rule that matches counts.
#[inline(always)]
pub(crate) fn fate(headers: &Headers) -> u32 {
    let mut fate = 0;
    let mut i = 0;
    while i < RULES {
        if let (Some(rule), Some(tally)) = (TB_RULES.get(i), TB_TALLY.get_ptr_mut(i))
            && rule.action != 0
            && matches(rule, headers)
        {
            // SAFETY: the pointer is to a map value, two words long.
            let number = unsafe { fetch_add(&raw mut (*tally).matched, 1) };
            let chosen = number.wrapping_sub(u64::from(rule.first)) < u64::from(rule.count)
                || rule.every != 0 && number % u64::from(rule.every) == u64::from(rule.every) - 1;
            if chosen {
                // SAFETY: as above.
                unsafe { fetch_add(&raw mut (*tally).hit, 1) };
                if fate == 0 {
                    fate = rule.action;
                }
            }
        }
        i += 1;
    }
    fate
}

#[inline(always)]
fn matches(rule: &Rule, headers: &Headers) -> bool {
    let port = |want: u16, have: u16| want == 0 || want == have;
    port(rule.src_port, headers.src_port)
        && port(rule.dst_port, headers.dst_port)
        && headers.flags & rule.flags_mask == rule.flags
        && match rule.payload {
            0 => true,
            1 => headers.with_payload,
            _ => headers.tcp && !headers.with_payload,
        }
}

/// The tc side: loses a frame so that its sender believes it sent, or sends a clone ahead of it.
#[inline(always)]
pub(crate) fn at_egress(ctx: &TcContext) -> i32 {
    /// On a clone, so that it is not doubled again when it comes past here.
    const CLONE: u32 = 0x7b7b;
    let skb = ctx.skb.skb;
    // SAFETY: the context is valid while the program runs.
    let (mark, ifindex) = unsafe { ((*skb).mark, (*skb).ifindex) };
    if mark == CLONE {
        // SAFETY: as above.
        unsafe { (*skb).mark = 0 };
        return TC_ACT_OK;
    }
    // The headers may stand outside of the linear part. Fails for frames shorter than that, which are not TCP.
    let _ = ctx.pull_data(54);
    let Some(headers) = headers(ctx.data(), ctx.data_end()) else { return TC_ACT_OK };
    match fate(&headers) {
        DROP => TC_ACT_STOLEN,
        DUPLICATE => {
            // SAFETY: as above; packet pointers are not used after the clone.
            unsafe {
                (*skb).mark = CLONE;
                bpf_clone_redirect(ctx.as_ptr().cast(), ifindex, 0);
                (*skb).mark = 0;
            }
            TC_ACT_OK
        }
        _ => TC_ACT_OK,
    }
}

/// Adds to a word and returns what it was. `core::sync::atomic` has no such operation for this target.
///
/// # Safety
/// `word` points at an aligned map value.
#[inline(always)]
unsafe fn fetch_add(word: *mut u64, by: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = by;
        // SAFETY: the caller's promise.
        unsafe {
            core::arch::asm!(
                "{value} = atomic_fetch_add((u64 *)({word} + 0), {value})",
                word = in(reg) word,
                value = inout(reg) value,
            );
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        // SAFETY: the caller's promise.
        unsafe { core::sync::atomic::AtomicU64::from_ptr(word) }
            .fetch_add(by, core::sync::atomic::Ordering::SeqCst)
    }
}
