//! A session server: HTTP/1.1 over one listener, session state behind it. Runs wherever its caller put it (a thread in a
//! network namespace, on a current-thread runtime) and knows nothing of balancers, except that it mints their tokens.

mod cart;
mod condition;
pub mod datagram;
mod http;
mod once;
mod origin;
mod places;
mod reply;
#[cfg(test)]
mod tests;

pub use places::{ConnectionCounters, Connections};

use crate::session::{Admission, Clock, Instance, Limits, Peers, SessionStore, Sessions, TokenKeys};
use crate::web::Cookie;
use arc_swap::ArcSwap;
use axum::Router;
use bytes::Bytes;
use hyper::Request;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use places::{Place, Places};
use socket2::TcpKeepalive;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Bytes of one request's head. What is longer is answered with 431.
const MAX_HEAD: usize = 16 << 10;
/// A client that takes nothing of its answer for so long is gone, whether it acknowledges segments or not.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// So long after the last segment the kernel asks whether a client is there, and so often before it gives up.
const KEEPALIVE: (Duration, Duration, u32) = (Duration::from_secs(30), Duration::from_secs(10), 3);
/// What a client is told that has more connections than it may have.
const TOO_MANY: &[u8] = b"HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nRetry-After: 1\r\n\
    Connection: close\r\nContent-Length: 106\r\n\r\n\
    {\"error\":\"this address has too many connections\",\"hint\":\"close some, or keep them and ask on those again\"}";
/// A connection is closed when no whole request head came for so long, be it slow or just idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a server that stops waits for the first byte of a connection that it has accepted.
const FIRST_BYTE: Duration = Duration::from_secs(1);
/// So often a server that is full looks whether some connection only waits for its client.
const ROOM_PAUSE: Duration = Duration::from_millis(20);
/// Pause after a failed accept: only a file that someone closes helps, and nobody tells when.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// What a session server needs.
#[derive(Clone)]
pub struct ServerContext {
    /// Who it is. A new epoch sent here makes its whole cache worthless at once; without such a need,
    /// `watch::channel(instance).1` does.
    pub instance: watch::Receiver<Instance>,
    /// Shared by all servers.
    pub store: Arc<dyn SessionStore>,
    /// The keys that tokens are signed with, exchanged when they rotate.
    pub keys: Arc<ArcSwap<TokenKeys>>,
    /// Shared by all servers of the process: taking a session over voids it at the others.
    pub peers: Arc<Peers>,
    pub limits: Limits,
    /// How many connections it keeps, and where it counts those that it does not.
    pub connections: Connections,
    pub counters: Arc<ConnectionCounters>,
    /// Bounds of new sessions, shared by the servers of the service.
    pub admission: Arc<Admission>,
    /// The cookie that carries the token over HTTP.
    pub cookie: Cookie,
    /// [`crate::session::unix_millis`], unless a test has a better idea.
    pub clock: Clock,
}

