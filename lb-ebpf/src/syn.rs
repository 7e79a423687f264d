//! A client's SYN: answered for the backend with a SYN cookie, leaving no trace in memory.

use crate::clock::jiffies;
use crate::cold::{self, Parsed};
use crate::flows::Key;
use crate::header::{self, End, Header, MAX_HEADER};
use crate::maps::{SERVICES, settings};
use crate::options;
use crate::packet::{Frame, Packet, Segment, at};
use crate::plain;
use crate::verdict::{Verdict, consume, leave};
use aya_ebpf::bindings::xdp_md;
use aya_ebpf::programs::XdpContext;
use lb_common::addr::Mac;
use lb_common::counter::Counter;
use lb_common::service::{PROMISE_SACK, PROMISE_TIMESTAMPS, PROMISE_WINDOW_SCALE, Service};
use lb_common::settings::Settings;
use lb_common::stash::STASH_BYTES;
use lb_common::syn_cookie::{Agreed, Peer, Secret};
use lb_common::tcp::{ACK, NO_WINDOW_SCALE, SYN};

/// Who asks for a cookie.
#[inline(always)]
pub(crate) const fn peer(key: &Key) -> Peer {
    Peer { client: key.client, port: key.port, service: key.service }
}

/// The two ends of a frame we answer to: from us to where it came from.
#[inline(always)]
pub(crate) fn back(frame: Frame) -> (End, End) {
    let (src, dst) = crate::steer::ends(frame);
    (
        End { mac: frame.load::<{ at::ETH_DST }, Mac>(), addr: dst.0, port: dst.1 },
        End { mac: frame.load::<{ at::ETH_SRC }, Mac>(), addr: src.0, port: src.1 },
    )
}

/// SYN → SYN-ACK. A global function (see [`crate::cold`]).
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn lb_syn(ctx: *mut xdp_md, service: u32) -> u64 {
    let ctx = XdpContext::new(ctx);
    let (Some(settings), Some(entry)) = (settings(), SERVICES.get(service)) else {
        return consume(Counter::DropNoService).to_bits();
    };
    let Some(Parsed { frame, key, segment }) = cold::parse(&ctx, service) else {
        return consume(Counter::DropTruncated).to_bits();
    };
    answer(&ctx, frame, settings, entry, &key, &segment).to_bits()
}

/// SYN → SYN-ACK. The window is what a stash holds: a client that may send nothing would wait for ever, and more could not be
/// kept. TSval tells nobody but the client its own sequence number, which its segments will echo (see
/// [`lb_common::syn_cookie`]).
#[inline(always)]
fn answer(
    ctx: &XdpContext,
    frame: Frame,
    settings: &Settings,
    service: &Service,
    key: &Key,
    segment: &Segment,
) -> Verdict {
    if segment.flags & ACK != 0 {
        return consume(Counter::DropBadFlags);
    }
    if service.enabled == 0 {
        return consume(Counter::DropNoService);
    }
    if service.binds_at_once() {
        return Verdict::from_bits(plain::BEGIN);
    }
    let offer = options::offer(ctx, segment.header);
    let promised = |option: u8| service.promises & option != 0;
    let stamped = offer.has_timestamps() & promised(PROMISE_TIMESTAMPS);
    let secret = Secret::of(settings, &peer(key), settings.slot(jiffies()), stamped);
    let shown = segment.seq ^ secret.pad();
    let timestamps = offer.answered(stamped, shown).map(|stamps| (stamps.val, stamps.ecr));
    let agreed = Agreed {
        mss: if offer.mss < service.mss { offer.mss } else { service.mss },
        window_scale: if promised(PROMISE_WINDOW_SCALE) { offer.window_scale } else { NO_WINDOW_SCALE },
        sack: promised(PROMISE_SACK) && offer.sack,
        timestamps: timestamps.is_some(),
    };
    let cookie = secret.cookie(segment.seq, agreed);
    // What the cookie can carry, not what it was asked to.
    let scales = Agreed::of(cookie, agreed.timestamps).scales_windows();
    let scale = if scales { Some(service.window_scale) } else { None };
    let (from, to) = back(frame);
    let header = Header {
        from,
        to,
        seq: cookie,
        ack: segment.seq.wrapping_add(1),
        flags: SYN | ACK,
        window: STASH_BYTES as u16,
        payload: 0,
        payload_sum: 0,
    };
    let options = header::syn_options(service.mss, agreed.sack, timestamps, scale);
    send(ctx, &header, &options, ctx.ingress_ifindex() as u32, Counter::SynAnswered)
}

/// By how much a window is scaled that we tell the client of a cookie.
#[inline(always)]
pub(crate) fn scale_of(service: &Service, cookie: u32, timestamps: bool) -> i8 {
    if Agreed::of(cookie, timestamps).scales_windows() { service.window_scale as i8 } else { 0 }
}

/// Makes the packet a segment without payload and sends it out of an interface.
#[inline(always)]
pub(crate) fn send<const N: usize>(
    ctx: &XdpContext,
    header: &Header,
    options: &[u32; N],
    ifindex: u32,
    counter: Counter,
) -> Verdict {
    const { assert!(crate::packet::BASE + 4 * N <= MAX_HEADER) };
    let len = crate::packet::BASE + 4 * N;
    if !resize(ctx, len as u32) {
        return consume(Counter::DropNoRoom);
    }
    let Some(start) = ctx.window(len) else { return consume(Counter::DropNoRoom) };
    // SAFETY: the window covers the headers and N option words.
    unsafe { header::write(start, header, options) };
    leave(ifindex, counter)
}

/// Gives the frame another length: cut at its tail, grown at its head, where every driver leaves room. What it held is
/// lost, and so is every pointer into it.
#[inline(always)]
pub(crate) fn resize(ctx: &XdpContext, len: u32) -> bool {
    let more = len as i32 - ctx.len() as i32;
    if more == 0 {
        return true;
    }
    // SAFETY: the helpers change the packet or refuse; all pointers into it are taken anew afterwards.
    unsafe {
        if more < 0 {
            aya_ebpf::helpers::bpf_xdp_adjust_tail(ctx.ctx, more) == 0
        } else {
            aya_ebpf::helpers::bpf_xdp_adjust_head(ctx.ctx, -more) == 0
        }
    }
}
