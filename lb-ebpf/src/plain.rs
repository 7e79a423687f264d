//! Services that bind at the first packet: a plain layer 4 balancer. The client's own SYN goes to the backend that a hash
//! of the client chooses, and whoever speaks first is heard. Nothing is stashed, nothing spliced.
//!
//! A segment in mid-stream that no flow is known for goes where the hash leads as well: the connection may have begun at
//! another node that shares the address, or before the tables were lost.

use crate::clock;
use crate::cold::{self, Parsed};
use crate::flows::{self, Claimant, Entry, Key};
use crate::handshake::set_head;
use crate::header::Header;
use crate::maps::{BACKENDS, SERVICES, count_backend, settings};
use crate::packet::{Frame, Packet, Segment};
use crate::rewrite;
use crate::select::{NONE_TRIED, by_hash, decided, fresh};
use crate::syn::{back, send};
use crate::token::ABSENT;
use crate::verdict::{Verdict, consume, leave};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::addr::Be16;
use lb_common::backend::{Backend, State};
use lb_common::counter::Counter;
use lb_common::flow::{FIN_SEEN, Flow, FlowState, Head, NO_STASH, PLAIN, REPLIED, RESET_SEEN};
use lb_common::maglev::{NOBODY, client_hash};
use lb_common::service::{Affinity, Service};
use lb_common::settings::Settings;
use lb_common::tcp::{ACK, FIN, RST, SYN};

/// Not a verdict: the service binds at the first packet, so [`lb_begin`] is to be asked. The caller does that, because a
/// chain of calls shares 512 bytes of stack.
pub(crate) const BEGIN: u64 = u64::MAX - 1;

/// A client's segment that belongs to no live flow, or a SYN. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_begin(ctx: *mut xdp_md, service: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let (Some(settings), Some(entry)) = (settings(), SERVICES.get(service)) else {
        return consume(Counter::DropNoService).to_bits();
    };
    let Some(Parsed { frame, key, segment }) = cold::parse(&ctx, service) else {
        return consume(Counter::DropTruncated).to_bits();
    };
    begin(&ctx, frame, settings, entry, &key, &segment).to_bits()
}

#[inline(always)]
fn begin(
    ctx: &XdpContext,
    frame: Frame,
    settings: &Settings,
    service: &Service,
    key: &Key,
    segment: &Segment,
) -> Verdict {
    if service.enabled == 0 {
        return consume(Counter::DropNoService);
    }
    if !rewrite::has_hop_left(frame) {
        return consume(Counter::DropTtl);
    }
    let own = flows::find(settings, key);
    if let Some(entry) = own {
        // SAFETY: a map value stays valid; its fields are plain integers.
        let flow = unsafe { &*entry.flow };
        if let Some(backend) = BACKENDS.get(u32::from(flow.head.backend))
            && goes_on(flow, backend, key.service)
        {
            let was = flow.head;
            if was.state == FlowState::Closing as u8 {
                begin_again(entry, segment);
                flows::replace(entry, was, Head { state: FlowState::Opening as u8, ..was });
            }
            // A SYN that comes again, or a stranger's: the backend knows which, and what to answer (RFC 5961 §4).
            return forward(ctx, frame, segment, flow, backend, Counter::SynRepeated);
        }
    }
    let by_address = service.affinity == Affinity::Source as u8;
    let port = if by_address { Be16::new(0) } else { key.port };
    let hash = client_hash(key.client, port);
    // Where a connection that began elsewhere belongs, a hash alone can tell.
    let chosen = if by_address || segment.flags & SYN == 0 {
        by_hash(u32::from(key.service), hash, NONE_TRIED)
    } else {
        fresh(service, u32::from(key.service), hash, NONE_TRIED)
    }
    .slot;
    if chosen == u32::from(NOBODY) {
        return refuse(ctx, segment);
    }
    let slot = chosen as u16;
    let now = clock::now(settings);
    let entry = match flows::claim(settings, key, own, now, Claimant::Unproven) {
        Ok(entry) => entry,
        Err(counter) => return consume(counter),
    };
    fill(ctx, entry, key, segment, now);
    set_head(entry, key, slot, FlowState::Opening);
    let reason = if by_address { Counter::Hashed } else { Counter::NewSession };
    decided(key, slot, ABSENT, reason as u32);
    let Some(backend) = BACKENDS.get(chosen) else { return consume(Counter::DropNoBackendEntry) };
    // SAFETY: as above.
    forward(ctx, frame, segment, unsafe { &*entry.flow }, backend, Counter::FromClient)
}

