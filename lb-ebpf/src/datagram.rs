//! UDP. Every datagram is steered by itself, so a client whose address changes stays with the server that its token
//! names; a flow remembers where one without a token belongs, and the way back.

use crate::clock;
use crate::endpoints::{Direction, direction, is_elsewhere};
use crate::flows::{self, Claimant, Entry, Key};
use crate::handshake::set_head;
use crate::homes::{key_of, set_key};
use crate::learn::lb_learn_key;
use crate::maps::{BACKENDS, SCRATCH, SERVICES, count, count_backend, settings};
use crate::packet::{Frame, Packet, SHORT, at};
use crate::plain;
use crate::rewrite::{forward, has_hop_left};
use crate::select::{NONE_TRIED, by_hash, decided, fresh};
use crate::steer::{ETHERTYPE_IPV4, FRAGMENT_OFFSET, IPV4_20, MORE_FRAGMENTS, ends, with_ip_options};
use crate::token::datagram::{lb_datagram_key, lb_known_key};
use crate::token::quic::{self, lb_quic};
use crate::token::{ABSENT, Found, HASHED, INVALID, LEARNED, ROUTABLE, UNKNOWN, VALID, is_claim};
use crate::verdict::{Verdict, consume, leave, pass};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::addr::{Addr, Be16, Mac};
use lb_common::backend::{Backend, State};
use lb_common::checksum::update;
use lb_common::counter::Counter;
use lb_common::flow::{DATAGRAMS, FlowState, Head, NO_STASH, PLAIN, REPLIED};
use lb_common::maglev::{NOBODY, client_hash};
use lb_common::service::{Affinity, Service};
use lb_common::settings::Settings;

/// IP protocol number of UDP (RFC 768).
pub(crate) const PROTOCOL: u8 = 17;

/// What a datagram's headers say.
struct Datagram {
    frame: Frame<SHORT>,
    /// Bytes of payload.
    payload: u32,
}

/// Decides about what is no TCP segment: the service it is counted under and what becomes of it.
#[inline(always)]
pub(crate) fn handle(ctx: &XdpContext) -> (u16, Verdict) {
    let bits = lb_datagram(ctx.ctx);
    ((bits >> 16) as u16, Verdict::from_bits(bits & !0xffff_0000))
}

/// A global function (see [`crate::cold`]); the service stands in the third and fourth byte of the verdict, whose action
/// is a small number.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn lb_datagram(ctx: *mut xdp_md) -> u64 {
    let ctx = XdpContext::new(ctx);
    let (service, verdict) = steer(&ctx);
    verdict.to_bits() | u64::from(service) << 16
}

#[inline(always)]
fn steer(ctx: &XdpContext) -> (u16, Verdict) {
    let passed = (0, pass(Counter::Passed));
    let Some(frame) = ctx.short_frame() else { return passed };
    if frame.load::<{ at::ETH_TYPE }, u16>() != ETHERTYPE_IPV4
        || frame.load::<{ at::IP_PROTOCOL }, u8>() != PROTOCOL
    {
        return passed;
    }
    let first = frame.load::<{ at::IP }, u8>();
    if first != IPV4_20 {
        return if first >> 4 == 4 { with_ip_options(ctx, frame).unwrap_or(passed) } else { passed };
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
                Ok(datagram) => from_client(ctx, settings, service, src, &datagram),
                Err(counter) => consume(counter),
            };
            (service, verdict)
        }
        Direction::FromBackend(slot) => match checked(ctx, frame, fragment) {
            Ok(datagram) => from_backend(ctx, settings, slot, dst, &datagram),
            Err(counter) => (0, consume(counter)),
        },
    }
}

/// The datagram, or the name of what is wrong with it.
#[inline(always)]
fn checked(ctx: &XdpContext, frame: Frame<SHORT>, fragment: u16) -> Result<Datagram, Counter> {
    if fragment & MORE_FRAGMENTS != 0 {
        return Err(Counter::DropFragment);
    }
    let total = u32::from(u16::from_be(frame.load::<{ at::IP_LEN }, u16>()));
    let length = u32::from(u16::from_be(frame.load::<{ at::UDP_LEN }, u16>()));
    if total + 14 > ctx.len() || length < 8 || length + 20 > total {
        return Err(Counter::DropTruncated);
    }
    if !has_hop_left(frame) {
        return Err(Counter::DropTtl);
    }
    Ok(Datagram { frame, payload: length - 8 })
}

/// Where a datagram goes, and why.
struct Choice {
    slot: u32,
    /// What was found where the service's key may stand.
    found: Found,
    reason: Counter,
    /// A hash of the key that the datagram carries, for [`crate::homes::set_key`]; 0 where it has none.
    key: u64,
}

