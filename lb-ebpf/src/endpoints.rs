//! Whose packet it is: from a client to a service, from a backend to a client, or somebody else's.

use crate::maps::ENDPOINTS;
use lb_common::addr::{Addr, Be16};
use lb_common::endpoint::{KIND_BACKEND, KIND_SERVICE, bucket_of, port_and_protocol};
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

/// Looks at both ends of a TCP packet.
#[inline(always)]
pub(crate) fn direction(settings: &Settings, src: (Addr, Be16), dst: (Addr, Be16)) -> Direction {
    if let Some(service) = find(settings, dst.0, dst.1, KIND_SERVICE) {
        return Direction::FromClient(service);
    }
    match find(settings, src.0, src.1, KIND_BACKEND) {
        Some(slot) => Direction::FromBackend(slot),
        None => Direction::Other,
    }
}

/// The service or backend at an address.
#[inline(always)]
pub(crate) fn find(settings: &Settings, addr: Addr, port: Be16, kind: u16) -> Option<u16> {
    // One word: base and mask of the live half belong together.
    // SAFETY: a reference to a map value is aligned and valid.
    let live = unsafe { core::ptr::read_volatile(&raw const settings.live) };
    let (base, mask) = (live as u32, (live >> 32) as u32);
    let seed = settings.endpoint_seed[usize::from(base != 0)];
    let port = port_and_protocol(port, lb_common::tcp::PROTOCOL);
    let bucket = ENDPOINTS.get(base.wrapping_add(bucket_of(seed, addr, port) & mask))?;
    let [a, b] = &bucket.0;
    if a.addr == addr && a.port == port && a.kind == kind {
        return Some(a.index);
    }
    if b.addr == addr && b.port == port && b.kind == kind {
        return Some(b.index);
    }
    None
}
