//! TCP by hand, frame by frame, through a packet socket at an end point: for what no kernel would send.
//!
//! Uses an address that the kernel of that namespace does not own, so that it neither answers nor resets.

use crate::frame::{ACK, Opt, PSH, SYN, Segment};
use crate::topology::{Host, NIC};
use anyhow::{Context, Result, bail};
use socket2::{Domain, SockAddr, SockAddrStorage, Socket, Type};
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

/// How long a segment that must come may take.
pub const SOON: Duration = Duration::from_secs(5);
/// How long to wait for one that must not come.
pub const QUIET: Duration = Duration::from_millis(150);

/// A packet socket and the address it speaks for.
pub struct Wire<'a> {
    socket: Socket,
    host: &'a Host,
    pub ip: Ipv4Addr,
}

impl<'a> Wire<'a> {
    /// Takes address `.99` of the host's subnet. The host needs an XDP program on its interface (see
    /// [`crate::world::World`]), because receive offload, which would merge segments, is switched off.
    pub fn open(host: &'a Host) -> Result<Self> {
        let [a, b, c, _] = host.ip.octets();
        host.netns.sysctl("ipv4/conf/all/forwarding", 0)?;
        host.netns.sh(&format!("ethtool -K {NIC} gro off"))?;
        let ethertype = libc::ETH_P_IP as u16;
        let socket = host
            .netns
            .run(|| Socket::new(Domain::from(libc::AF_PACKET), Type::from(libc::SOCK_RAW), None))?;
        let mut storage = SockAddrStorage::zeroed();
        // SAFETY: the storage is large enough for every kind of address, and all zero is a valid sockaddr_ll.
        let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
        link.sll_family = libc::AF_PACKET as u16;
        link.sll_protocol = ethertype.to_be();
        link.sll_ifindex = host.netns.ifindex(NIC)?.cast_signed();
        // SAFETY: a sockaddr_ll was written above.
        let address = unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as libc::socklen_t) };
        socket.bind(&address).context("binding a packet socket")?;
        Ok(Self { socket, host, ip: Ipv4Addr::new(a, b, c, 99) })
    }

    /// Sends a segment to the gateway; MAC addresses are filled in.
    pub fn send(&self, segment: &Segment) -> Result<()> {
        let segment = segment.clone().macs(self.host.mac, self.host.via.mac);
        self.socket.send(&segment.bytes()).with_context(|| format!("sending {segment}"))?;
        Ok(())
    }

    /// The next segment for this address, or `None` when none comes in time.
    ///
    /// # Panics
    /// When one is malformed.
    pub fn next(&self, within: Duration) -> Result<Option<Segment>> {
        let deadline = Instant::now() + within;
        let mut buffer = [0u8; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            let n = match std::io::Read::read(&mut &self.socket, &mut buffer) {
                Ok(n) => n,
                Err(e) if matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => continue,
                Err(e) => return Err(e.into()),
            };
            match Segment::parse_lenient(&buffer[..n]) {
                Ok(segment) if *segment.dst.ip() == self.ip => {
                    let strict = Segment::parse(&buffer[..n]);
                    return Ok(Some(strict.unwrap_or_else(|why| panic!("{why}: {segment}"))));
                }
                _ => {}
            }
        }
    }

    /// The next segment, which must come.
    pub fn expect(&self, what: &str) -> Result<Segment> {
        self.next(SOON)?.with_context(|| format!("{what} did not come"))
    }

    /// The next segment for which `is` holds; others are passed over.
    pub fn expect_where(&self, what: &str, is: impl Fn(&Segment) -> bool) -> Result<Segment> {
        let deadline = Instant::now() + SOON;
        let mut others = Vec::new();
        while let Some(segment) = self.next(deadline.saturating_duration_since(Instant::now()))? {
            if is(&segment) {
                return Ok(segment);
            }
            others.push(segment);
        }
        bail!("{what} did not come; what came: {others:?}")
    }

    /// Nothing must come for a while.
    pub fn expect_silence(&self) -> Result<()> {
        match self.next(QUIET)? {
            None => Ok(()),
            Some(segment) => bail!("unexpected: {segment}"),
        }
    }
}

