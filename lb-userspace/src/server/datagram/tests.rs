//! Over real sockets.

use super::*;
use crate::session::store::sled::{SledOptions, SledStore};
use crate::session::store::trial::Trial;
use crate::session::{Admission, Instance, Limits, SessionStore, Source, TokenKeys, unix_millis};
use arc_swap::ArcSwap;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

struct Town {
    context: ServerContext,
    store: Arc<SledStore>,
    _directory: tempfile::TempDir,
}

struct Running {
    addr: SocketAddr,
    stop: oneshot::Sender<()>,
    served: JoinHandle<io::Result<()>>,
}

fn instance(slot: u16, epoch: u32) -> watch::Receiver<Instance> {
    watch::channel(Instance { service: 1, slot, epoch, name: format!("s{slot}") }).1
}

impl Town {
    fn new(limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = SledOptions { cache_bytes: 16 << 20, reserve_bytes: 0 };
        let store = Arc::new(SledStore::open_with(&directory.path().join("store"), options).unwrap());
        let context = ServerContext {
            instance: instance(3, 1),
            store: store.clone(),
            keys: Arc::new(ArcSwap::from_pointee(TokenKeys::generate().unwrap())),
            peers: Arc::default(),
            limits: limits.clone(),
            connections: Default::default(),
            counters: Default::default(),
            admission: Arc::new(Admission::new(&limits)),
            cookie: crate::web::Cookie::default(),
            clock: Arc::new(unix_millis),
        };
        Self { context, store, _directory: directory }
    }

    fn start(&self, slot: u16, epoch: u32) -> Running {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let addr = socket.local_addr().unwrap();
        let context = ServerContext { instance: instance(slot, epoch), ..self.context.clone() };
        let (stop, stopped) = oneshot::channel();
        let served = tokio::spawn(serve(socket, context, async move { drop(stopped.await) }));
        Running { addr, stop, served }
    }

    fn token(&self, raw: &RawToken) -> Token {
        self.context.keys.load().verify(&token::encode(raw)).unwrap()
    }
}

impl Running {
    /// A socket of its own: each request comes from another port.
    async fn send(&self, bytes: &[u8]) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.connect(self.addr).await.unwrap();
        socket.send(bytes).await.unwrap();
        socket
    }

    async fn ask(&self, request: &Request<'_>) -> Response {
        let answer = receive(&self.send(&request.to_bytes()).await).await;
        assert_eq!((answer.operation, answer.id), (request.operation as u8, request.id));
        answer
    }
}

async fn receive(socket: &UdpSocket) -> Response {
    let mut buffer = [0; 2000];
    let length =
        tokio::time::timeout(Duration::from_secs(10), socket.recv(&mut buffer)).await.unwrap().unwrap();
    assert!(length <= MAX_MESSAGE);
    Response::parse(&buffer[..length]).unwrap()
}

fn get<'a>(token: RawToken, key: &'a str) -> Request<'a> {
    Request { key, ..Request::new(Operation::Get, token, 1) }
}

fn put<'a>(token: RawToken, id: u64, key: &'a str, value: &'a str) -> Request<'a> {
    Request { key, value: value.as_bytes(), ..Request::new(Operation::Put, token, id) }
}

fn text(response: &Response) -> &str {
    std::str::from_utf8(&response.body).unwrap()
}

