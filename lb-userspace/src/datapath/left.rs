//! What an earlier daemon left in the maps, so that its successor can go on where it stopped.

use super::Datapath;
use super::error::DatapathError;
use aya::maps::{Array, MapData};
use lb_common::backend::Backend;
use lb_common::quic_lb::Server;
use lb_common::service::Service;
use std::collections::BTreeMap;

/// Services by id and backends by slot; empty when the maps are new.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Left {
    pub services: BTreeMap<u16, Service>,
    pub backends: BTreeMap<u16, Backend>,
    /// Which server ids of QUIC connection ids lead to which slots.
    pub quic: Vec<(Server, u16)>,
}

impl Datapath {
    /// What stands in the maps now. Ask before anything is written.
    ///
    /// # Errors
    /// A map cannot be read.
    pub fn left(&self) -> Result<Left, DatapathError> {
        if !self.loaded.inherited {
            return Ok(Left::default());
        }
        let maps = &self.loaded.maps;
        Ok(Left {
            services: used(&maps.services, "SERVICES")?,
            backends: used(&maps.backends, "BACKENDS")?,
            quic: self.writer.quic.iter().map(|(server, slot)| (*server, *slot)).collect(),
        })
    }
}

/// All entries that are not zero. Indices of both maps fit in 16 bits, as the limits were checked to.
fn used<V: aya::Pod + Default + PartialEq>(
    map: &Array<MapData, V>,
    name: &str,
) -> Result<BTreeMap<u16, V>, DatapathError> {
    let mut found = BTreeMap::new();
    for index in 0..map.len() {
        let value = map.get(&index, 0).map_err(DatapathError::system(format!("cannot read map {name}")))?;
        if value != V::default() {
            found.insert(index as u16, value);
        }
    }
    Ok(found)
}
