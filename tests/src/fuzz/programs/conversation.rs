//! Clients and backends that speak through the programs: the steps of a sequence become frames, with the numbers that are due.

use super::rig::{Done, Rig};
use super::sequence::{Edit, Sent, Step, bytes};
use super::town::{self, client, dial, service_of, slots};
use crate::frame::{ACK, Datagram, FIN, Opt, PSH, RST, SYN, Segment, URG, internet_checksum};
use crate::scene::{backend, macs};
use crate::setup::Setup;
use anyhow::{Context, Result};
use lb_common::token::decode;
use std::collections::BTreeMap;

/// Longest frame that `BPF_PROG_TEST_RUN` takes in one page, with what it adds around it.
const MAX_FRAME: usize = 3400;
/// Ethernet header: a shorter frame is refused.
const MIN_FRAME: usize = 14;
/// What clients and backends begin with.
const CLIENT_ISN: u32 = 0xffff_ff00;
const BACKEND_ISN: u32 = 0x1234_5678;
const CLIENT_TIME: u32 = 7_000;
const BACKEND_TIME: u32 = 99_000;

/// One end of a connection.
#[derive(Clone, Copy)]
struct End {
    /// The next sequence number that it sends.
    next: u32,
    /// The next one that it expects.
    expected: u32,
    /// The other end's newest timestamp.
    echo: u32,
}

struct Conversation {
    client: End,
    backend: End,
    /// Who has it.
    slot: u16,
}

impl Conversation {
    fn new(conn: u8) -> Self {
        let end = |next: u32| End { next: next.wrapping_add(u32::from(conn) << 16), expected: 0, echo: 0 };
        let slot = slots(service_of(conn)).start;
        Self { client: end(CLIENT_ISN), backend: end(BACKEND_ISN), slot }
    }
}

/// All conversations of a sequence.
struct Town {
    all: BTreeMap<u8, Conversation>,
    last: Vec<u8>,
    /// Grows with each frame.
    time: u32,
}

/// Plays a sequence; what became of each frame.
///
/// # Errors
/// The law that is broken, and at which step.
pub(super) fn play(rig: &mut Rig, steps: &[Step]) -> Result<Vec<Done>> {
    rig.reset()?;
    let mut town = Town { all: BTreeMap::new(), last: Vec::new(), time: 0 };
    let mut all = Vec::new();
    for (number, step) in steps.iter().enumerate() {
        all.extend(town.step(rig, step).with_context(|| format!("step {}", number + 1))?);
    }
    rig.judge_maps()?;
    Ok(all)
}

impl Town {
    fn step(&mut self, rig: &mut Rig, step: &Step) -> Result<Vec<Done>> {
        let frame = match step {
            Step::State { slot, is } => return rig.change(*slot, *is).map(|()| Vec::new()),
            Step::Client(sent) => self.sent(rig.setup(), sent, true)?,
            Step::Backend(sent) => self.sent(rig.setup(), sent, false)?,
            Step::Again { edits } => edited(self.last.clone(), edits),
        };
        if frame.len() < MIN_FRAME {
            return Ok(Vec::new());
        }
        let done = rig.send(&frame)?;
        done.iter().filter_map(|done| done.left.as_deref()).for_each(|left| self.arrives(left));
        self.last = frame;
        Ok(done)
    }

    /// The frame that a client or a backend sends.
    fn sent(&mut self, setup: &Setup, sent: &Sent, by_client: bool) -> Result<Vec<u8>> {
        self.time += 1;
        let time = self.time;
        let service = service_of(sent.conn);
        let conversation = self.all.entry(sent.conn).or_insert_with(|| Conversation::new(sent.conn));
        let (local, next) = macs(conversation.slot);
        let (src, dst, from_mac, to_mac) = if by_client {
            (client(sent.conn), dial(service), town::CLIENT_MAC, town::LOCAL_MAC)
        } else {
            (backend(conversation.slot), client(sent.conn), next, local)
        };
        let payload = expanded(setup, &sent.data)?;
        let frame = if setup.services[usize::from(service) - 1].protocol == town::UDP {
            Datagram::new(src, dst, &payload[..payload.len().min(MAX_FRAME)]).macs(from_mac, to_mac).bytes()
        } else {
            let end = if by_client { &mut conversation.client } else { &mut conversation.backend };
            let flags = flags(&sent.flags);
            let stamp = (if by_client { CLIENT_TIME } else { BACKEND_TIME }).wrapping_add(time);
            let stamps = (sent.conn / town::SERVICES as u8).is_multiple_of(2).then_some((stamp, end.echo));
            let segment = Segment {
                seq: end.next.wrapping_add_signed(sent.seq),
                ack: if flags & ACK == 0 { 0 } else { end.expected.wrapping_add_signed(sent.ack) },
                flags,
                window: sent.window.unwrap_or(500),
                options: options(sent, flags, stamps),
                payload: payload[..payload.len().min(MAX_FRAME)].to_vec(),
                ..Segment::new(src, dst).macs(from_mac, to_mac)
            };
            if sent.seq == 0 {
                end.next = segment.end();
            }
            segment.bytes()
        };
        Ok(edited(frame, &sent.edits))
    }

