//! What programs built with `cargo xtask build --trace` say of each packet, as log events. Ordinary programs say nothing,
//! and then nothing runs here.

use super::{Datapath, DatapathError};
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The map through which the programs log, if they do.
const LOGS: &str = "AYA_LOGS";

impl Datapath {
    /// Logs what the programs say, in the background, when they were built to.
    ///
    /// # Errors
    /// Their ring buffer cannot be read.
    pub fn log_packets(&mut self) -> Result<(), DatapathError> {
        if self.loaded.ebpf.map(LOGS).is_none() {
            return Ok(());
        }
        let unreadable = || "cannot read what the traced programs log".to_owned();
        let logger = EbpfLogger::init(&mut self.loaded.ebpf)
            .map_err(|error| DatapathError::system(unreadable())(std::io::Error::other(error)))?;
        // SAFETY: the logger owns the ring buffer's descriptor and keeps it open as long as it lives.
        let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
            .map_err(|error| DatapathError::system(unreadable())(error))?;
        tracing::warn!("the programs were built with --trace and log every packet of a service: slow");
        tokio::spawn(async move {
            while let Ok(mut ready) = logger.readable_mut().await {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        });
        Ok(())
    }
}
