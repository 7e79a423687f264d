//! Sees to the devices that frames pass: at start, and again and again, because containers come and go.

use super::{Daemon, Event, chain};
use crate::datapath::Mode;
use crate::net::devices::{Care, Port, tend};
use crate::net::{NetError, Search};
use std::time::{Duration, Instant};

/// How often they are looked at.
const EVERY: Duration = Duration::from_secs(10);

impl Daemon {
    /// Before anybody counts on them.
    pub(super) fn tend_devices_at_start(&mut self) -> Result<(), NetError> {
        let wrong = tend(&self.ports(), self.care(Search::Thorough))?;
        self.heed_devices(wrong);
        Ok(())
    }

    /// Has them looked at on a thread that may wait, if it is time.
    pub(super) fn tend_devices(&mut self) {
        if self.tended.elapsed() < EVERY {
            return;
        }
        self.tended = Instant::now();
        let (ports, care, reports) = (self.ports(), self.care(Search::Quick), self.epochs.clone());
        tokio::task::spawn_blocking(move || match tend(&ports, care) {
            // Who has ended does not want to know.
            Ok(wrong) => drop(reports.send(Event::Devices(wrong))),
            Err(error) => tracing::warn!(error = %chain(&error), "the devices were not looked at"),
        });
    }

    /// Logs what is new.
    pub(super) fn heed_devices(&mut self, wrong: Vec<String>) {
        for what in wrong.iter().filter(|what| !self.devices.contains(what)) {
            tracing::warn!("{what}");
        }
        self.devices = wrong;
    }

    /// The interfaces of the configuration; lbd makes those of managed servers as they must be.
    fn ports(&self) -> Vec<Port> {
        let ours = |name: &str| self.config.lbd.interfaces.iter().any(|configured| configured == name);
        let ports = self.datapath.interfaces().filter(|(name, _)| ours(name));
        ports
            .map(|(name, attached)| Port { name: name.to_owned(), generic: attached.mode == Mode::Generic })
            .collect()
    }

    fn care(&self, search: Search) -> Care {
        Care { set: self.config.lbd.set_offloads, search }
    }
}
