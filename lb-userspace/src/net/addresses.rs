//! Addresses, routes and neighbours.

use super::NetError;
use super::rtnl::{REPLACE, Rtnl, is_absent};
use lb_common::addr::Mac;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::IpAddr;

/// How the kernel would send to an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route {
    pub ifindex: u32,
    /// The host whose link address frames carry: a router, or the destination itself.
    pub next: IpAddr,
    /// The destination is an address of this host.
    pub local: bool,
}

/// An entry of the neighbour table.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Neighbour {
    pub ifindex: u32,
    pub addr: IpAddr,
    /// Its link address, while one is known.
    pub mac: Option<Mac>,
    /// The kernel has confirmed it lately, or never needs to.
    pub fresh: bool,
    /// The kernel asked for it and got no answer.
    pub failed: bool,
}

fn family(addr: IpAddr) -> AddressFamily {
    if addr.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// Length of the prefix that is the address itself.
pub(crate) fn host_prefix(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

impl Rtnl {
    /// Adds an address to an interface. Returns whether it was missing.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn add_address(&mut self, index: u32, addr: IpAddr, prefix: u8) -> Result<bool, NetError> {
        let message = RouteNetlinkMessage::NewAddress(address(index, addr, prefix));
        match self.order(message, super::rtnl::CREATE) {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(NetError::kernel(format!(
                "cannot add address {addr}/{prefix} to interface {index}"
            ))(error)),
        }
    }

    /// Removes an address from an interface; fine when it is gone.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete_address(&mut self, index: u32, addr: IpAddr, prefix: u8) -> Result<bool, NetError> {
        match self.order(RouteNetlinkMessage::DelAddress(address(index, addr, prefix)), 0) {
            Ok(_) => Ok(true),
            Err(error) if is_absent(&error) => Ok(false),
            Err(error) => Err(NetError::kernel(format!("cannot remove address {addr}/{prefix}"))(error)),
        }
    }

    /// Adds or replaces a route. Without a router the destination is on the link.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_route(
        &mut self,
        (to, prefix): (IpAddr, u8),
        index: u32,
        router: Option<IpAddr>,
        source: Option<IpAddr>,
    ) -> Result<(), NetError> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: family(to),
            destination_prefix_length: prefix,
            table: RouteHeader::RT_TABLE_MAIN,
            protocol: RouteProtocol::Static,
            scope: if router.is_some() { RouteScope::Universe } else { RouteScope::Link },
            kind: RouteType::Unicast,
            ..RouteHeader::default()
        };
        if prefix > 0 {
            message.attributes.push(RouteAttribute::Destination(to.into()));
        }
        message.attributes.push(RouteAttribute::Oif(index));
        message.attributes.extend(router.map(|router| RouteAttribute::Gateway(router.into())));
        message.attributes.extend(source.map(|source| RouteAttribute::PrefSource(source.into())));
        self.order(RouteNetlinkMessage::NewRoute(message), REPLACE)
            .map_err(NetError::kernel(format!("cannot set the route to {to}/{prefix}")))
    }

    /// How the kernel would send to an address now; `None` when it knows no way.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn route_to(&mut self, to: IpAddr) -> Result<Option<Route>, NetError> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(to);
        message.header.destination_prefix_length = host_prefix(to);
        message.attributes.push(RouteAttribute::Destination(to.into()));
        match self.ask(RouteNetlinkMessage::GetRoute(message)) {
            Ok(Some(RouteNetlinkMessage::NewRoute(answer))) => Ok(read_route(to, &answer)),
            Ok(_) => Ok(None),
            // No route, or one that forbids: the address cannot be reached, which is an answer.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES | libc::EINVAL)
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(NetError::kernel(format!("cannot look up the route to {to}"))(error)),
        }
    }

    /// What the kernel knows of a neighbour; `None` when nothing.
    ///
    /// # Errors
    /// The kernel does not answer.
    pub fn neighbour(&mut self, index: u32, addr: IpAddr) -> Result<Option<Neighbour>, NetError> {
        let mut message = neighbour(index, addr, NeighbourState::None);
        // The kernel insists that nothing else is said in this question.
        message.header.kind = RouteType::Unspec;
        match self.ask(RouteNetlinkMessage::GetNeighbour(message)) {
            Ok(Some(RouteNetlinkMessage::NewNeighbour(message))) => Ok(read_neighbour(&message)),
            Ok(_) => Ok(None),
            Err(error) => Err(NetError::kernel(format!("cannot look up neighbour {addr}"))(error)),
        }
    }

    /// Says for good which link address a neighbour has.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_neighbour(&mut self, index: u32, addr: IpAddr, mac: Mac) -> Result<(), NetError> {
        let mut message = neighbour(index, addr, NeighbourState::Permanent);
        message.attributes.push(NeighbourAttribute::LinkLocalAddress(mac.to_vec()));
        self.order(RouteNetlinkMessage::NewNeighbour(message), REPLACE)
            .map_err(NetError::kernel(format!("cannot set neighbour {addr}")))
    }

    /// Has the kernel ask for a neighbour's link address, or confirm the one it knows. The answer comes as a
    /// notification. An entry that was made for good ([`Rtnl::set_neighbour`]) becomes one like the others.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn solicit(&mut self, index: u32, addr: IpAddr) -> Result<(), NetError> {
        // NTF_USE: as if a packet had been sent there, whatever state the entry is in.
        let mut message = neighbour(index, addr, NeighbourState::None);
        message.header.flags = NeighbourFlags::Use;
        self.order(RouteNetlinkMessage::NewNeighbour(message), REPLACE)
            .map_err(NetError::kernel(format!("cannot solicit neighbour {addr}")))
    }
}

