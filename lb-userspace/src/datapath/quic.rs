//! How QUIC connection ids are read, and whose server ids they name, written into the maps.

use super::error::DatapathError;
use super::maps::Maps;
use super::write::Writer;
use bytemuck::Zeroable;
use lb_common::quic_lb::{Config, ROTATIONS, Server};
use std::collections::{BTreeMap, BTreeSet};

impl Writer {
    /// Makes the maps say this of a service, and nothing else. What an id says leads nowhere before its server is known, and
    /// servers go when no id is read that names them.
    pub(super) fn write_quic(
        &mut self,
        maps: &mut Maps,
        service: u16,
        configs: &[Config],
        servers: &[(Server, u16)],
    ) -> Result<(), DatapathError> {
        let mut all = self.quic.clone();
        all.extend(servers.iter().copied());
        self.write_servers(maps, all)?;
        for rotation in 0..ROTATIONS {
            let config = configs.iter().find(|config| u32::from(config.rotation) == rotation);
            let config = config.copied().unwrap_or_else(Config::zeroed);
            let index = u32::from(service) * ROTATIONS + rotation;
            let present = maps.quic_configs.get(&index, 0);
            if present.map_err(DatapathError::system("cannot read map QUIC_CONFIGS"))? != config {
                maps.quic_configs
                    .set(index, config, 0)
                    .map_err(DatapathError::system("cannot write map QUIC_CONFIGS"))?;
            }
        }
        let mut kept = self.quic.clone();
        for (server, slot) in self.quic.iter().filter(|(server, _)| server.service == service) {
            let wanted = servers.iter().any(|(wanted, _)| wanted == server);
            // Of a backend that is leaving: its ids lead there until it has left.
            let leaving =
                servers.iter().all(|(_, known)| known != slot) && maps.backend(*slot)?.service == service;
            if !wanted && !leaving {
                kept.remove(server);
            }
        }
        self.write_servers(maps, kept)
    }

    /// Takes the server ids of backends out that are on their way out of their slots, before anybody else has those.
    pub(super) fn forget_quic_servers(
        &mut self,
        maps: &mut Maps,
        slots: &BTreeSet<u16>,
    ) -> Result<(), DatapathError> {
        let mut kept = self.quic.clone();
        kept.retain(|_, named| !slots.contains(named));
        self.write_servers(maps, kept)
    }

    /// Makes these the servers that are known, all at once.
    fn write_servers(&mut self, maps: &mut Maps, all: BTreeMap<Server, u16>) -> Result<(), DatapathError> {
        if all == self.quic {
            return Ok(());
        }
        let next = self.servers.write(maps, self.settings.quic_live, &all)?;
        // The seed first, then the half that it belongs to.
        self.settings.quic_seed[next.half] = next.seed;
        self.write_settings(maps)?;
        self.settings.quic_live = next.live;
        self.write_settings(maps)?;
        self.servers.flipped();
        self.quic = all;
        Ok(())
    }
}
