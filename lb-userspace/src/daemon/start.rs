//! How lbd starts: everything is opened and checked in the order in which it depends on each other, and packets that
//! flow already are not disturbed.

use super::event::{Event, Reports, Sources};
use super::lost::Losses;
use super::phase::Starting;
use super::proofs::Proofs;
use super::servers::SessionServers;
use super::trace::Trace;
use super::{Daemon, Known, Options, descriptors, epochs, object, slots, vips};
use crate::config::{self, Config, Managed, Protocol};
use crate::control::server::ControlSocket;
use crate::datapath::{Clock, Datapath, DatapathOptions};
use crate::health::{Health, Policy, Probe};
use crate::net::NextHops;
use crate::registry::{Ids, Registry};
use crate::server::datagram;
use crate::session::{Peers, TokenKeys, store, unix_millis};
use crate::stores;
use crate::supervisor::{ManagedSpec, Supervisor};
use anyhow::{Context, ensure};
use arc_swap::ArcSwap;
use lb_common::hash::SipKey;
use lb_common::settings::Settings;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::task::JoinHandle;

/// Expired sessions are removed this often, so many records at a time are looked at.
const SWEEP: (Duration, usize) = (Duration::from_secs(1), 1000);

/// An established flow of whose client nothing was heard for this long may make room for another one.
const EVICTABLE: Duration = Duration::from_secs(60);

impl Daemon {
    /// Starts, unless it is told to stop meanwhile. lbctl is answered from the beginning.
    pub(super) async fn start(options: Options) -> anyhow::Result<Option<Self>> {
        let mut config = Config::load(&options.config)?;
        for interface in options.interfaces {
            if !config.lbd.interfaces.contains(&interface) {
                config.lbd.interfaces.push(interface);
            }
        }
        ensure!(
            nix::unistd::geteuid().is_root(),
            "lbd loads programs into the kernel and makes network namespaces: start it as root"
        );
        let object = object::find(options.object.as_deref(), config.lbd.object.as_deref())?;
        // First, so that a second lbd ends before it touches anything.
        let control = ControlSocket::bind(&config.lbd.socket)?;
        let (reports, sources) = Sources::new()?;
        if let Some(warning) = config.readable_secret(&options.config) {
            tracing::warn!("{warning}");
        }
        let calls = reports.calls.clone();
        let control = tokio::spawn(async move { control.serve(calls).await });
        let abort = control.abort_handle();
        let starting = Starting::spawn(sources);
        let stopped = starting.stopped();
        let started = tokio::select! {
            biased;
            signal = stopped => {
                tracing::info!(signal, "stopping before lbd was up; packets keep flowing as they did");
                Ok(None)
            }
            started = Self::open(config, options.config, object, control, reports, starting) => started.map(Some),
        };
        if !matches!(started, Ok(Some(_))) {
            abort.abort();
        }
        started
    }

    async fn open(
        config: Config,
        config_path: PathBuf,
        object: PathBuf,
        control: JoinHandle<()>,
        reports: Reports,
        starting: Starting,
    ) -> anyhow::Result<Self> {
        let descriptors = descriptors::raise();
        starting.waits_for(format!("the session store {} to open", config.lbd.store.place()));
        let store = stores::open(&config.lbd.store).await?;
        let keys = TokenKeys::load_or_create(&config.lbd.keys)?;
        tracing::info!(store = store.state().place, "store opened");

        starting.waits_for("the kernel to take the packet programs");
        let options = DatapathOptions {
            object,
            run_dir: config.lbd.run_dir.clone(),
            limits: config.limits,
            interfaces: config.lbd.interfaces.clone(),
            mode: config.lbd.mode,
        };
        let mut datapath = tokio::task::spawn_blocking(move || Datapath::open(&options)).await??;
        starting.waits_for("the session store to give out ids");
        let left = datapath.left()?;
        let lives = |slot| slots::may_live(&left, slot, datapath.flows().live(slot));
        let ids = slots::ids(&config, &*store, &left, lives).await?;
        starting.waits_for("backends and managed servers to be set up");
        let clock = datapath.clock();
        let settings = settings(&config, &keys, datapath.inherited(), clock)?;
        let (registry, outcome) = Registry::new(&config, &ids, &left, settings, &clock, Instant::now());
        let vips: BTreeSet<IpAddr> = config.services.iter().map(|service| service.vip.ip()).collect();
        vips::announce(
            &config.lbd.run_dir,
            if config.lbd.announce { &vips } else { const { &BTreeSet::new() } },
        )?;

        let keys = Arc::new(ArcSwap::from_pointee(keys));
        let next_hops = NextHops::spawn(reports.next_hops)?;
        let peers: Arc<Peers> = Arc::default();
        let session_servers = SessionServers::new(
            &config,
            store.clone(),
            keys.clone(),
            peers.clone(),
            descriptors::places(&config, descriptors),
        );
        let server_counters = session_servers.counters();
        let known = known(&config, &ids, &registry);
        known.values().for_each(|backend| next_hops.watch(backend.addr.ip()));
        let decisions = datapath.decisions()?.context("nobody has taken the decisions yet")?;
        let trace = Trace::spawn(decisions, &registry, reports.epochs.clone());
        let (pause, slice) = SWEEP;
        let sweeper = store::sweep_forever(store.clone(), Arc::new(unix_millis), pause, slice);
        let (stops, events) = (store.stops(), reports.epochs.clone());
        tokio::spawn(async move {
            // When lbd is stopping, nobody wants to know.
            let _ = events.send(Event::StoreStopped(stops.await));
        });
        let mut daemon = Self {
            config_path,
            started: Instant::now(),
            took_over: datapath.inherited().is_some(),
            registry,
            supervisor: Supervisor::new(Arc::new(session_servers), reports.servers)
                .with_grace(config.timeouts.drain),
            health: Health::new(reports.health),
            next_hops,
            store: store.clone(),
            server_counters,
            peers,
            keys,
            backends: known,
            links: BTreeMap::new(),
            quiet: BTreeMap::new(),
            waiting: Vec::new(),
            losses: Losses::default(),
            proofs: Proofs::default(),
            unattached: None,
            devices: Vec::new(),
            tended: Instant::now(),
            trace,
            sources: starting.finish().await?,
            announcements: tokio::spawn(epochs::watch(store.clone(), reports.epochs.clone())),
            epochs: reports.epochs,
            control,
            sweeper: tokio::spawn(sweeper),
            datapath,
            config,
        };
        daemon.tend_devices_at_start()?;
        daemon.perform(&outcome)?;
        daemon.spawn_servers(&ids)?;
        daemon.datapath.settle()?;
        daemon.see_off();
        tracing::info!(
            config = %daemon.config_path.display(),
            services = daemon.config.services.len(),
            backends = daemon.registry.count_backends().0,
            socket = %daemon.config.lbd.socket.display(),
            took_over = daemon.took_over,
            "lbd is up"
        );
        Ok(daemon)
    }

