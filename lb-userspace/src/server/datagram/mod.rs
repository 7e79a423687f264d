//! A session server for UDP: the sessions of [`super::serve`], asked for in datagrams (docs/datagram.md).

mod message;
#[cfg(test)]
mod tests;

pub use message::{
    MAX_MESSAGE, MAX_VALUE, Malformed, NO_TOKEN, Operation, RawToken, Request, Response, Status, TOKEN_AT,
    ping, pong,
};

use super::{ServerContext, report};
use crate::session::{
    Changed, Keyring, Once, Refusal, Seen, SessionError, Sessions, State, Target, Terms, TooLarge,
};
use crate::web::Problem;
use lb_common::token::{self, Token};
use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Requests that one server works on at the same time...
const MAX_UNDER_WAY: usize = 1024;
/// ...and that wait for their turn, in the order in which they came. More are told to come again.
const MAX_WAITING: usize = 1024;
/// Longest datagram there is.
const MAX_DATAGRAM: usize = 65_535;

/// Serves until `shutdown` is ready, then answers what has arrived by then, and returns. Dropping the future instead ends
/// everything at once, as a crash would. Of the context, the cookie is not used.
///
/// # Errors
/// The socket cannot be used.
pub async fn serve(
    socket: std::net::UdpSocket,
    context: ServerContext,
    shutdown: impl Future<Output = ()>,
) -> io::Result<()> {
    socket.set_nonblocking(true)?;
    let socket = Arc::new(UdpSocket::from_std(socket)?);
    let ServerContext { instance, store, keys, peers, limits, clock, admission, .. } = context;
    let sessions = Sessions::admitted(instance, store, limits, peers, clock, admission);
    let server = Arc::new(Server { sessions, keys: keys.into(), socket });
    let mut under_way = JoinSet::new();
    let mut waiting = VecDeque::new();
    let mut shutdown = pin!(shutdown);
    let mut buffer = vec![0; MAX_DATAGRAM];
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = under_way.join_next() => {
                report(ended);
                if let Some((datagram, client)) = waiting.pop_front() {
                    under_way.spawn(server.clone().answer(datagram, client));
                }
            }
            received = server.socket.recv_from(&mut buffer) => match received {
                Ok((length, client)) => match &buffer[..length] {
                    // Whatever the store does: else its requests that hang would make the server look dead.
                    datagram if !asks_the_store(datagram) => server.clone().answer(datagram.into(), client).await,
                    datagram if under_way.len() < MAX_UNDER_WAY => {
                        under_way.spawn(server.clone().answer(datagram.into(), client));
                    }
                    datagram if waiting.len() < MAX_WAITING => waiting.push_back((datagram.into(), client)),
                    datagram => server.reply(datagram, client, too_many()).await,
                },
                // Somebody who was answered is not there any more.
                Err(error) => tracing::debug!(%error, "cannot receive"),
            },
        }
    }
    while let Ok((length, client)) = server.socket.try_recv_from(&mut buffer) {
        waiting.push_back((buffer[..length].into(), client));
    }
    for (datagram, client) in waiting {
        under_way.spawn(server.clone().answer(datagram, client));
    }
    while let Some(ended) = under_way.join_next().await {
        report(ended);
    }
    Ok(())
}

/// Whether answering may take time.
fn asks_the_store(datagram: &[u8]) -> bool {
    Request::parse(datagram).is_ok_and(|request| request.operation != Operation::Ping)
}

struct Server {
    sessions: Arc<Sessions>,
    keys: Keyring,
    socket: Arc<UdpSocket>,
}

/// What a response says of a session.
struct Told {
    status: Status,
    seen: Option<Seen>,
    repeated: bool,
    body: Vec<u8>,
}

impl Told {
    fn seen(status: Status, seen: Seen, body: impl Into<Vec<u8>>) -> Self {
        Self { status, seen: Some(seen), repeated: false, body: body.into() }
    }

    fn only(status: Status, body: impl Into<Vec<u8>>) -> Self {
        Self { status, seen: None, repeated: false, body: body.into() }
    }
}

impl From<SessionError> for Told {
    fn from(error: SessionError) -> Self {
        let problem = Problem::from(&error);
        let status = match problem.status.as_u16() {
            400 => Status::BadRequest,
            404 => Status::NotFound,
            409 => Status::Conflict,
            413 => Status::TooLarge,
            422 => Status::Reused,
            500 => Status::Damaged,
            507 => Status::Full,
            _ => Status::Unavailable,
        };
        if problem.status.is_server_error() && !matches!(error, SessionError::NotAdmitted(_)) {
            super::reply::log(problem.status, &error);
        }
        // The hints of a problem speak of headers: here the status says what to do.
        let text = match error {
            SessionError::Reused => "this request id came with another request before".to_owned(),
            _ => problem.error,
        };
        Self::only(status, text)
    }
}

impl Server {
    /// Does what one datagram asks for, and answers it.
    async fn answer(self: Arc<Self>, datagram: Box<[u8]>, client: SocketAddr) {
        let told = match Request::parse(&datagram) {
            Ok(request) => self.ask(&request, client.ip()).await,
            Err(malformed) => Told::only(Status::BadRequest, malformed.to_string()),
        };
        self.reply(&datagram, client, told).await;
    }

