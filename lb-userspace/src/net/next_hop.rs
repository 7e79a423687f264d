//! Where frames for a backend go: the route decides interface and router, the neighbour table gives the address.

use super::addresses::{Neighbour, read_neighbour};
use super::rtnl::{Rtnl, parse};
use super::{NetError, Route};
use lb_common::addr::Mac;
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{Socket, protocols::NETLINK_ROUTE};
use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Where frames for an address go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// Outgoing interface.
    pub ifindex: u32,
    /// The outgoing interface's own address.
    pub local_mac: Mac,
    /// Address of the host itself, or of its router.
    pub next_hop_mac: Mac,
}

/// A next hop became known, changed, or was lost (`None`: there is no route any more, or its interface is gone). A
/// neighbour that falls silent keeps its next hop: whether a backend answers is for the health checks to say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHopEvent {
    pub addr: IpAddr,
    pub next_hop: Option<NextHop>,
}

/// Handle of the task that keeps next hops fresh. The task ends with the last handle.
#[derive(Clone, Debug)]
pub struct NextHops {
    commands: mpsc::UnboundedSender<Command>,
}

#[derive(Debug)]
enum Command {
    Watch(IpAddr),
    Forget(IpAddr),
}

/// How often a next hop that is known is confirmed. Packets that XDP forwards do not keep the kernel's entry alive, so
/// without this it would be forgotten.
const CONFIRM: Duration = Duration::from_secs(10);
/// How soon an unknown next hop is asked for again; doubled each time.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));

/// How long changes of routes and interfaces are gathered before the next hops are looked up again.
const SETTLE: Duration = Duration::from_millis(20);

impl NextHops {
    /// Starts the task on the present tokio runtime, in the network namespace of the calling thread.
    ///
    /// # Errors
    /// No netlink socket can be had.
    pub fn spawn(events: mpsc::UnboundedSender<NextHopEvent>) -> Result<Self, NetError> {
        let (commands, orders) = mpsc::unbounded_channel();
        let news =
            subscribe().map_err(NetError::kernel("cannot subscribe to changes of neighbours and routes"))?;
        let task = Task { rtnl: Rtnl::open()?, events, watched: BTreeMap::new() };
        tokio::spawn(task.run(orders, news));
        Ok(Self { commands })
    }

    /// Resolves the next hop of an address now and whenever it changes. Watching twice is watching once.
    pub fn watch(&self, addr: IpAddr) {
        self.command(Command::Watch(addr));
    }

    /// Ends watching an address.
    pub fn forget(&self, addr: IpAddr) {
        self.command(Command::Forget(addr));
    }

    fn command(&self, command: Command) {
        // The task outlives every handle, unless the whole runtime is going away.
        if self.commands.send(command).is_err() {
            tracing::debug!("next hops are no longer watched");
        }
    }
}

fn subscribe() -> io::Result<AsyncFd<Socket>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    for group in [libc::RTNLGRP_LINK, libc::RTNLGRP_NEIGH, libc::RTNLGRP_IPV4_ROUTE, libc::RTNLGRP_IPV6_ROUTE]
    {
        socket.add_membership(group)?;
    }
    socket.set_non_blocking(true)?;
    // SAFETY: the socket keeps the one descriptor that it was made with, and nobody closes that behind its back.
    Ok(unsafe { AsyncFd::register(socket)? })
}

/// An address whose next hop we want to know.
#[derive(Debug)]
struct Watched {
    route: Option<Route>,
    local_mac: Mac,
    /// What was last reported.
    reported: Option<NextHop>,
    /// When to ask again, and how long to wait after that.
    due: Instant,
    backoff: Duration,
}

struct Task {
    rtnl: Rtnl,
    events: mpsc::UnboundedSender<NextHopEvent>,
    watched: BTreeMap<IpAddr, Watched>,
}

/// What a notification may have changed.
enum News {
    Neighbour(Neighbour),
    Everything,
}

