//! Delayed binding: the first payload chooses a backend, which gets a SYN; more payload waits in the stash.

use crate::flows::{self, Entry, Key};
use crate::from_client;
use crate::header::{End, Header, syn_options};
use crate::maps::{BACKENDS, SERVICES, count, count_backend};
use crate::options::Timestamps;
use crate::packet::{Frame, Segment};
use crate::rewrite::payload_sum;
use crate::select::{Choice, by_hash, for_payload};
use crate::stash::{self, Slot, Tried};
use crate::syn::{back, send};
use crate::token::{Found, http};
use crate::verdict::{Verdict, consume};
use aya_ebpf::programs::XdpContext;
use lb_common::backend::Backend;
use lb_common::counter::Counter;
use lb_common::flow::{Flow, FlowState, Head, NO_STASH, SYN_REPEATED};
use lb_common::maglev::next_hash;
use lb_common::settings::Settings;
use lb_common::stash::{Stash, VIEW_FIN, VIEW_PSH, VIEW_USED, View};
use lb_common::syn_cookie::Agreed;
use lb_common::tcp::{ACK, FIN, PSH, RST, SYN, rescale_window};

/// The first payload of a proven client: choose, stash, make a flow, and turn the packet into a SYN to the backend.
#[inline(always)]
pub(crate) fn bind(
    ctx: &XdpContext,
    frame: Frame,
    settings: &'static Settings,
    key: &Key,
    segment: &Segment,
    stamps: Option<Timestamps>,
) -> Verdict {
    let Some(service) = SERVICES.get(u32::from(key.service)) else { return consume(Counter::DropNoService) };
    let now = flows::now(settings);
    let Some(entry) = flows::claim(settings, key, now) else { return consume(Counter::DropFlowTableFull) };
    let hash = key.hash(settings);
    let Some(slot) = stash::claim(settings, entry.index, hash, now) else {
        free(entry);
        return consume(Counter::DropNoStash);
    };
    let view = view(ctx, frame, segment, 0);
    if !stash::copy(ctx, segment.payload_at(), slot, 0, segment.payload) {
        stash::release(slot);
        free(entry);
        return consume(Counter::DropStashFull);
    }
    // SAFETY: a map value stays valid, and this processor has its lock.
    let stash = unsafe { &mut *slot.stash };
    let found = http::find(settings, service, &stash.bytes, segment.payload);
    if let Found::Invalid = found {
        count(key.service, Counter::InvalidToken as u32);
    }
    let Some(choice) = for_payload(key.service, service, &found, hash) else {
        stash::release(slot);
        free(entry);
        return refuse(ctx, frame, segment, Counter::ResetNoBackend);
    };
    let cookie = segment.ack.wrapping_sub(1);
    stash.ts_val = stamps.map_or(0, |stamps| stamps.val);
    stash.has_timestamps = u32::from(stamps.is_some());
    stash.hash = choice.hash;
    stash.window = u32::from(segment.window);
    stash::publish(slot, view, u32::from(service.mss));
    stash::note_tried(slot.stash, choice.slot);
    let flow = Flow {
        client: key.client,
        head: Head::default(),
        seq_delta: 0,
        ts_delta: 0,
        cookie,
        client_isn: segment.seq.wrapping_sub(1),
        client_mac: segment.src_mac,
        local_mac: segment.dst_mac,
        client_ifindex: ctx.ingress_ifindex() as u32,
        last_seen: now,
        stash: slot.index,
        client_flags: 0,
        backend_flags: 0,
    };
    fill(entry, &flow);
    set_head(entry, key, choice.slot, FlowState::Binding);
    stash::unlock(slot);
    count_choice(key.service, &choice);
    offer(ctx, key, &flow, stash, choice.backend, Counter::Bound)
}

/// Writes all of a claimed entry but its head.
#[inline(always)]
fn fill(entry: Entry, flow: &Flow) {
    // SAFETY: the entry was claimed, nobody else reads or writes it before its head is published.
    unsafe {
        let to = entry.flow;
        (*to).client = flow.client;
        (*to).seq_delta = 0;
        (*to).ts_delta = 0;
        (*to).cookie = flow.cookie;
        (*to).client_isn = flow.client_isn;
        (*to).client_mac = flow.client_mac;
        (*to).local_mac = flow.local_mac;
        (*to).client_ifindex = flow.client_ifindex;
        (*to).last_seen = flow.last_seen;
        (*to).stash = flow.stash;
        (*to).client_flags = 0;
        (*to).backend_flags = 0;
    }
}

