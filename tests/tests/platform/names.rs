//! Names of servers and their pools in the maps: none leads to another one's backends at any moment, and all of them find room.

use crate::town::{Town, ip};
use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, Map, MapData};
use lb_common::maglev::{BLOCK, Block};
use lb_common::name::{EXACT, Name, Pool, WILDCARD, hash};
use lb_common::service::Service;
use lb_common::settings::Settings;
use lb_userspace::datapath::{Datapath, DatapathOptions, Listed, MapWrite};
use std::collections::BTreeMap;

const SERVICE: u16 = 1;

fn options(town: &Town) -> DatapathOptions {
    let mut options = town.options();
    (options.limits.names, options.limits.pools, options.limits.pool_maglev_size) = (4, 2, 257);
    options
}

/// A pool whose table names one slot.
fn pool(id: u64, slot: u16) -> MapWrite {
    MapWrite::Pool { id, maglev: vec![slot; 257] }
}

fn listed(kind: u16, text: &str, pool: u64) -> Listed {
    Listed { kind, text: text.to_owned(), pool }
}

fn names(names: &[(u16, &str, u64)]) -> MapWrite {
    let listed = names.iter().map(|(kind, text, pool)| listed(*kind, text, *pool)).collect();
    MapWrite::Names { service: SERVICE, listed }
}

/// The pinned maps.
struct Pinned {
    settings: Array<MapData, Settings>,
    names: HashMap<MapData, Name, u32>,
    pools: Array<MapData, Pool>,
    maglev: Array<MapData, Block>,
}

impl Pinned {
    fn open(town: &Town) -> Result<Self> {
        let pin = |name: &str| -> Result<MapData> {
            let pin = town.pins().into_iter().find(|pin| pin.ends_with(name)).context("pinned")?;
            Ok(MapData::from_pin(pin)?)
        };
        Ok(Self {
            settings: Array::try_from(Map::Array(pin("SETTINGS")?))?,
            names: HashMap::try_from(Map::HashMap(pin("NAMES")?))?,
            pools: Array::try_from(Map::Array(pin("POOLS")?))?,
            maglev: Array::try_from(Map::Array(pin("MAGLEV")?))?,
        })
    }

    /// The slots that a name leads to, if it leads anywhere.
    fn leads_to(&self, kind: u16, text: &str) -> Result<Option<Vec<u16>>> {
        let key = self.settings.get(&0, 0)?.name_key;
        let name = Name { hash: hash(&key, text.as_bytes()), service: SERVICE, kind, _pad: 0 };
        let Ok(index) = self.names.get(&name, 0) else { return Ok(None) };
        let pool = self.pools.get(&index, 0)?;
        let mut slots = Vec::new();
        for entry in 0..pool.size {
            let block = self.maglev.get(&(pool.base + entry / BLOCK as u32), 0)?;
            slots.push(block.0[entry as usize % BLOCK]);
        }
        slots.dedup();
        Ok(Some(slots))
    }

    /// Index of every pool, by its id.
    fn indices(&self) -> Result<BTreeMap<u64, u32>> {
        let mut found = BTreeMap::new();
        for index in 0..self.pools.len() {
            let pool = self.pools.get(&index, 0)?;
            if pool.id != 0 {
                found.insert(pool.id, index);
            }
        }
        Ok(found)
    }
}

fn open(town: &Town) -> Result<Datapath> {
    let mut datapath = town.open_with(&options(town))?;
    let service = Service { addr: ip(100).into(), ..Service::default() };
    datapath.apply(&[MapWrite::Service { id: SERVICE, service, maglev: Some(vec![9; 251]) }])?;
    Ok(datapath)
}

