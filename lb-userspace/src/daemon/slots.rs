//! Which numbers services and backends have: the database gives them to names, and they stay with the machines at which
//! connections live.

use crate::config::{Config, Protocol};
use crate::datapath::Left;
use crate::registry::Ids;
use crate::session::{Given, SessionStore};
use anyhow::bail;
use lb_common::addr::{Addr, Be16};
use lb_common::backend::State;
use lb_common::service::Affinity;
use std::net::{IpAddr, SocketAddr};

/// The numbers of services and backends. Slots of backends that are not configured any more are free for others, unless
/// the store is shared: then somebody else may have configured them. A slot at which connections live is not free yet.
pub(super) async fn ids(
    config: &Config,
    store: &dyn SessionStore,
    left: &Left,
    lives: impl Fn(u16) -> bool,
) -> anyhow::Result<Ids> {
    let others = store.epochs().is_some();
    if !others {
        keep_to_addresses(config, store, left, &lives).await?;
    }
    for (service, backend, slot) in store.slots().await? {
        let kept =
            config.services.iter().any(|s| s.name == service && s.backends.iter().any(|b| b.name == backend));
        if !kept && !others && !lives(slot) {
            store.forget_slot(&service, &backend).await?;
            tracing::info!(service, backend, slot, "slot freed: the backend is not configured any more");
        }
    }
    let mut ids = Ids::default();
    let configured = |name: &str| config.services.iter().find(|service| service.name == name);
    for (service, backend, slot) in store.slots().await? {
        if !configured(&service).is_some_and(|s| s.backends.iter().any(|b| b.name == backend)) {
            ids.others.insert(slot, backend);
        }
    }
    for service in &config.services {
        let id = store.service_id(&service.name).await?;
        if u32::from(id) >= config.limits.services {
            bail!(
                "service {} has id {id}, but `services` in [limits] is {}: raise it to {} or more",
                service.name,
                config.limits.services,
                id + 1
            );
        }
        let mut slots = Vec::new();
        for backend in &service.backends {
            let slot = store.slot(&service.name, &backend.name).await?;
            if u32::from(slot) >= config.limits.backends {
                bail!(
                    "backend {}/{} has slot {slot}, but `backends` in [limits] is {}: raise it to {} or more",
                    service.name,
                    backend.name,
                    config.limits.backends,
                    slot + 1
                );
            }
            if backend.managed && backend.addr.is_none() && u64::from(slot) >= config.managed.room() {
                bail!(
                    "server {}/{} has slot {slot}, for which the managed network {} has no address: give [managed] \
                     subnet a shorter prefix",
                    service.name,
                    backend.name,
                    config.managed.subnet
                );
            }
            slots.push(slot);
        }
        ids.services.push(id);
        ids.slots.push(slots);
    }
    Ok(ids)
}

/// Where the configuration gives a name to another address, or an address another name, a slot goes with the address: for
/// what lives there, that is the server. One whose address is in the configuration no more keeps its slot under a name that
/// no configuration has.
async fn keep_to_addresses(
    config: &Config,
    store: &dyn SessionStore,
    left: &Left,
    lives: &impl Fn(u16) -> bool,
) -> anyhow::Result<()> {
    let mut names = store.slots().await?;
    let addr_of = |slot: u16| {
        let found = left.backends.get(&slot)?;
        Some(SocketAddr::new(IpAddr::from(found.addr), found.port.get()))
    };
    let configured = || {
        config.services.iter().flat_map(|service| {
            let remote = service.backends.iter().filter(|backend| !backend.managed);
            remote.filter_map(move |backend| {
                Some((service.name.as_str(), backend.name.as_str(), backend.addr?))
            })
        })
    };
    // Where something lives that has no name, a rename ended half-way: nobody else may be given its slot.
    for service in &config.services {
        let id = store.service_id(&service.name).await?;
        for (slot, found) in &left.backends {
            if found.service == id && lives(*slot) && names.iter().all(|(.., named)| named != slot) {
                let name = format!("slot{slot}@{}", SocketAddr::new(found.addr.into(), found.port.get()));
                adopt(store, &service.name, &name, *slot).await?;
                names.push((service.name.clone(), name, *slot));
            }
        }
    }
    for (service, name, addr) in configured() {
        if let Some((_, known, slot)) = names.iter_mut().find(|(s, n, _)| s == service && n == name)
            && let Some(before) = addr_of(*slot).filter(|before| *before != addr)
            && lives(*slot)
        {
            let former = format!("{name}@{before}");
            rename(store, service, (name, &former), *slot).await?;
            tracing::info!(service, backend = name, %before, %addr, "it has another address, where nothing lives yet");
            *known = former;
        }
    }
    for (service, name, addr) in configured() {
        let there = |slot: u16| {
            left.backends[&slot].service != 0
                && (left.backends[&slot].addr, left.backends[&slot].port)
                    == (Addr::from(addr.ip()), Be16::new(addr.port()))
        };
        let is_configured = |known: &str| configured().any(|(s, n, _)| s == service && n == known);
        let own = names.iter().position(|(s, n, _)| s == service && n == name);
        let other = names.iter().position(|(s, n, slot)| {
            s == service && !is_configured(n) && left.backends.contains_key(slot) && there(*slot)
        });
        let Some(other) = other else { continue };
        if own.is_some() {
            // Nothing lives there, or it would have another name by now.
            store.forget_slot(service, name).await?;
        }
        let (_, known, slot) = &mut names[other];
        rename(store, service, (known, name), *slot).await?;
        tracing::info!(service, backend = name, before = known, slot, "the same server under another name");
        *known = name.to_owned();
        if let Some(own) = own {
            names.remove(own);
        }
    }
    Ok(())
}

