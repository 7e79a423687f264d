//! A connection to a backend, and what it tells of the TCP at its other end.

use super::failure::Failure;
use lb_common::backend::Abilities;
use lb_common::service::{PROMISE_SACK, PROMISE_TIMESTAMPS, PROMISE_WINDOW_SCALE};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;
use tokio::net::TcpStream;

/// Connects, looks at what was agreed, and hangs up.
pub(super) async fn probe(addr: SocketAddr, timeout: Duration) -> Result<Abilities, Failure> {
    let connected = tokio::time::timeout(timeout, TcpStream::connect(addr)).await;
    let stream = match connected {
        Err(_) => return Err(Failure::Backend(format!("no answer within {timeout:?}"))),
        Ok(Err(error)) => return Err(error.into()),
        Ok(Ok(stream)) => stream,
    };
    let abilities =
        learn(&stream).map_err(|error| Failure::Backend(format!("connection without TCP_INFO: {error}")))?;
    // With RST: thousands of checks must not leave thousands of sockets in TIME_WAIT.
    if let Err(error) = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "health check closes slowly");
    }
    Ok(abilities)
}

/// Bits of `tcpi_options` (`linux/tcp.h`).
const TCPI_OPT_TIMESTAMPS: u8 = 1;
const TCPI_OPT_SACK: u8 = 2;
const TCPI_OPT_WSCALE: u8 = 4;
/// Bytes that timestamps take from each segment (RFC 7323 appendix A).
const TIMESTAMPS_LEN: u16 = 12;

/// What a connection says of the TCP at its other end.
fn learn(stream: &TcpStream) -> io::Result<Abilities> {
    // The head of `struct tcp_info`, which has grown at its end ever since; the kernel writes no more than asked for.
    let mut info = [0_u8; 8];
    option(stream, libc::TCP_INFO, &mut info)?;
    let mut mss = [0_u8; 4];
    option(stream, libc::TCP_MAXSEG, &mut mss)?;
    Ok(read_info(&info, u32::from_ne_bytes(mss)))
}

fn option<const N: usize>(stream: &TcpStream, name: libc::c_int, value: &mut [u8; N]) -> io::Result<()> {
    let mut len = N as libc::socklen_t;
    // SAFETY: the value is valid for writes of the length given, and the kernel writes no more.
    let outcome = unsafe {
        libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, name, value.as_mut_ptr().cast(), &raw mut len)
    };
    match outcome {
        0 if len as usize == N => Ok(()),
        0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the kernel knows less than was asked")),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reads state, congestion state, retransmits, probes, backoff, options, window scales; `mss` is what fits in a
/// segment beside the options of every segment.
fn read_info(info: &[u8; 8], mss: u32) -> Abilities {
    let (options, scales) = (info[5], info[6]);
    let mut promises = 0;
    let mut full = u16::try_from(mss).unwrap_or(u16::MAX);
    if options & TCPI_OPT_TIMESTAMPS != 0 {
        promises |= PROMISE_TIMESTAMPS;
        full = full.saturating_add(TIMESTAMPS_LEN);
    }
    if options & TCPI_OPT_SACK != 0 {
        promises |= PROMISE_SACK;
    }
    let mut window_scale = 0;
    if options & TCPI_OPT_WSCALE != 0 {
        promises |= PROMISE_WINDOW_SCALE;
        // Two bit fields in one byte, the other end's first; first is low on little-endian machines.
        window_scale = if cfg!(target_endian = "little") { scales & 15 } else { scales >> 4 };
    }
    Abilities { seen: 1, promises, window_scale, mss: full, ..Abilities::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tcp_info_is_read() {
        let all = Abilities { seen: 1, promises: 7, window_scale: 10, mss: 1460, ..Abilities::default() };
        assert_eq!(read_info(&[1, 0, 0, 0, 0, 7 | 8, 0x7a, 0], 1448), all);
        let none = Abilities { seen: 1, promises: 0, window_scale: 0, mss: 1460, ..Abilities::default() };
        assert_eq!(read_info(&[1, 0, 0, 0, 0, 0, 0xff, 0], 1460), none);
        let sack =
            Abilities { seen: 1, promises: PROMISE_SACK, window_scale: 0, mss: 536, ..Abilities::default() };
        assert_eq!(read_info(&[1, 0, 0, 0, 0, 2, 0, 0], 536), sack);
    }
}
