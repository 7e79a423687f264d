//! Why a probe brought no sign of life: the backend's doing, or this host's.

use std::io;

/// Why a probe failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// Counts against the backend.
    Backend(String),
    /// This host could not ask: says nothing of the backend.
    Local(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        if is_local(&error) { Self::Local(error) } else { Self::Backend(error.to_string()) }
    }
}

/// Whether this host lacks what it takes to ask: descriptors, memory, ports. An unreachable network is not among these: the
/// backend's clients are served by way of the same routes.
fn is_local(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(
            libc::EMFILE
                | libc::ENFILE
                | libc::ENOBUFS
                | libc::ENOMEM
                | libc::EADDRNOTAVAIL
                | libc::EADDRINUSE
                // Of `connect`: no port is free.
                | libc::EAGAIN
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_host_lacks_is_no_failure_of_a_backend() {
        for (code, local) in [
            (libc::EMFILE, true),
            (libc::ENFILE, true),
            (libc::ENOBUFS, true),
            (libc::ENOMEM, true),
            (libc::EADDRNOTAVAIL, true),
            (libc::EADDRINUSE, true),
            (libc::EAGAIN, true),
            (libc::ECONNREFUSED, false),
            (libc::ECONNRESET, false),
            (libc::EHOSTUNREACH, false),
            (libc::ENETUNREACH, false),
            (libc::ETIMEDOUT, false),
        ] {
            let error = io::Error::from_raw_os_error(code);
            assert_eq!(matches!(Failure::from(error), Failure::Local(_)), local, "{code}");
        }
    }
}