    fn spawn_servers(&mut self, ids: &Ids) -> anyhow::Result<()> {
        let gateway = IpAddr::from(self.config.managed.gateway());
        let mut interfaces = Vec::new();
        for ((service, id), slots) in self.config.services.iter().zip(&ids.services).zip(&ids.slots) {
            for (backend, slot) in service.backends.iter().zip(slots).filter(|(b, _)| b.managed) {
                let spec = ManagedSpec {
                    service: service.name.clone(),
                    service_id: *id,
                    name: backend.name.clone(),
                    slot: *slot,
                    addr: self.backends[slot].addr,
                    protocol: service.protocol,
                    gateway,
                };
                let interface = self
                    .supervisor
                    .spawn(spec)
                    .with_context(|| format!("server {}/{} cannot be run", service.name, backend.name))?;
                interfaces.push((*slot, interface));
            }
        }
        for (slot, interface) in interfaces {
            self.datapath.attach_interface(&interface)?;
            self.links.insert(slot, interface);
        }
        Ok(())
    }
}

/// Address and health policy of every backend, and of those that are leaving.
fn known(config: &Config, ids: &Ids, registry: &Registry) -> BTreeMap<u16, Known> {
    let mut known = BTreeMap::new();
    let leaving: Vec<_> = registry.leaving().collect();
    for ((service, id), slots) in config.services.iter().zip(&ids.services).zip(&ids.slots) {
        let config::Health { interval, timeout, rise, fall, .. } = service.health;
        let policy = Policy { interval, timeout, rise, fall };
        for (backend, slot) in service.backends.iter().zip(slots) {
            let own = || SocketAddr::new(config.managed.server(*slot).into(), Managed::PORT);
            let addr = backend.addr.unwrap_or_else(own);
            known.insert(*slot, Known { addr, policy, probe: probe(service, backend.managed) });
        }
        for slot in leaving.iter().filter(|slot| registry.service_of(**slot) == Some(*id)) {
            let addr = registry.addr_of(*slot).expect("it was listed a moment ago");
            known.insert(*slot, Known { addr, policy, probe: probe(service, false) });
        }
    }
    known
}

/// What a backend is asked for.
fn probe(service: &config::Service, managed: bool) -> Probe {
    match (service.protocol, &service.health.send) {
        (Protocol::Tcp, _) => Probe::Tcp,
        (Protocol::Udp, _) if managed => {
            Probe::Ask { send: datagram::ping(), expect: datagram::pong().to_vec() }
        }
        (Protocol::Udp, Some(send)) => {
            Probe::Ask { send: send.clone(), expect: service.health.expect.clone().unwrap_or_default() }
        }
        (Protocol::Udp, None) => Probe::Knock,
    }
}

/// Keys and timeouts. SYN cookie keys of an earlier daemon stay, or handshakes in flight would be lost.
fn settings(
    config: &Config,
    keys: &TokenKeys,
    inherited: Option<&Settings>,
    clock: Clock,
) -> anyhow::Result<Settings> {
    let (token_keys, token_key_mask) = keys.as_map();
    let (cookie_keys, cookie_key) = match inherited {
        Some(settings) => (settings.cookie_keys, settings.cookie_key),
        None => ([random_key()?, random_key()?], 0),
    };
    Ok(Settings {
        cookie_keys,
        cookie_key,
        token_keys,
        token_key_mask,
        check_interfaces: config.lbd.check_interfaces.into(),
        idle_ticks: clock.ticks(config.timeouts.idle),
        datagram_idle_ticks: clock.ticks(config.timeouts.udp_idle),
        closing_ticks: clock.ticks(config.timeouts.closing),
        binding_ticks: clock.ticks(config.timeouts.binding),
        head_ticks: clock.ticks(config.timeouts.head),
        opening_ticks: clock.ticks(config.timeouts.opening),
        half_closed_ticks: clock.ticks(config.timeouts.half_closed),
        evictable_ticks: clock.ticks(EVICTABLE),
        ..Settings::default()
    })
}

pub(super) fn random_key() -> anyhow::Result<SipKey> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("no random numbers for a key: {error}"))?;
    Ok(bytemuck::cast(bytes))
}
