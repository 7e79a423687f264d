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
        let kept = |server: &Server| servers.iter().any(|(wanted, _)| wanted == server);
        for server in found.iter().filter(|server| server.service == service && !kept(server)) {
            self.quic_servers
                .remove(server)
                .map_err(DatapathError::system("cannot write map QUIC_SERVERS"))?;
        }
        Ok(())
    }
}
