//! Rows of every other kind of service: keys in other places of a request, sessions that backends hand out, server names, plain
//! connections, datagrams.

use super::cases::{Case, request, second};
use super::flows::{bound, client, free_place, place_of};
use super::rig::{self, BACKENDS, Rig};
use crate::balancer::dial;
use crate::frame::{ACK, Datagram, Opt, PSH, SYN, Segment};
use crate::maps::Maps;
use crate::scene::{CLIENT_MAC, CLIENT_SCALE, ISN, LOCAL_MAC, TS, backend, macs};
use crate::setup::{NextHop, Setup};
use crate::testbed::rule::{HEADERS, WHOLE};
use anyhow::{Context, Result};
use lb_common::backend::State;
use lb_common::counter::Counter::{
    self, AffinityHit, Bound, FromBackend, FromClient, Hashed, HeadAwaited, NewSession, Unavailable,
};
use lb_common::flow::{LEARNS, PLAIN, REPLIED};
use lb_common::home::{self, Home};
use lb_common::quic_lb;
use lb_common::service::{Affinity, Balance, Place, Service};
use lb_common::token::{TOKEN_LEN, TOKEN_TEXT_LEN, decode};
use std::net::SocketAddrV4;

/// The value of the cookie that a backend has handed out.
const LEARNED: &str = "A0B1C2D3E4F5061728394A5B6C7D8E9F";
const UDP: u8 = 17;

/// A kind of service.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Plain,
    PlainLeast,
    HashedCookie,
    SignedHeader,
    SignedQuery,
    ServerName,
    /// A name that backends are listed for...
    ListedName,
    /// ...or a wildcard that it ends in.
    ListedWildcard,
    Learned,
    /// Its only backend is down.
    Unserved,
    SignedDatagram,
    TextDatagram,
    HashedDatagram,
    LearnedDatagram,
    Quic,
}

const KINDS: [Kind; 15] = [
    Kind::Plain,
    Kind::PlainLeast,
    Kind::HashedCookie,
    Kind::SignedHeader,
    Kind::SignedQuery,
    Kind::ServerName,
    Kind::ListedName,
    Kind::ListedWildcard,
    Kind::Learned,
    Kind::Unserved,
    Kind::SignedDatagram,
    Kind::TextDatagram,
    Kind::HashedDatagram,
    Kind::LearnedDatagram,
    Kind::Quic,
];

impl Kind {
    /// Services of the first kind are next to the one of all other rows.
    fn id(self) -> u16 {
        rig::SERVICE + 1 + self.index()
    }

    fn index(self) -> u16 {
        KINDS.iter().position(|kind| *kind == self).expect("all kinds are listed") as u16
    }

    fn vip(self) -> SocketAddrV4 {
        SocketAddrV4::new(*dial().ip(), 10_000 + self.index())
    }

    /// The slot of its only backend.
    fn slot(self) -> u16 {
        BACKENDS + self.index()
    }

    fn set(self, service: &mut Service) {
        let named = match self {
            Self::Plain | Self::PlainLeast => {
                service.affinity = Affinity::None as u8;
                if self == Self::PlainLeast {
                    service.balance = Balance::Least as u8;
                }
                true
            }
            Self::HashedCookie | Self::Unserved => {
                service.affinity = Affinity::Hashed as u8;
                true
            }
            Self::SignedHeader => service.set_header_name("X-Session"),
            Self::SignedQuery => service.set_query_name("session"),
            Self::ServerName | Self::ListedName | Self::ListedWildcard => {
                service.affinity = Affinity::Hashed as u8;
                service.place = Place::Sni as u8;
                true
            }
            Self::Learned => {
                service.affinity = Affinity::Learned as u8;
                service.learned_ticks = u32::MAX / 4;
                service.set_cookie_name("JSESSIONID")
            }
            Self::SignedDatagram => datagrams(service, Affinity::Signed, Place::Offset, TOKEN_LEN),
            Self::TextDatagram => {
                datagrams(service, Affinity::Signed, Place::Marker, TOKEN_TEXT_LEN)
                    && service.set_marker(b"sid=")
            }
            Self::HashedDatagram => datagrams(service, Affinity::Hashed, Place::End, 16),
            Self::LearnedDatagram => {
                service.learned_ticks = u32::MAX / 4;
                datagrams(service, Affinity::Learned, Place::Offset, 16)
            }
            Self::Quic => datagrams(service, Affinity::Quic, Place::Offset, 0),
        };
        assert!(named, "the names are short enough");
    }
}

