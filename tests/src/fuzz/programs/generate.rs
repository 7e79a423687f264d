//! New sequences: whole conversations, in order and mixed, and all that can go wrong with their frames.

use super::sequence::{Condition, Edit, MAX_STEPS, Sent, Step, bytes, text};
use super::town::{self, service_of};
use crate::dice::Dice;
use crate::fuzz::mutate as change;

/// Payload of a full segment with timestamps.
const FULL: usize = 1448;

const HEADS: &[&str] = &[
    "GET / HTTP/1.1\r\nHost: a\r\nCookie: lb={T0}\r\n\r\n",
    "GET /?k={T10} HTTP/1.1\r\nHost: a\r\nX-Key: alice\r\nCookie: a=b; JSESSIONID=one; lb={T1}\r\n\r\n",
    "POST /?a=1&k={T11}&b=2 HTTP/1.1\r\nhost: a\r\ncookie: JSESSIONID=two\r\nContent-Length: 5\r\n\r\nhello",
    "GET / HTTP/1.1\r\nHost: a\r\nx-key:bob\r\n\r\n",
    "GET / HTTP/1.1\r\nHost: a\r\n",
    "HEAD / HTTP/1.0\r\n\r\n",
    "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

const ANSWERS: &[&str] = &[
    "HTTP/1.1 200 OK\r\nSet-Cookie: JSESSIONID=one; Path=/\r\nContent-Length: 0\r\n\r\n",
    "HTTP/1.1 302 Found\r\nset-cookie: a=b\r\nset-cookie: JSESSIONID=two\r\nLocation: /\r\n\r\n",
    "HTTP/1.1 200 OK\r\nSet-Cookie: JSESSIONID=one; Max-Age=0\r\n\r\n",
    "HTTP/1.1 200 OK\r\nSet-Cookie: JSESS",
    "HTTP/1.1 100 Continue\r\n\r\n",
    "body",
];

const DATAGRAMS: &[&str] = &[
    "x tok={R12}",
    "tok={R13} rest",
    "xxkey001yy",
    "xxkey002",
    "O{Q16}payload of it",
    "\u{c3}\0\0\0\u{1}\u{9}{Q16}\u{8}12345678",
    "",
    "x",
];

/// A ClientHello for a name.
pub(super) fn client_hello(name: &str) -> Vec<u8> {
    let part = |bytes: &[u8]| [&(bytes.len() as u16).to_be_bytes(), bytes].concat();
    let list = part(&[&[0][..], &part(name.as_bytes())].concat());
    let extensions = [&[0x1a, 0x1a, 0, 1, 0, 0, 0][..], &part(&list)].concat();
    let hello = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0], &part(&extensions)].concat();
    let message = [&[1, 0][..], &part(&hello)].concat();
    [&[22, 3, 1][..], &part(&message)].concat()
}

fn request(dice: &mut Dice, service: u16) -> String {
    if service == town::NAMED && dice.percent(80) {
        let name: &&str = dice.choose(&[town::NAME, "a.example.org", "other.net"]);
        return text(&client_hello(name));
    }
    let mut head = (*dice.choose(HEADS)).to_owned();
    if dice.percent(20) {
        let filling = format!("\r\nX-Long: {}", "l".repeat(dice.below(3000)));
        head.insert_str(head.find("\r\n").unwrap_or(0), &filling);
    }
    head
}

fn sent(conn: u8, flags: &str, data: String) -> Sent {
    Sent { conn, flags: flags.into(), data, ..Sent::default() }
}

/// What a client and a backend say when nothing goes wrong, or the beginning of that.
fn conversation(dice: &mut Dice) -> Vec<Step> {
    let conn = dice.below(usize::from(town::SERVICES) * 3) as u8;
    let service = service_of(conn);
    let mut steps = Vec::new();
    if service >= 7 {
        for _ in 0..=dice.below(4) {
            let data = (*dice.choose(DATAGRAMS)).to_owned();
            let datagram = sent(conn, "", data);
            steps.push(if dice.percent(70) { Step::Client(datagram) } else { Step::Backend(datagram) });
        }
        return steps;
    }
    let plain = service == 3;
    steps.push(Step::Client(sent(conn, "S", String::new())));
    if plain {
        steps.push(Step::Backend(sent(conn, "SA", String::new())));
    }
    if dice.percent(70) {
        steps.push(Step::Client(sent(conn, "A", String::new())));
    }
    let asked = request(dice, service);
    let size = *dice.choose(&[FULL, FULL, FULL, 16, 1]);
    let pieces = bytes(&asked).chunks(size).take(12).map(text).collect::<Vec<_>>();
    steps.extend(pieces.into_iter().map(|piece| Step::Client(sent(conn, "PA", piece))));
    if !plain {
        steps.push(Step::Backend(sent(conn, "SA", String::new())));
    }
    steps.push(Step::Backend(sent(conn, "PA", (*dice.choose(ANSWERS)).to_owned())));
    steps.push(Step::Client(sent(conn, "A", String::new())));
    if dice.percent(50) {
        steps.push(Step::Client(sent(conn, "PA", request(dice, service))));
        steps.push(Step::Backend(sent(conn, "PA", (*dice.choose(ANSWERS)).to_owned())));
    }
    if dice.percent(30) {
        let end = if dice.percent(50) { "R" } else { "RA" };
        let last = sent(conn, end, String::new());
        steps.push(if dice.percent(50) { Step::Client(last) } else { Step::Backend(last) });
    } else {
        steps.push(Step::Client(sent(conn, "FA", String::new())));
        steps.push(Step::Backend(sent(conn, "FA", String::new())));
        steps.push(Step::Client(sent(conn, "A", String::new())));
    }
    if dice.percent(30) {
        steps.truncate(1 + dice.below(steps.len()));
    }
    steps
}

