//! What is measured: the frames of each row, the counters that show which path they took, and our aims.

use super::flows::{SLOT, client, first_place, free_place};
use super::report::Aim;
use super::rig::{BACKENDS, Rig, SERVICE};
use super::wrapper::IMAGES;
use super::{FLOWS, kinds};
use crate::balancer::dial;
use crate::frame::{ACK, Opt, PSH, SYN, Segment};
use crate::scene::{CLIENT_MAC, CLIENT_SCALE, ISN, LOCAL_MAC, TS, backend, macs};
use crate::testbed::rule::{DESTINATION, HEADERS, HEADERS_LEN, Image, SOURCE, Undo, WHOLE};
use anyhow::Result;
use lb_common::counter::Counter;
use lb_common::flow::GROUP;
use lb_common::syn_cookie::Agreed;
use std::collections::HashSet;
use std::net::SocketAddrV4;

/// One row.
#[derive(Clone)]
pub(super) struct Case {
    pub(super) name: String,
    /// Index of the rig on which it runs.
    pub(super) rig: usize,
    pub(super) images: Vec<Image>,
    pub(super) undo: Undo,
    /// Counters that grow by one with each packet, in their order.
    pub(super) counted: Vec<&'static str>,
    /// Each client's packet begins a flow: every one has its turn in a burst, and before it all flows are forgotten.
    pub(super) begin: bool,
    pub(super) aim: Option<Aim>,
}

impl Case {
    pub(super) fn new(name: impl ToString, what: u32, frames: &[Segment], counted: &[Counter]) -> Self {
        Self::of_bytes(name, what, frames.iter().map(Segment::bytes), counted)
    }

    pub(super) fn of_bytes(
        name: impl ToString,
        what: u32,
        frames: impl IntoIterator<Item = Vec<u8>>,
        counted: &[Counter],
    ) -> Self {
        let counted = counted.iter().map(|counter| counter.name()).collect();
        Self::counted_as(name, what, frames, counted)
    }

    /// The same with the names of counters, which need not be the product's.
    pub(super) fn counted_as(
        name: impl ToString,
        what: u32,
        frames: impl IntoIterator<Item = Vec<u8>>,
        counted: Vec<&'static str>,
    ) -> Self {
        let images: Vec<Image> = frames.into_iter().map(|frame| Image::new(&frame)).collect();
        assert!(images.len().is_power_of_two() && images.len() <= IMAGES as usize, "images are masked");
        let undo = Undo { image_mask: images.len() as u32 - 1, what, ..Undo::default() };
        Self { name: name.to_string(), rig: 0, images, undo, counted, begin: false, aim: None }
    }

    /// The first of its frames.
    pub(super) fn frame(&self) -> &[u8] {
        &self.images[0].bytes[..self.images[0].len as usize]
    }

    fn aim(self, aim: Aim) -> Self {
        Self { aim: Some(aim), ..self }
    }

    /// The frames come from, or go to, all clients that have a flow in that rig.
    fn clients(self, rig: usize, client_is: u32) -> Self {
        Self { rig, ..self.of_clients(FLOWS[rig], client_is) }
    }

    /// The frames come from, or go to, the first `count` clients.
    pub(super) fn of_clients(self, count: u32, client_is: u32) -> Self {
        assert!(count.is_power_of_two(), "clients are masked");
        Self { undo: Undo { client_mask: count - 1, client_is, ..self.undo }, ..self }
    }
}

/// All rows but the empty program's, in the order in which they are printed.
pub(super) fn all(rigs: &[Rig]) -> Result<Vec<Case>> {
    let mut cases = vec![arp(), not_ours(), syn()];
    cases.extend(handshakes(&rigs[0])?);
    cases.extend(kinds::all(&rigs[0])?);
    for (direction, client_is) in [(from_client as fn(&str) -> Case, SOURCE), (from_backend, DESTINATION)] {
        for (rig, flows) in ["1 flow", "16k flows", "1M flows"].into_iter().enumerate() {
            cases.push(Case { aim: EXPECTED[rig], ..direction(flows).clients(rig, client_is) });
        }
    }
    Ok(cases)
}

