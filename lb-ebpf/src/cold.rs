//! What does not happen to every packet is a global function, in the verifier's sense: verified once, by itself,
//! whatever its callers know, instead of again for each way that leads to it. Such a function takes the context and
//! numbers only, so it reads the packet anew: a few nanoseconds, once or twice in the life of a connection.

use crate::flows::Key;
use crate::packet::{Frame, Packet, Segment};
use crate::steer::ends;
use aya_ebpf::programs::XdpContext;

/// A client's segment, read again.
pub(crate) struct Parsed {
    pub(crate) frame: Frame,
    pub(crate) key: Key,
    pub(crate) segment: Segment,
}

/// Reads a segment of a client of this service.
#[inline(always)]
pub(crate) fn parse(ctx: &XdpContext, service: u32) -> Option<Parsed> {
    let frame = ctx.frame()?;
    let segment = Segment::read(frame, ctx.len())?;
    let ((client, port), _) = ends(frame);
    Some(Parsed { frame, key: Key { client, port, service: service as u16 }, segment })
}
