//! `lbctl udp-ping`: a client of the datagram protocol (docs/datagram.md).

use crate::config::parse_duration;
use crate::server::datagram::{NO_TOKEN, Operation, RawToken, Request, Response};
use crate::session::Source;
use lb_common::token;
use serde::Serialize;
use std::collections::BTreeMap;
use std::io::{self, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::{Instant, sleep_until, timeout_at};

/// How long an answer is waited for, unless it is said.
const TIMEOUT: Duration = Duration::from_secs(1);

/// Some answers came.
const ANSWERED: u8 = 0;
/// None did.
const SILENCE: u8 = 1;
/// Nothing could be asked.
const FAILED: u8 = 2;

#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each request shows the client's session. Every answer tells the server that gave it, the epoch of the \
    token that was presented and that of the answer, and whether the session came from the server's memory (hit), from the \
    database (reload), is one that the token alone tells of, because nothing has changed it yet (visit), or came with this \
    answer (new).\nExit codes: 0 answers came, 1 none came, 2 nothing could be sent."
)]
pub(super) struct Args {
    /// What clients dial, such as 192.0.2.1:4000.
    #[arg(value_name = "VIP:PORT")]
    target: SocketAddr,
    /// End after so many requests; without it, when interrupted.
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// Time from one request to the next.
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    interval: Duration,
    /// The token to begin with, 44 characters; or `new`: every request is a new client's. Without it, the first one is.
    #[arg(long, value_name = "TOKEN|new", value_parser = session, default_value = "first", hide_default_value = true)]
    session: Session,
    /// Send each request from a port of its own, as a client whose address changes.
    #[arg(long)]
    new_port: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Session {
    Token(RawToken),
    /// Each request gets one.
    New,
    /// The first request gets one.
    First,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| "write it like 200ms or 1s".to_owned())
}

fn session(text: &str) -> Result<Session, String> {
    match text {
        "new" => Ok(Session::New),
        "first" => Ok(Session::First),
        token => match token::decode(token.as_bytes()) {
            Ok(raw) => Ok(Session::Token(raw)),
            Err(error) => Err(format!("{error}; a token has 44 characters of base64url, or write `new`")),
        },
    }
}

/// The epoch that a token names; nobody has verified it here.
fn epoch_of(token: &RawToken) -> Option<u32> {
    (*token != NO_TOKEN).then(|| u32::from_be_bytes([token[5], token[6], token[7], token[8]]))
}

/// The session that a token names.
fn session_of(token: &RawToken) -> &[u8] {
    &token[9..25]
}

/// What one request came to.
#[derive(Debug, Serialize)]
struct Reply {
    seq: u64,
    server: String,
    /// Of the instance that answered.
    epoch: u32,
    /// Of the token that was presented.
    token_epoch: Option<u32>,
    /// `hit`, `reload`, `visit`, `new`, or `-` when no session was looked at.
    state: &'static str,
    /// Of the session's state.
    version: u64,
    status: &'static str,
    time_us: u64,
}

#[derive(Debug, Default, Serialize)]
struct Summary {
    sent: u64,
    answered: u64,
    lost: u64,
    hits: u64,
    reloads: u64,
    visits: u64,
    new: u64,
    /// Microseconds: least, mean, most.
    min_us: u64,
    avg_us: u64,
    max_us: u64,
    /// How many answers each server gave.
    servers: BTreeMap<String, u64>,
    /// What to present next.
    token: Option<String>,
    #[serde(skip)]
    total_us: u64,
}

impl Summary {
    fn count(&mut self, reply: &Reply) {
        self.answered += 1;
        match reply.state {
            "hit" => self.hits += 1,
            "reload" => self.reloads += 1,
            "visit" => self.visits += 1,
            "new" => self.new += 1,
            _ => {}
        }
        self.min_us = if self.answered == 1 { reply.time_us } else { self.min_us.min(reply.time_us) };
        self.max_us = self.max_us.max(reply.time_us);
        self.total_us += reply.time_us;
        self.avg_us = self.total_us / self.answered;
        *self.servers.entry(reply.server.clone()).or_default() += 1;
    }

