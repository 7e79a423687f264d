//! Interfaces: what they are, and veth pairs.

use super::NetError;
use super::rtnl::{CREATE, Rtnl, is_absent};
use lb_common::addr::Mac;
use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp, XdpAttached,
};
use rtnetlink::packet_route::tc::{TcAttribute, TcHandle, TcMessage};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::sys::{Socket, protocols::NETLINK_ROUTE};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

/// Longest name of an interface.
pub const MAX_NAME: usize = libc::IFNAMSIZ - 1;

/// An interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// All zero for an interface without Ethernet addresses.
    pub mac: Mac,
    /// Brought up by somebody.
    pub up: bool,
    /// Packets can pass.
    pub running: bool,
    pub mtu: u32,
    /// `veth`, `vlan`, … or nothing for hardware.
    pub kind: String,
    /// A note that somebody left on it.
    pub alias: String,
    /// The other end of a veth pair: its index and the id of its namespace as seen from this one (`None`: the same).
    pub peer: Option<(u32, Option<i32>)>,
    /// The device that it is a port or member of: a bridge, a bond.
    pub master: Option<u32>,
    /// The device that it is on top of, in the same namespace: the parent of a VLAN.
    pub lower: Option<u32>,
    /// The XDP program that it carries.
    pub xdp: Option<AttachedXdp>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AttachedXdp {
    pub program_id: u32,
    /// Run by the kernel's stack instead of the driver.
    pub generic: bool,
}

impl Rtnl {
    /// The interface of that name, or `None`.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetError> {
        let mut message = LinkMessage::default();
        message.attributes.push(LinkAttribute::IfName(name.to_owned()));
        self.find_link(message, || format!("cannot look up interface {name}"))
    }

    /// The interface of that index, or `None`.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn link_at(&mut self, index: u32) -> Result<Option<Link>, NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        self.find_link(message, || format!("cannot look up interface {index}"))
    }

    fn find_link(
        &mut self,
        message: LinkMessage,
        what: impl Fn() -> String,
    ) -> Result<Option<Link>, NetError> {
        match self.ask(RouteNetlinkMessage::GetLink(message)) {
            Ok(Some(RouteNetlinkMessage::NewLink(message))) => Ok(Some(read_link(&message))),
            Ok(_) => Ok(None),
            Err(error) => Err(NetError::kernel(what())(error)),
        }
    }

    /// All interfaces.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn links(&mut self) -> Result<Vec<Link>, NetError> {
        let answers = self
            .list(RouteNetlinkMessage::GetLink(LinkMessage::default()))
            .map_err(NetError::kernel("cannot list interfaces"))?;
        Ok(answers
            .iter()
            .filter_map(|answer| match answer {
                RouteNetlinkMessage::NewLink(message) => Some(read_link(message)),
                _ => None,
            })
            .collect())
    }

    /// Creates a veth pair: `name` here, `peer` in another namespace (or here).
    ///
    /// # Errors
    /// A name is taken, or too long.
    pub fn add_veth(
        &mut self,
        name: &str,
        peer: &str,
        namespace: Option<BorrowedFd<'_>>,
    ) -> Result<(), NetError> {
        let mut far = LinkMessage::default();
        far.attributes.push(LinkAttribute::IfName(peer.to_owned()));
        if let Some(namespace) = namespace {
            far.attributes.push(LinkAttribute::NetNsFd(namespace.as_raw_fd()));
        }
        let mut near = LinkMessage::default();
        near.attributes.push(LinkAttribute::IfName(name.to_owned()));
        near.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]));
        self.order(RouteNetlinkMessage::NewLink(near), CREATE).map_err(|error| {
            let unknown = error.raw_os_error() == Some(libc::EOPNOTSUPP);
            let why = if unknown { ": the kernel has no module veth (CONFIG_VETH)" } else { "" };
            NetError::kernel(format!("cannot create veth pair {name} and {peer}{why}"))(error)
        })
    }

    /// Leaves a note on an interface, which `ip link` shows.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_alias(&mut self, index: u32, alias: &str) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.attributes.push(LinkAttribute::IfAlias(alias.to_owned()));
        self.order(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(NetError::kernel(format!("cannot leave a note on interface {index}")))
    }

    /// Brings an interface up.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_up(&mut self, index: u32) -> Result<(), NetError> {
        self.set_link_state(index, LinkFlags::Up)
    }

    /// Brings an interface down.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_down(&mut self, index: u32) -> Result<(), NetError> {
        self.set_link_state(index, LinkFlags::empty())
    }

    fn set_link_state(&mut self, index: u32, flags: LinkFlags) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = flags;
        message.header.change_mask = LinkFlags::Up;
        let state = if flags.is_empty() { "down" } else { "up" };
        self.order(RouteNetlinkMessage::SetLink(message), 0)
            .map_err(NetError::kernel(format!("cannot bring interface {index} {state}")))
    }

    /// Waits until an interface that was brought up carries packets: until its queue is in place, a moment later, the
    /// kernel drops what is sent through it.
    ///
    /// # Errors
    /// It does not within two seconds: no cable, or the other end of the veth is down.
    pub fn wait_until_running(&mut self, index: u32) -> Result<(), NetError> {
        let what = || format!("interface {index} is up but does not run");
        let news =
            listen_for_links().map_err(NetError::kernel("cannot subscribe to changes of interfaces"))?;
        while !self.link_at(index)?.is_some_and(|link| link.running) {
            news.recv_from_full().map_err(NetError::kernel(what()))?;
        }
        Ok(())
    }

    /// Removes an interface, a veth with its other end; fine when it is gone.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete_link(&mut self, index: u32) -> Result<(), NetError> {
        let mut message = LinkMessage::default();
        message.header.index = index;
        match self.order(RouteNetlinkMessage::DelLink(message), 0) {
            Err(error) if !is_absent(&error) => {
                Err(NetError::kernel(format!("cannot remove interface {index}"))(error))
            }
            _ => Ok(()),
        }
    }

    /// Gives an interface a `pfifo` queue of so many packets: a full ring of a veth then holds its sender back instead
    /// of losing frames.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_pfifo(&mut self, index: u32, limit: u32) -> Result<(), NetError> {
        const TCA_OPTIONS: u16 = 2;
        let mut message = TcMessage::default();
        message.header.family = AddressFamily::Unspec;
        message.header.index = index as i32;
        message.header.parent = TcHandle::ROOT;
        message.attributes.push(TcAttribute::Kind("pfifo".to_owned()));
        // `struct tc_fifo_qopt`: the limit alone.
        message
            .attributes
            .push(TcAttribute::Other(DefaultNla::new(TCA_OPTIONS, limit.to_ne_bytes().to_vec())));
        self.order(RouteNetlinkMessage::NewQueueDiscipline(message), super::rtnl::REPLACE)
            .map_err(NetError::kernel(format!("cannot give interface {index} a pfifo queue")))
    }
}

