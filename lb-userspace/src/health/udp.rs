//! A datagram to a backend, and what comes of it.

use super::failure::Failure;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::time::Duration;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

/// Longest answer that is looked at, in bytes.
const MAX_ANSWER: usize = 2048;
/// So much of a wrong answer is told.
const TOLD: usize = 60;

/// Sends a datagram and waits for an answer that contains `expect`.
pub(super) async fn ask(
    addr: SocketAddr,
    send: &[u8],
    expect: &[u8],
    timeout: Duration,
) -> Result<(), Failure> {
    let socket = connected(addr).await?;
    socket.send(send).await?;
    let until = Instant::now() + timeout;
    let mut answer = [0; MAX_ANSWER];
    let mut wrong = None;
    loop {
        match timeout_at(until, socket.recv(&mut answer)).await {
            Ok(Ok(length)) if contains(&answer[..length], expect) => return Ok(()),
            Ok(Ok(length)) => wrong = Some(answer[..length.min(TOLD)].escape_ascii().to_string()),
            Ok(Err(error)) => return Err(error.into()),
            Err(_) => {
                return Err(Failure::Backend(match wrong {
                    Some(wrong) => format!("its answer does not contain what is expected: {wrong}"),
                    None => format!("no answer within {timeout:?}"),
                }));
            }
        }
    }
}

fn contains(answer: &[u8], expect: &[u8]) -> bool {
    expect.is_empty() || answer.windows(expect.len()).any(|part| part == expect)
}

/// A socket on which a backend is sent empty datagrams.
#[derive(Debug)]
pub(super) struct Knocker(UdpSocket);

impl Knocker {
    pub(super) async fn new(addr: SocketAddr) -> Result<Self, Failure> {
        let socket = connected(addr).await?;
        tell_every_error(&socket)?;
        Ok(Self(socket))
    }

    /// Sends an empty datagram. Returns whether anything was heard of the backend. Fails when somebody says that it did not
    /// arrive, within the timeout or since the last time; throw the socket away then.
    pub(super) async fn knock(&self, timeout: Duration) -> Result<bool, Failure> {
        self.0.send(&[]).await?;
        let until = Instant::now() + timeout;
        let mut answer = [0; 1];
        let mut heard = false;
        loop {
            match timeout_at(until, self.0.recv(&mut answer)).await {
                // Whatever it says: somebody is there. The rest of the time is for those who are not.
                Ok(Ok(_)) => heard = true,
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => return Ok(heard),
            }
        }
    }
}

async fn connected(addr: SocketAddr) -> io::Result<UdpSocket> {
    let any = match addr {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(addr).await?;
    Ok(socket)
}

/// Without this only a closed port is an error, not a host that cannot be reached.
fn tell_every_error(socket: &UdpSocket) -> io::Result<()> {
    let (level, name) = match socket.local_addr()? {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_RECVERR),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVERR),
    };
    let on: libc::c_int = 1;
    let length = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the option is an int, which is valid for reads of the length given.
    let outcome =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const on).cast(), length) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