/// Up to four changes.
pub(super) fn mutate(dice: &mut Dice, mut steps: Vec<Step>, other: &[Step]) -> Vec<Step> {
    for _ in 0..=dice.below(4) {
        one(dice, &mut steps, other);
    }
    steps.truncate(MAX_STEPS);
    steps
}

fn one(dice: &mut Dice, steps: &mut Vec<Step>, other: &[Step]) {
    if steps.is_empty() || dice.percent(15) {
        // In order, and among what is there.
        let mut at = dice.below(steps.len() + 1);
        let together = dice.percent(50);
        for step in conversation(dice) {
            steps.insert(at, step);
            at += 1 + if together { 0 } else { dice.below(steps.len() - at) };
        }
        return;
    }
    let at = dice.below(steps.len());
    match dice.below(9) {
        0 => drop(steps.remove(at)),
        1 => steps.insert(dice.below(steps.len() + 1), steps[at].clone()),
        2 => {
            let with = dice.below(steps.len());
            steps.swap(at, with);
        }
        3 if !other.is_empty() => {
            let from = dice.below(other.len());
            steps.truncate(at + 1);
            steps.extend_from_slice(&other[from..]);
        }
        4 => steps.insert(at + 1, Step::Again { edits: edits(dice) }),
        5 => {
            let conditions =
                [Condition::Ready, Condition::Drain, Condition::Down, Condition::Gone, Condition::Lost];
            let slot = dice.below(usize::from(town::SERVICES * town::BACKENDS)) as u16;
            steps.insert(at, Step::State { slot, is: *dice.choose(&conditions) });
        }
        _ => match &mut steps[at] {
            Step::Client(sent) | Step::Backend(sent) => field(dice, sent),
            Step::Again { edits: some } => *some = edits(dice),
            Step::State { slot, .. } => *slot = dice.below(18) as u16,
        },
    }
}

fn field(dice: &mut Dice, sent: &mut Sent) {
    match dice.below(9) {
        0 => {
            sent.flags = (*dice
                .choose(&["S", "A", "PA", "FA", "R", "RA", "SA", "SF", "", "FPU", "SPA", "FPA"]))
            .to_owned()
        }
        1 => sent.seq = number(dice),
        2 => sent.ack = number(dice),
        3 => sent.window = Some(*dice.choose(&[0, 1, 127, 128, 65_535])),
        4 => {
            let area = sent
                .options
                .as_deref()
                .map_or_else(|| vec![2, 4, 5, 0xb4, 4, 2, 1, 3, 3, 7, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0], bytes);
            sent.options = Some(text(&change::bytes(dice, &area, b"", &[])[..]).chars().take(40).collect());
        }
        5 => sent.conn = dice.below(27) as u8,
        6 => sent.edits.extend(edits(dice)),
        _ => {
            let data = change::bytes(dice, &bytes(&sent.data), b"", super::HTTP_WORDS);
            sent.data = text(&data);
        }
    }
}

/// A small one more often, or one at which something turns.
fn number(dice: &mut Dice) -> i32 {
    *dice.choose(&[
        0,
        1,
        -1,
        2,
        -2,
        16,
        -16,
        1448,
        -1448,
        2920,
        65_536,
        -65_536,
        300_000,
        -300_000,
        i32::MAX,
        i32::MIN,
    ])
}

fn edits(dice: &mut Dice) -> Vec<Edit> {
    let mut edits: Vec<Edit> = (0..=dice.below(2))
        .map(|_| match dice.below(6) {
            0 => Edit::Cut(dice.below(80) as u16),
            1 => Edit::Pad(dice.below(64) as u16),
            // The headers, where more depends on a byte.
            2 | 3 => Edit::Set { at: dice.below(54) as u16, to: dice.below(256) as u8 },
            4 => Edit::Set {
                at: dice.below(54) as u16,
                to: *dice.choose(&[0, 1, 0x45, 0x46, 0x4f, 6, 17, 0x50, 0xf0, 0xff]),
            },
            _ => Edit::Set { at: dice.below(2000) as u16, to: dice.below(256) as u8 },
        })
        .collect();
    if dice.percent(60) {
        edits.push(Edit::Sum);
    }
    edits
}