fn listen_for_links() -> io::Result<Socket> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.add_membership(libc::RTNLGRP_LINK)?;
    socket2::SockRef::from(&socket).set_read_timeout(Some(Duration::from_secs(2)))?;
    Ok(socket)
}

fn read_link(message: &LinkMessage) -> Link {
    let mut link = Link {
        index: message.header.index,
        name: String::new(),
        mac: [0; 6],
        up: message.header.flags.contains(LinkFlags::Up),
        running: message.header.flags.contains(LinkFlags::Running),
        mtu: 0,
        kind: String::new(),
        alias: String::new(),
        peer: None,
        master: None,
        lower: None,
        xdp: None,
    };
    let (mut other, mut namespace) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name.clone_from(name),
            LinkAttribute::Address(mac) => link.mac = mac.as_slice().try_into().unwrap_or_default(),
            LinkAttribute::IfAlias(alias) => link.alias.clone_from(alias),
            LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
            LinkAttribute::Controller(index) => link.master = Some(*index),
            LinkAttribute::Link(index) => other = Some(*index),
            LinkAttribute::LinkNetNsId(id) => namespace = Some(*id),
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    if let LinkInfo::Kind(kind) = info {
                        link.kind = kind.to_string();
                    }
                }
            }
            LinkAttribute::Xdp(attributes) => link.xdp = read_xdp(attributes),
            _ => {}
        }
    }
    if link.kind == "veth" {
        link.peer = other.map(|index| (index, namespace));
    } else if namespace.is_none() {
        link.lower = other;
    }
    link
}

fn read_xdp(attributes: &[LinkXdp]) -> Option<AttachedXdp> {
    // With a program in the driver and another one in generic mode there is no plain id.
    let id = |pick: fn(&LinkXdp) -> Option<u32>| attributes.iter().find_map(pick).filter(|id| *id != 0);
    let in_driver = id(|attribute| match attribute {
        LinkXdp::DrvProgId(id) | LinkXdp::HwProgId(id) => Some(*id),
        _ => None,
    });
    let generic = in_driver.is_none() && attributes.contains(&LinkXdp::Attached(XdpAttached::SocketBuffer));
    let any = || {
        id(|attribute| match attribute {
            LinkXdp::ProgId(id) | LinkXdp::SkbProgId(id) => Some(*id),
            _ => None,
        })
    };
    Some(AttachedXdp { program_id: in_driver.or_else(any)?, generic })
}
