//! Whose packet it is: from a client to a service, from a backend to a client, or somebody else's.

use crate::maps::ENDPOINTS;
use lb_common::addr::{Addr, Be16};
use lb_common::backend::Backend;
use lb_common::endpoint::{Endpoint, KIND_BACKEND, KIND_SERVICE, bucket_of, port_and_protocol};
use lb_common::settings::Settings;

/// What a packet is to us.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    /// Addressed to this service.
    FromClient(u16),
    /// Sent by the backend in this slot.
    FromBackend(u16),
    Other,
}

/// Looks at both ends of a packet of a protocol.
#[inline(always)]
pub(crate) fn direction(
    settings: &Settings,
    protocol: u8,
    src: (Addr, Be16),
    dst: (Addr, Be16),
) -> Direction {
    let live = Live::of(settings);
    if let Some(service) = live.find(dst.0, port_and_protocol(dst.1, protocol), KIND_SERVICE) {
        return Direction::FromClient(service);
    }
    match live.find(src.0, port_and_protocol(src.1, protocol), KIND_BACKEND) {
        Some(slot) => Direction::FromBackend(slot),
        None => Direction::Other,
    }
}

/// The service or backend at an address.
#[inline(always)]
pub(crate) fn find(settings: &Settings, protocol: u8, addr: Addr, port: Be16, kind: u16) -> Option<u16> {
    Live::of(settings).find(addr, port_and_protocol(port, protocol), kind)
}

/// Whether a packet in the name of a backend comes from another interface than the one that leads to it, where that matters.
#[inline(always)]
pub(crate) fn is_elsewhere(settings: &Settings, backend: &Backend, ifindex: u32) -> bool {
    settings.check_interfaces != 0 && backend.has_next_hop != 0 && ifindex != backend.ifindex
}

/// The half of the table that is live.
#[derive(Clone, Copy)]
struct Live {
    base: u32,
    mask: u32,
    seed: u64,
}

impl Live {
    #[inline(always)]
    fn of(settings: &Settings) -> Self {
        // One word: base and mask of the live half belong together.
        // SAFETY: a reference to a map value is aligned and valid.
        let live = unsafe { core::ptr::read_volatile(&raw const settings.live) };
        let base = live as u32;
        Self { base, mask: (live >> 32) as u32, seed: settings.endpoint_seed[usize::from(base != 0)] }
    }

    #[inline(always)]
    fn find(self, addr: Addr, port: u32, kind: u16) -> Option<u16> {
        let bucket = ENDPOINTS.get(self.base.wrapping_add(bucket_of(self.seed, addr, port) & self.mask))?;
        let [a, b] = &bucket.0;
        if is_at(a, addr, port, kind) {
            Some(a.index)
        } else if is_at(b, addr, port, kind) {
            Some(b.index)
        } else {
            None
        }
    }
}

/// Whether an entry is that of an address. The half of the address that differs between IPv4 addresses first.
#[inline(always)]
fn is_at(entry: &Endpoint, addr: Addr, port: u32, kind: u16) -> bool {
    entry.addr.lo == addr.lo && entry.addr.hi == addr.hi && entry.port == port && entry.kind == kind
}