/// What an established flow's packet should cost in each rig: Katran's costs 16.8 times an empty program in the last.
const EXPECTED: [Option<Aim>; 3] =
    [Some(Aim::TimesEmpty(2.8)), None, Some(Aim::TimesEmpty(0.65 * 420.0 / 25.0))];

fn arp() -> Case {
    Case::of_bytes("ARP, passed", HEADERS, [arp_frame()], &[Counter::Passed])
}

pub(super) fn arp_frame() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend(CLIENT_MAC);
    frame.extend([0x08, 0x06]);
    frame.resize(HEADERS_LEN, 0);
    frame
}

fn not_ours() -> Case {
    let (src, dst) =
        (SocketAddrV4::new([10, 0, 1, 2].into(), 40_000), SocketAddrV4::new([10, 0, 7, 7].into(), 443));
    let segment = Segment::new(src, dst).timestamps(1, 2).payload([7; 100]);
    Case::new("not ours, passed", HEADERS, &[segment], &[Counter::Passed]).aim(Aim::TimesEmpty(1.4))
}

fn syn() -> Case {
    let syn = Segment::new(client(0), dial())
        .macs(CLIENT_MAC, LOCAL_MAC)
        .seq(ISN)
        .flags(SYN)
        .options(Opt::linux_syn(1460, Some(CLIENT_SCALE), true, Some((TS, 0))));
    Case::new("SYN answered", HEADERS, &[syn], &[Counter::SynAnswered]).aim(Aim::TimesEmpty(3.5))
}

/// A segment of a client that has our SYN-ACK and acknowledges nothing more.
pub(super) fn second(
    rig: &Rig,
    (vip, service): (SocketAddrV4, u16),
    client: SocketAddrV4,
    payload: &[u8],
) -> Segment {
    let agreed = Agreed { mss: 1460, window_scale: CLIENT_SCALE, sack: true, timestamps: true };
    let cookie = rig.setup.cookie(client, service, ISN, agreed);
    Segment::new(client, vip)
        .macs(CLIENT_MAC, LOCAL_MAC)
        .seq(ISN.wrapping_add(1))
        .ack(cookie.wrapping_add(1))
        .flags(if payload.is_empty() { ACK } else { ACK | PSH })
        .window(501)
        .timestamps(TS + 1, rig.setup.stamp(client, service, ISN))
        .payload(payload)
}

/// Everything between the SYN-ACK and the backend's SYN.
fn handshakes(rig: &Rig) -> Result<Vec<Case>> {
    use Counter::{AffinityHit, Bound, HandshakeAck, NewSession, Redispatched, ResetUnknownFlow};
    let new = |n: u32| client(1_000_000 + n);
    let here = rig.setup.token(SLOT, 1);
    let gone = rig.setup.token(BACKENDS - 1, 2);
    let mut cases = vec![Case::new(
        "handshake ACK absorbed",
        WHOLE,
        &[second(rig, (dial(), SERVICE), new(0), b"")],
        &[HandshakeAck],
    )];
    for len in [100, 500, 1_200] {
        let name = format!("first payload, {len} bytes");
        let request = request(len, Some(&here));
        cases.push(
            first(rig, &name, &[new(1)], &request, &[AffinityHit, Bound])?
                .aim(Aim::Nanoseconds(250.0 + 0.3 * len as f64)),
        );
    }
    let clients = apart(rig, IMAGES as usize);
    let many = format!("first payload, 500 bytes, {} clients", IMAGES);
    cases.push(first(rig, &many, &clients, &request(500, Some(&here)), &[AffinityHit, Bound])?);
    cases.push(first(
        rig,
        "redispatch, 500 bytes",
        &[new(1)],
        &request(500, Some(&gone)),
        &[Redispatched, Bound],
    )?);
    cases.push(first(rig, "new session, 500 bytes", &[new(1)], &request(500, None), &[NewSession, Bound])?);
    let stray = Segment { ack: 77, ..second(rig, (dial(), SERVICE), new(2), b"lost") };
    cases.push(Case::new("unknown flow reset", WHOLE, &[stray], &[ResetUnknownFlow]));
    Ok(cases)
}

