//! The thread of one managed server: starts an instance, waits until it ends or is ended, and starts the next.

use super::{Exit, ManagedSpec, Server, ServerEvent, ServerSocket};
use crate::config::Protocol;
use crate::net::Netns;
use crate::panics;
use futures::future::LocalBoxFuture;
use socket2::{Domain, Socket, Type};
use std::net::SocketAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{mpsc, watch};

/// What a worker is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Order {
    Restart,
    Kill {
        down_for: Duration,
    },
    Stop,
    /// Stop, and end the thread.
    Leave,
}

/// Pause before an instance that failed is started again; doubled each time.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(10));
/// An instance that ran that long has not failed by starting.
const PROVEN: Duration = Duration::from_secs(30);
/// Connections that the kernel accepts before the server does, at most `net.core.somaxconn`. Beyond it SYNs are dropped, those of
/// health checks among them.
const BACKLOG: i32 = 4096;

pub(super) struct Worker {
    pub(super) spec: ManagedSpec,
    pub(super) interface: String,
    /// How long an instance may take to finish what is in flight.
    pub(super) grace: Duration,
    pub(super) server: Arc<dyn Server>,
    pub(super) events: mpsc::UnboundedSender<ServerEvent>,
    pub(super) orders: mpsc::UnboundedReceiver<Order>,
}

/// What to do when an instance has ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Start { after: Duration },
    Wait,
    Leave,
}

impl Worker {
    /// The thread's whole life.
    pub(super) fn run(mut self, netns: &Netns) {
        let mut next = match netns.enter() {
            Ok(()) => Next::Start { after: Duration::ZERO },
            Err(error) => {
                // Nothing that is tried again can help: we are not where the server belongs.
                self.tell(ServerEvent::Failed {
                    slot: self.spec.slot,
                    reason: describe(&error),
                    retry_in: Duration::MAX,
                });
                return;
            }
        };
        let mut pause = PAUSE.0;
        loop {
            next = match next {
                Next::Leave => return,
                Next::Wait => match self.orders.blocking_recv() {
                    Some(Order::Restart | Order::Kill { .. }) => Next::Start { after: Duration::ZERO },
                    Some(Order::Stop) => Next::Wait,
                    Some(Order::Leave) | None => Next::Leave,
                },
                Next::Start { after } => match self.start(after) {
                    Ok((ended, lasted)) => {
                        pause = if lasted >= PROVEN { PAUSE.0 } else { pause };
                        let exit = ended.exit;
                        let next = ended.next.unwrap_or(Next::Start { after: pause });
                        if ended.next.is_none() {
                            pause = (pause * 2).min(PAUSE.1);
                        }
                        self.tell_exit(ended.epoch, exit, next);
                        next
                    }
                    Err(Interrupted::By(next)) => next,
                    Err(Interrupted::Failed(reason)) => {
                        let retry_in = pause;
                        pause = (pause * 2).min(PAUSE.1);
                        self.tell(ServerEvent::Failed { slot: self.spec.slot, reason, retry_in });
                        Next::Start { after: retry_in }
                    }
                },
            };
        }
    }