fn datagrams(service: &mut Service, affinity: Affinity, place: Place, len: usize) -> bool {
    service.protocol = UDP;
    service.affinity = affinity as u8;
    service.place = place as u8;
    service.key_len = len as u8;
    true
}

/// One service of each kind, each with one backend.
pub(super) fn add(setup: &mut Setup) {
    for kind in KINDS {
        let id = setup.service(kind.vip());
        assert_eq!(id, kind.id());
        kind.set(&mut setup.services[usize::from(id) - 1]);
        let (local_mac, mac) = macs(kind.slot());
        setup.backend(id, backend(kind.slot()), Some(NextHop { ifindex: 1, local_mac, mac }));
        match kind {
            Kind::ListedName => setup.list(id, "shop.example.org", &[kind.slot()]),
            Kind::ListedWildcard => setup.list(id, "*.example.org", &[kind.slot()]),
            Kind::Unserved => setup.set_state(kind.slot(), State::Down),
            _ => {}
        }
    }
    for (_, config) in quic_configs() {
        let server =
            quic_lb::Server::new(Kind::Quic.id(), &server_id(&config)).expect("a server id's length");
        setup.quic.push((Kind::Quic.id(), config));
        setup.quic_servers.push((server, Kind::Quic.slot()));
    }
}

/// Each way in which a server id can be written.
fn quic_configs() -> [(&'static str, quic_lb::Config); 4] {
    let key = Some(b"a key of the lot");
    let of = |rotation, server, nonce, key| {
        quic_lb::Config::new(rotation, server, nonce, key).expect("within the limits")
    };
    [
        ("in the clear", of(0, 2, 6, None)),
        ("one pass", of(1, 8, 8, key)),
        ("three passes", of(2, 3, 5, key)),
        ("four passes", of(3, 9, 6, key)),
    ]
}

fn server_id(config: &quic_lb::Config) -> Vec<u8> {
    vec![config.server_len; config.server_len.into()]
}

/// The client of the flows that are there.
fn known() -> SocketAddrV4 {
    client(3_000_000)
}

/// The client of flows that begin.
fn new() -> SocketAddrV4 {
    client(3_000_001)
}

/// Flows and sessions that the rows find.
pub(super) fn fill(maps: &mut Maps, setup: &Setup) -> Result<()> {
    for kind in KINDS {
        let service = &setup.services[usize::from(kind.id()) - 1];
        let spliced = !service.binds_at_once() && service.protocol != UDP;
        let client_flags = match kind {
            Kind::Learned => LEARNS,
            _ if spliced => 0,
            _ => PLAIN,
        };
        let backend_flags = if service.protocol == UDP { REPLIED } else { 0 };
        let flow = bound(known(), kind.id(), kind.slot(), client_flags, backend_flags);
        let place = free_place(maps, setup, known(), kind.id())?;
        maps.set_flow(place, &flow)?;
    }
    for (kind, key) in
        [(Kind::Learned, LEARNED.as_bytes()), (Kind::LearnedDatagram, &LEARNED.as_bytes()[..16])]
    {
        let tag = home::tag(&setup.settings.home_key, kind.id(), key);
        let group = tag as u32 & setup.settings.home_group_mask;
        let place = group * home::GROUP as u32 + u32::from(kind == Kind::LearnedDatagram);
        maps.set_home(place, &Home { tag, slot: kind.slot(), service: kind.id(), ..Home::default() })?;
    }
    Ok(())
}

/// All rows.
pub(super) fn all(rig: &Rig) -> Result<Vec<Case>> {
    let mut cases = requests(rig)?;
    cases.extend(plain(rig)?);
    cases.extend(datagram_rows(rig)?);
    Ok(cases)
}

/// A request whose session stands in another place than its cookie.
fn with_line(target: &str, line: &str) -> Vec<u8> {
    let text = String::from_utf8(request(500 - line.len() - target.len(), None)).expect("a request is text");
    text.replacen("GET / ", &format!("GET {target} "), 1)
        .replacen("\r\n\r\n", &format!("\r\n{line}\r\n\r\n"), 1)
        .into_bytes()
}

fn requests(rig: &Rig) -> Result<Vec<Case>> {
    let token = |kind: Kind| rig.setup.token(kind.slot(), 1);
    let hit = &[AffinityHit, Bound];
    let mut cases = vec![
        first(
            rig,
            Kind::SignedHeader,
            "first payload, token in a header",
            &with_line("/", &format!("X-Session: {}", token(Kind::SignedHeader))),
            hit,
        )?,
        first(
            rig,
            Kind::SignedQuery,
            "first payload, token in a query",
            &with_line(&format!("/?session={}", token(Kind::SignedQuery)), "X: y"),
            hit,
        )?,
        first(
            rig,
            Kind::HashedCookie,
            "first payload, hashed cookie",
            &with_line("/", "Cookie: lb=0123456789abcdef0123456789abcdef"),
            &[Hashed, Bound],
        )?,
        first(
            rig,
            Kind::Learned,
            "first payload, learned cookie",
            &with_line("/", &format!("Cookie: JSESSIONID={LEARNED}")),
            hit,
        )?,
    ];
    for (kind, name) in [
        (Kind::ServerName, "first payload, server name"),
        (Kind::ListedName, "first payload, listed name"),
        (Kind::ListedWildcard, "first payload, listed wildcard"),
    ] {
        cases.push(first(rig, kind, name, &client_hello(), &[Hashed, Bound])?);
    }
    let mut long = request(1_400, None);
    long.truncate(1_396);
    long.extend([b'x'; 52]);
    cases.push(first(rig, Kind::Learned, "first payload, head goes on", &long, &[HeadAwaited])?);
    let unserved = with_line("/", "Cookie: lb=0123456789abcdef0123456789abcdef");
    cases.push(first(
        rig,
        Kind::Unserved,
        "first payload, told that nobody serves",
        &unserved,
        &[Unavailable],
    )?);
    cases.push(kept_alive());
    let mut response =
        format!("HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nSet-Cookie: JSESSIONID={LEARNED}; Path=/\r\n");
    response += "Content-Length: 20\r\nServer: backend\r\n\r\n01234567890123456789";
    for (name, payload) in [("body", "7".repeat(response.len())), ("head with its cookie", response)] {
        let name = format!("learned, from backend, {name}");
        let segment = answer(Kind::Learned, payload.as_bytes());
        let mut case = Case::new(name, HEADERS, &[segment], &[FromBackend]);
        case.images[0].open = place_of(&rig.product.maps, &rig.setup, known(), Kind::Learned.id())? + 1;
        cases.push(case);
    }
    Ok(cases)
}

/// Requests on a connection of a learned service, each of which comes behind the one before it, for ever: a quarter of all sequence
/// numbers lies between them.
fn kept_alive() -> Case {
    let payload = with_line("/", &format!("Cookie: JSESSIONID={LEARNED}"));
    let segments = [0, 1, 2, 3].map(|quarter| {
        Segment::new(known(), Kind::Learned.vip())
            .macs(CLIENT_MAC, LOCAL_MAC)
            .seq(quarter << 30)
            .ack(0x6666_0000)
            .flags(ACK | PSH)
            .window(300)
            .timestamps(TS + 99, 0x7777_7777)
            .payload(&payload[..])
    });
    Case::new("learned, from client, request on a kept connection", HEADERS, &segments, &[FromClient])
}

/// A ClientHello with its name behind other extensions.
fn client_hello() -> Vec<u8> {
    let name = b"shop.example.org";
    let mut extensions = [&[0x1a, 0x1a, 0, 0, 0, 0x0b, 0, 2, 1, 0][..], &[0, 0x2b, 0, 3, 2, 3, 4]].concat();
    extensions.extend([0, 0, 0, name.len() as u8 + 5, 0, name.len() as u8 + 3, 0, 0, name.len() as u8]);
    extensions.extend(name);
    extensions.extend([0, 0x15, 0, 250]);
    extensions.extend([0; 250]);
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(32);
    body.extend([9; 32]);
    body.extend([0, 6, 0x13, 1, 0x13, 2, 0x13, 3, 1, 0]);
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let message = [&[1, 0][..], &(body.len() as u16).to_be_bytes(), &body].concat();
    [&[22, 3, 1][..], &(message.len() as u16).to_be_bytes(), &message].concat()
}

/// A first payload whose flow is forgotten before it comes again.
fn first(rig: &Rig, kind: Kind, name: &str, payload: &[u8], counted: &[Counter]) -> Result<Case> {
    begins(
        rig,
        kind,
        Case::new(name, WHOLE, &[second(rig, (kind.vip(), kind.id()), new(), payload)], counted),
    )
}

fn begins(rig: &Rig, kind: Kind, mut case: Case) -> Result<Case> {
    let place = free_place(&rig.product.maps, &rig.setup, new(), kind.id())?;
    let [image] = &mut case.images[..] else { anyhow::bail!("one client has one image") };
    image.flow = place + 1;
    Ok(case)
}

fn answer(kind: Kind, payload: &[u8]) -> Segment {
    let (local, next) = macs(kind.slot());
    Segment::new(backend(kind.slot()), known())
        .macs(next, local)
        .seq(0x6666_0000)
        .ack(0x5555_0000)
        .flags(ACK | PSH)
        .window(300)
        .timestamps(0x7777_7777, TS + 99)
        .payload(payload)
}

fn plain(rig: &Rig) -> Result<Vec<Case>> {
    let syn = |kind: Kind, name| -> Result<Case> {
        let syn = Segment::new(new(), kind.vip())
            .macs(CLIENT_MAC, LOCAL_MAC)
            .seq(ISN)
            .flags(SYN)
            .options(Opt::linux_syn(1460, Some(CLIENT_SCALE), true, Some((TS, 0))));
        begins(rig, kind, Case::new(name, HEADERS, &[syn], &[NewSession, FromClient]))
    };
    let segment = Segment::new(known(), Kind::Plain.vip())
        .macs(CLIENT_MAC, LOCAL_MAC)
        .seq(0x5555_0000)
        .ack(0x0123_4567)
        .flags(ACK | PSH)
        .window(501)
        .timestamps(TS + 99, 0x7777_7777)
        .payload([7; 100]);
    Ok(vec![
        syn(Kind::Plain, "plain, SYN bound")?,
        syn(Kind::PlainLeast, "plain, SYN bound, least")?,
        Case::new("plain, from client", HEADERS, &[segment], &[FromClient]),
        Case::new("plain, from backend", HEADERS, &[answer(Kind::Plain, &[7; 100])], &[FromBackend]),
    ])
}

fn datagram_rows(rig: &Rig) -> Result<Vec<Case>> {
    let raw = |kind: Kind| -> Result<Vec<u8>> {
        let token = decode(rig.setup.token(kind.slot(), 1).as_bytes()).context("the token's text")?;
        Ok([&token[..], &[7; 67]].concat())
    };
    let text = format!("{}sid={}", "x=0123456789&".repeat(4), rig.setup.token(Kind::TextDatagram.slot(), 1));
    let learned = [&LEARNED.as_bytes()[..16], &[7; 84]].concat();
    let to = |kind: Kind, from, payload: &[u8]| {
        Datagram::new(from, kind.vip(), payload).macs(CLIENT_MAC, LOCAL_MAC).bytes()
    };
    let row = |name: &str, kind, payload: &[u8]| {
        Case::of_bytes(name, HEADERS, [to(kind, known(), payload)], &[FromClient])
    };
    let begun = Case::of_bytes(
        "datagram, raw token, new flow",
        HEADERS,
        [to(Kind::SignedDatagram, new(), &raw(Kind::SignedDatagram)?)],
        &[AffinityHit, FromClient],
    );
    let (local, next) = macs(Kind::SignedDatagram.slot());
    let answer =
        Datagram::new(backend(Kind::SignedDatagram.slot()), known(), [7; 100]).macs(next, local).bytes();
    let mut cases = vec![
        begins(rig, Kind::SignedDatagram, begun)?,
        row("datagram, raw token", Kind::SignedDatagram, &raw(Kind::SignedDatagram)?),
        row("datagram, token behind a marker", Kind::TextDatagram, text.as_bytes()),
        row("datagram, hashed key", Kind::HashedDatagram, &[9; 100]),
        row("datagram, learned key", Kind::LearnedDatagram, &learned),
        Case::of_bytes("datagram, from backend", HEADERS, [answer], &[FromBackend]),
    ];
    for (how, config) in quic_configs() {
        let id = config.encode(&server_id(&config), &vec![5; config.nonce_len()], config.own_length());
        let packet = [&[0x4f][..], &id, &[7; 80]].concat();
        cases.push(row(&format!("QUIC, server id {how}"), Kind::Quic, &packet));
    }
    Ok(cases)
}