/// First payloads, one of each client; whose flow entries are freed before they come again.
fn first(
    rig: &Rig,
    name: &str,
    clients: &[SocketAddrV4],
    request: &[u8],
    counted: &[Counter],
) -> Result<Case> {
    let frames: Vec<Segment> =
        clients.iter().map(|client| second(rig, (dial(), SERVICE), *client, request)).collect();
    let mut case = Case::new(name, WHOLE, &frames, counted);
    for (image, client) in case.images.iter_mut().zip(clients) {
        image.flow = free_place(&rig.product.maps, &rig.setup, *client, SERVICE)? + 1;
    }
    Ok(case)
}

/// Clients whose flows do not share a group of the table, nor one with the established flow.
fn apart(rig: &Rig, count: usize) -> Vec<SocketAddrV4> {
    let group = |client| first_place(&rig.setup, client, SERVICE) / GROUP as u32;
    let mut taken: HashSet<u32> = rig.clients.iter().map(|client| group(*client)).collect();
    (2_000_000..).map(client).filter(|client| taken.insert(group(*client))).take(count).collect()
}

/// A request of `len` bytes whose last header is the cookie.
pub(super) fn request(len: usize, token: Option<&str>) -> Vec<u8> {
    let cookie = match token {
        Some(token) => format!("Cookie: lb={token}\r\n\r\n"),
        None => "\r\n".to_owned(),
    };
    let mut head = String::from("GET / HTTP/1.1\r\nHost: s\r\n");
    let more = [
        "Connection: keep-alive\r\n",
        "Cache-Control: max-age=0\r\n",
        "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n",
        "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\n",
        "Accept-Encoding: gzip, deflate, br, zstd\r\n",
        "Accept-Language: en-GB,en;q=0.5\r\n",
    ];
    for line in more {
        if head.len() + line.len() + cookie.len() + 8 <= len {
            head += line;
        }
    }
    // One more header, of the length that is missing.
    let fill = len - head.len() - cookie.len() - "X: \r\n".len();
    (head + "X: " + &"x".repeat(fill) + "\r\n" + &cookie).into_bytes()
}

/// Acknowledgement numbers of every eighth of their range: an eighth, as it happens, looks like a SYN cookie of now.
pub(super) fn eighths() -> impl Iterator<Item = u32> {
    (0..8).map(|eighth| eighth << 29 | 0x0123_4567)
}

/// A segment of an established flow.
fn from_client(flows: &str) -> Case {
    let frames: Vec<Segment> = eighths()
        .map(|ack| {
            Segment::new(client(0), dial())
                .macs(CLIENT_MAC, LOCAL_MAC)
                .seq(0x5555_0000)
                .ack(ack)
                .flags(ACK | PSH)
                .window(501)
                .timestamps(TS + 99, 0x7777_7777)
                .payload([7; 100])
        })
        .collect();
    Case::new(format!("established from client, {flows}"), HEADERS, &frames, &[Counter::FromClient])
}

fn from_backend(flows: &str) -> Case {
    let (local, next) = macs(SLOT);
    let segment = Segment::new(backend(SLOT), client(0))
        .macs(next, local)
        .seq(0x6666_0000)
        .ack(0x5555_0000)
        .flags(ACK | PSH)
        .window(300)
        .timestamps(0x7777_7777, TS + 99)
        .payload([7; 100]);
    Case::new(format!("established from backend, {flows}"), HEADERS, &[segment], &[Counter::FromBackend])
}