/// One end of a hand-made connection: what to put into the next segment.
pub struct Peer<'a> {
    pub wire: &'a Wire<'a>,
    pub local: SocketAddrV4,
    pub remote: SocketAddrV4,
    /// Sequence number of the next byte we send.
    pub seq: u32,
    /// Of the next byte we expect.
    pub ack: u32,
    pub window: u16,
    /// TSval to send and to echo, when timestamps are in use.
    pub stamps: Option<(u32, u32)>,
    /// The other end's SYN or SYN-ACK.
    pub theirs: Segment,
}

impl<'a> Peer<'a> {
    /// Sends a SYN with these options and takes the SYN-ACK; the handshake's ACK is left to the caller.
    pub fn dial(
        wire: &'a Wire<'a>,
        port: u16,
        remote: SocketAddrV4,
        isn: u32,
        options: Vec<Opt>,
    ) -> Result<Self> {
        let local = SocketAddrV4::new(wire.ip, port);
        let syn = Segment::new(local, remote).seq(isn).flags(SYN).options(options);
        wire.send(&syn)?;
        let theirs = wire.expect_where("the SYN-ACK", |s| s.dst == local && s.has(SYN | ACK))?;
        let stamps = syn.timestamp().zip(theirs.timestamp()).map(|((val, _), (echo, _))| (val + 1, echo));
        Ok(Self {
            wire,
            local,
            remote,
            seq: isn.wrapping_add(1),
            ack: theirs.end(),
            window: 64_240,
            stamps,
            theirs,
        })
    }

    /// Takes a SYN and answers it with these options.
    pub fn accept(wire: &'a Wire<'a>, local: SocketAddrV4, isn: u32, options: Vec<Opt>) -> Result<Self> {
        let theirs = wire.expect_where("a SYN", |s| s.dst == local && s.flags & (SYN | ACK) == SYN)?;
        let synack =
            Segment::new(local, theirs.src).seq(isn).ack(theirs.end()).flags(SYN | ACK).options(options);
        wire.send(&synack)?;
        let stamps = synack.timestamp().zip(theirs.timestamp()).map(|((val, _), (echo, _))| (val + 1, echo));
        Ok(Self {
            wire,
            local,
            remote: theirs.src,
            seq: isn.wrapping_add(1),
            ack: theirs.end(),
            window: 64_240,
            stamps,
            theirs,
        })
    }

    /// A segment at the present place, not sent yet.
    pub fn segment(&self, flags: u8, payload: &[u8]) -> Segment {
        let segment = Segment::new(self.local, self.remote)
            .seq(self.seq)
            .ack(self.ack)
            .flags(ACK | flags)
            .window(self.window)
            .payload(payload);
        match self.stamps {
            Some((val, echo)) => segment.timestamps(val, echo),
            None => segment,
        }
    }

    /// Sends it and moves on.
    pub fn send(&mut self, flags: u8, payload: &[u8]) -> Result<Segment> {
        let segment = self.segment(flags, payload);
        self.wire.send(&segment)?;
        self.seq = segment.end();
        Ok(segment)
    }

    /// Sends payload with PSH.
    pub fn push(&mut self, payload: &[u8]) -> Result<Segment> {
        self.send(PSH, payload)
    }

    /// The next segment of this connection; moves on when it is the expected one.
    pub fn expect(&mut self, what: &str) -> Result<Segment> {
        let (local, remote) = (self.local, self.remote);
        let segment = self.wire.expect_where(what, |s| s.dst == local && s.src == remote)?;
        if segment.seq == self.ack {
            self.ack = segment.end();
        }
        if let (Some((_, echo)), Some((val, _))) = (&mut self.stamps, segment.timestamp()) {
            *echo = val;
        }
        Ok(segment)
    }

    /// Reads segments until `n` bytes of payload have come in order.
    pub fn read(&mut self, n: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        while bytes.len() < n {
            let before = self.ack;
            let segment = self.expect(&format!("byte {} of {n}", bytes.len()))?;
            if segment.seq == before {
                bytes.extend(segment.payload);
            }
        }
        Ok(bytes)
    }
}
