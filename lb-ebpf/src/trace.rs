//! Telling steering decisions to whoever listens. While nobody does, a decision costs one comparison more.

use crate::flows::Key;
use crate::maps::{TRACE, count, settings};
use crate::token::Found;
use lb_common::addr::{Addr, Be16};
use lb_common::counter::Counter;
use lb_common::trace::Decision;

/// Tells a decision, if somebody listens.
#[inline(always)]
pub(crate) fn tell(key: &Key, slot: u16, found: Found, reason: u32) {
    if settings().is_some_and(|settings| settings.trace != 0) {
        let flow = u64::from(key.tail()) | u64::from(slot) << 32 | u64::from(found as u16) << 48;
        lb_tell(key.client.hi, key.client.lo, flow, reason);
    }
}

/// Writes the record, if it is one that is asked for. `flow` holds the client's port, the service, the backend and what was
/// found, sixteen bits each, the port lowest.
///
/// A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_tell(hi: u64, lo: u64, flow: u64, reason: u32) -> u32 {
    let Some(settings) = settings() else { return 0 };
    let service = (flow >> 16) as u16;
    let client = Addr { hi, lo };
    let (asked, of) = (settings.trace_service, settings.trace_client);
    if asked != 0 && asked != u32::from(service) || of != Addr::default() && of != client {
        return 0;
    }
    let Some(mut record) = TRACE.reserve::<Decision>(0) else {
        count(service, Counter::TraceLost as u32);
        return 0;
    };
    // SAFETY: the helper takes nothing and reads a clock.
    let at = unsafe { aya_ebpf::helpers::bpf_ktime_get_ns() };
    record.write(Decision {
        at,
        client,
        client_port: Be16::from_bits(flow as u16),
        service,
        backend: (flow >> 32) as u16,
        key: (flow >> 48) as u16,
        reason,
        _pad: 0,
    });
    record.submit(0);
    1
}
