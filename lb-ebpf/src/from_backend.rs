//! A packet from a backend.

use crate::endpoints::is_elsewhere;
use crate::flows::{self, Key};
use crate::from_client::{Side, close};
use crate::handshake;
use crate::header::{End, Header};
use crate::keep;
use crate::learn;
use crate::maps::{BACKENDS, FLOWS, SERVICES, count_backend};
use crate::offer::offer;
use crate::packet::{Frame, Packet, Segment};
use crate::plain;
use crate::replay;
use crate::rewrite;
use crate::stash;
use crate::syn::{back, send};
use crate::unavailable;
use crate::verdict::{Verdict, consume, leave, pass};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::addr::{Addr, Be16};
use lb_common::counter::Counter;
use lb_common::flow::{ACKNOWLEDGED, Flow, FlowState, NEWS, NO_STASH, PLAIN};
use lb_common::service::Service;
use lb_common::settings::Settings;
use lb_common::tcp::{ACK, FIN, RST, SYN};

/// Backend → client. Returns the service it is counted under as well.
#[inline(always)]
pub(crate) fn handle(
    ctx: &XdpContext,
    frame: Frame,
    settings: &'static Settings,
    slot: u16,
    client: (Addr, Be16),
    segment: &Segment,
) -> (u16, Verdict) {
    let mut frame = frame;
    let Some(backend) = BACKENDS.get(u32::from(slot)) else {
        return (0, pass(Counter::PassedFromBackend));
    };
    let id = backend.service;
    if is_elsewhere(settings, backend, ctx.ingress_ifindex() as u32) {
        return (id, consume(Counter::DropOtherInterface));
    }
    let key = Key { client: client.0, port: client.1, service: id };
    let Some(entry) = flows::find(settings, &key) else {
        return (id, pass(Counter::PassedFromBackend));
    };
    let Some(service) = SERVICES.get(u32::from(id)) else { return (id, consume(Counter::DropNoService)) };
    // SAFETY: a map value stays valid; its fields are plain integers.
    let flow = unsafe { &*entry.flow };
    if flow.head.backend != slot {
        return (id, abandoned(ctx, segment));
    }
    let verdict = match FlowState::from_bits(flow.head.state) {
        FlowState::Established | FlowState::Closing | FlowState::Opening => {
            if segment.flags & SYN != 0 && flow.client_flags & PLAIN == 0 {
                let again = segment.flags & ACK != 0;
                if again && flow.stash != NO_STASH && flow.client_flags & ACKNOWLEDGED != 0 {
                    // The request was lost, and the client will not repeat what a former backend acknowledged.
                    return (id, pass(Counter::PassedToJoint));
                }
                return (
                    id,
                    consume(if again { Counter::DropDuplicateSynAck } else { Counter::DropBackendSyn }),
                );
            }
            if !rewrite::has_hop_left(frame) {
                return (id, consume(Counter::DropTtl));
            }
            match FlowState::from_bits(flow.head.state) {
                FlowState::Opening => plain::note_reply(entry, flow, segment),
                // Its client has reset it, or somebody in its name: the backend, who knows, goes on.
                FlowState::Closing if segment.flags & RST == 0 && !plain::has_ended(flow) => {
                    plain::establish(entry, flow.head);
                }
                _ => {}
            }
            if segment.flags & (FIN | RST) != 0 {
                if flow.stash != NO_STASH && segment.payload == 0 && service.replay != 0 {
                    let bits = replay::lb_replay(ctx.ctx, u32::from(id), entry.index);
                    if bits != replay::NOT_REPLAYED {
                        return (id, Verdict::from_bits(bits));
                    }
                    // The packet is as it was, but pointers into it end with a call that may have changed it.
                    let Some(again) = ctx.frame() else { return (id, consume(Counter::DropTruncated)) };
                    frame = again;
                }
                close(entry, segment.flags, Side::Backend);
            }
            if flow.stash == NO_STASH {
                if segment.ack.wrapping_sub(flow.client_isn) >= NEWS && segment.flags & ACK != 0 {
                    // SAFETY: a map value stays valid; of two stores either one will do.
                    unsafe { (*entry.flow).client_isn = segment.ack };
                }
            } else if flow.client_flags & ACKNOWLEDGED != 0 {
                if keep::lb_is_acknowledged(entry.index, segment.ack, segment.payload) != 0 {
                    settle(entry, flow);
                }
            } else if segment.payload > 0 {
                settle(entry, flow);
            }
            learn::from_response(ctx, service, id, entry, flow.backend_flags, segment);
            rewrite::to_client(ctx, frame, segment, flow, backend, (service.addr, service.port));
            count_backend(slot, |counters| {
                counters.packets_from_backend += 1;
                counters.bytes_from_backend += u64::from(segment.payload);
            });
            leave(flow.client_ifindex, Counter::FromBackend)
        }
        FlowState::Binding => Verdict::from_bits(lb_answered(ctx.ctx, u32::from(id), entry.index)),
        FlowState::Free | FlowState::Claimed | FlowState::Awaiting => consume(Counter::DropBusy),
    };
    (id, verdict)
}

