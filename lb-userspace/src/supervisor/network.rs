//! The network of one managed server: a namespace, and a veth pair that joins it to the balancer's.
//!
//! The server has one address and one router, the balancer's address on the inner network, which stands on every
//! balancer's end: no subnet to divide. Both ends know each other's link address for good, so nothing is ever resolved
//! there. The server's end computes its own checksums and polls its ring, as frames that XDP redirects demand, and has
//! a queue that waits when the ring is full.

use super::ManagedSpec;
use crate::net::ethtool::{Feature, switch};
use crate::net::{Link, MAX_NAME, NetError, Netns, Rtnl, set_sysctl};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd;

/// The server's end of the pair.
const INSIDE: &str = "eth0";
/// Packets that wait for room in the ring.
const QUEUE: u32 = 1000;
/// All names that we give begin so.
const PREFIX: &str = "lb-";
/// What is noted on the balancer's ends, before the namespace's name: so they are known as ours.
const NOTE: &str = "managed server of lbd in namespace ";

/// A namespace with its veth pair; both are removed when it is dropped.
#[derive(Debug)]
pub(super) struct ServerNet {
    pub(super) netns: Netns,
    pub(super) interface: String,
}

impl ServerNet {
    /// Creates what is missing; what an earlier daemon left is used as it is.
    pub(super) fn arrange(spec: &ManagedSpec) -> Result<Self, NetError> {
        let netns = Netns::ensure(&namespace_name(&spec.service, &spec.name))?;
        let interface = interface_name(&spec.service, &spec.name);
        let net = Self { netns, interface };
        let mut rtnl = Rtnl::open()?;
        let outside = net.pair(&mut rtnl)?;
        let inside = net.netns.run(|| arrange_inside(spec, &outside))??;

        rtnl.set_alias(outside.index, &format!("{NOTE}{}", net.netns.name()))?;
        let address = spec.addr.ip();
        rtnl.add_address(outside.index, spec.gateway, host_prefix(spec.gateway))?;
        rtnl.set_up(outside.index)?;
        rtnl.set_neighbour(outside.index, address, inside.mac)?;
        rtnl.set_route((address, host_prefix(address)), outside.index, None, Some(spec.gateway))?;
        rtnl.wait_until_running(outside.index)?;
        net.netns.run(|| Rtnl::open()?.wait_until_running(inside.index))??;
        // So that what the server sends to others than clients is routed, too.
        let family = if address.is_ipv4() { "ipv4" } else { "ipv6" };
        set_sysctl(&format!("net/{family}/conf/{}/forwarding", net.interface), "1")?;
        Ok(net)
    }

    /// The balancer's end of a pair whose other end is in the namespace.
    fn pair(&self, rtnl: &mut Rtnl) -> Result<Link, NetError> {
        if let Some(found) = rtnl.link(&self.interface)? {
            let far = self.netns.run(|| Rtnl::open()?.link(INSIDE))??;
            let joined = far.as_ref().and_then(|far| far.peer).is_some_and(|(index, _)| index == found.index)
                && far.map(|far| far.index) == found.peer.map(|(index, _)| index);
            if joined {
                return Ok(found);
            }
            tracing::info!(interface = self.interface, "replacing an interface that leads elsewhere");
            rtnl.delete_link(found.index)?;
        }
        if let Some(stale) = self.netns.run(|| Rtnl::open()?.link(INSIDE))?? {
            self.netns.run(|| Rtnl::open()?.delete_link(stale.index))??;
        }
        rtnl.add_veth(&self.interface, INSIDE, Some(self.netns.as_fd()))?;
        rtnl.link(&self.interface)?.ok_or_else(|| NetError::NoInterface(self.interface.clone()))
    }
}

impl Drop for ServerNet {
    fn drop(&mut self) {
        // The namespace may live on in a thread that is still ending; its veth must not.
        if let Err(error) = remove_interface(&self.interface) {
            tracing::warn!(interface = self.interface, ?error, "interface stays");
        }
    }
}

