//! Questions and orders to the kernel's network configuration (rtnetlink), one at a time and synchronously: the kernel
//! answers within the system call, so there is nothing to wait for.

use super::NetError;
use rtnetlink::packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage,
    NetlinkPayload,
};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use std::io;

/// What may happen to the object that an order names.
pub(crate) const CREATE: u16 = NLM_F_CREATE | NLM_F_EXCL;
/// As [`CREATE`], but an object that exists is changed.
pub(crate) const REPLACE: u16 = NLM_F_CREATE | rtnetlink::packet_core::NLM_F_REPLACE;

/// A netlink socket. It belongs to the network namespace in which it was opened, wherever it is used.
#[derive(Debug)]
pub struct Rtnl {
    socket: Socket,
    sequence: u32,
}

impl Rtnl {
    /// A socket in the network namespace of the calling thread.
    ///
    /// # Errors
    /// None can be had.
    pub fn open() -> Result<Self, NetError> {
        let open = || {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(Self { socket, sequence: 0 })
        };
        open().map_err(NetError::kernel("cannot open a netlink socket"))
    }

    /// Gives an order.
    pub(crate) fn order(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.exchange(message, NLM_F_ACK | flags).map(|_| ())
    }

    /// Asks for one object; `None` when there is no such.
    pub(crate) fn ask(&mut self, message: RouteNetlinkMessage) -> io::Result<Option<RouteNetlinkMessage>> {
        match self.exchange(message, NLM_F_ACK) {
            Ok(answers) => Ok(answers.into_iter().next()),
            Err(error) if is_absent(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Asks for all objects of a kind.
    pub(crate) fn list(&mut self, message: RouteNetlinkMessage) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.exchange(message, NLM_F_DUMP)
    }

    fn exchange(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<RouteNetlinkMessage>> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(message);
        message.header.flags = NLM_F_REQUEST | flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let mut answers = Vec::new();
        loop {
            let (datagram, _) = self.socket.recv_from_full()?;
            for answer in parse(&datagram) {
                // An answer to an earlier question that was given up.
                if answer.header.sequence_number != self.sequence {
                    continue;
                }
                match answer.payload {
                    NetlinkPayload::Done(_) => return Ok(answers),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(answers),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(message) => answers.push(message),
                    _ => {}
                }
            }
        }
    }
}

/// The messages of a datagram. One that this version of the netlink library cannot read is passed over: kernels grow
/// attributes, and what we need is in the others.
pub(crate) fn parse(datagram: &[u8]) -> Vec<NetlinkMessage<RouteNetlinkMessage>> {
    let mut messages = Vec::new();
    let mut rest = datagram;
    while let Ok(header) = NetlinkBuffer::new_checked(rest) {
        let len = header.length() as usize;
        match NetlinkMessage::deserialize(&rest[..len]) {
            Ok(message) => messages.push(message),
            Err(error) => tracing::debug!(%error, "unreadable netlink message"),
        }
        // Messages begin at multiples of four bytes.
        match rest.get(len.next_multiple_of(4)..) {
            Some(next) if !next.is_empty() && len > 0 => rest = next,
            _ => break,
        }
    }
    messages
}

/// Whether an error says that the object does not exist.
pub(crate) fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::EADDRNOTAVAIL | libc::ENXIO)
    )
}