/// Serves until `shutdown` is ready, then closes the listener, finishes the requests under way, closes all connections
/// and returns. Dropping the future instead ends everything at once, as a crash would.
///
/// # Errors
/// The listener cannot be used.
pub async fn serve(
    listener: std::net::TcpListener,
    context: ServerContext,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let ServerContext {
        instance,
        store,
        keys,
        peers,
        limits,
        connections: most,
        counters,
        admission,
        cookie,
        clock,
    } = context;
    let sessions = Sessions::admitted(instance, store, limits, peers, clock, admission);
    let app = http::router(http::App::new(sessions, keys, cookie));
    let stop = watch::Sender::new(false);
    let places = Places::default();
    let mut connections = JoinSet::new();
    let mut shutdown = pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => report(ended),
            accepted = listener.accept(), if connections.len() < most.total => match accepted {
                Ok((stream, client)) => match places.take(client.ip(), most.per_client) {
                    Some(place) => {
                        connections.spawn(connection(stream, place, app.clone(), stop.subscribe()));
                        if connections.len() == most.total {
                            counters.full.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    None => {
                        counters.client_refused.fetch_add(1, Ordering::Relaxed);
                        // As much as is possible without waiting for such a client.
                        if let Err(error) = stream.try_write(TOO_MANY) {
                            tracing::debug!(%error, %client, "not told that it has too many connections");
                        }
                    }
                },
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            () = tokio::time::sleep(ROOM_PAUSE), if connections.len() >= most.total => {
                counters.made_room.fetch_add(places.make_room(most.total) as u64, Ordering::Relaxed);
            }
        }
    }
    // Clients in the queue are connected, for all they know: they get their answers, too.
    let queue = listener.into_std()?;
    while let Ok((stream, client)) = queue.accept() {
        let Some(place) = places.take(client.ip(), most.per_client) else {
            counters.client_refused.fetch_add(1, Ordering::Relaxed);
            continue;
        };
        stream.set_nonblocking(true)?;
        connections.spawn(connection(TcpStream::from_std(stream)?, place, app.clone(), stop.subscribe()));
    }
    drop(queue);
    stop.send_replace(true);
    while let Some(ended) = connections.join_next().await {
        report(ended);
    }
    Ok(())
}

/// Serves one connection to its end.
async fn connection(stream: TcpStream, place: Place, app: Router, stop: watch::Receiver<bool>) {
    let place = Arc::new(place);
    tokio::select! {
        biased;
        () = converse(stream, place.clone(), app, stop) => {}
        () = place.asked() => tracing::debug!(client = %place.client(), "closed to make room"),
    }
}

async fn converse(stream: TcpStream, place: Arc<Place>, app: Router, mut stop: watch::Receiver<bool>) {
    // Answers are whole when they are written; waiting for more would only delay them.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY");
    }
    if let Err(error) = end_with_the_client(&stream) {
        tracing::debug!(%error, "a client that is gone is noticed late");
    }
    // hyper would close a connection on which nothing has come yet as soon as the server stops; this one may have
    // sent its request already.
    let silent = {
        let stop = &mut stop;
        async move {
            tokio::select! {
                () = after(stop) => tokio::time::sleep(FIRST_BYTE).await,
                () = tokio::time::sleep(HEAD_TIMEOUT) => {}
            }
        }
    };
    tokio::select! {
        biased;
        _ = stream.readable() => {}
        () = silent => return,
    }
    let mut http = hyper::server::conn::http1::Builder::new();
    // A client that has closed its half still wants its answer.
    http.half_close(true).max_buf_size(MAX_HEAD).timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
    let app = TowerToHyperService::new(app);
    let service = service_fn(move |request| {
        place.works();
        let mut request: Request<_> = request.map(|body: Incoming| Upload { body, place: place.clone() });
        request.extensions_mut().insert(Client(place.client()));
        let (answer, place) = (app.call(request), place.clone());
        async move {
            let answer = answer.await;
            place.waits();
            answer
        }
    });
    let served = http.serve_connection(TokioIo::new(stream), service);
    let mut served = pin!(served);
    let result = tokio::select! {
        biased;
        result = &mut served => result,
        () = after(&mut stop) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
struct Client(IpAddr);

/// The body of a request; while it does not come, its connection waits for its client.
struct Upload {
    body: Incoming,
    place: Arc<Place>,
}

impl Body for Upload {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(task);
        match polled {
            Poll::Pending => self.place.waits(),
            Poll::Ready(_) => self.place.works(),
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Has the kernel end a connection whose client takes no data (RFC 5482), or is not there any more.
fn end_with_the_client(stream: &TcpStream) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    let (idle, interval, retries) = KEEPALIVE;
    let keepalive = TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(retries);
    socket.set_tcp_keepalive(&keepalive)?;
    socket.set_tcp_user_timeout(Some(WRITE_TIMEOUT))
}

/// Ready when the server stops.
async fn after(stop: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone, and with it the server.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended
        && error.is_panic()
    {
        tracing::error!(%error, "a connection's task panicked");
    }
}