/// In the server's namespace. Returns the server's end.
fn arrange_inside(spec: &ManagedSpec, outside: &Link) -> Result<Link, NetError> {
    let mut rtnl = Rtnl::open()?;
    let inside = rtnl.link(INSIDE)?.ok_or_else(|| NetError::NoInterface(INSIDE.to_owned()))?;
    for (feature, on) in
        [(Feature::TxChecksum, false), (Feature::TcpSegmentation, false), (Feature::ReceiveOffload, true)]
    {
        switch(INSIDE, feature, on)?;
    }
    rtnl.set_pfifo(inside.index, QUEUE)?;
    let address = spec.addr.ip();
    rtnl.add_address(inside.index, address, host_prefix(address))?;
    rtnl.set_up(inside.index)?;
    rtnl.set_neighbour(inside.index, spec.gateway, outside.mac)?;
    rtnl.set_route((spec.gateway, host_prefix(spec.gateway)), inside.index, None, None)?;
    rtnl.set_route((any(address), 0), inside.index, Some(spec.gateway), Some(address))?;
    Ok(inside)
}

fn any(like: IpAddr) -> IpAddr {
    if like.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() }
}

fn host_prefix(addr: IpAddr) -> u8 {
    if addr.is_ipv4() { 32 } else { 128 }
}

fn remove_interface(name: &str) -> Result<(), NetError> {
    let mut rtnl = Rtnl::open()?;
    match rtnl.link(name)? {
        Some(link) => rtnl.delete_link(link.index),
        None => Ok(()),
    }
}

/// Removes what a daemon that was killed left of its managed servers: every pair that begins in this namespace, and the
/// namespaces of `servers` (service and backend), which may have lost theirs. Returns what was removed, one line each.
///
/// # Errors
/// We are not root.
pub fn remove_all<'a>(
    servers: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> Result<Vec<String>, NetError> {
    let mut namespaces: BTreeSet<_> =
        servers.into_iter().map(|(service, backend)| namespace_name(service, backend)).collect();
    let mut removed = Vec::new();
    let mut rtnl = Rtnl::open()?;
    for link in rtnl.links()? {
        if let Some(namespace) = link.alias.strip_prefix(NOTE) {
            namespaces.insert(namespace.to_owned());
            rtnl.delete_link(link.index)?;
            removed.push(format!("interface {}", link.name));
        }
    }
    for name in namespaces {
        if Netns::remove(&name)? {
            removed.push(format!("network namespace {name}"));
        }
    }
    Ok(removed)
}

/// Name of a managed server's namespace.
pub fn namespace_name(service: &str, backend: &str) -> String {
    let plain = format!("{PREFIX}{service}-{backend}");
    // With a dash in it a service could take another one's name.
    if service.contains('-') { format!("{plain}-{}", digest(service, backend)) } else { plain }
}

/// Name of the balancer's end of a managed server's veth pair.
pub fn interface_name(service: &str, backend: &str) -> String {
    let plain = namespace_name(service, backend);
    if plain.len() <= MAX_NAME {
        return plain;
    }
    let room = MAX_NAME - PREFIX.len() - 1 - DIGEST;
    let mut start = backend.len().min(room);
    while !backend.is_char_boundary(start) {
        start -= 1;
    }
    format!("{PREFIX}{}-{}", &backend[..start], digest(service, backend))
}

const DIGEST: usize = 6;

/// A few hexadecimal digits that differ from one server to the next (FNV-1a).
fn digest(service: &str, backend: &str) -> String {
    let hash =
        service.bytes().chain([0]).chain(backend.bytes()).fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
    format!("{:06x}", (hash ^ hash >> 24 ^ hash >> 48) & 0xff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_short_readable_and_distinct() {
        assert_eq!(interface_name("shop", "s1"), "lb-shop-s1");
        assert_eq!(namespace_name("shop", "s1"), "lb-shop-s1");
        let pairs = [
            ("shop", "s1"),
            ("a", "b-c"),
            ("a-b", "c"),
            ("bookshop", "server-one"),
            ("bookshop", "server-two"),
            ("bookshop2", "server-two"),
            ("café-bücher", "größer"),
        ];
        let mut names = HashSet::new();
        for (service, backend) in pairs {
            let name = interface_name(service, backend);
            assert!(name.len() <= MAX_NAME && name.starts_with(PREFIX), "{name}");
            assert!(names.insert(name), "{service} {backend}");
        }
        assert!(interface_name("bookshop", "server-one").starts_with("lb-serve-"));
    }
}
