//! Managed servers and health checks.

use crate::town::{next, runtime, unique};
use anyhow::{Context, Result};
use futures::future::LocalBoxFuture;
use lb_common::service::{PROMISE_TIMESTAMPS, PROMISE_WINDOW_SCALE};
use lb_userspace::config::Protocol;
use lb_userspace::health::{Health, Policy, Probe};
use lb_userspace::net::{Netns, Peer, Rtnl, check_peer, set_sysctl};
use lb_userspace::supervisor::{
    Exit, ManagedSpec, Server, ServerEvent, ServerSocket, Supervisor, SupervisorError, interface_name,
    namespace_name, remove_all,
};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use tests::require_root;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, mpsc, watch};

/// Tells every client its epoch, and dies in the ways that clients ask for.
struct Parrot {
    epoch: AtomicU32,
    /// How long a connection is held before the answer.
    slow: Duration,
    /// Fires when an order has arrived.
    heard: Arc<Notify>,
}

impl Parrot {
    fn new(first_epoch: u32, slow: Duration) -> Self {
        Self { epoch: AtomicU32::new(first_epoch), slow, heard: Arc::default() }
    }
}

impl Server for Parrot {
    fn next_epoch(&self, _: &ManagedSpec) -> Result<u32> {
        Ok(self.epoch.fetch_add(1, Ordering::Relaxed))
    }

    fn serve(
        &self,
        _: &ManagedSpec,
        epoch: u32,
        socket: ServerSocket,
        mut shutdown: watch::Receiver<bool>,
    ) -> LocalBoxFuture<'static, Result<()>> {
        let (slow, heard) = (self.slow, Arc::clone(&self.heard));
        Box::pin(async move {
            let ServerSocket::Tcp(listener) = socket else { anyhow::bail!("asked for TCP") };
            let listener = tokio::net::TcpListener::from_std(listener)?;
            let mut talks = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        talks.spawn(talk(accepted?.0, epoch, slow, Arc::clone(&heard)));
                    }
                    Some(order) = talks.join_next() => match order? {
                        Ok(b'p') => panic!("as ordered"),
                        Ok(b'f') => anyhow::bail!("failing as ordered"),
                        // A client may hang up without a word.
                        Ok(_) | Err(_) => {}
                    },
                    _ = shutdown.wait_for(|asked| *asked) => break,
                }
            }
            drop(listener);
            while talks.join_next().await.is_some() {}
            Ok(())
        })
    }
}

async fn talk(
    mut stream: tokio::net::TcpStream,
    epoch: u32,
    slow: Duration,
    heard: Arc<Notify>,
) -> Result<u8> {
    let order = stream.read_u8().await?;
    heard.notify_one();
    tokio::time::sleep(slow).await;
    stream.write_all(format!("{epoch}").as_bytes()).await?;
    Ok(order)
}

/// Asks the server for its epoch from the balancer's namespace.
async fn ask(addr: SocketAddr, order: u8) -> Result<u32> {
    let mut stream = tokio::net::TcpStream::connect(addr).await?;
    stream.write_all(&[order]).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer.parse()?)
}

fn managed(name: &str, last: u8, slot: u16) -> ManagedSpec {
    ManagedSpec {
        service: "t".to_owned(),
        service_id: 1,
        name: name.to_owned(),
        slot,
        addr: (Ipv4Addr::new(10, 254, 7, last), 8080).into(),
        protocol: Protocol::Tcp,
        gateway: Ipv4Addr::new(10, 254, 7, 1).into(),
    }
}

/// Runs `story` in a namespace of its own with a supervisor of parrots.
fn with_supervisor<F>(
    story: impl FnOnce(Supervisor, mpsc::UnboundedReceiver<ServerEvent>) -> F + Send,
) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    with_parrot(Parrot::new(1, Duration::ZERO), story)
}

fn with_parrot<F>(
    parrot: Parrot,
    story: impl FnOnce(Supervisor, mpsc::UnboundedReceiver<ServerEvent>) -> F + Send,
) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    require_root();
    let balancer = Netns::create(&unique("lbt-b"))?;
    balancer.run(|| {
        runtime()?.block_on(async {
            let (events, news) = mpsc::unbounded_channel();
            story(Supervisor::new(Arc::new(parrot), events), news).await
        })
    })?
}

fn ready(slot: u16, epoch: u32, interface: &str) -> ServerEvent {
    ServerEvent::Ready { slot, epoch, interface: interface.to_owned() }
}

fn exited(slot: u16, epoch: u32, reason: Exit, after_ms: Option<u64>) -> ServerEvent {
    ServerEvent::Exited { slot, epoch, reason, restart_in: after_ms.map(Duration::from_millis) }
}

