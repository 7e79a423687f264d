//! What must be true of any frame that the programs decide about, and of the maps afterwards.

use super::town::{self, SERVICES};
use crate::frame::internet_checksum;
use crate::runner::{TcVerdict, Verdict};
use crate::scene::backend;
use lb_common::counter::{Counter, Kind};
use lb_common::flow::{Flow, FlowState, NO_STASH};
use lb_common::home::{CLAIMED, Home};
use lb_common::maglev::NOBODY;
use lb_common::stash::Stash;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

/// Which program ran, and what it said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Ran {
    Xdp(Verdict),
    Joint(TcVerdict),
}

/// What can be said of the checksum of a segment or datagram.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Sum {
    Right,
    Wrong,
    /// There is none, or nothing that it could be of.
    Absent,
}

/// A frame as a router reads it. What is missing is empty.
pub(super) struct Frame {
    bytes: Vec<u8>,
    /// Bytes of the IPv4 header; 0 when it is none.
    header: usize,
    /// Where the datagram ends, by its own account.
    end: usize,
    pub(super) protocol: u8,
    /// Source and destination of a segment or datagram that is no later fragment.
    pub(super) ends: Option<(SocketAddrV4, SocketAddrV4)>,
    header_is_right: bool,
    sum: Sum,
    /// Where the payload begins.
    payload_at: usize,
}

const ETHERNET: usize = 14;

impl Frame {
    pub(super) fn of(bytes: &[u8]) -> Self {
        let mut frame = Self {
            bytes: bytes.to_vec(),
            header: 0,
            end: 0,
            protocol: 0,
            ends: None,
            header_is_right: false,
            sum: Sum::Absent,
            payload_at: 0,
        };
        // What is no IPv4 stays without a header.
        let _ = frame.read();
        frame
    }

    fn read(&mut self) -> Option<()> {
        let bytes = std::mem::take(&mut self.bytes);
        let read = self.read_from(&bytes);
        self.bytes = bytes;
        read
    }

    fn read_from(&mut self, bytes: &[u8]) -> Option<()> {
        let ip = bytes.get(ETHERNET..).filter(|ip| ip.len() >= 20)?;
        let header = usize::from(ip[0] & 15) * 4;
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        if bytes[12..14] != [8, 0] || ip[0] >> 4 != 4 || header < 20 || total < header || total > ip.len() {
            return None;
        }
        (self.header, self.end, self.protocol) = (header, ETHERNET + total, ip[9]);
        self.header_is_right = internet_checksum(&[&ip[..header]]) == 0;
        let offset = u16::from_be_bytes([ip[6], ip[7]]) & 0x1fff;
        let body = &ip[header..total];
        let ports = body.get(..4).filter(|_| offset == 0)?;
        let end = |at: usize, port: usize| {
            let ip = Ipv4Addr::new(ip[at], ip[at + 1], ip[at + 2], ip[at + 3]);
            SocketAddrV4::new(ip, u16::from_be_bytes([ports[port], ports[port + 1]]))
        };
        self.ends = Some((end(12, 0), end(16, 2)));
        let (least, sum_at) = match self.protocol {
            6 => (20, 16),
            17 => (8, 6),
            _ => return None,
        };
        let body = match self.protocol {
            17 => {
                let len = usize::from(u16::from_be_bytes([*body.get(4)?, *body.get(5)?]));
                body.get(..len)?
            }
            _ => body,
        };
        let tcp_header = || usize::from(body[12] >> 4) * 4;
        if body.len() < least || self.protocol == 6 && !(20..=body.len()).contains(&tcp_header()) {
            return None;
        }
        self.payload_at = ETHERNET + header + if self.protocol == 6 { tcp_header() } else { 8 };
        self.end = ETHERNET + header + body.len();
        self.sum = if self.protocol == 17 && body[sum_at..sum_at + 2] == [0, 0] {
            Sum::Absent
        } else {
            let len = (body.len() as u16).to_be_bytes();
            let rest = internet_checksum(&[&ip[12..20], &[0, self.protocol], &len, body]);
            if rest == 0 { Sum::Right } else { Sum::Wrong }
        };
        Some(())
    }