#[test]
fn names_lead_on_while_one_daemon_takes_over_from_another() -> Result<()> {
    let town = Town::build()?;
    let mut first = open(&town)?;
    first.apply(&[
        pool(7, 1),
        pool(8, 2),
        names(&[(EXACT, "a.x", 7), (WILDCARD, "x", 8), (EXACT, "b.x", 8)]),
    ])?;
    let pinned = Pinned::open(&town)?;
    let leads = |kind, text| pinned.leads_to(kind, text);
    assert_eq!((leads(EXACT, "a.x")?, leads(WILDCARD, "x")?), (Some(vec![1]), Some(vec![2])));
    assert_eq!((leads(EXACT, "x")?, leads(WILDCARD, "a.x")?), (None, None), "one is not the other");
    first.apply(&[pool(7, 3)])?;
    assert_eq!(leads(EXACT, "a.x")?, Some(vec![3]), "a new table");
    first.apply(&[MapWrite::Pool { id: 7, maglev: Vec::new() }])?;
    assert_eq!(leads(EXACT, "a.x")?, Some(vec![]), "nobody is ready");
    first.apply(&[pool(7, 1)])?;
    let error = first.apply(&[pool(9, 1)]).expect_err("two pools at most").to_string();
    assert!(error.contains("pool 2 is beyond the limit of 2: raise `pools`"), "{error}");
    let key = pinned.settings.get(&0, 0)?.name_key;
    assert_ne!(key, [0; 2], "a secret is drawn");
    let before = pinned.indices()?;
    drop(first);

    // Pool 8 has got another backend, so it is another one.
    let mut second = open(&town)?;
    assert_eq!(pinned.settings.get(&0, 0)?.name_key, key, "names are found by the same hash");
    second.apply(&[pool(7, 1), pool(9, 4)])?;
    assert_eq!((leads(EXACT, "a.x")?, leads(WILDCARD, "x")?), (Some(vec![1]), Some(vec![2])), "as before");
    assert_eq!(pinned.indices()?[&7], before[&7], "the same backends, the same place");
    second.apply(&[names(&[(EXACT, "a.x", 9), (WILDCARD, "x", 7), (EXACT, "c.x", 7), (EXACT, "d.x", 7)])])?;
    assert_eq!((leads(EXACT, "a.x")?, leads(WILDCARD, "x")?), (Some(vec![4]), Some(vec![1])));
    assert_eq!(leads(EXACT, "b.x")?, Some(vec![2]), "not before all is settled");
    second.settle()?;
    assert_eq!((leads(EXACT, "b.x")?, leads(EXACT, "c.x")?), (None, Some(vec![1])));
    assert_eq!(pinned.indices()?.into_keys().collect::<Vec<_>>(), [7, 9]);
    drop(second);
    open(&town)?.settle()?;
    assert_eq!((pinned.names.keys().count(), pinned.indices()?.len()), (0, 0), "no longer configured");
    Ok(())
}

/// Daemons that end before they are settled leave all that they have written.
#[test]
fn what_many_daemons_have_left_leaves_room() -> Result<()> {
    let town = Town::build()?;
    for round in 1..=6_u16 {
        let mut daemon = open(&town)?;
        let text = |n: u16| format!("{round}-{n}.x");
        let id = |n: u16| u64::from(10 * round + n);
        daemon.apply(&[pool(id(1), 1), pool(id(2), 2)])?;
        let all = (0..4).map(|n| listed(EXACT, &text(n), id(1 + n % 2))).collect();
        daemon.apply(&[MapWrite::Names { service: SERVICE, listed: all }])?;
        let pinned = Pinned::open(&town)?;
        for n in 0..4 {
            assert_eq!(pinned.leads_to(EXACT, &text(n))?, Some(vec![1 + n % 2]), "{round}: {}", text(n));
        }
        if round > 1 {
            // Of the one before: where it led, or nowhere any more.
            let before = pinned.leads_to(EXACT, &format!("{}-0.x", round - 1))?;
            assert!(before.is_none() || before == Some(vec![1]), "{round}: {before:?}");
        }
    }
    Ok(())
}
