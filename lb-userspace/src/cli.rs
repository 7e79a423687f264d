//! lbctl: each noun turns its verbs into a [`Request`], and the answer into text. Opens nothing but the control socket,
//! unless it is told to work on a store that no lbd has open, or to be a client itself.

mod backend;
mod explain;
mod flow;
mod keys;
mod service;
mod session;
mod stats;
mod status;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod trace;
mod udp_ping;

use crate::control::client::ask;
use crate::control::{Request, Response};
use clap::{Parser, Subcommand};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

/// Done as asked.
const DONE: u8 = 0;
/// lbd said no.
const REFUSED: u8 = 1;
/// lbd could not be asked.
const UNREACHABLE: u8 = 2;

/// How long lbd may take to answer, unless it is said.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at a running lbd, and tells it what to do.
#[derive(Debug, Parser)]
#[command(
    name = "lbctl",
    version,
    after_help = "Exit codes: 0 done, 1 refused by lbd (or wrong usage), 2 no lbd could be reached."
)]
struct Cli {
    /// The control socket of the lbd that is meant.
    #[arg(long, global = true, value_name = "PATH", default_value = "/run/lb/lbd.sock", env = "LB_SOCKET")]
    socket: PathBuf,
    /// How long an answer is waited for, beside the time that what is asked for takes; 5s, and 1s for `udp-ping`.
    #[arg(long, global = true, value_name = "TIME", value_parser = udp_ping::duration)]
    timeout: Option<Duration>,
    /// Print lbd's answer as JSON, for programs.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    noun: Noun,
}

impl Cli {
    fn patience(&self) -> Duration {
        self.timeout.unwrap_or(PATIENCE)
    }

    fn lbd(&self) -> Lbd<'_> {
        Lbd { socket: &self.socket, patience: self.patience() }
    }
}

/// The lbd that is asked.
#[derive(Clone, Copy, Debug)]
struct Lbd<'a> {
    socket: &'a Path,
    patience: Duration,
}

#[derive(Debug, Subcommand)]
enum Noun {
    /// Show the daemon as a whole: interfaces, flows, sessions, keys
    Status,
    /// Services: the addresses that clients dial
    #[command(subcommand)]
    Service(service::Verb),
    /// Backends: the servers behind the services
    #[command(subcommand)]
    Backend(backend::Verb),
    /// Sessions in the database, and those learned from backends
    #[command(subcommand)]
    Session(session::Verb),
    /// Connections through the balancer
    #[command(subcommand)]
    Flow(flow::Verb),
    /// Show what was counted: every verdict and every drop has a name
    Stats(stats::Args),
    /// Tell where a request with a token would go, why, and which counters it would bump
    Explain(explain::Args),
    /// Print steering decisions as they are made: flow, what was found of its key, and the backend
    Trace(trace::Args),
    /// Ask the session servers of a UDP service again and again, as one client; needs no lbd
    UdpPing(udp_ping::Args),
    /// The store as a whole: verify it, take everything out, put it into another one
    #[command(subcommand)]
    Store(store::Verb),
    /// The keys that sign tokens
    #[command(subcommand)]
    Keys(keys::Verb),
}

/// What came of a command, for the shell.
#[derive(Debug, PartialEq, Eq)]
struct Said {
    out: String,
    err: String,
    code: u8,
}

impl Said {
    /// All has been said.
    fn nothing(code: u8) -> Self {
        Self { out: String::new(), err: String::new(), code }
    }
}

/// Runs lbctl with the arguments of this process.
pub async fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(message) => {
            // clap prints help to one stream and mistakes to the other; a closed one is nobody's loss.
            let _ = message.print();
            return ExitCode::from(if message.use_stderr() { REFUSED } else { DONE });
        }
    };
    let said = execute(&cli).await;
    // Whoever closes the pipe early has seen enough.
    let _ = std::io::stdout().write_all(said.out.as_bytes()).and_then(|()| std::io::stdout().flush());
    let _ = std::io::stderr().write_all(said.err.as_bytes());
    ExitCode::from(said.code)
}

async fn execute(cli: &Cli) -> Said {
    let Some(request) = request(&cli.noun) else { return converse(cli).await };
    match ask(&cli.socket, &request, cli.patience()).await {
        Ok(response) => say(cli, &response),
        Err(error) => Said { out: String::new(), err: format!("lbctl: {error}\n"), code: UNREACHABLE },
    }
}

/// The one thing to ask lbd for, if it is one.
fn request(noun: &Noun) -> Option<Request> {
    Some(match noun {
        Noun::Status => Request::Status {},
        Noun::Service(verb) => verb.request(),
        Noun::Backend(verb) => verb.request(),
        Noun::Session(verb) => verb.request(),
        Noun::Flow(verb) => verb.request(),
        Noun::Stats(args) => args.request(),
        Noun::Explain(args) => args.request(),
        Noun::Keys(verb) => verb.request(),
        Noun::Store(_) | Noun::Trace(_) | Noun::UdpPing(_) => return None,
    })
}

/// What asks many things, or others than lbd; most of it speaks while it does.
async fn converse(cli: &Cli) -> Said {
    match &cli.noun {
        Noun::Store(verb) => store::run(verb, cli.lbd(), cli.json).await,
        Noun::Trace(args) => Said::nothing(trace::run(args, cli.lbd(), cli.json).await),
        Noun::UdpPing(args) => Said::nothing(udp_ping::run(args, cli.timeout, cli.json).await),
        _ => unreachable!("everything else is one request"),
    }
}

fn say(cli: &Cli, response: &Response) -> Said {
    let code = if matches!(response, Response::Refused(_)) { REFUSED } else { DONE };
    if cli.json {
        let mut out = serde_json::to_string_pretty(response).expect("answers came as JSON and go as JSON");
        out.push('\n');
        return Said { out, err: String::new(), code };
    }
    let out = match response {
        Response::Refused(refused) => {
            return Said { out: String::new(), err: format!("lbctl: {refused}\n"), code };
        }
        Response::Done { message } => format!("{message}\n"),
        Response::Status(status) => status::text(status),
        Response::Phase(phase) => status::phase(phase),
        Response::Services { services } => service::text(services),
        Response::Backends { backends } => backend::text(backends),
        Response::Session(session) => session::text(session),
        Response::Learned(session) => session::learned(session),
        Response::LearnedSessions(sessions) => session::list(sessions),
        Response::Flows(flows) => flow::text(flows),
        Response::Stats(stats) => {
            let all = matches!(&cli.noun, Noun::Stats(args) if args.all);
            stats::text(stats, all)
        }
        Response::Explain(explain) => explain::text(explain),
        Response::Store(_)
        | Response::StoreChecked(_)
        | Response::StoreExported(_)
        | Response::StoreImported(_)
        | Response::Traced(_) => {
            let err = "lbctl: lbd answered something else than it was asked\n".to_owned();
            return Said { out: String::new(), err, code: REFUSED };
        }
    };
    Said { out, err: String::new(), code }
}