/// Whether a flow that a SYN names stays where it is, for anybody may have sent that SYN: one that lives, or that only its
/// client has reset, unless its backend cannot be reached. One that opens also needs a backend that serves.
#[inline(always)]
fn goes_on(flow: &Flow, backend: &Backend, service: u16) -> bool {
    let state = State::from_bits(backend.state);
    let stays = match FlowState::from_bits(flow.head.state) {
        FlowState::Opening => state.serves_sessions(),
        FlowState::Established => state.serves_sessions() || matches!(state, State::Maint),
        FlowState::Closing => state.serves_sessions() && !has_ended(flow),
        _ => false,
    };
    stays && backend.service == service
}

/// Whether a flow that is closing is over, by what its backend has said.
#[inline(always)]
pub(crate) fn has_ended(flow: &Flow) -> bool {
    flow.client_flags & flow.backend_flags & FIN_SEEN != 0 || flow.backend_flags & RESET_SEEN != 0
}

/// Forgets what was seen of a connection that may be over.
#[inline(always)]
fn begin_again(entry: Entry, segment: &Segment) {
    // SAFETY: a map value stays valid. Where the connection is not over, its backend's next segment says so again.
    unsafe {
        (*entry.flow).client_isn = segment.seq;
        (*entry.flow).client_flags = PLAIN;
        (*entry.flow).backend_flags = 0;
    }
}

/// Writes all of a claimed entry but its head.
#[inline(always)]
fn fill(ctx: &XdpContext, entry: Entry, key: &Key, segment: &Segment, now: u32) {
    // SAFETY: the entry was claimed, nobody else reads or writes it before its head is published.
    let flow = unsafe { &mut *entry.flow };
    flow.client = key.client;
    flow.seq_delta = 0;
    flow.ts_delta = 0;
    flow.cookie = 0;
    flow.client_isn = segment.seq;
    flow.client_mac = segment.src_mac;
    flow.local_mac = segment.dst_mac;
    flow.client_ifindex = ctx.ingress_ifindex() as u32;
    flow.last_seen = now;
    flow.stash = NO_STASH;
    flow.client_flags = if segment.flags & FIN != 0 { PLAIN | FIN_SEEN } else { PLAIN };
    flow.backend_flags = 0;
}

#[inline(always)]
fn forward(
    ctx: &XdpContext,
    frame: Frame,
    segment: &Segment,
    flow: &Flow,
    backend: &Backend,
    counter: Counter,
) -> Verdict {
    if backend.has_next_hop == 0 {
        return consume(Counter::DropNoNextHop);
    }
    rewrite::to_backend(ctx, frame, segment, flow, backend);
    count_backend(flow.head.backend, |counters| {
        counters.packets_from_client += 1;
        counters.bytes_from_client += u64::from(segment.payload);
    });
    leave(backend.ifindex, counter)
}

/// By how much what a client acknowledges may differ from where its backend has begun, for the client to have heard it:
/// whoever forges its segments does not know that number.
const HEARD: u32 = 1 << 16;

/// Looks whether a client acknowledges what its backend has sent: then what its first segment began is no forgery.
#[inline(always)]
pub(crate) fn confirm(entry: Entry, flow: &Flow, segment: &Segment) {
    let far = segment.ack.wrapping_sub(flow.cookie).wrapping_add(HEARD);
    if flow.backend_flags & REPLIED != 0 && segment.flags & ACK != 0 && far <= 2 * HEARD {
        establish(entry, flow.head);
    }
}

/// Only a flow that is as it was seen; otherwise somebody else has the entry by now.
#[inline(always)]
pub(crate) fn establish(entry: Entry, was: Head) {
    flows::replace(entry, was, Head { state: FlowState::Established as u8, ..was });
}

/// Notes where the backend begins.
#[inline(always)]
pub(crate) fn note_reply(entry: Entry, flow: &Flow, segment: &Segment) {
    if flow.backend_flags & REPLIED == 0 && segment.flags & RST == 0 {
        // SAFETY: a map value stays valid; the backend's path alone writes these while the flow opens. The number first.
        unsafe {
            (&raw mut (*entry.flow).cookie).write_volatile(segment.seq);
            (*entry.flow).backend_flags |= REPLIED;
        }
    }
}

/// Nobody serves: as a host answers on a port where nobody listens (RFC 9293 §3.10.7.1).
#[inline(always)]
fn refuse(ctx: &XdpContext, segment: &Segment) -> Verdict {
    let Some(frame) = ctx.frame() else { return consume(Counter::DropTruncated) };
    let (from, to) = back(frame);
    let acks = segment.flags & ACK != 0;
    let length = segment.payload + u32::from(segment.flags & SYN != 0) + u32::from(segment.flags & FIN != 0);
    let header = Header {
        from,
        to,
        seq: if acks { segment.ack } else { 0 },
        ack: if acks { 0 } else { segment.seq.wrapping_add(length) },
        flags: if acks { RST } else { RST | ACK },
        window: 0,
        payload: 0,
        payload_sum: 0,
    };
    send(ctx, &header, &[], ctx.ingress_ifindex() as u32, Counter::ResetNoBackend)
}
