//! Parse → direction → action.

use crate::endpoints::{Direction, direction, find};
use crate::maps::settings;
use crate::packet::{Frame, Packet, Segment, at};
use crate::verdict::{Verdict, consume, pass};
use crate::{datagram, from_backend, from_client};
use aya_ebpf::programs::XdpContext;
use lb_common::addr::{Addr, Be16};
use lb_common::counter::Counter;
use lb_common::endpoint::KIND_SERVICE;
use lb_common::tcp::{FIN, PROTOCOL, RST, SYN};

pub(crate) const ETHERTYPE_IPV4: u16 = 0x0800_u16.to_be();
/// Bytes of an IPv4 header without options, as its first byte says it.
pub(crate) const IPV4_20: u8 = 0x45;
pub(crate) const MORE_FRAGMENTS: u16 = 0x2000_u16.to_be();
pub(crate) const FRAGMENT_OFFSET: u16 = 0x1fff_u16.to_be();

/// Decides about one packet: the service it is counted under (0: none) and what becomes of it.
#[inline(always)]
pub(crate) fn steer(ctx: &XdpContext) -> (u16, Verdict) {
    let passed = (0, pass(Counter::Passed));
    // Too short for TCP, it may be a datagram.
    let Some(frame) = ctx.frame() else { return datagram::handle(ctx) };
    if frame.load::<{ at::ETH_TYPE }, u16>() != ETHERTYPE_IPV4 {
        return passed;
    }
    match frame.load::<{ at::IP_PROTOCOL }, u8>() {
        PROTOCOL => {}
        datagram::PROTOCOL => return datagram::handle(ctx),
        _ => return passed,
    }
    if frame.load::<{ at::IP }, u8>() != IPV4_20 {
        let version = frame.load::<{ at::IP }, u8>() >> 4;
        return if version == 4 { with_ip_options(ctx, frame).unwrap_or(passed) } else { passed };
    }
    let Some(settings) = settings() else { return passed };
    let fragment = frame.load::<{ at::IP_FRAGMENT }, u16>();
    if fragment & FRAGMENT_OFFSET != 0 {
        return passed;
    }
    let (src, dst) = ends(frame);
    match direction(settings, PROTOCOL, src, dst) {
        Direction::Other => passed,
        Direction::FromClient(service) => {
            let verdict = match checked(ctx, frame, fragment) {
                Ok(segment) => from_client::handle(ctx, frame, settings, service, src, &segment),
                Err(counter) => consume(counter),
            };
            (service, verdict)
        }
        Direction::FromBackend(slot) => match checked(ctx, frame, fragment) {
            Ok(segment) => from_backend::handle(ctx, frame, settings, slot, dst, &segment),
            Err(counter) => (0, consume(counter)),
        },
    }
}

/// Source and destination of a segment or datagram: the ports stand at the same place.
#[inline(always)]
pub(crate) fn ends<const ROOM: usize>(frame: Frame<ROOM>) -> ((Addr, Be16), (Addr, Be16)) {
    (
        (Addr::from_v4_bits(frame.load::<{ at::IP_SRC }, u32>()), frame.load::<{ at::TCP_SRC }, Be16>()),
        (Addr::from_v4_bits(frame.load::<{ at::IP_DST }, u32>()), frame.load::<{ at::TCP_DST }, Be16>()),
    )
}

/// The segment, or the name of what is wrong with it.
#[inline(always)]
fn checked(ctx: &XdpContext, frame: Frame, fragment: u16) -> Result<Segment, Counter> {
    if fragment & MORE_FRAGMENTS != 0 {
        return Err(Counter::DropFragment);
    }
    let segment = Segment::read(frame, ctx.len()).ok_or(Counter::DropTruncated)?;
    let flags = segment.flags;
    if flags & SYN != 0 && flags & (FIN | RST) != 0 || flags & (FIN | RST) == FIN | RST {
        return Err(Counter::DropBadFlags);
    }
    Ok(segment)
}

/// A header with options moves the ports; such packets are dropped when they are for a service.
#[inline(always)]
pub(crate) fn with_ip_options<const ROOM: usize>(
    ctx: &XdpContext,
    frame: Frame<ROOM>,
) -> Option<(u16, Verdict)> {
    let settings = settings()?;
    let header = u32::from(frame.load::<{ at::IP }, u8>() & 15) * 4;
    let ports = ctx.field(at::IP as u32 + header, 4)?;
    // SAFETY: `field` proved four bytes.
    let port: Be16 = unsafe { crate::packet::read(ports.add(2)) };
    let dst = Addr::from_v4_bits(frame.load::<{ at::IP_DST }, u32>());
    let protocol = frame.load::<{ at::IP_PROTOCOL }, u8>();
    let service = find(settings, protocol, dst, port, KIND_SERVICE)?;
    Some((service, consume(Counter::DropIpOptions)))
}