/// Whether a flow stays where it is though a datagram of it carries a key that leads elsewhere: anybody may have sent that. So does one
/// that its client has confirmed, while its backend serves, and it is another key than the flow's own.
#[inline(always)]
fn stays(entry: Entry, service: u16, choice: &Choice) -> bool {
    // SAFETY: a map value stays valid; its fields are plain integers.
    let head = unsafe { (*entry.flow).head };
    choice.key != 0
        && head.state == FlowState::Established as u8
        && key_of(entry.index) != choice.key
        && BACKENDS.get(u32::from(head.backend)).is_some_and(|backend| serves(backend, service))
}

/// The key of a flow, by what was found in a datagram, of which a hash stands in the scratch memory.
#[inline(always)]
const fn key_hash(found: Found, hash: u32, claim: u32) -> u64 {
    match found {
        VALID => claim as u64 | 1 << 32,
        LEARNED | HASHED | UNKNOWN => hash as u64 | 1 << 32,
        _ => 0,
    }
}

#[inline(always)]
fn from_client(
    ctx: &XdpContext,
    settings: &Settings,
    service: u16,
    client: (Addr, Be16),
    datagram: &Datagram,
) -> Verdict {
    let Some(entry) = SERVICES.get(u32::from(service)) else { return consume(Counter::DropNoService) };
    if entry.enabled == 0 {
        return consume(Counter::DropNoService);
    }
    let key = Key { client: client.0, port: client.1, service };
    let known = flows::find(settings, &key);
    if known.is_none() && datagram.frame.is_unanswerable() {
        return consume(Counter::DropBadSource);
    }
    let present = known.map_or(NOBODY, |known| {
        // SAFETY: a map value stays valid; its fields are plain integers.
        unsafe { (*known.flow).head.backend }
    });
    let choice = choose(ctx, entry, &key, present, datagram.payload);
    if choice.slot == u32::from(NOBODY) {
        decided(&key, NOBODY, choice.found, choice.reason as u32);
        return consume(Counter::DropNoBackend);
    }
    let slot = choice.slot as u16;
    let now = clock::now(settings);
    match known {
        Some(flow) if present == slot => {
            touch(ctx, flow, datagram, now);
            if choice.key != 0 && key_of(flow.index) != choice.key {
                set_key(flow.index, choice.key);
            }
        }
        Some(flow) if stays(flow, service, &choice) => {
            touch(ctx, flow, datagram, now);
            count(service, Counter::FlowKept as u32);
        }
        Some(flow) => {
            touch(ctx, flow, datagram, now);
            give(flow, slot);
            set_key(flow.index, choice.key);
            decided(&key, slot, choice.found, choice.reason as u32);
            count(service, Counter::FlowMoved as u32);
        }
        None => {
            let flow = match flows::claim(settings, &key, None, now, Claimant::Unproven) {
                Ok(flow) => flow,
                Err(counter) => return consume(counter),
            };
            fill(ctx, flow, &key, datagram, now);
            set_key(flow.index, choice.key);
            set_head(flow, &key, slot, FlowState::Opening);
            decided(&key, slot, choice.found, choice.reason as u32);
        }
    }
    let Some(backend) = BACKENDS.get(choice.slot) else { return consume(Counter::DropNoBackendEntry) };
    if backend.has_next_hop == 0 {
        return consume(Counter::DropNoNextHop);
    }
    to_backend(datagram.frame, backend);
    count_backend(slot, |counters| {
        counters.packets_from_client += 1;
        counters.bytes_from_client += u64::from(datagram.payload);
    });
    leave(backend.ifindex, Counter::FromClient)
}

