//! A packet addressed to a service.

use crate::asked;
use crate::clock;
use crate::flows::{self, Entry, Key};
use crate::from_backend::settle;
use crate::keep::lb_is_owed;
use crate::maps::{BACKENDS, count, count_backend};
use crate::packet::{Frame, Packet, Segment};
use crate::stash::is_exceeded;
use crate::unavailable::lb_unavailable;
use crate::verdict::{Verdict, consume, leave, pass};
use crate::{handshake, plain, rewrite, syn, unknown};
use aya_ebpf::programs::XdpContext;
use lb_common::addr::{Addr, Be16};
use lb_common::counter::Counter;
use lb_common::flow::{ACKNOWLEDGED, FIN_SEEN, FORGOTTEN, Flow, FlowState, Head, NO_STASH, RESET_SEEN};
use lb_common::maglev::NOBODY;
use lb_common::settings::Settings;
use lb_common::tcp::{ACK, FIN, RST, SYN};

/// Client → service.
#[inline(always)]
pub(crate) fn handle(
    ctx: &XdpContext,
    frame: Frame,
    settings: &'static Settings,
    service: u16,
    client: (Addr, Be16),
    segment: &Segment,
) -> Verdict {
    let key = Key { client: client.0, port: client.1, service };
    if segment.flags & SYN != 0 {
        if frame.is_unanswerable() {
            return consume(Counter::DropBadSource);
        }
        let bits = syn::lb_syn(ctx.ctx, u32::from(service));
        let bits = if bits == plain::BEGIN { plain::lb_begin(ctx.ctx, u32::from(service)) } else { bits };
        return Verdict::from_bits(bits);
    }
    if segment.flags & (ACK | RST) == 0 {
        return consume(Counter::DropNoAck);
    }
    let Some(entry) = flows::find(settings, &key) else {
        if frame.is_unanswerable() {
            return consume(Counter::DropBadSource);
        }
        return unknown::handle(ctx, service);
    };
    // SAFETY: a map value stays valid; its fields are plain integers.
    let flow = unsafe { &*entry.flow };
    let now = clock::now(settings);
    if flow.last_seen != now || flow.head.state != FlowState::Established as u8 {
        // Once in a tick, and on every packet of a flow that begins or ends: has the client begun anew on the same port?
        if unknown::may_be_reborn(flow, segment)
            && unknown::lb_is_reborn(ctx.ctx, u32::from(service), entry.index) != 0
        {
            return unknown::handle(ctx, service);
        }
        // SAFETY: as above; a lost race writes the same time.
        unsafe { (*entry.flow).last_seen = now };
    }
    let frame = match FlowState::from_bits(flow.head.state) {
        FlowState::Established | FlowState::Closing => {
            asked::from_request(ctx, service, entry, flow, segment);
            frame
        }
        FlowState::Binding | FlowState::Awaiting => {
            let bits = handshake::lb_more(ctx.ctx, u32::from(service), entry.index);
            if handshake::is_stashed(bits) {
                return handshake::place(ctx, service, bits, segment.payload);
            }
            if bits != handshake::ESTABLISHED {
                return Verdict::from_bits(bits);
            }
            // The packet is as it was, but pointers into it end with a call that may have changed it.
            let Some(again) = ctx.frame() else { return consume(Counter::DropTruncated) };
            again
        }
        FlowState::Opening => {
            plain::confirm(entry, flow, segment);
            frame
        }
        FlowState::Free | FlowState::Claimed => return consume(Counter::DropBusy),
    };
    established(ctx, frame, entry, flow, segment)
}

#[inline(always)]
fn established(ctx: &XdpContext, frame: Frame, entry: Entry, flow: &Flow, segment: &Segment) -> Verdict {
    let Some(backend) = BACKENDS.get(u32::from(flow.head.backend)) else {
        if matches!(flow.head.backend, NOBODY | FORGOTTEN) {
            return Verdict::from_bits(lb_unavailable(ctx.ctx, u32::from(flow.head.service), entry.index));
        }
        return consume(Counter::DropNoBackendEntry);
    };
    if backend.has_next_hop == 0 {
        return consume(Counter::DropNoNextHop);
    }
    if !rewrite::has_hop_left(frame) {
        return consume(Counter::DropTtl);
    }
    if flow.stash != NO_STASH && segment.payload > 0 {
        if flow.client_flags & ACKNOWLEDGED != 0 {
            if lb_is_owed(entry.index, segment.seq, segment.payload) != 0 {
                return pass(Counter::PassedToJoint);
            }
        } else if segment.seq != flow.client_isn.wrapping_add(1) || is_exceeded(flow.stash, segment.payload) {
            // The request goes on behind what was stashed, so the stash could not go to another backend any more.
            settle(entry, flow);
        }
    }
    if segment.flags & (FIN | RST) != 0 || flow.client_mac != segment.src_mac {
        if flow.is_near(segment.seq) {
            close(entry, segment.flags, Side::Client);
            // Its router may have changed: which it is, and the interface at which it stands.
            // SAFETY: a map value stays valid; at worst a few packets go astray between the two routers.
            unsafe {
                (*entry.flow).client_mac = segment.src_mac;
                (*entry.flow).local_mac = segment.dst_mac;
                (*entry.flow).client_ifindex = ctx.ingress_ifindex() as u32;
            }
        } else {
            // Anybody may have sent that. The backend knows the connection's numbers.
            count(flow.head.service, Counter::OutOfWindow as u32);
        }
    }
    rewrite::to_backend(ctx, frame, segment, flow, backend);
    count_backend(flow.head.backend, |counters| {
        counters.packets_from_client += 1;
        counters.bytes_from_client += u64::from(segment.payload);
    });
    leave(backend.ifindex, Counter::FromClient)
}

/// Which half a FIN or RST came from.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Client,
    Backend,
}

/// Notes a FIN or RST. FINs from both sides, or one RST, begin the end of the flow.
#[inline(always)]
pub(crate) fn close(entry: Entry, flags: u8, side: Side) {
    // SAFETY: a map value stays valid. Each side writes its own flags; the state only moves towards closing.
    unsafe {
        let flow = &mut *entry.flow;
        if flags & FIN != 0 {
            match side {
                Side::Client => flow.client_flags |= FIN_SEEN,
                Side::Backend => flow.backend_flags |= FIN_SEEN,
            }
            // Both FINs may pass at once, each on a processor of its own. This exchange of a word for itself is a
            // barrier: of two that note their own and then look for the other's, one at least finds it.
            let head = (&raw mut flow.head).cast::<u64>();
            let same = core::ptr::read_volatile(head);
            crate::atomic::compare_exchange(head, same, same);
        }
        if flags & RST != 0 && side == Side::Backend {
            flow.backend_flags |= RESET_SEEN;
        }
        let both = core::ptr::read_volatile(&raw const flow.client_flags)
            & core::ptr::read_volatile(&raw const flow.backend_flags)
            & FIN_SEEN;
        if flags & RST != 0 || both != 0 {
            let was = Head::from_bits(core::ptr::read_volatile((&raw const flow.head).cast()));
            if was.state != FlowState::Closing as u8 {
                flows::replace(entry, was, Head { state: FlowState::Closing as u8, ..was });
            }
        }
    }
}