/// Publishes a flow under its key.
#[inline(always)]
pub(crate) fn set_head(entry: Entry, key: &Key, backend: u16, state: FlowState) {
    let head =
        Head { client_port: key.port, service: key.service, backend, state: state as u8, window_shift: 0 };
    // SAFETY: the head is an aligned word of a map value.
    unsafe { crate::atomic::exchange((&raw mut (*entry.flow).head).cast(), head.to_bits()) };
}

/// Makes a claimed entry free again.
#[inline(always)]
pub(crate) fn free(entry: Entry) {
    // SAFETY: the head is an aligned word of a map value.
    unsafe {
        (*entry.flow).stash = NO_STASH;
        crate::atomic::exchange((&raw mut (*entry.flow).head).cast(), 0);
    }
}

/// Counts why a backend was chosen, per service and per backend.
#[inline(always)]
pub(crate) fn count_choice(service: u16, choice: &Choice) {
    count(service, choice.counter as u32);
    if choice.counter as u32 == Counter::StaleInstance as u32 {
        count(service, Counter::AffinityHit as u32);
    }
    if choice.counter as u32 == Counter::InvalidToken as u32 {
        count(service, Counter::NewSession as u32);
    }
    count_backend(choice.slot, |counters| match choice.counter {
        Counter::AffinityHit => counters.affinity_hit += 1,
        Counter::StaleInstance => {
            counters.affinity_hit += 1;
            counters.stale_instance += 1;
        }
        Counter::Redispatched | Counter::Retried => counters.redispatched += 1,
        _ => counters.new_session += 1,
    });
}

/// The packet's payload as a segment of the stash.
#[inline(always)]
fn view(ctx: &XdpContext, frame: Frame, segment: &Segment, at: u32) -> View {
    let mut flags = VIEW_USED;
    if segment.flags & PSH != 0 {
        flags |= VIEW_PSH;
    }
    if segment.flags & FIN != 0 {
        flags |= VIEW_FIN;
    }
    View { at: at as u16, len: segment.payload as u16, sum: payload_sum(ctx, frame, segment), flags }
}

/// Turns the packet into a SYN to a backend: the client's own sequence number and timestamp, what was agreed with it,
/// and its address, so that only the backend's half has to be translated later.
#[inline(always)]
pub(crate) fn offer(
    ctx: &XdpContext,
    key: &Key,
    flow: &Flow,
    stash: &Stash,
    backend: &Backend,
    counter: Counter,
) -> Verdict {
    if backend.has_next_hop == 0 {
        return consume(Counter::DropNoNextHop);
    }
    let (header, options) = syn_header(key, flow, stash, backend);
    send(ctx, &header, &options, backend.ifindex, counter)
}

/// The SYN for a backend.
#[inline(always)]
pub(crate) fn syn_header(key: &Key, flow: &Flow, stash: &Stash, backend: &Backend) -> (Header, [u32; 5]) {
    let agreed = Agreed::of(flow.cookie);
    let (scale, window) = if agreed.scales_windows() {
        (Some(agreed.window_scale), rescale_window(stash.window as u16, agreed.window_scale as i8))
    } else {
        (None, stash.window as u16)
    };
    let timestamps = if stash.has_timestamps != 0 { Some((stash.ts_val, 0)) } else { None };
    let header = Header {
        from: End { mac: backend.local_mac, addr: key.client, port: key.port },
        to: End { mac: backend.next_hop_mac, addr: backend.addr, port: backend.port },
        seq: flow.client_isn,
        ack: 0,
        flags: SYN,
        window,
        payload: 0,
        payload_sum: 0,
    };
    (header, syn_options(agreed.mss(), agreed.sack, timestamps, scale))
}

/// Tells the client with RST that nobody serves.
#[inline(always)]
fn refuse(ctx: &XdpContext, frame: Frame, segment: &Segment, counter: Counter) -> Verdict {
    let (from, to) = back(frame);
    let ack = segment.seq.wrapping_add(segment.payload);
    let header =
        Header { from, to, seq: segment.ack, ack, flags: RST | ACK, window: 0, payload: 0, payload_sum: 0 };
    send(ctx, &header, &[], ctx.ingress_ifindex() as u32, counter)
}

