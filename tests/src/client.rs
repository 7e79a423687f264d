//! An HTTP client on the client's own kernel, and what a socket tells about its connection.

use crate::balancer::dial;
use crate::netns::Netns;
use crate::server::{content_length, matches_pattern, send_pattern};
use anyhow::{Context, Result, bail, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

/// Longer than any retransmission that a test provokes: only a hang is this slow.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// Waits until `is` holds.
///
/// # Panics
/// When it does not within [`WATCHDOG`].
pub fn eventually(what: &str, mut is: impl FnMut() -> Result<bool>) -> Result<()> {
    let begin = Instant::now();
    while !is()? {
        assert!(begin.elapsed() < WATCHDOG, "still not: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A datagram socket inside a namespace, at a port that no other one of this process has had: a flow is remembered when its
/// socket is closed, and whoever came to the same port by chance would be taken for it.
pub fn datagram_socket(netns: &Netns, from: Ipv4Addr) -> Result<UdpSocket> {
    /// Below those that the system chooses from.
    static NEXT: AtomicU16 = AtomicU16::new(2_000);
    let port = NEXT.fetch_add(1, Ordering::Relaxed);
    ensure!(port < 32_768, "more sockets than there are ports to tell them apart");
    netns.run(|| UdpSocket::bind((from, port))).with_context(|| format!("binding {from}:{port}"))
}

/// One connection.
pub struct Client {
    stream: TcpStream,
    input: BufReader<TcpStream>,
}

/// An answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Response {
    pub head: String,
    pub body: String,
}

impl Client {
    /// Connects to the service from inside a namespace.
    pub fn connect(netns: &Netns) -> Result<Self> {
        Self::connect_from(netns, None)
    }

    /// Connects from a chosen address and port.
    pub fn connect_from(netns: &Netns, from: Option<SocketAddrV4>) -> Result<Self> {
        let socket = netns.run(|| Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)))?;
        if let Some(from) = from {
            socket.set_reuse_address(true)?;
            socket.bind(&SocketAddr::V4(from).into())?;
        }
        socket
            .connect_timeout(&SocketAddr::V4(dial()).into(), WATCHDOG)
            .with_context(|| format!("connecting to {}", dial()))?;
        let stream = TcpStream::from(socket);
        stream.set_read_timeout(Some(WATCHDOG))?;
        stream.set_write_timeout(Some(WATCHDOG))?;
        stream.set_nodelay(true)?;
        let input = BufReader::new(stream.try_clone()?);
        Ok(Self { stream, input })
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// `GET path` with further header lines, each ending in CRLF.
    pub fn get(&mut self, path: &str, headers: &str) -> Result<Response> {
        self.send(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n{headers}\r\n").as_bytes())?;
        self.response()
    }

    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes)?)
    }

    /// Reads one whole answer.
    pub fn response(&mut self) -> Result<Response> {
        let head = self.head()?;
        let mut body = vec![0; content_length(&head) as usize];
        self.input.read_exact(&mut body).context("reading a response's body")?;
        Ok(Response { head, body: String::from_utf8(body)? })
    }

    /// Downloads `n` bytes and compares each with the pattern.
    pub fn download(&mut self, n: u64) -> Result<()> {
        self.send(format!("GET /bytes/{n} HTTP/1.1\r\nHost: shop\r\n\r\n").as_bytes())?;
        ensure!(content_length(&self.head()?) == n, "the answer has another length");
        ensure!(matches_pattern(&mut self.input, n)?, "a downloaded byte differs");
        Ok(())
    }

    /// Uploads `n` bytes; the server compares.
    pub fn upload(&mut self, n: u64) -> Result<()> {
        self.send(format!("POST / HTTP/1.1\r\nHost: shop\r\nContent-Length: {n}\r\n\r\n").as_bytes())?;
        send_pattern(&mut self.stream, n)?;
        let body = self.response()?.body;
        ensure!(body == format!("{n} same"), "the server says: {body}");
        Ok(())
    }

    fn head(&mut self) -> Result<String> {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if self.input.read_line(&mut head).context("reading a response's head")? == 0 {
                bail!("the connection ended in a response's head: {head:?}");
            }
        }
        Ok(head)
    }
}

/// One request on a connection of its own; returns the answer's body.
///
/// # Errors
/// When there is none, or it is of failure.
pub fn get(netns: &Netns, headers: &str) -> Result<String> {
    let response = Client::connect(netns)?.get("/", &format!("{headers}Connection: close\r\n"))?;
    ensure!(response.head.starts_with("HTTP/1.1 2"), "the answer is {}", response.head);
    Ok(response.body)
}

/// What was negotiated on a connection, as the kernel tells by TCP_INFO.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Negotiated {
    pub timestamps: bool,
    pub sack: bool,
    /// By how much the peer's window fields are shifted and ours, when window scaling is on.
    pub window_scales: Option<(u8, u8)>,
    pub snd_mss: u32,
    pub retransmits: u32,
}

/// Asks the kernel about a connection.
pub fn negotiated(stream: &TcpStream) -> Result<Negotiated> {
    // The layout is that of `struct tcp_info` in <linux/tcp.h>.
    let mut info = [0u8; 104];
    let mut len = info.len() as libc::socklen_t;
    // SAFETY: the kernel writes at most `len` bytes to the buffer.
    let failed = unsafe {
        libc::getsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut len,
        )
    };
    ensure!(failed == 0 && len as usize == info.len(), "TCP_INFO: {}", std::io::Error::last_os_error());
    let word = |at: usize| u32::from_ne_bytes([info[at], info[at + 1], info[at + 2], info[at + 3]]);
    let (options, scales) = (info[5], info[6]);
    Ok(Negotiated {
        timestamps: options & 1 != 0,
        sack: options & 2 != 0,
        window_scales: (options & 4 != 0).then_some((scales & 15, scales >> 4)),
        snd_mss: word(16),
        retransmits: word(100),
    })
}