/// The steering order, for a datagram of a flow whose backend is `present`, if there is one.
#[inline(always)]
fn choose(ctx: &XdpContext, entry: &Service, key: &Key, present: u16, payload: u32) -> Choice {
    let affinity = Affinity::from_bits(entry.affinity);
    let id = u32::from(key.service);
    if affinity == Affinity::Quic {
        return by_connection_id(entry, key.service, present, lb_quic(ctx.ctx, id, payload));
    }
    let found = match affinity {
        Affinity::Signed | Affinity::Hashed => lb_datagram_key(ctx.ctx, id, payload),
        Affinity::Learned => match lb_datagram_key(ctx.ctx, id, payload) {
            HASHED => lb_known_key(id),
            other => other,
        },
        Affinity::Source | Affinity::None | Affinity::Quic => ABSENT,
    };
    let Some(scratch) = SCRATCH.get(0) else {
        return Choice { slot: u32::from(NOBODY), found, reason: Counter::NewSession, key: 0 };
    };
    let claim = scratch.claim;
    let own = found != VALID || claim.service == key.service;
    let mark = if own { key_hash(found, scratch.hash, claim.hash) } else { 0 };
    if found == INVALID || found == VALID && claim.service != key.service {
        count(key.service, Counter::InvalidToken as u32);
    }
    let (hash, reason) = if is_claim(found) && claim.service == key.service {
        if let Some(backend) = BACKENDS.get(u32::from(claim.slot))
            && serves(backend, key.service)
        {
            let stale = backend.epoch != claim.epoch;
            let reason = if stale { Counter::StaleInstance } else { Counter::AffinityHit };
            return Choice { slot: u32::from(claim.slot), found, reason, key: mark };
        }
        if entry.strict != 0 {
            return Choice { slot: u32::from(NOBODY), found, reason: Counter::Rejected, key: mark };
        }
        (claim.hash, Counter::Redispatched)
    } else if found == HASHED {
        (scratch.hash, Counter::Hashed)
    } else {
        if let Some(backend) = BACKENDS.get(u32::from(present))
            && serves(backend, key.service)
        {
            return Choice { slot: u32::from(present), found, reason: Counter::AffinityHit, key: mark };
        }
        if found == UNKNOWN {
            (scratch.hash, Counter::UnknownKey)
        } else if entry.affinity != Affinity::Source as u8 {
            let slot = fresh(entry, id, client_hash(key.client, key.port), NONE_TRIED).slot;
            return Choice { slot, found, reason: Counter::NewSession, key: mark };
        } else {
            (client_hash(key.client, Be16::new(0)), Counter::Hashed)
        }
    };
    Choice { slot: by_hash(id, hash, NONE_TRIED).slot, found, reason, key: mark }
}

/// Where a QUIC packet goes whose connection id is what [`lb_quic`] says. One that may be a new connection never goes where the
/// flow's present one is: a client's socket may have thousands of them, each with another server. Nor by live flows,
/// since its next packet must find the same server.
#[inline(always)]
fn by_connection_id(entry: &Service, service: u16, present: u16, id: u64) -> Choice {
    let found = quic::found(id);
    let to = |slot: u16, reason| Choice { slot: u32::from(slot), found, reason, key: 0 };
    let reason = if found == ROUTABLE {
        let slot = id as u16;
        if BACKENDS.get(u32::from(slot)).is_some_and(|backend| serves(backend, service)) {
            return to(slot, Counter::AffinityHit);
        }
        if entry.strict != 0 {
            return to(NOBODY, Counter::Rejected);
        }
        Counter::Redispatched
    } else if id & quic::LONG != 0 {
        Counter::NewSession
    } else {
        if BACKENDS.get(u32::from(present)).is_some_and(|backend| serves(backend, service)) {
            return to(present, Counter::Unroutable);
        }
        Counter::Unroutable
    };
    Choice { slot: by_hash(u32::from(service), quic::hash(id), NONE_TRIED).slot, found, reason, key: 0 }
}

#[inline(always)]
fn serves(backend: &Backend, service: u16) -> bool {
    backend.service == service && State::from_bits(backend.state).serves_sessions()
}

/// Ticks without a datagram by a confirmed flow's router after which another one is believed: about two seconds.
const SILENCE: i32 = 8;

/// Notes that a flow lives; once its backend has answered, the client that goes on is none that was forged.
#[inline(always)]
fn touch(ctx: &XdpContext, entry: Entry, datagram: &Datagram, now: u32) {
    // SAFETY: a map value stays valid; its fields are plain integers.
    let flow = unsafe { &*entry.flow };
    let from = datagram.frame.load::<{ at::ETH_SRC }, Mac>();
    if flow.client_mac != from {
        let age = now.wrapping_sub(flow.last_seen) as i32;
        if flow.head.state == FlowState::Established as u8 && age < SILENCE {
            // Its client is heard by its own router: this one may be anybody's.
            count(flow.head.service, Counter::OutOfWindow as u32);
            return;
        }
        // The client's router has changed: which it is, and the interface at which it stands.
        // SAFETY: a map value stays valid; at worst a few datagrams go astray between the two routers.
        unsafe {
            (*entry.flow).client_mac = from;
            (*entry.flow).local_mac = datagram.frame.load::<{ at::ETH_DST }, Mac>();
            (*entry.flow).client_ifindex = ctx.ingress_ifindex() as u32;
        }
    }
    if flow.last_seen != now {
        // SAFETY: as above; a lost race writes the same time.
        unsafe { (*entry.flow).last_seen = now };
    }
    if flow.head.state == FlowState::Opening as u8 && flow.backend_flags & REPLIED != 0 {
        plain::establish(entry, flow.head);
    }
}