    /// Whether it is a segment or datagram of which all checksums are right.
    pub(super) fn is_right(&self) -> bool {
        self.header_is_right && (self.sum == Sum::Right || self.sum == Sum::Absent && self.protocol == 17)
    }

    pub(super) fn payload(&self) -> &[u8] {
        self.bytes.get(self.payload_at..self.end).unwrap_or_default()
    }
}

/// Frames that are not sent on and yet did their work: what they bring is kept, or they answer a question.
const ABSORBED: &[Counter] = &[
    Counter::HandshakeAck,
    Counter::HeadAwaited,
    Counter::Stashed,
    Counter::ClientReset,
    Counter::UnavailableHeard,
];
/// Frames that the host gets.
const PASSED: &[Counter] = &[Counter::Passed, Counter::PassedFromBackend, Counter::PassedToJoint];
/// Frames that are translated and sent on.
const FORWARDED: &[Counter] = &[Counter::FromClient, Counter::FromBackend];

/// The law that a frame's fate breaks, if it does. `corrupt`: one of its ends has seen a wrong checksum before.
pub(super) fn of_frame(
    frame: &Frame,
    ran: Ran,
    out: &Frame,
    counted: &[(Counter, u64)],
    corrupt: bool,
) -> Result<(), String> {
    let is = |of: &[Counter]| counted.iter().any(|(counter, _)| of.contains(counter));
    let dropped: u64 = counted.iter().filter(|(c, _)| c.kind() == Kind::Drop).map(|(_, by)| by).sum();
    let (leaves, passes) = match ran {
        Ran::Xdp(Verdict::Drop) | Ran::Joint(TcVerdict::Shot) => (false, false),
        Ran::Xdp(Verdict::Pass) | Ran::Joint(TcVerdict::Ok) => (false, true),
        Ran::Xdp(Verdict::Tx | Verdict::Redirect) | Ran::Joint(TcVerdict::Redirect) => (true, false),
        Ran::Xdp(other) => return Err(format!("{other:?} is no verdict")),
        Ran::Joint(other) => return Err(format!("{other:?} is no verdict")),
    };
    if !counted.iter().any(|(counter, _)| counter.kind() != Kind::Steering) {
        return Err("nothing is counted".into());
    }
    if dropped > 1 {
        return Err("counted as dropped more than once".into());
    }
    match (leaves, passes, dropped) {
        (false, false, 0) if matches!(ran, Ran::Xdp(_)) && !is(ABSORBED) => {
            return Err("dropped, and no counter says why".into());
        }
        (false, false, _) => return Ok(()),
        (_, _, 1) => return Err("counted as dropped, and it is not".into()),
        (false, true, _) => {
            if matches!(ran, Ran::Xdp(_)) && !is(PASSED) {
                return Err("passed, and no counter says so".into());
            }
            return if out.bytes == frame.bytes { Ok(()) } else { Err("passed, and changed before".into()) };
        }
        _ => {}
    }
    left(frame, out, is(FORWARDED), corrupt)
}