/// If this ends half-way, the slot is a free one, and still stands in the maps with its address: the next start names it again.
async fn rename(
    store: &dyn SessionStore,
    service: &str,
    (from, to): (&str, &str),
    slot: u16,
) -> anyhow::Result<()> {
    store.forget_slot(service, from).await?;
    adopt(store, service, to, slot).await
}

/// Gives a slot that nobody has to a name.
async fn adopt(store: &dyn SessionStore, service: &str, name: &str, slot: u16) -> anyhow::Result<()> {
    let slots = vec![(service.to_owned(), name.to_owned(), slot)];
    Ok(store.adopt(Given { slots, ..Given::default() }).await?)
}

/// Whether something may live at a backend that an earlier lbd left: a flow, or what is recognised without one.
pub(super) fn may_live(left: &Left, slot: u16, flows: u64) -> bool {
    left.backends.get(&slot).is_some_and(|found| {
        let kept = left.services.get(&found.service).is_some_and(|service| {
            let affinity = Affinity::from_bits(service.affinity);
            service.protocol == Protocol::Udp.number()
                && matches!(affinity, Affinity::Signed | Affinity::Learned | Affinity::Quic)
                && State::from_bits(found.state).serves_sessions()
        });
        flows > 0 || found.leaving != 0 || kept
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::MemoryStore;
    use lb_common::backend::Backend;
    use std::collections::BTreeMap;
    use std::path::Path;

    /// Backends `name`, with the last byte of their addresses.
    fn config(backends: &[(&str, u8)]) -> Config {
        let backends = backends.iter().map(|(name, host)| {
            format!("[[service.backend]]\nname = \"{name}\"\naddr = \"192.0.2.{host}:80\"\n")
        });
        let text = "[lbd]\ninterfaces = [\"eth0\"]\n[[service]]\nname = \"shop\"\nvip = \"192.0.2.1:80\"\n";
        let text = text.to_owned() + &backends.collect::<String>();
        Config::parse(Path::new("lb.toml"), &text).unwrap_or_else(|error| panic!("{error}"))
    }

    #[tokio::test]
    async fn slots_stay_with_the_addresses_at_which_something_lives() {
        let before = [("a", 10), ("b", 11), ("c", 12)];
        // What the configuration says then, where something lives, and the names that the slots 0, 1 and 2 have.
        let all = &[0, 1, 2][..];
        for (after, lives, expected) in [
            (&before[..], all, ["a", "b", "c"]),
            (&[("x", 10), ("y", 11), ("z", 12)], all, ["x", "y", "z"]),
            (&[("x", 10), ("b", 11), ("c", 12)], &[], ["x", "b", "c"]),
            (&[("a", 11), ("b", 12), ("c", 10)], all, ["c", "a", "b"]),
            (&[("a", 20), ("b", 11), ("c", 12)], all, ["a@192.0.2.10:80", "b", "c"]),
            (&[("a", 20), ("b", 11), ("c", 12)], &[1, 2], ["a", "b", "c"]),
            (&[("a", 11), ("c", 12)], all, ["a@192.0.2.10:80", "a", "c"]),
            (&[("a", 11), ("c", 12)], &[1, 2], ["", "a", "c"]),
            (&[("d", 20)], all, ["a", "b", "c"]),
        ] {
            let store = MemoryStore::default();
            let mut left = Left::default();
            for (name, host) in before {
                let slot = store.slot("shop", name).await.unwrap();
                let addr = IpAddr::from([192, 0, 2, host]).into();
                let found = Backend { addr, port: Be16::new(80), service: 1, ..Backend::default() };
                left.backends.insert(slot, found);
            }
            let config = config(after);
            keep_to_addresses(&config, &store, &left, &|slot| lives.contains(&slot)).await.unwrap();
            let slots = store.slots().await.unwrap();
            let names: BTreeMap<_, _> = slots.iter().map(|(_, name, slot)| (*slot, name.as_str())).collect();
            let names = [0, 1, 2].map(|slot| names.get(&slot).copied().unwrap_or(""));
            assert_eq!(names, expected, "{after:?}, {lives:?}");
            assert!(slots.len() <= 3);
        }
    }

    #[tokio::test]
    async fn a_slot_that_lost_its_name_half_way_is_given_to_nobody_else() {
        for (after, lives, expected) in [
            (&[("a", 10), ("b", 11)], true, [("a", 0), ("b", 1)]),
            (&[("a", 20), ("b", 11)], true, [("a", 2), ("b", 1)]),
            (&[("a", 20), ("b", 11)], false, [("a", 0), ("b", 1)]),
        ] {
            let store = MemoryStore::default();
            let mut left = Left::default();
            for (slot, name, host) in [(0, "a", 10), (1, "b", 11)] {
                assert_eq!(store.slot("shop", name).await.unwrap(), slot);
                let addr = IpAddr::from([192, 0, 2, host]).into();
                let found = Backend { addr, port: Be16::new(80), service: 1, ..Backend::default() };
                left.backends.insert(slot, found);
            }
            store.forget_slot("shop", "a").await.unwrap();
            let config = config(after);
            keep_to_addresses(&config, &store, &left, &|_| lives).await.unwrap();
            for (name, slot) in expected {
                assert_eq!(store.slot("shop", name).await.unwrap(), slot, "{name}: {after:?}, {lives}");
            }
        }
    }
}
