//! What lbctl prints, byte for byte, for answers of a made-up lbd.

use super::*;
use crate::control::server::{Call, ControlSocket};
use crate::control::{
    Admin, BackendView, CounterView, ExplainView, FlowView, FlowsView, InterfaceView, LearnedListView,
    LearnedView, MapView, Refused, ServiceView, SessionView, ShareView, StatsView, StatusView, TokenView,
};
use crate::session::StoreState;
use clap::CommandFactory;
use tokio::sync::mpsc;

fn backend(name: &str, state: &str, reason: Option<&str>) -> BackendView {
    BackendView {
        service: "shop".into(),
        name: name.into(),
        slot: 3,
        addr: "10.254.0.5:8080".into(),
        managed: name.starts_with('s'),
        state: state.into(),
        admin: Admin::Ready,
        health: if reason.is_some() { "down" } else { "up" }.into(),
        reason: reason.map(str::to_owned),
        flows: 1234,
        weight: 1,
        sni: Vec::new(),
        epoch: 12,
        since_seconds: 7384,
        next_hop: None,
    }
}

fn token() -> TokenView {
    TokenView {
        session: "00ff".repeat(8),
        service: "shop".into(),
        backend: Some("shop/s1".into()),
        slot: 3,
        epoch: 11,
        key: 2,
    }
}

fn learned() -> LearnedView {
    LearnedView {
        tag: "00ff00ff00ff00ff".into(),
        service: "shop".into(),
        backend: "shop/web1".into(),
        idle_ms: 65_000,
        forgotten_in_ms: 1_735_000,
    }
}

fn counter(of: &str, counter: &str, value: u64) -> CounterView {
    CounterView { of: of.into(), counter: counter.into(), value }
}

/// What lbd answers to each request.
fn answer(request: &Request) -> Response {
    match request {
        Request::Status {} => Response::Status(Box::new(StatusView {
            version: "0.1.0".into(),
            pid: 42,
            uptime_seconds: 90_061,
            config: "/etc/lb.toml".into(),
            took_over: true,
            interfaces: vec![InterfaceView {
                name: "eth0".into(),
                mode: "driver".into(),
                joint: "tcx".into(),
            }],
            services: 1,
            backends: 3,
            backends_ready: 2,
            backends_leaving: 1,
            flows: 1234,
            flows_limit: 65_536,
            sessions: Some(1_000_000),
            sessions_refused: 0,
            token_key: 2,
            token_keys: 1,
            store: StoreState { place: "sled /var/lib/lb/sessions".into(), available: true, detail: None },
            warnings: vec!["packets pass the programs by: eth1 is down".into()],
            shares: vec![ShareView {
                service: "shop".into(),
                flows: 1234,
                max_flows: 65_536,
                pending: 7,
                max_pending: 4096,
                refused: 3,
            }],
            maps: vec![
                MapView { name: "FLOWS".into(), entries: Some(131_072), used: Some(1234), bytes: 8_388_608 },
                MapView { name: "TRACE".into(), entries: None, used: None, bytes: 274_000 },
            ],
            map_bytes: 8_662_608,
        })),
        Request::ServiceList {} => Response::Services {
            services: vec![ServiceView {
                name: "shop".into(),
                id: 1,
                vip: "192.0.2.1:80".into(),
                protocol: "tcp".into(),
                affinity: "signed (lb)".into(),
                backends: 3,
                ready: 2,
                draining: 1,
                leaving: 1,
                promises: vec!["window_scale".into(), "sack".into()],
                mss: 1448,
                maglev_size: 65_537,
            }],
        },
        Request::BackendList { service: Some(_) } => {
            let named = |name: &str, sni: &[&str]| BackendView {
                sni: sni.iter().map(|name| (*name).to_owned()).collect(),
                ..backend(name, "ready", None)
            };
            let backends =
                vec![named("a", &["a.org", "*.a.org"]), named("b", &["1", "2", "3", "4"]), named("c", &[])];
            Response::Backends { backends }
        }
        Request::ExplainName { name, client, .. } => Response::Explain(Box::new(ExplainView {
            service: "tls".into(),
            token: None,
            verdict: "hashed".into(),
            backend: Some("tls/a".into()),
            why: format!("a is listed for {name}, asked for by {client:?}"),
            counters: vec!["hashed".into()],
        })),
        Request::BackendList { .. } => Response::Backends {
            backends: vec![backend("s1", "ready", None), backend("web1", "down", Some("connection refused"))],
        },
        Request::BackendSet { backend, admin } => {
            Response::Done { message: format!("{backend} is in {admin}") }
        }
        Request::BackendRestart { backend } => {
            let reason = format!("there is no backend `{backend}`");
            Response::Refused(Refused::with_help(reason, "did you mean `shop/s1`?"))
        }
        Request::BackendKill { backend, down_for_ms } => {
            Response::Done { message: format!("{backend} was killed for {down_for_ms:?}") }
        }
        Request::SessionShow { service: Some(_), .. } => Response::Learned(Box::new(learned())),
        Request::SessionList { limit, .. } => {
            Response::LearnedSessions(LearnedListView { sessions: vec![learned()], total: 1 + limit })
        }
        Request::SessionShow { .. } => Response::Session(Box::new(SessionView {
            token: token(),
            found: false,
            version: None,
            owner: None,
            created_unix_ms: None,
            expires_unix_ms: None,
            state: None,
        })),
        Request::FlowList { limit, .. } => Response::Flows(FlowsView {
            flows: vec![FlowView {
                service: "shop".into(),
                backend: "shop/s1".into(),
                client: "198.51.100.7:40000".into(),
                state: "established".into(),
                idle_ms: 250,
            }],
            total: 1 + limit,
        }),
        Request::Stats { .. } => Response::Stats(StatsView {
            counters: vec![
                counter("-", "passed", 17),
                counter("shop", "affinity_hit", 1_234_567),
                counter("shop", "redispatched", 0),
                counter("shop/s1", "spliced", 5),
                counter("interface eth0", "drop_redirect_down", 3),
            ],
        }),
        Request::Explain { .. } => Response::Explain(Box::new(ExplainView {
            service: "shop".into(),
            token: Some(token()),
            verdict: "stale".into(),
            backend: Some("shop/s1".into()),
            why: "s1 is ready and in epoch 12".into(),
            counters: vec!["affinity_hit".into(), "stale_instance".into()],
        })),
        Request::BackendForget { service, backend } => {
            Response::Done { message: format!("{backend} of {service} is forgotten") }
        }
        Request::SessionEnd { session, .. } => Response::Done { message: format!("session {session} ended") },
        Request::KeysPrepare {} => Response::Done { message: "prepared".into() },
        Request::KeysReload {} => Response::Done { message: "reloaded".into() },
        Request::Trace { .. } => unreachable!("nobody listens here"),
        Request::Store { .. } => Response::Refused(Refused::new("the store is away")),
        Request::KeysRotate {} => Response::Done { message: "key 3 signs new tokens; 2 keys verify".into() },
    }
}