/// Gives a flow to another backend, unless somebody else has changed it.
#[inline(always)]
fn give(entry: Entry, slot: u16) {
    // SAFETY: a map value stays valid; its fields are plain integers.
    let was = unsafe { (*entry.flow).head };
    if flows::replace(entry, was, Head { backend: slot, ..was }) {
        // What the new one sends first is looked at again.
        // SAFETY: a map value stays valid; if an answer of the former one comes in between, that is not looked at.
        unsafe { (*entry.flow).backend_flags &= !REPLIED };
    }
}

/// Writes all of a claimed entry but its head.
#[inline(always)]
fn fill(ctx: &XdpContext, entry: Entry, key: &Key, datagram: &Datagram, now: u32) {
    // SAFETY: the entry was claimed, nobody else reads or writes it before its head is published.
    let flow = unsafe { &mut *entry.flow };
    flow.client = key.client;
    flow.seq_delta = 0;
    flow.ts_delta = 0;
    flow.cookie = 0;
    flow.client_isn = 0;
    flow.client_mac = datagram.frame.load::<{ at::ETH_SRC }, Mac>();
    flow.local_mac = datagram.frame.load::<{ at::ETH_DST }, Mac>();
    flow.client_ifindex = ctx.ingress_ifindex() as u32;
    flow.last_seen = now;
    flow.stash = NO_STASH;
    flow.client_flags = PLAIN | DATAGRAMS;
    flow.backend_flags = 0;
}

/// Backend → client: whichever of the service's backends sends it, for the flow may have moved in the meantime.
#[inline(always)]
fn from_backend(
    ctx: &XdpContext,
    settings: &Settings,
    slot: u16,
    client: (Addr, Be16),
    datagram: &Datagram,
) -> (u16, Verdict) {
    let Some(backend) = BACKENDS.get(u32::from(slot)) else { return (0, pass(Counter::PassedFromBackend)) };
    let id = backend.service;
    if is_elsewhere(settings, backend, ctx.ingress_ifindex() as u32) {
        return (id, consume(Counter::DropOtherInterface));
    }
    let key = Key { client: client.0, port: client.1, service: id };
    let Some(entry) = flows::find(settings, &key) else { return (id, pass(Counter::PassedFromBackend)) };
    let Some(service) = SERVICES.get(u32::from(id)) else { return (id, consume(Counter::DropNoService)) };
    // SAFETY: a map value stays valid; the backend's path alone writes these flags.
    let (flow, first) = unsafe {
        let first = (*entry.flow).backend_flags & REPLIED == 0;
        if first {
            (*entry.flow).backend_flags |= REPLIED;
        }
        (&*entry.flow, first)
    };
    if service.affinity == Affinity::Learned as u8
        && lb_datagram_key(ctx.ctx, u32::from(id), datagram.payload) == HASHED
    {
        lb_learn_key(u32::from(id), u32::from(slot), entry.index, u32::from(first));
    }
    let frame = datagram.frame;
    frame.store::<{ at::TCP_SRC }, Be16>(service.port);
    frame.store::<{ at::IP_SRC }, u32>(service.addr.v4_bits());
    change_checksum(frame, u64::from(!backend.tcp_delta));
    forward(frame, u64::from(!backend.ip_delta), flow.local_mac, flow.client_mac);
    count_backend(slot, |counters| {
        counters.packets_from_backend += 1;
        counters.bytes_from_backend += u64::from(datagram.payload);
    });
    (id, leave(flow.client_ifindex, Counter::FromBackend))
}

#[inline(always)]
fn to_backend(frame: Frame<SHORT>, backend: &Backend) {
    frame.store::<{ at::TCP_DST }, Be16>(backend.port);
    frame.store::<{ at::IP_DST }, u32>(backend.addr.v4_bits());
    change_checksum(frame, u64::from(backend.tcp_delta));
    forward(frame, u64::from(backend.ip_delta), backend.local_mac, backend.next_hop_mac);
}

/// Zero says that there is no checksum, and stays; one that comes out as zero is written as all ones (RFC 768).
#[inline(always)]
fn change_checksum(frame: Frame<SHORT>, change: u64) {
    let check = frame.load::<{ at::UDP_CHECK }, u16>();
    if check != 0 {
        let changed = update(check, change);
        frame.store::<{ at::UDP_CHECK }, u16>(if changed == 0 { 0xffff } else { changed });
    }
}