/// The backend has begun to respond: what was stashed is no longer needed.
#[inline(always)]
pub(crate) fn settle(entry: flows::Entry, flow: &Flow) {
    if let Some(slot) = stash::lock(entry.index, flow.stash) {
        stash::release(slot);
    }
    // SAFETY: a map value stays valid.
    unsafe { (*entry.flow).stash = NO_STASH };
}

/// A backend that the flow was taken from, or never given to, speaks up. Its SYN-ACK must not reach the client, and
/// without an answer it would repeat it.
#[inline(never)]
fn abandoned(ctx: &XdpContext, segment: &Segment) -> Verdict {
    let Some(frame) = ctx.frame() else { return consume(Counter::DropTruncated) };
    if segment.flags & RST != 0 || segment.flags & ACK == 0 {
        return consume(Counter::DropOtherBackend);
    }
    let (from, to) = back(frame);
    let header =
        Header { from, to, seq: segment.ack, ack: 0, flags: RST, window: 0, payload: 0, payload_sum: 0 };
    send(ctx, &header, &[], ctx.ingress_ifindex() as u32, Counter::ResetLateSynAck)
}

/// The backend's answer to its SYN: a SYN-ACK and a challenge ACK are the joint's; an RST sends the flow to the next
/// backend at once. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_answered(ctx: *mut xdp_md, service: u32, flow: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let (Some(frame), Some(place), Some(entry)) =
        (ctx.frame(), FLOWS.get_ptr_mut(flow), SERVICES.get(service))
    else {
        return consume(Counter::DropNoService).to_bits();
    };
    let Some(segment) = Segment::read(frame, ctx.len()) else {
        return consume(Counter::DropTruncated).to_bits();
    };
    let (_, (client, port)) = crate::steer::ends(frame);
    let key = Key { client, port, service: service as u16 };
    // SAFETY: a map value stays valid; its fields are plain integers.
    let known = unsafe { &*place };
    answered(&ctx, &key, flows::Entry { flow: place, index: flow }, known, entry, &segment).to_bits()
}

#[inline(always)]
fn answered(
    ctx: &XdpContext,
    key: &Key,
    entry: flows::Entry,
    flow: &Flow,
    service: &Service,
    segment: &Segment,
) -> Verdict {
    let expected = flow.client_isn.wrapping_add(1);
    if segment.flags & RST != 0 {
        if segment.flags & ACK == 0 || segment.ack != expected {
            return consume(Counter::DropBadBackendAck);
        }
        return refused(ctx, key, &entry, flow, service);
    }
    match segment.flags & (SYN | ACK) {
        ACK if segment.ack != expected => pass(Counter::PassedToJoint),
        flags if flags == SYN | ACK && segment.ack == expected => pass(Counter::PassedToJoint),
        SYN => consume(Counter::DropBackendSyn),
        _ => consume(Counter::DropBadBackendAck),
    }
}

/// The RST becomes a SYN to the next backend, or, when there is none, an RST to the client.
#[inline(always)]
fn refused(ctx: &XdpContext, key: &Key, entry: &flows::Entry, flow: &Flow, service: &Service) -> Verdict {
    let entry = *entry;
    let Some(slot) = stash::lock(entry.index, flow.stash) else { return consume(Counter::DropBusy) };
    // SAFETY: a map value stays valid, and this processor has its lock.
    let stash = unsafe { &*slot.stash };
    let was = flow.head;
    if handshake::next(key, entry, was, slot, stash, service) {
        stash::unlock(slot);
        return offer(ctx, entry.index, Counter::SynRetried);
    }
    if unavailable::speaks_http(service, stash) {
        let heard = flow.client_isn.wrapping_add(1).wrapping_add(stash::heard(slot.index));
        let echo = if stash.has_timestamps != 0 { unavailable::echo(stash.ts_val) } else { 0 };
        if !unavailable::keep(entry, was, heard, stash.ts_base) {
            // Its client has moved it to another backend meanwhile.
            stash::unlock(slot);
            return consume(Counter::DropBusy);
        }
        stash::release(slot);
        return Verdict::from_bits(unavailable::lb_turn_away(
            ctx.ctx,
            u32::from(key.service),
            entry.index,
            echo,
            1,
        ));
    }
    let header = Header {
        from: End { mac: flow.local_mac, addr: service.addr, port: service.port },
        to: End { mac: flow.client_mac, addr: key.client, port: key.port },
        seq: flow.cookie.wrapping_add(1),
        ack: flow.client_isn.wrapping_add(1),
        flags: RST | ACK,
        window: 0,
        payload: 0,
        payload_sum: 0,
    };
    let ifindex = flow.client_ifindex;
    if !handshake::end(entry, was) {
        // Its client has moved it to another backend meanwhile.
        stash::unlock(slot);
        return consume(Counter::DropBusy);
    }
    stash::release(slot);
    send(ctx, &header, &[], ifindex, Counter::ResetRefused)
}