/// Of a frame that leaves.
fn left(frame: &Frame, out: &Frame, forwarded: bool, corrupt: bool) -> Result<(), String> {
    let ((Some((src, dst)), Some((from, to))), true) = ((frame.ends, out.ends), out.header == 20) else {
        return Err("what leaves is no segment and no datagram".into());
    };
    if frame.header_is_right && !out.header_is_right {
        return Err("the checksum of the IPv4 header was right, and is not".into());
    }
    // What a connection has brought with a wrong checksum keeps it when it is sent later.
    if frame.sum == Sum::Right && out.sum != Sum::Right && (forwarded || !corrupt) {
        return Err("the checksum was right, and is not".into());
    }
    let vips = (1..=SERVICES).map(town::dial);
    let backends = (0..SERVICES * town::BACKENDS).map(backend);
    let ours: BTreeSet<SocketAddrV4> = vips.clone().chain(backends).collect();
    for end in [from, to] {
        if end != src && end != dst && !ours.contains(&end) {
            return Err(format!("{end} has nothing to do with it"));
        }
    }
    if vips.into_iter().any(|vip| vip == to) {
        return Err("it leaves to a service".into());
    }
    if !forwarded {
        return Ok(());
    }
    if out.payload() != frame.payload() {
        return Err("the payload is another one".into());
    }
    if frame.header_is_right && frame.sum != out.sum {
        return Err(format!("the checksum was {:?}, and is {:?}", frame.sum, out.sum));
    }
    let ttl = |frame: &Frame| frame.bytes[ETHERNET + 8];
    if ttl(out) != ttl(frame).wrapping_sub(1) {
        return Err("a hop is not counted".into());
    }
    Ok(())
}

/// What is found in the maps.
pub(super) struct Maps {
    /// By index, free entries as well.
    pub(super) flows: Vec<Flow>,
    /// By index.
    pub(super) stashes: Vec<Stash>,
    pub(super) homes: Vec<Home>,
    /// By slot.
    pub(super) live: Vec<u64>,
}

/// The law that the maps break, if they do, when `clients` have sent something to services and backends have handed out so many
/// keys.
pub(super) fn of_maps(
    maps: &Maps,
    clients: &BTreeSet<(SocketAddrV4, u16)>,
    handed_out: usize,
) -> Result<(), String> {
    let mut keys = BTreeSet::new();
    let mut live: BTreeMap<u16, u64> = BTreeMap::new();
    for (index, flow) in maps.flows.iter().enumerate() {
        let state = FlowState::from_bits(flow.head.state);
        if state == FlowState::Free {
            continue;
        }
        if state == FlowState::Claimed {
            return Err(format!("flow {index} is claimed for ever"));
        }
        let IpAddr::V4(ip) = flow.client.into() else { return Err(format!("flow {index} has no client")) };
        let key = (SocketAddrV4::new(ip, flow.head.client_port.get()), flow.head.service);
        if !clients.contains(&key) {
            return Err(format!("a flow of {} with service {}, which it never spoke to", key.0, key.1));
        }
        if !keys.insert(key) {
            return Err(format!("two flows of {} with service {}", key.0, key.1));
        }
        let slot = flow.head.backend;
        let awaits = state == FlowState::Awaiting;
        if slot != NOBODY && !awaits && !town::slots(flow.head.service).contains(&slot) {
            return Err(format!("a flow of service {} with the backend in slot {slot}", flow.head.service));
        }
        if state.counted() & lb_common::flow::LIVES != 0 {
            *live.entry(slot).or_default() += 1;
        }
        let plain = flow.client_flags & lb_common::flow::PLAIN != 0;
        if state == FlowState::Binding && !plain {
            let stash = maps.stashes.get(usize::from(flow.stash)).filter(|_| flow.stash != NO_STASH);
            if stash.is_none_or(|stash| stash.owner as u32 != index as u32 + 1) {
                return Err(format!("flow {index} waits for its backend and has no stash"));
            }
        }
    }
    for (slot, count) in maps.live.iter().enumerate() {
        let expected = live.get(&(slot as u16)).copied().unwrap_or(0);
        if *count != expected {
            return Err(format!(
                "slot {slot} has {expected} live flows, and {} are counted",
                count.cast_signed()
            ));
        }
    }
    if let Some(index) = maps.stashes.iter().position(|stash| stash.lock != 0 && stash.owner != 0) {
        return Err(format!("stash {index} is locked for ever"));
    }
    if maps.homes.iter().any(|home| home.tag == CLAIMED) {
        return Err("an entry of a learned session is claimed for ever".into());
    }
    if maps.homes.len() > handed_out {
        return Err(format!(
            "{} sessions are learned, and {handed_out} keys were handed out",
            maps.homes.len()
        ));
    }
    Ok(())
}