#[tokio::test]
async fn a_session_begins_is_changed_moves_and_ends() {
    let town = Town::new(Limits::default());
    let server = town.start(3, 1);
    let first = server.ask(&Request::new(Operation::Show, NO_TOKEN, 1)).await;
    assert_eq!(
        (first.status, first.source, first.version, text(&first)),
        (Status::Done, Some(Source::New), 0, "{}")
    );
    assert_eq!((first.epoch, first.server.as_str()), (1, "s3"));
    let token = first.token;
    let session = town.token(&token);
    assert_eq!((session.service, session.slot, session.epoch), (1, 3, 1));
    let created = server.ask(&put(token, 2, "cart", "[1, 2]")).await;
    assert_eq!((created.status, created.source, created.version), (Status::Created, Some(Source::New), 1));
    assert_eq!((created.token, created.body.len(), created.repeated), (token, 0, false));
    assert_eq!(server.ask(&put(token, 3, "name", "\"é\"")).await.status, Status::Created);
    let value = server.ask(&get(token, "name")).await;
    assert_eq!((value.status, value.source, text(&value)), (Status::Done, Some(Source::Cache), "\"é\""));
    let missing = server.ask(&get(token, "nothing")).await;
    assert_eq!((missing.status, missing.version), (Status::NotFound, 2));
    assert_eq!(text(&missing), "the session has no key \"nothing\"");
    // Another server takes it over, and the first one learns of it.
    let other = town.start(4, 7);
    let moved = other.ask(&Request::new(Operation::Show, token, 4)).await;
    assert_eq!((moved.source, moved.epoch, moved.server.as_str()), (Some(Source::Database), 7, "s4"));
    assert_eq!(text(&moved), r#"{"cart":[1, 2],"name":"é"}"#);
    let there = town.token(&moved.token);
    assert_eq!((there.session, there.slot, there.epoch), (session.session, 4, 7));
    let removed =
        other.ask(&Request { key: "cart", ..Request::new(Operation::Delete, moved.token, 5) }).await;
    assert_eq!((removed.status, removed.source, removed.version), (Status::Done, Some(Source::Cache), 3));
    let back = server.ask(&get(moved.token, "cart")).await;
    assert_eq!((back.status, back.source), (Status::NotFound, Some(Source::Database)));
    assert_eq!(town.token(&back.token).slot, 3);
    let ended = server.ask(&Request::new(Operation::End, back.token, 6)).await;
    assert_eq!((ended.status, ended.token, ended.source), (Status::Done, NO_TOKEN, None));
    assert!(town.store.load(session.session).await.unwrap().is_none_or(|left| left.is_grave()));
    assert_eq!(server.ask(&Request::new(Operation::End, back.token, 6)).await, ended, "again, and the same");
    let anew = server.ask(&Request::new(Operation::Show, back.token, 7)).await;
    assert_eq!(anew.source, Some(Source::New));
    assert_ne!(town.token(&anew.token).session, session.session, "what has ended stays ended");
}

#[tokio::test]
async fn what_is_sent_again_is_done_once() {
    let town = Town::new(Limits::default());
    let (server, other) = (town.start(3, 1), town.start(4, 1));
    let token = server.ask(&Request::new(Operation::Show, NO_TOKEN, 1)).await.token;
    let request = put(token, 77, "n", "1");
    let first = server.ask(&request).await;
    let again = server.ask(&request).await;
    // Where the state came from is about the answer.
    assert_eq!(again, Response { repeated: true, source: Some(Source::Cache), ..first.clone() });
    // In between somebody else changes it: the answer is that of the first time, the value is not set back.
    server.ask(&put(token, 78, "n", "2")).await;
    let elsewhere = other.ask(&request).await;
    assert_eq!((elsewhere.status, elsewhere.version, elsewhere.repeated), (Status::Created, 1, true));
    assert_eq!(text(&other.ask(&get(elsewhere.token, "n")).await), "2");
    let reused = other.ask(&put(elsewhere.token, 77, "n", "3")).await;
    assert_eq!((reused.status, reused.token), (Status::Reused, elsewhere.token));
    assert_eq!(text(&reused), "this request id came with another request before");
    let delete = Request { key: "n", ..Request::new(Operation::Delete, elsewhere.token, 79) };
    let gone = other.ask(&delete).await;
    assert_eq!(other.ask(&delete).await, Response { repeated: true, ..gone });
    // Both at the same time.
    let burst = put(elsewhere.token, 80, "m", "1");
    let (a, b) = tokio::join!(other.ask(&burst), other.ask(&burst));
    assert_eq!((a.version, a.status), (b.version, b.status));
    assert_ne!(a.repeated, b.repeated);
}

#[tokio::test]
async fn forged_tokens_are_no_tokens() {
    let town = Town::new(Limits::default());
    let server = town.start(3, 1);
    let token = server.ask(&put(NO_TOKEN, 1, "secret", "1")).await.token;
    let mut forged = token;
    forged[12] ^= 1;
    let refused = server.ask(&get(forged, "secret")).await;
    assert_eq!((refused.status, refused.source, refused.token), (Status::NotFound, None, forged));
    let begun = server.ask(&Request::new(Operation::Show, forged, 2)).await;
    assert_eq!((begun.source, text(&begun)), (Some(Source::New), "{}"));
    assert_ne!(town.token(&begun.token).session, town.token(&token).session);
}

#[tokio::test]
async fn what_is_wrong_is_answered_and_what_is_nothing_is_not() {
    let town = Town::new(Limits { max_value_bytes: 100, ..Limits::default() });
    let server = town.start(3, 1);
    // None of these is answered, nor does it keep the server from answering the next one.
    let right = put(NO_TOKEN, 5, "k", "1").to_bytes();
    let mut response = right.clone();
    response[1] |= 0x80;
    for bytes in [&b""[..], b"x", &right[..44], &response] {
        let silent = server.send(bytes).await;
        server.ask(&Request::new(Operation::Ping, NO_TOKEN, 9)).await;
        let mut buffer = [0; 100];
        assert!(silent.try_recv(&mut buffer).is_err(), "{bytes:?}");
    }
    for (at, byte, told) in [
        (0, 9, "version 9 of the protocol is not spoken here, version 1 is"),
        (1, 99, "99 is no operation"),
        (3, 200, "ends within its key or name"),
        (45, 0xff, "a key or name is not UTF-8"),
        (46, b'x', "the value is not JSON: expected value at line 1 column 1"),
    ] {
        let mut bytes = right.clone();
        bytes[at] = byte;
        let answer = receive(&server.send(&bytes).await).await;
        assert_eq!((answer.status, answer.source, answer.id), (Status::BadRequest, None, 5), "{told}");
        assert_eq!((text(&answer), answer.token, answer.operation), (told, NO_TOKEN, bytes[1]));
    }
    let large = server.ask(&put(NO_TOKEN, 6, "k", &format!("\"{}\"", "x".repeat(99)))).await;
    assert_eq!((large.status, large.token), (Status::TooLarge, NO_TOKEN));
    // Sixteen values of 100 bytes are more than a datagram holds, each of them is not.
    let mut token = NO_TOKEN;
    for i in 0..16 {
        let (key, value) = (format!("k{i}"), format!("\"{}\"", "x".repeat(98)));
        let answer = server.ask(&put(token, 10 + i, &key, &value)).await;
        assert_eq!(answer.status, Status::Created);
        token = answer.token;
    }
    let long = server.ask(&Request::new(Operation::Show, token, 30)).await;
    assert_eq!((long.status, long.source, long.version), (Status::TooLong, Some(Source::Cache), 16));
    assert!(text(&long).ends_with("bytes; get one key at a time"), "{}", text(&long));
    assert_eq!(server.ask(&get(token, "k15")).await.body.len(), 100);
}

#[tokio::test]
async fn pings_are_as_health_checks_expect() {
    let town = Town::new(Limits::default());
    let server = town.start(3, 9);
    let pinged = server.send(&ping()).await;
    let mut buffer = [0; 100];
    let length = pinged.recv(&mut buffer).await.unwrap();
    assert_eq!(buffer[..4], pong());
    let answer = Response::parse(&buffer[..length]).unwrap();
    assert_eq!((answer.epoch, answer.server.as_str(), answer.token), (9, "s3", NO_TOKEN));
    assert_eq!(town.store.count().await.unwrap(), 0);
}

#[tokio::test]
async fn pings_are_answered_while_the_store_hangs() {
    const CLIENTS: usize = 64;
    let mut town = Town::new(Limits { new_per_second: u32::MAX, ..Limits::default() });
    let store = Arc::new(Trial::new(town.store.clone()));
    town.context.store = store.clone();
    let server = town.start(3, 1);
    store.hold.store(true, Ordering::SeqCst);
    let mut clients = Vec::new();
    let each = (MAX_UNDER_WAY + MAX_WAITING) / CLIENTS;
    for _ in 0..CLIENTS {
        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client.connect(server.addr).await.unwrap();
        for id in 0..each {
            client.send(&put(NO_TOKEN, id as u64, "k", "1").to_bytes()).await.unwrap();
        }
        // So that none of them is lost for want of space in the server's socket.
        assert_eq!(server.ask(&Request::new(Operation::Ping, NO_TOKEN, 1)).await.status, Status::Done);
        clients.push(client);
    }
    let one_more = server.ask(&put(NO_TOKEN, 1, "k", "1")).await;
    assert_eq!((one_more.status, text(&one_more)), (Status::Unavailable, "2048 requests are under way here"));
    store.hold.store(false, Ordering::SeqCst);
    store.held.add_permits(MAX_UNDER_WAY);
    for client in &clients {
        for _ in 0..each {
            assert_eq!(receive(client).await.status, Status::Created);
        }
    }
}

#[tokio::test]
async fn a_server_that_stops_answers_what_has_arrived() {
    let town = Town::new(Limits::default());
    let server = town.start(3, 1);
    server.ask(&Request::new(Operation::Ping, NO_TOKEN, 1)).await;
    let mut clients = Vec::new();
    for i in 0..50 {
        clients.push(server.send(&put(NO_TOKEN, i, "k", "1").to_bytes()).await);
    }
    server.stop.send(()).unwrap();
    for client in &clients {
        assert_eq!(receive(client).await.status, Status::Created);
    }
    server.served.await.unwrap().unwrap();
    let closed = UdpSocket::bind(server.addr).await;
    assert!(closed.is_ok(), "{closed:?}");
}

#[tokio::test]
async fn a_network_that_begins_sessions_too_fast_is_told_to_come_again() {
    let town = Town::new(Limits { new_per_second: 1, ..Limits::default() });
    let server = town.start(3, 1);
    let token = server.ask(&put(NO_TOKEN, 1, "k", "1")).await.token;
    let mut id = 2;
    let refused = loop {
        let answer = server.ask(&put(NO_TOKEN, id, "k", "1")).await;
        id += 1;
        if answer.status != Status::Created {
            break answer;
        }
    };
    assert_eq!((refused.status, refused.token), (Status::Unavailable, NO_TOKEN));
    assert!(text(&refused).contains("within a second"), "{}", text(&refused));
    assert_eq!(server.ask(&put(token, id, "k", "2")).await.status, Status::Done);
    assert_eq!(town.context.admission.values()[1].1, 1);
}
