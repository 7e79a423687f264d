//! How QUIC connection ids are read, written into the maps.

use super::error::DatapathError;
use super::maps::Maps;
use bytemuck::Zeroable;
use lb_common::quic_lb::{Config, ROTATIONS, Server};

impl Maps {
    /// Makes the maps say this of a service, and nothing else. What an id says leads nowhere before its server is known, and
    /// servers go when no id is read that names them.
    pub(super) fn write_quic(
        &mut self,
        service: u16,
        configs: &[Config],
        servers: &[(Server, u16)],
    ) -> Result<(), DatapathError> {
        for (server, slot) in servers {
            self.quic_servers
                .insert(server, u32::from(*slot), 0)
                .map_err(DatapathError::system("cannot write map QUIC_SERVERS"))?;
        }
        for rotation in 0..ROTATIONS {
            let config = configs.iter().find(|config| u32::from(config.rotation) == rotation);
            let config = config.copied().unwrap_or_else(Config::zeroed);
            let index = u32::from(service) * ROTATIONS + rotation;
            let present = self.quic_configs.get(&index, 0);
            if present.map_err(DatapathError::system("cannot read map QUIC_CONFIGS"))? != config {
                self.quic_configs
                    .set(index, config, 0)
                    .map_err(DatapathError::system("cannot write map QUIC_CONFIGS"))?;
            }
        }
        let found: Result<Vec<Server>, _> = self.quic_servers.keys().collect();
        let found = found.map_err(DatapathError::system("cannot read map QUIC_SERVERS"))?;
        for server in found.iter().filter(|server| server.service == service) {
            let slot = self.quic_servers.get(server, 0);
            let slot = slot.map_err(DatapathError::system("cannot read map QUIC_SERVERS"))?;
            let wanted = servers.iter().any(|(wanted, _)| wanted == server);
            // Of a backend that is leaving: its ids lead there until it has left.
            let leaving = servers.iter().all(|(_, known)| u32::from(*known) != slot) && {
                let backend = self.backends.get(&slot, 0);
                backend.map_err(DatapathError::system("cannot read map BACKENDS"))?.service == service
            };
            if !wanted && !leaving {
                self.remove_quic_server(server)?;
            }
        }
        Ok(())
    }

    /// Takes the server ids of a backend out that is gone.
    pub(super) fn forget_quic_servers(&mut self, slot: u16) -> Result<(), DatapathError> {
        let found: Result<Vec<(Server, u32)>, _> = self.quic_servers.iter().collect();
        let found = found.map_err(DatapathError::system("cannot read map QUIC_SERVERS"))?;
        found
            .iter()
            .filter(|(_, named)| *named == u32::from(slot))
            .try_for_each(|(server, _)| self.remove_quic_server(server))
    }

    fn remove_quic_server(&mut self, server: &Server) -> Result<(), DatapathError> {
        self.quic_servers.remove(server).map_err(DatapathError::system("cannot write map QUIC_SERVERS"))
    }
}
