//! What becomes of a packet, and under which name that is counted.

use aya_ebpf::bindings::xdp_action::{XDP_DROP, XDP_PASS};
use lb_common::counter::Counter;

/// An action (of XDP, or of tc where the joint decides) and a counter's index, in one word: a function that is not
/// inlined can return no more.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub(crate) struct Verdict(u64);

impl Verdict {
    #[inline(always)]
    pub(crate) const fn new(action: u32, counter: Counter) -> Self {
        Self(action as u64 | (counter as u64) << 32)
    }
    /// From what [`Verdict::to_bits`] gave.
    #[inline(always)]
    pub(crate) const fn from_bits(bits: u64) -> Self {
        Self(bits)
    }
    #[inline(always)]
    pub(crate) const fn to_bits(self) -> u64 {
        self.0
    }
    #[inline(always)]
    pub(crate) const fn action(self) -> u32 {
        self.0 as u32
    }
    /// Index of the counter.
    #[inline(always)]
    pub(crate) const fn counter(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Ends here: dropped, or absorbed because it has done its work.
#[inline(always)]
pub(crate) const fn consume(counter: Counter) -> Verdict {
    Verdict::new(XDP_DROP, counter)
}

/// Goes up to the host.
#[inline(always)]
pub(crate) const fn pass(counter: Counter) -> Verdict {
    Verdict::new(XDP_PASS, counter)
}

/// Leaves through an interface. A redirect works where XDP_TX would vanish: towards a veth peer that has GRO but no
/// XDP program of its own.
#[inline(always)]
pub(crate) fn leave(ifindex: u32, counter: Counter) -> Verdict {
    // SAFETY: the helper only records where the packet goes.
    Verdict::new(unsafe { aya_ebpf::helpers::bpf_redirect(ifindex, 0) } as u32, counter)
}