#[test]
fn managed_servers_live_die_and_return_with_a_new_epoch() -> Result<()> {
    let name = unique("s");
    with_supervisor(|mut supervisor, mut news| async move {
        let spec = managed(&name, 2, 7);
        let interface = supervisor.spawn(spec.clone())?;
        assert!(matches!(supervisor.spawn(spec.clone()), Err(SupervisorError::Taken(7))));
        assert_eq!(next(&mut news).await?, ready(7, 1, &interface));
        assert_eq!(ask(spec.addr, b'.').await?, 1);
        let link = Rtnl::open()?.link(&interface)?.context("the balancer's end")?;
        assert_eq!(check_peer(&mut Rtnl::open()?, &link)?, Peer::Receives);

        supervisor.restart(7)?;
        assert_eq!(next(&mut news).await?, exited(7, 1, Exit::Stopped, Some(0)));
        assert_eq!(next(&mut news).await?, ready(7, 2, &interface));
        assert_eq!(ask(spec.addr, b'p').await?, 2);
        assert_eq!(next(&mut news).await?, exited(7, 2, Exit::Panicked("as ordered".into()), Some(100)));
        assert_eq!(next(&mut news).await?, ready(7, 3, &interface));
        assert_eq!(ask(spec.addr, b'f').await?, 3);
        assert_eq!(
            next(&mut news).await?,
            exited(7, 3, Exit::Failed("failing as ordered".into()), Some(200)),
            "doubled"
        );
        assert_eq!(next(&mut news).await?, ready(7, 4, &interface));

        supervisor.stop(7)?;
        assert_eq!(next(&mut news).await?, exited(7, 4, Exit::Stopped, None));
        assert!(ask(spec.addr, b'.').await.is_err(), "it stays stopped");
        supervisor.restart(7)?;
        assert_eq!(next(&mut news).await?, ready(7, 5, &interface));
        assert!(matches!(supervisor.restart(8), Err(SupervisorError::Unknown(8))));

        let namespace = namespace_name("t", &name);
        assert!(Netns::open(&namespace).is_ok());
        supervisor.shutdown().await;
        assert_eq!(next(&mut news).await?, exited(7, 5, Exit::Stopped, None));
        assert!(Netns::open(&namespace).is_err(), "removed with the supervisor");
        assert_eq!(Rtnl::open()?.link(&interface)?, None);
        Ok(())
    })
}

#[test]
fn stopping_waits_for_answers_and_killing_does_not() -> Result<()> {
    let name = unique("s");
    let parrot = Parrot::new(1, Duration::from_millis(300));
    let heard = Arc::clone(&parrot.heard);
    with_parrot(parrot, |mut supervisor, mut news| async move {
        let spec = managed(&name, 3, 1);
        let interface = supervisor.spawn(spec.clone())?;
        assert_eq!(next(&mut news).await?, ready(1, 1, &interface));
        let asking = tokio::spawn(ask(spec.addr, b'.'));
        heard.notified().await;
        supervisor.restart(1)?;
        assert_eq!(asking.await??, 1, "answered before it stopped");
        assert_eq!(next(&mut news).await?, exited(1, 1, Exit::Stopped, Some(0)));
        assert_eq!(next(&mut news).await?, ready(1, 2, &interface));

        let asking = tokio::spawn(ask(spec.addr, b'.'));
        heard.notified().await;
        supervisor.kill(1, Some(Duration::from_millis(200)))?;
        assert!(asking.await?.is_err(), "cut off in the middle");
        assert_eq!(next(&mut news).await?, exited(1, 2, Exit::Killed, Some(200)));
        let refused = ask(spec.addr, b'.').await.expect_err("nobody listens").to_string();
        assert!(refused.contains("refused"), "{refused}");
        assert_eq!(next(&mut news).await?, ready(1, 3, &interface));
        supervisor.shutdown().await;
        Ok(())
    })
}