    fn text(&self, target: SocketAddr) -> String {
        let Self { sent, answered, lost, hits, reloads, visits, new, .. } = self;
        let share = (lost * 100).checked_div(*sent).unwrap_or(0);
        let mut text =
            format!("--- {target} ---\n{sent} sent, {answered} answered, {lost} lost ({share} %)\n");
        if *answered > 0 {
            let [least, mean, most] = [self.min_us, self.avg_us, self.max_us].map(millis);
            let servers: Vec<_> = self.servers.iter().map(|(name, n)| format!("{name} {n}")).collect();
            text += &format!(
                "{hits} hits, {reloads} reloads, {visits} visits, {new} new; by server: {}\n",
                servers.join(", ")
            );
            text += &format!("round trip min/avg/max {least}/{mean}/{most} ms\n");
        }
        if let Some(token) = &self.token {
            text += &format!("token {token}\n");
        }
        text
    }
}

/// Asks until there were enough requests, or the user ends it.
pub(super) async fn run(args: &Args, timeout: Option<Duration>, json: bool) -> u8 {
    match ping(args, timeout.unwrap_or(TIMEOUT), json).await {
        Ok(summary) => {
            let text = match json {
                true => serde_json::json!({ "summary": summary }).to_string() + "\n",
                false => summary.text(args.target),
            };
            // A closed pipe is nobody's loss.
            let _ = io::stdout().write_all(text.as_bytes());
            if summary.answered > 0 { ANSWERED } else { SILENCE }
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "lbctl: cannot ask {}: {error}", args.target);
            FAILED
        }
    }
}

async fn ping(args: &Args, timeout: Duration, json: bool) -> io::Result<Summary> {
    let mut summary = Summary::default();
    let mut socket = connect(args.target).await?;
    let mut token = match args.session {
        Session::Token(token) => token,
        Session::New | Session::First => NO_TOKEN,
    };
    let mut interrupt = std::pin::pin!(tokio::signal::ctrl_c());
    let mut due = Instant::now();
    for seq in 1..=args.count.unwrap_or(u64::MAX) {
        tokio::select! {
            () = sleep_until(due) => {}
            _ = &mut interrupt => break,
        }
        due = Instant::now() + args.interval;
        if args.new_port {
            socket = connect(args.target).await?;
        }
        let presented = if args.session == Session::New { NO_TOKEN } else { token };
        summary.sent += 1;
        let asked = tokio::select! {
            asked = ask(&socket, presented, timeout) => asked,
            _ = &mut interrupt => {
                // Nobody waited for its answer.
                summary.sent -= 1;
                break;
            }
        };
        let line = match asked {
            Ok((response, time)) => {
                token = response.token;
                let reply = reply(seq, presented, response, time);
                summary.count(&reply);
                if json { serde_json::to_string(&reply)? } else { text(&reply) }
            }
            Err(reason) if json => serde_json::json!({ "seq": seq, "error": reason }).to_string(),
            Err(reason) => format!("seq {seq}  {reason}"),
        };
        if writeln!(io::stdout(), "{line}").and_then(|()| io::stdout().flush()).is_err() {
            break;
        }
    }
    summary.lost = summary.sent - summary.answered;
    summary.token =
        (token != NO_TOKEN).then(|| token::encode(&token).iter().copied().map(char::from).collect());
    Ok(summary)
}