impl Task {
    async fn run(mut self, mut orders: mpsc::UnboundedReceiver<Command>, news: AsyncFd<Socket>) {
        loop {
            let due = self.watched.values().map(|watched| watched.due).min();
            let due = due.unwrap_or_else(|| Instant::now() + CONFIRM);
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Command::Watch(addr)) => self.watch(addr),
                    Some(Command::Forget(addr)) => {
                        self.watched.remove(&addr);
                    }
                    None => return,
                },
                received = read_news(&news) => match received {
                    Ok(received) => self.hear(received),
                    Err(error) => {
                        // Too much happened to be told one by one (ENOBUFS).
                        tracing::debug!(%error, "notifications were lost");
                        self.hear(vec![News::Everything]);
                    }
                },
                () = tokio::time::sleep_until(due) => self.ask_again(),
            }
        }
    }

    fn watch(&mut self, addr: IpAddr) {
        self.watched.entry(addr).or_insert_with(|| Watched {
            route: None,
            local_mac: [0; 6],
            reported: None,
            due: Instant::now(),
            backoff: RETRY.0,
        });
        self.resolve(addr);
    }

    fn hear(&mut self, received: Vec<News>) {
        if received.iter().any(|news| matches!(news, News::Everything)) {
            // Routes and interfaces change in bursts: look once, when it is over.
            let soon = Instant::now() + SETTLE;
            self.watched.values_mut().for_each(|watched| watched.due = watched.due.min(soon));
        }
        for news in received {
            let News::Neighbour(neighbour) = news else { continue };
            let concerned: Vec<_> = self
                .watched
                .iter()
                .filter(|(_, watched)| {
                    watched.route.is_some_and(|route| {
                        route.ifindex == neighbour.ifindex && route.next == neighbour.addr
                    })
                })
                .map(|(addr, _)| *addr)
                .collect();
            for addr in concerned {
                self.learn(addr, Some(neighbour));
            }
        }
    }

    fn ask_again(&mut self) {
        let now = Instant::now();
        let due: Vec<_> =
            self.watched.iter().filter(|(_, watched)| watched.due <= now).map(|(addr, _)| *addr).collect();
        due.into_iter().for_each(|addr| self.resolve(addr));
    }

    /// Looks everything up anew.
    fn resolve(&mut self, addr: IpAddr) {
        let looked_up = self.look_up(addr);
        let Some(watched) = self.watched.get_mut(&addr) else { return };
        match looked_up {
            Ok(Some((route, local_mac, neighbour))) => {
                watched.route = Some(route);
                watched.local_mac = local_mac;
                // Never for an entry that somebody made for good: soliciting would make it an ordinary one.
                if !neighbour.is_some_and(|neighbour| neighbour.fresh)
                    && let Err(error) = self.rtnl.solicit(route.ifindex, route.next)
                {
                    tracing::debug!(%addr, ?error, "the next hop cannot be asked for");
                }
                self.learn(addr, neighbour);
            }
            Ok(None) => {
                watched.route = None;
                self.report(addr, None);
            }
            Err(error) => {
                tracing::warn!(%addr, ?error, "the next hop cannot be looked up");
                watched.wait_longer();
            }
        }
    }

    fn look_up(&mut self, addr: IpAddr) -> Result<Option<(Route, Mac, Option<Neighbour>)>, NetError> {
        let Some(route) = self.rtnl.route_to(addr)?.filter(|route| !route.local) else { return Ok(None) };
        let Some(link) = self.rtnl.link_at(route.ifindex)?.filter(|link| link.up) else { return Ok(None) };
        let neighbour = self.rtnl.neighbour(route.ifindex, route.next)?;
        Ok(Some((route, link.mac, neighbour)))
    }

    /// Takes what the kernel knows of the neighbour, which may be nothing.
    fn learn(&mut self, addr: IpAddr, neighbour: Option<Neighbour>) {
        let Some(watched) = self.watched.get_mut(&addr) else { return };
        let Some(route) = watched.route else { return };
        match neighbour.and_then(|neighbour| neighbour.mac) {
            Some(next_hop_mac) => {
                let next_hop = NextHop { ifindex: route.ifindex, local_mac: watched.local_mac, next_hop_mac };
                self.report(addr, Some(next_hop));
            }
            // Silent. What was known for this interface may still hold; for another one it does not.
            None if watched.reported.is_some_and(|known| known.ifindex == route.ifindex) => {
                watched.wait_longer()
            }
            None => self.report(addr, None),
        }
    }

    fn report(&mut self, addr: IpAddr, next_hop: Option<NextHop>) {
        let Some(watched) = self.watched.get_mut(&addr) else { return };
        if next_hop.is_some() {
            watched.backoff = RETRY.0;
            watched.due = Instant::now() + CONFIRM;
        } else {
            watched.wait_longer();
        }
        if watched.reported == next_hop {
            return;
        }
        watched.reported = next_hop;
        match next_hop {
            Some(hop) => {
                tracing::info!(%addr, ifindex = hop.ifindex, mac = %Shown(hop.next_hop_mac), "next hop known")
            }
            None => tracing::warn!(%addr, "no way there: no route, or its interface is down"),
        }
        // Nobody listens when the daemon is going away.
        let _ = self.events.send(NextHopEvent { addr, next_hop });
    }
}

/// A link address as people write it.
struct Shown(Mac);

impl std::fmt::Display for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl Watched {
    fn wait_longer(&mut self) {
        self.due = Instant::now() + self.backoff;
        self.backoff = (self.backoff * 2).min(RETRY.1);
    }
}

/// Everything that has been notified by now.
async fn read_news(socket: &AsyncFd<Socket>) -> io::Result<Vec<News>> {
    loop {
        let mut ready = socket.readable().await?;
        let mut news = Vec::new();
        loop {
            match ready.get_inner().recv_from_full() {
                Ok((datagram, _)) => {
                    news.extend(parse(&datagram).into_iter().filter_map(|message| read(message.payload)))
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    ready.clear_ready();
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        if !news.is_empty() {
            return Ok(news);
        }
    }
}

fn read(payload: NetlinkPayload<RouteNetlinkMessage>) -> Option<News> {
    let NetlinkPayload::InnerMessage(message) = payload else { return None };
    match message {
        RouteNetlinkMessage::NewNeighbour(message) => read_neighbour(&message).map(News::Neighbour),
        RouteNetlinkMessage::DelNeighbour(message) => {
            let forgotten = read_neighbour(&message)?;
            Some(News::Neighbour(Neighbour { mac: None, fresh: false, ..forgotten }))
        }
        RouteNetlinkMessage::NewRoute(_)
        | RouteNetlinkMessage::DelRoute(_)
        | RouteNetlinkMessage::NewLink(_)
        | RouteNetlinkMessage::DelLink(_) => Some(News::Everything),
        _ => None,
    }
}
