//! The trace's ring buffer, as decisions.

use super::error::DatapathError;
use aya::maps::{MapData, RingBuf};
use lb_common::trace::Decision;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// What the programs tell. There is one reader; it costs nothing while nothing is told.
pub struct Decisions(AsyncFd<Ring>);

struct Ring(RingBuf<MapData>);

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Decisions {
    /// To be called on a tokio runtime.
    pub(super) fn new(ring: RingBuf<MapData>) -> Result<Self, DatapathError> {
        // SAFETY: the descriptor is the map's, which the ring owns and keeps open until it is dropped, after the registration.
        let registered = unsafe { AsyncFd::register_with_interest(Ring(ring), Interest::READABLE) };
        registered.map(Self).map_err(DatapathError::system("cannot wait for map TRACE"))
    }

    /// Waits until there are decisions and takes up to `most` of them. May return none.
    ///
    /// # Errors
    /// The runtime is going away.
    pub async fn next(&mut self, most: usize) -> io::Result<Vec<Decision>> {
        let mut guard = self.0.readable_mut().await?;
        let mut decisions = Vec::new();
        while decisions.len() < most {
            let Some(record) = guard.get_inner_mut().0.next() else {
                guard.clear_ready();
                break;
            };
            if record.len() == size_of::<Decision>() {
                decisions.push(bytemuck::pod_read_unaligned(&record));
            } else {
                tracing::debug!(bytes = record.len(), "no decision in map TRACE");
            }
        }
        Ok(decisions)
    }
}