    /// Answers one datagram; what is not even the head of a request gets no answer.
    async fn reply(&self, datagram: &[u8], client: SocketAddr, told: Told) {
        let Some((operation, presented, id)) = message::echo(datagram) else {
            tracing::debug!(%client, bytes = datagram.len(), "no request");
            return;
        };
        let instance = self.sessions.instance();
        let (epoch, server) = (instance.epoch, instance.name);
        let mut response = Response {
            operation,
            status: told.status,
            source: told.seen.as_ref().map(|seen| seen.source),
            repeated: told.repeated,
            token: presented,
            id,
            epoch,
            version: 0,
            server,
            body: told.body,
        };
        if let Some(seen) = &told.seen {
            response.version = seen.record.version;
            response.epoch = seen.owner.epoch;
            response.token = self.sign(seen).unwrap_or(presented);
        } else if operation == Operation::End as u8 && told.status.is_success() {
            response.token = NO_TOKEN;
        }
        let mut bytes = response.to_bytes();
        if bytes.len() > MAX_MESSAGE {
            response.body = format!("the answer has {} bytes; get one key at a time", bytes.len()).into();
            response.status = Status::TooLong;
            bytes = response.to_bytes();
        }
        if let Err(error) = self.socket.send_to(&bytes, client).await {
            tracing::debug!(%client, %error, "not answered");
        }
    }

    /// Does what a request asks for.
    async fn ask(&self, request: &Request<'_>, client: IpAddr) -> Told {
        let token = self.verify(&request.token);
        let done = match request.operation {
            Operation::Ping => return Told::only(Status::Done, Vec::new()),
            Operation::Show => self.show(token).await,
            Operation::Get => self.get(token, request.key).await,
            Operation::Put => self.put(token, request, terms(request, client)).await,
            Operation::Delete => self.delete(token, request, terms(request, client)).await,
            Operation::End => self.sessions.end(token).await.map(|_| Told::only(Status::Done, Vec::new())),
        };
        done.unwrap_or_else(Told::from)
    }

    async fn show(&self, token: Option<Token>) -> Result<Told, SessionError> {
        let seen = self.sessions.read(token).await?;
        let state = serde_json::to_vec(&seen.record.state).unwrap_or_default();
        Ok(Told::seen(Status::Done, seen, state))
    }

    /// Whoever asks for one key begins no session.
    async fn get(&self, token: Option<Token>, key: &str) -> Result<Told, SessionError> {
        let Some(seen) = self.sessions.find(token).await? else { return Err(no_such_key(key).into()) };
        Ok(match seen.record.state.get(key).map(|value| value.get().to_owned()) {
            Some(value) => Told::seen(Status::Done, seen, value),
            None => Told::seen(Status::NotFound, seen, no_such_key(key).to_string()),
        })
    }

    async fn put(
        &self,
        token: Option<Token>,
        request: &Request<'_>,
        terms: Terms,
    ) -> Result<Told, SessionError> {
        if request.value.len() > MAX_VALUE {
            return Err(SessionError::TooLarge(TooLarge {
                what: format!("the value of {:?}", request.key),
                name: "a datagram",
                found: request.value.len(),
                limit: MAX_VALUE,
                unit: "bytes",
            }));
        }
        let value = State::parse_value(request.value)
            .map_err(|error| Refusal::Invalid(format!("the value is not JSON: {error}")))?;
        let key = request.key.to_owned();
        let change = move |state: &mut State| {
            state.set(key.clone(), value.clone());
            Ok(())
        };
        let changed = self.sessions.write_on(token, terms, change).await?;
        let status = if changed.created { Status::Created } else { Status::Done };
        Ok(made(status, changed))
    }

    async fn delete(
        &self,
        token: Option<Token>,
        request: &Request<'_>,
        terms: Terms,
    ) -> Result<Told, SessionError> {
        let key = request.key.to_owned();
        let change = move |state: &mut State| match state.remove(&key) {
            true => Ok(()),
            false => Err(no_such_key(&key)),
        };
        let changed = self.sessions.write_on(token, terms, change).await?;
        Ok(made(Status::Done, changed))
    }

    /// What does not verify is as good as absent.
    fn verify(&self, raw: &RawToken) -> Option<Token> {
        if *raw == NO_TOKEN {
            return None;
        }
        self.keys.verify(&token::encode(raw)).ok()
    }

    fn sign(&self, seen: &Seen) -> Option<RawToken> {
        let text = self.keys.sign(seen.record.service, seen.owner, seen.id)?;
        token::decode(text.as_bytes()).ok()
    }
}

fn too_many() -> Told {
    Told::only(Status::Unavailable, format!("{} requests are under way here", MAX_UNDER_WAY + MAX_WAITING))
}

/// Once is enough, however often its client sends it.
fn terms(request: &Request<'_>, client: IpAddr) -> Terms {
    let parts: [&[u8]; 3] = [&[request.operation as u8], request.key.as_bytes(), request.value];
    // The answer shows nothing of the state: there is never a key without a name.
    let once = Once::new(&request.id.to_be_bytes(), &parts, Some(""));
    Terms {
        target: Target::Key(request.key.to_owned()),
        once: Some(once),
        client: Some(client),
        ..Terms::default()
    }
}

fn made(status: Status, changed: Changed) -> Told {
    Told { repeated: changed.repeated, ..Told::seen(status, changed.seen, Vec::new()) }
}

fn no_such_key(key: &str) -> Refusal {
    Refusal::NotFound(format!("the session has no key {key:?}"))
}