    /// Runs one instance to its end.
    fn start(&mut self, after: Duration) -> Result<(Ended, Duration), Interrupted> {
        let failed =
            |what: &str, error: &dyn std::fmt::Display| Interrupted::Failed(format!("{what}: {error:#}"));
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| failed("cannot start a runtime", &error))?;
        if let Some(next) = self.pause(&runtime, after) {
            return Err(Interrupted::By(next));
        }
        let epoch = catch_unwind(AssertUnwindSafe(|| self.server.next_epoch(&self.spec)))
            .map_err(|panic| failed("cannot begin an epoch", &panics::message(&*panic)))?
            .map_err(|error| failed("cannot begin an epoch", &error))?;
        let socket = listen(self.spec.addr, self.spec.protocol)
            .map_err(|error| failed(&format!("cannot listen on {}", self.spec.addr), &error))?;
        let (shutdown, asked) = watch::channel(false);
        let begun = Instant::now();
        self.tell(ServerEvent::Ready { slot: self.spec.slot, epoch, interface: self.interface.clone() });
        let mut next = None;
        let exit = catch_unwind(AssertUnwindSafe(|| {
            let serving = self.server.serve(&self.spec, epoch, socket, asked);
            runtime.block_on(supervise(serving, &shutdown, &mut self.orders, self.grace, &mut next))
        }));
        // Drops every task, and with it every socket, at once. What runs on blocking threads ends by itself.
        runtime.shutdown_background();
        let exit = exit.unwrap_or_else(|panic| Exit::Panicked(panics::message(&*panic)));
        Ok((Ended { epoch, exit, next }, begun.elapsed()))
    }

    /// Waits before a start, unless an order says otherwise.
    fn pause(&mut self, runtime: &Runtime, after: Duration) -> Option<Next> {
        if after.is_zero() {
            return None;
        }
        match runtime.block_on(async { tokio::time::timeout(after, self.orders.recv()).await }) {
            Err(_) | Ok(Some(Order::Restart)) => None,
            Ok(Some(Order::Kill { down_for })) => Some(Next::Start { after: down_for }),
            Ok(Some(Order::Stop)) => Some(Next::Wait),
            Ok(Some(Order::Leave) | None) => Some(Next::Leave),
        }
    }

    fn tell_exit(&self, epoch: u32, reason: Exit, next: Next) {
        let restart_in = match next {
            Next::Start { after } => Some(after),
            Next::Wait | Next::Leave => None,
        };
        tracing::info!(
            service = self.spec.service,
            backend = self.spec.name,
            epoch,
            ?reason,
            ?restart_in,
            "server ended"
        );
        self.tell(ServerEvent::Exited { slot: self.spec.slot, epoch, reason, restart_in });
    }

    fn tell(&self, event: ServerEvent) {
        if self.events.send(event).is_err() {
            tracing::debug!(backend = self.spec.name, "nobody listens to the supervisor any more");
        }
    }
}

/// An instance that was and is no more. Without `next` it ended by itself.
struct Ended {
    epoch: u32,
    exit: Exit,
    next: Option<Next>,
}

/// Why there was no instance.
enum Interrupted {
    By(Next),
    Failed(String),
}

/// Serves until the server ends or an order ends it. `next` says what an order wants afterwards, even when the server
/// panics meanwhile.
async fn supervise(
    mut serving: LocalBoxFuture<'static, anyhow::Result<()>>,
    shutdown: &watch::Sender<bool>,
    orders: &mut mpsc::UnboundedReceiver<Order>,
    grace: Duration,
    next: &mut Option<Next>,
) -> Exit {
    // Far away until we ask the server to finish.
    let deadline = tokio::time::sleep(Duration::from_secs(u32::MAX.into()));
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            // A server that has ended has ended, whatever the orders.
            biased;
            ended = &mut serving => return by_itself(ended),
            () = &mut deadline => return Exit::CutOff,
            order = orders.recv() => {
                let leaving = *next == Some(Next::Leave);
                match order {
                    Some(Order::Kill { down_for }) => {
                        *next = Some(if leaving { Next::Leave } else { Next::Start { after: down_for } });
                        return Exit::Killed;
                    }
                    // Nobody supervises any more: the daemon is crashing, and its servers with it.
                    None => {
                        *next = Some(Next::Leave);
                        return Exit::Killed;
                    }
                    Some(Order::Leave) => *next = Some(Next::Leave),
                    Some(_) if leaving => {}
                    Some(Order::Restart) => *next = Some(Next::Start { after: Duration::ZERO }),
                    Some(Order::Stop) => *next = Some(Next::Wait),
                }
            }
        }
        // Asked once; later orders do not give it more time.
        if !shutdown.send_replace(true) {
            deadline.as_mut().reset(tokio::time::Instant::now() + grace);
        }
    }
}

fn by_itself(ended: anyhow::Result<()>) -> Exit {
    match ended {
        Ok(()) => Exit::Stopped,
        Err(error) => Exit::Failed(format!("{error:#}")),
    }
}

fn listen(addr: SocketAddr, protocol: Protocol) -> std::io::Result<ServerSocket> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (Type::STREAM, socket2::Protocol::TCP),
        Protocol::Udp => (Type::DGRAM, socket2::Protocol::UDP),
    };
    let socket = Socket::new(Domain::for_address(addr), kind, Some(number))?;
    socket.set_nonblocking(true)?;
    if protocol == Protocol::Tcp {
        // Connections of the instance before may still be closing on this address.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&addr.into())?;
    Ok(match protocol {
        Protocol::Tcp => {
            socket.listen(BACKLOG)?;
            ServerSocket::Tcp(socket.into())
        }
        Protocol::Udp => ServerSocket::Udp(socket.into()),
    })
}

fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut at = error;
    while let Some(source) = at.source() {
        text.push_str(&format!(": {source}"));
        at = source;
    }
    text
}
