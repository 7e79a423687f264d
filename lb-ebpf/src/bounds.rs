//! Bounds that every kernel's verifier sees.
//!
//! A check in Rust proves a bound to the compiler. The compiler may then test one register and use another: a copy, or
//! the same number before something was added to it. The verifier knows a bound only of the register that was tested, and
//! what it infers beyond that differs from kernel to kernel: 6.1 and 6.12 refuse what 6.18 follows. What has to be proved
//! to the verifier goes through this file, and nothing else does.
//!
//! What the verifiers said without it:
//! - 6.1, a length that was tested with `len == 0 || len > MAX`: "invalid access to map value, value_size=4648 off=192
//!   size=0 / R3 min value is outside of the allowed memory range". Before Linux 6.8 `!= 0` does not raise a minimum.
//! - 6.12, the same length, tested in one register and passed in another: "R4 invalid zero-sized read: u64=[0,2920]".

/// Makes the compiler forget where a value comes from, so that it cannot compute it anew or test another register in its
/// place (the kernel's own BPF programs call it so). 64 bits: a narrower value is extended by shifts, and the verifier
/// loses the bound on the way.
#[inline(always)]
pub(crate) fn barrier_var(value: u64) -> u64 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: the instruction moves a register onto itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) value) };
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    core::hint::black_box(value)
}

/// The same for a pointer.
#[inline(always)]
pub(crate) fn barrier_ptr<T>(pointer: *const T) -> *const T {
    #[cfg(target_arch = "bpf")]
    {
        let mut pointer = pointer;
        // SAFETY: the instruction moves a register onto itself.
        unsafe { core::arch::asm!("{0} = {0}", inout(reg) pointer) };
        pointer
    }
    #[cfg(not(target_arch = "bpf"))]
    core::hint::black_box(pointer)
}

/// A number of bytes from 1 to some maximum, in a register that the verifier knows to be that. What helpers take that
/// copy bytes: they accept no 0.
#[derive(Clone, Copy)]
pub(crate) struct Length(u64);

impl Length {
    /// The length, or `None` if it is 0 or more than `MAX`.
    #[inline(always)]
    pub(crate) fn new<const MAX: u32>(len: u32) -> Option<Self> {
        // 0 wraps around to more than any maximum: one comparison, and of a kind that raises the minimum everywhere.
        let before_last = barrier_var(u64::from(len).wrapping_sub(1));
        if before_last >= u64::from(MAX) {
            return None;
        }
        Some(Self(below::<MAX>(before_last) + 1))
    }

    /// The length, or `MAX` if it is more; `None` if it is 0.
    #[inline(always)]
    pub(crate) fn at_most<const MAX: u32>(len: u32) -> Option<Self> {
        Self::new::<MAX>(if len < MAX { len } else { MAX })
    }

    /// A length that is known when this is compiled.
    #[inline(always)]
    pub(crate) const fn of<const LEN: u32>() -> Self {
        const { assert!(LEN >= 1) };
        Self(LEN as u64)
    }

    #[inline(always)]
    pub(crate) const fn get(self) -> u32 {
        self.0 as u32
    }
}

/// An offset below `ROOM`, or `None`.
#[inline(always)]
pub(crate) fn offset<const ROOM: u32>(at: u32) -> Option<usize> {
    let at = barrier_var(u64::from(at));
    if at >= u64::from(ROOM) { None } else { Some(below::<ROOM>(at) as usize) }
}

/// The value, of which the caller has tested that it is less than `LIMIT`, in a register of which the verifier knows that. Where the
/// compiler has tested this very register, the verifier sees that the jump is never taken and takes it away.
#[inline(always)]
fn below<const LIMIT: u32>(value: u64) -> u64 {
    const { assert!(LIMIT >= 1 && LIMIT <= i32::MAX as u32) };
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: a comparison and a move, within one register.
        unsafe {
            core::arch::asm!(
                // What is in bounds goes straight on: the verifier follows that first, and the other is a part of it.
                "if {value} >= {limit} goto +1",
                "goto +1",
                "{value} = 0",
                value = inout(reg) value,
                limit = const LIMIT,
            );
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    value
}