    /// A frame comes to whom it is addressed to.
    fn arrives(&mut self, frame: &[u8]) {
        let Ok(segment) = Segment::parse_lenient(frame) else { return };
        for (conn, conversation) in &mut self.all {
            let end = if segment.dst == client(*conn) {
                &mut conversation.client
            } else if segment.src == client(*conn)
                && let Some(slot) = slots(service_of(*conn)).find(|slot| backend(*slot) == segment.dst)
            {
                if segment.has(SYN) && slot != conversation.slot {
                    (conversation.slot, conversation.backend) = (slot, Conversation::new(*conn).backend);
                }
                &mut conversation.backend
            } else {
                continue;
            };
            if segment.has(SYN) || segment.seq == end.expected {
                end.expected = segment.end();
            }
            end.echo = segment.timestamp().map_or(end.echo, |(val, _)| val);
        }
    }
}

fn options(sent: &Sent, flags: u8, stamps: Option<(u32, u32)>) -> Vec<Opt> {
    match (&sent.options, stamps) {
        (Some(text), _) => {
            let mut area = bytes(text);
            area.truncate(40);
            vec![Opt::Raw(area)]
        }
        (None, stamps) if flags & SYN != 0 => Opt::linux_syn(1460, Some(7), true, stamps),
        (None, Some((val, echo))) => vec![Opt::Nop, Opt::Nop, Opt::Timestamps { val, echo }],
        (None, None) => Vec::new(),
    }
}

fn flags(text: &str) -> u8 {
    let bit = |c| match c {
        'S' => SYN,
        'A' => ACK,
        'F' => FIN,
        'R' => RST,
        'P' => PSH,
        'U' => URG,
        _ => 0,
    };
    text.chars().map(bit).fold(0, |all, bit| all | bit)
}

/// The bytes of a payload, with tokens and connection ids in their places.
pub(super) fn expanded(setup: &Setup, text: &str) -> Result<Vec<u8>> {
    let mut payload = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('{') {
        payload.extend(bytes(&rest[..at]));
        rest = &rest[at..];
        let inside = rest[1..].split_once('}').filter(|(inside, _)| inside.len() <= 4);
        let named = inside.and_then(|(inside, after)| {
            let slot = inside.get(1..)?.parse::<u16>().ok()?;
            Some((inside.as_bytes()[0], slot, after))
        });
        let Some((kind @ (b'T' | b'R' | b'Q'), slot, after)) = named else {
            payload.push(b'{');
            rest = &rest[1..];
            continue;
        };
        match kind {
            b'T' => payload.extend(town::token(setup, slot).bytes()),
            b'R' => payload.extend(decode(town::token(setup, slot).as_bytes())?),
            _ => payload.extend(town::connection_id(slot)?),
        }
        rest = after;
    }
    payload.extend(bytes(rest));
    Ok(payload)
}

fn edited(mut frame: Vec<u8>, edits: &[Edit]) -> Vec<u8> {
    for edit in edits {
        match *edit {
            Edit::Set { at, to } if frame.len() > 12 => {
                let at = 12 + usize::from(at) % (frame.len() - 12);
                frame[at] = to;
            }
            Edit::Set { .. } => {}
            Edit::Cut(n) => frame.truncate(frame.len().saturating_sub(n.into()).max(MIN_FRAME)),
            Edit::Pad(n) => frame.resize(frame.len() + usize::from(n % 64), 0),
            Edit::Sum => sum(&mut frame),
        }
    }
    frame.truncate(MAX_FRAME);
    frame
}

/// Writes right checksums where they stand in a segment or datagram.
fn sum(frame: &mut [u8]) {
    let Some(ip) = frame.get_mut(MIN_FRAME..).filter(|ip| ip.len() >= 20) else { return };
    let header = usize::from(ip[0] & 15) * 4;
    let total = usize::from(u16::from_be_bytes([ip[2], ip[3]])).min(ip.len());
    if header < 20 || total < header {
        return;
    }
    ip[10..12].fill(0);
    let check = internet_checksum(&[&ip[..header]]);
    ip[10..12].copy_from_slice(&check.to_be_bytes());
    let at = match ip[9] {
        6 => 16,
        17 => 6,
        _ => return,
    };
    let (header, body) = ip[..total].split_at_mut(header);
    let Some(place) = body.get_mut(at..at + 2) else { return };
    place.fill(0);
    let len = (body.len() as u16).to_be_bytes();
    let check = internet_checksum(&[&header[12..20], &[0, header[9]], &len, body]);
    body[at..at + 2].copy_from_slice(&check.to_be_bytes());
}