fn address(index: u32, addr: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(addr);
    message.header.prefix_len = prefix;
    message.header.scope = AddressScope::Universe;
    message.header.index = index;
    message.attributes.push(AddressAttribute::Local(addr));
    message.attributes.push(AddressAttribute::Address(addr));
    message
}

fn neighbour(index: u32, addr: IpAddr, state: NeighbourState) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(addr);
    message.header.ifindex = index;
    message.header.state = state;
    message.header.kind = RouteType::Unicast;
    message.attributes.push(NeighbourAttribute::Destination(match addr {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    }));
    message
}

fn read_route(to: IpAddr, message: &RouteMessage) -> Option<Route> {
    let mut route = Route { ifindex: 0, next: to, local: message.header.kind == RouteType::Local };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => route.ifindex = *index,
            RouteAttribute::Gateway(RouteAddress::Inet(router)) => route.next = (*router).into(),
            RouteAttribute::Gateway(RouteAddress::Inet6(router)) => route.next = (*router).into(),
            RouteAttribute::Via(RouteVia::Inet(router)) => route.next = (*router).into(),
            RouteAttribute::Via(RouteVia::Inet6(router)) => route.next = (*router).into(),
            _ => {}
        }
    }
    let reaches = matches!(message.header.kind, RouteType::Unicast | RouteType::Local);
    (reaches && route.ifindex != 0).then_some(route)
}

/// Reads a neighbour of IP; others (bridge entries) are none of ours.
pub(crate) fn read_neighbour(message: &NeighbourMessage) -> Option<Neighbour> {
    let mut addr = None;
    let mut mac = None;
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => addr = Some(IpAddr::from(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => addr = Some(IpAddr::from(*v6)),
            NeighbourAttribute::LinkLocalAddress(bytes) => mac = bytes.as_slice().try_into().ok(),
            _ => {}
        }
    }
    let state = message.header.state;
    let failed = matches!(state, NeighbourState::Failed);
    let unknown = failed || matches!(state, NeighbourState::Incomplete | NeighbourState::None);
    Some(Neighbour {
        ifindex: message.header.ifindex,
        addr: addr?,
        mac: mac.filter(|_| !unknown),
        fresh: matches!(state, NeighbourState::Reachable | NeighbourState::Permanent | NeighbourState::Noarp),
        failed,
    })
}