/// Runs a command line against that lbd, over a socket.
async fn lbctl(line: &str) -> Said {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("lbd.sock");
    let socket = ControlSocket::bind(&path).unwrap();
    let (calls, mut asked) = mpsc::unbounded_channel::<Call>();
    tokio::spawn(async move { socket.serve(calls).await });
    tokio::spawn(async move {
        while let Some(call) = asked.recv().await {
            call.reply.send(answer(&call.request)).unwrap();
        }
    });
    let words = ["lbctl", "--socket", path.to_str().unwrap()].into_iter().chain(line.split_whitespace());
    execute(&Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{error}"))).await
}

async fn prints(line: &str, expected: &str) {
    let said = lbctl(line).await;
    assert_eq!(said.out, expected, "{line}\n{}", said.out);
    assert_eq!((said.err.as_str(), said.code), ("", DONE), "{line}");
}

#[tokio::test]
async fn sheets_and_tables() {
    prints(
        "status",
        "\
lbd         0.1.0, pid 42, up 1d1h, took over from an earlier lbd
config      /etc/lb.toml
interfaces  eth0 (xdp driver, tcx)
services    1
backends    3, 2 ready, 1 leaving
flows       1,234 of 65,536
sessions    1,000,000
store       sled /var/lib/lb/sessions
token keys  1 key alive, key 2 signs
WARNING: packets pass the programs by: eth1 is down

SERVICE  FLOWS     MAX  PENDING    MAX  REFUSED
shop     1,234  65,536        7  4,096        3

MAP          ENTRIES  IN USE      BYTES
flows        131,072   1,234  8,388,608
trace              -       -    274,000
all of them                   8,662,608
",
    )
    .await;
    prints(
        "service list",
        "\
SERVICE  ID  VIP           PROTOCOL  AFFINITY     READY  DRAIN  LEAVING  BACKENDS   MSS  PROMISES
shop      1  192.0.2.1:80  tcp       signed (lb)      2      1        1         3  1448  window_scale sack
",
    )
    .await;
    prints(
        "backend list",
        "\
BACKEND    SLOT  ADDRESS          RUN BY  STATE   FOR  FLOWS  EPOCH  WEIGHT  HEALTH  REASON
shop/s1       3  10.254.0.5:8080  lbd     ready  2h3m  1,234     12       1  up
shop/web1     3  10.254.0.5:8080  others  down   2h3m  1,234     12       1  down    connection refused
",
    )
    .await;
    prints(
        "backend list --service tls",
        "\
BACKEND  SLOT  ADDRESS          NAMES          RUN BY  STATE   FOR  FLOWS  EPOCH  WEIGHT  HEALTH  REASON
shop/a      3  10.254.0.5:8080  a.org *.a.org  others  ready  2h3m  1,234     12       1  up
shop/b      3  10.254.0.5:8080  1 2 3 +1       others  ready  2h3m  1,234     12       1  up
shop/c      3  10.254.0.5:8080  others         others  ready  2h3m  1,234     12       1  up
",
    )
    .await;
    prints(
        "explain --name a.org --client 192.0.2.7",
        "\
verdict   hashed
backend   tls/a
why       a is listed for a.org, asked for by Some(192.0.2.7)
counters  hashed
service   tls
",
    )
    .await;
    prints(
        "flow list --limit 5",
        "\
SERVICE  CLIENT              BACKEND  STATE         IDLE
shop     198.51.100.7:40000  shop/s1  established  250ms
and 5 more; --limit shows more of them
",
    )
    .await;
    prints(
        "explain --token x",
        "\
verdict   stale
backend   shop/s1
why       s1 is ready and in epoch 12
counters  affinity_hit stale_instance
service   shop
token     session 00ff00ff00ff00ff00ff00ff00ff00ff, shop/s1 in epoch 11, signed with key 2
",
    )
    .await;
    prints(
        "session list --limit 5",
        "\
TAG               SERVICE  BACKEND    IDLE  FORGOTTEN IN
00ff00ff00ff00ff  shop     shop/web1  1m5s        28m55s
and 5 more; --limit shows more of them
",
    )
    .await;
    prints(
        "session show 00ff00ff00ff00ff --service shop",
        "\
session       00ff00ff00ff00ff, learned from its backend
service       shop
backend       shop/web1
idle          1m5s
forgotten in  28m55s
",
    )
    .await;
    prints(
        "session show x",
        "\
session   00ff00ff00ff00ff00ff00ff00ff00ff
service   shop
token     shop/s1 in epoch 11, signed with key 2
database  no such session, or it has expired
",
    )
    .await;
}

#[tokio::test]
async fn stats_leave_zeros_out_unless_asked() {
    prints(
        "stats",
        "\
OF              COUNTER                 VALUE  MEANING
-               passed                     17  Passed to the host: not addressed to a service.
shop            affinity_hit        1,234,567  A valid token named a backend that serves.
shop/s1         spliced                     5
interface eth0  drop_redirect_down          3  The interface is down.
",
    )
    .await;
    assert!(lbctl("stats --all").await.out.contains("redispatched                0"));
}

#[tokio::test]
async fn verbs_say_one_line() {
    prints("backend drain s1", "s1 is in drain\n").await;
    prints("backend maint shop/s1", "shop/s1 is in maint\n").await;
    prints("backend ready s1", "s1 is in ready\n").await;
    prints("backend kill s1", "s1 was killed for None\n").await;
    prints("backend kill s1 --down-for 1m5s", "s1 was killed for Some(65000)\n").await;
    prints("keys rotate", "key 3 signs new tokens; 2 keys verify\n").await;
    prints("backend forget shop/s1", "s1 of shop is forgotten\n").await;
    prints("keys prepare", "prepared\n").await;
    prints("keys reload", "reloaded\n").await;
    prints("session end x", "session x ended\n").await;
}

#[tokio::test]
async fn a_refusal_goes_to_stderr_with_what_to_do() {
    let said = lbctl("backend restart s2").await;
    assert_eq!((said.out.as_str(), said.code), ("", REFUSED));
    assert_eq!(said.err, "lbctl: there is no backend `s2`\ndid you mean `shop/s1`?\n");
}

#[tokio::test]
async fn json_is_the_answer_itself() {
    for line in [
        "status",
        "service list",
        "backend list",
        "stats",
        "flow list",
        "explain --token x",
        "session show x",
        "session list",
        "session show x --service shop",
    ] {
        let said = lbctl(&format!("{line} --json")).await;
        let response: Response = serde_json::from_str(&said.out).unwrap();
        let cli = Cli::try_parse_from(["lbctl"].into_iter().chain(line.split_whitespace())).unwrap();
        assert_eq!(response, answer(&request(&cli.noun).unwrap()));
    }
    let said = lbctl("--json backend restart s2").await;
    assert_eq!(said.code, REFUSED);
    assert!(said.out.contains("\"answer\": \"refused\"") && said.err.is_empty(), "{}", said.out);
}

#[tokio::test]
async fn without_lbd_it_says_how_to_start_one() {
    let cli = Cli::try_parse_from(["lbctl", "status", "--socket", "/nowhere/lbd.sock"]).unwrap();
    let said = execute(&cli).await;
    assert_eq!(said.code, UNREACHABLE);
    assert_eq!(
        said.err,
        "lbctl: no lbd answers at /nowhere/lbd.sock\n\
         start one with `lbd --config lb.toml`, or name the socket of another with --socket\n"
    );
}

#[test]
fn help_is_complete() {
    Cli::command().debug_assert();
    let help = Cli::command().render_long_help().to_string();
    for noun in ["status", "service", "backend", "session", "flow", "stats", "explain", "keys", "Exit codes"]
    {
        assert!(help.contains(noun), "{noun}");
    }
    for command in Cli::command().get_subcommands() {
        assert!(command.get_about().is_some(), "{}", command.get_name());
        for verb in command.get_subcommands() {
            assert!(verb.get_about().is_some(), "{} {}", command.get_name(), verb.get_name());
        }
    }
    let wrong = Cli::try_parse_from(["lbctl", "backend", "kill", "s1", "--down-for", "soon"])
        .unwrap_err()
        .to_string();
    assert!(wrong.contains("not a duration; write it like 500ms"), "{wrong}");
}