#[test]
fn a_namespace_that_was_left_behind_is_taken_over() -> Result<()> {
    let name = unique("s");
    with_supervisor(|mut supervisor, mut news| async move {
        let spec = managed(&name, 4, 1);
        let namespace = namespace_name("t", &name);
        // What a daemon leaves that was killed while it arranged the network.
        let left = Netns::create(&namespace)?.keep();
        let interface = interface_name("t", &name);
        Rtnl::open()?.add_veth(&interface, "elsewhere", None)?;
        assert_eq!(supervisor.spawn(spec.clone())?, interface);
        assert_eq!(next(&mut news).await?, ready(1, 1, &interface));
        assert_eq!(ask(spec.addr, b'.').await?, 1);
        // And one that was killed later, its network whole.
        let index = Rtnl::open()?.link(&interface)?.context("there")?.index;
        let (events, mut second_news) = mpsc::unbounded_channel();
        supervisor.stop(1)?;
        assert_eq!(next(&mut news).await?, exited(1, 1, Exit::Stopped, None));
        let parrot = Parrot::new(11, Duration::ZERO);
        let mut second = Supervisor::new(Arc::new(parrot), events);
        second.spawn(spec.clone())?;
        assert_eq!(next(&mut second_news).await?, ready(1, 11, &interface));
        assert_eq!(Rtnl::open()?.link(&interface)?.context("there")?.index, index, "the same veth pair");
        assert_eq!(ask(spec.addr, b'.').await?, 11);
        second.shutdown().await;
        drop((left, supervisor));
        Ok(())
    })
}

#[test]
fn what_a_killed_daemon_left_of_its_servers_can_be_removed() -> Result<()> {
    let (name, lonely) = (unique("s"), unique("s"));
    with_supervisor(|mut supervisor, mut news| async move {
        let spec = managed(&name, 8, 1);
        let interface = supervisor.spawn(spec)?;
        next(&mut news).await?;
        // A namespace whose veth pair went with a balancer's namespace.
        let namespaces = [namespace_name("t", &name), namespace_name("t", &lonely)];
        drop(Netns::create(&namespaces[1])?.keep());
        // Nobody removes anything when the daemon is killed; what it leaves is what stands here.
        let removed = remove_all([("t", lonely.as_str())])?;
        assert_eq!(
            removed,
            [
                format!("interface {interface}"),
                format!("network namespace {}", namespaces[0]),
                format!("network namespace {}", namespaces[1])
            ]
        );
        assert_eq!(Rtnl::open()?.link(&interface)?, None);
        assert_eq!(remove_all([])?, Vec::<String>::new());
        supervisor.shutdown().await;
        Ok(())
    })
}

#[test]
fn an_address_that_is_taken_is_reported_and_tried_again() -> Result<()> {
    let name = unique("s");
    with_supervisor(|mut supervisor, mut news| async move {
        let spec = managed(&name, 5, 1);
        let netns = Netns::create(&namespace_name("t", &name))?.keep();
        let squatter = netns.run(|| std::net::TcpListener::bind(("0.0.0.0", 8080)))??;
        supervisor.spawn(spec.clone())?;
        let ServerEvent::Failed { slot: 1, reason, .. } = next(&mut news).await? else {
            anyhow::bail!("it cannot start")
        };
        assert!(reason.contains("10.254.7.5:8080") && reason.contains("in use"), "{reason}");
        drop(squatter);
        while let ServerEvent::Failed { .. } = next(&mut news).await? {}
        assert!(ask(spec.addr, b'.').await.is_ok());
        supervisor.shutdown().await;
        Ok(())
    })
}

#[test]
fn health_learns_what_a_backend_can_do() -> Result<()> {
    let name = unique("s");
    with_supervisor(|mut supervisor, mut news| async move {
        let spec = managed(&name, 6, 1);
        supervisor.spawn(spec.clone())?;
        next(&mut news).await?;
        let (events, mut opinions) = mpsc::unbounded_channel();
        let mut health = Health::new(events);
        let policy = Policy {
            interval: Duration::from_millis(50),
            timeout: Duration::from_millis(500),
            rise: 2,
            fall: 2,
        };
        health.watch(1, spec.addr, policy, Probe::Tcp);
        let event = next(&mut opinions).await?;
        assert!(event.up);
        assert_eq!((event.abilities.seen, event.abilities.promises, event.abilities.mss), (1, 7, 1460));
        // A server without SACK and timestamps: found out by the next check.
        let netns = Netns::open(&namespace_name("t", &name))?;
        netns.run(|| -> Result<()> {
            set_sysctl("net/ipv4/tcp_sack", "0")?;
            set_sysctl("net/ipv4/tcp_timestamps", "0")?;
            Ok(())
        })??;
        let mut event = next(&mut opinions).await?;
        if event.abilities.promises & PROMISE_TIMESTAMPS != 0 {
            // A check came between the two changes.
            event = next(&mut opinions).await?;
        }
        assert!(event.up, "{event:?}");
        assert_eq!((event.abilities.promises, event.abilities.mss), (PROMISE_WINDOW_SCALE, 1460));
        // Silence instead of a refusal.
        let eth0 = netns.run(|| Rtnl::open()?.link("eth0"))??.context("there")?;
        netns.run(|| Rtnl::open()?.set_down(eth0.index))??;
        let event = next(&mut opinions).await?;
        assert!(!event.up);
        supervisor.shutdown().await;
        Ok(())
    })
}