/// Something from the client while its backend has not answered: more payload is stashed; payload that is there already
/// is a retransmission, the sign that the backend is silent.
#[inline(never)]
pub(crate) fn more(ctx: &XdpContext, frame: Frame, key: &Key, entry: &Entry, segment: &Segment) -> Verdict {
    let entry = *entry;
    // SAFETY: a map value stays valid; its fields are plain integers.
    let flow = unsafe { &*entry.flow };
    if segment.flags & RST != 0 {
        // The client gave up: so does the flow. The backend's SYN-ACK will find nobody and be reset.
        free(entry);
        return consume(Counter::ClientReset);
    }
    let at = segment.seq.wrapping_sub(flow.client_isn).wrapping_sub(1);
    if segment.payload == 0 && segment.flags & FIN == 0 {
        return consume(Counter::DropBinding);
    }
    let Some(service) = SERVICES.get(u32::from(key.service)) else { return consume(Counter::DropNoService) };
    let Some(slot) = stash::lock(entry.index, flow.stash) else { return consume(Counter::DropBusy) };
    // SAFETY: a map value stays valid, and this processor has its lock.
    let stash = unsafe { &mut *slot.stash };
    let seen = View::from_bits(stash.views[0]);
    if at == 0 && segment.payload != 0 && seen.len as u32 >= segment.payload {
        let verdict = again(ctx, key, entry, flow, slot, stash, service);
        stash::unlock(slot);
        return verdict;
    }
    let view = view(ctx, frame, segment, at);
    let copied = segment.payload == 0 || stash::copy(ctx, segment.payload_at(), slot, at, segment.payload);
    let kept = copied && at < 65_536 && stash::publish(slot, view, u32::from(service.mss));
    stash::unlock(slot);
    if !kept {
        return consume(Counter::DropStashFull);
    }
    // The joint may have read the stash before this was there: then the segment goes the ordinary way as well.
    // SAFETY: as above; the state is read anew after the exchange that published the segment.
    let state = unsafe { core::ptr::read_volatile(&raw const (*entry.flow).head.state) };
    if state == FlowState::Established as u8 {
        return from_client::established(ctx, frame, entry, flow, segment);
    }
    consume(Counter::Stashed)
}

/// The client repeats itself because the backend is silent. The first time the same backend gets its SYN again, which
/// may have been lost; after that another one is chosen.
#[inline(always)]
fn again(
    ctx: &XdpContext,
    key: &Key,
    entry: Entry,
    flow: &Flow,
    slot: Slot,
    stash: &Stash,
    service: &lb_common::service::Service,
) -> Verdict {
    if flow.client_flags & SYN_REPEATED == 0 {
        let Some(backend) = BACKENDS.get(u32::from(flow.head.backend)) else {
            return consume(Counter::DropNoBackendEntry);
        };
        // SAFETY: a map value stays valid.
        unsafe { (*entry.flow).client_flags |= SYN_REPEATED };
        return offer(ctx, key, flow, stash, backend, Counter::SynRepeated);
    }
    match next(key, entry, flow, slot, stash, service) {
        Some(backend) => offer(ctx, key, flow, stash, backend, Counter::SynRepeated),
        None => {
            // Nobody else is left: keep asking the one there is.
            match BACKENDS.get(u32::from(flow.head.backend)) {
                Some(backend) => offer(ctx, key, flow, stash, backend, Counter::SynRepeated),
                None => consume(Counter::DropNoBackendEntry),
            }
        }
    }
}

/// Gives the flow to the next backend that was not tried, within the service's bound.
#[inline(always)]
pub(crate) fn next(
    key: &Key,
    entry: Entry,
    flow: &Flow,
    slot: Slot,
    stash: &Stash,
    service: &lb_common::service::Service,
) -> Option<&'static Backend> {
    let tried = Tried::of(stash);
    count_backend(flow.head.backend, |counters| counters.failed += 1);
    if tried.len() >= u32::from(service.max_tries) {
        return None;
    }
    let choice = by_hash(service, key.service, next_hash(stash.hash), Counter::Retried, &tried)?;
    stash::note_tried(slot.stash, choice.slot);
    // SAFETY: map values stay valid.
    unsafe {
        (*slot.stash).hash = choice.hash;
        (*entry.flow).client_flags &= !SYN_REPEATED;
    }
    set_head(entry, key, choice.slot, FlowState::Binding);
    count_choice(key.service, &choice);
    Some(choice.backend)
}
