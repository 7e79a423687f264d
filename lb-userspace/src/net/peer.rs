//! Whether a frame that XDP redirects to a veth arrives. It lands in a ring that the other end polls only when it has
//! an XDP program or GRO; otherwise it lies there, and no counter tells.

use super::ethtool::{self, Feature};
use super::netns::Netns;
use super::{Link, NetError, Rtnl};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::nsid::{NsidAttribute, NsidMessage};
use std::os::fd::{AsFd, AsRawFd};

/// What is known of the other end of an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// Not a veth: a driver's own business.
    NotVeth,
    /// It polls its ring.
    Receives,
    /// It does not: redirected frames vanish.
    Ignores,
    /// It is in a namespace without a name that we know.
    OutOfSight,
}

impl Peer {
    /// Warns when frames for this interface would vanish.
    pub fn warn(self, interface: &str) {
        if self == Self::Ignores {
            tracing::warn!(
                interface,
                "frames redirected to this veth vanish: its other end needs `ethtool -K DEVICE gro on` (and `tx off`)"
            );
        }
    }
}

/// Looks at the other end of a veth pair.
///
/// # Errors
/// The kernel does not answer.
pub fn check_peer(rtnl: &mut Rtnl, link: &Link) -> Result<Peer, NetError> {
    let Some((index, namespace)) = link.peer else { return Ok(Peer::NotVeth) };
    let Some(id) = namespace else { return look(index) };
    for name in Netns::list("") {
        if let Ok(candidate) = Netns::open(&name)
            && id_of(rtnl, &candidate)? == Some(id)
        {
            return candidate.run(|| look(index))?;
        }
    }
    Ok(Peer::OutOfSight)
}

/// In the namespace of the other end.
fn look(index: u32) -> Result<Peer, NetError> {
    let Some(link) = Rtnl::open()?.link_at(index)? else { return Ok(Peer::OutOfSight) };
    let polls =
        link.xdp.is_some_and(|xdp| !xdp.generic) || ethtool::is_on(&link.name, Feature::ReceiveOffload)?;
    Ok(if polls { Peer::Receives } else { Peer::Ignores })
}

/// The id by which the namespace of `rtnl` knows another one.
fn id_of(rtnl: &mut Rtnl, namespace: &Netns) -> Result<Option<i32>, NetError> {
    let mut message = NsidMessage::default();
    message.attributes.push(NsidAttribute::Fd(namespace.as_fd().as_raw_fd() as u32));
    let answer = rtnl
        .ask(RouteNetlinkMessage::GetNsId(message))
        .map_err(NetError::kernel("cannot ask for the id of a network namespace"))?;
    let Some(RouteNetlinkMessage::NewNsId(answer)) = answer else { return Ok(None) };
    Ok(answer.attributes.iter().find_map(|attribute| match attribute {
        NsidAttribute::Id(id) if *id >= 0 => Some(*id),
        _ => None,
    }))
}