async fn connect(target: SocketAddr) -> io::Result<UdpSocket> {
    let any = match target {
        SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
        SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(target).await?;
    Ok(socket)
}

/// One request and its answer, or why there is none.
async fn ask(socket: &UdpSocket, token: RawToken, timeout: Duration) -> Result<(Response, Duration), String> {
    let id = getrandom::u64().map_err(|error| format!("no random numbers for a request id: {error}"))?;
    let began = Instant::now();
    let until = began + timeout;
    let request = Request::new(Operation::Show, token, id).to_bytes();
    socket.send(&request).await.map_err(|error| error.to_string())?;
    let mut buffer = [0; 2048];
    loop {
        match timeout_at(until, socket.recv(&mut buffer)).await {
            Ok(Ok(length)) => match Response::parse(&buffer[..length]) {
                Ok(response) if response.id == id => return Ok((response, began.elapsed())),
                // A late answer to a request before.
                Ok(_) => {}
                Err(malformed) => {
                    return Err(format!("an answer that is none of this protocol: {malformed}"));
                }
            },
            Ok(Err(error)) => return Err(error.to_string()),
            Err(_) => return Err(format!("no answer within {timeout:?}")),
        }
    }
}

fn reply(seq: u64, presented: RawToken, response: Response, time: Duration) -> Reply {
    Reply {
        seq,
        server: response.server,
        epoch: response.epoch,
        token_epoch: epoch_of(&presented),
        state: match response.source {
            Some(Source::Cache) => "hit",
            Some(Source::Database) => "reload",
            Some(Source::New) if session_of(&presented) == session_of(&response.token) => "visit",
            Some(Source::New) => "new",
            None => "-",
        },
        version: response.version,
        status: response.status.name(),
        time_us: time.as_micros() as u64,
    }
}

fn text(reply: &Reply) -> String {
    let Reply { seq, server, epoch, token_epoch, state, status, time_us, .. } = reply;
    let token = token_epoch.map_or("no token".to_owned(), |epoch| format!("token epoch {epoch}"));
    let time = millis(*time_us);
    // All that can go wrong is told by the status.
    let status = if *status == "done" { String::new() } else { format!("  {status}") };
    format!("seq {seq}  {server} epoch {epoch}  {token}  {state}  {time} ms{status}")
}

fn millis(micros: u64) -> String {
    format!("{}.{:03}", micros / 1000, micros % 1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use lb_common::token::{SessionId, Token};

    #[test]
    fn sessions_are_named_or_begun() {
        let raw =
            Token { key_id: 1, service: 2, slot: 3, epoch: 77, session: SessionId([5; 16]) }.sign(&[1, 2]);
        let text: String = token::encode(&raw).iter().copied().map(char::from).collect();
        assert_eq!(session(&text), Ok(Session::Token(raw)));
        assert_eq!(session("new"), Ok(Session::New));
        assert!(session("mine").unwrap_err().contains("44 characters"));
        assert_eq!((epoch_of(&raw), epoch_of(&NO_TOKEN)), (Some(77), None));
    }

    #[test]
    fn a_reply_is_one_line_and_the_summary_few() {
        let mut reply = Reply {
            seq: 2,
            server: "s1".into(),
            epoch: 4,
            token_epoch: Some(3),
            state: "reload",
            version: 1,
            status: "done",
            time_us: 431,
        };
        assert_eq!(text(&reply), "seq 2  s1 epoch 4  token epoch 3  reload  0.431 ms");
        let mut summary = Summary { sent: 3, lost: 1, ..Summary::default() };
        summary.count(&reply);
        (reply.state, reply.status, reply.token_epoch, reply.time_us) = ("hit", "too long", None, 1569);
        assert_eq!(text(&reply), "seq 2  s1 epoch 4  no token  hit  1.569 ms  too long");
        summary.count(&reply);
        assert_eq!(
            summary.text("192.0.2.1:4000".parse().unwrap()),
            "--- 192.0.2.1:4000 ---\n3 sent, 2 answered, 1 lost (33 %)\n1 hits, 1 reloads, 0 visits, 0 new; by server: s1 2\n\
             round trip min/avg/max 0.431/1.000/1.569 ms\n"
        );
    }
}
